"""SIGTERM: what is under way is finished."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import aiohttp
import pytest

from tests.cluster.harness import HOST, KIB, Api, Cluster, content, object_url, read_answer, until
from tests.cluster.workload import Stream, verify

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def module_cluster() -> Iterator[Cluster]:
    """Nodes that wait for what is under way for as long as this machine may need for it."""
    cluster = Cluster(limits={"shutdown_timeout_s": 60})
    try:
        yield cluster
    finally:
        cluster.close()


def listens(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        return probe.connect_ex((HOST, port)) == 0


@pytest.mark.parametrize("size", [100, 20 * 1024 * KIB])
@pytest.mark.parametrize("node", [0, 2])
async def test_a_slow_put_is_finished(api: Api, cluster: Cluster, name: str, size: int, node: int) -> None:
    data = content(name, size)
    reader, writer = await asyncio.open_connection(HOST, cluster.nodes[node].http_port)
    head = f"PUT {object_url(name)} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"
    writer.write(head.encode() + data[: size // 2])
    await writer.drain()
    if size > 64 * KIB:
        await until(cluster.staged, "the upload is under way")
    else:
        # The connection is served in order of arrival: an answer on a later one means that ours was accepted.
        await api("GET", "/healthz", node=node)
    cluster.terminate(node)
    await until(lambda: not listens(cluster.nodes[node].http_port), "the port is closed")
    writer.write(data[size // 2 :])
    answer = await read_answer(reader)
    assert answer is not None
    assert answer.status == 201, answer
    writer.close()
    process = cluster.nodes[node].process
    assert process is not None
    assert process.wait(90) == 0
    api.nodes = [other for other in range(3) if other != node]
    assert (await api.get(name)).body == data
    await cluster.heal()
    assert (await api.get(name, node=node)).body == data


async def test_a_slow_get_is_finished(api: Api, cluster: Cluster, name: str) -> None:
    data = content(name, 30 * 1024 * KIB)
    await api.put(name, data)
    async with aiohttp.ClientSession(read_bufsize=1024) as session:
        async with session.get(cluster.endpoint(1) + object_url(name)) as response:
            got = bytearray(await response.content.readexactly(100_000))
            cluster.terminate(1)
            await until(lambda: not listens(cluster.nodes[1].http_port), "the port is closed")
            got += await response.content.read()
    assert got == data
    process = cluster.nodes[1].process
    assert process is not None
    assert process.wait(90) == 0


async def test_rolling_restart_under_writes(api: Api, cluster: Cluster, name: str) -> None:
    stream = Stream(api, name)
    stream.begin(rivals=0, large=0)
    for node in range(3):
        so_far = len(stream.acknowledged)
        await until(lambda so_far=so_far: len(stream.acknowledged) > so_far + 20, "writes are acknowledged")
        assert await asyncio.to_thread(cluster.stop, node, timeout_s=90) == 0
        so_far = len(stream.acknowledged)
        await until(lambda so_far=so_far: len(stream.acknowledged) > so_far + 20, "writes go on")
        cluster.start(node)
        await cluster.wait_ready(node)
    await stream.end()
    counts = await verify(api, cluster, stream.writes)
    print(counts, {status: stream.statuses.count(status) for status in set(stream.statuses)})
    assert 504 not in stream.statuses, "a clean stop leaves no outcome unknown"
    for index in range(3):
        assert "Traceback" not in cluster.log_text(index)


async def test_the_request_under_way_when_all_stop(api: Api, cluster: Cluster, name: str) -> None:
    stream = Stream(api, name)
    stream.begin(large=0)
    await until(lambda: len(stream.acknowledged) > 30, "writes are acknowledged")
    for node in range(3):
        cluster.terminate(node)
    for stopped in cluster.nodes:
        assert stopped.process is not None
        assert await asyncio.to_thread(stopped.process.wait, 90) == 0
    ending = asyncio.create_task(stream.end())
    await cluster.heal()
    await ending
    await verify(api, cluster, stream.writes)
