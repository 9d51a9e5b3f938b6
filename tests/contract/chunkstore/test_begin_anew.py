"""A copy that is to be named in its route anew begins blank: nothing that it held can be answered for."""

from __future__ import annotations

import msgspec

from amberblob.ballot import EMPTY_REGISTER
from amberblob.mutations import Accepted, Chosen, EpochSeen, Reserved
from chunkstore import BlobState, ReplicaStore
from tests.contract.chunkstore.kit import SLOT, ballot, choose, put, stage, version


async def fill(store: ReplicaStore) -> None:
    one = put(1)
    await choose(store, "a", one, 1)
    await choose(store, "a", put(2, before=one), 2)
    await store.durable(store.apply(Accepted(SLOT, "undecided", ballot(3), put(1), b"body")))


async def test_a_slot_that_was_never_written_stays_as_it_is(store: ReplicaStore):
    assert await store.begin_anew(SLOT) == store.disk_id
    assert store.slots() == [] and store.incarnations() == {}


async def test_what_it_held_is_gone(store: ReplicaStore):
    await fill(store)
    await choose(store, "other", put(1), 1, slot=SLOT + 1)
    incarnation = await store.begin_anew(SLOT)
    assert incarnation != store.disk_id
    assert store.incarnations() == {SLOT: incarnation}
    assert store.slot_state(SLOT).incarnation == incarnation
    for path in ("a", "undecided"):
        assert await store.load(SLOT, path) == EMPTY_REGISTER
        assert store.peek(SLOT, path) == EMPTY_REGISTER
        assert await store.rows(SLOT, path) == []
    assert await store.find_write(SLOT, "a", "w1") is None
    assert await store.undecided(SLOT) == []
    assert [entry.path for entry in (await store.scan("", "", "", 10)).entries] == ["other"]
    assert (await store.load(SLOT + 1, "other")).chosen


async def test_what_only_grows_stays(store: ReplicaStore):
    await fill(store)
    store.apply(EpochSeen(SLOT, 5))
    await store.durable(store.apply(Reserved(SLOT, 4096)))
    before = store.slot_state(SLOT)
    incarnation = await store.begin_anew(SLOT)
    assert store.slot_state(SLOT) == msgspec.structs.replace(before, incarnation=incarnation)
    assert before.epoch == 5 and before.promise_ceiling == 4096


async def test_a_blank_copy_stays_the_same(store: ReplicaStore):
    await fill(store)
    incarnation = await store.begin_anew(SLOT)
    assert await store.begin_anew(SLOT) == incarnation
    await store.durable(store.apply(EpochSeen(SLOT, 7)))
    assert await store.begin_anew(SLOT) == incarnation
    assert store.slot_state(SLOT).epoch == 7


async def test_each_time_it_held_something_it_is_another(store: ReplicaStore):
    seen = {store.disk_id}
    for counter in range(1, 4):
        await choose(store, "a", put(1), counter)
        seen.add(await store.begin_anew(SLOT))
    assert len(seen) == 4


async def test_it_can_be_filled_again(store: ReplicaStore):
    await fill(store)
    await store.begin_anew(SLOT)
    record = put(3, revision=3)
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(9), record)))
    assert (await store.load(SLOT, "a")).record == record
    assert [row.version.version for row in await store.rows(SLOT, "a")] == [3]


async def test_files_of_bytes_are_found_again(store: ReplicaStore):
    body = bytes(range(256)) * 400
    added = version(1, body, inline=False)
    await stage(store, added.blob_id, [body])
    record = msgspec.structs.replace(put(1), head=added)
    await store.durable(store.apply(Accepted(SLOT, "large", ballot(1), record)))
    await store.begin_anew(SLOT)
    assert await store.missing_chunks(SLOT, added, added.chunks) == []
    await store.durable(store.apply(Chosen(SLOT, "large", ballot(1), record)))
    assert await store.read_chunk(SLOT, added.blob_id, added.chunks[0]) == body
    assert await store.blob_state(SLOT, added.blob_id) is BlobState.DURABLE
