"""Moves of a slot in a cluster in one process: real replicas and coordinators; the mover's and the syncs' part is played here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random
from typing import Any

from msgspec.structs import replace

from amberblob.errors import ClusterError
from amberblob.mutations import Installed, Synced
from amberblob.wire import HistoryReply, QueryHistory
from node.protocol.operations import Finish
from node.protocol.quorum import Electorate, Vote, weigh
from registry.moves import to_aborted, to_final, to_joint, with_learner
from registry.routes import Route, RouteTable
from tests.unit.node.objects.kit import Cluster, Node

Change = Callable[[Route], Route]


class Mover:
    """Moves one slot. Each node hears of a route at its own time, up to ``late_s`` after it was made."""

    def __init__(self, made: Cluster, slot: int, *, late_s: float = 0.0, seed: int = 0) -> None:
        self.made = made
        self.slot = slot
        self.late_s = late_s
        self._random = Random(seed)
        self._seen: dict[str, RouteTable] = {}
        if late_s:
            for node in made:
                self._see(node.name)
                node.routing._table = partial(self._seen.__getitem__, node.name)

    def _see(self, name: str) -> None:
        assert self.made.table is not None
        self._seen[name] = self.made.table

    @property
    def route(self) -> Route:
        assert self.made.table is not None
        return self.made.table.route(self.slot)

    def change(self, change: Change) -> None:
        """A new route."""
        table = self.made.table
        assert table is not None
        routes = list(table.routes)
        routes[self.slot] = change(self.route)
        assert routes[self.slot].epoch == self.route.epoch + 1
        self.made.table = replace(table, routes=tuple(routes))
        if self.late_s:
            for node in self.made:
                asyncio.get_running_loop().call_later(self._random.random() * self.late_s, self._see, node.name)

    async def learn(self, names: Sequence[str]) -> None:
        """These nodes begin anew, become learners, and are filled."""
        for name in names:
            incarnation = await self.made.nodes[name].store.begin_anew(self.slot)
            self.change(partial(with_learner, node=name, incarnation=incarnation))
        for name in names:
            await self.fill(name)

    async def join(self, names: Sequence[str]) -> None:
        """JOINT."""
        self.change(lambda route: to_joint(route, names))

    async def end(self) -> None:
        """Every new member is filled in the JOINT epoch, has its bytes, and the route is final."""
        for member in self.route.next_voters:
            await self.fill(member.node)
            await self.made.nodes[member.node].pull()
        self.change(to_final)

    async def abort(self) -> None:
        self.change(to_aborted)

    async def move(self, names: Sequence[str], *, pause_s: float = 0.0) -> None:
        """All of it."""
        await self.learn([name for name in names if name not in self.route.voter_nodes])
        await asyncio.sleep(pause_s)
        await self.join(names)
        await asyncio.sleep(pause_s)
        await self.end()
        await asyncio.sleep(pause_s)

    async def fill(self, name: str) -> None:
        """The copy takes what a majority of the old set tells in this epoch; what is undecided is finished first."""
        node = self.made.nodes[name]
        while not await self._filled(node):
            await asyncio.sleep(0.01)

    async def _filled(self, node: Node) -> bool:
        route, epoch = self.route, self.route.epoch
        # One question at least: each answer leaves the older epochs.
        for path in self.paths() or ["nothing"]:
            told = await self._told(path, epoch)
            if told is None:
                return False
            whole = replace(route, state="stable", next_voters=(), learners=())
            majority = electorate_of(whole)
            finding = weigh(majority, [Vote(n, r.accepted, r.record, r.chosen) for n, r in told.items()])
            if finding.record is None:
                continue
            if not any(reply.chosen for reply in told.values() if reply.accepted == finding.ballot):
                await self._finish(node, path)
                return False
            rows = {row.version.version: row.version for reply in told.values() for row in reply.rows}
            node.store.apply(
                Installed(self.slot, path, finding.ballot, finding.record, tuple(rows.values()), finding.record.writes)
            )
        states = [self.made.nodes[n].store.slot_state(self.slot) for n in route.voter_nodes]
        floor, version_floor = max(s.ballot_floor for s in states), max(s.version_floor for s in states)
        if self.route.epoch != epoch:
            return False
        node.store.apply(Synced(self.slot, epoch, floor, version_floor))
        node.puller.look_again()
        await node.store.durable(node.store.position(self.slot, ""))
        return True

    def paths(self) -> list[str]:
        """Whatever any copy of the slot knows of."""
        return sorted({path for store in self.made.stores.values() for path in _registers(store, self.slot)})

    async def _told(self, path: str, epoch: int) -> dict[str, HistoryReply] | None:
        told = {}
        for member in self.route.voters:
            if member.node in self.made.net.down:
                continue
            request = QueryHistory(slot=self.slot, path=path, epoch=epoch, limit=1000)
            reply = await self.made.nodes[member.node].replica.handle("test", request)
            if isinstance(reply, HistoryReply) and reply.incarnation == member.incarnation:
                told[member.node] = reply
        return told if len(told) >= self.route.majority else None

    async def _finish(self, node: Node, path: str) -> None:
        try:
            await node.coordinator.write(node.routing.electorate(self.slot), path, Finish())
        except ClusterError:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # LEARNs


def _registers(store: Any, slot: int) -> Iterable[str]:
    known = store._slots.get(slot)
    return known.registers if known is not None else {}


def electorate_of(route: Route) -> Electorate:
    voters = {member.node: member.incarnation for member in route.voters}
    return Electorate(slot=route.slot, epoch=route.epoch, voters=voters, write_quorum=route.majority)
