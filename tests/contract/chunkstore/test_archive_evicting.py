"""Giving up bytes, living by rows, and getting the bytes back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from amberblob.archives import DAMAGED, UPLOADED
from amberblob.errors import ChunkMissing
from amberblob.limits import MANIFEST_INLINE_CHUNKS_MAX
from amberblob.manifest import ChunkRef
from amberblob.mutations import Aborted, Accepted, Archived, Chosen, Evicted, Installed
from chunkstore import BlobState, ReplicaStore
from tests.contract.chunkstore.archive_kit import (
    KINDS,
    OTHER,
    Stored,
    bring,
    brought,
    brought_and_evicted,
    made,
    put_back,
    row,
    tell,
)
from tests.contract.chunkstore.kit import NOW, SLOT, ballot, choose, expire, stage

kinds = pytest.mark.parametrize("kind", KINDS)


async def _wanted(store: ReplicaStore) -> list[tuple[str, bool]]:
    return [(one.version.blob_id, one.damaged) for one in await store.wanted(SLOT, 100)]


async def _held_by_rows(store: ReplicaStore, one: Stored) -> None:
    """The version lives by its rows, nothing is wanted, and no byte is here."""
    assert await store.is_evicted(SLOT, one.version.blob_id)
    assert await store.is_whole(SLOT, one.version)
    assert await store.is_evicted(SLOT, one.version.blob_id), "is_whole found bytes"
    assert await store.blob_state(SLOT, one.version.blob_id) is BlobState.DURABLE
    for chunk in one.chunks:
        with pytest.raises(ChunkMissing):
            await store.read_chunk(SLOT, one.version.blob_id, chunk)
    assert await store.missing_chunks(SLOT, one.version, one.chunks) == list(one.chunks)
    assert await store.wanted(SLOT, 10) == []
    tally = store.tally(SLOT)
    assert (tally.evicted, tally.evicted_bytes, tally.wanted) == (1, one.version.size, 0)


async def _held_by_bytes(store: ReplicaStore, one: Stored) -> None:
    assert await store.is_whole(SLOT, one.version)
    assert not await store.is_evicted(SLOT, one.version.blob_id)
    assert await store.blob_state(SLOT, one.version.blob_id) is BlobState.DURABLE
    for chunk, part in zip(one.chunks, one.parts, strict=True):
        assert await store.read_chunk(SLOT, one.version.blob_id, chunk, fresh=True) == part
    await store.settle([SLOT])
    assert (store.tally(SLOT).evicted, store.tally(SLOT).evicted_bytes, store.tally(SLOT).wanted) == (0, 0, 0)


@kinds
async def test_evict_and_put_back(store: ReplicaStore, kind: str):
    one = await brought_and_evicted(store, kind)
    await _held_by_rows(store, one)
    if one.manifest is not None:
        manifest_id = one.version.manifest_id
        assert manifest_id is not None
        assert await store.read_manifest(SLOT, one.version.blob_id, manifest_id) == one.manifest
    ((view,), _) = await store.archive_page(SLOT, ("", 0), 10)
    assert (view.evicted, view.wanted) == (True, False)
    assert {line.evicted for line in (await store.archived_after(SLOT, 0, 10))[0]} == {True}
    assert await store.evict(SLOT, "a", one.version) == 0, "nothing is left to remove"
    await put_back(store, one)
    await _held_by_bytes(store, one)
    assert await store.evict(SLOT, "a", one.version) == one.size_bytes, "its rows are still here"
    await _held_by_rows(store, one)


@kinds
async def test_what_no_verified_row_covers_is_not_evicted(store: ReplicaStore, kind: str):
    one = await brought(store, kind)
    assert await store.evict(SLOT, "a", one.version) is None
    await tell(store, one.version, one.rows(state=UPLOADED))
    assert await store.evict(SLOT, "a", one.version) is None
    await tell(store, one.version, one.rows()[:-1])
    assert await store.evict(SLOT, "a", one.version) is None
    await _held_by_bytes(store, one)
    await tell(store, one.version, one.rows())
    assert await store.evict(SLOT, "a", one.version) is not None


async def test_only_what_is_here_is_evicted(store: ReplicaStore):
    one = await brought(store, "file")
    await tell(store, one.version, one.rows())
    assert await store.evict(SLOT, "b", one.version) is None
    assert await store.evict(SLOT, "a", replace(one.version, version=2)) is None
    assert await store.evict(SLOT, "a", made("file").version) is None
    assert await store.evict(99, "a", one.version) is None
    await _held_by_bytes(store, one)


@kinds
async def test_the_entry_itself_looks_at_the_rows(store: ReplicaStore, kind: str):
    one = await brought(store, kind)
    await tell(store, one.version, one.rows(state=UPLOADED))
    ids = tuple(chunk.chunk_id for chunk in one.rows())
    store.apply(Evicted(SLOT, "a", 1, one.version.blob_id, ids))
    assert not await store.is_evicted(SLOT, one.version.blob_id)
    await tell(store, one.version, one.rows())
    for wrong in (
        Evicted(SLOT, "b", 1, one.version.blob_id, ids),
        Evicted(SLOT, "a", 2, one.version.blob_id, ids),
        Evicted(SLOT, "a", 1, one.version.blob_id, (*ids, "ee" * 32)),
    ):
        store.apply(wrong)
        assert not await store.is_evicted(SLOT, one.version.blob_id)
    if kind != "manifest":
        store.apply(Evicted(SLOT, "a", 1, one.version.blob_id, ()))
        assert not await store.is_evicted(SLOT, one.version.blob_id)
    await _held_by_bytes(store, one)


@kinds
async def test_a_wanted_version_may_live_by_its_rows(store: ReplicaStore, kind: str):
    one = made(kind)
    await store.load(SLOT, "a")
    store.apply(Chosen(SLOT, "a", ballot(1), one.record))
    assert await _wanted(store) == [(one.version.blob_id, False)]
    if one.manifest is not None:
        await store.install_manifest(SLOT, one.version, one.manifest)
    await tell(store, one.version, one.rows())
    assert await _wanted(store) == [(one.version.blob_id, False)]
    assert await store.evict(SLOT, "a", one.version) == 0
    await _held_by_rows(store, one)


async def test_without_its_manifest_nothing_is_evicted(store: ReplicaStore):
    one = made("manifest")
    await store.load(SLOT, "a")
    store.apply(Chosen(SLOT, "a", ballot(1), one.record))
    await tell(store, one.version, one.rows(), evicted=True)
    assert await store.evict(SLOT, "a", one.version) is None
    assert await _wanted(store) == [(one.version.blob_id, False)]
    assert not await store.is_whole(SLOT, one.version)


@kinds
async def test_a_wanted_version_adopts(store: ReplicaStore, kind: str):
    one = made(kind)
    await store.load(SLOT, "a")
    store.apply(Chosen(SLOT, "a", ballot(1), one.record))
    if one.manifest is not None:
        await store.install_manifest(SLOT, one.version, one.manifest)
    await tell(store, one.version, one.rows()[:-1], evicted=True)
    await tell(store, one.version, one.rows(state=UPLOADED), evicted=True)
    assert await _wanted(store) == [(one.version.blob_id, False)]
    await tell(store, one.version, one.rows(), evicted=True)
    await _held_by_rows(store, one)


@kinds
async def test_a_version_whose_bytes_are_here_does_not_adopt(store: ReplicaStore, kind: str):
    one = await brought(store, kind)
    await tell(store, one.version, one.rows(), evicted=True)
    await _held_by_bytes(store, one)


@kinds
async def test_staged_by_rows_alone(store: ReplicaStore, kind: str):
    """As an import or a recovery does."""
    one = made(kind)
    await store.load(SLOT, "a")
    if one.manifest is not None:
        await store.install_manifest(SLOT, one.version, one.manifest)
    await tell(store, one.version, one.rows(state=UPLOADED), evicted=True)
    assert await store.blob_state(SLOT, one.version.blob_id) is BlobState.ABSENT
    await tell(store, one.version, one.rows(), evicted=True)
    assert await store.blob_state(SLOT, one.version.blob_id) is BlobState.DURABLE
    assert await store.is_whole(SLOT, one.version)
    await store.settle([SLOT])
    assert store.tally(SLOT).evicted == 0, "it is no version yet"
    store.apply(Accepted(SLOT, "a", ballot(1), one.record))
    assert await store.blob_state(SLOT, one.version.blob_id) is BlobState.DURABLE
    assert await store.sweep_staged(NOW + 10**15, 10) == 0
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(1))))
    await _held_by_rows(store, one)


async def test_a_long_list_needs_its_manifest_and_all_of_it(store: ReplicaStore):
    blob = made("manifest")
    many = tuple(row(f"{number:064x}", 9) for number in range(MANIFEST_INLINE_CHUNKS_MAX + 1))
    await tell(store, blob.version, many, evicted=True)
    assert await store.blob_state(SLOT, blob.version.blob_id) is BlobState.ABSENT, "more than fit a record"
    other = made("manifest", "b")
    assert other.manifest is not None
    await store.install_manifest(SLOT, other.version, other.manifest)
    await tell(store, other.version, other.rows()[1:], evicted=True)
    assert await store.blob_state(SLOT, other.version.blob_id) is BlobState.ABSENT
    await tell(store, other.version, other.rows(), evicted=True)
    assert await store.blob_state(SLOT, other.version.blob_id) is BlobState.DURABLE


async def test_rows_that_turn_out_to_be_too_few_are_not_relied_on(store: ReplicaStore):
    one = made("files")
    await store.load(SLOT, "a")
    await tell(store, one.version, one.rows()[1:], evicted=True)
    assert not await store.is_whole(SLOT, one.version)
    store.apply(Accepted(SLOT, "a", ballot(1), one.record))
    store.apply(Chosen(SLOT, "a", ballot(1)))
    assert await _wanted(store) == [(one.version.blob_id, False)]
    assert not await store.is_evicted(SLOT, one.version.blob_id)


async def test_staged_by_rows_and_given_up(store: ReplicaStore):
    one = made("files")
    await tell(store, one.version, one.rows(), evicted=True)
    await store.discard(SLOT, one.version.blob_id)
    assert await store.blob_state(SLOT, one.version.blob_id) is BlobState.ABORTED
    assert await store.archived(SLOT, one.version.blob_id) is None
    assert not await store.is_evicted(SLOT, one.version.blob_id)


@pytest.mark.parametrize("applied", [False, True])
async def test_what_was_given_up_is_revived_by_rows_that_were_read_back(store: ReplicaStore, applied: bool):
    """Somebody builds it anew from the archive, and stood still for too long."""
    one = made("files")
    blob_id = one.version.blob_id
    await tell(store, one.version, one.rows(), evicted=True)
    await store.discard(SLOT, blob_id)
    for rows, evicted in ((one.rows(), False), (one.rows(state=0), True)):
        await tell(store, one.version, rows, evicted=evicted)
        assert await store.blob_state(SLOT, blob_id) is BlobState.ABORTED
    if not applied:
        store.apply(Aborted(SLOT, blob_id))
    await tell(store, one.version, one.rows(), evicted=True)
    assert await store.blob_state(SLOT, blob_id) is BlobState.DURABLE
    await store.load(SLOT, "a")
    store.apply(Accepted(SLOT, "a", ballot(1), one.record))
    store.apply(Chosen(SLOT, "a", ballot(1)))
    await _held_by_rows(store, one)


async def test_rows_that_are_told_again_wait_longer_for_their_version(store: ReplicaStore):
    one = made("files")
    await tell(store, one.version, one.rows(), evicted=True)
    store.apply(Archived(SLOT, one.version.blob_id, tuple(one.rows()), NOW + 1000, True))
    await store.settle([SLOT])
    assert await store.sweep_staged(NOW + 1000, 10) == 0
    assert await store.sweep_staged(NOW + 1001, 10) == 1


@kinds
async def test_a_row_that_is_damaged_takes_the_mark_away(store: ReplicaStore, kind: str):
    one = await brought_and_evicted(store, kind)
    await tell(store, one.version, one.rows(state=DAMAGED)[:1])
    assert not await store.is_evicted(SLOT, one.version.blob_id)
    assert await _wanted(store) == [(one.version.blob_id, True)]
    assert not await store.is_whole(SLOT, one.version)
    tally = store.tally(SLOT)
    assert (tally.evicted, tally.wanted, tally.damaged) == (0, 1, 1)
    assert await store.evict(SLOT, "a", one.version) is None
    await tell(store, one.version, one.rows(target=OTHER, at_ms=NOW + 1), evicted=True)
    await _held_by_rows(store, one)


@kinds
async def test_what_is_lived_by_gives_way_only_to_what_is_verified(store: ReplicaStore, kind: str):
    one = await brought_and_evicted(store, kind)
    for state in (UPLOADED, DAMAGED):
        await tell(store, one.version, one.rows(target=OTHER, at_ms=NOW + 1, state=state))
        await _held_by_rows(store, one)
        known = await store.archived(SLOT, one.version.blob_id)
        assert known is not None and set(known.chunks) == set(one.rows())
    await tell(store, one.version, one.rows(target=OTHER, at_ms=NOW + 2))
    await _held_by_rows(store, one)
    known = await store.archived(SLOT, one.version.blob_id)
    assert known is not None and {chunk.target_path for chunk in known.chunks} == {OTHER}


@kinds
async def test_missing_bytes_of_an_evicted_version_are_not_wanted(store: ReplicaStore, kind: str):
    one = await brought_and_evicted(store, kind)
    await store.set_wanted(SLOT, "a", one.version, damaged=False)
    await store.set_wanted(SLOT, "a", one.version, damaged=True)
    await _held_by_rows(store, one)
    store.apply(Installed(SLOT, "a", ballot(1), one.record, (one.version,)))
    store.apply(Chosen(SLOT, "a", ballot(1), one.record))
    await _held_by_rows(store, one)


async def test_what_is_evicted_is_not_fetched(store: ReplicaStore):
    inline, file = await brought_and_evicted(store, "inline"), await brought(store, "file", "b", 2)
    gone = await brought(store, "file", "c", 3)
    await tell(store, gone.version, gone.rows())
    await store.evict(SLOT, "c", gone.version)
    versions = [inline.version, file.version, gone.version, made("file").version]
    assert await store.not_whole(SLOT, versions) == versions[3:]


@kinds
async def test_bytes_in_bulk_bring_it_back(store: ReplicaStore, kind: str):
    one = await brought_and_evicted(store, kind)
    if kind == "inline":
        await store.install_bodies(SLOT, [(one.version, one.parts[0])])
    elif kind == "file":
        await store.install_blobs(SLOT, [(one.version, one.parts[0])])
    else:
        await put_back(store, one)
    await _held_by_bytes(store, one)


async def test_a_chunk_that_is_put_back_is_read_again(store: ReplicaStore):
    one = await brought_and_evicted(store, "files")
    await store.install_chunk(SLOT, one.version, one.chunks[0], one.parts[0])
    assert await store.sweep_garbage(SLOT, 10) == 0
    assert await store.read_chunk(SLOT, one.version.blob_id, one.chunks[0]) == one.parts[0]
    assert await store.is_evicted(SLOT, one.version.blob_id)
    assert await store.is_whole(SLOT, one.version)
    assert await store.is_evicted(SLOT, one.version.blob_id), "not all of it is here"


@kinds
async def test_everything_goes_when_the_version_expires(store: ReplicaStore, kind: str):
    first = await brought_and_evicted(store, kind)
    second = made(kind, before=first.record)
    await bring(store, second, 2)
    assert await store.is_evicted(SLOT, first.version.blob_id)
    gone = replace(expire(second.record, (1, 1)), live=((2, 2),), previous=None)
    await choose(store, "a", gone, 3)
    assert not await store.is_evicted(SLOT, first.version.blob_id)
    assert await store.archived(SLOT, first.version.blob_id) is None
    assert await store.evict(SLOT, "a", first.version) is None
    await store.settle([SLOT])
    tally = store.tally(SLOT)
    assert (tally.evicted, tally.evicted_bytes, tally.archived_rows) == (0, 0, 0)
    assert await store.sweep_garbage(SLOT, 10) == 1
    assert await store.blob_state(SLOT, first.version.blob_id) is not BlobState.DURABLE


async def test_an_evicted_blob_is_not_discarded(store: ReplicaStore):
    one = await brought_and_evicted(store, "file")
    await store.discard(SLOT, one.version.blob_id)
    await _held_by_rows(store, one)


async def test_a_blank_copy_lives_by_nothing(store: ReplicaStore):
    one = await brought_and_evicted(store, "files")
    await store.begin_anew(SLOT)
    assert not await store.is_evicted(SLOT, one.version.blob_id)
    assert await store.archived(SLOT, one.version.blob_id) is None
    assert store.tally(SLOT).archive_head == store.tally(SLOT).evicted == 0
    await store.load(SLOT, "a")
    store.apply(Installed(SLOT, "a", ballot(1), one.record, (one.version,)))
    assert await _wanted(store) == [(one.version.blob_id, False)]
    await tell(store, one.version, one.rows(), evicted=True)
    await _held_by_rows(store, one)


async def test_a_row_that_was_replaced_has_to_be_covered(store: ReplicaStore):
    one = await brought_and_evicted(store, "files")
    more = replace(one.version, chunks=(*one.version.chunks, ChunkRef(id="ab" * 32, len=7)))
    store.apply(Installed(SLOT, "a", None, None, (more,), replace=True))
    assert await _wanted(store) == [(one.version.blob_id, False)]
    assert not await store.is_evicted(SLOT, one.version.blob_id)
    store.apply(Installed(SLOT, "a", None, None, (one.version,), replace=True))
    store.apply(Archived(SLOT, one.version.blob_id, one.rows(), NOW, True))
    await _held_by_rows(store, one)


async def test_a_row_that_bore_another_blob(store: ReplicaStore):
    one = await brought_and_evicted(store, "file")
    other = made("file")
    await stage(store, other.version.blob_id, list(other.parts))
    store.apply(Installed(SLOT, "a", None, None, (other.version,), replace=True))
    assert not await store.is_evicted(SLOT, one.version.blob_id)
    known = await store.archived(SLOT, one.version.blob_id)
    assert known is not None and known.staged
    await store.settle([SLOT])
    assert (store.tally(SLOT).archived_rows, store.tally(SLOT).archive_staged) == (0, 1)
    store.apply(Installed(SLOT, "b", None, None, (replace(one.version, version=4),)))
    known = await store.archived(SLOT, one.version.blob_id)
    assert known is not None and not known.staged
