"""Two lanes, one behaviour: what the fast lane takes, what it leaves to aiohttp, and how they share a connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import socket
import struct
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from amberblob.limits import INLINE_BYTES_MAX
from node.http import Timeouts, fast_lane
from node.http.fast_lane import WAITING_BYTES_MAX, FastConnection
from node.http.heads import may_become_simple, read_fields, read_head
from tests.unit.node.http.conftest import Raw, RawAnswer, World, serving
from tests.unit.node.http.fake_service import FakeService, until

CHOOSES_LANES = True
EXAMPLES = int(os.environ.get("AMBERBLOB_TEST_EXAMPLES", "0"))


@pytest.fixture
async def fast() -> AsyncIterator[World]:
    async with serving(fast_lane=True) as made:
        yield made


def connections(world: World) -> list[FastConnection]:
    assert world.server._connections is not None
    found = [one for one in world.server._connections._open if isinstance(one, FastConnection)]
    return found


def get(name: str, *lines: str) -> bytes:
    return (
        f"GET /objects/{name} HTTP/1.1\r\nHost: x\r\n{''.join(line + chr(13) + chr(10) for line in lines)}\r\n".encode()
    )


def put(name: str, body: bytes, *lines: str) -> bytes:
    more = "".join(line + "\r\n" for line in lines)
    return f"PUT /objects/{name} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body


# -- what is simple

SIMPLE = [
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /objects/a%20b/c?version=3&start=1 HTTP/1.1\r\nHost: 127.0.0.1:7700\r\nRange: bytes=0-3\r\n\r\n",
    b"PUT /objects/a HTTP/1.1\r\nhost: [::1]:80\r\ncontent-length: 0\r\nConnection: Close\r\n\r\n",
    b"DELETE /blobs/a HTTP/1.1\r\nHost: x\r\nX-Empty:\r\n\r\n",
    b"POST /objects/a?restore HTTP/1.1\r\nHost: x\r\n\r\n",
]

NOT_SIMPLE = [
    b"GET /objects/a HTTP/1.0\r\nHost: x\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\n\r\n",
    b"GET http://x/objects/a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET  /objects/a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /objects/a  HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /objects/a\tHTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /objects/a#b HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /objects/\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /objects/a HTTP/1.1\nHost: x\n\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\n A: b\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\nA: b\r\n c\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\nA: b\tc\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\nA: \xff\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\n: b\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\nHost: x\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: a b\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost:\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\nX-Amber-Meta-A: 1\r\nx-amber-meta-a: 2\r\n\r\n",
    b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: identity\r\nContent-Length: 1\r\n\r\n",
    b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\nConnection: close, keep-alive\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\nConnection:\r\n\r\n",
    b"PATCH /objects/a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"get /objects/a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /objects/a http/1.1\r\nHost: x\r\n\r\n",
    b"\r\nGET /objects/a HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /objects/a HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 70 + b"\r\n",
    b"GET /objects/" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    *(
        b"PUT /objects/a HTTP/1.1\r\nHost: x\r\nContent-Length: %s\r\n\r\n" % length
        for length in (b"", b"-1", b"+1", b"0x1", b"1_0", b"1 0", b"00", b"01", b"1,1", b"9" * 19, b"1\r\nContent-Length: 1")
    ),
]  # fmt: skip


def simple(data: bytes) -> bool:
    head = read_head(data)
    return head is not None and read_fields(head.lines) is not None


@pytest.mark.parametrize("data", SIMPLE)
def test_what_is_simple(data: bytes) -> None:
    assert simple(data) and simple(data + b"\x00anything")
    head = read_head(bytearray(data))
    assert head is not None and head.end == len(data) and type(head.lines) is bytes
    for end in range(len(data)):
        assert read_head(data[:end]) is None
        assert may_become_simple(data[:end])


@pytest.mark.parametrize("data", NOT_SIMPLE)
def test_what_is_left_to_aiohttp(data: bytes) -> None:
    assert not simple(data)
    head = read_head(data)
    assert head is not None or not may_become_simple(data), "nobody waits for more of it"


# -- both lanes answer alike


def like(answer: RawAnswer) -> tuple[int, dict[str, str], bytes]:
    """What must be the same."""
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "x-amber-request-id")}
    body = re.sub(rb'("request_id":")[^"]*', rb"\1", answer.body)
    if body != answer.body:
        headers.pop("content-length", None)
    return answer.status, headers, body


def unparsable(answer: tuple[int, dict[str, str], bytes]) -> bool:
    return answer[0] == 400 and b'"bad-request"' in answer[2]


async def exchange(world: World, data: bytes, cuts: list[int], heads: list[bool]) -> list[Any]:
    """Send it in these pieces, and no more; every answer until the connection ends."""
    loop = asyncio.get_running_loop()
    edges = [0, *sorted(cuts), len(data)]
    got = b""
    with socket.create_connection(world.server.address) as sock:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            for low, high in pairwise(edges):
                if low < high:
                    await loop.sock_sendall(sock, data[low:high])
                    await asyncio.sleep(0)
            sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(30):
                while some := await loop.sock_recv(sock, 1 << 16):
                    got += some
    reader = asyncio.StreamReader()
    reader.feed_data(got)
    reader.feed_eof()
    said = Raw(reader, None)  # type: ignore[arg-type]
    answers: list[Any] = []
    while not reader.at_eof():
        head = heads[len(answers)] if len(answers) < len(heads) else False
        answers.append(like(await said.answer(head=head)))
    return answers


NAMES = st.sampled_from(["a", "b", "c%20d", "a//b", "none", "..", "%zz", ".amber/x", "x" * 1025, "%2e", "a;b=c@d"])
QUERIES = st.sampled_from(
    ["", "", "", "", "?version=1", "?version=x", "?start=1&end=3", "?versions", "?verison=1", "?explain", "?at=1", "?restore", "?"]
)  # fmt: skip
LINES = st.sampled_from(
    [
        "Range: bytes=0-1", "Range: bytes=-3", "Range: bytes=9-", "range:bytes=1-1", "If-Match: *", 'If-Match: "x"',
        "If-None-Match: *", 'If-None-Match: "a", "b"', "If-Modified-Since: Sat, 31 Jan 2026 12:00:00 GMT", "A:b", "A: ",
        "If-Modified-Since: Sat, 31 Jan 2099 12:00:00 GMT", "X-Amber-If-Version: 1", "X-Amber-Consistency: local",
        "X-Amber-Consistency: LOCAL", "X-Amber-Write-Id: w", "X-Amber-Attempt: first", "X-Amber-Meta-A: 1",
        "x-amber-meta-a: 2", "Content-Type: text/plain", "Content-Type: " + "x" * 300, "Connection: keep-alive",
        "Connection: close", "Connection: Keep-Alive", "Expect: 100-continue", "Expect: nothing", "Host: y", "A : b",
        " folded", "Cookie: a=b; c=d", "Content-Digest: sha-256=:AAAA:", "X-Amber-Meta-B: ä", "Transfer-Encoding: chunked",
        "Content-Length: 3", "Upgrade: h2c", "Accept:   spaces   ", "User-Agent: me", "X-Amber-Request-Id: mine",
    ]
)  # fmt: skip


@st.composite
def requests(draw: st.DrawFn) -> tuple[str, bytes]:
    method = draw(st.sampled_from(["GET", "GET", "GET", "HEAD", "PUT", "PUT", "DELETE", "POST", "OPTIONS"]))
    path = draw(
        st.sampled_from(["/objects/", "/objects/", "/objects/", "/blobs/", "/healthz", "/objects", "//objects/"])
    )
    target = path + (draw(NAMES) if path.endswith("/") else "") + draw(QUERIES)
    lines = draw(st.lists(LINES, max_size=3, unique=True))
    body = b""
    if method == "PUT" or draw(st.integers(0, 9)) == 0:
        body = draw(st.sampled_from([b"", b"hello", b"x" * 3000, b"GET /objects/smuggled HTTP/1.1\r\nHost: x\r\n\r\n"]))
        if body or draw(st.booleans()):
            lines.append(f"Content-Length: {len(body)}")
    version = draw(st.sampled_from(["HTTP/1.1"] * 20 + ["HTTP/1.0", "HTTP/2.0", "http/1.1"]))
    end = draw(st.sampled_from(["\r\n"] * 30 + ["\n"]))
    text = end.join([f"{method} {target} {version}", "Host: x", *lines, "", ""])
    return method, text.encode() + body


def test_both_lanes_answer_alike() -> None:
    """Whatever is asked, in whatever pieces: the same answers."""
    with asyncio.Runner() as runner, contextlib.ExitStack() as ends:

        async def start(lane: bool) -> World:
            made = serving(fast_lane=lane)
            world = await made.__aenter__()
            ends.callback(lambda: runner.run(made.__aexit__(None, None, None)))
            return world

        worlds = [runner.run(start(True)), runner.run(start(False))]
        taken = 0

        async def run(data: bytes, heads: list[bool], cuts: list[list[int]]) -> None:
            nonlocal taken
            found = []
            for world, places in zip(worlds, cuts, strict=True):
                fresh = FakeService()
                vars(world.service).update(vars(fresh))
                for name in ("a", "b"):
                    assert (await world.ask("PUT", f"/objects/{name}", body=b"hello " + name.encode())).status == 201
                found.append(await exchange(world, data, [cut % (len(data) + 1) for cut in places], heads))
            fast, other = found
            if any(one and unparsable(one[-1]) for one in found):
                # What aiohttp gets together with rubbish behind it is lost to it: the pieces decide how much that is.
                common = min(len(one) - (unparsable(one[-1]) if one else 0) for one in found)
                fast, other = fast[:common], other[:common]
            assert fast == other
            taken += len(fast)

        @settings(
            max_examples=EXAMPLES or 150,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            print_blob=True,
            phases=(Phase.explicit, Phase.generate),
            suppress_health_check=list(HealthCheck),
        )
        @given(
            st.lists(requests(), min_size=1, max_size=4),
            st.lists(st.integers(0, 10_000), max_size=4),
            st.lists(st.integers(0, 10_000), max_size=4),
        )
        def attack(sent: list[tuple[str, bytes]], some: list[int], others: list[int]) -> None:
            data = b"".join(text for _, text in sent)
            runner.run(run(data, [method == "HEAD" for method, _ in sent], [some, others]))

        attack()
        assert taken > 200


# -- one connection


async def test_single_bytes(fast: World) -> None:
    """A GET and a PUT, cut in two at each place."""
    data = put("a", b"hello") + get("a")
    for cut in range(1, len(data)):
        raw = await fast.raw()
        await raw.send(data[:cut])
        await asyncio.sleep(0.001)
        await raw.send(data[cut:])
        assert (await raw.answer()).status == 201
        assert (await raw.answer()).body == b"hello"
        raw.writer.close()


async def test_byte_by_byte_slowly(fast: World) -> None:
    """So slowly that aiohttp gets it; afterwards the connection is the fast lane's again where that can be."""
    raw = await fast.raw()
    data = put("a", b"hello")
    head = data.index(b"hello")
    await raw.send(data[:head])
    for at in range(head, len(data)):
        await asyncio.sleep(fast_lane.PATIENCE_S / 2)
        await raw.send(data[at : at + 1])
    assert (await raw.answer()).status == 201
    connection = connections(fast)[0]
    assert connection._aiohttps and connection._owed == 0
    await raw.send(get("a"))
    assert (await raw.answer()).body == b"hello"
    assert not connection._aiohttps


async def test_one_thousand_requests_at_once(fast: World) -> None:
    await fast.ask("PUT", "/objects/a", body=b"hello")
    raw = await fast.raw()
    names = ["a" if number % 3 else f"none{number}" for number in range(1000)]
    sending = asyncio.create_task(raw.send(b"".join(get(name) for name in names)))
    for name in names:
        answer = await raw.answer()
        assert answer.status == (200 if name == "a" else 404)
        if name != "a":
            assert answer.problem
    await sending
    assert not connections(fast)[0]._waiting


async def test_answers_come_in_order_whichever_lane_gives_them(fast: World) -> None:
    rng = random.Random(8)
    large = b"y" * (INLINE_BYTES_MAX + 1)
    kinds = {
        "simple": lambda n: put(f"n{n}", b"%d" % n),
        "large": lambda n: put(f"n{n}", large + b"%d" % n),
        "refused": lambda n: put("..", large),
        "get": lambda n: get("none", f"X-Amber-Request-Id: r{n}"),
    }
    for _ in range(20):
        chosen = [rng.choice(list(kinds)) for _ in range(12)]
        data = b"".join(kinds[kind](number) for number, kind in enumerate(chosen))
        # What is not simple comes last: from there on the connection is aiohttp's.
        data += b"GET /healthz HTTP/1.1\r\nHost: x\r\nA : b\r\n\r\n" if rng.random() < 0.5 else get("none")
        raw = await fast.raw()

        async def send(raw: Raw = raw, data: bytes = data) -> None:
            at = 0
            while at < len(data):
                size = rng.choice([1, 10, 100, 5000, 70_000, 300_000])
                await raw.send(data[at : at + size])
                at += size
                await asyncio.sleep(0)

        sending = asyncio.create_task(send())
        for number, kind in enumerate(chosen):
            answer = await asyncio.wait_for(raw.answer(), 30)
            if kind in ("simple", "large"):
                assert (answer.status, answer.headers["location"]) == (201, f"/objects/n{number}")
            elif kind == "get":
                assert answer.headers["x-amber-request-id"] == f"r{number}"
            else:
                assert answer.status == 400
        assert (await asyncio.wait_for(raw.answer(), 30)).status in (400, 404)
        await sending
        raw.writer.close()


async def test_what_waits_is_bounded(fast: World) -> None:
    """Behind a request that takes its time, a client may send what it likes."""
    fast.service.gate = asyncio.Event()
    raw = await fast.raw()
    await raw.send(put("slow", b"x"))
    await fast.service.gate_reached.wait()
    body = b"y" * 60_000
    sending = asyncio.create_task(raw.send(b"".join(put(f"n{number}", body) for number in range(1000))))
    connection = connections(fast)[0]
    await until(lambda: connection._held)
    most = 0
    for _ in range(50):
        await asyncio.sleep(0.002)
        most = max(most, len(connection._waiting))
    assert WAITING_BYTES_MAX < most <= WAITING_BYTES_MAX + 256 * 1024
    assert not sending.done()
    fast.service.gate.set()
    for _ in range(1001):
        assert (await raw.answer()).status == 201
    await sending
    assert not connection._held


async def test_a_client_that_asks_and_does_not_read(fast: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is answered than it takes, and it is let go in the end."""
    pause_writing, waiting_bytes = FastConnection.pause_writing, []

    def pauses(self: FastConnection) -> None:
        pause_writing(self)
        assert self._wire is not None
        waiting_bytes.append(self._wire.get_write_buffer_size())

    monkeypatch.setattr(FastConnection, "pause_writing", pauses)
    async with serving(fast_lane=True, timeouts=Timeouts(write_stall_s=0.3)) as world:
        await world.ask("PUT", "/objects/a", body=b"z" * 60_000)
        world.service.piece_bytes = 60_000
        raw = await world.raw()
        raw.writer.transport.pause_reading()  # type: ignore[attr-defined]
        count = 3000
        sending = asyncio.create_task(raw.send(get("a") * count))
        await until(lambda: bool(waiting_bytes) and not connections(world))
        assert max(waiting_bytes) < 1 << 20
        assert world.service.reads_closed < count
        sending.cancel()


async def test_half_closed_in_the_middle_of_a_body(fast: World) -> None:
    for waits in (False, True):
        raw = await fast.raw()
        await raw.send((get("none") if waits else b"") + put("a", b"hello")[:-2])
        raw.writer.write_eof()
        if waits:
            assert (await raw.answer()).status == 404
        answer = await asyncio.wait_for(raw.answer(), 30)
        assert (answer.status, answer.problem["type"]) == (400, "incomplete-body")
        assert await raw.closed() == b""
    assert fast.service.objects == {}


async def test_half_closed_while_the_answer_is_made(fast: World) -> None:
    fast.service.gate = asyncio.Event()
    raw = await fast.raw()
    await raw.send(put("a", b"hello") + get("a") + put("large", b"y" * 70_000) + get("large") + get("a"))
    raw.writer.write_eof()
    await fast.service.gate_reached.wait()
    await asyncio.sleep(0.02)
    fast.service.gate.set()
    answers = [await asyncio.wait_for(raw.answer(), 30) for _ in range(5)]
    assert [answer.status for answer in answers] == [201, 200, 201, 200, 200]
    assert await asyncio.wait_for(raw.closed(), 30) == b""


async def test_a_client_that_is_gone_while_its_answer_is_made(fast: World) -> None:
    fast.service.gate = asyncio.Event()
    raw = await fast.raw()
    await raw.send(put("a", b"hello") + get("a") * 10)
    await fast.service.gate_reached.wait()
    raw.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.writer.transport.abort()
    await until(lambda: not connections(fast))
    assert fast.app.in_flight == 1, "a write that is under way goes on"
    fast.service.gate.set()
    await until(lambda: fast.app.in_flight == 0)
    assert fast.service.objects["a"][0][1] == b"hello"


async def test_the_client_may_ask_for_the_end(fast: World) -> None:
    raw = await fast.raw()
    await raw.send(get("none", "Connection: close") + get("none"))
    answer = await raw.answer()
    assert (answer.status, answer.headers["connection"]) == (404, "close")
    assert await raw.closed() == b""


async def test_an_idle_connection_is_closed_but_not_while_it_is_served() -> None:
    async with serving(fast_lane=True, timeouts=Timeouts(idle_s=0.2)) as world:
        world.service.gate = asyncio.Event()
        raw = await world.raw()
        await raw.send(put("a", b"hello"))
        await asyncio.sleep(0.6)
        begun = asyncio.get_running_loop().time()
        world.service.gate.set()
        assert (await raw.answer()).status == 201
        assert await asyncio.wait_for(raw.closed(), 30) == b""
        assert asyncio.get_running_loop().time() - begun > 0.1


async def test_a_large_object_by_the_fast_lane(fast: World) -> None:
    data = bytes(range(256)) * 40_000
    raw = await fast.raw()
    await raw.send(put("a", data))
    assert (await raw.answer()).status == 201
    fast.service.piece_bytes = 3 << 20
    for _ in range(2):
        await raw.send(get("a"))
        assert (await raw.answer()).body == data
    assert not connections(fast)[0]._aiohttps
