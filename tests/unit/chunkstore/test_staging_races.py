"""A blob on its way in or out, and somebody who goes away, gives it up or brings it a second time meanwhile."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from pathlib import Path

import pytest

from amberblob.ballot import Ballot
from amberblob.errors import DigestMismatch, DiskFailed, DiskFull, StorageError
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Record, Version
from amberblob.mutations import Accepted, Installed
from chunkstore import BlobState
from chunkstore.fileops import FileOps

CHUNK = 1 << 16


class HeldOps(FileOps):
    """Stops at the rename into ``blobs/``, at the making of a slot's folders, or fails syncs, as it is told."""

    def __init__(self) -> None:
        self.hold_publish = False
        self.hold_prepare = False
        self.reached = threading.Event()
        self.go = threading.Event()
        self.sync_error: OSError | None = None
        self.rename_error: OSError | None = None

    def _wait(self) -> None:
        self.reached.set()
        assert self.go.wait(60)

    def rename(self, source: Path, target: Path) -> None:
        if target.parent.name == "blobs":
            if self.hold_publish:
                self._wait()
            if self.rename_error is not None:
                raise self.rename_error
        super().rename(source, target)

    def make_dirs(self, path: Path) -> None:
        if self.hold_prepare and path.name == "staging":
            self._wait()
        super().make_dirs(path)

    def fsync(self, fd: int) -> None:
        if self.sync_error is not None:
            raise self.sync_error
        super().fsync(fd)


@pytest.fixture
def held():
    ops = HeldOps()
    yield ops
    ops.go.set()


def _refs(data: bytes) -> tuple[ChunkRef, ...]:
    parts = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    return tuple(ChunkRef(id=content_hash(part), len=len(part)) for part in parts)


def _version(blob_id: str, data: bytes) -> Version:
    chunks = _refs(data)
    return Version(1, blob_id, len(data), content_hash(data), 1, "t", {}, chunks, None, len(chunks), False)


async def _staged(store, blob_id: str, data: bytes, **options):
    staging = await store.stage(0, blob_id, chunk_bytes=CHUNK, size=len(data), **options)
    await staging.write(data)
    return staging


def _left(disk: Path) -> list[Path]:
    return list((disk / "slots/0/staging").iterdir())


async def _held_publish(kit, disk: Path, held: HeldOps, data: bytes):
    store = await kit.open(disk, ops=held)
    blob_id = kit.mint()
    staging = await _staged(store, blob_id, data)
    held.hold_publish = True
    finishing = asyncio.create_task(staging.finish(_refs(data), None))
    await asyncio.to_thread(held.reached.wait, 60)
    return store, blob_id, staging, finishing


async def test_a_cancelled_finish_publishes_everything(kit, tmp_path: Path, held):
    data = os.urandom(40 * CHUNK)
    store, blob_id, staging, finishing = await _held_publish(kit, tmp_path / "d", held, data)
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        # What the old way removed it removed while the rename waited.
        await asyncio.wait_for(asyncio.shield(finishing), 15)
    assert await store.blob_state(0, blob_id) is BlobState.ABSENT
    held.go.set()
    await staging.abort()
    assert await store.blob_state(0, blob_id) is BlobState.DURABLE
    assert await store.missing_chunks(0, _version(blob_id, data), _refs(data)) == []
    assert _left(tmp_path / "d") == []


async def test_close_waits_for_what_is_being_published(kit, tmp_path: Path, held):
    data = os.urandom(4 * CHUNK)
    store, blob_id, _, finishing = await _held_publish(kit, tmp_path / "d", held, data)
    finishing.cancel()
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0.1)
    assert not closing.done()
    held.go.set()
    await closing
    held.hold_publish = False
    store = await kit.open(tmp_path / "d")
    assert await store.blob_state(0, blob_id) is BlobState.DURABLE
    assert await store.missing_chunks(0, _version(blob_id, data), _refs(data)) == []


async def test_an_answer_that_meets_a_discard_is_not_durable(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    data = os.urandom(3 * CHUNK)
    blob_id = kit.mint()
    await (await _staged(store, blob_id, data)).finish(_refs(data), None)
    await store.close()
    # Memory does not remember having seen the files.
    store = await kit.open(tmp_path / "d")
    gate = threading.Event()
    for _ in range(4):
        store._threads.submit(gate.wait, 60)
    asking = asyncio.create_task(store.blob_state(0, blob_id))
    await asyncio.sleep(0.05)
    giving_up = asyncio.create_task(store.discard(0, blob_id))
    await asyncio.sleep(0.2)
    gate.set()
    assert await asking is not BlobState.DURABLE
    await giving_up
    assert not (tmp_path / "d/slots/0/blobs" / blob_id).exists()


async def test_a_reference_that_comes_while_a_blob_is_given_up_keeps_the_files(kit, tmp_path: Path, monkeypatch):
    store = await kit.open(tmp_path / "d")
    data = os.urandom(2 * CHUNK)
    blob_id = kit.mint()
    await (await _staged(store, blob_id, data)).finish(_refs(data), None)
    await store.load(0, "p")
    record = Record(1, "put", 1, _version(blob_id, data), ((1, 1),), (), 1, 0, None, ())
    facts, asked = store._blobs.states.facts, []

    async def late(slot: int, blob: str):
        found = await facts(slot, blob)
        asked.append(found)
        if len(asked) == 2:
            assert await store.blob_state(slot, blob) is not BlobState.DURABLE
            store.apply(Accepted(0, "p", kit.ballot(), record))
            assert await store.blob_state(slot, blob) is BlobState.ABSENT
        return found

    monkeypatch.setattr(store._blobs.states, "facts", late)
    await store.discard(0, blob_id)
    monkeypatch.undo()
    assert len(asked) >= 2
    assert await store.missing_chunks(0, _version(blob_id, data), _refs(data)) == []
    assert await store.blob_state(0, blob_id) is BlobState.DURABLE


async def test_a_discard_that_meets_the_rename_leaves_nothing(kit, tmp_path: Path, held):
    data = os.urandom(2 * CHUNK)
    store, blob_id, _, finishing = await _held_publish(kit, tmp_path / "d", held, data)
    giving_up = asyncio.create_task(store.discard(0, blob_id))
    await asyncio.sleep(0.1)
    held.go.set()
    await asyncio.gather(giving_up, finishing, return_exceptions=True)
    assert await store.blob_state(0, blob_id) is BlobState.ABORTED
    assert not (tmp_path / "d/slots/0/blobs" / blob_id).exists()


async def test_a_cancelled_discard_goes_on(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    data = os.urandom(CHUNK)
    blob_id = kit.mint()
    await (await _staged(store, blob_id, data)).finish(_refs(data), None)
    giving_up = asyncio.create_task(store.discard(0, blob_id))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    giving_up.cancel()
    await asyncio.gather(giving_up, return_exceptions=True)
    await kit.until(lambda: not (tmp_path / "d/slots/0/blobs" / blob_id).exists())
    await kit.until(lambda: not _left(tmp_path / "d"))


async def test_a_cancelled_stage_leaves_nothing_in_the_way(kit, tmp_path: Path, held):
    store = await kit.open(tmp_path / "d", ops=held)
    blob_id, data = kit.mint(), os.urandom(100)
    held.hold_prepare = True
    first = asyncio.create_task(store.stage(0, blob_id, chunk_bytes=CHUNK, size=100))
    await asyncio.to_thread(held.reached.wait, 60)
    first.cancel()
    await asyncio.sleep(0.1)
    held.go.set()
    assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], asyncio.CancelledError)
    await kit.until(lambda: _left(tmp_path / "d") == [])
    await (await _staged(store, blob_id, data)).finish(_refs(data), None)
    assert store.failed is None


async def test_two_stagings_of_one_blob(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    data = os.urandom(3 * CHUNK)
    for _ in range(20):
        blob_id = kit.mint()
        stagings = [await _staged(store, blob_id, data) for _ in range(3)]
        await asyncio.gather(*(staging.finish(_refs(data), None) for staging in stagings))
        assert await store.blob_state(0, blob_id) is BlobState.DURABLE
        assert await store.missing_chunks(0, _version(blob_id, data), _refs(data)) == []
    assert store.failed is None and _left(tmp_path / "d") == []


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ENOTEMPTY, errno.ENOENT])
async def test_an_error_of_one_blob_is_not_the_disks(kit, tmp_path: Path, held, number: int):
    store = await kit.open(tmp_path / "d", ops=held)
    data, blob_id = os.urandom(100), kit.mint()
    staging = await _staged(store, blob_id, data)
    held.rename_error = OSError(number, os.strerror(number))
    with pytest.raises(StorageError) as caught:
        await staging.finish(_refs(data), None)
    assert type(caught.value) is StorageError and store.failed is None
    assert await store.blob_state(0, blob_id) is BlobState.ABSENT
    held.rename_error = None
    await (await _staged(store, blob_id, data)).finish(_refs(data), None)
    assert await store.blob_state(0, blob_id) is BlobState.DURABLE


async def _row_comes(store, version: Version) -> None:
    record = Record(1, "put", 1, version, ((1, 1),), (), 1, 0, None, ())
    ballot = Ballot(1, 1, "another", "attempt")
    await store.durable(store.apply(Installed(0, "p", ballot, record, (version,))))


async def _wanted(store) -> list[str]:
    return [one.version.blob_id for one in await store.wanted(0, 10)]


@pytest.mark.parametrize("row_comes_first", [True, False])
async def test_a_row_wants_bytes_that_were_staged_and_never_got_their_name(
    kit, tmp_path: Path, held, row_comes_first: bool
):
    data = os.urandom(4 * CHUNK)
    store, blob_id, _, finishing = await _held_publish(kit, tmp_path / "d", held, data)
    version = _version(blob_id, data)
    if row_comes_first:
        await _row_comes(store, version)
    killed = await kit.open(await kit.copy_still(store, tmp_path / "copy"))
    if not row_comes_first:
        await _row_comes(killed, version)
    assert await _wanted(killed) == [blob_id]
    assert not await killed.is_whole(0, version)
    # Where nobody was killed they have their name soon, and whoever looks finds them.
    held.go.set()
    await finishing
    await _row_comes(store, version)
    assert await store.is_whole(0, version) and await _wanted(store) == []


async def test_a_row_wants_bytes_whose_name_was_refused(kit, tmp_path: Path, held):
    store = await kit.open(tmp_path / "d", ops=held)
    data, blob_id = os.urandom(100), kit.mint()
    staging = await _staged(store, blob_id, data)
    held.rename_error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with pytest.raises(StorageError):
        await staging.finish(_refs(data), None)
    await _row_comes(store, _version(blob_id, data))
    assert await _wanted(store) == [blob_id]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.EUCLEAN])
async def test_an_error_of_the_disk_is_the_disks(kit, tmp_path: Path, held, number: int):
    store = await kit.open(tmp_path / "d", ops=held)
    data = os.urandom(100)
    staging = await _staged(store, kit.mint(), data)
    held.rename_error = OSError(number, os.strerror(number))
    with pytest.raises(DiskFailed):
        await staging.finish(_refs(data), None)
    assert store.failed


async def test_a_failed_sync_is_the_disks_whatever_its_number(kit, tmp_path: Path, held):
    store = await kit.open(tmp_path / "d", ops=held)
    data = os.urandom(100)
    staging = await _staged(store, kit.mint(), data)
    held.sync_error = OSError(errno.EINVAL, "Invalid argument")
    with pytest.raises(DiskFailed):
        await staging.finish(_refs(data), None)
    assert store.failed
    held.sync_error = None


async def test_failing_syncs_leave_no_descriptor_open(kit, tmp_path: Path, held):
    store = await kit.open(tmp_path / "d", ops=held)
    await store.rows(0, "p")
    await store.scan("", "", "", 1)  # whatever opens its databases when it likes has done so
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        staging = await store.stage(0, kit.mint(), chunk_bytes=CHUNK, size=None)
        held.sync_error = OSError(errno.ENOSPC, "No space left on device")
        with pytest.raises(DiskFull):
            await staging.write(os.urandom(64 * CHUNK))
            await staging.finish((), None)
        held.sync_error = None
    for _ in range(200):
        # The disk's own threads open and close folders meanwhile.
        if len(os.listdir("/proc/self/fd")) <= before:
            break
        await asyncio.sleep(0.05)
    assert len(os.listdir("/proc/self/fd")) <= before
    assert store.failed is None and _left(tmp_path / "d") == []


async def test_an_abort_from_elsewhere_ends_a_writer(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    data = os.urandom(20 * CHUNK)
    staging = await store.stage(0, kit.mint(), chunk_bytes=CHUNK, size=None)
    await staging.write(data)
    finishing = asyncio.create_task(staging.finish(_refs(data), None))
    await asyncio.sleep(0)
    await staging.abort()
    await staging.abort()
    with pytest.raises((StorageError, DigestMismatch)):
        await finishing
    assert _left(tmp_path / "d") == []


async def test_bytes_that_come_after_the_disk_was_closed(kit, tmp_path: Path):
    """Found by the simulation of whole nodes: an upload under way at a stop was an internal error."""
    store = await kit.open(tmp_path / "d")
    staging = await store.stage(1, kit.mint(), chunk_bytes=CHUNK, size=None)
    await staging.write(b"x" * 10)
    await store.close()
    with pytest.raises(StorageError, match="given up"):
        await staging.write(b"y")
    with pytest.raises(StorageError, match="given up"):
        await staging.finish((), None)
    await staging.abort()
