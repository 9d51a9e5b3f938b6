"""Archive rows: how they come, merge, wait, are told, and go."""

from __future__ import annotations

from msgspec.structs import replace

from amberblob.archives import DAMAGED, UPLOADED, ArchivedBlob
from amberblob.mutations import Aborted, Accepted, Archived, Chosen, Installed, Staged
from chunkstore import BlobState, ReplicaStore
from chunkstore.interface import ObjectUse
from tests.contract.chunkstore.archive_kit import OTHER, PACK, brought, made, row, rows_of, tell
from tests.contract.chunkstore.kit import NOW, SLOT, ballot, choose, expire, head_of, mint, put, stage


async def test_a_slot_without_rows_knows_nothing(store: ReplicaStore):
    one = await brought(store, "file")
    assert await store.archived(SLOT, one.version.blob_id) is None
    assert await store.archived_after(SLOT, 0, 10) == ([], False)
    assert await store.archive_objects(SLOT) == {}
    assert await store.archive_named(SLOT, [PACK]) == set()
    assert await store.archive_rows_of(SLOT, PACK, 0, 10) == []
    assert not await store.is_evicted(SLOT, one.version.blob_id)
    assert await store.archived(99, one.version.blob_id) is None
    assert await store.archive_page(99, ("", 0), 10) == ([], None)


async def test_rows_are_there_as_soon_as_apply_returns(store: ReplicaStore):
    one = await brought(store, "files")
    store.apply(Archived(SLOT, one.version.blob_id, one.rows(), NOW))
    known = await store.archived(SLOT, one.version.blob_id)
    assert known == ArchivedBlob(tuple(sorted(one.rows(), key=lambda chunk: chunk.chunk_id)))
    await store.settle([SLOT])
    assert store.tally(SLOT).archived_rows == store.tally(SLOT).archive_head == len(one.rows()) == 3


async def test_a_row_is_told_as_it_came(store: ReplicaStore):
    one = await brought(store, "file")
    (chunk,) = one.version.chunks
    foreign = replace(row(chunk.id, chunk.len, target="s3://bucket/a key"), head="", etag='"e"', state=DAMAGED)
    await tell(store, one.version, (foreign,))
    known = await store.archived(SLOT, one.version.blob_id)
    assert known is not None and known.chunks == (foreign,)


async def test_news_gets_a_new_number_and_repetition_does_not(store: ReplicaStore):
    one, two = await brought(store, "file", "a", 1), await brought(store, "file", "b", 2)
    uploaded = one.rows(state=UPLOADED)
    await tell(store, one.version, uploaded)
    await tell(store, two.version, two.rows())
    await tell(store, one.version, uploaded)
    lines, more = await store.archived_after(SLOT, 0, 10)
    assert [(line.seq, line.blob_id) for line in lines] == [(1, one.version.blob_id), (2, two.version.blob_id)]
    assert not more
    await tell(store, one.version, one.rows())
    lines, _ = await store.archived_after(SLOT, 0, 10)
    assert [(line.seq, line.blob_id) for line in lines] == [(2, two.version.blob_id), (3, one.version.blob_id)]
    assert lines[1].chunk.verified
    await tell(store, one.version, uploaded)
    assert (await store.archived_after(SLOT, 3, 10)) == ([], False)
    await store.settle([SLOT])
    assert (store.tally(SLOT).archive_head, store.tally(SLOT).archived_rows) == (3, 2)


async def test_lines_come_in_pages(store: ReplicaStore):
    for counter in range(1, 6):
        one = await brought(store, "file", f"p{counter}", counter)
        await tell(store, one.version, one.rows())
    seen, after, more = [], 0, True
    while more:
        lines, more = await store.archived_after(SLOT, after, 2)
        seen += [line.seq for line in lines]
        after = lines[-1].seq
    assert seen == [1, 2, 3, 4, 5]


async def test_what_no_table_can_hold_is_passed_over(store: ReplicaStore):
    one = await brought(store, "file")
    (right,) = one.rows()
    wrong = (
        replace(right, chunk_id="../x"), replace(right, target_path=""), replace(right, start=9, end=3),
        replace(right, length=-1), replace(right, archived_at_ms=2**62), replace(right, state=-2), replace(right, end=2**63),
    )  # fmt: skip
    await tell(store, one.version, wrong)
    assert await store.archived(SLOT, one.version.blob_id) is None
    await tell(store, one.version, (*wrong, right))
    known = await store.archived(SLOT, one.version.blob_id)
    assert known is not None and known.chunks == (right,)


async def test_rows_of_a_blob_that_nothing_refers_to_wait_for_it(store: ReplicaStore):
    one = made("inline")
    await tell(store, one.version, one.rows())
    known = await store.archived(SLOT, one.version.blob_id)
    assert known == ArchivedBlob(one.rows(), staged=True)
    assert await store.archived_after(SLOT, 0, 10) == ([], False)
    assert await store.blob_state(SLOT, one.version.blob_id) is BlobState.ABSENT
    await store.settle([SLOT])
    assert (store.tally(SLOT).archived_rows, store.tally(SLOT).archive_staged) == (0, 1)
    await choose(store, "a", one.record, 1, body=one.parts[0])
    known = await store.archived(SLOT, one.version.blob_id)
    assert known == ArchivedBlob(one.rows())
    lines, _ = await store.archived_after(SLOT, 0, 10)
    assert [(line.seq, line.blob_id, line.evicted) for line in lines] == [(1, one.version.blob_id, False)]
    await store.settle([SLOT])
    assert (store.tally(SLOT).archived_rows, store.tally(SLOT).archive_staged) == (1, 0)
    assert await store.wanted(SLOT, 10) == []


async def test_rows_that_wait_are_no_bytes(store: ReplicaStore):
    one = made("file")
    await tell(store, one.version, one.rows())
    store.apply(Chosen(SLOT, "a", ballot(1), one.record))
    assert [found.version for found in await store.wanted(SLOT, 10)] == [one.version]


async def test_rows_of_an_accepted_inline_body_do_not_make_it_sweepable(store: ReplicaStore):
    one = made("inline")
    await store.load(SLOT, "a")
    await tell(store, one.version, one.rows())
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(1), one.record, one.parts[0])))
    assert await store.sweep_staged(NOW + 10**15, 100) == 0
    store.apply(Chosen(SLOT, "a", ballot(1)))
    assert await store.read_chunk(SLOT, one.version.blob_id, one.chunks[0]) == one.parts[0]
    assert await store.archived(SLOT, one.version.blob_id) == ArchivedBlob(one.rows())


async def test_rows_that_wait_are_swept_as_staged_bytes_are(store: ReplicaStore):
    old, young, referred = made("file", "a"), made("file", "b"), made("inline", "c")
    await store.load(SLOT, "c")
    for one, at_ms in ((old, NOW), (young, NOW + 1000), (referred, NOW)):
        store.apply(Archived(SLOT, one.version.blob_id, one.rows(), at_ms))
    await choose(store, "c", referred.record, 1, body=referred.parts[0])
    assert await store.sweep_staged(NOW + 1, 100) == 1
    assert await store.archived(SLOT, old.version.blob_id) is None
    assert await store.blob_state(SLOT, old.version.blob_id) is BlobState.ABORTED
    assert await store.archived(SLOT, young.version.blob_id) is not None
    assert await store.archived(SLOT, referred.version.blob_id) is not None
    await tell(store, old.version, old.rows())
    assert await store.archived(SLOT, old.version.blob_id) is None, "it was given up"


async def test_rows_go_with_the_staged_bytes(store: ReplicaStore):
    one = made("file")
    await stage(store, one.version.blob_id, list(one.parts))
    await tell(store, one.version, one.rows(), evicted=True)
    assert not await store.is_evicted(SLOT, one.version.blob_id), "its bytes are here"
    await store.discard(SLOT, one.version.blob_id)
    assert await store.archived(SLOT, one.version.blob_id) is None
    assert await store.blob_state(SLOT, one.version.blob_id) is BlobState.ABORTED


async def test_rows_that_nothing_came_to_own_are_orphans(store: ReplicaStore):
    loser, winner = made("inline"), put(1, body=b"another")
    await store.load(SLOT, "a")
    await tell(store, loser.version, loser.rows())
    store.apply(Accepted(SLOT, "a", ballot(1), loser.record, loser.parts[0]))
    await choose(store, "a", winner, 2, body=b"another")
    assert await store.orphans(SLOT, 1 << 47) == [loser.version.blob_id]
    await store.discard(SLOT, loser.version.blob_id)
    assert await store.archived(SLOT, loser.version.blob_id) is None
    assert await store.orphans(SLOT, 1 << 47) == []


async def test_rows_go_when_their_version_expires(store: ReplicaStore):
    first = await brought(store, "file")
    second = made("file", before=first.record)
    await stage(store, second.version.blob_id, list(second.parts))
    await choose(store, "a", second.record, 2)
    for one in (first, second):
        await tell(store, one.version, one.rows())
    gone = replace(expire(second.record, (1, 1)), live=((2, 2),), previous=None)
    await choose(store, "a", gone, 3)
    assert await store.archived(SLOT, first.version.blob_id) is None
    assert await store.archived(SLOT, second.version.blob_id) == ArchivedBlob(second.rows())
    await store.settle([SLOT])
    assert (store.tally(SLOT).archived_rows, store.tally(SLOT).archive_head) == (1, 2)
    await tell(store, first.version, first.rows())
    assert await store.archived(SLOT, first.version.blob_id) is None, "it is garbage"


async def test_objects(store: ReplicaStore):
    one, two, waits = await brought(store, "files", "a", 1), await brought(store, "file", "b", 2), made("file", "c")
    await tell(store, one.version, one.rows())
    await tell(store, two.version, two.rows(target=OTHER))
    await tell(store, waits.version, waits.rows())
    sizes = [chunk.end - chunk.start for chunk in (*one.rows(), *waits.rows())]
    assert await store.archive_objects(SLOT) == {
        PACK: ObjectUse(rows=4, size_bytes=sum(sizes)),
        OTHER: ObjectUse(rows=1, size_bytes=two.version.size + 9),
    }
    assert [line.seq for line in await store.archive_rows_of(SLOT, PACK, 1, 10)] == [2, 3]
    assert [line.seq for line in await store.archive_rows_of(SLOT, PACK, 1, 1)] == [2]
    assert [line.blob_id for line in await store.archive_rows_of(SLOT, OTHER, 0, 10)] == [two.version.blob_id]
    assert await store.archive_named(SLOT, [PACK, OTHER, "packs/x"]) == {PACK, OTHER}
    await tell(store, two.version, two.rows(target=OTHER, state=DAMAGED))
    assert set(await store.archive_objects(SLOT)) == {PACK}
    assert await store.archive_named(SLOT, [OTHER]) == {OTHER}, "what is damaged may be mended"
    await tell(store, two.version, two.rows(target=PACK, at_ms=two.rows()[0].archived_at_ms + 1))
    assert await store.archive_named(SLOT, [OTHER]) == set()


async def test_views(store: ReplicaStore):
    first = await brought(store, "file", "a", 1)
    second = made("manifest", "a", before=first.record)
    await stage(store, second.version.blob_id, list(second.parts), manifest=second.manifest)
    await choose(store, "a", second.record, 2)
    empty = put(1, body=b"")
    empty = replace(empty, head=replace(head_of(empty), size=0, chunks=(), chunk_count=0))
    await choose(store, "ab", empty, 3, body=b"")
    lone = made("files", "b")
    await store.load(SLOT, "b")
    store.apply(Installed(SLOT, "b", None, None, (lone.version,)))
    await tell(store, first.version, first.rows(state=UPLOADED))
    await tell(store, second.version, second.rows()[1:])
    views, after = await store.archive_page(SLOT, ("", 0), 10)
    assert after is None
    assert [(v.path, v.version, v.is_head, v.tombstoned_at_ms) for v in views] == [
        ("a", first.version, False, None), ("a", second.version, True, None), ("b", lone.version, True, None),
    ]  # fmt: skip
    assert [(v.uploaded, v.verified, v.chunk_count, v.evicted, v.wanted) for v in views] == [
        (1, 0, 1, False, False), (3, 3, 5, False, False), (0, 0, 3, False, True),
    ]  # fmt: skip
    page, after = await store.archive_page(SLOT, ("", 0), 1)
    assert ([view.version for view in page], after) == ([first.version], ("a", 1))
    rest, after = await store.archive_page(SLOT, ("a", 1), 10, prefix="a")
    assert ([view.version for view in rest], after) == ([second.version], None)


async def test_views_of_what_was_deleted(store: ReplicaStore):
    one = await brought(store, "file")
    dead = replace(
        one.record, revision=2, op="delete", head=None, live=(), changed_at_ms=NOW + 5, deleted_at_ms=NOW + 5,
        previous=one.version,
    )  # fmt: skip
    await choose(store, "a", dead, 2)
    ((view,), _) = await store.archive_page(SLOT, ("", 0), 10)
    assert (view.is_head, view.tombstoned_at_ms) == (False, NOW + 5)


async def test_the_same_chunk_twice_in_one_message(store: ReplicaStore):
    one = await brought(store, "file")
    await tell(store, one.version, (*one.rows(state=UPLOADED), *one.rows(), *one.rows(target=OTHER, at_ms=NOW - 5)))
    known = await store.archived(SLOT, one.version.blob_id)
    assert known is not None and known.chunks == one.rows()
    await store.settle([SLOT])
    assert store.tally(SLOT).archived_rows == 1


async def test_rows_before_the_bytes_before_the_record(store: ReplicaStore):
    """As a write that is archived first."""
    one = made("file")
    await store.load(SLOT, "a")
    await tell(store, one.version, one.rows())
    await stage(store, one.version.blob_id, list(one.parts))
    assert await store.blob_state(SLOT, one.version.blob_id) is BlobState.DURABLE
    await choose(store, "a", one.record, 1)
    assert await store.wanted(SLOT, 1) == []
    assert await store.evict(SLOT, "a", one.version) == one.size_bytes


async def test_a_blob_that_was_given_up_may_be_revived_with_rows(store: ReplicaStore):
    blob_id = mint()
    store.apply(Aborted(SLOT, blob_id))
    store.apply(Archived(SLOT, blob_id, (row("cd" * 32, 4),), NOW))
    assert await store.archived(SLOT, blob_id) is None
    store.apply(Staged(SLOT, blob_id, NOW, True))
    store.apply(Archived(SLOT, blob_id, (row("cd" * 32, 4),), NOW))
    assert await store.archived(SLOT, blob_id) is not None
    assert rows_of(head_of(put(1)))[0].verified
