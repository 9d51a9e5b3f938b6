"""Objects as clients see them: as JSON and as headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from amberblob.manifest import Version
from node.http.times import http_date, rfc3339
from node.service import ListedObject, ObjectView

META_PREFIX = "X-Amber-Meta-"


def identity_headers(version: int, blob_id: str, etag: str, created_at_ms: int) -> dict[str, str]:
    """The headers that say which version this is."""
    return {
        "ETag": f'"{etag}"',
        "X-Amber-Version": str(version),
        "X-Amber-Blob-Id": blob_id,
        "Last-Modified": http_date(created_at_ms),
        "X-Amber-Created-At": rfc3339(created_at_ms),
    }


def version_headers(version: Version) -> dict[str, str]:
    """The same, of a version."""
    return identity_headers(version.version, version.blob_id, version.etag, version.created_at_ms)


def object_headers(view: ObjectView) -> dict[str, str]:
    """Every header of an object that is read, but those of its body."""
    headers = version_headers(view.version)
    for name, value in view.version.meta.items():
        headers[META_PREFIX + name] = value
    if view.tombstoned_at_ms is not None:
        headers["X-Amber-Tombstoned-At"] = rfc3339(view.tombstoned_at_ms)
    return headers


def head_headers(head: Mapping[str, Any] | None) -> dict[str, str]:
    """The headers of the head that an error tells of; version 0 when there is none."""
    if head is None:
        return {"X-Amber-Version": "0"}
    return identity_headers(head["version"], head["blob_id"], head["etag"], head["created_at_ms"])


def head_json(head: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The head that an error tells of, with its time as text."""
    if head is None:
        return None
    shown = dict(head)
    shown["created_at"] = rfc3339(shown.pop("created_at_ms"))
    return shown


def head_of(version: Version) -> dict[str, Any]:
    """A version in the form in which errors tell of the head."""
    return {
        "version": version.version,
        "blob_id": version.blob_id,
        "etag": version.etag,
        "size": version.size,
        "created_at_ms": version.created_at_ms,
    }


def written_json(view: ObjectView) -> dict[str, Any]:
    """What a write answers."""
    version = view.version
    return {
        "path": view.path,
        "version": version.version,
        "blob_id": version.blob_id,
        "size": version.size,
        "etag": version.etag,
        "created_at": rfc3339(version.created_at_ms),
    }


def version_json(view: ObjectView) -> dict[str, Any]:
    """One line of an object's history."""
    version = view.version
    tombstoned_at_ms = view.tombstoned_at_ms
    return {
        "version": version.version,
        "blob_id": version.blob_id,
        "size": version.size,
        "etag": version.etag,
        "created_at": rfc3339(version.created_at_ms),
        "content_type": version.content_type,
        "meta": version.meta,
        "tombstoned": tombstoned_at_ms is not None,
        "tombstoned_at": None if tombstoned_at_ms is None else rfc3339(tombstoned_at_ms),
        "is_head": view.is_head,
    }


def listed_json(listed: ListedObject, *, tombstones: bool) -> dict[str, Any]:
    """One line of a listing; it says whether the object is deleted when that was asked for."""
    line: dict[str, Any] = {
        "path": listed.path,
        "version": listed.version,
        "blob_id": listed.blob_id,
        "size": listed.size,
        "etag": listed.etag,
        "created_at": rfc3339(listed.created_at_ms),
        "content_type": listed.content_type,
    }
    if tombstones:
        line["tombstoned"] = listed.tombstoned
    return line
