"""GET /healthz, /readyz, /metrics, /cluster, /openapi.json; POST /cluster/heal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.harness import Api, Cluster, until

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("target", ["/healthz", "/readyz"])
async def test_health_and_readiness(api: Api, target: str) -> None:
    for node in api.nodes:

        async def well(node: int = node) -> bool:
            return (await api("GET", target, node=node)).status == 200

        await until(well, f"node {node} is well")
        head = await api("HEAD", target, node=node)
        assert (head.status, head.body) == (200, b"")


async def test_metrics(api: Api) -> None:
    await api.put("metrics/one", b"x")
    for node in api.nodes:
        answer = await api("GET", "/metrics", node=node)
        assert answer.headers["Content-Type"].startswith(("text/plain", "application/openmetrics-text"))
        lines = answer.body.decode().splitlines()
        assert any(line.startswith("# TYPE amberblob_") for line in lines)
        samples = {
            line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] not in ("#", "")
        }
        assert samples["amberblob_ready"] == 1
        assert samples["amberblob_disk_failed"] == 0


async def test_cluster(api: Api, shared_cluster: Cluster) -> None:
    for node in api.nodes:

        async def whole(node: int = node) -> dict[str, Any] | None:
            """On a busy machine a node may be taken for dead for a moment."""
            view: dict[str, Any] = (await api("GET", "/cluster", node=node)).json
            return view if all(entry["reachable"] for entry in view["nodes"]) else None

        view = await until(whole, "every node is reached")
        assert len({entry["node"] for entry in view["nodes"]}) == 3
        assert {entry["http"] for entry in view["nodes"]} == {
            url.removeprefix("http://") for url in shared_cluster.endpoints
        }
        assert all(entry["reachable"] and entry["zone"] and entry["disk"]["id"] for entry in view["nodes"])
        assert view["slots"]["total"] == shared_cluster.slot_count
        assert view["slots"]["degraded"] == view["slots"]["unavailable"] == 0
        assert view["zones"] == ["default"]
        assert view["epoch"] >= 1
        assert view["registry"]["ok"] is True
        assert view["self"]["ready"] is True

        async def healed(node: int = node) -> bool:
            return (await api("GET", "/cluster", node=node)).json["heal"]["bytes_waiting"] == 0

        await until(healed, "nothing waits to be healed")


async def test_healing_is_asked_for_and_seen(api: Api, shared_cluster: Cluster) -> None:
    await api.put("heal/one", b"x" * 100_000)
    for node in api.nodes:

        async def all_asked(node: int = node) -> dict[str, Any] | None:
            """Who is not reached in a few seconds is named as silent, and on a busy machine that may be anybody."""
            answer = await api("POST", "/cluster/heal", node=node)
            assert answer.status == 202
            told: dict[str, Any] = answer.json
            assert sorted(told["nodes"] + told["silent_nodes"]) == sorted(one.name for one in shared_cluster.nodes)
            return None if told["silent_nodes"] else told

        since = (await until(all_asked, "every node is asked"))["since"]

        async def healed(node: int = node, since: str = since) -> bool:
            answer = await api("GET", f"/cluster?slots=unhealed&since={since}", node=node)
            heal = answer.json["heal"]
            assert heal["since"] == since and sum(heal["slots"].values()) == shared_cluster.slot_count
            return bool(heal["healed"] and heal["slots_to_compare"] == 0 and heal["by_slot"] == [])

        await until(healed, "every slot is whole, and was compared since")

        async def told(node: int = node) -> dict[str, Any] | None:
            """Whoever does not answer at once is not told of."""
            heal: dict[str, Any] = (await api("GET", "/cluster?slots=1", node=node)).json["heal"]
            return heal if heal["healed"] else None

        view = await until(told, "every copy is told of")
        assert [row["slot"] for row in view["by_slot"]] == list(range(shared_cluster.slot_count))
        for row in view["by_slot"]:
            assert row["present"] == row["target"] == len(row["copies"]) == 3
            assert len({copy["root"] for copy in row["copies"]}) == 1
        assert view["last_full_compare"] is not None and view["objects"] >= 1
        assert (await api("GET", "/cluster?slots=all", node=node)).status == 400


async def test_every_documented_request_answers_as_documented(api: Api) -> None:
    document = (await api("GET", "/openapi.json")).json
    assert document["openapi"].startswith("3.")
    assert document["paths"].keys() >= {
        "/objects/{path}",
        "/objects",
        "/healthz",
        "/readyz",
        "/metrics",
        "/cluster",
        "/cluster/heal",
        "/cluster/membership",
        "/openapi.json",
    }
    assert "$ref" not in json.dumps(document["paths"].get("/objects", {})) or document["components"]
    tried = 0
    for target, item in document["paths"].items():
        if "$ref" in item:
            # The reference is a JSON pointer into this document.
            where = document
            for part in item["$ref"].removeprefix("#/").split("/"):
                where = where[part.replace("~1", "/").replace("~0", "~")]
            item = where
        methods = [method for method in ("put", "get", "head", "delete", "post") if method in item]
        for method in methods:
            query = "?restore" if method == "post" else ""
            data = b"x" if method == "put" else None
            if target == "/cluster/membership":
                data = b'{"action": "join", "nodes": ["node-1"], "dry_run": true}'
            answer = await api(method.upper(), target.replace("{path}", "openapi/documented") + query, data=data)
            assert str(answer.status) in item[method]["responses"], (target, method, answer)
            if target.startswith("/archive"):
                assert answer.json["type"] in ("no-archive", "bad-parameter"), (
                    "this cluster has none, and no job is called so"
                )
            else:
                assert answer.status < 300
            tried += 1
    assert tried >= 21
