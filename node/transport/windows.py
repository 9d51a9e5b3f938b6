"""How much of a stream may be on its way. Pure counting, for both ends.

Bytes sent and not yet taken by the receiving program never exceed the window. The receiver gives credit back
in portions of a quarter of a window, so that a stream of small frames does not answer each with another.
"""

from __future__ import annotations

from amberblob.errors import WireError
from amberblob.limits import STREAM_WINDOW_BYTES

CREDIT_PORTION_BYTES = STREAM_WINDOW_BYTES // 4


class SendWindow:
    """What a sender may still send.

    Attributes:
        credit_bytes: bytes that may be sent now.
    """

    __slots__ = ("_window_bytes", "credit_bytes")

    def __init__(self, window_bytes: int = STREAM_WINDOW_BYTES) -> None:
        self._window_bytes = window_bytes
        self.credit_bytes = window_bytes

    def spend(self, size_bytes: int) -> None:
        """``size_bytes`` were sent."""
        assert 0 < size_bytes <= self.credit_bytes
        self.credit_bytes -= size_bytes

    def grant(self, size_bytes: int) -> None:
        """The receiver took ``size_bytes``. Raises WireError when those were never sent."""
        if size_bytes <= 0 or self.credit_bytes + size_bytes > self._window_bytes:
            raise WireError(f"credit for {size_bytes} bytes that were never sent")
        self.credit_bytes += size_bytes


class ReceiveWindow:
    """What a receiver holds and owes.

    Attributes:
        unread_bytes: received, and not yet taken by the program.
        unread_bytes_peak: the most that this ever was.
    """

    __slots__ = ("_owed_bytes", "_window_bytes", "unread_bytes", "unread_bytes_peak")

    def __init__(self, window_bytes: int = STREAM_WINDOW_BYTES) -> None:
        self._window_bytes = window_bytes
        self._owed_bytes = 0
        self.unread_bytes = 0
        self.unread_bytes_peak = 0

    def receive(self, size_bytes: int) -> None:
        """A frame came in. Raises WireError when it is empty or the sender had no credit for it."""
        self.unread_bytes += size_bytes
        if size_bytes == 0 or self.unread_bytes + self._owed_bytes > self._window_bytes:
            raise WireError(f"a data frame of {size_bytes} bytes that there was no credit for")
        self.unread_bytes_peak = max(self.unread_bytes_peak, self.unread_bytes)

    def take(self, size_bytes: int) -> int:
        """The program took ``size_bytes``; returns the credit to give now, which may be 0."""
        self.unread_bytes -= size_bytes
        self._owed_bytes += size_bytes
        if self._owed_bytes < CREDIT_PORTION_BYTES:
            return 0
        credit, self._owed_bytes = self._owed_bytes, 0
        return credit
