"""Replicas, messages and coordinators that go away in every phase of a write."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from amberblob.errors import NotFound, OutcomeUnknown, PreconditionFailed, QuorumUnavailable
from node.protocol.operations import Conditions
from tests.unit.node.objects.kit import (
    CHUNK,
    PATIENCE_S,
    STAGED,
    Cluster,
    cluster,
    content,
    delete,
    get,
    listing,
    look,
    put,
    put_in_vain,
    read,
    restore,
    until,
)

PHASES_INLINE = ("Prepare", "Commit", "Learn")
PHASES_STAGED = ("StageOpen", "Data", "StageClose", "Prepare", "Commit", "Learn")
SMALL = b"small"


def body(size: int, seed: int = 0) -> bytes:
    return content(size, seed) if size else b""


async def stop_sending(made: Cluster, number: int, task: asyncio.Task) -> None:
    """The coordinator's process dies: nothing of it goes out any more."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    made.net.down.add(f"n{number}")


async def accepted_on_one(made: Cluster, path: str, data: bytes, *, by: int = 1, **options) -> None:
    """A write whose coordinator ``by`` died when only its own copy had accepted."""
    for node in made:
        if node.name != f"n{by}":
            made.net.fault("Commit", "drop", to=node.name, source=f"n{by}")
    task = asyncio.create_task(put(made[by], path, data, **options))
    before = made[by].register(path).accepted
    await until(lambda: made[by].register(path).accepted != before, "the own copy accepts")
    await stop_sending(made, by, task)
    made.net.rules.clear()
    await made.settle()
    assert not made[by].register(path).chosen


# ---- one replica away


@pytest.mark.parametrize("do", ["drop", "lose"])
@pytest.mark.parametrize("size,phase", [(5, p) for p in PHASES_INLINE] + [(STAGED, p) for p in PHASES_STAGED])
@pytest.mark.parametrize("away", [1, 2])
async def test_one_replica_away_in_a_phase_does_not_hinder_a_write(size, phase, do, away):
    async with cluster() as made:
        data = body(size)
        rule = made.net.fault(phase, do, to=f"n{away}")
        view = await put(made[1], "p", data)
        assert view.version.version == 1
        await made.settle()
        for attempt in range(10):
            # Not every voter is asked to promise each time.
            if rule.hits:
                break
            assert (await put(made[1], f"q{attempt}", data)).version.version == 1
        assert rule.hits
        for node in made:
            assert await get(node, "p") == data
        made.net.heal()
        for index, node in enumerate(made):
            assert await get(node, "p") == data
            assert (await put(node, "p", data)).version.version == index + 2


@pytest.mark.parametrize("size", [0, 5, STAGED])
@pytest.mark.parametrize("down", [2, 3])
async def test_writes_and_reads_go_on_with_one_node_down(size, down):
    async with cluster() as made:
        await put(made[1], "p", SMALL)
        made.net.down.add(f"n{down}")
        data = body(size)
        others = [node for node in made if node.name != f"n{down}"]
        for index, node in enumerate(others):
            assert (await put(node, "p", data)).version.version == index + 2
            assert await get(node, "p") == data
        await delete(others[0], "p")
        with pytest.raises(NotFound):
            await look(others[1], "p")
        assert (await restore(others[1], "p")).version.version == 3
        made.net.heal()
        for node in made:
            assert await get(node, "p") == data
            assert await get(node, "p", version=1) == SMALL


# ---- two replicas away


@pytest.mark.parametrize("size", [5, STAGED])
async def test_with_two_nodes_down_nothing_is_applied(size):
    async with cluster() as made:
        made.net.down |= {"n2", "n3"}
        with pytest.raises(QuorumUnavailable):
            await put(made[1], "p", body(size))
        with pytest.raises(QuorumUnavailable):
            await delete(made[1], "p")
        with pytest.raises(QuorumUnavailable):
            await look(made[1], "p")
        with pytest.raises(QuorumUnavailable):
            await listing(made[1])
        with pytest.raises(QuorumUnavailable):
            await made[1].objects.versions("p")
        assert made.net.count("Commit") == 0
        made.net.heal()
        await made.resolve()
        for node in made:
            with pytest.raises(NotFound):
                await look(node, "p")
        await made.settle()
        assert made.staged() == {}


@pytest.mark.parametrize("phase", ["StageOpen", "Data", "StageClose", "Prepare"])
@pytest.mark.parametrize("do", ["drop", "lose"])
async def test_a_503_never_appears_later(phase, do):
    async with cluster() as made:
        # By another node: this one holds no promise that it could begin with.
        await put(made[2], "p", SMALL)
        for to in ("n2", "n3"):
            made.net.fault(phase, do, to=to)
        with pytest.raises(QuorumUnavailable):
            await put(made[1], "p", content(STAGED))
        await made.settle()
        made.net.heal()
        await made.resolve(rounds=2)
        for node in made:
            assert await get(node, "p") == SMALL
            assert [v.version.version for v in await node.objects.versions("p")] == [1]


@pytest.mark.parametrize("do", ["drop", "lose"])
@pytest.mark.parametrize("size", [5, STAGED])
async def test_once_a_commit_was_sent_the_outcome_is_unknown_and_a_retry_applies_it_once(size, do):
    async with cluster(request_timeout_s=0.4) as made:
        data = body(size)
        for to in ("n2", "n3"):
            made.net.fault("Commit", do, to=to)
            # Nor may the coordinator find out what became of it.
            made.net.fault("Prepare", "drop", to=to, when=lambda _: made.net.count("Commit") > 0)
        await put_in_vain(made[1], "p", data, write_id="w")
        made.give_up_after(PATIENCE_S)
        made.net.heal()
        views = [await put(node, "p", data, write_id="w") for node in made]
        assert {view.version.version for view in views} == {1}
        assert len({view.version.blob_id for view in views}) == 1
        assert len(await made[2].objects.versions("p")) == 1
        for node in made:
            assert await get(node, "p") == data


async def test_a_write_whose_commits_were_all_accepted_but_not_answered_is_found_by_its_own_next_try():
    async with cluster() as made:
        made.net.fault("Commit", "lose", times=3)
        assert (await put(made[1], "p", SMALL)).version.version == 1
        assert len(await made[2].objects.versions("p")) == 1


# ---- a coordinator that dies between accepts


@pytest.mark.parametrize("size", [5, STAGED, 70 * CHUNK])
@pytest.mark.parametrize("reader", [2, 3])
async def test_a_record_on_one_replica_is_finished_by_whoever_meets_it(size, reader):
    async with cluster() as made:
        await put(made[2], "p", SMALL)
        await made.settle()
        data = body(size)
        await accepted_on_one(made, "p", data)
        made.net.heal()
        # The third node is away: whoever reads meets the undecided record.
        made.net.down.add(f"n{5 - reader}")
        assert await get(made[reader], "p") == data
        assert (await look(made[reader], "p")).version.version == 2
        made.net.heal()
        for node in made:
            assert await get(node, "p") == data
            assert await get(node, "p", version=1) == SMALL


@pytest.mark.parametrize("size", [5, STAGED, 70 * CHUNK])
async def test_the_finishing_replica_pulls_bytes_that_it_lacks(size):
    async with cluster() as made:
        data = body(size)
        for phase in ("StageOpen", "Prepare"):
            made.net.fault(phase, "drop", to="n3")
        await accepted_on_one(made, "p", data)
        made.net.heal()
        made.net.down.add("n2")
        assert await get(made[3], "p") == data
        await made.settle()
        assert made.net.count("ReadChunk") > 0
        made.net.heal()
        made.net.down.add("n1")
        assert await get(made[3], "p") == data
        assert await get(made[2], "p") == data


async def test_a_record_that_only_the_dead_node_has_is_superseded_and_never_comes_back():
    async with cluster() as made:
        await put(made[2], "p", SMALL)
        await made.settle()
        await accepted_on_one(made, "p", b"lost")
        assert await get(made[2], "p") == SMALL
        view = await put(made[3], "p", b"new")
        assert view.version.version == 2
        made.net.heal()
        await made.resolve(rounds=2)
        for node in made:
            assert await get(node, "p") == b"new"
            assert next(v.version.blob_id for v in await node.objects.versions("p")) == view.version.blob_id


@pytest.mark.parametrize("size", [5, STAGED, 70 * CHUNK])
@pytest.mark.parametrize("first", [1, 2, 3])
async def test_the_resolver_finishes_what_is_left_without_a_client(size, first):
    """``first`` answers first: with 2, a majority is there before n1 has told of its own record."""
    async with cluster() as made:
        data, path = body(size), made.path(first)
        await accepted_on_one(made, path, data)
        made.net.heal()
        await made.resolve(rounds=4)
        registers = [node.register(path) for node in made]
        assert all(register.chosen for register in registers), registers
        for node in made:
            assert await get(node, path, consistency="local") == data
        assert not any(node.resolver.waiting for node in made)


async def test_the_resolver_of_a_restarted_node_finds_what_it_left():
    async with cluster() as made:
        path = made.path(1)
        await accepted_on_one(made, path, SMALL)
        made.net.heal()
        made.start("n1")
        assert made[1].resolver.waiting == 0
        await made.resolve(rounds=2)
        assert all(node.register(path).chosen for node in made)


@pytest.mark.parametrize("size", [5, STAGED])
@pytest.mark.parametrize("via", [1, 2, 3])
async def test_a_record_whose_bytes_were_given_up_by_all_others_does_not_block_the_path(size, via):
    """The coordinator dies with the only accept; while it is away the others sweep the bytes nobody refers to."""
    async with cluster() as made:
        path, data = made.path(1), body(size)
        await put(made[2], path, SMALL)
        await made.settle()
        await accepted_on_one(made, path, data)
        made.clock.ahead_s += 1000.0
        for number in (2, 3):
            await made[number].sweeper.step()
        made.net.heal()
        answer = await get(made[via], path)
        assert answer in (SMALL, data)
        for node in made:
            # Nobody knows what became of that write: whoever meets it first finishes it, and from then on it stays.
            before, answer = answer, await get(node, path)
            assert answer == data or before == answer == SMALL
        assert (await put(made[1], path, b"next")).version.version >= 2


# ---- LEARN is lost


@pytest.mark.parametrize("size", [5, STAGED])
async def test_without_any_learn_reads_are_right_and_history_is_complete(size):
    async with cluster() as made:
        made.net.fault("Learn", "drop")
        bodies = [body(size, seed) for seed in range(4)]
        for index, data in enumerate(bodies):
            await put(made[index % 3 + 1], "p", data)
        await delete(made[1], "p")
        await restore(made[2], "p")
        await made.settle()
        for away in (None, "n1", "n2", "n3"):
            made.net.down = {away} if away else set()
            for node in made:
                if node.name == away:
                    continue
                assert await get(node, "p") == bodies[-1]
                for index, data in enumerate(bodies):
                    assert await get(node, "p", version=index + 1) == data
                assert [v.version.version for v in await node.objects.versions("p")] == [4, 3, 2, 1]
                assert [o.path for o in (await listing(node)).objects] == ["p"]


@pytest.mark.parametrize("size", [5, STAGED])
async def test_the_resolver_marks_a_record_chosen_that_all_accepted_and_nobody_was_told_of(size):
    async with cluster() as made:
        await put(made[1], "p", SMALL)
        await made.settle()
        made.net.fault("Learn", "drop")
        await put(made[1], "p", body(size))
        await made.settle()
        made.net.heal()
        for node in made:
            assert await get(node, "p", consistency="local") == SMALL
        await made.resolve(rounds=3)
        for node in made:
            assert await get(node, "p", consistency="local") == body(size)
        assert not any(node.resolver.waiting for node in made)


async def test_the_resolver_brings_a_copy_up_to_date_that_missed_commit_and_learn():
    async with cluster() as made:
        made.net.fault("Commit", "drop", to="n3")
        made.net.fault("Learn", "drop")
        await put(made[1], "p", SMALL)
        await made.settle()
        made.net.heal()
        await made.resolve(rounds=3)
        assert made[3].register("p").chosen
        assert not any(node.resolver.waiting for node in made)


# ---- the bytes of an acknowledged write


async def test_an_acknowledged_upload_keeps_its_bytes_on_every_replica_that_took_them():
    """The write finds its own record again (an answer was lost): that must not make it give up its own bytes."""
    async with cluster() as made:
        data, path = content(3 * CHUNK), made.path(1)
        made.net.fault("Commit", "lose", to="n2", times=1)
        made.net.fault("Commit", "drop", to="n3", times=1)
        view = await put(made[1], path, data)
        await made.settle()
        assert view.version.version == 1
        assert all(view.version.blob_id in blobs for blobs in made.blobs().values()), made.blobs()


async def test_an_acknowledged_upload_survives_the_loss_of_one_node_after_a_lost_answer():
    async with cluster() as made:
        data, path = content(3 * CHUNK), made.path(1)
        made.net.fault("Commit", "lose", to="n2", times=1)
        made.net.fault("Commit", "drop", to="n3", times=1)
        await put(made[1], path, data)
        await made.settle()
        made.net.heal()
        made.net.down.add("n2")
        assert await get(made[3], path) == data
        assert await get(made[1], path) == data


# ---- refusals are final


async def test_a_refusal_is_final_while_an_earlier_try_lingers_on_one_replica():
    """A conditional create of ours sits on n1 alone; meanwhile somebody else created the path through n2 and n3."""
    async with cluster() as made:
        absent = Conditions(absent=True)
        await accepted_on_one(made, "p", b"ours", write_id="w", conditions=absent)
        await put(made[2], "p", b"theirs")
        made.net.heal()
        made.net.fault("Prepare", "drop", to="n2", source="n3", times=1)
        with pytest.raises(PreconditionFailed):
            await put(made[3], "p", b"ours", write_id="w", conditions=absent)
        await made.resolve(rounds=2)
        for node in made:
            assert await get(node, "p") == b"theirs"
            assert len(await node.objects.versions("p")) == 1


async def test_a_refusal_nails_down_a_lingering_try_at_a_higher_ballot():
    async with cluster() as made:
        await put(made[2], "p", b"first", write_id="first")
        await made.settle()
        head = Conditions(version=1)
        # Our first try reaches n1 alone, at a high ballot.
        made[1].replica.copies.met_counter(made.slot("p"), 500)
        await accepted_on_one(made, "p", b"ours", write_id="w", conditions=head)
        # n2 and n3 do not know of it: another write goes through at a lower ballot than it has.
        for number in (2, 3):
            made.start(f"n{number}")
        await put(made[2], "p", b"theirs", write_id="x")
        lingering, chosen = made[1].register("p").accepted, made[2].register("p").accepted
        assert lingering is not None and chosen is not None
        # Back: n1 answers COMMITs and PREPAREs, but not in time for the retry's first majority.
        made.net.heal()
        hold = made.net.fault("Prepare", "hold", to="n1", source="n3")
        outcome = asyncio.create_task(put(made[3], "p", b"ours", write_id="w", conditions=head))
        await until(lambda: hold.hits)
        hold.released.set()
        refused = False
        try:
            await outcome
        except PreconditionFailed:
            refused = True
        await made.resolve(rounds=2)
        history = await made[2].objects.versions("p")
        contents = [await read(made[2], view) for view in history]
        assert (b"ours" in contents) is not refused
        assert contents.count(b"ours") <= 1
        assert b"theirs" in contents


async def test_a_write_given_up_by_its_client_in_mid_round_is_all_or_nothing():
    async with cluster() as made:
        await put(made[1], "p", SMALL)
        hold = made.net.fault("Commit", "hold", to="n2")
        made.net.fault("Commit", "drop", to="n3")
        task = asyncio.create_task(put(made[1], "p", content(STAGED)))
        await until(lambda: hold.hits)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        made.net.heal()
        await made.settle()
        await made.resolve(rounds=2)
        answers = {await get(node, "p") for node in made}
        assert len(answers) == 1


# ---- quorums as configured


async def test_write_quorum_three_is_not_acknowledged_with_two():
    async with cluster(write_quorum=3) as made:
        assert (await put(made[1], "p", SMALL)).version.version == 1
        assert (await put(made[1], "q", content(STAGED))).version.version == 1
        made.net.down.add("n3")
        made.give_up_after(0.5)
        with pytest.raises((QuorumUnavailable, OutcomeUnknown)):
            await put(made[1], "q", content(STAGED))
        with pytest.raises((QuorumUnavailable, OutcomeUnknown)):
            await put(made[1], "p", b"two copies only")
        made.give_up_after(PATIENCE_S)
        assert await get(made[1], "q") == content(STAGED)


async def test_write_quorum_three_a_retry_is_not_acknowledged_with_two_either():
    async with cluster(write_quorum=3) as made:
        made.net.fault("Commit", "drop", to="n3")
        made.net.fault("Prepare", "drop", to="n3")
        made.net.fault("Learn", "drop", to="n3")
        made.give_up_after(0.5)
        for _ in range(2):
            with pytest.raises((QuorumUnavailable, OutcomeUnknown)):
                await put(made[1], "p", SMALL, write_id="w")
        made.give_up_after(PATIENCE_S)
        made.net.heal()
        assert (await put(made[2], "p", SMALL, write_id="w")).version.version == 1
        await made.settle()
        assert all(node.register("p").record is not None for node in made)


async def test_read_quorum_three_needs_all_three():
    async with cluster(read_quorum=3) as made:
        await put(made[1], "p", SMALL)
        assert await get(made[2], "p") == SMALL
        made.net.down.add("n3")
        made.give_up_after(0.5)
        with pytest.raises(QuorumUnavailable):
            await get(made[1], "p")
        with pytest.raises(QuorumUnavailable):
            await put(made[1], "p", SMALL)
        made.give_up_after(PATIENCE_S)
        made.net.heal()
        assert (await put(made[3], "p", SMALL)).version.version == 2


async def test_five_nodes_bear_two_that_are_down():
    async with cluster(5, replicas=5) as made:
        made.net.down |= {"n4", "n5"}
        data = content(STAGED)
        await put(made[1], "p", data)
        made.net.down = {"n1", "n2"}
        for number in (3, 4, 5):
            assert await get(made[number], "p") == data
        made.net.down = {"n1", "n2", "n3"}
        with pytest.raises(QuorumUnavailable):
            await get(made[4], "p")


async def test_any_of_five_nodes_coordinates_slots_that_it_has_no_copy_of():
    async with cluster(5, replicas=3) as made:
        for index in range(10):
            path = f"p{index}"
            data = content(STAGED, index)
            await put(made[index % 5 + 1], path, data)
            assert await get(made[(index + 2) % 5 + 1], path) == data
        assert [o.path for o in (await listing(made[4])).objects] == [f"p{i}" for i in range(10)]
