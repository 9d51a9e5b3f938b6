"""Objects over a real socket: what a client sees when all goes well, and each refusal."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from amberblob.errors import (
    AmberError,
    ChunkCorrupt,
    DiskFull,
    InsufficientStorage,
    NotReady,
    OutcomeUnknown,
    PeerTimeout,
    QuorumUnavailable,
)
from amberblob.ids import EMPTY_HASH, content_hash
from node.http.times import http_date, rfc3339
from tests.unit.node.http.conftest import World
from tests.unit.node.http.fake_service import START_MS, until

HELLO = b"hello"
ETAG = content_hash(HELLO)


async def put(world: World, target: str, body: Any = HELLO, **headers: str) -> dict[str, Any]:
    async with world.request("PUT", target, data=body, headers=headers) as answer:
        assert answer.status == 201, await answer.text()
        document: dict[str, Any] = await answer.json()
        return document


async def test_put_tells_what_it_stored(world: World) -> None:
    async with world.request(
        "PUT", "/objects/a%20b/%C3%A4", data=HELLO, headers={"Content-Type": "text/plain", "X-Amber-Meta-Who": "Zoë"}
    ) as answer:
        assert answer.status == 201
        assert answer.headers["ETag"] == f'"{ETAG}"'
        assert answer.headers["X-Amber-Version"] == "1"
        assert answer.headers["Location"] == "/objects/a%20b/%C3%A4"
        assert answer.headers["Last-Modified"] == http_date(START_MS + 1000)
        assert answer.headers["X-Amber-Request-Id"]
        document = await answer.json()
    assert document == {
        "path": "a b/ä",
        "version": 1,
        "blob_id": answer.headers["X-Amber-Blob-Id"],
        "size": 5,
        "etag": ETAG,
        "created_at": rfc3339(START_MS + 1000),
    }
    async with world.request("GET", "/blobs/a%20b%2F%c3%a4") as answer:
        assert (answer.status, await answer.read()) == (200, HELLO)
        assert answer.headers["Content-Type"] == "text/plain"
        assert answer.headers["X-Amber-Meta-Who"] == "Zoë"
        assert answer.headers["Content-Length"] == "5"
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["X-Amber-Blob-Id"] == document["blob_id"]
        assert "X-Amber-Tombstoned-At" not in answer.headers


async def test_head_is_get_without_the_body(world: World) -> None:
    await put(world, "/objects/a")
    async with world.request("GET", "/objects/a") as get, world.request("HEAD", "/objects/a") as head:
        assert head.status == 200
        drop = {"Date", "X-Amber-Request-Id"}
        assert {k: v for k, v in head.headers.items() if k not in drop} == {
            k: v for k, v in get.headers.items() if k not in drop
        }
    assert (await world.ask("HEAD", "/objects/none")).status == 404
    raw = await world.raw()
    await raw.send(b"HEAD /objects/a HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await raw.answer(head=True)).headers["content-length"] == "5"
    assert (await raw.answer()).body == b'{"status":"ok"}'


async def test_an_empty_object(world: World) -> None:
    assert (await put(world, "/objects/a", b""))["etag"] == EMPTY_HASH
    assert world.service.last_options is not None and world.service.last_options.size == 0
    async with world.request("GET", "/objects/a") as answer:
        assert (answer.status, answer.headers["Content-Length"], await answer.read()) == (200, "0", b"")
        assert answer.headers["Content-Type"] == "application/octet-stream"
    async with world.request("GET", "/objects/a", headers={"Range": "bytes=0-"}) as answer:
        assert (answer.status, answer.headers["Content-Range"]) == (416, "bytes */0")


async def test_bodies_in_chunks_of_every_size(world: World) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3000):
            yield bytes([number % 256])

    document = await put(world, "/objects/a", pieces())
    assert document["size"] == 3000
    assert world.service.last_options is not None and world.service.last_options.size is None
    big = bytes(range(256)) * 20_000
    await put(world, "/objects/b", big)
    for piece_bytes in (1000, 300_000, len(big)):
        world.service.piece_bytes = piece_bytes
        async with world.request("GET", "/objects/b") as answer:
            assert await answer.read() == big
    # The client has its last byte before the server is through.
    await until(lambda: world.service.reads_closed == 3)


async def test_a_compressed_body_is_stored_as_it_was_sent(world: World) -> None:
    packed = gzip.compress(b"x" * 1000)
    await put(world, "/objects/a", packed, **{"Content-Encoding": "gzip"})
    assert world.service.objects["a"][0][1] == packed
    answer = await world.ask("PUT", "/objects/a", "Content-Encoding: gzip", body=b"this is not gzip")
    assert answer.status == 201


@pytest.mark.parametrize(
    ("headers", "part"),
    [
        ({"Range": "bytes=1-3"}, b"ell"),
        ({"Range": "bytes=1-"}, b"ello"),
        ({"Range": "bytes=-2"}, b"lo"),
        ({"Range": "bytes=0-99"}, b"hello"),
        ({"Range": "bytes=1-3", "If-Range": f'"{ETAG}"'}, b"ell"),
    ],
)
async def test_a_part(world: World, headers: dict[str, str], part: bytes) -> None:
    await put(world, "/objects/a")
    async with world.request("GET", "/objects/a", headers=headers) as answer:
        assert (answer.status, await answer.read()) == (206, part)
        first = HELLO.index(part)
        assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(part) - 1}/5"
        assert answer.headers["Content-Length"] == str(len(part))
    async with world.request("HEAD", "/objects/a", headers=headers) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (206, str(len(part)))


@pytest.mark.parametrize(
    ("query", "part"), [("start=1&end=3", b"el"), ("start=4", b"o"), ("end=2", b"he"), ("start=0&end=99", b"hello")]
)
async def test_a_part_by_parameters(world: World, query: str, part: bytes) -> None:
    await put(world, "/objects/a")
    async with world.request("GET", f"/objects/a?{query}") as answer:
        assert (answer.status, await answer.read()) == (206, part)


async def test_the_whole_where_no_one_part_was_asked_for(world: World) -> None:
    await put(world, "/objects/a")
    for headers in ({"Range": "bytes=0-0,2-2"}, {"Range": "bytes=1-3", "If-Range": '"other"'}):
        async with world.request("GET", "/objects/a", headers=headers) as answer:
            assert (answer.status, await answer.read()) == (200, HELLO)


@pytest.mark.parametrize(
    ("target", "headers", "status", "code"),
    [
        ("/objects/a", {"Range": "bytes=5-2"}, 400, "bad-range"),
        ("/objects/a", {"Range": "bytes=abc"}, 400, "bad-range"),
        ("/objects/a", {"Range": "lines=1-2"}, 400, "bad-range"),
        ("/objects/a?start=1", {"Range": "bytes=1-2"}, 400, "bad-range"),
        ("/objects/a?start=3&end=1", {}, 400, "bad-range"),
        ("/objects/a", {"Range": "bytes=5-"}, 416, "range-not-satisfiable"),
        ("/objects/a?start=5", {}, 416, "range-not-satisfiable"),
        ("/objects/a?start=-1", {}, 400, "bad-parameter"),
        ("/objects/a?version=0", {}, 400, "bad-parameter"),
        ("/objects/a?version", {}, 400, "bad-parameter"),
        ("/objects/a?verison=1", {}, 400, "bad-parameter"),
        ("/objects/a?version=1&version=1", {}, 400, "bad-parameter"),
        ("/objects/a?version=1&at=5", {}, 400, "bad-parameter"),
        ("/objects/a?versions&version=1", {}, 400, "bad-parameter"),
        ("/objects/a?versions=2", {}, 400, "bad-parameter"),
        ("/objects/a?explain&versions", {}, 400, "bad-parameter"),
        ("/objects/a?at=soon", {}, 400, "bad-parameter"),
        ("/objects/a?restore", {}, 400, "bad-parameter"),
        ("/objects/a", {"X-Amber-Consistency": "eventual"}, 400, "bad-header"),
        ("/objects/a", {"If-Match": "unquoted"}, 400, "bad-header"),
        ("/objects/a", {"If-Match": '"other"'}, 412, "precondition-failed"),
        ("/objects/a?version=9", {}, 404, "no-such-version"),
        ("/objects/none", {}, 404, "no-such-object"),
        ("/objects/", {}, 400, "bad-path"),
        ("/objects/" + "a" * 1025, {}, 400, "path-too-long"),
        ("/objects/.amber/x", {}, 403, "reserved-path"),
        ("/nothing", {}, 404, "no-such-resource"),
        ("/", {}, 404, "no-such-resource"),
        ("/objects?limit=0", {}, 400, "bad-parameter"),
        ("/objects?limit=1001", {}, 400, "bad-parameter"),
        ("/objects?version=1", {}, 400, "bad-parameter"),
        ("/objects?cursor=zzzz", {}, 400, "bad-cursor"),
        ("/objects?tombstoned=yes", {}, 400, "bad-parameter"),
    ],
)
async def test_every_refusal_of_a_read_is_a_problem(
    world: World, target: str, headers: dict[str, str], status: int, code: str
) -> None:
    await put(world, "/objects/a")
    lines = [f"{name}: {value}" for name, value in headers.items()]
    answer = await world.ask("GET", target, *lines)
    assert (answer.status, answer.problem["type"]) == (status, code)
    if status == 416:
        assert answer.headers["content-range"] == "bytes */5"
    if status == 412:
        assert answer.headers["etag"] == f'"{ETAG}"'
    head = await world.ask("HEAD", target, *lines)
    assert (head.status, head.body) == (status, b"")
    assert head.headers["content-type"] == "application/problem+json"


async def test_conditional_reads(world: World) -> None:
    await put(world, "/objects/a")
    modified = http_date(START_MS + 1000)
    for headers in ({"If-None-Match": f'"x", W/"{ETAG}"'}, {"If-None-Match": "*"}, {"If-Modified-Since": modified}):
        async with world.request("GET", "/objects/a", headers=headers) as answer:
            assert (answer.status, await answer.read()) == (304, b"")
            assert answer.headers["ETag"] == f'"{ETAG}"'
            assert answer.headers["X-Amber-Version"] == "1"
    for headers in ({"If-Match": f'"{ETAG}"'}, {"If-None-Match": '"x"', "If-Modified-Since": modified}):
        async with world.request("GET", "/objects/a", headers=headers) as answer:
            assert answer.status == 200


async def test_how_a_version_is_chosen(world: World) -> None:
    await put(world, "/objects/a", b"one")
    await put(world, "/objects/a", b"two")
    async with world.request("GET", "/objects/a?version=1", headers={"X-Amber-Consistency": "local"}) as answer:
        assert await answer.read() == b"one"
    assert world.service.last_lookup == {"version": 1, "at_ms": None, "consistency": "local"}
    async with world.request("GET", f"/objects/a?at={rfc3339(START_MS + 1000)}") as answer:
        assert await answer.read() == b"one"
    async with world.request("GET", "/objects/a?at=1700000002.124") as answer:
        assert await answer.read() == b"two"


async def test_delete_and_restore(world: World) -> None:
    await put(world, "/objects/a", b"one")
    await put(world, "/objects/a", b"two")
    async with world.request("DELETE", "/objects/a") as answer:
        assert (answer.status, await answer.read()) == (204, b"")
        assert "Content-Length" not in answer.headers
    assert (await world.ask("GET", "/objects/a")).problem["type"] == "no-such-object"
    assert (await world.ask("DELETE", "/objects/a")).problem["type"] == "no-such-object"
    async with world.request("GET", "/objects/a?version=1") as answer:
        assert (answer.status, await answer.read()) == (200, b"one")
        assert answer.headers["X-Amber-Tombstoned-At"] == rfc3339(world.service.now_ms)
    async with world.request("POST", "/objects/a?restore=1") as answer:
        assert (answer.status, (await answer.json())["version"]) == (200, 1)
        assert answer.headers["X-Amber-Version"] == "1"
    async with world.request("POST", "/objects/a?restore") as answer:
        assert (answer.status, (await answer.json())["version"]) == (200, 2)
    async with world.request("DELETE", "/objects/a?version=2") as answer:
        assert answer.status == 204
    async with world.request("GET", "/objects/a") as answer:
        assert await answer.read() == b"one"
    async with world.request("GET", "/objects/a?versions") as answer:
        document = await answer.json()
    assert document["path"] == "a"
    assert [(v["version"], v["tombstoned"], v["is_head"]) for v in document["versions"]] == [
        (2, True, False),
        (1, False, True),
    ]
    assert set(document["versions"][0]) == {
        "version", "blob_id", "size", "etag", "created_at", "content_type", "meta", "tombstoned", "tombstoned_at", "is_head",
    }  # fmt: skip
    assert (await world.ask("POST", "/objects/a")).problem["type"] == "bad-parameter"
    assert (await world.ask("POST", "/objects/a?restore=1")).problem["type"] == "nothing-to-restore"


async def test_listing(world: World) -> None:
    for name in ("a", "b", "%C3%A4", "%F0%9F%98%80"):
        await put(world, f"/objects/{name}")
    async with world.request("DELETE", "/objects/b") as answer:
        assert answer.status == 204
    seen: list[str] = []
    cursor = ""
    for _ in range(3):
        async with world.request("GET", f"/blobs?limit=1&prefix=&delimiter=&cursor={cursor}") as answer:
            page = await answer.json()
        seen += [listed["path"] for listed in page["objects"]]
        assert page["prefixes"] == []
        cursor = page.get("cursor", "")
    assert seen == ["a", "ä", "😀"] and cursor == ""
    async with world.request("GET", "/objects?tombstoned=1&at=5&delimiter=%2F&prefix=b") as answer:
        page = await answer.json()
    assert [(listed["path"], listed["tombstoned"]) for listed in page["objects"]] == [("b", True)]
    assert world.service.last_list == {"prefix": "b", "delimiter": "/", "limit": 1000, "start": "", "at_ms": 5000}
    async with world.request("GET", "/objects") as answer:
        assert set((await answer.json())["objects"][0]) == {
            "path", "version", "blob_id", "size", "etag", "created_at", "content_type",
        }  # fmt: skip


async def test_explain(world: World) -> None:
    async with world.request("GET", "/objects/a?explain") as answer:
        assert await answer.json() == {"path": "a", "slot": 7}


async def test_conditional_writes_tell_of_the_head(world: World) -> None:
    absent = await world.ask("PUT", "/objects/a", f'If-Match: "{ETAG}"', body=b"x")
    assert (absent.status, absent.problem["type"]) == (412, "precondition-failed")
    assert absent.headers["x-amber-version"] == "0" and "etag" not in absent.headers
    await put(world, "/objects/a", HELLO, **{"If-None-Match": "*", "X-Amber-If-Version": "0"})
    for line in ("If-None-Match: *", "X-Amber-If-Version: 2", 'If-Match: "x"'):
        for method in ("PUT", "DELETE"):
            refused = await world.ask(method, "/objects/a", line)
            assert refused.status == 412
            assert refused.headers["etag"] == f'"{ETAG}"'
            assert refused.headers["x-amber-version"] == "1"
            assert refused.headers["x-amber-blob-id"]
            assert refused.headers["last-modified"] == http_date(START_MS + 1000)
            assert refused.problem["head"]["created_at"] == rfc3339(START_MS + 1000)
    await put(world, "/objects/a", b"x", **{"If-Match": f'"{ETAG}"'})


async def test_versions_given_by_the_client(world: World) -> None:
    assert (await put(world, "/objects/a?version=7"))["version"] == 7
    assert (await world.ask("PUT", "/objects/a?version=7", body=b"x")).problem["type"] == "version-conflict"


async def test_digests_are_passed_on_and_refused(world: World) -> None:
    sha = base64.b64encode(hashlib.sha256(HELLO).digest()).decode()
    await put(world, "/objects/a", HELLO, **{"Content-Digest": f"sha-256=:{sha}:", "X-Amber-Content-Blake3": ETAG})
    wrong = await world.ask("PUT", "/objects/b", f"Content-Digest: sha-256=:{sha}:", body=b"other")
    assert (wrong.status, wrong.problem["type"]) == (422, "digest-mismatch")
    assert "b" not in world.service.objects


@pytest.mark.parametrize(
    "line",
    [
        "X-Amber-Write-Id: " + "x" * 65,
        "X-Amber-Write-Id: ä",
        "X-Amber-Write-Id:",
        "X-Amber-Content-Blake3: abc",
        "Content-Digest: md5=:AAAA:",
        'If-None-Match: "abc"',
        "X-Amber-If-Version: one",
        "X-Amber-Meta-A: \udcff",
        "X-Amber-Meta-A: " + "x" * 8192,
        "X-Amber-Meta-: x",
        "Content-Type: \udcff",
        "Content-Type: " + "x" * 257,
        "Content-Range: bytes 0-1/2",
        "Range: bytes=0-1",
        "X-Amber-Write-Id: a\r\nX-Amber-Write-Id: b",
    ],
)
async def test_headers_that_cannot_be_meant(world: World, line: str) -> None:
    answer = await world.ask("PUT", "/objects/a", line, body=HELLO)
    assert (answer.status, answer.problem["type"]) == (400, "bad-header")
    assert world.service.objects == {}


async def test_everything_of_a_put_reaches_the_service(world: World) -> None:
    await put(
        world,
        "/objects/a?version=3",
        HELLO,
        **{"X-Amber-Write-Id": "~ id 1", "X-Amber-Meta-A-b": "1", "x-amber-meta-C": "", "Content-Type": "a/b; c=d"},
    )
    options = world.service.last_options
    assert options is not None
    assert (options.size, options.version, options.write_id, options.content_type) == (5, 3, "~ id 1", "a/b; c=d")
    assert options.meta == {"a-b": "1", "c": ""}
    answer = await world.ask("PUT", "/objects/a", "X-Amber-Meta-A: 1", "x-amber-meta-a: 2", body=HELLO)
    assert answer.status == 201
    assert world.service.last_options is not None and world.service.last_options.meta == {"a": "1, 2"}


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QuorumUnavailable.of(2, 1, {"node-2": "timeout"}), 503, "quorum-unavailable"),
        (NotReady("starting"), 503, "not-ready"),
        (OutcomeUnknown("who knows"), 504, "outcome-unknown"),
        (InsufficientStorage("no room"), 507, "insufficient-storage"),
        (DiskFull("no room"), 507, "disk-full"),
        (RuntimeError("a secret of the inside"), 504, "outcome-unknown"),
        (PeerTimeout("node-2"), 504, "outcome-unknown"),
        (TimeoutError(), 504, "outcome-unknown"),
    ],
)
async def test_the_outcomes_of_a_write(world: World, error: BaseException, status: int, code: str) -> None:
    world.service.fail = error
    for method, target in (("PUT", "/objects/a"), ("DELETE", "/objects/a"), ("POST", "/objects/a?restore")):
        answer = await world.ask(method, target)
        assert (answer.status, answer.problem["type"]) == (status, code)
        assert ("retry-after" in answer.headers) == (status == 503)
        assert "secret" not in answer.problem["detail"]
    if isinstance(error, QuorumUnavailable):
        assert answer.problem["failures"] == {"node-2": "timeout"}


@pytest.mark.parametrize(
    "error", [QuorumUnavailable("two are down"), NotReady("starting"), InsufficientStorage("no room"), DiskFull("none")]
)
async def test_no_refusal_of_a_repeated_write_hides_its_earlier_attempt(world: World, error: AmberError) -> None:
    """The 507 was found by the nemesis: a write that was told "nothing was stored" appeared later."""
    world.service.fail = error
    for method, target in (("PUT", "/objects/a"), ("DELETE", "/objects/a"), ("POST", "/objects/a?restore")):
        answer = await world.ask(method, target, "X-Amber-Write-Id: w")
        assert (answer.status, answer.problem["type"]) == (504, "outcome-unknown")
        assert answer.problem["attempt"] == error.code
        assert world.service.last_repeat, "what the earlier attempt did is to be looked for"
        answer = await world.ask(method, target, "X-Amber-Write-Id: w", "X-Amber-Attempt: first")
        assert (answer.status, answer.problem["type"]) == (error.status, error.code)
        assert not world.service.last_repeat
        answer = await world.ask(method, target, "X-Amber-Write-Id: w", "X-Amber-Attempt: third")
        assert (answer.status, answer.problem["type"]) == (400, "bad-header")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (QuorumUnavailable("two are down"), 503, "quorum-unavailable"),
        (PeerTimeout("node-2"), 503, "peer-timeout"),
        (ChunkCorrupt("it is gone"), 500, "chunk-corrupt"),
        (RuntimeError("a secret of the inside"), 500, "internal-error"),
        (TimeoutError(), 500, "internal-error"),
    ],
)
async def test_failures_of_a_read(world: World, error: BaseException, status: int, code: str) -> None:
    world.service.fail = error
    for target in ("/objects/a", "/objects"):
        answer = await world.ask("GET", target)
        assert (answer.status, answer.problem["type"]) == (status, code)
        assert ("retry-after" in answer.headers) == (status == 503)
        assert "secret" not in answer.problem["detail"]


async def test_a_body_that_cannot_be_read_at_all_is_an_error_not_a_short_body(world: World) -> None:
    await put(world, "/objects/a", b"x" * 5000)
    world.service.fail_read_after = 0
    answer = await world.ask("GET", "/objects/a")
    assert (answer.status, answer.problem["type"]) == (500, "internal-error")


async def test_a_body_that_fails_midway_breaks_the_connection(world: World) -> None:
    await put(world, "/objects/a", b"x" * 5000)
    world.service.fail_read_after = 2000
    raw = await world.raw()
    await raw.send(b"GET /objects/a HTTP/1.1\r\nHost: x\r\n\r\n")
    got = await raw.closed()
    assert got.count(b"x") < 5000
    assert b"problem" not in got
    assert (await world.ask("GET", "/healthz")).status == 200


@pytest.mark.parametrize(
    ("method", "target", "allowed"),
    [
        ("PATCH", "/objects/a", "GET, HEAD, PUT, DELETE, POST"),
        ("OPTIONS", "/blobs/a", "GET, HEAD, PUT, DELETE, POST"),
        ("PUT", "/objects", "GET, HEAD"),
        ("DELETE", "/objects?prefix=", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("TRACE", "/metrics", "GET, HEAD"),
    ],
)
async def test_methods_that_a_resource_does_not_have(world: World, method: str, target: str, allowed: str) -> None:
    answer = await world.ask(method, target)
    assert (answer.status, answer.problem["type"]) == (405, "method-not-allowed")
    assert answer.headers["allow"] == allowed


def test_the_error_tree_has_codes() -> None:
    assert AmberError("x").code == "internal-error"
