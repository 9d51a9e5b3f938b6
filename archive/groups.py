"""Chunks whose writers wait until they are archived (write-through): those that wait at one time share a pack.

As with a journal's commits nobody waits for company: the first one goes at once, and whoever comes while it is on its way goes with the next.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import AsyncIterator, Sequence

from amberblob.archives import ArchivedChunk
from amberblob.errors import AmberError, NotReady
from archive.packs import Item
from archive.upload import Uploader

GROUPS_MAX = 2
"""Groups under way at once: one that is being finished, and one that is being filled with what came meanwhile."""
WAITING_MAX = 4096
"""Calls that wait at once; what is more waits before it is taken in."""


class _Call:
    """One call of :meth:`GroupUploader.archive`."""

    def __init__(self, pairs: Sequence[tuple[Item, bytes]]) -> None:
        self.pairs = pairs
        self.size_bytes = sum(len(data) for _, data in pairs)
        self.missing = {item.chunk.id for item, _ in pairs}
        self.done: asyncio.Future[list[ArchivedChunk]] = asyncio.get_running_loop().create_future()
        self._rows: dict[str, ArchivedChunk] = {}

    def take(self, row: ArchivedChunk) -> None:
        """A chunk is stored."""
        self._rows[row.chunk_id] = row
        self.missing.discard(row.chunk_id)
        if not self.missing and not self.done.done():
            self.done.set_result([self._rows[item.chunk.id] for item, _ in self.pairs])

    def fail(self, error: Exception) -> None:
        """It cannot be; nothing if that is known already, or done."""
        if not self.done.done():
            self.done.set_exception(error)


class GroupUploader:
    """Archives what somebody waits for. Its uploader serves nobody else: a job's packs that wait for more bytes would hold it up."""

    def __init__(self, uploader: Uploader) -> None:
        self._uploader = uploader
        self._waiting: deque[_Call] = deque()
        self._calls = asyncio.Semaphore(WAITING_MAX)
        self._groups: set[asyncio.Task[None]] = set()
        self._closed = False

    async def archive(self, pairs: Sequence[tuple[Item, bytes]]) -> list[ArchivedChunk]:
        """Archive these chunks; returns their rows (uploaded, not read back) in the same order, when the target has all of them.

        What is cancelled may be archived nevertheless. Raises: ArchiveError (the first of them; others of the chunks may be stored), ChunkCorrupt, NotReady.
        """
        if not pairs:
            return []
        async with self._calls:
            if self._closed:
                raise _stopping()
            call = _Call(pairs)
            self._waiting.append(call)
            self._begin()
            return await call.done

    async def close(self) -> None:
        """Give up what is under way and what waits."""
        self._closed = True
        for call in self._waiting:
            call.fail(_stopping())
        self._waiting.clear()
        for group in list(self._groups):
            group.cancel()
        await asyncio.gather(*self._groups, return_exceptions=True)

    def _begin(self) -> None:
        """Send who waits, if a group may be under way."""
        while self._waiting and len(self._groups) < GROUPS_MAX and not self._closed:
            calls: list[_Call] = []
            size = 0
            while self._waiting and size < self._uploader.pack_size:
                call = self._waiting.popleft()
                if not call.done.done():
                    calls.append(call)
                    size += call.size_bytes
            if calls:
                group = asyncio.create_task(self._carry_out(calls))
                self._groups.add(group)
                group.add_done_callback(functools.partial(self._ended, calls))

    def _ended(self, calls: list[_Call], group: asyncio.Task[None]) -> None:
        self._groups.discard(group)
        for call in calls:
            call.fail(_stopping())
        self._begin()

    async def _carry_out(self, calls: list[_Call]) -> None:
        wanting: dict[str, list[_Call]] = {}
        for call in calls:
            for chunk_id in call.missing:
                wanting.setdefault(chunk_id, []).append(call)

        async def source() -> AsyncIterator[tuple[Item, bytes]]:
            for call in calls:
                for pair in call.pairs:
                    yield pair

        async def stored(rows: list[tuple[Item, ArchivedChunk]]) -> None:
            for _, row in rows:
                for call in wanting[row.chunk_id]:
                    call.take(row)

        async def failed(items: list[Item], error: AmberError) -> None:
            for item in items:
                for call in wanting[item.chunk.id]:
                    call.fail(error)

        try:
            await self._uploader.run(source(), stored, failed)
        except Exception as error:
            for call in calls:
                call.fail(error)


def _stopping() -> NotReady:
    return NotReady(
        "This node stops: what was to be archived first was not stored. Try again at another node.",
        code="shutting-down",
    )
