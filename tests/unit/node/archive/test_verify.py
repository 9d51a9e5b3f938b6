"""The job ``verify`` on a cluster: what is looked at, and what becomes of what is damaged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from amberblob.archives import DAMAGED, ArchivedChunk, import_id
from amberblob.errors import AmberError
from chunkstore.interface import BlobState
from node.archive.jobs import SCHEDULED, JobStatus
from tests.unit.node.archive.archive_kit import EVICT, World, world
from tests.unit.node.archive.test_run import read
from tests.unit.node.objects.kit import content, put, until

DAY_S = 86_400


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def archived(it: World, count: int = 6) -> list[str]:
    paths = [f"p/{number}" for number in range(count)]
    for number, path in enumerate(paths):
        await put(it[1], path, content(5000, number))
    await it.cluster.settle()
    await it.run()
    await it.follow()
    return paths


async def row_of(it: World, index: int, path: str) -> ArchivedChunk:
    node, slot = it[index], it.cluster.slot(path)
    blob = await node.store.archived(slot, (await node.store.rows(slot, path))[0].version.blob_id)
    assert blob is not None
    return blob.chunks[0]


async def verify(it: World, *indexes: int, **more: object) -> tuple[dict[str, int], list[str]]:
    """On all nodes: what they counted, together, and their problems."""
    statuses: dict[int, JobStatus] = await it.run(*indexes, request=it.request("verify", **more))
    assert {status.state for status in statuses.values()} == {"done"}
    assert {slot for status in statuses.values() for slot in status.done_slots} == set(range(8)) or indexes
    counts: dict[str, int] = {}
    for status in statuses.values():
        for name, count in status.counts.items():
            counts[name] = counts.get(name, 0) + count
    return counts, [problem for status in statuses.values() for problem in status.problems]


async def test_everything_is_read_in_one_request_for_each_object_and_known_to_be_right(it: World) -> None:
    paths = await archived(it)
    packs = it.bucket.names("packs/")
    for name in it.bucket.names("meta/"):
        if not name.endswith("/cluster.json"):
            del it.bucket.objects[name]  # what was exported is read back as well
    before = sum(it.archive(index).ground.means.traffic.requests.get(("get", "ok"), 0) for index in (1, 2, 3))
    counts, problems = await verify(it)
    assert problems == [] and counts["chunks_verified"] == len(paths) and counts["objects"] == len(packs)
    after = sum(it.archive(index).ground.means.traffic.requests.get(("get", "ok"), 0) for index in (1, 2, 3))
    assert after - before == len(packs)
    await it.follow()
    for index in (1, 2, 3):
        assert all([(await row_of(it, index, path)).verified for path in paths])


async def test_what_was_read_back_lately_is_left_alone_if_wanted(it: World) -> None:
    paths = await archived(it)
    await verify(it)
    counts, _ = await verify(it, options={"newer_than": "1h"})
    assert "objects" not in counts
    counts, _ = await verify(it, options={SCHEDULED: "always"})
    assert "objects" not in counts
    counts, _ = await verify(it)
    assert counts["chunks_verified"] == len(paths)
    it.cluster.clock.ahead_s += 8 * DAY_S
    counts, _ = await verify(it, options={"newer_than": "9d"})
    assert "objects" not in counts
    counts, _ = await verify(it, options={"newer_than": "7d"}, dry_run=True)
    assert counts["would_verify"] and "objects" not in counts
    counts, _ = await verify(it, options={"newer_than": "7d"})
    assert counts["chunks_verified"] == len(paths)


async def test_what_was_never_read_back_comes_first(it: World) -> None:
    await archived(it)
    await verify(it)
    it.cluster.clock.ahead_s += 40 * DAY_S
    old = set(it.bucket.names("packs/"))
    await put(it[1], "p/new", content(5000, 99))
    await it.cluster.settle()
    await it.run()
    await it.follow()
    (new,) = set(it.bucket.names("packs/")) - old
    leader = next(index for index in (1, 2, 3) if it.archive(index).ground.looks_after(it.cluster.slot("p/new")))
    seen: list[str] = []
    target = it.archive(leader).ground.target
    real = type(target).read

    def reading(self: object, name: str, *more: object, **other: object) -> object:
        seen.append(name)
        return real(self, name, *more, **other)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(target), "read", reading)
        await verify(it, leader)
    assert seen[0] == new and len(seen) > 1


async def test_a_prefix_limits_it(it: World) -> None:
    await archived(it)
    counts, _ = await verify(it, prefix="p/3")
    assert counts["chunks_verified"] == 1


async def test_damage_is_told_everywhere_named_and_sent_anew(it: World) -> None:
    paths = await archived(it)
    broken = await row_of(it, 1, paths[2])
    it.bucket.damage(broken.target_path, broken.end - 1)
    counts, problems = await verify(it)
    assert counts["chunks_damaged"] == 1 and counts["chunks_verified"] == len(paths) - 1
    assert "chunks_missing" not in counts
    (problem,) = problems
    assert "1 chunk damaged (" in problem and "missing" not in problem
    assert broken.target_path in problem and f"{paths[2]} version 1" in problem and "are sent anew" in problem
    await it.follow()
    assert (await row_of(it, 3, paths[2])).state == DAMAGED
    await it.run()
    await it.follow()
    for index in (1, 2, 3):
        row = await row_of(it, index, paths[2])
        assert row.state >= 0 and row.target_path != broken.target_path


async def test_an_object_that_is_gone_is_told_if_others_are_there(it: World) -> None:
    paths = await archived(it)
    packs = it.bucket.names("packs/")
    assert len(packs) > 1
    gone = [path for path in paths if (await row_of(it, 1, path)).target_path == packs[0]]
    del it.bucket.objects[packs[0]]
    counts, problems = await verify(it)
    assert counts["chunks_missing"] == len(gone) and "chunks_damaged" not in counts, "they are gone, not damaged"
    assert len(problems) == 1 and packs[0] in problems[0] and "missing (" in problems[0]
    await it.follow()
    assert all([(await row_of(it, 2, path)).state == DAMAGED for path in gone])


async def test_what_no_disk_has_is_told_as_lost_also_after_a_read_has_found_the_damage(tmp_path: Path) -> None:
    async with world(tmp_path, EVICT) as it:
        paths = await archived(it)
        await it.evict()
        gone = await row_of(it, 1, paths[2])
        it.bucket.damage(gone.target_path, gone.end - 1)
        for index in (1, 2, 3):
            with pytest.raises(AmberError):
                await read(it, index, paths[2])
        for _ in range(2):  # the second finds rows that say "damaged"
            _, problems = await verify(it)
            await it.follow()
            (problem,) = problems
            assert paths[2] in problem and "they are lost" in problem and "sent anew" not in problem


async def test_an_archive_that_is_away_is_waited_for(it: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.archive.reach.RETRY_FIRST_S", 0.01)
    paths = await archived(it)
    it.bucket.fault("unavailable", "get")
    request = it.request("verify")
    running = asyncio.create_task(it.run(request=request))
    jobs = [parts.runner for parts in it.archives()]
    await until(lambda: any("waiting" in job.detail for it in jobs if (job := it.status(request.job)) is not None))
    assert all([(await row_of(it, 1, path)).state == 0 for path in paths])
    it.bucket.heal()
    statuses = (await running).values()
    assert {(status.state, *status.problems) for status in statuses} == {("done",)}
    assert sum(status.counts.get("chunks_verified", 0) for status in statuses) == len(paths)


async def test_what_cannot_be_reached_for_long_is_not_judged(it: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.archive.patience.PATIENCE_S", 0.0)
    paths = await archived(it)
    it.bucket.fault("unavailable", "get")
    statuses = (await it.run(request=it.request("verify"))).values()
    failed = [status for status in statuses if status.state == "failed"]
    assert failed and not any({"chunks_damaged", "chunks_missing"} & status.counts.keys() for status in statuses)
    assert all([(await row_of(it, 1, path)).state == 0 for path in paths])


async def test_of_one_object_that_cannot_be_looked_at_there_is_no_verdict(it: World) -> None:
    paths = await archived(it)
    it.bucket.fault("unavailable", "get", "packs/*")
    counts, problems = await verify(it)
    assert not {"chunks_damaged", "chunks_missing"} & counts.keys() and any(
        "no verdict" in problem for problem in problems
    )
    assert all([(await row_of(it, 1, path)).state == 0 for path in paths])


async def test_copies_that_lived_by_it_want_their_bytes_again(tmp_path: Path) -> None:
    async with world(tmp_path, EVICT) as it:
        paths = await archived(it)
        await it.evict(1, 2)
        # The third node evicted only what it looks after itself.
        path = next(path for path in paths if not it.archive(3).ground.looks_after(it.cluster.slot(path)))
        slot, number = it.cluster.slot(path), paths.index(path)
        broken = await row_of(it, 1, path)
        assert await it[1].store.is_evicted(slot, (await it[1].store.rows(slot, path))[0].version.blob_id)
        it.bucket.damage(broken.target_path, broken.end - 1)
        _, problems = await verify(it)
        assert len(problems) == 1 and path in problems[0] and "sent anew" in problems[0]
        await it.follow()
        blob_id = (await it[1].store.rows(slot, path))[0].version.blob_id
        for index in (1, 2, 3):
            assert not await it[index].store.is_evicted(slot, blob_id)
        assert [wanted.path for wanted in await it[1].store.wanted(slot, 10)] == [path]
        await it[1].pull()
        await it[2].pull()
        for index in (1, 2, 3):
            assert await read(it, index, path) == content(5000, number)


async def test_an_object_that_is_put_back_counts_again(tmp_path: Path) -> None:
    async with world(tmp_path, EVICT) as it:
        paths = await archived(it)
        await it.evict()
        path, slot = paths[0], it.cluster.slot(paths[0])
        broken = await row_of(it, 1, path)
        kept = it.bucket.objects[broken.target_path].content
        it.bucket.damage(broken.target_path, broken.end - 1)
        await verify(it)
        await it.follow()
        assert (await row_of(it, 2, path)).state == DAMAGED
        it.bucket.store(broken.target_path, kept)
        counts, problems = await verify(it)
        assert problems == [] and counts["chunks_verified"] == len(paths)
        await it.follow()
        for index in (1, 2, 3):
            row = await row_of(it, index, path)
            assert row.verified and row.location == broken.location
        await it.run()
        await it.evict()
        blob_id = (await it[1].store.rows(slot, path))[0].version.blob_id
        for index in (1, 2, 3):
            await it[index].pull()
            assert await it[index].store.blob_state(slot, blob_id) is BlobState.DURABLE
            assert await read(it, index, path) == content(5000, 0)


async def test_what_is_lost_is_said_to_be(tmp_path: Path) -> None:
    async with world(tmp_path, EVICT) as it:
        paths = await archived(it)
        await it.evict()
        broken = await row_of(it, 1, paths[0])
        it.bucket.damage(broken.target_path, broken.end - 1)
        _, (problem,) = await verify(it)
        assert "No disk that could be asked has the bytes" in problem and paths[0] in problem


async def test_imported_content_is_not_judged(it: World) -> None:
    paths = await archived(it, 1)
    slot = it.cluster.slot(paths[0])
    row = await row_of(it, 1, paths[0])
    blob_id = (await it[1].store.rows(slot, paths[0]))[0].version.blob_id
    url = "s3://elsewhere/key"
    foreign = replace(row, chunk_id=import_id(url, "e", row.start, row.end), head="", etag="e", target_path=url)
    for index in (1, 2, 3):
        it.archive(index).ground.facts.take(slot, blob_id, (foreign,), at_ms=1)
    counts, problems = await verify(it)
    assert problems == [] and counts["objects"] == 1, "the archive's own"
    told = await it[1].store.archived(slot, blob_id)
    assert told is not None and foreign in told.chunks


async def test_an_option_that_cannot_be_fails_the_job(it: World) -> None:
    status = (await it.run(1, request=it.request("verify", options={"newer_than": "soon"})))[1]
    assert status.state == "failed" and "30d" in status.detail
