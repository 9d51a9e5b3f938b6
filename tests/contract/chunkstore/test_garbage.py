"""Versions whose retention is over: their rows go with the record that says so, their bytes after, and nothing else."""

from __future__ import annotations

import pytest

from amberblob.errors import ChunkMissing
from amberblob.limits import KIB
from amberblob.manifest import Record, WriteMark
from amberblob.mutations import Accepted, Chosen, Installed
from chunkstore import BlobState, MemoryStore, ReplicaStore
from chunkstore.interface import History
from tests.contract.chunkstore.kit import (
    NOW,
    SLOT,
    ballot,
    body_of,
    change,
    choose,
    choose_file,
    expire,
    file_put,
    head_of,
    installed,
    mint,
    pull,
    put,
    sums_of_rows,
)

BIG = 70 * KIB


async def _two(store: ReplicaStore, path: str, *, files: bool) -> list[Record]:
    """Two puts and the delete of the first version."""
    first_body, second_body = body_of(1, BIG if files else 0), body_of(2, BIG if files else 0)
    first = file_put(1, first_body) if files else put(1, body=first_body)
    if files:
        await choose_file(store, path, first, first_body, 1)
        second = file_put(2, second_body, before=first)
        await choose_file(store, path, second, second_body, 2)
    else:
        await choose(store, path, first, 1, body=first_body)
        second = put(2, before=first, body=second_body)
        await choose(store, path, second, 2, body=second_body)
    third = change("delete-version", second, head=second.head, live=((2, 2),))
    await choose(store, path, third, 3)
    return [first, second, third]


@pytest.mark.parametrize("files", [True, False])
async def test_rows_go_when_the_expiry_is_chosen_and_bytes_after(store: ReplicaStore, files: bool):
    first, second, third = await _two(store, "a", files=files)
    over = expire(third, (1, 1))
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(4), over)))
    assert len(await store.rows(SLOT, "a")) == 2, "it is not known to be chosen"
    assert await store.sweep_garbage(SLOT, 10) == 0
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(4))))
    assert [row.version for row in await store.rows(SLOT, "a")] == [second.head]
    assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a"])
    (item,) = await store.items(SLOT, ["a"])
    assert (item.record, item.rows) == (over, (second.head,))
    assert await store.sweep_garbage(SLOT, 10) == 1
    assert await store.sweep_garbage(SLOT, 10) == 0
    old, new = head_of(first), head_of(second)
    assert await store.blob_state(SLOT, old.blob_id) is BlobState.ABSENT
    with pytest.raises(ChunkMissing):
        await store.read_chunk(SLOT, old.blob_id, old.chunks[0])
    assert await store.read_chunk(SLOT, new.blob_id, new.chunks[0]) == body_of(2, BIG if files else 0)
    assert await store.blob_state(SLOT, new.blob_id) is BlobState.DURABLE
    assert await store.orphans(SLOT, 1 << 47) == []


async def test_a_sweep_takes_no_more_than_it_is_asked_for(store: ReplicaStore):
    records: list[Record] = []
    for number in range(1, 6):
        records.append(put(number, before=records[-1] if records else None))
        await choose(store, "a", records[-1], number)
    gone = change("delete-version", records[-1], head=records[-1].head, live=((5, 5),))
    await choose(store, "a", gone, 6)
    await choose(store, "a", expire(gone, (1, 3)), 7)
    await store.settle([SLOT])
    assert [await store.sweep_garbage(SLOT, 2) for _ in range(3)] == [2, 1, 0]
    for number in (4, 5):
        head = head_of(records[number - 1])
        assert await store.read_chunk(SLOT, head.blob_id, head.chunks[0]) == b"body"


async def test_nothing_brings_an_expired_version_back(store: ReplicaStore):
    first, second, third = await _two(store, "a", files=False)
    peer = MemoryStore(mint())
    for counter, record in enumerate((first, second, third), start=1):
        await choose(peer, "a", record, counter)
    over = expire(third, (1, 1))
    await choose(store, "a", over, 4)
    (old,) = await peer.items(SLOT, ["a"])
    for again in (
        installed(old),
        installed(old, replaced=True),
        Installed(SLOT, "a", None, None, old.rows),
        Chosen(SLOT, "a", ballot(1), first),
        Chosen(SLOT, "a", ballot(2), second),
        Accepted(SLOT, "a", ballot(2), second, b"body"),
    ):
        await store.load(SLOT, "a")
        await store.durable(store.apply(again))
        assert [row.version.version for row in await store.rows(SLOT, "a")] == [2]
        assert (await store.load(SLOT, "a")).record == over
        assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a"])
    assert await pull(peer, store) == 1
    assert [row.version.version for row in await peer.rows(SLOT, "a")] == [2]
    assert await pull(store, peer) == 0
    assert await store.bucket_sums(SLOT) == await peer.bucket_sums(SLOT)


async def test_what_expired_stays_gone_under_later_records(store: ReplicaStore):
    first, _, third = await _two(store, "a", files=False)
    over = expire(third, (1, 1))
    await choose(store, "a", over, 4)
    fourth = put(3, before=over, body=body_of(3))
    fourth = Record(
        fourth.revision, fourth.op, fourth.version_max, fourth.head, fourth.live, fourth.taken, fourth.changed_at_ms,
        fourth.deleted_at_ms, fourth.previous, fourth.writes, over.expired,
    )  # fmt: skip
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(5), fourth, body_of(3))))
    await store.durable(store.apply(Installed(SLOT, "a", None, None, (head_of(first),))))
    assert [row.version.version for row in await store.rows(SLOT, "a")] == [2], (
        "an undecided record is above the expiry"
    )
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(5))))
    await store.durable(store.apply(Installed(SLOT, "a", None, None, (head_of(first),))))
    assert [row.version.version for row in await store.rows(SLOT, "a")] == [3, 2]


async def test_rows_that_come_with_their_expiry_do_not_come_in(store: ReplicaStore):
    peer = MemoryStore(mint())
    first, second, third = await _two(peer, "a", files=False)
    over = expire(third, (1, 1))
    await store.load(SLOT, "a")
    rows = (head_of(second), head_of(first))
    await store.durable(store.apply(Installed(SLOT, "a", ballot(4), over, rows)))
    assert [row.version for row in await store.rows(SLOT, "a")] == [second.head]
    assert [one.version for one in await store.wanted(SLOT, 10)] == [second.head]


async def test_what_was_swept_may_not_be_read_from_memory(store: ReplicaStore):
    first, _, third = await _two(store, "a", files=False)
    head = head_of(first)
    assert await store.read_chunk(SLOT, head.blob_id, head.chunks[0]) == body_of(1)
    await choose(store, "a", expire(third, (1, 1)), 4)
    await store.settle([SLOT])
    assert await store.sweep_garbage(SLOT, 10) == 1
    assert store.peek_body(SLOT, head.blob_id) is None
    with pytest.raises(ChunkMissing):
        await store.read_chunk(SLOT, head.blob_id, head.chunks[0])


# ---- what retention looks at


async def test_histories_are_of_paths_that_have_something_to_expire(store: ReplicaStore):
    single, stub = put(1), put(1)
    await choose(store, "alone", single, 1)
    records = await _two(store, "several", files=False)
    await choose(store, "dead", stub, 1)
    gone = change("delete", stub, head=None, live=())
    await choose(store, "dead", gone, 2)
    await choose(store, "stub", put(1), 1)
    last = (await store.load(SLOT, "stub")).record
    assert last is not None
    end = expire(change("delete", last, head=None, live=()), (1, 1))
    await store.durable(store.apply(Chosen(SLOT, "stub", ballot(3), end)))
    await store.load(SLOT, "undecided")
    await store.durable(store.apply(Accepted(SLOT, "undecided", ballot(1), put(1), b"body")))
    found, after = await store.histories(SLOT, "", 10)
    assert after is None
    assert found == [
        History(path="dead", record=gone, rows=((1, NOW + 1, gone.deleted_at_ms),)),
        History(path="several", record=records[-1], rows=((1, NOW + 1, records[-1].deleted_at_ms), (2, NOW + 2, None))),
        History(path="stub", record=end, rows=()),
    ]
    assert [one.path for one in (await store.histories(SLOT, "dead", 10))[0]] == ["several", "stub"]
    assert await store.histories(99, "", 10) == ([], None)


async def test_histories_come_in_pages(store: ReplicaStore):
    paths = [f"p{number}" for number in range(7)]
    for path in paths:
        first = put(1)
        await choose(store, path, first, 1)
        if path != "p3":
            await choose(store, path, put(2, before=first), 2)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page, after = await store.histories(SLOT, after, 2)
        assert len(page) <= 2
        seen += [one.path for one in page]
    assert seen == [path for path in paths if path != "p3"]


async def test_the_record_of_a_history_is_told_only_when_it_is_chosen(store: ReplicaStore):
    records = await _two(store, "a", files=False)
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(9), put(3, before=records[-1]), b"body")))
    ((one,), _) = await store.histories(SLOT, "", 10)
    assert one.record is None and [row[0] for row in one.rows] == [1, 2]


# ---- write ids


async def test_old_write_ids_are_forgotten_but_not_those_of_the_record(store: ReplicaStore):
    record: Record | None = None
    for number in range(1, 13):
        record = put(number, before=record)
        await choose(store, "a", record, number)
    assert record is not None and len(record.writes) == 8
    await store.settle([SLOT])
    assert await store.forget_writes(SLOT, NOW, 100) == 0
    assert await store.forget_writes(SLOT, NOW + 3, 100) == 2, "w1 and w2 are older"
    assert await store.find_write(SLOT, "a", "w2") is None
    assert await store.find_write(SLOT, "a", "w3") == WriteMark("w3", "put", 3, NOW + 3)
    await store.forget_writes(SLOT, NOW * 2, 1)
    await store.forget_writes(SLOT, NOW * 2, 100)
    assert await store.find_write(SLOT, "a", "w4") is None
    assert await store.find_write(SLOT, "a", "w12") == WriteMark("w12", "put", 12, NOW + 12)
    assert await store.forget_writes(99, NOW * 2, 100) == 0
