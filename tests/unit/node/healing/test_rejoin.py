"""Copies that lost their memory come back by themselves: named in the routes again, filled, and voters."""

from __future__ import annotations

from typing import Any

import pytest

from amberblob.errors import ClusterError, NotFound
from antientropy.step import Did
from chunkstore.memory import MemoryStore
from tests.unit.node.healing.healing_kit import healed, round_of
from tests.unit.node.objects.kit import STAGED, Cluster, cluster, content, delete, get, put

PATHS = [f"p{n}" for n in range(40)]


async def filled(made: Cluster) -> dict[str, bytes]:
    """Some objects, one in four of them with files, one in five deleted."""
    bodies = {}
    for at, path in enumerate(PATHS):
        body = content(STAGED if at % 4 == 0 else 100 + at, at)
        await put(made[1 + at % 3], path, body)
        if at % 5 == 0:
            await delete(made[1 + at % 3], path)
        else:
            bodies[path] = body
    await made.settle()
    return bodies


async def everything(made: Cluster, number: int, bodies: dict[str, bytes]) -> None:
    for path in PATHS:
        if path in bodies:
            assert await get(made[number], path) == bodies[path]
        else:
            with pytest.raises(NotFound):
                await get(made[number], path)


def restart(made: Cluster, number: int, store: Any) -> None:
    """The node's process begins anew on this disk."""
    name = f"n{number}"
    made.stores[name] = store
    made.start(name)


def empty_disk(name: str) -> MemoryStore:
    return MemoryStore(name)


async def test_a_lost_slot_is_named_filled_and_votes_again():
    async with cluster() as made:
        bodies = await filled(made)
        slot = made.slot(PATHS[1])
        made[2].store.lose_slot(slot, "01FRESH")
        await healed(made)
        (member,) = (m for m in made.table.route(slot).voters if m.node == "n2")
        assert (member.incarnation, member.since, made.table.route(slot).epoch) == ("01FRESH", 2, 2)
        assert all(route.epoch == 1 for route in made.table.routes if route.slot != slot)
        # It is one of the two that are there: without its vote nothing goes.
        made.net.down = {"n3"}
        await everything(made, 1, bodies)
        await put(made[1], PATHS[1], b"again")
        assert await get(made[2], PATHS[1]) == b"again"


@pytest.mark.parametrize("size", [6, STAGED])
async def test_of_two_nodes_one_is_filled_with_what_the_other_has_not_heard_to_be_chosen(size: int):
    """Acknowledged by both, nobody was told, and one of them loses its memory: no round can finish it, each needs both."""
    async with cluster(2, replicas=2) as made:
        path = PATHS[1]
        slot = made.slot(path)
        await put(made[1], path, b"first")
        await made.settle()
        made.net.fault("Learn", "drop")
        for other in (path, PATHS[2]):
            await put(made[1], other, b"second" if size == 6 else content(size, 5))
        await made.settle()
        assert not made[1].register(path).chosen and not made[2].register(path).chosen
        made[2].store.lose_slot(slot, "01FRESH")
        made.net.rules.clear()
        await healed(made)
        data = b"second" if size == 6 else content(size, 5)
        assert await get(made[2], path) == await get(made[1], path) == data
        assert made[2].store.slot_state(slot).synced_epoch == 2
        await put(made[2], path, b"third")
        assert await get(made[1], path) == b"third"


async def test_an_empty_disk_is_filled_without_any_reader():
    async with cluster() as made:
        bodies = await filled(made)
        await made[2].coordinator.close(0.1)
        restart(made, 2, empty_disk("01SECOND"))
        await healed(made)
        for route in made.table.routes:
            assert {m.node: (m.incarnation, m.since) for m in route.voters}["n2"] == ("01SECOND", 2)
        made.net.down = {"n1"}
        await everything(made, 2, bodies)
        made.net.down = {"n1", "n3"}
        for path, body in bodies.items():
            assert await get(made[2], path, consistency="local") == body


async def test_before_it_is_filled_it_does_not_count():
    async with cluster() as made:
        await filled(made)
        await made[2].coordinator.close(0.1)
        restart(made, 2, empty_disk("01SECOND"))
        made.net.down = {"n3"}
        for rounds in range(4):
            with pytest.raises(ClusterError):
                await get(made[1], PATHS[1])
            with pytest.raises(ClusterError):
                await put(made[1], f"new{rounds}")
            await round_of(made, away={"n3"})
        assert all(route.epoch == 2 for route in made.table.routes), "it is named, and cannot be filled from one of two"
        made.net.down = set()
        await healed(made)
        made.net.down = {"n3"}
        await put(made[1], PATHS[1], b"again")
        assert await get(made[2], PATHS[1]) == b"again"


async def test_an_old_disk_that_comes_back_brings_nothing_back():
    """Paths that were deleted, and forgotten by all, while another disk was in its place."""
    async with cluster() as made:
        bodies = await filled(made)
        old = made[2].store
        await made[2].coordinator.close(0.1)
        restart(made, 2, empty_disk("01SECOND"))
        await healed(made)
        for path in PATHS[1:4]:
            await delete(made[1], path)
            del bodies[path]
        await made.settle()
        await healed(made)
        await made[2].coordinator.close(0.1)
        restart(made, 2, old)
        held = set(old.slots())
        slot = made.slot(PATHS[1])
        assert old.peek(slot, PATHS[1]).record.live, "it remembers what was deleted since"
        with pytest.raises(NotFound):
            await get(made[2], PATHS[1])
        await healed(made)
        for route in made.table.routes:
            (member,) = (m for m in route.voters if m.node == "n2")
            assert member.since == 3
            assert (member.incarnation != old.disk_id) == (route.slot in held)
        await everything(made, 2, bodies)
        for number in (1, 2, 3):
            await everything(made, number, bodies)


async def test_an_old_disk_that_comes_back_before_the_new_one_was_named_is_what_it_was():
    async with cluster() as made:
        bodies = await filled(made)
        old = made[2].store
        await made[2].coordinator.close(0.1)
        restart(made, 2, empty_disk("01SECOND"))
        made.registry.store.set_down(True)
        assert await made[2].parts.rejoin.step() is Did.NOTHING
        made.registry.store.set_down(False)
        await made[2].coordinator.close(0.1)
        restart(made, 2, old)
        await healed(made)
        assert all(route.epoch == 1 for route in made.table.routes)
        made.net.down = {"n1"}
        await everything(made, 2, bodies)


async def test_a_node_that_has_not_heard_of_its_own_new_routes_does_not_begin_anew():
    """The routes name its copies already, and it still works by older ones."""
    async with cluster() as made:
        await filled(made)
        await made[2].coordinator.close(0.1)
        restart(made, 2, empty_disk("01SECOND"))
        before = made.table
        await healed(made)
        state = made[2].store.slot_state(0)
        newest, made.table = made.table, before
        made[2].parts.rejoin.wake.clear()
        assert made[2].parts.rejoin.strangers() != []
        assert await made[2].parts.rejoin.step() is Did.NOTHING
        assert made[2].store.slot_state(0) == state
        made.table = newest
        await made.see_routes()
        assert made.table == newest


async def test_with_the_registry_away_it_waits():
    async with cluster() as made:
        await filled(made)
        slot = made.slot(PATHS[1])
        made[2].store.lose_slot(slot, "01FRESH")
        made.registry.store.set_down(True)
        assert await made[2].parts.rejoin.step() is Did.NOTHING
        made.registry.store.set_down(False)
        await healed(made)
        assert made.table.route(slot).epoch == 2


@pytest.mark.parametrize("trouble", ["failed", "full"])
async def test_a_disk_that_is_not_well_is_not_named(trouble):
    async with cluster() as made:
        await filled(made)
        slot = made.slot(PATHS[1])
        store = made[2].store
        store.lose_slot(slot, "01FRESH")
        setattr(store, trouble, "broken" if trouble == "failed" else True)
        assert await made[2].parts.rejoin.step() is Did.NOTHING
        await made.see_routes()
        assert made.table.route(slot).epoch == 1


async def test_a_slot_that_is_lost_again_while_it_is_filled():
    async with cluster() as made:
        bodies = await filled(made)
        slot = made.slot(PATHS[1])
        store = made[2].store
        store.lose_slot(slot, "01FRESH")
        await made[2].parts.rejoin.step()
        await made.see_routes()
        for _ in range(3):
            await made[2].parts.repairer.step()
        store.lose_slot(slot, "01FRESHER")
        await healed(made)
        (member,) = (m for m in made.table.route(slot).voters if m.node == "n2")
        assert (member.incarnation, member.since) == ("01FRESHER", 3)
        made.net.down = {"n1"}
        await everything(made, 2, bodies)


async def test_two_nodes_lose_different_slots_at_once():
    async with cluster() as made:
        bodies = await filled(made)
        made[2].store.lose_slot(0, "01TWO")
        made[3].store.lose_slot(1, "01THREE")
        await healed(made)
        for number in (1, 2, 3):
            await everything(made, number, bodies)


async def test_writes_go_on_while_a_disk_is_filled():
    async with cluster() as made:
        bodies = await filled(made)
        await made[2].coordinator.close(0.1)
        restart(made, 2, empty_disk("01SECOND"))
        for rounds in range(6):
            for at, path in enumerate(PATHS[5:15]):
                body = f"{rounds}-{path}".encode()
                await put(made[1 + 2 * (at % 2)], path, body)
                bodies[path] = body
            await round_of(made)
        await made.settle()
        await healed(made)
        for number in (1, 2, 3):
            await everything(made, number, bodies)
