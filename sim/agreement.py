"""Whether all copies agree at the end: equal digests, every chunk there, nothing undecided, every copy with its vote back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from registry.routes import NodeState
from sim.clients import Violation

if TYPE_CHECKING:
    from registry.routes import Route
    from sim.machine import Machine
    from sim.world import World

AGREEMENT_S = 300.0
"""Within this virtual time after everything works. Comparing, pulling and resolving have pauses that grow to a minute."""


async def agree(world: World) -> None:
    """Wait until all copies agree. Raises: Violation."""
    began = world.loop.time()
    apart = ["not looked yet"]
    while apart:
        if world.loop.time() - began > AGREEMENT_S:
            raise Violation(
                f"copies that do not agree {AGREEMENT_S:g} s after everything works: {'; '.join(apart[:8])}"
            )
        await asyncio.sleep(1.0)
        apart = await _apart(world)
    world.fired["agreements"] += 1
    world.event(f"all copies agree {world.loop.time() - began:.1f} s after everything works")


async def _apart(world: World) -> list[str]:
    """What the copies lack yet."""
    table = world.table
    assert table is not None
    machines = {machine.name: machine for machine in world.machines}
    found: list[str] = []
    if table.membership is not None:
        if table.membership.planning:
            found.append("a plan is half written")
        removed = [node for node, state in table.membership.nodes.items() if state is NodeState.REMOVED]
        found += [f"{node} is removed and registered" for node in removed if node in table.nodes]
    for slot, move in table.moves.items():
        found.append(f"slot {slot} is to go to {', '.join(move.nodes)}")
    for route in table.routes:
        if route.state == "joint" or route.learners:
            found.append(f"slot {route.slot} is in motion: {_why(world, route)}")
        roots: dict[str, bytes] = {}
        for member in route.voters:
            machine = machines[member.node]
            store, parts = machine.store, machine.parts
            if store is None or parts is None or not machine.serving:
                return [f"{member.node} does not serve"]
            state = store.slot_state(route.slot)
            where = f"slot {route.slot} on {member.node}"
            if state.incarnation != member.incarnation:
                found.append(f"{where} is not the copy that the route names")
                continue
            if member.since > 1 and state.synced_epoch < member.since:
                why = parts.repairer.unsynced_why(route.slot)
                found.append(f"{where} was not filled: {why or 'not tried'}")
                continue
            if not await _settled(world, machine, route.slot):
                return [f"{member.node} went away"]
            tally = store.tally(route.slot)
            roots[member.node] = tally.root
            if tally.wanted:
                found.append(f"{where} wants {tally.wanted} versions")
            if waiting := parts.resolver.waiting:
                found.append(f"{member.node} has {waiting} undecided")
        for name, machine in machines.items():
            if name not in route.all_nodes and not await _given_up(world, machine, route.slot):
                found.append(f"slot {route.slot} was left by {name} and is there yet")
        if len(set(roots.values())) > 1:
            found.append(f"slot {route.slot} differs: { ({name: root.hex()[:8] for name, root in roots.items()}) }")
    return found


def _why(world: World, route: Route) -> str:
    """What its leader says of a slot in motion."""
    parts = [machine.parts for machine in world.machines if machine.parts is not None]
    told = [facts for part in parts if part.mover is not None for facts in part.mover.facts()]
    return "; ".join(f"{facts.stage}: {facts.why}" for facts in told if facts.slot == route.slot) or "nobody leads it"


async def _given_up(world: World, machine: Machine, slot: int) -> bool:
    """Whether nothing is left of a copy that no route names."""
    process, store = machine.process, machine.store
    if process is None or store is None:
        return False
    task = world.loop.create_task(store.holds(slot), context=process.context())
    while not task.done():
        if not process.alive:
            return False
        await asyncio.sleep(0.01)
    return not task.result()


async def _settled(world: World, machine: Machine, slot: int) -> bool:
    """Have the slot's database hold everything; False when the machine died meanwhile."""
    process, store = machine.process, machine.store
    assert process is not None and store is not None
    task = world.loop.create_task(store.settle([slot]), context=process.context())
    while not task.done():
        if not process.alive:
            return False
        await asyncio.sleep(0.01)
    task.result()
    return True
