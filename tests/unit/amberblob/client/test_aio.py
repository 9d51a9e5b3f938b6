"""The asynchronous client against real servers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import tracemalloc

import pytest
from aiohttp import web

from amberblob.client import AsyncClient, RetryPolicy, Timeouts
from amberblob.errors import (
    AmberError,
    BadRequest,
    ConfigError,
    DigestMismatch,
    NotFound,
    NotReady,
    OutcomeUnknown,
    PeerError,
    PreconditionFailed,
    QuorumUnavailable,
    StaleRoute,
)

MIB = 1024 * 1024


def write_ids(*nodes) -> set[str]:
    return {headers["X-Amber-Write-Id"] for node in nodes for _, _, headers in node.requests}


async def test_put_head_and_get(client, nodes):
    info = await client.put("a/b c.txt", b"hello", content_type="text/plain", meta={"Colour": "grün"})
    assert (info.path, info.version, info.size, info.meta) == ("a/b c.txt", 1, 5, {"colour": "grün"})
    assert nodes[0].requests[0][1] == "/objects/a/b%20c.txt"
    head = await client.head("a/b c.txt")
    assert (head.etag, head.content_type, head.meta, head.size) == (info.etag, "text/plain", {"colour": "grün"}, 5)
    async with client.get("a/b c.txt") as reader:
        assert reader.info == head
        assert await reader.read(2) == b"he"
        assert await reader.read() == b"llo"
        assert await reader.read() == b""


@pytest.mark.parametrize("path", ["a//b", "%41", "/lead", "tr/", "q?x=1&y#z", "ü/猫", "a+b", "~'()*!"])
async def test_names_reach_the_server_as_they_are(client, nodes, path):
    await client.put(path, b"x")
    assert list(nodes[0].store.objects) == [path]
    assert await client.get_bytes(path) == b"x"


async def test_an_empty_object(client):
    await client.put("empty", b"")
    assert await client.get_bytes("empty") == b""


async def test_every_kind_of_source(client, tmp_path):
    data = os.urandom(3 * MIB + 7)
    file = tmp_path / "file"
    file.write_bytes(data)

    def pieces():
        for offset in range(0, len(data), 100_000):
            yield data[offset : offset + 100_000]

    async def async_pieces():
        for piece in pieces():
            yield piece

    reader_end, writer_end = os.pipe()

    def feed():
        with open(writer_end, "wb") as out:
            out.write(data)

    feeding = asyncio.create_task(asyncio.to_thread(feed))
    with open(reader_end, "rb") as pipe:
        await client.put("pipe", pipe)
    await feeding
    with open(file, "rb") as opened:
        opened.seek(5)
        await client.put("file-from-5", opened)
    sources = {"bytes": data, "bytearray": bytearray(data), "path": file, "str": str(file), "buffer": io.BytesIO(data)}
    sources |= {"list": list(pieces()), "iterator": pieces(), "async": async_pieces()}
    for name, source in sources.items():
        await client.put(name, source)
    for name in [*sources, "pipe"]:
        assert await client.get_bytes(name) == data, name
    assert await client.get_bytes("file-from-5") == data[5:]


async def test_text_is_refused(client, tmp_path):
    with pytest.raises(TypeError, match="text mode"):
        await client.put("x", io.StringIO("text"))
    with pytest.raises(TypeError, match="made of bytes"):
        await client.put("x", ["text"])


async def test_a_retry_keeps_its_write_id_and_goes_to_the_next_node(client, nodes, refuse, break_off):
    nodes[0].misbehave = [refuse(503, "quorum-unavailable")]
    nodes[1].misbehave = [break_off()]
    info = await client.put("x", b"data")
    assert info.version == 1
    assert [len(node.requests) for node in nodes] == [1, 1, 1]
    assert len(write_ids(*nodes)) == 1
    assert nodes[0].store.objects["x"][0].data == b"data"


async def test_a_write_that_was_applied_and_lost_its_answer_is_applied_once(client, nodes, break_off):
    nodes[0].misbehave = [break_off(applied_by=nodes[0])]
    info = await client.put("x", b"data")
    assert info.version == 1
    assert len(nodes[0].store.objects["x"]) == 1


async def test_a_large_file_is_sent_again_from_the_beginning(client, nodes, break_off, tmp_path):
    file = tmp_path / "large"
    file.write_bytes(os.urandom(5 * MIB))
    nodes[0].misbehave = [break_off()]
    seen = []
    await client.put("x", file, progress=lambda done, total: seen.append((done, total)))
    assert nodes[0].store.objects["x"][0].data == file.read_bytes()
    assert seen.count((0, 5 * MIB)) == 2
    assert seen[-1] == (5 * MIB, 5 * MIB)


async def test_with_one_node_dead_no_error_reaches_the_caller(client, nodes):
    await client.put("x", b"before")
    await nodes[0].stop()
    await asyncio.gather(*(client.put(f"many/{index}", b"y") for index in range(50)))
    assert await client.get_bytes("x") == b"before"
    assert not nodes[2].requests, "it stays with the node that answers"


async def test_a_node_that_does_not_answer_is_left(nodes):
    async def hang(request):
        await asyncio.sleep(60)

    nodes[0].always = hang
    urls = [node.url for node in nodes]
    retry = RetryPolicy(attempts_max=20, deadline_s=50, pause_s=0.01, pause_max_s=0.05)
    async with AsyncClient(urls, timeouts=Timeouts(answer_s=1), retry=retry) as client:
        await client.put("x", b"data")
        assert await client.get_bytes("x") == b"data"


async def test_retry_after_is_respected(nodes, refuse):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    async with AsyncClient(nodes[0].url, retry=RetryPolicy(pause_s=0.001)) as client:
        client._retrying()._sleep = sleep
        nodes[0].misbehave = [refuse(503, "quorum-unavailable", headers={"Retry-After": "2"}), refuse(503, "not-ready")]
        await client.put("x", b"data")
    assert waits[0] == 2.0
    assert 0 < waits[1] < 0.01


@pytest.mark.parametrize("code", ["not-ready", "stale-route"])
async def test_what_is_one_nodes_trouble_is_taken_to_another_at_once(nodes, refuse, code):
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    async with AsyncClient([node.url for node in nodes], retry=RetryPolicy()) as client:
        client._retrying()._sleep = sleep
        for node in nodes[:2]:
            node.always = refuse(503, code, headers={"Retry-After": "2"})
        await client.put("x", b"data")
        assert not waits
        nodes[2].always = refuse(503, code, headers={"Retry-After": "2"})
        with pytest.raises(StaleRoute if code == "stale-route" else NotReady, match="given up"):
            await client.put("x", b"data")
    assert waits, "all have said so"


@pytest.mark.parametrize("code", ["not-ready", "stale-route"])
async def test_so_it_is_by_head_which_has_no_body(nodes, refuse, code):
    async with AsyncClient([node.url for node in nodes]) as client:
        await client.put("x", b"data")
    for node in nodes[:2]:
        node.always = refuse(503, code, headers={"Retry-After": "2"})
    waits = []

    async def sleep(seconds):
        waits.append(seconds)

    async with AsyncClient([node.url for node in nodes]) as client:
        client._retrying()._sleep = sleep
        nodes[2].store.objects.update(nodes[0].store.objects)
        assert (await client.head("x")).version == 1
    assert not waits


async def test_giving_up_says_what_every_attempt_saw(client, nodes, refuse):
    for node in nodes:
        node.always = refuse(503, "quorum-unavailable", wanted=2, got=1)
    with pytest.raises(QuorumUnavailable, match="6 attempts") as caught:
        await client.put("x", b"data")
    assert len(caught.value.extra["attempts"]) == 6
    assert caught.value.extra["wanted"] == 2
    assert caught.value.extra["request_id"] == "r-1"
    assert len(write_ids(*nodes)) == 1


async def test_a_write_that_may_have_been_applied_is_said_to_be_unknown(client, nodes, refuse, break_off):
    nodes[0].misbehave = [break_off()]
    for node in nodes:
        node.always = refuse(503, "quorum-unavailable")
    with pytest.raises(OutcomeUnknown, match="same write id") as caught:
        await client.put("x", b"data", write_id="mine")
    assert caught.value.extra["write_id"] == "mine"


async def test_a_read_is_never_of_unknown_outcome(client, nodes, break_off):
    for node in nodes:
        node.always = break_off()
    with pytest.raises(PeerError):
        await client.head("x")


async def test_a_refusal_is_not_repeated(client, nodes, refuse):
    nodes[0].misbehave = [refuse(412, "precondition-failed", headers={"ETag": '"e"', "X-Amber-Version": "7"})]
    with pytest.raises(PreconditionFailed) as caught:
        await client.put("x", b"data", if_none_match="*", if_match="abc", if_version=3)
    assert (caught.value.extra["etag"], caught.value.extra["version"]) == ("e", 7)
    headers = nodes[0].requests[0][2]
    assert (headers["If-None-Match"], headers["If-Match"], headers["X-Amber-If-Version"]) == ("*", '"abc"', "3")
    assert not nodes[1].requests


async def test_an_iterator_is_not_sent_twice_and_the_error_says_so(client, nodes, break_off):
    nodes[0].misbehave = [break_off()]
    with pytest.raises(OutcomeUnknown, match="iterator"):
        await client.put("x", (bytes(MIB) for _ in range(4)))
    assert not nodes[1].requests


async def test_a_short_iterator_is_as_good_as_bytes(client, nodes, break_off):
    nodes[0].misbehave = [break_off()]
    await client.put("x", iter([b"a", b"b"]))
    assert nodes[0].store.objects["x"][0].data == b"ab"


async def test_an_iterator_survives_a_dead_node(client, nodes):
    await nodes[0].stop()
    await client.put("x", (bytes(MIB) for _ in range(4)))
    assert len(nodes[0].store.objects["x"][0].data) == 4 * MIB


async def test_an_iterator_is_not_begun_at_a_node_that_refuses(client, nodes, make_problem):
    async def refuse_at_once(request):
        return make_problem(503, "not-ready", "starting")

    nodes[0].always = refuse_at_once
    await client.put("x", (bytes(MIB) for _ in range(4)))
    assert len(nodes[0].store.objects["x"][0].data) == 4 * MIB


async def test_a_proxy_that_swallows_expect_is_found_out(client, nodes, monkeypatch):
    loop = asyncio.get_running_loop()
    now = loop.time

    async def wait_in_vain(request):
        # The client's whole wait for a go-ahead is over: one short enough to be waited for is over before a busy machine asks.
        if "Expect" in request.headers:
            monkeypatch.setattr(loop, "time", lambda: now() + 31.0)

    for node in nodes:
        node.knows_expect = False
        node.always = wait_in_vain
    await client.put("x", (bytes(MIB) for _ in range(4)))
    await client.put("y", (bytes(MIB) for _ in range(4)))
    assert sum("Expect" in headers for node in nodes for _, _, headers in node.requests) == 1


async def test_what_the_source_raises_reaches_the_caller(client, nodes):
    def broken():
        yield bytes(2 * MIB)
        raise RuntimeError("the tape tore")

    with pytest.raises(RuntimeError, match="the tape tore"):
        await client.put("x", broken())
    assert "x" not in nodes[0].store.objects
    with pytest.raises(ValueError, match="ended after"):
        await client.put("x", [bytes(10)], size=20)
    with pytest.raises(ValueError, match="longer than"):
        await client.put("x", [bytes(10)], size=5)


async def test_a_broken_download_goes_on_at_another_node(client, nodes, cut_after):
    data = os.urandom(4 * MIB)
    await client.put("x", data)
    nodes[0].misbehave = [cut_after(nodes[0], MIB)]
    nodes[1].misbehave = [cut_after(nodes[1], MIB)]
    async with client.get("x") as reader:
        assert await reader.read() == data
    method, target, headers = nodes[2].requests[-1]
    assert (method, target) == ("GET", "/objects/x?version=1")
    assert headers["Range"].startswith("bytes=") and headers["Range"] != "bytes=0-4194303"
    assert headers["If-Match"] == f'"{reader.info.etag}"'


async def test_a_resumed_range_ends_where_it_should(client, nodes, cut_after):
    data = os.urandom(MIB)
    await client.put("x", data)
    nodes[0].misbehave = [cut_after(nodes[0], 1000)]
    assert await client.get_bytes("x", range=(100, None)) == data[100:]


async def test_wrong_bytes_are_not_handed_out(client, nodes):
    await client.put("x", b"good bytes")
    etag = nodes[0].store.objects["x"][0].etag

    async def lie(request):
        headers = {"ETag": f'"{etag}"', "X-Amber-Version": "1", "Content-Type": "a/b"}
        return web.Response(body=b"evil bytes", headers=headers)

    nodes[0].always = lie
    with pytest.raises(DigestMismatch, match="Do not use them"):
        await client.get_bytes("x")


async def test_ranges(client, nodes):
    await client.put("x", b"0123456789")
    assert await client.get_bytes("x", range=(2, 5)) == b"234"
    assert await client.get_bytes("x", range=(7, None)) == b"789"
    assert await client.get_bytes("x", range=(-2, None)) == b"89"
    async with client.get("x", range=(2, 5)) as reader:
        assert (reader.start, reader.length, reader.info.size) == (2, 3, 10)
    with pytest.raises(BadRequest) as caught:
        await client.get_bytes("x", range=(5, 5))
    assert caught.value.code == "bad-range"


async def test_errors_keep_what_the_server_said(client):
    with pytest.raises(NotFound) as caught:
        await client.head("nothing")
    with pytest.raises(NotFound) as caught:
        await client.get_bytes("nothing")
    assert (caught.value.code, caught.value.status) == ("no-such-object", 404)
    assert caught.value.extra["request_id"] == "r-1"


async def test_bad_names_and_headers_are_refused(client, nodes):
    for path in ("", "a/../b", "\ud800"):
        with pytest.raises(BadRequest):
            await client.put(path, b"")
    with pytest.raises(BadRequest):
        await client.put("x", b"", meta={"a": "1\r\nX-Evil: 1"})
    with pytest.raises(BadRequest):
        await client.put("x", b"", meta={"a b": "1"})
    assert not nodes[0].requests


async def test_bad_endpoints_are_refused():
    for endpoint in ("ftp://x", "http://", "http://x:notaport", ""):
        with pytest.raises(ConfigError):
            AsyncClient(endpoint or [])
    assert AsyncClient("a:1, http://b:2/").endpoints == ("http://a:1", "http://b:2")


async def test_listing_goes_on_to_the_end(client, nodes):
    pages = {"": (["a", "b"], "c1"), "c1": (["c"], None)}
    asked = []

    async def listing(request):
        asked.append(request.raw_path)
        names, cursor = pages[request.query.get("cursor", "")]
        rows = [{"path": name, "version": 1, "size": 0, "etag": "e"} for name in names]
        return web.json_response({"objects": rows, "prefixes": ["p/"], **({"cursor": cursor} if cursor else {})})

    nodes[0].always = listing
    found = [info.path async for page in client.list("a+/ä", delimiter="/", tombstoned=True) for info in page.objects]
    assert found == ["a", "b", "c"]
    assert asked[0] == "/objects?prefix=a%2B%2F%C3%A4&delimiter=%2F&limit=1000&tombstoned=1"


async def test_other_requests_have_their_targets(client, nodes):
    version = {"version": 3, "size": 0, "etag": "e", "tombstoned": True, "tombstoned_at": "2026-01-31T12:00:00Z"}

    async def answer(request):
        if request.method == "DELETE":
            return web.Response(status=204)
        return web.json_response({**version, "versions": [version]})

    nodes[0].always = answer
    await client.delete("x", version=2)
    await client.restore("x")
    await client.restore("x", version=3)
    history = await client.versions("x")
    await client.explain("x")
    await client.cluster()
    await client.cluster(slots="all")
    await client.cluster(slots="unhealed", since="2026-01-31T12:00:00.5Z")
    await client.heal()
    assert history[0].tombstoned and history[0].tombstoned_at is not None
    assert [request[:2] for request in nodes[0].requests] == [
        ("DELETE", "/objects/x?version=2"),
        ("POST", "/objects/x?restore"),
        ("POST", "/objects/x?restore=3"),
        ("GET", "/objects/x?versions"),
        ("GET", "/objects/x?explain"),
        ("GET", "/cluster"),
        ("GET", "/cluster?slots=1"),
        ("GET", "/cluster?slots=unhealed&since=2026-01-31T12%3A00%3A00.5Z"),
        ("POST", "/cluster/heal"),
    ]


async def test_an_answer_that_breaks_off_is_asked_for_again(client, nodes):
    async def half(request):
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(request)
        await response.write(b'{"nodes"')
        request.transport.close()
        return response

    nodes[0].misbehave = [half]
    assert await client.cluster() == {"nodes": []}


async def test_ready_asks_every_endpoint(client, nodes, make_problem):
    async def not_yet(request):
        return make_problem(503, "not-ready", "no routes yet")

    nodes[1].always = not_yet
    await nodes[2].stop()
    ready = await client.ready()
    assert ready[nodes[0].url] is None
    assert ready[nodes[1].url] == "no routes yet"
    assert "cannot be reached" in ready[nodes[2].url]


async def test_the_token_is_sent(nodes):
    async with AsyncClient(nodes[0].url, token="secret") as client:
        await client.cluster()
    assert nodes[0].requests[0][2]["Authorization"] == "Bearer secret"


async def test_a_slow_source_is_no_timeout(nodes):
    async def slow():
        for _ in range(3):
            await asyncio.sleep(0.3)
            yield bytes(MIB)

    timeouts = Timeouts(idle_s=0.2, answer_s=0.2, answer_large_s=0.2)
    async with AsyncClient(nodes[0].url, timeouts=timeouts, retry=RetryPolicy(attempts_max=1)) as client:
        for _ in range(10):
            # The node may be slow, too, on a busy machine: what is the source's fault would be so each time.
            with contextlib.suppress(AmberError):
                info = await client.put("x", slow())
                break
    assert info.size == 3 * MIB


async def test_a_large_body_does_not_fill_the_memory(client, nodes):
    nodes[0].discard_bodies = True
    count = 200
    piece = bytes(MIB)

    class Source:
        def __iter__(self):
            return (piece for _ in range(count))

    tracemalloc.start()
    try:
        info = await client.put("x", Source(), size=count * MIB)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert info.size == count * MIB
    assert peak < 40 * MIB


async def test_an_early_refusal_of_a_large_body_is_seen(client, nodes, make_problem, tmp_path):
    async def refuse_at_once(request):
        return make_problem(409, "version-conflict", "too low")

    nodes[0].always = refuse_at_once
    file = tmp_path / "large"
    with open(file, "wb") as out:
        out.truncate(50 * MIB)
    with pytest.raises(Exception, match="too low"):
        await client.put("x", file, version=1)
