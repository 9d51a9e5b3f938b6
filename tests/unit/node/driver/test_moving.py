"""A slot moves from one set of voters to another under the hands of its clients (rfc/0013)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from msgspec.structs import replace

from amberblob.ballot import Ballot
from amberblob.config import Keep, RetentionSection
from amberblob.errors import ClusterError, NotFound, PeerError, PreconditionFailed, QuorumUnavailable
from amberblob.wire import (
    Commit,
    Done,
    Learn,
    Learnt,
    Prepare,
    Query,
    QueryHistory,
    QueryScan,
    Refused,
    StageOpen,
)
from antientropy.step import Did
from node.objects.bytes import Reading
from node.objects.put import PIECE_BYTES
from node.protocol.operations import Conditions
from node.routing import Routing
from node.service import ObjectView, PutOptions
from registry.moves import to_final, with_learner
from tests.unit.node.driver.moving_kit import Mover
from tests.unit.node.driver.test_epochs import STUB, everything, questions
from tests.unit.node.objects.kit import (
    CHUNK,
    STAGED,
    Cluster,
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
from tests.unit.node.objects.status_kit import status_of

BLOB = "01BX5ZZKBKACTAV9WEVGEMMVRZ"


def names(digits: str) -> list[str]:
    return [f"n{digit}" for digit in digits]


async def moved_to(made: Cluster, slot: int, digits: str) -> Mover:
    """A mover whose slot is on these nodes, wherever it was before."""
    mover = Mover(made, slot)
    if [*mover.route.voter_nodes] != names(digits):
        await mover.move(names(digits))
    return mover


# ---- clients notice nothing


class Client:
    """Puts and reads one path again and again, at all nodes in turn; no answer may be an error."""

    def __init__(self, made: Cluster, path: str, size: int) -> None:
        self.made = made
        self.path = path
        self.size = size
        self.puts = 0
        self.stopped = False

    async def write(self) -> None:
        while not self.stopped:
            number = self.puts + 1
            node = self.made[number % len(self.made.nodes) + 1]
            view = await put(node, self.path, content(self.size, number), write_id=f"{self.path}-{number}")
            assert view.version.version == number, "applied once each"
            self.puts = number
            # The kit's syncs read one page of a history (1,000 versions): a quick machine must not write more.
            await asyncio.sleep(0.002 if number < 400 else 0.1)

    async def read(self) -> None:
        at = 0
        while not self.stopped:
            at += 1
            node, before = self.made[at % len(self.made.nodes) + 1], self.puts
            try:
                view = await look(node, self.path)
            except NotFound:
                assert before == 0
                continue
            assert view.version.version >= before, "what was acknowledged is read"
            if at % 3 == 0:
                page = await listing(node, prefix=self.path)
                assert [item.path for item in page.objects] == [self.path]
                assert page.objects[0].version >= before
            await asyncio.sleep(0.002)


async def busy(clients: list[Client], tasks: list[asyncio.Task[None]]) -> None:
    """Until they have done something to speak of, also on a slow machine, or one of them has failed."""
    await until(lambda: all(client.puts >= 10 for client in clients) or any(task.done() for task in tasks))


@pytest.mark.parametrize("size", [1, STAGED], ids=["small", "staged"])
@pytest.mark.parametrize(
    "old,new", [("123", "124"), ("123", "456"), ("1", "234"), ("123", "4"), ("12", "34"), ("123", "12345"), ("12", "2")]
)
async def test_clients_notice_nothing_of_a_move(old, new, size):
    async with cluster(6, replicas=len(old), slots=1) as made:
        await moved_to(made, 0, old)
        clients = [Client(made, path, size) for path in ("p", "q")]
        mover = Mover(made, 0, late_s=0.15, seed=len(old) + size)
        tasks = [asyncio.create_task(run) for client in clients for run in (client.write(), client.read())]
        moving = asyncio.create_task(mover.move(names(new), pause_s=0.3))
        await asyncio.wait([moving, *tasks], return_when=asyncio.FIRST_COMPLETED)
        await busy(clients, tasks)
        for client in clients:
            client.stopped = True
        await asyncio.gather(moving, *tasks)
        assert mover.route.state == "stable" and [*mover.route.voter_nodes] == names(new)
        await asyncio.sleep(0.2)
        await made.settle()
        # The new voters alone have everything.
        made.net.down = {f"n{index}" for index in range(1, 7)} - set(names(new))
        for client in clients:
            assert client.puts >= 10
            node = made.nodes[names(new)[0]]
            views = await node.objects.versions(client.path)
            assert [view.version.version for view in views] == list(range(client.puts, 0, -1))
            for number in (1, client.puts):
                assert await get(node, client.path, version=number) == content(size, number)


async def test_a_move_that_is_given_up_leaves_everything_as_it_was():
    async with cluster(6, slots=1) as made:
        mover = Mover(made, 0, late_s=0.1)
        client = Client(made, "p", 1)
        tasks = [asyncio.create_task(run) for run in (client.write(), client.read())]
        for _ in range(2):
            await mover.learn([name for name in names("456") if name not in mover.route.all_nodes])
            await mover.join(names("456"))
            await asyncio.sleep(0.2)
            await mover.abort()
            await asyncio.sleep(0.2)
        await busy([client], tasks)
        client.stopped = True
        await asyncio.gather(*tasks)
        assert [member.node for member in mover.route.learners] == names("456")
        made.net.down = {*names("456")}
        assert (await look(made[1], "p")).version.version == client.puts >= 10


# ---- staged bytes


class Body:
    """A body that comes in two parts; the second waits for ``gate``."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.waits = asyncio.Event()
        self.gate = asyncio.Event()

    async def __aiter__(self) -> Any:
        half = len(self.data) // 2
        yield self.data[:half]
        self.waits.set()
        await self.gate.wait()
        yield self.data[half:]


async def arriving(made: Cluster, data: bytes) -> tuple[Body, asyncio.Task[ObjectView]]:
    """A body of which node 5 has a part, which it is staging; the rest comes when its gate is opened."""
    body = Body(data)
    options = PutOptions(size=len(data), content_type="t", meta={})
    writing = asyncio.create_task(made[5].objects.put("p", body.__aiter__(), options))
    await body.waits.wait()
    await until(lambda: made.net.count("Data") >= 3)
    return body, writing


@pytest.mark.parametrize("steps", ["joint", "final"])
@pytest.mark.parametrize("new", ["456", "124", "4"])
async def test_a_body_that_arrives_while_the_slot_moves_is_stored(steps, new):
    data = content(3 * PIECE_BYTES + 5)
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        body, writing = await arriving(made, data)
        await mover.learn([name for name in names(new) if name not in names("123")])
        await mover.join(names(new))
        if steps == "final":
            await mover.end()
        body.gate.set()
        assert (await writing).version.version == 1
        assert await get(made[6], "p") == data
        if steps == "joint":
            await mover.end()
        await made.settle()
        made.net.down = {f"n{index}" for index in range(1, 7)} - set(names(new))
        assert await get(made.nodes[names(new)[0]], "p") == data


async def test_a_body_that_cannot_follow_its_slot_is_told_to_have_changed_nothing(monkeypatch):
    """Nobody gives its bytes any more: to a reader that would be a version that is lost, but there is none yet."""

    async def gone(*args: object, **options: object) -> bytes:
        raise ClusterError("nobody has them")

    data = content(3 * PIECE_BYTES + 5)
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        body, writing = await arriving(made, data)
        await mover.learn(names("456"))
        await mover.join(names("456"))
        await mover.end()
        monkeypatch.setattr(Reading, "chunk", gone)
        body.gate.set()
        with pytest.raises(QuorumUnavailable, match=r"nobody has them.*Nothing was changed"):
            await writing
        monkeypatch.undo()
        with pytest.raises(NotFound):
            await get(made[5], "p")
        await made.settle()
        assert not made.staged()


@pytest.mark.parametrize("kind", ["Prepare", "Commit"])
@pytest.mark.parametrize("steps", ["joint", "final"])
async def test_a_body_whose_slot_moves_during_its_round_is_stored(kind, steps):
    """Before its COMMIT the coordinator brings the bytes to the new voters; after it they fetch them."""
    data = content(3 * CHUNK + 5)
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        held = [made.net.fault(kind, "hold", to=name, times=1) for name in names("123")]
        stages = made.net.count("StageOpen")
        writing = asyncio.create_task(put(made[6], "p", data, write_id="w"))
        await until(lambda: sum(rule.hits for rule in held) >= 2)
        await mover.learn(names("456"))
        await mover.join(names("456"))
        if steps == "final":
            await mover.end()
        for rule in held:
            rule.released.set()
        assert (await writing).version.version == 1
        assert made.net.count("StageOpen") - stages == (6 if kind == "Prepare" else 3)
        assert await get(made[1], "p") == data
        if steps == "joint":
            await mover.end()
        assert (await put(made[2], "p", data, write_id="w")).version.version == 1, "the same write"
        made.net.down = {*names("123")}
        assert await get(made[4], "p") == data


async def test_a_node_that_has_not_heard_of_the_move_stores_a_body_all_the_same():
    """It sends it to nodes that the slot has left; they take it, and the new voters get it from them."""
    data = content(3 * CHUNK + 5)
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        stale = made.table
        made[6].routing._table = lambda: stale
        await mover.move(names("345"))
        writing = asyncio.create_task(put(made[6], "p", data))
        await until(lambda: made.net.count("Prepare") >= 1)
        await asyncio.sleep(0.05)
        assert not writing.done()
        made[6].routing._table = lambda: made.table
        assert (await writing).version.version == 1
        assert await get(made[5], "p") == data


async def test_a_write_that_was_sent_before_the_move_is_applied_once():
    """One voter of the old set accepted it, its answer was lost; the new set knows nothing of it."""
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        await put(made[6], "p", b"one")
        held = [made.net.fault("Commit", "hold", to=name, times=1) for name in names("12")]
        made.net.fault("Commit", "lose", to="n3", times=1)
        writing = asyncio.create_task(put(made[6], "p", b"two", write_id="w"))
        await until(lambda: all(rule.hits for rule in held) and made[3].register("p").accepted.counter > 1)
        made.net.down = {"n3"}
        moving = asyncio.create_task(mover.move(names("456")))
        await moving
        for rule in held:
            rule.released.set()
        assert (await writing).version.version == 2
        assert (await put(made[5], "p", b"two", write_id="w")).version.version == 2
        assert [view.version.version for view in await made[4].objects.versions("p")] == [2, 1]


async def test_conditions_hold_across_a_move():
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        await put(made[1], "p", b"1")
        for to in ("456", "1", "234"):
            with pytest.raises(PreconditionFailed):
                await put(made[1], "p", b"x", conditions=Conditions(absent=True))
            await mover.learn([name for name in names(to) if name not in mover.route.voter_nodes])
            await mover.join(names(to))
            with pytest.raises(PreconditionFailed):
                await put(made[2], "p", b"x", conditions=Conditions(version=99))
            version = (await look(made[3], "p")).version.version
            await put(made[3], "p", b"2", conditions=Conditions(version=version))
            await mover.end()
        assert (await look(made[6], "p")).version.version == 4


# ---- who has a voice


async def test_a_learner_and_a_node_that_was_left_answer_nothing_and_take_nothing():
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        await put(made[1], "p", b"1")
        await made.settle()
        await mover.learn(["n4"])
        learner, reason = made[4], "unsynced"
        for _ in range(2):
            epoch = mover.route.epoch
            state, register = learner.store.slot_state(0), learner.register("p")
            for request in everything(0, epoch):
                reply = await learner.replica.handle("n1", request)
                assert isinstance(reply, Refused) and reply.reason == reason, request
            item = Learnt(0, "p", epoch, Ballot(epoch, 9, "n1", "a"), STUB)
            assert await learner.replica.handle("n1", Learn(items=(item,))) == Done()
            assert learner.register("p") == register and learner.store.slot_state(0) == state
            with pytest.raises(PeerError, match=reason):
                stage = await made[1].peers.stage(
                    learner.name, StageOpen(slot=0, epoch=epoch, blob_id=BLOB, chunk_bytes=CHUNK), timeout_s=30.0
                )
                while True:
                    await stage.write(b"x")
            assert learner.replica.copies.peek(0, "p") is None
            assert learner.replica.copies.promises(0, "p", Ballot(epoch, 9, "n1", "a")), "as a node without a copy"
            scan = await learner.replica.handle("n1", QueryScan(prefix="", start="", delimiter="", limit=9, dead=True))
            assert scan.incarnations[0] == "" and scan.epochs[0] == state.epoch
            assert await get(learner, "p", consistency="local") == b"1", "from those who know"
            # Then n1 is left.
            if reason == "unsynced":
                await mover.join(names("234"))
                assert not isinstance(await learner.replica.handle("n1", questions(0, mover.route.epoch)[0]), Refused)
                await mover.end()
                learner, reason = made[1], "not-a-member"


async def test_who_asks_by_an_older_route_is_told_of_the_newer_one():
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        epoch = mover.route.epoch
        await mover.move(names("456"))
        for request in everything(0, epoch):
            reply = await made[1].replica.handle("n2", request)
            assert isinstance(reply, Refused) and (reply.reason, reply.epoch) == ("epoch", mover.route.epoch)


@pytest.mark.parametrize("kind", [Prepare, Commit, Query, QueryHistory])
async def test_a_learner_that_is_asked_as_a_voter_looks_for_the_route(kind):
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        await put(made[1], "p", b"1")
        await mover.learn(["n4"])
        stale = made.table
        made[4].routing._table = lambda: stale
        await mover.join(names("124"))
        (request,) = [request for request in everything(0, mover.route.epoch) if isinstance(request, kind)]
        told: list[Any] = []
        assert not made[4].replica.answer("n1", request, told.append), "not at once"
        asking = asyncio.create_task(made[4].replica.handle("n1", request))
        await asyncio.sleep(0.05)
        assert not asking.done()
        made[4].routing._table = lambda: made.table
        assert not isinstance(await asking, Refused)
        made[4].routing._table = lambda: stale
        assert (await made[4].replica.handle("n1", request)).reason == "unsynced"


# ---- listings


async def test_a_listing_by_the_routes_before_a_move_misses_nothing():
    """n1 and n2 were left and have not heard of it, nor has who asks: by their routes they were a majority."""
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        await put(made[1], "p", b"1")
        await made.settle()
        stale = made.table
        for index in (1, 2, 6):
            made[index].routing._table = lambda: stale
        made.net.down = {"n1"}  # the move's majority is n2 and n3
        await mover.move(names("345"))
        await put(made[4], "q", b"2")
        made.net.down = set()
        asking = asyncio.create_task(walk(made[6], limit=10))
        await asyncio.sleep(0.1)
        assert not asking.done()
        made[6].routing._table = lambda: made.table
        assert await asking == (["p", "q"], [])


async def test_a_listing_needs_both_sets():
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        await put(made[1], "p", b"1")
        await mover.learn(names("456"))
        await mover.join(names("456"))
        await put(made[1], "q", b"1")
        for down in ("1", "4", "14"):
            made.net.down = {*names(down)}
            assert await walk(made[2], limit=10) == (["p", "q"], [])
            assert await walk(made[5], limit=10, delimiter="/") == (["p", "q"], [])
        made.net.down = {*names("45")}
        with pytest.raises(Exception, match="1 of the 2 replicas"):
            await listing(made[2])


# ---- clusters of few copies


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_one_and_two_copies_do_all_that_three_do(copies, count):
    if copies > count:
        return
    async with cluster(count, replicas=copies, slots=4, write_quorum=3, read_quorum=2) as made:
        for node in made:
            path, staged = f"{node.name}/small", f"{node.name}/staged"
            assert (await put(node, path, b"1")).version.version == 1
            assert (await put(node, path, b"2", write_id="w")).version.version == 2
            assert (await put(node, path, b"2", write_id="w")).version.version == 2
            await put(node, staged, content(STAGED))
            for other in made:
                assert await get(other, path) == b"2" and await get(other, staged) == content(STAGED)
                assert await get(other, path, version=1) == b"1"
                assert sorted((await walk(other, limit=1, prefix=node.name))[0]) == [path, staged]
                assert (await walk(other, limit=9, prefix=node.name, delimiter="/"))[1] == [f"{node.name}/"]
            await delete(node, path)
            with pytest.raises(NotFound):
                await get(node, path)
            assert (await restore(node, path)).version.version == 2
            assert (await node.objects.explain(path))["healthy"] or copies > 1
        await made.settle()


async def test_old_versions_and_dead_paths_go_where_there_is_one_copy():
    async with cluster(1, replicas=1, slots=1, retention=RetentionSection(keep=Keep(0))) as made:
        node = made[1]
        for seed in range(3):
            await put(node, "p", content(100, seed))
        await delete(node, "p")
        await put(node, "q", b"stays")
        await made.settle()
        for _ in range(6):
            made.clock.ahead_s += 30 * 86_400.0
            for worker in (node.parts.upkeep.expirer, node.parts.upkeep.garbage):
                for _ in range(50):
                    if await worker.step() is Did.NOTHING:
                        made.clock.ahead_s += min(worker.pause_s, 10.0)
            await made.settle()
        assert node.register("p").accepted is None, "its stub is collected, too"
        assert await walk(node, limit=10) == (["q"], []) and await get(node, "q") == b"stays"


# ---- what routes say


async def test_a_route_that_moves_is_one_electorate_of_two_sets():
    async with cluster(6, slots=2, write_quorum=3, read_quorum=2) as made:
        mover = Mover(made, 0)
        routing = {node.name: node.routing for node in made}
        disks = {node.name: node.store.disk_id for node in made}
        mover.change(lambda route: with_learner(route, "n4", "fresh"))
        assert not routing["n1"].electorate(0).settled and routing["n1"].electorate(1).settled
        assert set(routing["n1"].electorate(0).voters) == {*names("123")}
        assert routing["n4"].own_learning()[0].incarnation == "fresh" and 0 not in routing["n4"].own_votes()
        assert routing["n4"].newcomers() == {0: 2} and routing["n4"].is_member(0)
        assert routing["n1"].own_learning() == {} and routing["n1"].newcomers() == {}
        await mover.join(["n4", "n1"])
        electorate = routing["n5"].electorate(0)
        assert dict(electorate.voters) == {**{name: disks[name] for name in names("123")}, "n4": "fresh"}
        assert (electorate.old, electorate.new, electorate.settled) == ({*names("123")}, {"n1", "n4"}, False)
        assert [each.write_quorum for each in electorate.sets] == [3, 2] and electorate.epoch == routing["n1"].epoch(0)
        assert routing["n4"].own_votes()[0].since == 2 and routing["n4"].newcomers() == {0: 2}
        assert routing["n4"].own_learning() == {}
        assert len(routing["n1"].distinct_electorates()) == 2, "the same nodes, but two sets"
        mover.change(to_final)
        electorate = routing["n5"].electorate(0)
        assert set(electorate.voters) == {"n1", "n4"} and electorate.settled and not electorate.joint
        assert electorate.write_quorum == 2, "clamped: there are two"
        assert routing["n2"].mute(made[2].store.slot_state(0)) == "not-a-member"
        assert not routing["n2"].is_member(0) and 0 not in routing["n2"].own_votes()
        assert Routing(node="n1", disk_id="d", table=lambda: None).epoch(0) == 0


async def test_a_copy_of_a_joint_route_has_a_voice_once_it_was_filled_since_it_was_named():
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        await mover.learn(["n4"])
        state = made[4].store.slot_state(0)
        assert made[4].routing.mute(state) == "unsynced", "a learner never has"
        await mover.join(names("124"))
        assert made[4].routing.mute(state) is None
        assert made[4].routing.mute(replace(state, synced_epoch=state.synced_epoch - 1)) == "unsynced"
        assert made[4].routing.mute(replace(state, incarnation="other")) == "unsynced"
        assert made[3].routing.mute(made[3].store.slot_state(0)) is None
        assert made[5].routing.mute(made[5].store.slot_state(0)) == "not-a-member"
        await mover.abort()
        assert made[4].routing.mute(state) == "unsynced"


async def test_readiness_asks_for_both_sets():
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        status = status_of(made, 6)
        status.phase = None
        await mover.learn(names("45"))
        made.net.down = {"n4", "n5", "n1"}
        assert status.not_ready() is None
        assert (await status.cluster())["slots"] == {
            "total": 1, "reachable": 0, "degraded": 1, "unavailable": 0, "joint": 0,
        }  # fmt: skip
        await mover.join(names("345"))
        assert "1 of the 2 replicas" in status.not_ready()
        assert (await status.cluster())["slots"]["unavailable"] == 1
        made.net.down = {"n1", "n5"}
        assert status.not_ready() is None
        slots = (await status.cluster())["slots"]
        assert (slots["degraded"], slots["joint"]) == (1, 1)


async def test_explain_shows_learners_and_they_are_nothing_to_mend():
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        await put(made[1], "p", b"1")
        await made.settle()
        incarnation = await made[4].store.begin_anew(0)
        mover.change(lambda route: with_learner(route, "n4", incarnation))
        told = await made[5].objects.explain("p")
        assert told["healthy"] and [replica["state"] for replica in told["replicas"]] == ["chosen"] * 3 + ["learning"]
        assert told["versions"][0]["copies"] == {**dict.fromkeys(names("123"), "all"), "n4": "none"}


async def test_nothing_is_collected_while_a_slot_moves():
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        await mover.learn(["n4"])
        assert not await made[1].coordinator.collect_stub(made[1].routing.electorate(0), "p")
        await mover.join(names("124"))
        assert not await made[1].coordinator.collect_stub(made[1].routing.electorate(0), "p")
        await mover.end()
        assert await made[1].coordinator.collect_stub(made[1].routing.electorate(0), "p"), "there is none"


async def test_bytes_that_only_a_node_has_that_was_left_are_read_there():
    async with cluster(6, slots=1) as made:
        mover = await moved_to(made, 0, "123")
        await put(made[1], "p", content(STAGED))
        await made.settle()
        await mover.learn(["n4"])
        await mover.join(["n4"])
        await mover.fill("n4")
        mover.change(to_final)
        assert made[4].store.tally(0).wanted == 1
        assert await get(made[6], "p") == content(STAGED)
