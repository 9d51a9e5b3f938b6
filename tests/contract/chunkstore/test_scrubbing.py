"""What a store finds when it reads what it keeps: rows, digests, files that nobody knows."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from amberblob.digests import bucket_of
from amberblob.errors import ChunkMissing
from amberblob.ids import ulid_time_ms
from amberblob.limits import KIB
from amberblob.manifest import Record
from amberblob.mutations import Accepted, Chosen, Installed
from chunkstore import BlobState, ReplicaStore
from tests.contract.chunkstore.kit import (
    NOW,
    SLOT,
    ballot,
    body_of,
    change,
    choose,
    choose_file,
    file_put,
    head_of,
    put,
    root,
    stage,
    sums_of_rows,
)
from tests.contract.chunkstore.rot import Rot

LATER = 1 << 47
"""A time (epoch ms) after everything."""


async def _three(store: ReplicaStore, path: str = "a") -> list[Record]:
    """Three puts, and a delete of the second version."""
    records: list[Record] = []
    for number in range(1, 4):
        records.append(put(number, before=records[-1] if records else None))
        await choose(store, path, records[-1], number)
    gone = change("delete-version", records[-1], head=records[-1].head, live=((1, 1), (3, 3)))
    await choose(store, path, gone, 4)
    return [*records, gone]


# ---- rows, records, digests


async def test_what_is_right_is_found_right(store: ReplicaStore):
    await _three(store, "a")
    await _three(store, "b")
    await store.load(SLOT, "c")
    store.apply(Accepted(SLOT, "c", ballot(1), put(1), b"body"))
    page = await store.check_page(SLOT, "", 10)
    assert (page.next_after, page.wrong) == (None, ())
    assert sorted((path, version.version) for path, version in page.versions) == [
        (path, number) for path in ("a", "b") for number in (1, 2, 3)
    ]
    assert await store.check_sums(SLOT)


async def test_nothing_is_wrong_with_an_empty_slot(store: ReplicaStore):
    page = await store.check_page(SLOT, "", 10)
    assert (page.next_after, page.wrong, page.versions) == (None, (), ())
    assert await store.check_sums(SLOT)
    assert store.slots() == []


async def test_pages_go_through_all_paths_once(store: ReplicaStore):
    paths = [f"p{number:02}" for number in range(7)]
    for path in paths:
        await choose(store, path, put(1), 1)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page = await store.check_page(SLOT, after, 3)
        assert len(page.versions) <= 3
        seen += [path for path, _ in page.versions]
        after = page.next_after
    assert seen == paths


Harm = Callable[[Rot], Coroutine[Any, Any, None]]

HARM: dict[str, Harm] = {
    "a wrong row": lambda rot: rot.row("b", 2),
    "a lost row": lambda rot: rot.lost_row("b", 1),
    "the wrong record": lambda rot: rot.record("b"),
    "a wrong digest": lambda rot: rot.digest("b"),
}


@pytest.mark.parametrize("harm", sorted(HARM))
async def test_what_a_digest_was_not_made_of_is_wrong_until_it_is_replaced(store: ReplicaStore, rot: Rot, harm: str):
    records = {path: await _three(store, path) for path in ("a", "b", "c")}["b"]
    (right,) = await store.items(SLOT, ["b"])
    before = await store.bucket_sums(SLOT)
    await store.settle([SLOT])
    await HARM[harm](rot)
    page = await store.check_page(SLOT, "", 10)
    assert page.wrong == ("b",)
    assert {path for path, _ in page.versions} == {"a", "b", "c"}
    await store.load(SLOT, "b")
    mend = Installed(SLOT, "b", right.ballot, right.record, right.rows, right.writes, True)
    await store.durable(store.apply(mend))
    assert (await store.check_page(SLOT, "", 10)).wrong == ()
    await store.check_sums(SLOT)
    assert await store.check_sums(SLOT)
    assert await store.bucket_sums(SLOT) == before == await sums_of_rows(store, ["a", "b", "c"])
    assert [row.version for row in await store.rows(SLOT, "b")] == [head_of(r) for r in reversed(records[:3])]
    assert (await store.load(SLOT, "b")).record == records[3]


async def test_a_lost_tombstone_is_set_again(store: ReplicaStore, rot: Rot):
    records = await _three(store)
    before = await store.rows(SLOT, "a")
    await rot.tombstone("a", 2)
    assert await store.rows(SLOT, "a") != before
    assert (await store.check_page(SLOT, "", 10)).wrong == ()
    assert await store.rows(SLOT, "a") == before
    assert before[1].tombstoned_at_ms == records[3].deleted_at_ms


async def test_what_is_undecided_says_nothing_about_tombstones(store: ReplicaStore):
    records = await _three(store)
    before = await store.rows(SLOT, "a")
    again = put(4, before=records[-1])
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(7), again, b"body")))
    assert (await store.check_page(SLOT, "", 10)).wrong == ()
    assert await store.rows(SLOT, "a") == before


async def test_a_path_that_vanished_is_found_by_its_bucket(store: ReplicaStore, rot: Rot):
    await _three(store, "a")
    await _three(store, "b")
    await store.settle([SLOT])
    await rot.path("b")
    assert (await store.check_page(SLOT, "", 10)).wrong == ()
    assert not await store.check_sums(SLOT)
    assert await store.bucket_sums(SLOT) == await sums_of_rows(store, ["a"])
    assert await store.check_sums(SLOT)
    assert store.tally(SLOT).root == await root(store)


async def test_a_wrong_bucket_is_made_anew(store: ReplicaStore, rot: Rot):
    await _three(store)
    before, told = await store.bucket_sums(SLOT), await root(store)
    await rot.bucket((bucket_of("a") + 1) % 256)
    assert not await store.check_sums(SLOT)
    assert await store.check_sums(SLOT)
    assert await store.bucket_sums(SLOT) == before
    assert store.tally(SLOT).root == told


# ---- files that nobody knows


async def test_files_that_are_referred_to_are_no_orphans(store: ReplicaStore):
    body = body_of(1, 70 * KIB)
    chosen, undecided = file_put(1, body), file_put(1, body)
    await choose_file(store, "a", chosen, body, 1)
    await stage(store, head_of(undecided).blob_id, [body])
    await store.load(SLOT, "b")
    await store.durable(store.apply(Accepted(SLOT, "b", ballot(1), undecided)))
    staged = head_of(file_put(1, body)).blob_id
    await stage(store, staged, [body])
    assert await store.orphans(SLOT, LATER) == []
    assert await store.orphans(99, LATER) == []


async def test_the_bytes_of_a_record_that_another_took_the_place_of_are_orphans(store: ReplicaStore):
    body = body_of(1, 70 * KIB)
    loser, winner = file_put(1, body), put(1)
    await stage(store, head_of(loser).blob_id, [body])
    await store.load(SLOT, "a")
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(1), loser)))
    assert await store.orphans(SLOT, LATER) == []
    await store.durable(store.apply(Chosen(SLOT, "a", ballot(2), winner)))
    blob_id = head_of(loser).blob_id
    assert await store.orphans(SLOT, ulid_time_ms(blob_id)) == [], "it is not older than that"
    assert await store.orphans(SLOT, LATER) == [blob_id]
    await store.discard(SLOT, blob_id)
    assert await store.orphans(SLOT, LATER) == []
    assert await store.blob_state(SLOT, blob_id) is BlobState.ABORTED


async def test_an_inline_body_of_a_record_that_another_took_the_place_of_is_an_orphan(store: ReplicaStore):
    loser, winner = put(1, body=body_of(1)), put(1)
    await store.load(SLOT, "a")
    await store.durable(store.apply(Accepted(SLOT, "a", ballot(1), loser, body_of(1))))
    assert await store.orphans(SLOT, LATER) == []
    await choose(store, "a", winner, 2)
    await store.settle([SLOT])
    blob_id = head_of(loser).blob_id
    assert await store.orphans(SLOT, LATER) == [blob_id]
    await store.discard(SLOT, blob_id)
    assert await store.orphans(SLOT, LATER) == []
    assert store.peek_body(SLOT, blob_id) is None
    with pytest.raises(ChunkMissing):
        await store.read_chunk(SLOT, blob_id, head_of(loser).chunks[0])
    assert await store.read_chunk(SLOT, head_of(winner).blob_id, head_of(winner).chunks[0]) == b"body"


async def test_the_head_that_a_register_tells_of_is_no_orphan_though_its_row_is_lost(store: ReplicaStore, rot: Rot):
    body = body_of(1, 70 * KIB)
    first = file_put(1, body)
    await choose_file(store, "a", first, body, 1)
    second = put(2, before=first)
    await choose(store, "a", second, 2)
    back = change("delete-version", second, head=first.head, live=((1, 1),))
    await choose(store, "a", back, 3)
    await store.settle([SLOT])
    await rot.lost_row("a", 1)
    assert await store.orphans(SLOT, LATER) == []
    await store.discard(SLOT, head_of(first).blob_id)
    assert await store.read_chunk(SLOT, head_of(first).blob_id, head_of(first).chunks[0]) == body


# ---- notes


async def test_notes_are_kept(store: ReplicaStore):
    assert await store.memo(SLOT, "scrub") == ""
    await choose(store, "a", put(1), 1)
    await store.set_memo(SLOT, "scrub", "a/b/ü")
    await store.set_memo(SLOT, "other", str(NOW))
    assert (await store.memo(SLOT, "scrub"), await store.memo(SLOT, "other")) == ("a/b/ü", str(NOW))
    await store.set_memo(SLOT, "scrub", "")
    assert await store.memo(SLOT, "scrub") == ""
