"""What a test can do to a memory store, and that the others can tell it from what a copy is meant to hold."""

from __future__ import annotations

from amberblob.ballot import EMPTY_REGISTER
from amberblob.manifest import Record
from amberblob.mutations import Accepted, Chosen, Installed, Synced
from chunkstore import MemoryStore
from tests.contract.chunkstore.kit import (
    SLOT,
    ballot,
    body_of,
    change,
    choose,
    choose_file,
    digest_of_rows,
    file_put,
    head_of,
    mint,
    pull,
    put,
    root,
    sums_of_rows,
)

EVER = 1 << 47


async def _two() -> tuple[MemoryStore, MemoryStore, list[Record]]:
    """Two stores that heard the same: three puts and a delete of ``a``, one put of ``b``."""
    records = [put(1)]
    records.append(put(2, before=records[-1]))
    records.append(put(3, before=records[-1]))
    records.append(change("delete", records[-1], head=None, live=()))
    other = put(1)
    stores = (MemoryStore(mint()), MemoryStore(mint()))
    for store in stores:
        for counter, record in enumerate(records, start=1):
            await choose(store, "a", record, counter)
        await choose(store, "b", other, 9)
    return *stores, records


async def test_a_hole_is_found_and_filled():
    store, peer, _ = await _two()
    store.forget_path(SLOT, "a")
    assert await store.load(SLOT, "a") == EMPTY_REGISTER
    assert await store.rows(SLOT, "a") == [] and (await store.scan("", "", "", 9)).entries[0].path == "b"
    assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a", "b"])
    assert await root(store) != await root(peer)
    assert await pull(store, peer) == 1
    assert await root(store) == await root(peer)
    assert await store.rows(SLOT, "a") == await peer.rows(SLOT, "a")
    assert await store.wanted(SLOT, 9) == [], "its bytes had stayed"


async def test_a_stale_head_is_found_and_a_deleted_path_does_not_return():
    store, peer, records = await _two()
    old = await store.load(SLOT, "a")
    await choose(peer, "c", put(1), 1)
    store.rewind(SLOT, "a", type(old)(ballot(2), records[1], True))
    assert [row.version.version for row in await store.rows(SLOT, "a")] == [2, 1]
    assert all(row.tombstoned_at_ms is None for row in await store.rows(SLOT, "a"))
    assert (await store.scan("", "", "", 9)).entries[0].version == 2
    assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a", "b"])
    assert await pull(peer, store) == 1, "it has it otherwise, and nothing of it is taken"
    assert (await peer.load(SLOT, "a")).record == records[3]
    assert await pull(store, peer) == 2
    assert await root(store) == await root(peer)
    assert (await store.scan("", "", "", 9)).entries[0].version == 0


async def test_what_rots_is_not_seen_by_comparing():
    store, peer, _ = await _two()
    before = await root(store)
    wrong = store.damage_row(SLOT, "a", 2)
    store.lose_row(SLOT, "a", 1)
    store.damage_record(SLOT, "b")
    store.lose_tombstone(SLOT, "a", 3)
    assert await root(store) == before == await root(peer)
    assert await digest_of_rows(store, "a") != await digest_of_rows(peer, "a")
    assert (await store.rows(SLOT, "a", version=2))[0].version == wrong
    assert (await store.check_page(SLOT, "", 9)).wrong == ("a", "b")


async def test_a_mutation_after_rot_does_not_hide_it():
    store, peer, records = await _two()
    store.damage_row(SLOT, "a", 2)
    again = put(4, before=records[-1])
    for target in (store, peer):
        await choose(target, "a", again, 12)
    assert await root(store) == await root(peer)
    assert (await store.check_page(SLOT, "", 9)).wrong == ("a",)


async def test_a_log_that_is_gone_and_goes_on():
    store, _, _ = await _two()
    store.forget_log(SLOT)
    assert await store.log_lines(SLOT, 2, 9) == ([], True)
    await choose(store, "d", put(1), 1)
    lines, cut = await store.log_lines(SLOT, 5, 9)
    assert [(line.seq, line.path) for line in lines] == [(6, "d")] and not cut


async def test_bytes_that_vanish_are_known_to_nobody_before_they_are_looked_for():
    store, _, records = await _two()
    head = head_of(records[2])
    store.lose_bytes(SLOT, head.blob_id)
    assert await store.wanted(SLOT, 9) == []
    assert not await store.is_whole(SLOT, head)
    await store.set_wanted(SLOT, "a", head, damaged=False)
    await store.install_bodies(SLOT, [(head, b"body")])
    assert await store.is_whole(SLOT, head) and await store.wanted(SLOT, 9) == []


async def test_files_of_a_lost_slot_are_nobodys_only_when_it_was_filled():
    store = MemoryStore(mint())
    body = body_of(1, 70_000)
    kept, forgotten = file_put(1, body), file_put(1, body)
    await choose_file(store, "kept", kept, body, 1)
    await choose_file(store, "forgotten", forgotten, body, 1)
    store.lose_slot(SLOT, mint())
    assert await store.orphans(SLOT, EVER) == []
    await store.discard(SLOT, head_of(kept).blob_id)
    store.apply(Installed(SLOT, "kept", ballot(1), kept))
    assert await store.wanted(SLOT, 9) == [], "its files are here"
    store.apply(Synced(SLOT, 2, ballot(0), 0))
    assert await store.orphans(SLOT, EVER) == [head_of(forgotten).blob_id]
    assert await store.read_chunk(SLOT, head_of(kept).blob_id, head_of(kept).chunks[0]) == body


async def test_an_undecided_record_above_what_is_chosen_changes_no_rows():
    store, _, records = await _two()
    before = await store.rows(SLOT, "a")
    store.apply(Accepted(SLOT, "a", ballot(20), put(4, before=records[-1]), b"body"))
    assert await store.rows(SLOT, "a") == before
    store.apply(Chosen(SLOT, "a", ballot(20)))
    assert [row.version.version for row in await store.rows(SLOT, "a")] == [4, 3, 2, 1]
