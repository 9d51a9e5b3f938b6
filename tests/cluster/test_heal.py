"""What the command line says of a cluster that heals, with real processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.cluster.commands import amberblob
from tests.cluster.harness import Cluster, api_of, until

pytestmark = pytest.mark.cluster

OBJECTS = 60


async def copies(cluster: Cluster) -> dict[str, Any]:
    """``heal`` of ``/cluster``, slot by slot."""
    status, out, err = await amberblob(cluster, "cluster", "slots", "--json")
    assert status == 0, err
    document: dict[str, Any] = json.loads(out)
    return document


async def test_a_node_that_was_away_is_healed_when_heal_says_so(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(slot_count=16)
    cluster.start_all()
    await cluster.wait_ready()
    async with api_of(cluster) as api:
        for index in range(OBJECTS):
            await api.put(f"o/{index}", b"before" * 100)
        cluster.kill(2)

        async def missed() -> bool:
            status, out, _ = await amberblob(cluster, "cluster", "status")
            return status == 1 and "start node-3 again" in out

        await until(missed, "status says what to do about the node that is away")
        for index in range(OBJECTS):
            body = bytes([index]) * (70_000 if index % 7 == 0 else 1000)
            await api.put(f"o/{index if index % 2 else index + OBJECTS}", body, node=index % 2)
        status, _, err = await amberblob(cluster, "cluster", "heal", "--wait", "--timeout", "2")
        assert status == 1 and "not healed within 2 s" in err

        async def degraded() -> bool:
            return {row["state"] for row in (await copies(cluster))["by_slot"]} == {"degraded"}

        await until(degraded, "each slot is said to lack a copy")

        cluster.start(2)
        await cluster.wait_ready()
        status, out, err = await amberblob(cluster, "cluster", "heal", "--wait", "--timeout", "150", node=1)
        assert (status, out) == (0, "healed: all 16 slots\n"), (out, err)
        for node in range(3):

            async def whole(node: int = node) -> dict[str, Any] | None:
                seen: dict[str, Any] = (await api("GET", "/cluster?slots=1", node=node)).json["heal"]
                return seen if seen["healed"] else None

            view = await until(whole, "each node comes to the same view")
            assert view["state"] == "whole" and view["bytes_waiting"] == 0
            for row in view["by_slot"]:
                assert len({copy["root"] for copy in row["copies"]}) == 1 and len(row["copies"]) == 3
            assert view["objects"] == OBJECTS + OBJECTS // 2
        for index in range(1, OBJECTS, 2):

            async def explained(index: int = index) -> dict[str, Any] | None:
                told: dict[str, Any] = (await api("GET", f"/objects/o/{index}?explain")).json
                return told if told["healthy"] else None

            told = await until(explained, "all copies tell that they are well")
            assert all(set(version["copies"].values()) == {"all"} for version in told["versions"])

        async def measured() -> bool:
            metrics = (await api("GET", "/metrics", node=2)).body.decode()
            return (
                '\namberblob_copies{state="complete"} 16.0\n' in metrics and "\namberblob_heal_bytes 0.0\n" in metrics
            )

        await until(measured, "the gauges say so, too")


async def test_status_of_a_whole_cluster(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster(slot_count=16)
    cluster.start_all()
    await cluster.wait_ready()

    async def well() -> bool:
        status, out, _ = await amberblob(cluster, "cluster", "status")
        return status == 0 and "healed: yes" in out and "what to do: nothing" in out and "compared: not" not in out

    await until(well, "all is well, and all copies were compared")
