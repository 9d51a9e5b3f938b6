"""Raising the format of a registry's contents: only once every node knows it (rfc/0015).

A cluster is made in the oldest format, so that nodes of the version before can begin it together with this one. What needs a later
one (:data:`FORMAT_OF_MEMBERSHIP`) raises it first. From then on a node that does not know it does not start.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec
import structlog

from amberblob.errors import NotReady, RegistryUnavailable
from registry.interface import Registry
from registry.keys import Keys
from registry.routes import FORMAT_VERSION, ClusterInfo, NodeInfo, encode
from registry.snapshot import picture_of

_log = structlog.get_logger(__name__)

FORMAT_OF_MEMBERSHIP = 2
"""Routes that change their members, and what is wanted of nodes (rfc/0013). Nodes of format 1 would take a JOINT route for a stable one."""

assert FORMAT_OF_MEMBERSHIP <= FORMAT_VERSION


def too_old(nodes: Iterable[NodeInfo], wanted: int) -> list[str]:
    """The ids of the nodes that do not know this format, sorted."""
    return sorted(node.node_id for node in nodes if node.registry_format < wanted)


async def raise_format(registry: Registry, name: str, wanted: int, *, leaving: Collection[str] = ()) -> ClusterInfo:
    """See to it that the registry's contents are at least of format ``wanted``; the cluster as it is then.

    Call it again right before what needs the format is written: a node of the version before may have been started in between.

    Args:
        name: the cluster's.
        wanted: the format, which this version knows.
        leaving: nodes that do not count: they are gone for good. Should one come back as it was, it does not start.

    Raises:
        NotReady: code ``nodes-too-old``; the detail names the nodes that are to be upgraded first. Nothing was changed.
        RegistryUnavailable: it cannot be reached, or has no such cluster.
    """
    assert wanted <= FORMAT_VERSION
    keys = Keys(name)
    while True:
        snapshot = await registry.range(keys.root)
        picture = picture_of(snapshot, keys)
        if picture.cluster is None:
            raise RegistryUnavailable(f"The registry has no cluster {name!r}.")
        older = too_old((node for node in picture.nodes.values() if node.node_id not in leaving), wanted)
        if older:
            raise NotReady(
                f"{', '.join(older)}: of a version that does not know this yet. Upgrade and start these nodes first, one at a time.",
                code="nodes-too-old",
                extra={"nodes": older},
            )
        if picture.cluster.format_version >= wanted:
            return picture.cluster
        raised = msgspec.structs.replace(picture.cluster, format_version=wanted)
        revision = next(entry.revision for entry in snapshot.entries if entry.key == keys.cluster)
        if await registry.compare_and_set(keys.cluster, revision, encode(raised)) is not None:
            _log.info("registry format raised", cluster=name, format=wanted)
            return raised
