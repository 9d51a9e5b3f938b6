"""A download: streamed, verified, and carried on at another node when the first one dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator, Mapping
from types import TracebackType
from typing import Any

import aiohttp
from blake3 import blake3

from amberblob.client.http import Request
from amberblob.client.retry import Retrying
from amberblob.client.targets import with_query
from amberblob.client.types import ByteRange, ObjectInfo, Progress, content_range, info_from_headers, range_header
from amberblob.errors import AmberError, BadRequest, DigestMismatch, PeerError, PeerUnreachable, WireError
from amberblob.ids import valid_hash


class ObjectReader:
    """The bytes of one version, or of a range of it.

    Use it as ``async with client.get(path) as reader`` or ``reader = await client.get(path)`` and close it. The
    version is pinned by the first answer: a download that is carried on elsewhere is of the same version and etag.
    A whole object is verified against its etag; the last piece is handed out only after that. (Not one that was imported and never read
    since: its etag is no hash.)
    """

    def __init__(
        self,
        retrying: Retrying,
        target: str,
        path: str,
        *,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        span: ByteRange | None,
        progress: Progress | None,
    ) -> None:
        self._retrying = retrying
        self._target = target
        self._path = path
        self._query = dict(query)
        self._headers = dict(headers)
        self._span = span
        self._progress = progress
        self._response: aiohttp.ClientResponse | None = None
        self._info: ObjectInfo | None = None
        self._start = 0
        self._end = 0
        self._position = 0
        self._rest = b""
        self._hash: Any = None
        self._pieces: AsyncIterator[bytes] | None = None
        self._closed = False

    # -- what it is

    @property
    def info(self) -> ObjectInfo:
        """The version that is read."""
        assert self._info is not None, "the reader is not open: use `async with` or `await`"
        return self._info

    @property
    def start(self) -> int:
        """The offset of the first byte within the object."""
        return self._start

    @property
    def length(self) -> int:
        """How many bytes there are to read in all."""
        return self._end - self._start

    # -- opening and closing

    async def open(self) -> ObjectReader:
        """Send the request, unless that was done."""
        if self._info is not None:
            return self
        headers = dict(self._headers)
        if self._span is not None:
            try:
                headers["Range"] = range_header(self._span)
            except ValueError as error:
                raise BadRequest(f"{error}; give start:end with end after start", code="bad-range") from error
        response = await self._retrying.send(
            Request(method="GET", target=with_query(self._target, self._query), headers=headers)
        )
        try:
            self._info = info_from_headers(self._path, response.headers)
            partial = content_range(response.headers)
            self._start, self._end = partial[:2] if partial is not None else (0, self._info.size)
            if self._span is not None and response.status != 206:
                raise WireError("the node answered with the whole object instead of the range")
        except BaseException:
            response.close()
            raise
        self._response = response
        self._position = self._start
        if self.length == self._info.size and valid_hash(self._info.etag):
            self._hash = blake3()
        self._pieces = self._stream()
        if self._progress is not None:
            self._progress(0, self.length)
        return self

    def __await__(self) -> Generator[Any, None, ObjectReader]:
        return self.open().__await__()

    async def __aenter__(self) -> ObjectReader:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give the connection back, or close it if bytes are still to come."""
        self._closed = True
        self._drop_response()

    def _drop_response(self) -> None:
        if self._response is not None:
            if self._response.content.at_eof():
                self._response.release()
            else:
                self._response.close()
            self._response = None

    # -- reading

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read_piece():
            yield piece

    async def read_piece(self) -> bytes:
        """The next bytes as they come, of any length; ``b""`` at the end.

        Raises:
            DigestMismatch: the bytes are not those that the etag names.
            AmberError: no node went on with the download.
        """
        if self._rest:
            piece, self._rest = self._rest, b""
            return piece
        if self._closed:
            raise ValueError("the reader is closed")
        assert self._pieces is not None, "the reader is not open: use `async with` or `await`"
        return await anext(self._pieces, b"")

    async def read(self, size: int = -1) -> bytes:
        """Exactly ``size`` bytes, fewer only at the end; everything with -1 (mind the memory)."""
        parts: list[bytes] = []
        wanted = size if size >= 0 else self._end - self._start
        while wanted > 0 and (piece := await self.read_piece()):
            if len(piece) > wanted:
                piece, self._rest = piece[:wanted], piece[wanted:]
            parts.append(piece)
            wanted -= len(piece)
        if size < 0 and not self._closed:
            await self.read_piece()  # an empty object is verified as well
        return b"".join(parts) if len(parts) != 1 else parts[0]

    async def _stream(self) -> AsyncIterator[bytes]:
        """All bytes, resumed as often as there is progress. One piece is held back until the whole is verified."""
        held = b""
        async for piece in self._resumed():
            if self._hash is not None:
                self._hash.update(piece)
            if held:
                yield held
            held = piece
        self._drop_response()
        if self._hash is not None and (digest := self._hash.hexdigest()) != self.info.etag:
            raise DigestMismatch(
                f"{self._path}: the bytes that came have the digest {digest}, the object has {self.info.etag}. "
                "Do not use them; download again, and run `amberblob explain` on the path if it stays so.",
                extra={"expected": self.info.etag, "got": digest},
            )
        if held:
            yield held

    async def _resumed(self) -> AsyncIterator[bytes]:
        clock, policy = self._retrying.clock, self._retrying.policy
        failures: list[AmberError] = []
        moved_at = clock.monotonic_s()
        while self._position < self._end:
            try:
                response = self._response or await self._resume()
                self._response = response
                async for piece in self._retrying.http.pieces(response):
                    if len(piece) > self._end - self._position:
                        raise WireError(f"{self._path}: the node sent more bytes than it announced")
                    self._position += len(piece)
                    failures.clear()
                    yield piece
                    # Only now: how long the caller takes with a piece is no delay of the cluster's.
                    moved_at = clock.monotonic_s()
                    if self._progress is not None:
                        self._progress(self._position - self._start, self.length)
                if self._position < self._end:
                    raise PeerUnreachable(
                        f"the answer ended after {self._position - self._start} of {self.length} bytes"
                    )
            except PeerError as error:
                if not error.retryable:
                    raise
                self._leave_node()
                failures.append(error)
                pause_s = self._retrying.pause_s(failures)
                if len(failures) > policy.attempts_max or clock.monotonic_s() + pause_s > moved_at + policy.deadline_s:
                    raise
                await asyncio.sleep(pause_s)

    def _leave_node(self) -> None:
        """The node broke off: the next request goes to another one."""
        if self._response is not None:
            origin = str(self._response.url.origin())
            for index, url in enumerate(self._retrying.endpoints.urls):
                if url == origin or url.startswith(origin + "/"):
                    self._retrying.endpoints.failed(index)
            self._response.close()
            self._response = None

    async def _resume(self) -> aiohttp.ClientResponse:
        """The rest of the same version, from where it stopped."""
        headers = {
            **self._headers,
            "Range": f"bytes={self._position}-{self._end - 1}",
            "If-Match": f'"{self.info.etag}"',
        }
        headers.pop("If-None-Match", None)
        headers.pop("X-Amber-Consistency", None)  # a local replica elsewhere may not have it yet
        target = with_query(self._target, {"version": str(self.info.version)})
        response = await self._retrying.send(Request(method="GET", target=target, headers=headers))
        partial = content_range(response.headers)
        if response.status != 206 or partial is None or partial[:2] != (self._position, self._end):
            response.close()
            raise WireError(f"{self._path}: the node did not go on with the bytes that were asked for")
        return response
