"""Bytes that are put back: what a blob lacks, and chunks and manifest files that come one by one."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from amberblob.errors import ChunkCorrupt, ChunkMissing, DigestMismatch, StorageError
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Version, decode_manifest
from chunkstore import archivedb
from chunkstore.blobs.reading import Reading
from chunkstore.blobs.work import Blob, BlobWork
from chunkstore.codec import BodyKept
from chunkstore.content import Content, joined, size_of
from chunkstore.core import DiskCore
from chunkstore.files import BlobFiles, checked_hash, checked_ulid


@dataclass(slots=True)
class _Loose:
    """A chunk that was written, checked and synced, and is to be put in place.

    Attributes:
        is_over: that was tried; ``error`` says why it was in vain.
    """

    chunk_id: str
    path: Path
    is_over: bool = False
    error: Exception | None = None


class Mending:
    """Puts back what is missing of blobs that are referred to."""

    def __init__(self, core: DiskCore, work: BlobWork, reading: Reading, files: BlobFiles) -> None:
        self._core = core
        self._work = work
        self._reading = reading
        self._files = files
        self._loose: dict[Blob, list[_Loose]] = {}

    async def missing_chunks(self, slot: int, version: Version, chunks: tuple[ChunkRef, ...]) -> list[ChunkRef]:
        """See the interface."""
        checked_ulid(version.blob_id)
        if version.inline:
            body = await self._reading.body(slot, version.blob_id)
            return [chunk for chunk in chunks if body is None or len(body) != chunk.len]
        return await self._work.run_reading(lambda: self._files.missing(slot, version.blob_id, chunks))

    async def install_chunk(self, slot: int, version: Version, chunk: ChunkRef, data: Content) -> None:
        """See the interface."""
        blob_id = checked_ulid(version.blob_id)
        self._work.guard(size_of(data))
        if version.inline:
            body = joined(data)
            if len(body) != chunk.len or content_hash(body) != chunk.id:
                raise DigestMismatch(f"the bytes are not chunk {chunk.id} ({chunk.len} bytes); nothing was stored")
            await self._core.durable(self._core.apply(BodyKept(slot, blob_id, body)))
            return
        await self._work.to_the_end(self._install_chunk(slot, version, chunk, data))

    async def _install_chunk(self, slot: int, version: Version, chunk: ChunkRef, data: Content) -> None:
        """Written and synced side by side with others of the blob; those that are ready get their names together."""
        blob = (slot, version.blob_id)
        loose = _Loose(
            chunk.id, await self._work.run_writing(lambda: self._files.write_loose(slot, version.blob_id, chunk, data))
        )
        self._loose.setdefault(blob, []).append(loose)
        async with self._work.alone(blob):
            if not loose.is_over:
                await self._place(slot, version, self._loose.pop(blob))
        if loose.error is not None:
            raise loose.error

    async def _place(self, slot: int, version: Version, loose: list[_Loose]) -> None:
        """Put all of these in place; whether that was done is told with each of them."""
        paths = [one.path for one in loose]
        failed: Exception | None = StorageError("a chunk was not put in place: the disk is being closed; try again")
        try:
            await self._keep_files(slot, version.blob_id)
            await self._work.run_writing(lambda: self._files.place_chunks(slot, version.blob_id, paths))
            await self._mended(slot, version, {one.chunk_id for one in loose})
            failed = None
        except Exception as error:
            failed = error
            with contextlib.suppress(OSError, RuntimeError):
                await self._work.run(lambda: self._files.drop_loose(paths))
        finally:
            for one in loose:
                one.error, one.is_over = failed, True

    async def install_manifest(self, slot: int, version: Version, manifest: bytes) -> None:
        """See the interface."""
        blob_id = checked_ulid(version.blob_id)
        if version.manifest_id is None:
            raise DigestMismatch(f"version {version.version} of blob {blob_id} has no manifest file")
        manifest_id = checked_hash(version.manifest_id)
        self._work.guard(len(manifest))
        async with self._work.alone((slot, blob_id)):
            await self._work.run_writing(lambda: self._files.install_manifest(slot, blob_id, manifest_id, manifest))
            self._work.lacking.pop((slot, blob_id), None)
            await self._mended(slot, version, set())

    async def _keep_files(self, slot: int, blob_id: str) -> None:
        """Bytes of a blob that was evicted are put back: no sweep takes them for leftovers of the eviction."""
        barrier = self._core.overlay.archive_position(slot)
        may_be = self._core.tally(slot).evicted or not self._core.is_applied(barrier)
        if may_be and (slot, blob_id) not in self._work.lacking:
            await self._core.ask(slot, partial(archivedb.settle_files, blob_id=blob_id), barrier=barrier)

    async def _mended(self, slot: int, version: Version, came: set[str]) -> None:
        """Count what is still missing, and take the mark off the folder when nothing is."""
        blob = (slot, version.blob_id)
        left = self._work.lacking.get(blob)
        if left is None:

            def look() -> set[str] | None:
                chunks = self.chunks(slot, version)
                if chunks is None:
                    return None
                return {chunk.id for chunk in self._files.missing(slot, version.blob_id, chunks)}

            left = await self._work.run_reading(look)
            if left is None:
                return
            self._work.lacking[blob] = left
        left -= came
        if left:
            return
        self._work.lacking.pop(blob, None)

        def end() -> bool:
            chunks = self.chunks(slot, version)
            return chunks is not None and self._files.end_mending(slot, version.blob_id, chunks, version.manifest_id)

        await self._work.run_writing(end)

    def chunks(self, slot: int, version: Version) -> tuple[ChunkRef, ...] | None:
        """Every chunk of the version; None when the manifest is not here. Blocks."""
        if version.manifest_id is None:
            return version.chunks
        try:
            return decode_manifest(self._files.read_manifest(slot, version.blob_id, version.manifest_id))
        except (ChunkMissing, ChunkCorrupt):
            return None
