"""What PUT, DELETE and restore have in common: the write id, and what a write's outcome may be."""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import TypeVar

import structlog

from amberblob.errors import AmberError, ClusterError, DiskFull, OutcomeUnknown, RequestError
from amberblob.limits import WRITE_ID_CHARS_MAX
from node.http.conditions import Headers, bad_header, single

_T = TypeVar("_T")
_WRITE_ID = re.compile(rf"\A[\x20-\x7e]{{1,{WRITE_ID_CHARS_MAX}}}\Z")

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger("amberblob.http")


def write_id_of(headers: Headers) -> str | None:
    """The client's write id.

    Raises:
        BadRequest: bad-header.
    """
    value = single(headers, "X-Amber-Write-Id")
    if value is not None and _WRITE_ID.match(value) is None:
        raise bad_header(f"X-Amber-Write-Id must be 1 to {WRITE_ID_CHARS_MAX} printable ASCII characters.")
    return value


def may_be_repeat(headers: Headers) -> bool:
    """Whether an earlier attempt of this write may have reached the replicas.

    Anything with a write id may be one, unless the client says ``X-Amber-Attempt: first``: that no attempt before
    this one can have been applied.

    Raises:
        BadRequest: bad-header.
    """
    attempt = single(headers, "X-Amber-Attempt")
    if attempt not in (None, "first", "repeat"):
        raise bad_header("X-Amber-Attempt is 'first' or 'repeat'.")
    return attempt != "first" and single(headers, "X-Amber-Write-Id") is not None


def not_hiding(error: AmberError) -> OutcomeUnknown:
    """What a repeated attempt is told when it applied nothing: a 503 or 507 must not hide what an earlier one may become."""
    return OutcomeUnknown(
        f"{error.detail} An earlier attempt with this X-Amber-Write-Id may have been applied, or may yet be: "
        "repeat it with the same id to learn which.",
        extra={**error.extra, "attempt": error.code},
    )


async def outcome_of(write: Awaitable[_T], *, repeat: bool) -> _T:
    """Wait for a write, and let nothing out of it but what a client may be told of a write.

    A refusal is a 4xx, a 503 says that nothing was or will be applied, and everything that was not foreseen is *unknown*:
    a plain 500 would say nothing about whether the write may still appear.

    Args:
        repeat: whether an earlier attempt may have been applied (:func:`may_be_repeat`).

    Raises:
        OutcomeUnknown: it failed in a way that says nothing about whether it was applied.
    """
    try:
        return await write
    except (ClusterError, DiskFull) as error:
        if not repeat or isinstance(error, OutcomeUnknown):
            raise
        raise not_hiding(error) from error
    except RequestError:
        raise
    except Exception as error:
        _log.exception("write_failed_unexpectedly", error_type=type(error).__name__)
        raise OutcomeUnknown(
            "The node failed while it wrote; the write may or may not be applied. "
            "Retry with the same X-Amber-Write-Id to learn which, and read the object before that if there was none."
        ) from error
