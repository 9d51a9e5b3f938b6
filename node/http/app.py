"""Around each request: its id, the token, dispatch, errors, sending, metrics and the access log.

There is no resolver and no chain of middlewares: a small GET passes one function. Two rules live here. An
error before the status line becomes a problem document; one after it breaks the connection, because a short
body that ends well would be taken for the whole. And every answer, whatever went wrong, bears the request id.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import traceback
from typing import NoReturn

import structlog
from aiohttp import HttpVersion10
from multidict import CIMultiDictProxy

from amberblob.clock import Clock, Randomness, SystemClock, SystemRandomness
from amberblob.errors import AmberError, BadRequest, ClusterError, NotReady, RequestError, Unauthorized
from amberblob.limits import DATA_FRAME_BYTES
from amberblob.metrics import Metrics
from amberblob.tracing import set_request_id
from node.http.call import Answer, BodyStream, Call, Context, Exchange
from node.http.get import close_iterator
from node.http.problem import internal_error, problem, unparsable
from node.http.routes import OPEN_RESOURCES, route
from node.http.sending import DIRECT_BYTES_MIN, SendThreads, SocketSender
from node.http.target import Resource, parse_target
from node.http.writes import may_be_repeat, not_hiding
from node.logs import frequent_lines
from node.service import ArchiveService, NoArchiveHere, NodeStatus, ObjectService

_REQUEST_ID = re.compile(r"\A[A-Za-z0-9._-]{1,64}\Z")
_QUIET_OPERATIONS = frozenset(("healthz", "readyz", "metrics"))
_STATUS_CLASSES = {hundreds: f"{hundreds}xx" for hundreds in range(1, 6)}
_ABORTED = "aborted"
_SERVER_FAULT = 500
_LOGGED_TARGET_CHARS_MAX = 512
_NEVER = 1000
"""Above every level of the log."""

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("amberblob.http")


class App:
    """Answers requests. Made by :func:`build_app`, served by :class:`node.http.server.HttpServer`."""

    def __init__(
        self,
        context: Context,
        *,
        token: str | None,
        clock: Clock,
        randomness: Randomness,
        access_log: bool,
        requests_max: int,
    ) -> None:
        self._context = context
        self._metrics = context.metrics
        self._token = None if token is None else token.encode()
        self._clock = clock
        level, self._log_line = frequent_lines(_log)
        self._log_level = level if access_log else _NEVER
        self._requests_max = requests_max
        # Ids made here: random once, counted then. Unique, cheap, and one node's are easily told apart.
        self._id_prefix = randomness.token(6).hex()
        self._id_count = 0
        self._in_flight = 0
        self._drained: asyncio.Future[None] | None = None
        self.closing = False
        self._send_threads = SendThreads()

    @property
    def in_flight(self) -> int:
        """How many requests are being handled."""
        return self._in_flight

    def begin_shutdown(self) -> None:
        """From now on ``/readyz`` says shutting-down, and every answer asks for the connection to be closed."""
        self.closing = True

    def close(self) -> None:
        """No more requests will come."""
        self._send_threads.close()

    async def drained(self) -> None:
        """Wait until no request is being handled."""
        while self._in_flight:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def new_request_id(self) -> str:
        """An id for a request that brought none."""
        self._id_count += 1
        return f"{self._id_prefix}-{self._id_count:x}"

    def request_id_of(self, headers: CIMultiDictProxy[str]) -> str:
        """The client's id for its request, or a new one."""
        request_id = headers.get("X-Amber-Request-Id")
        if request_id is None or _REQUEST_ID.match(request_id) is None:
            return self.new_request_id()
        return request_id

    async def serve(self, call: Call) -> None:
        """Answer one request.

        Raises:
            ConnectionError: the answer could not be sent whole; the connection is broken.
        """
        set_request_id(call.request_id)
        started_s = self._clock.monotonic_s()
        self._in_flight += 1
        self._metrics.http.started()
        status = 0
        try:
            answer = await self._answer(call)
            body = answer.body
            if isinstance(body, BodyStream):
                await self._stream(call, answer, body)
            else:
                await call.exchange.send(call, answer, body, close=self.closing)
            status = answer.status
        finally:
            self._finished(call, status, self._clock.monotonic_s() - started_s)

    def unparsable(self, error: BaseException | None) -> tuple[Answer, str]:
        """The answer to what the HTTP parser gave up on, and its request id; the connection ends with it."""
        request_id = self.new_request_id()
        refusal = unparsable(error)
        answer = problem(refusal, request_id)
        assert isinstance(answer.body, bytes)
        self._metrics.http.started()
        self._metrics.http.finished("unparsable", _STATUS_CLASSES[answer.status // 100], 0.0, 0, len(answer.body))
        if self._log_level <= logging.INFO:
            _log.info("request_unparsable", request_id=request_id, status=answer.status, reason=refusal.detail)
        return answer, request_id

    async def _answer(self, call: Call) -> Answer:
        try:
            if call.version < HttpVersion10:
                raise BadRequest("This is HTTP/0.9 or older. Speak HTTP/1.1.")
            call.target = target = parse_target(call.raw_path)
            self._authorize(call, target.resource)
            call.operation, handler = route(target.resource, call.method)
            self._admit(target.resource, call)
            return await handler(self._context, call)
        except (RequestError, ClusterError) as error:
            return problem(error, call.request_id)
        except AmberError as error:
            _log.error("request_failed", operation=call.operation, code=error.code, exc_info=True)
            return problem(error, call.request_id)
        except Exception as error:
            _log.error("request_failed", operation=call.operation, error_type=type(error).__name__, exc_info=True)
            return problem(internal_error(), call.request_id)

    def _admit(self, resource: Resource, call: Call) -> None:
        if self._in_flight > self._requests_max and resource not in OPEN_RESOURCES:
            error = NotReady(
                f"{self._in_flight} requests are under way on this node, and it takes {self._requests_max}. "
                "Nothing was applied: ask another node, or try again.",
                code="overloaded",
            )
            if call.method not in ("GET", "HEAD") and may_be_repeat(call.headers):
                raise not_hiding(error)
            raise error

    def _authorize(self, call: Call, resource: Resource) -> None:
        if self._token is None or resource in OPEN_RESOURCES:
            return
        scheme, _, given = call.headers.get("Authorization", "").partition(" ")
        given_bytes = given.strip(" ").encode("utf-8", "surrogateescape")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given_bytes, self._token):
            raise Unauthorized(
                "This cluster asks for its token. Send 'Authorization: Bearer <token>' (the client reads AMBERBLOB_TOKEN)."
            )

    async def _stream(self, call: Call, answer: Answer, body: BodyStream) -> None:
        """Send a body as it is read. Raises: ConnectionError, once the connection is broken."""
        exchange = call.exchange
        left = body.length
        piece: bytes | memoryview | None = body.first
        sender: SocketSender | None = None
        try:
            if body.length >= DIRECT_BYTES_MIN:
                sender = self._send_threads.sender(exchange.transport, stall_s=exchange.write_stall_s)
            if sender is not None:
                sender.begin()
            await exchange.begin(call, answer, close=self.closing)
            if sender is not None:
                await exchange.flush()
            while piece is not None:
                left -= len(piece)
                if left < 0:
                    raise RuntimeError(f"the object's bytes go on after {body.length}")
                if sender is None:
                    await _write(exchange, piece)
                else:
                    await sender.send(memoryview(piece))
                    exchange.sent_bytes += len(piece)
                piece = None if left == 0 else await anext(body.rest, None)
            if left:
                raise RuntimeError(f"the object's bytes ended {left} before {body.length}")
            await exchange.end()
        except ConnectionError as error:
            # The client went away. What the traceback holds, a chunk of megabytes, must not wait for the cycle collector.
            traceback.clear_frames(error.__traceback__)
            raise
        except Exception as error:
            _log.error("answer_broken_off", operation=call.operation, missing_bytes=left, exc_info=True)
            _break(exchange, error)
        except BaseException as error:
            _break(exchange, error, reraise=True)
        finally:
            if sender is not None:
                sender.close()
            piece = body.first = b""
            await close_iterator(body.rest)

    def _finished(self, call: Call, status: int, seconds: float) -> None:
        self._in_flight -= 1
        if self._in_flight == 0 and self._drained is not None:
            self._drained.set_result(None)
            self._drained = None
        received_bytes, sent_bytes = call.exchange.received_bytes, call.exchange.sent_bytes
        self._metrics.http.finished(
            call.operation, _STATUS_CLASSES.get(status // 100, _ABORTED), seconds, received_bytes, sent_bytes
        )
        if call.operation in _QUIET_OPERATIONS:
            level = logging.DEBUG
        elif status == 0 or status >= _SERVER_FAULT:
            level = logging.WARNING
        else:
            level = logging.INFO
        if level < self._log_level:
            return
        self._log_line(
            level,
            "request",
            {
                "method": call.method,
                "target": _printable(call.raw_path),
                "operation": call.operation,
                "status": status or _ABORTED,
                "received_bytes": received_bytes,
                "sent_bytes": sent_bytes,
                "ms": round(seconds * 1000, 2),
            },
        )


def build_app(
    service: ObjectService,
    status: NodeStatus,
    *,
    token: str | None,
    metrics: Metrics,
    archive: ArchiveService | None = None,
    clock: Clock | None = None,
    randomness: Randomness | None = None,
    body_stall_s: float = 60.0,
    access_log: bool = True,
    requests_max: int = 1024,
) -> App:
    """The public interface over a node.

    Args:
        service: the cluster's objects.
        status: what the node says of itself.
        token: what clients must present; None lets everyone in.
        metrics: where requests are counted, and what ``/metrics`` shows.
        archive: the cluster's archive; None: there is none.
        clock: for durations.
        randomness: for request ids.
        body_stall_s: a body of which nothing arrives for so long is given up (408).
        access_log: whether to log a line per request; cheap, but not free.
        requests_max: requests under way at once; more are answered 503 ``overloaded``.
    """
    app: App

    def closing() -> bool:
        return app.closing

    context = Context(
        service=service,
        status=status,
        archive=archive or NoArchiveHere(),
        metrics=metrics,
        closing=closing,
        body_stall_s=body_stall_s,
    )
    app = App(
        context,
        token=token,
        clock=clock or SystemClock(),
        randomness=randomness or SystemRandomness(),
        access_log=access_log,
        requests_max=requests_max,
    )
    return app


async def _write(exchange: Exchange, piece: bytes | memoryview) -> None:
    """Write in slices, so that what waits in the transport stays small whatever the size of the piece.

    Copies of them: the transport may keep what it cannot send at once, and a piece's memory is used again.
    """
    for at in range(0, len(piece), DATA_FRAME_BYTES):
        await exchange.write(bytes(piece[at : at + DATA_FRAME_BYTES]))


def _break(exchange: Exchange, error: BaseException, *, reraise: bool = False) -> NoReturn:
    """Reset the connection: the client must not take what it has for the whole."""
    transport = exchange.transport
    if transport is not None:
        transport.abort()
    if reraise:
        raise error
    raise ConnectionResetError("the answer was broken off") from error


def _printable(target: str) -> str:
    target = target[:_LOGGED_TARGET_CHARS_MAX]
    return target if target.isascii() else target.encode("ascii", "backslashreplace").decode()
