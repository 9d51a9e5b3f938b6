"""A cluster is built again from its bucket alone: every archived object, version and tombstone is back and readable."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import msgspec
import pytest

from amberblob.archives import ArchivedChunk
from amberblob.config import ArchiveRule, ArchiveSection
from amberblob.errors import AmberError, ArchiveNotOurs, BadRequest, NotFound, QuorumUnavailable
from archive import lost as losing
from archive.clusters import unrecovered
from archive.export import Exports
from archive.packs import pack_name
from chunkstore import paging
from node.archive import patience, placing
from node.archive.export import ExportWork
from node.archive.jobs import JobStatus, Progress
from node.archive.placing import Placing
from node.archive.recover import RecoverWork
from node.protocol.operations import Expire
from tests.unit.node.archive.disaster_kit import (
    FIRST,
    SECOND,
    Choose,
    Exporters,
    Store,
    archive,
    contents,
    ground,
    picture,
    progress,
    recover,
    world,
)
from tests.unit.node.objects import kit
from tests.unit.node.objects.kit import Cluster, Node

SIZES = (0, 1, 50, 4000, kit.STAGED, 3 * kit.CHUNK + 7)


async def live_through(cluster: Cluster, seed: int, *, paths: int = 6, steps: int = 40) -> None:
    """A random history."""
    chance = random.Random(seed)
    names = [f"d{number % 3}/p{number}" for number in range(paths)]
    done = 0
    for step in range(steps):
        try:
            await _act(cluster[chance.randint(1, 3)], chance.choice(names), chance, f"{seed}-{step}")
            done += 1
        except AmberError as error:
            assert error.status in (404, 409), error
    assert done > steps // 4
    await cluster.settle()


async def _act(node: Node, path: str, chance: random.Random, tag: str) -> None:
    """One thing that a client or the retention does."""
    number = chance.randint(1, 6)
    match chance.choices(range(7), weights=(8, 4, 2, 2, 2, 2, 1))[0]:
        case 0:
            await kit.put(node, path, kit.content(chance.choice(SIZES), seed=number))
        case 1:
            await kit.put(node, path, tag.encode(), write_id=f"own-{tag}", meta={"tag": tag})
        case 2:
            await kit.delete(node, path)
        case 3:
            await kit.delete(node, path, version=number)
        case 4:
            await kit.restore(node, path)
        case 5:
            await kit.restore(node, path, version=number)
        case _:
            await node.coordinator.write(node.routing.of(path), path, Expire(versions=((1, number // 2),)))


def nothing_wanted(cluster: Cluster) -> bool:
    return not any(disk.tally(slot).wanted for disk in cluster.stores.values() for slot in disk.slots())


@pytest.mark.parametrize("seed", range(3))
async def test_everything_comes_back_as_it_was(seed: int, tmp_path: Path) -> None:
    await comes_back(seed, tmp_path)


async def test_everything_comes_back_on_real_disks(tmp_path: Path) -> None:
    await comes_back(100, tmp_path, disks=True)


async def comes_back(seed: int, tmp_path: Path, *, disks: bool = False) -> None:
    store = Store.new()
    async with world(store, tmp_path / "a", folder=tmp_path / "da" if disks else None) as first:
        await live_through(first, seed)
        await archive(first)
        await Exporters(first).run()
        before = await picture(first)
        bytes_before = await contents(first, before)
    slots, folder = (4, 1, 16)[seed % 3], tmp_path / "db" if disks else None
    async with world(store, tmp_path / "b", cluster_id=SECOND, slots=slots, folder=folder) as second:
        told = await recover(second)
        assert told.status.failures == 0, told.status.problems
        assert await picture(second) == before
        assert nothing_wanted(second) and (disks or not any(second.blobs().values()))
        assert await contents(second, before) == bytes_before
        again = await recover(second, 2)
        assert again.status.failures == 0 and again.status.counts == {"paths_present": len(before)}
        assert await picture(second) == before and nothing_wanted(second)


async def test_an_object_of_many_chunks_comes_back_with_its_manifest(tmp_path: Path) -> None:
    store, data = Store.new(), kit.content(66 * kit.CHUNK + 5)
    async with world(store, tmp_path / "a") as first:
        await kit.put(first[1], "large", data)
        await kit.put(first[1], "large", b"small")
        await kit.put(first[1], "other", data)
        await first.settle()
        await archive(first)
        await Exporters(first).run()
        before = await picture(first)
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        told = await recover(second)
        assert told.status.failures == 0, told.status.problems
        assert await picture(second) == before and nothing_wanted(second)
        assert await kit.get(second[3], "large", version=1) == data == await kit.get(second[2], "other")


async def test_versions_that_were_never_archived_are_let_go_of_and_listed(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path / "a") as first:
        for number in range(1, 5):
            await kit.put(first[1], "p", b"%d" % number)
        await kit.put(first[1], "new", b"new")
        await kit.put(first[1], "old", b"old")
        await first.settle()
        await archive(first, lambda path, version: path == "old" or (path == "p" and version.version in (1, 3)))
        await Exporters(first).run()
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        told = await recover(second)
        assert sorted(told.status.problems) == [
            "'new': the archive does not have the bytes of version 1",
            "'p': the archive does not have the bytes of version 4, 2",
        ]
        assert told.status.counts["lost_versions"] == 3 and told.status.counts["objects"] == 2
        assert await kit.get(second[1], "p") == b"3" and await kit.get(second[2], "p", version=1) == b"1"
        found = await picture(second)
        assert [row.version for row in found["p"][1]] == [3, 1]
        assert await kit.get(second[1], "old") == b"old"
        with pytest.raises(NotFound):
            await kit.get(second[1], "new")
        # What was there is not given again.
        assert (await kit.put(second[1], "new", b"x")).version.version == 2
        assert (await recover(second)).status.counts["paths_present"] == 3


def _only(wanted: str) -> Choose:
    return lambda path, version: path == wanted


@pytest.mark.parametrize("tell", [True, False])
async def test_what_nobody_has_verified_or_told_of_is_read_back_first(tell: bool, tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path / "a") as first:
        await kit.put(first[1], "p", b"one")
        await kit.put(first[1], "q", kit.content(2 * kit.CHUNK))
        await kit.put(first[1], "broken", kit.content(kit.CHUNK + 3))
        await first.settle()
        await Exporters(first).run()
        for path in ("p", "q"):
            await archive(first, _only(path), verified=False, tell=tell)
        packs = set(store.bucket.names("packs/"))
        await archive(first, _only("broken"), verified=False, tell=tell)
        if tell:
            await Exporters(first).run()
    (broken,) = set(store.bucket.names("packs/")) - packs
    store.bucket.damage(broken, 5000)
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        told = await recover(second)
        assert told.status.problems == ["'broken': the archive does not have the bytes of version 1"]
        assert await kit.get(second[1], "p") == b"one"
        assert await kit.get(second[1], "q") == kit.content(2 * kit.CHUNK)


async def test_writes_that_were_archived_first_come_back_without_any_export_since(tmp_path: Path) -> None:
    store = Store.new()
    section = ArchiveSection(target="file:///nowhere", rules=(ArchiveRule(action="write-through"),))
    async with world(store, tmp_path / "a", section=section) as first:
        await kit.put(first[1], "old", b"1", write_id="w-old")
        await kit.put(first[1], "gone", b"1")
        await kit.delete(first[1], "gone")
        await first.settle()
        await Exporters(first).run()
        await kit.put(first[2], "old", kit.content(kit.STAGED))
        await kit.put(first[3], "old", b"3")
        await kit.put(first[3], "new", kit.content(3 * kit.CHUNK), meta={"a": "b"}, write_id="w-new")
        await first.settle()
        before = await picture(first)
        bytes_before = await contents(first, before)
        missed = next(name for name in store.bucket.names(f"meta/{FIRST}/through"))
    async with world(store, tmp_path / "b", cluster_id=SECOND, slots=8) as second:
        told = await recover(second)
        assert told.status.failures == 0, told.status.problems
        assert await picture(second) == before and nothing_wanted(second)
        assert await contents(second, before) == bytes_before
    newest = store.bucket.names(f"meta/{FIRST}/through")[-1]
    assert newest != missed
    store.bucket.damage(newest, 300)
    async with world(store, tmp_path / "c", cluster_id="01BX5ZZKBKACTAV9WEVGEMMVS0") as third:
        told = await recover(third)
        assert told.status.failures and any(newest in text for text in told.status.problems)
        assert await kit.get(third[1], "old") == b"3"


async def test_what_the_exporting_copy_missed_comes_back_from_the_writes_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A voter that was away exports before it was mended: what it says of the time must not hide the writes that it lacks."""
    monkeypatch.setattr(losing, "LATE_MS", 0)
    store = Store.new()
    section = ArchiveSection(target="file:///nowhere", rules=(ArchiveRule(action="write-through"),))
    async with world(store, tmp_path / "a", section=section) as first:
        path = first.path(1)
        works = {node.name: ExportWork(ground(node)) for node in first}
        seen_ms = ground(first[1]).now_ms()
        for work in works.values():
            work.compared_ms = lambda slot: seen_ms
        await asyncio.sleep(0.002)
        first.net.down.add("n1")
        await kit.put(first[2], path, b"acknowledged")
        first.net.heal()
        for work in works.values():
            told = progress("export")
            await work(told.status.request, told)
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        await recover(second)
        assert await kit.get(second[1], path) == b"acknowledged"


async def test_a_later_export_that_knows_less_does_not_hide_an_older_one(tmp_path: Path) -> None:
    """The voter that was away is the first to export when it is back, before it was mended; then all is lost."""
    store = Store.new()
    async with world(store, tmp_path / "a") as first:
        path = first.path(1)
        works = {node.name: ExportWork(ground(node)) for node in first}
        seen_ms = ground(first[1]).now_ms()
        works["n1"].compared_ms = lambda slot: seen_ms
        works["n2"].compared_ms = lambda slot: ground(first[2]).now_ms()
        await asyncio.sleep(0.002)
        first.net.down.add("n1")
        await kit.put(first[2], path, b"acknowledged")
        await first.settle()
        await archive(first)
        for name, heads in (("n2", 1), ("n1", 2)):
            await asyncio.sleep(0.002)  # names made within one millisecond are in no order
            told = progress("export")
            await works[name](told.status.request, told)
            assert len(store.bucket.names(f"meta/{FIRST}/heads")) == heads
            first.net.heal()
        exports = Exports(store.target(), FIRST)
        assert not (await exports.load()).superseded()
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        await recover(second)
        assert await kit.get(second[1], path) == b"acknowledged"


async def test_a_path_that_holds_something_else_is_left_and_the_rest_comes(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path / "a") as first:
        for path in ("p", "q"):
            await kit.put(first[1], path, b"old")
        await first.settle()
        await archive(first)
        await Exporters(first).run()
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        await kit.put(second[1], "p", b"mine")
        told = await recover(second)
        assert told.status.failures == 1 and "recover into an empty cluster" in told.status.problems[0]
        assert await kit.get(second[1], "p") == b"mine" and await kit.get(second[1], "q") == b"old"
        assert await unrecovered(store.target(), SECOND) == [FIRST]


async def test_a_path_that_was_left_is_not_forgotten_when_the_job_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Its chunks are referred to by nobody here: were the lost cluster noted as recovered, gc would delete them."""
    store = Store.new()
    async with world(store, tmp_path / "a") as first:
        await kit.put(first[1], "p", b"old")
        await first.settle()
        await archive(first)
        await Exporters(first).run()
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        await kit.put(second[1], "p", b"mine")
        told = progress("recover")
        work = RecoverWork(ground(second[1]))
        await work(told.status.request, told)
        assert len(told.status.done_slots) == 4
        # The node ends before the job is through, and goes on with what was written down.
        again = Progress(msgspec.json.decode(msgspec.json.encode(told.status), type=JobStatus))
        await work(again.status.request, again)
        assert await unrecovered(store.target(), SECOND) == [FIRST]


async def test_a_cluster_whose_metadata_is_damaged_is_not_taken_for_recovered(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path / "a") as first:
        for number in range(8):
            await kit.put(first[1], f"p{number}", b"old")
        await first.settle()
        await archive(first)
        await Exporters(first).run()
    segments = store.bucket.names(f"meta/{FIRST}/segments/")
    store.bucket.damage(segments[0], len(store.bucket.objects[segments[0]].content) // 2)
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        told = await recover(second)
        assert told.status.problems
        assert await unrecovered(store.target(), SECOND) == [FIRST], (
            "what it needs cannot be told: nothing is to be deleted"
        )


async def test_the_manifest_of_a_version_that_was_archived_after_the_export_is_found(tmp_path: Path) -> None:
    store, data = Store.new(), kit.content(66 * kit.CHUNK + 5)
    async with world(store, tmp_path / "a") as first:
        await kit.put(first[1], "large", data)
        await first.settle()
        await Exporters(first).run()
        await archive(first)
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        told = await recover(second)
        assert told.status.problems == []
        assert await kit.get(second[3], "large") == data


async def test_what_was_written_on_after_it_was_recovered_stays(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path / "a") as first:
        for path in ("p", "q"):
            await kit.put(first[1], path, b"old")
        await first.settle()
        await archive(first)
        await Exporters(first).run()
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        await recover(second)
        assert await unrecovered(store.target(), SECOND) == []
        assert (await kit.put(second[1], "p", b"new")).version.version == 2
        await kit.delete(second[1], "q")
        told = await recover(second)
        assert told.status.failures == 0
        assert await kit.get(second[1], "p") == b"new" and await kit.get(second[1], "p", version=1) == b"old"
        with pytest.raises(NotFound):
            await kit.get(second[1], "q")


async def test_a_write_that_is_sent_again_after_the_disaster_is_not_done_twice(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path / "a") as first:
        for number in range(12):
            await kit.put(first[1], "p", b"%d" % number, write_id=f"w{number}")
        await first.settle()
        await archive(first)
        await Exporters(first).run()
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        await recover(second)
        for number in (11, 0):
            view = await kit.put(second[1], "p", b"%d" % number, write_id=f"w{number}")
            assert view.version.version == number + 1


async def test_which_cluster_is_said_if_the_bucket_has_several(tmp_path: Path) -> None:
    store = Store.new()
    third = "01BX5ZZKBKACTAV9WEVGEMMVS0"
    async with world(store, tmp_path / "c", cluster_id=third) as other:
        with pytest.raises(BadRequest, match="nothing was ever exported"):
            await recover(other)
        await kit.put(other[1], "theirs", b"t")
        await archive(other)
        await Exporters(other).run()
    async with world(store, tmp_path / "a") as first:
        await kit.put(first[1], "p", b"p")
        await first.settle()
        with pytest.raises(ArchiveNotOurs, match=f"the metadata of cluster {third}"):
            await archive(first)
        await ground(first[1]).identity.claim()
        await archive(first)
        await Exporters(first).run()
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        with pytest.raises(BadRequest, match=f"cluster={FIRST}, {third}"):
            await recover(second)
        with pytest.raises(BadRequest, match="no metadata of cluster"):
            await recover(second, options={"cluster": "01BX5ZZKBKACTAV9WEVGEMMVS1"})
        await recover(second, options={"cluster": FIRST})
        assert sorted(await picture(second)) == ["p"]
        with pytest.raises(BadRequest, match="has to be"):
            await recover(second, source="s3://elsewhere", options={"cluster": FIRST})


async def test_a_dry_run_tells_and_writes_nothing(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path / "a") as first:
        await live_through(first, 1)
        await archive(first)
        await Exporters(first).run()
        before = await picture(first)
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        names = store.bucket.names()
        told = await recover(second, dry_run=True)
        assert told.status.counts["paths"] == len(before) and told.status.failures == 0
        assert await picture(second) == {} and store.bucket.names() == names
        prefixed = await recover(second, prefix="d1/")
        assert sorted(await picture(second)) == [path for path in sorted(before) if path.startswith("d1/")]
        assert prefixed.status.counts["paths"] < len(before)
        assert await unrecovered(store.target(), SECOND) == [FIRST]


async def test_long_histories_come_back_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "HISTORY_PAGE_MAX", 3)
    monkeypatch.setattr(placing, "MESSAGE_BYTES", 1000)
    store = Store.new()
    async with world(store, tmp_path / "a") as first:
        for number in range(25):
            await kit.put(first[1], "p", b"%d" % number, write_id=f"w{number}")
        await kit.delete(first[1], "p", version=7)
        await first.settle()
        await archive(first)
        await Exporters(first).run()
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        told = await recover(second)
        assert told.status.failures == 0 and second.net.count("InstallRows", "n1") > 3
        for number in range(25):
            if number != 6:
                assert await kit.get(second[1 + number % 3], "p", version=number + 1) == b"%d" % number
        rows = await second.stores["n3"].rows(second.slot("p"), "p")
        assert [row.version.version for row in rows] == list(range(25, 0, -1))
        assert [row.version.version for row in rows if row.tombstoned_at_ms is not None] == [7]


async def test_a_bucket_that_fails_now_and_then_only_delays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever request it is that fails: the same job goes on, and nothing is lost, or told as a problem."""
    monkeypatch.setattr(patience, "PAUSE_FIRST_S", 0.001)
    store = Store.new()
    async with world(store, tmp_path / "a", slots=2) as first:
        for number in range(3):
            await kit.put(first[1], f"p{number}", b"%d" % number)
        await kit.put(first[1], "r", kit.content(66 * kit.CHUNK))
        await first.settle()
        await archive(first, verified=False)
        await Exporters(first).run()
        before = await picture(first)
    objects, skip, met = dict(store.bucket.objects), 0, True
    while met:
        store.bucket.objects = dict(objects)
        async with world(store, tmp_path / "b", cluster_id=SECOND, slots=2) as second:
            fault = store.bucket.fault("unavailable", "*", skip=skip, times=3)
            told = await recover(second)
            met = bool(fault.met)
            store.bucket.heal()
            assert told.status.failures == 0, (skip, told.status.problems)
            assert await picture(second) == before
            assert await unrecovered(store.target(), SECOND) == []
        skip += 3
    assert skip > 10


async def test_copies_that_are_away_for_some_seconds_only_delay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PAUSE_FIRST_S", 0.01)
    store = Store.new()
    async with world(store, tmp_path / "a", slots=2) as first:
        for number in range(6):
            await kit.put(first[1], f"p{number}", b"%d" % number)
        await first.settle()
        await archive(first)
        await Exporters(first).run()
        before = await picture(first)
    async with world(store, tmp_path / "b", cluster_id=SECOND, slots=2) as second:
        second.net.down.update(("n2", "n3"))
        second.give_up_after(0.1)
        told = progress("recover")
        job = asyncio.ensure_future(RecoverWork(ground(second[1]))(told.status.request, told))
        await kit.until(lambda: "waiting" in told.status.detail)
        assert "of at most 1800" in told.status.detail and "n2" in told.status.detail and not job.done()
        second.give_up_after(kit.PATIENCE_S)
        second.net.heal()
        await job
        assert told.status.failures == 0 and "waiting" not in told.status.detail
        await second.settle()
        assert await picture(second) == before
        assert told.status.counts["paths"] + told.status.counts.get("paths_present", 0) == len(before)


async def test_copies_that_stay_away_end_it_and_the_next_job_does_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "PATIENCE_S", 0.05)
    monkeypatch.setattr(patience, "PAUSE_FIRST_S", 0.01)
    store = Store.new()
    async with world(store, tmp_path / "a", slots=2) as first:
        for number in range(6):
            await kit.put(first[1], f"p{number}", b"%d" % number)
        await first.settle()
        await archive(first)
        await Exporters(first).run()
        before = await picture(first)
    async with world(store, tmp_path / "b", cluster_id=SECOND, slots=2) as second:
        second.net.down.update(("n2", "n3"))
        second.give_up_after(0.05)
        with pytest.raises(QuorumUnavailable):
            await recover(second)
        second.give_up_after(kit.PATIENCE_S)
        second.net.heal()
        assert await unrecovered(store.target(), SECOND) == [FIRST]
        assert (await recover(second)).status.failures == 0
        assert await picture(second) == before


async def test_chunks_that_no_row_tells_of_are_found_by_all_who_look_at_once(tmp_path: Path) -> None:
    """The first that looks reads all indexes; the others must not take what it has read by then for all there is."""
    store = Store.new()
    async with world(store, tmp_path / "a", slots=1) as first:
        for number in range(40):
            await kit.put(first[1], f"p{number}", b"%d" % number)
        await first.settle()
        await Exporters(first).run()
        await archive(first, tell=False)
        before = await picture(first)
    async with world(store, tmp_path / "b", cluster_id=SECOND, slots=1) as second:
        store.bucket.fault(None, "*", delay_s=0.001)
        told = await recover(second)
        assert told.status.failures == 0, told.status.problems
        assert sorted(await picture(second)) == sorted(before)


async def test_a_recovery_that_stops_anywhere_is_gone_on_with(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path / "a", slots=1) as first:
        for number in range(3):
            await kit.put(first[1], "p", b"%d" % number)
        await kit.put(first[1], "q", kit.content(kit.CHUNK + 1))
        await kit.delete(first[1], "q")
        await kit.put(first[1], "r", kit.content(66 * kit.CHUNK))
        await first.settle()
        await archive(first)
        await Exporters(first).run()
        before = await picture(first)
    stopped, cut = True, 0
    while stopped:
        async with world(store, tmp_path / "b", cluster_id=SECOND, slots=1) as second:
            seen = 0

            def stops(message: object, cut: int = cut) -> bool:
                nonlocal seen
                seen += 1
                return seen > cut

            # From some message on nothing gets through any more: as if the node that recovers was cut off, then ended.
            for kind in ("StageArchived", "Prepare", "Commit", "InstallRows"):
                second.net.fault(kind, "lose" if cut % 2 else "drop", source="n1", when=stops)
            task = asyncio.create_task(recover(second))
            while not task.done() and seen <= cut:
                await asyncio.sleep(0.001)
            stopped = not task.done()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            second.net.heal()
            await second.settle()
            told = await recover(second, 2)
            assert told.status.failures == 0, (cut, told.status.problems)
            await second.resolve()
            assert await picture(second) == before, cut
            assert nothing_wanted(second)
        cut += 5
    assert cut > 20


async def test_no_rows_are_sent_of_an_object_that_this_node_let_be_deleted(tmp_path: Path) -> None:
    """The others may have lost their marks since; nobody but the sender knows then that the object is gone."""
    store = Store.new()
    async with world(store, tmp_path / "a") as first:
        node = first[1]
        name = pack_name(node.coordinator.mint.mint())
        assert node.parts.archive is not None
        await node.parts.archive.condemned.condemn([name], "n2/token")
        gone = ArchivedChunk("1" * 64, 10, name, 16, 80, "2" * 64, 1, 1)
        electorate, blob_id = node.routing.of("p"), node.coordinator.mint.mint()
        with pytest.raises(QuorumUnavailable, match="being deleted"):
            await Placing(ground(node)).stage(electorate, blob_id, [gone])
        for disk in first.stores.values():
            assert await disk.archived(electorate.slot, blob_id) is None


async def test_what_was_staged_and_swept_before_the_job_went_on_comes_back_nevertheless(tmp_path: Path) -> None:
    """The job stood still for longer than rows wait for somebody to refer to their blob."""
    store = Store.new()
    async with world(store, tmp_path / "a", slots=1) as first:
        await kit.put(first[1], "p", b"one")
        await kit.put(first[1], "q", kit.content(kit.CHUNK + 1))
        await first.settle()
        await archive(first)
        await Exporters(first).run()
        before = await picture(first)
    async with world(store, tmp_path / "b", cluster_id=SECOND, slots=1) as second:
        second.net.fault("Prepare", "drop", source="n1")
        task = asyncio.create_task(recover(second))
        await kit.until(lambda: sum(node.store.tally(0).archive_staged for node in second) > 2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        swept = [await node.store.sweep_staged(2**60, 1000) for node in second]
        assert sum(swept) > 2, swept
        second.net.heal()
        told = await recover(second, 2)
        assert told.status.failures == 0, told.status.problems
        assert await picture(second) == before
