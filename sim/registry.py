"""The registry of a world: the one table of routes, and what each machine has seen of it so far.

Machines hear of a change late, each at its own time, and not at all while their registry is down; what they have seen they keep
over a restart, as a node does in its cache. A machine's own copies are named (rfc/0012) by the functions that the real registry
uses; slots are moved, and plans made (rfc/0013), by the very code, over keys and revisions like the real ones: :class:`SimKeys`.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from random import Random

import msgspec

from amberblob.errors import RegistryUnavailable
from node.workers.rejoin import Readmit
from registry.common import Transacting
from registry.interface import (
    Change,
    Compacted,
    CompareAndSet,
    Entry,
    Lease,
    Operation,
    Snapshot,
    check_operations,
)
from registry.keys import Keys
from registry.readmit import IncarnationOf, Readmission, named_in, why_not, with_blank_copy
from registry.routes import Membership, Move, NodeInfo, Route, RouteTable, decode, encode
from sim.loop import SimLoop

LOST_ANSWERS = 0.04
"""The part of all changes of which the answer is lost; half of them were not made."""


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
        self.unlucky = True
        """Whether answers are lost."""
        self._revision = 0
        self._entries: dict[str, Entry] = {}
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
        keys = self.keys
        self._enter(keys.cluster, encode(table.cluster))
        for node, info in table.nodes.items():
            self._enter(keys.node(node), encode(info))
        for route in table.routes:
            self._enter(keys.route(route.slot), encode(route))

    def seen(self, machine: str) -> RouteTable | None:
        """What the machine has seen."""
        return self._seen.get(machine)

    @property
    def keys(self) -> Keys:
        """The names of what is kept."""
        assert self.table is not None
        return Keys(self.table.cluster.name)

    def for_node(self, machine: str, random: Random) -> SimKeys:
        """The registry as one machine, or an operator at it, reaches it. ``random``: of its delays."""
        return SimKeys(self, machine, self._loop, random, self._fired)

    def _enter(self, key: str, value: bytes) -> None:
        self._revision += 1
        self._entries[key] = Entry(key, value, self._revision)

    def read(self, prefix: str) -> Snapshot:
        """Everything under a prefix, now."""
        found = (entry for key, entry in sorted(self._entries.items()) if key.startswith(prefix))
        return Snapshot(tuple(found), self._revision)

    def change(self, operations: Sequence[Operation], who: str) -> int | None:
        """All or none of them, now."""
        assert self.table is not None
        for each in operations:
            entry = self._entries.get(each.key)
            if each.expected_revision != (0 if entry is None else entry.revision):
                self._fired["registry conflict"] += 1
                return None
        self._revision += 1
        for each in operations:
            if isinstance(each, CompareAndSet):
                self._entries[each.key] = Entry(each.key, each.value, self._revision)
            else:
                del self._entries[each.key]
        before = self.table
        self.table = self._table_of(before)
        self._tell(before, self.table, who)
        self._publish()
        return self._revision

    def _table_of(self, before: RouteTable) -> RouteTable:
        """What the keys say; values that did not change stay the same objects."""
        keys = self.keys
        routes = list(before.routes)
        for slot, old in enumerate(before.routes):
            new = decode(self._entries[keys.route(slot)].value, Route, "route")
            if new != old:
                assert new.epoch == old.epoch + 1, f"epoch {old.epoch} is followed by {new.epoch}"
                routes[slot] = new
        moves = {
            move.slot: move
            for entry in self.read(keys.moves).entries
            for move in [decode(entry.value, Move, entry.key)]
        }
        nodes = {
            info.node_id: info
            for entry in self.read(keys.nodes).entries
            for info in [decode(entry.value, NodeInfo, entry.key)]
        }
        wanted = self._entries.get(keys.membership)
        membership = None if wanted is None else decode(wanted.value, Membership, keys.membership)
        return msgspec.structs.replace(before, routes=tuple(routes), nodes=nodes, moves=moves, membership=membership)

    def _tell(self, before: RouteTable, after: RouteTable, who: str) -> None:
        for old, new in zip(before.routes, after.routes, strict=True):
            if new is old:
                continue
            what = _what(old, new)
            self._fired[what] += 1
            voters = ", ".join(member.node for member in new.voters)
            to = f" to {', '.join(member.node for member in new.next_voters)}" if new.next_voters else ""
            learners = f", learners {', '.join(member.node for member in new.learners)}" if new.learners else ""
            self._note(f"{what}: slot {new.slot} by {who}, epoch {new.epoch}: {voters}{to}{learners}")
        if len(after.moves) < len(before.moves):
            self._fired["moves done"] += len(before.moves) - len(after.moves)

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
                    self._enter(self.keys.route(slot), encode(after))
                    result.changed[slot] = after
                    self._fired["copy readmitted"] += 1
                    self._note(f"route of slot {slot}: {machine} has a blank copy, epoch {after.epoch}")
                    self._publish()
            return result

        return readmit


def _what(old: Route, new: Route) -> str:
    """What became of a route, in two words."""
    if old.state == "joint":
        return "joint finished" if new.voters == old.next_voters else "joint aborted"
    if new.state == "joint":
        return "joint begun"
    named = {member for member in new.learners} - set(old.learners)
    return "learner named" if named else "learners dropped"


class SimKeys(Transacting):
    """Implements :class:`registry.interface.Registry` for whoever is at one machine, but for watches and leases: nobody there has any."""

    def __init__(self, registry: SimRegistry, machine: str, loop: SimLoop, random: Random, fired: Counter[str]) -> None:
        self._registry = registry
        self._machine = machine
        self._random = random
        self._fired = fired

    async def _way(self) -> None:
        await asyncio.sleep(self._random.random() * 0.02)
        if self._registry.down:
            raise RegistryUnavailable("simulated: the registry is down")

    async def get(self, key: str) -> Entry | None:
        await self._way()
        return next((entry for entry in self._registry.read(key).entries if entry.key == key), None)

    async def range(self, prefix: str) -> Snapshot:
        await self._way()
        return self._registry.read(prefix)

    async def transact(self, operations: Sequence[Operation]) -> int | None:
        check_operations(operations)
        await self._way()
        lost = self._registry.unlucky and self._random.random() < LOST_ANSWERS
        if lost:
            self._fired["lost answer of the registry"] += 1
            if self._random.random() < 0.5:
                raise RegistryUnavailable("simulated: the request was lost")
        revision = self._registry.change(operations, self._machine)
        await self._way()
        if lost:
            raise RegistryUnavailable("simulated: the answer was lost")
        return revision

    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[Change | Compacted, None]:
        raise AssertionError("nobody watches in a world")

    async def lease(self, ttl_s: float) -> Lease:
        raise AssertionError("nobody has a lease in a world")

    async def close(self) -> None:
        """Nothing is open."""
