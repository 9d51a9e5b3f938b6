"""What operators do to the set of nodes of a world, two at once now and then, and what befalls the slots that move for it."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING

from registry.interface import CompareAndSet, Operation
from registry.routes import Membership, Move, NodeState, Route, RouteTable, encode

if TYPE_CHECKING:
    from sim.machine import Machine
    from sim.world import World

ACTIVE_MIN = 2
"""So many nodes stay: what only one has is gone with its disk, and nobody promised otherwise."""

JOINT_AWAITED_S = 20.0


class Operators:
    """Changes which nodes are to hold slots, and how."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random

    async def change(self, kind: str) -> None:
        """One change of this kind (of :data:`sim.shape.FAULTS_OF_MEMBERS`), as far as the world has nodes for it."""
        random = self._random
        match kind:
            case "join" | "drain" | "replace":
                self._plan(kind)
            case "two operators":
                for _ in range(random.choice((2, 2, 3))):
                    self._plan(random.choice(("join", "drain", "replace")))
                    await asyncio.sleep(random.expovariate(1.0))
            case _:
                self._plan(random.choice(("join", "replace", "drain")))

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
        if registry.down:
            return
        states = {node: state for node in table.nodes if (state := table.state_of(node)) is not None}
        active = sorted(node for node, state in states.items() if state is NodeState.ACTIVE)
        others = sorted(set(table.nodes) - set(active))
        if kind in ("join", "replace"):
            if not others:
                return
            states[random.choice(others)] = NodeState.ACTIVE
        if kind in ("drain", "replace"):
            if len(active) <= ACTIVE_MIN:
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
