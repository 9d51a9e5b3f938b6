"""Whole nodes on etcd and on Redis: the registry is restarted, goes away, comes back with other data; reads and writes go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.cluster.harness import Api, Cluster, api_of, until
from tests.contract.registry.servers import EtcdServer, RedisServer, Server

pytestmark = pytest.mark.cluster

PASSWORD = "the-password-of-the-registry"


@pytest.fixture(params=["etcd", "redis"])
def server(request, tmp_path: Path):
    folder = tmp_path / "server"
    server: Server = EtcdServer(folder) if request.param == "etcd" else RedisServer(folder, password=PASSWORD)
    server.start()
    yield server
    server.close()


async def everywhere(api: Api, *, ok: bool, refused: bool = False) -> None:
    """Until every node says so of the registry, and ``/readyz`` warns of it; and they serve all the same."""

    async def said(node: int) -> bool:
        registry = (await api("GET", "/cluster", node=node)).json["registry"]
        ready = await api("GET", "/readyz", node=node)
        assert ready.status == 200, ready
        warning = ready.json.get("warning", "")
        wanted = "" if ok else "refused" if refused else "away"
        return (registry["ok"], registry["refused"]) == (ok, refused) and wanted in warning and bool(warning) != ok

    for node in api.nodes:
        await until(lambda node=node: said(node), f"node {node} says ok={ok} refused={refused}")


async def serves(api: Api, name: str) -> None:
    """Every node takes a write, and gives what was written by every other."""
    for node in api.nodes:
        await api.put(f"{name}/{node}", f"{name} {node}".encode(), node=node)
    for node in api.nodes:
        for writer in api.nodes:
            assert (await api.get(f"{name}/{writer}", node=node)).body == f"{name} {writer}".encode()


async def restart(cluster: Cluster, index: int) -> None:
    await asyncio.to_thread(cluster.stop, index)
    cluster.start(index)
    await cluster.wait_ready()


async def test_nodes_outlive_their_registry(server: Server, make_cluster) -> None:
    cluster: Cluster = make_cluster(registry_url=server.url, slot_count=16)
    cluster.start_all()
    await cluster.wait_ready()
    async with api_of(cluster) as api:
        await everywhere(api, ok=True)
        await serves(api, "with")

        await asyncio.to_thread(server.restart)
        await serves(api, "restarted")
        await everywhere(api, ok=True)

        server.stop()
        await everywhere(api, ok=False)
        await serves(api, "without")
        await restart(cluster, 0)  # begins with the routes that it kept
        await serves(api, "without and restarted")
        assert (await api.get("with/1", node=0)).body == b"with 1"

        await asyncio.to_thread(server.start)
        await everywhere(api, ok=True)

        await asyncio.to_thread(server.empty)
        await everywhere(api, ok=False, refused=True)
        await restart(cluster, 1)
        await everywhere(api, ok=False, refused=True)
        await serves(api, "empty")
        assert server.count() == 0, "something was written into a registry that is refused"

        await asyncio.to_thread(server.set_back)
        await everywhere(api, ok=True)
        await serves(api, "at last")
        told = str([(await api("GET", "/cluster", node=node)).json for node in api.nodes])
    assert PASSWORD not in told
    for index in range(len(cluster.nodes)):
        assert PASSWORD not in cluster.log_text(index)
        assert "registry refused, going on with the last routes" in cluster.log_text(index)
