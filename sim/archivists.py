"""Who works with the archive of a world: operators that ask nodes for jobs, at any time, and stop them, as the HTTP layer has it done."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, cast

from amberblob.archivejobs import JobKind, JobWanted
from amberblob.errors import AmberError
from sim.archivescenes import SCENES, Scenes, at
from sim.archiveshape import JOBS
from sim.clients import NoAnswer, NotServing

if TYPE_CHECKING:
    from sim.faults import Faults
    from sim.machine import Machine
    from sim.world import World

BEGINS_S = 1.0
"""Before there is anything, nobody asks for a job."""


class Archivists:
    """All of them."""

    def __init__(self, world: World, random: Random, faults: Faults) -> None:
        self._world = world
        self._random = random
        self._scenes = Scenes(world, random, faults)
        self._jobs: list[str] = []

    async def finale(self) -> None:
        """When everything works: see :meth:`sim.archivescenes.Scenes.finale`."""
        await self._scenes.finale()

    async def working(self, gap_s: float) -> None:
        """One thing after another."""
        random = self._random
        await asyncio.sleep(BEGINS_S)
        while True:
            await asyncio.sleep(random.expovariate(1.0) * gap_s)
            kind = random.choices(list(JOBS), list(JOBS.values()))[0]
            machine = self._scenes.some()
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
            case _ if kind in SCENES:
                await self._scenes.play(kind)
                return
            case _:
                prefix = random.choice(("p0", "p1")) if random.random() < 0.15 else ""
                wanted = JobWanted(kind=cast(JobKind, kind), prefix=prefix, dry_run=random.random() < 0.05)
                started = await at(world, machine, lambda archive: archive.cluster.start(wanted))
                self._jobs.append(started.job)
                world.event(f"archivist: {machine.name} begins {kind} {started.job[-4:]} on {', '.join(started.nodes)}")
        world.fired[f"job {kind}"] += 1
