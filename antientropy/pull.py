"""Pulling a version's bytes onto this disk, verified, from whoever has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from amberblob.errors import AmberError, ChunkCorrupt, ChunkMissing, DigestMismatch, PeerError, StorageError
from amberblob.limits import CHUNK_BYTES_MIN
from amberblob.manifest import ChunkRef, Version, decode_manifest
from chunkstore.interface import ReplicaStore


class Source(Protocol):
    """Fetches from one named node. Both methods raise PeerError, StorageError or DigestMismatch."""

    async def fetch_chunk(self, node: str, slot: int, version: Version, chunk: ChunkRef) -> bytes:
        """The bytes of a chunk, verified."""
        ...

    async def fetch_manifest(self, node: str, slot: int, version: Version) -> bytes:
        """The manifest file of a version that has one, verified."""
        ...


async def inline_body(source: Source, slot: int, version: Version, holders: Sequence[str]) -> bytes:
    """The body of an inline version, from the first holder that has it.

    Raises: the last holder's error, or ChunkMissing without holders.
    """
    return await _chunk(source, slot, version, version.chunks[0], holders)


async def stage_from(store: ReplicaStore, source: Source, slot: int, version: Version, holders: Sequence[str]) -> None:
    """Stage all bytes of a version that nothing on this disk refers to yet, so that its record can be accepted.

    Raises: PeerError, StorageError, DigestMismatch; nothing is left behind then.
    """
    manifest, chunks = await _chunks(source, slot, version, holders)
    chunk_bytes = max(CHUNK_BYTES_MIN, chunks[0].len)
    staging = await store.stage(slot, version.blob_id, chunk_bytes=chunk_bytes, size=version.size, revive=True)
    done = False
    try:
        for chunk in chunks:
            await staging.write(await _chunk(source, slot, version, chunk, holders))
        await staging.finish(chunks, manifest)
        done = True
    finally:
        if not done:
            await staging.abort()


async def complete(store: ReplicaStore, source: Source, slot: int, version: Version, holders: Sequence[str]) -> int:
    """Put back whatever is missing of a version that this disk refers to; returns the bytes fetched.

    Raises: PeerError, StorageError, DigestMismatch; what was already put back stays.
    """
    if version.size == 0:
        return 0
    chunks, fetched = version.chunks, 0
    if version.manifest_id is not None:
        try:
            chunks = decode_manifest(await store.read_manifest(slot, version.blob_id, version.manifest_id))
        except (StorageError, ValueError):
            manifest, chunks = await _chunks(source, slot, version, holders)
            assert manifest is not None
            await store.install_manifest(slot, version, manifest)
            fetched += len(manifest)
    for chunk in await store.missing_chunks(slot, version, chunks):
        data = await _chunk(source, slot, version, chunk, holders)
        await store.install_chunk(slot, version, chunk, data)
        fetched += len(data)
    return fetched


async def _chunks(
    source: Source, slot: int, version: Version, holders: Sequence[str]
) -> tuple[bytes | None, tuple[ChunkRef, ...]]:
    if version.manifest_id is None:
        return None, version.chunks
    failures: list[AmberError] = []
    for node in holders:
        try:
            manifest = await source.fetch_manifest(node, slot, version)
            return manifest, decode_manifest(manifest)
        except (PeerError, StorageError, DigestMismatch) as error:
            failures.append(error)
        except ValueError as error:
            failures.append(DigestMismatch(str(error)))
    raise _telling(failures, "manifest")


async def _chunk(source: Source, slot: int, version: Version, chunk: ChunkRef, holders: Sequence[str]) -> bytes:
    failures: list[AmberError] = []
    for node in holders:
        try:
            return await source.fetch_chunk(node, slot, version, chunk)
        except (PeerError, StorageError, DigestMismatch) as error:
            failures.append(error)
    raise _telling(failures, "chunk")


def _telling(failures: list[AmberError], what: str) -> AmberError:
    """Why it could not be had: ChunkMissing or ChunkCorrupt only if nobody is left who may have it."""
    hopeful = [error for error in failures if not isinstance(error, ChunkMissing | ChunkCorrupt)]
    return (hopeful or failures or [ChunkMissing(f"no holder of the {what} is known")])[-1]
