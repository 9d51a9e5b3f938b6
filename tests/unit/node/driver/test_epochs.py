"""Epochs and copies without a voice: who refuses what, and how a coordinator gets to the newer route (rfc/0012)."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from amberblob.ballot import Ballot
from amberblob.errors import DiskFull, InsufficientStorage, OutcomeUnknown, PeerError, QuorumUnavailable, StaleRoute
from amberblob.manifest import Record
from amberblob.mutations import EpochSeen
from amberblob.wire import (
    AcceptedReply,
    Commit,
    Done,
    HistoryReply,
    Learn,
    Learnt,
    Prepare,
    Promised,
    Query,
    QueryHistory,
    QueryScan,
    Refused,
    RegisterReply,
    Reply,
    Request,
    StageOpen,
)
from node import coordinator
from node.objects import listing as listings
from node.protocol.quorum import Electorate
from node.protocol.write import Outcome
from node.rounds import Run
from node.routing import Routing
from node.service import ObjectView
from registry.routes import Member, Route
from tests.unit.node.driver.routes_kit import anew, away, filled, lag, raise_epoch, readmit, reroute
from tests.unit.node.objects.kit import (
    CHUNK,
    PATIENCE_S,
    STAGED,
    Cluster,
    Node,
    cluster,
    content,
    get,
    listing,
    look,
    put,
    until,
    walk,
)

NEW = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
STUB = Record(1, "delete", 1, None, (), (), 0, 0, None, ())
FIRST, LATER = Ballot(1, 100, "n1", "a"), Ballot(2, 100, "n1", "a")


async def ask(node: Node, request: Request, *, at_once: bool = False) -> Reply:
    """The answer of a node's replica, on the way that needs nothing from the disk or on the other."""
    if not at_once:
        return await node.replica.handle("n1", request)
    told: list[Reply] = []
    assert node.replica.answer("n1", request, told.append)
    await until(lambda: told)
    return told[0]


def questions(slot: int, epoch: int) -> list[Request]:
    return [Query(slot=slot, path="p", epoch=epoch), QueryHistory(slot=slot, path="p", epoch=epoch)]


# ---- fencing


@pytest.mark.parametrize(
    "kind,at_once", [(0, False), (0, True), (1, False)], ids=["Query", "Query at once", "QueryHistory"]
)
async def test_a_question_of_a_later_epoch_ends_the_older_ones(kind, at_once):
    async with cluster() as made:
        slot, node = made.slot("p"), made[2]
        assert not isinstance(await ask(node, questions(slot, 1)[kind], at_once=at_once), Refused)
        assert not isinstance(await ask(node, questions(slot, 3)[kind], at_once=at_once), Refused)
        for restarted in (False, True):
            if restarted:
                node = made.start("n2")
            for request in (*questions(slot, 2), Prepare(slot=slot, path="p", epoch=2, ballot=LATER)):
                reply = await ask(node, request)
                assert isinstance(reply, Refused) and (reply.reason, reply.epoch) == ("epoch", 3)
            reply = await ask(node, Query(slot=slot, path="p", epoch=2), at_once=True)
            assert isinstance(reply, Refused) and reply.reason == "epoch"


@pytest.mark.parametrize("kind", [0, 1], ids=["Query", "QueryHistory"])
async def test_the_epoch_is_durable_before_the_answer_and_the_first_one_costs_no_write(kind, tmp_path):
    async with cluster(folder=tmp_path) as made:
        slot, node = made.slot("p"), made[2]
        applied, waiting = [], []
        apply, when_durable, durable = node.store.apply, node.store.when_durable, node.store.durable
        synced = asyncio.Event()

        def noted(mutation):
            applied.append(mutation)
            return apply(mutation)

        async def slow(position):
            waiting.append(position)
            await synced.wait()
            await durable(position)

        node.store.apply = noted
        await ask(node, questions(slot, 1)[kind])
        assert applied == []
        node.store.durable = slow
        node.store.when_durable = lambda position, callback: waiting.append(position)
        asking = asyncio.create_task(ask(node, questions(slot, 2)[kind]))
        await until(lambda: waiting)
        assert applied == [EpochSeen(slot, 2)] and waiting[0] > 0 and not asking.done()
        synced.set()
        assert not isinstance(await asking, Refused)
        if not kind:
            told: list[Reply] = []
            assert node.replica.answer("n1", Query(slot=slot, path="p", epoch=3), told.append)
            assert told == [] and waiting[-1] > waiting[0] and applied[-1] == EpochSeen(slot, 3)
        node.store.when_durable, node.store.durable = when_durable, durable


async def test_a_disk_that_cannot_keep_an_epoch_does_not_answer_in_it():
    async with cluster() as made:
        slot = made.slot("p")
        made[2].store.fail("broken")
        for request in questions(slot, 2):
            reply = await ask(made[2], request)
            assert isinstance(reply, Refused) and reply.reason == "disk-failed"


# ---- copies without a voice


def everything(slot: int, epoch: int) -> list[Request]:
    ballot = Ballot(epoch, 100, "n1", "a")
    return [
        Prepare(slot=slot, path="p", epoch=epoch, ballot=ballot),
        Commit(slot=slot, path="p", epoch=epoch, ballot=ballot, record=STUB),
        *questions(slot, epoch),
    ]


@pytest.mark.parametrize("named", [False, True], ids=["another-is-named", "not-filled"])
@pytest.mark.parametrize("at_once", [False, True])
async def test_a_mute_copy_promises_accepts_answers_and_learns_nothing(named, at_once):
    async with cluster() as made:
        slot, node = made.slot("p"), made[3]
        node.store.lose_slot(slot, NEW)
        if named:
            readmit(made, slot, node)
        epoch = made.table.routes[slot].epoch
        before = node.store.slot_state(slot)
        for request in everything(slot, epoch):
            if at_once and isinstance(request, QueryHistory):
                continue
            reply = await ask(node, request, at_once=at_once)
            assert isinstance(reply, Refused) and reply.reason == "unsynced", request
        learn = Learn(items=(Learnt(slot, "p", epoch, Ballot(1, 1, "n1", "a"), STUB),))
        assert await ask(node, learn, at_once=at_once) == Done()
        assert node.register("p").accepted is None and node.store.slot_state(slot) == before
        with pytest.raises(PeerError, match="unsynced"):
            message = StageOpen(slot=slot, epoch=epoch, blob_id=NEW, chunk_bytes=CHUNK)
            stage = await made[1].peers.stage("n3", message, timeout_s=30.0)
            while True:
                await stage.write(b"x")
        if not named:
            return
        filled(node, slot, epoch)
        answers = [
            await ask(node, request, at_once=at_once and i < 3) for i, request in enumerate(everything(slot, epoch))
        ]
        assert [type(answer) for answer in answers] == [Promised, AcceptedReply, RegisterReply, HistoryReply]


async def test_a_copy_that_was_filled_in_an_earlier_epoch_than_it_was_named_in_is_mute():
    async with cluster() as made:
        slot, node = made.slot("p"), made[3]
        raise_epoch(made, slot)
        readmit(made, slot, node)
        filled(node, slot, 2)
        assert made.table.routes[slot].epoch == 3
        assert (await ask(node, Query(slot=slot, path="p", epoch=3))).reason == "unsynced"
        filled(node, slot, 4)
        assert isinstance(await ask(node, Query(slot=slot, path="p", epoch=4)), RegisterReply)


async def test_a_copy_of_the_first_epoch_needs_no_filling():
    async with cluster() as made:
        slot = made.slot("p")
        for _ in range(3):
            raise_epoch(made, slot)
        await put(made[1], "p", b"x")
        await made.settle()
        for node in made:
            assert node.routing.mute(node.store.slot_state(slot)) is None and node.routing.newcomers() == {}
            assert await get(node, "p", consistency="local") == b"x"


async def test_a_copy_that_loses_its_memory_while_it_reads_does_not_answer():
    """The look at the disk takes a while; what it found is of a copy that is no more."""
    async with cluster() as made:
        slot, node = made.slot("p"), made[3]
        load = node.store.load

        async def losing(at, path):
            register = await load(at, path)
            node.store.lose_slot(slot, NEW)
            return register

        for request in everything(slot, 1):
            node.store._slots.pop(slot, None)
            node.store.load = losing
            reply = await ask(node, request)
            assert isinstance(reply, Refused) and reply.reason == "unsynced", request
            node.store.load = load
        node.store._slots.pop(slot, None)
        node.store.load = losing
        await ask(node, Learn(items=(Learnt(slot, "p", 1, FIRST, STUB),)))
        assert node.register("p").accepted is None


async def test_reads_and_writes_go_on_beside_a_mute_copy_and_through_its_node():
    async with cluster() as made:
        slot = made.slot("p")
        await put(made[3], "p", b"one")
        await made.settle()
        made[3].store.lose_slot(slot, NEW)
        for named in (False, True):
            if named:
                readmit(made, slot, made[3])
            for node in made:
                assert await get(node, "p") == (b"two" if named else b"one")
                assert await get(node, "p", consistency="local") == (b"two" if named else b"one"), (
                    "emptiness is no news"
                )
                assert (await look(node, "p", version=1, consistency="local")).version.version == 1
            await put(made[3], "p", content(STAGED))
            await put(made[3], "p", b"two")
            await made.settle()
        made.net.down = {"n2"}
        with pytest.raises(QuorumUnavailable):
            await get(made[1], "p")


async def test_a_listing_does_not_count_a_mute_copy():
    async with cluster() as made:
        await put(made[1], "p", b"x")
        await put(made[1], "q", b"x")
        await made.settle()
        slot = made.slot("p")
        made[3].store.lose_slot(slot, NEW)
        readmit(made, slot, made[3])
        for node in made:
            assert await walk(node, limit=10) == (["p", "q"], [])
        scan = QueryScan(prefix="", start="", delimiter="", limit=10)
        told = await ask(made[3], scan)
        assert told.incarnations[slot] != NEW
        made.net.down = {"n2"}
        with pytest.raises(QuorumUnavailable):
            await listing(made[1])
        filled(made[3], slot, 2)
        assert await walk(made[1], limit=10) == (["p", "q"], []), "p is read strongly now: one told nothing of it"


async def test_a_listing_goes_by_one_route_though_it_changes_meanwhile():
    """What was told by copies that counted, and had seen no later epoch, is what a majority held when the listing began."""
    async with cluster() as made:
        slot = made.slot("p")
        await put(made[1], "p", b"x")
        await made.settle()
        gate = made.net.fault("QueryScan", "hold", to="n2")
        asking = asyncio.create_task(walk(made[1], limit=10))
        await until(lambda: gate.hits)
        made.net.fault("QueryScan", "drop", to="n3")
        made[1].store.lose_slot(slot, NEW)
        readmit(made, slot, made[1])
        gate.released.set()
        assert await asking == (["p"], [])
        gate = made.net.fault("QueryScan", "hold", to="n2")
        asking = asyncio.create_task(walk(made[1], limit=10))
        await until(lambda: gate.hits)
        raise_epoch(made, slot)
        await ask(made[2], Query(slot=slot, path="p", epoch=3))
        gate.released.set()
        with pytest.raises(QuorumUnavailable):
            await asking


async def test_a_route_is_settled_when_nobody_else_is_to_come():
    async with cluster(4) as made:
        slot = made.slot("p")
        outside = next(node for node in made if not node.routing.is_member(slot))
        stranger = Member(outside.name, outside.store.disk_id, 2)
        assert made[1].routing.electorate(slot).settled
        for change in ({"learners": (stranger,)}, {"state": "joint", "next_voters": (stranger,)}):
            reroute(made, slot, lambda route, change=change: msgspec.structs.replace(route, epoch=2, **change))
            assert not made[1].routing.electorate(slot).settled
            reroute(made, slot, lambda route: Route(slot=slot, epoch=3, voters=route.voters))
            assert made[1].routing.electorate(slot).settled


def test_a_node_without_routes_has_no_voice():
    routing = Routing(node="n1", disk_id=NEW, table=lambda: None)
    assert routing.newcomers() == {}


# ---- the coordinator's way to the newer route


async def newer(made: Cluster, slot: int, *names: str) -> None:
    """These replicas have heard of epoch 2."""
    raise_epoch(made, slot)
    for name in names:
        await ask(made.nodes[name], Query(slot=slot, path="other", epoch=2))


@pytest.mark.parametrize("size", [1, STAGED])
async def test_a_write_that_is_refused_for_its_epoch_waits_for_the_route(size):
    async with cluster() as made:
        slot = made.slot("p")
        catch_up = lag(made, made[1])
        await newer(made, slot, "n1", "n2", "n3")
        writing = asyncio.create_task(put(made[1], "p", content(size)))
        await until(lambda: made.net.count("Prepare") >= 12)
        assert not writing.done(), "more refusals than an unreachable majority may give"
        catch_up()
        assert (await writing).version.version == 1
        assert await get(made[2], "p") == content(size)


@pytest.mark.parametrize("version", [None, 1])
async def test_a_read_that_is_refused_for_its_epoch_waits_for_the_route(version):
    async with cluster() as made:
        slot = made.slot("p")
        await put(made[1], "p", b"x")
        await made.settle()
        catch_up = lag(made, made[1])
        await newer(made, slot, "n1", "n2", "n3")
        reading = asyncio.create_task(get(made[1], "p", version=version))
        await asyncio.sleep(0.1)
        assert not reading.done()
        catch_up()
        assert await reading == b"x"


async def test_nobody_waits_for_a_silent_voter_when_the_route_is_here():
    # Who waited for it would wait longer than a test may take.
    async with cluster(peer_timeout_s=600.0, request_timeout_s=600.0) as made:
        slot = made.slot("p")
        await put(made[1], "p", b"x")
        await made.settle()
        stale = made[1].routing.electorate(slot)
        await newer(made, slot, "n1", "n2", "n3")
        made.net.fault("Prepare", "hold", to="n3")
        made.net.fault("Query", "hold", to="n3")
        # n2 answers; n3 does not, and by the old route n1 and n2 refuse.
        query = Query(slot=slot, path="p", epoch=stale.epoch)
        assert (await made[1].coordinator.read(stale, query)).finding.record.head.version == 1


@pytest.fixture
def runs(monkeypatch) -> list[Run]:
    """The rounds of writes, as they begin: that their time is over is told to them."""
    made: list[Run] = []
    outcome = Run.outcome

    async def noted(run: Run, timeout_s: float) -> Outcome:
        made.append(run)
        return await outcome(run, timeout_s)

    monkeypatch.setattr(Run, "outcome", noted)
    return made


async def test_without_the_route_a_write_is_refused_or_unknown_when_its_time_is_over(runs):
    async with cluster() as made:
        slot = made.slot("p")
        lag(made, made[1])
        await newer(made, slot, "n1", "n2", "n3")
        writing = asyncio.create_task(put(made[1], "p", b"x"))
        await until(lambda: made.net.count("Prepare") >= 6, "it was refused, and tries again")
        runs[0]._deadline()
        with pytest.raises(QuorumUnavailable, match="epoch"):
            await writing
        made.give_up_after(2.0)
        with pytest.raises(QuorumUnavailable, match="epoch"):
            await get(made[1], "p")
        assert made.net.count("Commit") == 0


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(coordinator, "ROUTE_PATIENCE_S", 0.05)


async def test_without_the_registry_the_route_is_not_waited_for_until_time_is_over(impatient):
    # Who waited for it would wait longer than a test may take.
    async with cluster(peer_timeout_s=600.0, request_timeout_s=600.0) as made:
        slot = made.slot("p")
        catch_up = lag(made, made[1])
        await newer(made, slot, "n1", "n2", "n3")
        away(made[1])
        for asked in (
            put(made[1], "p", b"x"),
            put(made[1], "p", content(STAGED)),
            get(made[1], "p"),
            get(made[1], "p", version=1),
        ):
            with pytest.raises(
                StaleRoute, match=r"epoch 2, and this node knows that of epoch 1.*ask another node"
            ) as told:
                await asked
            assert (told.value.status, told.value.code) == (503, "stale-route")
            assert told.value.extra["slot"] == slot and len(told.value.extra["failures"]) >= 2
        assert made.net.count("Commit") == 0
        assert (await put(made[2], "p", b"x")).version.version == 1
        catch_up()
        assert await get(made[1], "p") == b"x"


async def test_without_the_registry_a_majority_that_has_not_heard_of_the_route_either_is_enough(impatient):
    async with cluster(peer_timeout_s=600.0, request_timeout_s=600.0) as made:
        slot = made.slot("p")
        lag(made, *made)
        await newer(made, slot, "n1")
        away(made[1])
        for asked in (put(made[1], "p", b"x"), get(made[1], "p")):
            held = [made.net.fault(kind, "hold", to=name) for kind in ("Prepare", "Query") for name in ("n2", "n3")]
            task = asyncio.create_task(asked)
            await asyncio.sleep(0.2)
            assert not task.done(), "two may still answer"
            for rule in held:
                rule.released.set()
            await task


async def test_without_the_registry_a_write_whose_commit_was_sent_is_unknown(impatient):
    async with cluster(peer_timeout_s=600.0, request_timeout_s=600.0) as made:
        slot = made.slot("p")
        lag(made, made[1])
        away(made[1])
        held = [made.net.fault("Commit", "hold", to=name, times=1) for name in ("n1", "n2", "n3")]
        writing = asyncio.create_task(put(made[1], "p", b"x"))
        await until(lambda: all(rule.hits for rule in held))
        await newer(made, slot, "n1", "n2", "n3")
        for rule in held:
            rule.released.set()
        with pytest.raises(OutcomeUnknown):
            await writing


async def test_without_the_registry_a_race_that_was_lost_is_run_again(impatient):
    """n1 has heard of the newer epoch, n2 and n3 are a majority that has not, and a rival takes every ballot for a while."""
    async with cluster(peer_timeout_s=600.0, request_timeout_s=600.0) as made:
        slot = made.slot("p")
        lag(made, *made)
        await newer(made, slot, "n1")
        away(made[2])
        writing = asyncio.create_task(put(made[2], "p", b"x"))
        loop = asyncio.get_running_loop()
        counter, end_s = 1000, loop.time() + 0.5
        while loop.time() < end_s and not writing.done():
            counter += 1000
            rival = Prepare(slot=slot, path="p", epoch=1, ballot=Ballot(1, counter, "n3", f"r{counter}"))
            for name in ("n2", "n3"):
                await ask(made.nodes[name], rival)
            await asyncio.sleep(0.0005)
        assert (await writing).version.version == 1


async def test_without_the_registry_those_who_wait_for_their_turn_are_told_together(monkeypatch):
    # Who waited one after the other would wait longer than a test may take.
    monkeypatch.setattr(coordinator, "ROUTE_PATIENCE_S", 4.0)
    async with cluster(peer_timeout_s=600.0, request_timeout_s=600.0) as made:
        slot = made.slot("p")
        lag(made, made[1])
        await newer(made, slot, "n1", "n2", "n3")
        away(made[1])
        told = await asyncio.gather(*(put(made[1], "p", b"x") for _ in range(100)), return_exceptions=True)
        assert {type(each) for each in told} == {StaleRoute}


async def test_without_the_registry_a_listing_says_the_same(monkeypatch):
    monkeypatch.setattr(listings, "NEWS_PATIENCE_S", 0.05)
    async with cluster() as made:
        slot = made.slot("p")
        await put(made[1], "p", b"x")
        await made.settle()
        catch_up = lag(made, made[1])
        await newer(made, slot, "n1", "n2", "n3")
        away(made[1])
        with pytest.raises(StaleRoute, match=f"Slot {slot} has a route of epoch 2"):
            await walk(made[1], limit=10)
        catch_up()
        assert await walk(made[1], limit=10) == (["p"], [])


async def test_a_listing_waits_for_a_route_that_is_on_its_way(monkeypatch):
    """As reads and writes do: while the registry is reached, the news come, on a busy machine later."""
    monkeypatch.setattr(listings, "NEWS_PATIENCE_S", 0.0)
    async with cluster(peer_timeout_s=600.0, request_timeout_s=600.0) as made:
        slot = made.slot("p")
        await put(made[1], "p", b"x")
        await made.settle()
        catch_up = lag(made, made[1])
        await newer(made, slot, "n1", "n2", "n3")
        listed = asyncio.create_task(walk(made[1], limit=10))
        before = made.net.count("QueryScan")
        await until(lambda: made.net.count("QueryScan") >= before + 9, "it asks again and again")
        catch_up()
        assert await listed == (["p"], [])


async def test_a_route_that_comes_while_the_registry_is_away_is_used(impatient):
    """What was said to be unheard has come by another way, before all voters had refused."""
    async with cluster(peer_timeout_s=600.0, request_timeout_s=600.0) as made:
        slot = made.slot("p")
        catch_up = lag(made, made[1])
        await newer(made, slot, "n1", "n2", "n3")
        away(made[1])
        held = [made.net.fault("Prepare", "hold", to=name, times=1) for name in ("n2", "n3")]
        writing = asyncio.create_task(put(made[1], "p", b"x"))
        await asyncio.sleep(0.2)
        catch_up()
        for rule in held:
            rule.released.set()
        assert (await writing).version.version == 1


async def test_a_write_whose_commit_was_sent_in_the_older_epoch_is_applied_once():
    """n2 accepts and its answer is lost; n1 and n3 hear of the newer epoch before the COMMIT."""
    async with cluster() as made:
        slot = made.slot("p")
        catch_up = lag(made, made[1])
        held = [made.net.fault("Commit", "hold", to=name, times=1) for name in ("n1", "n3")]
        made.net.fault("Commit", "lose", to="n2", times=1)
        writing = asyncio.create_task(put(made[1], "p", b"x"))
        await until(lambda: all(rule.hits for rule in held) and made[2].register("p").accepted is not None)
        await newer(made, slot, "n1", "n3")
        for rule in held:
            rule.released.set()
        await asyncio.sleep(0.05)
        assert not writing.done()
        catch_up()
        assert (await writing).version.version == 1
        versions = [view.version.version for view in await made[2].objects.versions("p")]
        assert versions == [1]


async def test_a_write_whose_commit_was_sent_and_whose_route_does_not_come_is_unknown(runs):
    async with cluster() as made:
        slot = made.slot("p")
        lag(made, made[1])
        held = [made.net.fault("Commit", "hold", to=name, times=1) for name in ("n1", "n2", "n3")]
        writing = asyncio.create_task(put(made[1], "p", b"x"))
        await until(lambda: all(rule.hits for rule in held))
        await newer(made, slot, "n1", "n2", "n3")
        for rule in held:
            rule.released.set()
        await until(lambda: made.net.count("Prepare") >= 6, "it was refused, and tries again")
        runs[0]._deadline()
        with pytest.raises(OutcomeUnknown):
            await writing


@pytest.fixture
def patient(monkeypatch) -> None:
    """Also if the machine stands still for some seconds."""
    monkeypatch.setattr(coordinator, "NEWER_PATIENCE_S", PATIENCE_S)


async def staged_beside_a_stranger(made: Cluster) -> asyncio.Task[ObjectView]:
    """n1, which has not heard of that, puts "p" while n2's copy is a new one and n3 is down; both that are alive have the bytes."""
    await anew(made, made.slot("p"), made[2])
    made.net.down.add("n3")
    writing = asyncio.create_task(put(made[1], "p", content(STAGED)))
    await until(lambda: made.net.count("StageClose") >= 2)
    return writing


async def test_staged_bytes_that_a_copy_took_which_the_route_does_not_name_are_brought_by_the_next_route(patient):
    """n1 has not heard that n2's copy is a new one, and n3 is down: the two that are alive are enough for the write."""
    async with cluster() as made:
        catch_up = lag(made, made[1])
        writing = await staged_beside_a_stranger(made)
        await asyncio.sleep(0.1)
        assert not writing.done(), "it waits for the route that names the copy"
        catch_up()
        assert (await writing).version.version == 1
        assert await get(made[2], "p") == content(STAGED)


async def test_so_they_are_when_that_happens_once_more_while_they_are_brought(patient):
    async with cluster() as made:
        slot = made.slot("p")
        catch_up = lag(made, made[1])
        held = made.net.fault("StageClose", "hold", to="n2", skip=1, times=1)
        writing = await staged_beside_a_stranger(made)
        catch_up()
        await until(lambda: held.hits, "the bytes are on their way to the copy that is named now")
        catch_up = lag(made, made[1])
        await anew(made, slot, made[2])
        held.released.set()
        await asyncio.sleep(0.1)
        assert not writing.done()
        catch_up()
        assert (await writing).version.version == 1
        assert await get(made[2], "p") == content(STAGED)


async def test_routes_that_still_name_the_older_copy_are_not_what_is_waited_for(patient):
    """A slot that is left and joined again takes several; each that came for itself would have the body brought once more."""
    async with cluster() as made:
        slot = made.slot("p")
        lag(made, made[1])
        for _ in range(4):
            raise_epoch(made, slot)
        between = made.table
        writing = await staged_beside_a_stranger(made)
        made[1].routing._table = lambda: between
        await asyncio.sleep(0.1)
        assert not writing.done() and made.net.count("StageClose") == 2
        made[1].routing._table = lambda: made.table
        assert (await writing).version.version == 1
        assert made.net.count("StageClose") == 3


async def test_a_node_that_stops_waits_for_no_route(monkeypatch):
    monkeypatch.setattr(coordinator, "NEWER_PATIENCE_S", 600.0)
    async with cluster() as made:
        lag(made, made[1])
        writing = await staged_beside_a_stranger(made)
        made[1].coordinator.closed = True
        with pytest.raises(QuorumUnavailable):
            await writing


async def test_full_disks_are_told_as_such_also_when_the_route_is_a_newer_one():
    def full(*_: object, **__: object) -> None:
        raise DiskFull("no room")

    async with cluster() as made:
        for node in (made[2], made[3]):
            node.store.publish = full
        held = made.net.fault("StageClose", "hold", times=3)
        writing = asyncio.create_task(put(made[1], "p", content(STAGED)))
        await until(lambda: held.hits == 3)
        raise_epoch(made, made.slot("p"))
        held.released.set()
        with pytest.raises(InsufficientStorage):
            await writing


def test_who_went_and_came_back_has_nothing_of_before():
    """Over a route that does not name it in between: whether it is a new copy is not to be seen from two routes that follow each other."""

    def of(epoch: int, **voters: str) -> Electorate:
        return Electorate(slot=0, epoch=epoch, voters=voters, write_quorum=len(voters) // 2 + 1)

    first, second, third = (
        of(1, n1="a", n2="b", n3="c"),
        of(2, n1="a", n3="c", n4="d"),
        of(3, n1="a", n2="new", n3="c"),
    )
    assert second.still({"n1", "n2"}, first) == {"n1", "n2"}
    assert third.still(second.still({"n1", "n2"}, first), second) == {"n1"}


@pytest.mark.parametrize("heard", [True, False])
async def test_a_route_that_names_the_copy_and_does_not_come_is_not_waited_for_for_long(heard, monkeypatch):
    monkeypatch.setattr(coordinator, "NEWER_PATIENCE_S" if heard else "ROUTE_PATIENCE_S", 0.05)
    monkeypatch.setattr(coordinator, "ROUTE_PATIENCE_S" if heard else "NEWER_PATIENCE_S", 600.0)
    async with cluster() as made:
        slot = made.slot("p")
        lag(made, made[1])
        await anew(made, slot, made[2])
        made.net.down.add("n3")
        if not heard:
            away(made[1])
        with pytest.raises(QuorumUnavailable, match=r"n2: its copy is .*, which the route known here does not name"):
            await put(made[1], "p", content(STAGED))
        await made.settle()
        assert made.staged() == {}


async def test_a_node_with_the_newer_route_brings_it_to_replicas_that_have_the_older():
    async with cluster() as made:
        slot = made.slot("p")
        lag(made, made[2], made[3])
        raise_epoch(made, slot)
        await put(made[1], "p", b"x")
        await made.settle()
        assert [node.store.slot_state(slot).epoch for node in made] == [2, 2, 2]
        assert await get(made[1], "p") == b"x"


async def test_a_promise_of_an_older_epoch_is_not_used():
    async with cluster() as made:
        slot = made.slot("p")
        await put(made[1], "p", b"1")
        assert made[1].coordinator._holds._by_path["p"].ballot.epoch == 1
        prepares = made.net.count("Prepare")
        raise_epoch(made, slot)
        await put(made[1], "p", b"2")
        assert made.net.count("Prepare") > prepares
        assert made[1].coordinator._holds._by_path["p"].ballot.epoch == 2


async def test_a_promise_is_of_use_beside_a_copy_here_that_is_mute():
    """What is promised by the others is promised, whatever became of the copy here; it cannot tell of rivals."""
    async with cluster() as made:
        await put(made[1], "p", b"1")
        await made.settle()
        made[1].store.lose_slot(made.slot("p"), NEW)
        assert made[1].replica.copies.peek(made.slot("p"), "p") is None
        prepares = made.net.count("Prepare")
        for number in range(2, 6):
            await put(made[1], "p", b"%d" % number)
        assert made.net.count("Prepare") == prepares
        assert await get(made[2], "p") == b"5"
