"""The real code with one thing wrong at a time: what the worlds have to notice, or they prove nothing.

``python -m sim --mutants`` plays seeds with each until a promise is broken, and fails if one survives. These are the bugs
of what stands around the protocol; those of the protocol itself have thousands of smaller worlds to be caught in
(``sim.model``, ``tests/unit/node/protocol/mutants.py``): a promise that a restart forgets needs three coincidences at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any
from unittest import mock

from msgspec.structs import replace

from amberblob.ballot import EMPTY_REGISTER, Register
from amberblob.errors import DiskFailed
from amberblob.manifest import Record
from antientropy import sync
from antientropy.step import Did
from antientropy.worker import Repairer
from chunkstore import applying
from chunkstore.core import DiskCore
from chunkstore.files import BlobFiles
from chunkstore.journal import Journal
from chunkstore.pathfilter import PathFilter
from chunkstore.pool import SlotPool
from chunkstore.staging import ChunkWriter
from chunkstore.store import DiskStore
from node.protocol.quorum import Electorate, Finding
from node.protocol.read import Read, ReadRound
from node.protocol.replica import ReplicaSlot
from node.routing import Electorates, Routing
from node.workers import leaver
from node.workers.leaver import Leaver
from registry.routes import Member, Route
from sim.disk import SimFileOps

MUTANTS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {}


def mutant(make: Callable[[], contextlib.AbstractContextManager[Any]]) -> Callable[[], Any]:
    """Register a mutant under its function's name."""
    MUTANTS[make.__name__.replace("_", "-")] = make
    return make


@mutant
def acknowledged_before_the_sync() -> contextlib.AbstractContextManager[Any]:
    def when_durable(self: Journal, position: int, callback: Any) -> None:
        callback(None if self.failed is None else DiskFailed(self.failed))

    return mock.patch.object(Journal, "when_durable", when_durable)


@mutant
def synced_only_in_name() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(SimFileOps, "fdatasync", lambda self, fd: self._enter(sync=True))


@mutant
def folders_never_synced() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(SimFileOps, "fsync_dir", lambda self, path: self._enter(sync=True))


@mutant
def chunks_never_synced() -> contextlib.AbstractContextManager[Any]:
    import os

    return mock.patch.object(ChunkWriter, "sync_chunk", lambda self, fd: os.close(fd))


@mutant
def unfinished_databases_believed() -> contextlib.AbstractContextManager[Any]:
    return mock.patch.object(SlotPool, "remake_unfinished", lambda self, slot: False)


@mutant
def chunks_not_verified() -> contextlib.AbstractContextManager[Any]:
    def read(self: BlobFiles, slot: int, blob_id: str, path: Any, wanted_id: str, wanted_len: int | None) -> bytes:
        return bytes(path.read_bytes())

    return mock.patch.object(BlobFiles, "_read", read)


@mutant
def commit_ignores_a_newer_promise() -> contextlib.AbstractContextManager[Any]:
    original = ReplicaSlot.commit

    def commit(self: ReplicaSlot, state: Any, message: Any, register: Register, here: Any) -> Any:
        promised = self._promises.pop(message.path, None)
        actions = original(self, state, message, register, here)
        if promised is not None:
            self._promises[message.path] = promised
        return actions

    return mock.patch.object(ReplicaSlot, "commit", commit)


@mutant
def a_read_asks_one_replica() -> contextlib.AbstractContextManager[Any]:
    def answer(self: ReadRound, node: str, reply: Any) -> Read:
        finding = Finding(
            getattr(reply, "accepted", None), getattr(reply, "record", None), decided=True, holders=(node,)
        )
        return Read(finding, {node: reply})

    return mock.patch.object(ReadRound, "answer", answer)


@mutant
def a_lost_register_is_empty() -> contextlib.AbstractContextManager[Any]:
    """A database that was lost keeps its old name, so that its empty memory votes."""
    original = SlotPool.retire

    def retire(self: SlotPool, slot: int, why: str, **more: Any) -> Any:
        with mock.patch.object(self, "_mint", lambda: self._identity.disk_id):
            return original(self, slot, why, **more)

    return mock.patch.object(SlotPool, "retire", retire)


@mutant
def a_path_filter_that_nobody_feeds() -> contextlib.AbstractContextManager[Any]:
    """It finds every path new, so that a register is empty once it is out of memory."""
    return mock.patch.object(PathFilter, "add", PathFilter.is_new)


@mutant
def a_register_out_of_memory_is_empty() -> contextlib.AbstractContextManager[Any]:
    original = DiskCore.load

    async def load(self: DiskCore, slot: int, path: str) -> Register:
        if self.overlay.peek(slot, path) is None and slot in self.overlay.known():
            self.overlay.loaded(slot, path, EMPTY_REGISTER, 0)
        return await original(self, slot, path)

    return mock.patch.object(DiskCore, "load", load)


@mutant
def a_blank_copy_votes() -> contextlib.AbstractContextManager[Any]:
    """Whoever is named answers, whether or not it was filled."""

    def mute(self: Routing, state: Any) -> Any:
        member = self.own_votes().get(state.slot)
        return None if member is not None and member.incarnation == state.incarnation else "unsynced"

    return mock.patch.object(Routing, "mute", mute)


@mutant
def nobody_compares() -> contextlib.AbstractContextManager[Any]:
    async def step(self: Repairer) -> Did:
        return Did.NOTHING

    return mock.patch.object(Repairer, "step", step)


@mutant
def what_is_wanted_is_forgotten() -> contextlib.AbstractContextManager[Any]:
    async def wanted(self: DiskStore, slot: int, limit: int) -> list[Any]:
        return []

    return mock.patch.object(DiskStore, "wanted", wanted)


@mutant
def the_head_expires() -> contextlib.AbstractContextManager[Any]:
    """Collecting takes the bytes of the newest version along."""
    original = applying.SlotBatch._materialise

    def materialise(self: Any, row: Any, record: Record, *, here: bool) -> None:
        original(self, row, record, here=here)
        if record.op == "expire" and record.head is not None:
            # The accept of the same batch has brought nothing: an expiry adds no version.
            self._sql.execute("DELETE FROM inline_bodies WHERE blob_id = ?", (record.head.blob_id,))

    return mock.patch.object(applying.SlotBatch, "_materialise", materialise)


@mutant
def a_copy_is_filled_from_one_voter() -> contextlib.AbstractContextManager[Any]:
    """Whoever it is: it may have been away when the copy that was lost helped to choose something."""
    return mock.patch.object(sync, "needed", lambda voters, *, among, counts: min(1, voters - among))


@mutant
def a_joint_epoch_counts_only_the_old_set() -> contextlib.AbstractContextManager[Any]:
    """What is written while a slot moves is written to those who go."""
    return _one_set(lambda route: route.voters)


@mutant
def a_joint_epoch_counts_only_the_new_set() -> contextlib.AbstractContextManager[Any]:
    """The others may still be taken for the voters by whoever has old news."""
    return _one_set(lambda route: route.next_voters)


def _one_set(members_of: Callable[[Route], tuple[Member, ...]]) -> contextlib.AbstractContextManager[Any]:
    original = Electorates._of

    def of(self: Electorates, route: Route) -> Electorate:
        if route.state == "joint":
            route = replace(route, voters=members_of(route), next_voters=(), state="stable")
        return original(self, route)

    return mock.patch.object(Electorates, "_of", of)


@mutant
def a_copy_is_given_up_as_soon_as_its_node_goes() -> contextlib.AbstractContextManager[Any]:
    """The joint epoch is enough to go; who comes may want bytes of it yet, and it may come to nothing."""

    original = Leaver._is_left

    def is_left(self: Leaver, slot: int) -> bool:
        move = self._routing.table().moves.get(slot)
        goes = move is not None and self._routing.node not in move.nodes and slot not in self._clean
        return goes or original(self, slot)

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.object(Leaver, "_is_left", is_left))
    stack.enter_context(mock.patch.object(leaver, "_needs_nothing", lambda member, copy: True))
    return stack
