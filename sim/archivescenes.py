"""What a world's archivists play with several nodes at once: things that are dangerous only when they meet, and that seldom meet by chance."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from amberblob.archivejobs import JobKind, JobWanted
from amberblob.config.sections import ArchiveRule
from amberblob.errors import AmberError, JobConflict
from node.archive.jobs import JobRequest
from node.archive.parts import ArchiveParts
from sim.clients import Client, NoAnswer, NotServing
from sim.history import Call
from sim.network import SimPeers

if TYPE_CHECKING:
    from sim.faults import Faults
    from sim.machine import Machine
    from sim.world import World

T = TypeVar("T")

SCENES = ("two gcs", "gc without one", "gc meanwhile", "run unread")
PATIENCE_S = 10.0
STORES_S = 4.0
"""A run that stores nothing within this has nothing to store, or meets a fault."""
WAITS_S = 6.0
"""So long it is tried to begin a job while another of its kind runs."""
COLLECTED_S = 25.0
"""Longer than it takes to find out, each time that it is asked, that a node gives no answer."""
UNREAD = "[pc][ah]*s/*"
"""Packs and lone chunks."""
FINALES = ("gc without one", "run unread")
"""What is played in the end; where content expires: how it is collected meanwhile."""
RUN_AND_GC: tuple[JobKind, JobKind] = ("run", "gc")
LEARNT_S = 1.0
"""Within that all copies know of a write."""
LATE_S = 9.0
"""Less than the asker's patience; longer than collecting takes."""
EXPIRES_S = 2.0
"""What is over is gone within that; a node looks every second."""
TELLS_ROWS = "FindArchived"
"""The question where content is that is to be archived. (What is followed would make an export wait, and with it the collecting.)"""


async def at(world: World, machine: Machine, ask: Callable[[ArchiveParts], Coroutine[Any, Any, T]]) -> T:
    """Have a node do something of the archive. Raises: NotServing, NoAnswer; else what it raises."""
    process, parts = machine.process, machine.parts
    if process is None or parts is None or parts.archive is None or not machine.serving:
        raise NotServing
    task = world.loop.create_task(ask(parts.archive), context=process.context())
    # Nobody may be there any more to hear how it went.
    task.add_done_callback(lambda done: done.cancelled() or done.exception(), context=contextvars.Context())
    end_s = world.loop.time() + PATIENCE_S
    while not task.done():
        if not process.alive or world.loop.time() > end_s:
            if process.alive:
                task.cancel()
            raise NoAnswer("the node went away, or takes too long")
        await asyncio.sleep(0.01)
    if task.cancelled():
        raise NoAnswer("the node gave it up")
    return task.result()


def _works_at(kind: JobKind, machine: Machine) -> bool:
    """Whether such a job runs there."""
    archive = machine.parts.archive if machine.parts is not None else None
    statuses = archive.runner.statuses() if archive is not None else []
    return any(status.request.kind == kind and status.state == "running" for status in statuses)


def _precedence(rule: ArchiveRule) -> int:
    return len(rule.prefix)


class Scenes:
    """All of them."""

    def __init__(self, world: World, random: Random, faults: Faults) -> None:
        self._world = world
        self._random = random
        self._faults = faults

    async def play(self, kind: str) -> None:
        """One of :data:`SCENES`. Raises: NotServing, NoAnswer, AmberError: it did not come about."""
        match kind:
            case "two gcs":
                await self._two_gcs()
            case "gc without one":
                await self._gc_without_one()
            case "gc meanwhile":
                await self._gc_meanwhile()
            case "run unread":
                await self._run_unread()
            case _:
                raise AssertionError(kind)
        self._world.fired[f"job {kind}"] += 1

    def some(self, but: Machine | None = None) -> Machine:
        """One that answers, if there is any; not that one."""
        machines = [machine for machine in self._world.machines if machine is not but]
        return self._random.choice([machine for machine in machines if machine.serving] or machines)

    async def finale(self) -> None:
        """When everything works, once one of those things that need a lot to be in order. What there is to archive is written for it."""
        world, random, shape = self._world, self._random, self._world.shape
        kind = "gc meanwhile" if shape.expires else random.choice(FINALES)
        client = Client(world, random)
        assert shape.archive is not None
        path, rest_s = self._archived_path()
        await self._write(client, path)
        await asyncio.sleep(LEARNT_S + rest_s)
        try:
            if kind == "gc meanwhile":
                # What the first one shares with the last one is archived, and then nobody's; the last one is to be archived.
                await self._begin(self.some(), "run")
                await self._ended("run")
                for _ in range(shape.keep_versions + 1):
                    await self._write(client, path)
                await asyncio.sleep(shape.keep_s + EXPIRES_S + max(rest_s, shape.archive.grace_s))
            await self.play(kind)
        except (NotServing, NoAnswer, AmberError) as error:
            world.event(f"archivist: {kind} in the end: {str(error)[:80]}")

    def _archived_path(self) -> tuple[str, float]:
        """One whose rule sends everything, if there is one; and how long that rule leaves a version alone."""
        shape = self._world.shape
        assert shape.archive is not None
        paths = [f"p{number}" for number in range(shape.paths)]
        rules = {
            path: max((rule for rule in shape.archive.rules if path.startswith(rule.prefix)), key=_precedence)
            for path in paths
        }
        sent = [path for path in paths if rules[path].versions == "all" and rules[path].action.startswith("archive")]
        path = self._random.choice(sent or paths)
        return path, rules[path].older_than + rules[path].not_read_for

    async def _write(self, client: Client, path: str) -> None:
        """A large body, which has a chunk in common with all others of these."""
        world = self._world
        number = len(world.calls) + 1
        call = Call(number, path, "put", world.loop.time(), write_id=f"w{world.seed}-{number}")
        world.calls.append(call)
        await client.perform(call, staged=1.0, shared=b"the last")

    async def _gc_without_one(self) -> None:
        """A node has just archived something, and told nobody; the others collect while it is away."""
        world, random = self._world, self._random
        shape, bucket = world.shape.archive, world.bucket
        assert shape is not None and bucket is not None
        stored: asyncio.Future[str] = world.loop.create_future()

        def told(node: str, name: str) -> None:
            if not stored.done():
                stored.set_result(node)

        bucket.on_stored = told
        try:
            await self._begin(self.some(), "run")
            async with asyncio.timeout(STORES_S):
                name = await stored
        except TimeoutError:
            world.event("archivist: nothing is archived just now")
            return
        finally:
            bucket.on_stored = lambda node, name: None
        away = next(machine for machine in world.machines if machine.name == name)
        asked = self.some(but=away)
        others = [machine.name for machine in world.machines if machine is not away]
        if random.random() < 0.85:
            # Its rows come to its disk meanwhile. The others look for such every few seconds.
            await asyncio.sleep(random.choice((0.2, 0.5, 1.0)) + bucket.late_s)
            world.event(f"archivist: {away.name} is off after a run")
            self._faults.off(away, shape.grace_s + COLLECTED_S)
            try:
                await self._collect(asked, away)
            finally:
                self._faults.on(away)
            return
        links = {(away.name, other) for other in others} | {(other, away.name) for other in others}
        cut = world.network.cut
        links -= cut
        cut |= links
        world.event(f"archivist: {away.name} is cut off after a run")
        try:
            await self._collect(asked, away)
        finally:
            cut -= links
            world.event(f"archivist: {away.name} is there again")

    async def _begin(self, machine: Machine, kind: JobKind) -> None:
        """Have a job begun, if need be as soon as another one is through."""
        world = self._world
        end_s = world.loop.time() + WAITS_S
        while True:
            try:
                await at(world, machine, lambda archive: archive.cluster.start(JobWanted(kind=kind)))
                return
            except JobConflict:
                if world.loop.time() > end_s:
                    raise
            await asyncio.sleep(0.3)

    async def _collect(self, machine: Machine, away: Machine) -> None:
        """Have garbage collected while one is away, as soon as what is there is old enough; until that is done."""
        world = self._world
        shape = world.shape.archive
        assert shape is not None
        await asyncio.sleep(shape.grace_s + self._random.random())
        # Whoever has not found out yet that the first node is away leaves the collecting to that one.
        for other in world.machines:
            if other is not away and other.parts is not None and other.parts.archive is not None:
                peers = other.parts.archive.ground.coordinator.peers
                assert isinstance(peers, SimPeers)
                peers.doubt((away.name,))
        await self._begin(machine, "gc")
        await self._ended("gc")

    async def _ended(self, kind: JobKind) -> None:
        """Until no such job runs, or for long."""
        world = self._world
        end_s = world.loop.time() + COLLECTED_S
        while world.loop.time() < end_s and any(_works_at(kind, machine) for machine in world.machines):
            await asyncio.sleep(0.2)

    async def _run_unread(self) -> None:
        """Everything can be sent, and nothing be read back; also a look whether the archive answers goes well."""
        world, random = self._world, self._random
        bucket = world.bucket
        assert bucket is not None
        broken = bucket.fault("unavailable", "get", UNREAD)
        world.event("archivist: what is sent cannot be read back")
        try:
            await self._begin(self.some(), "run")
            await asyncio.sleep(1.0 + 4 * random.random())
        finally:
            if broken in bucket.faults:
                bucket.faults.remove(broken)
            world.event("archivist: what was sent can be read")

    async def _gc_meanwhile(self) -> None:
        """What nobody needs any more is collected while somebody is about to need it again; what nodes tell each other of it comes late."""
        world, random = self._world, self._random
        late = world.network.late
        late[TELLS_ROWS] = LATE_S
        world.event("archivist: rows are told late")
        try:
            for kind in random.choice((RUN_AND_GC, RUN_AND_GC, RUN_AND_GC[::-1])):
                await self._begin(self.some(), kind)
                await asyncio.sleep(random.choice((0.3, 1.0)) * random.random())
            for kind in RUN_AND_GC:
                await self._ended(kind)
        finally:
            late.clear()
            world.event("archivist: rows are told as ever")

    async def _two_gcs(self) -> None:
        """Two nodes each believe that the others cannot be reached, and collect."""
        world, random = self._world, self._random
        chosen = random.sample(world.machines, 2)
        for machine in chosen:

            async def begin(archive: ArchiveParts) -> None:
                ground = archive.ground
                peers = ground.coordinator.peers
                assert isinstance(peers, SimPeers)
                peers.doubt(ground.nodes())
                request = JobRequest(job=ground.mint.mint(), kind="gc", asked_at_ms=ground.now_ms())
                await archive.runner.start(request)

            await at(world, machine, begin)
        world.event(f"archivist: {' and '.join(machine.name for machine in chosen)} both collect")
