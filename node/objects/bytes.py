"""The bytes of a version, chunk by chunk, verified, from the nearest replica that has them.

Every chunk is checked against its hash where it is read and, if it came from a peer, again here. One chunk is
fetched ahead of the one that is being sent. How many chunks all readers together hold in memory is bounded, softly
and hard: a reader waits for a place, but clients that pause must not stop the others, so after a moment it takes one
of the reserve. Looking ahead takes a place only if one is free, so readers never wait for each other in a circle.

A chunk of this node is read into memory that is used again for another one: fresh memory costs more than the reading
and the hashing together. What was verified is what is sent: the same bytes of memory, not the same place of a file.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

import structlog

from amberblob.errors import (
    AmberError,
    ArchiveError,
    ChunkCorrupt,
    ChunkMissing,
    ClusterError,
    DigestMismatch,
    PeerError,
    QuorumUnavailable,
    StorageError,
)
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Version, decode_manifest
from amberblob.wire import ReadChunk, ReadManifest
from chunkstore.interface import ReplicaStore
from chunkstore.staging import retrieve
from node.coordinator import Coordinator
from node.objects.cold import Arriving, Cold, Course
from node.objects.memory import Buffers, Places
from node.pulls import PullRequests
from node.routing import Routing
from node.service import ObjectView

log = structlog.get_logger(__name__)

CHUNKS_IN_MEMORY = 12
CHUNKS_IN_RESERVE = 52
FRAME_TIMEOUT_S = 5.0
HASH_IN_THREAD_BYTES = 256 * 1024
BUFFERS_KEPT = 3
"""Buffers that stay when nobody reads: as many as one reader uses, and one."""
AHEAD = 1
"""Chunks that a reader fetches ahead of the one that is being sent."""


@dataclass(slots=True)
class Fetched:
    """A chunk on its way to a client, and what it takes until it is sent."""

    place: asyncio.Semaphore
    buffer: memoryview
    data: asyncio.Task[bytes | memoryview | Arriving]


class Reading:
    """Reads versions for clients.

    Attributes:
        served: grows with every piece that is read.
        cold: chunks that no copy has on its disk; None: there is no archive.
        on_read: told of every blob that a client reads here; None: nobody wants to know.
    """

    def __init__(self, coordinator: Coordinator, routing: Routing, store: ReplicaStore, pulls: PullRequests) -> None:
        self._coordinator = coordinator
        self._routing = routing
        self._store = store
        self._pulls = pulls
        self.served = 0
        self.cold: Cold | None = None
        self.on_read: Callable[[str], None] | None = None
        self._places = Places(CHUNKS_IN_MEMORY, CHUNKS_IN_RESERVE)
        self._buffers = Buffers(BUFFERS_KEPT)

    async def read(self, view: ObjectView, offset: int, length: int) -> AsyncIterator[bytes | memoryview]:
        """See :meth:`node.service.ObjectService.read`."""
        if length <= 0:
            return
        version, slot = view.version, self._routing.slot_of(view.path)
        if self.on_read is not None:
            self.on_read(version.blob_id)
        if version.inline:
            body = await self.chunk(slot, version, version.chunks[0])
            yield memoryview(body)[offset : offset + length]
            return
        end = offset + length
        parts: list[tuple[ChunkRef, int, int]] = []
        start = 0
        course = Course()
        for chunk in await self.chunks(slot, version):
            low, high = max(offset - start, 0), min(end - start, chunk.len)
            if low < high:
                parts.append((chunk, low, high))
            start += chunk.len
        course.chunks = [chunk for chunk, _, _ in parts]
        fetched: deque[Fetched] = deque()

        def fetch(place: asyncio.Semaphore, part: tuple[ChunkRef, int, int]) -> None:
            chunk, low, high = part
            try:
                buffer = self._buffers.take(max(chunk.len, self._routing.table().cluster.chunk_bytes))
            except BaseException:
                place.release()
                raise
            work = self._chunk(slot, version, chunk, course, low, high, buffer)
            fetched.append(Fetched(place, buffer, asyncio.get_running_loop().create_task(work)))
            fetched[-1].data.add_done_callback(retrieve)

        try:
            for index, (_, low, high) in enumerate(parts):
                if not fetched:
                    fetch(await self._places.take(), parts[index])
                for following in parts[index + len(fetched) : index + 1 + AHEAD]:
                    if (free := await self._places.take_free()) is None:
                        break
                    fetch(free, following)
                data = await fetched[0].data
                if isinstance(data, bytes | memoryview):
                    yield memoryview(data)[low:high]
                else:
                    async for piece in data.pieces():
                        yield piece
                # Who asks for more has done with the last one.
                done = fetched.popleft()
                done.place.release()
                self._buffers.give(done.buffer)
        finally:
            for left in fetched:
                left.place.release()
                if left.data.done() and not left.data.cancelled() and left.data.exception() is None:
                    self._buffers.give(left.buffer)
                    if not isinstance(unread := left.data.result(), bytes | memoryview):
                        await unread.close()
                else:
                    # Its buffer is forgotten: a thread may still be reading into it, also when this reader was cancelled,
                    # and the fetching with it.
                    left.data.cancel()

    def peek(self, view: ObjectView) -> bytes | None:
        """See :meth:`node.service.ObjectService.peek`."""
        version = view.version
        self.served += 1
        if not version.inline:
            return None
        if self.on_read is not None:
            self.on_read(version.blob_id)
        return self._store.peek_body(self._routing.slot_of(view.path), version.blob_id)

    async def chunks(self, slot: int, version: Version) -> tuple[ChunkRef, ...]:
        """Every chunk of a version in order. Raises: ClusterError when no replica has the manifest."""
        if version.manifest_id is None:
            return version.chunks
        manifest_id = version.manifest_id
        failures: dict[str, str] = {}
        for node in self._candidates(slot):
            try:
                if node == self._coordinator.node:
                    data = await self._store.read_manifest(slot, version.blob_id, manifest_id)
                else:
                    data = await self.fetch_manifest(node, slot, version)
                chunks = decode_manifest(data)
            except (PeerError, StorageError, DigestMismatch, ValueError) as error:
                failures[node] = str(error)
                self._notice(node, slot, version, error)
                continue
            if self._coordinator.node in failures:
                self._mend(slot, version, node)
            return chunks
        if self.cold is not None:
            try:
                archived = await self.cold.manifest(slot, version)
            except ArchiveError as error:
                raise telling(error, failures) from error
            if archived is not None:
                return decode_manifest(archived)
        raise bytes_unavailable("the manifest", failures)

    async def chunk(
        self,
        slot: int,
        version: Version,
        chunk: ChunkRef,
        into: memoryview | None = None,
        holders: Collection[str] = (),
    ) -> bytes | memoryview:
        """One chunk, verified, perhaps as a view of ``into``; ``holders`` are asked first.

        Raises: ClusterError when no replica that answers has it, nor the archive.
        """
        found = await self._chunk(slot, version, chunk, Course(), 0, chunk.len, into, holders)
        if isinstance(found, bytes | memoryview):
            return found
        return await found.whole()

    async def staged(
        self, slot: int, draft: Version, chunk: ChunkRef, *, holders: Collection[str]
    ) -> bytes | memoryview:
        """One chunk of a blob to which nothing refers yet, as :meth:`chunk`.

        Raises: QuorumUnavailable: those that have it do not give it. To a reader :meth:`chunk` says that a version may be lost; here there
            is none yet, and nothing was changed.
        """
        try:
            return await self.chunk(slot, draft, chunk, holders=holders)
        except (ArchiveError, QuorumUnavailable):
            raise
        except ClusterError as error:
            raise QuorumUnavailable(
                f"What was sent lies on nodes that cannot be reached now ({error.detail}) "
                "Nothing was changed by this: try again, and look at /cluster for nodes that are down."
            ) from error

    async def _chunk(
        self,
        slot: int,
        version: Version,
        chunk: ChunkRef,
        course: Course,
        low: int,
        high: int,
        into: memoryview | None,
        holders: Collection[str] = (),
    ) -> bytes | memoryview | Arriving:
        """One chunk, from this disk, another one, or the archive; from there what lies between ``low`` and ``high`` is enough."""
        self.served += 1
        failures: dict[str, str] = {}
        late: list[str] = []
        candidates = self._candidates(slot, holders)
        if course.gave:
            candidates.sort(key=lambda node: (node != self._coordinator.node, node not in course.gave))
        for node in candidates:
            if course.cold and self._unlikely(node, slot, course):
                late.append(node)
                continue
            data = await self._from(node, slot, version, chunk, course, into, failures)
            if data is not None:
                return data
            if node == self._coordinator.node and self.cold is not None:
                await self._look(slot, version, course)
                if (data := await self.cold.cached(chunk)) is not None:
                    return data

        async def elsewhere() -> bytes | memoryview | None:
            for node in late:
                if (data := await self._from(node, slot, version, chunk, course, None, failures)) is not None:
                    return data
            return None

        if self.cold is not None:
            try:
                arriving = await self.cold.open(course, slot, version, chunk, low, high, elsewhere)
            except ArchiveError as error:
                raise telling(error, failures) from error
            if arriving is not None:
                return arriving
        if (data := await elsewhere()) is not None:
            return data
        raise bytes_unavailable("a chunk", failures)

    async def _from(
        self,
        node: str,
        slot: int,
        version: Version,
        chunk: ChunkRef,
        course: Course,
        into: memoryview | None,
        failures: dict[str, str],
    ) -> bytes | memoryview | None:
        """The chunk as one node has it as a file; None: it does not give it, and ``failures`` tells why."""
        data: bytes | memoryview
        here = node == self._coordinator.node
        try:
            if not here:
                data = await self._fetch(node, ReadChunk(slot=slot, blob_id=version.blob_id, chunk=chunk))
                await verify(data, chunk)
            elif into is None:
                data = await self._store.read_chunk(slot, version.blob_id, chunk)
            else:
                data = await self._store.read_chunk_into(slot, version.blob_id, chunk, into)
        except (PeerError, StorageError, DigestMismatch) as error:
            failures[node] = str(error)
            if not here:
                course.lacked.add(node)
                course.gave.discard(node)
            if here and self.cold is not None:
                await self._look(slot, version, course)
            if not course.cold or not isinstance(error, ChunkMissing):
                self._notice(node, slot, version, error)
            return None
        if not here:
            course.gave.add(node)
            course.lacked.discard(node)
        if self._coordinator.node in failures and not course.cold:
            self._mend(slot, version, node)
        return data

    async def _look(self, slot: int, version: Version, course: Course) -> None:
        """Find out whether the blob's bytes are to be expected on this node's disk."""
        if course.cold is None:
            try:
                course.cold = not self._has_copy(slot) or await self._store.is_evicted(slot, version.blob_id)
            except StorageError:
                course.cold = False

    def _unlikely(self, node: str, slot: int, course: Course) -> bool:
        """Whether it is not worth asking the node before the archive: it lacked others of this blob, is away, or has no copy."""
        if node == self._coordinator.node:
            return False
        if node in course.lacked or not self._coordinator.peers.reachable(node):
            return True
        return node not in self._routing.table().route(slot).all_nodes

    def _notice(self, node: str, slot: int, version: Version, error: Exception) -> None:
        """A copy did not have what it should: this node's is mended in passing, any other by whoever was asked for it."""
        if (
            not isinstance(error, ChunkMissing | ChunkCorrupt)
            or node not in self._routing.table().route(slot).all_nodes
        ):
            return
        if node != self._coordinator.node:
            log.warning("bytes not readable", node=node, slot=slot, blob_id=version.blob_id, error=str(error))
        elif self._has_copy(slot):
            log.warning("bytes not readable here", slot=slot, blob_id=version.blob_id, error=str(error))
            self._pulls.missed(slot, version.blob_id, damaged=isinstance(error, ChunkCorrupt))

    def _mend(self, slot: int, version: Version, holder: str) -> None:
        """This node's copy lacked what ``holder`` has."""
        if self._has_copy(slot):
            self._pulls.later(slot, version, (holder,))

    def _has_copy(self, slot: int) -> bool:
        """Whether this node is to have the slot's bytes. One that is filled from scratch gets them with their rows."""
        return self._routing.mute(self._store.slot_state(slot)) is None

    async def fetch_manifest(self, node: str, slot: int, version: Version) -> bytes:
        """The manifest file from one peer, verified. Raises: PeerError, StorageError, DigestMismatch."""
        assert version.manifest_id is not None
        request = ReadManifest(slot=slot, blob_id=version.blob_id, manifest_id=version.manifest_id)
        data = await self._fetch(node, request)
        if content_hash(data) != version.manifest_id:
            raise DigestMismatch(f"{len(data)} bytes came that are not manifest {version.manifest_id}")
        return data

    def _candidates(self, slot: int, holders: Collection[str] = ()) -> list[str]:
        """Who may have the bytes, nearest first: ``holders``, this node, reachable voters of both sets and learners, then the rest.

        The last resort are the nodes that the route does not name: one that it named until lately still has them, perhaps as the only one.
        """
        me = self._coordinator.node
        reachable = self._coordinator.peers.reachable
        table = self._routing.table()
        named = [node for node in table.route(slot).all_nodes if node != me]
        named.sort(key=lambda node: not reachable(node))
        others = [node for node in table.nodes if node != me and node not in named and reachable(node)]
        nodes = [me, *named, *others]
        return sorted(nodes, key=lambda node: node not in holders) if holders else nodes

    async def _fetch(self, node: str, request: ReadChunk | ReadManifest) -> bytes:
        parts = [part async for part in self._coordinator.peers.fetch(node, request, timeout_s=FRAME_TIMEOUT_S)]
        return parts[0] if len(parts) == 1 else b"".join(parts)


async def verify(data: bytes | memoryview, chunk: ChunkRef) -> None:
    """Raises: DigestMismatch when ``data`` is not the chunk."""
    if len(data) >= HASH_IN_THREAD_BYTES:
        found = await asyncio.get_running_loop().run_in_executor(None, content_hash, data)
    else:
        found = content_hash(data)
    if len(data) != chunk.len or found != chunk.id:
        raise DigestMismatch(f"{len(data)} bytes came that are not chunk {chunk.id}")


def telling(error: ArchiveError, failures: dict[str, str]) -> ArchiveError:
    """The archive's error for a client; what was seen at the copies is in ``extra``."""
    return error.in_short(
        "A part of this version is only in the archive, and did not come from there", {"failures": failures}
    )


def bytes_unavailable(what: str, failures: dict[str, str]) -> AmberError:
    """The error when no replica gave the bytes."""
    seen = "; ".join(f"{node}: {why}" for node, why in sorted(failures.items()))
    return ClusterError(
        f"No replica gave {what} of this version ({seen}). If nodes are missing, try again when they are back; if none is, "
        "nobody has these bytes any more. `amberblob explain PATH` shows where each copy is, and what to do.",
        code="bytes-unavailable",
        extra={"failures": failures},
    )
