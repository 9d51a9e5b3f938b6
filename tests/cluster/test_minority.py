"""One of three nodes is dead, or stands still: nobody notices."""

from __future__ import annotations

import random
import time

import pytest

from amberblob import AsyncClient
from tests.cluster.harness import DEADLINE_S, KIB, Api, Cluster, content, etag_of

pytestmark = pytest.mark.cluster


async def mixed_operations(api: Api, name: str, count: int) -> dict[str, bytes | None]:
    """Puts, gets, deletes, restores and lists, each answer checked; what must be there in the end."""
    chance = random.Random(name)
    model: dict[str, bytes | None] = {}
    slowest_s = 0.0
    for index in range(count):
        path = f"{name}/{chance.randrange(25):02}"
        known = model.get(path)
        operation = chance.choice(["put", "put", "get", "delete", "list", "head", "create"])
        start = time.monotonic()
        match operation:
            case "put":
                model[path] = content(f"{name}{index}", chance.choice([10, 30 * KIB, 200 * KIB]))
                await api.put(path, model[path])
            case "create":
                expect = 412 if known is not None else 201
                await api.put(path, b"created", headers={"If-None-Match": "*"}, expect=expect)
                model[path] = known if known is not None else b"created"
            case "get":
                answer = await api.get(path, expect=404 if known is None else 200)
                assert known is None or answer.body == known
            case "head":
                answer = await api.head(path, expect=404 if known is None else 200)
                assert known is None or answer.etag == etag_of(known)
            case "delete":
                await api.delete(path, expect=404 if known is None else 204)
                model[path] = None
            case "list":
                objects, _, _ = await api.list_all(prefix=f"{name}/", limit=7)
                assert [entry["path"] for entry in objects] == sorted(
                    key for key, body in model.items() if body is not None
                )
        took_s = time.monotonic() - start
        if took_s > 1:
            print(f"{operation} of {path} took {took_s:.2f} s, {index} operations in")
        slowest_s = max(slowest_s, took_s)
    print(f"slowest of {count} operations: {slowest_s:.3f} s")
    return model


async def check(api: Api, model: dict[str, bytes | None], node: int) -> None:
    for path, body in model.items():
        answer = await api.get(path, node=node, expect=404 if body is None else 200)
        assert body is None or answer.body == body


@pytest.mark.parametrize("dead", [0, 1, 2])
async def test_one_dead(api: Api, cluster: Cluster, name: str, dead: int) -> None:
    before = await mixed_operations(api, f"{name}/before", 30)
    cluster.kill(dead)
    api.nodes = [node for node in range(3) if node != dead]
    model = await mixed_operations(api, f"{name}/during", 200)
    for node in api.nodes:
        await check(api, model | before, node)
    cluster.start(dead)
    await cluster.wait_ready(dead)
    await check(api, model | before, dead)
    api.nodes = [dead]
    await mixed_operations(api, f"{name}/after", 50)


@pytest.mark.parametrize("dead", [0, 2])
async def test_one_dead_through_the_client_library(cluster: Cluster, name: str, dead: int) -> None:
    async with AsyncClient(cluster.endpoints, timeout_s=2 * DEADLINE_S) as client:
        await client.put(f"{name}/before", b"before")
        cluster.kill(dead)
        assert await client.get_bytes(f"{name}/before") == b"before"
        for index in range(60):
            path = f"{name}/{index:02}"
            data = content(path, 100 if index % 3 else 200 * KIB)
            info = await client.put(path, data)
            assert info.version == 1
            assert await client.get_bytes(path) == data
            if index % 4 == 0:
                await client.delete(path)
            elif index % 4 == 1:
                assert (await client.head(path)).etag == etag_of(data)
        paths = [info.path async for page in client.list(f"{name}/", page_size=10) for info in page.objects]
        assert len(paths) == 46
    cluster.start(dead)
    await cluster.wait_ready(dead)
    async with AsyncClient([cluster.endpoint(dead)], timeout_s=2 * DEADLINE_S) as client:
        for index in range(60):
            if index % 4:
                path = f"{name}/{index:02}"
                assert await client.get_bytes(path) == content(path, 100 if index % 3 else 200 * KIB)


@pytest.mark.parametrize("still", [0, 2])
async def test_one_stands_still(api: Api, cluster: Cluster, name: str, still: int) -> None:
    before = await mixed_operations(api, f"{name}/before", 30)
    cluster.pause(still)
    api.nodes = [node for node in range(3) if node != still]
    model = await mixed_operations(api, f"{name}/during", 60)
    for node in api.nodes:
        await check(api, model | before, node)
    cluster.resume(still)
    await cluster.wait_ready()
    await check(api, model | before, still)
    api.nodes = [0, 1, 2]
    await mixed_operations(api, f"{name}/after", 50)


async def test_a_large_body_while_one_stands_still(api: Api, cluster: Cluster, name: str) -> None:
    data = content(name, 40 * 1024 * KIB)
    cluster.pause(1)
    api.nodes = [0, 2]
    start = time.monotonic()
    await api.put(name, data, node=0)
    print(f"40 MiB while a node stands still: {time.monotonic() - start:.2f} s")
    assert (await api.get(name, node=2)).etag == etag_of(data)
    cluster.resume(1)
    await cluster.wait_ready()
    assert (await api.get(name, node=1)).body == data
