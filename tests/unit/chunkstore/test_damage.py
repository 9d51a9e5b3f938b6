"""What a bad disk does: lost and corrupt databases, rotten chunks, full disks, failing syncs."""

from __future__ import annotations

import asyncio
import errno
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from amberblob.errors import ChunkCorrupt, ChunkMissing, DiskFailed, DiskFull, DiskInUse, DiskMismatch
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Record, Version
from amberblob.mutations import Accepted, Chosen, EpochSeen
from chunkstore import BlobState, applying, slotdb, sqlite
from chunkstore.doctor import examine


async def _used_disk(kit, disk: Path) -> None:
    store = await kit.open(disk)
    for n in range(12):
        await kit.put(store, n % 3, f"p{n}")
    await store.close()


async def test_a_slot_database_that_vanished_is_lost(kit, tmp_path: Path):
    await _used_disk(kit, tmp_path / "d")
    (tmp_path / "d/slots/1/meta.sqlite3").unlink()
    store = await kit.open(tmp_path / "d")
    (lost,) = store.lost_slots
    assert lost.slot == 1 and store.incarnations() == {1: lost.incarnation}
    assert store.slot_state(1).incarnation == lost.incarnation != store.disk_id
    assert (await store.load(0, "p0")).chosen and (await store.load(2, "p2")).chosen
    assert {entry.slot for entry in (await store.scan("", "", "", 100)).entries} == {0, 2} | (
        {1} if (await store.load(1, "p1")).record else set()
    )
    await kit.put(store, 1, "new")
    await store.close()
    store = await kit.open(tmp_path / "d")
    assert store.lost_slots == [] and store.incarnations() == {1: lost.incarnation}
    assert (await store.load(1, "new")).chosen


@pytest.mark.parametrize("garbage", [b"this is no database at all" * 400, b""])
async def test_a_corrupt_slot_database_goes_to_quarantine(kit, tmp_path: Path, garbage: bytes):
    await _used_disk(kit, tmp_path / "d")
    (tmp_path / "d/slots/1/meta.sqlite3").write_bytes(garbage)
    store = await kit.open(tmp_path / "d")
    (lost,) = store.lost_slots
    assert lost.quarantine is not None
    assert (tmp_path / "d" / lost.quarantine / "meta.sqlite3").read_bytes() == garbage
    assert list(store.incarnations()) == [1]
    assert (await store.load(0, "p0")).chosen


async def test_a_slot_database_that_rots_while_running(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", registers_clean_max=1)
    for n in range(400):
        await kit.put(store, n % 2, f"p{n:03}", bytes(3000))
    await store.close()
    path = tmp_path / "d/slots/1/meta.sqlite3"
    data = bytearray(path.read_bytes())
    data[8192:] = b"\xff" * (len(data) - 8192)
    path.write_bytes(data)
    store = await kit.open(tmp_path / "d", registers_clean_max=1)
    for n in range(400):
        await store.load(n % 2, f"p{n:03}")
    assert [lost.slot for lost in store.lost_slots] == [1]
    await kit.until(lambda: list(store.incarnations()) == [1])
    assert (await store.load(0, "p000")).chosen
    await kit.put(store, 1, "p001")
    assert [entry.path for entry in (await store.scan("p001", "", "", 5)).entries] == ["p001"]
    # What the journal still held of the lost slot is there again; the listing says just that.
    listed = [entry.path for entry in (await store.scan("", "", "", 1000)).entries if entry.slot == 1]
    there = [f"p{n:03}" for n in range(1, 400, 2) if (await store.load(1, f"p{n:03}")).record is not None]
    assert listed == there and len(there) < 200


async def test_an_unfinished_database_is_made_anew_from_the_journal(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await kit.put(store, 1, "a")
    assert await store.rows(1, "a")
    folder = await kit.copy_still(store, tmp_path / "copy")
    assert (folder / "slots/1/meta.sqlite3").exists()
    for path in (folder / "slots/1").glob("meta.sqlite3*"):
        path.write_bytes(b"torn" * 500)
    again = await kit.open(folder)
    assert again.lost_slots == [] and again.incarnations() == {}
    assert (await again.load(1, "a")).chosen


async def test_an_unfinished_database_is_not_believed(kit, tmp_path: Path):
    """It was never synced: after a power cut it may look sound and lack what was acknowledged."""
    store = await kit.open(tmp_path / "d")
    await kit.put(store, 1, "p")
    assert await store.rows(1, "p")
    folder = await kit.copy_still(store, tmp_path / "copy")
    with closing(sqlite3.connect(folder / "slots/1/meta.sqlite3")) as database:
        database.execute("DELETE FROM registers")
        database.execute("DELETE FROM blobs")
        database.commit()
    again = await kit.open(folder)
    assert (await again.load(1, "p")).chosen and again.lost_slots == []


@pytest.mark.parametrize("table", ["intents", "slot_meta", "registers"])
async def test_damage_that_shows_only_at_the_end_of_a_start(kit, tmp_path: Path, table: str):
    await _used_disk(kit, tmp_path / "d")
    path = tmp_path / "d/slots/1/meta.sqlite3"
    with closing(sqlite3.connect(path)) as database:
        (root,) = database.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (table,)).fetchone()
        (size,) = database.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    store = await kit.open(tmp_path / "d")
    await store.load(1, "p1")
    assert [lost.slot for lost in store.lost_slots] == [1]
    assert (await store.load(0, "p0")).chosen


async def test_a_database_that_says_nonsense_of_itself_is_lost(kit, tmp_path: Path):
    await _used_disk(kit, tmp_path / "d")
    with closing(sqlite3.connect(tmp_path / "d/slots/1/meta.sqlite3")) as database:
        database.execute("DELETE FROM slot_meta")
        database.execute("PRAGMA ignore_check_constraints = ON")
        database.execute("INSERT INTO slot_meta(id, incarnation, promise_ceiling) VALUES (1, 'x', 'rubbish')")
        database.commit()
    store = await kit.open(tmp_path / "d")
    assert [lost.slot for lost in store.lost_slots] == [1]


@pytest.mark.parametrize("damage", ["missing", "garbage"])
async def test_the_index_is_made_anew(kit, tmp_path: Path, damage: str):
    await _used_disk(kit, tmp_path / "d")
    path = tmp_path / "d/index.sqlite3"
    path.unlink()
    if damage == "garbage":
        path.write_bytes(b"\x01" * 9999)
    store = await kit.open(tmp_path / "d")
    assert len((await store.scan("", "", "", 100)).entries) == 12


async def test_a_rotten_chunk_goes_to_quarantine_and_is_mended(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    data = b"a" * 65536 + b"b" * 100
    blob_id = kit.mint()
    chunks = await kit.stage(store, 3, blob_id, data)
    head = Version(1, blob_id, len(data), content_hash(data), 1, "t", {}, chunks, None, 2, False)
    await store.load(3, "a")
    await store.durable(
        store.apply(Accepted(3, "a", kit.ballot(), Record(1, "put", 1, head, ((1, 1),), (), 1, 0, None, ())))
    )
    path = tmp_path / f"d/slots/3/blobs/{blob_id}/chunks/{chunks[0].id}"
    path.write_bytes(b"x" + path.read_bytes()[1:])
    with pytest.raises(ChunkCorrupt):
        await store.read_chunk(3, blob_id, chunks[0])
    (bad,) = (tmp_path / "d/quarantine").iterdir()
    assert bad.name.startswith(f"3-{blob_id}-{chunks[0].id}-")
    with pytest.raises(ChunkMissing):
        await store.read_chunk(3, blob_id, chunks[0])
    assert await store.blob_state(3, blob_id) is BlobState.ABSENT
    assert await store.missing_chunks(3, head, chunks) == [chunks[0]]
    await store.install_chunk(3, head, chunks[0], data[:65536])
    assert await store.read_chunk(3, blob_id, chunks[0]) == data[:65536]
    assert await store.blob_state(3, blob_id) is BlobState.DURABLE


async def test_a_rotten_inline_body_goes_to_quarantine_and_is_mended(kit, tmp_path: Path):
    import sqlite3

    store = await kit.open(tmp_path / "d")
    record = await kit.put(store, 3, "a", b"hello")
    await store.close()
    connection = sqlite3.connect(tmp_path / "d/slots/3/meta.sqlite3")
    connection.execute("UPDATE inline_bodies SET body = x'00'")
    connection.commit()
    connection.close()
    store = await kit.open(tmp_path / "d")
    with pytest.raises(ChunkCorrupt):
        await store.read_chunk(3, record.head.blob_id, record.head.chunks[0])
    assert len(list((tmp_path / "d/quarantine").iterdir())) == 1
    with pytest.raises(ChunkMissing):
        await store.read_chunk(3, record.head.blob_id, record.head.chunks[0])
    await store.install_chunk(3, record.head, record.head.chunks[0], b"hello")
    again = await kit.open(await kit.copy_still(store, tmp_path / "copy"))
    assert await again.read_chunk(3, record.head.blob_id, record.head.chunks[0]) == b"hello"


async def test_a_failed_sync_is_the_end_of_the_disk(kit, tmp_path: Path, faulty):
    store = await kit.open(tmp_path / "d", ops=faulty)
    await kit.put(store, 1, "a")
    faulty.errors["fdatasync"] = OSError(errno.EIO, "Input/output error")
    positions = [store.apply(EpochSeen(1, n)) for n in range(3)]
    results = await asyncio.gather(*map(store.durable, positions), return_exceptions=True)
    assert all(isinstance(result, DiskFailed) for result in results)
    assert "restart the node" in (store.failed or "")
    faulty.errors.clear()
    faulty.calls.clear()
    with pytest.raises(DiskFailed):
        store.apply(EpochSeen(1, 9))
    with pytest.raises(DiskFailed):
        await store.durable(positions[-1])
    with pytest.raises(DiskFailed):
        await store.stage(1, kit.mint(), chunk_bytes=1 << 16, size=1)
    assert "fdatasync" not in faulty.calls
    assert (await store.load(1, "a")).chosen
    await store.close()
    again = await kit.open(tmp_path / "d")
    assert (await again.load(1, "a")).chosen


async def test_questions_that_wait_for_a_failed_entry_fail(kit, tmp_path: Path, faulty):
    store = await kit.open(tmp_path / "d", ops=faulty)
    await kit.put(store, 1, "a")
    faulty.errors["fdatasync"] = OSError(errno.EIO, "Input/output error")
    await store.load(1, "b")
    store.apply(Chosen(1, "b", kit.ballot(), kit.record()))
    with pytest.raises(DiskFailed):
        await store.rows(1, "b")
    with pytest.raises(DiskFailed):
        await store.scan("", "", "", 1)
    assert len(await store.rows(1, "a")) == 1


@pytest.mark.parametrize("call", ["fsync", "write", "rename"])
async def test_an_error_while_staging_leaves_nothing(kit, tmp_path: Path, faulty, call: str):
    store = await kit.open(tmp_path / "d", ops=faulty)
    await kit.stage(store, 1, kit.mint(), b"first")
    faulty.errors[call] = OSError(errno.EIO, "Input/output error")
    with pytest.raises(DiskFailed):
        await kit.stage(store, 1, kit.mint(), b"second")
    assert store.failed
    assert not list((tmp_path / "d/slots/1/staging").iterdir())
    faulty.errors.clear()


@pytest.mark.parametrize("call", ["allocate", "write"])
async def test_no_room_while_staging_is_no_failure(kit, tmp_path: Path, faulty, call: str):
    store = await kit.open(tmp_path / "d", ops=faulty)
    await kit.stage(store, 1, kit.mint(), b"first")
    faulty.errors[call] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskFull):
        await kit.stage(store, 1, kit.mint(), b"second")
    faulty.errors.clear()
    assert store.failed is None
    await kit.stage(store, 1, kit.mint(), b"third")


async def test_below_the_reserve_bytes_are_refused_and_commits_are_not(kit, tmp_path: Path, faulty):
    store = await kit.open(tmp_path / "d", ops=faulty, reserve_bytes=100 << 20)
    record = await kit.put(store, 1, "a")
    assert not store.full
    faulty.free = 99 << 20
    await kit.until(lambda: store.full)
    with pytest.raises(DiskFull, match="MiB are kept in reserve"):
        await store.stage(1, kit.mint(), chunk_bytes=1 << 16, size=1)
    with pytest.raises(DiskFull):
        await store.install_chunk(1, record.head, record.head.chunks[0], b"body")
    await kit.put(store, 1, "a")
    faulty.free = 1 << 40
    await kit.until(lambda: not store.full)
    with pytest.raises(DiskFull):
        await store.stage(1, kit.mint(), chunk_bytes=1 << 16, size=1 << 40)


async def test_the_ballast_goes_when_a_segment_finds_no_room(kit, tmp_path: Path, faulty):
    store = await kit.open(tmp_path / "d", ops=faulty, reserve_bytes=4 << 20, segment_bytes=4 << 20)
    ballast = tmp_path / "d/ballast"
    await kit.until(lambda: ballast.exists() and ballast.stat().st_size == 1 << 20)
    real = type(faulty).allocate

    def allocate(fd: int, size_bytes: int) -> None:
        if size_bytes > 2 << 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(faulty, fd, size_bytes)

    faulty.allocate = allocate
    for n in range(90):
        await kit.put(store, 1, f"p{n}", bytes(60_000))
    assert not ballast.exists() and store.failed is None


async def test_a_start_without_any_room_says_so(kit, tmp_path: Path, faulty):
    """Found by the nemesis: the operator was told that the disk had failed."""
    await _used_disk(kit, tmp_path / "d")

    def allocate(fd: int, size_bytes: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    faulty.allocate = allocate
    with pytest.raises(DiskFull, match="no room left for a start"):
        await kit.open(tmp_path / "d", ops=faulty)
    store = await kit.open(tmp_path / "d")
    assert (await store.load(0, "p0")).chosen


async def test_a_full_database_is_not_called_a_failed_disk(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")

    def full():
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    with pytest.raises(DiskFull, match="needs room"):
        await store._core._database.call(full)
    assert store.failed is None


async def test_a_kill_while_a_lost_database_is_made_anew(kit, tmp_path: Path, monkeypatch):
    """Half of it, without a row of its own yet, was given the first incarnation: an empty memory that votes."""
    await _used_disk(kit, tmp_path / "d")
    for path in (tmp_path / "d/slots/1").glob("meta.sqlite3*"):
        path.unlink()
    killed = tmp_path / "killed"
    real = sqlite.migrate

    def migrate(connection, migrations):
        version = real(connection, migrations)
        if connection.execute("SELECT count(*) FROM slot_meta").fetchone() == (0,) and not killed.exists():
            kit.copy(tmp_path / "d", killed)
        return version

    monkeypatch.setattr("chunkstore.slotdb.migrate", migrate)
    (lost,) = (await kit.open(tmp_path / "d")).lost_slots
    assert lost.slot == 1 and killed.exists()
    store = await kit.open(killed)
    assert [again.slot for again in store.lost_slots] == [1]
    assert store.slot_state(1).incarnation not in (store.disk_id, lost.incarnation)


async def test_a_sync_that_fails_when_a_database_is_put_aside_is_heard(kit, tmp_path: Path, monkeypatch):
    store = await kit.open(tmp_path / "d", open_databases_max=1)
    await kit.put(store, 1, "p")
    assert await store.rows(1, "p")

    def broken(self):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    monkeypatch.setattr(slotdb.SlotDatabase, "checkpoint", broken)
    await kit.put(store, 2, "q")
    with pytest.raises(DiskFailed):
        await store.rows(2, "q")
    await kit.until(lambda: store.failed is not None)


async def test_a_disk_that_is_full_closes_while_an_upload_waits_for_room(kit, tmp_path: Path, monkeypatch):
    store = await kit.open(tmp_path / "d", unapplied_bytes_max=100_000, linger_s=0.01)
    await kit.put(store, 0, "p")

    def full(self, *entries):
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    monkeypatch.setattr(applying.SlotBatch, "apply", full)
    waiting = [asyncio.create_task(kit.put(store, 0, f"q{n}", bytes([n]) * 60_000)) for n in range(4)]
    await kit.until(lambda: store._core.overlay.unapplied_bytes > 100_000)
    waiting.append(asyncio.create_task(kit.stage(store, 1, kit.mint(), b"z" * 100_000)))
    await kit.until(lambda: store._blobs.arriving._active)
    async with asyncio.timeout(60):
        await store.close()
    assert all(isinstance(ended, Exception) for ended in await asyncio.gather(*waiting, return_exceptions=True))


async def test_identity(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    with pytest.raises(DiskInUse, match="process"):
        await kit.open(tmp_path / "d")
    await store.close()
    toml = tmp_path / "d/disk.toml"
    good = toml.read_text()
    for old, new, why in (
        ('cluster_id = "c"', 'cluster_id = "other"', "belongs to cluster 'other'"),
        ('node_id = "n"', 'node_id = "other"', "belongs to node 'other'"),
        ("format_version = 1", "format_version = 99", "format 99"),
        ("disk_id", "disc_id", "cannot be understood"),
    ):
        toml.write_text(good.replace(old, new))
        with pytest.raises(DiskMismatch, match=why):
            await kit.open(tmp_path / "d")
    toml.unlink()
    with pytest.raises(DiskMismatch, match="not empty"):
        await kit.open(tmp_path / "d")
    toml.write_text(good)
    assert (await kit.open(tmp_path / "d")).disk_id == store.disk_id


async def test_the_doctor(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", linger_s=60.0)  # no database is being made meanwhile
    blob_id = kit.mint()
    chunks = await kit.stage(store, 1, blob_id, b"z" * 70_000)
    head = Version(1, blob_id, 70_000, content_hash(b"z" * 70_000), 1, "t", {}, chunks, None, 2, False)
    await store.load(1, "big")
    store.apply(Chosen(1, "big", kit.ballot(), Record(1, "put", 1, head, ((1, 1),), (), 1, 0, None, ())))
    await kit.put(store, 2, "small")
    await store.scan("", "", "", 1)
    report = await asyncio.to_thread(examine, tmp_path / "d", deep=True)
    assert report.in_use and report.healthy, report.findings
    await store.close()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*") if path.is_file()}
    report = examine(tmp_path / "d", deep=True)
    assert report.findings == [] and report.counts["chunks_hashed"] == 2 and report.counts["versions"] == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "d").rglob("*") if path.is_file()} == before
    folder = tmp_path / f"d/slots/1/blobs/{blob_id}/chunks"
    (folder / chunks[0].id).write_bytes(b"q" * 65536)
    (folder / chunks[1].id).unlink()
    (tmp_path / "d/slots/2/meta.sqlite3").write_bytes(b"no" * 999)
    report = examine(tmp_path / "d", deep=True)
    assert not report.healthy
    text = json.dumps(report.as_dict())
    for wanted in ("fails its hash", "1 chunks are missing", "SQLite says"):
        assert wanted in text
    assert not examine(tmp_path, deep=False).healthy


async def test_a_chunk_of_the_wrong_length_is_missing(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    blob_id = kit.mint()
    chunks = await kit.stage(store, 1, blob_id, b"abc")
    (tmp_path / f"d/slots/1/blobs/{blob_id}/chunks/{chunks[0].id}").write_bytes(b"ab")
    head = Version(1, blob_id, 3, content_hash(b"abc"), 1, "t", {}, chunks, None, 1, False)
    assert await store.missing_chunks(1, head, chunks) == list(chunks)
    with pytest.raises(ChunkCorrupt):
        await store.read_chunk(1, blob_id, ChunkRef(id=chunks[0].id, len=3))


@pytest.mark.parametrize("damage", ["shorter", "longer", "changed"])
async def test_a_damaged_chunk_is_not_read_into_memory_either(kit, tmp_path: Path, damage: str):
    store = await kit.open(tmp_path / "d")
    blob_id = kit.mint()
    data = b"b" * 70_000
    (chunk,) = await kit.stage(store, 1, blob_id, data, chunk_bytes=1 << 17)
    path = tmp_path / f"d/slots/1/blobs/{blob_id}/chunks/{chunk.id}"
    path.write_bytes({"shorter": data[:-1], "longer": data + b"b", "changed": data[:-1] + b"c"}[damage])
    with pytest.raises(ChunkCorrupt):
        await store.read_chunk_into(1, blob_id, chunk, memoryview(bytearray(1 << 17)))
    assert await store.blob_state(1, blob_id) is BlobState.ABSENT
    with pytest.raises(ChunkMissing):
        await store.read_chunk_into(1, blob_id, chunk, memoryview(bytearray(1 << 17)))


async def test_the_doctor_finds_nothing_wrong_with_a_slot_that_only_an_upload_began(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    staging = await store.stage(9, kit.mint(), chunk_bytes=100, size=None)
    await staging.abort()
    await store.close()
    assert (tmp_path / "d/slots/9").is_dir()
    assert examine(tmp_path / "d", deep=True).healthy
