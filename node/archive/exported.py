"""What the metadata that was exported into the bucket still needs: a cluster that is built again from it must find it (rfc/0016)."""

from __future__ import annotations

from collections.abc import Callable, Collection

from amberblob.errors import ArchiveMissing
from archive.clusters import unrecovered
from archive.lost import NOT_YET, LostCluster
from archive.targets.interface import Target


class ExportedObjects:
    """Reads the export once, when it is needed first.

    Args:
        cluster: this cluster's id.
    """

    def __init__(self, target: Target, cluster: str) -> None:
        self._target = target
        self._cluster = cluster
        self._names: set[str] | None = None
        self.damaged: list[str] = []
        """What of it cannot be read: then nobody knows what it needs."""

    async def strangers(self) -> list[str]:
        """Other clusters that use this target. Whatever is not needed here may be theirs. Raises as ``Target.page``."""
        return await unrecovered(self._target, self._cluster)

    async def needed(self, names: Collection[str], say: Callable[[str], None]) -> set[str]:
        """Those that a cluster which is built from the export would read. Raises: ArchiveUnavailable, ArchiveDenied."""
        if self._names is None:
            say("reading what the last export needs")
            self._names = await self._read()
        return self._names.intersection(names)

    async def _read(self) -> set[str]:
        found: set[str] = set()
        lost = LostCluster(self._target, self._cluster, self._problem)
        try:
            await lost.open()
        except ArchiveMissing:
            return found
        for slot in range(lost.slot_count):
            gathered = await lost.slot(slot)
            for blob_id in gathered.blobs():
                found.update(chunk.target_path for chunk in gathered.archived.get(blob_id, {}).values())
        return found

    def _problem(self, text: str) -> None:
        # A slot that no export has yet needs nothing.
        if not text.endswith(NOT_YET):
            self.damaged.append(text)
