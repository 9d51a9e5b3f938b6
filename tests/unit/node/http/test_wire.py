"""What arrives on a socket when nobody is polite."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from aiohttp.streams import StreamReader
from structlog.testing import capture_logs

import node.http.connection as connection_module
from node.http import Timeouts
from node.http.connection import Connection
from tests.unit.node.http.conftest import Raw, World, serving
from tests.unit.node.http.fake_service import until

TRAVERSALS = [
    "..",
    "../a",
    "../../etc/passwd",
    "a/../b",
    "a/./b",
    ".",
    "%2e%2e",
    "%2e%2e/a",
    "%2E%2E%2Fa",
    "..%2fa",
    "..%2Fa",
    ".%2e/a",
    "a/%2e%2e/b",
    "a%2f%2e%2e%2fb",
    "..\\a",
    "..%5ca",
    "%5C",
    "%00",
    "a%00.txt",
    "%c0%ae%c0%ae/a",
    "%c0%af",
    "%e0%80%af",
    "%f0%80%80%af",
    "%ed%a0%80",
    "%ff",
    "%",
    "%2",
    "%zz",
    "%u002e",
    "a#b",
    "\udcff",
    "\udcc0\udcaf",
]


@pytest.mark.parametrize("name", TRAVERSALS)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_no_encoding_of_a_traversal_gets_through(world: World, method: str, name: str) -> None:
    for root in ("/objects/", "/blobs/", "http://elsewhere/objects/"):
        answer = await world.ask(method, root + name, body=b"x" if method == "PUT" else b"")
        assert (answer.status, answer.problem["type"]) == (400, "bad-path")
    assert world.service.objects == {}


@pytest.mark.parametrize("name", [".amber", ".amber/x", "%2eamber/x", ".amber%2fx", "%2E%61mber"])
async def test_the_reserved_corner(world: World, name: str) -> None:
    answer = await world.ask("PUT", f"/objects/{name}", body=b"x")
    assert (answer.status, answer.problem["type"]) == (403, "reserved-path")


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/objects//a//b/", "/a//b/"),
        ("/objects/%2Fa", "/a"),
        ("/objects/a%2Fb", "a/b"),
        ("/objects/a+b", "a+b"),
        ("/objects/a;b=c&d:e@f", "a;b=c&d:e@f"),
        ("/objects/a%3Fb%23c", "a?b#c"),
        ("/objects/objects", "objects"),
        ("/objects/%20", " "),
        ("/objects/...", "..."),
        ("http://elsewhere/objects/a", "a"),
        ("http://user:secret@elsewhere:99999/objects/a", "a"),
        ("http://[::1]/objects/a", "a"),
    ],
)
async def test_names_are_taken_as_they_come(world: World, target: str, path: str) -> None:
    answer = await world.ask("PUT", target, body=b"x")
    if answer.status == 400:  # the parser may refuse an authority that is none
        assert answer.problem["type"] == "bad-path"
        assert "99999" in target
        return
    assert answer.status == 201
    assert list(world.service.objects) == [path]


@pytest.mark.parametrize(
    "head",
    [
        b"rubbish\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET /healthz\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
        b"PUT /objects/a\r\n\r\n",
        b"PUT /objects/a HTTP/0.9\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nbad header\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
        b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: 0x1\r\n\r\nx",
        b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\nx",
        b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n0\r\n\r\n",
        b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_answered_with_a_problem(world: World, head: bytes) -> None:
    raw = await world.raw()
    await raw.send(head)
    answer = await raw.answer()
    assert (answer.status, answer.problem["type"]) == (400, "bad-request")
    assert await raw.closed() == b""
    assert world.service.objects == {}


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9"])
async def test_only_http_1_is_spoken(world: World, version: bytes) -> None:
    good = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    for before in (b"", good):
        raw = await world.raw()
        await raw.send(before + b"PUT /objects/a " + version + b"\r\nHost: x\r\nContent-Length: 45\r\n\r\n" + good)
        if before:
            assert (await raw.answer()).status == 200
        got = await asyncio.wait_for(raw.closed(), 30)
        assert got.startswith(b"HTTP/1.") and got.count(b"\r\n\r\n") == 1, "one answer"
        assert b" 400 " in got and version + b" is not spoken here" in got
    assert world.service.objects == {}


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("*", 404),
        ("//", 404),
        ("/%", 404),
        ("/?", 404),
        ("http://h", 404),
        ("http://h?", 404),
        ("/objects?prefix=%zz", 400),
        ("/objects/a?%zz=1", 400),
        ("/objects/a?", 404),
        ("/healthz?", 200),
        ("//objects/a", 404),
        ("/objects/../healthz", 400),
        ("/../healthz", 404),
    ],
)
async def test_odd_targets_do_no_harm(world: World, target: str, status: int) -> None:
    answer = await world.ask("OPTIONS" if target == "*" else "GET", target)
    assert answer.status == status
    if status != 200:
        assert answer.problem


@pytest.mark.parametrize(
    "line",
    [
        "GET /objects/ä",
        "GET objects",
        "GET http:///objects/a",
        "GET http://[::1/objects/a",
        "CONNECT :",
        "GET ?",
        "GET #",
    ],
)
async def test_targets_that_are_none(world: World, line: str) -> None:
    raw = await world.raw()
    await raw.send(f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = await raw.answer()
    assert (answer.status, answer.problem["type"]) == (400, "bad-path")


async def test_connect_is_no_method_of_anything(world: World) -> None:
    raw = await world.raw()
    await raw.send(b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n")
    answer = await raw.answer()
    assert answer.status in (404, 405)
    assert answer.problem


async def test_an_offer_to_upgrade_is_not_taken(world: World) -> None:
    for upgrade in ("h2c", "websocket"):
        answer = await world.ask("PUT", "/objects/a", "Connection: Upgrade", f"Upgrade: {upgrade}", body=b"hello")
        assert answer.status == 201
        assert world.service.objects["a"][-1][1] == b"hello"


@pytest.mark.parametrize(
    ("head", "status", "code"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 17_000 + b"\r\n\r\n", 431, "header-too-large"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"x" * 17_000 + b": a\r\n\r\n", 431, "header-too-large"),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431, "header-too-large"),
        (b"GET /objects/" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400, "path-too-long"),
        (b"GET /objects/" + b"x" * 60_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400, "path-too-long"),
    ],
)
async def test_heads_beyond_the_bounds(world: World, head: bytes, status: int, code: str) -> None:
    raw = await world.raw()
    await raw.send(head)
    answer = await raw.answer()
    assert (answer.status, answer.problem["type"]) == (status, code)


async def test_headers_up_to_the_bound(world: World) -> None:
    answer = await world.ask("PUT", "/objects/a", "X-Amber-Meta-A: " + "x" * 8191, "B: " + "y" * 16_000, body=b"x")
    assert answer.status == 201
    head = await world.ask("HEAD", "/objects/a")
    assert head.headers["x-amber-meta-a"] == "x" * 8191


async def test_a_body_cut_off_by_closing_stores_nothing(world: World) -> None:
    raw = await world.raw()
    await raw.send(b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
    await until(lambda: world.service.last_options is not None)
    raw.writer.close()
    await asyncio.wait_for(world.service.body_failed.wait(), 30)
    assert world.service.objects == {}


@pytest.mark.parametrize(
    "start",
    [
        b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello",
        b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
    ],
)
async def test_a_body_cut_off_by_a_client_that_still_listens(world: World, start: bytes) -> None:
    raw = await world.raw()
    await raw.send(start)
    await until(lambda: world.service.last_options is not None)
    raw.writer.write_eof()
    answer = await raw.answer()
    assert (answer.status, answer.problem["type"]) == (400, "incomplete-body")
    assert await raw.closed() == b""
    assert world.service.objects == {}


async def test_broken_chunks_store_nothing(world: World) -> None:
    raw = await world.raw()
    await raw.send(b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await until(lambda: world.service.last_options is not None)
    await raw.send(b"zz\r\n")
    answer = await raw.answer()
    assert (answer.status, answer.problem["type"]) == (400, "bad-request")
    assert await raw.closed() == b""
    assert world.service.objects == {}


async def test_a_client_that_only_half_closes_gets_its_answers(world: World) -> None:
    raw = await world.raw()
    await raw.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 3)
    raw.writer.write_eof()
    got = await asyncio.wait_for(raw.closed(), 30)
    assert got.count(b'{"status":"ok"}') == 3


async def test_a_client_that_half_closes_just_when_it_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of its sending arrives after the answer was written, and before the server waits for more."""
    finish_response = Connection.finish_response

    async def and_then_the_end(self: Connection, *args: Any) -> Any:
        finished = await finish_response(self, *args)
        if not self.eof_received():
            assert self.transport is not None
            self.transport.close()
        return finished

    monkeypatch.setattr(Connection, "finish_response", and_then_the_end)
    async with serving(fast_lane=False) as world:
        raw = await world.raw()
        await raw.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await raw.answer()).status == 200
        assert await asyncio.wait_for(raw.closed(), 30) == b""


async def test_a_body_in_single_bytes(world: World) -> None:
    raw = await world.raw()
    for byte in b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n":
        await raw.send(bytes([byte]))
    for _ in range(50):
        for byte in b"1\r\nx\r\n":
            await raw.send(bytes([byte]))
    await raw.send(b"0\r\n\r\n")
    assert (await raw.answer()).status == 201
    assert world.service.objects["a"][0][1] == b"x" * 50


async def test_a_body_is_asked_for_only_once_the_head_is_good(world: World) -> None:
    raw = await world.raw()
    await raw.send(b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert (await raw.answer()).status == 100
    await raw.send(b"hello")
    assert (await raw.answer()).status == 201
    await raw.send(b"PUT /objects/.. HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    answer = await raw.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    raw.writer.close()
    assert (await world.ask("PUT", "/objects/a", "Expect: a miracle", body=b"x")).problem[
        "type"
    ] == "expectation-failed"


async def test_a_large_body_that_is_refused_is_not_read_to_its_end(world: World) -> None:
    raw = await world.raw()
    await raw.send(b"PUT /objects/.. HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999999\r\n\r\nxxxx")
    answer = await raw.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")


async def test_a_small_body_that_is_refused_leaves_the_connection_usable(world: World) -> None:
    raw = await world.raw()
    await raw.send(b"PUT /objects/.. HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello")
    assert (await raw.answer()).status == 400
    await raw.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await raw.answer()).status == 200


async def test_http_1_0(world: World) -> None:
    raw = await world.raw()
    await raw.send(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert (await raw.answer()).body == b'{"status":"ok"}'
    assert await raw.closed() == b""


async def answered(world: World) -> Raw:
    """A connection on which a request was answered; those that did not get as far in the server's short time were not."""
    for _ in range(20):
        raw = await world.raw()
        await raw.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            if (await raw.answer()).status == 200:
                return raw
    raise AssertionError("no request is answered")


async def test_a_slow_head_is_given_up(world: World) -> None:
    async with serving(timeouts=Timeouts(head_s=0.2)) as slow:
        for _ in range(20):
            raw = await slow.raw()
            # A connection that had said nothing when that short time was over is closed without a word.
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await raw.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Sl")
                answer = await raw.answer()
                break
        assert (answer.status, answer.problem["type"]) == (408, "request-timeout")
        assert await raw.closed() == b""
        # The same behind a request that was answered, and a dribble does not move the deadline.
        raw = await answered(slow)

        async def dribble() -> None:
            for _ in range(1000):
                await raw.send(b"G")
                await asyncio.sleep(0.02)

        dribbling = asyncio.create_task(dribble())
        answer = await raw.answer()
        dribbling.cancel()
        assert answer.status in (400, 408) and answer.problem
        # A connection that never says anything is closed without a word.
        raw = await slow.raw()
        assert await asyncio.wait_for(raw.closed(), 30) == b""


async def test_a_slow_head_that_begins_at_once_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first bytes arrive before the server's task for the connection has run."""
    connection_made = Connection.connection_made

    def and_the_first_bytes(self: Connection, transport: asyncio.BaseTransport) -> None:
        connection_made(self, transport)
        self.data_received(b"GET /")

    monkeypatch.setattr(Connection, "connection_made", and_the_first_bytes)
    async with serving(timeouts=Timeouts(head_s=0.2)) as slow:
        raw = await slow.raw()
        assert (await raw.answer()).problem["type"] == "request-timeout"


async def test_an_idle_connection_is_closed(world: World) -> None:
    async with serving(timeouts=Timeouts(idle_s=0.2)) as brief:
        raw = await answered(brief)
        assert await asyncio.wait_for(raw.closed(), 30) == b""


async def test_a_body_that_stalls_is_given_up() -> None:
    async with serving(body_stall_s=0.2) as world:
        raw = await world.raw()
        await raw.send(b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhello")
        answer = await raw.answer()
        assert (answer.status, answer.problem["type"]) == (408, "request-timeout")
        assert world.service.objects == {}


async def test_a_client_that_does_not_read_is_let_go() -> None:
    async with serving(timeouts=Timeouts(write_stall_s=0.2)) as world:
        async with world.request("PUT", "/objects/a", data=bytes(64 << 20)) as answer:
            assert answer.status == 201
        world.service.piece_bytes = 8 << 20
        raw = await world.raw()
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await raw.send(b"GET /objects/a HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: world.service.reads_closed == 1)
        await until(lambda: world.app.in_flight == 0)


async def test_connections_that_would_take_the_nodes_own_files_end_at_once(
    monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    monkeypatch.setattr(connection_module, "connections_max", lambda databases: 2)
    healthz = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    kept = [await world.raw() for _ in range(2)]
    for raw in kept:
        await raw.send(healthz)
        assert (await raw.answer()).status == 200
    with capture_logs() as lines:
        for _ in range(3):
            refused = await world.raw()
            with contextlib.suppress(ConnectionError):
                assert await refused.reader.read() == b"", "a 503 would say of a repeat that it was not applied before"
    assert [(line["event"], line["open"]) for line in lines] == [("connections_refused", 2)], "told once"
    await kept[0].send(healthz)
    assert (await kept[0].answer()).status == 200
    kept[1].writer.close()

    async def is_served() -> bool:
        raw = await world.raw()
        with contextlib.suppress(ConnectionError, EOFError):
            await raw.send(healthz)
            return (await raw.answer()).status == 200
        return False

    async with asyncio.timeout(60):
        while not await is_served():
            await asyncio.sleep(0.01)


async def test_a_client_that_leaves_in_the_middle_of_a_download(world: World) -> None:
    async with world.request("PUT", "/objects/a", data=bytes(64 << 20)) as answer:
        assert answer.status == 201
    world.service.piece_bytes = 8 << 20
    raw = await world.raw()
    await raw.send(b"GET /objects/a HTTP/1.1\r\nHost: x\r\n\r\n")
    await raw.reader.readexactly(1000)
    raw.writer.transport.abort()
    await until(lambda: world.app.in_flight == 0)
    await until(lambda: world.service.reads_closed == 1)


@pytest.mark.parametrize("fast_lane", [False, True])
async def test_a_body_that_breaks_before_its_request_is_begun(monkeypatch: pytest.MonkeyPatch, fast_lane: bool) -> None:
    """Head and broken end arrive one after the other, within one turn of the loop."""
    data_received = Connection.data_received

    def byte_by_byte(self: Connection, data: bytes) -> None:
        for at in range(len(data)):
            data_received(self, data[at : at + 1])

    monkeypatch.setattr(Connection, "data_received", byte_by_byte)
    async with serving(fast_lane=fast_lane) as world:
        raw = await world.raw()
        await raw.send(
            b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nrubbish\r\n\r\n"
        )
        assert (await asyncio.wait_for(raw.answer(), 30)).status == 400
        assert await asyncio.wait_for(raw.closed(), 30) == b""
        assert world.service.objects == {}


@pytest.mark.parametrize("rest", [b"0\r\nrubbish\r\n\r\n", b"\r\nzz\r\n", b"\r\n"])
async def test_a_body_that_breaks_right_after_the_end_of_a_chunk(
    world: World, monkeypatch: pytest.MonkeyPatch, rest: bytes
) -> None:
    """The end of a chunk wakes who waits for the body; before he looks, the body has failed: by what came next, or for want of it."""
    waiting = asyncio.Event()
    wait, data_received = StreamReader._wait, Connection.data_received

    async def told(self: StreamReader, func_name: str) -> None:
        if self.total_bytes:
            asyncio.get_running_loop().call_soon(waiting.set)
        await wait(self, func_name)

    def and_the_end(self: Connection, data: bytes) -> None:
        data_received(self, data)
        if data == b"\r\n":
            self.eof_received()

    monkeypatch.setattr(StreamReader, "_wait", told)
    monkeypatch.setattr(Connection, "data_received", and_the_end)
    chunk = b"5\r\nhello" + (b"\r\n" if rest.startswith(b"0") else b"")
    raw = await world.raw()
    await raw.send(b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk)
    await asyncio.wait_for(waiting.wait(), 10)
    await raw.send(rest)
    assert (await asyncio.wait_for(raw.answer(), 10)).status == 400
    assert await asyncio.wait_for(raw.closed(), 10) == b""
    assert world.service.objects == {}
