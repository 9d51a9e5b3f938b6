"""Evicting on a disk that is killed, loses its newest tables, or does something else at the same time: every chunk stays held."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from amberblob.archives import DAMAGED
from amberblob.errors import ChunkMissing, DiskFailed
from amberblob.mutations import Archived, Evicted, Installed
from chunkstore import BlobState, DiskStore
from chunkstore.doctor import examine
from chunkstore.fileops import FileOps
from chunkstore.schema import SLOT_MIGRATIONS
from chunkstore.slotdb import SlotDatabase
from chunkstore.sqlite import migrate
from tests.contract.chunkstore.archive_kit import (
    KINDS,
    OTHER,
    Stored,
    brought,
    brought_and_evicted,
    made,
    put_back,
    row,
    tell,
)
from tests.contract.chunkstore.kit import NOW, SLOT, bring_expiry, choose, mint, stage
from tests.folders import files_below

kinds = pytest.mark.parametrize("kind", KINDS)


class Dying(FileOps):
    """Takes the disk as it is at the n-th call that changes something of a blob's files, or syncs the journal."""

    def __init__(self) -> None:
        self.left = -1
        self.take = lambda: None
        self._lock = threading.Lock()

    def count(self) -> None:
        with self._lock:
            self.left -= 1
            if self.left == 0:
                self.take()

    def end(self) -> bool:
        """No more is counted; whether there were as many."""
        with self._lock:
            met, self.left = self.left <= 0, -1
            return met

    def rename(self, source: Path, target: Path) -> None:
        self.count()
        super().rename(source, target)
        self.count()

    def fsync_dir(self, path: Path) -> None:
        self.count()
        super().fsync_dir(path)

    def fdatasync(self, fd: int) -> None:
        self.count()
        super().fdatasync(fd)

    def unlink(self, path: Path) -> None:
        self.count()
        super().unlink(path)

    def remove_tree(self, path: Path) -> None:
        # Half of it is gone.
        for at, _, names in os.walk(path):
            for name in names[:1]:
                os.unlink(os.path.join(at, name))
        self.count()
        super().remove_tree(path)


def files_of(disk: Path, blob_id: str) -> list[str]:
    """The chunk files of a blob, in place or on their way out."""
    found = [path for path in files_below(disk / "slots") if blob_id in str(path) and path.parent.name in ("chunks",)]
    return sorted(path.name for path in found)


async def held(store: DiskStore, one: Stored) -> bool:
    """Whether the version lives by its rows; raises if nothing holds it."""
    assert await store.is_whole(SLOT, one.version)
    assert await store.blob_state(SLOT, one.version.blob_id) is BlobState.DURABLE
    assert await store.wanted(SLOT, 10) == []
    if one.version.manifest_id is not None:
        await store.read_manifest(SLOT, one.version.blob_id, one.version.manifest_id)
    if not await store.is_evicted(SLOT, one.version.blob_id):
        for chunk, part in zip(one.chunks, one.parts, strict=True):
            assert await store.read_chunk(SLOT, one.version.blob_id, chunk, fresh=True) == part
        return False
    known = await store.archived(SLOT, one.version.blob_id)
    assert known is not None and set(known.chunks) == set(one.rows())
    return True


@kinds
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12])
async def test_killed_while_it_evicts(kit, tmp_path: Path, kind: str, step: int):
    ops = Dying()
    store = await kit.open(tmp_path / "d", ops=ops)
    one = await brought(store, kind)
    await tell(store, one.version, one.rows())
    await store.settle([SLOT])
    ops.take = lambda: kit.copy(tmp_path / "d", tmp_path / "copy")
    ops.left = step
    assert await store.evict(SLOT, "a", one.version) == one.size_bytes
    if not ops.end():
        await kit.copy_still(store, tmp_path / "copy")
    again = await kit.open(tmp_path / "copy")
    # Looking whether it is whole finds bytes that are left, and then the version lives by those.
    if await again.is_evicted(SLOT, one.version.blob_id):
        await again.sweep_garbage(SLOT, 10)
        assert files_of(tmp_path / "copy", one.version.blob_id) == []
        assert await held(again, one)
        assert await again.evict(SLOT, "a", one.version) == 0
        await put_back(again, one)
    assert not await held(again, one)
    assert await again.evict(SLOT, "a", one.version) == one.size_bytes
    assert await held(again, one)


@kinds
async def test_a_power_cut_takes_the_tables_back(kit, tmp_path: Path, kind: str):
    """What SQLite did not sync is lost, and the journal has it."""
    store = await kit.open(tmp_path / "d")
    other = await brought(store, "file", "b", 1)
    await store.settle([SLOT])
    before = await kit.copy_still(store, tmp_path / "before")
    one = await brought(store, kind, "a", 2)
    await tell(store, one.version, one.rows())
    await tell(store, other.version, other.rows())
    assert await store.evict(SLOT, "a", one.version) == one.size_bytes
    await tell(store, one.version, one.rows(target=OTHER, at_ms=NOW + 1, state=DAMAGED))
    await tell(store, other.version, other.rows(state=NOW + 5))
    lines = await store.archived_after(SLOT, 0, 100)
    after = await kit.copy_still(store, tmp_path / "after")
    shutil.rmtree(after / "slots" / str(SLOT) / "blobs" / other.version.blob_id / "chunks")
    for name in os.listdir(after / "slots" / str(SLOT)):
        if name.startswith("meta"):
            os.unlink(after / "slots" / str(SLOT) / name)
    for path in (before / "slots" / str(SLOT)).glob("meta*"):
        shutil.copyfile(path, after / "slots" / str(SLOT) / path.name)
    again = await kit.open(after)
    assert await again.archived_after(SLOT, 0, 100) == lines, "who follows by number misses nothing"
    assert await held(again, one)
    assert await again.sweep_garbage(SLOT, 10) == 0, "its files went before"


async def test_leftovers_are_swept_unless_somebody_put_them_back(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    one, two = await brought(store, "files", "a", 1), await brought(store, "manifest", "b", 2)
    for at in (one, two):
        await tell(store, at.version, at.rows())
        # As a kill right after the entry was durable leaves it.
        ids = tuple(chunk.chunk_id for chunk in at.rows())
        await store.durable(store.apply(Evicted(SLOT, at.path, 1, at.version.blob_id, ids)))
    await store.install_chunk(SLOT, two.version, two.chunks[0], two.parts[0])
    await store.settle([SLOT])
    assert await store.sweep_garbage(SLOT, 10) == 1
    assert files_of(tmp_path / "d", one.version.blob_id) == []
    assert len(files_of(tmp_path / "d", two.version.blob_id)) == 3
    assert await store.is_whole(SLOT, two.version)
    assert not await store.is_evicted(SLOT, two.version.blob_id)
    assert await store.sweep_garbage(SLOT, 10) == 0


@kinds
async def test_evicting_while_it_is_put_back(kit, tmp_path: Path, kind: str):
    store = await kit.open(tmp_path / "d", linger_s=0.0)
    one = await brought_and_evicted(store, kind)
    for _ in range(6):
        await asyncio.gather(
            put_back(store, one), store.evict(SLOT, "a", one.version), store.is_whole(SLOT, one.version),
            store.sweep_garbage(SLOT, 10), store.evict(SLOT, "a", one.version), store.is_whole(SLOT, one.version),
        )  # fmt: skip
        await held(store, one)


async def test_evicting_while_rows_turn_out_to_be_damaged(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", linger_s=0.0)
    for number in range(8):
        one = await brought(store, "files", f"p{number}", number + 1)
        await tell(store, one.version, one.rows())

        async def damage(one: Stored = one, delay: int = number) -> None:
            for _ in range(delay):
                await asyncio.sleep(0)
            store.apply(Archived(SLOT, one.version.blob_id, one.rows(state=DAMAGED)[:1], NOW))

        went, _ = await asyncio.gather(store.evict(SLOT, one.path, one.version), damage())
        assert not await store.is_evicted(SLOT, one.version.blob_id)
        is_wanted = one.version in [found.version for found in await store.wanted(SLOT, 100)]
        assert is_wanted or await store.missing_chunks(SLOT, one.version, one.chunks) == []
        assert is_wanted or went is None


@kinds
async def test_evicting_what_expires(kit, tmp_path: Path, kind: str):
    store = await kit.open(tmp_path / "d", linger_s=0.0)
    first = await brought(store, kind)
    await tell(store, first.version, first.rows())
    second = made("inline", before=first.record)
    await choose(store, "a", second.record, 2, body=second.parts[0])
    await asyncio.gather(
        store.evict(SLOT, "a", first.version), bring_expiry(store, "a", second.record, (1, 1), 3),
        store.sweep_garbage(SLOT, 10),
    )  # fmt: skip
    while await store.sweep_garbage(SLOT, 10):
        pass
    assert files_of(tmp_path / "d", first.version.blob_id) == []
    assert await store.archived(SLOT, first.version.blob_id) is None
    assert not await store.is_evicted(SLOT, first.version.blob_id)
    await store.settle([SLOT])
    assert store.tally(SLOT).evicted == store.tally(SLOT).archived_rows == store.tally(SLOT).wanted == 0
    rows = kit.sql(tmp_path / "d" / "slots" / str(SLOT) / "meta.sqlite3", "SELECT * FROM evicted")
    assert rows == []


async def test_evicting_a_slot_that_begins_anew(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", linger_s=0.0)
    one = await brought(store, "files")
    await tell(store, one.version, one.rows())
    await asyncio.gather(store.evict(SLOT, "a", one.version), store.begin_anew(SLOT))
    await store.load(SLOT, "a")
    store.apply(Installed(SLOT, "a", None, None, (one.version,)))
    assert not await store.is_evicted(SLOT, one.version.blob_id)
    here = await store.missing_chunks(SLOT, one.version, one.chunks) == []
    assert await store.is_whole(SLOT, one.version) == here
    assert bool(await store.wanted(SLOT, 10)) != here


async def test_who_reads_a_file_reads_on(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    one = await brought(store, "file")
    await tell(store, one.version, one.rows())
    name = files_of(tmp_path / "d", one.version.blob_id)[0]
    path = tmp_path / "d" / "slots" / str(SLOT) / "blobs" / one.version.blob_id / "chunks" / name
    with path.open("rb") as file:
        assert file.read(3) == one.parts[0][:3]
        assert await store.evict(SLOT, "a", one.version) == len(one.parts[0])
        assert not path.exists()
        assert file.read() == one.parts[0][3:]


async def test_an_inline_body_in_memory_is_not_told_after_it_was_given_up(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", linger_s=60.0)
    one = await brought_and_evicted(store, "inline")
    assert store.peek_body(SLOT, one.version.blob_id) is None
    with pytest.raises(ChunkMissing):
        await store.read_chunk(SLOT, one.version.blob_id, one.chunks[0])


async def test_a_disk_that_cannot_sync_gives_nothing_up(kit, tmp_path: Path, faulty):
    store = await kit.open(tmp_path / "d", ops=faulty)
    one = await brought(store, "files")
    await tell(store, one.version, one.rows())
    faulty.errors["fdatasync"] = OSError(5, "Input/output error")
    with pytest.raises(DiskFailed):
        await store.evict(SLOT, "a", one.version)
    assert len(files_of(tmp_path / "d", one.version.blob_id)) == 3
    with pytest.raises(DiskFailed):
        await store.evict(SLOT, "a", one.version)


async def test_files_that_cannot_be_removed_are_found_by_the_next_sweep(kit, tmp_path: Path, faulty):
    store = await kit.open(tmp_path / "d", ops=faulty)
    one = await brought(store, "files")
    await tell(store, one.version, one.rows())
    faulty.errors["rename"] = OSError(13, "Permission denied")
    with pytest.raises(Exception, match="Permission denied"):
        await store.evict(SLOT, "a", one.version)
    faulty.errors.clear()
    assert await store.is_evicted(SLOT, one.version.blob_id)
    assert await store.sweep_garbage(SLOT, 10) == 1
    assert files_of(tmp_path / "d", one.version.blob_id) == []


# ---- tables


@kinds
async def test_rotten_rows_cover_nothing(kit, tmp_path: Path, kind: str):
    store = await kit.open(tmp_path / "d")
    one = await brought_and_evicted(store, kind)

    def rot(database: SlotDatabase) -> None:
        with database.transaction():
            database.connection.execute("UPDATE blob_chunk_archives SET state = 'verified' WHERE pk = 1")

    await store._core.ask(SLOT, rot)
    assert not await store.is_whole(SLOT, one.version)
    assert await store.evict(SLOT, "a", one.version) is None
    await store.set_wanted(SLOT, "a", one.version, damaged=True)
    assert not await store.is_evicted(SLOT, one.version.blob_id)
    assert [found.damaged for found in await store.wanted(SLOT, 10)] == [True]
    await tell(store, one.version, one.rows(), evicted=True)
    assert await held(store, one)


async def test_a_manifest_that_rots_makes_an_evicted_version_wanted(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    one = await brought_and_evicted(store, "manifest")
    (path,) = (tmp_path / "d" / "slots").rglob("manifest.json")
    path.write_bytes(b"[]")
    with pytest.raises(Exception, match="fails its hash"):
        await store.read_manifest(SLOT, one.version.blob_id, one.version.manifest_id)
    assert [(found.version, found.damaged) for found in await store.wanted(SLOT, 10)] == [(one.version, True)]
    assert not await store.is_evicted(SLOT, one.version.blob_id)
    await store.install_manifest(SLOT, one.version, one.manifest)
    assert await store.evict(SLOT, "a", one.version) == 0
    assert await held(store, one)


async def test_a_version_that_another_path_claimed(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    one = await brought_and_evicted(store, "file")
    claimed = replace(one.version, version=3)
    store.apply(Installed(SLOT, "b", None, None, (claimed,), replace=True))
    known = await store.archived(SLOT, one.version.blob_id)
    assert known is not None and not known.staged and known.evicted
    assert await store.evict(SLOT, "a", one.version) is None
    assert await store.evict(SLOT, "b", claimed) == 0
    assert store.lost_slots == []


async def test_a_restart_finds_what_was_there(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    one = await brought_and_evicted(store, "files", "a", 1)
    waits = made("file", "b")
    await tell(store, waits.version, waits.rows(), evicted=True)
    await store.settle([SLOT])
    tally, lines = store.tally(SLOT), await store.archived_after(SLOT, 0, 10)
    await store.close()
    again = await kit.open(tmp_path / "d")
    assert again.tally(SLOT) == tally
    assert await again.archived_after(SLOT, 0, 10) == lines
    assert await held(again, one)
    assert await again.blob_state(SLOT, waits.version.blob_id) is BlobState.DURABLE
    assert await again.sweep_staged(NOW + 1, 10) == 1
    assert await again.blob_state(SLOT, waits.version.blob_id) is BlobState.ABORTED
    await again.settle([SLOT])
    assert again.tally(SLOT).archive_staged == 0


async def test_numbers_do_not_go_back_when_the_last_rows_go(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    first = await brought_and_evicted(store, "files")
    second = made("inline", before=first.record)
    await choose(store, "a", second.record, 2, body=second.parts[0])
    await bring_expiry(store, "a", second.record, (1, 1), 3)
    await store.close()
    again = await kit.open(tmp_path / "d")
    assert again.tally(SLOT).archive_head == 3
    await tell(again, second.version, second.rows())
    lines, _ = await again.archived_after(SLOT, 0, 10)
    assert [line.seq for line in lines] == [4]


def test_a_database_of_before_the_archive(tmp_path: Path):
    """Its table of archive rows was there, and nothing wrote to it; other software may have."""
    path = tmp_path / "meta.sqlite3"
    old = sqlite3.connect(path, isolation_level=None)
    migrate(old, SLOT_MIGRATIONS[:2])
    old.execute("INSERT INTO slot_meta(id, incarnation, objects) VALUES (1, 'disk', 1)")
    old.execute(
        "INSERT INTO blobs(path, version, blob_id, size, chunks, created_at, etag, content_type, meta, chunk_count, inline, "
        "revision) VALUES ('p', 1, 'b', 1, '[]', '2024-05-01T12:00:00.123Z', '', '', '{}', 1, 0, 1)"
    )
    old.execute(
        "INSERT INTO blob_chunk_archives(blob_id, chunk_id, length, archived_at, target_path, target_range_start, "
        "target_range_end) VALUES ('b', ?, 1, '2024-05-01T12:00:00.123Z', 's3://bucket/key', 0, 1)",
        ("ab" * 32,),
    )
    old.close()
    database = SlotDatabase(1, path, None, create=False)
    assert (database.tally.archived_rows, database.tally.archive_head, database.tally.evicted) == (1, 1, 0)
    columns = [column[1] for column in database.connection.execute("PRAGMA table_info(blob_chunk_archives)")]
    assert columns[:9] == [
        "pk", "blob_id", "chunk_id", "length", "archived_at", "target_path", "target_version", "target_range_start",
        "target_range_end",
    ]  # fmt: skip
    found = database.connection.execute("SELECT head, etag, state, target_version FROM blob_chunk_archives").fetchall()
    assert found == [("", "", 0, None)], "known to be uploaded by somebody, and never relied on before it was looked at"
    with pytest.raises(sqlite3.IntegrityError):
        database.connection.execute("DELETE FROM blobs")
    database.close()


async def test_times_are_readable_in_the_table(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    one = await brought_and_evicted(store, "file")
    await store.close()
    query = "SELECT archived_at, target_path, target_range_start, target_range_end, length FROM blob_chunk_archives"
    found = kit.sql(tmp_path / "d" / "slots" / str(SLOT) / "meta.sqlite3", query)
    (told,) = one.rows()
    assert found == [("2023-11-14T22:13:20.123Z", told.target_path, told.start, told.end, told.length)]


async def test_many_rows_are_asked_for_in_pieces(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    one = await brought(store, "file")
    many = tuple(row(f"{number:064x}", 9, target=f"packs/{number % 3}") for number in range(12_000))
    for at in range(0, len(many), 4000):
        await tell(store, one.version, many[at : at + 4000])
    lines, more = await store.archived_after(SLOT, 0, 11_999)
    assert len(lines) == 11_999 and more
    assert await store.archived_after(SLOT, 11_999, 1) == ([replace(lines[-1], seq=12_000, chunk=many[-1])], False)
    assert {name: use.rows for name, use in (await store.archive_objects(SLOT)).items()} == {
        f"packs/{number}": 4000 for number in range(3)
    }
    assert len(await store.archive_rows_of(SLOT, "packs/1", 6000, 10_000)) == 2000
    stays = mint()
    await stage(store, stays, [b"x"])
    store.apply(Archived(SLOT, stays, many[:6000], NOW))
    assert (await store.archive_objects(SLOT))["packs/0"].rows == 6000


# ---- the doctor


@kinds
async def test_the_doctor_looks_at_the_rows_of_what_is_evicted(kit, tmp_path: Path, kind: str):
    store = await kit.open(tmp_path / "d")
    one = await brought_and_evicted(store, kind)
    await store.close()
    report = examine(tmp_path / "d", deep=True)
    assert report.healthy and report.findings == []
    assert (report.counts["versions_evicted"], report.counts["archive_rows"]) == (1, len(one.rows()))
    database = tmp_path / "d" / "slots" / str(SLOT) / "meta.sqlite3"
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("UPDATE blob_chunk_archives SET state = 0 WHERE pk = 1")
        connection.execute("INSERT INTO evicted VALUES ('01ARZ3NDEKTSV4RRFFQ69G5FAV', 1, 0, 0)")
    report = examine(tmp_path / "d", deep=False)
    wrong = [finding for finding in report.findings if finding.severity == "error"]
    assert [f"1 of its {len(one.rows())} chunks" in finding.what for finding in wrong] == [True]
    assert [finding.what for finding in report.findings if finding.severity == "warning"] == [
        "is marked as evicted, and no version has it"
    ]


async def test_the_doctor_misses_the_manifest_of_what_is_evicted(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await brought_and_evicted(store, "manifest")
    await store.close()
    next((tmp_path / "d" / "slots").rglob("manifest.json")).unlink()
    (finding,) = [one for one in examine(tmp_path / "d", deep=False).findings if one.severity == "error"]
    assert "its manifest is missing" in finding.what
