"""Chunks whose writers wait until they are archived (write-through): those that wait at one time share a pack.

As with a journal's commits nobody waits for company: the first one goes at once, and whoever comes while it is on its way goes with the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from amberblob.archives import ArchivedChunk
from amberblob.errors import AmberError, NotReady
from archive.packs import Item
from archive.upload import Uploader

GROUPS_MAX = 2
"""Groups under way at once: one that is being finished, and one that is being filled with what came meanwhile."""
WAITING_MAX = 4096
"""Calls that wait at once; what is more waits before it is taken in."""


@dataclass(eq=False, slots=True)
class _Call:
    """One call of :meth:`GroupUploader.archive`."""

    pairs: Sequence[tuple[Item, bytes]]
    done: asyncio.Future[list[ArchivedChunk]]
    rows: dict[str, ArchivedChunk] = field(default_factory=dict)

    def fail(self, error: AmberError) -> None:
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
            call = _Call(pairs, asyncio.get_running_loop().create_future())
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
                    size += sum(len(data) for _, data in call.pairs)
            if calls:
                group = asyncio.create_task(self._carry_out(calls))
                self._groups.add(group)
                group.add_done_callback(self._ended)

    def _ended(self, group: asyncio.Task[None]) -> None:
        self._groups.discard(group)
        self._begin()

    async def _carry_out(self, calls: list[_Call]) -> None:
        of: dict[int, _Call] = {}

        async def source() -> AsyncIterator[tuple[Item, bytes]]:
            for call in calls:
                for item, data in call.pairs:
                    of[id(item)] = call
                    yield item, data

        async def stored(rows: list[tuple[Item, ArchivedChunk]]) -> None:
            for item, row in rows:
                call = of[id(item)]
                call.rows[row.chunk_id] = row
                if len(call.rows) == len({item.chunk.id for item, _ in call.pairs}) and not call.done.done():
                    call.done.set_result([call.rows[item.chunk.id] for item, _ in call.pairs])

        async def failed(items: list[Item], error: AmberError) -> None:
            for item in items:
                of[id(item)].fail(error)

        try:
            await self._uploader.run(source(), stored, failed)
        except Exception as error:
            for call in calls:
                if not call.done.done():
                    call.done.set_exception(error)
        finally:
            for call in calls:
                call.fail(_stopping())


def _stopping() -> NotReady:
    return NotReady(
        "This node stops: what was to be archived first was not stored. Try again at another node.",
        code="shutting-down",
    )
