"""Where the archive has the chunks of one version, as this node's copy and the others know it; and telling them what turned out to be damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Protocol

import structlog
from msgspec.structs import replace

from amberblob.archives import DAMAGED, ArchivedBlob, ArchivedChunk, merge
from amberblob.errors import PeerError, StorageError
from amberblob.manifest import ChunkRef
from amberblob.wire import Failed, StagedReply
from amberblob.wire_archive import ArchivedBlobReply, AskArchived, StageArchived
from chunkstore.interface import ReplicaStore
from node.objects.cold import Course
from node.routing import Routing
from node.transport.interface import Peers

log = structlog.get_logger(__name__)

ASK_S = 3.0
"""How long a copy is waited for that is asked where the archive has something."""
CHUNKS_ASKED = 512
"""Rows that one question is for: those that a reader needs next."""


class TakesRows(Protocol):
    """The entrance of rows into this node's copies (:class:`node.archive.facts.Facts`)."""

    def take(
        self, slot: int, blob_id: str, chunks: Sequence[ArchivedChunk], *, at_ms: int, evicted: bool = False
    ) -> int:
        """Merge rows into the slot's copy; the position at which they are durable. Raises: DiskFailed."""
        ...

    def using(self, target_paths: Iterable[str]) -> AbstractContextManager[frozenset[str]]:
        """While rows of these objects are sent to other nodes, this one does not agree to their being deleted."""
        ...


class KnownRows:
    """Archive rows of single blobs.

    Args:
        now_ms: the node's hybrid clock.
    """

    def __init__(
        self, store: ReplicaStore, routing: Routing, peers: Peers, facts: TakesRows, now_ms: Callable[[], int]
    ) -> None:
        self._store = store
        self._facts = facts
        self._routing = routing
        self._peers = peers
        self._now_ms = now_ms

    def using(self, rows: Iterable[ArchivedChunk]) -> AbstractContextManager[frozenset[str]]:
        """While these rows are sent to other nodes, this one does not agree to the deletion of the objects that they name."""
        return self._facts.using({row.target_path for row in rows})

    async def here(self, slot: int, blob_id: str) -> ArchivedBlob | None:
        """What this node's copy knows. Raises: DiskFailed."""
        return await self._store.archived(slot, blob_id)

    async def of(self, node: str, slot: int, blob_id: str, chunk_ids: Sequence[str] = ()) -> ArchivedBlob | None:
        """What another copy knows; only of ``chunk_ids``, unless there are none. Raises: PeerError."""
        request = AskArchived(slot=slot, blob_id=blob_id, chunk_ids=tuple(chunk_ids))
        reply = await self._peers.call(node, request, timeout_s=ASK_S)
        if isinstance(reply, Failed):
            raise PeerError(f"{node} answered {reply.code}: {reply.detail}")
        return reply.blob if isinstance(reply, ArchivedBlobReply) else None

    async def find(self, course: Course, slot: int, blob_id: str, chunk: ChunkRef) -> ArchivedChunk | None:
        """A row of the chunk that is not known to be damaged: of this copy, else of the others, each of which is asked once for it.

        ``chunk.len`` is 0 where it is not known (a manifest's). A chunk that comes later in the version is learnt of with it. None: nobody who answers knows one.
        """
        me = self._routing.node
        if me not in course.asked:
            course.asked.add(me)
            try:
                self._learn(course, await self.here(slot, blob_id))
            except StorageError as error:
                log.info("own archive rows not readable", slot=slot, blob_id=blob_id, error=error.detail)
        if (known := self._usable(course, chunk)) is not None:
            return known
        for node in self._copies(slot):
            key = f"{node}/{chunk.id}"
            if key in course.asked:
                continue
            course.asked.add(key)
            wanted = self._from(course, chunk)
            try:
                told = await self.of(node, slot, blob_id, wanted)
            except PeerError as error:
                log.info("archive rows not told", peer=node, slot=slot, blob_id=blob_id, error=error.detail)
                continue
            self._learn(course, told)
            # It need not be asked again for what it told, nor for anything if it knows nothing. (An answer holds only so many rows.)
            course.asked |= {f"{node}/{chunk_id}" for chunk_id in wanted if told is None or told.find(chunk_id)}
            if (known := self._usable(course, chunk)) is not None:
                return known
        return None

    async def report(self, course: Course, slot: int, blob_id: str, row: ArchivedChunk) -> None:
        """The bytes at the row's place are not what they were, or gone: the copies are told, and fall back on what else they have."""
        damaged = replace(row, state=DAMAGED)
        course.rows[row.chunk_id] = merge(course.rows.get(row.chunk_id), damaged)
        log.error("damaged in the archive", slot=slot, blob_id=blob_id, chunk_id=row.chunk_id, object=row.target_path)
        if self._routing.is_member(slot):
            try:
                self._facts.take(slot, blob_id, (damaged,), at_ms=self._now_ms())
            except StorageError as error:
                log.warning("damage not written down", slot=slot, blob_id=blob_id, error=error.detail)
            return  # the others follow
        electorate = self._routing.electorate(slot)
        request = StageArchived(slot=slot, epoch=electorate.epoch, blob_id=blob_id, chunks=(damaged,))
        for node in self._copies(slot):
            try:
                reply = await self._peers.call(node, request, timeout_s=ASK_S)
            except PeerError as error:
                log.info("damage not told", peer=node, slot=slot, blob_id=blob_id, error=error.detail)
                continue
            if isinstance(reply, StagedReply):
                return
            log.info("damage not taken", peer=node, slot=slot, blob_id=blob_id, reply=repr(reply)[:200])

    def _copies(self, slot: int) -> list[str]:
        """The other copies, those that can be reached first."""
        nodes = [node for node in self._routing.table().route(slot).all_nodes if node != self._routing.node]
        return sorted(nodes, key=lambda node: not self._peers.reachable(node))

    @staticmethod
    def _learn(course: Course, told: ArchivedBlob | None) -> None:
        for row in told.chunks if told is not None else ():
            course.rows[row.chunk_id] = _better(course.rows.get(row.chunk_id), row)

    @staticmethod
    def _usable(course: Course, chunk: ChunkRef) -> ArchivedChunk | None:
        row = course.rows.get(chunk.id)
        return row if row is not None and row.state != DAMAGED and chunk.len in (0, row.length) else None

    @staticmethod
    def _from(course: Course, chunk: ChunkRef) -> list[str]:
        """The chunk and what follows it in the version."""
        ids = [one.id for one in course.chunks]
        at = ids.index(chunk.id) if chunk.id in ids else 0
        following = islice(dict.fromkeys(ids[at:]), CHUNKS_ASKED)
        return list(dict.fromkeys((chunk.id, *following)))[:CHUNKS_ASKED]


def _better(known: ArchivedChunk | None, told: ArchivedChunk) -> ArchivedChunk:
    """The place to read from: the newer one, but none that is damaged while another is not. A copy may live by an older place than the others did."""
    first = merge(known, told)
    if known is None or first.state != DAMAGED:
        return first
    other = told if first == known else known
    return other if other.state != DAMAGED and other.location != first.location else first
