"""Exports: small changes cost little, whoever takes a slot over loses nothing, and whatever goes wrong leaves what was there."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from amberblob.clock import SeededRandomness
from amberblob.errors import ArchiveUnavailable
from amberblob.ids import ulid_time_ms
from archive.export import Exports, check_exports
from archive.lost import LostCluster
from archive.segments import SlotHead, segment_name, ulid_in
from node.archive import export as exporting
from node.archive.afterwards import ThenCheck
from node.archive.jobs import JobRequest, Progress
from node.archive.reach import Reach
from node.protocol.operations import Expire
from node.stubs import collect
from tests.unit.node.archive.disaster_kit import (
    FIRST,
    SECOND,
    Exporters,
    Picture,
    Store,
    archive,
    ground,
    picture,
    progress,
    recover,
    world,
)
from tests.unit.node.archive.test_recover import live_through
from tests.unit.node.objects import kit
from tests.unit.node.objects.kit import Cluster


async def told(store: Store) -> tuple[Picture, list[str]]:
    """What the bucket tells, and what is wrong with it."""
    problems: list[str] = []
    lost = LostCluster(store.target(), FIRST, problems.append)
    await lost.open()
    found: Picture = {}
    for slot in range(lost.slot_count):
        for item in (await lost.slot(slot)).items.values():
            found[item.path] = (item.record, item.rows, frozenset(mark.write_id for mark in item.writes))
    return found, problems


async def rows_told(store: Store) -> set[tuple[str, str, int]]:
    """The archive rows that the bucket tells: blob, chunk, state."""
    lost = LostCluster(store.target(), FIRST, lambda text: None)
    await lost.open()
    return {
        (blob_id, chunk.chunk_id, chunk.state)
        for slot in range(lost.slot_count)
        for blob_id, chunks in (await lost.slot(slot)).archived.items()
        for chunk in chunks.values()
    }


async def rows_held(cluster: Cluster) -> set[tuple[str, str, int]]:
    disk = cluster.stores["n1"]
    return {
        (line.blob_id, line.chunk.chunk_id, line.chunk.state)
        for slot in disk.slots()
        for line in (await disk.archived_after(slot, 0, 100_000))[0]
    }


@pytest.mark.parametrize("seed", range(4))
async def test_changes_tell_what_a_base_would_whoever_exports(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(exporting, "CHANGES_MAX", chance.choice((2, 3, 16)))
    monkeypatch.setattr(exporting, "BASE_BYTES_MIN", chance.choice((1, 3000, 64 * 1024)))
    monkeypatch.setattr(exporting, "HEADS_MAX", chance.choice((2, 24)))
    monkeypatch.setattr(exporting, "CHECKPOINT_BYTES", chance.choice((1, 1 << 30)))
    store = Store.new()
    async with world(store, tmp_path) as cluster:
        exporters = Exporters(cluster)
        for turn in range(8):
            if turn == 3:
                cluster.net.down.add("n1")  # the others take its slots over
            elif turn == 5:
                cluster.net.heal()
                await cluster.resolve()
                for node in cluster:  # what n1 missed comes to it, as anti-entropy brings it
                    node.parts.repairer.heal_now()
                await catch_up(cluster)
            if not cluster.net.down:
                await live_through(cluster, seed * 100 + turn, steps=12)
            else:
                await kit.put(cluster[2], f"d0/meanwhile{turn}", b"x")
            await archive(cluster, lambda path, version: chance.random() < 0.5)
            if chance.random() < 0.5:
                exporters.restart("n2")
            for name in ("n1", "n2", "n3"):
                if name not in cluster.net.down:
                    await exporters.run(name)
            if not cluster.net.down:
                assert await told(store) == (await picture(cluster), [])
                assert await rows_held(cluster) <= await rows_told(store)


async def catch_up(cluster: Cluster) -> None:
    """Every copy hears of what the others have."""
    for _ in range(200):
        for node in cluster:
            await node.parts.repairer.step()
        await cluster.settle()
        roots = [
            [disk.tally(slot).root for slot in range(cluster.table.slot_count if cluster.table else 0)]
            for disk in cluster.stores.values()
        ]
        if roots.count(roots[0]) == 3:
            return
    raise AssertionError("the copies do not become alike")


async def test_a_change_costs_a_segment_and_a_head_however_many_slots_it_is_in(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path, slots=64) as cluster:
        for number in range(100):
            await kit.put(cluster[1], f"p{number}", b"x")
        await cluster.settle()
        exporters = Exporters(cluster)
        await exporters.run()
        for number in range(100):
            await kit.put(cluster[1], f"p{number}", b"y")
        await cluster.settle()
        names = set(store.bucket.names())
        counts = await exporters.run()
        new = sorted(set(store.bucket.names()) - names)
        assert len(new) == 6, "a segment and a head for each of three nodes"
        assert sum(one.status.counts["exported_slots"] for one in counts.values()) >= 40
        assert not any(one.status.counts.get("exported_bases") for one in counts.values())
        # With nothing new there is a head that says so, and no segment.
        names = set(store.bucket.names())
        await exporters.run()
        assert all("/heads/" in name for name in set(store.bucket.names()) - names)


async def test_undecided_registers_are_finished_and_told(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path, slots=1) as cluster:
        await kit.put(cluster[1], "p", b"1")
        await cluster.settle()
        # Accepted everywhere, and nobody learns it.
        rule = cluster.net.fault("Learn", "drop")
        await kit.put(cluster[1], "p", b"2")
        await cluster.settle()
        assert rule.hits and not cluster[1].register("p").chosen
        cluster.net.heal()
        assert cluster.stores["n1"].slots()
        exporters = Exporters(cluster)
        await exporters.run()
        record = (await told(store))[0]["p"][0]
        assert record is not None and record.version_max == 2


async def test_a_slot_that_cannot_be_told_as_a_whole_is_left_as_it_was(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path, slots=1) as cluster:
        await kit.put(cluster[1], "a", b"1")
        await cluster.settle()
        exporters = Exporters(cluster)
        await exporters.run()
        before = await told(store)
        cluster.net.fault("Learn", "drop")
        await kit.put(cluster[1], "b", b"2")
        await cluster.settle()
        cluster.net.down.update(("n2", "n3"))
        exporters.restart("n1")
        # A base is asked for, as if the log did not reach back.
        cluster.stores["n1"]._slots[0].log_cut += 100
        found = await exporters.run("n1")
        assert found["n1"].status.failures == 1 and "slot 0 is not exported" in found["n1"].status.problems[0]
        assert not found["n1"].status.done_slots
        assert await told(store) == before


async def test_what_was_forgotten_is_gone_from_the_next_base_and_a_path_made_anew_is_the_new_one(
    tmp_path: Path,
) -> None:
    store = Store.new()
    async with world(store, tmp_path, slots=1) as cluster:
        for path in ("p", "q"):
            await kit.put(cluster[1], path, b"1")
            await kit.delete(cluster[1], path)
            await cluster[1].coordinator.write(cluster[1].routing.of(path), path, Expire(versions=((1, 1),)))
        await cluster.settle()
        exporters = Exporters(cluster)
        await exporters.run()
        assert sorted((await told(store))[0]) == ["p", "q"]
        for path in ("p", "q"):
            assert await collect(cluster[1].coordinator, cluster[1].routing.of(path), path)
        await kit.put(cluster[1], "p", b"2")
        await cluster.settle()
        await exporters.run()
        assert (await told(store))[0]["p"] == (await picture(cluster))["p"]
        for number in range(200):
            await kit.put(
                cluster[1], f"filler{number}", b"x", meta={"noise": SeededRandomness(number).token(700).hex()}
            )
        await cluster.settle()
        for _ in range(2):
            await exporters.run()
            await kit.put(cluster[1], "filler0", b"y")
            await cluster.settle()
        await exporters.run()
        assert await told(store) == (await picture(cluster), [])


async def test_an_export_that_breaks_off_anywhere_leaves_what_was_there_and_the_next_one_goes_on(
    tmp_path: Path,
) -> None:
    store = Store.new()
    async with world(store, tmp_path, slots=4) as cluster:
        exporters = Exporters(cluster)
        for number in range(6):
            await kit.put(cluster[1], f"p{number}", b"0")
        await cluster.settle()
        await exporters.run()
        done = False
        skip = 0
        while not done:
            before = (await told(store))[0]
            for number in range(3):
                await kit.put(cluster[1], f"p{number}", b"%d" % skip)
            await cluster.settle()
            now = await picture(cluster)
            store.bucket.fault("lost" if skip % 2 else "unavailable", "*", skip=skip, times=1)
            broke = False
            for name in ("n1", "n2", "n3"):
                try:
                    await exporters.run(name)
                except ArchiveUnavailable:
                    broke = True
                    exporters.restart(name)
            store.bucket.heal()
            found, problems = await told(store)
            assert problems == []
            # Each slot is as it was, or as it is.
            for path, state in found.items():
                assert state in (before[path], now[path])
            await exporters.run()
            assert (await told(store))[0] == now
            done = not broke
            skip += 1
        assert skip > 8


async def test_damage_is_told_by_name_and_an_older_export_is_used(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path, slots=1) as cluster:
        exporters = Exporters(cluster)
        await kit.put(cluster[1], "p", b"1")
        await archive(cluster)
        await exporters.run()
        older = set(store.bucket.names("meta/"))
        await kit.put(cluster[1], "p", b"2")
        await cluster.settle()
        await archive(cluster)
        await exporters.run()
        newer = [name for name in store.bucket.names("meta/") if name not in older]
    segment = next(name for name in newer if "/segments/" in name)
    whole = store.bucket.objects[segment].content
    store.bucket.damage(segment, len(whole) - 3)
    async with world(store, tmp_path / "b", cluster_id=SECOND) as second:
        problems = (await recover(second)).status.problems
        assert any(segment in text and "older export" in text for text in problems)
        assert await kit.get(second[1], "p") == b"1"
    del store.bucket.objects[segment]
    problems = (await told(store))[1]
    assert any(segment in text for text in problems)
    store.bucket.store(segment, whole)
    head = next(name for name in newer if "/heads/" in name)
    store.bucket.damage(head, 100)
    found, problems = await told(store)
    assert any(head in text for text in problems)
    record = found["p"][0]
    assert record is not None and record.version_max == 1
    del store.bucket.objects[f"meta/{FIRST}/cluster.json"]
    assert any("cluster.json" in text for text in (await told(store))[1])


async def _nothing(request: JobRequest, progress: Progress) -> None:
    """A job that has nothing to do."""


async def test_metadata_that_somebody_removed_is_told_anew_and_what_is_damaged_when_it_is_asked_for(
    tmp_path: Path,
) -> None:
    store = Store.new()
    async with world(store, tmp_path, slots=1) as cluster:
        exporters = Exporters(cluster)
        await kit.put(cluster[1], "p", b"1")
        await cluster.settle()
        await exporters.run()
        (segment,) = store.bucket.names(f"meta/{FIRST}/segments")
        del store.bucket.objects[segment]
        await exporters.run()
        assert await told(store) == (await picture(cluster), [])
        (segment,) = store.bucket.names(f"meta/{FIRST}/segments")
        store.bucket.damage(segment, 200)
        problems: list[str] = []
        assert await check_exports(store.target(), FIRST, [0], problems.append) == {0}
        assert len(problems) == 1 and segment in problems[0]
        one = progress("export", options={"full": "yes"})
        await exporting.ExportWork(ground(cluster[1]))(one.status.request, one)
        assert await check_exports(store.target(), FIRST, [0], problems.append) == set() and len(problems) == 1
        assert await told(store) == (await picture(cluster), [])
        # The job verify looks, too.
        store.bucket.damage(store.bucket.names(f"meta/{FIRST}/segments")[-1], 200)
        one = progress("verify")
        of_node = ground(cluster[1])
        reach = Reach(of_node.means.target, of_node.means.traffic, of_node.clock, now_ms=of_node.now_ms)
        await ThenCheck(_nothing, exporting.ExportWork(of_node), reach)(one.status.request, one)
        assert one.status.failures == 1 and "/segments/" in one.status.problems[0]
        assert await told(store) == (await picture(cluster), [])


async def test_a_copy_that_lost_its_memory_tells_a_base(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path, slots=1) as cluster:
        await kit.put(cluster[1], "p", b"1")
        await cluster.settle()
        work = exporting.ExportWork(ground(cluster[1]))
        heads = await _export(work, store)
        assert [head.base_ms == head.at_ms for head in heads] == [True]
        await kit.put(cluster[1], "p", b"2")
        await cluster.settle()
        heads = await _export(work, store)
        assert [head.base_ms == head.at_ms for head in heads] == [False, True]
        # Another disk with the same log, and one whose log has fewer lines than were told.
        before = cluster.stores["n1"].tally(0).log_head
        cluster.stores["n1"]._slots[0].log_cut -= before
        heads = await _export(work, store)
        assert heads[0].base_ms == heads[0].at_ms


async def _export(work: exporting.ExportWork, store: Store) -> list[SlotHead]:
    one = progress("export")
    await work(one.status.request, one)
    return (await Exports(store.target(), FIRST).load()).by_slot()[0]


async def test_a_dry_run_stores_nothing(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path, slots=1) as cluster:
        await kit.put(cluster[1], "p", b"1")
        await cluster.settle()
        one = progress("export", dry_run=True)
        await exporting.ExportWork(ground(cluster[1]))(one.status.request, one)
        assert store.bucket.names() == [] and one.status.counts["exported_bytes"] > 0


async def test_of_what_nobody_needs_any_more_nothing_stays(tmp_path: Path) -> None:
    store = Store.new()
    async with world(store, tmp_path, slots=4) as cluster:
        exporters = Exporters(cluster)
        for day in range(4):
            await kit.put(cluster[1], f"p{day}", b"1")
            await cluster.settle()
            await exporters.run()
            cluster.clock.ahead_s += 86_400
        await exporters.run()
        assert await told(store) == (await picture(cluster), [])
        known = await Exports(store.target(), FIRST).load()
        named = {
            segment_name(FIRST, ref.segment)
            for heads in known.by_slot().values()
            for head in heads
            for ref in head.refs()
        }
        now_ms = cluster.clock.wall_ms()
        for name in store.bucket.names(f"meta/{FIRST}/segments"):
            ulid = ulid_in(name)
            assert ulid is not None
            assert name in named or ulid_time_ms(ulid) > now_ms - 2 * 86_400_000
