"""Bytes from and to other nodes: a blob that is staged here, chunks and manifests that are read here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from amberblob.errors import BadRequest, ChunkCorrupt, ChunkMissing, DigestMismatch, DiskFailed, DiskFull
from amberblob.ids import content_hash, valid_hash, valid_ulid
from amberblob.limits import CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, READ_BLOBS_BYTES_MAX, READ_BLOBS_MAX
from amberblob.manifest import ChunkRef, decode_manifest
from amberblob.wire import ReadBlobs, ReadChunk, ReadManifest, Reply, Request, StagedReply, StageOpen, pack_parts
from antientropy.driving import Pace, Unhurried
from chunkstore.interface import ReplicaStore
from node.pulls import PullRequests
from node.replica.copies import Copies
from node.transport.interface import IncomingStage

log = structlog.get_logger(__name__)


class Streams:
    """Takes bytes in and gives them out.

    Attributes:
        pace: what others read for repair waits for this.
        on_read: told of every blob of which a client of another node reads a chunk here; None: nobody wants to know.
        lent: chunks that were put on this disk a moment ago and are in memory, for other copies.
    """

    def __init__(self, store: ReplicaStore, copies: Copies, pulls: PullRequests) -> None:
        self.pace: Pace = Unhurried()
        self.on_read: Callable[[str], None] | None = None
        self.lent: Callable[[ChunkRef], bytes | None] = lambda chunk: None
        self._store = store
        self._copies = copies
        self._pulls = pulls

    async def stage(self, message: StageOpen, stream: IncomingStage) -> Reply:
        """Take in a blob; the answer is StagedReply or Refused."""
        slot = message.slot
        if not valid_ulid(message.blob_id) or not CHUNK_BYTES_MIN <= message.chunk_bytes <= CHUNK_BYTES_MAX:
            raise BadRequest("a blob id or chunk size that cannot be")
        if (refused := await self._copies.stage_refused(slot, message.epoch)) is not None:
            return refused
        try:
            staging = await self._store.stage(slot, message.blob_id, chunk_bytes=message.chunk_bytes, size=message.size)
        except DiskFull as error:
            return self._copies.refused(slot, "disk-full", error.detail)
        except DiskFailed as error:
            return self._copies.refused(slot, "disk-failed", error.detail)
        done = False
        try:
            async for frame in stream.frames():
                self._copies.served += 1
                await staging.write(frame)
            closing, manifest = stream.closing()
            chunks = closing.chunks
            if closing.manifest_id is not None:
                if manifest is None or content_hash(manifest) != closing.manifest_id:
                    raise DigestMismatch("the manifest does not have the hash that it was announced with")
                chunks = decode_manifest(manifest)
            await staging.finish(chunks, manifest)
            done = True
            log.info("blob staged", slot=slot, blob_id=message.blob_id, chunks=len(chunks))
        except DiskFull as error:
            return self._copies.refused(slot, "disk-full", error.detail)
        except DiskFailed as error:
            return self._copies.refused(slot, "disk-failed", error.detail)
        finally:
            if not done:
                await staging.abort()
        return StagedReply(incarnation=self._store.slot_state(slot).incarnation)

    async def read(self, request: Request) -> bytes:
        """The verified bytes of a chunk or a manifest file, or of many blobs."""
        match request:
            case ReadChunk():
                if not valid_ulid(request.blob_id) or not valid_hash(request.chunk.id):
                    raise BadRequest("not a blob or chunk id")
                if request.repair:
                    await self.pace.turn(request.chunk.len)
                    if (lent := self.lent(request.chunk)) is not None:
                        return lent
                else:
                    self._copies.served += 1
                    if self.on_read is not None:
                        self.on_read(request.blob_id)
                return await self._read_chunk(request.slot, request.blob_id, request.chunk)
            case ReadManifest():
                if not valid_ulid(request.blob_id) or not valid_hash(request.manifest_id):
                    raise BadRequest("not a blob or manifest id")
                with self._noticing(request.slot, request.blob_id):
                    return await self._store.read_manifest(request.slot, request.blob_id, request.manifest_id)
            case ReadBlobs():
                return await self._read_blobs(request)
            case _:
                raise BadRequest(f"{type(request).__name__} does not ask for bytes")

    async def _read_chunk(self, slot: int, blob_id: str, chunk: ChunkRef) -> bytes:
        with self._noticing(slot, blob_id):
            return await self._store.read_chunk(slot, blob_id, chunk)

    async def _read_blobs(self, request: ReadBlobs) -> bytes:
        size = sum(chunk.len for _, chunk in request.blobs)
        if len(request.blobs) > READ_BLOBS_MAX or size > READ_BLOBS_BYTES_MAX:
            raise BadRequest(f"{len(request.blobs)} blobs of {size} bytes are too many at once")
        if not all(valid_ulid(blob_id) and valid_hash(chunk.id) for blob_id, chunk in request.blobs):
            raise BadRequest("not a blob or chunk id")
        await self.pace.turn(size)
        parts: list[bytes | None] = []
        for blob_id, chunk in request.blobs:
            try:
                parts.append(await self._read_chunk(request.slot, blob_id, chunk))
            except (ChunkMissing, ChunkCorrupt):
                parts.append(None)
        return pack_parts(parts)

    @contextmanager
    def _noticing(self, slot: int, blob_id: str) -> Iterator[None]:
        """Somebody counts on this copy: what it lacks is mended now, not when scrub comes by."""
        try:
            yield
        except (ChunkMissing, ChunkCorrupt) as error:
            self._pulls.missed(slot, blob_id, damaged=isinstance(error, ChunkCorrupt))
            raise
