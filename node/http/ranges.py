"""Which bytes of an object a request wants. Pure.

The standard lets a server ignore a Range header that it cannot parse. Here it is refused instead: a client
that mistypes a range and gets the whole terabyte has not been served well.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from amberblob.errors import BadRequest, RangeNotSatisfiable

_UNIT = re.compile(r"\A\s*bytes\s*=(.*)\Z", re.IGNORECASE | re.DOTALL)
_SPEC = re.compile(r"\A([0-9]*)-([0-9]*)\Z")
_DIGITS_MAX = 19
_BEYOND = 10**_DIGITS_MAX
"""Stands for every number that is longer than any object."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """The bytes from ``start`` up to, and without, ``end``; or the last ``suffix`` bytes."""

    start: int = 0
    end: int | None = None
    suffix: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of an object that exists, never empty."""

    offset: int
    length: int

    def content_range(self, size: int) -> str:
        """The value of the Content-Range header."""
        return f"bytes {self.offset}-{self.offset + self.length - 1}/{size}"


def bad_range(detail: str) -> BadRequest:
    """A range that makes no sense, whatever the object's size."""
    return BadRequest(detail, code="bad-range")


def parse_range(header: str) -> ByteRange | None:
    """The one range of a Range header; None when it has several (the whole object is served then, as RFC 9110 allows).

    Raises:
        BadRequest: bad-range.
    """
    match = _UNIT.match(header)
    if match is None:
        raise bad_range("Range must be 'bytes=first-last', 'bytes=first-' or 'bytes=-length'.")
    parsed = [_parse_spec(spec.strip(" \t")) for spec in match[1].split(",")]
    return parsed[0] if len(parsed) == 1 else None


def range_of_offsets(start: int | None, end: int | None) -> ByteRange | None:
    """The range that ``?start=&end=`` asks for; None when neither is given.

    Raises:
        BadRequest: bad-range.
    """
    if start is None and end is None:
        return None
    start = start or 0
    if end is not None and start >= end:
        raise bad_range(f"start ({start}) must be less than end ({end}); end is exclusive.")
    return ByteRange(start=start, end=end)


def resolve(wanted: ByteRange, size: int) -> Slice:
    """The part of an object of ``size`` bytes that a range means.

    Raises:
        RangeNotSatisfiable: none of it exists. ``extra`` tells the size.
    """
    if wanted.suffix is not None:
        length = min(wanted.suffix, size)
        offset = size - length
    else:
        offset = wanted.start
        length = min(size if wanted.end is None else wanted.end, size) - offset
    if length <= 0:
        raise RangeNotSatisfiable(
            f"The object has {size} bytes, none of them in the range. Ask for bytes below {size}.", extra={"size": size}
        )
    return Slice(offset=offset, length=length)


def _parse_spec(spec: str) -> ByteRange:
    match = _SPEC.match(spec)
    if match is None or spec == "-":
        raise bad_range(f"{spec[:64]!r} is no range of bytes. Use 'first-last', 'first-' or '-length'.")
    first, last = match.groups()
    if not first:
        return ByteRange(suffix=_number(last))
    start = _number(first)
    if not last:
        return ByteRange(start=start)
    end = _number(last) + 1
    if start >= end:
        raise bad_range(f"The range's first byte ({first[:20]}) lies behind its last ({last[:20]}).")
    return ByteRange(start=start, end=end)


def _number(digits: str) -> int:
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) <= _DIGITS_MAX else _BEYOND
