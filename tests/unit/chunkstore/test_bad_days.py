"""Days on which a disk is full, hangs, is closed too early, or holds rows that nobody can read."""

from __future__ import annotations

import asyncio
import errno
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from amberblob.ballot import Register
from amberblob.errors import DigestMismatch, DiskFailed, StorageError
from amberblob.limits import MIB
from amberblob.mutations import Accepted, Chosen, Reserved
from chunkstore import journal
from chunkstore.applier import Applier, DurableBatch
from chunkstore.fileops import FileOps
from chunkstore.identity import DiskIdentity, read_identity
from chunkstore.interface import BlobState
from chunkstore.pool import SlotPool
from chunkstore.slotdb import SlotDatabase


class _NoRoom:
    """Makes ``name`` of ``owner`` meet a full disk, as often as told, or until there is room again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, times: int = 1 << 30) -> None:
        self.times = times
        self.met = 0
        real = getattr(owner, name)

        def call(this: object, *args: object, **options: object) -> object:
            if self.times > 0:
                self.times -= 1
                self.met += 1
                error: Exception
                if owner is SlotDatabase:
                    error = sqlite3.OperationalError("database or disk is full")
                    error.sqlite_errorcode = sqlite3.SQLITE_FULL
                else:
                    error = OSError(errno.ENOSPC, "No space left on device")
                raise error
            return real(this, *args, **options)

        monkeypatch.setattr(owner, name, call)


async def _ballast(disk: Path) -> None:
    while not (disk / "ballast").exists():
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(SlotDatabase, "checkpoint"), (SlotPool, "make_created"), (SlotDatabase, "transaction"), (FileOps, "make_dirs")],
)
async def test_a_full_disk_costs_the_ballast_and_not_the_disk(kit, tmp_path: Path, monkeypatch, owner, name):
    disk = tmp_path / "d"
    store = await kit.open(disk, reserve_bytes=4 * MIB, segment_bytes=1 << 16)
    await _ballast(disk)
    full = _NoRoom(monkeypatch, owner, name, times=1)
    for n in range(8):
        await kit.put(store, n, f"p{n}", bytes(20_000))
    await kit.until(lambda: full.met > 0 and not (disk / "ballast").exists())
    await kit.until(lambda: len(list((disk / "journal").iterdir())) == 1)
    assert store.failed is None
    assert len(await store.rows(1, "p1")) == 1


@pytest.mark.parametrize(
    ("owner", "name"), [(SlotDatabase, "transaction"), (FileOps, "make_dirs"), (SlotDatabase, "checkpoint")]
)
async def test_a_disk_that_stays_full_waits_for_room(kit, tmp_path: Path, monkeypatch, owner, name):
    store = await kit.open(tmp_path / "d", segment_bytes=1 << 16)
    await kit.put(store, 0, "before")
    assert len(await store.rows(0, "before")) == 1
    full = _NoRoom(monkeypatch, owner, name)
    for n in range(8):
        await kit.put(store, n, f"p{n}", bytes(20_000))
    await kit.until(lambda: full.met > 1)
    assert store.failed is None
    # What is applied is answered meanwhile.
    async with asyncio.timeout(30):
        assert len(await store.rows(0, "before")) == 1
    full.times = 0
    await kit.until(lambda: len(list((tmp_path / "d/journal").iterdir())) == 1)
    assert store.failed is None and len(await store.rows(7, "p7")) == 1


async def test_a_full_disk_can_be_closed_and_goes_on_at_the_next_start(kit, tmp_path: Path, monkeypatch):
    store = await kit.open(tmp_path / "d")
    full = _NoRoom(monkeypatch, SlotDatabase, "transaction")
    await kit.put(store, 1, "a")
    async with asyncio.timeout(30):
        await store.close()
    full.times = 0
    again = await kit.open(tmp_path / "d")
    assert (await again.load(1, "a")).chosen


def _pool(kit, disk: Path, ops: FileOps) -> tuple[SlotPool, DiskIdentity]:
    disk.mkdir()
    identity = DiskIdentity(disk_id=kit.mint(), cluster_id="c", node_id="n")
    return SlotPool(disk, identity, ops, kit.mint), identity


async def test_what_could_not_be_written_to_disk_toml_is_written_later(kit, tmp_path: Path, faulty):
    pool, identity = _pool(kit, tmp_path / "d", faulty)
    pool.get(3).checkpoint()
    faulty.errors["rename"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError):
        pool.make_created({3})
    assert identity.slots_created == set()
    faulty.errors.clear()
    pool.make_created({3})
    assert read_identity(tmp_path / "d").slots_created == {3}


@pytest.mark.parametrize("name", ["checkpoint", "write_meta"])
async def test_a_slot_that_is_half_retired_is_retired_and_keeps_its_promises(kit, tmp_path: Path, monkeypatch, name):
    pool, identity = _pool(kit, tmp_path / "d", FileOps())
    applier = Applier(tmp_path / "d", pool, FileOps(), lambda: False, time.monotonic)
    applier.take(DurableBatch(1, [(1, Reserved(3, 77))], [], 1))
    applier.apply_slot(3)
    ceiling = pool.get(3).state.promise_ceiling
    assert ceiling
    _NoRoom(monkeypatch, SlotDatabase, name, times=1)
    with pytest.raises(sqlite3.OperationalError):
        pool.retire(3, "a test")
    state = pool.get(3).state
    assert state.incarnation != identity.disk_id and state.promise_ceiling == ceiling
    assert [lost.incarnation for lost in pool.lost] == [state.incarnation]


class _Hanging(FileOps):
    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()

    def fdatasync(self, fd: int) -> None:
        self.go.wait()
        super().fdatasync(fd)


async def test_a_hanging_sync_bounds_memory_and_then_fails_the_disk(kit, tmp_path: Path, monkeypatch):
    ops = _Hanging()
    store = await kit.open(tmp_path / "d", ops=ops, unapplied_bytes_max=9 * MIB)
    await kit.put(store, 0, "warm")
    ops.go.clear()
    try:
        with pytest.raises(StorageError) as caught:
            for n in range(40):
                store.apply(Accepted(0, f"p{n}", kit.ballot(), kit.record(), bytes(1 * MIB)))
        assert caught.value.code == "disk-busy"
        assert 18 * MIB < store._core.overlay.unapplied_bytes < 20 * MIB
        assert store.failed is None
        position = store.apply(Reserved(0, 5))
        monkeypatch.setattr(journal, "SYNC_S_MAX", 0.5)
        async with asyncio.timeout(30):
            with pytest.raises(DiskFailed, match="hangs"):
                await store.durable(position)
            assert store.failed
            await store.close()
    finally:
        ops.go.set()


async def test_calls_after_close_return(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await kit.put(store, 0, "p")
    await store.close()
    store = await kit.open(tmp_path / "d")  # of a slot that had state at start nothing is known without its database
    await store.close()
    async with asyncio.timeout(30):
        for call in (store.load(0, "other"), store.rows(0, "p"), store.durable(1), store.scan("", "", "", 1)):
            with pytest.raises(DiskFailed, match="closed"):
                await call
        with pytest.raises(DiskFailed, match="closed"):
            store.apply(Reserved(0, 5))


async def test_calls_that_wait_when_a_failed_disk_is_closed_return(kit, tmp_path: Path, monkeypatch):
    store = await kit.open(tmp_path / "d")

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    await kit.put(store, 0, "p")
    monkeypatch.setattr(Applier, "apply_slot", broken)
    await kit.put(store, 0, "q")
    waiting = asyncio.ensure_future(store._core.ask(0, lambda database: database.undecided(), barrier=1 << 40))
    await asyncio.sleep(0)
    await store.close()
    async with asyncio.timeout(30):
        with pytest.raises(DiskFailed):
            await waiting


async def test_a_slot_that_is_lost_while_the_index_is_brought_up(kit, tmp_path: Path):
    pool, _ = _pool(kit, tmp_path / "d", FileOps())
    applier = Applier(tmp_path / "d", pool, FileOps(), lambda: False, time.monotonic)
    applier.open_index(1)
    applier.ready_index()
    ballot, record = kit.ballot(), kit.record()
    applier.take(DurableBatch(1, [(1, Chosen(0, "C", kit.ballot()))], [None], 1))
    applier.take(
        DurableBatch(1, [(2, Accepted(1, "A", ballot, record, b"body"))], [Register(ballot, record, False)], 1)
    )
    real = applier.apply_slot

    def lose(slot: int) -> None:
        setattr(applier, "apply_slot", real)  # noqa: B010 - mypy refuses to assign to a method
        real(1)
        pool.retire(1, "a test")
        real(slot)

    setattr(applier, "apply_slot", lose)  # noqa: B010 - as above
    assert applier.update_index()
    assert applier.listed == 2


def test_what_waits_is_counted_down_slot_by_slot(kit, tmp_path: Path):
    pool, _ = _pool(kit, tmp_path / "d", FileOps())
    applier = Applier(tmp_path / "d", pool, FileOps(), lambda: False, time.monotonic)
    applier.take(DurableBatch(1, [(1, Reserved(1, 5)), (2, Reserved(2, 5))], [], 1000))
    applier.take(DurableBatch(1, [(3, Reserved(2, 6))], [], 300))
    assert applier.waiting_bytes == 1300
    applier.apply_slot(2)
    assert applier.waiting_bytes == 500
    applier.apply_slot(1)
    assert applier.waiting_bytes == 0


@pytest.mark.parametrize("way", ["ask", "apply", "index"])
async def test_a_row_that_cannot_be_decoded_costs_one_slot(kit, tmp_path: Path, way: str):
    store = await kit.open(tmp_path / "d")
    for n in range(6):
        await kit.put(store, n % 2, f"p{n}")
    await store.close()
    connection = sqlite3.connect(tmp_path / "d/slots/1/meta.sqlite3")
    connection.execute("UPDATE registers SET record = '{\"rubbish\"'")
    connection.commit()
    connection.close()
    if way == "index":
        (tmp_path / "d/index.sqlite3").unlink()
    store = await kit.open(tmp_path / "d")
    if way == "ask":
        await store.load(1, "p1")
    elif way == "apply":
        await store.durable(store.apply(Accepted(1, "p1", kit.ballot(), kit.record(), b"body")))
    await kit.until(lambda: len(store.lost_slots) == 1)
    await kit.put(store, 1, "new")
    assert store.failed is None and [lost.slot for lost in store.lost_slots] == [1]
    assert (await store.load(0, "p0")).chosen
    listed = {entry.path for entry in (await store.scan("", "", "", 100)).entries}
    assert {"p0", "p2", "p4", "new"} <= listed


async def test_position_zero_waits_for_nothing(kit, tmp_path: Path, monkeypatch):
    store = await kit.open(tmp_path / "d", unapplied_bytes_max=1, linger_s=60.0)
    store.apply(Reserved(0, 5))
    async with asyncio.timeout(30):
        await store.durable(0)


async def test_a_sync_that_fails_under_a_blob_that_is_given_up_fails_the_disk(kit, tmp_path: Path, faulty):
    store = await kit.open(tmp_path / "d", ops=faulty)
    staging = await store.stage(1, kit.mint(), chunk_bytes=1 << 16, size=None)
    faulty.errors["fsync"] = OSError(errno.EIO, "Input/output error")
    await staging.write(bytes(1 << 17))
    with pytest.raises(DigestMismatch):
        await staging.finish((), None)
    assert store.failed is not None
    with pytest.raises(DiskFailed):
        store.apply(Reserved(1, 5))


async def test_a_full_disk_can_be_closed_while_a_removal_waits_for_room(kit, tmp_path: Path, monkeypatch):
    store = await kit.open(tmp_path / "d")
    blob_id = kit.mint()
    await kit.stage(store, 1, blob_id, bytes(100))
    full = _NoRoom(monkeypatch, SlotDatabase, "transaction")
    removal = asyncio.create_task(store.discard(1, blob_id))
    await kit.until(lambda: full.met > 0)
    async with asyncio.timeout(30):
        await store.close()
    with pytest.raises(DiskFailed):
        await removal
    full.times = 0
    again = await kit.open(tmp_path / "d")
    await again.discard(1, blob_id)
    assert await again.blob_state(1, blob_id) is BlobState.ABORTED
