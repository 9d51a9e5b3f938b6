"""Pulling a version's bytes onto this disk, verified, from whoever has them.

A holder that fails, or gives what is not asked for, is passed over. That nobody has some bytes (ChunkMissing, ChunkCorrupt) is
only said when every holder answered that it lacks them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from amberblob.errors import AmberError, ChunkCorrupt, ChunkMissing, DigestMismatch, PeerError, StorageError
from amberblob.limits import CHUNK_BYTES_MIN, MIB
from amberblob.manifest import ChunkRef, Version, decode_manifest
from antientropy.room import Room
from chunkstore.interface import ReplicaStore

BYTES_AT_ONCE = 64 * MIB
"""How much a node that mends its copies holds in memory of what is on its way, as long as no chunk is larger."""


class Source(Protocol):
    """Fetches from one named node. Every fetch raises PeerError, StorageError or DigestMismatch."""

    def order(self, nodes: Sequence[str], size_bytes: int, likely: Sequence[str]) -> Sequence[str]:
        """All of the nodes, the best to ask for so many bytes first; those that are ``likely`` to have them if possible."""
        ...

    def reachable(self, node: str) -> bool:
        """Whether there is a connection. A hint."""
        ...

    async def fetch_chunk(self, node: str, slot: int, version: Version, chunk: ChunkRef) -> bytes:
        """The bytes of a chunk, verified."""
        ...

    async def fetch_pieces(self, node: str, slot: int, version: Version, chunk: ChunkRef) -> Sequence[bytes]:
        """The bytes of a chunk in the pieces in which they came, not verified: for the store, which does that (``install_chunk``)."""
        ...

    def distrust(self, node: str) -> None:
        """What the node gave was not what was asked for: others are asked first for a while."""
        ...

    async def fetch_manifest(self, node: str, slot: int, version: Version) -> bytes:
        """The manifest file of a version that has one, verified."""
        ...

    async def fetch_blobs(self, node: str, slot: int, versions: Sequence[Version]) -> list[bytes | AmberError]:
        """The bytes of versions of one chunk each, verified, in the same order, or why there are none (ChunkMissing, DigestMismatch).

        Together no more than :data:`amberblob.limits.READ_BLOBS_BYTES_MAX`, nor than READ_BLOBS_MAX of them.
        """
        ...


def lacks(error: AmberError | None) -> bool:
    """Whether this says that the bytes are not there, and nothing else."""
    return isinstance(error, ChunkMissing | ChunkCorrupt)


def _telling(errors: Iterable[AmberError], what: str) -> AmberError:
    """Of the holders' errors the one to tell: that they all lack the bytes only if they all said so."""
    found = list(errors)
    for error in found:
        if not lacks(error):
            return error
    return found[-1] if found else ChunkMissing(f"no holder of {what} is known")


async def inline_body(source: Source, slot: int, version: Version, holders: Sequence[str]) -> bytes:
    """The body of an inline version, from the first holder that has it.

    Raises: a holder's error, or ChunkMissing without holders.
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


def _nobody(size_bytes: int) -> None:
    """Nobody wants to know."""


async def complete(
    store: ReplicaStore,
    source: Source,
    slot: int,
    version: Version,
    holders: Sequence[str],
    room: Room | None = None,
    came: Callable[[int], None] = _nobody,
) -> int:
    """Put back whatever is missing of a version that this disk refers to; returns the bytes fetched.

    Args:
        room: how many chunks may be on their way at once, and how much of them; None: one after the other.
        came: told the size of each chunk that was put back, also when in the end not all were.

    Raises: PeerError, StorageError, DigestMismatch; what was already put back stays. That a chunk is had by nobody does
        not keep the others from being put back.
    """
    if version.size == 0:
        return 0
    room = room or Room(1, BYTES_AT_ONCE)
    chunks, fetched = version.chunks, 0
    if version.manifest_id is not None:
        try:
            chunks = decode_manifest(await store.read_manifest(slot, version.blob_id, version.manifest_id))
        except (StorageError, ValueError):
            manifest, chunks = await manifest_from(store, source, slot, version, holders)
            fetched += len(manifest)
    missing = list(dict.fromkeys(await store.missing_chunks(slot, version, chunks)))
    return fetched + await _Chunks(store, source, slot, version, holders, room, came).put_back(missing)


async def manifest_from(
    store: ReplicaStore, source: Source, slot: int, version: Version, holders: Sequence[str]
) -> tuple[bytes, tuple[ChunkRef, ...]]:
    """Put back the manifest of a version that has one; the file and its chunks. Raises as :func:`complete`."""
    manifest, chunks = await _chunks(source, slot, version, holders)
    assert manifest is not None
    await store.install_manifest(slot, version, manifest)
    return manifest, chunks


class _Chunks:
    """The missing chunks of one version, several at a time."""

    def __init__(
        self, store: ReplicaStore, source: Source, slot: int, version: Version, holders: Sequence[str], room: Room,
        came: Callable[[int], None],
    ) -> None:  # fmt: skip
        self._came = came
        self._store = store
        self._source = source
        self._slot = slot
        self._version = version
        self._holders = holders
        self._room = room
        self._fetched = 0
        self._nowhere: AmberError | None = None

    async def put_back(self, missing: Sequence[ChunkRef]) -> int:
        """How many bytes were fetched. Raises as :func:`complete`, when nothing is under way any more."""
        left = list(reversed(missing))
        error: AmberError | None = None

        async def some() -> None:
            nonlocal error
            while left and error is None:
                try:
                    await self._one(left.pop())
                except AmberError as failed:
                    error = error or failed

        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(some()) for _ in range(min(self._room.pieces, len(left)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        why: AmberError | None = error or self._nowhere
        if why is not None:
            raise why
        return self._fetched

    async def _one(self, chunk: ChunkRef) -> None:
        """Put one back, or learn that nobody has it. Raises: a holder's error, or the disk's."""
        source, slot, version = self._source, self._slot, self._version
        errors: list[AmberError] = []
        async with self._room.of(chunk.len):
            for node in source.order(self._holders, chunk.len, ()):
                try:
                    pieces = await source.fetch_pieces(node, slot, version, chunk)
                except (PeerError, StorageError, DigestMismatch) as error:
                    errors.append(error)
                    continue
                try:
                    await self._store.install_chunk(slot, version, chunk, pieces)
                except DigestMismatch as error:
                    source.distrust(node)
                    errors.append(DigestMismatch(f"{node}: {error.detail}"))
                    continue
                self._fetched += chunk.len
                self._came(chunk.len)
                return
        telling = _telling(errors, "the chunk")
        if not lacks(telling):
            raise telling
        self._nowhere = telling


async def _chunks(
    source: Source, slot: int, version: Version, holders: Sequence[str]
) -> tuple[bytes | None, tuple[ChunkRef, ...]]:
    if version.manifest_id is None:
        return None, version.chunks
    errors: list[AmberError] = []
    for node in source.order(holders, 0, holders[:1]):
        try:
            manifest = await source.fetch_manifest(node, slot, version)
            return manifest, decode_manifest(manifest)
        except (PeerError, StorageError, DigestMismatch) as error:
            errors.append(error)
        except ValueError as error:
            errors.append(DigestMismatch(str(error)))
    raise _telling(errors, "the manifest")


async def _chunk(source: Source, slot: int, version: Version, chunk: ChunkRef, holders: Sequence[str]) -> bytes:
    errors: list[AmberError] = []
    for node in source.order(holders, chunk.len, ()):
        try:
            return await source.fetch_chunk(node, slot, version, chunk)
        except (PeerError, StorageError, DigestMismatch) as error:
            errors.append(error)
    raise _telling(errors, "the chunk")


# ---- many small ones


async def complete_small(
    store: ReplicaStore, source: Source, slot: int, versions: Sequence[Version], holders: Sequence[str]
) -> tuple[int, dict[str, AmberError]]:
    """Put back versions of one chunk each: one question for all of them, and one sync.

    Returns how many bytes were fetched, and by blob id why some were not put back. Raises: nothing of those.
    """
    # Inline bodies are not looked for: a row that came without its body had none a moment ago.
    wanted = await store.not_whole(slot, versions)
    errors: dict[str, list[AmberError]] = {version.blob_id: [] for version in wanted}
    got: list[tuple[Version, bytes]] = []
    for node in source.order(holders, sum(version.size for version in wanted), ()):
        if not wanted:
            break
        try:
            parts = await source.fetch_blobs(node, slot, wanted)
        except (PeerError, StorageError, DigestMismatch) as error:
            for version in wanted:
                errors[version.blob_id].append(error)
            continue
        left: list[Version] = []
        for version, part in zip(wanted, parts, strict=True):
            if isinstance(part, AmberError):
                left.append(version)
                errors[version.blob_id].append(part)
            else:
                got.append((version, part))
        wanted = left
    failed = {version.blob_id: _telling(errors[version.blob_id], f"blob {version.blob_id}") for version in wanted}
    failed.update(await _install(store, slot, got))
    return sum(len(data) for _, data in got), failed


async def _install(store: ReplicaStore, slot: int, got: Sequence[tuple[Version, bytes]]) -> dict[str, AmberError]:
    """Put back what came; by blob id why some could not be."""
    failed: dict[str, AmberError] = {}
    bodies = [(version, data) for version, data in got if version.inline]
    blobs = [(version, data) for version, data in got if not version.inline]
    for given, install in ((bodies, store.install_bodies), (blobs, store.install_blobs)):
        if not given:
            continue
        try:
            await install(slot, given)
        except (StorageError, DigestMismatch) as error:
            failed.update((version.blob_id, error) for version, _ in given)
    return failed
