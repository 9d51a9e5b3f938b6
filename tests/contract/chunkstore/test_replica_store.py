"""What every ReplicaStore must do. A new implementation adds a line to ``MAKERS`` in the kit."""

from __future__ import annotations

import pytest

from amberblob.ballot import BALLOT_ZERO, EMPTY_REGISTER, Register
from amberblob.errors import ChunkMissing, DigestMismatch, StorageError
from amberblob.ids import content_hash
from amberblob.limits import KIB
from amberblob.manifest import ChunkRef, Record, Version, WriteMark, encode_manifest
from amberblob.mutations import Aborted, Accepted, Chosen, EpochSeen, Reserved
from chunkstore import BlobState, ReplicaStore
from tests.contract.chunkstore.kit import NOW, SLOT, ballot, change, choose, mint, put, stage, version

# ---- registers


async def test_an_empty_register_is_empty_once_loaded(store: ReplicaStore):
    assert await store.load(SLOT, "a") == EMPTY_REGISTER
    assert store.peek(SLOT, "a") == EMPTY_REGISTER
    assert store.position(SLOT, "a") == 0


async def test_accepted_is_seen_at_once_and_durable_later(store: ReplicaStore):
    await store.load(SLOT, "a")
    record = put(1)
    position = store.apply(Accepted(SLOT, "a", ballot(1), record, b"body"))
    assert position >= 1
    assert store.peek(SLOT, "a") == Register(ballot(1), record, False)
    assert store.position(SLOT, "a") in (0, position)
    await store.durable(position)
    assert store.position(SLOT, "a") == 0
    assert await store.undecided(SLOT) == ["a"]
    assert await store.rows(SLOT, "a") == []


async def test_when_durable_calls_back(store: ReplicaStore):
    told: list[object] = []
    store.when_durable(0, told.append)
    assert told == [None]
    position = store.apply(Reserved(SLOT, 9))
    store.when_durable(position, told.append)
    await store.durable(position)
    assert told == [None, None]
    store.when_durable(position, told.append)
    assert told == [None, None, None]


async def test_a_new_path_of_a_new_slot_is_known_to_be_empty(store: ReplicaStore):
    assert store.peek(SLOT, "a") == EMPTY_REGISTER
    record = put(1)
    store.apply(Accepted(SLOT, "a", ballot(1), record, b"body"))
    assert store.peek(SLOT, "a") == Register(ballot(1), record, False)
    assert store.peek(SLOT, "b") == EMPTY_REGISTER


async def test_an_inline_body_is_in_memory(store: ReplicaStore):
    record = put(1)
    assert record.head is not None
    assert store.peek_body(SLOT, record.head.blob_id) is None
    store.apply(Accepted(SLOT, "a", ballot(1), record, b"body"))
    assert store.peek_body(SLOT, record.head.blob_id) == b"body"
    assert store.peek_body(SLOT, mint()) is None


async def test_positions_grow(store: ReplicaStore):
    positions = [store.apply(Reserved(SLOT, n)) for n in range(5)]
    assert positions == sorted(set(positions))


async def test_a_lower_ballot_changes_nothing(store: ReplicaStore):
    await store.load(SLOT, "a")
    high, low = put(1), put(1)
    store.apply(Accepted(SLOT, "a", ballot(5), high, b"body"))
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(4), low, b"body")))
    assert (await store.load(SLOT, "a")).record == high
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(4))))
    assert not (await store.load(SLOT, "a")).chosen
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(5))))
    assert (await store.load(SLOT, "a")).chosen
    assert [row.version for row in await store.rows(SLOT, "a")] == [high.head]


async def test_chosen_makes_the_row_and_the_write_id(store: ReplicaStore):
    record = put(1)
    await choose(store, "a", record, 1)
    (row,) = await store.rows(SLOT, "a")
    assert row.version == record.head and row.tombstoned_at_ms is None
    assert await store.find_write(SLOT, "a", "w1") == WriteMark("w1", "put", 1, NOW + 1)
    assert await store.find_write(SLOT, "a", "w2") is None
    assert await store.undecided(SLOT) == []
    assert store.slots() == [SLOT]


async def test_chosen_with_a_record_installs_it_without_bytes(store: ReplicaStore):
    record = put(1)
    await store.load(SLOT, "a")
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(3), record)))
    assert await store.load(SLOT, "a") == Register(ballot(3), record, True)
    assert [row.version for row in await store.rows(SLOT, "a")] == [record.head]
    assert record.head is not None
    assert await store.blob_state(SLOT, record.head.blob_id) is BlobState.ABSENT
    assert await store.missing_chunks(SLOT, record.head, record.head.chunks) == list(record.head.chunks)


async def test_an_accept_writes_the_row_of_the_record_before(store: ReplicaStore):
    first = put(1)
    second = put(2, before=first)
    await store.load(SLOT, "a")
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(2), second, b"body")))
    assert [row.version for row in await store.rows(SLOT, "a")] == [first.head]
    assert await store.find_write(SLOT, "a", "w1") is not None
    assert await store.find_write(SLOT, "a", "w2") is None


async def test_a_mutation_of_a_register_that_was_not_loaded(store: ReplicaStore):
    record = put(1)
    await choose(store, "a", record, 1)
    for number in range(20):
        store.apply(Chosen(SLOT, f"other{number}", ballot(1), put(1)))
    second = put(2, before=record)
    store.apply(Accepted(SLOT, "unloaded", ballot(2), second, b"body"))
    assert (await store.load(SLOT, "unloaded")).record == second


async def test_a_late_chosen_of_a_lower_ballot_adds_its_rows_only(store: ReplicaStore):
    first = put(1)
    second = put(2, before=first)
    third = put(3, before=second)
    gone = change("delete", third, head=None, live=())
    await store.load(SLOT, "a")
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(9), gone)))
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(2), second)))
    assert (await store.load(SLOT, "a")).record == gone
    rows = await store.rows(SLOT, "a")
    assert [row.version.version for row in rows] == [3, 2, 1]
    assert all(row.tombstoned_at_ms == gone.deleted_at_ms for row in rows)
    assert await store.find_write(SLOT, "a", "w2") is not None


async def test_late_rows_under_an_undecided_record_are_set_right_by_the_next(store: ReplicaStore):
    first = put(1)
    gone = change("delete", first, head=None, live=())
    again = put(2, before=gone)
    await choose(store, "a", first, 1)
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(9), again, b"body")))
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(2), gone)))
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(9))))
    rows = await store.rows(SLOT, "a")
    assert [(row.version.version, row.tombstoned_at_ms) for row in rows] == [(2, None), (1, gone.deleted_at_ms)]


async def test_delete_and_restore_move_tombstones(store: ReplicaStore):
    records = [put(1)]
    records.append(put(2, before=records[-1]))
    records.append(put(3, before=records[-1]))
    for counter, record in enumerate(records, start=1):
        await choose(store, "a", record, counter)
    one_gone = change("delete-version", records[-1], head=records[0].head, live=((1, 1), (3, 3)))
    await choose(store, "a", one_gone, 4)
    assert [row.tombstoned_at_ms is None for row in await store.rows(SLOT, "a")] == [True, False, True]
    all_gone = change("delete", one_gone, head=None, live=())
    await choose(store, "a", all_gone, 5)
    rows = await store.rows(SLOT, "a")
    assert [row.tombstoned_at_ms for row in rows] == [
        all_gone.deleted_at_ms,
        one_gone.deleted_at_ms,
        all_gone.deleted_at_ms,
    ]
    back = change("restore", all_gone, head=records[2].head, live=((1, 1), (3, 3)))
    await choose(store, "a", back, 6)
    assert [row.tombstoned_at_ms is None for row in await store.rows(SLOT, "a")] == [True, False, True]


async def test_rows_by_version_below_and_limit(store: ReplicaStore):
    record: Record | None = None
    for number in range(1, 6):
        record = put(number, before=record)
        await choose(store, "a", record, number)
    assert [r.version.version for r in await store.rows(SLOT, "a", limit=2)] == [5, 4]
    assert [r.version.version for r in await store.rows(SLOT, "a", below=4)] == [3, 2, 1]
    assert [r.version.version for r in await store.rows(SLOT, "a", version=3)] == [3]
    assert await store.rows(SLOT, "a", version=6) == []
    assert await store.rows(99, "a") == []


async def test_slot_state_and_incarnations(store: ReplicaStore):
    state = store.slot_state(SLOT)
    assert (state.incarnation, state.epoch, state.ballot_floor, state.promise_ceiling) == (
        store.disk_id,
        0,
        BALLOT_ZERO,
        0,
    )
    store.apply(Reserved(SLOT, 4096))
    store.apply(EpochSeen(SLOT, 3))
    await store.durable(store.apply(EpochSeen(SLOT, 2)))
    await store.durable(store.apply(Reserved(SLOT, 100)))
    state = store.slot_state(SLOT)
    assert (state.epoch, state.promise_ceiling) == (3, 4096)
    assert store.incarnations() == {}
    assert store.failed is None and not store.full


# ---- listing


async def _fill(store: ReplicaStore, paths: list[str]) -> None:
    for counter, path in enumerate(paths, start=1):
        await choose(store, path, put(1), counter, slot=counter % 5)


async def test_scan_is_in_byte_order_and_pages(store: ReplicaStore):
    paths = ["b", "a/2", "a/10", "a", "é", "z", "\U0001f600", "\uffff", "Ä"]
    await _fill(store, paths)
    wanted = sorted(paths, key=lambda path: path.encode())
    page = await store.scan("", "", "", 1000)
    assert [entry.path for entry in page.entries] == wanted and page.next_start is None
    seen, start = [], ""
    while True:
        page = await store.scan("", start, "", 2)
        seen += [entry.path for entry in page.entries]
        if page.next_start is None:
            break
        start = page.next_start
    assert seen == wanted


async def test_scan_with_a_prefix(store: ReplicaStore):
    await _fill(store, ["a", "ab", "ab\U0010ffff", "ab\U0010ffffx", "ac", "b"])
    page = await store.scan("ab", "", "", 1000)
    assert [entry.path for entry in page.entries] == ["ab", "ab\U0010ffff", "ab\U0010ffffx"]
    page = await store.scan("ab\U0010ffff", "", "", 1000)
    assert [entry.path for entry in page.entries] == ["ab\U0010ffff", "ab\U0010ffffx"]
    page = await store.scan("a", "ab\U0010ffff", "", 2)
    assert [entry.path for entry in page.entries] == ["ab\U0010ffff", "ab\U0010ffffx"] and page.next_start == "ac"


async def test_scan_with_a_delimiter_tells_one_of_each_group(store: ReplicaStore):
    await _fill(store, ["d/a", "d/b/1", "d/b/2", "d/c/1", "d/d", "e/1", "f"])
    page = await store.scan("d/", "", "/", 1000)
    assert [entry.path for entry in page.entries] == ["d/a", "d/b/1", "d/c/1", "d/d"]
    page = await store.scan("", "", "/", 1000)
    assert [entry.path for entry in page.entries] == ["d/a", "e/1", "f"]
    page = await store.scan("", "", "/", 1)
    assert [entry.path for entry in page.entries] == ["d/a"] and page.next_start == "e/1"


async def test_scan_tells_the_dead_but_not_as_witness_of_a_group(store: ReplicaStore):
    for counter, path in enumerate(["g/1", "g/2", "h/1", "k"], start=1):
        first = put(1)
        await choose(store, path, first, counter * 10)
        if path != "g/2":
            await choose(store, path, change("delete", first, head=None, live=()), counter * 10 + 1)
    page = await store.scan("", "", "", 10)
    assert [(entry.path, entry.version) for entry in page.entries] == [("g/1", 0), ("g/2", 1), ("h/1", 0), ("k", 0)]
    page = await store.scan("", "", "/", 10)
    assert [entry.path for entry in page.entries] == ["g/2", "k"]


async def test_scan_shows_undecided_registers(store: ReplicaStore):
    await store.load(SLOT, "p/x")
    store.apply(Accepted(SLOT, "p/x", ballot(1), put(1), b"body"))
    page = await store.scan("", "", "/", 10)
    (entry,) = page.entries
    assert (entry.path, entry.chosen, entry.version, entry.slot, entry.ballot) == ("p/x", False, 1, SLOT, ballot(1))
    store.apply(Chosen(SLOT, "p/x", ballot(1)))
    (entry,) = (await store.scan("", "", "", 10)).entries
    assert entry.chosen and entry.version_max == 1 and entry.content_type == "text/plain"


# ---- bytes


async def test_inline_bodies(store: ReplicaStore):
    record = put(1)
    assert record.head is not None
    assert await store.blob_state(SLOT, record.head.blob_id) is BlobState.ABSENT
    await store.load(SLOT, "a")
    store.apply(Accepted(SLOT, "a", ballot(1), record, b"body"))
    assert await store.blob_state(SLOT, record.head.blob_id) is BlobState.DURABLE
    assert await store.read_chunk(SLOT, record.head.blob_id, record.head.chunks[0]) == b"body"
    await store.scan("", "", "", 1)
    assert await store.blob_state(SLOT, record.head.blob_id) is BlobState.DURABLE
    assert await store.read_chunk(SLOT, record.head.blob_id, record.head.chunks[0]) == b"body"
    assert await store.missing_chunks(SLOT, record.head, record.head.chunks) == []
    await store.discard(SLOT, record.head.blob_id)
    assert await store.read_chunk(SLOT, record.head.blob_id, record.head.chunks[0]) == b"body"


async def test_staged_bytes_are_durable_and_read_back(store: ReplicaStore):
    blob_id = mint()
    parts = [bytes([n]) * 100 * KIB for n in range(3)] + [b"end"]
    chunks = await stage(store, blob_id, parts)
    assert await store.blob_state(SLOT, blob_id) is BlobState.DURABLE
    for chunk, part in zip(chunks, parts, strict=True):
        assert await store.read_chunk(SLOT, blob_id, chunk) == part
        assert await store.read_chunk_into(SLOT, blob_id, chunk, memoryview(bytearray(200 * KIB))) == part
    with pytest.raises(ChunkMissing):
        await store.read_chunk_into(SLOT, mint(), chunks[0], memoryview(bytearray(200 * KIB)))
    with pytest.raises(ChunkMissing):
        await store.read_chunk(SLOT, blob_id, ChunkRef(id=content_hash(b"x"), len=1))
    with pytest.raises(ChunkMissing):
        await store.read_chunk(SLOT, mint(), chunks[0])


async def test_chunks_are_cut_wherever_the_writes_end(store: ReplicaStore):
    data = bytes(range(256)) * 1500
    step = 64 * KIB
    chunks = tuple(
        ChunkRef(id=content_hash(data[at : at + step]), len=len(data[at : at + step]))
        for at in range(0, len(data), step)
    )
    blob_id = mint()
    staging = await store.stage(SLOT, blob_id, chunk_bytes=step, size=None)
    for at in range(0, len(data), 10_007):
        await staging.write(bytearray(data[at : at + 10_007]))
    await staging.finish(chunks, None)
    assert b"".join([await store.read_chunk(SLOT, blob_id, chunk) for chunk in chunks]) == data


async def test_bytes_that_are_not_the_chunks_are_refused(store: ReplicaStore):
    blob_id = mint()
    staging = await store.stage(SLOT, blob_id, chunk_bytes=KIB, size=3)
    await staging.write(b"abc")
    with pytest.raises(DigestMismatch):
        await staging.finish((ChunkRef(id=content_hash(b"abd"), len=3),), None)
    assert await store.blob_state(SLOT, blob_id) is BlobState.ABSENT


async def test_abort_leaves_nothing_and_may_be_called_twice(store: ReplicaStore):
    blob_id = mint()
    staging = await store.stage(SLOT, blob_id, chunk_bytes=KIB, size=None)
    await staging.write(b"x" * 5000)
    await staging.abort()
    await staging.abort()
    assert await store.blob_state(SLOT, blob_id) is BlobState.ABSENT
    await stage(store, blob_id, [b"again"])
    assert await store.blob_state(SLOT, blob_id) is BlobState.DURABLE


async def test_manifests(store: ReplicaStore):
    blob_id = mint()
    parts = [bytes([n]) * KIB for n in range(4)]
    chunks = tuple(ChunkRef(id=content_hash(part), len=len(part)) for part in parts)
    manifest = encode_manifest(chunks)
    await stage(store, blob_id, parts, manifest=manifest)
    assert await store.read_manifest(SLOT, blob_id, content_hash(manifest)) == manifest
    with pytest.raises(ChunkMissing):
        await store.read_manifest(SLOT, mint(), content_hash(manifest))


async def test_names_from_outside_never_reach_the_file_system(store: ReplicaStore):
    with pytest.raises(ValueError):
        await store.stage(SLOT, "../../etc", chunk_bytes=KIB, size=None)
    with pytest.raises(ValueError):
        await store.read_chunk(SLOT, mint(), ChunkRef(id="../meta.sqlite3", len=1))
    with pytest.raises(ValueError):
        await store.blob_state(SLOT, "x")


async def test_discard_gives_up_what_nothing_refers_to(store: ReplicaStore):
    blob_id = mint()
    (chunk,) = await stage(store, blob_id, [b"abc"])
    await store.discard(SLOT, blob_id)
    assert await store.blob_state(SLOT, blob_id) is BlobState.ABORTED
    with pytest.raises(ChunkMissing):
        await store.read_chunk(SLOT, blob_id, chunk)
    await store.scan("", "", "", 1)
    assert await store.blob_state(SLOT, blob_id) is BlobState.ABORTED
    with pytest.raises(StorageError):
        await stage(store, blob_id, [b"abc"])


async def test_discard_leaves_a_referenced_blob_alone(store: ReplicaStore):
    head = version(1, b"abc", inline=False)
    await stage(store, head.blob_id, [b"abc"])
    record = Record(1, "put", 1, head, ((1, 1),), (), NOW, 0, None, (WriteMark("w1", "put", 1, NOW),))
    await store.load(SLOT, "a")
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(1), record)))
    await store.discard(SLOT, head.blob_id)
    store.apply(Aborted(SLOT, head.blob_id))
    await store.scan("", "", "", 1)
    await store.discard(SLOT, head.blob_id)
    assert await store.blob_state(SLOT, head.blob_id) is BlobState.DURABLE
    assert await store.read_chunk(SLOT, head.blob_id, head.chunks[0]) == b"abc"
    assert await store.sweep_staged(NOW * 2, 10) == 0


async def test_sweep_takes_old_staged_blobs_up_to_a_limit(store: ReplicaStore):
    blobs = [mint() for _ in range(3)]
    for blob_id in blobs:
        await stage(store, blob_id, [b"abc"])
    assert await store.sweep_staged(1, 10) == 0
    assert await store.sweep_staged(NOW * 2, 2) == 2
    assert await store.sweep_staged(NOW * 2, 2) == 1
    assert {await store.blob_state(SLOT, blob_id) for blob_id in blobs} == {BlobState.ABORTED}


async def test_repair_of_files(store: ReplicaStore):
    parts = [b"one", b"two", b"end"]
    chunks = tuple(ChunkRef(id=content_hash(part), len=3) for part in parts)
    head = Version(1, mint(), 9, content_hash(b"onetwoend"), NOW, "t", {}, chunks, None, 3, False)
    record = Record(1, "put", 1, head, ((1, 1),), (), NOW, 0, None, ())
    await store.load(SLOT, "a")
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(1), record)))
    assert await store.missing_chunks(SLOT, head, chunks) == list(chunks)
    with pytest.raises(DigestMismatch):
        await store.install_chunk(SLOT, head, chunks[0], b"xxx")
    for number, (chunk, part) in enumerate(zip(chunks, parts, strict=True)):
        assert await store.blob_state(SLOT, head.blob_id) is BlobState.ABSENT
        await store.install_chunk(SLOT, head, chunk, part)
        assert await store.missing_chunks(SLOT, head, chunks) == list(chunks[number + 1 :])
    assert await store.blob_state(SLOT, head.blob_id) is BlobState.DURABLE
    assert await store.read_chunk(SLOT, head.blob_id, chunks[1]) == b"two"


async def test_repair_of_a_blob_with_a_manifest(store: ReplicaStore):
    parts = [b"one", b"two"]
    chunks = tuple(ChunkRef(id=content_hash(part), len=3) for part in parts)
    manifest = encode_manifest(chunks)
    head = Version(1, mint(), 6, content_hash(b"onetwo"), NOW, "t", {}, (), content_hash(manifest), 2, False)
    await store.load(SLOT, "a")
    store.apply(Chosen(SLOT, "a", ballot(1), Record(1, "put", 1, head, ((1, 1),), (), NOW, 0, None, ())))
    await store.install_chunk(SLOT, head, chunks[0], parts[0])
    await store.install_manifest(SLOT, head, manifest)
    assert await store.blob_state(SLOT, head.blob_id) is BlobState.ABSENT
    await store.install_chunk(SLOT, head, chunks[1], parts[1])
    assert await store.blob_state(SLOT, head.blob_id) is BlobState.DURABLE
    assert await store.read_manifest(SLOT, head.blob_id, content_hash(manifest)) == manifest


async def test_repair_of_an_inline_body(store: ReplicaStore):
    record = put(1)
    head = record.head
    assert head is not None
    await store.load(SLOT, "a")
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(1), record)))
    await store.install_chunk(SLOT, head, head.chunks[0], b"body")
    await store.scan("", "", "", 1)
    assert await store.missing_chunks(SLOT, head, head.chunks) == []
    assert await store.read_chunk(SLOT, head.blob_id, head.chunks[0]) == b"body"


async def test_a_blob_without_bytes(store: ReplicaStore):
    blob_id = mint()
    staging = await store.stage(SLOT, blob_id, chunk_bytes=KIB, size=0)
    await staging.finish((), None)
    assert await store.blob_state(SLOT, blob_id) is BlobState.DURABLE
