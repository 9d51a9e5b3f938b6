"""The public port under requests that no client of ours would send.

Whatever arrives is answered as api.md says or the connection ends, in bounded time; and the node is none the worse.
"""

from __future__ import annotations

import itertools
import random
import re
import socket
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cluster.harness import KIB, MIB, content
from tests.fuzz.kit import (
    EXAMPLES,
    Report,
    Said,
    Victim,
    ask,
    connect,
    converse,
    fuzzed,
    parse_answers,
    request,
    reset,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600 + EXAMPLES * 3)]

SENTINEL = "sentinel"
SMUGGLED = "smuggled"

_serial = itertools.count()


def fresh(prefix: str = "fuzz") -> str:
    """A name that no other example uses."""
    return f"{prefix}/{next(_serial)}"


# -- anything at all

NAMES = st.one_of(
    st.sampled_from(
        ["known", "fuzz/a", "a//b/", "a+b", "x" * 1024, "%41" * 1024, "%F0%9F%A6%A0", "a;b=c&d:e@f", "%20"]
    ),
    st.sampled_from(["", "..", "../a", "%2e%2e/a", "a/../b", ".", "%00", "a%00b", "%", "%2", "%zz", "%ff", "%c0%ae"]),
    st.sampled_from(
        ["x" * 1025, "%41" * 1025, "y" * 20_000, ".amber", ".amber/x", "%2eamber/x", "a#b", "\\", "ä", "\udcff"]
    ),
    st.text(st.characters(codec="latin-1", exclude_characters="\r\n "), max_size=12),
    st.text(max_size=8).map(lambda text: quote(text.encode("utf-8", "surrogatepass"), safe="")),
)
NUMBERS = ["0", "1", "2", "-1", "+1", "1_0", "01", "1.5", "1e3", "0x10", "٣", "%D9%A3", "9223372036854775807"]
NUMBERS += ["9223372036854775808", "18446744073709551616", "9" * 400, "", " 1", "1%00", "nan", "inf", "true"]
TIMES = ["2026-01-31T12:00:00Z", "0", "-1", "99999999999999999999", "253402300800", "1e308", "nan", "inf", "-inf"]
TIMES += [
    "0001-01-01T00:00:00%2B23:59",
    "9999-12-31T23:59:59-23:59",
    "2026-02-30T00:00:00Z",
    "2026-01-31",
    "now",
    "%00",
]
TEXTS = [
    "",
    "a",
    "/",
    "%2F",
    "%00",
    "%ff",
    "%F4%8F%BF%BF",
    "x" * 1024,
    "x" * 1025,
    "%",
    "..",
    "a%0Ab",
    "AWE",
    "AQ",
    "A" * 5000,
]
PARAMETERS = st.one_of(
    st.builds(
        "{}={}".format, st.sampled_from(["version", "start", "end", "limit", "restore"]), st.sampled_from(NUMBERS)
    ),
    st.builds("at={}".format, st.sampled_from(TIMES)),
    st.builds("{}={}".format, st.sampled_from(["prefix", "delimiter", "cursor"]), st.sampled_from(TEXTS)),
    st.builds(
        "{}={}".format, st.sampled_from(["tombstoned", "versions", "explain"]), st.sampled_from([*NUMBERS, *TEXTS])
    ),
    st.sampled_from(
        ["versions", "restore", "explain", "at", "limit", "prefix", "version", "=", "&", "?", "%zz=1", "verison=3"]
    ),
)
QUERIES = st.one_of(st.just(""), st.lists(PARAMETERS, min_size=1, max_size=3).map(lambda parts: "?" + "&".join(parts)))
ROOTS = [
    "/objects/",
    "/blobs/",
    "http://elsewhere/objects/",
    "http://u:p@[::1]:99999/objects/",
    "//objects/",
    "/OBJECTS/",
]
PLAIN = [
    "/objects",
    "/blobs",
    "/healthz",
    "/readyz",
    "/metrics",
    "/cluster",
    "/cluster/heal",
    "/openapi.json",
    "/",
    "*",
    "//",
    "",
    "objects",
]
PLAIN += ["/objects/../healthz", "/%6fbjects/a", "http://", "http://[::1", "://", "?", "#", "/\x7f", "x:80"]
TARGETS = st.one_of(
    st.builds("{}{}{}".format, st.sampled_from(ROOTS), NAMES, QUERIES),
    st.builds("/objects/known{}".format, QUERIES),
    st.builds("{}{}".format, st.sampled_from(PLAIN), QUERIES),
)
METHODS = st.one_of(
    st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "POST", "GET", "PUT"]),
    st.sampled_from(
        ["OPTIONS", "PATCH", "TRACE", "CONNECT", "get", "PRI", "M-SEARCH", "X" * 5000, "G\0T", "", "GET GET", "ÄT"]
    ),
)
ETAG = content("known", 3 * KIB)
VALUES = [
    "*",
    '"*"',
    "",
    '"',
    'W/"a"',
    '"a", "b"',
    "a",
    "\t",
    "é",
    "\udcff",
    "\0",
    "x" * 15_000,
    "bytes=0-",
    "chunked",
    "-1",
]
DATES = ["Sat, 31 Jan 2026 12:00:00 GMT", "Sat, 31 Feb 2026 12:00:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "0", "now"]
DATES += ["Sun Nov  6 08:49:37 1994", "Sunday, 06-Nov-94 08:49:37 GMT", "Mon, 01 Jan 0001 00:00:00 GMT", "x" * 300]
DIGESTS = [
    "sha-256=:AAAA:",
    "blake3=:AAAA:",
    "sha-256=AAAA",
    ":",
    "sha-256=:" + "A" * 9000 + ":",
    "=,=",
    "0" * 64,
    "z" * 64,
]
RANGES = [
    "bytes=0-0",
    "bytes=-1",
    "bytes=-0",
    "bytes=5-",
    "bytes=0-0,1-1",
    "bytes=18446744073709551616-",
    "bytes=-" + "9" * 300,
]
RANGES += [
    "bytes=1-0",
    "bytes=",
    "bytes=-",
    "lines=0-1",
    "bytes=0-" + "9" * 5000,
    "bytes=" + "0-0," * 3000 + "0-0",
    "bytes=٣-",
]


def _header(name: str, values: list[str]) -> st.SearchStrategy[str]:
    return st.sampled_from(values).map(lambda value: f"{name}: {value}")


HEADERS = st.one_of(
    st.one_of([_header(name, [*VALUES, f'"{ETAG.hex()[:64]}"']) for name in ("If-Match", "If-None-Match", "If-Range")]),
    st.one_of([_header(name, DATES + VALUES) for name in ("If-Modified-Since", "If-Unmodified-Since", "If-Range")]),
    st.one_of([_header(name, NUMBERS) for name in ("X-Amber-If-Version", "Content-Length", "Max-Forwards")]),
    st.one_of(
        [_header(name, DIGESTS + VALUES) for name in ("Content-Digest", "X-Amber-Content-Blake3", "Repr-Digest")]
    ),
    _header("Range", RANGES + VALUES),
    _header(
        "Transfer-Encoding", ["chunked", "gzip, chunked", "chunked, chunked", "identity", "xchunked", "chunked;q=1", ""]
    ),
    _header("Expect", ["100-continue", "100-Continue", "a miracle", ""]),
    _header("Connection", ["close", "keep-alive", "Upgrade", "close, keep-alive", "", "x" * 100]),
    _header("Upgrade", ["h2c", "websocket", "", "a/b, c"]),
    _header("X-Amber-Consistency", ["strong", "local", "LOCAL", "", "eventual"]),
    _header("X-Amber-Write-Id", ["", "a", "w" * 64, "w" * 65, "\0", "ä", " "]),
    _header("X-Amber-Request-Id", ["mine", "x" * 65, "\udcff", "a b", ""]),
    _header("X-Amber-Meta-A", ["1", "ä", "\udcff", "x" * 8191, "x" * 8193, "\x01", ""]),
    _header("Content-Type", ["text/plain", "x" * 256, "x" * 257, "\udcff", "ä", ""]),
    _header("Host", ["", "a", "a b", "x" * 5000, "\0"]),
    st.sampled_from(
        [
            "X-Amber-Meta-: a",
            "A",
            ": a",
            "A : b",
            " folded: y",
            "\tfolded",
            "A: b\r",
            "A: \0",
            "Ä: b",
            "A:" + "x" * 17_000,
        ]
    ),
    st.sampled_from(
        ["\r\n".join(f"A{i}: b" for i in range(200)), "Cookie: " + "a=b; " * 3000, "Authorization: Bearer \udcff"]
    ),
    st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=20),
)
VERSIONS = st.sampled_from(
    [" HTTP/1.1"] * 8 + [" HTTP/1.0", " HTTP/0.9", " HTTP/2.0", " HTTP/9.9", "", " HTTP/1.1 x", " http/1.1"]
)
ENDS = st.sampled_from(["\r\n"] * 8 + ["\n", "\r", "\r\r\n", ""])


@st.composite
def any_request(draw: st.DrawFn) -> tuple[str, bytes]:
    """Something like a request: its method, its bytes. Only a part of it is odd, so that it gets far."""
    odd = draw(st.sets(st.sampled_from(["method", "target", "query", "headers", "version", "end", "body"]), max_size=2))
    method = draw(METHODS if "method" in odd else st.sampled_from(["GET", "HEAD", "PUT", "DELETE", "POST"]))
    target = draw(TARGETS) if "target" in odd else draw(st.sampled_from(["/objects/known", "/objects/b", "/objects"]))
    target += draw(QUERIES) if "query" in odd else ""
    version = draw(VERSIONS) if "version" in odd else " HTTP/1.1"
    headers = draw(st.lists(HEADERS, min_size=1, max_size=3)) if "headers" in odd else []
    head = [f"{method} {target}{version}", "Host: x", *headers]
    body = b"hello" if method == "PUT" else b""
    if "body" in odd:
        body = draw(st.sampled_from([b"5\r\nhello\r\n0\r\n\r\n", b"\0" * 3000, b"GET / HTTP/1.1\r\n\r\n"]))
    if "body" not in odd or draw(st.booleans()):
        head.append(f"Content-Length: {len(body)}")
    end = draw(ENDS) if "end" in odd else "\r\n"
    return method, (end.join(head) + end + end).encode("utf-8", "surrogateescape") + body


@pytest.fixture
def known(module_node: Victim) -> bytes:
    """The content of /objects/known, whatever an attack before made of it."""
    data = content("known", 3 * KIB)
    assert ask(module_node.http, "PUT", "/objects/known", body=data).status == 201
    return data


def test_anything_like_a_request(node: Victim, known: bytes) -> None:
    report = Report("requests")
    seen: Counter[int] = Counter()
    ended: Counter[str] = Counter()

    @fuzzed(900)
    @given(st.lists(any_request(), min_size=1, max_size=3), st.integers(0, 3))
    def attack(requests: list[tuple[str, bytes]], cut: int) -> None:
        data = b"".join(text for _, text in requests)
        pieces = [data] if cut else [data[: len(data) // 2], data[len(data) // 2 :]]
        said = converse(node.http, pieces)
        answers, rest = parse_answers(said.data, heads=lambda _: any(method == "HEAD" for method, _ in requests))
        assert not rest, f"an answer was cut off: {rest[:300]!r}"
        ended[said.ended] += 1
        for answer in answers:
            seen[answer.status] += 1
        node.counts["requests"] += len(requests)

    attack()
    report.say(f"{node.counts['requests']} requests, statuses {dict(sorted(seen.items()))}, ended {dict(ended)}")
    assert {200, 201, 204, 400, 404, 405} <= set(seen), "the attacks get to all sorts of places"
    assert not any(status >= 500 for status in seen), seen


# -- framing


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A body, and a way to send it in chunks that the standard allows."""
    body = draw(st.binary(max_size=300))
    sizes = draw(st.sampled_from(["ones", "any", "whole"]))
    extension = draw(st.sampled_from([b"", b"", b";a", b";a=b", b';a="b;c"', b";" + b"x" * 900]))
    trailers = draw(st.sampled_from([b"", b"", b"Expires: never\r\n", b"X-Amber-Meta-A: late\r\n"]))
    wire = bytearray()
    at = 0
    while at < len(body):
        size = {"ones": 1, "whole": len(body), "any": draw(st.integers(1, 40)) if sizes == "any" else 1}[sizes]
        piece = body[at : at + size]
        at += size
        digits = draw(st.sampled_from([b"%x", b"%X", b"000%x"])) if sizes != "ones" else b"%x"
        wire += digits % len(piece) + extension + b"\r\n" + piece + b"\r\n"
    wire += b"0\r\n" + trailers + b"\r\n"
    return body, bytes(wire)


def cuts(data: bytes, seed: int) -> Iterator[bytes]:
    """The same bytes in pieces: one byte each, or at random places."""
    if seed == 0:
        yield from (data[at : at + 1] for at in range(len(data)))
        return
    rng = random.Random(seed)
    places = sorted({0, len(data), *(rng.randrange(len(data)) for _ in range(rng.randrange(6)))})
    for low, high in itertools.pairwise(places):
        yield data[low:high]


def test_chunks_of_every_legal_sort(node: Victim) -> None:
    report = Report("legal chunks")

    @fuzzed(80)
    @given(chunked(), st.integers(0, 50))
    def attack(sent: tuple[bytes, bytes], seed: int) -> None:
        body, wire = sent
        path = fresh("chunked")
        head = f"PUT /objects/{path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        follow = request("GET", f"/objects/{path}", "Connection: close")
        said = converse(node.http, cuts(head + wire + follow, seed), half_close=False)
        answers, rest = parse_answers(said.data)
        assert [answer.status for answer in answers] == [201, 200] and not rest, said
        assert answers[1].body == body, "the body is what the chunks held, and the next request begins behind them"
        assert "X-Amber-Meta-A" not in answers[1].headers, "a trailer is no header"
        node.counts["bodies"] += 1
        node.counts["single bytes"] += seed == 0

    attack()
    report.say(str(dict(node.counts)))
    assert node.counts["bodies"] >= 50 and node.counts["single bytes"] > 0


SMUGGLE = f"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Amber-Request-Id: {SMUGGLED}\r\n\r\n".encode()

AMBIGUOUS: list[tuple[str, str, bytes]] = [
    ("both", "Content-Length: 5\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    ("both, the other way", "Transfer-Encoding: chunked\r\nContent-Length: 5", b"0\r\n\r\n"),
    ("both, agreeing", "Transfer-Encoding: chunked\r\nContent-Length: 15", b"5\r\nhello\r\n0\r\n\r\n"),
    ("two lengths", "Content-Length: 0\r\nContent-Length: 44", b""),
    ("two lengths, equal", "Content-Length: 5\r\nContent-Length: 5", b"hello"),
    ("a list of lengths", "Content-Length: 0, 44", b""),
    ("negative", "Content-Length: -1", b""),
    ("plus", "Content-Length: +5", b"hello"),
    ("underscore", "Content-Length: 1_0", b"hello"),
    ("hexadecimal", "Content-Length: 0x5", b"hello"),
    ("empty", "Content-Length:", b"hello"),
    ("beyond 64 bits", "Content-Length: 18446744073709551617", b""),
    ("beyond everything", "Content-Length: " + "9" * 4000, b""),
    ("blank in the number", "Content-Length: 1 0", b"hello"),
    ("blank before the colon", "Content-Length : 5", b"hello"),
    ("blank before the colon of TE", "Content-Length: 5\r\nTransfer-Encoding : chunked", b"0\r\n\r\n"),
    ("chunked twice", "Transfer-Encoding: chunked, chunked", b"0\r\n\r\n"),
    ("chunked in two lines", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    ("identity", "Transfer-Encoding: identity", b""),
    ("identity and a length", "Transfer-Encoding: identity\r\nContent-Length: 5", b"hello"),
    ("not last", "Transfer-Encoding: chunked, gzip", b"0\r\n\r\n"),
    ("gzip", "Transfer-Encoding: gzip", b""),
    ("unknown", "Transfer-Encoding: xchunked", b"0\r\n\r\n"),
    ("vertical tab", "Transfer-Encoding: \x0bchunked", b"0\r\n\r\n"),
    ("quoted", 'Transfer-Encoding: "chunked"', b"0\r\n\r\n"),
    ("folded", "Transfer-Encoding:\r\n chunked", b"0\r\n\r\n"),
    ("bare LF", "Content-Length: 5\nTransfer-Encoding: chunked", b"0\r\n\r\n"),
    ("bare CR", "A: b\rTransfer-Encoding: chunked", b""),
    ("NUL", "Content-Length: 5\0", b"hello"),
]
CHUNKED = "Transfer-Encoding: chunked"
AMBIGUOUS += [
    (f"chunks: {what}", CHUNKED, body)
    for what, body in {
        "no number": b"zz\r\nhello\r\n0\r\n\r\n",
        "empty number": b"\r\nhello\r\n0\r\n\r\n",
        "negative": b"-5\r\nhello\r\n0\r\n\r\n",
        "plus": b"+5\r\nhello\r\n0\r\n\r\n",
        "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
        "underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
        "2^64": b"10000000000000005\r\nhello\r\n0\r\n\r\n",
        "many digits": b"f" * 4000 + b"\r\nhello\r\n0\r\n\r\n",
        "blank before": b" 5\r\nhello\r\n0\r\n\r\n",
        "too short": b"3\r\nhello\r\n0\r\n\r\n",
        "no line end after the data": b"5\r\nhello0\r\n\r\n",
        "bare LF after the size": b"5\nhello\r\n0\r\n\r\n",
        "bare LF after the data": b"5\r\nhello\n0\r\n\r\n",
        "bare CR in the extension": b"5;a\rb\r\nhello\r\n0\r\n\r\n",
        "LF in the extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
        "NUL in the extension": b"5;\0\r\nhello\r\n0\r\n\r\n",
        "trailer without a colon": b"5\r\nhello\r\n0\r\nrubbish\r\n\r\n",
        "a trailer that is no trailer": b"5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n",
        "trailer folded": b"5\r\nhello\r\n0\r\n folded\r\n\r\n",
        "trailers without end": b"5\r\nhello\r\n0\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    }.items()
]
LENIENT = {
    "two lengths, equal": "RFC 9110 8.6 lets equal ones be taken for one",
    "chunked in two lines": "",
    "identity": "",
    "folded": "",
    "chunks: trailer folded": "",
}


@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_framing_that_could_be_read_in_two_ways(node: Victim, method: str) -> None:
    """Refused, the connection closed, nothing stored; and no part of the body is taken for a request."""
    report = Report(f"ambiguous {method}")
    for (what, headers, body), cut in itertools.product(AMBIGUOUS, (1, 2, 3, 0)):
        path = fresh("ambiguous")
        head = f"{method} /objects/{path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n\r\n".encode("utf-8", "surrogateescape")
        wire = head + body + SMUGGLE
        if cut == 0 and len(wire) > 1000:
            continue
        pieces = {1: [wire], 2: [head, body + SMUGGLE], 3: [head + body, SMUGGLE]}.get(cut) or cuts(wire, 0)
        said = converse(node.http, pieces, half_close=False)
        answers, rest = parse_answers(said.data)
        ids = [answer.headers["X-Amber-Request-Id"] for answer in answers]
        assert not rest and said.ended in ("closed", "reset"), (what, said)
        assert SMUGGLED not in ids, (what, cut, said.data)
        assert len(answers) <= 1 or method != "PUT", (what, cut, said.data)
        stored = ask(node.http, "GET", f"/objects/{path}").status
        assert stored == 404, (what, cut, said.data)
        node.counts["cases"] += 1
        node.counts[str([answer.status for answer in answers])] += 1
    report.say(str(dict(node.counts)))
    assert node.counts["cases"] > 100


# -- ranges


def expected_range(value: str, size: int) -> tuple[int, slice | None]:
    """What RFC 9110 14 and ranges.py say of one Range header: the status and the bytes (None: all of them)."""
    match = re.fullmatch(r"bytes=(.*)", value, re.DOTALL)
    specs = [spec.strip(" \t") for spec in match[1].split(",")] if match else [""]
    for spec in specs:
        found = re.fullmatch(r"([0-9]*)-([0-9]*)", spec, re.ASCII)
        if found is None or spec == "-":
            return 400, None
        # Beyond 19 digits every number is alike: no object is so large.
        if found[1] and found[2] and min(int(found[1]), 10**19) > min(int(found[2]), 10**19):
            return 400, None
    if len(specs) > 1:
        return 200, None
    first, last = specs[0].split("-")
    if not first:
        length = min(int(last), size)
        return (206, slice(size - length, size)) if length else (416, None)
    if int(first) >= size:
        return 416, None
    return 206, slice(int(first), min(int(last) + 1, size) if last else size)


OFFSETS = st.one_of(
    st.integers(0, 5000),
    st.sampled_from(
        [3 * KIB - 1, 3 * KIB, 3 * KIB + 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, 2**64 + 1, 10**100]
    ),
).map(str)
SPECS = st.one_of(
    st.builds("{}-{}".format, OFFSETS, OFFSETS),
    st.builds("{}-".format, OFFSETS),
    st.builds("-{}".format, OFFSETS),
    st.sampled_from(
        ["-", "", "-0", "0-", "a-b", "0--1", "--1", " 0-0 ", "0 -0", "+0-1", "00000-00001", "0-0-0", "٣-٤"]
    ),
)
RANGE = st.one_of(
    SPECS.map("bytes={}".format),
    st.lists(SPECS, min_size=2, max_size=5).map(lambda specs: "bytes=" + ",".join(specs)),
    st.integers(100, 3000).map(
        lambda count: "bytes=" + ",".join(f"{i}-{i}" for i in range(count))[:15_000].rstrip(",-") + "-"
    ),
    st.sampled_from(["bytes", "lines=0-1", "bytes 0-1", "", "=", "bytes=0-1;a"]),
)


def test_ranges_of_every_sort(node: Victim, known: bytes) -> None:
    report = Report("ranges")

    @fuzzed(400)
    @given(RANGE)
    def attack(value: str) -> None:
        answer = ask(node.http, "GET", "/objects/known", f"Range: {value}")
        status, part = expected_range(value, len(known))
        assert answer.status == status, (value, answer)
        if status in (200, 206):
            assert answer.body == (known if part is None else known[part]), value
        if part is not None:
            assert answer.headers["Content-Range"] == f"bytes {part.start}-{part.stop - 1}/{len(known)}"
        if status == 416:
            assert answer.headers["Content-Range"] == f"bytes */{len(known)}"
        node.counts[str(status)] += 1

    attack()
    report.say(str(dict(node.counts)))
    assert {"200", "206", "400", "416"} <= set(node.counts)


# -- pipelining


def test_pipelined_requests_are_answered_in_their_order(node: Victim, known: bytes) -> None:
    report = Report("pipelining")
    sorts: list[tuple[str, str, bytes, int]] = [
        ("GET", "/objects/known", b"", 200),
        ("HEAD", "/objects/known", b"", 200),
        ("GET", "/objects/absent", b"", 404),
        ("PUT", "/objects/piped", b"hello", 201),
        ("PUT", "/objects/..", b"refused", 400),
        ("GET", "/objects/known?limit=3", b"body of a GET", 400),
        ("POST", "/healthz", b"x", 405),
        ("GET", "/objects?limit=1", b"", 200),
        ("DELETE", "/objects/absent", b"", 404),
    ]

    @fuzzed(40)
    @given(st.lists(st.sampled_from(sorts), min_size=1, max_size=120), st.integers(1, 50), st.booleans())
    def attack(asked: list[tuple[str, str, bytes, int]], seed: int, half_close: bool) -> None:
        wire = bytearray()
        for number, (method, target, body, _) in enumerate(asked):
            last = ["Connection: close"] if number == len(asked) - 1 and not half_close else []
            wire += request(method, target, f"X-Amber-Request-Id: r{number}", *last, body=body)
        said = converse(node.http, cuts(bytes(wire), seed), half_close=half_close)
        answers, rest = parse_answers(said.data, heads=lambda index: asked[index][0] == "HEAD")
        assert not rest and said.ended == "closed", said
        assert [answer.headers["X-Amber-Request-Id"] for answer in answers] == [f"r{n}" for n in range(len(asked))]
        assert [answer.status for answer in answers] == [status for *_, status in asked]
        node.counts["requests"] += len(asked)

    attack()
    report.say(str(dict(node.counts)))
    assert node.counts["requests"] > 100


# -- going away


def test_clients_that_go_away_at_every_point(node: Victim, known: bytes) -> None:
    """In the head, in the body, before and in the answer: by FIN, by RST, and by falling silent and then RST."""
    report = Report("aborts")
    large = content("large", 2 * MIB)
    assert ask(node.http, "PUT", "/objects/large", body=large).status == 201
    plain = request("PUT", "/objects/aborted", body=b"x" * 200)
    chunks = b"PUT /objects/aborted HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5\r\nhello\r\n" * 10
    staged = request("PUT", "/objects/aborted", body=content("staged", 400 * KIB))

    def leave(sock: socket.socket, how: str) -> None:
        if how == "rst":
            reset(sock)
        else:
            sock.close()
        node.counts[how] += 1

    for how in ("fin", "rst"):
        for wire, step in ((plain, 7), (chunks, 7), (staged, 40 * KIB)):
            for at in range(0, len(wire) - 1, step):
                sock = connect(node.http)
                sock.sendall(wire[:at])
                if at % 2:
                    time.sleep(0.002)
                leave(sock, how)
        for after in (0, 1, 20, 1000, 100_000, 1_000_000):
            for target in ("/objects/large", "/objects/known", "/objects?limit=1000", "/metrics"):
                sock = connect(node.http, receive_bytes=4096)
                sock.sendall(request("GET", target))
                got = 0
                while got < min(after, 2000 if target != "/objects/large" else after):
                    piece = sock.recv(min(65536, after - got))
                    assert piece, "the answer goes on"
                    got += len(piece)
                    if target != "/objects/large":
                        break
                leave(sock, how)
                node.counts["in the answer"] += 1
    assert ask(node.http, "GET", "/objects/aborted").status == 404, "nothing that was cut off was stored"
    assert ask(node.http, "GET", "/objects/large").body == large
    report.say(str(dict(node.counts)))
    assert node.counts["fin"] > 50 and node.counts["rst"] > 50


# -- floods: more than anybody should send, and nobody reads


def flood(port: int, first: bytes, again: bytes, *, total_bytes: int, limit_s: float) -> Said:
    """``first``, and then ``again`` and again, without reading, until the node closes or takes no more."""
    block = again * max(1, 64 * KIB // len(again))
    said = Said()
    start = time.monotonic()
    sock = connect(port, timeout_s=2.0)
    sent = 0
    try:
        sock.sendall(first)
        while sent < total_bytes and (sent < 2 * len(block) or time.monotonic() - start < limit_s):
            sent += sock.send(block)
    except TimeoutError:
        said.ended = "not taken"
    except ConnectionError:
        said.ended = "reset"
    finally:
        said.data = str(sent).encode()
        said.seconds = time.monotonic() - start
        reset(sock)
    return said


PUT = b"PUT /objects/flooded HTTP/1.1\r\nHost: x\r\n"
TE = b"Transfer-Encoding: chunked\r\n\r\n"
FLOODS: dict[str, tuple[bytes, bytes]] = {
    "blank lines": (b"", b"\r\n"),
    "an endless request line": (b"GET /objects/", b"x"),
    "an endless method": (b"", b"X"),
    "an endless header": (b"GET / HTTP/1.1\r\nA: ", b"x"),
    "an endless header name": (b"GET / HTTP/1.1\r\nA", b"x"),
    "headers without end": (b"GET / HTTP/1.1\r\n", b"A: b\r\n"),
    "a body of single bytes": (PUT + TE, b"1\r\nx\r\n"),
    "a chunk size without end": (PUT + TE, b"0"),
    "an extension without end": (PUT + TE + b"5;", b"x"),
    "extensions everywhere": (PUT + TE, b"1;" + b"e" * 5000 + b"\r\nx\r\n"),
    "trailers without end": (PUT + TE + b"5\r\nhello\r\n0\r\n", b"A: b\r\n"),
    "a trailer without end": (PUT + TE + b"5\r\nhello\r\n0\r\nA: ", b"x"),
    "requests without reading": (b"", b"GET /objects/known HTTP/1.1\r\nHost: x\r\n\r\n"),
    "small requests without reading": (b"", b"GET / HTTP/1.1\r\n\r\n"),
    "a refused body": (b"PUT /objects/.. HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n", b"x"),
    "a body of a GET": (b"GET /objects/known HTTP/1.1\r\nHost: x\r\n" + TE, b"1\r\nx\r\n"),
    "an upgrade": (
        b"GET /objects/known HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"x",
    ),
}


def test_floods_do_not_fill_the_memory(node: Victim, known: bytes) -> None:
    report = Report("floods")
    for what, (first, again) in FLOODS.items():
        node.cluster.reset_peak(0)
        before = node.cluster.rss(0)
        said = flood(node.http, first, again, total_bytes=24 * MIB, limit_s=1.5)
        node.serves()
        grown = node.cluster.peak_rss(0) - before
        report.say(
            f"{what}: {int(said.data) / MIB:.1f} MiB in {said.seconds:.1f} s, {said.ended}; peak +{grown / MIB:.1f} MiB"
        )
        assert int(said.data) >= 63 * KIB, what  # the first block at least: that is so many times a whole piece
        assert grown < 24 * MIB, f"{what}: the node grew by {grown / MIB:.1f} MiB"
        node.counts["floods"] += 1
    assert node.counts["floods"] == len(FLOODS)
