"""A slot goes from some nodes to others, route by route: the new copies are filled, the old ones are given up, and nothing is lost."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from amberblob.mutations import Installed
from antientropy.step import Did
from node.workers import leaver as leaver_module
from registry.routes import Member, Move, Route
from tests.folders import files_below
from tests.unit.node.healing.healing_kit import work
from tests.unit.node.objects.kit import CHUNK, STAGED, Cluster, cluster, content, get, put

SLOT = 0
PATHS = [f"p{n}" for n in range(12)]


def member(made: Cluster, number: int, since: int = 1) -> Member:
    return Member(f"n{number}", made[number].store.slot_state(SLOT).incarnation, since)


def route_is(made: Cluster, epoch: int, voters: list[Member], **others) -> Route:
    """From now on every node sees this route of the slot."""
    assert made.table is not None
    route = Route(slot=SLOT, epoch=epoch, voters=tuple(voters), **others)
    made.table = replace(made.table, routes=(route, *made.table.routes[1:]))
    return route


async def repair(made: Cluster, *numbers: int, seconds: float = 20.0) -> None:
    """These nodes mend their copies for a while."""
    for _ in range(int(seconds / 2)):
        for number in numbers:
            await work(made, made[number].parts.repairer)
            await work(made, made[number].puller)
        await made.settle()
        made.clock.ahead_s += 2.0


def synced(made: Cluster, number: int) -> int:
    return made[number].store.slot_state(SLOT).synced_epoch


async def leave(made: Cluster, number: int) -> None:
    made.clock.ahead_s += leaver_module.LOOK_EVERY_S + 1.0
    for _ in range(100):
        if await made[number].parts.upkeep.leaver.step() is Did.NOTHING:
            if made[number].parts.upkeep.leaver.pause_s > leaver_module.REST_MAX_S:
                return
            made.clock.ahead_s += made[number].parts.upkeep.leaver.pause_s
    raise AssertionError("it does not come to an end")


async def holds(made: Cluster, number: int) -> bool:
    return await made[number].store.holds(SLOT)


async def moved(made: Cluster) -> dict[str, bytes]:
    """The slot's voters are 1, 4 and 5, and were 1, 2 and 3; what was written, by path."""
    bodies = {path: content(STAGED if at % 3 == 0 else 50 + at, at) for at, path in enumerate(PATHS)}
    for path, body in bodies.items():
        await put(made[1], path, body)
    await made.settle()
    old = [member(made, number) for number in (1, 2, 3)]
    learners = (member(made, 4, 2), member(made, 5, 2))
    route_is(made, 2, old, learners=learners)
    await repair(made, 4, 5)
    assert [synced(made, number) for number in (1, 4, 5)] == [0, 2, 2]
    assert made[4].puller.waiting == made[5].puller.waiting == 0
    late = content(77, 1)
    await put(made[2], "late", late)
    route_is(made, 3, old, state="joint", next_voters=(old[0], *learners))
    await repair(made, 1, 2, 3, 4, 5)
    assert [synced(made, number) for number in (1, 2, 3, 4, 5)] == [3, 0, 0, 3, 3], "all of the new set, and no others"
    await put(made[3], "joint", late)
    route_is(made, 4, [old[0], *learners])
    return {**bodies, "late": late, "joint": late}


@pytest.mark.parametrize("on_disk", [False, True])
async def test_a_slot_moves_and_the_old_copies_are_given_up(tmp_path, on_disk):
    async with cluster(5, replicas=3, slots=1, folder=tmp_path if on_disk else None) as made:
        bodies = await moved(made)
        await repair(made, 1, 4, 5)
        assert len({made[number].store.tally(SLOT).root for number in (1, 4, 5)}) == 1
        before = {number: made[number].store.slot_state(SLOT) for number in (2, 3)}
        for number in (1, 2, 3, 4, 5):
            await leave(made, number)
        assert [await holds(made, number) for number in (1, 2, 3, 4, 5)] == [True, False, False, True, True]
        for number in (2, 3):
            state = made[number].store.slot_state(SLOT)
            assert state.incarnation != before[number].incarnation and state.epoch == before[number].epoch
            counts = made[number].parts.upkeep.leaver.counts
            assert counts.slots_left == 1
            if on_disk:
                assert counts.blobs_removed == 4 and counts.bytes_freed == 4 * STAGED
                assert not [path for path in files_below(tmp_path / f"n{number}/slots/0") if "chunks" in path.parts]
        for path, body in bodies.items():
            assert await get(made[2], path) == body
        made.net.down = {"n2", "n3"}
        for path, body in bodies.items():
            assert await get(made[4], path) == body


async def test_a_learner_fetches_bytes_from_whoever_left_the_slot_if_no_voter_has_them():
    async with cluster(4, replicas=1, slots=1) as made:
        body = content(STAGED, 1)
        await put(made[1], "p", body)
        await made.settle()
        # A route of the past: node 1 was the voter, and node 2 has only the rows by now.
        (item,) = await made[1].store.items(SLOT, ["p"])
        made[2].store.apply(Installed(SLOT, item.path, item.ballot, item.record, item.rows))
        made[3].store.apply(Installed(SLOT, item.path, item.ballot, item.record, item.rows))
        route_is(made, 2, [member(made, 2)], learners=(member(made, 3, 2),))
        await repair(made, 3)
        assert synced(made, 3) == 2 and made[3].puller.waiting == 0
        made.net.down = {"n1", "n2"}
        assert made[3].puller.unrecoverable(SLOT) == 0
        version = item.rows[0]
        assert await made[3].store.read_chunk(SLOT, version.blob_id, version.chunks[0]) == body[:CHUNK]


async def test_what_a_node_wants_of_a_slot_that_it_left_is_not_fetched():
    async with cluster(3, replicas=1, slots=1) as made:
        await put(made[1], "p", content(STAGED, 1))
        await made.settle()
        (item,) = await made[1].store.items(SLOT, ["p"])
        made[2].store.apply(Installed(SLOT, item.path, item.ballot, item.record, item.rows))
        await repair(made, 2)
        assert made[2].store.tally(SLOT).wanted == 1 and made[2].puller.waiting == 0
        assert not [kind for kind, source, _ in made.net.sent if source == "n2" and kind.startswith("Read")]


# ---- when a copy may not be given up


async def stays(made: Cluster, number: int = 2) -> None:
    await leave(made, number)
    assert await holds(made, number)
    assert made[number].parts.upkeep.leaver.counts.slots_left == 0


async def test_not_before_every_voter_answers():
    async with cluster(5, replicas=3, slots=1) as made:
        await moved(made)
        made.net.down = {"n4"}
        await stays(made)
        made.net.down = set()
        await leave(made, 2)
        assert not await holds(made, 2)


async def test_not_while_a_voter_wants_bytes():
    async with cluster(5, replicas=3, slots=1) as made:
        await moved(made)
        (item,) = await made[1].store.items(SLOT, [PATHS[0]])
        await made[5].store.set_wanted(SLOT, item.path, item.rows[0], damaged=False)
        await stays(made)


async def test_not_while_a_voter_is_not_filled_or_is_another_copy():
    async with cluster(5, replicas=3, slots=1) as made:
        await moved(made)
        voters = [member(made, 1), member(made, 4, 2), member(made, 5, 5)]
        route_is(made, 5, voters)
        await stays(made)
        route_is(made, 5, [*voters[:2], Member("n5", "another", 2)])
        await stays(made)


async def test_not_while_the_slot_moves_nor_when_it_is_to_come_back():
    async with cluster(5, replicas=3, slots=1) as made:
        await moved(made)
        voters = [member(made, 1), member(made, 4, 2), member(made, 5, 2)]
        route_is(made, 5, voters, state="joint", next_voters=tuple(voters[:2]))
        await stays(made)
        route_is(made, 5, voters, learners=(member(made, 2, 5),))
        await stays(made)
        route_is(made, 5, voters)
        assert made.table is not None
        made.table = replace(made.table, moves={SLOT: Move(slot=SLOT, generation=1, nodes=("n1", "n2", "n4"))})
        await stays(made)


async def test_not_by_a_table_that_is_older_than_the_copy():
    async with cluster(5, replicas=3, slots=1) as made:
        await moved(made)
        assert made[2].store.slot_state(SLOT).epoch == 3
        voters = [member(made, 1), member(made, 4, 2), member(made, 5, 2)]
        route_is(made, 2, voters)
        await stays(made)
        route_is(made, 3, voters)
        await leave(made, 2)
        assert not await holds(made, 2)


async def test_not_when_the_route_changes_while_the_voters_are_asked():
    async with cluster(5, replicas=3, slots=1) as made:
        await moved(made)
        rule = made.net.fault("AskCopies", "hold", to="n5")
        made.clock.ahead_s += leaver_module.LOOK_EVERY_S + 1.0
        step = asyncio.create_task(made[2].parts.upkeep.leaver.step())
        while not rule.hits:
            await asyncio.sleep(0.01)
        voters = [member(made, 1), member(made, 4, 2), member(made, 5, 2)]
        route_is(made, 5, voters, learners=(member(made, 2, 5),))
        made.net.heal()
        await step
        assert await holds(made, 2)
