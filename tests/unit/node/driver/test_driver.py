"""The parts of the node between protocol and objects: LEARN batches, routing caches, readiness, the coordinator."""

from __future__ import annotations

import asyncio
import contextlib

import msgspec
import pytest

from amberblob.ballot import Ballot
from amberblob.errors import NotReady, PeerTimeout, PeerUnreachable, PreconditionFailed, QuorumUnavailable
from amberblob.manifest import ChunkRef, Record, Version
from amberblob.wire import Commit, Discard, Done, Failed, Learn, Learnt, Ping, Prepare, Query, QueryHistory, Refused
from amberblob.wire_repair import AskHealth
from chunkstore.interface import BlobState
from node import learns as learns_module
from node.coordinator import AGAIN_S
from node.learns import Learns
from node.protocol.operations import Conditions
from node.protocol.write import Spread
from tests.unit.node.objects.kit import STAGED, cluster, content, delete, get, listing, look, put, table_of, until
from tests.unit.node.objects.status_kit import status_of

# ---- Learns


class Listener:
    """Takes LEARNs; ``error`` is raised instead, ``gate`` holds calls."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, tuple[Learnt, ...]]] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = 0
        self.at_once = 0
        self.at_once_max = 0

    async def call(self, node, request, *, timeout_s):
        assert isinstance(request, Learn)
        self.calls += 1
        self.at_once += 1
        self.at_once_max = max(self.at_once_max, self.at_once)
        try:
            await self.gate.wait()
            if self.error is not None:
                raise self.error
            self.batches.append((node, request.items))
            return Done()
        finally:
            self.at_once -= 1


@pytest.fixture
async def learning():
    listener, tasks = Listener(), set()

    def spawn(coroutine):
        task = asyncio.create_task(coroutine)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    yield listener, Learns(listener, spawn, timeout_s=30.0), tasks
    for task in tasks:
        task.cancel()


def learnt(number: int, *, chunks: int = 0, meta: int = 0) -> Learnt:
    record = None
    if chunks or meta:
        head = Version(
            number, "0" * 26, 1, "e" * 64, 0, "t", {"k": "v" * meta}, (ChunkRef("c" * 64, 1),) * chunks, None, chunks
        )
        record = Record(1, "put", number, head, ((1, 1),), (), 0, 0, None, ())
    return Learnt(0, f"p{number}", 1, Ballot(1, number + 1, "n", "a"), record)


async def test_learns_for_one_node_are_gathered_in_order(learning):
    listener, learns, tasks = learning
    for number in range(300):
        learns.add(Spread("n2", learnt(number)))
    learns.add(Spread("n3", learnt(0)))
    await until(lambda: not tasks)
    sent = [items for node, items in listener.batches if node == "n2"]
    assert [len(items) for items in sent] == [256, 44]
    assert [item.path for items in sent for item in items] == [f"p{n}" for n in range(300)]
    assert [len(items) for node, items in listener.batches if node == "n3"] == [1]


async def test_learns_are_bounded_in_bytes(learning):
    listener, learns, tasks = learning
    for number in range(100):
        learns.add(Spread("n2", learnt(number, chunks=64, meta=4000)))
    await until(lambda: not tasks)
    assert sum(len(items) for _, items in listener.batches) == 100
    assert max(len(msgspec.msgpack.encode(Learn(items=items))) for _, items in listener.batches) < 1024 * 1024
    assert len(listener.batches) > 1


async def test_an_item_greater_than_a_batch_goes_alone(learning, monkeypatch):
    monkeypatch.setattr(learns_module, "BATCH_BYTES_MAX", 1000)
    listener, learns, tasks = learning
    for number in range(3):
        learns.add(Spread("n2", learnt(number, chunks=64)))
    await until(lambda: not tasks)
    assert [len(items) for _, items in listener.batches] == [1, 1, 1]


async def test_an_unreachable_node_loses_what_waits_and_gets_what_comes_later(learning):
    listener, learns, tasks = learning
    listener.error = PeerUnreachable("away")
    for number in range(500):
        learns.add(Spread("n2", learnt(number)))
    await until(lambda: not tasks)
    assert listener.calls == 1
    listener.error = None
    learns.add(Spread("n2", learnt(7)))
    await until(lambda: not tasks)
    assert [items for _, items in listener.batches] == [(learnt(7),)]


async def test_one_batch_at_a_time_and_a_bounded_queue(learning, monkeypatch):
    monkeypatch.setattr(learns_module, "QUEUE_MAX", 100)
    listener, learns, tasks = learning
    listener.gate.clear()
    for number in range(50):
        learns.add(Spread("n2", learnt(number)))
    await until(lambda: listener.calls == 1)
    for number in range(1000):
        learns.add(Spread("n2", learnt(number)))
        assert len(learns._waiting["n2"]) <= 100
    listener.gate.set()
    await until(lambda: not tasks)
    assert listener.at_once_max == 1
    assert listener.batches[-1][1][-1].path == "p999"


async def test_a_learn_that_fails_unexpectedly_does_not_end_learning(learning):
    listener, learns, tasks = learning
    listener.error = RuntimeError("a bug")
    learns.add(Spread("n2", learnt(1)))
    await until(lambda: not tasks)
    listener.error = None
    learns.add(Spread("n2", learnt(2)))
    await until(lambda: not tasks)
    assert listener.batches[-1][1][-1].path == "p2"


# ---- Routing


async def test_routing_follows_the_table():
    async with cluster(5, replicas=3) as made:
        routing = made[1].routing
        first = routing.electorate(0)
        assert routing.electorate(0) is first and set(first.voters) == {"n1", "n2", "n3"}
        assert routing.is_member(0) and not routing.is_member(1)
        assert len(routing.distinct_electorates()) == 5
        made.table = table_of(made, ["n2", "n3", "n4"], replicas=3, slots=8, epoch=2)
        assert routing.electorate(0).epoch == 2
        assert set(routing.electorate(0).voters) == {"n2", "n3", "n4"}
        assert not routing.is_member(0)
        assert len(list(routing.electorates())) == 8
        assert routing.address("n2") == ("n2", 81) and routing.address("n1") is None
        made.table = None
        assert not routing.is_member(0)
        with pytest.raises(NotReady):
            routing.electorate(0)
        with pytest.raises(NotReady):
            routing.distinct_electorates()
        assert routing.address("n2") is None


async def test_a_table_that_changes_is_seen_first_by_any_question():
    async with cluster(5, replicas=3) as made:
        routing = made[1].routing
        for ask in (
            lambda: routing.electorate(0).epoch == 2,
            lambda: routing.distinct_electorates()[0].epoch == 2,
            lambda: not routing.is_member(0),
            lambda: routing.of("p").epoch == 2,
        ):
            made.table = table_of(made, ["n1", "n2", "n3", "n4", "n5"], replicas=3, slots=8)
            assert routing.is_member(0) and routing.electorate(0).epoch == routing.distinct_electorates()[0].epoch == 1
            made.table = table_of(made, ["n2", "n3", "n4"], replicas=3, slots=8, epoch=2)
            assert ask()


@pytest.mark.parametrize("wanted,given", [(0, 2), (1, 2), (2, 2), (3, 3), (9, 3)])
async def test_quorums_are_never_below_a_majority_nor_above_all(wanted, given):
    async with cluster(write_quorum=wanted, read_quorum=wanted) as made:
        assert (made[1].routing.electorate(0).write_quorum, made[1].routing.electorate(0).read_quorum) == (given, given)


# ---- Status


async def test_readiness():
    async with cluster() as made:
        status = status_of(made)
        assert status.not_ready() == "the node is starting"
        status.phase = None
        assert status.not_ready() is None
        made.net.down = {"n3"}
        assert status.not_ready() is None
        made.net.down = {"n2", "n3"}
        assert "n2, n3" in status.not_ready()
        made.net.down = {"n2"}
        assert status.not_ready() is None
        table, made.table = made.table, None
        assert "routes" in status.not_ready()
        told = await status.cluster()
        assert (told["nodes"], told["heal"]["state"], told["heal"]["healed"]) == ([], "unknown", False)
        with pytest.raises(NotReady):
            await status.heal()
        made.table = table
        assert status.not_ready() is None


async def test_a_node_that_was_struck_off_is_not_ready():
    async with cluster(4, replicas=3) as made:
        status, table = status_of(made, 4), made.table
        status.phase = None
        assert status.not_ready() is None and made[4].routing.is_registered()
        made.table = msgspec.structs.replace(
            table, nodes={name: info for name, info in table.nodes.items() if name != "n4"}
        )
        assert "removed" in status.not_ready() and not made[4].routing.is_registered()
        other = status_of(made, 1)
        other.phase = None
        assert other.not_ready() is None


async def test_readiness_looks_at_every_set_of_voters():
    async with cluster(5, replicas=3) as made:
        status = status_of(made)
        status.phase = None
        made.net.down = {"n4"}
        assert status.not_ready() is None
        made.net.down = {"n3", "n4"}
        assert status.not_ready() is not None


async def test_a_node_whose_writes_cannot_succeed_is_not_ready():
    """write_quorum 3 of 3: with one replica away every write is refused, so /readyz must not say that all is well."""
    async with cluster(write_quorum=3) as made:
        status = status_of(made)
        status.phase = None
        assert status.not_ready() is None
        made.net.down = {"n3"}
        assert status.not_ready() is not None


async def test_the_cluster_view():
    async with cluster() as made:
        status = status_of(made)
        status.phase = None
        made.net.down = {"n3"}
        await put(made[1], "p")
        await made.settle()
        told = await status.cluster()
        slots = told["slots"]
        assert (slots["total"], slots["degraded"], slots["unavailable"], slots["joint"]) == (8, 8, 0, 0)
        assert [(n["node"], n["reachable"], n["slots"], n["votes"]) for n in told["nodes"]] == [
            ("n1", True, 8, 8),
            ("n2", True, 8, 8),
            ("n3", False, 8, 8),
        ]
        assert told["self"]["ready"] and told["self"]["undecided"] == 0
        heal = told["heal"]
        assert (heal["state"], heal["healed"], heal["silent_nodes"]) == ("degraded", False, ["n3"])
        assert (heal["slots"]["degraded"], heal["objects"], heal["objects_below_target"]) == (8, 1, 1)
        assert (heal["last_full_compare"], heal["rate_bytes_per_s"], heal["bytes_waiting"]) == (None, None, 0)
        assert "by_slot" not in heal
        msgspec.json.encode(told)


async def test_the_cluster_view_slot_by_slot():
    async with cluster() as made:
        status = status_of(made)
        made.net.down = {"n3"}
        await put(made[1], "p", b"x")
        await made.settle()
        made.net.heal()
        slot = made.slot("p")
        told = (await status.cluster(slots="unhealed"))["heal"]
        row = next(row for row in told["by_slot"] if row["slot"] == slot)
        assert (told["state"], row["state"], row["present"], row["behind"], row["objects_below_target"]) == ("healing", "healing", 3, 1, 1)  # fmt: skip
        assert [(copy["node"], copy["state"]) for copy in row["copies"] if copy["state"] != "whole"] == [
            ("n3", "behind")
        ]
        assert len({copy["root"] for copy in row["copies"]}) == 2
        assert len((await status.cluster(slots="1"))["heal"]["by_slot"]) == 8
        await put(made[1], "p", b"y")
        await made.settle()
        for node in made:
            await node.pull()
        told = (await status.cluster(slots="unhealed"))["heal"]
        assert (told["state"], told["healed"], told["objects_below_target"]) == ("whole", True, 0)
        assert told["slots_to_compare"] == len(told["by_slot"]) == 8, "equal, and nobody has compared them yet"
        asked = await status.heal()
        assert (asked["nodes"], asked["silent_nodes"]) == (["n1", "n2", "n3"], [])


async def test_healing_is_asked_of_all_that_can_be_reached_this_node_among_them():
    async with cluster() as made:
        status = status_of(made)
        made.net.down = {"n2"}
        asked = await status.heal()
        assert (asked["nodes"], asked["silent_nodes"]) == (["n1", "n3"], ["n2"])
        heals = [(to, message) for _, to, message in made.net.messages if isinstance(message, AskHealth)]
        assert sorted(to for to, message in heals if message.heal) == ["n1", "n2", "n3"]


# ---- Coordinator


async def test_a_closed_coordinator_refuses_writes_and_ends_its_tasks():
    async with cluster() as made:
        hold = made.net.fault("Commit", "hold", to="n3")
        await put(made[1], "p")
        assert hold.hits
        await made[1].coordinator.close(0.01)
        with pytest.raises(NotReady):
            await put(made[1], "p")
        await until(lambda: not made[1].coordinator._tasks)


async def test_a_slow_replica_does_not_slow_reads_and_writes():
    # Whoever waited for it would wait longer than a test may take.
    async with cluster(peer_timeout_s=600.0, request_timeout_s=600.0) as made:
        for kind in ("Prepare", "Commit", "Query", "QueryHistory"):
            made.net.fault(kind, "hold", to="n3")
        await put(made[1], "p", b"x")
        assert await get(made[2], "p") == b"x"
        assert await get(made[1], "p", version=1) == b"x"
        await delete(made[2], "p")


async def test_a_late_accept_of_a_slow_replica_still_counts_for_its_copy():
    async with cluster() as made:
        hold = made.net.fault("Commit", "hold", to="n3")
        await put(made[1], "p", b"x")
        await until(lambda: made[1].register("p").chosen)
        hold.released.set()
        await made.settle()
        assert made[3].register("p").chosen
        assert await get(made[3], "p", consistency="local") == b"x"


async def test_a_reader_that_goes_away_does_no_harm():
    async with cluster() as made:
        await put(made[1], "p", b"x")
        made.net.fault("Query", "hold")
        task = asyncio.create_task(look(made[1], "p"))
        await until(lambda: made.net.count("Query") == 3)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        made.net.heal()
        await made.settle()
        assert await get(made[1], "p") == b"x"


async def test_an_answer_of_the_wrong_kind_is_not_counted():
    async with cluster() as made:
        await put(made[1], "p", b"x")
        honest = made[2].replica.handle

        async def confused(peer, request):
            return Done() if not isinstance(request, Learn) else await honest(peer, request)

        made[2].replica.handle = confused
        assert await get(made[1], "p") == b"x"
        assert (await put(made[1], "p", b"y")).version.version == 2


# ---- Replica


async def test_a_replica_answers_for_its_own_slots_only():
    async with cluster(5, replicas=3) as made:
        path = "p"
        slot = made.slot(path)
        stranger = next(node for node in made if not node.routing.is_member(slot))
        ballot = Ballot(1, 1, "n1", "a")
        for request in (
            Prepare(slot=slot, path=path, epoch=1, ballot=ballot, write_id=""),
            Query(slot=slot, path=path, epoch=1),
            QueryHistory(slot=slot, path=path, epoch=1),
        ):
            reply = await stranger.replica.handle("n1", request)
            assert isinstance(reply, Refused) and reply.reason == "not-a-member"
        assert isinstance(await stranger.replica.handle("n1", Ping(now_ms=1)), Done)


async def test_a_commit_whose_body_is_not_its_record_is_refused_and_changes_nothing():
    async with cluster() as made:
        await put(made[1], "p", b"one")
        await made.settle()
        await put(made[1], "p", b"two")
        commit = next(m for _, _, m in reversed(made.net.messages) if isinstance(m, Commit))
        await made.settle()
        before = made[2].register("p")
        forged = msgspec.structs.replace(commit, body=b"TWO", ballot=Ballot(1, 99, "n1", "a"))
        reply = await made[1].peers.call("n2", forged, timeout_s=30.0)
        assert isinstance(reply, Failed)
        assert made[2].register("p") == before


async def test_a_failed_disk_refuses_and_the_others_go_on():
    async with cluster() as made:
        await put(made[1], "p", b"x")
        await made.settle()
        made[3].store.fail("broken")
        for node in made:
            await put(node, "p", content(STAGED))
            assert await get(node, "p") == content(STAGED)


async def test_a_discard_of_a_referenced_blob_does_nothing():
    async with cluster() as made:
        view = await put(made[1], "p", content(STAGED))
        await made.settle()
        slot, blob_id = made.slot("p"), view.version.blob_id
        for name in ("n1", "n2", "n3"):
            await made[1].peers.call(name, Discard(slot=slot, blob_id=blob_id), timeout_s=30.0)
        for node in made:
            assert await node.store.blob_state(slot, blob_id) is BlobState.DURABLE
            assert await get(node, "p") == content(STAGED)
        reply = await made[1].peers.call("n2", Discard(slot=slot, blob_id="../../etc"), timeout_s=30.0)
        assert isinstance(reply, Failed)


async def test_a_restarted_replica_breaks_no_promise():
    async with cluster() as made:
        slot = made.slot("p")
        high = Ballot(1, 50, "n1", "a")
        promised = await made[2].replica.handle("n1", Prepare(slot=slot, path="p", epoch=1, ballot=high, write_id=""))
        assert not isinstance(promised, Refused)
        made.start("n2")
        reply = await made[2].replica.handle(
            "n3", Prepare(slot=slot, path="p", epoch=1, ballot=Ballot(1, 49, "n3", "b"), write_id="")
        )
        assert isinstance(reply, Refused) and reply.reason == "ballot"
        assert (await put(made[3], "p", b"x")).version.version == 1


async def test_restarts_between_writes_lose_nothing():
    async with cluster() as made:
        for index in range(12):
            made.start(f"n{index % 3 + 1}")
            assert (await put(made[(index + 1) % 3 + 1], "p", b"%d" % index)).version.version == index + 1
            assert await get(made[index % 3 + 1], "p") == b"%d" % index


async def test_restarts_of_real_disks(tmp_path):
    data = content(STAGED)
    async with cluster(folder=tmp_path) as made:
        await put(made[1], "p", data)
        await put(made[2], "q", b"x")
        await delete(made[3], "q")
    async with cluster(folder=tmp_path) as made:
        for node in made:
            assert await get(node, "p") == data
        assert (await put(made[2], "q", b"y", write_id="w")).version.version == 2
        for node in made:
            assert [v.version.version for v in await node.objects.versions("q")] == [2, 1]


async def test_peers_that_time_out_are_told_by_name():
    async with cluster(peer_timeout_s=0.05) as made:
        made.net.fault("Ping", "hold")
        with pytest.raises(PeerTimeout):
            await made[1].coordinator.call("n2", Ping(now_ms=0))


READS = {
    "Query": lambda node: get(node, "p"),
    "QueryHistory": lambda node: node.objects.versions("p"),
    "QueryScan": listing,
}


@pytest.mark.parametrize("kind", READS)
async def test_voters_that_were_silent_are_asked_again(kind: str):
    """A machine that stood still for the peer timeout hears its timers first, and the answers that had come after them."""
    async with cluster(peer_timeout_s=0.2, request_timeout_s=60.0) as made:
        await put(made[1], "p", b"x")
        await made.settle()
        silent = [made.net.fault(kind, "hold", to=node, times=1) for node in ("n2", "n3")]
        assert await READS[kind](made[1])
        assert all(rule.hits for rule in silent)


@pytest.mark.parametrize("kind", READS)
async def test_voters_that_are_away_are_not_asked_again(kind: str):
    async with cluster(peer_timeout_s=30.0, request_timeout_s=60.0) as made:
        await put(made[1], "p", b"x")
        await made.settle()
        away = [made.net.fault(kind, "drop", to=node) for node in ("n2", "n3")]
        with pytest.raises(QuorumUnavailable):
            await READS[kind](made[1])
        assert [rule.hits for rule in away] == [1, 1]


@pytest.mark.parametrize("kind", READS)
async def test_voters_are_not_asked_again_for_the_last_moments(kind: str):
    async with cluster(peer_timeout_s=0.2, request_timeout_s=0.2 + AGAIN_S) as made:
        await put(made[1], "p", b"x")
        await made.settle()
        silent = [made.net.fault(kind, "hold", to=node) for node in ("n2", "n3")]
        with pytest.raises(QuorumUnavailable):
            await READS[kind](made[1])
        assert [rule.hits for rule in silent] == [1, 1]


async def test_writes_of_one_path_take_turns_on_a_node():
    """Found by racing 32 clients for one path: rounds of one node refused each other's COMMITs until all ran out of time."""
    async with cluster(request_timeout_s=30.0) as made:
        results = await asyncio.gather(
            *(put(made[1 + n % 3], "p", b"%d" % n, conditions=Conditions(absent=True)) for n in range(48)),
            return_exceptions=True,
        )
        assert sum(not isinstance(result, BaseException) for result in results) == 1
        assert sum(isinstance(result, PreconditionFailed) for result in results) == 47
        assert all(not node.coordinator.turns._queues for node in made)


async def test_a_write_whose_turn_does_not_come_was_not_applied():
    async with cluster(request_timeout_s=30.0, peer_timeout_s=30.0) as made:
        for node in ("n1", "n2", "n3"):
            made.net.fault("Prepare", "hold", to=node, times=1)
        first = asyncio.create_task(put(made[1], "p", b"1"))
        await until(lambda: made.net.count("Prepare") == 3)
        made[1].coordinator._write_timeout_s = 0.1
        second = asyncio.create_task(put(made[1], "p", b"2"))
        gone = asyncio.create_task(put(made[1], "p", b"3"))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(NotReady, match="turn did not come") as caught:
            await second
        assert caught.value.code == "contended" and caught.value.status == 503
        assert made.net.count("Prepare") == 3
        made.net.heal()
        await first
        await asyncio.gather(gone, return_exceptions=True)
        assert not made[1].coordinator.turns._queues


async def test_a_read_of_what_is_being_written_here_waits_for_that_write_alone():
    async with cluster(request_timeout_s=30.0, peer_timeout_s=30.0) as made:
        await put(made[1], "p", b"0")
        await made.settle()
        held = [made.net.fault("Commit", "hold", to=node, times=1) for node in ("n2", "n3")]
        first = asyncio.create_task(put(made[1], "p", b"1"))
        await until(lambda: all(rule.hits for rule in held) and made.net.count("Commit", "n1") == 2)
        in_line = [asyncio.create_task(put(made[1], "p", b"%d" % n)) for n in range(20)]
        made.net.fault("Query", "drop", to="n3", times=1)  # so that the read asks n1, which has what is undecided
        reading = asyncio.create_task(get(made[1], "p"))
        await until(lambda: made[1].coordinator.turns._watching)
        prepares = made.net.count("Prepare")
        for rule in held:
            rule.released.set()
        await reading
        assert made.net.count("Prepare") < prepares + 3 * 20, "it did not wait for all that stood in line before it"
        await asyncio.gather(first, *in_line)
        assert not made[1].coordinator.turns._watching
