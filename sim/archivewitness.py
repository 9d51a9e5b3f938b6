"""Looks at a world's archive while everything is broken: what promise 8 says is true at every moment, not in the end only.

Nothing is asked by way of the network, so that it sees nodes that nobody can reach; and it asks what a node answers to itself, so that nothing of
it is known but by its database. It looks

* at nodes by lot, now and then: what a copy lives by was read back (:meth:`Witness.look`);
* at every node whenever objects were deleted, and at those that were off when they start: no row names one (``_named``);
* at a node that died while it evicted, as it starts: what is gone from the disk is known to be gone (``_missing``).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Collection, Coroutine, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from amberblob.archives import DAMAGED, ArchivedBlob, ArchivedChunk
from amberblob.errors import AmberError, ArchiveError
from amberblob.ids import content_hash
from archive.frames import FrameReader
from node.archive.parts import ArchiveParts
from sim.bucket import OURS
from sim.clients import Violation

if TYPE_CHECKING:
    from chunkstore.interface import ReplicaStore
    from chunkstore.store import DiskStore
    from sim.bucket import SimBucket
    from sim.machine import Machine
    from sim.world import World

LOOK_EVERY_S = 3.0
"""Virtual seconds between two looks at some node, on average. A look costs one question to each of its databases."""

ROWS_PER_PAGE = 1000
VERSIONS_PER_PAGE = 500


class Frames:
    """What the bucket has, looked at once each: what is right in there stays so."""

    def __init__(self, bucket: SimBucket) -> None:
        self._bucket = bucket
        self._right: set[tuple[str, str, int, int]] = set()

    def check(self, row: ArchivedChunk, where: str) -> None:
        """The object of a row is there, and a verified row's frame says what its chunk is. Raises: Violation."""
        stored = self._bucket.objects.get(row.target_path)
        if stored is None:
            if row.state == 0 and row.target_path in self._bucket.lost:
                return  # the bucket lost it before anybody read it back, and nobody did since
            when = self._bucket.deleted.get(row.target_path)
            gone = "is not there" if when is None else f"was deleted at {when:.3f} s"
            raise Violation(f"{where} has a row of {row.target_path}, which {gone}: {row}")
        key = (row.chunk_id, *row.location)
        if row.state <= 0 or key in self._right:
            return
        reader = FrameReader(row)
        try:
            plain = b"".join(reader.feed(stored.content[row.start : row.end]))
            reader.finish()
        except ArchiveError as error:
            raise Violation(f"{where} has a verified row whose frame is wrong: {row}: {error}") from error
        if content_hash(plain) != row.chunk_id or len(plain) != row.length:
            raise Violation(f"{where} has a verified row of another chunk: {row}")
        self._right.add(key)

    def check_held(self, blob: ArchivedBlob, named: str, chunk_ids: Collection[str]) -> None:
        """An evicted blob's rows are all verified, and true. Raises: Violation."""
        for chunk_id in chunk_ids:
            row = blob.find(chunk_id)
            if row is None or not row.verified:
                raise Violation(f"{named} is evicted, and of its chunk {chunk_id} there is {row}")
            self.check(row, named)

    async def all_rows_of(self, archive: ArchiveParts) -> None:
        """No row that may be used names an object that is not there. Raises: Violation."""
        store = archive.ground.store
        for slot in store.slots():
            after, more = 0, True
            while more:
                lines, more = await store.archived_after(slot, after, ROWS_PER_PAGE)
                for line in lines:
                    after = line.seq
                    if line.chunk.state != DAMAGED:
                        self.check(line.chunk, f"slot {slot} of {archive.ground.node}")


class Witness:
    """See the module."""

    def __init__(self, world: World, random: Random) -> None:
        assert world.bucket is not None
        self.frames = Frames(world.bucket)
        self._world = world
        self._random = random
        self._bucket = world.bucket
        self._died_evicting: set[str] = set()
        world.bucket.on_deleted = self._deleted
        for machine in world.machines:
            machine.on_open = self._opened

    async def watching(self) -> None:
        """Look at some node now and then, for ever."""
        while True:
            await asyncio.sleep(self._random.expovariate(1.0) * LOOK_EVERY_S)
            machine = self._random.choice(self._world.machines)
            store = machine.store
            if store is not None and machine.serving:
                self._spawn(machine, self.look(machine.name, store))

    def died_evicting(self, machine: Machine) -> None:
        """The machine died while it removed files: it is looked at closely when it starts."""
        self._died_evicting.add(machine.name)

    # -- occasions

    def _opened(self, machine: Machine, store: DiskStore) -> None:
        """A node has found out what is on its disk, and has done nothing yet."""
        self._spawn(machine, self.look(machine.name, store))
        if machine.name in self._died_evicting:
            self._died_evicting.discard(machine.name)
            self._spawn(machine, self._missing(machine, store))

    def _deleted(self, names: Sequence[str]) -> None:
        """These objects are not there any more."""
        for machine in self._world.machines:
            if machine.store is not None:
                self._spawn(machine, self._named(machine.name, machine.store, names))

    def _spawn(self, machine: Machine, work: Coroutine[Any, Any, None]) -> None:
        """Do it as the node does its own work: it ends when the node dies."""
        process = machine.process
        assert process is not None
        task = self._world.loop.create_task(work, context=process.context())
        task.add_done_callback(self._ended, context=contextvars.Context())

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        # A disk that fails tells nothing.
        if error is not None and not isinstance(error, AmberError):
            self._world.broken(error)

    # -- looks

    async def look(self, node: str, store: ReplicaStore) -> None:
        """What the node's copies live by was read back, and nothing that was deleted is named. Raises: Violation; StorageError."""
        await self._named(node, store, [name for name in self._bucket.deleted if name.startswith(OURS)])
        for slot in store.slots():
            after: tuple[str, int] | None = ("", 0)
            while after is not None:
                page, after = await store.archive_page(slot, after, VERSIONS_PER_PAGE)
                for view in page:
                    if view.evicted and view.verified < view.chunk_count and view.version.manifest_id is None:
                        raise Violation(
                            f"slot {slot} of {node} has evicted {view.path}@{view.version.version}, and of its {view.chunk_count} chunks "
                            f"{view.verified} were read back"
                        )
        self._world.fired["nodes looked at"] += 1

    async def _named(self, node: str, store: ReplicaStore, names: Sequence[str]) -> None:
        """No row names what was deleted, in whatever state it is: whoever has one refuses, and nobody takes one any more. Raises: Violation.

        Nobody asks a node that is not in the route table any more, and nobody takes rows from it: what it has left counts for nothing.
        """
        table = self._world.table
        if table is None or node not in table.nodes:
            return
        for slot in store.slots():
            for name in sorted(await store.archive_named(slot, names)):
                when_s = self._bucket.deleted[name]
                raise Violation(f"slot {slot} of {node} has a row of {name}, which was deleted at {when_s:.3f} s")

    async def _missing(self, machine: Machine, store: DiskStore) -> None:
        """Versions whose files are not here, and of which nothing says so. Raises: Violation.

        Not those that rotted: who reads one at this moment has moved the chunk to quarantine, and notes it a moment later. Nor slots whose
        database was damaged.
        """
        found = []
        for slot in store.slots():
            if slot in machine.disk.damaged:
                continue
            after: tuple[str, int] | None = ("", 0)
            while after is not None:
                page, after = await store.archive_page(slot, after, VERSIONS_PER_PAGE)
                for view in page:
                    version = view.version
                    if view.evicted or view.wanted or version.inline or version.manifest_id is not None:
                        continue
                    if version.blob_id in machine.disk.rotted or not await store.missing_chunks(
                        slot, version, version.chunks
                    ):
                        continue
                    known = (
                        await store.is_evicted(slot, version.blob_id)
                        or await store.referred(slot, version.blob_id) is None
                    )
                    if not known and version.blob_id not in {
                        one.version.blob_id for one in await store.wanted(slot, 1000)
                    }:
                        found.append(f"slot {slot}: {view.path}@{version.version}")
        self._world.fired["evictions cut short looked at"] += 1
        if found:
            raise Violation(
                f"{machine.name} died in the middle of an eviction, and takes for whole what it is not: {found}"
            )
