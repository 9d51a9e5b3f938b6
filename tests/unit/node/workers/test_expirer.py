"""Retention on whole nodes: what goes goes everywhere, with its bytes; what is live stays."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from amberblob.config import Duration, Keep, RetentionRule, RetentionSection
from amberblob.errors import AmberError, NotFound
from antientropy.retention import Retention
from antientropy.step import Did
from chunkstore.interface import BlobState
from node.workers.expirer import Expirer
from node.workers.garbage import Garbage
from tests.folders import files_below
from tests.unit.node.objects.kit import STAGED, Cluster, Node, cluster, content, delete, get, look, put, restore

DAY_S = 86_400


def expirer_of(nodes: Cluster, node: Node, section: RetentionSection) -> Expirer:
    return Expirer(
        node.coordinator,
        node.routing,
        node.store,
        nodes.clock,
        reachable=node.peers.reachable,
        retention=Retention.of(section),
        every_s=3600.0,
    )


async def once(nodes: Cluster, worker: Expirer | Garbage) -> None:
    """One whole search of a worker: until it rests for long."""
    nodes.clock.ahead_s += 3600.0
    for _ in range(2000):
        if await worker.step() is Did.NOTHING:
            if worker.pause_s > 10:
                return
            nodes.clock.ahead_s += worker.pause_s
    raise AssertionError("the worker does not come to an end")


async def expire(nodes: Cluster, section: RetentionSection, *numbers: int) -> dict[str, Expirer]:
    """Let the expirers of these nodes (all) do all that is due, and every disk its garbage."""
    workers = {node.name: expirer_of(nodes, node, section) for node in nodes}
    for number in numbers or range(1, len(nodes.nodes) + 1):
        await once(nodes, workers[f"n{number}"])
        await nodes.settle()
    for node in nodes:
        await node.store.settle(node.store.slots())  # a disk has garbage once its databases know of it
        await once(nodes, Garbage(node.store, nodes.clock))
    return workers


async def versions(node: Node, path: str) -> list[int]:
    return [view.version.version for view in await node.objects.versions(path)]


async def kept_blobs(nodes: Cluster, path: str, blob_ids: Iterable[str]) -> dict[str, list[str]]:
    """By node: which of these blobs it has bytes of."""
    slot = nodes.slot(path)
    return {
        node.name: [b for b in blob_ids if await node.store.blob_state(slot, b) is BlobState.DURABLE] for node in nodes
    }


@pytest.fixture(params=["memory", "disk"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path | None:
    """Where the nodes keep their disks; None: in memory."""
    return tmp_path if request.param == "disk" else None


@pytest.mark.parametrize("size", [100, STAGED])
async def test_old_versions_go_from_every_disk_and_the_newest_stay(size, folder):
    async with cluster(folder=folder) as nodes:
        path = nodes.path(1)
        views = [await put(nodes[1], path, content(size, seed)) for seed in range(5)]
        await nodes.settle()
        blob_ids = [view.version.blob_id for view in views]
        assert await kept_blobs(nodes, path, blob_ids) == {name: blob_ids for name in nodes.nodes}
        workers = await expire(nodes, RetentionSection(keep=Keep(0), versions=2))
        assert [worker.counts.paths_expired for worker in workers.values()] == [1, 0, 0], "one of them did it"
        for node in nodes:
            assert await versions(node, path) == [5, 4]
            assert await get(node, path) == content(size, 4)
            assert await get(node, path, version=4) == content(size, 3)
            with pytest.raises(NotFound):
                await look(node, path, version=3)
        assert await kept_blobs(nodes, path, blob_ids) == {name: blob_ids[3:] for name in nodes.nodes}
        for node in nodes:
            await node.store.settle([nodes.slot(path)])
        roots = {node.store.tally(nodes.slot(path)).root for node in nodes}
        assert len(roots) == 1
        again = await expire(nodes, RetentionSection(keep=Keep(0), versions=2))
        assert all(worker.counts.paths_expired == 0 for worker in again.values()), "the second search finds nothing"


async def test_what_is_not_old_enough_stays():
    async with cluster() as nodes:
        path = nodes.path(1)
        for seed in range(3):
            await put(nodes[1], path, content(100, seed))
        await nodes.settle()
        await expire(nodes, RetentionSection())
        assert await versions(nodes[1], path) == [3, 2, 1]
        nodes.clock.ahead_s += 7 * DAY_S
        await expire(nodes, RetentionSection())
        assert await versions(nodes[1], path) == [3]


async def test_rules_per_prefix():
    section = RetentionSection(
        keep=Keep(0),
        rules=(RetentionRule(prefix="ever/", keep=Keep(math.inf)), RetentionRule(prefix="two", versions=2)),
    )
    async with cluster() as nodes:
        for path in ("ever/a", "two", "other"):
            for seed in range(4):
                await put(nodes[1], path, content(100, seed))
        await delete(nodes[1], "ever/a")
        await nodes.settle()
        nodes.clock.ahead_s += 1000 * DAY_S
        await expire(nodes, section)
        await expire(nodes, section)
        assert await versions(nodes[2], "ever/a") == [4, 3, 2, 1]
        assert await versions(nodes[2], "two") == [4, 3]
        assert await versions(nodes[2], "other") == [4]
        await restore(nodes[2], "ever/a")
        assert await get(nodes[3], "ever/a") == content(100, 3)


async def test_a_deleted_path_goes_and_later_its_stub_and_its_versions_never_come_again(folder):
    section = RetentionSection(keep=Keep(2 * DAY_S), stub_keep=Duration(5 * DAY_S))
    async with cluster(folder=folder) as nodes:
        path = nodes.path(2)
        slot = nodes.slot(path)
        views = [await put(nodes[1], path, content(STAGED, seed)) for seed in range(3)]
        await delete(nodes[1], path)
        await nodes.settle()
        nodes.clock.ahead_s += DAY_S
        await expire(nodes, section)
        await restore(nodes[3], path)
        assert await get(nodes[1], path) == content(STAGED, 2)
        await delete(nodes[1], path)
        await nodes.settle()

        nodes.clock.ahead_s += 2 * DAY_S
        await expire(nodes, section)
        blobs = [view.version.blob_id for view in views]
        assert await kept_blobs(nodes, path, blobs) == {name: [] for name in nodes.nodes}
        if folder is None:
            assert nodes.blobs() == {name: [] for name in nodes.nodes}
        else:
            assert [
                file for file in files_below(folder) if "chunks" in file.parts and "quarantine" not in file.parts
            ] == []
        with pytest.raises(NotFound):
            await restore(nodes[3], path)
        for node in nodes:
            assert (await node.store.load(slot, path)).record is not None, "the stub is still there"

        nodes.clock.ahead_s += 3 * DAY_S
        workers = await expire(nodes, section)
        assert sum(worker.counts.stubs_collected for worker in workers.values()) == 1
        for node in nodes:
            assert (await node.store.load(slot, path)).record is None
            await node.store.settle([slot])
            assert node.store.tally(slot).objects == 0
            with pytest.raises(NotFound):
                await look(node, path)
        assert (await put(nodes[3], path, b"new")).version.version > 3
        assert await get(nodes[1], path) == b"new"


async def test_the_next_voter_looks_when_the_first_is_away():
    section = RetentionSection(keep=Keep(0))
    async with cluster() as nodes:
        path = nodes.path(1)
        for seed in range(3):
            await put(nodes[1], path, content(100, seed))
        await nodes.settle()
        nodes.net.down.add("n1")
        workers = await expire(nodes, section, 2, 3)
        assert (workers["n2"].counts.paths_expired, workers["n3"].counts.paths_expired) == (1, 0)
        assert await versions(nodes[2], path) == [3]
        assert [row.version.version for row in await nodes[1].store.rows(nodes.slot(path), path)] == [3, 2, 1]
        nodes.net.heal()
        again = await expire(nodes, section, 1)
        assert again["n1"].counts.failures == 0, "what it missed is proposed once more, and changes nothing"
        assert await versions(nodes[1], path) == [3]


async def test_without_a_majority_nothing_goes_and_the_search_ends():
    async with cluster() as nodes:
        path = nodes.path(1)
        for seed in range(3):
            await put(nodes[1], path, content(100, seed))
        await nodes.settle()
        nodes.give_up_after(0.2)
        nodes.net.down |= {"n2", "n3"}
        workers = await expire(nodes, RetentionSection(keep=Keep(0)), 1)
        assert workers["n1"].counts.failures == 1 and workers["n1"].counts.paths_expired == 0
        assert len(await nodes[1].store.rows(nodes.slot(path), path)) == 3


async def test_a_copy_that_does_not_count_looks_after_nothing():
    async with cluster() as nodes:
        path = nodes.path(1)
        for seed in range(3):
            await put(nodes[1], path, content(100, seed))
        await nodes.settle()
        nodes[1].store.lose_slot(nodes.slot(path), "01BX5ZZKBKACTAV9WEVGEMMVRZ")
        workers = await expire(nodes, RetentionSection(keep=Keep(0)), 1)
        assert workers["n1"].counts.paths_looked_at == 0


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_live_goes_while_clients_write_and_all_nodes_expire_at_once(seed, tmp_path):
    """Retention at its most eager, on every node, with lost messages: every acknowledged head is there with its bytes."""
    chance = random.Random(seed)
    section = RetentionSection(keep=Keep(0), stub_keep=Duration(0))
    paths = [f"p{index}" for index in range(6)]
    heads: dict[str, bytes | None] = dict.fromkeys(paths)
    unsure: set[str] = set()

    async def client(nodes: Cluster, own: list[str]) -> None:
        for _ in range(12):
            path, node = chance.choice(own), nodes[chance.randint(1, 3)]
            try:
                if heads[path] is not None and chance.random() < 0.3:
                    await delete(node, path)
                    heads[path] = None
                else:
                    data = content(chance.choice([10, STAGED]), chance.randrange(10_000))
                    await put(node, path, data)
                    heads[path] = data
                unsure.discard(path)
            except NotFound:
                heads[path] = None
            except AmberError:
                unsure.add(path)

    async def eager(nodes: Cluster, node: Node) -> None:
        while True:
            worker = Expirer(
                node.coordinator, node.routing, node.store, nodes.clock,
                reachable=lambda other: False, retention=Retention.of(section), every_s=0.01,
            )  # fmt: skip
            for _ in range(30):
                await worker.step()
                await asyncio.sleep(0)
            for slot in node.store.slots():
                await node.store.sweep_garbage(slot, 100)

    async with cluster(slots=2, folder=tmp_path if seed % 2 else None) as nodes:
        for kind in ("Prepare", "Commit", "Learn"):
            nodes.net.fault(kind, "drop", when=lambda _: chance.random() < 0.05)
            nodes.net.fault(kind, "lose", when=lambda _: chance.random() < 0.05)
        background = [asyncio.create_task(eager(nodes, node)) for node in nodes]
        try:
            await asyncio.gather(*(client(nodes, paths[i::3]) for i in range(3)))
        finally:
            for task in background:
                task.cancel()
            ended = await asyncio.gather(*background, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended), ended
        nodes.net.heal()
        await nodes.settle()
        await nodes.resolve(rounds=2)
        for node in nodes:
            for _ in range(200):
                await node.puller.step()
        for path in paths:
            if path in unsure:
                continue
            for node in nodes:
                if heads[path] is None:
                    with pytest.raises(NotFound):
                        await look(node, path)
                else:
                    assert await get(node, path) == heads[path]


async def test_a_version_that_is_restored_between_the_look_and_the_round_stays():
    async with cluster() as nodes:
        path = nodes.path(2)
        slot = nodes.slot(path)
        for seed in range(3):
            await put(nodes[1], path, content(100, seed))
        await delete(nodes[1], path, version=2)
        await nodes.settle()
        nodes.clock.ahead_s += 8 * DAY_S
        worker = expirer_of(nodes, nodes[1], RetentionSection())
        await worker._look(slot, "")
        await restore(nodes[3], path, version=2)
        for history in worker._found:
            await worker._write(slot, history)
        assert await versions(nodes[2], path) == [3, 2], "the first goes, the second is wanted again"
