"""Error answers become the error tree."""

from __future__ import annotations

import json

import pytest

from amberblob.client.problems import problem_to_error, retry_after_s
from amberblob.client.retry import worth_repeating
from amberblob.errors import (
    AmberError,
    ArchiveDamaged,
    ArchiveDenied,
    ArchiveMissing,
    ArchiveUnavailable,
    BadRequest,
    ClusterError,
    Forbidden,
    InsufficientStorage,
    NotFound,
    NotReady,
    OutcomeUnknown,
    PreconditionFailed,
    QuorumUnavailable,
    RequestError,
    StaleRoute,
)


def parse(status, document=None, headers=None):
    body = json.dumps(document).encode() if document is not None else b""
    return problem_to_error(status, headers or {}, body)


@pytest.mark.parametrize(
    ("code", "kind"), [("stale-route", StaleRoute), ("shutting-down", NotReady), ("unheard-of", ClusterError)]
)
def test_without_a_document_the_header_tells_the_code(code, kind):
    error = parse(503, headers={"X-Amber-Error": code})
    assert type(error) is kind and error.code == code
    assert error.detail == f"{kind.title} (HTTP 503)"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "path-too-long", BadRequest),
        (403, "reserved-path", Forbidden),
        (404, "no-such-version", NotFound),
        (418, "teapot", RequestError),
        (429, "slow-down", RequestError),
        (500, "internal-error", AmberError),
        (503, "quorum-unavailable", QuorumUnavailable),
        (503, "shutting-down", NotReady),
        (503, "of-tomorrow", ClusterError),
        (504, "outcome-unknown", OutcomeUnknown),
        (507, "insufficient-storage", InsufficientStorage),
    ],
)
def test_by_code_and_status(status, code, kind):
    error = parse(status, {"type": code, "detail": "So it is.", "status": status, "title": "T", "more": [1]})
    assert type(error) is kind
    assert (error.status, error.code, str(error)) == (status, code, "So it is.")
    assert error.extra == {"more": [1]}


@pytest.mark.parametrize("body", [b"", b"<html>Bad Gateway</html>", b"[1]", b"\xff\xfe"])
def test_what_is_no_problem_document(body):
    error = problem_to_error(502, {}, body)
    assert isinstance(error, ClusterError)
    assert error.status == 502
    assert "HTTP 502" in str(error)


def test_headers_are_kept():
    headers = {"ETag": '"e"', "X-Amber-Version": "3", "X-Amber-Request-Id": "r", "Retry-After": "1.5"}
    error = parse(412, {"type": "precondition-failed"}, headers)
    assert isinstance(error, PreconditionFailed)
    assert error.extra == {"etag": "e", "version": 3, "request_id": "r", "retry_after_s": 1.5}


@pytest.mark.parametrize(("value", "seconds"), [("3", 3.0), ("-1", None), ("inf", None), ("nan", None), ("soon", None)])
def test_retry_after(value, seconds):
    assert retry_after_s({"Retry-After": value}) == seconds


@pytest.mark.parametrize(
    ("code", "kind", "repeated"),
    [
        ("archive-unavailable", ArchiveUnavailable, True),
        ("archive-denied", ArchiveDenied, False),
        ("archive-missing", ArchiveMissing, False),
        ("archive-damaged", ArchiveDamaged, False),
    ],
)
def test_what_only_an_operator_can_mend_in_the_archive_is_not_asked_for_again(code, kind, repeated):
    error = problem_to_error(503, {"Retry-After": "1"}, json.dumps({"type": code, "detail": "d"}).encode())
    assert type(error) is kind and error.code == code
    assert worth_repeating(error) is repeated
