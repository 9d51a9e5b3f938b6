"""Frames: how messages and bytes are cut on the wire. Pure: bytes in, frames out.

A frame is a header of nine bytes and a payload::

    length   u32   bytes of the payload, at most limits.FRAME_BYTES_MAX
    kind     u8    see Kind
    stream   u32   the request that it belongs to; 0: the connection itself

All integers are big-endian. The dialling side numbers the streams.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable

from amberblob.errors import WireError
from amberblob.limits import FRAME_BYTES_MAX

HEADER = struct.Struct("!IBI")
HEADER_BYTES = HEADER.size
REQUEST_ID_BYTES_MAX = 128

_U32 = struct.Struct("!I")
_U64 = struct.Struct("!Q")

STREAM_MAX = 2**32 - 1


class Kind(enum.IntEnum):
    """What a frame is. Payloads in parentheses."""

    HELLO = 1
    """Handshake, dialler: who I am (handshake.Hello)."""
    CHALLENGE = 2
    """Handshake, listener: who I am (handshake.Challenge)."""
    PROOF = 3
    """Handshake, dialler: I know the secret (32 bytes)."""
    WELCOME = 4
    """Handshake, listener: so do I (32 bytes)."""
    REFUSAL = 5
    """Either side, before it closes: why (handshake.Refusal)."""
    REQUEST = 16
    """Dialler: opens a stream (length of the request id u8, request id, message)."""
    REPLY = 17
    """Listener: the answer (message). Ends the stream, but for a Done to a read."""
    DATA = 18
    """Bytes of the stream (1 byte or more), as far as there is credit for them."""
    CLOSE = 19
    """Dialler: the blob's bytes are complete (StageClose). DATA after it is the manifest file."""
    END = 20
    """No more DATA on this stream, from whoever sent it (empty)."""
    CREDIT = 21
    """So many more bytes may be sent on this stream (u32)."""
    CANCEL = 22
    """Dialler: the answer is no longer wanted (empty)."""
    PING = 32
    """Are you there? (hybrid time in milliseconds, u64)."""
    PONG = 33
    """Yes (hybrid time in milliseconds, u64)."""


def header(kind: int, stream: int, size_bytes: int) -> bytes:
    """The header of a frame whose payload has ``size_bytes``.

    Raises:
        WireError: the payload is larger than a frame may be.
    """
    if size_bytes > FRAME_BYTES_MAX:
        raise WireError(
            f"a message of {size_bytes} bytes does not fit into a frame of at most {FRAME_BYTES_MAX}; nothing was sent"
        )
    return HEADER.pack(size_bytes, kind, stream)


def pack_request(request_id: str, message: bytes) -> bytes:
    """The payload of a REQUEST. A request id longer than 128 bytes is cut: it is only for the logs."""
    name = request_id.encode(errors="replace")[:REQUEST_ID_BYTES_MAX]
    return b"%c%b%b" % (len(name), name, message)


def unpack_request(payload: memoryview) -> tuple[str, memoryview]:
    """The request id and the message of a REQUEST.

    Raises:
        WireError: the payload is shorter than it says.
    """
    size = payload[0] if payload else REQUEST_ID_BYTES_MAX + 1
    if size > REQUEST_ID_BYTES_MAX or size + 1 >= len(payload):
        raise WireError("a request frame without a request id and a message")
    return str(payload[1 : 1 + size], "utf-8", "replace"), payload[1 + size :]


def pack_credit(size_bytes: int) -> bytes:
    """The payload of a CREDIT."""
    return _U32.pack(size_bytes)


def unpack_credit(payload: memoryview) -> int:
    """The bytes that a CREDIT grants. Raises WireError."""
    if len(payload) != _U32.size:
        raise WireError(f"a credit frame of {len(payload)} bytes instead of {_U32.size}")
    return int(_U32.unpack(payload)[0])


def pack_time(now_ms: int) -> bytes:
    """The payload of a PING or PONG."""
    return _U64.pack(now_ms)


def unpack_time(payload: memoryview) -> int:
    """The hybrid time, in milliseconds, of a PING or PONG. Raises WireError."""
    if len(payload) != _U64.size:
        raise WireError(f"a ping frame of {len(payload)} bytes instead of {_U64.size}")
    return int(_U64.unpack(payload)[0])


class FrameReader:
    """Cuts incoming bytes into frames, in one buffer that is read into directly and used again and again.

    Read into :meth:`space`, then call :meth:`advance`. Payloads are views into the buffer: valid only while
    ``deliver`` runs. ``deliver`` may change the attributes, or call :meth:`stop`.

    Attributes:
        frame_bytes_max: the largest payload accepted.
        budget_bytes: how many more bytes may be read at all; None: no such limit.
        buffer_bytes: the size of the buffer, but while a frame is larger.
    """

    def __init__(
        self,
        deliver: Callable[[int, int, memoryview], None],
        *,
        buffer_bytes: int,
        frame_bytes_max: int = FRAME_BYTES_MAX,
        budget_bytes: int | None = None,
    ) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.budget_bytes = budget_bytes
        self._deliver = deliver
        self.buffer_bytes = buffer_bytes
        self._view = memoryview(bytearray(buffer_bytes))
        self._start = 0
        self._end = 0
        self._stopped = False

    def space(self) -> memoryview:
        """Where to read into: at least one byte.

        Raises:
            WireError: the budget is used up.
        """
        space = self._view[self._end :]
        if self.budget_bytes is not None:
            if self.budget_bytes <= 0:
                raise WireError("more bytes than a handshake may have")
            space = space[: self.budget_bytes]
        return space

    def stop(self) -> None:
        """Deliver nothing more."""
        self._stopped = True

    def release(self) -> None:
        """Give the buffer up: nothing will be read any more. (A lost connection waits for the cycle collector.)"""
        self._stopped = True
        self._view = memoryview(b"")
        self._start = self._end = 0

    def advance(self, size_bytes: int) -> None:
        """``size_bytes`` were read into :meth:`space`: deliver each frame that is complete now.

        Raises:
            WireError: a frame is larger than allowed. (And whatever ``deliver`` raises.)
        """
        if self.budget_bytes is not None:
            self.budget_bytes -= size_bytes
        end = self._end = self._end + size_bytes
        start = self._start
        view = self._view
        unpack = HEADER.unpack_from
        need = HEADER_BYTES
        while end - start >= HEADER_BYTES and not self._stopped:
            length, kind, stream = unpack(view, start)
            if length > self.frame_bytes_max:
                raise WireError(f"a frame of {length} bytes; at most {self.frame_bytes_max} are taken")
            body = start + HEADER_BYTES
            if end - body < length:
                need = HEADER_BYTES + length
                break
            start = body + length
            self._deliver(kind, stream, view[body:start])
        self._start = start
        self._make_room(need)

    def _make_room(self, need_bytes: int) -> None:
        """See to it that a frame of ``need_bytes``, of which a part may be here already, fits behind ``_start``."""
        left = self._end - self._start
        size = max(self.buffer_bytes, need_bytes)
        if left == 0:
            self._start = self._end = 0
            if len(self._view) != size:
                self._view = memoryview(bytearray(size))
            return
        view = self._view
        if len(view) < size:
            view = memoryview(bytearray(size))
        elif self._start + need_bytes <= len(view):
            return
        # bytes() in between: the two places may overlap.
        view[:left] = bytes(self._view[self._start : self._end])
        self._view, self._start, self._end = view, 0, left
