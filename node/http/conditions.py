"""Conditional requests. Pure: headers in; for writes a :class:`Conditions` out, for reads a verdict.

Writes are decided by the cluster, so their conditions are only parsed here. A condition that the cluster
cannot decide is refused on a write and never ignored: ignored, it would let the write happen.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

from multidict import CIMultiDictProxy

from amberblob.errors import BadRequest
from amberblob.limits import VERSION_MAX
from node.http.times import parse_http_date
from node.service import NO_CONDITIONS, Conditions

Headers = CIMultiDictProxy[str]

_ETAG = re.compile(r'[ \t]*(W/)?"([\x21\x23-\x7e\x80-\U0010ffff]*)"[ \t]*')
_NUMBER = re.compile(r"\A[0-9]{1,19}\Z")
_UNDECIDABLE_ON_WRITES = ("If-Modified-Since", "If-Unmodified-Since", "If-Range")


@dataclass(frozen=True, slots=True)
class EntityTag:
    """One entity tag, without its quotes."""

    value: str
    weak: bool = False


ANY = (EntityTag("*"),)
"""What ``*`` parses to. Compared by identity, because a quoted ``"*"`` is an entity tag like any other."""


class Verdict(Enum):
    """What a read's conditions say."""

    SERVE = auto()
    NOT_MODIFIED = auto()
    FAILED = auto()


def bad_header(detail: str) -> BadRequest:
    """A header whose value cannot be meant."""
    return BadRequest(detail, code="bad-header")


def single(headers: Headers, name: str) -> str | None:
    """The value of a header that may be given once.

    Raises:
        BadRequest: bad-header, when it is given more often.
    """
    if name not in headers:
        return None
    values = headers.getall(name)
    if len(values) > 1:
        raise bad_header(f"{name} is given {len(values)} times. Give it once.")
    return values[0]


def parse_etags(name: str, value: str) -> tuple[EntityTag, ...]:
    """A list of entity tags; the very tuple :data:`ANY` for ``*``.

    Raises:
        BadRequest: bad-header.
    """
    if value.strip(" \t") == "*":
        return ANY
    tags: list[EntityTag] = []
    at = 0
    while True:
        match = _ETAG.match(value, at)
        if match is None:
            break
        tags.append(EntityTag(match[2], weak=match[1] is not None))
        at = match.end()
        if at == len(value):
            return tuple(tags)
        if value[at] != ",":
            break
        at += 1
    raise bad_header(f'{name} must be * or a list of entity tags in double quotes, such as "0a1b…".')


def write_conditions(headers: Headers) -> Conditions:
    """What must hold of the head for a write to happen.

    Raises:
        BadRequest: bad-header.
    """
    for name in _UNDECIDABLE_ON_WRITES:
        if name in headers:
            raise bad_header(
                f"{name} cannot be decided for a write. Use If-Match, If-None-Match: * or X-Amber-If-Version."
            )
    absent = False
    etags: tuple[str, ...] = ()
    version: int | None = None
    if "If-None-Match" in headers:
        if parse_etags("If-None-Match", _joined(headers, "If-None-Match")) is not ANY:
            raise bad_header("On a write If-None-Match can only be *. To compare content use If-Match.")
        absent = True
    if "If-Match" in headers:
        tags = parse_etags("If-Match", _joined(headers, "If-Match"))
        if any(tag.weak for tag in tags):
            raise bad_header(
                "If-Match compares strongly: a weak tag (W/) can never match. Send the ETag as it was given."
            )
        if tags is not ANY and any(tag.value == "*" for tag in tags):
            raise bad_header(
                'If-Match: "*" in quotes is no entity tag of this store. Use * alone, or the ETag as it was given.'
            )
        etags = tuple(tag.value for tag in tags)
    value = single(headers, "X-Amber-If-Version")
    if value is not None:
        if _NUMBER.match(value) is None or int(value) > VERSION_MAX:
            raise bad_header("X-Amber-If-Version must be the head's version, or 0 for an object that must be absent.")
        version = int(value)
    if not absent and not etags and version is None:
        return NO_CONDITIONS
    return Conditions(absent=absent, etags=etags, version=version)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadConditions:
    """The conditions of a read. None: the header is absent (or, for dates, not a date)."""

    match: tuple[EntityTag, ...] | None = None
    none_match: tuple[EntityTag, ...] | None = None
    modified_since_s: int | None = None
    unmodified_since_s: int | None = None

    def judge(self, etag: str, modified_s: int) -> Verdict:
        """In the order of RFC 9110, section 13.2.2."""
        if self.match is not None:
            if self.match is not ANY and EntityTag(etag) not in self.match:
                return Verdict.FAILED
        elif self.unmodified_since_s is not None and modified_s > self.unmodified_since_s:
            return Verdict.FAILED
        if self.none_match is not None:
            if self.none_match is ANY or any(tag.value == etag for tag in self.none_match):
                return Verdict.NOT_MODIFIED
        elif self.modified_since_s is not None and modified_s <= self.modified_since_s:
            return Verdict.NOT_MODIFIED
        return Verdict.SERVE


_ALWAYS = ReadConditions()


def read_conditions(headers: Headers) -> ReadConditions:
    """The conditions of a read.

    Raises:
        BadRequest: bad-header.
    """
    if not (
        "If-None-Match" in headers
        or "If-Match" in headers
        or "If-Modified-Since" in headers
        or "If-Unmodified-Since" in headers
    ):
        return _ALWAYS
    return ReadConditions(
        match=_tags(headers, "If-Match"),
        none_match=_tags(headers, "If-None-Match"),
        modified_since_s=_date(headers, "If-Modified-Since"),
        unmodified_since_s=_date(headers, "If-Unmodified-Since"),
    )


def range_applies(headers: Headers, etag: str, modified_s: int) -> bool:
    """Whether If-Range lets the Range header count: absent, or the very same content."""
    value = single(headers, "If-Range")
    if value is None:
        return True
    if '"' in value:
        return parse_etags("If-Range", value) == (EntityTag(etag),)
    return parse_http_date(value) == modified_s


def _tags(headers: Headers, name: str) -> tuple[EntityTag, ...] | None:
    return parse_etags(name, _joined(headers, name)) if name in headers else None


def _date(headers: Headers, name: str) -> int | None:
    value = single(headers, name)
    return None if value is None else parse_http_date(value)


def _joined(headers: Headers, name: str) -> str:
    return ",".join(headers.getall(name))
