"""The clusters whose metadata is in a target, and which of them were built again (rfc/0016)."""

from __future__ import annotations

from amberblob.errors import ArchiveMissing
from archive.segments import META, cluster_name, cluster_of, recovered_name
from archive.targets.interface import Target
from archive.targets.small import store


async def clusters_in(target: Target) -> list[str]:
    """The clusters that have something of theirs in a target, ascending: at least their document. Raises as ``Target.page``."""
    return [cluster for cluster, _ in await _folders(target)]


async def exported_clusters(target: Target) -> list[str]:
    """Those of which more than their document is there: something to recover. Ascending. Raises as ``Target.page``."""
    return [cluster for cluster, told in await _folders(target) if told]


async def _folders(target: Target) -> list[tuple[str, bool]]:
    """Every cluster, and whether there is more than its document."""
    found: list[tuple[str, bool]] = []
    after = ""
    while page := await target.page(META, after, 2):
        cluster = cluster_of(page[0].name)
        if cluster is None:
            after = page[0].name
            continue
        names = [stored.name for stored in page if cluster_of(stored.name) == cluster]
        found.append((cluster, names != [cluster_name(cluster)]))
        after = f"{META}{cluster}/z"  # above every name below that folder
    return found


async def note_recovered(target: Target, cluster: str, into: str) -> None:
    """Note that all that was exported of ``cluster`` is in the cluster ``into`` now. Raises as ``Target.put``."""
    await store(target, recovered_name(cluster, into), b'{"recovered_into":"%s"}\n' % into.encode())


async def unrecovered(target: Target, own: str) -> list[str]:
    """Other clusters that have something of theirs in this target, and that were not recovered into ``own``.

    Whatever no copy of ``own`` refers to may be theirs: nothing is to be deleted while there are any. Raises as ``Target.page``.
    """
    others = [cluster for cluster in await clusters_in(target) if cluster != own]
    left = []
    for cluster in others:
        try:
            await target.head(recovered_name(cluster, own))
        except ArchiveMissing:
            left.append(cluster)
    return left
