"""One TCP connection between two nodes: frames in, frames out, and whether the other side still lives.

Writes are collected and handed to the socket once per turn of the event loop: with many requests under way
one system call carries dozens of frames. Reads go straight into the buffer of a
:class:`~node.transport.frames.FrameReader`.

What the frames mean is up to the two subclasses: :mod:`~node.transport.caller`, :mod:`~node.transport.answerer`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Awaitable
from typing import cast

from amberblob.errors import PeerError, PeerRefused, PeerUnreachable, WireError
from amberblob.limits import DATA_FRAME_BYTES, FRAME_BYTES_MAX, KIB, MIB
from node.transport import frames
from node.transport.frames import FrameReader, Kind
from node.transport.handshake import (
    CLOCK_AHEAD_MAX_MS,
    HANDSHAKE_BYTES_MAX,
    HANDSHAKE_TIMEOUT_S,
    Action,
    Established,
    Identity,
    Lane,
    Refuse,
    RefusedByPeer,
    Send,
    clock_refusal,
    decode_refusal,
    refusal_frame,
)
from node.transport.refusals import RefusalLog

PING_INTERVAL_S = 2.0
SILENT_PINGS_MAX = 3
"""So many intervals without a byte from the peer, and the connection is given up: more than 6 s."""

OUT_BYTES_MAX = MIB
"""Beyond this much unsent, whoever wants to send waits."""

READ_BUFFER_BYTES: dict[Lane, int] = {"control": 128 * KIB, "bulk": 4 * DATA_FRAME_BYTES}

_JOIN_BYTES_MAX = 16 * KIB
_LINGER_S = 1.0
_PART_BYTES = 32 * KIB


class Connection(asyncio.BufferedProtocol):
    """Framing, batching, handshake, pings. Use from the event loop's thread only.

    Attributes:
        peer: the node id on the other side; what it claims to be until ``established``.
        established: the handshake is complete, and the connection not lost.
        wire_version: what both sides speak; 0 before the handshake is complete.
        lost: done as soon as the connection is gone, with the reason.
    """

    def __init__(self, identity: Identity, refusals: RefusalLog, *, ping_interval_s: float = PING_INTERVAL_S) -> None:
        self.peer = "an unknown peer"
        self.established = False
        self.wire_version = 0
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[PeerError] = self._loop.create_future()
        self._identity = identity
        self._refusals = refusals
        self._ping_interval_s = ping_interval_s
        self._transport: asyncio.Transport | None = None
        self._reader = FrameReader(
            self._on_frame,
            buffer_bytes=HANDSHAKE_BYTES_MAX,
            frame_bytes_max=HANDSHAKE_BYTES_MAX - frames.HEADER_BYTES,
            budget_bytes=HANDSHAKE_BYTES_MAX,
        )
        self._error: PeerError | None = None
        self._out: list[bytes | memoryview] = []
        self._out_bytes = 0
        self._paused = False
        self._drain_waiters: deque[asyncio.Future[None]] = deque()
        self._heard = False
        self._silent_pings = 0
        self._timer: asyncio.TimerHandle | None = None

    # ---- for subclasses to fill in

    def _handshake_begin(self) -> list[Action]:
        """The connection is made: what to send first."""
        return []

    def _handshake_frame(self, kind: int, payload: bytes) -> list[Action]:
        """A frame of the handshake."""
        raise NotImplementedError

    def _handshake_closed(self) -> Refuse | None:
        """What it means that the peer closed the connection before the handshake was complete."""
        return None

    def _established(self, peer: str) -> None:
        """The handshake is complete."""

    def _frame(self, kind: int, stream: int, payload: memoryview) -> None:
        """A frame of a stream. May raise WireError, which breaks the connection."""
        raise NotImplementedError

    def _gone(self, error: PeerError) -> None:
        """The connection is lost: tell everybody who waits."""

    # ---- sending

    def send(self, kind: int, stream: int, payload: bytes | memoryview = b"") -> None:
        """Send a frame at the end of this turn of the event loop. Dropped when the connection is lost.

        Raises:
            WireError: the payload is larger than a frame may be.
        """
        size = len(payload)
        head = frames.header(kind, stream, size)
        if self._error is not None:
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        if size <= _JOIN_BYTES_MAX:
            self._out.append(head + payload if size else head)
        else:
            self._out.append(head)
            self._out.append(payload)
        self._out_bytes += size + frames.HEADER_BYTES

    def is_congested(self) -> bool:
        """Whether so much is unsent that senders should wait."""
        return (self._paused or self._out_bytes >= OUT_BYTES_MAX) and self._error is None

    def congested(self) -> Awaitable[None] | None:
        """None when there is room to send; else something to await before asking again."""
        if not self.is_congested():
            return None
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._drain_waiters.append(waiter)
        return waiter

    async def drained(self) -> None:
        """Wait until there is room to send, or the connection is lost."""
        while (waiter := self.congested()) is not None:
            await waiter

    def _flush(self) -> None:
        out, self._out, self._out_bytes = self._out, [], 0
        transport = self._transport
        if transport is None or transport.is_closing() or not out:
            return
        if len(out) == 1:
            transport.write(out[0])
        else:
            transport.writelines(_joined(out))
        if not self._paused:
            self._wake_senders()

    def _wake_senders(self) -> None:
        while self._drain_waiters:
            waiter = self._drain_waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    # ---- closing

    def close(self, error: PeerError) -> None:
        """Break the connection now: everybody who waits gets ``error``."""
        if self._error is not None:
            return
        self._finish(error)
        if self._transport is not None:
            self._transport.abort()

    def close_soon(self, error: PeerError) -> None:
        """Close the connection after what was sent so far has left (within a second)."""
        if self._error is not None:
            return
        self._flush()
        self._finish(error)
        if self._transport is not None:
            self._transport.close()
            self._timer = self._loop.call_later(_LINGER_S, self._transport.abort)

    def _finish(self, error: PeerError) -> None:
        self._error = error
        self.established = False
        self._reader.stop()
        self._out.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake_senders()
        self._gone(error)
        if not self.lost.done():
            self.lost.set_result(error)

    # ---- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._error is not None:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(high=OUT_BYTES_MAX, low=OUT_BYTES_MAX // 4)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._timer = self._loop.call_later(HANDSHAKE_TIMEOUT_S, self._handshake_overdue)
        self._carry_out(self._handshake_begin())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._reader.space()

    def buffer_updated(self, nbytes: int) -> None:
        self._heard = True
        try:
            self._reader.advance(nbytes)
            if self._reader.budget_bytes == 0 and self._error is None:
                raise WireError("more bytes than a handshake may have")
        except WireError as error:
            self._broken(error)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._error is None:
            refuse = None if self.established else self._handshake_closed()
            if refuse is not None:
                self._refuse(refuse)
            else:
                why = f"{type(exc).__name__}: {exc}" if exc is not None else "closed by the peer"
                self._finish(PeerUnreachable(f"the connection with {self.peer} broke ({why})"))
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._reader.release()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake_senders()

    # ---- incoming

    def _on_frame(self, kind: int, stream: int, payload: memoryview) -> None:
        if not self.established:
            self._carry_out(self._handshake_frame(kind, bytes(payload)))
        elif kind == Kind.PING:
            if self._observe(frames.unpack_time(payload)):
                self.send(Kind.PONG, 0, frames.pack_time(self._identity.clock.now_ms()))
        elif kind == Kind.PONG:
            self._observe(frames.unpack_time(payload))
        elif kind == Kind.REFUSAL:
            self._carry_out([decode_refusal(payload)])
        else:
            self._frame(kind, stream, payload)

    def _observe(self, peer_ms: int) -> bool:
        if self._identity.clock.observe(peer_ms, ahead_max_ms=CLOCK_AHEAD_MAX_MS):
            return True
        self._refuse(clock_refusal(self.peer, peer_ms, self._identity.clock.now_ms()))
        return False

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self.send(action.kind, 0, action.payload)
                case Established():
                    self.wire_version = action.version
                    self._begin(action.peer, action.lane)
                case Refuse():
                    self._refuse(action)
                case RefusedByPeer():
                    self._refusals.refused(
                        "refused by peer", peer=self.peer, reason=action.reason, detail=action.detail
                    )
                    self.close(PeerRefused(f"{self.peer} refuses us: {action.detail}", extra={"reason": action.reason}))

    def _begin(self, peer: str, lane: Lane) -> None:
        self.peer = peer
        self.established = True
        self._reader.buffer_bytes = READ_BUFFER_BYTES[lane]
        self._reader.frame_bytes_max = FRAME_BYTES_MAX
        self._reader.budget_bytes = None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._ping_interval_s, self._ping)
        self._established(peer)

    def _refuse(self, refuse: Refuse) -> None:
        self._refusals.refused("peer refused", peer=refuse.peer, reason=refuse.reason, detail=refuse.detail)
        error = PeerRefused(refuse.detail, extra={"reason": refuse.reason})
        if refuse.tell:
            told = refusal_frame(refuse.reason, refuse.detail)
            self.send(told.kind, 0, told.payload)
            self.close_soon(error)
        else:
            self.close(error)

    def _broken(self, error: WireError) -> None:
        """The peer does not keep to the rules of the wire."""
        if not self.established:
            self._refuse(Refuse(reason="bad-handshake", detail=error.detail, peer=self.peer, tell=False))
            return
        self._refusals.refused("peer breaks the wire rules", peer=self.peer, reason=error.code, detail=error.detail)
        self.close(WireError(f"the connection with {self.peer} was closed: {error.detail}"))

    # ---- time

    def _handshake_overdue(self) -> None:
        self.close(
            PeerUnreachable(
                f"no handshake with {self.peer} within {HANDSHAKE_TIMEOUT_S:.0f} s: it may hang, or be no node"
            )
        )

    def _ping(self) -> None:
        """Every interval. Intervals are counted, not measured: a pause of this process is not the peer's silence."""
        self._timer = self._loop.call_later(self._ping_interval_s, self._ping)
        if self._heard:
            self._heard = False
            self._silent_pings = 0
            return
        self._silent_pings += 1
        if self._silent_pings >= SILENT_PINGS_MAX:
            silent_s = self._silent_pings * self._ping_interval_s
            self.close(
                PeerUnreachable(f"{self.peer} said nothing for more than {silent_s:g} s; the connection is closed")
            )
            return
        self.send(Kind.PING, 0, frames.pack_time(self._identity.clock.now_ms()))


def _joined(parts: list[bytes | memoryview]) -> list[bytes | memoryview]:
    """The same bytes in fewer parts: neighbours that are small are joined, large ones are not copied."""
    joined: list[bytes | memoryview] = []
    small: list[bytes | memoryview] = []
    for part in parts:
        if len(part) <= _PART_BYTES:
            small.append(part)
            continue
        if small:
            joined.append(b"".join(small))
            small = []
        joined.append(part)
    if small:
        joined.append(b"".join(small))
    return joined
