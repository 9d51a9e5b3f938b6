"""What a node refuses: broken configuration, disks of others, peers without the secret."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import Callable

import aiohttp
import pytest

from tests.cluster.harness import HOST, Api, Cluster, api_of, free_ports, run_serve, until

pytestmark = pytest.mark.cluster

MakeCluster = Callable[..., Cluster]


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("http", "listen", "nonsense"),
        ("cluster", "replicas", 99),
        ("cluster", "write_quorum", 1),
        ("cluster", "secret", "short"),
        ("cluster", "registry", "nowhere"),
        ("cluster", "slot_count", 100),
        ("log", "level", "loud"),
        ("node", "colour", "amber"),
        ("storage", "reserve", "much"),
    ],
)
def test_a_configuration_that_cannot_be(make_cluster: MakeCluster, section: str, key: str, value: object) -> None:
    node = make_cluster(nodes=3).nodes[0]
    node.settings[section][key] = value
    node.write_config()
    status, output = run_serve(node.config)
    assert status in (1, 2)
    assert "Traceback" not in output
    assert str(node.config) in output
    assert key in output
    assert not node.disk.exists() or not list(node.disk.iterdir())


@pytest.mark.parametrize("text", ["[node", "\x00\x01\x02", "node = 3", "", "[nodes]\nid='a'"])
def test_a_configuration_file_that_is_garbage(make_cluster: MakeCluster, text: str) -> None:
    node = make_cluster(nodes=1).nodes[0]
    node.config.write_text(text)
    status, output = run_serve(node.config)
    assert status in (1, 2)
    assert str(node.config) in output
    assert "Traceback" not in output


async def test_the_disk_of_another_cluster(make_cluster: MakeCluster) -> None:
    ours, theirs = make_cluster(nodes=1), make_cluster(nodes=1)
    for cluster in (ours, theirs):
        cluster.start(0)
    for cluster in (ours, theirs):
        await cluster.wait_ready()
        assert cluster.stop(0) == 0
    before = (theirs.nodes[0].disk / "disk.toml").read_bytes()
    ours.nodes[0].settings["node"]["disk"] = str(theirs.nodes[0].disk)
    ours.nodes[0].write_config()
    status, output = run_serve(ours.nodes[0].config)
    assert status == 1
    assert "Traceback" not in output
    assert "cluster" in output and str(theirs.nodes[0].disk) in output
    assert (theirs.nodes[0].disk / "disk.toml").read_bytes() == before
    theirs.start(0)
    await theirs.wait_ready()


async def test_the_disk_of_another_node(make_cluster: MakeCluster) -> None:
    cluster = make_cluster()
    cluster.start_all()
    await cluster.wait_ready()
    for index in range(3):
        assert cluster.stop(index) == 0
    cluster.nodes[0].settings["node"]["disk"] = str(cluster.nodes[1].disk)
    cluster.nodes[0].write_config()
    status, output = run_serve(cluster.nodes[0].config)
    assert status == 1
    assert "Traceback" not in output
    assert "node-2" in output


async def test_a_disk_in_use(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=1)
    cluster.start(0)
    await cluster.wait_ready()
    node = cluster.nodes[0]
    original = node.config.read_text()
    http, peer = free_ports(2)
    second = node.folder / "second.toml"
    second.write_text(original.replace(f":{node.http_port}", f":{http}").replace(f":{node.peer_port}", f":{peer}"))
    status, output = run_serve(second)
    assert status == 1
    assert "Traceback" not in output
    assert str(node.disk) in output
    async with api_of(cluster) as api:
        await api.put("x", b"x")


async def test_a_port_in_use(make_cluster: MakeCluster) -> None:
    cluster = make_cluster(nodes=1)
    node = cluster.nodes[0]
    for section, port in (("http", node.http_port), ("peer", node.peer_port)):
        server = await asyncio.start_server(lambda *_: None, HOST, port)
        async with server:
            status, output = await asyncio.to_thread(run_serve, node.config)
        assert status == 1
        assert "Traceback" not in output
        assert str(port) in output, section
    cluster.start(0)
    await cluster.wait_ready()


async def test_a_node_with_another_secret_does_not_join(api: Api, cluster: Cluster, name: str) -> None:
    await api.put(f"{name}/before", b"before")
    cluster.stop(2)
    node = cluster.nodes[2]
    node.settings["cluster"]["secret"] = "another-secret-altogether"
    node.write_config()
    mark = [len(cluster.log_text(index)) for index in range(3)]
    cluster.start(2)
    try:
        await until(
            lambda: any(
                re.search("secret|refus", line) and '"level":"' in line
                for index in range(3)
                for line in cluster.log_text(index)[mark[index] :].splitlines()
            ),
            "a log says that a peer was refused",
        )

        async def answers() -> bool:
            try:
                return (await api("GET", "/readyz", node=2)).status == 503
            except (aiohttp.ClientError, OSError):
                return False

        await until(answers, "it is up, and not ready")
        for index in range(10):
            put = await api("PUT", f"/objects/{name}/foreign-{index}", node=2, data=b"x")
            assert put.status == 503, put
            assert (await api("GET", f"/objects/{name}/before", node=2)).status == 503
            await api.put(f"{name}/{index}", b"y", node=index % 2)
        for index in (0, 1):

            async def two_are_reachable(index: int = index) -> bool:
                view = (await api("GET", "/cluster", node=index)).json
                reachable = [entry["node"] for entry in view["nodes"] if entry["reachable"]]
                assert "node-3" not in reachable, view
                return reachable == ["node-1", "node-2"]

            await until(two_are_reachable, "the two reach each other")
            for number in range(10):
                await api.get(f"{name}/foreign-{number}", node=index, expect=404)
        assert (await api("GET", "/readyz", node=2)).status == 503
    finally:
        cluster.kill(2)
        node.settings["cluster"]["secret"] = cluster.nodes[0].settings["cluster"]["secret"]
        node.write_config()
    await cluster.heal()
    for index in range(10):
        assert (await api.get(f"{name}/{index}", node=2)).body == b"y"


async def test_garbage_on_the_peer_port(api: Api, cluster: Cluster, name: str) -> None:
    rss = cluster.rss(0)
    for garbage in (
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(1000),
        b"\xff" * 100_000,
        os.urandom(100_000),
        b"\x16\x03\x01" + os.urandom(300),
        (2**31).to_bytes(4, "big") + b"x" * 1000,
        b"\x00",
    ):
        reader, writer = await asyncio.open_connection(HOST, cluster.nodes[0].peer_port)
        try:
            writer.write(garbage)
            with contextlib.suppress(OSError):  # not connected: it has closed with a reset already
                writer.write_eof()
            start = time.monotonic()
            async with asyncio.timeout(60):
                answer = await reader.read()
            assert len(answer) < 10_000
            assert b"HTTP" not in answer
            print(f"closed after {time.monotonic() - start:.2f} s")
        except ConnectionError:
            pass  # closed before all was sent
        finally:
            writer.close()
    # Many that say nothing at all keep nobody out.
    silent = [await asyncio.open_connection(HOST, cluster.nodes[0].peer_port) for _ in range(200)]
    try:
        await api.put(name, b"x" * 200_000)
        cluster.kill(1)
        cluster.start(1)
        await cluster.wait_ready()
        for node in range(3):
            await api.get(name, node=node)
        assert cluster.rss(0) - rss < 50 * 1024 * 1024
    finally:
        for _, writer in silent:
            writer.close()
