"""Versions whose bytes are not all here: how they are remembered, and how their bytes come back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from amberblob.errors import ChunkCorrupt, DigestMismatch
from amberblob.ids import content_hash
from amberblob.limits import KIB
from amberblob.manifest import ChunkRef, Record, Version, encode_manifest
from amberblob.mutations import Accepted, Chosen, Installed
from chunkstore import BlobState, ReplicaStore
from chunkstore.interface import Wanted
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
    mint,
    put,
    stage,
)
from tests.contract.chunkstore.rot import Rot


def _wanted(path: str, version: Version, *, damaged: bool = False) -> Wanted:
    return Wanted(slot=SLOT, path=path, version=version, damaged=damaged)


async def _missed(store: ReplicaStore, path: str, record: Record, counter: int = 1) -> Version:
    """A record that this copy only hears of."""
    await store.load(SLOT, path)
    await store.durable(store.apply(Chosen(SLOT, path, ballot(counter), record)))
    return head_of(record)


# ---- what is wanted


async def test_nothing_is_wanted_of_what_came_with_its_bytes(store: ReplicaStore):
    await choose(store, "a", put(1), 1)
    body = body_of(2, 70 * KIB)
    await choose_file(store, "b", file_put(1, body), body, 2)
    assert await store.wanted(SLOT, 10) == []
    await store.settle([SLOT])
    assert store.tally(SLOT).wanted == 0


async def test_nothing_is_wanted_of_an_object_without_bytes(store: ReplicaStore):
    record = put(1)
    empty = replace(head_of(record), size=0, chunks=(), chunk_count=0, inline=False)
    await _missed(store, "a", replace(record, head=empty))
    assert await store.wanted(SLOT, 10) == []
    assert await store.is_whole(SLOT, empty)


async def test_a_row_that_comes_without_its_bytes_is_wanted(store: ReplicaStore):
    big = file_put(1, body_of(1, 100 * KIB))
    small = put(1, body=body_of(2))
    older = put(1, body=body_of(3, 200))
    newer = put(2, before=older, body=body_of(4, 300))
    heads = [await _missed(store, "b", big), await _missed(store, "a", small)]
    await store.load(SLOT, "c")
    await store.durable(store.apply(Accepted(SLOT, "c", ballot(2), newer, body_of(4, 300))))
    wanted = [_wanted("a", heads[1]), _wanted("c", head_of(older)), _wanted("b", heads[0])]
    assert await store.wanted(SLOT, 10) == wanted, "smallest first"
    assert await store.wanted(SLOT, 2) == wanted[:2]
    await store.settle([SLOT])
    tally = store.tally(SLOT)
    assert (tally.wanted, tally.damaged) == (3, 0)
    assert tally.wanted_bytes == sum(one.version.size for one in wanted)


async def test_installed_rows_are_wanted_unless_their_bytes_are_here(store: ReplicaStore):
    body = body_of(1, 80 * KIB)
    here, absent = file_put(1, body), put(2, body=body_of(2))
    await stage(store, head_of(here).blob_id, [body])
    await store.load(SLOT, "a")
    rows = (head_of(here), head_of(absent))
    await store.durable(store.apply(Installed(SLOT, "a", None, None, rows)))
    for one in await store.wanted(SLOT, 10):
        # A disk may look for the files later; asked about it, it finds that they are all there.
        if one.version == head_of(here):
            assert await store.is_whole(SLOT, one.version)
    assert await store.wanted(SLOT, 10) == [_wanted("a", head_of(absent))]
    assert await store.sweep_staged(NOW * 2, 10) == 0, "a row refers to it"
    assert await store.read_chunk(SLOT, head_of(here).blob_id, head_of(here).chunks[0]) == body


async def test_a_version_that_expires_is_wanted_no_more(store: ReplicaStore):
    first = put(1, body=body_of(1))
    await _missed(store, "a", first)
    second = put(2, before=first, body=body_of(2))
    await choose(store, "a", second, 2, body=body_of(2))
    await choose(store, "a", expire(change("delete-version", second, head=second.head, live=((2, 2),)), (1, 1)), 4)
    assert await store.wanted(SLOT, 10) == []


async def test_what_fails_its_hash_is_wanted_as_damaged(store: ReplicaStore, rot: Rot):
    inline, body = put(1, body=body_of(1)), body_of(2, 90 * KIB)
    await choose(store, "a", inline, 1, body=body_of(1))
    file = file_put(1, body)
    await choose_file(store, "b", file, body, 2)
    heads = [head_of(inline), head_of(file)]
    for head in heads:
        await store.settle([SLOT])
        await rot.chunk(head)
        with pytest.raises(ChunkCorrupt):
            await store.read_chunk(SLOT, head.blob_id, head.chunks[0])
    assert await store.wanted(SLOT, 10) == [
        _wanted("a", heads[0], damaged=True),
        _wanted("b", heads[1], damaged=True),
    ]
    await store.settle([SLOT])
    assert (store.tally(SLOT).wanted, store.tally(SLOT).damaged) == (2, 2)
    assert not await store.is_whole(SLOT, heads[0]) and not await store.is_whole(SLOT, heads[1])
    await store.install_chunk(SLOT, heads[0], heads[0].chunks[0], body_of(1))
    await store.install_chunk(SLOT, heads[1], heads[1].chunks[0], body)
    assert await store.is_whole(SLOT, heads[0]) and await store.is_whole(SLOT, heads[1])
    assert await store.wanted(SLOT, 10) == []
    assert await store.read_chunk(SLOT, heads[0].blob_id, heads[0].chunks[0]) == body_of(1)
    assert await store.read_chunk(SLOT, heads[1].blob_id, heads[1].chunks[0]) == body


async def test_a_damaged_body_of_an_undecided_record_is_wanted_too(store: ReplicaStore, rot: Rot):
    record = put(1, body=body_of(1))
    await store.load(SLOT, "a")
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(1), record, body_of(1))))
    await store.settle([SLOT])
    await rot.chunk(head_of(record))
    with pytest.raises(ChunkCorrupt):
        await store.read_chunk(SLOT, head_of(record).blob_id, head_of(record).chunks[0])
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(1))))
    assert [one.version for one in await store.wanted(SLOT, 10)] == [record.head]


async def test_what_is_found_missing_can_be_remembered(store: ReplicaStore):
    record = put(1)
    await choose(store, "a", record, 1)
    head = head_of(record)
    await store.set_wanted(SLOT, "a", head, damaged=False)
    assert await store.wanted(SLOT, 10) == [_wanted("a", head)]
    await store.set_wanted(SLOT, "a", head, damaged=True)
    assert await store.wanted(SLOT, 10) == [_wanted("a", head, damaged=True)]
    await store.set_wanted(SLOT, "a", head, damaged=False)
    assert await store.wanted(SLOT, 10) == [_wanted("a", head, damaged=True)], "it was damaged, and is not whole yet"
    assert await store.is_whole(SLOT, head)
    assert await store.wanted(SLOT, 10) == []


async def test_what_nothing_refers_to_is_not_wanted(store: ReplicaStore):
    await choose(store, "a", put(1), 1)
    await store.set_wanted(SLOT, "b", head_of(put(1)), damaged=True)
    await store.set_wanted(99, "b", head_of(put(1)), damaged=True)
    assert await store.wanted(SLOT, 10) == [] == await store.wanted(99, 10)


# ---- whole again


async def test_a_version_is_whole_when_its_last_chunk_came(store: ReplicaStore):
    parts = [bytes([n]) * KIB for n in range(3)]
    chunks = tuple(ChunkRef(id=content_hash(part), len=KIB) for part in parts)
    manifest = encode_manifest(chunks)
    head = Version(
        1, mint(), 3 * KIB, content_hash(b"".join(parts)), NOW, "t", {}, (), content_hash(manifest), 3, False
    )
    await _missed(store, "a", Record(1, "put", 1, head, ((1, 1),), (), NOW, 0, None, ()))
    assert not await store.is_whole(SLOT, head)
    for chunk, part in list(zip(chunks, parts, strict=True))[:2]:
        await store.install_chunk(SLOT, head, chunk, part)
    await store.install_manifest(SLOT, head, manifest)
    assert not await store.is_whole(SLOT, head)
    assert [one.version for one in await store.wanted(SLOT, 10)] == [head]
    await store.install_chunk(SLOT, head, chunks[2], parts[2])
    assert await store.is_whole(SLOT, head)
    assert await store.wanted(SLOT, 10) == []
    assert await store.sweep_staged(NOW * 2, 10) == 0
    await store.discard(SLOT, head.blob_id)
    assert await store.read_chunk(SLOT, head.blob_id, chunks[1]) == parts[1]


async def test_a_slot_that_nobody_wrote_to_has_nothing_whole(store: ReplicaStore):
    assert not await store.is_whole(99, head_of(put(1)))
    assert store.slots() == []


async def test_many_bodies_at_once(store: ReplicaStore):
    bodies = [body_of(number, number) for number in range(1, 40)]
    heads = [await _missed(store, f"p{n}", put(1, body=body), n) for n, body in enumerate(bodies, start=1)]
    await store.install_bodies(SLOT, list(zip(heads, bodies, strict=True)))
    assert await store.wanted(SLOT, 100) == []
    for head, body in zip(heads, bodies, strict=True):
        assert await store.blob_state(SLOT, head.blob_id) is BlobState.DURABLE
        assert await store.missing_chunks(SLOT, head, head.chunks) == []
        assert await store.read_chunk(SLOT, head.blob_id, head.chunks[0]) == body


async def test_many_blobs_at_once(store: ReplicaStore):
    bodies = [body_of(number, 64 * KIB + number) for number in range(1, 20)]
    heads = [await _missed(store, f"p{n}", file_put(1, body), n) for n, body in enumerate(bodies, start=1)]
    await store.install_blobs(SLOT, list(zip(heads, bodies, strict=True)))
    assert await store.wanted(SLOT, 100) == []
    assert await store.sweep_staged(NOW * 2, 100) == 0
    for head, body in zip(heads, bodies, strict=True):
        assert await store.blob_state(SLOT, head.blob_id) is BlobState.DURABLE
        assert await store.missing_chunks(SLOT, head, head.chunks) == []
        assert await store.read_chunk(SLOT, head.blob_id, head.chunks[0]) == body
        await store.discard(SLOT, head.blob_id)
        assert await store.blob_state(SLOT, head.blob_id) is BlobState.DURABLE


async def test_blobs_that_are_here_already_stay(store: ReplicaStore):
    body = body_of(1, 70 * KIB)
    record = file_put(1, body)
    await choose_file(store, "a", record, body, 1)
    for _ in range(2):
        await store.install_blobs(SLOT, [(head_of(record), body)])
    assert await store.read_chunk(SLOT, head_of(record).blob_id, head_of(record).chunks[0]) == body


async def test_which_of_many_are_not_whole(store: ReplicaStore, rot: Rot):
    bodies = [body_of(number, 64 * KIB + number) for number in range(1, 7)]
    heads = [await _missed(store, f"p{n}", file_put(1, body), n) for n, body in enumerate(bodies, start=1)]
    inline = await _missed(store, "inline", put(1, body=b"small"), 9)
    assert await store.not_whole(SLOT, [*heads, inline]) == [*heads, inline]
    await store.install_blobs(SLOT, list(zip(heads, bodies, strict=True))[::2])
    await rot.chunk(heads[0])
    with pytest.raises(ChunkCorrupt):
        await store.read_chunk(SLOT, heads[0].blob_id, heads[0].chunks[0])
    # One that is here and still wanted (whoever put it there was killed) is wanted no more.
    await store.set_wanted(SLOT, "p3", heads[2], damaged=False)
    assert await store.not_whole(SLOT, [inline, *heads]) == [inline, heads[0], heads[1], heads[3], heads[5]]
    assert {one.version.blob_id for one in await store.wanted(SLOT, 10)} == {
        one.blob_id for one in (inline, heads[0], heads[1], heads[3], heads[5])
    }
    assert await store.not_whole(SLOT, []) == []


async def test_a_blob_that_was_damaged_comes_back_whole(store: ReplicaStore, rot: Rot):
    body = body_of(1, 70 * KIB)
    record = file_put(1, body)
    await choose_file(store, "a", record, body, 1)
    head = head_of(record)
    await rot.chunk(head)
    with pytest.raises(ChunkCorrupt):
        await store.read_chunk(SLOT, head.blob_id, head.chunks[0])
    await store.install_blobs(SLOT, [(head, body)])
    assert await store.wanted(SLOT, 10) == []
    assert await store.blob_state(SLOT, head.blob_id) is BlobState.DURABLE
    assert await store.read_chunk(SLOT, head.blob_id, head.chunks[0]) == body


async def test_a_blob_that_was_given_up_here_comes_back_when_it_is_chosen_elsewhere(store: ReplicaStore):
    body = body_of(1, 70 * KIB)
    record = file_put(1, body)
    head = head_of(record)
    await stage(store, head.blob_id, [body])
    await store.discard(SLOT, head.blob_id)
    await _missed(store, "a", record)
    await store.install_blobs(SLOT, [(head, body)])
    assert await store.blob_state(SLOT, head.blob_id) is BlobState.DURABLE
    assert await store.is_whole(SLOT, head)


@pytest.mark.parametrize("inline", [True, False])
async def test_bytes_that_are_not_the_versions_are_refused(store: ReplicaStore, inline: bool):
    body = body_of(1, 70 * KIB)
    head = await _missed(store, "a", put(1, body=body) if inline else file_put(1, body))
    install = store.install_bodies if inline else store.install_blobs
    with pytest.raises(DigestMismatch):
        await install(SLOT, [(head, body[:-1] + b"x")])
    with pytest.raises(DigestMismatch):
        await install(SLOT, [(replace(head, chunks=(*head.chunks, *head.chunks)), body)])
    assert [one.version for one in await store.wanted(SLOT, 10)] == [head]
    assert await store.blob_state(SLOT, head.blob_id) is BlobState.ABSENT


@pytest.mark.parametrize("inline", [True, False])
async def test_bytes_of_a_version_that_expired_meanwhile_are_not_kept(store: ReplicaStore, inline: bool):
    body = body_of(1, 70 * KIB)
    first = put(1, body=body) if inline else file_put(1, body)
    await _missed(store, "a", first)
    gone = expire(change("delete", first, head=None, live=()), (1, 1))
    await _missed_record(store, "a", gone)
    await (store.install_bodies if inline else store.install_blobs)(SLOT, [(head_of(first), body)])
    assert await store.blob_state(SLOT, head_of(first).blob_id) is not BlobState.DURABLE
    assert await store.wanted(SLOT, 10) == []


async def _missed_record(store: ReplicaStore, path: str, record: Record) -> None:
    await store.durable(store.apply(Chosen(SLOT, path, ballot(9), record)))
