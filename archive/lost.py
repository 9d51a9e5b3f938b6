"""What a bucket still knows of a cluster that is to be built again, slot by slot (rfc/0016)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import structlog

from amberblob.errors import ArchiveDamaged, ArchiveMissing
from amberblob.ids import ulid_time_ms
from amberblob.limits import MIB
from archive.export import Exports, Known
from archive.gathered import GatheredSlot
from archive.segments import ArchivedEntry, Entry, PartReader, PathEntry, SlotHead, ulid_in
from archive.targets.interface import Target
from archive.targets.small import list_names, whole
from archive.written import merged, through_prefix

log = structlog.get_logger(__name__)

LATE_MS = 300_000
"""Writes may bear a time that is so much older than that of an export that does not have them: the nodes' clocks differ."""
NOT_YET = "only writes that were archived first come back"
"""How a problem ends that is no damage: nothing was ever told of a slot."""
THROUGH_BYTES_MAX = 256 * MIB
PACK_LATE_MS = 3_600_000
"""An object may have been begun so long before the export that does not know what was put into it."""


@dataclass(slots=True)
class _Written:
    """One segment of writes that were archived first: when, and its entries of a slot."""

    at_ms: int
    entries: list[Entry]


class LostCluster:
    """Reads one cluster's metadata.

    Args:
        problem: told of what cannot be read, by name.
    """

    def __init__(self, target: Target, cluster: str, problem: Callable[[str], None]) -> None:
        self.cluster = cluster
        self.slot_count = 0
        self._target = target
        self._exports = Exports(target, cluster)
        self._problem = problem
        self._known = Known()
        self._heads: dict[int, list[SlotHead]] = {}
        self._times: dict[int, int] = {}
        self._written: dict[int, list[_Written]] = {}

    async def open(self) -> None:
        """Find out what there is. Raises: ArchiveMissing, if there is nothing; ArchiveError."""
        self._known = await self._exports.load()
        self._heads, self._times = self._known.by_slot(), self._known.as_of_ms()
        for name, error in self._known.damaged.items():
            self._problem(f"{name} is not used: {error.detail}")
        try:
            self.slot_count = (await self._exports.document()).slot_count
        except (ArchiveMissing, ArchiveDamaged) as error:
            # Every head tells it, too.
            counts = {head.slot_count for head in self._known.heads.values()}
            if len(counts) != 1:
                raise ArchiveMissing(
                    f"Nothing tells how the paths of cluster {self.cluster} were divided into slots: {error.detail}"
                ) from error
            self.slot_count = counts.pop()
            self._problem(f"cluster.json is not used: {error.detail}")
        await self._read_written()

    @property
    def since_ms(self) -> int:
        """What was archived before this is known to the export of every slot, but for slots that never were exported."""
        return max(0, min(self._times.values(), default=0) - PACK_LATE_MS)

    async def slot(self, slot: int) -> GatheredSlot:
        """What is known of a slot: the newest export that can be read as a whole, and the writes since.

        Raises: ArchiveUnavailable, ArchiveDenied.
        """
        heads = self._heads.get(slot, [])
        if not heads:
            self._problem(f"slot {slot} was never exported: {NOT_YET}")
        gathered, as_of_ms = GatheredSlot(), 0
        for at, head in enumerate(heads):
            try:
                gathered = await self._exports.gather(head)
            except (ArchiveMissing, ArchiveDamaged) as error:
                self._problem(f"slot {slot}: {error.detail} An older export is used, if there is one.")
                continue
            as_of_ms = self._times[slot] if at == 0 else head.at_ms
            as_of_ms = await self._add_richer(gathered, heads[at:], as_of_ms)
            break
        self._add_written(gathered, self._written.get(slot, ()), as_of_ms - LATE_MS)
        return gathered

    async def _add_richer(self, gathered: GatheredSlot, heads: list[SlotHead], as_of_ms: int) -> int:
        """Add what older exports of other copies claim to tell beyond that time; until when all is told then.

        A voter that was away exports as soon as it is back, perhaps before it was mended: its export is the newest, and tells less.
        """
        newest, told_ms = heads[0], as_of_ms
        for head in heads[1:]:
            if head.copy == newest.copy or head.at_ms <= told_ms:
                continue
            try:
                older = await self._exports.gather(head)
            except (ArchiveMissing, ArchiveDamaged) as error:
                self._problem(f"slot {head.slot}: {error.detail}")
                continue
            for path, item in older.items.items():
                gathered.items[path] = merged(gathered.items.get(path), item)
            for blob_id, chunks in older.archived.items():
                gathered.learn(blob_id, chunks.values())
            told_ms = head.at_ms
        return told_ms

    @staticmethod
    def _add_written(gathered: GatheredSlot, segments: Iterable[_Written], since_ms: int) -> None:
        for segment in segments:
            if segment.at_ms < since_ms:
                continue
            for entry in segment.entries:
                if isinstance(entry, PathEntry):
                    gathered.items[entry.item.path] = merged(gathered.items.get(entry.item.path), entry.item)
                elif isinstance(entry, ArchivedEntry):
                    gathered.learn(entry.blob_id, entry.chunks)

    async def _read_written(self) -> None:
        oldest = min((self._times.get(slot, 0) for slot in range(self.slot_count)), default=0) - LATE_MS
        for name in await list_names(self._target, through_prefix(self.cluster)):
            ulid = ulid_in(name)
            if ulid is None or ulid_time_ms(ulid) < oldest:
                continue
            try:
                found = await self._segment(name)
            except (ArchiveMissing, ArchiveDamaged) as error:
                self._problem(
                    f"{name}: {error.detail} The writes that it tells of are lost, but for what the export has."
                )
                continue
            for slot, entries in found.items():
                self._written.setdefault(slot, []).append(_Written(ulid_time_ms(ulid), entries))

    async def _segment(self, name: str) -> dict[int, list[Entry]]:
        data = await whole(self._target, name, THROUGH_BYTES_MAX)
        line = data.find(b"\n") + 1
        if not line:
            raise ArchiveDamaged(f"{name} is no segment.")
        reader, found = PartReader(name, line), dict[int, list[Entry]]()
        for slot, entries in reader.feed(memoryview(data)[line:]):
            found.setdefault(slot, []).extend(entries)
        reader.finish()
        return found
