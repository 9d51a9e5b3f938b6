"""Background work leaves the machine to others: after each bit of it a worker rests in proportion to the time that the bit took.

When clients keep disks and copies busy, the work takes longer, and the rests with it.
"""

from __future__ import annotations

from amberblob.clock import Clock


class Rest:
    """When a worker goes on.

    Args:
        max_s: the longest rest, whatever the work took.

    Attributes:
        until_s: when the last rest ends, monotonic.
    """

    def __init__(self, clock: Clock, *, max_s: float) -> None:
        self.until_s = float("-inf")
        self._clock = clock
        self._max_s = max_s

    def left_s(self, now_s: float) -> float:
        """How long to rest yet; 0 or less: it is over."""
        return self.until_s - now_s

    def begin(self, began_s: float, per_work: float) -> None:
        """Work that began at ``began_s`` has ended: rest ``per_work`` times as long as it took."""
        now_s = self._clock.monotonic_s()
        self.until_s = now_s + min(self._max_s, per_work * (now_s - began_s))
