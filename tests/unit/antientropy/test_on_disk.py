"""The same sessions between copies on real disks."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest

from amberblob.clock import SeededRandomness, SystemClock
from amberblob.manifest import Record
from antientropy.sync import Progress, sync
from chunkstore.store import DiskStore
from tests.unit.antientropy.kit import SLOT, Cluster, ballot, delete, expire, put

PATHS = 60


@pytest.fixture
async def cluster(tmp_path) -> AsyncIterator[Cluster]:
    made = Cluster(3)
    for at, replica in enumerate(made.replicas):
        # What is compared is the same through the same interface; the twin's own ways of playing damage are not used here.
        replica.store = await DiskStore.open(  # type: ignore[assignment]
            tmp_path / replica.node,
            cluster_id="c",
            node_id=replica.node,
            clock=SystemClock(),
            randomness=SeededRandomness(at),
            reserve_bytes=0,
        )
    yield made
    for replica in made.replicas:
        await replica.store.close()


async def durable(cluster: Cluster) -> None:
    for replica in cluster.replicas:
        await replica.store.settle([SLOT])


def diverge(cluster: Cluster, seed: int) -> dict[str, Record]:
    """Write histories of which each replica misses something; returns the last record of each path that somebody knows."""
    chance = random.Random(seed)
    truth: dict[str, Record] = {}
    for at in range(PATHS):
        path, record = f"p/{at:03}", None
        records: list[Record] = []
        for _ in range(chance.randint(1, 4)):
            kind = chance.choice(["put", "put", "delete", "expire"])
            if record is None or kind == "put":
                record = put(path, record)
            elif kind == "delete" and record.head is not None:
                record = delete(record)
            else:
                record = expire(record)
            records.append(record)
        whole = chance.randrange(3)
        for one in range(3):
            kept = len(records) if one == whole else chance.randint(0, len(records))
            for step, known in enumerate(records[:kept]):
                number = ballot(1000 * step + at + 1)
                cluster.accept(one, path, number, known)
                if one == whole or chance.random() < 0.9:
                    cluster.choose(one, path, number)
        truth[path] = records[-1]
    return truth


@pytest.mark.parametrize("seed", range(3))
async def test_disks_agree_within_two_rounds(cluster, seed):
    truth = diverge(cluster, seed)
    await durable(cluster)
    assert len(cluster.roots()) == 3
    for turn in range(2):
        before = sum(costs.installed for costs in cluster.costs.values())
        for at in range(3):
            for peer in range(3):
                if peer != at:
                    result = await cluster.compare(at, peer)
                    assert not result[SLOT].why
        moved = sum(costs.installed for costs in cluster.costs.values()) - before
        assert bool(moved) == (turn == 0)
    await durable(cluster)
    assert len(cluster.roots()) == 1
    contents = [await cluster.contents(at) for at in range(3)]
    assert contents[0] == contents[1] == contents[2]
    assert {path: record for path, (record, _) in contents[0].items()} == truth
    for at in range(3):
        missing = {
            (path, row.version)
            for path, (_, rows) in contents[at].items()
            for row in rows
            if await cluster[at].missing_chunks(SLOT, row, row.chunks)
        }
        assert {(one.path, one.version.version) for one in await cluster[at].wanted(SLOT, 1000)} == missing


async def test_a_blank_copy_on_disk_is_filled(cluster):
    truth = diverge(cluster, 9)
    for at in (1, 2):
        for peer in (3 - at, 0):
            await cluster.compare(at, peer)
    blank = SLOT + 1
    for at, (path, record) in enumerate(truth.items()):
        for one in (1, 2):
            cluster.accept(one, path, ballot(at + 1), record, slot=blank)
            cluster.choose(one, path, ballot(at + 1), slot=blank)
    voters = cluster.voters(blank)
    progress = Progress(blank, voters["n0"], 2)
    result = await cluster.run(0, sync("n0", progress, 2, voters, sorted(voters)))
    assert not result.why
    assert cluster[0].slot_state(blank).synced_epoch == 2
    for replica in cluster.replicas:
        await replica.store.settle([blank])
    assert len(cluster.roots(blank)) == 1
