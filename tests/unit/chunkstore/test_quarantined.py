"""What went to quarantine is noted as missing whoever found it, and is known to be after the next start whatever became of that note."""

from __future__ import annotations

import asyncio
import errno
import shutil
import threading
from pathlib import Path

import pytest

from amberblob.errors import ChunkCorrupt, DiskFailed
from amberblob.ids import content_hash
from chunkstore import BlobState, DiskStore
from chunkstore.fileops import FileOps
from chunkstore.files import MANIFEST_NAME, BlobFiles
from tests.contract.chunkstore.archive_kit import Stored, brought, brought_and_evicted, put_back, tell
from tests.contract.chunkstore.kit import SLOT, choose, put


def rot(store: DiskStore, one: Stored, name: str) -> None:
    """Change a byte of a file of the blob."""
    (path,) = (store.path / "slots" / str(SLOT) / "blobs" / one.version.blob_id).rglob(name)
    data = path.read_bytes()
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])


async def read_rotten(store: DiskStore, one: Stored, *, manifest: bool = False) -> None:
    """Read what rotted: its file goes to quarantine."""
    if manifest:
        rot(store, one, "manifest.json")
        reading = store.read_manifest(SLOT, one.version.blob_id, one.version.manifest_id or "")
    else:
        rot(store, one, one.chunks[0].id)
        reading = store.read_chunk(SLOT, one.version.blob_id, one.chunks[0])
    with pytest.raises(ChunkCorrupt):
        await reading


async def reopened(kit, store: DiskStore, before: Path) -> DiskStore:
    """The disk after a power cut that took the slot's tables back to what they were."""
    await store.close()
    folder = store.path / "slots" / str(SLOT)
    for path in folder.glob("meta*"):
        path.unlink()
    for path in (before / "slots" / str(SLOT)).glob("meta*"):
        shutil.copyfile(path, folder / path.name)
    return await kit.open(store.path)


async def wanted(store: DiskStore) -> list[str]:
    """Blobs of which bytes are wanted because they were damaged."""
    return [one.version.blob_id for one in await store.wanted(SLOT, 10) if one.damaged]


@pytest.mark.parametrize("manifest", [False, True])
async def test_a_power_cut_takes_the_note_back(kit, tmp_path: Path, manifest: bool):
    store = await kit.open(tmp_path / "d")
    one = await brought(store, "manifest" if manifest else "files")
    await store.settle([SLOT])
    before = await kit.copy_still(store, tmp_path / "before")
    await read_rotten(store, one, manifest=manifest)
    assert await wanted(store) == [one.version.blob_id]
    store = await reopened(kit, store, before)
    assert await wanted(store) == [one.version.blob_id] and store.tally(SLOT).wanted == 1
    assert await store.blob_state(SLOT, one.version.blob_id) is BlobState.ABSENT


async def test_a_disk_that_failed_took_no_note(kit, tmp_path: Path, faulty):
    """The journal of a full disk had ended, so that nothing more could be asked of the tables."""
    store = await kit.open(tmp_path / "d", ops=faulty, linger_s=60.0)
    one = await brought(store, "files")
    faulty.errors["fdatasync"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskFailed):
        await tell(store, one.version, one.rows())
    await read_rotten(store, one)
    assert len(list((tmp_path / "d/quarantine").iterdir())) == 1
    await store.close()
    faulty.errors.clear()
    assert await wanted(await kit.open(tmp_path / "d")) == [one.version.blob_id]


async def test_what_was_put_back_is_not_wanted_again(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    one = await brought(store, "manifest")
    await read_rotten(store, one)
    await put_back(store, one)
    await read_rotten(store, one, manifest=True)
    await put_back(store, one)
    assert await store.is_whole(SLOT, one.version)
    await store.close()
    store = await kit.open(tmp_path / "d")
    assert await store.wanted(SLOT, 10) == [] and store.tally(SLOT).damaged == 0
    assert await store.is_whole(SLOT, one.version)


async def test_what_lives_by_its_archive_rows_needs_no_chunk_and_its_manifest(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    one = await brought(store, "manifest")
    await read_rotten(store, one)
    await put_back(store, one)
    await tell(store, one.version, one.rows())
    assert await store.evict(SLOT, "a", one.version) == one.size_bytes
    await store.settle([SLOT])
    before = await kit.copy_still(store, tmp_path / "before")
    store = await reopened(kit, store, before)
    assert await store.wanted(SLOT, 10) == [] and await store.is_evicted(SLOT, one.version.blob_id)
    await read_rotten(store, one, manifest=True)
    store = await reopened(kit, store, before)
    assert await wanted(store) == [one.version.blob_id]
    assert not await store.is_evicted(SLOT, one.version.blob_id)


async def test_what_nothing_refers_to_is_not_wanted(kit, tmp_path: Path):
    """Nor do slot databases and inline bodies in quarantine, or what an operator left there, keep a disk from its start."""
    store = await kit.open(tmp_path / "d")
    one = await brought_and_evicted(store, "file", "b", 5)
    await choose(store, "c", put(1, body=b"inline"), 6)
    await store.close()
    quarantine = tmp_path / "d/quarantine"
    quarantine.mkdir(exist_ok=True)
    blob_id, lone, nothing = one.version.blob_id, "01ARZ3NDEKTSV4RRFFQ69G5FAV", "a" * 64
    (tmp_path / f"d/slots/{SLOT}/blobs/{lone}/chunks").mkdir(parents=True)
    names = (
        f"{SLOT}-{blob_id}",
        f"{SLOT}-{lone}-{nothing}-{lone}",
        f"99-{blob_id}-{nothing}-{lone}",
        "a-b-c-d",
        "notes",
    )
    for name in names:
        (quarantine / name).write_bytes(b"")
    store = await kit.open(tmp_path / "d")
    assert await store.wanted(SLOT, 10) == [] and 99 not in store.slots()


def test_many_names_of_one_blob_cost_no_more_than_one(tmp_path: Path, monkeypatch):
    """A disk that rots has thousands of them, and a manifest may have megabytes."""
    blob_id = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    read: list[Path] = []
    blob = tmp_path / f"slots/{SLOT}/blobs/{blob_id}"
    (blob / "chunks").mkdir(parents=True)
    (tmp_path / "quarantine").mkdir()
    (blob / MANIFEST_NAME).write_bytes(b"manifest")
    ids = [content_hash(str(number).encode()) for number in range(100)]
    for one in (content_hash(b"manifest"), *ids):
        (tmp_path / f"quarantine/{SLOT}-{blob_id}-{one}-{blob_id}").write_bytes(b"")
    read_bytes = Path.read_bytes

    def counted(path: Path) -> bytes:
        read.append(path)
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", counted)
    files = BlobFiles(tmp_path, FileOps(), lambda: blob_id)
    assert files.quarantined() == [(SLOT, blob_id, False)] and len(read) <= 1
    for one in ids:
        (blob / "chunks" / one).write_bytes(b"")
    assert files.quarantined() == [] and len(read) <= 2
    (blob / MANIFEST_NAME).unlink()
    assert files.quarantined() == [(SLOT, blob_id, True)]


class Waiting(FileOps):
    """Waits before it moves something to quarantine."""

    def __init__(self) -> None:
        self.at = threading.Event()
        self.go = threading.Event()

    def rename(self, source: Path, target: Path) -> None:
        if target.parent.name == "quarantine":
            self.at.set()
            self.go.wait(30)
        super().rename(source, target)


async def test_a_reader_that_went_away_leaves_the_note(kit, tmp_path: Path):
    """A client closes its connection while a thread moves what it read ahead."""
    ops = Waiting()
    store = await kit.open(tmp_path / "d", ops=ops)
    one = await brought(store, "files")
    rot(store, one, one.chunks[0].id)
    reading = asyncio.create_task(store.read_chunk(SLOT, one.version.blob_id, one.chunks[0]))
    await kit.until(ops.at.is_set)
    reading.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled() and await wanted(store) == []
    ops.go.set()
    await kit.until(lambda: store.tally(SLOT).damaged == 1)
    assert await wanted(store) == [one.version.blob_id]
    assert await store.blob_state(SLOT, one.version.blob_id) is BlobState.ABSENT


@pytest.mark.parametrize("finder", ["evict", "is_whole"])
async def test_who_only_wanted_to_know_leaves_the_note(kit, tmp_path: Path, finder: str):
    store = await kit.open(tmp_path / "d")
    one = await brought(store, "manifest")
    await tell(store, one.version, one.rows())
    rot(store, one, "manifest.json")
    if finder == "evict":
        assert await store.evict(SLOT, "a", one.version) is None
    else:
        assert not await store.is_whole(SLOT, one.version)
    await kit.until(lambda: store.tally(SLOT).damaged == 1)
    assert await wanted(store) == [one.version.blob_id]
    await put_back(store, one)
    assert await store.is_whole(SLOT, one.version) and await store.wanted(SLOT, 10) == []
