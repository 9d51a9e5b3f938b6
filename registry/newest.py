"""What the registry says at this moment, for whoever must not go by what was seen before."""

from __future__ import annotations

from collections.abc import Callable

from amberblob.errors import RegistryUnavailable
from registry.interface import Registry
from registry.keys import Keys
from registry.routes import RouteTable
from registry.snapshot import picture_of
from registry.trust import check_picture


async def newest_nodes(registry: Registry, cluster_name: str, known: Callable[[], RouteTable | None]) -> frozenset[str]:
    """The cluster's nodes: every node that was one when this was called, and is one still, is among them.

    Args:
        known: the newest table seen; a registry that shows less is not trusted.

    Raises: RegistryUnavailable, RegistryRefused.
    """
    keys = Keys(cluster_name)
    picture = picture_of(await registry.range(keys.root), keys)
    check_picture(known(), picture)
    if picture.cluster is None or not picture.nodes:
        raise RegistryUnavailable(f"The registry shows no nodes of {cluster_name}.")
    return frozenset(picture.nodes)
