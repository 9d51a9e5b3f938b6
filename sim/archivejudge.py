"""The judgement of a world's archive, when everything works again: nothing that a copy relies on is missing from the bucket, and in the end
nothing is in the bucket that nobody needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from amberblob.archivejobs import JobKind, JobWanted
from amberblob.errors import AmberError, ChunkCorrupt, StorageError
from amberblob.ids import ulid_time_ms
from amberblob.manifest import Version, decode_manifest
from archive.packs import CHUNKS, PACKS, object_ulid
from archive.targets.memory import MemoryTarget
from node.archive.exported import ExportedObjects
from node.archive.parts import ArchiveParts
from sim.agreement import agree
from sim.archivescenes import at
from sim.archivewitness import Frames
from sim.clients import NoAnswer, NotServing, Violation
from sim.machine import CLUSTER_ID

if TYPE_CHECKING:
    from sim.machine import Machine
    from sim.world import World

T = TypeVar("T")

SETTLED_S = 400.0
"""Within this virtual time after everything works, jobs end, and what nobody needs is gone. A node looks at an archive that was away every minute."""
ROUNDS_PAUSE_S = 8.0
"""Rows are followed every few seconds; what is mostly dead is written anew first, and deleted by the next gc."""
LOOKS_MAX = 8


async def judge_archive(world: World) -> None:
    """Judge it; wait for what needs its time. Raises: Violation."""
    assert world.bucket is not None
    await _look(world)
    await _idle(world)
    await _job(world, "run")
    began_s = world.loop.time()
    held = await _holdings(world)
    while left := await _unneeded(world):
        if world.loop.time() - began_s > SETTLED_S:
            raise Violation(
                f"{SETTLED_S:g} s after everything works the bucket has what nobody needs: {left[:3]}; {_problems(world)}"
            )
        await _job(world, "gc")
        await asyncio.sleep(ROUNDS_PAUSE_S)
    held = await _holdings(world)
    await _look(world)
    world.fired["archives judged"] += 1
    world.fired["versions held by rows at the end"] += held
    world.fired["objects deleted"] += sum(name.startswith((PACKS, CHUNKS)) for name in world.bucket.deleted)
    world.event(f"the archive is as it should be: {len(world.bucket.objects)} objects, {held} versions live by rows")


async def _look(world: World) -> None:
    """What is true at every moment is true now."""
    witness = world.witness
    assert witness is not None
    for machine in world.machines:
        await _ask(world, machine, lambda archive: witness.look(archive.ground.node, archive.ground.store))


async def _job(world: World, kind: JobKind) -> None:
    """Have a job done on all nodes; begun again as often as it was refused or came to nothing."""
    began_s = world.loop.time()
    while True:
        try:
            await at(world, world.machines[0], lambda archive: archive.cluster.start(JobWanted(kind=kind)))
            await _idle(world)
            return
        except (NotServing, NoAnswer, AmberError) as error:
            if world.loop.time() - began_s > SETTLED_S:
                raise Violation(f"{kind} was refused for {SETTLED_S:g} s after everything works: {error!r}") from error
        await asyncio.sleep(1.0)


async def _idle(world: World) -> None:
    """Until no job runs anywhere."""
    began_s = world.loop.time()
    while True:
        running = [
            f"{machine.name}: {status.request.kind} {status.detail}"
            for machine in world.machines
            if machine.parts is not None and machine.parts.archive is not None
            for status in machine.parts.archive.runner.statuses()
            if status.state == "running"
        ]
        if not running:
            return
        if world.loop.time() - began_s > SETTLED_S:
            raise Violation(f"jobs that do not end within {SETTLED_S:g} s after everything works: {running}")
        await asyncio.sleep(0.5)


def _problems(world: World) -> str:
    """What the last gc of each node tells of itself."""
    told = []
    for machine in world.machines:
        if machine.parts is not None and machine.parts.archive is not None:
            parts = [part for part in machine.parts.archive.runner.statuses() if part.request.kind == "gc"]
            told += [f"{machine.name}: {part.state} {part.counts} {part.detail} {part.problems}" for part in parts[-1:]]
    return "; ".join(told)


async def _ask(world: World, machine: Machine, ask: Callable[[ArchiveParts], Coroutine[Any, Any, T]]) -> T:
    """What a node answers that may be starting anew."""
    while True:
        try:
            return await at(world, machine, ask)
        except (NotServing, NoAnswer):
            await asyncio.sleep(0.2)


# ---- what copies rely on


class _Wants(Exception):
    """What has rotted was found by somebody who read it: it is on its way."""


async def _holdings(world: World) -> int:
    """Look at every version of every copy that votes, when all agree; how many live by their rows. Raises: Violation."""
    for _ in range(LOOKS_MAX):
        await agree(world)
        try:
            return await _holdings_now(world)
        except _Wants as wants:
            why = wants
    raise Violation(f"{why}, though all copies agreed {LOOKS_MAX} times")


async def _holdings_now(world: World) -> int:
    assert world.table is not None and world.bucket is not None
    frames = Frames(world.bucket)
    machines = {machine.name: machine for machine in world.machines}
    count = 0
    for route in world.table.routes:
        for member in route.voters:
            machine = machines[member.node]
            count += await _ask(world, machine, _Copy(machine, route.slot, frames).look)
    for machine in world.machines:
        await _ask(world, machine, frames.all_rows_of)
    return count


class _Copy:
    """One copy that votes."""

    def __init__(self, machine: Machine, slot: int, frames: Frames) -> None:
        self._rotted = machine.disk.rotted
        self._where = f"slot {slot} of {machine.name}"
        self._slot = slot
        self._frames = frames

    async def look(self, archive: ArchiveParts) -> int:
        """Whether it holds what it has; how many versions live by rows."""
        store, count = archive.ground.store, 0
        after: tuple[str, int] | None = ("", 0)
        while after is not None:
            page, after = await store.archive_page(self._slot, after, 500)
            for view in page:
                if view.wanted:
                    raise _Wants(f"{self._where} wants {view.path}@{view.version.version}")
                count += await self._holds(archive, view.path, view.version)
        return count

    async def _holds(self, archive: ArchiveParts, path: str, version: Version) -> bool:
        """Every chunk as bytes, or all by verified rows; whether by rows."""
        store, slot = archive.ground.store, self._slot
        named = f"{self._where}: {path}@{version.version}"
        if not version.size:
            return False
        try:
            chunks = version.chunks
            if version.manifest_id is not None:
                chunks = decode_manifest(await store.read_manifest(slot, version.blob_id, version.manifest_id))
        except StorageError as error:
            raise Violation(f"{named} has no manifest: {error}") from error
        blob = await store.archived(slot, version.blob_id)
        if blob is not None and blob.evicted:
            ids = [*(chunk.id for chunk in chunks), *([version.manifest_id] if version.manifest_id else [])]
            self._frames.check_held(blob, named, ids)
            return True
        for chunk in chunks:
            try:
                await store.read_chunk(slot, version.blob_id, chunk, fresh=True)
            except ChunkCorrupt as error:
                if version.blob_id not in self._rotted:
                    raise Violation(f"{named} is damaged, and nobody did that: {error!r}") from error
                # Nobody has looked at it yet.
                await store.set_wanted(slot, path, version, damaged=True)
                raise _Wants(f"{named} has rotted") from error
            except StorageError as error:
                raise Violation(f"{named} is not held: {error!r}; rows: {blob}") from error
        return False


# ---- what nobody needs


async def _unneeded(world: World) -> list[str]:
    """Objects that no row names, nor the export, and that are old enough to be deleted, by every node's clock."""
    bucket, shape = world.bucket, world.shape.archive
    assert bucket is not None and shape is not None
    needed: set[str] = set()
    for machine in world.machines:
        needed |= await _ask(world, machine, _named)
    exported = ExportedObjects(MemoryTarget(bucket, clock=bucket.clock), CLUSTER_ID)
    names = [name for name in bucket.names() if name.startswith((PACKS, CHUNKS)) and name not in needed]
    kept = await exported.needed(names, lambda text: None)
    grace_ms = shape.grace_s * 1000
    now_ms = min([bucket.clock.wall_ms(), *(machine.clock.wall_ms() for machine in world.machines)])
    found = []
    for name in names:
        ulid = object_ulid(name)
        made_ms = max(bucket.objects[name].modified_ms, ulid_time_ms(ulid) if ulid is not None else 0)
        if name not in kept and now_ms - made_ms > grace_ms:
            found.append(name)
    return found if not exported.damaged else []


async def _named(archive: ArchiveParts) -> set[str]:
    store = archive.ground.store
    found: set[str] = set()
    for slot in store.slots():
        found |= (await store.archive_objects(slot)).keys()
    return found
