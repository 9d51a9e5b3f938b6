"""Background work: the runner, the resolver's bounds, the puller's queue, the sweeper."""

from __future__ import annotations

import asyncio
import gc

import msgspec
import pytest

from amberblob.clock import SeededRandomness
from amberblob.errors import PeerTimeout, PeerUnreachable
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Version
from amberblob.mutations import Installed
from antientropy.failures import RETRY_MAX_S
from antientropy.step import Did, Wake
from antientropy.wants import WantQueue
from chunkstore.interface import BlobState
from node.workers import puller as puller_module
from node.workers import resolver as resolver_module
from node.workers import runner as runner_module
from node.workers.resolver import Resolver
from node.workers.runner import Runner
from node.workers.sweeper import BATCH_MAX
from tests.unit.node.objects.kit import (
    CHUNK,
    PATIENCE_S,
    STAGED,
    StillClock,
    cluster,
    content,
    get,
    put,
    put_in_vain,
    until,
)

# ---- Runner


class Worker:
    def __init__(self, name: str, *, pause_s: float = 60.0) -> None:
        self.name = name
        self.pause_s = pause_s
        self.wake = Wake()
        self.steps = 0
        self.script: list[Did | Exception] = []
        self.cancelled = False
        self.hang = False

    async def step(self) -> Did:
        self.steps += 1
        if self.hang:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        await asyncio.sleep(0)
        did = self.script.pop(0) if self.script else Did.NOTHING
        if isinstance(did, Exception):
            raise did
        return did


@pytest.fixture
async def runner():
    made = Runner()
    yield made
    await made.close()


async def test_a_worker_goes_on_until_there_is_nothing_and_then_rests(runner):
    worker = Worker("w")
    worker.script = [Did.WORK] * 10
    runner.start(worker)
    await until(lambda: runner.status()["w"]["doing"] == "resting")
    assert worker.steps == 11 and runner.status()["w"]["steps"] == 11
    worker.script = [Did.WORK]
    worker.wake.set()
    await until(lambda: worker.steps == 13)


async def test_a_failing_step_ends_neither_the_worker_nor_the_others(runner, monkeypatch):
    monkeypatch.setattr(runner_module, "ERROR_PAUSE_S", 0.01)
    bad, good = Worker("bad"), Worker("good", pause_s=0.01)
    bad.script = [RuntimeError("one"), Did.WORK, ValueError("two"), Did.WORK]
    runner.start(bad)
    runner.start(good)
    await until(lambda: runner.status()["bad"]["steps"] == 3 and good.steps >= 3)
    status = runner.status()["bad"]
    assert (status["errors"], status["last_error"], bad.steps) == (2, "two", 5)


async def test_waking_during_a_step_is_not_lost(runner):
    worker = Worker("w")
    gate, inside = asyncio.Event(), asyncio.Event()

    async def step() -> Did:
        worker.steps += 1
        inside.set()
        await gate.wait()
        return Did.NOTHING

    worker.step = step
    runner.start(worker)
    await inside.wait()
    worker.wake.set()
    gate.set()
    await until(lambda: worker.steps == 2)


async def test_closing_stops_a_hanging_step():
    runner, worker = Runner(), Worker("w")
    worker.hang = True
    runner.start(worker)
    await until(lambda: worker.steps == 1)
    await runner.close()
    assert worker.cancelled


# ---- Resolver


async def undecided(made, count: int) -> list[str]:
    made.net.fault("Learn", "drop")
    paths = [f"u{index}" for index in range(count)]
    for path in paths:
        await put(made[1], path)
    await made.settle()
    made.net.heal()
    return paths


async def test_a_record_is_given_time_to_be_decided_the_ordinary_way():
    async with cluster(clock=StillClock()) as made:
        await undecided(made, 1)
        made.net.sent.clear()
        while await made[1].resolver.step() is Did.WORK:
            pass
        made.clock.ahead_s += resolver_module.DELAY_S - 1
        assert await made[1].resolver.step() is Did.NOTHING
        assert made.net.count("Prepare") == 0
        made.clock.ahead_s += resolver_module.JITTER_S + 2
        assert await made[1].resolver.step() is Did.WORK
        assert made.net.count("Prepare") == 3


async def test_what_is_decided_is_forgotten():
    async with cluster() as made:
        for index in range(20):
            await put(made[index % 3 + 1], f"p{index}")
        await made.settle()
        assert [node.resolver.waiting for node in made] == [0, 0, 0]
        made.net.sent.clear()
        await made.resolve()
        assert made.net.sent == []


async def test_while_the_majority_is_away_the_resolver_waits_between_tries():
    async with cluster() as made:
        made.give_up_after(0.5)
        made.net.fault("Commit", "drop", to="n2")
        made.net.fault("Commit", "drop", to="n3")
        await put_in_vain(made[1], made.path(1))
        await made.settle()
        made.net.rules.clear()
        made.net.down = {"n2", "n3"}
        await made.resolve(1)
        made.net.sent.clear()
        assert await made[1].resolver.step() is Did.NOTHING
        assert made.net.sent == [] and made[1].resolver.waiting == 1
        made.give_up_after(PATIENCE_S)
        made.net.heal()
        made.clock.ahead_s += resolver_module.RETRY_S + 1
        assert await made[1].resolver.step() is Did.WORK
        await made.settle()
        assert made[1].resolver.waiting == 0


async def test_the_resolver_tracks_a_bounded_number_of_paths(monkeypatch):
    monkeypatch.setattr(resolver_module, "TRACKED_MAX", 5)
    async with cluster() as made:
        await undecided(made, 30)
        assert all(node.resolver.waiting <= 5 for node in made)


@pytest.mark.parametrize("slots", [1, 8])
async def test_more_undecided_paths_than_are_tracked_are_all_resolved_in_the_end(monkeypatch, slots):
    """Those beyond the bound are found again by the scan of the slots; the scan must come to an end."""
    monkeypatch.setattr(resolver_module, "TRACKED_MAX", 5)
    async with cluster(slots=slots) as made:
        paths = await undecided(made, 30)
        node = made[1]
        made.net.sent.clear()
        for _ in range(400):
            made.clock.ahead_s += 1.0
            await node.resolver.step()
        asked = {message.path for _, _, message in made.net.messages if type(message).__name__ == "Prepare"}
        resolved = made.net.count("Prepare")
        assert resolved >= 3 * len(paths) and asked >= set(paths)


async def test_a_slot_that_left_this_node_is_not_resolved_here():
    async with cluster() as made:
        await undecided(made, 3)
        made[1].routing.is_member = lambda slot: False
        made.net.sent.clear()
        await made.resolve(1)
        assert made.net.sent == [] and made[1].resolver.waiting == 0


async def test_the_delay_has_jitter():
    async with cluster(clock=StillClock()) as made:
        node = made[1]
        resolver = Resolver(node.coordinator, node.routing, node.store, made.clock, SeededRandomness(1))
        for index in range(200):
            resolver.accepted(0, f"p{index}")
        now_s = made.clock.monotonic_s()
        delays = [due - now_s for due in resolver._due.values()]
        assert resolver_module.DELAY_S - 1 < min(delays) < 6 and 10 < max(delays) <= 12


# ---- Puller


def version_of(data: bytes, blob_id: str = "01ARZ3NDEKTSV4RRFFQ69G5FAV") -> Version:
    chunk = ChunkRef(content_hash(data), len(data))
    return Version(1, blob_id, len(data), chunk.id, 0, "t", {}, (chunk,), None, 1, False)


async def test_the_queue_is_bounded_and_holds_each_blob_once(monkeypatch):
    monkeypatch.setattr(puller_module, "QUEUE_MAX", 3)
    async with cluster() as made:
        puller = made[1].puller
        for index in range(10):
            version = version_of(b"x" * 100, f"01ARZ3NDEKTSV4RRFFQ69G5F{index:02}")
            puller.later(0, version, ())
            puller.later(0, version, ())
        assert puller.waiting == 3 and puller.waiting_bytes == 300
        assert puller.wake.is_set()


async def test_a_version_that_nobody_has_is_given_up_after_some_tries():
    async with cluster(clock=StillClock()) as made:
        puller = made[1].puller
        puller.later(0, version_of(b"x"), ())
        for _ in range(puller_module.TRIES_MAX):
            assert puller.waiting == 1
            while await puller.step() is Did.WORK:
                pass
            made.clock.ahead_s += RETRY_MAX_S
        assert puller.waiting == 0
        assert await puller.step() is Did.NOTHING


async def test_one_that_cannot_be_had_does_not_keep_others_waiting():
    async with cluster() as made:
        for phase in ("StageOpen", "Commit"):
            made.net.fault(phase, "drop", to="n3")
        await put(made[1], "p", content(STAGED))
        await made.settle()
        made.net.heal()
        puller = made[3].puller
        assert puller.waiting == 1
        queued, puller._queue = puller._queue, WantQueue(10)
        puller.later(0, version_of(b"x"), ())
        while wants := queued.take(1, 1):
            puller.later(wants[0].slot, wants[0].version, ())
        await puller.step()
        await puller.step()
        made.net.down = {"n1", "n2"}
        assert await get(made[3], "p", consistency="local") == content(STAGED)


async def test_holders_that_are_away_for_a_while_do_not_leave_a_copy_without_its_bytes():
    """The bytes' holders answer again after five seconds; the copy has to be completed without any client."""
    async with cluster() as made:
        for phase in ("StageOpen", "Commit"):
            made.net.fault(phase, "drop", to="n3")
        made.net.fault("ReadChunk", "drop", to="n1")
        rule = made.net.fault("ReadChunk", "drop", to="n2")
        await put(made[1], "p", content(STAGED))
        await made.settle()
        puller = made[3].puller
        for _ in range(5):
            await puller.step()
            made.clock.ahead_s += 1.0
        assert rule.hits
        made.net.heal()
        made.clock.ahead_s += RETRY_MAX_S
        await puller.step()
        made.net.down = {"n1", "n2"}
        assert await get(made[3], "p", consistency="local") == content(STAGED)


async def test_two_requests_for_one_blob_stage_it_once(monkeypatch):
    monkeypatch.setattr(puller_module, "NOW_PATIENCE_S", PATIENCE_S)
    async with cluster() as made:
        for phase in ("StageOpen", "Commit", "Learn"):
            made.net.fault(phase, "drop", to="n3")
        view = await put(made[1], "p", content(5 * CHUNK))
        await made.settle()
        made.net.heal()
        made.net.sent.clear()
        slot = made.slot("p")
        await asyncio.gather(*(made[3].puller.now(slot, view.version, ("n1",)) for _ in range(4)))
        assert made.net.count("ReadChunk") == 5
        assert await made[3].store.blob_state(slot, view.version.blob_id) is BlobState.DURABLE
        assert made[3].puller._staging == {}


async def test_a_pull_that_fails_leaves_nothing():
    async with cluster() as made:
        made.net.fault("StageOpen", "drop", to="n3")
        made.net.fault("Learn", "drop", to="n3")
        view = await put(made[1], "p", content(5 * CHUNK))
        await made.settle()
        made.net.heal()
        made.net.fault("ReadChunk", "drop", skip=3)
        with pytest.raises(PeerUnreachable):
            await made[3].puller.now(made.slot("p"), view.version, ("n1",))
        assert made.staged() == {} and made.blobs()["n3"] == []
        assert made[3].puller._staging == {}


# ---- Sweeper


async def test_a_fetch_that_fails_after_its_asker_went_away_is_heard_of(monkeypatch):
    """Found by the simulation of whole nodes: the loop told of an exception that nobody had retrieved."""
    monkeypatch.setattr(puller_module, "NOW_PATIENCE_S", 0.01)
    unheard: list[dict] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    async with cluster() as made:
        view = await put(made[1], "p", content(STAGED))
        await made.settle()
        held = made.net.fault("ReadChunk", "hold", to="n1", source="n3")
        made.net.down.add("n2")
        unknown = msgspec.structs.replace(view.version, blob_id="01ARZ3NDEKTSV4RRFFQ69G5FAV")
        with pytest.raises(PeerTimeout):
            await made[3].puller.now(made.slot("p"), unknown, ("n1",))
        held.released.set()
        await until(lambda: not made[3].puller._staging)
        gc.collect()
        await asyncio.sleep(0)
        assert unheard == []


async def test_the_sweeper_removes_what_is_old_and_nobody_refers_to():
    async with cluster() as made:
        kept = await put(made[1], "p", content(STAGED))
        made.net.fault("Commit", "drop", to="n1")
        made.net.fault("Commit", "drop", to="n2")
        made.net.fault("Commit", "drop", to="n3")
        made.give_up_after(0.5)
        await put_in_vain(made[1], "q", content(STAGED, 1))
        made.give_up_after(PATIENCE_S)
        await made.settle()
        made.net.heal()
        assert len(made.staged()) == 3
        for node in made:
            assert await node.sweeper.step() is Did.NOTHING
        assert len(made.staged()) == 3
        made.clock.ahead_s += 901
        for node in made:
            assert await node.sweeper.step() is Did.NOTHING
        assert made.staged() == {}
        assert all(blobs == [kept.version.blob_id] for blobs in made.blobs().values())
        assert await get(made[2], "p") == content(STAGED)


async def test_the_sweeper_works_in_batches():
    async with cluster() as made:
        store = made[1].store
        data = b"x" * 10
        for _ in range(BATCH_MAX + 1):
            staging = await store.stage(0, made[1].coordinator.mint.mint(), chunk_bytes=CHUNK, size=None)
            await staging.write(data)
            await staging.finish((ChunkRef(content_hash(data), 10),), None)
        made.clock.ahead_s += 901
        assert await made[1].sweeper.step() is Did.WORK
        assert await made[1].sweeper.step() is Did.NOTHING
        assert made.blobs()["n1"] == []


# ---- what the puller makes of the table of wanted versions


async def lacking(made, *, paths: int = 1) -> None:
    """n3 has the rows of some versions and not their bytes, and its puller was not told."""
    for phase in ("Prepare", "Commit", "StageOpen", "Learn"):
        made.net.fault(phase, "drop", to="n3")
    for index in range(paths):
        await put(made[1], f"w{index}", content(STAGED, index))
    await made.settle()
    made.net.heal()
    for index in range(paths):
        slot = made.slot(f"w{index}")
        (item,) = await made[1].store.items(slot, [f"w{index}"])
        made[3].store.apply(Installed(slot, item.path, item.ballot, item.record, item.rows))


async def test_the_puller_works_through_what_the_disk_wants():
    async with cluster() as made:
        await lacking(made, paths=20)
        puller = made[3].puller
        assert puller.waiting == 20 and puller.waiting_bytes == 20 * STAGED
        await made[3].pull()
        assert puller.received_bytes == 20 * STAGED
        made.net.down = {"n1", "n2"}
        for index in range(20):
            assert await get(made[3], f"w{index}", consistency="local") == content(STAGED, index)


async def test_more_is_wanted_than_the_queue_holds(monkeypatch):
    monkeypatch.setattr(puller_module, "QUEUE_MAX", 3)
    async with cluster() as made:
        await lacking(made, paths=20)
        for _ in range(30):
            made.clock.ahead_s += puller_module.LOOK_AGAIN_S
            while await made[3].puller.step() is Did.WORK:
                assert len(made[3].puller._queue) <= 3
        assert made[3].puller.waiting == 0


async def test_bytes_that_nobody_has_are_told_and_tried_again():
    async with cluster() as made:
        await lacking(made)
        slot, puller = made.slot("w0"), made[3].puller
        blob_id = made[1].register("w0").record.head.blob_id
        kept = {number: made[number].store._slots[slot].files.pop(blob_id) for number in (1, 2)}
        for tries in range(8):
            while await puller.step() is Did.WORK:
                pass
            assert puller.unrecoverable(slot) == 1, f"try {tries}"
            assert puller.waiting == 1
            made.clock.ahead_s += RETRY_MAX_S
        for away in ("n1", "n2"):
            made.net.down = {away}
            while await puller.step() is Did.WORK:
                pass
            assert puller.unrecoverable(slot) == 0, f"{away} may have it"
            made.clock.ahead_s += RETRY_MAX_S
        made.net.down = set()
        made[2].store._slots[slot].files[blob_id] = kept[2]
        made.clock.ahead_s += RETRY_MAX_S
        while await puller.step() is Did.WORK:
            pass
        assert puller.unrecoverable(slot) == 0 and puller.waiting == 0


async def test_a_version_that_expired_is_wanted_no_more():
    async with cluster() as made:
        await lacking(made)
        slot, puller = made.slot("w0"), made[3].puller
        held = made.net.fault("ReadChunk", "drop", source="n3")
        while await puller.step() is Did.WORK:
            pass
        assert held.hits
        made.net.heal()
        made[3].store.forget_path(slot, "w0")
        for _ in range(5):
            made.clock.ahead_s += RETRY_MAX_S
            while await puller.step() is Did.WORK:
                pass
        assert puller.waiting == 0 and len(puller._queue) == 0
