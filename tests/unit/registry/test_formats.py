"""A registry or a route cache of a format that this version does not know."""

from __future__ import annotations

import msgspec
import pytest
import structlog

from amberblob.errors import ConfigError, RegistryUnavailable
from registry.bootstrap import ClusterSettings, ensure_cluster
from registry.cache import load_cache, save_cache
from registry.keys import Keys
from registry.memory import MemoryRegistry
from registry.routes import FORMAT_VERSION, RouteTable, advance, encode
from tests.unit.registry.test_routes import table


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
        ConfigError, match=f"format {version} in the registry; this version knows {FORMAT_VERSION}.*{todo}"
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
