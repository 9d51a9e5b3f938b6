"""Around each request: its id, the token, dispatch, errors, sending, metrics and the access log.

There is no resolver and no chain of middlewares: a small GET passes one function. Two rules live here. An
error before the status line becomes a problem document; one after it breaks the connection, because a short
body that ends well would be taken for the whole. And every answer, whatever went wrong, bears the request id.
"""

from __future__ import annotations

import asyncio
import hmac
import re
import traceback
from typing import NoReturn

import structlog
from aiohttp import HttpVersion10
from aiohttp.web import BaseRequest, Response, StreamResponse
from structlog.contextvars import bind_contextvars

from amberblob.clock import Clock, Randomness, SystemClock, SystemRandomness
from amberblob.errors import AmberError, BadRequest, ClusterError, NotReady, RequestError, Unauthorized
from amberblob.limits import DATA_FRAME_BYTES, MIB
from amberblob.metrics import Metrics
from node.http.call import Answer, BodyStream, Call, Context
from node.http.get import close_iterator
from node.http.problem import internal_error, problem, unparsable
from node.http.routes import OPEN_RESOURCES, route
from node.http.sending import DIRECT_BYTES_MIN, SendThreads, SocketSender
from node.http.target import Resource, parse_target
from node.http.writes import may_be_repeat, not_hiding
from node.service import NodeStatus, ObjectService

SERVER_NAME = "AmberBlob"

_REQUEST_ID = re.compile(r"\A[A-Za-z0-9._-]{1,64}\Z")
_QUIET_OPERATIONS = frozenset(("healthz", "readyz", "metrics"))
_STATUS_CLASSES = {hundreds: f"{hundreds}xx" for hundreds in range(1, 6)}
_ABORTED = "aborted"
_SERVER_FAULT = 500
_UNREAD_BYTES_MAX = MIB
"""More of a refused body than this is not read just to keep the connection."""
_LOGGED_TARGET_CHARS_MAX = 512
_WRITE_STALL_S = 60.0

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
        self._access_log = access_log
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

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer one request.

        Raises:
            ConnectionError: the answer could not be sent whole; the connection is broken.
        """
        request_id = request.headers.get("X-Amber-Request-Id")
        if request_id is None or _REQUEST_ID.match(request_id) is None:
            request_id = self.new_request_id()
        bind_contextvars(request_id=request_id)
        call = Call(request, request_id)
        started_s = self._clock.monotonic_s()
        self._in_flight += 1
        self._metrics.http_started()
        status = 0
        try:
            answer = await self._answer(call)
            response = await self._send(call, answer)
            status = answer.status
            return response
        finally:
            self._finished(call, status, self._clock.monotonic_s() - started_s)

    def unparsable(self, error: BaseException | None) -> Response:
        """The answer to what the HTTP parser gave up on; the connection ends with it."""
        request_id = self.new_request_id()
        refusal = unparsable(error)
        answer = problem(refusal, request_id)
        assert isinstance(answer.body, bytes)
        self._metrics.http_started()
        self._metrics.http_finished(
            "unparsable",
            _STATUS_CLASSES[answer.status // 100],
            seconds=0.0,
            received_bytes=0,
            sent_bytes=len(answer.body),
        )
        if self._access_log:
            _log.info("request_unparsable", request_id=request_id, status=answer.status, reason=refusal.detail)
        response = Response(status=answer.status, headers=answer.headers, body=answer.body)
        response.headers["X-Amber-Request-Id"] = request_id
        response.headers["Server"] = SERVER_NAME
        response.force_close()
        return response

    async def _answer(self, call: Call) -> Answer:
        try:
            if call.request.version < HttpVersion10:
                raise BadRequest("This is HTTP/0.9 or older. Speak HTTP/1.1.")
            call.target = target = parse_target(call.request.raw_path)
            self._authorize(call, target.resource)
            call.operation, handler = route(target.resource, call.request.method)
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
            if call.request.method not in ("GET", "HEAD") and may_be_repeat(call.headers):
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

    async def _send(self, call: Call, answer: Answer) -> StreamResponse:
        body = answer.body
        headers = answer.headers
        headers["X-Amber-Request-Id"] = call.request_id
        headers["Server"] = SERVER_NAME
        if isinstance(body, BodyStream):
            return await self._stream(call, StreamResponse(status=answer.status, headers=headers), body)
        response = Response(status=answer.status, headers=headers, body=body or None)
        self._close_after(call.request, response)
        await response.prepare(call.request)
        await response.write_eof()
        return response

    async def _stream(self, call: Call, response: StreamResponse, body: BodyStream) -> StreamResponse:
        """Send a body as it is read. Raises: ConnectionError, once the connection is broken."""
        self._close_after(call.request, response)
        left = body.length
        piece: bytes | memoryview | None = body.first
        sender: SocketSender | None = None
        try:
            await response.prepare(call.request)
            if body.length >= DIRECT_BYTES_MIN:
                sender = await self._past_transport(call.request)
            while piece is not None:
                left -= len(piece)
                if left < 0:
                    raise RuntimeError(f"the object's bytes go on after {body.length}")
                if sender is None:
                    await _write(response, piece)
                else:
                    await sender.send(memoryview(piece))
                    call.request.writer.output_size += len(piece)
                piece = None if left == 0 else await anext(body.rest, None)
            if left:
                raise RuntimeError(f"the object's bytes ended {left} before {body.length}")
            await response.write_eof()
        except ConnectionError as error:
            # The client went away. What the traceback holds, a chunk of megabytes, must not wait for the cycle collector.
            traceback.clear_frames(error.__traceback__)
            raise
        except Exception as error:
            _log.error("answer_broken_off", operation=call.operation, missing_bytes=left, exc_info=True)
            _break(call.request, error)
        except BaseException as error:
            _break(call.request, error, reraise=True)
        finally:
            if sender is not None:
                sender.close()
            piece = body.first = b""
            await close_iterator(body.rest)
        return response

    async def _past_transport(self, request: BaseRequest) -> SocketSender | None:
        """A sender for the body, once the head has left; None when there is no socket."""
        stall_s = getattr(request.protocol, "write_stall_s", _WRITE_STALL_S)
        sender = self._send_threads.sender(request.transport, stall_s=stall_s)
        if sender is not None:
            try:
                sender.begin()
                request.writer.send_headers()
                await request.writer.drain()
            except BaseException:
                sender.close()
                raise
        return sender

    def _close_after(self, request: BaseRequest, response: StreamResponse) -> None:
        """Ask for the connection to be closed when the server goes, or when much of the body is still to come."""
        content = request.content
        if self.closing:
            response.force_close()
        elif not content.is_eof():
            size = request.content_length
            if (
                content.exception() is not None
                or size is None
                or size > _UNREAD_BYTES_MAX
                or "Expect" in request.headers
            ):
                response.force_close()

    def _finished(self, call: Call, status: int, seconds: float) -> None:
        self._in_flight -= 1
        if self._in_flight == 0 and self._drained is not None:
            self._drained.set_result(None)
            self._drained = None
        request = call.request
        received_bytes = request.content.total_bytes
        sent_bytes = request.writer.output_size
        self._metrics.http_finished(
            call.operation,
            _STATUS_CLASSES.get(status // 100, _ABORTED),
            seconds=seconds,
            received_bytes=received_bytes,
            sent_bytes=sent_bytes,
        )
        if not self._access_log:
            return
        if call.operation in _QUIET_OPERATIONS:
            log = _log.debug
        elif status == 0 or status >= _SERVER_FAULT:
            log = _log.warning
        else:
            log = _log.info
        log(
            "request",
            method=request.method,
            target=_printable(request.raw_path),
            operation=call.operation,
            status=status or _ABORTED,
            received_bytes=received_bytes,
            sent_bytes=sent_bytes,
            ms=round(seconds * 1000, 2),
        )


def build_app(
    service: ObjectService,
    status: NodeStatus,
    *,
    token: str | None,
    metrics: Metrics,
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
        clock: for durations.
        randomness: for request ids.
        body_stall_s: a body of which nothing arrives for so long is given up (408).
        access_log: whether to log a line per request; cheap, but not free.
        requests_max: requests under way at once; more are answered 503 ``overloaded``.
    """
    app: App

    def closing() -> bool:
        return app.closing

    context = Context(service=service, status=status, metrics=metrics, closing=closing, body_stall_s=body_stall_s)
    app = App(
        context,
        token=token,
        clock=clock or SystemClock(),
        randomness=randomness or SystemRandomness(),
        access_log=access_log,
        requests_max=requests_max,
    )
    return app


async def _write(response: StreamResponse, piece: bytes | memoryview) -> None:
    """Write in slices, so that what waits in the transport stays small whatever the size of the piece.

    Copies of them: the transport may keep what it cannot send at once, and a piece's memory is used again.
    """
    for at in range(0, len(piece), DATA_FRAME_BYTES):
        await response.write(bytes(piece[at : at + DATA_FRAME_BYTES]))


def _break(request: BaseRequest, error: BaseException, *, reraise: bool = False) -> NoReturn:
    """Reset the connection: the client must not take what it has for the whole."""
    transport = request.transport
    if transport is not None:
        transport.abort()
    if reraise:
        raise error
    raise ConnectionResetError("the answer was broken off") from error


def _printable(target: str) -> str:
    target = target[:_LOGGED_TARGET_CHARS_MAX]
    return target if target.isascii() else target.encode("ascii", "backslashreplace").decode()
