"""Who works with the archive of a world: operators that ask nodes for jobs, at any time, and stop them, as the HTTP layer has it done."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar, cast

from amberblob.archivejobs import JobKind, JobWanted
from amberblob.errors import AmberError
from node.archive.jobs import JobRequest
from node.archive.parts import ArchiveParts
from sim.archiveshape import JOBS
from sim.clients import NoAnswer, NotServing
from sim.network import SimPeers

if TYPE_CHECKING:
    from sim.machine import Machine
    from sim.world import World

T = TypeVar("T")

PATIENCE_S = 10.0
BEGINS_S = 1.0
"""Before there is anything, nobody asks for a job."""


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


class Archivists:
    """All of them."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self._jobs: list[str] = []

    async def working(self, gap_s: float) -> None:
        """One thing after another."""
        random = self._random
        await asyncio.sleep(BEGINS_S)
        while True:
            await asyncio.sleep(random.expovariate(1.0) * gap_s)
            kind = random.choices(list(JOBS), list(JOBS.values()))[0]
            machine = random.choice(self._world.machines)
            try:
                await self._ask(machine, kind)
            except (NotServing, NoAnswer):
                self._world.fired["job not asked for"] += 1
            except AmberError as error:
                self._world.fired["job refused"] += 1
                self._world.event(f"archivist: {kind} by {machine.name}: {str(error)[:80]}")

    async def _ask(self, machine: Machine, kind: str) -> None:
        world, random = self._world, self._random
        match kind:
            case "stop":
                if self._jobs:
                    job = random.choice(self._jobs[-3:])
                    await at(world, machine, lambda archive: archive.cluster.stop(job))
                    world.fired["job stopped"] += 1
                    world.event(f"archivist: {machine.name} has {job} stopped")
                return
            case "two gcs":
                await self._two_gcs()
            case "gc without one":
                await self._gc_without_one()
            case _:
                prefix = random.choice(("p0", "p1")) if random.random() < 0.15 else ""
                wanted = JobWanted(kind=cast(JobKind, kind), prefix=prefix, dry_run=random.random() < 0.05)
                started = await at(world, machine, lambda archive: archive.cluster.start(wanted))
                self._jobs.append(started.job)
                world.event(f"archivist: {machine.name} begins {kind} {started.job[-4:]} on {', '.join(started.nodes)}")
        world.fired[f"job {kind}"] += 1

    async def _gc_without_one(self) -> None:
        """A node has just archived something, and told nobody; the others collect while it is away."""
        world, random = self._world, self._random
        shape = world.shape.archive
        assert shape is not None
        away, asked = random.sample(world.machines, 2)
        others = [machine.name for machine in world.machines if machine is not away]
        await at(world, away, lambda archive: archive.cluster.start(JobWanted(kind="run")))
        await asyncio.sleep(random.random() * 2.0)
        links = {(away.name, other) for other in others} | {(other, away.name) for other in others}
        cut = world.network.cut
        links -= cut
        cut |= links
        world.event(f"archivist: {away.name} is cut off after a run")
        try:
            await asyncio.sleep(shape.grace_s + random.random())
            await at(world, asked, lambda archive: archive.cluster.start(JobWanted(kind="gc")))
            await asyncio.sleep(2.0 + 4 * random.random())
        finally:
            cut -= links
            world.event(f"archivist: {away.name} is there again")

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
