"""The job ``run``: what is sent, what is not sent again, what is read back and evicted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from amberblob.archives import DAMAGED, UPLOADED, ArchivedChunk
from amberblob.config import ArchiveRule
from amberblob.config.values import SizeBytes
from archive.targets.interface import Source
from archive.verifying import Verdict, verify_object
from node.archive.jobs import JobStatus, Progress
from node.archive.readback import ReadBack
from node.archive.selection import Place
from tests.unit.node.archive.archive_kit import EVICT, World, world
from tests.unit.node.objects.kit import CHUNK, content, delete, put, until

EXPORT_REQUESTS = 6
"""After a run the metadata is exported: for the first time the cluster's document, a list, a segment and a head."""
CLAIM_REQUESTS = 6
"""Before the first upload of a cluster's life: whether the bucket is anybody's, and that it is this cluster's now."""


async def read(world: World, index: int, path: str) -> bytes:
    node = world[index]
    view = await node.objects.lookup(path, version=None, at_ms=None, consistency="strong")
    return b"".join([bytes(piece) async for piece in node.objects.read(view, 0, view.version.size)])


async def test_all_is_sent_once_and_every_copy_hears_of_it(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        for index in range(20):
            await put(it[1 + index % 3], f"p/{index}", content(100 + index))
        await it.cluster.settle()
        statuses = await it.run()
        assert {status.state for status in statuses.values()} == {"done"}
        assert sum(status.counts.get("chunks", 0) for status in statuses.values()) == 20
        assert sum(status.bytes_done for status in statuses.values()) == sum(100 + index for index in range(20))
        assert all(status.bytes_done == status.bytes_total for status in statuses.values())
        assert {slot for status in statuses.values() for slot in status.done_slots} == set(range(8))
        assert len(it.bucket.names("packs/")) == 3, "a pack of each node, of all its slots"
        await it.follow()
        for index in (1, 2, 3):
            assert sum(it[index].store.tally(slot).archived_rows for slot in range(8)) == 20
        again = await it.run()
        assert sum(status.counts.get("chunks", 0) for status in again.values()) == 0
        assert len(it.bucket.names("packs/")) == 3
        assert it.evicted(1) == 0, "the rule keeps the bytes"


@pytest.mark.parametrize("on_disks", [False, True])
async def test_what_is_evicted_was_read_back_and_is_served(tmp_path: Path, on_disks: bool) -> None:
    async with world(tmp_path, EVICT, on_disks=on_disks) as it:
        bodies = {f"p/{index}": content(size, index) for index, size in enumerate((50, 5000, CHUNK + 7, 3 * CHUNK))}
        for path, body in bodies.items():
            await put(it[1], path, body)
        await it.cluster.settle()
        statuses = await it.run()
        assert sum(status.counts.get("chunks_verified", 0) for status in statuses.values()) == 7
        await it.follow()
        await it.evict()
        assert [it.evicted(index) for index in (1, 2, 3)] == [4, 4, 4]
        assert on_disks or not any(files for files in it.cluster.blobs().values())
        for path, body in bodies.items():
            assert await read(it, 2, path) == body


async def test_content_that_the_archive_has_is_not_sent_again(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        first, other = it.cluster.path(1), it.cluster.path(2)
        await put(it[1], first, b"the same" * 1000)
        await it.cluster.settle()
        await it.run()
        await it.follow()
        before = it.bucket.names("packs/")
        await put(it[1], other, b"the same" * 1000)
        await it.cluster.settle()
        statuses = await it.run()
        assert it.bucket.names("packs/") == before
        assert sum(status.counts.get("chunks_known", 0) for status in statuses.values()) == 1
        assert it.rows(2, other) == 1


async def test_another_node_is_asked_for_what_the_own_index_lacks(tmp_path: Path) -> None:
    async with world(tmp_path, count=4, replicas=1, slots=4) as it:
        first, other = it.cluster.path(1), it.cluster.path(2)
        await put(it[1], first, b"the same" * 1000)
        await put(it[1], other, b"the same" * 1000)
        await it.cluster.settle()
        await it.run(1)
        await it.follow(1)
        before = it.bucket.names("packs/")
        await it.run(2)
        assert it.rows(2, other) == 1 and it.bucket.names("packs/") == before
        third = it.cluster.path(3)
        await put(it[3], third, b"another" * 1000)
        await it.cluster.settle()
        it.cluster.net.down.add("n1")
        await it.run(3)
        assert it.rows(3, third) == 1, "who does not answer is not waited for"


async def test_damage_that_is_seen_when_read_back_is_not_evicted_and_sent_again(tmp_path: Path) -> None:
    async with world(tmp_path, EVICT) as it:
        path = it.cluster.path(1)
        await put(it[1], path, content(5000))
        await it.cluster.settle()
        fault = it.bucket.fault("damage", "put", "packs/*", times=1)
        status = (await it.run(1))[1]
        assert fault.met and status.state == "done" and status.failures == 1
        assert "damaged" in status.problems[0]
        await it.evict(1)
        assert it.evicted(1) == 0
        status = (await it.run(1))[1]
        assert status.failures == 0 and status.counts["chunks"] == 1
        assert it.evicted(1) == 1


async def test_an_object_that_cannot_be_stored_does_not_stop_the_rest(tmp_path: Path) -> None:
    async with world(tmp_path, section={"pack_size": 1 << 20, "parallel": 1}) as it:
        paths = [f"p/{index}" for index in range(6)]
        for index, path in enumerate(paths):
            await put(it[1], path, content(400_000, index))
        await it.cluster.settle()
        it.bucket.fault("unavailable", "put", "packs/*", times=1)
        statuses = await it.run(1)
        assert statuses[1].state == "done"
        assert statuses[1].failures == 0, "it was sent once more, and then it was stored"
        assert it.archive(1).reach.reached, "the archive as a whole was looked at, and is well"
        mine = [path for path in paths if it.archive(1).ground.looks_after(it.cluster.slot(path))]
        assert sum(it.rows(1, path) > 0 for path in mine) == len(mine), "what failed was tried again"


async def test_what_cannot_be_read_back_at_once_is_looked_at_once_more(tmp_path: Path) -> None:
    async with world(tmp_path, EVICT) as it:
        path = it.cluster.path(1)
        await put(it[1], path, content(5000))
        await it.cluster.settle()
        fault = it.bucket.fault("unavailable", "get", "packs/*", times=1)
        status = (await it.run(1))[1]
        assert fault.met and (status.state, status.failures) == ("done", 0)
        assert it.evicted(1) == 1
        other = it.cluster.path(1, "q")
        await put(it[1], other, content(6000))
        await it.cluster.settle()
        it.bucket.fault("unavailable", "get", "packs/*")
        status = (await it.run(1))[1]
        assert status.state == "done" and status.failures >= 1, "it is told what stays undone"


async def test_wrong_credentials_fail_the_job_with_the_reason(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        await put(it[1], it.cluster.path(1), content(500))
        await it.cluster.settle()
        it.archive(1).reach.reached = None
        it.bucket.fault("denied")
        status = (await it.run(1))[1]
        assert status.state == "failed" and status.detail
        assert it.archive(1).reach.reached is False
        own = await it.archive(1).own.status()
        assert own.code == "archive-denied" and own.why
        it.bucket.heal()
        await it.archive(1).reach.step()
        assert (await it.run(1))[1].state == "done"
        assert len(it.bucket.names("packs/")) == 1


async def test_bytes_that_are_not_on_the_own_disk_come_from_another_copy(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        path = it.cluster.path(1)
        view = await put(it[1], path, content(2 * CHUNK))
        await it.cluster.settle()
        slot = it.cluster.slot(path)
        it[1].store._slots[slot].files.pop(view.version.blob_id)
        status = (await it.run(1))[1]
        assert status.failures == 0 and status.counts["chunks"] == 2


async def test_policies_choose_what_is_sent(tmp_path: Path) -> None:
    rules = (
        ArchiveRule(prefix="old/", action="archive", versions="old"),
        ArchiveRule(prefix="big/", action="archive", larger_than=SizeBytes(1000)),
        ArchiveRule(prefix="big/not/", action="keep"),
    )
    async with world(tmp_path, *rules, count=1, replicas=1) as it:
        await put(it[1], "old/a", b"1" * 10)
        await put(it[1], "old/a", b"2" * 10)
        await put(it[1], "big/a", b"3" * 999)
        await put(it[1], "big/b", b"4" * 1000)
        await put(it[1], "big/not/c", b"5" * 5000)
        await put(it[1], "else", b"6" * 5000)
        await it.cluster.settle()
        dry = (await it.run(request=it.request(dry_run=True)))[1]
        assert not it.bucket.names() and dry.counts["send_versions"] == 2 and dry.counts["send_bytes"] == 1010
        assert {rule.prefix: rule.send_versions for rule in dry.savings}["big/"] == 1
        assert (await it.run())[1].bytes_done == 1010
        await delete(it[1], "old/a")
        await it.cluster.settle()
        only = await it.run(request=it.request(prefix="big/"))
        assert "chunks" not in only[1].counts
        assert (await it.run())[1].counts["chunks"] == 1, "what was deleted is old now"


async def test_a_version_with_a_manifest_is_archived_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.objects.upload.MANIFEST_INLINE_CHUNKS_MAX", 2, raising=False)
    monkeypatch.setattr("amberblob.manifest.MANIFEST_INLINE_CHUNKS_MAX", 2)
    async with world(tmp_path, EVICT) as it:
        path, body = it.cluster.path(1), content(5 * CHUNK)
        view = await put(it[1], path, body)
        assert view.version.manifest_id is not None
        await it.cluster.settle()
        status = (await it.run(1))[1]
        assert status.counts["chunks"] == 6 and it.rows(1, path) == 6
        assert it.evicted(1) == 1
        await it.follow()
        await it.evict()
        assert it.evicted(3) == 1
        assert await read(it, 3, path) == body


async def test_small_objects_cost_few_requests(tmp_path: Path) -> None:
    """At most 1/1,000 of one request each, with reading back, as far as a pack of this test's size allows."""
    async with world(tmp_path, EVICT, count=1, replicas=1, slots=4, section={"pack_size": 1 << 20}) as it:
        for index in range(1000):
            await put(it[1], f"s/{index}", content(4096, index))
        await it.cluster.settle()
        traffic = it.archive(1).ground.means.traffic
        before = sum(traffic.requests.values())
        status = (await it.run())[1]
        assert status.counts["chunks_verified"] == 1000 and status.counts["evicted"] == 1000
        packs = len(it.bucket.names("packs/"))
        assert packs <= 5, "packs hold chunks of all slots"
        assert sum(traffic.requests.values()) - before <= 2 * packs + 3 + EXPORT_REQUESTS + CLAIM_REQUESTS


async def test_a_job_goes_on_after_a_restart_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path, count=1, replicas=1, slots=4) as it:
        paths = [f"p/{index}" for index in range(12)]
        for index, path in enumerate(paths):
            await put(it[1], path, content(3000, index))
        await it.cluster.settle()
        request = it.request()
        hang = it.bucket.fault("hang", "put", "packs/*")
        await it.archive(1).runner.start(request)
        await until(lambda: hang.met, "the pack is on its way")
        await it.archive(1).runner.close()
        assert it.status(1, request.job).state == "running"
        it.bucket.heal()
        again = it.cluster.start("n1").parts.archive
        assert again is not None
        await again.keeper.step()
        await it.ended(1, request.job)
        status = it.status(1, request.job)
        assert status.state == "done" and len(it.bucket.names("packs/")) == 1
        assert sorted(status.done_slots) == [0, 1, 2, 3]


async def test_two_that_send_the_same_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two nodes send the same at once: rows merge, and all copies agree on one place."""
    async with world(tmp_path) as it:
        path = it.cluster.path(1)
        view = await put(it[1], path, content(4000))
        await it.cluster.settle()
        monkeypatch.setattr("node.archive.ground.Ground.looks_after", lambda self, slot: self.has_voice(slot))
        await it.run()
        assert len(it.bucket.names("packs/")) > 1
        await it.follow()
        await it.follow()
        slot = it.cluster.slot(path)
        told = [await it[index].store.archived(slot, view.version.blob_id) for index in (1, 2, 3)]
        assert told[0] is not None and told[0].chunks == told[1].chunks == told[2].chunks


async def test_an_answer_that_is_lost_leaves_at_most_an_object_that_nobody_names(tmp_path: Path) -> None:
    async with world(tmp_path, EVICT, count=1, replicas=1) as it:
        view = await put(it[1], "p", content(4000))
        await it.cluster.settle()
        lost = it.bucket.fault("lost", "put", "packs/*", times=1)
        status = (await it.run())[1]
        assert lost.met == 1 and status.state == "done" and status.failures == 0
        slot = it.cluster.slot("p")
        assert len(it.bucket.names("packs/")) == 2
        [named] = await it[1].store.archive_objects(slot)
        assert named in it.bucket.names() and await it[1].store.is_evicted(slot, view.version.blob_id)


@pytest.mark.parametrize("ahead_ms", [0, 86_400_000])
async def test_what_is_damaged_is_sent_anew_whatever_else_is_known_and_whatever_the_clock_was(
    tmp_path: Path, ahead_ms: int
) -> None:
    """An older place of the same content never takes the place of a damaged one; nor does a new one if the damaged one's clock was ahead."""
    async with world(tmp_path) as it:
        path = it.cluster.path(1)
        await put(it[1], path, content(5000))
        await it.cluster.settle()
        await it.run()
        await it.follow()
        slot, ground = it.cluster.slot(path), it.archive(1).ground
        (row,) = await it[1].store.rows(slot, path)
        blob = await it[1].store.archived(slot, row.version.blob_id)
        assert blob is not None
        broken = replace(
            blob.chunks[0],
            target_path="packs/other",
            archived_at_ms=blob.chunks[0].archived_at_ms + 1 + ahead_ms,
            state=DAMAGED,
        )
        for index in (1, 2, 3):
            it.archive(index).ground.facts.take(slot, row.version.blob_id, [broken], at_ms=1)
        assert await ground.means.state.find([broken.chunk_id], verified=False), "the older place is known"
        await it.run()
        blob = await it[1].store.archived(slot, row.version.blob_id)
        assert blob is not None and [chunk.state >= 0 for chunk in blob.chunks] == [True]


@pytest.mark.parametrize("state", [UPLOADED, DAMAGED])
async def test_what_only_other_copies_know_to_be_wrong_is_sent_by_the_first_of_them(tmp_path: Path, state: int) -> None:
    """The node that looks after the slot lives by an older place, and keeps to it: a later one would have to be read back."""
    async with world(tmp_path, EVICT) as it:
        path = it.cluster.path(1)
        await put(it[1], path, content(5000))
        await it.cluster.settle()
        await it.run(1)
        await it.follow()
        assert [it.evicted(index) for index in (1, 2, 3)] == [1, 0, 0]
        slot = it.cluster.slot(path)
        (row,) = await it[1].store.rows(slot, path)
        blob_id = row.version.blob_id
        blob = await it[1].store.archived(slot, blob_id)
        assert blob is not None
        (good,) = blob.chunks
        # What another node sent, while it looked after the slot, and had not heard of that place.
        wrong = replace(good, target_path="packs/other", archived_at_ms=good.archived_at_ms + 1, state=state)
        for index in (1, 2, 3):
            it.archive(index).ground.facts.take(slot, blob_id, [wrong], at_ms=1)
        assert await it[1].store.archived(slot, blob_id) == blob, "its copy keeps to what it lives by"
        sent = [status.counts.get("chunks", 0) for status in (await it.run()).values()]
        if state == UPLOADED:
            assert sum(sent) == 0, "it has to be read back first"
            await it.follow()
            sent = [status.counts.get("chunks", 0) for status in (await it.run()).values()]
        _, first, second = (int(node[1:]) for node in it.archive(1).ground.routing.electorate(slot).voters)
        assert sent[first - 1] == 1 and sent[second - 1] == 0 and sent[0] == 0, "one sends for all"
        await it.follow()
        await it.evict()
        assert [it.evicted(index) for index in (1, 2, 3)] == [1, 1, 1]
        for index in (1, 2, 3):
            names = {wrong.target_path, good.target_path}
            assert not await it[index].store.archive_named(slot, names), "nobody needs the old places any more"
        sent = [status.counts.get("chunks", 0) for status in (await it.run()).values()]
        assert sum(sent) == 0


async def read_back(
    it: World, *, stored: Sequence[Sequence[Place]] = (), gathered: Sequence[Place] = (), **options: Any
) -> list[int]:
    """Have node 1 read back rows as they are stored, and then rows of before; the slots of those that were looked at."""
    closed: list[int] = []
    ground, progress = it.archive(1).ground, Progress(JobStatus(request=it.request("run"), node="n1"))
    reading = ReadBack(ground, ground.target, progress, closed=lambda slot, count: closed.append(slot), **options)
    worker = asyncio.create_task(reading.work())
    for places in stored:
        await reading.object_stored(places)
    await reading.add(gathered)
    await asyncio.wait_for(reading.flush(), 30)
    worker.cancel()
    return closed


async def test_chunks_that_came_again_are_read_back_whichever_objects_have_them(tmp_path: Path) -> None:
    async with world(tmp_path) as it:
        paths = [f"p/{number}" for number in range(6)]
        for number, path in enumerate(paths):
            await put(it[1], path, content(500, number))
        await it.cluster.settle()
        await it.run()
        await it.follow()
        places = []
        for path in paths:
            slot = it.cluster.slot(path)
            blob_id = (await it[1].store.rows(slot, path))[0].version.blob_id
            blob = await it[1].store.archived(slot, blob_id)
            assert blob is not None
            places.append((slot, blob_id, blob.chunks[0]))
        assert len({row.target_path for _, _, row in places}) > 1, "of several objects"
        closed = await read_back(it, stored=[places])
        assert sorted(closed) == sorted(slot for slot, _, _ in places)
        for slot, blob_id, _ in places:
            blob = await it[1].store.archived(slot, blob_id)
            assert blob is not None and blob.chunks[0].verified


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Every place that a job reads back."""
    places: list[tuple[str, int, int]] = []

    async def look(target: Source, name: str, rows: Sequence[ArchivedChunk]) -> list[Verdict]:
        places.extend(row.location for row in rows)
        return await verify_object(target, name, rows)

    monkeypatch.setattr("node.archive.readback.verify_object", look)
    return places


async def uploaded(it: World, *paths: str) -> list[Place]:
    """Paths of node 1 with one chunk each, archived and not read back."""
    places = []
    await it.run(1)
    for path in paths:
        slot = it.cluster.slot(path)
        blob_id = (await it[1].store.rows(slot, path))[0].version.blob_id
        blob = await it[1].store.archived(slot, blob_id)
        assert blob is not None and not blob.chunks[0].verified
        places.append((slot, blob_id, blob.chunks[0]))
    return places


async def verified(it: World, place: Place) -> bool:
    blob = await it[1].store.archived(place[0], place[1])
    assert blob is not None
    return blob.chunks[0].verified


async def test_a_chunk_that_comes_again_is_read_back_once(
    tmp_path: Path, looked_at: list[tuple[str, int, int]]
) -> None:
    """It was stored before, and is on its way to being read or was read: its place is not asked for by itself."""
    async with world(tmp_path, count=1, replicas=1, slots=4) as it:
        for path in ("one", "two", "three"):
            await put(it[1], path, b"the same" * 1000)
        await it.cluster.settle()
        one, two, three = await uploaded(it, "one", "two", "three")
        assert one[2].location == two[2].location == three[2].location
        closed = await read_back(it, stored=[[one], [two]], gathered=[three])
        assert sorted(closed) == sorted([one[0], two[0], three[0]])
        assert all([await verified(it, place) for place in (one, two, three)])
        assert looked_at == [one[2].location]


@pytest.mark.parametrize("elsewhere", [False, True], ids=["at-its-place", "at-another-place"])
async def test_what_another_read_back_meanwhile_is_not_read_once_more(
    tmp_path: Path, looked_at: list[tuple[str, int, int]], elsewhere: bool
) -> None:
    async with world(tmp_path, count=1, replicas=1, slots=4) as it:
        await put(it[1], "one", content(5000))
        await it.cluster.settle()
        (place,) = await uploaded(it, "one")
        told = replace(place[2], state=1234, target_path="packs/other" if elsewhere else place[2].target_path)

        async def find(chunk_ids: Sequence[str]) -> dict[str, ArchivedChunk]:
            return {chunk_id: told for chunk_id in chunk_ids if chunk_id == told.chunk_id}

        closed = await read_back(it, gathered=[place], find=find)
        assert closed == [place[0]] and await verified(it, place)
        assert looked_at == ([place[2].location] if elsewhere else [])


@pytest.mark.parametrize("what", ["gone", "damaged"])
async def test_what_the_job_saw_to_be_wrong_is_not_believed_to_be_right_on_an_older_word(
    tmp_path: Path, what: str
) -> None:
    """Another node read it back before it was damaged, and has not heard of that yet. Of an object that is gone, nothing is there."""
    async with world(tmp_path, count=1, replicas=1, slots=4) as it:
        await put(it[1], "one", b"the same" * 1000)
        await put(it[1], "two", b"the same" * 1000)
        await put(it[1], "three", content(4000))
        await it.cluster.settle()
        one, two, three = await uploaded(it, "one", "two", "three")
        name = one[2].target_path
        assert one[2].location == two[2].location and three[2].target_path == name
        told = {row.chunk_id: replace(row, state=1234) for _, _, row in (one, three)}
        if what == "gone":
            del it.bucket.objects[name]
        else:
            it.bucket.damage(name, one[2].end - 1)

        async def find(chunk_ids: Sequence[str]) -> dict[str, ArchivedChunk]:
            return {chunk_id: told[chunk_id] for chunk_id in chunk_ids}

        closed = await read_back(it, stored=[[one], [two]], gathered=[three], find=find)
        assert sorted(closed) == sorted(slot for slot, _, _ in (one, two, three))
        assert not await verified(it, one) and not await verified(it, two)
        assert await verified(it, three) is (what == "damaged")
