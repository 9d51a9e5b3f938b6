"""The uploader: everything comes to an object and back again; what fails fails alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from amberblob.archives import UPLOADED
from amberblob.errors import ArchiveUnavailable, ChunkCorrupt
from amberblob.ids import content_hash
from archive.objects import PART_BYTES, ROOM_BYTES, OpenObject, _parts_of
from archive.packs import object_ulid
from archive.reading import fetch_index, read_chunk
from archive.targets.memory import MemoryTarget
from tests.unit.archive.pack_kit import Told, each, frame_of, item_of, noise, pairs_of, text, uploader_to


async def content(target, row) -> bytes:
    return b"".join([bytes(piece) async for piece in read_chunk(target, row)])


async def test_everything_comes_to_objects_and_back():
    target, told, chance = MemoryTarget(), Told(), random.Random(3)
    bodies = [chance.choice((noise, text))(chance.randrange(1, 30_000), seed) for seed in range(60)]
    bodies += [noise(50_000, 100 + seed) for seed in range(5)]
    chance.shuffle(bodies)
    pairs = pairs_of(bodies)
    await uploader_to(target, wall_ms=10**12).run(each(pairs), told.stored, told.failed)
    assert not told.failures and len(told.rows) == len(pairs)
    for item, data in pairs:
        row = told.row(item)
        assert (row.chunk_id, row.length, row.state, row.archived_at_ms) == (item.chunk.id, len(data), UPLOADED, 10**12)
        assert await content(target, row) == data
    names = sorted(target.bucket.objects)
    assert told.objects == set(names) and all(object_ulid(name) for name in names)
    lone = [name for name in names if name.startswith("chunks/")]
    packs = [name for name in names if name.startswith("packs/")]
    assert len(lone) == 5
    assert len(packs) <= 2 + sum(len(body) for body in bodies if len(body) < 48 * 1024) // (64 * 1024) + 3
    entries = [entry for name in names for entry in await fetch_index(target, name)]
    assert sorted((entry.chunk_id, entry.path) for entry in entries) == sorted((i.chunk.id, i.path) for i, _ in pairs)
    assert target.traffic.sent_bytes < sum(map(len, bodies)) * 1.1


async def test_the_same_content_is_sent_once_wherever_it_comes_again():
    target, told = MemoryTarget(), Told()
    small, large = text(2000), noise(50_000)
    pairs = [(item_of(body, number), body) for number, body in enumerate([small, large, small, large, small] * 3)]

    async def source():
        for number, pair in enumerate(pairs):
            yield pair
            if number == 8:
                # By now the large one is stored, the small one is still on its way.
                await asyncio.sleep(0.05)

    await uploader_to(target).run(source(), told.stored, told.failed)
    assert len(told.rows) == len(pairs) and not told.failures
    assert len({row.location for _, row in told.rows}) == 2 and len(target.bucket.objects) == 2
    (pack,) = [name for name in target.bucket.objects if name.startswith("packs/")]
    entries = await fetch_index(target, pack)
    assert [entry.path for entry in entries] == [item.path for item, _ in pairs if item.chunk.len == 2000]


async def test_an_object_that_fails_fails_for_its_items_and_the_others_go_on():
    target, told = MemoryTarget(), Told()
    target.bucket.fault("unavailable", "put", "chunks/*", times=2)
    target.bucket.fault("cut", "put", "packs/*", times=1)
    bodies = [noise(50_000, seed) for seed in range(6)] + [noise(9_000, 50 + seed) for seed in range(40)]
    pairs = pairs_of(bodies)
    await uploader_to(target).run(each(pairs), told.stored, told.failed)
    done, failed = {item.path for item, _ in told.rows}, {item.path for item, _ in told.failures}
    assert done | failed == {item.path for item, _ in pairs} and not done & failed
    assert all(isinstance(error, ArchiveUnavailable) for _, error in told.failures)
    assert len([item for item, _ in told.failures if item.chunk.len == 50_000]) == 2
    assert 0 < len([item for item, _ in told.failures if item.chunk.len == 9_000]) <= 9
    assert told.objects == set(target.bucket.objects)
    for item, data in pairs:
        if item.path in done:
            assert await content(target, told.row(item)) == data


async def test_content_that_failed_is_sent_when_it_comes_again():
    target, told = MemoryTarget(), Told()
    target.bucket.fault("unavailable", "put", times=1)
    data = noise(50_000)

    async def source():
        yield item_of(data, 1), data
        while not told.failures:
            await asyncio.sleep(0)
        yield item_of(data, 2), data

    await uploader_to(target).run(source(), told.stored, told.failed)
    assert [item.version for item, _ in told.failures] == [2] and [item.version for item, _ in told.rows] == [3]


async def test_wrong_bytes_of_one_chunk_are_told_and_not_sent():
    target, told = MemoryTarget(), Told()
    good, bad = text(500), item_of(b"what it should be", 1)
    pairs = [(item_of(good, 0), good), (bad, b"what it is"), (item_of(b"more", 2), b"more")]
    await uploader_to(target).run(each(pairs), told.stored, told.failed)
    ((item, error),) = told.failures
    assert item is bad and isinstance(error, ChunkCorrupt) and len(told.rows) == 2


class Slow(MemoryTarget):
    """Takes parts only when told to, and tells how many objects are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = self.most = 0
        self.go = asyncio.Event()

    async def put(self, name, parts):
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.go.wait()
            return await super().put(name, parts)
        finally:
            self.under_way -= 1


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def settle(turns: int = 200) -> None:
    for _ in range(turns):
        await asyncio.sleep(0.0005)


@pytest.mark.parametrize(("size", "objects"), [(3_000, 1), (50_000, 3)])
async def test_a_slow_target_holds_the_source_up_with_one_open_pack_or_as_many_lone_chunks_as_may_be(
    size, objects, monkeypatch
):
    monkeypatch.setattr("archive.objects.PART_BYTES", 10_000)
    monkeypatch.setattr("archive.objects.ROOM_BYTES", 20_000)
    monkeypatch.setattr("archive.upload.BATCH_BYTES", 10_000)
    target, told, taken = Slow(), Told(), 0

    async def source():
        nonlocal taken
        for seed in range(400):
            data = noise(size, seed)
            taken += 1
            yield item_of(data, seed), data

    run = asyncio.create_task(uploader_to(target, parallel=3).run(source(), told.stored, told.failed))
    await until(lambda: target.most == objects)  # frames are made in threads
    await settle()
    assert target.most == objects
    # At most three objects that have room for two batches each, four batches ahead, and the one that is being made.
    assert taken * size <= max(3 * 2 * 10_000 + 5 * 12_000 + 3_000, 5 * 50_000)
    target.go.set()
    await run
    assert len(told.rows) == 400 and target.most <= 3


async def test_lone_chunks_do_not_wait_for_packs_that_wait_for_more():
    """All places are taken by open packs, and the source has nothing but large chunks left."""
    target, told = MemoryTarget(), Told()
    bodies = [text(100)] + [noise(50_000, seed) for seed in range(9)]
    async with asyncio.timeout(30):
        await uploader_to(target, parallel=1).run(each(pairs_of(bodies)), told.stored, told.failed)
    assert len(told.rows) == 10


async def test_a_pack_stays_open_while_lone_chunks_have_places_of_their_own(monkeypatch):
    monkeypatch.setattr("archive.upload.BATCH_ITEMS", 1)
    target, told = MemoryTarget(), Told()

    async def source():
        for seed in range(6):
            data = noise(50_000 if seed % 2 else 100, seed)
            yield item_of(data, seed), data
            while seed % 2 and len(told.rows) <= seed // 2:
                await asyncio.sleep(0)

    await uploader_to(target, parallel=2).run(source(), told.stored, told.failed)
    assert len(told.rows) == 6 and len(target.bucket.objects) == 4


async def test_those_who_wait_for_a_place_share_the_pack_that_gets_it(monkeypatch):
    monkeypatch.setattr("archive.upload.BATCH_ITEMS", 1)
    target, told, others = Slow(), Told(), Told()
    uploader = uploader_to(target, parallel=2)
    bodies = [noise(50_000, seed) for seed in range(2)]
    first = asyncio.create_task(uploader.run(each(pairs_of(bodies)), others.stored, others.failed))
    await until(lambda: target.under_way == 2)
    bodies = [noise(100, seed) for seed in range(3)]
    second = asyncio.create_task(uploader.run(each(pairs_of(bodies)), told.stored, told.failed))
    await until(lambda: bool(uploader.places._waiters))
    await settle(20)
    target.go.set()
    async with asyncio.timeout(30):
        await asyncio.gather(first, second)
    assert len(told.rows) == 3 and len(target.bucket.objects) == 3


async def test_a_lone_chunk_that_waits_behind_a_new_pack_is_let_by(monkeypatch):
    monkeypatch.setattr("archive.upload.BATCH_ITEMS", 1)
    target, told, others = Slow(), Told(), Told()
    uploader = uploader_to(target, parallel=1)
    first = asyncio.create_task(uploader.run(each(pairs_of([noise(50_000)])), others.stored, others.failed))
    await until(lambda: target.under_way == 1)
    bodies = [noise(100, 1), noise(50_000, 2), noise(100, 3)]
    second = asyncio.create_task(uploader.run(each(pairs_of(bodies)), told.stored, told.failed))
    await settle(20)
    target.go.set()
    async with asyncio.timeout(30):
        await asyncio.gather(first, second)
    assert len(told.rows) == 3


async def test_a_cancelled_run_leaves_nothing_that_is_listed_and_gives_its_places_back():
    target, told = Slow(), Told()
    uploader = uploader_to(target, parallel=2)
    for wait in (0, 1, 5, 40):
        pairs = pairs_of([noise(50_000, seed) for seed in range(5)] + [noise(3000, 9 + seed) for seed in range(50)])
        run = asyncio.create_task(uploader.run(each(pairs), told.stored, told.failed))
        await settle(wait)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert not target.bucket.objects and not target.under_way and not told.rows and not told.failures
    target.go.set()
    await uploader.run(each(pairs_of([noise(50_000, seed) for seed in range(9)])), told.stored, told.failed)
    assert len(told.rows) == 9


async def test_what_a_callback_or_the_source_raises_ends_the_run():
    target, told = MemoryTarget(), Told()
    uploader = uploader_to(target)

    async def refusing(rows):
        raise ArchiveUnavailable("the store is gone")

    with pytest.raises(ArchiveUnavailable, match="the store is gone"):
        await uploader.run(each(pairs_of([noise(50_000)])), refusing, told.failed)

    async def broken():
        for pair in pairs_of([noise(1000), noise(60_000)]):
            yield pair
        raise OSError("cannot read on")

    with pytest.raises(OSError, match="cannot read on"):
        await uploader.run(broken(), told.stored, told.failed)
    await uploader.run(each(pairs_of([noise(50_000)])), told.stored, told.failed)
    assert told.rows


async def test_a_target_that_says_that_it_has_another_length_is_not_believed():
    class Losing(MemoryTarget):
        async def put(self, name, parts):
            stored = await super().put(name, parts)
            self.bucket.store(name, self.bucket.objects[name].content[:-1])
            return await self.head(stored.name)

    told = Told()
    await uploader_to(Losing()).run(each(pairs_of([text(9)])), told.stored, told.failed)
    assert not told.rows and "is said to have" in str(told.failures[0][1])


async def test_a_pack_does_not_wait_for_ever_to_become_full():
    target, told = MemoryTarget(), Told()
    uploader = uploader_to(target)
    uploader.linger_s = 0.01

    async def slow():
        for seed in range(256):
            yield item_of(noise(9, seed), seed), noise(9, seed)
        while len(told.rows) < 256:
            await asyncio.sleep(0.001)
        yield item_of(b"one more"), b"one more"

    async with asyncio.timeout(30):
        await uploader.run(slow(), told.stored, told.failed)
    assert len(told.rows) == 257 and len(target.bucket.objects) == 2


async def test_a_pack_has_no_more_entries_than_an_index_may_have(monkeypatch):
    monkeypatch.setattr("archive.upload.ENTRIES_MAX", 5)
    monkeypatch.setattr("archive.objects.ENTRIES_MAX", 5)
    target, told = MemoryTarget(), Told()
    pairs = pairs_of([noise(9, seed) for seed in range(12)] + [b"the same"] * 9)
    await uploader_to(target, parallel=1).run(each(pairs), told.stored, told.failed)
    assert len(told.rows) == 21
    sizes = [len(await fetch_index(target, name)) for name in target.bucket.objects]
    assert max(sizes) == 5 and len(sizes) == 3


async def test_the_source_is_closed_when_the_run_is_cancelled():
    closed = False

    async def endless():
        nonlocal closed
        try:
            yield item_of(b"x"), b"x"
            await asyncio.Event().wait()
        finally:
            closed = True

    run = asyncio.create_task(uploader_to(MemoryTarget()).run(endless(), Told().stored, Told().failed))
    await settle(3)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert closed


def test_what_is_larger_than_a_target_takes_at_once_is_cut(monkeypatch):
    monkeypatch.setattr("archive.objects.PART_BYTES", 10)
    monkeypatch.setattr("archive.objects.PART_BYTES_MAX", 25)
    buffers = [b"abc", noise(60), b"de", b"0123456789", b"f" * 9, b"g" * 9, b"h"]
    parts = _parts_of(buffers)
    assert b"".join(parts) == b"".join(buffers) and max(map(len, parts)) <= 25 and all(parts)


async def test_nothing_to_do_makes_no_object():
    target, told = MemoryTarget(), Told()
    await uploader_to(target).run(each([]), told.stored, told.failed)
    assert not target.bucket.objects


async def test_large_frames_are_sent_as_they_are_and_small_ones_in_handy_parts():
    target, sent = MemoryTarget(), []

    async def put(name, parts):
        async for part in parts:
            sent.append(part)
        return await MemoryTarget.put(target, name, each_of(sent))

    async def each_of(parts):
        for part in parts:
            yield part

    target.put = put
    large = noise(2 * PART_BYTES)
    made = OpenObject("chunks/x", lambda: None)
    for data in [noise(100_000, seed) for seed in range(30)]:
        made.add(frame_of(data))
    made.add(frame_of(large))
    assert made.room is (3_000_000 + len(large) < ROOM_BYTES)
    made.close()
    await made.send(target)
    assert any(part is large for part in sent)
    assert len(sent) <= 6 and all(len(part) >= PART_BYTES for part in sent[:2])
    assert content_hash(b"".join(sent)) == content_hash(target.bucket.objects["chunks/x"].content)
