"""How few requests a read and a write need, and that they get by with more when they must."""

from __future__ import annotations

import asyncio
import time

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from ulid import ULID

from amberblob.clock import HybridClock, SeededRandomness
from amberblob.errors import InsufficientStorage, PreconditionFailed, QuorumUnavailable
from amberblob.ids import UlidMint, content_hash
from amberblob.wire import AcceptedReply, Learnt, Prepare, Query
from node.protocol.operations import Conditions
from node.protocol.quorum import Electorate
from node.protocol.write import Spread
from node.reads import Quickness
from node.transport.local import LocalPeer
from tests.unit.node.objects.kit import CHUNK, cluster, content, delete, get, look, put, until

VOTERS = Electorate(slot=0, epoch=1, voters={"n1": "1", "n2": "2", "n3": "3"}, write_quorum=2)


class Reach:
    """Peers that are there, or not."""

    def __init__(self) -> None:
        self.away: set[str] = set()

    def reachable(self, node: str) -> bool:
        return node not in self.away


# ---- which voters are asked


async def test_a_read_asks_a_majority():
    async with cluster(nobody_late=True) as made:
        await put(made[1], "p", b"x")
        await made.settle()
        before = made.net.count("Query")
        for _ in range(8):
            assert await get(made[1], "p") == b"x"
        assert made.net.count("Query") == before + 16, "two each"


async def test_a_prepare_goes_to_a_majority_and_a_commit_to_all():
    async with cluster(nobody_late=True) as made:
        for number in range(6):
            await put(made[1], f"p{number}", b"x")
        await made.settle()
        assert (made.net.count("Prepare"), made.net.count("Commit")) == (12, 18)
        for node in made:
            assert await get(node, "p3", consistency="local") == b"x"


@pytest.mark.parametrize("do", ["drop", "lose"])
async def test_whoever_is_spared_is_asked_when_another_fails(do):
    async with cluster(peer_timeout_s=5.0) as made:
        for kind in ("Prepare", "Query"):
            made.net.fault(kind, do, to="n2")
        for number in range(4):
            await put(made[1], f"p{number}", b"x")
            assert await get(made[1], f"p{number}") == b"x"
        assert made.net.count("Query", "n3") and made.net.count("Prepare", "n3")


async def test_whoever_is_spared_is_asked_when_another_is_late():
    async with cluster(peer_timeout_s=30.0, request_timeout_s=30.0) as made:
        for kind in ("Prepare", "Query"):
            made.net.fault(kind, "hold", to="n2")
        for number in range(4):
            await put(made[1], f"p{number}", b"x")
            assert await get(made[1], f"p{number}") == b"x"
        made.net.heal()


async def test_a_reader_that_meets_a_voter_which_is_behind_asks_the_third_before_it_writes():
    async with cluster(nobody_late=True) as made:
        await put(made[1], "p", b"old")
        await made.settle()
        made.net.down.add("n1")
        made.net.fault("Learn", "drop")
        await put(made[2], "p", b"new")
        await made.settle()
        made.net.down.clear()
        before = made.net.count("Commit")
        for node in made:
            assert await get(node, "p") == b"new"
        assert made.net.count("Commit") == before, "nothing had to be proposed again"


def test_the_quickest_are_asked_first_and_all_now_and_then():
    reach = Reach()
    quickness = Quickness("n1", reach)
    assert {tuple(quickness.order(VOTERS)) for _ in range(4)} == {("n1", "n2", "n3"), ("n1", "n3", "n2")}
    for _ in range(50):
        quickness.took("n2", 0.1)
        quickness.took("n3", 0.001)
    assert {tuple(quickness.order(VOTERS)) for _ in range(4)} == {("n1", "n3", "n2")}
    reach.away = {"n3"}
    assert quickness.order(VOTERS) == ["n1", "n2", "n3"]
    asked = 0
    for _ in range(640):
        quickness.order(VOTERS)
        asked += quickness.asks_all()
    assert asked == 10
    assert "n9" not in Quickness("n9", reach).order(VOTERS), "a node without a copy asks the others"


# ---- a promise in hand (rfc/0009)


async def test_a_second_write_here_needs_no_prepare():
    async with cluster(nobody_late=True) as made:
        await put(made[1], "p", b"0")
        prepares = made.net.count("Prepare")
        for number in range(1, 6):
            assert (await put(made[1], "p", b"%d" % number)).version.version == number + 1
            assert await get(made[3], "p") == b"%d" % number
        await delete(made[1], "p")
        assert made.net.count("Prepare") == prepares
        assert [view.version.version for view in await made[2].objects.versions("p")] == [6, 5, 4, 3, 2, 1]


async def test_a_rival_takes_the_promise_away():
    async with cluster() as made:
        await put(made[1], "p", b"1")
        await put(made[2], "p", b"2")
        await made.settle()
        view = await put(made[1], "p", b"3")
        assert view.version.version == 3 and await get(made[2], "p") == b"3"


async def test_a_rival_that_this_node_did_not_hear_of_wins_and_nothing_is_lost():
    async with cluster() as made:
        await put(made[1], "p", b"1")
        await made.settle()
        made.net.down.add("n1")
        assert (await put(made[2], "p", b"2")).version.version == 2
        made.net.down.clear()
        assert (await put(made[1], "p", b"3")).version.version == 3
        assert await get(made[3], "p", version=2) == b"2"


async def test_a_refusal_rests_on_what_is_chosen_not_on_what_is_held():
    async with cluster() as made:
        await put(made[1], "p", b"1")
        await made.settle()
        made.net.down.add("n1")
        head = await put(made[2], "p", b"2")
        made.net.down.clear()
        # What is held says version 1: by that this would be refused.
        assert (await put(made[1], "p", b"3", conditions=Conditions(version=2))).version.version == 3
        with pytest.raises(PreconditionFailed):
            await put(made[1], "p", b"4", conditions=Conditions(etags=(head.version.etag,)))
        assert (await look(made[2], "p")).version.version == 3


async def test_a_write_with_a_write_id_begins_with_a_prepare():
    async with cluster() as made:
        await put(made[1], "p", b"1")
        before = made.net.count("Prepare")
        await put(made[1], "p", b"2", write_id="w")
        assert made.net.count("Prepare") > before
        assert (await put(made[1], "p", b"2", write_id="w")).version.version == 2


async def test_a_promise_is_not_used_while_those_who_gave_it_are_away():
    async with cluster() as made:
        await put(made[1], "p", b"1")
        await made.settle()
        made.net.down |= {"n2", "n3"}
        made.give_up_after(0.3)
        with pytest.raises(QuorumUnavailable):
            await put(made[1], "p", b"2")
        assert made.net.count("Commit") == 3, "refused before anything was sent"


# ---- LEARNs


async def test_a_learn_that_leaves_after_a_late_accept_is_a_bare_one():
    async with cluster() as made:
        seen: list[Learnt] = []
        made.net.fault("Learn", "drop", when=lambda learn: bool(seen.extend(learn.items)) or False)
        await put(made[1], "p", content(1000))
        await made.settle()
        await until(lambda: len(seen) >= 2)
        assert all(item.record is None for item in seen), "all three had accepted by then"


def test_a_spread_says_what_is_enough():
    whole = Learnt(0, "p", 1, None)
    assert Spread("n1", whole).bare is None and Spread("n1", whole).accepted == ()


# ---- what is known is not told


async def test_a_query_is_not_told_the_record_that_it_knows():
    async with cluster() as made:
        await put(made[1], "p", b"x")
        await made.settle()
        slot, register = made.slot("p"), made[1].register("p")
        query = Query(slot=slot, path="p", epoch=1)
        whole = await made[1].peers.call("n2", query, timeout_s=30)
        brief = await made[1].peers.call(
            "n2", Query(slot=slot, path="p", epoch=1, known=register.accepted), timeout_s=30
        )
        assert whole.record == register.record and brief.record is None and brief.accepted == register.accepted
        assert not isinstance(brief, AcceptedReply)


async def test_an_answer_without_the_record_counts_for_nothing_unless_it_is_known():
    async with cluster() as made:
        await put(made[1], "p", b"old")
        await made.settle()
        made.net.down.add("n1")
        await put(made[2], "p", b"new")
        await made.settle()
        made.net.down.clear()
        # The own copy is behind: what it knows is not what the others hold.
        assert await get(made[1], "p") == b"new"


# ---- the small change


@given(st.binary(max_size=20_000))
def test_a_content_has_one_hash_however_it_is_made(data: bytes):
    assert content_hash(data) == content_hash(memoryview(data)) == blake3(data).hexdigest()


def test_minted_ids_are_ulids_that_grow():
    now = [1_700_000_000_000]
    mint = UlidMint(HybridClock(lambda: now[0]), SeededRandomness(1))
    last = ""
    for number in range(5000):
        now[0] += number % 3 == 0
        text = mint.mint()
        assert str(ULID.from_str(text)) == text > last
        last = text


# ---- found by review


async def test_a_promise_is_not_used_by_a_node_whose_disk_is_full():
    """A COMMIT that all refuse for want of room has an unknown outcome; a PREPARE says 507 at once."""
    async with cluster() as made:
        await put(made[1], "p", b"1")
        await made.settle()
        for node in made:
            node.store.full = True
        with pytest.raises(InsufficientStorage):
            await put(made[1], "p", b"2")
        assert made.net.count("Commit") == 3


async def test_timeouts_of_the_own_node_are_looked_at_by_one_timer():
    """One that asks again when it is told of a timeout began a second chain of timers, then a third."""

    class Mute:
        def answer(self, peer, request, respond):
            return True

    local = LocalPeer("n1", Mute(), HybridClock(lambda: 0))
    looks, told = 0, 0
    look = local._expire

    def counted() -> None:
        nonlocal looks
        looks += 1
        look()

    def again(_: object) -> None:
        nonlocal told
        told += 1
        if told < 12:
            local.ask(Query(slot=0, path="p", epoch=1), again, timeout_s=0.001)

    local._expire = counted
    again(None)
    await until(lambda: told >= 12)
    assert looks <= 2 * told, "a chain of timers more for each timeout"
    await local.close(grace_s=0.1)


async def test_a_buffer_that_a_thread_may_still_fill_is_not_used_again():
    """A reader that is cancelled cancels the fetching, not the thread that reads from the disk."""
    async with cluster() as made:
        data = content(3 * CHUNK)
        await put(made[1], "p", data)
        view = await look(made[1], "p")
        reading, store = made[1].reading, made[1].store
        begun, go_on = asyncio.Event(), asyncio.Event()
        original = store.read_chunk_into

        async def slow(*args):
            begun.set()
            await go_on.wait()
            return await original(*args)

        store.read_chunk_into = slow
        task = asyncio.create_task(anext(reading.read(view, 0, len(data))))
        await begun.wait()
        task.cancel()
        await asyncio.wait([task])
        assert not reading._buffers._free
        go_on.set()
        store.read_chunk_into = original
        assert await get(made[1], "p") == data


async def test_a_write_remembers_who_was_slow_and_asks_another_next_time(monkeypatch: pytest.MonkeyPatch):
    """Found by the benchmark with a node 100 ms away: every other PUT waited for it until it counted as late."""
    # On a busy machine nobody is to count as late, nor anybody else as slow as that one.
    async with cluster(peer_timeout_s=6000.0, request_timeout_s=6000.0) as made:
        hold = made.net.fault("Prepare", "hold", to="n2")
        for number in range(3):
            await put(made[1], f"p{number}", b"x")
        assert made.net.count("Prepare", "n2")
        loop = asyncio.get_running_loop()
        now = loop.time
        monkeypatch.setattr(loop, "time", lambda: now() + 1000.0)
        hold.released.set()
        made.net.rules.clear()
        await made.settle()
        slow = made.net.count("Prepare", "n2")
        monkeypatch.setattr("node.rounds.LATE_S", 20.0)
        for number in range(20):
            await put(made[1], f"q{number}", b"x")
        assert made.net.count("Prepare", "n2") == slow, "the quicker one is asked"


async def test_no_commit_goes_out_after_the_deadline_of_a_process_that_stood_still(monkeypatch: pytest.MonkeyPatch):
    """Found by the simulation: answers that waited are looked at before timers, and the client had asked elsewhere meanwhile."""
    async with cluster(peer_timeout_s=30.0, request_timeout_s=0.5) as made:
        peers = made[1].coordinator.peers
        really_ask, waiting = peers.ask, []

        def ask(node, request, told, *, timeout_s):
            if isinstance(request, Prepare) and node != "n1":
                really_ask(node, request, lambda reply: waiting.append((told, reply)), timeout_s=timeout_s)
            else:
                really_ask(node, request, told, timeout_s=timeout_s)

        monkeypatch.setattr(peers, "ask", ask)
        writing = asyncio.create_task(put(made[1], "p", b"x"))
        await until(lambda: waiting)
        time.sleep(1.0)  # the process stands still
        for told, reply in waiting:
            told(reply)
        with pytest.raises(QuorumUnavailable):
            await writing
        assert made.net.count("Commit") == 0
