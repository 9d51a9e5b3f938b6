"""A registry or a route cache of a format that this version does not know."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
import structlog

from amberblob.errors import ConfigError, NotReady, RegistryUnavailable
from registry.bootstrap import ClusterSettings, ensure_cluster
from registry.cache import load_cache, save_cache
from registry.formats import FORMAT_OF_MEMBERSHIP, raise_format
from registry.keys import Keys
from registry.memory import MemoryRegistry
from registry.routes import (
    FORMAT_VERSION,
    FORMAT_VERSION_OLDEST,
    ClusterInfo,
    NodeInfo,
    RouteTable,
    advance,
    decode,
    encode,
)
from tests.unit.registry.test_routes import info, table


def registered(node: str, version: int) -> NodeInfo:
    return msgspec.structs.replace(info(node), registry_format=version)


def of_format(version: int) -> RouteTable:
    made = table(1, 2)
    return msgspec.structs.replace(made, cluster=msgspec.structs.replace(made.cluster, format_version=version))


CASES = [(FORMAT_VERSION + 1, "Install the newer version"), (0, "Upgrade the cluster through the versions in between")]


@pytest.mark.parametrize(("version", "todo"), CASES)
async def test_a_node_does_not_start(version, todo):
    cluster = of_format(version).cluster
    registry = MemoryRegistry()
    await registry.compare_and_set(Keys(cluster.name).cluster, 0, encode(cluster))
    settings = ClusterSettings(name=cluster.name, slot_count=2, replicas=3, chunk_bytes=8, bootstrap_nodes=())
    with pytest.raises(
        ConfigError, match=f"format {version} in the registry; this version knows 1 to {FORMAT_VERSION}.*{todo}"
    ):
        await ensure_cluster(registry, settings, mint=lambda: "x", now_ms=1, known_cluster_id=cluster.cluster_id)
    await registry.close()


@pytest.mark.parametrize(("version", "todo"), CASES)
def test_a_node_that_runs_goes_on_with_its_routes(version, todo):
    for seen in (None, of_format(FORMAT_VERSION)):
        with pytest.raises(RegistryUnavailable, match=f"{todo}.*goes on with the routes"):
            advance(seen, of_format(version))


def test_a_route_cache_is_not_relied_on(tmp_path):
    path = tmp_path / "routes.json"
    save_cache(path, of_format(FORMAT_VERSION))
    assert load_cache(path) == of_format(FORMAT_VERSION)
    save_cache(path, of_format(FORMAT_VERSION + 1))
    with structlog.testing.capture_logs() as logs:
        assert load_cache(path) is None
    assert "Install the newer version" in logs[0]["error"]


async def cluster_of(*nodes: NodeInfo) -> tuple[MemoryRegistry, ClusterInfo]:
    registry = MemoryRegistry()
    settings = ClusterSettings(name="c", slot_count=2, replicas=3, chunk_bytes=8, bootstrap_nodes=())
    cluster = await ensure_cluster(registry, settings, mint=lambda: "x", now_ms=1, known_cluster_id=None)
    for node in nodes:
        await registry.compare_and_set(Keys("c").node(node.node_id), 0, encode(node))
    return registry, cluster


async def stored(registry: MemoryRegistry) -> int:
    entry = await registry.get(Keys("c").cluster)
    assert entry is not None
    return decode(entry.value, ClusterInfo, "").format_version


async def test_a_cluster_is_made_so_that_the_version_before_can_take_part():
    registry, cluster = await cluster_of()
    assert cluster.format_version == await stored(registry) == FORMAT_VERSION_OLDEST


async def test_the_format_is_raised_only_once_every_node_knows_it():
    registry, cluster = await cluster_of(registered("a", 2), registered("b", 1), info("c"))
    with pytest.raises(NotReady, match=r"^b, c: .*Upgrade") as caught:
        await raise_format(registry, "c", FORMAT_OF_MEMBERSHIP)
    assert (caught.value.code, caught.value.extra) == ("nodes-too-old", {"nodes": ["b", "c"]})
    assert await stored(registry) == 1
    raised = await raise_format(registry, "c", FORMAT_OF_MEMBERSHIP, leaving=["b", "c"])
    assert raised == msgspec.structs.replace(cluster, format_version=2)
    assert await stored(registry) == 2
    # It is asked again before each use: somebody may have started an older node meanwhile.
    with pytest.raises(NotReady):
        await raise_format(registry, "c", FORMAT_OF_MEMBERSHIP)
    assert await raise_format(registry, "c", 1) == raised, "never lowered"


async def test_two_raise_it_at_once():
    registry, cluster = await cluster_of(registered("a", 2))
    made = await asyncio.gather(*(raise_format(registry, "c", 2) for _ in range(8)))
    assert set(made) == {msgspec.structs.replace(cluster, format_version=2)}


async def test_without_a_cluster():
    with pytest.raises(RegistryUnavailable, match="no cluster 'c'"):
        await raise_format(MemoryRegistry(), "c", 2)


def test_a_node_of_the_version_before_tells_no_format():
    told = msgspec.json.decode(encode(info("a")))
    del told["registry_format"]
    assert decode(msgspec.json.encode(told), NodeInfo, "").registry_format == 1
