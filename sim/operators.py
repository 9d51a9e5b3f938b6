"""What operators do to the set of nodes of a world, two at once now and then, and what befalls the slots that move for it."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from amberblob.errors import AmberError, RegistryUnavailable
from registry.interface import CompareAndSet, Operation
from registry.membership import Action, change
from registry.routes import Membership, Move, NodeState, Route, RouteTable, encode
from sim.machine import WALL_MS

if TYPE_CHECKING:
    from sim.machine import Machine
    from sim.world import World

ACTIVE_MIN = 2
"""So many nodes stay: what only one has is gone with its disk, and nobody promised otherwise."""

ACTIVE_MIN_OF_LOSSES = 3
"""So many where a disk or a database is lost. Of two copies one may be left with what is undecided, and that needs both."""

JOINT_AWAITED_S = 20.0

BY_LOT = 0.3
"""The part of all changes whose plan is drawn by lot: it moves more, and other things, than a sensible one."""

DIES = 0.2
"""The part of operators whose command dies in the middle."""


class Operators:
    """Changes which nodes are to hold slots, and how."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self._active_min = (
            ACTIVE_MIN_OF_LOSSES if {"new disk", "database damage"} & set(world.shape.faults) else ACTIVE_MIN
        )
        self._changing = 0
        self._alone = False
        """Whether a change is made that two at once would carry too far."""

    async def change(self, kind: str) -> None:
        """One change of this kind (of :data:`sim.shape.FAULTS_OF_MEMBERS`), as far as the world has nodes for it."""
        random = self._random
        if self._alone:
            return
        match kind:
            case "join" | "drain" | "replace" | "remove":
                await self._one(kind)
            case "two operators":
                kinds = [random.choice(("join", "drain", "replace", "remove")) for _ in range(random.choice((2, 2, 3)))]
                self._world.fired[kind] += 1
                await asyncio.gather(*(self._one(each, after_s=random.random() * 0.1) for each in kinds))
            case _:
                await self._one(random.choice(("join", "replace", "drain")))

    async def _one(self, kind: str, after_s: float = 0.0) -> None:
        """A change by the code that operators use, who may die of it; or one with a plan that is drawn by lot."""
        random = self._random
        await asyncio.sleep(after_s)
        if self._alone:
            return
        if random.random() < BY_LOT:
            self._plan(kind)
            return
        self._changing += 1
        try:
            for action, node in self._steps(kind):
                await self._ask(action, node)
        finally:
            self._changing -= 1

    def _steps(self, kind: str) -> list[tuple[Action, str]]:
        random, table = self._random, self._table()
        states = {node: table.state_of(node) for node in sorted(table.nodes)}
        active = [node for node, state in states.items() if state is NodeState.ACTIVE]
        others = [node for node, state in states.items() if state in (None, NodeState.DRAINING)]
        steps: list[tuple[Action, str]] = []
        if kind in ("join", "replace") and others:
            steps.append((Action.JOIN, random.choice(others)))
        if kind in ("drain", "replace") and active:
            steps.append((Action.DRAIN, random.choice(active)))
        if kind == "remove":
            draining = [node for node, state in states.items() if state is NodeState.DRAINING]
            if draining or active:
                steps.append((Action.REMOVE, random.choice(draining or active)))
        return steps

    async def _ask(self, action: Action, node: str) -> None:
        world, random, table = self._world, self._random, self._table()
        active = sum(table.state_of(each) is NodeState.ACTIVE for each in table.nodes)
        # Below the number of replicas only one at a time goes, so that enough are left.
        few = action is not Action.JOIN and active <= world.shape.replicas
        if few and (active <= self._active_min or self._changing > 1):
            return
        keys = world.registry.for_node("operator", random)
        self._alone = few
        task = world.loop.create_task(
            change(
                keys, table.cluster, action, (node,), now_ms=lambda: WALL_MS + int(world.loop.time() * 1000), force=True
            )
        )
        dies_s = random.random() * 0.1 if random.random() < DIES else float("inf")
        try:
            began_s = world.loop.time()
            while not task.done() and world.loop.time() - began_s < dies_s:
                await asyncio.sleep(0.005)
            if not task.done():
                task.cancel()
                world.fired["operator died"] += 1
                world.event(f"operator: dies while it has {node} {action}")
                return
            outcome = task.result()
        except (AmberError, RegistryUnavailable) as error:
            world.fired["operator refused"] += 1
            world.event(f"operator: {action} {node}: {str(error)[:80]}")
            return
        finally:
            self._alone = False
        world.fired[action.value] += 1
        moves = ", ".join(f"{slot} to {'/'.join(nodes)}" for slot, nodes in sorted(outcome.plan.targets.items()))
        world.event(f"operator: {action} {node}; slots {moves}")

    async def joint(self) -> Route | None:
        """The first route that is joint from now on; None: there is none for long."""
        for _ in range(int(JOINT_AWAITED_S / 0.02)):
            joint = [route for route in self._table().routes if route.state == "joint"]
            if joint:
                return self._random.choice(joint)
            await asyncio.sleep(0.02)
        return None

    def victims(self, route: Route, lost: Machine) -> list[Machine]:
        """Who is to be killed in a joint epoch, the likelier the more depends on it: new members, old ones, the leader."""
        random, machines = self._random, {machine.name: machine for machine in self._world.machines}
        old = set(route.voter_nodes)
        new = [machines[member.node] for member in route.next_voters if member.node not in old]
        if lost in new:
            return [lost]
        choices = [
            [random.choice(new)] if new else [],
            [machines[route.voter_nodes[0]]],
            [machines[random.choice(sorted(old))]],
            [machines[node] for node in route.all_nodes],
        ]
        return random.choice([each for each in choices if each])

    def _table(self) -> RouteTable:
        table = self._world.table
        assert table is not None
        return table

    def _plan(self, kind: str) -> None:
        """Write down what is wanted: who is active, and where each slot is to go."""
        table, random, registry = self._table(), self._random, self._world.registry
        if registry.down or kind == "remove":
            return
        states = {node: state for node in table.nodes if (state := table.state_of(node)) is not None}
        active = sorted(node for node, state in states.items() if state is NodeState.ACTIVE)
        others = sorted(node for node in table.nodes if table.state_of(node) in (None, NodeState.DRAINING))
        if kind in ("join", "replace"):
            if not others:
                return
            states[random.choice(others)] = NodeState.ACTIVE
        if kind in ("drain", "replace"):
            if len(active) <= (
                self._active_min if not self._changing else max(self._active_min, self._world.shape.replicas)
            ):
                return
            states[random.choice(active)] = NodeState.DRAINING
        active = sorted(node for node, state in states.items() if state is NodeState.ACTIVE)
        generation = 1 if table.membership is None else table.membership.generation + 1
        wanted = Membership(generation=generation, nodes=states, action=kind)
        operations: list[Operation] = [self._set(registry.keys.membership, encode(wanted))]
        for route in table.routes:
            nodes = self._nodes_for(route, active)
            if set(nodes) != set(route.voter_nodes) or route.state == "joint" or route.slot in table.moves:
                move = Move(slot=route.slot, generation=generation, nodes=nodes)
                operations.append(self._set(registry.keys.move(route.slot), encode(move)))
        assert registry.change(operations, f"operator: {kind}") is not None
        self._world.fired[kind] += 1
        moves = ", ".join(f"{slot} to {'/'.join(move.nodes)}" for slot, move in sorted(self._table().moves.items()))
        self._world.event(f"operator: {kind}; active are {', '.join(active)}; slots {moves}")

    def _nodes_for(self, route: Route, active: list[str]) -> tuple[str, ...]:
        """As many as there are to be; mostly those that hold it now, as far as they may."""
        random = self._random
        count = min(self._world.shape.replicas, len(active))
        held = [member.node for member in route.next_voters or route.voters if member.node in active]
        if random.random() < 0.3:
            held = random.sample(held, max(0, len(held) - 1))
        rest = [node for node in active if node not in held]
        return tuple((held + random.sample(rest, len(rest)))[:count])

    def _set(self, key: str, value: bytes) -> CompareAndSet:
        entries = self._world.registry.read(key).entries
        return CompareAndSet(key=key, expected_revision=entries[0].revision if entries else 0, value=value)
