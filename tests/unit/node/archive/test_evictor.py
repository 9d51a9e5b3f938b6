"""What is let go, in which order, how much of it, and when not."""

from __future__ import annotations

import itertools
from pathlib import Path

from amberblob.config import ArchiveRule
from amberblob.config.values import Duration
from amberblob.errors import ArchiveUnavailable
from archive.policy import Disk
from node.archive.evictor import AGAIN_AFTER_S, LOOK_EVERY_S
from tests.unit.node.archive.archive_kit import EVICT, World, world
from tests.unit.node.objects.kit import STAGED, content, put

WHEN_FULL = ArchiveRule(action="archive-and-evict", evict_above=80.0, evict_to=70.0)


async def filled(it: World, count: int = 10) -> None:
    for index in range(count):
        await put(it[1], f"p/{index}", content(STAGED, index))
    await it.cluster.settle()


async def test_nothing_goes_while_the_disk_has_room_and_then_just_enough(tmp_path: Path) -> None:
    async with world(tmp_path, WHEN_FULL, count=1, replicas=1) as it:
        await filled(it)
        total = 100 * STAGED
        it.disks.of["n1"] = Disk(used=75 * STAGED, total=total)
        await it.run()
        await it.evict()
        assert it.evicted(1) == 0
        it.disks.of["n1"] = Disk(used=81 * STAGED, total=total)
        await it.evict()
        assert it.evicted(1) == 10, "down to 70 % takes eleven, and there are ten"


async def test_it_stops_as_soon_as_the_disk_is_empty_enough(tmp_path: Path) -> None:
    rule = ArchiveRule(action="archive-and-evict", evict_above=80.0, evict_to=77.0)
    async with world(tmp_path, rule, count=1, replicas=1) as it:
        await filled(it)
        await it.run()
        it.disks.of["n1"] = Disk(used=81 * STAGED, total=100 * STAGED)
        await it.evict()
        assert it.evicted(1) == 4
        assert it.archive(1).evictor.counts.bytes == 4 * STAGED


async def test_the_coldest_and_the_old_go_first(tmp_path: Path) -> None:
    rule = ArchiveRule(action="archive-and-evict", evict_above=50.0, evict_to=49.6)
    async with world(tmp_path, rule, count=1, replicas=1) as it:
        old = await put(it[1], "p/old", content(STAGED, 1))
        now = await put(it[1], "p/old", content(STAGED, 2))
        await it.cluster.settle()
        await it.run()
        it.disks.of["n1"] = Disk(used=51 * STAGED, total=101 * STAGED)
        await it.evict()
        slot, store = it.cluster.slot("p/old"), it[1].store
        assert await store.is_evicted(slot, old.version.blob_id)
        assert not await store.is_evicted(slot, now.version.blob_id)


async def test_nothing_is_evicted_while_the_archive_is_not_reached(tmp_path: Path) -> None:
    async with world(tmp_path, EVICT) as it:
        await filled(it, 3)
        await it.run(1)
        await it.follow()
        it.archive(2).reach.failed(ArchiveUnavailable("away"))
        await it.evict(2)
        assert it.evicted(2) == 0
        await it.archive(2).reach.step()
        await it.evict(2)
        assert it.evicted(2) > 0


async def test_rows_that_came_are_evicted_by_soon_without_going_through_everything(tmp_path: Path) -> None:
    async with world(tmp_path, EVICT) as it:
        path = it.cluster.path(1)
        await put(it[1], path, content(STAGED))
        await it.cluster.settle()
        await it.evict(2)
        await it.run(1)
        evictor = it.archive(2).evictor
        assert (await evictor.step()).value == "nothing" and evictor.pause_s == LOOK_EVERY_S
        await it.follow(2)
        while (await evictor.step()).value == "work":
            pass
        assert it.evicted(2) == 1


async def test_what_stayed_although_it_was_due_is_tried_again_soon_and_then_less_often(tmp_path: Path) -> None:
    """Its bytes had not all come when its rows did; nothing is told of when they have."""
    async with world(tmp_path, EVICT) as it:
        path = it.cluster.path(1)
        await put(it[1], path, content(STAGED))
        await it.cluster.settle()
        await it.evict(2)
        await it.run(1)
        evictor, store = it.archive(2).evictor, it[2].store
        let_go, tries = store.evict, []

        async def evict(*asked: object) -> int | None:
            tries.append(it.cluster.clock.monotonic_s())
            return await let_go(*asked) if len(tries) > 2 else None

        store.evict = evict
        await it.follow(2)
        for _ in range(40):
            while (await evictor.step()).value == "work":
                pass
            it.cluster.clock.ahead_s += LOOK_EVERY_S
        assert it.evicted(2) == 1 and len(tries) == 3
        assert [round((b - a) / AGAIN_AFTER_S) for a, b in itertools.pairwise(tries)] == [1, 2]


async def test_what_is_not_verified_stays(tmp_path: Path) -> None:
    async with world(tmp_path, EVICT, count=1, replicas=1) as it:
        await filled(it, 2)
        it.bucket.fault("unavailable", "get", "packs/*")
        status = (await it.run())[1]
        assert status.failures == 4, "what could not be looked at is told"
        await it.evict()
        assert it.evicted(1) == 0
        it.bucket.heal()
        assert (await it.run())[1].counts["chunks_verified"] == 4
        assert it.evicted(1) == 2, "what was sent before is read back by the next run"
        assert len(it.bucket.names("packs/")) == 1


async def test_what_was_read_before_a_restart_is_known_before_anything_goes(tmp_path: Path) -> None:
    rule = ArchiveRule(action="archive-and-evict", not_read_for=Duration(3600))
    async with world(tmp_path, rule, count=1, replicas=1) as it:
        view = await put(it[1], "p", content(STAGED))
        other = await put(it[1], "q", content(STAGED, 1))
        await it.cluster.settle()
        it.cluster.clock.ahead_s += 4000
        parts = it.archive(1)
        await parts.warmth.step()
        parts.heat.read(view.version.blob_id)
        await parts.warmth.save()
        again = it.cluster.start("n1").parts.archive
        assert again is not None
        await again.keeper.step()
        await it.run()
        assert not await it[1].store.is_evicted(it.cluster.slot("p"), view.version.blob_id)
        assert await it[1].store.is_evicted(it.cluster.slot("q"), other.version.blob_id)
