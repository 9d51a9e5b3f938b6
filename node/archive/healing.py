"""Copies that lack bytes, and the archive: they live by rows where others do, else what no disk gives comes from there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import structlog

from amberblob.archives import ArchivedBlob
from amberblob.errors import (
    ArchiveDamaged,
    ArchiveError,
    ArchiveMissing,
    ChunkMissing,
    DigestMismatch,
    PeerError,
    StorageError,
)
from amberblob.manifest import ChunkRef, Version, decode_manifest
from antientropy.room import Room
from chunkstore.archiverules import ids_of
from chunkstore.interface import ReplicaStore
from node.archive.known import CHUNKS_ASKED, KnownRows, TakesRows
from node.archive.lent import Lent
from node.archive.reads import Reads
from node.objects.cold import Course

log = structlog.get_logger(__name__)


class Healing:
    """Implements :class:`node.pulls.ArchivedBytes`.

    Args:
        now_ms: the node's hybrid clock.
        lent: where other copies find what was put back; None: on the disk.
    """

    def __init__(
        self,
        store: ReplicaStore,
        rows: KnownRows,
        facts: TakesRows,
        reads: Reads,
        now_ms: Callable[[], int],
        lent: Lent | None = None,
    ) -> None:
        self._lent = lent or Lent()
        self._store = store
        self._rows = rows
        self._facts = facts
        self._reads = reads
        self._now_ms = now_ms

    async def adopt(self, slot: int, version: Version, nodes: Sequence[str]) -> bool:
        try:
            if await self._store.is_evicted(slot, version.blob_id):
                return True
            for node in nodes:
                try:
                    if not await self._live_by_rows_of(node, slot, version):
                        continue
                except PeerError as error:
                    log.info("archive rows not told", peer=node, slot=slot, blob_id=version.blob_id, error=error.detail)
                    continue
                log.info("copy lives by the archive", slot=slot, blob_id=version.blob_id, as_=node)
                return True
        except (StorageError, ArchiveError) as error:
            log.warning("archive rows not taken", slot=slot, blob_id=version.blob_id, error=error.detail)
        return False

    async def _live_by_rows_of(self, node: str, slot: int, version: Version) -> bool:
        """Take the rows of a copy that gave the bytes up; whether this one lives by them now. Raises: PeerError, StorageError, ArchiveError."""
        told = await self._rows.of(node, slot, version.blob_id)
        if told is None or not told.evicted:
            return False
        blob_id, chunks = version.blob_id, version.chunks
        if version.manifest_id is not None:
            self._facts.take(slot, blob_id, told.chunks, at_ms=self._now_ms())
            chunks, _ = await self._manifest(slot, version)
        pages = [told.chunks]
        missing = _lacking(told, dict.fromkeys(ids_of(version, chunks)))
        while missing:  # an answer holds only so many rows
            told = await self._rows.of(node, slot, blob_id, list(missing)[:CHUNKS_ASKED])
            asked, missing = missing, _lacking(told, missing)
            if told is None or len(missing) == len(asked):
                return False
            pages.append(told.chunks)
        for page in pages[:-1]:
            self._facts.take(slot, blob_id, page, at_ms=self._now_ms())
        if len(pages) > 1:
            # Those of a blob that was given up here are passed over; the last ones, with the mark, would have it live by themselves alone.
            before = dict.fromkeys(row.chunk_id for page in pages[:-1] for row in page)
            if _lacking(await self._store.archived(slot, blob_id), before):
                return False
        await self._store.durable(self._facts.take(slot, blob_id, pages[-1], at_ms=self._now_ms(), evicted=True))
        return await self._store.is_evicted(slot, blob_id)

    async def fetch(
        self, slot: int, version: Version, *, room: Room | None = None, share: tuple[int, int] = (0, 1)
    ) -> int:
        """See :meth:`node.pulls.ArchivedBytes.fetch`.

        Args:
            room: for the chunks on their way; None: one at a time.
            share: (which, of how many): of the chunks only every so many-th, so that several copies bring a version back together.
        """
        course = Course()
        chunks, fetched = version.chunks, 0
        if version.manifest_id is not None:
            chunks, fetched = await self._manifest(slot, version)
        course.chunks = chunks
        which, of = share
        wanted = {chunk.id for chunk in tuple(dict.fromkeys(chunks))[which::of]}
        missing = dict.fromkeys(await self._store.missing_chunks(slot, version, chunks))
        left = [chunk for chunk in reversed(missing) if chunk.id in wanted]
        room = room or Room(1, version.size)

        async def some() -> int:
            got = 0
            while left:
                chunk = left.pop()
                async with room.of(chunk.len):
                    await self._bring(course, slot, version, chunk)
                got += chunk.len
            return got

        tasks = [asyncio.ensure_future(some()) for _ in range(min(room.pieces, len(left)))]
        try:
            return fetched + sum(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _manifest(self, slot: int, version: Version) -> tuple[tuple[ChunkRef, ...], int]:
        """The chunks, and how many bytes of a manifest were fetched for that."""
        assert version.manifest_id is not None
        try:
            return decode_manifest(await self._store.read_manifest(slot, version.blob_id, version.manifest_id)), 0
        except (StorageError, ValueError):
            pass
        try:
            manifest = await self._reads.manifest(slot, version)
        except (ArchiveDamaged, ArchiveMissing) as error:
            raise ChunkMissing(f"the manifest is on no disk, and in the archive: {error.detail}") from error
        if manifest is None:
            raise ChunkMissing(
                f"the manifest of blob {version.blob_id} is on no disk, nor is it known of in the archive"
            )
        await self._store.install_manifest(slot, version, manifest)
        return decode_manifest(manifest), len(manifest)

    async def _bring(self, course: Course, slot: int, version: Version, chunk: ChunkRef) -> None:
        """Put one chunk back. Raises as :meth:`fetch`."""
        cached = await self._reads.cached(chunk)
        if cached is not None:
            await self._store.install_chunk(slot, version, chunk, cached)
            return
        pieces = await self._pieces(course, slot, version, chunk, check_whole=False)
        try:
            await self._store.install_chunk(slot, version, chunk, pieces)
        except DigestMismatch as error:
            # Every piece is what was stored there, and all of them are another chunk. With all checks, so that the copies are told of that place.
            log.warning("not the chunk that it was said to be", slot=slot, chunk_id=chunk.id, error=error.detail)
            pieces = await self._pieces(course, slot, version, chunk, check_whole=True)
            await self._store.install_chunk(slot, version, chunk, pieces)
        self._lent.put(chunk, pieces)

    async def _pieces(
        self, course: Course, slot: int, version: Version, chunk: ChunkRef, *, check_whole: bool
    ) -> list[memoryview]:
        """The bytes of a chunk, from the archive. Raises as :meth:`fetch`."""
        try:
            pieces = await self._reads.pieces(course, slot, version, chunk, check_whole=check_whole)
            if pieces is None:
                raise ChunkMissing(f"chunk {chunk.id} is on no disk, nor is it known of in the archive")
            return pieces
        except (ArchiveDamaged, ArchiveMissing) as error:
            raise ChunkMissing(f"chunk {chunk.id} is on no disk, and in the archive: {error.detail}") from error


def _lacking(told: ArchivedBlob | None, ids: Iterable[str]) -> dict[str, None]:
    """Those of the ids, in their order, of which no verified row is told."""
    verified = {row.chunk_id for row in told.chunks if row.verified} if told is not None else set[str]()
    return {one: None for one in ids if one not in verified}
