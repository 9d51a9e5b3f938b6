"""Digests and what is told by them: every store must come to the same ones, and to the same answers."""

from __future__ import annotations

import random

import pytest
from msgspec.structs import replace

from amberblob.ballot import BALLOT_ZERO, EMPTY_REGISTER, Register
from amberblob.digests import BUCKETS, DIGEST_BYTES, SHORT_BYTES, bucket_of, digest_bytes, path_key
from amberblob.limits import FRAME_BYTES_MAX, KIB, MIB
from amberblob.manifest import Record, WriteMark
from amberblob.mutations import Accepted, Chosen, EpochSeen, Forgotten, Installed, Reserved, Synced
from amberblob.wire import encode
from amberblob.wire_repair import ItemsReply, LogLine, PathItem
from chunkstore import MemoryStore, ReplicaStore
from tests.contract.chunkstore.kit import (
    NOW,
    SLOT,
    ballot,
    change,
    choose,
    digest_of_rows,
    expire,
    head_of,
    installed,
    mint,
    pull,
    put,
    root,
    sums_of_rows,
    version,
)

NOTHING = bytes(DIGEST_BYTES)


async def _history(store: ReplicaStore, path: str, count: int, counter: int = 1) -> list[Record]:
    """As many puts of the path."""
    records: list[Record] = []
    for number in range(1, count + 1):
        records.append(put(number, before=records[-1] if records else None))
        await choose(store, path, records[-1], counter + number - 1)
    return records


def _one_bucket(count: int) -> list[str]:
    """Paths of one bucket, ascending."""
    wanted, number = bucket_of("path-0"), 0
    found: list[str] = []
    while len(found) < count:
        if bucket_of(f"path-{number}") == wanted:
            found.append(f"path-{number}")
        number += 1
    return sorted(found)


# ---- digests


async def test_a_slot_without_anything(store: ReplicaStore):
    tally = store.tally(SLOT)
    assert (tally.root, tally.objects, tally.wanted, tally.wanted_bytes, tally.damaged, tally.log_head) == (
        NOTHING, 0, 0, 0, 0, 0,
    )  # fmt: skip
    await store.settle([SLOT])
    assert await store.bucket_sums(SLOT) == NOTHING * BUCKETS
    assert await store.fingerprints(SLOT, [0, 9]) == {0: b"", 9: b""}
    assert await store.items(SLOT, ["a"]) == []
    assert await store.items_after(SLOT, "", MIB) == ([], None)
    assert await store.items_differing(SLOT, {0: b""}, "", MIB) == ([], None)
    assert await store.log_lines(SLOT, 0, 10) == ([], False)
    assert await store.wanted(SLOT, 10) == []
    assert await store.trim_log(SLOT, 0) == 0
    assert store.slots() == []


async def test_digests_are_of_what_is_chosen(store: ReplicaStore):
    await _history(store, "a", 3)
    await _history(store, "b", 1)
    sums = await store.bucket_sums(SLOT)
    assert sums == await sums_of_rows(store, ["a", "b"])
    total = (await digest_of_rows(store, "a") + await digest_of_rows(store, "b")) % 2**256
    assert await root(store) == digest_bytes(total)
    assert store.tally(SLOT).objects == 2


async def test_what_is_undecided_is_not_in_a_digest(store: ReplicaStore):
    first = put(1)
    await choose(store, "a", first, 1)
    before = await store.bucket_sums(SLOT)
    second = put(2, before=first)
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(2), second, b"body")))
    undecided = await store.bucket_sums(SLOT)
    assert undecided != before, "the chosen record is no longer in the register"
    assert undecided == await sums_of_rows(store, ["a"])
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(2))))
    assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a"]) != before


async def test_the_first_undecided_record_of_a_path_changes_no_digest(store: ReplicaStore):
    await store.load(SLOT, "a")
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(1), put(1), b"body")))
    assert await store.bucket_sums(SLOT) == NOTHING * BUCKETS
    assert await store.fingerprints(SLOT, [bucket_of("a")]) == {bucket_of("a"): b""}
    assert await root(store) == NOTHING
    assert store.tally(SLOT).objects == 1


async def test_a_digest_does_not_tell_the_ballot_nor_the_order(store: ReplicaStore):
    first = put(1)
    second = put(2, before=first)
    third = change("delete", second, head=None, live=())
    for counter, record in enumerate((first, second, third), start=1):
        await choose(store, "a", record, counter)
    other = MemoryStore(mint())
    other.apply(Chosen(SLOT, "a", ballot(9), third))
    other.apply(Chosen(SLOT, "a", ballot(1), first))
    assert await root(store) == await root(other)


async def test_a_delete_and_a_restore_change_the_record_only(store: ReplicaStore):
    records = await _history(store, "a", 3)
    gone = change("delete", records[-1], head=None, live=())
    await choose(store, "a", gone, 4)
    assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a"])
    back = change("restore", gone, head=records[0].head, live=((1, 1),))
    await choose(store, "a", back, 5)
    assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a"])


async def test_two_stores_that_hear_the_same_in_any_order_agree(store: ReplicaStore):
    chance = random.Random(5)
    heard: list[Chosen] = []
    for name in ("a", "b", "c", "d"):
        record = put(1)
        for counter in range(1, 7):
            heard.append(Chosen(SLOT, name, ballot(counter), record))
            if chance.random() < 0.6:
                record = put(record.version_max + 1, before=record)
            else:
                record = change("delete", record, head=None, live=())
    other = MemoryStore(mint())
    for target in (store, other):
        for mutation in chance.sample(heard, len(heard)):
            await target.load(SLOT, mutation.path)
            target.apply(mutation)
            if chance.random() < 0.2:
                await target.settle([SLOT])
    assert await store.bucket_sums(SLOT) == await other.bucket_sums(SLOT) != NOTHING * BUCKETS
    assert await root(store) == await root(other)


# ---- telling how two differ


async def test_fingerprints_are_keys_and_states_by_key(store: ReplicaStore):
    paths = _one_bucket(3)
    for counter, path in enumerate(paths, start=1):
        await choose(store, path, put(1), counter)
    bucket = bucket_of(paths[0])
    found = await store.fingerprints(SLOT, [bucket, (bucket + 1) % BUCKETS])
    pairs = sorted([(path_key(path), digest_bytes(await digest_of_rows(store, path))[:SHORT_BYTES]) for path in paths])
    assert found == {bucket: b"".join(key + state for key, state in pairs), (bucket + 1) % BUCKETS: b""}


async def test_items_tell_all_that_is_chosen(store: ReplicaStore):
    records = await _history(store, "b", 3)
    gone = change("delete", records[-1], head=None, live=())
    await choose(store, "b", gone, 4)
    await store.load(SLOT, "a")
    store.apply(Accepted(SLOT, "a", ballot(8), put(1), b"body"))
    assert await store.items(SLOT, ["b", "a", "nobody", "b"]) == [
        PathItem("a", ballot(8), None, False, (), ()),
        PathItem("b", ballot(4), gone, True, tuple(head_of(r) for r in reversed(records)), gone.writes),
    ]


async def test_items_of_an_undecided_register_have_the_rows_that_are_chosen(store: ReplicaStore):
    (first,) = await _history(store, "a", 1)
    store.apply(Accepted(SLOT, "a", ballot(2), put(2, before=first), b"body"))
    (item,) = await store.items(SLOT, ["a"])
    assert (item.record, item.chosen, item.ballot, item.rows) == (None, False, ballot(2), (first.head,))
    assert item.writes == first.writes


async def test_items_of_a_path_with_many_rows_come_in_parts(store: ReplicaStore):
    count = 1003
    rows = tuple(version(number) for number in range(count, 0, -1))
    head = rows[0]
    record = Record(count, "put", count, head, ((1, count),), (), NOW, 0, rows[1], ())
    await store.load(SLOT, "a")
    await store.durable(store.apply(Installed(SLOT, "a", ballot(1), record, rows)))
    seen: list[int] = []
    (item,) = await store.items(SLOT, ["a"])
    while item.more_below is not None:
        assert len(item.rows) <= 1000 and item.rows[-1].version == item.more_below
        seen += [row.version for row in item.rows]
        (item,) = await store.items(SLOT, ["a"], below=item.more_below)
        assert item.record == record and item.chosen
    seen += [row.version for row in item.rows]
    assert seen == list(range(count, 0, -1))


async def test_every_item_fits_a_frame(store: ReplicaStore):
    rows = tuple(replace(version(number), meta={"k": "v" * 7 * KIB}) for number in range(600, 0, -1))
    record = Record(600, "put", 600, rows[0], ((1, 600),), (), NOW, 0, rows[1], ())
    await store.load(SLOT, "a")
    await store.durable(store.apply(Installed(SLOT, "a", ballot(1), record, rows)))
    items, _ = await store.items_after(SLOT, "", 256 * KIB)
    (item,) = items
    reply = ItemsReply(incarnation="i", epoch=1, items=(item,), ballot_floor=BALLOT_ZERO, version_floor=0)
    assert len(encode(reply)) < FRAME_BYTES_MAX
    assert item.more_below is not None
    other = MemoryStore(mint())
    assert await pull(other, store) == 1
    assert await root(other) == await root(store)


async def test_differing_items_are_those_that_the_other_lacks_or_has_otherwise(store: ReplicaStore):
    same, other, mine, theirs = _one_bucket(4)
    peer = MemoryStore(mint())
    for name in (same, other):
        (record,) = await _history(store, name, 1)
        await choose(peer, name, record, 1)
        if name == other:
            await choose(peer, name, put(2, before=record), 2)
    await _history(store, mine, 1)
    await _history(peer, theirs, 1)
    bucket = bucket_of(same)
    known = await peer.fingerprints(SLOT, [bucket])
    items, after = await store.items_differing(SLOT, known, "", MIB)
    assert after is None
    assert [item.path for item in items] == sorted([other, mine])
    assert await store.items_differing(SLOT, {(bucket + 1) % BUCKETS: b""}, "", MIB) == ([], None)
    above, _ = await store.items_differing(SLOT, {bucket: b""}, same, MIB)
    assert [item.path for item in above] == sorted(path for path in (other, mine) if path > same)


async def test_what_is_not_pairs_of_keys_and_states_is_refused(store: ReplicaStore):
    await _history(store, "a", 1)
    with pytest.raises(ValueError):
        await store.items_differing(SLOT, {bucket_of("a"): b"x" * 17}, "", MIB)


async def test_pages_hold_about_what_was_asked_for_and_one_item_at_least(store: ReplicaStore):
    paths = [f"p{number:02}" for number in range(20)]
    for path in paths:
        await _history(store, path, 1)
    buckets = {bucket_of(path): b"" for path in paths}
    for size_bytes, most in ((1, 1), (1500, 5), (MIB, 20)):
        for known in (None, buckets):
            after: str | None = ""
            seen, pages = [], 0
            while after is not None:
                if known is None:
                    items, after = await store.items_after(SLOT, after, size_bytes)
                else:
                    items, after = await store.items_differing(SLOT, known, after, size_bytes)
                assert len(items) <= most
                seen += [item.path for item in items]
                pages += 1
            assert seen == paths
            assert pages >= len(paths) // most


async def test_a_page_of_everything_has_the_undecided_too(store: ReplicaStore):
    records = await _history(store, "a", 2)
    await store.load(SLOT, "b")
    store.apply(Accepted(SLOT, "b", ballot(3), put(1), b"body"))
    items, after = await store.items_after(SLOT, "", MIB)
    assert after is None
    assert [(item.path, item.chosen, item.record, item.ballot) for item in items] == [
        ("a", True, records[-1], ballot(2)),
        ("b", False, None, ballot(3)),
    ]
    assert [item.path for item in (await store.items_after(SLOT, "a", MIB))[0]] == ["b"]


# ---- taking over


async def test_what_is_pulled_makes_two_stores_equal(store: ReplicaStore):
    peer = MemoryStore(mint())
    for number in range(12):
        path = f"p{number}"
        records = await _history(peer, path, 4)
        for counter, record in enumerate(records[: number % 5], start=1):
            await choose(store, path, record, counter)
        if number % 3 == 0:
            await choose(peer, path, change("delete", records[-1], head=None, live=()), 5)
    await _history(store, "only here", 2)
    assert await pull(store, peer, size_bytes=2000) > 0
    assert await pull(peer, store) == 1
    assert await store.bucket_sums(SLOT) == await peer.bucket_sums(SLOT)
    assert await pull(store, peer) == await pull(peer, store) == 0
    for number in range(12):
        assert await store.rows(SLOT, f"p{number}") == await peer.rows(SLOT, f"p{number}")
        assert await store.load(SLOT, f"p{number}") == await peer.load(SLOT, f"p{number}")
        assert await store.find_write(SLOT, f"p{number}", "w3") == await peer.find_write(SLOT, f"p{number}", "w3")


async def test_what_is_installed_is_listed(store: ReplicaStore):
    record = put(1)
    await store.load(SLOT, "a")
    await store.durable(store.apply(Installed(SLOT, "a", ballot(3), record, (head_of(record),))))
    (entry,) = (await store.scan("", "", "", 10)).entries
    assert (entry.path, entry.version, entry.chosen, entry.ballot) == ("a", 1, True, ballot(3))
    assert await store.undecided(SLOT) == []


async def test_nothing_is_installed_over_a_higher_ballot(store: ReplicaStore):
    first = put(1)
    second = put(2, before=first)
    await store.load(SLOT, "a")
    store.apply(Accepted(SLOT, "a", ballot(9), second, b"body"))
    mark = WriteMark("w-old", "put", 1, NOW)
    await store.durable(store.apply(Installed(SLOT, "a", ballot(4), first, (head_of(first),), (mark,))))
    assert await store.load(SLOT, "a") == Register(ballot(9), second, False)
    assert [row.version for row in await store.rows(SLOT, "a")] == [first.head]
    assert await store.find_write(SLOT, "a", "w-old") == mark
    assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a"])


async def test_an_installed_record_decides_what_is_undecided_at_its_ballot(store: ReplicaStore):
    record = put(1)
    await store.load(SLOT, "a")
    store.apply(Accepted(SLOT, "a", ballot(2), record, b"body"))
    await store.durable(store.apply(Installed(SLOT, "a", ballot(2), record)))
    assert await store.load(SLOT, "a") == Register(ballot(2), record, True)
    assert [row.version for row in await store.rows(SLOT, "a")] == [record.head]
    assert await store.undecided(SLOT) == []


async def test_rows_without_a_record(store: ReplicaStore):
    rows = (version(1), version(2))
    await store.load(SLOT, "a")
    await store.durable(store.apply(Installed(SLOT, "a", None, None, rows)))
    assert await store.load(SLOT, "a") == EMPTY_REGISTER
    assert [row.version for row in await store.rows(SLOT, "a")] == [rows[1], rows[0]]
    assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a"])
    (item,) = await store.items(SLOT, ["a"])
    assert (item.ballot, item.record, item.chosen, item.rows) == (None, None, False, (rows[1], rows[0]))
    assert store.tally(SLOT).objects == 0


async def test_tombstones_of_installed_rows_are_as_the_newest_record_says(store: ReplicaStore):
    peer = MemoryStore(mint())
    records = await _history(peer, "a", 3)
    gone = change("delete-version", records[-1], head=records[-1].head, live=((1, 1), (3, 3)))
    await choose(peer, "a", gone, 4)
    await pull(store, peer)
    assert [row.tombstoned_at_ms for row in await store.rows(SLOT, "a")] == [None, gone.deleted_at_ms, None]
    late = MemoryStore(mint())
    late.apply(Installed(SLOT, "a", ballot(4), gone))
    await store.durable(store.apply(installed((await late.items(SLOT, ["a"]))[0])))
    assert [row.tombstoned_at_ms for row in await store.rows(SLOT, "a")] == [None, gone.deleted_at_ms, None]


async def test_a_row_that_is_here_stays_unless_it_is_to_be_replaced(store: ReplicaStore):
    (record,) = await _history(store, "a", 1)
    wrong = replace(head_of(record), content_type="other")
    await store.durable(store.apply(Installed(SLOT, "a", None, None, (wrong,))))
    assert [row.version for row in await store.rows(SLOT, "a")] == [record.head]
    await store.durable(store.apply(Installed(SLOT, "a", None, None, (wrong,), (), True)))
    assert [row.version for row in await store.rows(SLOT, "a")] == [wrong]
    assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a"])


async def test_a_record_of_the_same_revision_stays_unless_it_is_to_be_replaced(store: ReplicaStore):
    (record,) = await _history(store, "a", 1, counter=5)
    other = replace(record, changed_at_ms=record.changed_at_ms + 7)
    for counter in (3, 5):
        await store.durable(store.apply(Installed(SLOT, "a", ballot(counter), other)))
        assert await store.load(SLOT, "a") == Register(ballot(5), record, True)
    await store.durable(store.apply(Installed(SLOT, "a", ballot(3), other, (), (), True)))
    assert await store.load(SLOT, "a") == Register(ballot(5), other, True)
    assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a"])


# ---- the commit log


async def test_the_log_names_what_became_chosen_in_order(store: ReplicaStore):
    records = await _history(store, "a", 2)
    await _history(store, "b", 1)
    lines = [LogLine(1, "a", 1), LogLine(2, "a", 2), LogLine(3, "b", 1)]
    assert await store.log_lines(SLOT, 0, 10) == (lines, False)
    assert await store.log_lines(SLOT, 1, 1) == (lines[1:2], False)
    assert await store.log_lines(SLOT, 3, 10) == ([], False)
    await store.settle([SLOT])
    assert store.tally(SLOT).log_head == 3
    await store.durable(store.apply(Installed(SLOT, "c", ballot(4), records[0], (head_of(records[0]),))))
    assert await store.log_lines(SLOT, 3, 10) == ([LogLine(4, "c", 1)], False)


async def test_what_changes_nothing_is_no_line(store: ReplicaStore):
    records = await _history(store, "a", 2)
    (item,) = await store.items(SLOT, ["a"])
    store.apply(installed(item))
    store.apply(Chosen(SLOT, "a", ballot(1), records[0]))
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(2))))
    assert await store.log_lines(SLOT, 2, 10) == ([], False)


async def test_a_log_that_was_cut_says_so(store: ReplicaStore):
    await _history(store, "a", 5)
    await store.settle([SLOT])
    assert await store.trim_log(SLOT, 10) == 0
    assert await store.trim_log(SLOT, 2) == 3
    assert await store.log_lines(SLOT, 0, 10) == ([LogLine(4, "a", 4), LogLine(5, "a", 5)], True)
    assert await store.log_lines(SLOT, 2, 10) == ([LogLine(4, "a", 4), LogLine(5, "a", 5)], True)
    assert await store.log_lines(SLOT, 3, 10) == ([LogLine(4, "a", 4), LogLine(5, "a", 5)], False)
    assert await store.trim_log(SLOT, 0) == 2
    assert await store.log_lines(SLOT, 4, 10) == ([], True)
    assert await store.log_lines(SLOT, 5, 10) == ([], False)
    await store.settle([SLOT])
    assert store.tally(SLOT).log_head == 5
    await choose(store, "b", put(1), 9)
    assert await store.log_lines(SLOT, 5, 10) == ([LogLine(6, "b", 1)], False)


# ---- the slot's own state


async def test_a_synced_copy_has_the_floors_of_the_others(store: ReplicaStore):
    store.apply(EpochSeen(SLOT, 4))
    await store.durable(store.apply(Reserved(SLOT, 77)))
    await store.durable(store.apply(Synced(SLOT, 3, ballot(50), 20)))
    state = store.slot_state(SLOT)
    assert (state.synced_epoch, state.epoch, state.ballot_floor, state.version_floor, state.promise_ceiling) == (
        3, 4, ballot(50), 20, 77,
    )  # fmt: skip
    await store.durable(store.apply(Synced(SLOT, 6, ballot(40), 30)))
    state = store.slot_state(SLOT)
    assert (state.synced_epoch, state.epoch, state.ballot_floor, state.version_floor) == (6, 6, ballot(50), 30)
    await store.durable(store.apply(EpochSeen(SLOT, 7)))
    assert store.slot_state(SLOT).synced_epoch == 6


async def _stub(store: ReplicaStore) -> Record:
    (first,) = await _history(store, "a", 1)
    gone = change("delete", first, head=None, live=())
    await choose(store, "a", gone, 2)
    stub = expire(gone, (1, 1))
    await choose(store, "a", stub, 3)
    return stub


async def test_a_stub_goes_and_raises_the_floors(store: ReplicaStore):
    await _stub(store)
    assert await store.rows(SLOT, "a") == []
    await store.durable(store.apply(Forgotten(SLOT, "a", ballot(3), 1)))
    assert await store.load(SLOT, "a") == EMPTY_REGISTER
    assert await store.items(SLOT, ["a"]) == []
    assert await root(store) == NOTHING
    assert store.tally(SLOT).objects == 0
    assert list((await store.scan("", "", "", 10)).entries) == []
    state = store.slot_state(SLOT)
    assert (state.ballot_floor, state.version_floor) == (ballot(3), 1)
    assert await store.find_write(SLOT, "a", "w1") is not None


async def test_a_path_begins_anew_after_its_stub(store: ReplicaStore):
    await _stub(store)
    await store.durable(store.apply(Forgotten(SLOT, "a", ballot(3), 1)))
    again = put(2)
    await choose(store, "a", again, 4)
    assert [row.version for row in await store.rows(SLOT, "a")] == [again.head]
    assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a"])
    assert store.tally(SLOT).objects <= 1
    (entry,) = (await store.scan("", "", "", 10)).entries
    assert entry.version == 2


@pytest.mark.parametrize("why", ["another ballot", "not chosen", "alive", "has rows"])
async def test_what_is_no_such_stub_stays(store: ReplicaStore, why: str):
    counter = 3
    if why in ("another ballot", "not chosen"):
        stub = await _stub(store)
        counter = 4
        if why == "not chosen":
            await store.durable(store.apply(Accepted(SLOT, "a", ballot(4), put(2, before=stub), b"body")))
    else:
        records = await _history(store, "a", 3)
        if why == "has rows":
            await choose(store, "a", change("delete", records[-1], head=None, live=()), 4)
            counter = 4
    before, held = await root(store), await store.load(SLOT, "a")
    await store.durable(store.apply(Forgotten(SLOT, "a", ballot(counter), 9)))
    assert await store.load(SLOT, "a") == held
    assert await root(store) == before
    assert (store.slot_state(SLOT).ballot_floor, store.slot_state(SLOT).version_floor) == (ballot(counter), 9)
