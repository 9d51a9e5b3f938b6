"""A peer that tells rubbish: nothing of it is taken over, and nothing breaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from amberblob.errors import WireError
from amberblob.manifest import ChunkRef, WriteMark
from amberblob.wire_repair import BucketsReply, ItemsReply, LogLine, LogReply, PathItem, RootsReply
from antientropy.follow import Cursor, follow
from antientropy.sync import Progress, sync
from tests.unit.antientropy.kit import EPOCH, SLOT, Cluster, ballot, put, row, ulid

Lie = Callable[[PathItem], PathItem]


def head(**changes: object) -> Lie:
    def lie(item: PathItem) -> PathItem:
        assert item.record is not None and item.record.head is not None
        version = replace(item.record.head, **changes)
        return replace(item, record=replace(item.record, head=version), rows=(version,))

    return lie


def record(**changes: object) -> Lie:
    def lie(item: PathItem) -> PathItem:
        assert item.record is not None
        return replace(item, record=replace(item.record, **changes))

    return lie


LIES: dict[str, Lie] = {
    "another slot's path": lambda item: replace(item, path="elsewhere"),
    "no path": lambda item: replace(item, path=""),
    "a path that is too long": lambda item: replace(item, path="q" * 5000),
    "chosen without a ballot": lambda item: replace(item, ballot=None),
    "chosen without a record": lambda item: replace(item, record=None),
    "a record that is not chosen": lambda item: replace(item, chosen=False),
    "a blob id that leaves the folder": head(blob_id="../../../../etc/passwd0000"),
    "a version of none": head(version=0),
    "a version that no database holds": head(version=1 << 63),
    "a size below nothing": head(size=-1),
    "a size that no database holds": head(size=1 << 63),
    "a time that no database holds": head(created_at_ms=1 << 63),
    "a manifest that is no hash": head(manifest_id="../x", chunks=()),
    "a chunk that is no hash": head(chunks=(ChunkRef("../x", 10),)),
    "chunks of another size": head(chunks=(ChunkRef("0" * 64, 1 << 40),)),
    "a revision that no database holds": record(revision=1 << 63),
    "a time of change that no database holds": record(changed_at_ms=1 << 63),
    "ranges in no order": record(live=((5, 9), (1, 2))),
    "a range that ends before it begins": record(expired=((9, 5),)),
    "a head that has expired": record(expired=((1, 1),)),
    "a head above the highest version": record(version_max=0),
    "a previous version of none": record(previous=row("new", 0)),
    "rows in no order": lambda item: replace(item, rows=(item.rows[0], item.rows[0])),
    "more rows than come next": lambda item: replace(item, more_below=99),
    "a write in no time": lambda item: replace(item, writes=(WriteMark("w", "put", 1, 1 << 63),)),
}


def lying(lie: Lie):
    def change(request, reply):
        if isinstance(reply, ItemsReply):
            return replace(reply, items=tuple(map(lie, reply.items)))
        return reply

    return change


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster(3)
    made.belongs = lambda slot, path: path != "elsewhere"
    made.write("new", put("new", None), ballot(1), at=[1, 2])
    return made


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
async def test_nothing_of_it_is_installed(cluster, lie):
    cluster.lies = lying(lie)
    before = cluster[0].tally(SLOT)
    assert (await cluster.compare(0, 1))[SLOT].why
    voters = cluster.voters()
    followed = await cluster.run(0, follow("n1", {SLOT: voters["n1"]}, {SLOT: Cursor(voters["n1"], 0)}))
    assert followed.paths == 0
    assert cluster.costs["n0"].installed == 0 and cluster[0].tally(SLOT) == before
    cluster[0].lose_slot(SLOT, ulid(77))
    cluster.replicas[0].standing[SLOT] = "unsynced"
    progress = Progress(SLOT, ulid(77), EPOCH + 1)
    result = await cluster.run(0, sync("n0", progress, EPOCH + 1, cluster.voters(), ["n1", "n2"]))
    assert result.why and cluster.costs["n0"].installed == 0
    cluster.lies = lambda request, reply: reply
    assert not (await cluster.run(0, sync("n0", progress, EPOCH + 1, cluster.voters(), ["n1", "n2"]))).why


async def test_a_log_of_another_slots_paths_is_not_followed(cluster):
    cluster.lies = lambda request, reply: (
        replace(reply, lines=(LogLine(1, "elsewhere", 1),)) if isinstance(reply, LogReply) else reply
    )
    voters = cluster.voters()
    cursor = Cursor(voters["n1"], 0)
    followed = await cluster.run(0, follow("n1", {SLOT: voters["n1"]}, {SLOT: cursor}))
    assert followed.cursors == {SLOT: cursor} and followed.paths == 0


@pytest.mark.parametrize(
    "lie",
    [
        lambda reply: replace(reply, without=b"\xff" * (1 << 20)) if isinstance(reply, RootsReply) else reply,
        lambda reply: replace(reply, roots=reply.roots[:-1]) if isinstance(reply, RootsReply) else reply,
    ],
)
async def test_roots_of_slots_that_there_are_not(cluster, lie):
    cluster.lies = lambda request, reply: lie(reply)
    with pytest.raises(WireError):
        await cluster.compare(0, 1)


async def test_sums_of_a_copy_that_the_route_does_not_name_are_nobodys(cluster):
    """It may have been lost and begun anew since: that it differs in nothing says nothing of the one that is named."""
    own = await cluster[0].bucket_sums(SLOT)
    stranger = b"".join(own[at : at + 8] for at in range(0, len(own), 32))
    cluster.lies = lambda request, reply: (
        BucketsReply(incarnation=ulid(99), sums=stranger) if isinstance(reply, BucketsReply) else reply
    )
    assert (await cluster.compare(0, 1))[SLOT].why
