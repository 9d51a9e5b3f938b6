"""Garbage and scrub on a disk whose process dies, whose database is lost or rots, and that is swept at its most eager."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import sqlite3
from pathlib import Path

import pytest
from msgspec.structs import replace

from amberblob.ballot import BALLOT_ZERO
from amberblob.errors import AmberError, ChunkCorrupt
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Range, Record, Version, WriteMark, merge_ranges
from amberblob.mutations import Accepted, Chosen, Installed, Staged, Synced
from chunkstore import BlobState, DiskStore
from tests.contract.chunkstore.kit import head_of
from tests.unit.chunkstore.disk_faults import FaultyOps

SLOT = 2
EVER = 1 << 47


def _put(kit, body: bytes, before: Record | None, *, inline: bool) -> Record:
    record = kit.record(body, before)
    return replace(
        record, head=replace(head_of(record), inline=inline), expired=before.expired if before is not None else ()
    )


async def _write(kit, store: DiskStore, path: str, body: bytes, *, inline: bool = False) -> Record:
    """A put, its bytes staged unless they are inline."""
    register = await store.load(SLOT, path)
    record = _put(kit, body, register.record, inline=inline)
    if not inline:
        await kit.stage(store, SLOT, head_of(record).blob_id, body)
    return await _choose(kit, store, path, record, body if inline else None)


async def _choose(kit, store: DiskStore, path: str, record: Record, body: bytes | None = None) -> Record:
    ballot = kit.ballot()
    store.apply(Accepted(SLOT, path, ballot, record, body))
    await store.durable(store.apply(Chosen(SLOT, path, ballot)))
    return record


def _expiry(before: Record, *gone: Range) -> Record:
    """An expiry of these versions, which are tombstoned with it."""
    live = tuple(
        (n, n) for low, high in before.live for n in range(low, high + 1) if not any(a <= n <= b for a, b in gone)
    )
    head = before.head if live else None
    return Record(
        before.revision + 1, "expire", before.version_max, head, merge_ranges(live), (), 1, 1, before.added,
        (WriteMark(f"e{before.revision}", "expire", 0, 1),), merge_ranges((*before.expired, *gone)),
    )  # fmt: skip


def _folders(store: DiskStore) -> set[str]:
    folder = store.path / "slots" / str(SLOT) / "blobs"
    return set(os.listdir(folder)) if folder.is_dir() else set()


async def _reads(store: DiskStore, record: Record, body: bytes) -> bool:
    return await store.read_chunk(SLOT, head_of(record).blob_id, head_of(record).chunks[0]) == body


async def _execute(store: DiskStore, statement: str, *values: object) -> None:
    await store.settle([SLOT])
    await store._core.ask(SLOT, lambda database: database.connection.execute(statement, values))


async def _expired(kit, store: DiskStore, count: int = 3) -> tuple[list[Record], Record]:
    """Puts of one path, all but the last of which have expired."""
    records = [await _write(kit, store, "p", f"body {n} ".encode() * 9000) for n in range(count)]
    over = await _choose(kit, store, "p", _expiry(records[-1], (1, count - 1)))
    await store.settle([SLOT])
    return records, over


# ---- dying in between


async def test_a_kill_before_the_files_go(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", linger_s=30.0)
    records = [await _write(kit, store, "p", f"body {n} ".encode() * 9000) for n in range(3)]
    await _choose(kit, store, "p", _expiry(records[-1], (1, 2)))
    copy = await kit.open(await kit.copy_still(store, tmp_path / "copy"))
    assert len(_folders(copy)) == 3
    assert await copy.sweep_garbage(SLOT, 10) == 2
    assert _folders(copy) == {head_of(records[-1]).blob_id}
    assert await _reads(copy, records[-1], b"body 2 " * 9000)


async def test_a_kill_between_the_files_and_their_entry(kit, tmp_path: Path, monkeypatch):
    store = await kit.open(tmp_path / "d")
    records, _ = await _expired(kit, store)

    monkeypatch.setattr("chunkstore.garbagedb.end_garbage", lambda database, blob_ids: None)
    assert await store.sweep_garbage(SLOT, 10) == 2
    monkeypatch.undo()
    copy = await kit.open(await kit.copy_still(store, tmp_path / "copy"))
    assert _folders(copy) == {head_of(records[-1]).blob_id}
    assert await copy.sweep_garbage(SLOT, 10) == 2, "they are listed once more, and there is nothing to remove"
    assert await copy.sweep_garbage(SLOT, 10) == 0
    assert await copy.orphans(SLOT, EVER) == []


async def test_a_sweep_that_meets_an_io_error_goes_on_later(kit, tmp_path: Path):
    ops = FaultyOps()
    store = await kit.open(tmp_path / "d", ops=ops)
    records, _ = await _expired(kit, store, 4)
    ops.broken["rename"] = (head_of(records[1]).blob_id, errno.EIO)
    with pytest.raises(AmberError):
        await store.sweep_garbage(SLOT, 10)
    assert head_of(records[1]).blob_id in _folders(store) and head_of(records[3]).blob_id in _folders(store)
    ops.broken.clear()
    copy = await kit.open(await kit.copy_still(store, tmp_path / "copy"))
    assert await copy.sweep_garbage(SLOT, 10) == 3
    assert _folders(copy) == {head_of(records[-1]).blob_id}


async def test_a_full_disk_can_be_swept(kit, tmp_path: Path):
    ops = FaultyOps()
    store = await kit.open(tmp_path / "d", ops=ops, reserve_bytes=10_000)
    records, _ = await _expired(kit, store)
    ops.free = 10
    await kit.until(lambda: store.full)
    assert await store.sweep_garbage(SLOT, 10) == 2
    assert _folders(store) == {head_of(records[-1]).blob_id}


# ---- nothing that is referred to


@pytest.mark.parametrize("claim", ["row", "register", "staged"])
async def test_what_is_listed_as_garbage_and_belongs_to_somebody_stays(kit, tmp_path: Path, claim: str):
    """However it came onto the list: whoever removes files looks again."""
    store = await kit.open(tmp_path / "d")
    body = b"x" * 70_000
    record = await _write(kit, store, "p", body)
    blob_id = head_of(record).blob_id
    if claim == "staged":
        blob_id = kit.mint()
        await kit.stage(store, SLOT, blob_id, body)
    if claim == "register":
        await _execute(store, "DELETE FROM blobs")
        await _execute(store, "DELETE FROM intents")
    await _execute(store, "INSERT INTO garbage VALUES (?, 0)", blob_id)
    assert await store.sweep_garbage(SLOT, 10) == 0
    assert blob_id in _folders(store)
    assert await store.blob_state(SLOT, blob_id) is BlobState.DURABLE
    assert await store.sweep_garbage(SLOT, 10) == 0


async def test_a_version_that_comes_back_before_the_sweep_keeps_its_files(kit, tmp_path: Path):
    """A stub was forgotten, and a copy that did not hear of it brings the row back: its bytes are not to go."""
    store = await kit.open(tmp_path / "d")
    records, over = await _expired(kit, store)
    await _execute(store, "UPDATE registers SET expired = NULL")
    await store.durable(store.apply(Installed(SLOT, "other", None, None, (head_of(records[0]),))))
    assert await store.sweep_garbage(SLOT, 10) == 1
    assert head_of(records[0]).blob_id in _folders(store)
    assert [one.version for one in await store.wanted(SLOT, 10)] == [head_of(records[0])]
    assert await store.is_whole(SLOT, head_of(records[0]))
    assert await _reads(store, records[0], b"body 0 " * 9000)
    assert over.expired == ((1, 2),)


async def test_bytes_that_come_in_while_they_are_swept(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    records, _ = await _expired(kit, store, 8)
    bodies = {head_of(record).blob_id: f"body {n} ".encode() * 9000 for n, record in enumerate(records)}
    again = [(head_of(record), bodies[head_of(record).blob_id]) for record in records[:7]]
    await asyncio.gather(
        store.sweep_garbage(SLOT, 10),
        store.install_blobs(SLOT, again),
    )
    assert await _reads(store, records[-1], bodies[head_of(records[-1]).blob_id])
    while await store.sweep_garbage(SLOT, 10):
        pass
    for blob_id in await store.orphans(SLOT, EVER):
        await store.discard(SLOT, blob_id)
    assert _folders(store) == {head_of(records[-1]).blob_id}


# ---- a database that was lost


async def _lose(store: DiskStore) -> None:
    before = store.slot_state(SLOT).incarnation
    await store._core._database.call(lambda: store._pool.retire(SLOT, "a test"))
    async with asyncio.timeout(30):
        while store.slot_state(SLOT).incarnation == before:
            await asyncio.sleep(0.005)


async def test_files_of_a_lost_database_are_nobodys_only_when_the_rows_are_back(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    body = b"k" * 70_000
    await _write(kit, store, "another", body)
    # Of these two the journal knows nothing any more either.
    kept, forgotten = _put(kit, body, None, inline=False), _put(kit, body, None, inline=False)
    for record in (kept, forgotten):
        chunks = store.path / "slots" / str(SLOT) / "blobs" / head_of(record).blob_id / "chunks"
        chunks.mkdir(parents=True)
        (chunks / head_of(record).chunks[0].id).write_bytes(body)
    await store.settle([SLOT])
    await _lose(store)
    for _ in range(2):
        assert await store.orphans(SLOT, EVER) == []
        for record in (kept, forgotten):
            await store.discard(SLOT, head_of(record).blob_id)
        assert {head_of(kept).blob_id, head_of(forgotten).blob_id} < _folders(store)
        await store.close()
        store = await kit.open(tmp_path / "d")
        assert store.slot_state(SLOT).incarnation != store.disk_id
    await store.durable(store.apply(Installed(SLOT, "kept", kit.ballot(), kept)))
    assert await store.orphans(SLOT, EVER) == []
    await store.durable(store.apply(Synced(SLOT, 5, BALLOT_ZERO, 0)))
    assert await store.orphans(SLOT, EVER) == [head_of(forgotten).blob_id]
    await store.discard(SLOT, head_of(forgotten).blob_id)
    assert head_of(forgotten).blob_id not in _folders(store) and head_of(kept).blob_id in _folders(store)
    assert await store.is_whole(SLOT, head_of(kept))
    assert await _reads(store, kept, body)


async def test_a_sync_before_the_loss_says_nothing_of_the_fresh_database(kit, tmp_path: Path):
    """The journal still has the entry, and is replayed into the database that took the lost one's place."""
    store = await kit.open(tmp_path / "d")
    record = await _write(kit, store, "p", b"k" * 70_000)
    await store.durable(store.apply(Synced(SLOT, 5, BALLOT_ZERO, 7)))
    await store.settle([SLOT])
    assert store.slot_state(SLOT).synced_epoch == 5
    copy = await kit.copy_still(store, tmp_path / "copy")
    database = copy / "slots" / str(SLOT) / "meta.sqlite3"
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert "slots_created" in (copy / "disk.toml").read_text()
    text = (copy / "disk.toml").read_text()
    if str(SLOT) not in text.split("slots_created")[1]:
        (copy / "disk.toml").write_text(text.replace("slots_created = []", f"slots_created = [{SLOT}]"))
    database.write_bytes(b"rotten" * 1000)
    again = await kit.open(copy)
    state = again.slot_state(SLOT)
    assert state.incarnation != again.disk_id
    assert (state.synced_epoch, state.version_floor) == (0, 7)
    assert await again.orphans(SLOT, EVER) == []
    assert head_of(record).blob_id in _folders(again)


# ---- rot


ROT = {
    "chunks": "UPDATE blobs SET chunks = 'no json' WHERE path = 'b'",
    "time": "UPDATE blobs SET created_at = 'never' WHERE path = 'b'",
    "meta": "UPDATE blobs SET meta = '[1]' WHERE path = 'b'",
    "register": "DELETE FROM registers WHERE path = 'b'",
}


@pytest.mark.parametrize("what", sorted(ROT))
async def test_what_cannot_be_read_is_named_and_mended(kit, tmp_path: Path, what: str):
    store = await kit.open(tmp_path / "d")
    for path in ("a", "b", "c"):
        for n in range(2):
            record = await _write(kit, store, path, f"{path}{n}".encode(), inline=True)
            if path == "b":
                kept = record
    (right,) = await store.items(SLOT, ["b"])
    sums = await store.bucket_sums(SLOT)
    await _execute(store, ROT[what])
    page = await store.check_page(SLOT, "", 10)
    assert page.wrong == ("b",) and page.next_after is None
    assert {path for path, _ in page.versions} >= {"a", "c"}
    told = [one.path for one in (await store.histories(SLOT, "", 10))[0]]
    assert told == ["a", "c"] if what in ("time", "register") else ["a", "b", "c"], "what is not known does not expire"
    assert store.lost_slots == [], "the other paths go on"
    mend = Installed(SLOT, "b", right.ballot, right.record, right.rows, right.writes, True)
    await store.durable(store.apply(mend))
    assert (await store.check_page(SLOT, "", 10)).wrong == ()
    assert (await store.items(SLOT, ["b"]))[0].rows == right.rows
    await store.check_sums(SLOT)
    assert await store.bucket_sums(SLOT) == sums
    assert await _reads(store, kept, b"b1")


async def test_a_record_that_cannot_be_read_is_named(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    for path in ("a", "b"):
        await _write(kit, store, path, path.encode(), inline=True)
    await _execute(store, "UPDATE registers SET record = '{' WHERE path = 'a'")
    page = await store.check_page(SLOT, "", 10)
    assert page.wrong == ("a",) and {path for path, _ in page.versions} == {"a", "b"}
    assert store.lost_slots == []


async def test_many_paths_are_checked_in_pieces(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    rows = [
        Version(
            n, kit.mint(), 1, content_hash(b"x"), n, "t", {}, (ChunkRef(id=content_hash(b"x"), len=1),), None, 1, True
        )
        for n in range(1, 701)
    ]
    await store.durable(store.apply(Installed(SLOT, "long", None, None, tuple(rows))))
    for n in range(400):
        store.apply(Installed(SLOT, f"p{n:03}", None, None, (replace(rows[0], blob_id=kit.mint()),)))
    page = await store.check_page(SLOT, "", 1000)
    assert len(page.versions) == 1100 and page.wrong == () and page.next_after is None
    assert [path for path, _ in page.versions] == sorted(path for path, _ in page.versions)


async def test_a_corrupt_chunk_of_an_expired_version_is_not_wanted(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    records, _ = await _expired(kit, store)
    head = head_of(records[0])
    file = store.path / "slots" / str(SLOT) / "blobs" / head.blob_id / "chunks" / head.chunks[0].id
    file.write_bytes(b"y" * head.size)
    with pytest.raises(ChunkCorrupt):
        await store.read_chunk(SLOT, head.blob_id, head.chunks[0])
    assert await store.wanted(SLOT, 10) == []
    assert await store.sweep_garbage(SLOT, 10) == 2


async def test_a_body_that_rots_in_the_database_is_found_though_memory_has_a_good_one(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    record = await _write(kit, store, "p", b"the body", inline=True)
    await store.settle([SLOT])
    await _execute(store, "UPDATE inline_bodies SET body = ?", b"the b0dy")
    assert await _reads(store, record, b"the body"), "clients are served from memory meanwhile"
    page = await store.check_page(SLOT, "", 10)
    assert page.versions == (("p", head_of(record)),)
    with pytest.raises(ChunkCorrupt):
        await store.read_chunk(SLOT, head_of(record).blob_id, head_of(record).chunks[0])
    assert [one.damaged for one in await store.wanted(SLOT, 10)] == [True]


async def test_names_that_rotted_stop_nobody(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await _write(kit, store, "p", b"x" * 70_000)
    await _execute(store, "INSERT INTO garbage VALUES ('../../journal', 0)")
    await _execute(store, "INSERT INTO inline_bodies VALUES ('no ulid', x'00')")
    assert await store.sweep_garbage(SLOT, 10) == 0
    assert await store.orphans(SLOT, EVER) == []
    assert await store._core.ask(SLOT, lambda d: d.connection.execute("SELECT count(*) FROM garbage").fetchone()) == (
        0,
    )
    assert (store.path / "journal").is_dir()


async def test_old_files_only_are_orphans(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await _write(kit, store, "p", b"x" * 70_000)
    folder = store.path / "slots" / str(SLOT) / "blobs" / kit.mint()
    (folder / "chunks").mkdir(parents=True)
    (folder.parent / "not a blob").mkdir()
    changed_ms = folder.stat().st_mtime_ns // 1_000_000
    assert await store.orphans(SLOT, changed_ms) == []
    assert await store.orphans(SLOT, changed_ms + 60_000) == [folder.name]
    await store.discard(SLOT, folder.name)
    assert not folder.exists()


# ---- at its most eager


@pytest.mark.parametrize("seed", range(6))
async def test_eager_collection_takes_nothing_that_lives(kit, tmp_path: Path, seed: int):
    """Writes, losers, expiries, repairs, kills and collection in any order: what a row or register refers to is here."""
    chance = random.Random(seed)
    disk, generation = tmp_path / "d0", 0
    store = await kit.open(disk)
    bodies: dict[str, bytes] = {}
    newest: dict[str, Record] = {}
    paths = ["a", "b", "c"]

    def body(inline: bool) -> bytes:
        return os.urandom(50) * (1 if inline else 200)

    async def put(path: str, *, choose: bool = True) -> None:
        await store.load(SLOT, path)
        inline = chance.random() < 0.4
        data = body(inline)
        record = _put(kit, data, newest.get(path), inline=inline)
        bodies[head_of(record).blob_id] = data
        if not inline:
            await kit.stage(store, SLOT, head_of(record).blob_id, data)
        ballot = kit.ballot()
        store.apply(Accepted(SLOT, path, ballot, record, data if inline else None))
        if choose:
            newest[path] = record
            await store.durable(store.apply(Chosen(SLOT, path, ballot)))

    async def expire(path: str) -> None:
        await store.load(SLOT, path)
        known = newest.get(path)
        if known is not None and known.version_max > 1:
            newest[path] = await _choose(kit, store, path, _expiry(known, (1, known.version_max - 1)))

    async def missed(path: str) -> None:
        """A chosen record whose bytes come later, in bulk."""
        await store.load(SLOT, path)
        inline = chance.random() < 0.5
        data = body(inline)
        newest[path] = record = _put(kit, data, newest.get(path), inline=inline)
        bodies[head_of(record).blob_id] = data
        await store.durable(store.apply(Chosen(SLOT, path, kit.ballot(), record)))
        await (store.install_bodies if inline else store.install_blobs)(SLOT, [(head_of(record), data)])

    async def collect() -> None:
        await store.sweep_garbage(SLOT, chance.randint(1, 5))
        for blob_id in await store.orphans(SLOT, EVER):
            await store.discard(SLOT, blob_id)
        await store.sweep_staged(EVER, 100)
        await store.forget_writes(SLOT, EVER, 10)
        await store.trim_log(SLOT, 1)

    async def leave() -> None:
        await kit.stage(store, SLOT, kit.mint(), os.urandom(9000))

    for _ in range(60):
        path = chance.choice(paths)
        step = chance.choice(
            ["put", "put", "lose", "expire", "missed", "collect", "collect", "leave", "kill", "at once"]
        )
        match step:
            case "put":
                await put(path)
            case "lose":
                await put(path, choose=False)
            case "expire":
                await expire(path)
            case "missed":
                await missed(path)
            case "collect":
                await collect()
            case "leave":
                await leave()
            case "at once":
                await asyncio.gather(collect(), put("a"), missed("b"), expire("c"))
            case "kill":
                generation += 1
                copied = await kit.copy_still(store, tmp_path / f"d{generation}")
                await store.close()
                disk, store = copied, await kit.open(copied)
        for name in paths:
            register = await store.load(SLOT, name)
            held = {row.version.blob_id: row.version for row in await store.rows(SLOT, name)}
            if register.record is not None and register.record.head is not None:
                held[register.record.head.blob_id] = register.record.head
            for blob_id, version in held.items():
                assert await store.read_chunk(SLOT, blob_id, version.chunks[0]) == bodies[blob_id], (step, name)
                assert await store.is_whole(SLOT, version)
    while await store.sweep_garbage(SLOT, 100):
        pass
    await collect()
    referred = {
        row.version.blob_id for name in paths for row in await store.rows(SLOT, name) if not row.version.inline
    } | {
        register.record.head.blob_id
        for name in paths
        if (register := await store.load(SLOT, name)).record is not None and register.record.head is not None
    }
    assert _folders(store) <= referred, "and what nobody refers to has gone"
    assert await store.check_sums(SLOT) and (await store.check_page(SLOT, "", 100)).wrong == ()


async def test_staging_is_no_orphan(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    await _write(kit, store, "p", b"x" * 70_000)
    blob_id = kit.mint()
    await kit.stage(store, SLOT, blob_id, b"y" * 70_000)
    await store.settle([SLOT])
    assert await store.orphans(SLOT, EVER) == []
    store.apply(Staged(SLOT, blob_id, 1))
    assert await store.orphans(SLOT, EVER) == []
