"""SIGKILL in the middle of a stream of writes: what was acknowledged stays, what was not is whole or absent."""

from __future__ import annotations

import asyncio

import pytest

from tests.cluster.harness import Api, Cluster, until
from tests.cluster.workload import Stream, verify

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ACKNOWLEDGED_BEFORE = 40
WRITES_S = 120.0


async def acknowledged(stream: Stream, count: int, what: str) -> None:
    """Until so many are, beside bodies of 20 MiB and, perhaps, nodes that start."""
    await until(lambda: len(stream.acknowledged) >= count, what, deadline_s=WRITES_S)


@pytest.mark.parametrize(
    ("victims", "round_number"),
    [((0,), 1), ((1,), 1), ((2,), 1), ((0, 1), 1), ((0, 1, 2), 1), ((0, 1, 2), 2)],
    ids=lambda value: str(value).replace(" ", ""),
)
async def test_killed_in_the_middle_of_writes(
    api: Api, cluster: Cluster, name: str, victims: tuple[int, ...], round_number: int
) -> None:
    stream = Stream(api, name)
    stream.begin()
    await acknowledged(stream, ACKNOWLEDGED_BEFORE * round_number, "writes are acknowledged")
    for victim in victims:
        cluster.kill(victim)
    if len(victims) == 1:
        so_far = len(stream.acknowledged)
        await acknowledged(stream, so_far + 20, "writes go on through the others")
    for victim in victims:
        cluster.start(victim)
    so_far = len(stream.acknowledged)
    await acknowledged(stream, so_far + 20, "writes go on after the restart")
    await stream.end()
    await cluster.wait_ready()
    first = await verify(api, cluster, stream.writes)
    print(first, {status: stream.statuses.count(status) for status in set(stream.statuses)})
    assert first["acknowledged"] >= ACKNOWLEDGED_BEFORE
    # What was there stays there.
    second = await verify(api, cluster, stream.writes)
    assert second["acknowledged"] == first["acknowledged"]
    assert second["unknown applied"] >= first["unknown applied"]
    objects, _, _ = await api.list_all(prefix=f"{name}/")
    there = {entry["path"] for entry in objects}
    assert {write.path for write in stream.acknowledged} <= there <= {write.path for write in stream.writes}


async def test_nodes_die_one_after_the_other(api: Api, cluster: Cluster, name: str) -> None:
    stream = Stream(api, name)
    stream.begin(writers=4, rivals=4, large=0)
    for victim in (0, 1, 2):
        so_far = len(stream.acknowledged)
        await acknowledged(stream, so_far + 15, "writes are acknowledged")
        cluster.kill(victim)
        cluster.start(victim)
        await cluster.wait_ready(victim)
    await stream.end()
    await cluster.wait_ready()
    assert (await verify(api, cluster, stream.writes))["acknowledged"] >= 45


async def test_killed_again_while_it_recovers(api: Api, cluster: Cluster, name: str) -> None:
    stream = Stream(api, name)
    stream.begin(large=0)
    await acknowledged(stream, 100, "writes are acknowledged")
    for pause_s in (0.05, 0.2, 0.35, 0.5, 0.7):
        for index in range(3):
            if cluster.nodes[index].running:
                cluster.kill(index)
            cluster.start(index)
        # No state to wait for: the point is to strike at any moment of the start.
        await asyncio.sleep(pause_s)
    await stream.end()
    await cluster.wait_ready()
    assert (await verify(api, cluster, stream.writes))["acknowledged"] >= 100
