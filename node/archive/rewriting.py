"""Packs that are mostly dead are written anew: what is alive of them goes into a new pack (rfc/0016).

Each node does it for the slots that it looks after. The bytes come from its disk, or from the old pack. Rows of the new pack are told only once
it was read back: copies that live by the old one must not be left with one that nobody has looked at. The old pack goes
when no row names it any more, by a later ``gc``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import structlog

from amberblob.archives import ArchivedChunk, ArchiveLine
from amberblob.errors import AmberError, ArchiveError, ChunkCorrupt, ChunkMissing, StorageError
from amberblob.manifest import ChunkRef, Version, decode_manifest
from archive.packs import Item
from archive.reading import read_chunk
from archive.targets.interface import Target
from archive.upload import Uploader
from archive.verifying import Verdict, verify_object
from node.archive.ground import Ground
from node.archive.jobs import JobRequest, Progress

log = structlog.get_logger(__name__)

ROWS_PAGE = 1000


class Rewriter:
    """Rewrites packs of one job."""

    def __init__(self, ground: Ground, request: JobRequest, progress: Progress) -> None:
        self._ground = ground
        self._target: Target = ground.means.for_job(request)
        self._progress = progress
        section = ground.section
        self._uploader = Uploader(
            self._target,
            now_ms=ground.rows_ms,
            mint=ground.mint.mint,
            pack_size=int(section.pack_size),
            lone_size=int(section.lone_size),
            parallel=section.parallel,
        )

    async def rewrite(self, names: Sequence[str]) -> None:
        """Write anew what rows of the led slots name of these. What cannot be is a problem, and stays where it is. Raises: DiskFailed."""
        await self._uploader.run(self._alive(names), self._stored, self._failed)

    async def _alive(self, names: Sequence[str]) -> AsyncIterator[tuple[Item, bytes]]:
        for name in names:
            self._progress.say(f"rewriting {name}")
            for slot in self._ground.led_slots():
                async for line in rows_of(self._ground, slot, name):
                    if line.chunk.verified or line.chunk.state == 0:
                        pair = await self._pair(slot, line)
                        if pair is not None:
                            self._ground.facts.give_way(line.chunk)
                            yield pair

    async def _pair(self, slot: int, line: ArchiveLine) -> tuple[Item, bytes] | None:
        """None: it cannot be had, or nothing refers to it any more."""
        referred = await self._ground.store.referred(slot, line.blob_id)
        if referred is None:
            return None
        path, version = referred
        try:
            data = await self._bytes(slot, line)
        except (ArchiveError, StorageError) as error:
            self._progress.problem(f"{path} version {version.version}: not written anew: {error.detail}")
            return None
        index = await self._index(slot, version, line.chunk.chunk_id)
        chunk = ChunkRef(id=line.chunk.chunk_id, len=len(data))
        return Item(
            chunk=chunk, slot=slot, blob_id=line.blob_id, path=path, version=version.version, index=index
        ), data  # fmt: skip

    async def _bytes(self, slot: int, line: ArchiveLine) -> bytes:
        row = line.chunk
        try:
            return await self._ground.store.read_chunk(slot, line.blob_id, ChunkRef(id=row.chunk_id, len=row.length))
        except (ChunkMissing, ChunkCorrupt):
            return b"".join([bytes(piece) async for piece in read_chunk(self._target, row)])

    async def _index(self, slot: int, version: Version, chunk_id: str) -> int:
        """Its place in the version, for the pack's own index; -1: its manifest."""
        if chunk_id == version.manifest_id:
            return -1
        chunks = version.chunks
        if version.manifest_id is not None:
            try:
                store = self._ground.store
                chunks = decode_manifest(await store.read_manifest(slot, version.blob_id, version.manifest_id))
            except (StorageError, ValueError):
                return 0
        return next((at for at, chunk in enumerate(chunks) if chunk.id == chunk_id), 0)

    async def _stored(self, told: list[tuple[Item, ArchivedChunk]]) -> None:
        """A new object is there: read it back, and then tell its rows."""
        rows = list(dict.fromkeys(row for _, row in told))
        verdicts: dict[ArchivedChunk, Verdict] = {}
        for name in {row.target_path for row in rows}:
            of_name = [row for row in rows if row.target_path == name]
            verdicts.update((verdict.row, verdict) for verdict in await verify_object(self._target, name, of_name))
        ground, position = self._ground, 0
        for item, row in told:
            verdict = verdicts[row]
            right = verdict.told(ground.now_ms())
            if right is None or not right.verified:
                why = verdict.error.detail if verdict.error is not None else "it could not be looked at"
                self._progress.problem(f"{item.path} version {item.version}: written anew, not read back: {why}")
                continue
            taken = ground.facts.take(item.slot, item.blob_id, (right,), at_ms=ground.now_ms())
            position = max(position, taken)
            self._progress.add(rewritten_chunks=1)
        await ground.store.durable(position)
        frames = {row.location: row for row in rows}
        self._progress.add(
            rewritten_bytes=sum(row.end - row.start for row in frames.values()),
            archive_objects=len({row.target_path for row in rows}),
        )

    async def _failed(self, items: list[Item], error: AmberError) -> None:
        first = items[0]
        self._progress.problem(f"{first.path} version {first.version}: not written anew: {error.detail}")
        log.warning("not written anew", path=first.path, chunks=len(items), code=error.code, error=error.detail)


async def rows_of(ground: Ground, slot: int, name: str) -> AsyncIterator[ArchiveLine]:
    """The rows of a slot that name an object."""
    after = 0
    while True:
        lines = await ground.store.archive_rows_of(slot, name, after, ROWS_PAGE)
        if not lines:
            return
        for line in lines:
            yield line
        after = lines[-1].seq
