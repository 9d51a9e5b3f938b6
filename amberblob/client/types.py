"""What the client gives back: frozen values, read leniently so that a newer server may say more."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from amberblob.errors import WireError

Consistency = Literal["strong", "local"]
SlotsShown = Literal["all", "unhealed"]
ByteRange = tuple[int | None, int | None]
"""``(start, end)``, end exclusive; ``(start, None)``: to the end; ``(-n, None)``: the last n bytes."""

Progress = Callable[[int, int | None], None]
"""Called with the bytes done so far and the total, if it is known. Starts anew at 0 when a body is sent again."""

META_PREFIX = "x-amber-meta-"
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One version of an object.

    Attributes:
        path: its name.
        version: 1 or more.
        blob_id: ULID, unique per PUT.
        size: bytes of the whole object.
        etag: blake3 of the content, 64 hex, without quotes.
        created_at: when it was made; from an answer that has only ``Last-Modified`` in whole seconds.
        content_type: as it was given with the PUT; None where the answer does not tell it.
        meta: the user's metadata, names in lower case.
        tombstoned: it was deleted.
        tombstoned_at: when, if the answer tells it.
    """

    path: str
    version: int
    blob_id: str
    size: int
    etag: str
    created_at: datetime | None = None
    content_type: str | None = None
    meta: Mapping[str, str] = field(default_factory=dict)
    tombstoned: bool = False
    tombstoned_at: datetime | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, for ``--json`` and for logs."""
        document: dict[str, Any] = {
            "path": self.path,
            "version": self.version,
            "blob_id": self.blob_id,
            "size": self.size,
            "etag": self.etag,
            "created_at": format_time(self.created_at),
            "content_type": self.content_type,
            "meta": dict(self.meta),
            "tombstoned": self.tombstoned,
        }
        if self.tombstoned_at is not None:
            document["tombstoned_at"] = format_time(self.tombstoned_at)
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPage:
    """A page of a listing, in byte order of the UTF-8 path; ``cursor`` is None at the end."""

    objects: tuple[ObjectInfo, ...]
    prefixes: tuple[str, ...]
    cursor: str | None


def format_time(moment: datetime | None) -> str | None:
    """ISO 8601 in UTC with a ``Z``, to the millisecond."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_time(value: object) -> datetime | None:
    """A time as servers give it: ISO 8601, or milliseconds since the Unix epoch. None when it is neither."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return datetime.fromtimestamp(value / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    return None


def time_parameter(moment: datetime | str | int) -> str:
    """The ``at=`` parameter. A naive datetime is local time, as everywhere in Python."""
    if isinstance(moment, datetime):
        return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return str(moment)


def info_from_json(
    document: object, *, path: str | None = None, content_type: str | None = None, meta: Mapping[str, str] | None = None
) -> ObjectInfo:
    """An object of a JSON answer; what the answer leaves out is taken from the arguments.

    Raises:
        WireError: the answer is none of AmberBlob's.
    """
    try:
        if not isinstance(document, Mapping):
            raise TypeError("not a JSON object")
        tombstoned_at = parse_time(document.get("tombstoned_at"))
        return ObjectInfo(
            path=str(document.get("path", path) if path is None else path),
            version=int(document["version"]),
            blob_id=str(document.get("blob_id", "")),
            size=int(document["size"]),
            etag=str(document["etag"]).strip('"'),
            created_at=parse_time(document.get("created_at")),
            content_type=document.get("content_type", content_type),
            meta=dict(document.get("meta") or meta or {}),
            tombstoned=bool(document.get("tombstoned", tombstoned_at is not None)),
            tombstoned_at=tombstoned_at,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise WireError(f"The answer describes no object ({error!r}): is the endpoint an AmberBlob node?") from error


def info_from_headers(path: str, headers: Mapping[str, str]) -> ObjectInfo:
    """The object that the headers of a GET, HEAD or 206 answer describe; ``size`` is that of the whole object.

    Raises:
        WireError: the answer is none of AmberBlob's.
    """
    try:
        span = content_range(headers)
        modified = headers.get("Last-Modified")
        return ObjectInfo(
            path=path,
            version=int(headers["X-Amber-Version"]),
            blob_id=headers.get("X-Amber-Blob-Id", ""),
            size=span[2] if span is not None else int(headers["Content-Length"]),
            etag=headers["ETag"].strip('"'),
            created_at=parse_time(headers.get("X-Amber-Created-At"))
            or (parsedate_to_datetime(modified) if modified else None),
            content_type=headers.get("Content-Type"),
            meta={
                name.lower()[len(META_PREFIX) :]: value
                for name, value in headers.items()
                if name.lower().startswith(META_PREFIX)
            },
            tombstoned="X-Amber-Tombstoned-At" in headers or headers.get("X-Amber-Tombstoned", "") in ("1", "true"),
            tombstoned_at=parse_time(headers.get("X-Amber-Tombstoned-At")),
        )
    except (KeyError, ValueError) as error:
        raise WireError(f"The answer describes no object ({error!r}): is the endpoint an AmberBlob node?") from error


def content_range(headers: Mapping[str, str]) -> tuple[int, int, int] | None:
    """``(start, end exclusive, size of the whole)`` of a partial answer."""
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    return (int(match[1]), int(match[2]) + 1, int(match[3])) if match else None


def range_header(span: ByteRange) -> str:
    """The ``Range`` header for ``(start, end)``.

    Raises:
        ValueError: the range is empty or backwards, which HTTP cannot say.
    """
    start, end = span
    if start is not None and start < 0:
        if end is not None:
            raise ValueError("a range that counts from the end has no end of its own")
        return f"bytes={start}"
    start = start or 0
    if end is None:
        return f"bytes={start}-"
    if end <= start:
        raise ValueError(f"the range {start}:{end} is empty")
    return f"bytes={start}-{end - 1}"
