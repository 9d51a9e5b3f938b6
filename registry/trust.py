"""Whether a registry shows the cluster that this node knows, or is to be refused: emptied, set back, or another cluster's.

A registry that lost changes would give their epochs a second time, with other voters: two majorities that need not overlap.
So a node takes nothing from it, writes nothing into it, and goes on with the routes that it has. It trusts again as soon as
the registry shows nothing older than was seen.
"""

from __future__ import annotations

from amberblob.errors import RegistryUnavailable
from registry.interface import Registry
from registry.keys import Keys
from registry.routes import ClusterInfo, Member, Route, RouteTable, decode
from registry.snapshot import Picture, picture_of

GOES_ON = "Reads and writes go on with the routes seen before; membership stands still."


class RegistryRefused(RegistryUnavailable):
    """The registry answers, and what it shows cannot be what this cluster's nodes have seen."""


def check_picture(known: RouteTable | None, picture: Picture) -> None:
    """Compare what the registry shows with what was seen; nothing is refused while nothing was seen.

    Raises:
        RegistryRefused: it shows less, or something else.
    """
    fault = _fault(known, picture) if known is not None else None
    if fault is not None:
        raise RegistryRefused(f"The registry is refused: {fault}. {GOES_ON}")


def check_revision(seen: int, revision: int) -> None:
    """A store's revision only grows.

    Args:
        seen: the highest that this process has seen.

    Raises:
        RegistryRefused: it has gone back.
    """
    if revision < seen:
        raise RegistryRefused(
            f"The registry is refused: it shows revision {revision}, and {seen} was seen, so it was restored from a backup. If "
            f"that is the newest state there is, restart the nodes one by one: they accept it unless its routes are older. {GOES_ON}"
        )


async def check_known(registry: Registry, known: RouteTable) -> None:
    """:func:`check_picture` of what the registry shows now.

    Raises:
        RegistryRefused: it shows less, or something else.
        RegistryUnavailable: it cannot be reached, or read.
    """
    keys = Keys(known.cluster.name)
    check_picture(known, picture_of(await registry.range(keys.root), keys))


async def check_cluster(registry: Registry, cluster: ClusterInfo) -> None:
    """To be called before writing for a cluster into a registry that may have become another one's.

    Raises:
        RegistryRefused: it does not hold this cluster.
        RegistryUnavailable: it cannot be reached, or read.
    """
    key = Keys(cluster.name).cluster
    entry = await registry.get(key)
    fault = _wrong_cluster(cluster.cluster_id, decode(entry.value, ClusterInfo, key) if entry is not None else None)
    if fault is not None:
        raise RegistryRefused(f"The registry is refused: {fault}. {GOES_ON}")


def _wrong_cluster(known_id: str, shown: ClusterInfo | None) -> str | None:
    if shown is None:
        return (
            f"it does not have cluster {known_id} any more: it came back empty, or is another one. Restore its newest state, "
            "or correct [cluster] registry"
        )
    if shown.cluster_id != known_id:
        return (
            f"it now holds cluster {shown.cluster_id}, and this node belongs to {known_id}. Correct [cluster] registry"
        )
    return None


def _fault(known: RouteTable, picture: Picture) -> str | None:
    wrong = _wrong_cluster(known.cluster.cluster_id, picture.cluster)
    if wrong is not None:
        return wrong
    for seen in known.routes:
        shown = picture.routes.get(seen.slot)
        if shown is None:
            return f"it has no route for slot {seen.slot} any more. Restore its newest state"
        if shown.epoch < seen.epoch:
            return (
                f"it is older than what was seen: slot {seen.slot} is in epoch {shown.epoch} there, and epoch {seen.epoch} was "
                "seen. Restore its newest state"
            )
        if shown.epoch == seen.epoch and _members(shown) != _members(seen):
            return (
                f"it was changed after it had been set back: slot {seen.slot} has other members there in epoch {seen.epoch} than "
                "were seen. Restore its newest state"
            )
    return None


def _members(route: Route) -> tuple[object, ...]:
    def named(members: tuple[Member, ...]) -> frozenset[tuple[str, str]]:
        return frozenset((member.node, member.incarnation) for member in members)

    return named(route.voters), named(route.next_voters), named(route.learners)
