"""Many blobs at once, on a disk that fails, fills up, or whose process dies in the middle."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from amberblob.errors import DigestMismatch, DiskFailed, DiskFull
from amberblob.ids import content_hash
from amberblob.limits import KIB
from amberblob.manifest import ChunkRef, Version
from amberblob.mutations import Chosen, Installed
from chunkstore import BlobState, DiskStore
from chunkstore.fileops import FileOps
from chunkstore.files import INCOMPLETE_NAME
from tests.unit.chunkstore.disk_faults import FaultyOps, copy_disk

SLOT = 3


def _version(kit, number: int, body: bytes, *, inline: bool = False) -> Version:
    chunk = ChunkRef(id=content_hash(body), len=len(body))
    return Version(number, kit.mint(), len(body), chunk.id, 1000 + number, "t", {}, (chunk,), None, 1, inline)


async def _missed(kit, store: DiskStore, count: int, *, inline: bool = False) -> list[tuple[Version, bytes]]:
    """As many versions whose rows are here and whose bytes are not."""
    bodies = [f"body {n} ".encode() * 3000 for n in range(count)]
    given = [(_version(kit, n + 1, body, inline=inline), body) for n, body in enumerate(bodies)]
    await store.durable(store.apply(Installed(SLOT, "p", None, None, tuple(version for version, _ in given))))
    assert len(await store.wanted(SLOT, 1000)) == count
    return given


def _folders(disk: Path, where: str) -> list[str]:
    folder = disk / "slots" / str(SLOT) / where
    return sorted(os.listdir(folder)) if folder.is_dir() else []


async def _whole(store: DiskStore, version: Version, body: bytes) -> bool:
    if await store.blob_state(SLOT, version.blob_id) is not BlobState.DURABLE:
        return False
    assert await store.read_chunk(SLOT, version.blob_id, version.chunks[0]) == body
    return True


class Counting(FileOps):
    """Notes what is synced, and how many threads are at it. While ``go`` is clear, none gets on."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.folders: list[str] = []
        self.at_once = 0
        self._lock = threading.Lock()

    def fsync(self, fd: int) -> None:
        with self._lock:
            self.at_once += 1
        try:
            assert self.go.wait(30)
            super().fsync(fd)
        finally:
            with self._lock:
                self.at_once -= 1

    def fsync_dir(self, path: Path) -> None:
        self.folders.append(path.name)
        super().fsync_dir(path)


async def test_syncs_are_made_side_by_side_and_those_of_the_slot_once(kit, tmp_path: Path):
    ops = Counting()
    store = await kit.open(tmp_path / "d", ops=ops)
    given = await _missed(kit, store, 24)
    store._bulk._files.prepare_slot(SLOT)
    ops.folders.clear()
    ops.go.clear()
    installing = asyncio.create_task(store.install_blobs(SLOT, given))
    await kit.until(lambda: ops.at_once >= 4)
    ops.go.set()
    await installing
    assert ops.folders.count("blobs") == 1 == ops.folders.count("staging")
    assert _folders(store.path, "staging") == []


async def test_all_bodies_share_a_sync(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    given = await _missed(kit, store, 50, inline=True)
    before = store.counts()["journal_syncs"]
    await store.install_bodies(SLOT, given)
    assert store.counts()["journal_syncs"] - before <= 2
    assert await store.wanted(SLOT, 10) == []
    await store.close()
    store = await kit.open(tmp_path / "d")
    for version, body in given:
        assert await _whole(store, version, body)


@pytest.mark.parametrize("inline", [True, False])
async def test_what_is_back_stays_after_a_kill(kit, tmp_path: Path, inline: bool):
    store = await kit.open(tmp_path / "d", linger_s=30.0)
    given = await _missed(kit, store, 10, inline=inline)
    await (store.install_bodies if inline else store.install_blobs)(SLOT, given)
    copy = await kit.open(await kit.copy_still(store, tmp_path / "copy"))
    for version, body in given:
        assert await _whole(copy, version, body)
        assert await copy.is_whole(SLOT, version)
    assert await copy.wanted(SLOT, 10) == []
    assert await copy.sweep_staged(1 << 60, 100) == 0 and await copy.orphans(SLOT, 1 << 47) == []


async def test_a_kill_at_any_call_leaves_each_blob_whole_or_absent(kit, tmp_path: Path):
    """The copies are taken between the system calls of one bulk: at each of them, nothing half is believed."""
    for stop_at in range(1, 60, 3):
        disk, copied = tmp_path / f"d{stop_at}", tmp_path / f"copy{stop_at}"
        ops = FaultyOps()
        store = await kit.open(disk, ops=ops)
        given = await _missed(kit, store, 4)
        await store.settle([SLOT])

        def trapped(store: DiskStore = store, ops: FaultyOps = ops) -> None:
            # The copy is taken by the database thread, which nothing else uses meanwhile.
            store._core._database.call(ops.copy_once)

        def take(disk: Path = disk, copied: Path = copied) -> None:
            copy_disk(disk, copied)

        ops.arm(stop_at, trapped, take)
        await store.install_blobs(SLOT, given)
        for version, body in given:
            assert await _whole(store, version, body)
        await store.close()
        if not copied.exists():
            break
        copy = await kit.open(copied)
        assert _folders(copied, "staging") == []
        for version, body in given:
            is_here = await _whole(copy, version, body)
            assert is_here == (version.blob_id in _folders(copied, "blobs"))
            assert await copy.is_whole(SLOT, version) == is_here
        left = {one.version.blob_id for one in await copy.wanted(SLOT, 10)}
        await copy.install_blobs(SLOT, [one for one in given if one[0].blob_id in left])
        assert await copy.wanted(SLOT, 10) == []
        await copy.close()
    else:
        raise AssertionError("a bulk of four blobs has fewer calls than that")
    assert stop_at > 15, "there was hardly anything to stop at"


@pytest.mark.parametrize("call", ["write", "create", "allocate"])
async def test_a_full_disk_refuses_and_keeps_nothing_half(kit, tmp_path: Path, call: str):
    ops = FaultyOps()
    store = await kit.open(tmp_path / "d", ops=ops)
    given = await _missed(kit, store, 6)
    store._bulk._files.prepare_slot(SLOT)
    ops.broken[call] = (given[2][0].blob_id, errno.ENOSPC)
    with pytest.raises(DiskFull):
        await store.install_blobs(SLOT, given)
    assert ops.met[call]
    assert store.failed is None
    assert _folders(store.path, "staging") == [] == _folders(store.path, "blobs")
    assert await store.blob_state(SLOT, given[0][0].blob_id) is BlobState.ABSENT
    assert len(await store.wanted(SLOT, 10)) == 6
    ops.broken.clear()
    await store.install_blobs(SLOT, given)
    for version, body in given:
        assert await _whole(store, version, body)


async def test_no_room_for_them_is_told_before_anything_is_written(kit, tmp_path: Path):
    ops = FaultyOps()
    store = await kit.open(tmp_path / "d", ops=ops, reserve_bytes=10_000)
    given = await _missed(kit, store, 3)
    bodies = [(_version(kit, 9, b"x", inline=True), b"x")]
    ops.free = 10
    await kit.until(lambda: store.full)
    with pytest.raises(DiskFull):
        await store.install_blobs(SLOT, given)
    with pytest.raises(DiskFull):
        await store.install_bodies(SLOT, bodies)
    ops.free = None
    assert _folders(store.path, "staging") == []


@pytest.mark.parametrize("where", ["/chunks", "/blobs", "rename"])
async def test_a_disk_that_fails_keeps_nothing_that_is_not_for_sure(kit, tmp_path: Path, where: str):
    ops = FaultyOps()
    store = await kit.open(tmp_path / "d", ops=ops)
    given = await _missed(kit, store, 5)
    await store.settle([SLOT])
    store._bulk._files.prepare_slot(SLOT)
    if where == "rename":
        ops.broken["rename"] = (f"/blobs/{given[3][0].blob_id}", errno.EIO)
    else:
        ops.broken["fsync"] = (where, errno.EIO)
    with pytest.raises(DiskFailed):
        await store.install_blobs(SLOT, given)
    assert store.failed is not None
    ops.broken.clear()
    for version, _ in given:
        assert await store.blob_state(SLOT, version.blob_id) is BlobState.ABSENT
    assert _folders(store.path, "blobs") == []


async def test_wrong_bytes_among_right_ones(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    given = await _missed(kit, store, 4)
    wrong = [*given[:2], (given[2][0], given[2][1][:-1] + b"x"), given[3]]
    with pytest.raises(DigestMismatch):
        await store.install_blobs(SLOT, wrong)
    assert _folders(store.path, "staging") == []
    assert await store.blob_state(SLOT, given[2][0].blob_id) is BlobState.ABSENT
    await store.install_blobs(SLOT, given)
    assert await store.wanted(SLOT, 10) == []


async def test_whoever_goes_away_stops_nothing_halfway(kit, tmp_path: Path):
    ops = Counting()
    store = await kit.open(tmp_path / "d", ops=ops)
    given = await _missed(kit, store, 12)
    # The first sync of a slot's folders is one of the loop's own thread.
    store._bulk._files.prepare_slot(SLOT)
    ops.go.clear()
    task = asyncio.create_task(store.install_blobs(SLOT, given))
    await kit.until(lambda: ops.at_once > 0)
    task.cancel()
    ops.go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(60):
        while await store.wanted(SLOT, 1):
            await asyncio.sleep(0.01)
    for version, body in given:
        assert await _whole(store, version, body)


async def test_two_bulks_of_the_same_blobs_and_single_repairs_at_once(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    given = await _missed(kit, store, 20)
    async with asyncio.timeout(60):
        await asyncio.gather(
            store.install_blobs(SLOT, given),
            store.install_blobs(SLOT, given[::-1]),
            *(store.install_chunk(SLOT, version, version.chunks[0], body) for version, body in given[::3]),
            *(store.discard(SLOT, version.blob_id) for version, _ in given),
        )
    for version, body in given:
        assert await _whole(store, version, body)
    assert _folders(store.path, "staging") == []
    assert len(_folders(store.path, "blobs")) == 20


async def test_nothing_is_called_durable_before_the_names_are(kit, tmp_path: Path):
    class Held(FileOps):
        def __init__(self) -> None:
            self.reached, self.go, self.hold = threading.Event(), threading.Event(), False

        def fsync_dir(self, path: Path) -> None:
            if self.hold and path.name == "blobs":
                self.reached.set()
                assert self.go.wait(60)
            super().fsync_dir(path)

    ops = Held()
    store = await kit.open(tmp_path / "d", ops=ops)
    given = await _missed(kit, store, 2)
    store._bulk._files.prepare_slot(SLOT)
    ops.hold = True
    task = asyncio.create_task(store.install_blobs(SLOT, given))
    await asyncio.to_thread(ops.reached.wait, 60)
    assert len(_folders(store.path, "blobs")) == 2
    assert await store.blob_state(SLOT, given[0][0].blob_id) is BlobState.ABSENT
    ops.go.set()
    await task
    assert await store.blob_state(SLOT, given[0][0].blob_id) is BlobState.DURABLE


async def test_a_mark_that_a_killed_repair_left_goes_when_all_is_there(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    ((version, body),) = await _missed(kit, store, 1)
    await store.install_blobs(SLOT, [(version, body)])
    await store.set_wanted(SLOT, "p", version, damaged=False)
    await store.close()
    marker = store.path / "slots" / str(SLOT) / "blobs" / version.blob_id / INCOMPLETE_NAME
    marker.write_bytes(b"")
    store = await kit.open(tmp_path / "d")
    assert await store.blob_state(SLOT, version.blob_id) is BlobState.ABSENT
    assert await store.is_whole(SLOT, version)
    assert not marker.exists()
    assert await store.blob_state(SLOT, version.blob_id) is BlobState.DURABLE
    assert await store.wanted(SLOT, 1) == []


async def test_a_damaged_chunk_stays_in_quarantine_and_is_wanted_after_a_start(kit, tmp_path: Path):
    from amberblob.errors import ChunkCorrupt

    store = await kit.open(tmp_path / "d")
    record = kit.record(b"z" * 70 * KIB)
    version = _version(kit, 1, b"z" * 70 * KIB)
    assert record.head is not None
    await store.durable(store.apply(Installed(SLOT, "p", None, None, (version,))))
    await store.install_blobs(SLOT, [(version, b"z" * 70 * KIB)])
    file = store.path / "slots" / str(SLOT) / "blobs" / version.blob_id / "chunks" / version.chunks[0].id
    file.write_bytes(b"y" * 70 * KIB)
    with pytest.raises(ChunkCorrupt):
        await store.read_chunk(SLOT, version.blob_id, version.chunks[0])
    await store.close()
    store = await kit.open(tmp_path / "d")
    assert [(one.version, one.damaged) for one in await store.wanted(SLOT, 10)] == [(version, True)]
    (kept,) = (store.path / "quarantine").iterdir()
    assert kept.read_bytes() == b"y" * 70 * KIB
    await store.install_blobs(SLOT, [(version, b"z" * 70 * KIB)])
    assert kept.exists(), "what was damaged is kept; who looks at it may be wiser"
    assert await store.wanted(SLOT, 10) == []
    assert await store.orphans(SLOT, 1 << 47) == []


async def test_a_chosen_row_keeps_what_was_damaged_before(kit, tmp_path: Path):
    """The bytes failed while the record was undecided: that it becomes chosen makes nothing of them whole."""
    store = await kit.open(tmp_path / "d")
    record = await kit.put(store, SLOT, "p", b"the body", choose=False)
    register = await store.load(SLOT, "p")
    await store.settle([SLOT])
    await store.set_wanted(SLOT, "p", record.head, damaged=True)
    assert register.accepted is not None
    await store.durable(store.apply(Chosen(SLOT, "p", register.accepted)))
    assert [one.damaged for one in await store.wanted(SLOT, 10)] == [True]
