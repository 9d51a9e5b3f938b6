"""The pure parsers, by tables."""

from __future__ import annotations

import base64
import hashlib

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from amberblob.errors import AmberError, BadRequest, RangeNotSatisfiable
from node.http import conditions as cond
from node.http.conditions import ANY, EntityTag, Verdict, parse_etags, read_conditions, write_conditions
from node.http.digests import digests_of, parse_content_digest
from node.http.parameters import at_of, cursor_of, encode_cursor, limit_of, switch_of, version_of
from node.http.ranges import ByteRange, Slice, parse_range, range_of_offsets, resolve
from node.http.target import Resource, Target, parse_query, parse_target
from node.http.times import http_date, parse_http_date, parse_time_ms, rfc3339
from node.service import NO_CONDITIONS, Conditions


def headers(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


@pytest.mark.parametrize(
    ("raw", "resource", "path", "query"),
    [
        ("/objects/a/b", Resource.OBJECT, "a/b", ""),
        ("/blobs/a?version=1", Resource.OBJECT, "a", "version=1"),
        ("/objects//a", Resource.OBJECT, "/a", ""),
        ("/objects/a?b?c", Resource.OBJECT, "a", "b?c"),
        ("/objects/", Resource.OBJECT, "", ""),
        ("/objects", Resource.OBJECTS, "", ""),
        ("/blobs?limit=1", Resource.OBJECTS, "", "limit=1"),
        ("/objectsx", Resource.NOTHING, "", ""),
        ("//objects/a", Resource.NOTHING, "", ""),
        ("/", Resource.NOTHING, "", ""),
        ("*", Resource.NOTHING, "", ""),
        ("example.org:443", Resource.NOTHING, "", ""),
        ("http://example.org/objects/a?x", Resource.OBJECT, "a", "x"),
        ("http://example.org", Resource.NOTHING, "", ""),
        ("HTTP://h/blobs", Resource.OBJECTS, "", ""),
        ("http://h?prefix=a", Resource.NOTHING, "", "prefix=a"),
        ("/healthz?x=1", Resource.HEALTHZ, "", "x=1"),
        ("/openapi.json", Resource.OPENAPI, "", ""),
        ("/objects/{path}", Resource.OBJECT, "{path}", ""),
    ],
)
def test_a_target_is_cut_without_being_normalised(raw: str, resource: Resource, path: str, query: str) -> None:
    assert parse_target(raw) == Target(resource, path, query)


def test_a_fragment_is_refused() -> None:
    with pytest.raises(BadRequest) as caught:
        parse_target("/objects/a#b")
    assert caught.value.code == "bad-path"


KNOWN = frozenset(("version", "at", "versions"))


@pytest.mark.parametrize(
    ("raw", "parsed"),
    [
        ("", {}),
        ("version=1", {"version": "1"}),
        ("versions", {"versions": None}),
        ("versions=", {"versions": ""}),
        ("at=a%20b+c", {"at": "a b c"}),
        ("&version=1&", {"version": "1"}),
        ("%76ersion=1", {"version": "1"}),
        ("at=%F0%9F%98%80", {"at": "😀"}),
        ("at=a=b", {"at": "a=b"}),
    ],
)
def test_a_query_is_parsed(raw: str, parsed: dict[str, str | None]) -> None:
    assert parse_query(raw, KNOWN) == parsed


@pytest.mark.parametrize("raw", ["verison=3", "Version=1", "version=1&version=1", "=", "at=%zz", "at=%ff", "at=%C0%AF"])
def test_a_query_with_anything_unknown_is_refused(raw: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_query(raw, KNOWN)
    assert caught.value.code == "bad-parameter"


def test_an_unknown_parameter_names_the_known_ones() -> None:
    with pytest.raises(BadRequest, match="at, version, versions"):
        parse_query("verison=3", KNOWN)


@pytest.mark.parametrize("value", ["0", "-1", "1.0", "", None, "x", "1" * 20, str(2**63), "١", " 1", "+1"])
def test_a_version_that_is_none_is_refused(value: str | None) -> None:
    with pytest.raises(BadRequest):
        version_of({"version": value})


def test_versions_up_to_the_largest() -> None:
    assert version_of({"version": "1"}) == 1
    assert version_of({"version": str(2**63 - 1)}) == 2**63 - 1
    assert version_of({}) is None


@pytest.mark.parametrize(("value", "limit"), [("1", 1), ("1000", 1000), ("", 1000), (None, 1000)])
def test_limits(value: str | None, limit: int) -> None:
    assert limit_of({"limit": value}) == limit


@pytest.mark.parametrize("value", ["0", "1001", "-1", "x", "1e3"])
def test_limits_out_of_bounds(value: str) -> None:
    with pytest.raises(BadRequest):
        limit_of({"limit": value})


def test_switches() -> None:
    assert switch_of({"tombstoned": "1"}, "tombstoned")
    assert not switch_of({"tombstoned": "0"}, "tombstoned")
    assert not switch_of({}, "tombstoned")
    for value in ("2", "true", None):
        with pytest.raises(BadRequest):
            switch_of({"tombstoned": value}, "tombstoned")


@pytest.mark.parametrize(
    ("text", "at_ms"),
    [
        ("0", 0),
        ("1700000000", 1_700_000_000_000),
        ("1700000000.5", 1_700_000_000_500),
        ("1700000000.1239", 1_700_000_000_123),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14t22:13:20z", 1_700_000_000_000),
        ("2023-11-14 22:13:20.123456789Z", 1_700_000_000_123),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000_000),
        ("2023-11-14T23:13:20 01:00", 1_700_000_000_000),
        ("2023-11-14T21:43:20-00:30", 1_700_000_000_000),
    ],
)
def test_times(text: str, at_ms: int) -> None:
    assert parse_time_ms(text) == at_ms


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "-1", "1.", ".5", "2023-11-14", "2023-11-14T22:13:20", "2023-13-01T00:00:00Z", "2023-11-14T25:00:00Z",
     "1969-12-31T23:59:59Z", "2023-11-14T22:13:20+01:99", "NaN", "inf", "1e9", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"],
)  # fmt: skip
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(BadRequest):
        at_of({"at": text})


def test_times_survive_as_text() -> None:
    for at_ms in (0, 1, 999, 1_700_000_000_123, 253_402_300_799_999):
        assert parse_time_ms(rfc3339(at_ms)) == at_ms
        assert parse_http_date(http_date(at_ms)) == at_ms // 1000
    assert rfc3339(1_700_000_000_123) == "2023-11-14T22:13:20.123Z"
    assert http_date(1_700_000_000_999) == "Tue, 14 Nov 2023 22:13:20 GMT"


@pytest.mark.parametrize(
    "text", ["", "x", "Tue, 99 Nov 2023 22:13:20 GMT", "0", "2023", "Tue, 14 Nov 99999999999 22:13:20 GMT"]
)
def test_http_dates_that_are_none(text: str) -> None:
    assert parse_http_date(text) is None


@pytest.mark.parametrize("start", ["a", "ä/😀", "a\0", ""])
def test_cursors_round_trip(start: str) -> None:
    assert cursor_of({"cursor": encode_cursor(start)}) == start


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "!!!!",
        "ä",
        "AmE",
        "AQ==\n",
        base64.urlsafe_b64encode(b"\x02a").decode(),
        base64.urlsafe_b64encode(b"\x01\xff").decode(),
        "A" * 3000,
    ],
)
def test_cursors_that_nobody_gave_out(cursor: str) -> None:
    with pytest.raises(BadRequest) as caught:
        cursor_of({"cursor": cursor})
    assert caught.value.code == "bad-cursor"


@pytest.mark.parametrize(
    ("header", "size", "part"),
    [
        ("bytes=0-0", 10, (0, 1)),
        ("bytes=0-", 10, (0, 10)),
        ("bytes=3-5", 10, (3, 3)),
        ("bytes=3-99", 10, (3, 7)),
        ("bytes=9-9", 10, (9, 1)),
        ("bytes=-3", 10, (7, 3)),
        ("bytes=-99", 10, (0, 10)),
        ("Bytes = 0-1", 10, (0, 2)),
        ("bytes=0-" + "9" * 5000, 10, (0, 10)),
        ("bytes=" + "0" * 5000 + "1-", 10, (1, 9)),
    ],
)
def test_ranges(header: str, size: int, part: tuple[int, int]) -> None:
    wanted = parse_range(header)
    assert wanted is not None
    assert resolve(wanted, size) == Slice(offset=part[0], length=part[1])


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ("bytes=10-", 10),
        ("bytes=10-20", 10),
        ("bytes=-0", 10),
        ("bytes=0-", 0),
        ("bytes=-1", 0),
        ("bytes=" + "9" * 30 + "-", 10),
    ],
)
def test_ranges_outside(header: str, size: int) -> None:
    wanted = parse_range(header)
    assert wanted is not None
    with pytest.raises(RangeNotSatisfiable) as caught:
        resolve(wanted, size)
    assert caught.value.extra == {"size": size}


@pytest.mark.parametrize(
    "header",
    ["", "bytes", "bytes=", "bytes=-", "bytes=abc", "bytes=5-2", "bytes=1-2-3", "items=0-1", "bytes=0-1,", "bytes=0-1,x",
     "bytes=--1", "bytes=+1-2", "bytes=0x1-2", "bytes=١-٢", "bytes=1 - 2", "0-1"],
)  # fmt: skip
def test_ranges_without_sense(header: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_range(header)
    assert caught.value.code == "bad-range"


def test_several_ranges_are_none() -> None:
    assert parse_range("bytes=0-1, 4-5") is None


def test_offsets() -> None:
    assert range_of_offsets(None, None) is None
    assert range_of_offsets(None, 5) == ByteRange(start=0, end=5)
    assert range_of_offsets(5, None) == ByteRange(start=5)
    for start, end in ((5, 2), (5, 5), (None, 0)):
        with pytest.raises(BadRequest):
            range_of_offsets(start, end)


SHA = hashlib.sha256(b"x").digest()
SHA_TEXT = base64.b64encode(SHA).decode()


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (f"sha-256=:{SHA_TEXT}:", [("sha-256", SHA)]),
        (f"md5=:AAAA:, sha-256=:{SHA_TEXT}:", [("sha-256", SHA)]),
        (f"sha-256=:{SHA_TEXT}:;a=b , blake3=:{SHA_TEXT}:", [("sha-256", SHA), ("blake3", SHA)]),
        (f"sha-256=:{base64.b64encode(bytes(32)).decode()}:,sha-256=:{SHA_TEXT}:", [("sha-256", SHA)]),
    ],
)
def test_digests(value: str, found: list[tuple[str, bytes]]) -> None:
    assert parse_content_digest(value) == found


@pytest.mark.parametrize(
    "value",
    ["", "sha-256", "sha-256=x", "sha-256=:x:", "sha-256=:AAAA:", f"sha-512=:{SHA_TEXT}:", f"md5=:{SHA_TEXT}:", "sha-256=:A:",
     f"SHA-256=:{SHA_TEXT}:", f"sha-256=:{SHA_TEXT}", f"sha-256=:{SHA_TEXT}:,"],
)  # fmt: skip
def test_digests_that_cannot_be_meant(value: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_content_digest(value)
    assert caught.value.code == "bad-header"


def test_the_header_of_our_own_is_hexadecimal() -> None:
    assert digests_of(headers(("X-Amber-Content-Blake3", SHA.hex().upper()))) == (("blake3", SHA),)
    for value in ("", "ab", SHA.hex() + "0", "g" * 64):
        with pytest.raises(BadRequest):
            digests_of(headers(("X-Amber-Content-Blake3", value)))


def test_entity_tags() -> None:
    assert parse_etags("If-Match", " * ") is ANY
    assert parse_etags("If-Match", '"a"') == (EntityTag("a"),)
    assert parse_etags("If-Match", '"a", W/"b","c,d"') == (EntityTag("a"), EntityTag("b", weak=True), EntityTag("c,d"))
    assert parse_etags("If-Match", '"*"') is not ANY
    for value in ("", "a", '"a', '"a" "b"', '"a",', ',"a"', 'w/"a"', '"a"b', '*, "a"', '"a b"'):
        with pytest.raises(BadRequest):
            parse_etags("If-Match", value)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], NO_CONDITIONS),
        ([("If-None-Match", "*")], Conditions(absent=True)),
        ([("If-Match", "*")], Conditions(etags=("*",))),
        ([("If-Match", '"a"'), ("If-Match", '"b"')], Conditions(etags=("a", "b"))),
        ([("X-Amber-If-Version", "0")], Conditions(version=0)),
        ([("X-Amber-If-Version", "7"), ("If-Match", '"a"')], Conditions(version=7, etags=("a",))),
    ],
)
def test_conditions_of_writes(given: list[tuple[str, str]], wanted: Conditions) -> None:
    assert write_conditions(headers(*given)) == wanted


@pytest.mark.parametrize(
    "given",
    [
        [("If-None-Match", '"a"')],
        [("If-None-Match", "")],
        [("If-Match", "a")],
        [("If-Match", 'W/"a"')],
        [("If-Match", '"*"')],
        [("X-Amber-If-Version", "-1")],
        [("X-Amber-If-Version", "")],
        [("X-Amber-If-Version", str(2**63))],
        [("X-Amber-If-Version", "1"), ("X-Amber-If-Version", "2")],
        [("If-Modified-Since", "Tue, 14 Nov 2023 22:13:20 GMT")],
        [("If-Unmodified-Since", "Tue, 14 Nov 2023 22:13:20 GMT")],
    ],
)
def test_conditions_that_a_write_cannot_decide_are_never_ignored(given: list[tuple[str, str]]) -> None:
    with pytest.raises(AmberError) as caught:
        write_conditions(headers(*given))
    assert caught.value.code == "bad-header"


MODIFIED_S = 1_700_000_000
AT = http_date(MODIFIED_S * 1000)
BEFORE = http_date(MODIFIED_S * 1000 - 1000)


@pytest.mark.parametrize(
    ("given", "verdict"),
    [
        ([], Verdict.SERVE),
        ([("If-Match", '"e"')], Verdict.SERVE),
        ([("If-Match", "*")], Verdict.SERVE),
        ([("If-Match", '"x"')], Verdict.FAILED),
        ([("If-Match", 'W/"e"')], Verdict.FAILED),
        ([("If-None-Match", '"e"')], Verdict.NOT_MODIFIED),
        ([("If-None-Match", '"x", W/"e"')], Verdict.NOT_MODIFIED),
        ([("If-None-Match", "*")], Verdict.NOT_MODIFIED),
        ([("If-None-Match", '"x"')], Verdict.SERVE),
        ([("If-Modified-Since", AT)], Verdict.NOT_MODIFIED),
        ([("If-Modified-Since", BEFORE)], Verdict.SERVE),
        ([("If-Modified-Since", "nonsense")], Verdict.SERVE),
        ([("If-Modified-Since", AT), ("If-None-Match", '"x"')], Verdict.SERVE),
        ([("If-Unmodified-Since", BEFORE)], Verdict.FAILED),
        ([("If-Unmodified-Since", AT)], Verdict.SERVE),
        ([("If-Unmodified-Since", BEFORE), ("If-Match", '"e"')], Verdict.SERVE),
        ([("If-Match", '"x"'), ("If-None-Match", '"e"')], Verdict.FAILED),
    ],
)
def test_conditions_of_reads(given: list[tuple[str, str]], verdict: Verdict) -> None:
    assert read_conditions(headers(*given)).judge("e", MODIFIED_S) is verdict


@pytest.mark.parametrize(
    ("value", "applies"),
    [('"e"', True), ('"x"', False), ('W/"e"', False), (AT, True), (BEFORE, False), ("nonsense", False)],
)
def test_if_range(value: str, applies: bool) -> None:
    assert cond.range_applies(headers(("If-Range", value)), "e", MODIFIED_S) is applies
