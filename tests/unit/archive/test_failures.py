"""Whose fault it is, by what a server answers (archive/targets/failures.py, retrying.py)."""

import pytest

from amberblob.errors import ArchiveDamaged, ArchiveDenied, ArchiveMissing, ArchiveUnavailable
from archive.targets.failures import KeysRefused, Refusal, Throttled, Unsupported, classify, result_of
from archive.targets.retrying import PAUSE_MAX_S, Retrying
from archive.traffic import Traffic
from tests.unit.archive.test_traffic import Time

ASKED = "GET s3://bucket/key (http://host:1)"


def refusal(status, code="", message="", **more):
    return Refusal(asked=ASKED, bucket="bucket", region="", status=status, code=code, message=message, **more)


@pytest.mark.parametrize(
    ("status", "code", "kind", "result"),
    [
        (503, "SlowDown", Throttled, "throttled"),
        (429, "", Throttled, "throttled"),
        (400, "RequestLimitExceeded", Throttled, "throttled"),
        (500, "InternalError", ArchiveUnavailable, "unavailable"),
        (503, "ServiceUnavailable", ArchiveUnavailable, "unavailable"),
        (504, "", ArchiveUnavailable, "unavailable"),
        (400, "RequestTimeout", ArchiveUnavailable, "unavailable"),
        (400, "BadDigest", ArchiveUnavailable, "unavailable"),
        (404, "NoSuchUpload", ArchiveUnavailable, "unavailable"),
        (507, "XMinioStorageFull", ArchiveUnavailable, "unavailable"),
        (403, "InvalidAccessKeyId", KeysRefused, "denied"),
        (403, "SignatureDoesNotMatch", KeysRefused, "denied"),
        (400, "ExpiredToken", KeysRefused, "denied"),
        (403, "AccessDenied", KeysRefused, "denied"),
        (403, "403", KeysRefused, "denied"),
        (401, "", KeysRefused, "denied"),
        (403, "RequestTimeTooSkewed", ArchiveDenied, "denied"),
        (404, "NoSuchBucket", ArchiveDenied, "denied"),
        (301, "PermanentRedirect", ArchiveDenied, "denied"),
        (400, "AuthorizationHeaderMalformed", ArchiveDenied, "denied"),
        (403, "InvalidObjectState", ArchiveDenied, "denied"),
        (403, "QuotaExceeded", ArchiveDenied, "denied"),
        (400, "MalformedXML", ArchiveDenied, "denied"),
        (404, "NoSuchKey", ArchiveMissing, "missing"),
        (404, "404", ArchiveMissing, "missing"),
        (412, "PreconditionFailed", ArchiveDamaged, "damaged"),
        (412, "412", ArchiveDamaged, "damaged"),
        (416, "InvalidRange", ArchiveDamaged, "damaged"),
        (501, "NotImplemented", Unsupported, "error"),
        (405, "MethodNotAllowed", Unsupported, "error"),
    ],
)
def test_kinds(status, code, kind, result):
    error = classify(refusal(status, code, "what the server says"))
    assert type(error) is kind
    assert result_of(error) == result
    assert error.detail.startswith(f"{ASKED}: {status}")
    assert "what the server says" in error.detail
    assert error.detail.endswith((".", ")"))


@pytest.mark.parametrize(
    ("status", "code", "text"),
    [
        (404, "NoSuchBucket", "There is no bucket 'bucket'"),
        (403, "AccessDenied", "they need s3:ListBucket and s3:GetObject on bucket 'bucket'"),
        (301, "PermanentRedirect", "is in eu-north-1"),
    ],
)
def test_what_is_wrong_with_a_source_is_not_mended_in_the_target(status, code, text):
    headers = {"x-amz-bucket-region": "eu-north-1"}
    error = classify(refusal(status, code, headers=headers, foreign=True))
    assert isinstance(error, ArchiveDenied) and error.detail.startswith(f"{ASKED}: {status}")
    assert text in error.detail and "source's URL" in error.detail and "target" not in error.detail
    assert "source" not in classify(refusal(status, code, headers=headers)).detail
    assert "source" not in classify(refusal(403, "InvalidAccessKeyId", foreign=True)).detail, "the keys are [archive]'s"


def test_what_a_server_says_is_one_short_line():
    error = classify(refusal(500, "InternalError", "line\n" * 1000))
    assert "\n" not in error.detail
    assert len(error.detail) < 600


@pytest.mark.parametrize(
    ("date", "text"),
    [
        ("Sat, 21 Nov 2026 12:00:00 GMT", "3600 s ahead of"),
        ("Sat, 21 Nov 2026 14:00:00 GMT", "3600 s behind"),
        ("nonsense", "too far apart"),
        ("", "too far apart"),
    ],
)
def test_a_wrong_clock_is_measured(date, text):
    now_ms = 1_795_266_000_000  # 13:00:00
    error = classify(refusal(403, "RequestTimeTooSkewed", headers={"date": date}, now_ms=now_ms))
    assert text in error.detail


def test_a_server_may_say_how_long_to_wait():
    assert classify(refusal(503, "SlowDown", headers={"retry-after": "12"})).wait_s == 12
    assert classify(refusal(503, "SlowDown", headers={"retry-after": "86400"})).wait_s == 60
    assert classify(refusal(503, "SlowDown", headers={"retry-after": "Sat, 21 Nov 2026"})).wait_s == 0


class Whole:
    def fraction(self):
        return 1.0


@pytest.fixture
def naps():
    return []


@pytest.fixture
def retrying(naps):
    async def sleep(seconds):
        naps.append(seconds)

    return lambda tries: Retrying(tries, Traffic(Time()), Whole(), sleep)


async def test_only_what_may_pass_is_tried_again(retrying, naps):
    for error in (ArchiveDenied("no"), ArchiveMissing("no"), ArchiveDamaged("no"), ValueError("no")):
        tried = []

        async def attempt(error=error, tried=tried):
            tried.append(1)
            raise error

        with pytest.raises(type(error)):
            await retrying(5).run(attempt)
        assert len(tried) == 1
    assert naps == []


async def test_pauses_grow_up_to_a_bound(retrying, naps):
    async def attempt():
        raise ArchiveUnavailable("away")

    with pytest.raises(ArchiveUnavailable, match=r"away \(tried 12 times\)"):
        await retrying(12).run(attempt)
    assert naps[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert len(naps) == 11
    assert max(naps) == PAUSE_MAX_S
    naps.clear()
    with pytest.raises(ArchiveUnavailable) as raised:
        await retrying(1).run(attempt)
    assert str(raised.value) == "away"
    assert naps == []


@pytest.mark.parametrize(
    ("error", "whose", "do"),
    [
        (classify(refusal(503, "SlowDown", "Please reduce. Slowly.")), "server, or the network", "Try again"),
        (classify(refusal(500, "InternalError", "x" * 5000)), "server, or the network", "Try again"),
        (classify(refusal(403, "InvalidAccessKeyId", "no such key")), "operator has to mend", "archive status"),
        (classify(refusal(404, "NoSuchKey")), "Somebody else than this cluster removed", "Put it back"),
        (classify(refusal(412, "PreconditionFailed")), "Somebody else than this cluster overwrote", "Put it back"),
    ],
)
def test_clients_are_told_in_three_sentences(error, whose, do):
    told = error.in_short("Nothing was written", {"failures": {}})
    assert type(told) is type(error) and told.code == error.code and told.extra == {"failures": {}}
    what, _, rest = told.detail.partition("). ")
    fault, _, mend = rest.partition(". ")
    assert what.startswith(f"Nothing was written ({ASKED}") and whose in fault and do in mend
    assert len(told.detail) < 600
