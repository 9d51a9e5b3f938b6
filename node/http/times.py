"""Times as text: RFC 3339 in JSON and parameters, HTTP dates in headers. Pure; inside, milliseconds since 1970."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNIX = re.compile(r"\A([0-9]{1,11})(?:\.([0-9]{1,9}))?\Z")
# A '+' that was not percent-encoded reaches us as a space: nothing else can be meant by it there.
_RFC3339 = re.compile(
    r"\A([0-9]{4}-[0-9]{2}-[0-9]{2})[Tt ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(?:[Zz]|([+\- ])([0-9]{2}):([0-9]{2}))\Z"
)
_OFFSET_MINUTES = 60


def rfc3339(at_ms: int) -> str:
    """``2026-01-31T12:00:00.123Z``."""
    seconds, milliseconds = divmod(at_ms, 1000)
    return f"{_second(seconds)}.{milliseconds:03d}Z"


def parse_time_ms(text: str) -> int:
    """An RFC 3339 time, or Unix seconds (whole or decimal), in milliseconds, rounded down.

    Raises:
        ValueError: it is neither, or lies before 1970.
    """
    unix = _UNIX.match(text)
    if unix is not None:
        return int(unix[1]) * 1000 + _milliseconds(unix[2])
    match = _RFC3339.match(text)
    if match is None:
        raise ValueError("neither RFC 3339 nor Unix seconds")
    date, clock, fraction, sign, hours, minutes = match.groups()
    moment = datetime.fromisoformat(f"{date}T{clock}+00:00")
    if sign is not None:
        if int(minutes) >= _OFFSET_MINUTES:
            raise ValueError("minutes of the offset out of range")
        offset = timedelta(hours=int(hours), minutes=int(minutes))
        moment = moment + offset if sign == "-" else moment - offset
    at_ms = (moment - _EPOCH) // timedelta(milliseconds=1) + _milliseconds(fraction)
    if at_ms < 0:
        raise ValueError("before 1970")
    return at_ms


def http_date(at_ms: int) -> str:
    """``Sat, 31 Jan 2026 12:00:00 GMT``: the second that the time lies in."""
    return _http_date(at_ms // 1000)


def parse_http_date(text: str) -> int | None:
    """An HTTP date in Unix seconds; None when it is none (the standard says to ignore the header then)."""
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - _EPOCH) // timedelta(seconds=1)


@lru_cache(maxsize=1024)
def _http_date(at_s: int) -> str:
    return formatdate(at_s, usegmt=True)


@lru_cache(maxsize=1024)
def _second(at_s: int) -> str:
    return (_EPOCH + timedelta(seconds=at_s)).isoformat(timespec="seconds")[: -len("+00:00")]


def _milliseconds(fraction: str | None) -> int:
    return int((fraction or "0")[:3].ljust(3, "0"))
