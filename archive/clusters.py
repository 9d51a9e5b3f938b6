"""The clusters whose metadata is in a target, and which of them were built again (rfc/0016)."""

from __future__ import annotations

from amberblob.errors import ArchiveMissing
from archive.segments import META, cluster_of, recovered_name
from archive.targets.interface import Target
from archive.targets.small import store


async def exported_clusters(target: Target) -> list[str]:
    """The clusters whose metadata is in a target, ascending. Raises as ``Target.page``."""
    found: list[str] = []
    after = ""
    while True:
        page = await target.page(META, after, 1)
        if not page:
            return found
        name = page[0].name
        cluster = cluster_of(name)
        if cluster is None:
            after = name
        else:
            found.append(cluster)
            after = f"{META}{cluster}/z"  # above every name below that folder


async def note_recovered(target: Target, cluster: str, into: str) -> None:
    """Note that all that was exported of ``cluster`` is in the cluster ``into`` now. Raises as ``Target.put``."""
    await store(target, recovered_name(cluster, into), b'{"recovered_into":"%s"}\n' % into.encode())


async def unrecovered(target: Target, own: str) -> list[str]:
    """Other clusters that keep their metadata in this target, and that were not recovered into ``own``.

    Whatever no copy of ``own`` refers to may be theirs: nothing is to be deleted while there are any. Raises as ``Target.page``.
    """
    others = [cluster for cluster in await exported_clusters(target) if cluster != own]
    left = []
    for cluster in others:
        try:
            await target.head(recovered_name(cluster, own))
        except ArchiveMissing:
            left.append(cluster)
    return left
