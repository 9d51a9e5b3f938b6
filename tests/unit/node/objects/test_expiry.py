"""Versions that expire, and paths that are forgotten once nothing is left of them (rfc/0012)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import msgspec
import pytest

from amberblob.ballot import Ballot
from amberblob.errors import NotFound, OutcomeUnknown, VersionConflict
from amberblob.manifest import Record
from amberblob.wire import HistoryReply, QueryHistory, Refused
from amberblob.wire_repair import ForgetStub
from node.protocol.operations import Conditions, Expire, Finish
from tests.unit.node.objects.kit import (
    STAGED,
    Cluster,
    Node,
    cluster,
    content,
    delete,
    get,
    listing,
    look,
    put,
    restore,
    until,
    walk,
)

NEW = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
ALL = ((1, 10**6),)


@pytest.fixture
async def made():
    async with cluster() as running:
        yield running


async def expire(node: Node, path: str, *versions: tuple[int, int]):
    return await node.coordinator.write(node.routing.of(path), path, Expire(versions=versions))


async def versions(node: Node, path: str) -> list[int]:
    return [view.version.version for view in await node.objects.versions(path)]


def record(node: Node, path: str) -> Record:
    """What the node's own copy holds of a path that it has heard of."""
    known = node.register(path).record
    assert known is not None
    return known


def accepted(node: Node, path: str) -> Ballot:
    known = node.register(path).accepted
    assert known is not None
    return known


def newest(node: Node, path: str) -> int:
    """The newest live version, as the node's own copy has it."""
    head = record(node, path).head
    assert head is not None
    return head.version


async def no_such_version(doing) -> None:
    with pytest.raises(NotFound) as caught:
        await doing
    assert caught.value.code == "no-such-version"


# ---- versions expire


async def test_expired_versions_are_gone_for_everybody(made: Cluster):
    for number in range(5):
        await put(made[1], "p", b"%d" % number)
        made.clock.ahead_s += 1
    await delete(made[1], "p", version=4)
    await made.settle()
    at_ms = (await look(made[1], "p", version=2)).version.created_at_ms
    applied = await expire(made[2], "p", (1, 2), (4, 4))
    assert applied.mark.op == "expire" and applied.fresh
    await made.settle()
    for node in made:
        assert await versions(node, "p") == [5, 3]
        assert await get(node, "p") == b"4" and await get(node, "p", version=3) == b"2"
        for version in (1, 2, 4):
            await no_such_version(look(node, "p", version=version))
            await no_such_version(look(node, "p", version=version, consistency="local"))
            await no_such_version(restore(node, "p", version=version))
            await no_such_version(delete(node, "p", version=version))
        with pytest.raises(NotFound):
            await look(node, "p", at_ms=at_ms)
    assert (await put(made[3], "p", b"more")).version.version == 6


@pytest.mark.parametrize("stale", [1, 2, 3])
async def test_a_copy_that_has_not_heard_of_it_brings_nothing_back(made: Cluster, stale):
    """Its rows are still there, and what it tells is weighed like what the others tell."""
    for number in range(4):
        await put(made[1], "p", b"%d" % number)
    await delete(made[1], "p")
    await made.settle()
    made.net.down = {f"n{stale}"}
    other = made[stale % 3 + 1]
    await expire(other, "p", (1, 3))
    await made.settle()
    made.net.down = set()
    made.net.fault("Learn", "drop")
    slot = made.slot("p")
    told = await made[stale].replica.handle("n1", QueryHistory(slot=slot, path="p", epoch=1))
    assert isinstance(told, HistoryReply)
    assert [row.version.version for row in told.rows] == [4, 3, 2, 1]
    for node in made:
        assert await versions(node, "p") == [4]
        for version in (1, 2, 3):
            await no_such_version(look(node, "p", version=version))
            await no_such_version(delete(node, "p", version=version))
        await no_such_version(restore(node, "p", version=2))
    assert (await restore(made[stale], "p")).version.version == 4
    assert (await put(made[stale], "p", b"new")).version.version == 5
    await delete(other, "p", version=5)
    assert await get(made[stale], "p") == b"3"
    await delete(other, "p", version=4)
    with pytest.raises(NotFound):
        await look(made[stale], "p")


async def test_a_head_that_is_deleted_gives_way_to_the_newest_that_has_not_expired(made: Cluster):
    for number in range(4):
        await put(made[1], "p", b"%d" % number)
    made.net.fault("Learn", "drop", to="n3")
    await expire(made[1], "p", (2, 3))
    await delete(made[3], "p", version=4)
    for node in made:
        assert await get(node, "p") == b"0"


async def test_the_head_does_not_expire(made: Cluster):
    await put(made[1], "p", b"0")
    await put(made[1], "p", b"1")
    await expire(made[1], "p", *ALL)
    assert await versions(made[2], "p") == [2] and await get(made[3], "p") == b"1"
    revision = record(made[1], "p").revision
    applied = await expire(made[1], "p", *ALL)
    assert not applied.fresh and applied.record.revision == revision, "there is nothing to write"
    assert (await expire(made[1], "never-written", *ALL)).record is None


async def test_an_object_of_which_nothing_is_left(made: Cluster):
    await put(made[1], "p", b"0")
    await put(made[1], "p", content(STAGED))
    await put(made[1], "q", b"0")
    await delete(made[1], "p")
    await expire(made[2], "p", *ALL)
    await made.settle()
    for node in made:
        for reading in (look(node, "p"), look(node, "p", consistency="local"), node.objects.versions("p")):
            with pytest.raises(NotFound):
                await reading
        with pytest.raises(NotFound) as caught:
            await restore(node, "p")
        assert caught.value.code == "nothing-to-restore"
        assert (await walk(node, limit=10), await walk(node, limit=10, tombstoned=True)) == ((["q"], []), (["q"], []))
    assert (await put(made[3], "p", b"again", conditions=Conditions(absent=True))).version.version == 3
    assert await versions(made[1], "p") == [3]
    with pytest.raises(VersionConflict):
        await put(made[1], "p", version=2)


# ---- the stub goes


async def dead(made: Cluster, path: str = "p", *, puts: int = 3) -> None:
    for number in range(puts):
        await put(made[1], path, b"%d" % number)
    await delete(made[1], path)
    await expire(made[1], path, *ALL)
    await made.settle()


async def collect(node: Node, path: str = "p") -> bool:
    return await node.coordinator.collect_stub(node.routing.of(path), path)


def held(made: Cluster, path: str = "p") -> list[bool]:
    return [node.register(path).accepted is not None for node in made]


async def test_a_stub_goes_and_the_next_put_has_a_number_of_its_own(made: Cluster):
    await dead(made)
    ballot = made[1].register("p").accepted
    assert await collect(made[2])
    assert held(made) == [False] * 3
    for node in made:
        state = node.store.slot_state(made.slot("p"))
        assert state.ballot_floor >= ballot and state.version_floor == 3
        with pytest.raises(NotFound):
            await look(node, "p")
        with pytest.raises(NotFound):
            await node.objects.versions("p")
    assert (await listing(made[1], tombstoned=True)).objects == []
    assert await collect(made[1]), "there is nothing left to do"
    view = await put(made[3], "p", b"new", conditions=Conditions(absent=True))
    assert view.version.version == 4
    for node in made:
        assert await get(node, "p") == b"new" and await versions(node, "p") == [4]


async def test_a_node_that_holds_a_promise_for_the_path_writes_on(made: Cluster):
    await dead(made)
    assert "p" in made[1].coordinator._holds._by_path
    assert await collect(made[2])
    assert (await put(made[1], "p", b"new")).version.version == 4
    await made.settle()
    assert await get(made[2], "p") == b"new" and await versions(made[3], "p") == [4]


async def test_what_lives_or_can_be_restored_does_not_go(made: Cluster):
    await put(made[1], "p", b"0")
    await put(made[1], "p", b"1")
    await made.settle()
    before = made.net.count("ForgetStub")
    assert not await collect(made[1])
    await delete(made[1], "p")
    await made.settle()
    assert not await collect(made[1])
    await expire(made[1], "p", (1, 1))
    await made.settle()
    assert not await collect(made[1])
    assert made.net.count("ForgetStub") == before and held(made) == [True] * 3
    assert (await restore(made[1], "p")).version.version == 2


async def test_a_collection_writes_nothing_on_a_path_that_lives(made: Cluster):
    made.net.fault("Learn", "drop")
    await put(made[1], "p", b"0")
    await made.settle()
    before = made.net.count("Commit")
    assert not await collect(made[1])
    assert made.net.count("Commit") == before


async def test_numbers_that_never_were_versions_do_not_keep_a_stub(made: Cluster):
    await put(made[1], "p", b"0", version=5)
    await put(made[1], "p", b"1", version=900)
    await delete(made[1], "p")
    await expire(made[1], "p", (5, 5), (900, 900))
    await made.settle()
    assert await collect(made[1])
    assert (await put(made[2], "p", b"new")).version.version == 901


@pytest.mark.parametrize("away", ["n1", "n2", "n3"])
async def test_every_voter_must_be_there(made: Cluster, away):
    await dead(made)
    made.net.down = {away}
    node = next(node for node in made if node.name != away)
    assert not await collect(node)
    assert held(made) == [True] * 3
    made.net.down = set()
    assert await collect(node)


async def test_a_voter_that_is_behind_is_brought_along_first(made: Cluster):
    await put(made[1], "p", b"0")
    await made.settle()
    made.net.down = {"n3"}
    await delete(made[1], "p")
    await expire(made[1], "p", *ALL)
    await made.settle()
    made.net.down = set()
    assert not await collect(made[2])
    await made.settle()
    assert held(made) == [True] * 3 and record(made[3], "p").expired
    assert await collect(made[2]) and held(made) == [False] * 3


async def test_voters_that_were_not_told_that_it_is_chosen_are_told_first(made: Cluster):
    await put(made[1], "p", b"0")
    await delete(made[1], "p")
    await made.settle()
    made.net.fault("Learn", "drop")
    await expire(made[1], "p", *ALL)
    await made.settle()
    made.net.heal()
    assert not await collect(made[2])
    await made.settle()
    assert await collect(made[2])


@pytest.mark.parametrize("lost", ["drop", "lose"])
@pytest.mark.parametrize("at", ["n1", "n2", "n3"])
async def test_a_collection_that_breaks_off_is_ended_by_the_next(made: Cluster, lost, at):
    """One voter did not hear of it: what it holds is below the others' floor, and they do not learn it any more."""
    await dead(made)
    made.net.fault("ForgetStub", lost, to=at, times=1)
    assert not await collect(made[2])
    with pytest.raises(NotFound):
        await look(made[1], "p")
    for _ in range(3):
        if await collect(made[3]):
            break
        await made.settle()
    assert held(made) == [False] * 3
    assert (await put(made[1], "p", b"new")).version.version == 4


async def test_a_write_between_the_look_and_the_removal_stays(made: Cluster):
    await dead(made)
    hold = made.net.fault("ForgetStub", "hold")
    collecting = asyncio.create_task(collect(made[2]))
    await until(lambda: hold.hits == 3)
    assert (await put(made[1], "p", b"new")).version.version == 4
    hold.released.set()
    assert not await collecting
    assert await get(made[3], "p") == b"new" and await versions(made[2], "p") == [4]


async def test_a_slot_on_its_way_or_with_a_mute_copy_collects_nothing(made: Cluster):
    await dead(made)
    electorate = made[1].routing.of("p")
    assert not await made[1].coordinator.collect_stub(replace(electorate, settled=False), "p")
    made[3].store.lose_slot(made.slot("p"), NEW)
    assert not await collect(made[1])
    assert held(made)[:2] == [True, True]


async def test_a_request_that_does_not_fit_is_refused(made: Cluster):
    await dead(made)
    slot, ballot = made.slot("p"), accepted(made[2], "p")
    stub = ForgetStub(slot=slot, path="p", epoch=1, incarnation=made[2].store.disk_id, ballot=ballot, version_max=3)
    for changes, reason in (
        ({"epoch": 2}, "epoch"),
        ({"incarnation": made[1].store.disk_id}, "unsynced"),
        ({"ballot": msgspec.structs.replace(ballot, counter=1)}, "ballot"),
    ):
        reply = await made[2].replica.handle("n1", msgspec.structs.replace(stub, **changes))
        assert isinstance(reply, Refused) and reply.reason == reason
    assert held(made) == [True] * 3
    made[2].store.fail("broken")
    reply = await made[2].replica.handle("n1", stub)
    assert isinstance(reply, Refused) and reply.reason == "disk-failed"


@pytest.mark.parametrize("deleting", [False, True])
async def test_a_round_that_goes_on_after_its_write_was_forgotten_does_not_write_again(deleting: bool):
    """Its COMMIT was accepted by all, and it heard of none; before it came again, the path was deleted and collected."""
    async with cluster(4) as made:
        path = next(f"p{n}" for n in range(1000) if "n4" not in made[4].routing.of(f"p{n}").voters)
        if deleting:
            await put(made[1], path, b"0")
            await made.settle()
        lost = made.net.fault("Commit", "lose", source="n4", times=3)
        hold = made.net.fault("Prepare", "hold", source="n4", when=lambda _: lost.hits == 3)
        writing = asyncio.create_task(delete(made[4], path) if deleting else put(made[4], path, b"1"))
        await until(lambda: hold.hits > 0)
        if not deleting:
            await delete(made[1], path)
        await expire(made[1], path, *ALL)
        await made.settle(1, 2, 3)
        assert await collect(made[1], path)
        if deleting:
            # By one that holds no promise, and therefore begins with the first revision again.
            await put(made[2], path, b"2")
        made.net.heal()
        if deleting:
            await writing
            assert record(made[2], path).revision == 1 and await get(made[1], path) == b"2"
        else:
            with pytest.raises(OutcomeUnknown):
                await writing
            with pytest.raises(NotFound):
                await look(made[1], path)


async def test_a_client_that_repeats_a_write_which_was_forgotten_does_not_write_again(made: Cluster):
    first = await put(made[1], "p", b"0", write_id="w")
    await delete(made[2], "p", write_id="d")
    await expire(made[1], "p", *ALL)
    await made.settle()
    assert await collect(made[1])
    with pytest.raises(OutcomeUnknown) as caught:
        await put(made[3], "p", b"0", write_id="w", repeat=True)
    assert caught.value.extra["version"] == first.version.version
    await put(made[3], "p", b"1")
    await delete(made[2], "p", write_id="d", repeat=True)
    assert await get(made[1], "p") == b"1"
    with pytest.raises(OutcomeUnknown):
        await put(made[3], "p", b"0", write_id="w", repeat=True)
    assert await get(made[1], "p") == b"1"


async def test_a_copy_that_cannot_learn_below_its_floor_gets_it_by_a_round(made: Cluster):
    """n3 missed q's record, whose ballot is below that of the stub that was forgotten since."""
    await put(made[1], "q", b"0")
    slot = made.slot("q")
    other = next(f"o{n}" for n in range(1000) if made.slot(f"o{n}") == slot)
    await made.settle()
    made.net.fault("Commit", "drop", to="n3", when=lambda commit: commit.path == "q")
    rule = made.net.fault("Learn", "drop", to="n3")
    await put(made[1], "q", b"1")
    await made.settle()
    made.net.rules.remove(rule)
    made.net.heal()
    for _ in range(3):
        await put(made[2], other, b"x")
        await delete(made[2], other)
    await expire(made[2], other, *ALL)
    await made.settle()
    assert await collect(made[2], other)
    assert made[3].store.slot_state(slot).ballot_floor > accepted(made[1], "q")
    await made[1].coordinator.write(made[1].routing.of("q"), "q", Finish(), hear="n3")
    await made.settle()
    assert newest(made[3], "q") == 1, "a LEARN does not help"
    await made[1].coordinator.write(made[1].routing.of("q"), "q", Finish(again=True), hear="n3")
    await made.settle()
    assert newest(made[3], "q") == 2
    assert await get(made[3], "q", consistency="local") == b"1"


async def test_a_record_that_nobody_heard_to_be_chosen_before_the_floor_rose_is_decided(made: Cluster):
    """Seed 5000652: all three held q's record undecided, below the ballot of a stub that was collected a moment later."""
    await put(made[1], "q", b"0")
    slot = made.slot("q")
    other = next(f"o{n}" for n in range(1000) if made.slot(f"o{n}") == slot)
    await made.settle()
    made.net.fault("Learn", "drop", when=lambda learn: any(item.path == "q" for item in learn.items))
    await put(made[1], "q", b"1")
    await made.settle()
    made.net.heal()
    for _ in range(3):
        await put(made[2], other, b"x")
        await delete(made[2], other)
    await expire(made[2], other, *ALL)
    await made.settle()
    assert await collect(made[2], other)
    undecided = [node for node in made if not node.register("q").chosen]
    assert undecided and accepted(made[1], "q") < made[1].store.slot_state(slot).ballot_floor
    await made[1].coordinator.write(made[1].routing.of("q"), "q", Finish(), hear="n1")
    await made.settle()
    assert all(node.register("q").chosen and newest(node, "q") == 2 for node in made)


async def test_real_disks(tmp_path):
    async with cluster(folder=tmp_path) as made:
        for number in range(4):
            await put(made[1], "p", b"%d" % number)
            await put(made[1], "q", content(STAGED, number))
        await expire(made[1], "p", (1, 2))
        await delete(made[2], "q")
        await expire(made[2], "q", *ALL)
        await made.settle()
        for node in made:
            assert await versions(node, "p") == [4, 3]
            await no_such_version(look(node, "p", version=1))
        assert await collect(made[3], "q")
    async with cluster(folder=tmp_path) as made:
        for node in made:
            assert await versions(node, "p") == [4, 3]
            with pytest.raises(NotFound):
                await look(node, "q")
            await no_such_version(restore(node, "p", version=2))
        assert (await put(made[1], "q", b"new", conditions=Conditions(absent=True))).version.version == 5
        for node in made:
            assert await versions(node, "q") == [5]
