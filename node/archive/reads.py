"""Chunks that are only in the archive: read from there by range, each piece verified and handed on as it comes, and kept in the cache.

A chunk is asked for once, however many want it (:mod:`node.archive.arriving`). Who wants little of one gets that part, unless the whole is on
its way already. When the archive gives it not, or not whole, everybody else is asked for it (``elsewhere``), and what came so far stays good:
it was verified. An object that is damaged or gone is looked at twice before the copies are told, for their rows never forget it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Protocol

import structlog
from blake3 import blake3

from amberblob.archives import ArchivedChunk
from amberblob.errors import ArchiveDamaged, ArchiveError, ArchiveMissing, ArchiveUnavailable
from amberblob.limits import MIB
from amberblob.manifest import ChunkRef, Version
from node.archive.arriving import Fetch, Flights, Reader
from node.archive.known import KnownRows
from node.objects.cold import Course, Elsewhere

log = structlog.get_logger(__name__)

PART_SHARE = 4
"""Who wants less than this part (one in so many) of a chunk gets just that; nothing of it is kept."""
PART_BYTES_MIN = MIB
"""A chunk that is not larger is always fetched whole: a request costs as much."""
TRIES_MAX = 3
"""How often the archive is asked for the rest of a chunk whose bytes stopped coming, as long as each time more came."""


class ReadRows(Protocol):
    """Reads one place of the archive (:func:`archive.reading.read_chunk`, with the target that the row is of)."""

    def __call__(self, row: ArchivedChunk, low: int, high: int) -> AsyncIterator[bytes | memoryview]:
        """The plain content from ``low`` to ``high``, each piece verified, as it comes.

        Raises: ArchiveUnavailable, ArchiveDenied, ArchiveMissing, ArchiveDamaged.
        """
        ...

    async def is_blank(self, row: ArchivedChunk) -> bool:
        """Whether the target that the row is of has nothing at all in it: then it is another than the row's. Raises as reading."""
        ...


class ChunkCache(Protocol):
    """What was fetched lately (:class:`archive.cache.ChunkCache`); it never fails, it only has or has not."""

    async def get(self, chunk_id: str, length: int) -> bytes | None:
        """The chunk, verified."""
        ...

    async def put(self, chunk_id: str, data: bytes | memoryview) -> None:
        """Keep it, within the budget."""
        ...


class Reads:
    """Implements :class:`node.objects.cold.Cold`.

    Attributes:
        counts: for the metrics, by name; each only grows.
    """

    def __init__(self, rows: KnownRows, reading: ReadRows, cache: ChunkCache | None) -> None:
        self.counts = dict.fromkeys(
            ("cache_hits", "fetches", "fetched_bytes", "shared", "parts", "damaged", "failures"), 0
        )
        self._rows = rows
        self._read = reading
        self._cache = cache
        self._flights = Flights()
        self._keeping: set[asyncio.Task[None]] = set()

    async def cached(self, chunk: ChunkRef) -> bytes | None:
        data = await self._cache.get(chunk.id, chunk.len) if self._cache is not None else None
        if data is not None:
            self.counts["cache_hits"] += 1
        return data

    async def manifest(self, slot: int, version: Version) -> bytes | None:
        assert version.manifest_id is not None
        course = Course()
        row = await self._rows.find(course, slot, version.blob_id, ChunkRef(version.manifest_id, 0))
        if row is None:
            return None
        chunk = ChunkRef(row.chunk_id, row.length)
        reader = await self.open(course, slot, version, chunk, 0, chunk.len, _nowhere)
        if reader is None:
            return None
        try:
            return bytes(await reader.whole())
        finally:
            reader.close()

    async def open(
        self,
        course: Course,
        slot: int,
        version: Version,
        chunk: ChunkRef,
        low: int,
        high: int,
        elsewhere: Elsewhere,
    ) -> Reader | None:
        reader = self._flights.join(chunk.id)
        if reader is not None:
            self.counts["shared"] += 1
        else:
            row = await self._rows.find(course, slot, version.blob_id, chunk)
            if row is None:
                return None
            reader = self._flights.join(chunk.id)  # it may have begun meanwhile
        if reader is None:
            assert row is not None
            job = _Job(self, course, slot, version, chunk, row, elsewhere)
            if chunk.len > PART_BYTES_MIN and (high - low) * PART_SHARE < chunk.len:
                self.counts["parts"] += 1
                reader = self._flights.alone(low, high - low, job.fill)
            else:
                reader = self._flights.begin(chunk.id, chunk.len, job.fill)
        try:
            await reader.begun()
        except BaseException:
            reader.close()
            raise
        return reader

    async def close(self) -> None:
        """Wait for what is being written to the cache."""
        await asyncio.gather(*self._keeping, return_exceptions=True)

    def keep(self, chunk: ChunkRef, data: memoryview) -> None:
        """Put a whole chunk into the cache, after it has gone out."""
        if self._cache is None:
            return
        task = asyncio.get_running_loop().create_task(self._cache.put(chunk.id, data))
        self._keeping.add(task)
        task.add_done_callback(self._kept)

    def _kept(self, task: asyncio.Task[None]) -> None:
        self._keeping.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("chunk not kept in the cache", error=str(error))

    def stream(self, row: ArchivedChunk, low: int, high: int) -> AsyncIterator[bytes | memoryview]:
        """See :class:`ReadRows`."""
        return self._read(row, low, high)

    async def judge(
        self, error: ArchiveError, course: Course, slot: int, version: Version, row: ArchivedChunk
    ) -> ArchivedChunk | None:
        """The place was seen to be damaged or empty, twice: tell the copies, and find another place of the chunk, if there is one.

        Raises: ArchiveMissing, when the whole target is blank: it is another one, and what the copies know stays true.
        """
        if isinstance(error, ArchiveMissing) and not row.foreign and await self._read.is_blank(row):
            raise ArchiveMissing(
                f"{error.detail} There is nothing at all there: is [archive] target the one that the chunks were sent to?"
            )
        self.counts["damaged"] += 1
        await self._rows.report(course, slot, version.blob_id, row)
        return await self._rows.find(course, slot, version.blob_id, ChunkRef(row.chunk_id, row.length))


class _Wrong(ArchiveDamaged):
    """What somebody was given a part of already is not what was asked for: it must end here."""


class _Job:
    """Fetches one chunk, or a part of it."""

    def __init__(
        self,
        reads: Reads,
        course: Course,
        slot: int,
        version: Version,
        chunk: ChunkRef,
        row: ArchivedChunk,
        elsewhere: Elsewhere,
    ) -> None:
        self._reads = reads
        self._course = course
        self._slot = slot
        self._version = version
        self._chunk = chunk
        self._row = row
        self._elsewhere = elsewhere

    async def fill(self, fetch: Fetch) -> None:
        """Fill it from wherever. Raises: ArchiveError."""
        reads, chunk = self._reads, self._chunk
        reads.counts["fetches"] += 1
        try:
            await self._from_archive(fetch)
        except _Wrong:
            reads.counts["failures"] += 1
            raise
        except ArchiveError as error:
            log.info("chunk not read from the archive", chunk_id=chunk.id, have=fetch.have, error=error.detail)
            data = await self._elsewhere()
            if data is None:
                reads.counts["failures"] += 1
                raise
            fetch.put(memoryview(data)[fetch.base + fetch.have : fetch.base + fetch.size])
            return  # whoever has it as a file verified it, and so did who fetched it
        if fetch.size == chunk.len:
            reads.keep(chunk, fetch.buffer)

    async def _from_archive(self, fetch: Fetch) -> None:
        row: ArchivedChunk | None = self._row
        wrong: ArchiveError | None = None
        tries = 0
        while row is not None:
            before = fetch.have
            try:
                await self._stream(fetch, row)
                return
            except ArchiveUnavailable:
                tries += 1
                if tries == TRIES_MAX or fetch.have == before:
                    raise
            except _Wrong as error:
                await self._reads.judge(error, self._course, self._slot, self._version, row)
                raise
            except (ArchiveDamaged, ArchiveMissing) as error:
                if wrong is None:
                    wrong = error  # once more: what is said of an object is said for good
                    continue
                found = await self._reads.judge(error, self._course, self._slot, self._version, row)
                row, wrong = found, None if found is not None else error
        assert wrong is not None
        raise wrong

    async def _stream(self, fetch: Fetch, row: ArchivedChunk) -> None:
        low, high = fetch.base + fetch.have, fetch.base + fetch.size
        if low < high:
            pieces = self._reads.stream(row, low, high)
            try:
                async for piece in pieces:
                    self._reads.counts["fetched_bytes"] += len(piece)
                    fetch.put(piece)
            finally:
                close = getattr(pieces, "aclose", None)
                if close is not None:
                    await close()
        if fetch.have != fetch.size:
            raise ArchiveDamaged(f"{row.target_path} gave {fetch.have} of {fetch.size} bytes of chunk {row.chunk_id}.")
        if fetch.size == self._chunk.len and not row.foreign and await _hash_of(fetch.buffer) != row.chunk_id:
            why = f"What {row.target_path} gave is not chunk {row.chunk_id}, although every piece was right."
            if fetch.given:
                raise _Wrong(why)
            fetch.have = 0
            raise ArchiveDamaged(why)


async def _nowhere() -> None:
    """Nobody else has it."""


async def _hash_of(data: memoryview) -> str:
    if len(data) < 256 * 1024:
        return blake3(data).hexdigest()
    return await asyncio.get_running_loop().run_in_executor(None, lambda: blake3(data).hexdigest())
