"""Many versions at once, from holders that are dead, slow or wrong; what comes is bounded, and goes on after a restart."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from amberblob.config import RepairSection
from amberblob.limits import KIB, MIB, READ_BLOBS_BYTES_MAX, READ_BLOBS_MAX
from amberblob.manifest import ChunkRef, Version
from amberblob.mutations import Installed
from amberblob.wire import ReadBlobs, ReadChunk
from antientropy import holders
from antientropy.failures import RETRY_MAX_S
from antientropy.step import Did
from antientropy.wants import SMALL_BYTES_MAX
from node import sources
from node.workers import puller as puller_module
from tests.unit.node.objects.kit import CHUNK, Cluster, Node, cluster, content, get, put, until

INLINE = 1000
ONE_CHUNK = CHUNK
LARGE = 20 * CHUNK
SIZES = [INLINE] * 12 + [ONE_CHUNK] * 12 + [5 * CHUNK] * 2 + [LARGE]
IDLE_S = 10.0


async def lacking(made: Cluster, sizes: list[int] = SIZES) -> None:
    """n3 has the rows of these and none of their bytes."""
    for phase in ("Prepare", "Commit", "StageOpen", "Learn"):
        made.net.fault(phase, "drop", to="n3")
    for index, size in enumerate(sizes):
        await put(made[1], f"w{index}", content(size, index))
    await made.settle()
    made.net.heal()
    for index in range(len(sizes)):
        slot = made.slot(f"w{index}")
        (item,) = await made[1].store.items(slot, [f"w{index}"])
        made[3].store.apply(Installed(slot, item.path, item.ballot, item.record, item.rows))
    await made[3].store.settle(made[3].store.slots())
    made.clock.ahead_s += IDLE_S
    made.net.sent.clear()
    made.net.messages.clear()


async def is_whole(made: Cluster, sizes: list[int] = SIZES) -> None:
    """Everything is on n3's own disk."""
    assert made[3].puller.waiting == 0 == made[3].puller.waiting_bytes
    made.net.down = {"n1", "n2"}
    for index, size in enumerate(sizes):
        assert await get(made[3], f"w{index}", consistency="local") == content(size, index)


async def drive(node: Node, *, rounds: int = 1) -> None:
    """Steps until nothing is to be done."""
    for _ in range(rounds):
        while await node.puller.step() is Did.WORK:
            pass


def version_of(made: Cluster, index: int) -> Version:
    """What n1 has of the path with that number."""
    record = made[1].register(f"w{index}").record
    assert record is not None and record.head is not None
    return record.head


@pytest.mark.parametrize("on_disk", [False, True])
async def test_small_ones_come_together_and_both_holders_give(tmp_path, on_disk):
    async with cluster(slots=2, folder=tmp_path if on_disk else None) as made:
        await lacking(made)
        await made[3].pull()
        bulk = [message for _, _, message in made.net.messages if isinstance(message, ReadBlobs)]
        assert 2 <= len(bulk) <= 6 and sum(len(message.blobs) for message in bulk) == 24
        asked = Counter(to for kind, source, to in made.net.sent if kind == "ReadChunk" and source == "n3")
        assert asked.total() == 30 and asked["n1"] >= 5 and asked["n2"] >= 5
        assert made[3].puller.received_bytes == sum(SIZES)
        await is_whole(made)


@pytest.mark.parametrize("kind", ["ReadBlobs", "ReadChunk"])
async def test_a_dead_holder_is_passed_over_and_not_asked_again_and_again(kind, monkeypatch):
    # On a machine that stands still the dead one is not spared for having been slow, and its failure is not long ago at once.
    monkeypatch.setattr(holders, "LATEST_SHARE", 0.0)
    monkeypatch.setattr(holders, "AVOID_FIRST_S", holders.AVOID_MAX_S)
    async with cluster(slots=8, repair=RepairSection(pull_parallel=3)) as made:
        await lacking(made)
        rule = made.net.fault(kind, "drop", to="n1", source="n3")
        await made[3].pull()
        # At most what was under way when the first of them failed.
        assert 1 <= rule.hits <= 3
        await is_whole(made)


async def test_a_slow_holder_does_not_keep_the_rest_waiting(monkeypatch):
    monkeypatch.setattr(sources, "PATIENCE_S", 0.3)
    async with cluster(slots=2) as made:
        await lacking(made)
        for kind in ("ReadBlobs", "ReadChunk"):
            made.net.fault(kind, "hold", to="n2", source="n3")
        async with asyncio.timeout(60.0):
            await made[3].pull()
        await is_whole(made)


async def test_a_holder_whose_bytes_are_wrong_is_passed_over(monkeypatch):
    async with cluster(slots=2) as made:
        await lacking(made)
        handler, wrong = made.net.handlers["n1"], 0
        right = handler.handle_read

        async def handle_read(peer, request):
            nonlocal wrong
            data = bytearray(await right(peer, request))
            if isinstance(request, ReadBlobs | ReadChunk):
                wrong += 1
                data[-1] ^= 1
            return bytes(data)

        monkeypatch.setattr(handler, "handle_read", handle_read)
        await made[3].pull()
        assert wrong
        assert all(made[3].puller.unrecoverable(slot) == 0 for slot in range(2))
        await is_whole(made)


@pytest.mark.parametrize("data", [b"", b"\xff" * 100, bytes(1000)])
async def test_an_answer_that_is_none(monkeypatch, data):
    async with cluster(slots=2) as made:
        await lacking(made, [INLINE] * 5)
        handler = made.net.handlers["n1"]

        async def handle_read(peer, request):
            return data

        monkeypatch.setattr(handler, "handle_read", handle_read)
        await made[3].pull()
        await is_whole(made, [INLINE] * 5)


async def test_what_one_holder_lacks_comes_from_the_next_and_is_mended_there():
    async with cluster(slots=1) as made:
        await lacking(made, [INLINE, ONE_CHUNK, 3 * CHUNK])
        for index in range(3):
            made[1].store.lose_bytes(0, version_of(made, index).blob_id)
        await made[3].pull()
        await made[1].pull()
        assert made[3].puller.unrecoverable(0) == 0
        made.net.down = {"n2", "n3"}
        for index, size in enumerate([INLINE, ONE_CHUNK, 3 * CHUNK]):
            assert await get(made[1], f"w{index}", consistency="local") == content(size, index)


async def test_only_what_all_voters_say_they_lack_is_unrecoverable():
    async with cluster(slots=1) as made:
        sizes = [INLINE, ONE_CHUNK, 3 * CHUNK]
        await lacking(made, sizes)
        for number in (1, 2):
            for index in range(3):
                made[number].store.lose_bytes(0, version_of(made, index).blob_id)
        made.net.down = {"n2"}
        await drive(made[3])
        assert made[3].puller.unrecoverable(0) == 0 and made[3].puller.waiting == 3
        made.net.down = set()
        made.clock.ahead_s += RETRY_MAX_S
        await drive(made[3])
        assert made[3].puller.unrecoverable(0) == 3
        made.net.sent.clear()
        # Two copies that lack the same must not ask each other without a pause.
        for number in (1, 2, 3):
            await drive(made[number], rounds=3)
        await made.settle()
        assert made.net.count("ReadBlobs") + made.net.count("ReadChunk") < 60


async def test_what_cannot_be_had_does_not_hide_what_can(monkeypatch):
    monkeypatch.setattr(puller_module, "REFILL_MAX", 5)
    async with cluster(slots=1) as made:
        sizes = [INLINE] * 30 + [ONE_CHUNK]
        await lacking(made, sizes)
        for number in (1, 2):
            for index in range(30):
                made[number].store.lose_bytes(0, version_of(made, index).blob_id)
        for _ in range(20):
            await drive(made[3])
            made.clock.ahead_s += puller_module.LOOK_AGAIN_S
        assert made[3].puller.waiting == 30
        assert await made[3].store.read_chunk(0, *_chunk_of(made, 30)) == content(ONE_CHUNK, 30)


def _chunk_of(made: Cluster, index: int) -> tuple[str, ChunkRef]:
    version = version_of(made, index)
    return version.blob_id, version.chunks[0]


async def test_no_more_is_under_way_than_was_configured(monkeypatch):
    async with cluster(slots=8, repair=RepairSection(pull_parallel=3)) as made:
        await lacking(made, [ONE_CHUNK] * 16 + [LARGE] * 3)
        under_way = most = 0
        for node in ("n1", "n2"):
            handler = made.net.handlers[node]

            async def handle_read(peer, request, right=handler.handle_read):
                nonlocal under_way, most
                under_way += 1
                most = max(most, under_way)
                try:
                    await asyncio.sleep(0.002)
                    return await right(peer, request)
                finally:
                    under_way -= 1

            monkeypatch.setattr(handler, "handle_read", handle_read)
        await made[3].pull()
        assert most == 3
        await is_whole(made, [ONE_CHUNK] * 16 + [LARGE] * 3)


async def test_a_question_is_bounded(monkeypatch):
    monkeypatch.setattr(puller_module, "READ_BLOBS_MAX", 7)
    async with cluster(slots=1) as made:
        await lacking(made, [INLINE] * 30)
        await made[3].pull()
        counts = [len(message.blobs) for _, _, message in made.net.messages if isinstance(message, ReadBlobs)]
        assert sum(counts) == 30 and max(counts) == 7
        await is_whole(made, [INLINE] * 30)
    assert SMALL_BYTES_MAX <= READ_BLOBS_BYTES_MAX and READ_BLOBS_MAX >= 1


async def test_after_a_restart_only_the_rest_is_fetched(tmp_path):
    async with cluster(slots=2, folder=tmp_path) as made:
        await lacking(made)
        # The first half of everything comes, then nobody answers any more.
        for kind in ("ReadBlobs", "ReadChunk"):
            made.net.fault(kind, "drop", source="n3", skip=1 if kind == "ReadBlobs" else 14)
        await drive(made[3])
        before = made[3].puller.received_bytes
        here = [chunk for index in range(len(SIZES)) for chunk in await _missing(made, index)]
        assert 0 < len(here) < 54
        await made[3].puller.close()
        made.net.heal()
        made.start("n3")
        await made[3].store.settle(made[3].store.slots())
        made.clock.ahead_s += IDLE_S
        made.net.messages.clear()
        await made[3].pull()
        again = [message for source, _, message in made.net.messages if source == "n3"]
        asked = [m.chunk for m in again if isinstance(m, ReadChunk)]
        asked += [chunk for m in again if isinstance(m, ReadBlobs) for _, chunk in m.blobs]
        assert sorted(chunk.id for chunk in asked) == sorted(chunk.id for chunk in here)
        assert before + made[3].puller.received_bytes <= sum(SIZES)
        await is_whole(made)


async def _missing(made: Cluster, index: int) -> list[ChunkRef]:
    slot, version = made.slot(f"w{index}"), version_of(made, index)
    found: list[ChunkRef] = await made[3].store.missing_chunks(slot, version, version.chunks)
    return found


async def test_while_clients_are_served_less_is_asked_for_at_once(monkeypatch):
    # On a busy machine a client may not get its turn for half a second.
    monkeypatch.setattr("antientropy.pace.BUSY_S", 60.0)
    rate = 4 * MIB
    async with cluster(slots=2, repair=RepairSection(busy_bytes_per_s=rate)) as made:
        sizes = [ONE_CHUNK] * 40
        await lacking(made, sizes)
        began_s = made.clock.monotonic_s()

        async def client() -> None:
            while True:
                await get(made[3], "w0")
                await asyncio.sleep(0.02)

        copies, reading = made[3].replica.copies, made[3].reading
        before = copies.served + reading.served
        task = asyncio.get_running_loop().create_task(client())
        try:
            await until(lambda: copies.served + reading.served > before)
            await made[3].pull()
        finally:
            task.cancel()
        counts = [
            sum(chunk.len for _, chunk in message.blobs)
            for source, _, message in made.net.messages
            if source == "n3" and isinstance(message, ReadBlobs)
        ]
        assert max(counts) <= puller_module.BUSY_BATCH_BYTES
        moved = sum(counts)
        # What is fetched first waits for nobody, at most by two.
        assert made.clock.monotonic_s() - began_s >= (moved - 3 * 256 * KIB) / rate


async def test_a_busy_holder_puts_repair_off_but_not_clients(monkeypatch):
    async with cluster(slots=1) as made:
        view = await put(made[1], "p", content(3 * CHUNK))
        turns: list[int] = []

        class Pace:
            async def turn(self, size_bytes: int) -> None:
                turns.append(size_bytes)

        made[1].replica.streams.pace = Pace()
        chunk = view.version.chunks[0]
        before = made[1].replica.copies.served
        await made[1].replica.handle_read("n2", ReadChunk(slot=0, blob_id=view.version.blob_id, chunk=chunk))
        assert turns == [] and made[1].replica.copies.served > before
        before = made[1].replica.copies.served
        repair = ReadChunk(slot=0, blob_id=view.version.blob_id, chunk=chunk, repair=True)
        await made[1].replica.handle_read("n2", repair)
        await made[1].replica.handle_read("n2", ReadBlobs(slot=0, blobs=((view.version.blob_id, chunk),) * 2))
        assert turns == [CHUNK, 2 * CHUNK] and made[1].replica.copies.served == before


async def test_everything_that_clients_do_counts_as_served():
    async with cluster(slots=1) as made:
        path, node = made.path(1), made[1]

        def count() -> int:
            return node.replica.copies.served + node.reading.served

        for size in (10, 3 * CHUNK):
            before = count()
            await put(node, path, content(size))
            assert count() > before
            await made.settle()
            for consistency in ("strong", "local"):
                before = count()
                await get(node, path, consistency=consistency)
                assert count() > before
        before = count()
        await node.objects.list(prefix="", delimiter="", limit=10, start="", tombstoned=False, at_ms=None)
        assert count() > before
