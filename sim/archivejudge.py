"""The judgement of a world's archive, when everything works again: nothing that a copy relies on is missing from the bucket, and in the end
nothing is in the bucket that nobody needs."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from amberblob.archivejobs import JobKind, JobWanted
from amberblob.archives import DAMAGED, ArchivedBlob, ArchivedChunk
from amberblob.errors import AmberError, ArchiveError, ChunkCorrupt, StorageError
from amberblob.ids import content_hash, ulid_time_ms
from amberblob.manifest import ChunkRef, Version, decode_manifest
from archive.frames import FrameReader
from archive.packs import CHUNKS, PACKS, object_ulid
from archive.targets.memory import MemoryTarget
from node.archive.exported import ExportedObjects
from node.archive.parts import ArchiveParts
from sim.agreement import agree
from sim.archivists import at
from sim.clients import NoAnswer, NotServing, Violation
from sim.machine import CLUSTER_ID

if TYPE_CHECKING:
    from chunkstore.store import DiskStore
    from sim.bucket import SimBucket
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
    world.fired["archives judged"] += 1
    world.fired["versions held by rows at the end"] += held
    world.fired["objects deleted"] += sum(name.startswith((PACKS, CHUNKS)) for name in world.bucket.deleted)
    world.event(f"the archive is as it should be: {len(world.bucket.objects)} objects, {held} versions live by rows")


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
    frames, rots = _Frames(world.bucket), bool(world.fired["bit rot"])
    machines = {machine.name: machine for machine in world.machines}
    count = 0
    for route in world.table.routes:
        for member in route.voters:
            machine = machines[member.node]
            count += await _ask(world, machine, _Copy(machine.name, route.slot, frames, may_rot=rots).look)
    for machine in world.machines:
        await _ask(world, machine, frames.all_rows_of)
    return count


class _Frames:
    """What the bucket has, looked at once each."""

    def __init__(self, bucket: SimBucket) -> None:
        self._objects = bucket.objects
        self._deleted = bucket.deleted
        self._right: set[tuple[str, str, int, int]] = set()

    def check(self, row: ArchivedChunk, where: str) -> None:
        """A verified row's frame says what the row's chunk is. Raises: Violation."""
        key = (row.chunk_id, *row.location)
        if key in self._right:
            return
        stored = self._objects.get(row.target_path)
        if stored is None:
            when = self._deleted.get(row.target_path)
            gone = "was never there" if when is None else f"was deleted at {when:.3f} s"
            raise Violation(f"{where} has a row of {row.target_path}, which {gone}: {row}")
        if row.state > 0:
            reader = FrameReader(row)
            try:
                plain = b"".join(reader.feed(stored.content[row.start : row.end]))
                reader.finish()
            except ArchiveError as error:
                raise Violation(f"{where} has a verified row whose frame is wrong: {row}: {error}") from error
            if content_hash(plain) != row.chunk_id or len(plain) != row.length:
                raise Violation(f"{where} has a verified row of another chunk: {row}")
            self._right.add(key)

    async def all_rows_of(self, archive: ArchiveParts) -> None:
        """No row that may be used names an object that is not there."""
        store = archive.ground.store
        for slot in store.slots():
            after, more = 0, True
            while more:
                lines, more = await store.archived_after(slot, after, 1000)
                for line in lines:
                    after = line.seq
                    if line.chunk.state != DAMAGED:
                        self.check(line.chunk, f"slot {slot} of {archive.ground.node}")


class _Copy:
    """One copy that votes."""

    def __init__(self, node: str, slot: int, frames: _Frames, *, may_rot: bool) -> None:
        self._may_rot = may_rot
        self._where = f"slot {slot} of {node}"
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
            self._lives_by(blob, named, version, chunks)
            return True
        for chunk in chunks:
            try:
                await store.read_chunk(slot, version.blob_id, chunk, fresh=True)
            except ChunkCorrupt as error:
                if not self._may_rot:
                    raise Violation(f"{named} is damaged, and nobody did that: {error!r}") from error
                # Nobody has looked at it yet.
                await store.set_wanted(slot, path, version, damaged=True)
                raise _Wants(f"{named} has rotted") from error
            except StorageError as error:
                raise Violation(f"{named} is not held: {error!r}; rows: {blob}") from error
        return False

    def _lives_by(self, blob: ArchivedBlob, named: str, version: Version, chunks: tuple[ChunkRef, ...]) -> None:
        for chunk_id in [*(chunk.id for chunk in chunks), *([version.manifest_id] if version.manifest_id else [])]:
            row = blob.find(chunk_id)
            if row is None or not row.verified:
                raise Violation(f"{named} is evicted, and of its chunk {chunk_id} there is {row}")
            self._frames.check(row, named)


async def audit(world: World, machine: Machine) -> None:
    """A node that died in the middle of an eviction: what it finds when it starts it holds, or knows that it does not. Raises: Violation.

    Not where chunks rotted: that one went to quarantine is noted in the database only, and a power cut may take the note back before scrub finds it anew.
    """
    if world.fired["bit rot"]:
        return
    process = machine.process
    while machine.store is None or process is None:
        if machine.process is not process or process is None or not process.alive or machine.error:
            return
        await asyncio.sleep(0.001)
    task = world.loop.create_task(_missing(machine.store), context=process.context())
    task.add_done_callback(lambda done: done.cancelled() or done.exception(), context=contextvars.Context())
    while not task.done():
        if not process.alive:
            return
        await asyncio.sleep(0.001)
    try:
        missing = task.result()
    except StorageError:
        return
    world.fired["evictions cut short looked at"] += 1
    if missing:
        raise Violation(
            f"{machine.name} died in the middle of an eviction, and takes for whole what it is not: {missing}"
        )


async def _missing(store: DiskStore) -> list[str]:
    """Versions whose files are not here, and of which nothing says so."""
    found = []
    for slot in store.slots():
        after: tuple[str, int] | None = ("", 0)
        while after is not None:
            page, after = await store.archive_page(slot, after, 500)
            for view in page:
                version = view.version
                if view.evicted or view.wanted or version.inline or version.manifest_id is not None:
                    continue
                if await store.missing_chunks(slot, version, version.chunks):
                    known = (
                        await store.is_evicted(slot, version.blob_id)
                        or await store.referred(slot, version.blob_id) is None
                    )
                    wanted = {one.version.blob_id for one in await store.wanted(slot, 1000)}
                    if not known and version.blob_id not in wanted:
                        found.append(f"slot {slot}: {view.path}@{version.version}")
    return found


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
