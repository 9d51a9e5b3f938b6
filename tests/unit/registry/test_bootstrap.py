import asyncio
import multiprocessing
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from amberblob.clock import HybridClock, SystemClock, SystemRandomness
from amberblob.errors import ConfigError, NotReady, RegistryUnavailable
from amberblob.ids import UlidMint, valid_ulid
from registry.bootstrap import Arrival, ClusterSettings, ensure_cluster, ensure_routes, register_node
from registry.embedded import EmbeddedRegistry
from registry.interface import Registry, put
from registry.keys import Keys
from registry.memory import MemoryRegistry, MemoryStore
from registry.routes import Liveness, Membership, NodeState, RouteTable, encode
from tests.unit.registry.kit import info

NODES = ("n1", "n2", "n3", "n4")
KEYS = Keys("test")


def settings(**changes) -> ClusterSettings:
    fields = {"name": "test", "slot_count": 256, "replicas": 3, "chunk_bytes": 8 << 20, "bootstrap_nodes": NODES}
    return ClusterSettings(**{**fields, **changes})


async def cluster_of(registry: Registry, **changes):
    mint = UlidMint(HybridClock(SystemClock().wall_ms), SystemRandomness()).mint
    known = changes.pop("known_cluster_id", None)
    return await ensure_cluster(registry, settings(**changes), mint=mint, now_ms=1, known_cluster_id=known)


async def start(registry: Registry, name: str) -> RouteTable:
    cluster = await cluster_of(registry)
    await register_node(registry, cluster, info(name))
    return await ensure_routes(registry, cluster, settings(), timeout_s=60)


def memory(count: int) -> list[Registry]:
    store = MemoryStore()
    return [MemoryRegistry(store) for _ in range(count)]


async def test_nodes_that_start_together_agree():
    registries = memory(4)
    tables = await asyncio.gather(*(start(r, name) for r, name in zip(registries, NODES, strict=True)))
    assert all(table == tables[0] for table in tables)
    assert valid_ulid(tables[0].cluster.cluster_id)
    assert set(tables[0].nodes) == set(NODES)
    assert set(tables[0].epochs()) == {1}
    assert {member.node for route in tables[0].routes for member in route.voters} == set(NODES)


async def test_the_last_node_is_waited_for():
    registries = memory(4)
    waiting = [asyncio.create_task(start(registries[i], NODES[i])) for i in range(3)]
    while len((await registries[3].range(KEYS.nodes)).entries) < 3:
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    assert await registries[3].get(KEYS.plan) is None
    table = await start(registries[3], NODES[3])
    assert await asyncio.gather(*waiting) == [table] * 3


async def test_who_is_missing_is_told():
    (registry,) = memory(1)
    cluster = await cluster_of(registry)
    await register_node(registry, cluster, info("n2"))
    with pytest.raises(NotReady, match="the registration of n1, n3, n4"):
        await ensure_routes(registry, cluster, settings(), timeout_s=0.05)
    with pytest.raises(NotReady, match="bootstrap_nodes is empty"):
        await ensure_routes(registry, cluster, settings(bootstrap_nodes=()), timeout_s=0.05)


async def test_one_machine_is_a_cluster_with_one_copy():
    (registry,) = memory(1)
    cluster = await cluster_of(registry)
    await register_node(registry, cluster, info("n1"))
    with capture_logs() as logs:
        table = await ensure_routes(registry, cluster, settings(bootstrap_nodes=("n1",)), timeout_s=30)
    assert all(route.voter_nodes == ("n1",) for route in table.routes)
    assert [log["replicas"] for log in logs if "FEWER NODES" in log["event"]] == [3]
    assert table.state_of("n1") is NodeState.ACTIVE


async def test_a_node_that_comes_later_is_a_spare_that_knows_the_routes():
    (registry,) = memory(1)
    cluster = await cluster_of(registry)
    await register_node(registry, cluster, info("n1"))
    first = await ensure_routes(registry, cluster, settings(bootstrap_nodes=("n1",)), timeout_s=30)
    await register_node(registry, cluster, info("n2"))
    table = await ensure_routes(registry, cluster, settings(bootstrap_nodes=()), timeout_s=30)
    assert table.routes == first.routes
    assert set(table.nodes) == {"n1", "n2"}
    assert table.state_of("n2") is None


async def test_a_removed_node_is_refused():
    (registry,) = memory(1)
    cluster = await cluster_of(registry)
    await register_node(registry, cluster, info("n1"))
    states = {"n1": NodeState.REMOVED, "n2": NodeState.DRAINING}
    await put(registry, KEYS.membership, encode(Membership(generation=1, nodes=states)))
    before = (await registry.range("")).revision
    for disk in ("", "another"):
        with pytest.raises(ConfigError, match="'n1': this node was removed"):
            await register_node(registry, cluster, info("n1", disk))
    assert (await registry.range("")).revision == before
    assert (await register_node(registry, cluster, info("n2"))).arrival is Arrival.NEW


class Dies(Exception):
    """The node dies here."""


class DyingRegistry(MemoryRegistry):
    """Dies after some transactions."""

    left = 0

    async def transact(self, operations):
        if self.left == 0:
            raise Dies
        self.left -= 1
        return await super().transact(operations)


@pytest.mark.parametrize("survives", range(8))
async def test_a_node_may_die_anywhere_and_another_finishes(survives):
    store = MemoryStore()
    dying, other = DyingRegistry(store), MemoryRegistry(store)
    for name in NODES[1:]:
        await register_node(other, await cluster_of(other), info(name))
    dying.left = survives
    try:
        await start(dying, "n1")
    except Dies:
        dying.left = 100
    table = await start(other, "n1")
    assert table == await start(dying, "n1")


async def test_later_starts_only_read():
    registries = memory(4)
    tables = await asyncio.gather(*(start(r, name) for r, name in zip(registries, NODES, strict=True)))
    revision = (await registries[0].range("")).revision
    assert await start(registries[0], "n1") == tables[0]
    assert (await registries[0].range("")).revision == revision


async def test_another_disk_is_told_and_changes_no_route():
    registries = memory(4)
    tables = await asyncio.gather(*(start(r, name) for r, name in zip(registries, NODES, strict=True)))
    cluster = tables[0].cluster
    registration = await register_node(registries[0], cluster, info("n1", "new-disk"))
    assert registration.arrival is Arrival.NEW_DISK
    assert registration.previous == info("n1")
    assert "had disk disk-n1 and now has disk new-disk" in str(registration)
    table = await ensure_routes(registries[0], cluster, settings(), timeout_s=30)
    assert table.routes == tables[0].routes
    slot = table.slots_of("n1")[0]
    assert not table.votes(slot, "n1")
    assert (await register_node(registries[0], cluster, info("n1", "new-disk"))).arrival is Arrival.KNOWN


async def test_a_node_that_the_registry_does_not_know_is_told_so_before_it_does():
    (registry,) = memory(1)
    cluster = await cluster_of(registry)
    known: list[bool] = []

    async def arriving() -> None:
        known.append(await registry.get(KEYS.node("n1")) is not None)

    for _ in range(2):
        await register_node(registry, cluster, info("n1"), arriving=arriving)
    await register_node(registry, cluster, info("n1", "new-disk"), arriving=arriving)
    assert known == [False]


async def test_an_id_in_use_is_refused_until_its_lease_ends():
    (registry,) = memory(1)
    cluster = await cluster_of(registry)
    assert (await register_node(registry, cluster, info("n1"))).arrival is Arrival.NEW
    lease = await registry.lease(1000)
    alive = encode(Liveness(disk_id="disk-n1", started_at_ms=0))
    await put(registry, KEYS.alive_node("n1"), alive, lease_id=lease.id)
    with pytest.raises(ConfigError, match="another node with this id"):
        await register_node(registry, cluster, info("n1", "other"), takeover_timeout_s=0.05)
    assert (await register_node(registry, cluster, info("n1"))).arrival is Arrival.KNOWN
    task = asyncio.create_task(register_node(registry, cluster, info("n1", "other"), takeover_timeout_s=60))
    await asyncio.sleep(0)
    await lease.revoke()
    assert (await task).arrival is Arrival.NEW_DISK


async def test_the_cluster_is_made_once():
    registries = memory(8)
    clusters = await asyncio.gather(*(cluster_of(registry) for registry in registries))
    assert len({cluster.cluster_id for cluster in clusters}) == 1
    with pytest.raises(ConfigError, match=r"slot_count = 512: .* made with 256"):
        await cluster_of(registries[0], slot_count=512)
    with pytest.raises(ConfigError, match=r"replicas = 5: .* made with 3"):
        await cluster_of(registries[0], replicas=5)
    assert (await cluster_of(registries[0], name="another")).cluster_id != clusters[0].cluster_id


async def test_a_registry_that_lost_its_cluster_is_not_begun_anew():
    (registry,) = memory(1)
    with pytest.raises(RegistryUnavailable, match="this disk belongs to cluster 01"):
        await cluster_of(registry, known_cluster_id="01")
    assert (await registry.range("")).revision == 0


def _run_node(path: str, name: str, results) -> None:
    async def run() -> None:
        registry = EmbeddedRegistry(path, poll_s=0.02)
        try:
            results.put((name, encode(await start(registry, name))))
        finally:
            await registry.close()

    asyncio.run(run())


def test_processes_that_start_together_agree(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    path = str(tmp_path / "registry.sqlite3")
    processes = [context.Process(target=_run_node, args=(path, name, results)) for name in NODES]
    for process in processes:
        process.start()
    tables = dict(results.get(timeout=200) for _ in NODES)
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert set(tables) == set(NODES)
    assert len(set(tables.values())) == 1
