"""Bodies far larger than the memory that a node may use for them, and how much it uses at rest."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from blake3 import blake3

from tests.cluster.harness import MIB, Api, Cluster, object_url

pytestmark = pytest.mark.cluster

PIECE = os.urandom(4 * MIB)
PEAK_OVER_IDLE_MAX = 256 * MIB
IDLE_MAX = 100 * MIB


async def put_and_get(api: Api, cluster: Cluster, name: str, pieces: int) -> None:
    nodes = range(len(cluster.nodes))
    idle = [cluster.rss(node) for node in nodes]
    for node in nodes:
        cluster.reset_peak(node)
    digest = blake3()

    async def body() -> AsyncIterator[bytes]:
        for number in range(pieces):
            piece = number.to_bytes(8, "big") + PIECE[8:]
            digest.update(piece)
            yield piece

    size = pieces * len(PIECE)
    start = time.monotonic()
    put = await api.put(name, body(), node=0, timeout_s=3000)
    put_s = time.monotonic() - start
    assert put.json["size"] == size
    assert put.json["etag"] == digest.hexdigest()
    for node in (1, 2):
        start = time.monotonic()
        got = blake3()
        timeout = aiohttp.ClientTimeout(total=3000)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with session.get(cluster.endpoint(node) + object_url(name)) as response:
                assert response.status == 200
                async for piece in response.content.iter_any():
                    got.update(piece)
        assert got.digest() == digest.digest()
        print(f"GET {size // MIB} MiB through node {node}: {size / MIB / (time.monotonic() - start):.0f} MiB/s")
    print(f"PUT {size // MIB} MiB: {size / MIB / put_s:.0f} MiB/s")
    for node in nodes:
        peak = cluster.peak_rss(node)
        print(f"node {node}: idle {idle[node] // MIB} MiB, peak {peak // MIB} MiB")
        assert peak - idle[node] < PEAK_OVER_IDLE_MAX


async def test_memory_at_rest(cluster: Cluster) -> None:
    sizes = [cluster.rss(node) // MIB for node in range(3)]
    print(f"resident at rest: {sizes} MiB")
    assert max(sizes) < IDLE_MAX // MIB


async def test_300_mib_in_bounded_memory(api: Api, cluster: Cluster, name: str) -> None:
    await put_and_get(api, cluster, name, 75)


async def test_many_large_bodies_at_once_in_bounded_memory(api: Api, cluster: Cluster, name: str) -> None:
    idle = [cluster.rss(node) for node in range(3)]
    for node in range(3):
        cluster.reset_peak(node)
    data = PIECE * 4

    async def one(index: int) -> None:
        put = await api.put(f"{name}/{index}", data, node=index % 3, timeout_s=280)
        assert (await api.get(f"{name}/{index}", node=(index + 1) % 3, timeout_s=280)).etag == put.json["etag"]

    await asyncio.gather(*(one(index) for index in range(12)))
    for node in range(3):
        peak = cluster.peak_rss(node)
        print(f"node {node}: idle {idle[node] // MIB} MiB, peak {peak // MIB} MiB with 12 bodies of 16 MiB at once")
        assert peak - idle[node] < PEAK_OVER_IDLE_MAX


@pytest.mark.skipif("AMBERBLOB_TEST_HUGE" not in os.environ, reason="set AMBERBLOB_TEST_HUGE=1 for 4 GiB")
@pytest.mark.timeout(3600)
async def test_4_gib_in_bounded_memory(api: Api, cluster: Cluster, name: str) -> None:
    await put_and_get(api, cluster, name, 1024)
