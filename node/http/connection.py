"""One client's connection: aiohttp's protocol, with what a server on the open network needs besides.

aiohttp reads and frames the requests. Added here:

- a bounded time for a request's head, so that a client that sends it byte by byte cannot hold a connection;
- a bounded number of connections, so that clients leave the node the open files that it needs itself;
- a bounded time without progress while an answer waits to be read;
- a version other than HTTP/1.x refused (aiohttp would answer HTTP/2.0 as if it spoke it);
- every error of the HTTP parser answered with a problem document, also one in the middle of a body (aiohttp
  leaves the handler waiting for the rest of it);
- a client that has closed its sending side still gets its answer, and a body that it cut off fails at once.

What this relies on inside aiohttp has no public name: ``_messages`` and ``_ErrInfo`` (the parsed requests that
wait), ``_waiter`` (pending exactly while no request is being handled). The tests
of this package exercise each of them on real sockets.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
from aiohttp import HttpVersion11
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.http_exceptions import BadHttpMessage
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web import BaseRequest, RequestHandler, RequestPayloadError, Server, StreamResponse
from aiohttp.web_protocol import _ErrInfo
from yarl import URL

from amberblob.errors import AmberError
from amberblob.limits import DATA_FRAME_BYTES, HTTP_HEADER_BYTES_MAX
from amberblob.openfiles import OnceAMinute, connections_max
from node.http import aiohttp_lane
from node.http.app import App
from node.http.problem import HEADERS_MAX, REQUEST_LINE_BYTES_MAX, raw_response
from node.http.refusals import RequestTimeout

_NO_URL = URL("/")
"""Stands in for the URL of an absolute-form target, which aiohttp would take apart and might trip over."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("amberblob.http")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a client may let the server wait. Seconds.

    Attributes:
        head_s: for a request's head, from its first byte (on a new connection: from the connection) to its last.
        idle_s: for the next request on a connection that is kept alive.
        write_stall_s: without reading a single byte of an answer that waits for it.
        unread_body_s: for the rest of a body that the answer did not wait for.
    """

    head_s: float = 20.0
    idle_s: float = 75.0
    write_stall_s: float = 60.0
    unread_body_s: float = 5.0


class Connection(RequestHandler):
    """One connection."""

    __slots__ = (
        "_answered",
        "_app",
        "_body",
        "_broken",
        "_half_closed",
        "_head_begun",
        "_head_timer",
        "_new",
        "_stall_timer",
        "_timeouts",
        "_wire",
    )

    def __init__(
        self, manager: ConnectionServer, app: App, timeouts: Timeouts, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(
            manager,
            loop=loop,
            keepalive_timeout=timeouts.idle_s,
            lingering_time=timeouts.unread_body_s,
            max_line_size=REQUEST_LINE_BYTES_MAX,
            max_field_size=HTTP_HEADER_BYTES_MAX,
            max_headers=HEADERS_MAX,
            read_bufsize=DATA_FRAME_BYTES,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # the app logs
        )
        self._app = app
        self._timeouts = timeouts
        self._wire: asyncio.Transport | None = None
        self._body: StreamReader = EMPTY_PAYLOAD
        self._broken = False
        self._new = True
        self._answered = True
        self._half_closed = False
        self._head_begun = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._wire = self.transport
        self._head_timer = self._loop.call_later(self._timeouts.head_s, self._head_late)

    def connection_lost(self, exc: BaseException | None) -> None:
        super().connection_lost(exc)
        self._wire = None
        self._cancel_head_timer()
        self._cancel_stall_timer()
        self._fail_bodies(ConnectionResetError("the client went away"))

    def data_received(self, data: bytes) -> None:
        if self._broken:
            return
        waiting = len(self._messages)
        try:
            super().data_received(data)
            self._refuse_versions(waiting)
        except Exception as error:
            # The parser's own errors are caught above; this is one that it did not expect of itself.
            self._messages.append((_ErrInfo(status=400, exc=error, message=""), EMPTY_PAYLOAD))
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)
        messages = self._messages
        if messages:
            self._head_begun = False
            if self._head_timer is not None:
                self._cancel_head_timer()
            last = messages[-1][0]
            if isinstance(last, _ErrInfo):
                self._broken = True
                self._fail_bodies(RequestPayloadError(str(last.exc)))
        elif data and not self._head_begun and (self._new or self._idle()):
            self._head_begun = True
            if self._head_timer is None:
                self._head_timer = self._loop.call_later(self._timeouts.head_s, self._head_late)

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's never keeps it open
        """The client sends no more. True keeps the connection open for the answers that it still waits for."""
        self._half_closed = True
        self._fail_bodies(ConnectionResetError("the client stopped sending in the middle of the body"))
        # After an answer it takes aiohttp a turn of the loop until it waits for the next request.
        nothing_to_come = self._idle() or (self._answered and not self._messages)
        return not nothing_to_come

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_stall()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._cancel_stall_timer()

    async def finish_response(
        self, request: BaseRequest, resp: StreamResponse, start_time: float | None
    ) -> tuple[StreamResponse, bool]:
        finished = await super().finish_response(request, resp, start_time)
        self._answered = True
        if self._half_closed and not self._more_to_answer():
            self._close = True
        return finished

    def handle_error(
        self, request: BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        return aiohttp_lane.unparsable(self._app, exc)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """What aiohttp could not carry on with. A client that goes away or sends rubbish is no fault of ours."""
        error = kw.get("exc_info")
        if isinstance(error, ConnectionError | RequestPayloadError | BadHttpMessage):
            _log.debug("connection_ended", reason=str(error))
        else:
            _log.error("connection_failed", exc_info=error if isinstance(error, BaseException) else True)

    def begin_body(self, body: StreamReader) -> None:
        """The request whose body this is gets handled now."""
        self._body = body
        self._new = False
        self._answered = False

    @property
    def write_stall_s(self) -> float:
        """How long a client may take nothing of an answer."""
        return self._timeouts.write_stall_s

    def hurry(self) -> None:
        """The server closes: begin with what has arrived, also if it is only a part of a request."""

    def abort(self) -> None:
        """Drop the connection and whatever waits to be written."""
        if self._wire is not None:
            self._wire.abort()

    def _more_to_answer(self) -> bool:
        """Whether requests wait behind the one that is being answered."""
        return bool(self._messages)

    def _idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _refuse_versions(self, known: int) -> None:
        """A version that is not spoken here ends the connection; the parser lets HTTP/2.0 and 0.9 through.

        ``known``: so many of the requests that wait were looked at before.
        """
        for at in range(known, len(self._messages)):
            version = getattr(self._messages[at][0], "version", HttpVersion11)
            if version.major != HttpVersion11.major:
                while len(self._messages) > at:
                    self._messages.pop()
                error = BadHttpMessage(f"HTTP/{version.major}.{version.minor} is not spoken here")
                self._messages.append((_ErrInfo(status=400, exc=error, message=""), EMPTY_PAYLOAD))
                return

    def _fail_bodies(self, error: Exception) -> None:
        """No more comes of the body that is being read, nor of that of a request which nobody has begun to handle."""
        for body in (self._body, *(body for _, body in self._messages)):
            if body is not EMPTY_PAYLOAD and not body.is_eof() and body.exception() is None:
                body.set_exception(error)

    def _head_late(self) -> None:
        self._head_timer = None
        if not self._idle() or self._wire is None:
            return
        if self._head_begun:
            refusal: AmberError = RequestTimeout(
                f"The request's head did not arrive within {self._timeouts.head_s:g} seconds. Send it again, in one piece."
            )
            self._wire.write(raw_response(refusal, self._app.new_request_id()))
        self.force_close()

    def _cancel_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _watch_stall(self) -> None:
        if self._wire is not None:
            waiting_bytes = self._wire.get_write_buffer_size()
            self._stall_timer = self._loop.call_later(self._timeouts.write_stall_s, self._stalled, waiting_bytes)

    def _stalled(self, waiting_bytes: int) -> None:
        self._stall_timer = None
        if self._wire is None:
            return
        if self._wire.get_write_buffer_size() >= waiting_bytes:
            _log.info("client_stalled", waiting_bytes=waiting_bytes)
            self._wire.abort()
        else:
            self._watch_stall()

    def _cancel_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None


class _Refused(asyncio.Protocol):
    """A connection that ends at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class ConnectionServer(Server):
    """Makes the connections of one listening socket, and closes them.

    ``databases``: so many the store would have open, see :func:`amberblob.openfiles.connections_max`.
    """

    def __init__(self, app: App, timeouts: Timeouts, connection: type[Connection], databases: int) -> None:
        super().__init__(partial(aiohttp_lane.handle, app), request_factory=self._request)
        self._app = app
        self._timeouts = timeouts
        self._connection = connection
        self._open: set[Connection] = set()
        self._databases = databases
        self._refusals = OnceAMinute()
        self._all_closed: asyncio.Future[None] | None = None

    def accept(self) -> asyncio.BaseProtocol:
        """The protocol of a new connection. One that would take files which the node needs itself ends at once.

        It gets no answer: a 503 would say that nothing was applied, which nobody knows of a write that is a repeat.
        """
        allowed = connections_max(self._databases)
        if allowed is None or len(self._open) < allowed:
            return self()
        if self._refusals.is_due(self._loop.time()):
            _log.warning(
                "connections_refused",
                open=len(self._open),
                detail="More would take open files that the node needs for its databases and peers. Clients should keep fewer "
                "connections, or the limit of open files (LimitNOFILE, ulimit -n) should be raised.",
            )
        return _Refused()

    def __call__(self) -> RequestHandler:
        return self._connection(self, self._app, self._timeouts, self._loop)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        assert isinstance(handler, Connection)
        self._open.add(handler)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        assert isinstance(handler, Connection)
        self._open.discard(handler)
        if not self._open and self._all_closed is not None and not self._all_closed.done():
            self._all_closed.set_result(None)

    async def hurry(self) -> None:
        """Whatever has arrived counts as under way once this returns."""
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            for connection in list(self._open):
                connection.hurry()

    async def close(self, flush_s: float) -> None:
        """End every connection; what is written already gets ``flush_s`` seconds to reach its client."""
        self.pre_shutdown()
        await self.shutdown(_CANCEL_S)
        if self._open:
            self._all_closed = self._loop.create_future()
            try:
                async with asyncio.timeout(flush_s):
                    await self._all_closed
            except TimeoutError:
                for connection in list(self._open):
                    connection.abort()

    def _request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> BaseRequest:
        assert isinstance(protocol, Connection)
        protocol.begin_body(payload)
        if message.url.absolute:
            message = message._replace(url=_NO_URL)
        return BaseRequest(message, payload, protocol, writer, task, self._loop)


_TURNS = 5
"""So many turns of the loop at most lie between the arrival of a request's first bytes and its handler."""

_CANCEL_S = 0.05
"""How long aiohttp waits for a handler at each step of ending it; the grace is over by then."""
