"""One request to one node. No retries here: see ``retry``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from yarl import URL

from amberblob.client.bodies import PIECE_BYTES, Body, BytesBody
from amberblob.client.problems import problem_to_error
from amberblob.client.types import Progress
from amberblob.errors import AmberError, PeerTimeout, PeerUnreachable, WireError

READ_BUFFER_BYTES = 1024 * 1024
CONNECTIONS_MAX = 256
ERROR_BODY_BYTES_MAX = 64 * 1024
WHOLE_BODY_BYTES_MAX = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long to wait for one node before it counts as dead. Time spent on the caller's own source never counts.

    Attributes:
        connect_s: for a connection.
        idle_s: for the next byte to go or come while a body flows.
        answer_s: for the answer to a request with no body or a small one.
        expect_s: for the go-ahead before a body that cannot be sent twice; without one it is sent all the same.
        answer_large_s: for the answer after a large body was sent: the replicas make it durable.
    """

    connect_s: float = 3.0
    idle_s: float = 15.0
    answer_s: float = 15.0
    expect_s: float = 5.0
    answer_large_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is sent; the same for every attempt and node.

    Attributes:
        target: encoded path and query, beginning with ``/``.
        writes: it changes something, so that an answer that is lost leaves its outcome unknown.
    """

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    progress: Progress | None = None
    writes: bool = False

    @property
    def small(self) -> bool:
        """Whether sending it takes no time worth mentioning."""
        return self.body is None or (self.body.size is not None and self.body.size <= PIECE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer that was read as a whole."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            WireError: it is none.
        """
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise WireError(f"The answer is no JSON ({error}): is the endpoint an AmberBlob node?") from error


class Http:
    """Sends a request to a node and turns everything that is not a success into the error tree."""

    def __init__(self, session: aiohttp.ClientSession, timeouts: Timeouts) -> None:
        self._session = session
        self._timeouts = timeouts
        self._go_ahead_comes = True

    async def send(self, endpoint: str, request: Request, *, within_s: float | None = None) -> aiohttp.ClientResponse:
        """The answer once its headers are here, a 2xx. The caller releases it.

        ``within_s`` bounds the wait for the answer further.

        Raises:
            PeerUnreachable, PeerTimeout: ``extra["sent"]`` tells whether the whole request may have arrived.
            AmberError: what the node said.
        """
        answer_s = self._timeouts.answer_s if request.small else self._timeouts.answer_large_s
        if within_s is not None:
            answer_s = min(answer_s, within_s)
        # A body that cannot be sent twice is not begun before the node says that it wants it: so a node that is not
        # ready costs nothing. Something on the way that swallows the question is found out once, by waiting.
        asks_first = request.body is not None and request.body.one_shot and self._go_ahead_comes
        upload = _Upload(request, idle_s=self._timeouts.idle_s, answer_s=answer_s)
        try:
            async with asyncio.timeout(self._timeouts.expect_s if asks_first else answer_s) as watch:
                response = await self._session.request(
                    request.method,
                    URL(endpoint + request.target, encoded=True),
                    data=upload.data(watch),
                    headers=upload.headers(),
                    expect100=asks_first,
                    allow_redirects=False,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise PeerUnreachable(
                f"{endpoint} cannot be reached: {_why(error)}", extra={"endpoint": endpoint, "sent": False}
            ) from error
        except TimeoutError as error:
            if asks_first and not upload.begun:
                self._go_ahead_comes = False
            raise upload.failure or PeerTimeout(
                f"{endpoint} did not answer in {answer_s:g} s", extra={"endpoint": endpoint, "sent": upload.complete}
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise upload.failure or PeerUnreachable(
                f"the connection to {endpoint} broke: {error or type(error).__name__}",
                extra={"endpoint": endpoint, "sent": upload.complete},
            ) from error
        if response.status < 300:
            return response
        raise await self._error(endpoint, response)

    async def fetch(self, endpoint: str, request: Request, *, within_s: float | None = None) -> Answer:
        """Like :meth:`send`, with the body read. Raises the same."""
        response = await self.send(endpoint, request, within_s=within_s)
        body = bytearray()
        try:
            async for piece in self.pieces(response):
                body += piece
                if len(body) > WHOLE_BODY_BYTES_MAX:
                    raise WireError(
                        f"{endpoint} sent more than {WHOLE_BODY_BYTES_MAX} bytes where a short answer was due"
                    )
        except BaseException:
            response.close()
            raise
        response.release()
        return Answer(status=response.status, headers=response.headers, body=bytes(body))

    async def _error(self, endpoint: str, response: aiohttp.ClientResponse) -> AmberError:
        body = b""
        try:
            async with asyncio.timeout(self._timeouts.idle_s):
                while len(body) < ERROR_BODY_BYTES_MAX and (piece := await response.content.readany()):
                    body += piece
        except (aiohttp.ClientError, OSError):
            pass  # the status is enough
        finally:
            response.release()
        error = problem_to_error(response.status, response.headers, body)
        error.extra.setdefault("endpoint", endpoint)
        return error

    async def pieces(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """The answer's body as it comes.

        Raises:
            PeerUnreachable, PeerTimeout: it broke off.
        """
        endpoint = str(response.url.origin())
        extra = {"endpoint": endpoint, "sent": True}
        while True:
            try:
                async with asyncio.timeout(self._timeouts.idle_s):
                    piece = await response.content.readany()
            except TimeoutError as error:
                raise PeerTimeout(
                    f"{endpoint} sent nothing more for {self._timeouts.idle_s:g} s", extra=extra
                ) from error
            except (aiohttp.ClientError, OSError) as error:
                raise PeerUnreachable(
                    f"the answer of {endpoint} broke off: {error or type(error).__name__}", extra=extra
                ) from error
            if not piece:
                return
            yield piece


class _Upload:
    """The body of one attempt: moves the watchdog forward, and remembers how far it came and what broke it."""

    def __init__(self, request: Request, *, idle_s: float, answer_s: float) -> None:
        self._request = request
        self._idle_s = idle_s
        self._answer_s = answer_s
        self.failure: Exception | None = None
        self.begun = False
        self.complete = True

    def headers(self) -> dict[str, str]:
        headers = dict(self._request.headers)
        body = self._request.body
        if body is not None and body.size is not None:
            headers["Content-Length"] = str(body.size)
        return headers

    def data(self, watch: asyncio.Timeout) -> Any:
        body, progress = self._request.body, self._request.progress
        if body is None:
            return None
        if isinstance(body, BytesBody) and body.size <= PIECE_BYTES and progress is None:
            return bytes(body.data)
        self.complete = False
        return self._pieces(body, watch, progress)

    async def _pieces(
        self, body: Body, watch: asyncio.Timeout, progress: Progress | None
    ) -> AsyncIterator[bytes | memoryview]:
        loop = asyncio.get_running_loop()
        done = 0
        self.begun = True
        try:
            if progress is not None:
                progress(0, body.size)
            pieces = body.pieces()
            while True:
                _reschedule(watch, None)
                try:
                    piece = await anext(pieces)
                except StopAsyncIteration:
                    break
                _reschedule(watch, loop.time() + self._idle_s)
                if body.size is not None and done + len(piece) > body.size:
                    raise ValueError(f"the body is longer than the {body.size} bytes that were announced")
                yield piece
                done += len(piece)
                if progress is not None:
                    progress(done, body.size)
            if body.size is not None and done < body.size:
                raise ValueError(f"the body ended after {done} of the {body.size} bytes that were announced")
            self.complete = True
            _reschedule(watch, loop.time() + self._answer_s)
        except Exception as error:
            # aiohttp wraps what a body raises into a connection error; the caller shall see the original.
            self.failure = error
            _reschedule(watch, loop.time() + self._idle_s)
            raise


def _why(error: Exception) -> str:
    """The reason alone: aiohttp's text repeats the address and tells of TLS where there is none."""
    cause = getattr(error, "os_error", None)
    number = getattr(cause, "errno", None)
    if isinstance(number, int) and number > 0 and not isinstance(error, aiohttp.ClientConnectorDNSError):
        return os.strerror(number)
    return str(cause or error) or type(error).__name__


def _reschedule(watch: asyncio.Timeout, when: float | None) -> None:
    """Move the deadline, unless the answer came while the body was still on its way."""
    with contextlib.suppress(RuntimeError):  # it is over already
        watch.reschedule(when)
