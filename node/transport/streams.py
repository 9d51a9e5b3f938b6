"""Byte streams with flow control, whatever carries them: a connection, or nothing but memory.

A :class:`StreamSender` is told where to put frames, a :class:`StreamReceiver` where to give credit. Between
nodes these are frames on a connection; inside of one node each is simply the other's method.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

from amberblob.errors import AmberError, PeerUnreachable, WireError
from amberblob.limits import DATA_FRAME_BYTES, MIB
from amberblob.wire import StageClose
from node.transport.interface import Buffer
from node.transport.windows import ReceiveWindow, SendWindow

MANIFEST_BYTES_MAX = 64 * MIB
"""The largest manifest file that a stage takes: about 700,000 chunks, 5 TiB at the default chunk size."""


class _Waiter:
    """Here the one task that uses an end of a stream waits for what it needs."""

    __slots__ = ("_future",)

    def __init__(self) -> None:
        self._future: asyncio.Future[None] | None = None

    async def wait(self) -> None:
        """Until the next :meth:`wake`."""
        assert self._future is None, "two tasks use one end of a stream"
        self._future = asyncio.get_running_loop().create_future()
        try:
            await self._future
        finally:
            self._future = None

    def wake(self) -> None:
        """Have it look again, if it waits."""
        if self._future is not None and not self._future.done():
            self._future.set_result(None)


class StreamSender:
    """The sending end of one stream. One task at a time may send.

    Args:
        put: takes one frame's bytes, which do not change any more.
        ready: waits until the carrier has room; None when it always has.
    """

    __slots__ = ("_error", "_put", "_ready", "_waiter", "window")

    def __init__(
        self, put: Callable[[bytes | memoryview], None], ready: Callable[[], Awaitable[None] | None] | None = None
    ) -> None:
        self.window = SendWindow()
        self._put = put
        self._ready = ready
        self._error: AmberError | None = None
        self._waiter = _Waiter()

    async def send(self, data: Buffer, *, stall_s: float | None) -> None:
        """Send ``data`` in frames as there is credit; ``data`` must not change afterwards.

        Args:
            stall_s: how long each wait for credit or for the carrier may last; None: until the stream fails.

        Raises:
            TimeoutError: the receiver did not take anything for ``stall_s``.
            AmberError: as given to :meth:`fail`.
        """
        view = memoryview(data).cast("B") if not isinstance(data, bytes) or len(data) > DATA_FRAME_BYTES else data
        offset = 0
        while offset < len(view):
            if self._error is not None:
                raise self._error
            if self._ready is not None and (carrier := self._ready()) is not None:
                async with asyncio.timeout(stall_s):
                    await carrier
                continue
            length = min(len(view) - offset, DATA_FRAME_BYTES, self.window.credit_bytes)
            if length == 0:
                async with asyncio.timeout(stall_s):
                    await self._waiter.wait()
                continue
            self.window.spend(length)
            self._put(view if length == len(view) else view[offset : offset + length])
            offset += length
        if self._error is not None:
            raise self._error

    def grant(self, size_bytes: int) -> None:
        """The receiver gives credit. Raises WireError when it is more than was sent."""
        self.window.grant(size_bytes)
        self._waiter.wake()

    def fail(self, error: AmberError) -> None:
        """Nothing can be sent any more; a waiting :meth:`send` raises ``error``. The first error stays."""
        if self._error is None:
            self._error = error
        self._waiter.wake()


class StreamReceiver:
    """The receiving end of one stream: frames that wait to be taken, never more than the window.

    Args:
        credit: told how many bytes the sender may send on.
    """

    __slots__ = ("_credit", "_ended", "_error", "_frames", "_waiter", "window")

    def __init__(self, credit: Callable[[int], None]) -> None:
        self.window = ReceiveWindow()
        self._credit = credit
        self._frames: deque[bytes | memoryview] = deque()
        self._ended = False
        self._error: AmberError | None = None
        self._waiter = _Waiter()

    def feed(self, data: bytes | memoryview) -> None:
        """A frame came in, which does not change any more. Raises WireError when there was no credit for it, or after the end."""
        if self._ended:
            raise WireError("a data frame after the end of its stream")
        self.window.receive(len(data))
        self._frames.append(data)
        self._waiter.wake()

    def end(self) -> None:
        """No more frames will come."""
        self._ended = True
        self._waiter.wake()

    def fail(self, error: AmberError) -> None:
        """The stream is broken: :meth:`take` raises ``error`` at once, frames that wait are dropped."""
        if self._error is None:
            self._error = error
            self._frames.clear()
        self._waiter.wake()

    async def take(self, *, timeout_s: float | None = None) -> bytes | memoryview | None:
        """The next frame; None at the end.

        Raises:
            TimeoutError: none came within ``timeout_s``.
            AmberError: as given to :meth:`fail`.
        """
        while True:
            if self._error is not None:
                raise self._error
            if self._frames:
                data = self._frames.popleft()
                credit = self.window.take(len(data))
                if credit and not self._ended:
                    self._credit(credit)
                return data
            if self._ended:
                return None
            async with asyncio.timeout(timeout_s):
                await self._waiter.wait()


class StageInbox:
    """A blob on its way in (:class:`~node.transport.interface.IncomingStage`).

    DATA before the StageClose are the blob's bytes; after it they are the manifest file, which is kept here.

    Args:
        credit: told how many bytes the sender may send on.
    """

    def __init__(self, credit: Callable[[int], None]) -> None:
        self.receiver = StreamReceiver(credit)
        self._credit = credit
        self._message: StageClose | None = None
        self._manifest = bytearray()
        self._complete = False

    def feed(self, data: bytes | memoryview) -> None:
        """A data frame, which does not change any more. Raises WireError."""
        if self._message is None:
            self.receiver.feed(data)
            return
        if self._complete or self._message.manifest_id is None:
            raise WireError("data after the end of a blob")
        if len(self._manifest) + len(data) > MANIFEST_BYTES_MAX:
            raise WireError(f"a manifest file of more than {MANIFEST_BYTES_MAX} bytes")
        self._manifest += data
        self._credit(len(data))

    def keep_manifest(self, manifest: bytes) -> None:
        """The whole manifest file at once, from a sender in the same process."""
        self._manifest += manifest

    def close(self, message: StageClose) -> None:
        """The blob's bytes are complete. Raises WireError when they were before."""
        if self._message is not None:
            raise WireError("a blob was closed twice")
        self._message = message

    def end(self) -> None:
        """The manifest file is complete too, or there is none. Raises WireError when the blob was not closed."""
        if self._message is None:
            raise WireError("a blob ended without its chunks")
        self._complete = True
        self.receiver.end()

    def fail(self, error: AmberError) -> None:
        """The sender is gone."""
        if not self._complete:
            self.receiver.fail(error)

    async def frames(self) -> AsyncIterator[bytes | memoryview]:
        """The blob's bytes; ends when all that belongs to the blob has come. Raises PeerUnreachable."""
        while (data := await self.receiver.take()) is not None:
            yield data

    def closing(self) -> tuple[StageClose, bytes | None]:
        """The chunks, and the manifest file if there is one; valid once :meth:`frames` has ended."""
        assert self._complete and self._message is not None, "closing() before the end of frames()"
        manifest = bytes(self._manifest) if self._message.manifest_id is not None else None
        return self._message, manifest


def gave_up(peer: str) -> PeerUnreachable:
    """What a receiver sees of a sender that aborted."""
    return PeerUnreachable(f"{peer} gave the blob up; nothing more will come")
