"""Whatever is sent: a clear refusal, nothing stored, nothing left in staging, and the node goes on."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.cluster.harness import HOST, KIB, MIB, Api, Cluster, object_url, raw, until

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("nothing_stored")]

TRAVERSALS = [
    "..",
    ".",
    "../../etc/passwd",
    "a/../../../etc/passwd",
    "a/..",
    "./a",
    "a/./b",
    "%2e%2e/%2e%2e/etc/passwd",
    "%2E%2E",
    ".%2e/x",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2fx",
    "a%2f..%2fb",
    "%2f..%2f..%2fetc",
    "a%00b",
    "%00",
    "a%5cb",
    "..%5c..%5cx",
    "a\\b",
    "%c0%ae%c0%ae/x",
    "%c0%af%c0%af",
    "%e0%80%ae%e0%80%ae/x",
    "%f0%80%80%ae",
    "%ed%a0%80",
    "%ff",
    "%80",
    "%f5%80%80%80",
    "%",
    "%2",
    "%zz",
    "%u002e",
    "",
    "a" * 1025,
    "%41" * 1025,
    "%c3%a9" * 512 + "a",
    "x" * 9000,
]


@pytest.mark.parametrize("encoded", TRAVERSALS, ids=lambda text: text[:24].replace("\\", "backslash") or "empty")
@pytest.mark.parametrize("prefix", ["/objects/", "/blobs/"])
async def test_names_that_are_refused(api: Api, shared_cluster: Cluster, prefix: str, encoded: str) -> None:
    body = b"x" * 70 * KIB
    head = f"Host: x\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    target = prefix + encoded
    for method, sent in (("PUT", body), ("GET", b""), ("DELETE", b"")):
        framing = head if sent else "Host: x\r\nConnection: close\r\n\r\n"
        answer = await raw(shared_cluster, 0, f"{method} {target} HTTP/1.1\r\n{framing}".encode() + sent)
        assert answer is not None
        assert answer.status in (400, 414), answer
        assert answer.problem in ("bad-path", "path-too-long"), answer
        assert "root:" not in answer.body.decode()
    listing = await api.page(prefix="..")
    assert listing["objects"] == []


@pytest.mark.parametrize("path", [".amber/x", ".amber", ".amber/../x", "%2eamber/x", ".amber%2fx"])
async def test_the_reserved_corner(shared_cluster: Cluster, path: str) -> None:
    for method in ("PUT", "GET", "DELETE"):
        request = f"{method} /objects/{path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
        answer = await raw(shared_cluster, 0, request)
        assert answer is not None
        assert answer.status == (400 if ".." in path else 403), answer


async def test_names_near_the_reserved_corner(api: Api) -> None:
    for path in (".amberx", "a/.amber/x", ".ambe", "amber/x", "/.amber/x"):
        await api.put(path, b"x")
        assert (await api.get(path)).body == b"x"
        await api.delete(path)


async def test_bytes_that_are_no_http(shared_cluster: Cluster, api: Api) -> None:
    for request in (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /objects/x HTTP/9.9\r\nHost: x\r\n\r\n",
        b"PUT /objects/x HTTP/1.1\r\nHost: x\r\nContent-Length: minus\r\n\r\n",
        b"PUT /objects/x HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"PUT /objects/x HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"PUT /objects/x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\nab\r\n0\r\n\r\n",
        b"GET /objects/x HTTP/1.1\r\nNo colon here\r\n\r\n",
        b"GET /objects/\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        answer = await raw(shared_cluster, 0, request, half_close=True)
        assert answer is None or 400 <= answer.status < 500 or answer.status == 505, (request, answer)
    await api.absent("x")
    assert (await api("GET", "/healthz", node=0)).status == 200


@pytest.mark.parametrize("sent", [0, 10, 70 * KIB, 9 * MIB])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("half_close", [True, False])
async def test_a_body_that_is_cut_off(
    api: Api, shared_cluster: Cluster, name: str, sent: int, chunked: bool, half_close: bool
) -> None:
    body = b"b" * sent
    if chunked:
        framing = b"Transfer-Encoding: chunked\r\n\r\n"
        body = f"{sent:x}\r\n".encode() + body + b"\r\n" if sent else b""
    else:
        framing = f"Content-Length: {sent + 5}\r\n\r\n".encode()
    request = f"PUT {object_url(name)} HTTP/1.1\r\nHost: x\r\n".encode() + framing + body
    if half_close:
        answer = await raw(shared_cluster, 1, request, half_close=True)
        assert answer is not None
        assert (answer.status, answer.problem) == (400, "incomplete-body")
    else:
        _, writer = await asyncio.open_connection(HOST, shared_cluster.nodes[1].http_port)
        with contextlib.suppress(ConnectionError):
            writer.write(request)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    await until(lambda: not shared_cluster.staged(), "staging is empty")
    await api.absent(name)


async def test_a_client_that_sends_no_more_still_gets_its_answer(api: Api, shared_cluster: Cluster, name: str) -> None:
    put = f"PUT {object_url(name)} HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".encode()
    get = f"GET {object_url(name)} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    for request, status in [(put, 201), (get, 200)] * 10:
        answer = await raw(shared_cluster, 0, request, half_close=True)
        assert answer is not None, request
        assert answer.status == status
    await api.delete(name)


@pytest.mark.parametrize("lines", [{"X-Huge": "h" * 100_000}, {f"X-Many-{index}": "h" * 100 for index in range(2000)}])
async def test_a_huge_header(api: Api, shared_cluster: Cluster, name: str, lines: dict[str, str]) -> None:
    head = "".join(f"{key}: {value}\r\n" for key, value in lines.items())
    request = f"PUT {object_url(name)} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n{head}\r\nxx"
    answer = await raw(shared_cluster, 0, request.encode())
    assert answer is not None
    assert answer.status in (400, 431)
    await api.absent(name)


async def test_too_much_metadata(api: Api, name: str) -> None:
    for body in (b"x", b"x" * 100 * KIB):
        headers = {f"X-Amber-Meta-{index}": "m" * 2000 for index in range(5)}
        await api.put(name, body, headers=headers, expect=400)
    await api.put(name, b"x", headers={"Content-Type": "t/" + "x" * 300}, expect=400)
    await api.absent(name)


@pytest.mark.parametrize(
    "query",
    ["version=0", "version=x", "version=1&version=2", "version=%00", "version=%ff", "version=%zz"],
)
async def test_a_put_with_parameters_that_make_no_sense(api: Api, name: str, query: str) -> None:
    await api.put(name, b"x" * 100 * KIB, query=query, expect=400)
    await api.absent(name)


@pytest.mark.parametrize(
    "query", ["versions=maybe", "version=1&at=2026-01-01T00:00:00Z", "at=never", "start=a", "version=-7"]
)
async def test_a_get_with_parameters_that_make_no_sense(api: Api, query: str) -> None:
    await api.get("bad-parameters", query=query, expect=400)


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/nope", 404),
        ("GET", "/objectsx/a", 404),
        ("GET", "/internal/stage", 404),
        ("PATCH", "/objects/a", 405),
        ("PUT", "/objects", 405),
        ("DELETE", "/objects", 405),
        ("POST", "/healthz", 405),
        ("DELETE", "/cluster", 405),
        ("PUT", "/metrics", 405),
    ],
)
async def test_what_is_not_there(api: Api, method: str, target: str, status: int) -> None:
    for node in api.nodes:
        answer = await api(method, target, node=node)
        assert answer.status == status, answer
        if status == 405:
            assert answer.headers["Allow"]


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/objects/never-there", "no-such-object"),
        ("/objects/never-there?version=1", "no-such-version"),
        ("/objects/a%2F..", "bad-path"),
    ],
)
async def test_a_head_tells_which_error_it_is(api: Api, target: str, code: str) -> None:
    for node in api.nodes:
        refused, head = await api("GET", target, node=node), await api("HEAD", target, node=node)
        assert (refused.problem, refused.headers["X-Amber-Error"]) == (code, code)
        assert (head.status, head.body, head.headers["X-Amber-Error"]) == (refused.status, b"", code)


async def test_the_request_id_of_the_client_is_given_back(api: Api) -> None:
    answer = await api("GET", "/objects/never-there", headers={"X-Amber-Request-Id": "mine-42"})
    assert answer.headers["X-Amber-Request-Id"] == "mine-42"
    for bad in ("x" * 5000, "a b\tc", "ünï"):
        answer = await api("GET", "/objects/never-there", headers={"X-Amber-Request-Id": bad})
        assert answer.status == 404
        assert answer.headers["X-Amber-Request-Id"] != bad
