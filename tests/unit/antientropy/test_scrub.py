"""Scrub over a memory store: what it finds, what it does about it, and how fast."""

from __future__ import annotations

import pytest

from amberblob.archives import ArchivedChunk
from amberblob.errors import StorageError
from amberblob.manifest import ChunkRef, Version, decode_manifest
from amberblob.mutations import Aborted, Archived
from antientropy import scrub as scrub_module
from antientropy.scrub import PAGE_PATHS, SCRUBBED_MEMO
from antientropy.scrubbytes import STEP_BYTES, STEP_VERSIONS
from antientropy.scrubpace import PATH_UNITS
from antientropy.step import Did
from chunkstore.memory import MemoryStore
from tests.clocks import HandClock
from tests.unit.antientropy.scrub_kit import DAY_MS, START_MS, Hooks, Objects, run, scrub_of

DISK = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
LARGE = 300_000


class World:
    def __init__(self) -> None:
        self.clock = HandClock(start_ms=START_MS)
        self.store = MemoryStore(DISK, wall_ms=self.clock.wall_ms)
        self.objects = Objects(self.store, self.clock)
        self.hooks = Hooks()
        self.scrub = scrub_of(self.store, self.clock, self.hooks)

    async def wanted(self, slot: int = 0) -> list[tuple[str, bool]]:
        return [(one.path, one.damaged) for one in await self.store.wanted(slot, 100)]


@pytest.fixture
def world() -> World:
    return World()


async def test_all_is_well(world):
    await world.objects.put(0, "empty", 0)
    await world.objects.put(0, "inline", 5000)
    await world.objects.put(0, "large", LARGE)
    await world.objects.put(0, "listed", 70 * 65_536)
    before = world.store.tally(0).root
    await run(world.scrub, world.clock)
    counts = world.scrub.counts
    assert counts.versions_checked == 4
    manifest_bytes = counts.bytes_checked - (5000 + LARGE + 70 * 65_536)
    assert manifest_bytes > 70 * 64, "the manifest file is read, too"
    assert (counts.chunks_corrupt, counts.chunks_missing, counts.paths_wrong, counts.sums_wrong) == (0, 0, 0, 0)
    assert counts.orphans_removed == 0
    assert world.hooks.woken == 0 and world.hooks.told == []
    assert await world.wanted() == []
    assert world.store.tally(0).root == before
    assert world.scrub.scrubbed_ms(0) == world.clock.wall_ms()
    assert await world.store.memo(0, SCRUBBED_MEMO) == str(world.clock.wall_ms())


@pytest.mark.parametrize("size", [5000, LARGE])
async def test_a_rotten_chunk_is_wanted_and_the_rest_of_its_object_is_read(world, size):
    version = await world.objects.put(0, "a", size)
    await world.objects.put(0, "b", LARGE)
    world.store.corrupt_chunk(0, version.blob_id, version.chunks[0].id)
    await run(world.scrub, world.clock)
    assert await world.wanted() == [("a", True)]
    assert world.hooks.woken == 1
    assert world.scrub.counts.chunks_corrupt == 1
    assert world.scrub.counts.bytes_checked == size + LARGE - version.chunks[0].len
    assert world.scrub.scrubbed_ms(0), "the slot was read as a whole all the same"


async def test_a_rotten_manifest_is_wanted(world):
    version = await world.objects.put(0, "a", 70 * 65_536)
    world.store.corrupt_chunk(0, version.blob_id, version.manifest_id)
    await run(world.scrub, world.clock)
    assert await world.wanted() == [("a", True)]


async def test_every_chunk_of_a_manifest_is_read(world):
    version = await world.objects.put(0, "a", 70 * 65_536)
    chunks = decode_manifest(await world.store.read_manifest(0, version.blob_id, version.manifest_id))
    world.store.corrupt_chunk(0, version.blob_id, chunks[69].id)
    await run(world.scrub, world.clock)
    assert await world.wanted() == [("a", True)]
    assert await world.store.missing_chunks(0, version, chunks) == [chunks[69]], "it is in quarantine"


@pytest.mark.parametrize("size", [5000, LARGE, 70 * 65_536])
async def test_bytes_that_vanished_are_wanted(world, size):
    version = await world.objects.put(0, "a", size)
    world.store.lose_bytes(0, version.blob_id)
    await run(world.scrub, world.clock)
    assert await world.wanted() == [("a", False)]
    assert world.scrub.counts.chunks_missing >= 1 and world.hooks.woken >= 1


DAMAGES = {
    "row": lambda store: store.damage_row(0, "a", 1),
    "lost row": lambda store: store.lose_row(0, "a", 1),
    "record": lambda store: store.damage_record(0, "a"),
    "digest": lambda store: store.damage_digest(0, "a"),
}


@pytest.mark.parametrize("damage", sorted(DAMAGES))
async def test_wrong_rows_are_told_of_and_seen_to_be_mended(world, damage):
    await world.objects.put(0, "a", 100)
    await world.objects.put(0, "b", 100)
    root = world.store.tally(0).root
    DAMAGES[damage](world.store)
    world.hooks.mend = world.objects.mend
    await run(world.scrub, world.clock)
    assert world.hooks.told == [(0, "a")]
    assert world.scrub.counts.paths_wrong == 1
    await passed(world, 60)
    assert world.scrub.counts.paths_mended == 1 and world.scrub.wrong(0) == 0
    assert world.store.tally(0).root == root
    await run(world.scrub, world.clock)
    assert world.hooks.told == [(0, "a")] and world.scrub.counts.paths_wrong == 1


async def test_a_wrong_bucket_digest_is_made_anew(world):
    await world.objects.put(0, "a", 100)
    root = world.store.tally(0).root
    world.store.damage_sum(0, 7)
    assert world.store.tally(0).root != root
    await run(world.scrub, world.clock)
    assert world.store.tally(0).root == root
    assert world.scrub.counts.sums_wrong == 1


async def passed(world: World, seconds: float) -> None:
    """Let time pass, and scrub do what it does."""
    end_s = world.clock.now_s + seconds
    while world.clock.now_s < end_s:
        if await world.scrub.step() is Did.NOTHING:
            world.clock.now_s += min(world.scrub.pause_s, 10.0)


async def test_wrong_rows_are_told_of_until_they_are_right_also_after_a_restart(world):
    for name in ("a", "ab", "b"):
        await world.objects.put(0, name, 100)
    world.store.damage_row(0, "ab", 1)
    world.store.damage_record(0, "b")
    while not world.hooks.told:
        await passed(world, 10)
    await passed(world, 4 * 3600)
    for name in ("ab", "b"):
        assert 8 <= world.hooks.told.count((0, name)) <= 12, "often at first, ever more rarely then"
    assert world.scrub.wrong(0) == 2

    world.scrub = scrub_of(world.store, world.clock, world.hooks)
    world.hooks.told.clear()
    await passed(world, 1)
    assert world.hooks.told == [(0, "ab"), (0, "b")], "what is known to be wrong comes first"
    assert world.scrub.counts.versions_checked == 0
    world.objects.mend(0, "ab")
    await passed(world, 70)
    assert world.scrub.wrong(0) == 1 and world.scrub.counts.paths_mended == 1
    assert set(world.hooks.told[2:]) == {(0, "b")}


async def test_a_slot_with_very_many_wrong_paths_rests(world, monkeypatch):
    monkeypatch.setattr(scrub_module, "WRONG_MAX", 2)
    world.scrub = scrub_of(world.store, world.clock, world.hooks, days=0.001)
    for name in ("a", "b"):
        await world.objects.put(0, name, 100)
        world.store.damage_row(0, name, 1)
    await run(world.scrub, world.clock)
    assert world.scrub.wrong(0) == 2
    await passed(world, 3600)
    assert world.scrub.counts.slots_checked == 1
    for name in ("a", "b"):
        world.objects.mend(0, name)
    await run(world.scrub, world.clock)


async def test_a_version_that_expired_meanwhile_is_not_wanted(world):
    version = await world.objects.put(0, "a", LARGE)
    while not world.scrub._current or not world.scrub._current.versions:
        if await world.scrub.step() is Did.NOTHING:
            world.clock.now_s += world.scrub.pause_s
    del world.store._slots[0].paths["a"].rows[1]
    world.store.lose_bytes(0, version.blob_id)
    await run(world.scrub, world.clock)
    assert await world.wanted() == [] and world.hooks.woken == 0
    assert world.scrub.counts.chunks_missing == 0


async def test_a_chunk_that_the_disk_cannot_read_does_not_stop_the_rest(world, monkeypatch):
    first = await world.objects.put(0, "a", LARGE)
    await world.objects.put(0, "b", LARGE)
    real = world.store.read_chunk

    async def reading(slot: int, blob_id: str, chunk: ChunkRef, *, fresh: bool = False) -> bytes:
        assert fresh, "what memory remembers does not tell what is on the disk"
        if blob_id == first.blob_id:
            raise StorageError("EIO")
        return await real(slot, blob_id, chunk)

    monkeypatch.setattr(world.store, "read_chunk", reading)
    await run(world.scrub, world.clock)
    assert world.scrub.counts.bytes_checked == LARGE
    world.store.fail("all of it")
    with pytest.raises(StorageError):
        await run(world.scrub, world.clock)


# ---- orphans


async def orphan(world: World) -> str:
    """A blob whose files lie there though nothing refers to them; its id."""
    version = await world.objects.put(0, "gone", LARGE)
    world.store.forget_path(0, "gone")
    world.store._slots[0].intents.pop(version.blob_id)
    return version.blob_id


async def test_orphans_go_when_they_are_a_day_old_and_all_else_was_right(world):
    await world.objects.put(0, "kept", LARGE)
    blob_id = await orphan(world)
    world.scrub = scrub_of(world.store, world.clock, world.hooks, days=0.5)
    await run(world.scrub, world.clock)
    assert blob_id in world.store._slots[0].files, "it is young"
    world.clock.now_s += 90_000
    await run(world.scrub, world.clock)
    assert blob_id not in world.store._slots[0].files
    assert world.scrub.counts.orphans_removed == 1
    world.clock.now_s += 90_000
    await run(world.scrub, world.clock)
    assert len(world.store._slots[0].files) == 1 and await world.wanted() == []


@pytest.mark.parametrize("damage", ["row", "lost row", "sum", "lost path"])
async def test_orphans_stay_while_a_row_may_have_rotted_away(world, damage):
    version = await world.objects.put(0, "a", LARGE)
    blob_id = await orphan(world)
    world.clock.now_s += 90_000
    if damage == "sum":
        world.store.damage_sum(0, 3)
    elif damage == "lost path":
        world.store.lose_path(0, "a")
    else:
        DAMAGES[damage](world.store)
    await run(world.scrub, world.clock)
    assert {blob_id, version.blob_id} <= set(world.store._slots[0].files)


async def test_orphans_stay_until_the_copy_was_compared_with_the_others(world):
    """A path that vanished whole is found by its bucket only; the next pass finds all right, and its bytes lone."""
    version = await world.objects.put(0, "a", LARGE)
    await world.objects.put(0, "b", 100)
    world.store.lose_path(0, "a")
    world.store._slots[0].intents.pop(version.blob_id)
    world.scrub = scrub_of(world.store, world.clock, world.hooks, days=0.5)
    world.clock.now_s += 90_000
    world.hooks.compared_at_ms = world.clock.wall_ms()
    for _ in range(3):
        await run(world.scrub, world.clock)
    assert world.scrub.counts.sums_wrong == 1
    assert version.blob_id in world.store._slots[0].files
    world.hooks.compared_at_ms = world.clock.wall_ms() + 1
    await run(world.scrub, world.clock)
    assert version.blob_id not in world.store._slots[0].files


async def test_what_is_being_uploaded_is_no_orphan(world):
    await world.objects.put(0, "a", 100)
    staging = await world.store.stage(0, DISK, chunk_bytes=65_536, size=1)
    await staging.write(b"x")
    from amberblob.ids import content_hash

    await staging.finish((ChunkRef(content_hash(b"x"), 1),), None)
    world.clock.now_s += 10 * 86_400
    await run(world.scrub, world.clock)
    assert DISK in world.store._slots[0].files
    world.store.apply(Aborted(0, DISK))
    await run(world.scrub, world.clock)
    assert DISK not in world.store._slots[0].files


# ---- which slots, where it goes on


async def test_only_slots_that_count_and_have_anything(world):
    for slot in (0, 1, 2):
        await world.objects.put(slot, f"p{slot}", 100)
    slots = [0, 2, 5]
    scrub = scrub_of(world.store, world.clock, world.hooks, slots=slots)
    await run(scrub, world.clock, slots=2)
    assert scrub.scrubbed_ms(0) and scrub.scrubbed_ms(2)
    assert scrub.scrubbed_ms(1) == 0
    assert scrub.scrubbed_ms(5) == world.clock.wall_ms(), "there is nothing to read"
    assert world.store.slots() == [0, 1, 2], "an empty slot gets no database"
    slots.remove(2)
    world.store.damage_row(2, "p2", 1)
    await run(scrub, world.clock, slots=2)
    assert world.hooks.told == []


async def test_the_slot_that_waits_longest_is_next(world):
    for slot in (0, 1, 2):
        await world.objects.put(slot, f"p{slot}", 100)
        await world.store.set_memo(slot, "scrub", f'{{"since_ms": {START_MS - slot * DAY_MS}}}')
    scrub = scrub_of(world.store, world.clock, world.hooks, slots=[0, 1, 2])
    order = []
    for _ in range(3):
        await run(scrub, world.clock)
        order.append(next(slot for slot in (0, 1, 2) if scrub.scrubbed_ms(slot) and slot not in order))
    assert order == [2, 1, 0]


async def test_a_copy_that_began_anew_is_scrubbed_anew(world):
    await world.objects.put(0, "a", 100)
    await run(world.scrub, world.clock)
    assert world.scrub.scrubbed_ms(0)
    world.store.lose_slot(0, "01BX5ZZKBKACTAV9WEVGEMMVRZ")
    await world.objects.put(0, "b", 100)
    await world.scrub.step()
    assert world.scrub.scrubbed_ms(0) == 0
    await run(world.scrub, world.clock)
    assert world.scrub.scrubbed_ms(0)


async def test_a_slot_that_is_lost_in_the_middle_of_its_pass_begins_anew(world):
    for i in range(PAGE_PATHS * 2):
        await world.objects.put(0, f"p{i:03}", 100)
    while world.scrub.counts.versions_checked < PAGE_PATHS + 5:
        if await world.scrub.step() is Did.NOTHING:
            world.clock.now_s += world.scrub.pause_s
    world.store.lose_slot(0, "01BX5ZZKBKACTAV9WEVGEMMVRZ")
    await world.objects.put(0, "a", 100)
    before = world.scrub.counts.versions_checked
    await run(world.scrub, world.clock)
    assert world.scrub.counts.versions_checked == before + 1
    assert await world.wanted() == [], "rows of the lost database are not asked for"


async def test_a_restart_goes_on_where_it_was(world):
    paths = PAGE_PATHS * 3
    for i in range(paths):
        await world.objects.put(0, f"p{i:03}", 100)
    while world.scrub.counts.versions_checked < PAGE_PATHS + 10:
        if await world.scrub.step() is Did.NOTHING:
            world.clock.now_s += world.scrub.pause_s
    again = scrub_of(world.store, world.clock, world.hooks)
    await run(again, world.clock)
    assert again.counts.versions_checked == 2 * PAGE_PATHS, "the page that was under way is read again, no other"
    known = again._passes[0][1]
    assert known.last_units == paths * (100 + PATH_UNITS)


async def test_steps_are_bounded(world):
    await world.objects.put(0, "a", 80 * 65_536)
    for i in range(PAGE_PATHS * 2):
        await world.objects.put(0, f"p{i:03}", 60_000)
    seen = (0, 0)
    counts = world.scrub.counts
    while counts.slots_checked == 0:
        if await world.scrub.step() is Did.NOTHING:
            world.clock.now_s += world.scrub.pause_s
        assert counts.bytes_checked - seen[0] < STEP_BYTES + 2 * 65_536
        assert counts.versions_checked - seen[1] <= STEP_VERSIONS
        seen = counts.bytes_checked, counts.versions_checked


# ---- how fast


async def test_it_takes_its_time_but_not_more(world):
    for slot in range(4):
        for i in range(20):
            await world.objects.put(slot, f"p{slot}-{i}", 30_000)
    scrub = scrub_of(world.store, world.clock, world.hooks, slots=range(4), days=10)
    first_s = await run(scrub, world.clock, slots=4)
    second_s = await run(scrub, world.clock, slots=4)
    third_s = await run(scrub, world.clock, slots=4)
    for took_s in (first_s, second_s, third_s):
        assert took_s <= 10 * 86_400
    assert second_s > 4 * 86_400 and third_s > 4 * 86_400, "no faster than it must"


async def test_never_faster_than_the_ceiling(world):
    sizes = [LARGE, 2_000_000, 50_000, 50_000]
    for i, size in enumerate(sizes):
        await world.objects.put(0, f"p{i}", size)
    rate = 200_000.0
    scrub = scrub_of(world.store, world.clock, world.hooks, days=1e-6, rate=rate)
    took_s = await run(scrub, world.clock)
    assert took_s >= sum(sizes[1:]) / rate, "the last piece is not waited for"
    assert took_s <= (sum(sizes) + 5 * PATH_UNITS) / rate + scrub_module.RECALL_REST_S


async def test_the_database_is_left_alone_most_of_the_time(world, monkeypatch):
    for i in range(PAGE_PATHS * 4):
        await world.objects.put(0, f"p{i:03}", 0)
    real, busy_s = world.store.check_page, 0.0

    async def slow(slot: int, after: str, limit: int):
        nonlocal busy_s
        busy_s += 0.5
        world.clock.now_s += 0.5
        return await real(slot, after, limit)

    monkeypatch.setattr(world.store, "check_page", slow)
    scrub = scrub_of(world.store, world.clock, world.hooks, days=1e-6)
    took_s = await run(scrub, world.clock)
    assert busy_s == 2.0
    assert took_s >= 3 * 0.5 / 0.1


# ---- what lives by its archive rows


async def _evicted(world: World, path: str, size: int) -> tuple[Version, tuple[ArchivedChunk, ...]]:
    version = await world.objects.put(0, path, size)
    chunks = version.chunks
    if version.manifest_id is not None:
        manifest = await world.store.read_manifest(0, version.blob_id, version.manifest_id)
        chunks = (*decode_manifest(manifest), ChunkRef(version.manifest_id, len(manifest)))
    rows = tuple(
        ArchivedChunk(chunk.id, chunk.len, "packs/a", 0, chunk.len, "ab" * 32, START_MS, START_MS) for chunk in chunks
    )
    world.store.apply(Archived(0, version.blob_id, rows, START_MS))
    assert await world.store.evict(0, path, version)
    return version, rows


@pytest.mark.parametrize("size", [5000, LARGE, 70 * 65_536])
async def test_an_evicted_version_is_checked_by_its_rows(world, size):
    version, _ = await _evicted(world, "a", size)
    await run(world.scrub, world.clock)
    counts = world.scrub.counts
    assert (counts.evicted_checked, counts.evicted_uncovered) == (1, 0)
    assert (counts.chunks_missing, counts.chunks_corrupt, world.hooks.woken) == (0, 0, 0)
    assert await world.wanted() == []
    assert await world.store.is_evicted(0, version.blob_id)


@pytest.mark.parametrize("size", [5000, 70 * 65_536])
async def test_an_evicted_version_whose_rows_rotted_is_wanted(world, size):
    version, rows = await _evicted(world, "a", size)
    world.store.lose_archive_row(0, version.blob_id, rows[0].chunk_id)
    await run(world.scrub, world.clock)
    assert world.scrub.counts.evicted_uncovered == 1
    assert await world.wanted() == [("a", True)]
    assert not await world.store.is_evicted(0, version.blob_id)
    assert world.hooks.woken == 1


async def test_an_evicted_version_that_lost_its_manifest_is_wanted(world):
    version, _ = await _evicted(world, "a", 70 * 65_536)
    world.store.lose_bytes(0, version.blob_id)
    await run(world.scrub, world.clock)
    assert await world.wanted() == [("a", True)]
    assert not await world.store.is_evicted(0, version.blob_id)
