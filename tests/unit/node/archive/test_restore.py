"""The job restore: evicted versions come back to the disks."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest
from msgspec.structs import replace

from amberblob.archives import ArchivedChunk, import_id
from amberblob.errors import AmberError, ArchiveUnavailable, DiskFull
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef
from amberblob.mutations import Archived
from archive.packs import Item
from archive.targets.memory import Fault
from node.archive.jobs import JobRequest, JobStatus, Progress
from node.archive.restore import Restoring
from node.protocol.operations import Put
from tests.unit.node.archive.kit import FOREIGN, World, world
from tests.unit.node.objects.kit import CHUNK, STAGED, content, get, look, put, until

SIZES = [5, STAGED, 3 * CHUNK, 70 * CHUNK]


@pytest.fixture
async def made(tmp_path):
    async with world(tmp_path) as running:
        yield running


async def restore(made: World, number: int, **request) -> JobStatus:
    """Run the job on one node; how it ended."""
    node = made[number]
    assert node.parts.archive is not None
    assert node.puller.source is not None
    ground = node.parts.archive.ground
    asked = JobRequest(job="01ARZ3NDEKTSV4RRFFQ69G5FAV", kind="restore", **request)
    progress = Progress(JobStatus(request=asked, node=f"n{number}"))
    parts = node.parts.archive
    work = Restoring(ground, parts.rows, node.reading, node.puller.source, node.objects.put, parts.reach)
    await work(asked, progress)
    return progress.status


async def test_every_version_comes_back_and_the_bucket_is_not_needed_any_more(made):
    bodies = {}
    for at in range(8):
        bodies[f"p{at}"], _ = await made.cold(f"p{at}", SIZES[at % 4])
    for number in (1, 2, 3):
        status = await restore(made, number)
        assert status.failures == 0, status.problems
        assert status.counts["restored"] == status.counts["versions"] == 8
        assert status.bytes_done == status.bytes_total == sum(map(len, bodies.values()))
        assert status.slots_done == status.slots_total == 8
    assert all(node.store.tally(slot).evicted == 0 for node in made.cluster for slot in range(8))
    made.bucket.objects.clear()
    for number in (1, 2, 3):
        for path, data in bodies.items():
            assert await get(made[number], path, consistency="local") == data


async def test_small_ones_come_pack_by_pack_in_few_requests(made):
    pairs, views = [], []
    for at in range(24):
        data, view = await made.stored(f"p{at}", 100 + at)
        chunk = view.version.chunks[0]
        slot = made.cluster.slot(view.path)
        pairs.append(
            (Item(chunk=chunk, slot=slot, blob_id=view.version.blob_id, path=view.path, version=1, index=0), data)
        )
        views.append(view)
    rows = {row.chunk_id: row for row in await made.upload(pairs)}
    for view in views:
        await made.take(view, [rows[view.version.chunks[0].id]])
        await made.evict(view)
    status = await restore(made, 1)
    assert status.counts["restored"] == 24
    assert made.gets() == 1


async def test_what_another_copy_has_comes_from_there(made):
    for at in range(8):
        await made.cold(f"p{at}", SIZES[at % 3], (1, 2))
    status = await restore(made, 1)
    assert status.counts["restored"] == 8 and "from_archive_bytes" not in status.counts
    assert made.gets() == 0


async def test_copies_that_restore_at_once_share_the_chunks_of_a_version(made):
    bodies = {}
    for at in range(2):
        bodies[f"p{at}"], _ = await made.cold(f"p{at}", 12 * CHUNK, alone=True)
    statuses = await asyncio.gather(*(restore(made, number) for number in (1, 2, 3)))
    wanted = sum(map(len, bodies.values()))
    for status in statuses:
        assert status.failures == 0 and status.counts["restored"] == 2, status.problems
        assert status.counts["from_archive_bytes"] + status.counts["from_copies_bytes"] == wanted
        assert status.counts["from_archive_bytes"] < wanted, "the others' shares came from them"
    made.bucket.objects.clear()
    for number in (1, 2, 3):
        for path, data in bodies.items():
            assert await get(made[number], path, consistency="local") == data


async def test_what_a_rule_evicts_again_at_once_is_no_problem(made):
    _, view = await made.cold("p", 2 * CHUNK)
    store, slot = made[1].store, made.cluster.slot("p")
    whole = store.is_whole

    async def then_evicted(*arguments):
        answer = await whole(*arguments)
        await store.evict(slot, "p", view.version)
        return answer

    store.is_whole = then_evicted
    status = await restore(made, 1)
    assert status.failures == 0 and status.counts["evicted_again"] == 1, status.problems
    assert "restored" not in status.counts and status.bytes_done == view.version.size


async def test_only_a_prefix_and_a_dry_run(made):
    await made.cold("a/1", 5)
    await made.cold("b/1", STAGED)
    status = await restore(made, 1, prefix="b/", dry_run=True)
    assert status.counts == {"versions": 1} and status.bytes_total == STAGED and status.bytes_done == 0
    status = await restore(made, 1, prefix="b/")
    assert status.counts["restored"] == 1
    assert sum(made[1].store.tally(slot).evicted for slot in range(8)) == 1


async def test_a_damaged_chunk_is_a_problem_and_the_rest_comes(made):
    _, bad = await made.cold("bad", 300)
    data, _ = await made.cold("good", 300 + 1)
    row = (await made[1].store.archived(made.cluster.slot("bad"), bad.version.blob_id)).chunks[0]
    made.bucket.damage(row.target_path, row.end - 1)
    status = await restore(made, 1)
    assert status.failures == 1 and "bad version 1" in status.problems[0]
    assert status.counts["restored"] == 1
    assert await get(made[1], "good", consistency="local") == data


@pytest.mark.parametrize("size", SIZES)
async def test_a_bucket_that_is_away_is_waited_for(made, monkeypatch, size):
    monkeypatch.setattr("node.archive.reach.RETRY_FIRST_S", 0.01)
    data, _ = await made.cold("p", size)
    made.targets["n1"].faults.append(Fault(what="unavailable"))
    running = asyncio.create_task(restore(made, 1))
    await until(lambda: made[1].parts.archive.reach.reached is False)
    made.targets["n1"].faults.clear()
    status = await running
    assert status.failures == 0 and status.counts["restored"] == 1, status.problems
    assert await get(made[1], "p", consistency="local") == data


@pytest.mark.parametrize("size", SIZES)
async def test_a_bucket_that_is_away_for_long_fails_it(made, monkeypatch, size):
    monkeypatch.setattr("node.archive.patience.PATIENCE_S", 0.0)
    await made.cold("p", size)
    made.targets["n1"].faults.append(Fault(what="unavailable"))
    with pytest.raises(ArchiveUnavailable, match="not reached"):
        await restore(made, 1)
    assert await made[1].store.is_evicted(made.cluster.slot("p"), (await look(made[1], "p")).version.blob_id)


@pytest.mark.parametrize("size", [300, STAGED, 3 * CHUNK])
async def test_a_full_disk_ends_it_with_what_to_do_and_it_goes_on_later(made, size):
    paths = [f"p{at}" for at in range(12)]
    for path in paths:
        await made.cold(path, size)
    store = made[1].store
    left = 4 if size < CHUNK else 20  # of those with chunks some are under way at once, by shares
    kept = {name: getattr(store, name) for name in ("install_chunk", "install_bodies", "install_blobs")}

    def full(name: str):
        async def install(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                raise DiskFull("the disk has 1 MiB free, 64 MiB are kept in reserve.")
            return await kept[name](*arguments)

        return install

    for name in kept:
        setattr(store, name, full(name))
    with pytest.raises(DiskFull) as caught:
        await restore(made, 1)
    assert "begin the job again" in caught.value.detail
    for name, method in kept.items():
        setattr(store, name, method)
    evicted = sum(store.tally(slot).evicted for slot in range(8))
    assert 0 < evicted < 12
    status = await restore(made, 1)
    assert status.counts["restored"] == evicted


async def test_one_that_was_cancelled_goes_on(made):
    for at in range(6):
        await made.cold(f"p{at}", 3 * CHUNK, alone=True)
    fault = made.bucket.fault("hang", "get", skip=4)
    running = asyncio.ensure_future(restore(made, 1))
    while not fault.met:
        await asyncio.sleep(0.002)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    made.bucket.heal()
    status = await restore(made, 1)
    assert status.failures == 0
    assert sum(made[1].store.tally(slot).evicted for slot in range(8)) == 0


async def imported(made: World, path: str, data: bytes):
    """An object of somebody else's bucket, as import makes it."""
    node = made[1]
    slot = made.cluster.slot(path)
    stored = made.foreign.store(path, data)
    url = f"{FOREIGN}/{path}"
    chunk = ChunkRef(import_id(url, stored.etag, 0, len(data)), len(data))
    row = ArchivedChunk(chunk.id, len(data), url, 0, len(data), "", 1, state=1, etag=stored.etag)
    draft = (await made.stored("template", 5))[1].version
    draft = replace(
        draft,
        version=0,
        blob_id=node.coordinator.mint.mint(),
        size=len(data),
        etag=stored.etag,
        chunks=(chunk,),
        inline=False,
    )
    for other in made.cluster:
        other.store.apply(Archived(slot, draft.blob_id, (row,), 1, evicted=True))
    await node.coordinator.write(
        node.routing.of(path), path, Put(draft=draft), holders=frozenset(node.routing.of(path).voters)
    )
    await made.cluster.settle()
    return await look(node, path)


async def test_imported_content_is_read_by_its_etag(made):
    data = content(200_000)
    view = await imported(made, "imported", data)
    assert view.version.version == 1
    for number in (1, 2, 3):
        assert await get(made[number], "imported") == data
    made.foreign.store("imported", content(200_000, 7))
    for means in made.means.values():
        await until(partial(lambda cache: view.version.chunks[0].id in cache, means.cache))
        await means.cache.discard(view.version.chunks[0].id)
    with pytest.raises(AmberError) as caught:
        await get(made[1], "imported")
    assert caught.value.code == "archive-damaged"


async def test_imported_content_is_written_anew_with_its_true_hash(made):
    data = content(200_000)
    await imported(made, "imported", data)
    leader = next(int(node[1:]) for node in made[1].routing.of("imported").voters)
    status = await restore(made, leader)
    assert status.counts["imported_rewritten"] == 1 and status.failures == 0
    view = await look(made[1], "imported")
    assert view.version.version == 2 and view.version.etag == content_hash(data)
    made.foreign.objects.clear()
    assert await get(made[2], "imported") == data
    again = await restore(made, leader)
    assert again.counts["imported_left"] == 1, "the older version stays where it is"


async def test_imported_content_that_was_overwritten_meanwhile_is_left(made):
    await imported(made, "imported", content(200_000))
    leader = next(int(node[1:]) for node in made[1].routing.of("imported").voters)
    held = made[leader].objects.put

    async def slow(path, body, options):
        await put(made[1], "imported", b"newer")
        return await held(path, body, options)

    made[leader].objects.put = slow
    status = await restore(made, leader)
    assert status.failures == 0 and status.counts["imported_left"] == 1
    assert await get(made[1], "imported") == b"newer"
