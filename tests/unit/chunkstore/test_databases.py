"""Tables as users know them, migrations, the listing index, the cache."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from pathlib import Path

import pytest

from amberblob.ballot import Ballot
from amberblob.mutations import Accepted, Chosen
from amberblob.prefixes import after_prefix
from amberblob.wire import ScanEntry
from chunkstore import schema
from chunkstore.fileops import FileOps
from chunkstore.index import ListingIndex
from chunkstore.slotdb import SlotDatabase
from chunkstore.sqlite import SchemaTooNew, connect, iso_of, migrate, ms_of

DISK = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


async def test_an_operator_can_read_a_slot(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    first = await kit.put(store, 5, "photos/ä.jpg", b"hello")
    await kit.put(store, 5, "photos/ä.jpg", b"again")
    await store.close()
    database = tmp_path / "d/slots/5/meta.sqlite3"
    rows = kit.sql(
        database, "SELECT path, version, blob_id, size, chunks, created_at, tombstoned_at FROM blobs ORDER BY pk"
    )
    assert rows[0][:4] == ("photos/ä.jpg", 1, first.head.blob_id, 5)
    assert json.loads(rows[0][4]) == [{"id": first.head.chunks[0].id, "len": 5}]
    assert rows[0][5:] == ("2023-11-14T22:13:20.001Z", None)
    ((ballot, record),) = kit.sql(database, "SELECT accepted_ballot, record FROM registers")
    assert json.loads(ballot)[0] == 1 and first.head.blob_id in record
    assert kit.sql(database, "SELECT version, revision, op FROM commit_log ORDER BY seq") == [
        (1, 1, "put"),
        (2, 2, "put"),
    ]
    assert kit.sql(database, "SELECT incarnation FROM slot_meta") == [(store.disk_id,)]


def test_foreign_keys_work_with_the_archive_table(tmp_path: Path):
    database = SlotDatabase(1, tmp_path / "meta.sqlite3", DISK, create=True)
    insert = "INSERT INTO blob_chunk_archives(blob_id, chunk_id, length, archived_at, target_path) VALUES (?, 'c', 1, 'now', 't')"
    with pytest.raises(sqlite3.IntegrityError):
        database.connection.execute(insert, ("nobody",))
    database.connection.execute(
        "INSERT INTO blobs(path, version, blob_id, size, chunks, created_at, etag, content_type, meta, chunk_count, inline, "
        "revision) VALUES ('p', 1, 'b', 1, '[]', 'now', '', '', '{}', 0, 0, 1)"
    )
    database.connection.execute(insert, ("b",))
    database.close()


def test_migrations_go_forward_from_every_version(tmp_path: Path):
    steps = (
        "CREATE TABLE a(x);\nINSERT INTO a VALUES (1);\n",
        "ALTER TABLE a ADD COLUMN y DEFAULT 7;\n",
        "CREATE TABLE b(z);\n",
    )
    for version in range(len(steps) + 1):
        connection = sqlite3.connect(tmp_path / f"{version}.sqlite3", isolation_level=None)
        assert migrate(connection, steps[:version]) == 0
        assert migrate(connection, steps) == version
        assert connection.execute("SELECT x, y FROM a").fetchall() == [(1, 7)]
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)
        with pytest.raises(SchemaTooNew):
            migrate(connection, steps[:1])
        connection.close()


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path):
    connection = sqlite3.connect(tmp_path / "x.sqlite3", isolation_level=None)
    with pytest.raises(sqlite3.OperationalError):
        migrate(connection, ("CREATE TABLE a(x);\nNONSENSE;\n",))
    assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
    connection.close()


def test_a_new_database_waits_for_whoever_has_it_locked_no_longer_than_others_do(tmp_path: Path):
    path = tmp_path / "x.sqlite3"
    connection = connect(path, cache_kib=64, create=True)
    connection.execute("PRAGMA busy_timeout = 5")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        migrate(connection, schema.SLOT_MIGRATIONS)
    assert migrate(sqlite3.connect(":memory:", isolation_level=None), schema.SLOT_MIGRATIONS) == 0, "others can go on"
    other.execute("ROLLBACK")
    assert migrate(connection, schema.SLOT_MIGRATIONS) == 0
    for each in (connection, other):
        each.close()


def test_a_new_database_whose_making_was_cut_short_is_made_anew(tmp_path: Path):
    whole = connect(tmp_path / "whole.sqlite3", cache_kib=64, create=True)
    migrate(whole, schema.SLOT_MIGRATIONS)
    wanted = whole.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2").fetchall()
    file, log = ((tmp_path / name).read_bytes() for name in ("whole.sqlite3", "whole.sqlite3-wal"))
    whole.close()
    frame = 24 + 4096
    assert len(log) > 5 * frame
    for cut in (0, 32 + frame, 32 + 3 * frame + 7, len(log) - frame):
        (tmp_path / f"{cut}.sqlite3").write_bytes(file)
        (tmp_path / f"{cut}.sqlite3-wal").write_bytes(log[:cut])
        connection = connect(tmp_path / f"{cut}.sqlite3", cache_kib=64, create=False)
        assert migrate(connection, schema.SLOT_MIGRATIONS) == 0
        assert connection.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY 1, 2").fetchall() == wanted
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.close()


@pytest.mark.parametrize("name", ["plain", "a?b#c%20", os.fsdecode(b"\xff"), "link/../plain", "/double"])
def test_a_database_is_where_its_path_leads(tmp_path: Path, name: str):
    (tmp_path / "there" / "in").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "there" / "in")
    folder = Path(f"/{tmp_path}{name}") if name[0] == "/" else tmp_path / name
    folder.mkdir()
    connect(folder / "x.sqlite3", cache_kib=64, create=True).close()
    assert (folder / "x.sqlite3").is_file()


@pytest.mark.parametrize("version", range(1, len(schema.SLOT_MIGRATIONS) + 1))
def test_slot_databases_of_every_version_open(tmp_path: Path, version: int):
    path = tmp_path / "meta.sqlite3"
    old = sqlite3.connect(path, isolation_level=None)
    migrate(old, schema.SLOT_MIGRATIONS[:version])
    old.execute("INSERT INTO slot_meta(id, incarnation) VALUES (1, ?)", (DISK,))
    old.close()
    database = SlotDatabase(1, path, "other", create=False)
    assert database.state.incarnation == DISK
    database.close()


@pytest.mark.parametrize("at_ms", [0, 1, 999, 1_700_000_000_123, 4_102_444_799_999])
def test_times_are_iso_text_and_come_back(at_ms: int):
    assert ms_of(iso_of(at_ms)) == at_ms
    assert iso_of(1_700_000_000_123) == "2023-11-14T22:13:20.123Z"


@pytest.mark.parametrize(
    ("prefix", "wanted"),
    [
        ("", None),
        ("a", "b"),
        ("a\U0010ffff", "b"),
        ("\U0010ffff", None),
        ("\ud7ff", "\ue000"),
        ("a/", "a0"),
        ("é", "ê"),
    ],
)
def test_after_prefix(prefix: str, wanted: str | None):
    assert after_prefix(prefix) == wanted
    if wanted is not None:
        assert prefix.encode() < (prefix + "\U0010ffff" * 3).encode() < wanted.encode()


def _entry(path: str, *, version: int = 1, slot: int = 1) -> ScanEntry:
    return ScanEntry(path, slot, Ballot(1, 1, "n", "a"), True, version, "b", 1, "e", 1, 1, "t", 1)


def test_a_delimiter_jumps_over_huge_groups(tmp_path: Path):
    index = ListingIndex(tmp_path, FileOps())
    index.update((_entry(f"{group}/{n:06}") for group in "abc" for n in range(40_000)), 1)
    index.update([_entry("d")], 2)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    index.connection.set_progress_handler(count, 1000)
    page = index.scan("", "", "/", 1000)
    assert [entry.path for entry in page.entries] == ["a/000000", "b/000000", "c/000000", "d"]
    assert steps < 5, "a walk over the groups would take hundreds of thousands of steps"
    page = index.scan("b/", "b/020000", "/", 3)
    assert [entry.path for entry in page.entries] == [
        "b/020000",
        "b/020001",
        "b/020002",
    ] and page.next_start == "b/020003"
    index.close()


def _names(page) -> list[str]:
    return [entry.path for entry in page.entries]


def test_what_is_deleted_for_certain_is_told_only_on_demand(tmp_path: Path):
    index = ListingIndex(tmp_path, FileOps())
    index.update([_entry(f"d/{n:05}", version=0) for n in range(20_000)] + [_entry("d/x"), _entry("e", version=0)], 1)
    undecided = ScanEntry("d/y", 1, Ballot(1, 1, "n", "a"), False, 0, "", 0, "", 1, 1, "", 1)
    index.update([undecided], 2)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    index.connection.set_progress_handler(count, 1000)
    for delimiter in ("", "/"):
        page = index.scan("", "", delimiter, 1000, dead=False)
        assert _names(page) == (["d/x"] if delimiter else ["d/x", "d/y"]) and page.next_start is None
        assert index.scan("d/00", "", delimiter, 10, dead=False).entries == ()
    assert _names(index.scan("", "", "/", 1000)) == ["d/x", "e"]
    assert index.scan("", "d/1", "", 1, dead=False).next_start == "d/y"
    assert steps < 5, "a walk over the deleted ones would take tens of thousands of steps"
    page = index.scan("", "d/19998", "", 4)
    assert _names(page) == ["d/19998", "d/19999", "d/x", "d/y"] and page.next_start == "e"
    index.update([_entry("d/00000"), _entry("d/x", version=0)], 3)
    assert _names(index.scan("", "", "", 9, dead=False)) == ["d/00000", "d/y"]
    assert _names(index.scan("d/x", "", "", 9)) == ["d/x"]
    index.forget_slot(1)
    assert index.scan("", "", "", 9).entries == ()
    index.close()


def test_runs_of_paths_and_groups_in_turn(tmp_path: Path):
    """Pieces of a walk grow and begin anew with every group."""
    index = ListingIndex(tmp_path, FileOps())
    counts = {a: 1 if a % 3 else 60 for a in range(40)}
    paths = sorted(f"{a:02}{'/' if a % 7 == 3 else '-'}{b}" for a, count in counts.items() for b in range(count))
    paths += ["z\0", "z\0\0", "z\0/1"]
    index.update([_entry(path) for path in paths], 1)
    expected = sorted({path.split("/")[0] + "/" if "/" in path else path for path in paths})
    page = index.scan("", "", "/", 10_000)
    assert [name.split("/")[0] + "/" if "/" in name else name for name in _names(page)] == expected
    for limit in (1, 2, 5):
        start: str | None = ""
        found: list[str] = []
        while start is not None:
            page = index.scan("", start, "/", limit)
            found += [name.split("/")[0] + "/" if "/" in name else name for name in _names(page)]
            start = page.next_start
            if start is not None and found[-1].endswith("/"):
                start = max(start, after_prefix(found[-1]) or "")
        assert found == expected
    index.close()


async def test_an_index_of_the_first_version_is_made_anew(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    for n in range(8):
        await kit.put(store, n % 3, f"p{n}")
    await store.close()
    path = tmp_path / "d/index.sqlite3"
    old = sqlite3.connect(path, isolation_level=None)
    (applied,) = old.execute("SELECT applied_position FROM index_meta").fetchone()
    for table in ("objects", "deleted", "index_meta"):
        old.execute(f"DROP TABLE {table}")
    old.execute("PRAGMA user_version = 0")
    migrate(old, schema.INDEX_MIGRATIONS[:1])
    old.execute("INSERT INTO objects VALUES ('p0', 0, '[1,1,\"n\",\"a\"]', 1, 1, 'b', 1, 'e', 1, 1, 't', 1)")
    old.execute("UPDATE index_meta SET applied_position = ?, complete = 1", (applied,))
    old.close()
    store = await kit.open(tmp_path / "d")
    assert _names(await store.scan("", "", "", 100)) == [f"p{n}" for n in range(8)]


async def test_a_row_that_cannot_be_read_makes_the_index_anew(kit, tmp_path: Path):
    for damage in ("'[1'", "CAST(x'ff5b31' AS TEXT)"):
        store = await kit.open(tmp_path / "d")
        for n in range(8):
            await kit.put(store, n % 3, f"p{n}")
        await store.close()
        index = sqlite3.connect(tmp_path / "d/index.sqlite3")
        index.execute(f"UPDATE objects SET entry = {damage} WHERE path = 'p4'")
        index.commit()
        index.close()
        store = await kit.open(tmp_path / "d")
        assert _names(await store.scan("", "", "", 100)) == [f"p{n}" for n in range(8)]
        await store.close()


def test_an_index_is_made_anew_in_the_order_of_the_paths(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("chunkstore.index._RUN_ROWS", 3)
    monkeypatch.setattr("chunkstore.index._MERGE_ROWS", 7)
    monkeypatch.setattr("chunkstore.index._CHECKPOINT_ROWS", 11)
    index = ListingIndex(tmp_path, FileOps())
    index.update([_entry("stale")], 1)

    def load(slots: int) -> None:
        index.begin_rebuild()
        for slot in range(slots):
            entries = [_entry(f"{n:03}-{slot}", version=n % 3, slot=slot) for n in range(20)]
            index.update(entries[:13], 0)
            index.update(entries[13:], 0)
            index.checkpoint()

    load(4)
    index.close()  # killed in the middle
    index = ListingIndex(tmp_path, FileOps())
    assert not index.complete
    load(5)
    index.forget_slot(2)
    index.end_rebuild(77)
    assert index.complete and index.applied == 77
    paths = sorted(f"{n:03}-{slot}" for n in range(20) for slot in (0, 1, 3, 4))
    assert _names(index.scan("", "", "", 1000)) == paths
    assert _names(index.scan("", "", "", 1000, dead=False)) == [p for p in paths if int(p[:3]) % 3]
    index.update([_entry("x")], 78)
    index.close()
    index = ListingIndex(tmp_path, FileOps())
    assert index.complete and index.applied == 78
    assert not index.connection.execute("SELECT * FROM sqlite_master WHERE name = 'loading'").fetchall()
    index.close()


async def test_listing_opens_no_slot_database(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    for n in range(8):
        await kit.put(store, n, f"p{n}")
    await store.close()
    store = await kit.open(tmp_path / "d")
    await store.scan("", "", "", 1)
    pool = store._pool
    while await store._core._database.call(lambda: (pool.close_idle(float("inf"), keep=0), pool.open_slots())[1]):
        pass
    assert len((await store.scan("", "", "", 1000)).entries) == 8
    assert store._pool.open_slots() == []


async def test_a_database_that_was_used_a_moment_ago_stays_open(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    pool = store._pool

    def play() -> tuple[int, int, int]:
        # Later than any look of the store's own, which goes by the machine's clock.
        now_s = 1e9
        pool.close_idle(now_s, keep=0, unused_s=20.0)
        for slot in range(4):
            pool.get(slot)
        before = pool.close_idle(now_s + 20, keep=0, unused_s=20.0)
        at_once = pool.close_idle(now_s + 21, keep=0, unused_s=20.0)
        pool.close_idle(now_s + 40, keep=0, unused_s=20.0)
        return before, at_once, pool.close_idle(now_s + 41, keep=0, unused_s=20.0)

    assert await store._core._database.call(play) == (0, 0, 4)


async def test_few_open_databases_and_a_small_cache_are_enough(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", open_databases_max=2, registers_clean_max=3)
    for n in range(60):
        await kit.put(store, n % 6, f"p{n % 12}")
    for n in range(12):
        assert (await store.load(n % 6, f"p{n}")).record.revision == 5
        assert len(await store.rows(n % 6, f"p{n}")) == 5
    assert len(store._pool.open_slots()) <= 2


async def test_durable_waits_for_the_databases_when_they_are_far_behind(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", unapplied_bytes_max=50_000, linger_s=0.05)
    positions = []
    for n in range(20):
        await store.load(1, f"p{n}")
        positions.append(store.apply(Accepted(1, f"p{n}", kit.ballot(), kit.record(), bytes(10_000))))
    await store.durable(positions[-1])
    assert store._core.overlay.unapplied_bytes <= 50_000


async def test_waiters_for_room_are_woken_also_when_questions_and_the_index_applied_everything(kit, tmp_path: Path):
    """Entries of registers that memory never knew are applied on behalf of the index; nothing is left for a drain."""
    store = await kit.open(tmp_path / "d", unapplied_bytes_max=64 * 1024)
    async with asyncio.timeout(110):
        for n in range(400):
            position = store.apply(Chosen(n % 4, f"p{n}", kit.ballot(), kit.record(bytes(500))))
            if n % 16 == 0:
                await store.scan("", "", "", 10)
            await store.durable(position)
    assert len((await store.scan("", "", "", 1000)).entries) == 400
