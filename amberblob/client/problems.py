"""From an error answer to the error tree. Pure: a status, some headers, a body."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from amberblob.errors import (
    AmberError,
    ArchiveDamaged,
    ArchiveDenied,
    ArchiveMissing,
    ArchiveNotOurs,
    ArchiveUnavailable,
    BadRequest,
    ClusterError,
    DigestMismatch,
    Forbidden,
    InsufficientStorage,
    JobConflict,
    MembershipConflict,
    MethodNotAllowed,
    NoArchive,
    NoSuchJob,
    NoSuchNode,
    NotFound,
    NotReady,
    OutcomeUnknown,
    PreconditionFailed,
    QuorumUnavailable,
    RangeNotSatisfiable,
    RequestError,
    StaleRoute,
    Unauthorized,
    VersionConflict,
)

_BY_CODE: dict[str, type[AmberError]] = {
    "quorum-unavailable": QuorumUnavailable,
    "stale-route": StaleRoute,
    "membership-conflict": MembershipConflict,
    "no-such-node": NoSuchNode,
    "no-such-job": NoSuchJob,
    "no-archive": NoArchive,
    "job-conflict": JobConflict,
    "archive-unavailable": ArchiveUnavailable,
    "archive-denied": ArchiveDenied,
    "archive-not-ours": ArchiveNotOurs,
    "archive-missing": ArchiveMissing,
    "archive-damaged": ArchiveDamaged,
    "not-ready": NotReady,
    "shutting-down": NotReady,
    "outcome-unknown": OutcomeUnknown,
    "insufficient-storage": InsufficientStorage,
    "disk-full": InsufficientStorage,
}

_BY_STATUS: dict[int, type[AmberError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    405: MethodNotAllowed,
    409: VersionConflict,
    412: PreconditionFailed,
    416: RangeNotSatisfiable,
    422: DigestMismatch,
    504: OutcomeUnknown,
    507: InsufficientStorage,
}

_OWN_MEMBERS = ("type", "title", "status", "detail")
_HEAD_HEADERS = {"ETag": "etag", "X-Amber-Version": "version", "X-Amber-Blob-Id": "blob_id"}


def problem_to_error(status: int, headers: Mapping[str, str], body: bytes) -> AmberError:
    """The error that an answer of 400 or more stands for.

    ``extra`` keeps the problem document's further members, and ``request_id``, ``retry_after_s`` and, for a refused
    condition, the current head's ``etag``, ``version`` and ``blob_id`` from the headers.
    """
    document = _problem(body)
    code = document.get("type") or headers.get("X-Amber-Error")  # the answer to HEAD has no document
    # A `type` may be spelt as a URI: its last part is the code.
    code = code.rstrip("/").rpartition("/")[2] if isinstance(code, str) and code != "about:blank" else None
    extra: dict[str, Any] = {name: value for name, value in document.items() if name not in _OWN_MEMBERS}
    if request_id := headers.get("X-Amber-Request-Id"):
        extra.setdefault("request_id", request_id)
    if (wait_s := retry_after_s(headers)) is not None:
        extra["retry_after_s"] = wait_s
    if status == 412:
        for header, name in _HEAD_HEADERS.items():
            if value := headers.get(header):
                extra.setdefault(name, int(value) if name == "version" and value.isdigit() else value.strip('"'))
    kind = _BY_CODE.get(code or "") or _BY_STATUS.get(status) or _base(status)
    detail = document.get("detail") or document.get("title")
    error = kind(str(detail) if detail else _default_detail(kind, status, body), code=code or None, extra=extra)
    error.__dict__["status"] = status  # the class has the usual status; this answer's may be another
    return error


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The seconds that the server asks to wait; the date form is not used by AmberBlob and is ignored."""
    try:
        wait_s = float(headers.get("Retry-After", ""))
    except ValueError:
        return None
    return wait_s if 0 <= wait_s < float("inf") else None


def _problem(body: bytes) -> dict[str, Any]:
    try:
        document = json.loads(body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _base(status: int) -> type[AmberError]:
    if 400 <= status < 500:
        return RequestError
    return ClusterError if status in (502, 503) else AmberError


def _default_detail(kind: type[AmberError], status: int, body: bytes) -> str:
    text = " ".join(body[:200].decode("utf-8", "replace").split())
    if status >= 500 or not text or text.startswith("<"):
        return f"{kind.title} (HTTP {status})"
    return f"{kind.title} (HTTP {status}): {text}"
