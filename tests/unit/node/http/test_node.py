"""What the node says of itself, and how it stops."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from structlog.testing import capture_logs

from amberblob.metrics import SECONDS_BUCKETS, Metrics
from node.http import HttpServer, build_app
from node.http.openapi import document
from node.http.problem import unparsable
from node.http.routes import ROUTES
from tests.unit.node.http.conftest import World, serving
from tests.unit.node.http.fake_service import FakeService, FakeStatus, until


async def test_health_and_readiness(world: World) -> None:
    assert (await world.ask("GET", "/healthz")).body == b'{"status":"ok"}'
    assert (await world.ask("GET", "/readyz")).status == 200
    world.status.reason = "2 of 3 slots have no routes yet"
    answer = await world.ask("GET", "/readyz")
    assert (answer.status, answer.problem["type"]) == (503, "not-ready")
    assert answer.problem["detail"] == world.status.reason
    assert answer.headers["retry-after"] == "1"
    assert (await world.ask("GET", "/healthz")).status == 200
    world.server.begin_shutdown()
    answer = await world.ask("GET", "/readyz")
    assert (answer.status, answer.problem["type"]) == (503, "shutting-down")
    assert answer.headers["connection"] == "close"


async def test_cluster(world: World) -> None:
    async with world.request("GET", "/cluster") as answer:
        assert await answer.json() == {"nodes": [{"id": "node-1"}]}


async def test_the_cluster_slot_by_slot_and_since_when(world: World) -> None:
    for query in (
        "",
        "?slots=1&since=2026-01-31T12:00:00.5Z",
        "?checker=7&slots=unhealed",
        "?slots=0&since=&a",
        "?slots",
    ):
        assert (await world.ask("GET", f"/cluster{query}")).status == 200, query
    assert world.status.asked == [("", None), ("1", 1769860800500), ("unhealed", None), ("", None), ("", None)]
    for query in ("?slots=all", "?since=yesterday", "?since=99999999999999999999"):
        answer = await world.ask("GET", f"/cluster{query}")
        assert (answer.status, answer.problem["type"]) == (400, "bad-parameter"), query
    assert len(world.status.asked) == 5


async def test_healing_is_asked_for(world: World) -> None:
    answer = await world.ask("POST", "/cluster/heal")
    assert (answer.status, json.loads(answer.body)["since"]) == (202, "2026-01-31T12:00:00.000Z")
    assert (await world.ask("POST", "/cluster/heal?restore", body=b"ignored")).status == 202
    assert (await world.ask("GET", "/cluster/heal")).status == 405
    world.status.reason = "no routes yet"
    answer = await world.ask("POST", "/cluster/heal")
    assert (answer.status, answer.problem["type"]) == (503, "not-ready")


async def test_metrics(world: World) -> None:
    async with world.request("PUT", "/objects/a", data=b"hello") as answer:
        assert answer.status == 201
    assert (await world.ask("GET", "/objects/none")).status == 404
    await until(lambda: world.app.in_flight == 0)
    async with world.request("GET", "/metrics") as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = await answer.text()
    assert 'amberblob_http_requests_total{operation="put",status="2xx"} 1.0' in text
    assert 'amberblob_http_requests_total{operation="get",status="4xx"} 1.0' in text
    assert 'amberblob_http_request_seconds_count{operation="put",status="2xx"} 1.0' in text
    assert "amberblob_http_received_bytes_total 5.0" in text
    assert "amberblob_http_in_flight 1.0" in text
    async with world.request("GET", "/metrics", headers={"Accept": "application/openmetrics-text"}) as answer:
        assert (await answer.text()).endswith("# EOF\n")


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text"])
def test_the_plain_numbers_look_like_prometheus_own(accept: str) -> None:
    metrics, registry = Metrics(process=False), CollectorRegistry()
    kind = ("operation", "status")
    requests = Counter(
        "amberblob_http_requests", "Requests answered, by operation and class of status.", kind, registry=registry
    )
    seconds = Histogram(
        "amberblob_http_request_seconds",
        "Time from the request's head to the answer's last byte, by operation and class of status.",
        kind,
        registry=registry,
        buckets=SECONDS_BUCKETS,
    )
    received = Counter("amberblob_http_received_bytes", "Bytes of request bodies received.", registry=registry)
    sent = Counter("amberblob_http_sent_bytes", "Bytes of answers sent, heads included.", registry=registry)
    in_flight = Gauge("amberblob_http_in_flight", "Requests being handled right now.", registry=registry)
    in_flight.inc()
    metrics.http.started()
    for operation, status, took_s in (
        ("get", "2xx", 0.001),
        ("get", "2xx", 0.0011),
        ("put", "5xx", 31.0),
        ("put", "aborted", 0.0),
    ):
        metrics.http.started()
        metrics.http.finished(operation, status, took_s, 3, 5)
        requests.labels(operation, status).inc()
        seconds.labels(operation, status).observe(took_s)
        received.inc(3)
        sent.inc(5)
    encode, _ = choose_encoder(accept)
    texts = [encode(one).decode() for one in (metrics.registry, registry)]
    ours, theirs = (re.sub(r"(_created\S* )\S+", r"\1", text) for text in texts)
    assert ours == theirs


def test_metrics_of_others() -> None:
    metrics = Metrics()
    metrics.gauge("amberblob_slots", "Slots.", ("state",)).labels("full").set(3)
    assert metrics.gauge("amberblob_slots", "Slots.", ("state",)) is metrics.gauge(
        "amberblob_slots", "Slots.", ("state",)
    )
    with pytest.raises(TypeError):
        metrics.counter("amberblob_slots", "Slots.")
    text = metrics.expose()[0].decode()
    assert 'amberblob_slots{state="full"} 3.0' in text
    assert "process_resident_memory_bytes" in text


async def test_the_document_knows_every_route(world: World) -> None:
    async with world.request("GET", "/openapi.json") as answer:
        found = await answer.json()
    assert found["openapi"].startswith("3.1")
    for resource, methods in ROUTES.items():
        assert {method.lower() for method in methods} <= set(found["paths"][resource.value])
    operations = [
        operation["operationId"]
        for item in found["paths"].values()
        for name, operation in item.items()
        if name in ("get", "head", "put", "post", "delete")
    ]
    assert len(operations) == len(set(operations))


def test_every_reference_of_the_document_leads_somewhere() -> None:
    root = document()

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            here = [node["$ref"]] if "$ref" in node else []
            return here + [found for value in node.values() for found in references(value)]
        if isinstance(node, list):
            return [found for value in node for found in references(value)]
        return []

    for reference in references(root):
        place: Any = root
        for part in reference.removeprefix("#/").split("/"):
            place = place[part.replace("~1", "/")]


async def test_the_token() -> None:
    async with serving(token="s3cret") as world:
        for target in ("/healthz", "/readyz"):
            assert (await world.ask("GET", target)).status == 200
        assert (await world.ask("POST", "/cluster/heal")).status == 401
        for target in ("/objects/a", "/objects", "/metrics", "/cluster", "/openapi.json", "/nothing", "/objects/.."):
            for line in ("A: b", "Authorization: Bearer wrong", "Authorization: Basic s3cret", "Authorization: Bearer \udcff",
                         "Authorization: Bearer s3cret2", "Authorization: Bearer", "Authorization:"):  # fmt: skip
                answer = await world.ask("GET", target, line)
                assert (answer.status, answer.problem["type"]) == (401, "unauthorized")
                assert answer.headers["www-authenticate"].startswith("Bearer")
        assert (await world.ask("PUT", "/objects/a", "Authorization: bearer s3cret", body=b"x")).status == 201
        assert (await world.ask("GET", "/metrics", "Authorization: Bearer  s3cret")).status == 200


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a-B_c.9", True), ("x" * 64, True), ("x" * 65, False), ("a b", False), ("", False), ("ä", False), ("a/b", False)],
)
async def test_request_ids(world: World, given: str, kept: bool) -> None:
    for target in ("/healthz", "/objects/none", "/nothing"):
        answer = await world.ask("GET", target, f"X-Amber-Request-Id: {given}")
        found = answer.headers["x-amber-request-id"]
        assert (found == given) is kept
        assert 1 <= len(found) <= 64


async def test_ids_made_here_differ(world: World) -> None:
    seen = {(await world.ask("GET", "/healthz")).headers["x-amber-request-id"] for _ in range(5)}
    assert len(seen) == 5


async def test_the_access_log(world: World) -> None:
    world.service.fail = RuntimeError("a secret of the inside")
    with capture_logs() as logs:
        answer = await world.ask("GET", "/objects/a?version=1", "X-Amber-Request-Id: r1")
        await until(lambda: world.app.in_flight == 0)
    assert answer.status == 500
    failed, line = logs
    assert (failed["event"], failed["error_type"], failed["log_level"]) == ("request_failed", "RuntimeError", "error")
    assert failed["exc_info"]
    assert (line["event"], line["operation"], line["status"]) == ("request", "get", 500)
    assert line["target"] == "/objects/a?version=1"


async def test_closing_lets_requests_under_way_finish(world: World) -> None:
    world.service.gate = asyncio.Event()
    raw, idle = await world.raw(), await world.raw()
    await idle.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await idle.answer()).status == 200
    await raw.send(b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe")
    await world.service.gate_reached.wait()
    address = world.server.address
    closing = asyncio.create_task(world.server.close(30))
    await until(lambda: world.app.closing)
    await asyncio.sleep(0)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*address)
    # A connection that was open before still learns of it.
    await idle.send(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await idle.answer()
    assert (answer.status, answer.problem["type"], answer.headers["connection"]) == (503, "shutting-down", "close")
    assert await idle.closed() == b""
    assert not closing.done()
    world.service.gate.set()
    await raw.send(b"llo")
    answer = await raw.answer()
    assert (answer.status, answer.headers["connection"]) == (201, "close")
    assert await raw.closed() == b""
    await asyncio.wait_for(closing, 30)
    assert world.service.objects["a"][0][1] == b"hello"


async def test_closing_waits_for_a_body_that_has_just_begun(world: World) -> None:
    raw = await world.raw()
    await raw.send(b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhe")

    def arrived() -> bool:
        assert world.server._connections is not None
        held = [one for one in world.server._connections._open if getattr(one, "_waiting", b"")]
        return world.app.in_flight == 1 or bool(held)

    await until(arrived)
    closing = asyncio.create_task(world.server.close(30))
    await until(lambda: world.app.in_flight == 1)
    await asyncio.sleep(0.05)
    assert not closing.done() and world.app.in_flight == 1
    await raw.send(b"llo")
    assert (await raw.answer()).status == 201
    await asyncio.wait_for(closing, 30)


async def test_closing_gives_up_after_the_grace(world: World) -> None:
    world.service.gate = asyncio.Event()
    raw = await world.raw()
    await raw.send(b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
    await world.service.gate_reached.wait()
    await asyncio.wait_for(world.server.close(0.05), 30)
    assert await raw.closed() == b""
    assert world.app.in_flight == 0
    assert world.service.objects == {}


async def test_closing_an_idle_server_is_quick(world: World) -> None:
    raw = await world.raw()
    await raw.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await raw.answer()).status == 200
    await asyncio.wait_for(world.server.close(60), 30)
    assert await raw.closed() == b""
    await world.server.close(60)


async def test_two_servers_on_one_port() -> None:
    servers = []
    port = 0
    for _ in range(2):
        app = build_app(FakeService(), FakeStatus(), token=None, metrics=Metrics(process=False))
        server = HttpServer(app, host="127.0.0.1", port=port, reuse_port=True)
        await server.start()
        port = server.address[1]
        servers.append(server)
    assert servers[0].address == servers[1].address
    for server in servers:
        await server.close(0)


async def test_an_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        app = build_app(FakeService(), FakeStatus(), token=None, metrics=Metrics(process=False))
        with pytest.raises(OSError):
            await HttpServer(app, host="127.0.0.1", port=taken.getsockname()[1]).start()


def test_what_the_parser_raises_is_always_explained() -> None:
    for error in (None, ValueError("inside"), RuntimeError()):
        refusal = unparsable(error)
        assert refusal.status == 400 and "inside" not in refusal.detail


async def test_a_node_with_too_much_to_do_hides_no_earlier_attempt() -> None:
    async with serving(requests_max=0) as world:
        answer = await world.ask("PUT", "/objects/a", body=b"x")
        assert (answer.status, answer.problem["type"]) == (503, "overloaded")
        answer = await world.ask("PUT", "/objects/a", "X-Amber-Write-Id: w", "X-Amber-Attempt: first", body=b"x")
        assert (answer.status, answer.problem["type"]) == (503, "overloaded")
        answer = await world.ask("PUT", "/objects/a", "X-Amber-Write-Id: w", body=b"x")
        assert (answer.status, answer.problem["type"]) == (504, "outcome-unknown")
        answer = await world.ask("GET", "/objects/a", "X-Amber-Write-Id: w")
        assert (answer.status, answer.problem["type"]) == (503, "overloaded")


# ---- membership


async def test_a_change_of_membership_is_passed_on(world: World) -> None:
    dry = await world.ask(
        "POST", "/cluster/membership", body=b'{"action": "join", "nodes": ["n4", "n5"], "dry_run": true}'
    )
    assert (dry.status, json.loads(dry.body)) == (200, {"action": "join n4 n5", "dry_run": True})
    real = await world.ask("POST", "/cluster/membership", body=b'{"action": "remove", "nodes": ["n4"], "force": true}')
    assert real.status == 202
    assert world.status.wanted == [("join", ("n4", "n5"), True, False), ("remove", ("n4",), False, True)]
    assert (await world.ask("GET", "/cluster/membership")).status == 405


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"action": "join"}',
        b'{"action": "explode", "nodes": ["n4"]}',
        b'{"action": "join", "nodes": []}',
        b'{"action": "join", "nodes": ["../n4"]}',
        b'{"action": "join", "nodes": ["n4"], "dryrun": true}',
        b'{"action": "join", "nodes": [' + b",".join(b'"n%d"' % n for n in range(65)) + b"]}",
        b'{"action": "join", "nodes": ["n4"]}' + b" " * 70_000,
    ],
)
async def test_a_change_that_is_none_is_refused(world: World, body: bytes) -> None:
    answer = await world.ask("POST", "/cluster/membership", body=body)
    assert answer.status == 400
    assert answer.problem["type"] == "bad-request"
    assert world.status.wanted == []
