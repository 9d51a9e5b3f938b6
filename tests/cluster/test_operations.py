"""What an operator relies on: one request in every log, and a registry that may be away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest

from tests.cluster.harness import Api, Cluster, api_of, until

pytestmark = pytest.mark.cluster


async def test_one_request_id_in_the_logs_of_several_nodes(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(log_level="debug")
    cluster.start_all()
    await cluster.wait_ready()
    async with api_of(cluster) as api:
        await api.put("traced", b"x" * 200_000, headers={"X-Amber-Request-Id": "trace-me-42"})

    def bearing() -> list[str]:
        return [
            node.name
            for index, node in enumerate(cluster.nodes)
            if any(line.get("request_id") == "trace-me-42" for line in cluster.log_lines(index))
        ]

    await until(lambda: len(bearing()) > 1, "more than one log has it")


async def test_logs_are_json_lines(api: Api, cluster: Cluster, name: str) -> None:
    await api.put(name, b"x", node=0, headers={"X-Amber-Request-Id": "in-the-log-1"})
    await until(lambda: "in-the-log-1" in cluster.log_text(0), "the request is logged")
    for index in range(3):
        text = cluster.log_text(index)
        for line in text.splitlines()[:-1]:
            event = json.loads(line)
            assert {"event", "level", "timestamp", "node"} <= event.keys()
        assert cluster.nodes[0].settings["cluster"]["secret"] not in text


async def test_the_registry_is_away(api: Api, cluster: Cluster, name: str) -> None:
    await api.put(f"{name}/before", b"before")
    await asyncio.to_thread(cluster.take_registry_away)
    try:

        async def noticed(node: int) -> bool:
            return (await api("GET", "/cluster", node=node)).json["registry"]["ok"] is False

        for node in range(3):
            await until(lambda node=node: noticed(node), "/cluster says that the registry is away")
        for index in range(30):
            await api.put(f"{name}/{index}", b"x" * (100 if index % 3 else 100_000))
            await api.get(f"{name}/{index}")
        assert len((await api.page(prefix=f"{name}/"))["objects"]) == 31
        for node in range(3):
            assert (await api("GET", "/readyz", node=node)).status == 200

        cluster.kill(1)
        cluster.start(1)
        await cluster.wait_ready()
        await until(lambda: noticed(1), "/cluster says so after the start, too")
        assert not cluster.registry.exists(), "a lost registry is not replaced by an empty one"
        for index in range(30):
            await api.get(f"{name}/{index}", node=1)
            await api.put(f"{name}/{index}", b"again", node=1)
    finally:
        cluster.bring_registry_back()

    async def found(node: int) -> bool:
        return (await api("GET", "/cluster", node=node)).json["registry"]["ok"] is True

    for node in range(3):
        await until(lambda node=node: found(node), "the registry is found again")
    await api.put(f"{name}/after", b"after")
