"""The nodes that the registry names at this moment."""

import pytest

from amberblob.errors import RegistryUnavailable
from registry.bootstrap import ClusterSettings, ensure_cluster, ensure_routes, register_node
from registry.memory import MemoryRegistry, MemoryStore
from registry.newest import newest_nodes
from registry.routes import NodeInfo
from registry.trust import RegistryRefused

SETTINGS = ClusterSettings(name="test", slot_count=4, replicas=1, chunk_bytes=8, bootstrap_nodes=("n1",))


def info(name: str) -> NodeInfo:
    return NodeInfo(
        node_id=name, disk_id=f"disk-{name}", zone="z", host="", http_address=f"{name}:1", peer_address=f"{name}:2",
        capacity_bytes=100, version="0", started_at_ms=0,
    )  # fmt: skip


async def test_they_are_read_anew_each_time():
    registry = MemoryRegistry(MemoryStore())
    cluster = await ensure_cluster(registry, SETTINGS, mint=lambda: "01CLUSTER", now_ms=0)
    await register_node(registry, cluster, info("n1"))
    table = await ensure_routes(registry, cluster, SETTINGS, timeout_s=5)
    assert await newest_nodes(registry, "test", lambda: table) == {"n1"}
    await register_node(registry, cluster, info("n2"))
    assert await newest_nodes(registry, "test", lambda: table) == {"n1", "n2"}, "whatever table was seen last"
    with pytest.raises(RegistryRefused):
        await newest_nodes(MemoryRegistry(MemoryStore()), "test", lambda: table)
    with pytest.raises(RegistryUnavailable):
        await newest_nodes(MemoryRegistry(MemoryStore()), "test", lambda: None)
