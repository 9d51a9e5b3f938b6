"""Chunks that were archived after the last export: found by the indexes of the objects that hold them (rfc/0016)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime

import structlog

from amberblob.archives import ArchivedChunk
from amberblob.errors import ArchiveDamaged, ArchiveMissing
from amberblob.ids import ulid_time_ms
from amberblob.manifest import ChunkRef
from archive.packs import CHUNKS, PACKS, PackEntry, object_ulid
from archive.reading import fetch_index
from archive.targets.interface import Stored, Target
from archive.targets.small import PAGE

log = structlog.get_logger(__name__)


class RecentChunks:
    """Looks through the objects that were begun at or after a time; once, when it is first asked.

    Args:
        since_ms: epoch milliseconds, by the ULIDs of the objects.
        problem: told of objects that cannot be read.
    """

    def __init__(self, target: Target, since_ms: int, problem: Callable[[str], None]) -> None:
        self._target = target
        self._since_ms = since_ms
        self._problem = problem
        self._reading = asyncio.Lock()
        self._packed: dict[str, ArchivedChunk] | None = None
        self._lone: dict[str, Stored] | None = None

    async def find(self, chunk: ChunkRef) -> ArchivedChunk | None:
        """Where a chunk is (``len`` 0: of a length that is not known), as an object says that was not looked at; its row is not verified. Raises as ``Target.page`` and ``Target.read``."""
        found = (await self._all_packed()).get(chunk.id) or await self._find_lone(chunk)
        return found if found is not None and chunk.len in (0, found.length) else None

    # Both are read once, and nobody sees a part of them: what is not there is believed to be nowhere.

    async def _all_packed(self) -> dict[str, ArchivedChunk]:
        async with self._reading:
            if self._packed is None:
                packed: dict[str, ArchivedChunk] = {}
                async for stored in recent_packs(self._target, self._since_ms):
                    packed.update((row.chunk_id, row) for row in await self._rows(stored))
                self._packed = packed
            return self._packed

    async def _all_lone(self) -> dict[str, Stored]:
        async with self._reading:
            if self._lone is None:
                lone: dict[str, Stored] = {}
                async for stored in _listed(self._target, CHUNKS, ""):
                    ulid = object_ulid(stored.name)
                    if ulid is not None and ulid_time_ms(ulid) >= self._since_ms:
                        lone[stored.name.rpartition("/")[2].partition(".")[0]] = stored
                self._lone = lone
            return self._lone

    async def _find_lone(self, chunk: ChunkRef) -> ArchivedChunk | None:
        stored = (await self._all_lone()).get(chunk.id)
        rows = await self._rows(stored) if stored is not None else []
        return next((row for row in rows if row.chunk_id == chunk.id), None)

    async def _rows(self, stored: Stored) -> list[ArchivedChunk]:
        try:
            entries = await fetch_index(self._target, stored.name, stored.size_bytes)
        except (ArchiveDamaged, ArchiveMissing) as error:
            self._problem(f"{stored.name} cannot be used: {error.detail}")
            return []
        return [row_of(stored.name, entry) for entry in entries]


async def recent_packs(target: Target, since_ms: int) -> AsyncIterator[Stored]:
    """The packs that were begun at or after that time, oldest day first. Raises as ``Target.page``."""
    day = datetime.fromtimestamp(max(0, since_ms) / 1000, UTC)
    async for stored in _listed(target, PACKS, f"{PACKS}{day:%Y/%m/%d}/0"):
        ulid = object_ulid(stored.name)
        if ulid is not None and ulid_time_ms(ulid) >= since_ms:
            yield stored


async def _listed(target: Target, prefix: str, after: str) -> AsyncIterator[Stored]:
    while True:
        page = await target.page(prefix, after, PAGE)
        if not page:
            return
        for stored in page:
            yield stored
        after = page[-1].name


def row_of(name: str, entry: PackEntry) -> ArchivedChunk:
    """The row that an entry of an object's index stands for; nobody has looked at what it says."""
    ulid = object_ulid(name)
    assert ulid is not None, name
    return ArchivedChunk(
        chunk_id=entry.chunk_id,
        length=entry.length,
        target_path=name,
        start=entry.start,
        end=entry.end,
        head=entry.head,
        archived_at_ms=ulid_time_ms(ulid),
    )
