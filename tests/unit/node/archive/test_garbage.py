"""The job ``gc`` on a cluster: what is deleted, what is not, and what is written anew."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from amberblob.errors import RegistryUnavailable
from archive.segments import cluster_name
from archive.targets.small import store
from node.archive.exported import ExportedObjects
from node.protocol.operations import Expire
from tests.unit.node.archive.archive_kit import EVICT, World, world
from tests.unit.node.archive.test_run import read
from tests.unit.node.objects.kit import content, put

DAY_S = 86_400


async def expire(it: World, path: str, *versions: tuple[int, int]) -> None:
    """The rows of these versions go, everywhere."""
    node = it[1]
    await node.coordinator.write(node.routing.of(path), path, Expire(versions=versions))
    await it.cluster.settle()


async def archived_twice(it: World, path: str = "") -> tuple[str, list[str]]:
    """A path whose first version was archived and has expired, while its second one is in a pack of its own: the path, and both packs."""
    path = path or it.cluster.path(1)
    await put(it[1], path, content(5000, 1))
    await it.cluster.settle()
    await it.run()
    first = it.bucket.names("packs/")
    await put(it[1], path, content(5000, 2))
    await it.cluster.settle()
    await it.run()
    await it.follow()
    packs = it.bucket.names("packs/")
    await expire(it, path, (1, 1))
    return path, first + [name for name in packs if name not in first]


def later(it: World, seconds: float = 2 * DAY_S) -> None:
    it.cluster.clock.ahead_s += seconds


async def gc(it: World, *indexes: int, **more: object) -> dict[int, dict[str, int]]:
    """Run it on all nodes; what each counted. Problems fail the test unless they are expected."""
    expected = more.pop("problem", "")
    await it.run(request=it.request("export"))
    statuses = await it.run(*indexes, request=it.request("gc", **more))
    assert {status.state for status in statuses.values()} == {"done"}
    problems = [problem for status in statuses.values() for problem in status.problems]
    assert all(expected and str(expected) in problem for problem in problems) and bool(problems) == bool(expected), (
        problems
    )
    return {index: status.counts for index, status in statuses.items()}


@pytest.fixture
async def it(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as made:
        yield made


async def test_what_nobody_refers_to_is_deleted_and_the_rest_stays(it: World) -> None:
    path, (dead, alive) = await archived_twice(it)
    later(it)
    it.bucket.store("packs/a-note.txt", b"by the operator")
    counts = await gc(it)
    assert it.bucket.names("packs/") == ["packs/a-note.txt", alive] or it.bucket.names("packs/") == [
        alive,
        "packs/a-note.txt",
    ]
    assert counts[1]["deleted"] == 1 and counts[1]["foreign"] == 1 and "deleted" not in counts[2]
    assert counts[1]["deleted_bytes"] > 0
    assert all(it.archive(index).condemned.bars(dead) for index in (1, 2, 3))
    assert not any(it.archive(index).condemned.bars(alive) for index in (1, 2, 3))
    assert await read(it, 2, path) == content(5000, 2)
    assert "deleted" not in (await gc(it))[1] or (await gc(it))[1]["deleted"] == 0


async def test_rows_of_a_deleted_object_do_not_come_back(it: World) -> None:
    path, (dead, _) = await archived_twice(it)
    slot = it.cluster.slot(path)
    blob = (await it[1].store.rows(slot, path))[0].version.blob_id
    row = (await it[1].store.archived(slot, blob)).chunks[0]
    later(it)
    await gc(it)
    stale = replace(row, target_path=dead, archived_at_ms=row.archived_at_ms + 1)
    assert it.archive(2).ground.facts.take(slot, blob, (stale,), at_ms=1) == 0
    assert await it[2].store.archive_named(slot, [dead]) == set()


async def test_what_is_young_is_left_alone_by_either_clock(it: World) -> None:
    _, packs = await archived_twice(it)
    assert (await gc(it))[1]["young"] == 2
    it.bucket.objects[packs[0]].modified_ms -= 3 * DAY_S * 1000
    assert (await gc(it))[1]["young"] == 2, "its name says that it is young"
    it.bucket.objects[packs[0]].modified_ms += 3 * DAY_S * 1000
    later(it)
    it.bucket.objects[packs[0]].modified_ms += 3 * DAY_S * 1000  # as if the target's clock had been wrong
    counts = await gc(it)
    assert counts[1]["young"] == 1 and it.bucket.names("packs/") == packs


async def test_a_clock_that_is_ahead_deletes_nothing_sooner(it: World) -> None:
    """The node's clock alone makes every object look old; the target's own clock does not."""
    _, packs = await archived_twice(it)
    clock = it.archive(1).ground.clock
    real, later_ms = clock.wall_ms, 400 * DAY_S * 1000
    bucket_clock = it.bucket._clock

    class True_:
        def wall_ms(self) -> int:
            return real()

        def monotonic_s(self) -> float:
            return bucket_clock.monotonic_s()

    it.bucket._clock = True_()
    clock.wall_ms = lambda: real() + later_ms  # type: ignore[method-assign]
    try:
        assert (await gc(it))[1]["young"] == 2
    finally:
        del clock.wall_ms
    assert it.bucket.names("packs/") == packs


async def test_a_dry_run_tells_and_does_nothing(it: World) -> None:
    _, packs = await archived_twice(it)
    later(it)
    counts = await gc(it, dry_run=True)
    assert counts[1]["would_delete"] == 1 and it.bucket.names("packs/") == packs
    assert await it.archive(1).ground.means.state.marks() == []


async def test_a_node_that_is_away_saves_everything(it: World) -> None:
    _, packs = await archived_twice(it)
    later(it)
    it.cluster.net.down.add("n3")
    await gc(it, 1, problem="n3 did not tell")
    assert it.bucket.names("packs/") == packs
    it.cluster.net.heal()
    assert (await gc(it))[1]["deleted"] == 1


async def test_a_node_that_goes_away_between_the_questions_saves_everything(it: World) -> None:
    _, packs = await archived_twice(it)
    later(it)
    it.cluster.net.fault("CondemnObjects", "lose", to="n3", times=1)
    await gc(it, 1, problem="n3 gave no answer")
    assert it.bucket.names("packs/") == packs
    assert not any(it.archive(index).condemned.bars(packs[0]) for index in (1, 2, 3)), "all were reprieved"
    assert (await gc(it))[1]["deleted"] == 1


async def test_without_the_registry_nothing_is_deleted(it: World) -> None:
    _, packs = await archived_twice(it)
    later(it)

    async def down() -> set[str]:
        raise RegistryUnavailable("away")

    means = it.archive(1).ground.means
    object.__setattr__(means, "newest_nodes", down)
    await gc(it, problem="the registry did not tell")
    assert it.bucket.names("packs/") == packs


async def test_a_row_that_only_one_copy_has_keeps_the_object(it: World) -> None:
    path, (dead, _) = await archived_twice(it)
    slot = it.cluster.slot(path)
    blob = (await it[3].store.rows(slot, path))[0].version.blob_id
    row = (await it[3].store.archived(slot, blob)).chunks[0]
    kept = replace(row, target_path=dead, archived_at_ms=row.archived_at_ms + 1)
    it.archive(3).ground.facts.take(slot, blob, (kept,), at_ms=1)
    later(it)
    assert "deleted" not in (await gc(it))[1]
    assert dead in it.bucket.names("packs/")


async def test_another_cluster_in_the_same_target_is_not_robbed(it: World) -> None:
    _, packs = await archived_twice(it)
    later(it)
    await store(it.archive(1).ground.target, cluster_name("01BX5ZZKBKACTAV9WEVGEMMVRZ"), b"{}")
    await gc(it, problem="also used by 01BX5ZZKBKACTAV9WEVGEMMVRZ")
    assert it.bucket.names("packs/") == packs


async def test_what_the_export_needs_stays_until_the_next_export(it: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (dead, alive) = await archived_twice(it)
    later(it)
    needed = {dead}

    async def of_export(self: object) -> set[str]:
        return set(needed)

    monkeypatch.setattr("node.archive.exported.ExportedObjects._read", of_export)
    assert (await gc(it))[1]["kept_for_export"] == 1
    assert it.bucket.names("packs/") == [dead, alive]
    needed.clear()
    assert (await gc(it))[1]["deleted"] == 1


async def test_what_an_export_needs_is_what_a_recovery_would_read(it: World) -> None:
    _, packs = await archived_twice(it)
    ground = it.archive(1).ground

    async def needed() -> set[str]:
        cluster = ground.routing.table().cluster.cluster_id
        return await ExportedObjects(ground.target, cluster).needed(packs, lambda _: None)

    assert await needed() == set(packs), "when it was exported last both versions were there"
    await it.run(request=it.request("export"))
    assert await needed() == {packs[1]}
    assert await ExportedObjects(ground.target, "01BX5ZZKBKACTAV9WEVGEMMVRZ").needed(packs, lambda _: None) == set()


async def test_a_delete_that_fails_is_done_by_the_next_run(it: World) -> None:
    _, (dead, alive) = await archived_twice(it)
    later(it)
    fault = it.bucket.fault("unavailable", "delete", dead)
    await gc(it, problem="was not reached")
    assert fault.met and dead in it.bucket.names()
    it.bucket.heal()
    await gc(it)
    assert it.bucket.names("packs/") == [alive]


async def test_it_goes_on_where_it_was(it: World) -> None:
    _, (dead, alive) = await archived_twice(it)
    later(it)
    fault = it.bucket.fault("unavailable", "list", "chunks/", times=1)
    request = it.request("gc")
    status = (await it.run(1, request=request))[1]
    assert fault.met and status.state == "failed" and "not reached" in status.detail
    assert status.counts["deleted"] == 1 and status.notes["packs/"] == alive and dead not in it.bucket.names()


# ---- packs that are mostly dead


async def mostly_dead(it: World, count: int = 8) -> tuple[list[str], list[str]]:
    """Many small objects of one node in its packs, of which most have gone: the paths that are left, and the packs."""
    slot = it.cluster.slot(it.cluster.path(1))
    paths = [f"q/{number}" for number in range(400) if it.cluster.slot(f"q/{number}") == slot][:count]
    for number, path in enumerate(paths):
        await put(it[1], path, content(20_000, number))
    await it.cluster.settle()
    await it.run()
    await it.follow()
    await it.evict()
    packs = it.bucket.names("packs/")
    for number, path in enumerate(paths[1:], 1):
        await put(it[1], path, content(30, number))
        await it.cluster.settle()
        await expire(it, path, (1, 1))
    return paths, packs


@pytest.mark.parametrize("evicted", [False, True])
async def test_what_is_alive_of_a_pack_moves_and_the_pack_goes(tmp_path: Path, evicted: bool) -> None:
    async with world(tmp_path, *((EVICT,) if evicted else ())) as it:
        paths, packs = await mostly_dead(it)
        assert len(packs) == 1 and (it.evicted(1) > 0) == evicted
        later(it)
        counts = await gc(it)
        assert sum(one.get("rewritten_chunks", 0) for one in counts.values()) == 1
        assert packs[0] in it.bucket.names(), "the others have not heard of the new pack"
        await it.follow()
        assert await it[2].store.archive_named(it.cluster.slot(paths[0]), packs) == set()
        counts = await gc(it)
        assert counts[1]["deleted"] >= 1 and packs[0] not in it.bucket.names()
        for index in (1, 2, 3):
            assert await read(it, index, paths[0]) == content(20_000, 0)
        slot, path = it.cluster.slot(paths[0]), paths[0]
        blob = (await it[3].store.rows(slot, path))[0].version.blob_id
        known = await it[3].store.archived(slot, blob)
        assert known is not None and all(row.verified for row in known.chunks) and known.evicted == evicted


async def test_a_new_pack_that_is_damaged_takes_nobodys_place(tmp_path: Path) -> None:
    async with world(tmp_path, EVICT) as it:
        paths, packs = await mostly_dead(it)
        later(it)
        fault = it.bucket.fault("damage", "put", "packs/*", times=1)
        await gc(it, problem="not read back")
        assert fault.met == 1
        slot = it.cluster.slot(paths[0])
        for index in (1, 2, 3):
            assert await it[index].store.archive_named(slot, packs) == set(packs)
            assert await read(it, index, paths[0]) == content(20_000, 0)


async def test_a_pack_that_is_mostly_alive_stays(it: World) -> None:
    paths = [f"q/{number}" for number in range(6)]
    for number, path in enumerate(paths):
        await put(it[1], path, content(20_000, number))
    await it.cluster.settle()
    await it.run()
    await it.follow()
    packs = it.bucket.names("packs/")
    later(it)
    counts = await gc(it)
    assert not any(one.get("mostly_dead") for one in counts.values()) and it.bucket.names("packs/") == packs


async def test_what_is_damaged_is_not_deleted_before_its_content_is_archived_anew(it: World) -> None:
    """Somebody may put an older version of the object back."""
    path = it.cluster.path(1)
    await put(it[1], path, content(5000))
    await it.cluster.settle()
    await it.run()
    await it.follow()
    (pack,) = it.bucket.names("packs/")
    it.bucket.damage(pack, 100)
    await it.run(request=it.request("verify"))
    await it.follow()
    later(it)
    await gc(it)
    assert it.bucket.names("packs/") == [pack]
    await it.run()
    await it.follow()
    await gc(it)
    (anew,) = it.bucket.names("packs/")
    assert anew != pack and await read(it, 3, path) == content(5000)


@pytest.mark.parametrize("count", [1, 60])
async def test_a_pack_of_tiny_chunks_that_all_live_is_not_written_anew_for_ever(it: World, count: int) -> None:
    """Most of it is its index: by their frames alone they would be less than half of it."""
    for number in range(count):
        await put(it[1], f"q/{number}", content(24, number))
    await it.cluster.settle()
    await it.run()
    await it.follow()
    packs = it.bucket.names("packs/")
    later(it)
    counts = await gc(it)
    assert not any(one.get("mostly_dead") for one in counts.values()) and it.bucket.names("packs/") == packs
