"""What a copy answers to the sessions of others."""

from __future__ import annotations

import pytest

from amberblob.errors import BadRequest
from amberblob.mutations import EpochSeen, Forgotten
from amberblob.wire import Refused
from amberblob.wire_repair import (
    BucketsReply,
    CompareBuckets,
    CompareRoots,
    HeadsReply,
    ItemsReply,
    LogHeads,
    LogReply,
    PullDiffering,
    PullPaths,
    PullSlot,
    ReadLog,
    RootsReply,
    bitmap_of,
    slots_in,
)
from antientropy import answers
from antientropy.answers import answer
from antientropy.needs import PULL_PATHS_MAX
from chunkstore.memory import MemoryStore
from tests.unit.antientropy.kit import SLOT, Cluster, ballot, put, ulid


@pytest.fixture
def store() -> MemoryStore:
    cluster = Cluster(1)
    for at in range(20):
        cluster.write(f"p/{at:02}", put(f"p/{at:02}", None), ballot(at + 1))
    return cluster[0]


async def ask(store, request, *, standing=None):
    return await answer(store, request, standing=(standing or {}).get)


async def test_roots_of_copies_that_do_not_count_are_left_out(store):
    slots = [1, SLOT, 9]
    reply = await ask(store, CompareRoots(slots=bitmap_of(slots)), standing={9: "unsynced"})
    assert isinstance(reply, RootsReply)
    assert len(reply.roots) == 96 and slots_in(reply.without) == [9]
    assert reply.roots[32:64] == store.tally(SLOT).root != bytes(32)
    assert reply.roots[64:] == bytes(32)


@pytest.mark.parametrize(
    "request_",
    [
        CompareBuckets(slot=SLOT),
        PullDiffering(slot=SLOT, known={1: b""}),
        PullPaths(slot=SLOT, paths=("p/01",)),
        PullSlot(slot=SLOT, epoch=9),
        ReadLog(slot=SLOT, incarnation="x", after=0),
    ],
)
@pytest.mark.parametrize("reason", ["unsynced", "not-a-member"])
async def test_a_copy_that_does_not_count_is_mute(store, request_, reason):
    reply = await ask(store, request_, standing={SLOT: reason})
    assert isinstance(reply, Refused) and reply.reason == reason
    assert store.slot_state(SLOT).epoch == 0, "and adopts no epoch"


async def test_bucket_sums_are_shortened(store):
    reply = await ask(store, CompareBuckets(slot=SLOT))
    assert isinstance(reply, BucketsReply) and len(reply.sums) == 8 * 256
    whole = await store.bucket_sums(SLOT)
    assert all(reply.sums[8 * at : 8 * at + 8] == whole[32 * at : 32 * at + 8] for at in range(256))


async def test_a_page_of_a_slot_fences_older_epochs_before_it_tells_anything(store):
    seen: list[int] = []
    original = store.items_after

    async def items_after(*given):
        seen.append(store.slot_state(SLOT).epoch)
        return await original(*given)

    store.items_after = items_after
    store.apply(Forgotten(SLOT, "gone", ballot(3), 7))
    reply = await ask(store, PullSlot(slot=SLOT, epoch=5))
    assert isinstance(reply, ItemsReply) and seen == [5]
    assert (reply.epoch, reply.ballot_floor, reply.version_floor) == (5, ballot(3), 7)
    assert len(reply.items) == 20 and reply.next_after is None
    refused = await ask(store, PullSlot(slot=SLOT, epoch=4))
    assert isinstance(refused, Refused) and (refused.reason, refused.epoch) == ("epoch", 5)
    store.apply(EpochSeen(SLOT, 8))
    assert isinstance(await ask(store, PullSlot(slot=SLOT, epoch=7)), Refused)


async def test_many_paths_come_in_pages(store, monkeypatch):
    monkeypatch.setattr(answers, "PAGE_BYTES", 700)
    paths = tuple(f"p/{at:02}" for at in range(20))
    told: list[str] = []
    left = paths
    while left:
        reply = await ask(store, PullPaths(slot=SLOT, paths=left))
        told += [item.path for item in reply.items]
        assert 1 <= len(reply.items) < 5
        left = tuple(path for path in left if path > reply.next_after) if reply.next_after else ()
    assert tuple(told) == paths
    with pytest.raises(BadRequest):
        await ask(store, PullPaths(slot=SLOT, paths=tuple(str(at) for at in range(PULL_PATHS_MAX + 1))))


@pytest.mark.parametrize("known", [{256: b""}, {-1: b""}, {3: b"short"}])
async def test_fingerprints_that_are_none_are_refused(store, known):
    with pytest.raises(BadRequest):
        await ask(store, PullDiffering(slot=SLOT, known=known))


async def test_a_path_that_is_being_written_is_no_rotten_one(store):
    """Between reading the rows and reading the digests the path changes."""
    wrong: list[str] = []
    original, changed = store.items_differing, []

    async def items_differing(*given):
        page = await original(*given)
        if not changed:
            changed.append(True)
            await store.load(SLOT, "p/03")
            cluster = Cluster(1)
            cluster.replicas[0].store = store
            record = cluster.register(0, "p/03").record
            cluster.write("p/03", put("p/03", record), ballot(99))
        return page

    store.items_differing = items_differing
    request = PullDiffering(slot=SLOT, known=dict.fromkeys(range(256), b""))
    reply = await answer(store, request, standing={}.get, found_wrong=lambda slot, path: wrong.append(path))
    assert isinstance(reply, ItemsReply)
    assert [item.path for item in reply.items] == [f"p/{at:02}" for at in range(20)]
    assert reply.items[3].record.version_max == 2, "as it is now"
    assert not wrong


async def test_a_path_that_is_written_all_the_time_is_no_rotten_one(store):
    """It changes between any two looks at its rows and at its digest."""
    wrong: list[str] = []
    original, written = store.fingerprints, []
    await store.load(SLOT, "p/03")
    cluster = Cluster(1)
    cluster.replicas[0].store = store

    async def fingerprints(*given):
        written.append(ballot(99 + len(written)))
        cluster.write("p/03", put("p/03", cluster.register(0, "p/03").record), written[-1])
        return await original(*given)

    store.fingerprints = fingerprints
    request = PullDiffering(slot=SLOT, known=dict.fromkeys(range(256), b""))
    reply = await answer(store, request, standing={}.get, found_wrong=lambda slot, path: wrong.append(path))
    assert isinstance(reply, ItemsReply)
    assert "p/03" in [item.path for item in reply.items] and len(written) == 2
    assert not wrong


async def test_logs(store):
    reply = await ask(store, LogHeads(slots=bitmap_of([1, SLOT])))
    assert isinstance(reply, HeadsReply)
    assert [int.from_bytes(reply.heads[at : at + 8], "little") for at in (0, 8)] == [0, 20]
    assert reply.incarnation == store.disk_id and reply.incarnations == {}
    lines = await ask(store, ReadLog(slot=SLOT, incarnation=store.disk_id, after=18, limit=10))
    assert isinstance(lines, LogReply) and [line.seq for line in lines.lines] == [19, 20] and not lines.gap
    other = await ask(store, ReadLog(slot=SLOT, incarnation=ulid(5), after=18))
    assert isinstance(other, LogReply) and other.gap and not other.lines
    await store.trim_log(SLOT, 5)
    assert (await ask(store, ReadLog(slot=SLOT, incarnation=store.disk_id, after=3))).gap
    store.lose_slot(SLOT, ulid(6))
    reply = await ask(store, LogHeads(slots=bitmap_of([SLOT])))
    assert reply.incarnations == {SLOT: ulid(6)}
