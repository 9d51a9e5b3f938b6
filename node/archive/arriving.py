"""One chunk on its way from the archive, for all who read it at the moment.

It fills its own memory from the front; every reader waits for what it needs of it. Whoever fetches lives as long as somebody reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from amberblob.errors import AmberError, ArchiveUnavailable
from chunkstore.staging import retrieve


class Fetch:
    """What came so far of the bytes from ``base`` on, ``size`` of them.

    Args:
        fill: fetches; it calls :meth:`put` for what comes and ends when all came and was found right. What it raises all readers get.
        left: called when the last reader has gone.

    Attributes:
        base: offset in the chunk of the first byte.
        size: how many bytes are to come.
        have: how many came. given: how many of them readers may have taken by now.
        buffer: its memory.
    """

    def __init__(
        self, base: int, size: int, fill: Callable[[Fetch], Coroutine[Any, Any, None]], left: Callable[[], None]
    ) -> None:
        self.base = base
        self.size = size
        self.have = self.given = 0
        self.buffer = memoryview(bytearray(size))
        self._left = left
        self._readers = 0
        self._news: list[asyncio.Future[None]] = []
        self._task = asyncio.get_running_loop().create_task(fill(self))
        self._task.add_done_callback(self._ended)
        self._task.add_done_callback(retrieve)

    def put(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        end = self.have + len(data)
        assert end <= self.size, "more came than a chunk has"
        self.buffer[self.have : end] = data
        self.have = end
        self._tell()

    def reader(self) -> Reader:
        """One more who reads it; to be closed."""
        self._readers += 1
        return Reader(self)

    def leave(self) -> None:
        """One reader less."""
        self._readers -= 1
        if not self._readers:
            self._left()
            self._task.cancel()

    async def until(self, count: int) -> int:
        """Wait until that many bytes came, counted from the base; how many did. The last byte is there only when all were found right.

        Raises: ArchiveError.
        """
        while True:
            if self._task.done():
                if self._task.cancelled():
                    raise ArchiveUnavailable("The node that fetched it is shutting down: ask another one.")
                error = self._task.exception()
                if error is None:
                    return self.size
                # One of its own for every reader: each adds its traceback to what it raises.
                raise _again(error) if isinstance(error, AmberError) else error
            ready = min(self.have, self.size - 1)
            if ready >= count:
                self.given = max(self.given, ready)
                return ready
            news = asyncio.get_running_loop().create_future()
            self._news.append(news)
            await news

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, []
        for one in news:
            if not one.done():
                one.set_result(None)


class Reader:
    """See :class:`node.objects.cold.Arriving`."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._closed = False

    async def begun(self) -> None:
        """Wait for the first byte. Raises: ArchiveError."""
        await self._fetch.until(1)

    async def pieces(self, low: int, high: int) -> AsyncIterator[memoryview]:
        fetch = self._fetch
        at, end = low - fetch.base, high - fetch.base
        assert 0 <= at <= end <= fetch.size
        while at < end:
            ready = min(await fetch.until(at + 1), end)
            yield fetch.buffer[at:ready]
            at = ready

    async def whole(self) -> memoryview:
        await self._fetch.until(self._fetch.size)
        return self._fetch.buffer

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._fetch.leave()


class Flights:
    """Chunks that are fetched whole at the moment: who wants one that is on its way joins."""

    def __init__(self) -> None:
        self._fetches: dict[str, Fetch] = {}

    def __len__(self) -> int:
        return len(self._fetches)

    def join(self, chunk_id: str) -> Reader | None:
        """A reader of what is on its way; None: it is not."""
        fetch = self._fetches.get(chunk_id)
        return fetch.reader() if fetch is not None else None

    def begin(self, chunk_id: str, size: int, fill: Callable[[Fetch], Coroutine[Any, Any, None]]) -> Reader:
        """Fetch a whole chunk."""

        async def filling(fetch: Fetch) -> None:
            try:
                await fill(fetch)
            finally:
                gone()

        def gone() -> None:
            # One that failed is begun anew by who comes next; one that is done is in the cache.
            if self._fetches.get(chunk_id) is fetch:
                del self._fetches[chunk_id]

        fetch = self._fetches[chunk_id] = Fetch(0, size, filling, gone)
        return fetch.reader()

    @staticmethod
    def alone(base: int, size: int, fill: Callable[[Fetch], Coroutine[Any, Any, None]]) -> Reader:
        """Fetch a part of a chunk, for one reader."""
        return Fetch(base, size, fill, lambda: None).reader()


def _again(error: AmberError) -> AmberError:
    return type(error)(error.detail, code=error.code, extra=error.extra)
