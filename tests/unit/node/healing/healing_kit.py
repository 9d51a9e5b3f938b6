"""What tests of healing share: let all nodes work until nothing is left to do, and say whether their copies are equal."""

from __future__ import annotations

import asyncio
from typing import Any

from antientropy.step import Did
from tests.unit.node.objects.kit import Cluster, Node

ROUNDS_MAX = 60
STEPS_MAX = 3000


async def work(made: Cluster, worker: Any) -> bool:
    """Run a worker until it has nothing to do; whether it had."""
    for count in range(STEPS_MAX):
        if await worker.step() is Did.NOTHING:
            return count > 0
        await asyncio.sleep(0)
    raise AssertionError(f"{worker.name} does not come to an end")


async def round_of(made: Cluster, *, away: frozenset[str] | set[str] = frozenset()) -> None:
    """Every node does what is due; then a little time goes by."""
    for node in made:
        if node.name in away:
            continue
        for worker in node.parts.workers():
            if worker.name != "sweeper":
                await work(made, worker)
        await made.see_routes()
    await made.settle()
    made.clock.ahead_s += 6.0


def roots(made: Cluster, slot: int, *, away: frozenset[str] | set[str] = frozenset()) -> dict[str, bytes]:
    """The digest of each copy of the slot."""
    assert made.table is not None
    return {
        node: made[int(node[1:])].store.tally(slot).root
        for node in made.table.route(slot).voter_nodes
        if node not in away
    }


def is_well(made: Cluster, *, away: frozenset[str] | set[str] = frozenset()) -> bool:
    """All copies are equal, have a voice, and have all their bytes."""
    assert made.table is not None
    for slot in range(made.table.slot_count):
        if len(set(roots(made, slot, away=away).values())) != 1:
            return False
        for name in made.table.route(slot).voter_nodes:
            if name not in away and not is_whole(made[int(name[1:])], slot):
                return False
    return True


def is_whole(node: Node, slot: int) -> bool:
    """The node's copy has a voice, and all its bytes."""
    return node.routing.mute(node.store.slot_state(slot)) is None and node.store.tally(slot).wanted == 0


async def healed(made: Cluster, *, away: frozenset[str] | set[str] = frozenset()) -> int:
    """Let time go by until all is well; how many rounds it took."""
    for count in range(ROUNDS_MAX):
        if is_well(made, away=away):
            return count
        await round_of(made, away=away)
    assert made.table is not None
    told = {
        slot: {node: root.hex()[:8] for node, root in roots(made, slot, away=away).items()}
        for slot in range(made.table.slot_count)
    }
    raise AssertionError(f"not well after {ROUNDS_MAX} rounds: {told}")
