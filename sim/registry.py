"""The registry of a world: the one table of routes, and what each machine has seen of it so far.

Machines hear of a change late, each at its own time, and not at all while their registry is down; what they have seen they keep
over a restart, as a node does in its cache. Only a machine's own copies are changed here (rfc/0012), by the functions that
the real registry uses.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import Callable, Collection
from random import Random

import msgspec

from amberblob.errors import RegistryUnavailable
from node.workers.rejoin import Readmit
from registry.readmit import IncarnationOf, Readmission, named_in, why_not, with_blank_copy
from registry.routes import RouteTable
from sim.loop import SimLoop


class SimRegistry:
    """See the module.

    Args:
        late_s: how late a machine hears of a change, on average.
        fired: counts what happened.
        note: writes a line of the trace.
    """

    def __init__(
        self, loop: SimLoop, random: Random, fired: Counter[str], note: Callable[[str], None], *, late_s: float
    ) -> None:
        self.table: RouteTable | None = None
        self.down = False
        self._loop = loop
        self._random = random
        self._fired = fired
        self._note = note
        self._late_s = late_s
        self._seen: dict[str, RouteTable] = {}

    def begin(self, table: RouteTable) -> None:
        """The first routes; every machine knows them at once."""
        self.table = table
        self._seen = dict.fromkeys(table.nodes, table)

    def seen(self, machine: str) -> RouteTable | None:
        """What the machine has seen."""
        return self._seen.get(machine)

    def _publish(self) -> None:
        for machine in self._seen:
            self._later(self._random.expovariate(1.0) * self._late_s, machine)

    def _later(self, delay_s: float, machine: str) -> None:
        # The others hear of it also when the machine that changed it dies meanwhile: the news is no part of its process.
        self._loop.call_later(delay_s, self._hear, machine, context=contextvars.Context())

    def _hear(self, machine: str) -> None:
        assert self.table is not None
        if self.down:
            self._later(0.5, machine)
        else:
            self._seen[machine] = self.table

    def readmit_for(self, machine: str) -> Readmit:
        """As :func:`registry.readmit.readmit`, for one machine."""

        async def readmit(
            slots: Collection[int], incarnation_of: IncarnationOf, *, seen_epoch: Callable[[int], int]
        ) -> Readmission:
            result = Readmission()
            for slot in slots:
                await asyncio.sleep(self._random.random() * 0.02)
                if self.down:
                    raise RegistryUnavailable("simulated: the registry is down")
                assert self.table is not None
                route = self.table.route(slot)
                refusal = why_not(route, machine, seen_epoch(slot))
                named = named_in(route, machine)
                if refusal is not None or named is None:
                    result.refused[slot] = refusal or "no voter"
                    continue
                incarnation = await incarnation_of(slot, named)
                await asyncio.sleep(self._random.random() * 0.02)
                if incarnation == named:
                    result.named.add(slot)
                elif self.table.route(slot) is not route:
                    result.contended.add(slot)
                else:
                    after = with_blank_copy(route, machine, incarnation)
                    routes = tuple(after if each is route else each for each in self.table.routes)
                    self.table = msgspec.structs.replace(self.table, routes=routes)
                    result.changed[slot] = after
                    self._fired["copy readmitted"] += 1
                    self._note(f"route of slot {slot}: {machine} has a blank copy, epoch {after.epoch}")
                    self._publish()
            return result

        return readmit
