"""A slot that began anew on a disk stays blank through restarts and kills, and what it held is kept in quarantine."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from amberblob.ballot import EMPTY_REGISTER
from amberblob.errors import StorageError
from amberblob.mutations import Accepted
from chunkstore import BlobState, DiskStore
from chunkstore.fileops import FileOps
from tests.contract.chunkstore.kit import mint, stage
from tests.folders import files_below


async def blank(store: DiskStore, slot: int) -> bool:
    registers = [await store.load(slot, f"p{n}") for n in range(12)]
    listed = [entry for entry in (await store.scan("", "", "", 100)).entries if entry.slot == slot]
    return all(register is EMPTY_REGISTER for register in registers) and not listed


async def used(kit, disk: Path, **options) -> DiskStore:
    store = await kit.open(disk, **options)
    for n in range(12):
        await kit.put(store, n % 3, f"p{n}")
    return store


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize("linger_s", [0.0, 60.0])
async def test_what_the_journal_still_holds_does_not_come_back(kit, tmp_path: Path, clean: bool, linger_s: float):
    store = await used(kit, tmp_path / "d", linger_s=linger_s)
    incarnation = await store.begin_anew(1)
    assert await blank(store, 1)
    if clean:
        folder = tmp_path / "d"
        await store.close()
    else:
        folder = await kit.copy_still(store, tmp_path / "copy")
    again = await kit.open(folder)
    assert again.incarnations() == {1: incarnation}
    assert await blank(again, 1)
    assert (await again.load(0, "p0")).chosen and (await again.load(2, "p2")).chosen
    record = await kit.put(again, 1, "p1")
    await again.close()
    again = await kit.open(folder)
    assert (await again.load(1, "p1")).record == record
    assert again.incarnations() == {1: incarnation}


async def test_what_it_held_is_in_quarantine(kit, tmp_path: Path):
    store = await used(kit, tmp_path / "d")
    await store.rows(1, "p1")
    incarnation = await store.begin_anew(1)
    rows = kit.sql(tmp_path / f"d/quarantine/1-{incarnation}/meta.sqlite3", "SELECT path FROM registers")
    assert sorted(rows) == [("p1",), ("p10",), ("p4",), ("p7",)]


async def test_a_database_that_was_lost_and_regained_from_the_journal_begins_anew(kit, tmp_path: Path):
    store = await used(kit, tmp_path / "d")
    await store.close()
    (tmp_path / "d/slots/1/meta.sqlite3").unlink()
    store = await kit.open(tmp_path / "d")
    await store.durable(store.apply(Accepted(1, "p1", kit.ballot(), kit.record(), b"body")))
    lost = store.incarnations()[1]
    incarnation = await store.begin_anew(1)
    assert incarnation != lost
    assert await blank(store, 1)


class Dying(FileOps):
    """Takes the disk as it is at the n-th call that changes names."""

    def __init__(self) -> None:
        self.left = -1
        self.take = lambda: None
        self._lock = threading.Lock()

    def _count(self) -> None:
        with self._lock:
            self.left -= 1
            if self.left == 0:
                self.take()

    def end(self) -> None:
        """No more is counted; what another thread of the disk is just taking is whole then."""
        with self._lock:
            self.left = -1

    def rename(self, source: Path, target: Path) -> None:
        self._count()
        super().rename(source, target)
        self._count()

    def fsync_dir(self, path: Path) -> None:
        self._count()
        super().fsync_dir(path)


@pytest.mark.parametrize("step", range(1, 11))
async def test_killed_in_the_middle_and_done_again(kit, tmp_path: Path, step: int):
    """Whatever is found after a kill bears an incarnation of its own, or is what it was; done again, it is blank."""
    ops = Dying()
    store = await used(kit, tmp_path / "d", ops=ops)
    await store.rows(1, "p1")
    before = {n: await store.load(1, f"p{n}") for n in (1, 4, 7, 10)}
    ops.take = lambda: kit.copy(tmp_path / "d", tmp_path / "copy")
    ops.left = step
    await store.begin_anew(1)
    again = await kit.open(tmp_path / "copy")
    state = again.slot_state(1)
    if state.incarnation == again.disk_id:
        assert {n: await again.load(1, f"p{n}") for n in (1, 4, 7, 10)} == before
    incarnation = await again.begin_anew(1)
    assert incarnation != again.disk_id
    assert await blank(again, 1)
    await again.close()
    again = await kit.open(tmp_path / "copy")
    assert again.slot_state(1).incarnation == incarnation
    assert await blank(again, 1)


async def test_a_blank_copy_gets_another_incarnation_if_it_is_to_be_a_fresh_one(kit, tmp_path: Path):
    store = await used(kit, tmp_path / "d")
    for slot in (1, 7):  # one that holds something, one where nothing was ever written
        before = store.slot_state(slot).incarnation
        first = await store.begin_anew(slot, fresh=True)
        assert await store.begin_anew(slot) == first, "it is blank"
        second = await store.begin_anew(slot, fresh=True)
        assert len({before, first, second}) == 3
        assert await blank(store, slot)
    last = {slot: store.slot_state(slot).incarnation for slot in (1, 7)}
    assert len(list((tmp_path / "d/quarantine").iterdir())) == 1, "only of the one that held something"
    assert [one.slot for one in store.lost_slots] == [1]
    again = await kit.open(await kit.copy_still(store, tmp_path / "copy"))
    assert again.incarnations() == last
    assert await blank(again, 1) and await blank(again, 7)


# ---- a slot that the node left


def files_of(folder: Path) -> list[str]:
    """What lies there but the database."""
    return sorted(str(path.relative_to(folder)) for path in files_below(folder) if "meta" not in path.name)


async def staged(kit, store: DiskStore, slot: int, count: int) -> None:
    for _ in range(count):
        await kit.stage(store, slot, kit.mint(), b"x" * 50_000)


async def test_the_room_of_what_was_left_comes_back(kit, tmp_path: Path):
    disk = tmp_path / "d"
    store = await used(kit, disk)
    await staged(kit, store, 1, 5)
    await staged(kit, store, 2, 1)
    others = files_of(disk / "slots/2")
    assert len(files_of(disk / "slots/1")) == 5 and len(others) == 1
    incarnation = await store.leave(1)
    assert not (disk / "quarantine").exists() or not list((disk / "quarantine").iterdir())
    assert [await store.sweep_left(1, 3) for _ in range(3)] == [(3, 150_000), (2, 100_000), (0, 0)]
    assert files_of(disk / "slots/1") == [] and list((disk / "slots/1/staging").iterdir()) == []
    assert files_of(disk / "slots/2") == others
    assert store.lost_slots == [], "nothing is wrong with it"
    assert await blank(store, 1)
    await store.close()
    again = await kit.open(disk)
    assert again.incarnations() == {1: incarnation} and await blank(again, 1)
    assert not await again.holds(1) and await again.holds(2)


async def test_what_was_left_and_not_removed_before_a_restart_is_removed_by_it(kit, tmp_path: Path):
    store = await used(kit, tmp_path / "d")
    await staged(kit, store, 1, 5)
    incarnation = await store.leave(1)
    again = await kit.open(await kit.copy_still(store, tmp_path / "copy"))
    assert files_of(tmp_path / "copy/slots/1") == []
    assert again.incarnations() == {1: incarnation}
    assert not await again.holds(1)


@pytest.mark.parametrize("step", range(1, 17))
async def test_killed_while_it_leaves_and_done_again(kit, tmp_path: Path, step: int):
    ops = Dying()
    store = await used(kit, tmp_path / "d", ops=ops)
    await staged(kit, store, 1, 2)
    await store.rows(1, "p1")
    ops.take = lambda: kit.copy(tmp_path / "d", tmp_path / "copy")
    ops.left = step
    await store.leave(1)
    ops.end()
    if not (tmp_path / "copy").exists():
        await kit.copy_still(store, tmp_path / "copy")
    again = await kit.open(tmp_path / "copy")
    state = again.slot_state(1)
    if state.incarnation == again.disk_id:
        assert (await again.load(1, "p1")).chosen, "it had not left yet"
    incarnation = await again.leave(1)
    assert incarnation != again.disk_id
    assert await blank(again, 1) and not await again.holds(1)
    while (await again.sweep_left(1, 10))[0]:
        pass
    assert files_of(tmp_path / "copy/slots/1") == []
    await again.close()
    again = await kit.open(tmp_path / "copy")
    assert again.slot_state(1).incarnation == incarnation and await blank(again, 1)


async def test_bytes_that_come_in_while_their_slot_is_left_are_not_taken_for_durable(kit, tmp_path: Path):
    """Their files are in place, and then away with all others, before memory notes that they are in place."""
    store = await kit.open(tmp_path / "d")
    await kit.put(store, 1, "p")
    arriving, loop, blob_id = store._blobs.arriving, asyncio.get_running_loop(), mint()
    place = arriving._put_in_place

    def left_meanwhile(slot: int, blob: str, source: Path) -> None:
        place(slot, blob, source)
        asyncio.run_coroutine_threadsafe(store.leave(slot), loop).result(20)

    arriving._put_in_place = left_meanwhile
    with contextlib.suppress(StorageError):
        await stage(store, blob_id, [b"x" * 100], slot=1)
    arriving._put_in_place = place
    assert await store.blob_state(1, blob_id) is not BlobState.DURABLE
    assert not store._core.overlay.is_complete(1, blob_id)
    assert store.failed is None


class Sweeping(FileOps):
    """Calls ``sweep`` before a database is moved to the folder that was made for it in staging."""

    sweep: Callable[[], object] = staticmethod(lambda: None)

    def rename(self, source: Path, target: Path) -> None:
        if source.name.startswith("meta.sqlite3") and "staging" in target.parts:
            self.sweep()
        super().rename(source, target)


async def test_a_database_that_is_put_away_is_not_swept_while_it_is_on_its_way(kit, tmp_path: Path):
    """By what an earlier leaving left, the slot is swept at the same time (seed 2965582152 of the worlds)."""
    ops, swept = Sweeping(), []
    store, loop = await used(kit, tmp_path / "d", ops=ops), asyncio.get_running_loop()
    await staged(kit, store, 1, 3)
    await store.leave(1)

    def sweep() -> None:
        swept.append(asyncio.run_coroutine_threadsafe(store.sweep_left(1, 100), loop).result(60))

    ops.sweep = sweep
    incarnation = await store.begin_anew(1, fresh=True)
    assert swept and swept[0][0] == 3, "what was left did go"
    assert store.slot_state(1).incarnation == incarnation and await blank(store, 1) and store.failed is None
    assert files_of(tmp_path / "d/slots/1") == [] and list((tmp_path / "d/slots/1/staging").iterdir()) == []


class Failing(FileOps):
    """Cannot sync the folder that a database was moved out of, as often as ``times``."""

    times = 0

    def fsync_dir(self, path: Path) -> None:
        if self.times and path.name == "1" and not (path / "meta.sqlite3").exists():
            self.times -= 1
            raise OSError(errno.EIO, "the sync failed")
        super().fsync_dir(path)


async def test_a_slot_whose_leaving_failed_halfway_is_left_and_not_lost(kit, tmp_path: Path):
    """Whoever asks next finds no database there: that is no damage (seed 2129748417 of the worlds)."""
    ops = Failing()
    store = await used(kit, tmp_path / "d", ops=ops)
    await store.rows(1, "p1")
    first, ops.times = store.slot_state(1).incarnation, 1
    with pytest.raises((OSError, StorageError)):
        await store.leave(1)
    assert ops.times == 0 and not (tmp_path / "d/slots/1/meta.sqlite3").exists()
    assert not await store.rows(1, "p1")
    assert store.lost_slots == [], "nothing is wrong with it"
    incarnation = await store.leave(1)
    assert incarnation != first and await blank(store, 1) and store.failed is None
    again = await kit.open(await kit.copy_still(store, tmp_path / "copy"))
    assert again.incarnations() == {1: incarnation} and await blank(again, 1)
