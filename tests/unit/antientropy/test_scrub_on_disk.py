"""Scrub over a real disk: rot in its databases and files, and a restart in the middle."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from amberblob.clock import SeededRandomness, SystemClock
from amberblob.manifest import Record
from amberblob.mutations import Installed
from antientropy.scrub import PAGE_PATHS
from antientropy.scrubpace import PATH_UNITS
from antientropy.step import Did
from chunkstore import DiskStore
from tests.clocks import HandClock
from tests.contract.chunkstore.kit import SLOT, ballot, body_of, choose, choose_file, file_put, head_of, mint, put
from tests.contract.chunkstore.rot import DiskRot
from tests.folders import files_below
from tests.unit.antientropy.scrub_kit import DAY_MS, START_MS, Hooks, run, scrub_of


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[DiskStore]:
    store = await DiskStore.open(
        folder / "disk",
        cluster_id="c",
        node_id="n",
        clock=SystemClock(),
        randomness=SeededRandomness(2),
        reserve_bytes=0,
    )
    try:
        yield store
    finally:
        await store.close()


class World:
    def __init__(self, store: DiskStore) -> None:
        self.store = store
        self.rot = DiskRot(store)
        self.clock = HandClock(start_ms=START_MS)
        self.hooks = Hooks()
        self.scrub = scrub_of(store, self.clock, self.hooks, slots=[SLOT])
        self.records: dict[str, Record] = {}

    async def fill(self, count: int) -> None:
        """Paths by turns inline and as files."""
        for index in range(count):
            path, body = f"p{index:03}", body_of(index, 3000)
            if index % 2:
                record = file_put(1, body)
                await choose_file(self.store, path, record, body, 1)
            else:
                record = put(1, body=body)
                await choose(self.store, path, record, 1, body=body)
            self.records[path] = record

    async def mend(self, path: str) -> None:
        record = self.records[path]
        await self.store.load(SLOT, path)
        self.store.apply(Installed(SLOT, path, ballot(1), record, (head_of(record),), (), True))

    async def wanted(self) -> list[tuple[str, bool]]:
        return [(one.path, one.damaged) for one in await self.store.wanted(SLOT, 100)]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with opened(tmp_path) as store:
        made = World(store)
        await made.fill(10)
        yield made


async def test_all_is_well(world):
    await run(world.scrub, world.clock)
    counts = world.scrub.counts
    assert (counts.versions_checked, counts.bytes_checked) == (10, 10 * 3000)
    assert (counts.chunks_corrupt, counts.chunks_missing, counts.paths_wrong, counts.sums_wrong) == (0, 0, 0, 0)
    assert await world.wanted() == [] and world.hooks.told == []


async def test_rot_in_bytes_is_wanted(world):
    await world.store.settle([SLOT])
    inline, file, lost = (head_of(world.records[path]) for path in ("p002", "p003", "p005"))
    cached = head_of(world.records["p004"])
    await world.rot.chunk(inline)
    await world.rot.chunk(file)
    # Whoever reads the body is given it from memory; scrub must see what is on the disk.
    drop = world.store._core.overlay.verified.drop
    world.store._core.overlay.verified.drop = lambda blob: None
    await world.store.read_chunk(SLOT, cached.blob_id, cached.chunks[0])
    await world.rot.chunk(cached)
    world.store._core.overlay.verified.drop = drop
    assert await world.store.read_chunk(SLOT, cached.blob_id, cached.chunks[0]) == body_of(4, 3000)
    (world.store.path / "slots" / str(SLOT) / "blobs" / lost.blob_id / "chunks" / lost.chunks[0].id).unlink()
    await run(world.scrub, world.clock)
    assert sorted(await world.wanted()) == [("p002", True), ("p003", True), ("p004", True), ("p005", False)]
    assert world.store.tally(SLOT).damaged == 3
    quarantined = [file.name for file in files_below(world.store.path) if "quarantine" in str(file)]
    assert len(quarantined) >= 3, "what is damaged is kept"
    await run(world.scrub, world.clock)
    assert sorted(await world.wanted())[:3] == [("p002", True), ("p003", True), ("p004", True)], "still damaged"


def leave_lone_files(world: World) -> Path:
    """A blob's folder that nothing refers to."""
    folder = world.store.path / "slots" / str(SLOT) / "blobs" / head_of(world.records["p001"]).blob_id
    return Path(shutil.copytree(folder, folder.parent / mint()))


@pytest.mark.parametrize("harm", ["row", "lost_row", "record", "digest"])
async def test_rot_in_rows_is_told_until_it_is_mended(world, harm):
    await world.store.settle([SLOT])
    root = world.store.tally(SLOT).root
    await getattr(world.rot, harm)("p006", *([1] if "row" in harm else []))
    await run(world.scrub, world.clock)
    assert set(world.hooks.told) == {(SLOT, "p006")}
    assert world.scrub.wrong(SLOT) == 1 and world.scrub.counts.paths_wrong == 1
    await world.mend("p006")
    await run(world.scrub, world.clock)
    assert world.scrub.wrong(SLOT) == 0 and world.scrub.counts.paths_mended == 1
    await world.store.settle([SLOT])
    assert world.store.tally(SLOT).root == root
    assert await world.wanted() == []


@pytest.mark.parametrize("harm", ["bucket", "path"])
async def test_wrong_sums_are_made_anew_and_nothing_is_removed_meanwhile(world, harm):
    world.clock.start_ms = int(time.time() * 1000) + 10 * DAY_MS
    lone = leave_lone_files(world)
    await (world.rot.bucket(3) if harm == "bucket" else world.rot.path("p007"))
    world.hooks.compared_at_ms = 0
    await run(world.scrub, world.clock)
    assert world.scrub.counts.sums_wrong == 1 and world.scrub.counts.orphans_removed == 0
    version = head_of(world.records["p007"])
    assert await world.store.read_chunk(SLOT, version.blob_id, version.chunks[0]) == body_of(7, 3000)
    await run(world.scrub, world.clock)
    assert world.scrub.counts.sums_wrong == 1
    assert lone.is_dir()


async def test_files_that_nothing_refers_to_go_and_no_others(world):
    lone = leave_lone_files(world)
    await run(world.scrub, world.clock)
    assert lone.is_dir(), "they are young"
    world.clock.start_ms = int(time.time() * 1000) + 10 * DAY_MS
    for _ in range(2):
        await run(world.scrub, world.clock)
    assert not lone.exists() and world.scrub.counts.orphans_removed == 1
    for index in range(10):
        version = head_of(world.records[f"p{index:03}"])
        assert await world.store.read_chunk(SLOT, version.blob_id, version.chunks[0], fresh=True) == body_of(
            index, 3000
        )


async def test_a_restart_goes_on_where_it_was(tmp_path):
    async with opened(tmp_path) as store:
        world = World(store)
        await world.fill(PAGE_PATHS * 2 + 10)
        while world.scrub.counts.versions_checked < PAGE_PATHS + 5:
            if await world.scrub.step() is Did.NOTHING:
                world.clock.now_s += world.scrub.pause_s
        assert world.scrub.scrubbed_ms(SLOT) == 0
    async with opened(tmp_path) as store:
        again = World(store)
        await run(again.scrub, again.clock)
        assert again.scrub.counts.versions_checked == PAGE_PATHS + 10
        scrubbed_ms = again.scrub.scrubbed_ms(SLOT)
    async with opened(tmp_path) as store:
        third = World(store)
        for _ in range(2):
            await third.scrub.step()
        assert third.scrub.scrubbed_ms(SLOT) == scrubbed_ms
        assert third.scrub._passes[SLOT][1].last_units >= (PAGE_PATHS * 2 + 10) * (3000 + PATH_UNITS)
