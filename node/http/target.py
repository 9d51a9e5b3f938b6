"""What a raw request target names. Pure, and on bytes as they came: nothing is normalised on the way.

aiohttp's own URL (yarl) collapses dot segments and re-encodes, which would turn one object's name into
another's. So the target is cut by hand, and the object's name is decoded by :mod:`amberblob.paths`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from amberblob.errors import BadRequest
from amberblob.paths import percent_decode


class Resource(StrEnum):
    """What can be asked for. The value is the path as OpenAPI writes it."""

    OBJECT = "/objects/{path}"
    OBJECTS = "/objects"
    HEALTHZ = "/healthz"
    READYZ = "/readyz"
    METRICS = "/metrics"
    CLUSTER = "/cluster"
    HEAL = "/cluster/heal"
    MEMBERSHIP = "/cluster/membership"
    ARCHIVE = "/archive"
    ARCHIVE_JOBS = "/archive/jobs"
    ARCHIVE_JOB = "/archive/jobs/{id}"
    OPENAPI = "/openapi.json"
    NOTHING = ""


@dataclass(slots=True)
class Target:
    """A request target, cut into its parts.

    Attributes:
        resource: what it names.
        encoded_path: the object's name, still percent-encoded, or a job's id; empty for other resources.
        raw_query: what follows the first ``?``, still encoded.
    """

    resource: Resource
    encoded_path: str
    raw_query: str


_ORIGIN = re.compile(r"\A[A-Za-z][A-Za-z0-9+.\-]*://[^/?]*")
_OBJECT_PREFIXES = ("/objects/", "/blobs/")
_JOB_PREFIX = "/archive/jobs/"
_NOT_EXACT = (Resource.OBJECT, Resource.ARCHIVE_JOB, Resource.NOTHING)
_EXACT = {resource.value: resource for resource in Resource if resource not in _NOT_EXACT} | {
    "/blobs": Resource.OBJECTS
}


def parse_target(raw: str) -> Target:
    """Cut a request target of any form.

    Raises:
        BadRequest: bad-path, for a ``#``: cutting a fragment off would name another object.
    """
    if "#" in raw:
        raise BadRequest(
            "A request target has no fragment. If the name holds a '#', encode it as %23.", code="bad-path"
        )
    if raw.startswith("/objects/") and "?" not in raw:
        return Target(Resource.OBJECT, raw[len("/objects/") :], "")
    if not raw.startswith("/"):
        origin = _ORIGIN.match(raw)
        if origin is not None:
            raw = raw[origin.end() :]
            if not raw.startswith("/"):
                raw = "/" + raw
    path, _, query = raw.partition("?")
    for prefix in _OBJECT_PREFIXES:
        if path.startswith(prefix):
            return Target(Resource.OBJECT, path[len(prefix) :], query)
    if path.startswith(_JOB_PREFIX):
        return Target(Resource.ARCHIVE_JOB, path[len(_JOB_PREFIX) :], query)
    return Target(_EXACT.get(path, Resource.NOTHING), "", query)


def parse_query(raw_query: str, known: frozenset[str]) -> dict[str, str | None]:
    """The parameters of a query; None is the value of one without ``=``.

    Unknown names are refused, and so are repeated ones: a mistyped ``?verison=3`` must not be ignored and
    overwrite what it was to spare.

    Raises:
        BadRequest: bad-parameter.
    """
    if not raw_query:
        return {}
    parameters: dict[str, str | None] = {}
    for part in raw_query.split("&"):
        if not part:
            continue
        raw_name, equals, raw_value = part.partition("=")
        name = _decode(raw_name)
        if name not in known:
            raise BadRequest(
                f"Unknown parameter {name[:64]!r}. This request knows {_listed(known)}.", code="bad-parameter"
            )
        if name in parameters:
            raise BadRequest(f"The parameter {name!r} is given twice. Give it once.", code="bad-parameter")
        parameters[name] = _decode(raw_value) if equals else None
    return parameters


def _decode(text: str) -> str:
    try:
        return percent_decode(text.replace("+", " ")).decode("utf-8")
    except ValueError:  # UnicodeDecodeError is one
        raise BadRequest(
            "A query parameter is not percent-encoded UTF-8. Encode '%' itself as %25.", code="bad-parameter"
        ) from None


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) if names else "no parameters"
