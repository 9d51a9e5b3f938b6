"""The nodes that the registry names at this moment."""

import pytest

from amberblob.errors import RegistryUnavailable
from registry.bootstrap import ClusterSettings, ensure_cluster, ensure_routes, register_node
from registry.memory import MemoryRegistry, MemoryStore
from registry.newest import newest_nodes
from registry.trust import RegistryRefused
from tests.unit.registry.kit import info

SETTINGS = ClusterSettings(name="test", slot_count=4, replicas=1, chunk_bytes=8, bootstrap_nodes=("n1",))


async def test_they_are_read_anew_each_time():
    registry = MemoryRegistry(MemoryStore())
    cluster = await ensure_cluster(registry, SETTINGS, mint=lambda: "01CLUSTER", now_ms=0)
    await register_node(registry, cluster, info("n1"))
    table = await ensure_routes(registry, cluster, SETTINGS, timeout_s=30)
    assert await newest_nodes(registry, "test", lambda: table) == {"n1"}
    await register_node(registry, cluster, info("n2"))
    assert await newest_nodes(registry, "test", lambda: table) == {"n1", "n2"}, "whatever table was seen last"
    with pytest.raises(RegistryRefused):
        await newest_nodes(MemoryRegistry(MemoryStore()), "test", lambda: table)
    with pytest.raises(RegistryUnavailable):
        await newest_nodes(MemoryRegistry(MemoryStore()), "test", lambda: None)
