"""The request targets: encoded once, here, and never touched again on the way."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote

from amberblob.paths import check_path, encode_path


def object_target(path: str, query: Mapping[str, str] | None = None) -> str:
    """``/objects/…`` for a path. An empty value gives a bare key: ``?versions``.

    Raises:
        BadRequest, Forbidden: the path can name no object.
    """
    return with_query("/objects/" + encode_path(check_path(path)), query or {})


def listing_target(query: Mapping[str, str]) -> str:
    """``/objects?…``"""
    return with_query("/objects", query)


HEAL_TARGET = "/cluster/heal"
MEMBERSHIP_TARGET = "/cluster/membership"
ARCHIVE_TARGET = "/archive"
ARCHIVE_JOBS_TARGET = "/archive/jobs"


def cluster_target(query: Mapping[str, str]) -> str:
    """``/cluster?…``"""
    return with_query("/cluster", query)


def archive_job_target(job: str) -> str:
    """``/archive/jobs/…``"""
    return f"{ARCHIVE_JOBS_TARGET}/{quote(job, safe='')}"


def with_query(target: str, query: Mapping[str, str]) -> str:
    """The target with a query. Everything but unreserved characters is encoded, also ``/`` and ``+``."""
    if not query:
        return target
    pairs = (
        f"{quote(name, safe='')}={quote(value, safe='')}" if value else quote(name, safe="")
        for name, value in query.items()
    )
    return f"{target}?{'&'.join(pairs)}"
