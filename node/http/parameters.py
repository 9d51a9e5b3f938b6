"""The values of query parameters. Pure; whatever cannot be meant is refused as bad-parameter."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping

from amberblob.errors import BadRequest
from amberblob.limits import LIST_LIMIT_MAX, PATH_BYTES_MAX, VERSION_MAX
from node.http.times import parse_time_ms

Query = Mapping[str, str | None]

_DIGITS = re.compile(r"\A[0-9]{1,19}\Z")

_CURSOR_VERSION = b"\x01"
_CURSOR_BYTES_MAX = PATH_BYTES_MAX + 16
"""Where a page begins is a path, or the first name after one: a few bytes longer."""


def refused(name: str, wanted: str) -> BadRequest:
    """A parameter whose value cannot be meant."""
    return BadRequest(f"The parameter {name!r} must be {wanted}.", code="bad-parameter")


def version_of(query: Query, name: str = "version") -> int | None:
    """A version number, or None when the parameter is absent."""
    if name not in query:
        return None
    return _integer(name, query[name], 1, VERSION_MAX)


def offset_of(query: Query, name: str) -> int | None:
    """A byte offset (``start``, ``end``), or None when the parameter is absent."""
    if name not in query:
        return None
    return _integer(name, query[name], 0, VERSION_MAX)


def restored_version_of(query: Query) -> int | None:
    """The N of ``?restore=N``; None for a bare ``?restore``."""
    value = query["restore"]
    return _integer("restore", value, 1, VERSION_MAX) if value else None


def at_of(query: Query) -> int | None:
    """``at`` in milliseconds since 1970, or None when it is absent."""
    if "at" not in query:
        return None
    try:
        return parse_time_ms(query["at"] or "")
    except (ValueError, OverflowError):
        raise refused("at", "an RFC 3339 time such as 2026-01-31T12:00:00Z, or Unix seconds") from None


def limit_of(query: Query) -> int:
    """How many entries a listing's page may have."""
    value = query.get("limit")
    return _integer("limit", value, 1, LIST_LIMIT_MAX) if value else LIST_LIMIT_MAX


def switch_of(query: Query, name: str) -> bool:
    """A parameter that is 1 or 0, and 0 when absent or empty."""
    value = query.get(name)
    if value not in (None, "", "0", "1") or (name in query and value is None):
        raise refused(name, "0 or 1")
    return value == "1"


def check_flag(query: Query, name: str) -> None:
    """A parameter that is there or not: bare, empty or 1, and alone."""
    if query[name] not in (None, "", "1"):
        raise refused(name, "given without a value")
    others = sorted(set(query) - {name})
    if others:
        raise BadRequest(f"The parameter {name!r} cannot be combined with {', '.join(others)}.", code="bad-parameter")


def text_of(query: Query, name: str) -> str:
    """A piece of a path (``prefix``, ``delimiter``): at most as long as a path."""
    value = query.get(name) or ""
    if len(value.encode()) > PATH_BYTES_MAX:
        raise refused(name, f"at most {PATH_BYTES_MAX} bytes long")
    return value


def encode_cursor(start: str) -> str:
    """Where the next page begins, as a token that means nothing to the client."""
    return base64.urlsafe_b64encode(_CURSOR_VERSION + start.encode()).rstrip(b"=").decode()


def cursor_of(query: Query) -> str:
    """Where a page begins; the empty string is the beginning.

    Raises:
        BadRequest: bad-cursor.
    """
    cursor = query.get("cursor") or ""
    if not cursor:
        return ""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        raw = base64.b64decode(padded, altchars=b"-_", validate=True)
        if not raw.startswith(_CURSOR_VERSION) or len(raw) > _CURSOR_BYTES_MAX:
            raise ValueError("of another version, or too long")
        return raw[len(_CURSOR_VERSION) :].decode("utf-8")
    except (ValueError, binascii.Error):
        raise BadRequest(
            "The cursor is not one that this cluster gave out. Pass it on unchanged, or begin again without one.",
            code="bad-cursor",
        ) from None


def _integer(name: str, value: str | None, low: int, high: int) -> int:
    if value is not None and _DIGITS.match(value) is not None and low <= int(value) <= high:
        return int(value)
    raise refused(name, f"a whole number from {low} to {high}")
