"""Chunks that are only in the archive: read from there by range, each piece verified and handed on as it comes.

The cache (:mod:`archive.cache`) fetches a chunk once however many want it, and keeps it. What is here is how a chunk is fetched when things go
wrong: bytes that stop coming are asked for again from there; when the archive has it not, or not whole, another place of it is looked for, and
then everybody else is asked (``elsewhere``). What came so far stays good: it was verified. An object that is damaged or gone is looked at twice
before the copies are told, for their rows never forget it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import structlog
from blake3 import blake3

from amberblob.archives import ArchivedChunk
from amberblob.errors import (
    ArchiveDamaged,
    ArchiveDenied,
    ArchiveError,
    ArchiveMissing,
    ArchiveUnavailable,
    ConfigError,
)
from amberblob.limits import KIB
from amberblob.manifest import ChunkRef, Version
from archive.cache import Cache
from archive.reading import read_chunk
from archive.targets.guarded import confirm
from archive.targets.interface import Source, Target
from node.archive.known import KnownRows
from node.objects.cold import Course, Elsewhere

log = structlog.get_logger(__name__)

STALLS_MAX = 2
"""How often the archive is asked for the rest of a chunk whose bytes stopped coming, as long as each time more came."""
HASH_IN_THREAD_BYTES = 256 * KIB
DOWN_PATIENCE_S = 3.0
"""How long the first byte is waited for while the target is known not to answer. Somebody has to notice that it is back."""

Piece = bytes | memoryview


class Reads:
    """Implements :class:`node.objects.cold.Cold`.

    Args:
        keep: whether what is fetched stays in the cache, and others may read along.
        is_down: whether the target is known not to answer.
        sources: the bucket that imported content is read from, by its URL; raises ConfigError.

    Attributes:
        counts: for the metrics, by name; each only grows.
    """

    def __init__(
        self,
        rows: KnownRows,
        target: Target,
        cache: Cache,
        sources: Callable[[str], tuple[Source, str]],
        *,
        keep: bool = True,
        is_down: Callable[[], bool] = lambda: False,
    ) -> None:
        self.counts = dict.fromkeys(
            ("chunks", "fetches", "fetched_bytes", "stalls", "damaged", "elsewhere", "failures"), 0
        )
        self._rows = rows
        self._target = target
        self._cache = cache
        self._sources = sources
        self._keep = keep
        self._is_down = is_down

    async def cached(self, chunk: ChunkRef) -> bytes | None:
        return await self._cache.get(_named(chunk))

    async def manifest(self, slot: int, version: Version) -> bytes | None:
        assert version.manifest_id is not None
        course = Course()
        row = await self._rows.find(course, slot, version.blob_id, ChunkRef(version.manifest_id, 0))
        if row is None:
            return None
        chunk = ChunkRef(row.chunk_id, row.length)
        arriving = await self.open(course, slot, version, chunk, 0, chunk.len, _nowhere)
        return bytes(await arriving.whole()) if arriving is not None else None

    async def open(
        self,
        course: Course,
        slot: int,
        version: Version,
        chunk: ChunkRef,
        low: int,
        high: int,
        elsewhere: Elsewhere,
    ) -> Stream | None:
        row = await self._rows.find(course, slot, version.blob_id, chunk)
        if row is None:
            return None
        self.counts["chunks"] += 1
        job = _Job(self, course, slot, version, chunk, row, elsewhere)
        stream = Stream(self._cache.read(row, job.fetch, low, high) if self._keep else job.fetch(low, high), low, high)
        await stream.begin()
        return stream

    async def pieces(
        self, course: Course, slot: int, version: Version, chunk: ChunkRef, *, check_whole: bool
    ) -> list[memoryview] | None:
        """All of a chunk, in the pieces in which it came, each verified; not from the cache, nor for it. None: no copy knows of it in the archive.

        Args:
            check_whole: whether all together are checked, too; False: the store does that, which they are for.

        Raises: ArchiveError.
        """
        row = await self._rows.find(course, slot, version.blob_id, chunk)
        if row is None:
            return None
        self.counts["chunks"] += 1
        job = _Job(self, course, slot, version, chunk, row, _nowhere, check_whole=check_whole)
        stream = Stream(job.fetch(0, chunk.len), 0, chunk.len)
        await stream.begin()
        return await stream.all()

    def read(self, row: ArchivedChunk, low: int, high: int, *, check_whole: bool = True) -> AsyncGenerator[Piece, None]:
        """The plain content of one place of the archive, verified (:func:`archive.reading.read_chunk`). Raises: ArchiveDenied."""
        target: Source = self._target
        if row.foreign:
            try:
                target, _ = self._sources(row.target_path)
            except ConfigError as error:
                raise ArchiveDenied(f"{row.target_path} cannot be read by this node: {error.detail}") from error
        return read_chunk(target, row, low, high, check_whole=check_whole)

    async def first(self, row: ArchivedChunk, pieces: AsyncGenerator[Piece, None]) -> Piece:
        """The first piece; empty: there is none. A target that is down is not waited for as long as its retries take. Raises: ArchiveError."""
        if row.foreign or not self._is_down():  # of others' buckets nobody knows whether they are
            return await anext(pieces, b"")
        try:
            async with asyncio.timeout(DOWN_PATIENCE_S):
                return await anext(pieces, b"")
        except TimeoutError:
            raise ArchiveUnavailable(
                f"{self._target.url} was not reached lately, and did not answer within {DOWN_PATIENCE_S:g} s now."
            ) from None

    async def judge(self, course: Course, slot: int, version: Version, row: ArchivedChunk) -> ArchivedChunk | None:
        """The place was seen to be damaged or empty, twice: tell the copies, and find another place of the chunk, if there is one.

        Nothing is told of imported content: its source is somebody else's, may come back, and has no other place.

        Raises: ArchiveNotOurs, when the target is another one than what the copies know of: that stays true.
        """
        if row.foreign:
            return None
        await confirm(self._target)
        self.counts["damaged"] += 1
        await self._rows.report(course, slot, version.blob_id, row)
        return await self._rows.find(course, slot, version.blob_id, ChunkRef(row.chunk_id, row.length))


class Stream:
    """Implements :class:`node.objects.cold.Arriving`: what comes of ``[low, high)`` of a chunk."""

    def __init__(self, pieces: AsyncGenerator[Piece, None], low: int, high: int) -> None:
        self._pieces = pieces
        self._range = low, high
        self._first: Piece = b""

    async def begin(self) -> None:
        """Wait for the first bytes. Raises: ArchiveError."""
        self._first = await anext(self._pieces, b"")

    async def pieces(self) -> AsyncIterator[memoryview]:
        low, high = self._range
        left = high - low - len(self._first)
        if self._first:
            yield memoryview(self._first)
        self._first = b""
        async for piece in self._pieces:
            left -= len(piece)
            yield memoryview(piece)
        assert left == 0, "a chunk that ended early, or late"

    async def whole(self) -> bytes:
        return b"".join(await self.all())

    async def all(self) -> list[memoryview]:
        """All of it, in the pieces in which it came."""
        async with aclosing(self._pieces):
            return [piece async for piece in self.pieces()]

    async def close(self) -> None:
        await self._pieces.aclose()


class _Job:
    """Fetches one chunk, or a part of it, from wherever it can be had."""

    def __init__(
        self,
        reads: Reads,
        course: Course,
        slot: int,
        version: Version,
        chunk: ChunkRef,
        row: ArchivedChunk,
        elsewhere: Elsewhere,
        *,
        check_whole: bool = True,
    ) -> None:
        self._check_whole = check_whole
        self._reads = reads
        self._course = course
        self._slot = slot
        self._version = version
        self._chunk = chunk
        self._row = row
        self._elsewhere = elsewhere

    async def fetch(self, low: int, high: int) -> AsyncGenerator[Piece, None]:
        """The bytes from ``low`` to ``high``, each piece verified; the last of a whole chunk only when that has its hash. Raises: ArchiveError."""
        self._reads.counts["fetches"] += 1
        is_whole = (low, high) == (0, self._chunk.len)
        whole = blake3() if self._check_whole and is_whole and not self._row.foreign else None
        at = low
        async with aclosing(self._pieces(low, high)) as pieces:
            async for piece in pieces:
                at += len(piece)
                if whole is not None:
                    await _update(whole, piece)
                    if at == high and whole.hexdigest() != self._chunk.id:
                        self._reads.counts["failures"] += 1
                        why = f"What {self._row.target_path} gave is not chunk {self._chunk.id}, although every piece was right."
                        raise ArchiveDamaged(why)
                yield piece

    async def _pieces(self, low: int, high: int) -> AsyncGenerator[Piece, None]:
        at = low
        try:
            async with aclosing(self._from_archive(low, high)) as pieces:
                async for piece in pieces:
                    at += len(piece)
                    yield piece
        except ArchiveError as error:
            log.info("chunk not read from the archive", chunk_id=self._chunk.id, left=high - at, error=error.detail)
            data = await self._elsewhere()
            if data is None:
                self._reads.counts["failures"] += 1
                raise
            self._reads.counts["elsewhere"] += 1
            yield memoryview(data)[at:high]

    async def _from_archive(self, low: int, high: int) -> AsyncGenerator[Piece, None]:
        row, wrong_at, stalls, at = self._row, -1, 0, low
        while True:
            before = at
            try:
                async with aclosing(self._reads.read(row, at, high, check_whole=self._check_whole)) as pieces:
                    piece = await self._reads.first(row, pieces)
                    while piece:
                        self._reads.counts["fetched_bytes"] += len(piece)
                        at += len(piece)
                        yield piece
                        piece = await anext(pieces, b"")
                return
            except ArchiveUnavailable:
                stalls += 1
                self._reads.counts["stalls"] += 1
                if stalls > STALLS_MAX or at == before:
                    raise
            except (ArchiveDamaged, ArchiveMissing):
                if wrong_at != at:
                    wrong_at = at  # once more: what is said of an object is said for good
                    continue
                other = await self._reads.judge(self._course, self._slot, self._version, row)
                if other is None:
                    raise
                row, wrong_at = other, -1


async def _update(whole: blake3, piece: Piece) -> None:
    if len(piece) < HASH_IN_THREAD_BYTES:
        whole.update(piece)
    else:
        await asyncio.get_running_loop().run_in_executor(None, whole.update, piece)


def _named(chunk: ChunkRef) -> ArchivedChunk:
    """A row by which the cache finds a chunk: it needs no more of it."""
    return ArchivedChunk(chunk.id, chunk.len, "", 0, 0, "", 0)


async def _nowhere() -> None:
    """Nobody else has it."""
