"""Which operation answers which method of which resource."""

from __future__ import annotations

from collections.abc import Mapping

from amberblob.errors import MethodNotAllowed, NotFound
from node.http import archive, endpoints
from node.http.call import Handler
from node.http.delete import delete
from node.http.get import get
from node.http.listing import list_objects
from node.http.membership import membership
from node.http.put import put
from node.http.restore import restore
from node.http.target import Resource

ROUTES: Mapping[Resource, Mapping[str, tuple[str, Handler]]] = {
    Resource.OBJECT: {
        "GET": ("get", get),
        "HEAD": ("head", get),
        "PUT": ("put", put),
        "DELETE": ("delete", delete),
        "POST": ("restore", restore),
    },
    Resource.OBJECTS: {"GET": ("list", list_objects), "HEAD": ("list", list_objects)},
    Resource.HEALTHZ: {"GET": ("healthz", endpoints.healthz), "HEAD": ("healthz", endpoints.healthz)},
    Resource.READYZ: {"GET": ("readyz", endpoints.readyz), "HEAD": ("readyz", endpoints.readyz)},
    Resource.METRICS: {"GET": ("metrics", endpoints.metrics), "HEAD": ("metrics", endpoints.metrics)},
    Resource.CLUSTER: {"GET": ("cluster", endpoints.cluster), "HEAD": ("cluster", endpoints.cluster)},
    Resource.HEAL: {"POST": ("heal", endpoints.heal)},
    Resource.MEMBERSHIP: {"POST": ("membership", membership)},
    Resource.ARCHIVE: {"GET": ("archive", archive.archive)},
    Resource.ARCHIVE_JOBS: {
        "GET": ("archive-jobs", archive.jobs),
        "POST": ("archive-start", archive.start),
    },
    Resource.ARCHIVE_JOB: {
        "GET": ("archive-job", archive.job),
        "DELETE": ("archive-stop", archive.stop),
    },
    Resource.OPENAPI: {"GET": ("openapi", endpoints.openapi), "HEAD": ("openapi", endpoints.openapi)},
}
"""Resource → method → (the operation's name in metrics and logs, its handler)."""

OPEN_RESOURCES = frozenset((Resource.HEALTHZ, Resource.READYZ))
"""What answers without the token: a health checker has none."""


def route(resource: Resource, method: str) -> tuple[str, Handler]:
    """The operation.

    Raises:
        NotFound: no-such-resource.
        MethodNotAllowed: ``extra`` tells the methods that there are.
    """
    methods = ROUTES.get(resource)
    if methods is None:
        raise NotFound(
            "There is nothing at this address. Objects are at /objects/{path}; /openapi.json tells of everything else.",
            code="no-such-resource",
        )
    found = methods.get(method)
    if found is None:
        allowed = list(methods)
        raise MethodNotAllowed(f"{resource} has {', '.join(allowed)}.", extra={"allow": allowed})
    return found
