"""Writers that wait until their chunks are archived share packs."""

from __future__ import annotations

import asyncio

import pytest

from amberblob.errors import ArchiveUnavailable, ChunkCorrupt, NotReady
from archive.groups import GroupUploader
from archive.reading import read_chunk
from archive.targets.memory import MemoryTarget
from tests.unit.archive.pack_kit import item_of, noise, pairs_of, text, uploader_to


def group_to(target) -> GroupUploader:
    return GroupUploader(uploader_to(target, pack_size=10**6, lone_size=10**5))


async def test_who_waits_at_one_time_shares_a_pack_and_the_first_waits_for_nobody():
    target = MemoryTarget()
    group = group_to(target)
    pairs = pairs_of([text(300, seed) for seed in range(300)])
    rows = await asyncio.gather(*(group.archive([pair]) for pair in pairs))
    assert len(target.bucket.objects) == 3, "one each for the two that came first, one for all that came meanwhile"
    for (item, data), (row,) in zip(pairs, rows, strict=True):
        assert row.chunk_id == item.chunk.id
        assert b"".join([bytes(piece) async for piece in read_chunk(target, row)]) == data
    await group.close()


async def test_rows_come_in_the_order_of_the_chunks_also_of_the_same_ones():
    target = MemoryTarget()
    group = group_to(target)
    one, two = text(100), noise(150_000)
    item = item_of(one)
    pairs = [(item, one), (item_of(two), two), (item, one)]
    first, second = await asyncio.gather(group.archive(pairs), group.archive(pairs[:1]))
    assert [row.chunk_id for row in first] == [item.chunk.id for item, _ in pairs]
    assert [row.chunk_id for row in second] == [item.chunk.id]
    assert await group.archive([]) == []


async def test_an_error_reaches_who_waits_for_the_object_and_nobody_else():
    target = MemoryTarget()
    group = group_to(target)
    target.bucket.fault("unavailable", "put", "chunks/*")
    good, large, wrong = text(100), noise(150_000), item_of(b"something")
    calls = [
        group.archive([(item_of(good), good)]),
        group.archive([(item_of(large), large)]),
        group.archive([(wrong, b"else")]),
    ]
    rows, failed, refused = await asyncio.gather(*calls, return_exceptions=True)
    assert rows[0].length == 100 and isinstance(failed, ArchiveUnavailable) and isinstance(refused, ChunkCorrupt)
    target.bucket.heal()
    assert (await group.archive([(item_of(large), large)]))[0].length == 150_000


async def test_one_who_stops_waiting_does_not_disturb_the_others():
    target = MemoryTarget()
    hanging = target.bucket.fault("hang", "put", times=2)
    group = group_to(target)
    calls = [asyncio.create_task(group.archive([pair])) for pair in pairs_of([text(100, seed) for seed in range(9)])]
    while hanging.met < 2:
        await asyncio.sleep(0)
    calls[0].cancel()
    calls[5].cancel()
    hanging.release()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [index for index, rows in enumerate(done) if isinstance(rows, asyncio.CancelledError)] == [0, 5]
    assert all(rows[0].length == 100 for index, rows in enumerate(done) if index not in (0, 5))


@pytest.mark.parametrize("turns", [0, 1, 30])
async def test_all_who_wait_are_told_when_the_node_stops(turns):
    target = MemoryTarget()
    target.bucket.fault("hang", "put")
    group = group_to(target)
    calls = [asyncio.create_task(group.archive([pair])) for pair in pairs_of([text(100, seed) for seed in range(9)])]
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await group.close()
        done = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(error, NotReady) for error in done) and not target.bucket.objects
    with pytest.raises(NotReady):
        await group.archive(pairs_of([b"late"]))
