"""Fetches the manifest of a blob that is staged by archive rows, and keeps it on the disk: evicted versions keep theirs (rfc/0016)."""

from __future__ import annotations

from amberblob.archives import DAMAGED
from amberblob.errors import ArchiveDamaged, ArchiveMissing, ChunkCorrupt, ChunkMissing
from amberblob.ids import content_hash
from amberblob.manifest import Version, decode_manifest
from archive.reading import read_chunk
from archive.targets.interface import Target
from chunkstore.interface import ReplicaStore


class Manifests:
    """Implements :class:`node.archive.answers.KeepManifest`."""

    def __init__(self, store: ReplicaStore, target: Target) -> None:
        self._store = store
        self._target = target

    async def __call__(self, slot: int, blob_id: str, manifest_id: str) -> None:
        """Durable on return; nothing is fetched if it is here. Raises: ArchiveError, StorageError."""
        try:
            await self._store.read_manifest(slot, blob_id, manifest_id)
            return
        except (ChunkMissing, ChunkCorrupt):
            pass
        known = await self._store.archived(slot, blob_id)
        row = known.find(manifest_id) if known is not None else None
        if row is None or row.state == DAMAGED:
            raise ArchiveMissing(f"Nothing tells where the archive has the manifest of blob {blob_id}.")
        data = b"".join([bytes(piece) async for piece in read_chunk(self._target, row)])
        try:
            chunks = decode_manifest(data)
        except ValueError as error:
            raise ArchiveDamaged(f"{row.target_path}: {error}") from error
        if content_hash(data) != manifest_id:
            raise ArchiveDamaged(f"{row.target_path} has another manifest than that of blob {blob_id}.")
        size = sum(chunk.len for chunk in chunks)
        await self._store.install_manifest(slot, _staged(blob_id, manifest_id, size, len(chunks)), data)


def _staged(blob_id: str, manifest_id: str, size: int, chunk_count: int) -> Version:
    """The version that the blob will be of, as far as it is known."""
    return Version(1, blob_id, size, manifest_id, 0, "", {}, (), manifest_id, chunk_count)
