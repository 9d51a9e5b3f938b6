"""The bytes of this node's copies for the archive: from the own disk, verified, or else from another copy; read ahead, in bounded memory."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Callable

from amberblob.clock import Clock
from amberblob.errors import AmberError, ChunkCorrupt, ChunkMissing, DigestMismatch, PeerError
from amberblob.limits import MIB
from amberblob.manifest import Version
from antientropy.driving import Unhurried
from archive.packs import Item
from chunkstore.interface import ReplicaStore
from node.sources import PeerSource
from node.transport.interface import Peers

AHEAD_BYTES = 32 * MIB
AHEAD_MAX = 64
"""What is read before it is asked for, at most; one chunk always is."""

Missed = Callable[[int, str, bool], None]
"""Is told (slot, blob id, damaged) when bytes that should be here are not."""


class Contents:
    """Reads chunks and manifests of versions of which this node has a copy.

    Args:
        others: the other nodes that have a copy of a slot and can be reached.
        missed: what is not here is wanted: whoever mends the copy is told.
    """

    def __init__(
        self, store: ReplicaStore, peers: Peers, clock: Clock, *, others: Callable[[int], list[str]], missed: Missed
    ) -> None:
        self._store = store
        self._source = PeerSource(peers, Unhurried(), clock)
        self._others = others
        self._missed = missed

    async def manifest(self, slot: int, version: Version) -> bytes:
        """The manifest file. Raises: ChunkMissing (no copy that can be reached has it), DiskFailed."""
        assert version.manifest_id is not None
        try:
            return await self._store.read_manifest(slot, version.blob_id, version.manifest_id)
        except (ChunkMissing, ChunkCorrupt) as error:
            self._missed(slot, version.blob_id, isinstance(error, ChunkCorrupt))
            seen: list[str] = [error.detail]
        for node in self._others(slot):
            try:
                return await self._source.fetch_manifest(node, slot, version)
            except (PeerError, ChunkMissing, ChunkCorrupt, DigestMismatch) as error:
                seen.append(f"{node}: {error.detail}")
        raise _nowhere(f"manifest {version.manifest_id}", version, seen)

    async def read(self, item: Item, version: Version) -> bytes:
        """The bytes of an item. Raises: ChunkMissing (no copy that can be reached has them), DiskFailed."""
        if item.index < 0:
            return await self.manifest(item.slot, version)
        try:
            return await self._store.read_chunk(item.slot, item.blob_id, item.chunk)
        except (ChunkMissing, ChunkCorrupt) as error:
            self._missed(item.slot, item.blob_id, isinstance(error, ChunkCorrupt))
            seen: list[str] = [error.detail]
        for node in self._others(item.slot):
            try:
                return await self._source.fetch_chunk(node, item.slot, version, item.chunk)
            except (PeerError, ChunkMissing, ChunkCorrupt, DigestMismatch) as error:
                seen.append(f"{node}: {error.detail}")
        raise _nowhere(f"chunk {item.chunk.id}", version, seen)

    async def ahead(
        self, wanted: AsyncIterable[tuple[Item, Version]]
    ) -> AsyncGenerator[tuple[Item, bytes | AmberError], None]:
        """Read all of these, in order, several at once: each item with its bytes, or why there are none."""
        loop = asyncio.get_running_loop()
        reading: deque[tuple[Item, asyncio.Task[bytes | AmberError]]] = deque()
        size = 0
        try:
            async for item, version in wanted:
                while reading and (size + item.chunk.len > AHEAD_BYTES or len(reading) >= AHEAD_MAX):
                    first, task = reading.popleft()
                    size -= first.chunk.len
                    yield first, await task
                reading.append((item, loop.create_task(self._tried(item, version))))
                size += item.chunk.len
            while reading:
                first, task = reading.popleft()
                yield first, await task
        finally:
            for _, task in reading:
                task.cancel()

    async def _tried(self, item: Item, version: Version) -> bytes | AmberError:
        try:
            return await self.read(item, version)
        except AmberError as error:
            return error


def _nowhere(what: str, version: Version, seen: list[str]) -> ChunkMissing:
    return ChunkMissing(f"no copy that can be reached gave {what} of blob {version.blob_id} ({'; '.join(seen)})")
