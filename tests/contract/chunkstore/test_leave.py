"""What a node held of a slot that it left goes for good."""

from __future__ import annotations

from amberblob.ballot import EMPTY_REGISTER
from amberblob.mutations import Accepted, EpochSeen, Synced
from chunkstore import BlobState, ReplicaStore
from tests.contract.chunkstore.kit import SLOT, ballot, choose, mint, put
from tests.contract.chunkstore.kit import stage as stage_blob


async def stage(store: ReplicaStore, body: bytes) -> str:
    blob_id = mint()
    await stage_blob(store, blob_id, [body])
    return blob_id


async def swept(store: ReplicaStore, slot: int = SLOT) -> int:
    """How many blobs went."""
    total = 0
    for _ in range(100):
        count, size_bytes = await store.sweep_left(slot, 2)
        assert count <= 2 and (size_bytes > 0) == (count > 0)
        total += count
        if not count:
            return total
    raise AssertionError("the sweep does not come to an end")


async def test_nothing_is_held_of_a_slot_that_was_never_written(store: ReplicaStore):
    assert not await store.holds(SLOT)
    assert await store.leave(SLOT) == store.disk_id
    assert not await store.holds(SLOT) and await swept(store) == 0


async def test_rows_records_listing_and_bytes_are_gone_and_others_stay(store: ReplicaStore):
    await choose(store, "a", put(1), 1)
    await store.durable(store.apply(Accepted(SLOT, "undecided", ballot(3), put(1), b"body")))
    blob = await stage(store, b"x" * 100)
    await choose(store, "other", put(1), 1, slot=SLOT + 1)
    store.apply(EpochSeen(SLOT, 5))
    assert await store.holds(SLOT) and await store.holds(SLOT + 1)
    incarnation = await store.leave(SLOT)
    assert incarnation != store.disk_id and store.incarnations() == {SLOT: incarnation}
    assert store.slot_state(SLOT).epoch == 5, "it has left the older epochs for good"
    assert not await store.holds(SLOT)
    for path in ("a", "undecided"):
        assert await store.load(SLOT, path) == EMPTY_REGISTER
    assert [entry.path for entry in (await store.scan("", "", "", 10)).entries] == ["other"]
    assert await store.blob_state(SLOT, blob) is BlobState.ABSENT
    assert await store.holds(SLOT + 1) and (await store.load(SLOT + 1, "other")).chosen
    await swept(store)
    assert await swept(store) == 0


async def test_a_copy_that_was_filled_and_holds_nothing_is_another_one_afterwards(store: ReplicaStore):
    await store.durable(store.apply(Synced(SLOT, 4, ballot(1), 0)))
    assert await store.holds(SLOT), "it can have answered for its slot"
    assert await store.leave(SLOT) != store.disk_id
    assert store.slot_state(SLOT).synced_epoch == 0


async def test_files_beside_a_blank_copy_go_as_well(store: ReplicaStore):
    blob = await stage(store, b"x" * 100)
    await choose(store, "a", put(1), 1)
    incarnation = await store.begin_anew(SLOT)
    assert await store.holds(SLOT), "the bytes, which begin_anew keeps"
    assert await store.leave(SLOT) == incarnation
    assert not await store.holds(SLOT)
    assert await store.blob_state(SLOT, blob) is BlobState.ABSENT


async def test_it_can_be_held_again(store: ReplicaStore):
    await choose(store, "a", put(1), 1)
    await stage(store, b"x" * 100)
    incarnation = await store.leave(SLOT)
    one = put(1)
    await choose(store, "a", one, 1)
    blob = await stage(store, b"y" * 100)
    assert await store.blob_state(SLOT, blob) is BlobState.DURABLE
    await swept(store)
    assert await store.blob_state(SLOT, blob) is BlobState.DURABLE, "what came later is not swept"
    assert (await store.load(SLOT, "a")).record == one
    assert store.slot_state(SLOT).incarnation == incarnation
