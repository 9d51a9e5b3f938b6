"""What was fetched from the archive stays on the disk for a while: content-addressed, within a budget, never counted as held (rfc/0016).

Whoever wants a chunk that is being fetched already reads along: each chunk is fetched once at a time, and every reader gets the first bytes as
soon as they are there. The fetch goes on at its own pace, so its bytes are in memory until the slowest of its readers has them: who bounds the
readers bounds the memory. When nobody wants them any more it is given up.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import structlog

from amberblob.archives import ArchivedChunk
from amberblob.errors import NotReady
from amberblob.ids import valid_hash
from amberblob.limits import MIB
from archive import cachefiles
from archive.cachefiles import CacheFile
from archive.closing import closing
from archive.frames import Buffer, damaged

log = structlog.get_logger(__name__)
T = TypeVar("T")

Fetch = Callable[[int, int], AsyncIterator[Buffer]]
"""The plain bytes ``[start, end)`` of the chunk, verified, from wherever they are (:func:`archive.reading.read_chunk`)."""

MARGIN_BYTES = 64 * MIB
"""The cache keeps so far away from the disk's reserve: what clients write comes first."""
FETCHES_MAX = 16
"""Whole chunks that are fetched at once."""
WHOLE_BYTES = MIB
"""Of a smaller chunk, and of one of which half is wanted, all is fetched and kept. So it is when part of it is wanted a second time."""
WRITES_MAX = 8
"""Chunks that are written at once; what comes meanwhile is not kept: a slow disk must not fill the memory."""
PARTS_MAX = 4096
"""Chunks of which it is remembered that a part was wanted."""


class _Fetching:
    """A chunk on its way, and what has come of it."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []
        self.done = False
        self.error: Exception | None = None
        self.readers = 0
        self.task: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    def tell(self) -> None:
        """Wake the readers: there is more, or the end."""
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self, start: int, end: int) -> AsyncGenerator[Buffer, None]:
        """What comes of ``[start, end)``."""
        at = index = 0
        while at < end:
            if index == len(self.buffers):
                if self.error is not None:
                    raise self.error
                await self._news.wait()
                continue
            buffer = memoryview(self.buffers[index])
            index += 1
            part = buffer[max(0, start - at) : end - at]
            at += len(buffer)
            if part:
                yield part


class Cache:
    """Chunks on this disk that can be had again.

    Args:
        folder: the cache's own.
        budget_bytes: on the disk; 0: nothing is kept.
        spare_bytes: how much may be written before the disk's reserve is touched, negative below it; may block, is called in threads.
        token: a new word each time, for names of files.

    Attributes:
        size_bytes: on the disk now. hits, misses: reads that were served from it, and those that were not.
    """

    def __init__(
        self, folder: Path, budget_bytes: int, *, spare_bytes: Callable[[], int], token: Callable[[], str]
    ) -> None:
        self._folder = folder
        self._budget_bytes = budget_bytes
        self._spare_bytes = spare_bytes
        self._token = token
        self._files: OrderedDict[str, CacheFile] = OrderedDict()
        self._fetching: dict[str, _Fetching] = {}
        self._places = asyncio.Semaphore(FETCHES_MAX)
        self._parts: OrderedDict[str, None] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writes = self._write_bytes = 0
        self._filling = budget_bytes > 0
        self._closed = False
        self.size_bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, chunk_id: str) -> bool:
        return chunk_id in self._files

    async def open(self) -> None:
        """Find what is there from before; the order of use is that of the files' times. A folder that cannot be read is an empty cache."""
        try:
            files = await _in_thread(cachefiles.scan, self._folder)
        except OSError as error:
            log.warning("archive-cache-unreadable", folder=str(self._folder), error=str(error))
            self._filling, self._budget_bytes = False, 0
            return
        doubles = [old for file in files if (old := self._enter(file)) is not None]
        await _in_thread(cachefiles.remove, self._folder, doubles + self._leave(self.size_bytes - self._budget_bytes))

    async def close(self) -> None:
        """Give up what is being fetched; its readers get NotReady."""
        self._closed = True
        for fetching in self._fetching.values():
            fetching.error = fetching.error or _stopping()
            fetching.tell()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def get(self, row: ArchivedChunk) -> bytes | None:
        """The whole chunk, verified, if it is here."""
        file = self._files.get(row.chunk_id)
        if file is None:
            return None
        self._files.move_to_end(row.chunk_id)
        data = await _in_thread(cachefiles.load, self._folder, file, row.length)
        if data is not None:
            self.hits += 1
        elif self._files.get(row.chunk_id) is file:
            self._forget(row.chunk_id)
        return data

    async def read(
        self, row: ArchivedChunk, fetch: Fetch, start: int = 0, end: int | None = None
    ) -> AsyncGenerator[Buffer, None]:
        """The plain bytes ``[start, end)`` of a chunk (``end`` None: to its end), in order: from here, along with who fetches it already, or fetched.

        Close the iterator when done early. Raises: what ``fetch`` raises, at the place that it came to; NotReady: the node stops.
        """
        end = row.length if end is None else end
        fetching = self._fetching.get(row.chunk_id)
        if fetching is None:
            data = await self.get(row)
            if data is not None:
                yield memoryview(data)[start:end]
                return
            fetching = self._fetching.get(row.chunk_id)
        self.misses += 1
        if fetching is None and not self._whole(row, start, end):
            async with closing(fetch(start, end)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        if fetching is None:
            if self._closed:
                raise _stopping()
            fetching = self._fetching[row.chunk_id] = _Fetching()
            fetching.task = self._begin(self._fetch(row, fetching, fetch))
        fetching.readers += 1
        try:
            async with aclosing(fetching.follow(start, end)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            fetching.readers -= 1
            if not fetching.readers and not fetching.done and fetching.task is not None:
                self._end(row, fetching)
                fetching.task.cancel()

    async def discard(self, chunk_id: str) -> None:
        """Forget a chunk."""
        if chunk_id in self._files:
            await _in_thread(cachefiles.remove, self._folder, [self._forget(chunk_id)])

    async def give_room(self) -> int:
        """Give back what the disk needs, if its free room comes near its reserve; returns how many bytes. To be called every second or so.

        While the disk is that full nothing new is kept.
        """
        spare = await _in_thread(self._spare_bytes)
        self._filling = spare > MARGIN_BYTES and self._budget_bytes > 0
        files = self._leave(MARGIN_BYTES - spare)
        await _in_thread(cachefiles.remove, self._folder, files)
        return sum(file.size_bytes for file in files)

    def _whole(self, row: ArchivedChunk, start: int, end: int) -> bool:
        """Whether all of a chunk is fetched for one who wants this part."""
        if (start, end) == (0, row.length):
            return True
        if not self._filling or row.length > self._budget_bytes:
            return False
        if row.length <= WHOLE_BYTES or 2 * (end - start) >= row.length or row.chunk_id in self._parts:
            self._parts.pop(row.chunk_id, None)
            return True
        self._parts[row.chunk_id] = None
        if len(self._parts) > PARTS_MAX:
            self._parts.popitem(last=False)
        return False

    async def _fetch(self, row: ArchivedChunk, fetching: _Fetching, fetch: Fetch) -> None:
        """Fetch a chunk for its readers, then keep it."""
        try:
            async with self._places, closing(fetch(0, row.length)) as pieces:
                left = row.length
                async for piece in pieces:
                    fetching.buffers.append(piece)
                    left -= len(piece)
                    fetching.tell()
            if left:
                raise damaged(row, f"{left} bytes of it have not come")
        except Exception as error:
            fetching.error = error
            fetching.tell()
        else:
            fetching.done = True
            await self._keep(row, fetching.buffers)
        finally:
            self._end(row, fetching)

    def _end(self, row: ArchivedChunk, fetching: _Fetching) -> None:
        if self._fetching.get(row.chunk_id) is fetching:
            del self._fetching[row.chunk_id]

    async def _keep(self, row: ArchivedChunk, buffers: list[Buffer]) -> None:
        """Write it, if there is room for it; others go for it."""
        size = cachefiles.blocks(row.length)
        if not valid_hash(row.chunk_id):
            return  # it would name a file
        if row.chunk_id in self._files or self._writes == WRITES_MAX or self._write_bytes + size > self._budget_bytes:
            return
        self._writes += 1
        self._write_bytes += size
        try:
            await self.give_room()
            if self._filling:
                await self._write(row, buffers)
        except OSError as error:
            log.warning("archive-cache-not-written", chunk=row.chunk_id, error=str(error))
        finally:
            self._writes -= 1
            self._write_bytes -= size

    async def _write(self, row: ArchivedChunk, buffers: list[Buffer]) -> None:
        """What goes for it is gone before it comes."""
        going = self._leave(self.size_bytes + self._write_bytes - self._budget_bytes)
        await _in_thread(cachefiles.remove, self._folder, going)
        store = functools.partial(cachefiles.store, foreign=row.foreign, token=self._token())
        file = await _in_thread(store, self._folder, row.chunk_id, buffers)
        double = self._enter(file) if file is not None else None
        if double is not None:
            await _in_thread(cachefiles.remove, self._folder, [double])

    def _enter(self, file: CacheFile) -> CacheFile | None:
        """Note a file as the newest; returns the one that it takes the place of, if that has another name."""
        old = self._files.get(file.chunk_id)
        if old is not None:
            self._forget(file.chunk_id)
        self._files[file.chunk_id] = file
        self.size_bytes += file.size_bytes
        return old if old is not None and old.name != file.name else None

    def _forget(self, chunk_id: str) -> CacheFile:
        file = self._files.pop(chunk_id)
        self.size_bytes -= file.size_bytes
        return file

    def _leave(self, size_bytes: int) -> list[CacheFile]:
        """Forget what was used longest ago, so much of it; returns it, to be removed."""
        going: list[CacheFile] = []
        while size_bytes > 0 and self._files:
            going.append(self._forget(next(iter(self._files))))
            size_bytes -= going[-1].size_bytes
        return going

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _in_thread(function: Callable[..., T], *arguments: Any) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def _stopping() -> NotReady:
    return NotReady("This node stops. Read from another one.", code="shutting-down")
