"""Whether the archive has all bytes of a version that is to be recovered, and where (rfc/0016)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import msgspec
import structlog

from amberblob.archives import DAMAGED, ArchivedChunk
from amberblob.errors import ArchiveDamaged, ArchiveError, ArchiveMissing, ArchiveUnavailable
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Version, decode_manifest
from archive.reading import read_chunk
from archive.recent import RecentChunks
from archive.recovering import lacking
from archive.targets.interface import Target
from archive.verifying import verify_object

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Held:
    """Verified rows of all chunks of a version, each once, its manifest's last."""

    chunks: tuple[ArchivedChunk, ...]


class Holding:
    """Looks for the bytes of versions.

    Args:
        recent: where chunks are that no exported row tells of.
        now_ms: the hybrid clock: when what is read back here was verified.
    """

    def __init__(self, target: Target, recent: RecentChunks, now_ms: Callable[[], int]) -> None:
        self._target = target
        self._recent = recent
        self._now_ms = now_ms

    async def held(self, version: Version, rows: Mapping[str, ArchivedChunk]) -> Held | None:
        """The rows by which a copy may live; None: the archive does not have all of its bytes.

        Rows that nobody has verified are verified now: there is nothing else any more that a copy could have.

        Raises: ArchiveUnavailable, ArchiveDenied: it is not known.
        """
        if version.size == 0:
            return Held(())
        known = dict(rows)
        chunks: Sequence[ChunkRef] = version.chunks
        manifest: tuple[ChunkRef, ...] = ()
        if version.manifest_id is not None:
            row = known.get(version.manifest_id)
            if row is None or row.state == DAMAGED:
                row = await self._recent.find(ChunkRef(version.manifest_id, 0))
            if row is None:
                return None
            known[version.manifest_id] = row
            manifest = (ChunkRef(row.chunk_id, row.length),)
            listed = await self._manifest(row)
            if listed is None:
                return None
            chunks = listed
        for chunk in lacking(chunks, known):
            found = await self._recent.find(chunk)
            if found is None:
                return None
            known[chunk.id] = found
        needed = {chunk.id: known[chunk.id] for chunk in (*chunks, *manifest)}
        return await self._verified(needed)

    async def _manifest(self, row: ArchivedChunk) -> tuple[ChunkRef, ...] | None:
        try:
            data = b"".join([bytes(piece) async for piece in read_chunk(self._target, row)])
            if content_hash(data) != row.chunk_id:
                raise ArchiveDamaged(f"{row.target_path} has another manifest than was stored.")
            return decode_manifest(data)
        except (ArchiveMissing, ArchiveDamaged, ValueError) as error:
            log.warning("a manifest in the archive is lost", object=row.target_path, error=str(error))
            return None

    async def _verified(self, needed: Mapping[str, ArchivedChunk]) -> Held | None:
        done = {chunk_id: row for chunk_id, row in needed.items() if row.verified}
        unseen = sorted((row for row in needed.values() if not row.verified), key=lambda row: row.target_path)
        for name, group in groupby(unseen, key=lambda row: row.target_path):
            for verdict in await verify_object(self._target, name, list(group)):
                if verdict.outcome == "unknown":
                    error = verdict.error
                    raise (
                        error if isinstance(error, ArchiveError) else ArchiveUnavailable(f"{name} cannot be read now.")
                    )
                if verdict.outcome != "verified":
                    return None
                row = verdict.row
                done[row.chunk_id] = msgspec.structs.replace(row, state=max(1, self._now_ms()))
        return Held(tuple(done[chunk_id] for chunk_id in needed))
