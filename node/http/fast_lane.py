"""The fast lane: small requests of the usual form, answered without aiohttp. Why, and what it saves: rfc/0008.

Whatever arrives while nothing is being answered is looked at first here. What :mod:`node.http.heads` recognises, and
is there with its whole body of up to 64 KiB, is answered by a task of ours: one write for head and body. Everything
else goes to aiohttp's parser untouched, in one of two ways:

- *counted*: the head is simple, but the body is larger, or is not all there after a moment. We know where the request
  ends, so what follows it waits, and is looked at here once aiohttp has answered.
- *for good*: anything that is not simple. We do not know where such a request ends, so the connection stays aiohttp's.

At any time at most one side is at work; what arrives meanwhile waits in ``_waiting``, and beyond a bound the socket is
not read. Timeouts, errors of the parser, half-closed clients: all that is :mod:`node.http.connection`'s, since a
request that takes its time ends up there.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import structlog
from aiohttp import HttpVersion11
from aiohttp.web import RequestHandler

from amberblob.limits import INLINE_BYTES_MAX, KIB
from node.http.app import App
from node.http.call import Answer, Call
from node.http.connection import Connection, ConnectionServer, Timeouts
from node.http.heads import SIMPLE_HEAD_BYTES_MAX, Fields, Head, answer_head, may_become_simple, read_fields, read_head

PATIENCE_S = 0.1
"""So long the rest of a request may take before aiohttp gets what is there, and with it the duty of waiting."""

WAITING_BYTES_MAX = 128 * KIB
"""Above this the socket is not read until what waits has been answered."""

assert WAITING_BYTES_MAX >= SIMPLE_HEAD_BYTES_MAX + INLINE_BYTES_MAX, "or a request would wait for its own end"

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("amberblob.http")

_WAITER: Any = RequestHandler.__dict__["_waiter"]
"""aiohttp's slot; see :attr:`FastConnection._waiter`."""


class FastConnection(Connection):
    """One connection, with the fast lane."""

    __slots__ = ("_aiohttps", "_fields", "_held", "_lines", "_owed", "_patience", "_serving", "_waiting")

    def __init__(
        self, manager: ConnectionServer, app: App, timeouts: Timeouts, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._waiting = bytearray()
        super().__init__(manager, app, timeouts, loop)
        self._serving: asyncio.Task[None] | None = None
        self._aiohttps = False  # a request, or the beginning of one, is aiohttp's
        self._owed: int | None = 0  # what of it has not come yet; None: nobody knows
        self._held = False
        self._patience: asyncio.TimerHandle | None = None
        self._lines = b""
        self._fields: Fields | None = None

    @property
    def _waiter(self) -> asyncio.Future[None] | None:
        """aiohttp's: pending exactly while it waits for the next request. Its begin is our cue."""
        found: asyncio.Future[None] | None = _WAITER.__get__(self)
        return found

    @_waiter.setter
    def _waiter(self, value: asyncio.Future[None] | None) -> None:
        _WAITER.__set__(self, value)
        if value is not None and (self._waiting or self._half_closed):
            self._loop.call_soon(self._go_on)

    def data_received(self, data: bytes) -> None:
        if not data or self._owed is None:
            super().data_received(data)
            return
        if self._close or self._force_close:
            return
        if self._owed:
            owed = self._owed
            self._owed = max(0, owed - len(data))
            super().data_received(data[:owed])
            data = data[owed:]
        if self._waiting:
            self._waiting += data
            self._go_on()
        elif data:
            taken = self._begin(data) if self._free() else 0
            if taken < len(data):
                self._waiting += data[taken:]
                if taken:
                    self._go_on()
        if len(self._waiting) > WAITING_BYTES_MAX and not self._held:
            self._held = True
            self._pause_transport_reading()

    def eof_received(self) -> bool:  # type: ignore[override]
        if self._serving is not None or (self._waiting and not self._free()):
            self._half_closed = True
            return True
        self._lose_patience()
        return super().eof_received()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget_patience()
        self._waiting.clear()
        super().connection_lost(exc)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._waiting or self._half_closed:
            self._loop.call_soon(self._go_on)

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        serving = self._serving
        if serving is not None:
            await asyncio.wait({serving}, timeout=timeout)
            serving.cancel()
            await asyncio.wait({serving}, timeout=timeout)
        await super().shutdown(timeout)

    def hurry(self) -> None:
        self._lose_patience()

    def _resume_transport_reading(self) -> None:
        if not self._held:
            super()._resume_transport_reading()

    def _process_keepalive(self) -> None:
        if self._serving is not None:
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    def _more_to_answer(self) -> bool:
        return bool(self._waiting) or super()._more_to_answer()

    def _free(self) -> bool:
        """Whether the next request may begin."""
        if self._serving is not None or self._paused or self._broken or self._close or self._force_close:
            return False
        if self._aiohttps:
            if self._owed != 0 or self._messages or not self._idle():
                return False
            self._aiohttps = False
        return True

    def _go_on(self) -> None:
        """Begin what waits, as far as it may begin."""
        waiting = self._waiting
        while waiting and self._free():
            taken = self._begin(waiting)
            if not taken:
                break
            del waiting[:taken]
        if self._held and len(waiting) <= WAITING_BYTES_MAX:
            self._held = False
            if not self._reading_paused and not self._buffer_paused:
                self._resume_transport_reading()
        if self._half_closed and self._free():
            # What is left will never be complete. aiohttp says so to the client, if there is anything to say.
            self._lose_patience()
            if not super().eof_received():
                self.force_close()

    def _begin(self, data: bytes | bytearray) -> int:
        """Begin the request that ``data`` begins with; returns how much of it was taken, 0 when it has to wait."""
        head = read_head(data)
        if head is None:
            if may_become_simple(data):
                return self._wait()
            return self._hand_over(data, None)
        fields = self._fields
        if fields is None or head.lines != self._lines:
            fields = read_fields(head.lines)
            if fields is None:
                return self._hand_over(data, None)
            self._lines, self._fields = head.lines, fields
        size = fields.size or 0
        end = head.end + size
        if size > INLINE_BYTES_MAX:
            return self._hand_over(data, end)
        if end > len(data):
            return self._wait()
        self._serve(head, fields, bytes(data[head.end : end]) if size else b"")
        return end

    def _hand_over(self, data: bytes | bytearray, end: int | None) -> int:
        """Give aiohttp what is there of a request, that ends at ``end`` if that is known."""
        self._forget_patience()
        self._aiohttps = True
        if end is None:
            self._owed = None
        else:
            self._owed = max(0, end - len(data))
        given = bytes(data[:end])
        super().data_received(given)
        return len(given)

    def _wait(self) -> int:
        if self._patience is None:
            # While the server closes only what is being handled counts as under way.
            patience_s = 0.0 if self._app.closing else PATIENCE_S
            self._patience = self._loop.call_later(patience_s, self._lose_patience)
        return 0

    def _lose_patience(self) -> None:
        """Let aiohttp wait for the rest of the request that is here in part."""
        self._forget_patience()
        waiting = bytes(self._waiting)
        if not waiting or not self._free():
            return
        self._waiting.clear()
        head = read_head(waiting)
        fields = None if head is None else read_fields(head.lines)
        if head is None or fields is None:
            self._hand_over(waiting, None)
        else:
            self._hand_over(waiting, head.end + (fields.size or 0))

    def _forget_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _serve(self, head: Head, fields: Fields, body: bytes) -> None:
        if self._patience is not None:
            self._forget_patience()
        if self._head_timer is not None:
            self._cancel_head_timer()
        self._new = False
        exchange = FastExchange(self, body, close=fields.close)
        call = Call(
            head.method,
            head.target,
            fields.headers,
            fields.size,
            HttpVersion11,
            exchange,
            self._app.request_id_of(fields.headers),
        )
        self._serving = self._loop.create_task(self._answer(call, exchange))

    async def _answer(self, call: Call, exchange: FastExchange) -> None:
        try:
            await self._app.serve(call)
        except BaseException as error:
            # First of all the connection: logging may fail, too.
            self._serving = None
            self.force_close()
            if isinstance(error, ConnectionError):
                _log.debug("connection_ended", reason=str(error))
            elif isinstance(error, Exception):
                _log.exception("connection_failed")
            else:
                raise
            return
        self._serving = None
        if exchange.close:
            self.force_close()
            return
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        if self._waiting or self._half_closed:
            self._go_on()


class FastExchange:
    """See :class:`node.http.call.Exchange`."""

    __slots__ = ("_body", "_connection", "close", "received_bytes", "sent_bytes")

    def __init__(self, connection: FastConnection, body: bytes, *, close: bool) -> None:
        self._connection = connection
        self._body = body
        self.close = close
        self.received_bytes = len(body)
        self.sent_bytes = 0

    @property
    def transport(self) -> asyncio.Transport | None:
        return self._connection.transport

    @property
    def whole_body(self) -> bytes | None:
        return self._body

    @property
    def write_stall_s(self) -> float:
        return self._connection.write_stall_s

    async def body(self, *, invite: bool, stall_s: float) -> AsyncIterator[bytes]:
        if self._body:
            yield self._body

    async def send(self, call: Call, answer: Answer, body: bytes, *, close: bool) -> None:
        self.close = self.close or close
        head = answer_head(
            answer.status,
            answer.headers,
            size=len(body),
            head_only=call.is_head,
            request_id=call.request_id,
            close=self.close,
        )
        self._write(head if call.is_head else head + body)

    async def begin(self, call: Call, answer: Answer, *, close: bool) -> None:
        assert not call.is_head and "Content-Length" in answer.headers
        await self.send(call, answer, b"", close=close)

    async def flush(self) -> None:
        await self._connection._drain_helper()

    async def write(self, piece: bytes | memoryview) -> None:
        self._write(piece)
        await self._connection._drain_helper()

    async def end(self) -> None:
        pass

    def _write(self, data: bytes | memoryview) -> None:
        transport = self._connection.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client went away")
        transport.write(data)
        self.sent_bytes += len(data)
