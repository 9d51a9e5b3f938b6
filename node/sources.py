"""Bytes from other nodes for mending this node's copies: verified, at the node's pace, from whoever gives them soonest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from amberblob.clock import Clock
from amberblob.errors import AmberError, ChunkCorrupt, ChunkMissing, DigestMismatch
from amberblob.ids import content_hash
from amberblob.limits import KIB
from amberblob.manifest import ChunkRef, Version
from amberblob.wire import BytesRequest, ReadBlobs, ReadChunk, ReadManifest, unpack_parts
from antientropy.driving import Pace
from antientropy.holders import Holders
from node.objects.bytes import verify
from node.transport.interface import Peers

PATIENCE_S = 30.0
"""How long a holder may take to begin with its answer: one that is busy puts repair off (:mod:`antientropy.pace`)."""

BLOB_BYTES = 16 * KIB
"""What each of many blobs costs beside its bytes, as so many bytes."""

HASH_IN_THREAD_BYTES = 256 * KIB


class PeerSource:
    """See :class:`antientropy.pull.Source`.

    Args:
        pace: each fetch of bytes waits for its turn.
    """

    def __init__(self, peers: Peers, pace: Pace, clock: Clock) -> None:
        self._peers = peers
        self._pace = pace
        self._holders = Holders(clock)

    def order(self, nodes: Sequence[str], size_bytes: int, likely: Sequence[str]) -> list[str]:
        return self._holders.order(nodes, size_bytes, reachable=self._peers.reachable, likely=likely)

    def reachable(self, node: str) -> bool:
        return self._peers.reachable(node)

    async def fetch_chunk(self, node: str, slot: int, version: Version, chunk: ChunkRef) -> bytes:
        request = ReadChunk(slot=slot, blob_id=version.blob_id, chunk=chunk, repair=True)
        with self._asking(node, chunk.len):
            data = await self._fetch(node, request, chunk.len)
            await verify(data, chunk)
        return data

    async def fetch_pieces(self, node: str, slot: int, version: Version, chunk: ChunkRef) -> list[bytes]:
        request = ReadChunk(slot=slot, blob_id=version.blob_id, chunk=chunk, repair=True)
        with self._asking(node, chunk.len):
            return await self._pieces(node, request, chunk.len)

    def distrust(self, node: str) -> None:
        self._holders.failed(node)

    async def fetch_manifest(self, node: str, slot: int, version: Version) -> bytes:
        assert version.manifest_id is not None
        request = ReadManifest(slot=slot, blob_id=version.blob_id, manifest_id=version.manifest_id)
        with self._asking(node, 0):
            data = await self._fetch(node, request, 0)
            if content_hash(data) != version.manifest_id:
                raise DigestMismatch(f"{len(data)} bytes came that are not manifest {version.manifest_id}")
        return data

    async def fetch_blobs(self, node: str, slot: int, versions: Sequence[Version]) -> list[bytes | AmberError]:
        size = sum(version.size for version in versions)
        request = ReadBlobs(slot=slot, blobs=tuple((version.blob_id, version.chunks[0]) for version in versions))
        with self._asking(node, size):
            data = await self._fetch(node, request, size + BLOB_BYTES * len(versions))
            if len(data) < HASH_IN_THREAD_BYTES:
                parts = _checked(data, versions, node)
            else:
                loop = asyncio.get_running_loop()
                parts = await loop.run_in_executor(None, _checked, data, versions, node)
        if any(isinstance(part, DigestMismatch) for part in parts):
            self._holders.failed(node)
        return parts

    @contextmanager
    def _asking(self, node: str, size_bytes: int) -> Iterator[None]:
        """Learn from it how good a holder the node is. That it lacks something does not make it a bad one."""
        began_s = self._holders.began(node, size_bytes)
        try:
            yield
            self._holders.gave(node, size_bytes, began_s)
        except (ChunkMissing, ChunkCorrupt):
            raise
        except Exception:
            self._holders.failed(node)
            raise
        finally:
            self._holders.ended(node, size_bytes)

    async def _fetch(self, node: str, request: BytesRequest, size_bytes: int) -> bytes:
        pieces = await self._pieces(node, request, size_bytes)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def _pieces(self, node: str, request: BytesRequest, size_bytes: int) -> list[bytes]:
        await self._pace.turn(size_bytes)
        return [piece async for piece in self._peers.fetch(node, request, timeout_s=PATIENCE_S)]


def _checked(data: bytes, versions: Sequence[Version], node: str) -> list[bytes | AmberError]:
    """The parts of an answer, or what is wrong with them. Raises DigestMismatch: it is none."""
    try:
        parts = unpack_parts(data, len(versions))
    except ValueError as error:
        raise DigestMismatch(str(error)) from None
    return [_checked_part(part, version, node) for version, part in zip(versions, parts, strict=True)]


def _checked_part(part: bytes | None, version: Version, node: str) -> bytes | AmberError:
    chunk = version.chunks[0]
    if part is None:
        return ChunkMissing(f"{node} lacks chunk {chunk.id} of blob {version.blob_id}")
    if len(part) != chunk.len or content_hash(part) != chunk.id:
        return DigestMismatch(f"{node} gave {len(part)} bytes that are not chunk {chunk.id}")
    return part
