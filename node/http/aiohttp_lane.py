"""The lane that takes whatever HTTP/1.x allows: requests that aiohttp's parser read, answered by its responses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp.http import StreamWriter
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import BaseRequest, RequestPayloadError, Response, StreamResponse

from amberblob.errors import BadRequest
from amberblob.limits import MIB
from node.http.app import App
from node.http.call import Answer, Call
from node.http.heads import SERVER_NAME
from node.http.refusals import RequestTimeout

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_UNREAD_BYTES_MAX = MIB
"""More of a refused body than this is not read just to keep the connection."""


async def handle(app: App, request: BaseRequest) -> StreamResponse:
    """Answer one request. Raises: ConnectionError, once the connection is broken."""
    exchange = AiohttpExchange(request)
    await app.serve(
        Call(
            method=request.method,
            raw_path=request.raw_path,
            headers=request.headers,
            size=request.content_length,
            version=request.version,
            exchange=exchange,
            request_id=app.request_id_of(request.headers),
        )
    )
    return exchange.response


def unparsable(app: App, error: BaseException | None) -> Response:
    """The answer to what the HTTP parser gave up on; the connection ends with it."""
    answer, request_id = app.unparsable(error)
    assert isinstance(answer.body, bytes)
    response = Response(status=answer.status, headers=answer.headers, body=answer.body)
    response.headers["X-Amber-Request-Id"] = request_id
    response.headers["Server"] = SERVER_NAME
    response.force_close()
    return response


class AiohttpExchange:
    """See :class:`node.http.call.Exchange`."""

    response: StreamResponse
    """What was answered."""

    def __init__(self, request: BaseRequest) -> None:
        self._request = request

    @property
    def transport(self) -> asyncio.Transport | None:
        return self._request.transport

    @property
    def write_stall_s(self) -> float:
        return float(getattr(self._request.protocol, "write_stall_s", 60.0))

    @property
    def received_bytes(self) -> int:
        return self._request.content.total_bytes

    @property
    def sent_bytes(self) -> int:
        return self._request.writer.output_size

    @sent_bytes.setter
    def sent_bytes(self, value: int) -> None:
        self._request.writer.output_size = value

    @property
    def whole_body(self) -> bytes | None:
        return None

    async def body(self, *, invite: bool, stall_s: float) -> AsyncIterator[bytes]:
        content = self._request.content
        try:
            if invite and not content.total_bytes and not content.is_eof():
                await self._request.writer.write(_CONTINUE)
                self._request.writer.output_size = 0  # it is no part of the answer
            while True:
                # The timer is only worth its price when there is something to wait for.
                chunk = content.read_nowait()
                if not chunk:
                    if content.is_eof():
                        return
                    async with asyncio.timeout(stall_s):
                        # Not readany(): woken by the end of a chunk, it waits again without a look at whether the body has failed
                        # meanwhile (aiohttp 3.14).
                        chunk, chunk_ends = await content.readchunk()
                    if not chunk:
                        if chunk_ends:
                            continue
                        return
                yield chunk
        except TimeoutError:
            raise RequestTimeout(
                f"Nothing of the body arrived for {stall_s:g} seconds. Nothing was stored: send it again."
            ) from None
        except (RequestPayloadError, HttpProcessingError) as error:
            raise BadRequest(
                "The body's framing is broken (chunk sizes, or the request after it). Nothing was stored.",
                code="bad-request",
            ) from error
        except OSError as error:
            raise BadRequest(
                "The body ended before it was complete. Nothing was stored: send it again.", code="incomplete-body"
            ) from error

    async def send(self, call: Call, answer: Answer, body: bytes, *, close: bool) -> None:
        self.response = Response(status=answer.status, headers=self._headers(call, answer), body=body or None)
        self._close_after(close)
        await self.response.prepare(self._request)
        await self.response.write_eof()

    async def begin(self, call: Call, answer: Answer, *, close: bool) -> None:
        self.response = StreamResponse(status=answer.status, headers=self._headers(call, answer))
        self._close_after(close)
        await self.response.prepare(self._request)

    async def flush(self) -> None:
        writer = self._request.writer
        assert isinstance(writer, StreamWriter)
        writer.send_headers()
        await writer.drain()

    async def write(self, piece: bytes | memoryview) -> None:
        await self.response.write(piece)

    async def end(self) -> None:
        await self.response.write_eof()

    def _headers(self, call: Call, answer: Answer) -> dict[str, str]:
        headers = answer.headers
        headers["X-Amber-Request-Id"] = call.request_id
        headers["Server"] = SERVER_NAME
        return headers

    def _close_after(self, close: bool) -> None:
        """Ask for the connection to be closed when the server goes, or when much of the body is still to come."""
        request = self._request
        content = request.content
        if close:
            self.response.force_close()
        elif not content.is_eof():
            size = request.content_length
            if (
                content.exception() is not None
                or size is None
                or size > _UNREAD_BYTES_MAX
                or "Expect" in request.headers
            ):
                self.response.force_close()
