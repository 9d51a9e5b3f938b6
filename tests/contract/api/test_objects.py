"""PUT, GET, HEAD: bodies, headers, ranges, conditional and historical reads, consistency."""

from __future__ import annotations

import base64
import hashlib
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime

import pytest

from tests.cluster.harness import KIB, MIB, Api, content, etag_of, object_url, until

pytestmark = pytest.mark.cluster

SIZES = [0, 1, 1000, 64 * KIB, 64 * KIB + 1, 300 * KIB, 17 * MIB + 5]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_what_was_put_is_read_through_every_node(api: Api, name: str, size: int, framing: str) -> None:
    data = content(name, size)

    async def pieces():
        for start in range(0, size, 100_000):
            yield data[start : start + 100_000]

    put = await api.put(name, data if framing == "length" else pieces(), headers={"Content-Type": "text/x-own"})
    written = put.json
    assert written.keys() >= {"path", "version", "blob_id", "size", "etag", "created_at"}
    assert (written["path"], written["version"], written["size"]) == (name, 1, size)
    assert written["etag"] == etag_of(data)
    assert len(written["blob_id"]) == 26
    assert abs(datetime.fromisoformat(written["created_at"]) - datetime.now(UTC)) < timedelta(minutes=1)
    for node in api.nodes:
        got = await api.get(name, node=node)
        assert got.body == data
        head = await api.head(name, node=node)
        assert head.body == b""
        for answer in (got, head):
            assert answer.headers["ETag"] == f'"{etag_of(data)}"'
            assert answer.version == 1
            assert answer.blob_id == written["blob_id"]
            assert answer.headers["Content-Length"] == str(size)
            assert answer.headers["Content-Type"] == "text/x-own"
            modified = parsedate_to_datetime(answer.headers["Last-Modified"])
            assert modified == datetime.fromisoformat(written["created_at"]).replace(microsecond=0)


async def test_metadata_is_kept_with_its_version(api: Api, name: str) -> None:
    await api.put(name, b"one", headers={"X-Amber-Meta-Colour": "amber", "X-Amber-Meta-Note": "grüße"})
    await api.put(name, b"two", headers={"X-Amber-Meta-Colour": "blue"})
    now = await api.get(name)
    assert now.headers["X-Amber-Meta-Colour"] == "blue"
    assert "X-Amber-Meta-Note" not in now.headers
    before = await api.head(name, query="version=1")
    assert before.headers["X-Amber-Meta-Colour"] == "amber"
    assert before.headers["X-Amber-Meta-Note"] == "grüße"


async def test_without_a_content_type_it_is_octets(api: Api, name: str) -> None:
    await api.put(name, b"x")
    assert (await api.get(name)).headers["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize(
    "suffix",
    ["plain", "with space", "a//b", "/lead", "trail/", "ünï/ço∂é", "😀", "a+b", "a%b", "q?x=1", "h#f", "x;y=1", "~'()*", ".dot", "..x", "\x01"],
)  # fmt: skip
async def test_every_name_is_its_own(api: Api, suffix: str) -> None:
    path = f"names-of-all-kinds/{suffix}"
    put = await api.put(path, path.encode())
    assert put.json["path"] == path
    assert (await api.get(path)).body == path.encode()
    encoded = "/objects/" + "".join(f"%{byte:02X}" for byte in path.encode())
    assert (await api("GET", encoded)).body == path.encode()
    assert [entry["path"] for entry in (await api.page(prefix=path))["objects"]] == [path]


@pytest.mark.parametrize("unit", ["a", "é", "😀"])
async def test_a_name_of_1024_bytes(api: Api, unit: str) -> None:
    path = unit * (1024 // len(unit.encode()))
    await api.put(path, b"long")
    assert (await api.get(path)).body == b"long"
    assert (await api.page(prefix=path))["objects"][0]["path"] == path
    await api.delete(path)


async def test_blobs_is_another_name_of_objects(api: Api, name: str) -> None:
    assert (await api("PUT", f"/blobs/{name}", data=b"alias")).status == 201
    assert (await api.get(name)).body == b"alias"
    assert (await api("GET", f"/blobs/{name}")).body == b"alias"
    assert (await api("GET", f"/blobs/{name}?versions")).json["versions"][0]["version"] == 1
    assert (await api("GET", f"/blobs?prefix={name}")).json["objects"][0]["path"] == name
    assert (await api("DELETE", f"/blobs/{name}")).status == 204
    assert (await api("POST", f"/blobs/{name}?restore")).status == 200
    assert (await api("HEAD", f"/blobs/{name}")).status == 200


async def test_expect_100_continue(api: Api, name: str) -> None:
    await api.put(name, content(name, 200 * KIB), expect100=True)
    assert (await api.get(name)).etag == etag_of(content(name, 200 * KIB))


# -- ranges


RANGES = [
    ("bytes=0-0", 0, 1),
    ("bytes=0-99", 0, 100),
    ("bytes=100-", 100, None),
    ("bytes=-10", -10, None),
    ("bytes=-99999999", 0, None),
    ("bytes=10-99999999", 10, None),
    ("bytes=999-999", 999, 1000),
]


@pytest.mark.parametrize("size", [1000, 200 * KIB])
async def test_one_range(api: Api, name: str, size: int) -> None:
    data = content(name, size)
    await api.put(name, data)
    for header, start, end in RANGES:
        for method in ("GET", "HEAD"):
            answer = await api(method, object_url(name), headers={"Range": header})
            assert answer.status == 206, (header, answer)
            wanted = data[start:end]
            first = start % size
            assert answer.headers["Content-Range"] == f"bytes {first}-{first + len(wanted) - 1}/{size}"
            assert answer.headers["Content-Length"] == str(len(wanted))
            assert answer.etag == etag_of(data)
            if method == "GET":
                assert answer.body == wanted


@pytest.mark.parametrize(
    ("query", "start", "end"),
    [("start=0&end=1", 0, 1), ("start=10&end=20", 10, 20), ("start=7", 7, None), ("end=9", 0, 9), ("start=3&end=99999999", 3, None)],
)  # fmt: skip
async def test_start_and_end(api: Api, name: str, query: str, start: int, end: int | None) -> None:
    data = content(name, 1000)
    await api.put(name, data)
    answer = await api.get(name, query=query, expect=206)
    assert answer.body == data[start:end]
    stop = min(1000, end or 1000)
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/1000"


async def test_ranges_over_the_borders_of_chunks(api: Api, name: str) -> None:
    size, chunk = 17 * MIB, 8 * MIB
    data = content(name, size)
    await api.put(name, data)
    for start, end in [(chunk - 1, chunk + 1), (chunk, chunk + 1), (chunk - 1, chunk), (5, size - 5), (size - 1, size)]:
        answer = await api.get(name, headers={"Range": f"bytes={start}-{end - 1}"}, expect=206)
        assert answer.body == data[start:end]


@pytest.mark.parametrize("size", [0, 10])
@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0"])
async def test_a_range_outside_of_the_object(api: Api, name: str, size: int, header: str) -> None:
    await api.put(name, b"x" * size)
    answer = await api.get(name, headers={"Range": header}, expect=416)
    assert answer.headers["Content-Range"] == f"bytes */{size}"
    await api.get(name, query="start=10", expect=416)


@pytest.mark.parametrize(
    "header", ["bytes=9-3", "bytes=x-y", "bytes=-", "bytes=1", "bytes=--1", "bytes=1-2-3", "bytes"]
)
async def test_a_range_that_makes_no_sense(api: Api, name: str, header: str) -> None:
    await api.put(name, b"0123456789")
    assert (await api.get(name, headers={"Range": header}, expect=400)).problem == "bad-range"


@pytest.mark.parametrize(
    "query", ["start=5&end=5", "start=6&end=5", "start=-1", "start=x", "end=0", "end=", "start=1.5"]
)
async def test_start_and_end_that_make_no_sense(api: Api, name: str, query: str) -> None:
    await api.put(name, b"0123456789")
    await api.get(name, query=query, expect=400)


async def test_if_range(api: Api, name: str) -> None:
    etag = (await api.put(name, b"0123456789")).json["etag"]
    same = await api.get(name, headers={"Range": "bytes=1-2", "If-Range": f'"{etag}"'}, expect=206)
    assert same.body == b"12"
    other = await api.get(name, headers={"Range": "bytes=1-2", "If-Range": '"other"'})
    assert other.body == b"0123456789"


# -- conditional reads


async def test_if_none_match(api: Api, name: str) -> None:
    etag = (await api.put(name, b"same")).json["etag"]
    for value in (f'"{etag}"', f'W/"{etag}"', "*", f'"other", "{etag}"'):
        for method in ("GET", "HEAD"):
            answer = await api(method, object_url(name), headers={"If-None-Match": value})
            assert (answer.status, answer.body) == (304, b"")
            assert answer.headers["ETag"] == f'"{etag}"'
    assert (await api.get(name, headers={"If-None-Match": '"other"'})).body == b"same"


async def test_if_match_on_reads(api: Api, name: str) -> None:
    etag = (await api.put(name, b"same")).json["etag"]
    await api.get(name, headers={"If-Match": f'"{etag}"'})
    refused = await api.get(name, headers={"If-Match": '"other"'}, expect=412)
    assert refused.problem == "precondition-failed"


async def test_if_modified_since(api: Api, name: str) -> None:
    await api.put(name, b"x")
    modified = (await api.head(name)).headers["Last-Modified"]
    before = format_datetime(parsedate_to_datetime(modified) - timedelta(seconds=1), usegmt=True)
    await api.get(name, headers={"If-Modified-Since": modified}, expect=304)
    await api.get(name, headers={"If-Modified-Since": before})
    await api.get(name, headers={"If-Modified-Since": "no date at all"})
    # If-None-Match goes before it.
    await api.get(name, headers={"If-Modified-Since": modified, "If-None-Match": '"other"'})


# -- the past


def iso(at_ms: int) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)).isoformat().replace("+00:00", "Z")


def ms_of(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


async def after(at_ms: int) -> None:
    await until(lambda: time.time() * 1000 > at_ms + 5, "the clock goes on")


async def test_at(api: Api, name: str) -> None:
    first = ms_of((await api.put(name, b"one")).json["created_at"])
    await after(first)
    second = ms_of((await api.put(name, b"two")).json["created_at"])
    await after(second)
    await api.delete(name)
    deleted = ms_of((await api.versions(name))[0]["tombstoned_at"])
    await after(deleted)
    third = ms_of((await api.put(name, b"three")).json["created_at"])

    async def at(at_ms: int) -> bytes | int:
        answer = await api("GET", object_url(name, f"at={iso(at_ms)}"))
        return answer.body if answer.status == 200 else answer.status

    assert await at(first - 1) == 404
    assert await at(first) == b"one"
    assert await at(second - 1) == b"one"
    assert await at(second) == b"two"
    assert await at(deleted - 1) == b"two"
    assert await at(deleted) == 404
    assert await at(third - 1) == 404
    assert await at(third) == b"three"
    assert await at(third + 3_600_000) == b"three"
    head = await api.head(name, query=f"at={iso(first)}")
    assert head.version == 1
    assert (await api.get(name, query=f"at={iso(first)}", headers={"Range": "bytes=1-1"}, expect=206)).body == b"n"


@pytest.mark.parametrize("value", ["", "yesterday", "2026-13-01T00:00:00Z", "-5", "2026-01-01"])
async def test_at_that_is_no_time(api: Api, name: str, value: str) -> None:
    await api.put(name, b"x")
    await api.get(name, query=f"at={value}", expect=400)
    await api.page(at=value, expect=400)


# -- consistency


async def test_consistency(api: Api, name: str) -> None:
    await api.put(name, b"x")
    for node in api.nodes:
        strong = await api.get(name, node=node, headers={"X-Amber-Consistency": "strong"})
        assert strong.body == b"x"

        async def local(node: int = node) -> bool:
            answer = await api("GET", object_url(name), node=node, headers={"X-Amber-Consistency": "local"})
            return answer.body == b"x"

        await until(local, f"node {node} has its copy")
    await api.get(name, headers={"X-Amber-Consistency": "sloppy"}, expect=400)


# -- digests


def digest_headers(data: bytes) -> list[dict[str, str]]:
    def b64(raw: bytes) -> str:
        return base64.b64encode(raw).decode()

    return [
        {"X-Amber-Content-Blake3": etag_of(data)},
        {"Content-Digest": f"sha-256=:{b64(hashlib.sha256(data).digest())}:"},
        {"Content-Digest": f"sha-512=:{b64(hashlib.sha512(data).digest())}:"},
        {
            "Content-Digest": f"sha-256=:{b64(hashlib.sha256(data).digest())}:",
            "X-Amber-Content-Blake3": etag_of(data).upper(),
        },
    ]


@pytest.mark.parametrize("size", [0, 100, 300 * KIB])
async def test_right_digests(api: Api, name: str, size: int) -> None:
    data = content(name, size)
    for headers in digest_headers(data):
        await api.put(name, data, headers=headers)


@pytest.mark.parametrize("size", [0, 100, 300 * KIB, 9 * MIB])
async def test_wrong_digests_store_nothing(api: Api, name: str, size: int, nothing_stored: None) -> None:
    data = content(name, size)
    for headers in digest_headers(b"other" + data):
        refused = await api.put(name, data, headers=headers, expect=422)
        assert refused.problem == "digest-mismatch"
    await api.absent(name)


async def test_a_wrong_digest_leaves_the_versions_as_they_are(api: Api, name: str) -> None:
    await api.put(name, b"kept")
    before = await api.versions(name)
    for size in (10, 300 * KIB):
        await api.put(name, b"x" * size, headers={"X-Amber-Content-Blake3": "0" * 64}, expect=422)
    assert await api.versions(name) == before
    assert (await api.get(name)).body == b"kept"


@pytest.mark.parametrize(
    "headers",
    [{"X-Amber-Content-Blake3": "abc"}, {"Content-Digest": "nonsense"}, {"Content-Digest": "sha-256=:AAAA:"}],
)
async def test_digests_that_are_none(api: Api, name: str, headers: dict[str, str], nothing_stored: None) -> None:
    await api.put(name, b"x" * 300 * KIB, headers=headers, expect=400)
    await api.absent(name)
