"""Exported metadata in the bucket: found again, read, and what nobody needs any more removed (rfc/0016)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog
from blake3 import blake3

from amberblob.errors import ArchiveDamaged, ArchiveError, ArchiveMissing
from amberblob.ids import ulid_time_ms
from amberblob.limits import MIB
from archive.closing import closing
from archive.gathered import GatheredSlot
from archive.segments import (
    ClusterDocument,
    Entry,
    Head,
    PartReader,
    Ref,
    SlotHead,
    cluster_name,
    decode_cluster,
    decode_head,
    encode_cluster,
    encode_head,
    head_name,
    segment_name,
    ulid_in,
)
from archive.targets.interface import Target
from archive.targets.small import list_names, list_objects, store, whole
from archive.written import through_prefix

log = structlog.get_logger(__name__)
HEAD_BYTES_MAX = 64 * MIB
DELETE_MAX = 1000
READ_AT_ONCE = 8
WRITTEN_KEPT_MS = 86_400_000
"""What writes that were archived first told of themselves stays so long after the export has it, too."""
_CACHE_BYTES_MAX = 64 * MIB
_SHARED_BYTES_MAX = 2 * MIB
"""What is read of a segment along with a small part, because the slots that come next have theirs beside it."""


@dataclass(slots=True)
class Known:
    """What heads tell, newest first.

    Attributes:
        heads: by name.
        damaged: heads that cannot be read, with what is wrong.
    """

    heads: dict[str, Head] = field(default_factory=dict)
    damaged: dict[str, ArchiveError] = field(default_factory=dict)

    def by_slot(self) -> dict[int, list[SlotHead]]:
        """By slot: what is known of it, newest first."""
        found: dict[int, list[SlotHead]] = {}
        for head in self.heads.values():
            for one in head.slots:
                found.setdefault(one.slot, []).append(one)
        return found

    def superseded(self) -> list[str]:
        """Heads of which every slot is told by a newer one that claims to tell as much (see :meth:`archive.lost.LostCluster.slot`)."""
        told_ms: dict[int, int] = {}
        looked_at: set[int] = set()
        names: list[str] = []
        for name, head in self.heads.items():
            looked_at.update(one.slot for one in head.slots)
            is_told = all(told_ms.get(one.slot, -1) >= one.at_ms for one in head.slots)
            if is_told and looked_at.issuperset(head.unchanged):
                names.append(name)
            for one in head.slots:
                told_ms[one.slot] = max(told_ms.get(one.slot, -1), one.at_ms)
            looked_at.update(head.unchanged)
        return names

    def as_of_ms(self) -> dict[int, int]:
        """By slot: what was chosen there before this time (epoch milliseconds) is exported; without those that never were."""
        times: dict[int, int] = {}
        for head in self.heads.values():
            for one in head.slots:
                times.setdefault(one.slot, one.at_ms)
            for slot in head.unchanged:
                times.setdefault(slot, head.at_ms)
        return times


class Exports:
    """One cluster's exported metadata in a target. What was read of heads is remembered: they never change."""

    def __init__(self, target: Target, cluster: str) -> None:
        self.cluster = cluster
        self.target = target
        self._heads: dict[str, Head] = {}
        self._damaged: dict[str, ArchiveError] = {}
        self._cached: OrderedDict[str, tuple[int, bytes]] = OrderedDict()

    async def document(self) -> ClusterDocument:
        """Whose it is. Raises: ArchiveMissing, ArchiveDamaged, and as ``Target.read``."""
        name = cluster_name(self.cluster)
        return decode_cluster(name, await whole(self.target, name, MIB))

    async def segments(self) -> dict[str, int]:
        """The segments that are there, by ULID, and their size. Raises as ``Target.page``."""
        listed = await list_objects(self.target, segment_name(self.cluster, "").removesuffix(".seg"))
        return {ulid: stored.size_bytes for stored in listed if (ulid := ulid_in(stored.name)) is not None}

    async def introduce(self, document: ClusterDocument) -> None:
        """Have ``cluster.json`` be there. Raises: ArchiveError, if another one is."""
        try:
            found = await self.document()
        except (ArchiveMissing, ArchiveDamaged):
            await store(self.target, cluster_name(self.cluster), encode_cluster(document))
            return
        if found.slot_count != document.slot_count:
            raise ArchiveError(
                f"{cluster_name(self.cluster)} tells of {found.slot_count} slots, and this cluster has {document.slot_count}: "
                "two clusters of one id cannot use one archive. Give one of them a target with another prefix."
            )

    async def load(self) -> Known:
        """Every head that is there, newest first. Raises as ``Target.page`` and ``Target.read``; heads that are damaged are told in the answer."""
        listed = await list_names(self.target, head_name(self.cluster, "").removesuffix(".json"))
        names = sorted((name for name in listed if ulid_in(name)), reverse=True)
        read = Known()
        for at in range(0, len(names), READ_AT_ONCE):
            await asyncio.gather(*(self._read_head(name, read) for name in names[at : at + READ_AT_ONCE]))
        known = Known({name: read.heads[name] for name in names if name in read.heads}, read.damaged)
        self._heads = dict(known.heads)
        self._damaged = dict(known.damaged)
        return known

    async def _read_head(self, name: str, known: Known) -> None:
        if name in self._heads:
            known.heads[name] = self._heads[name]
            return
        if name in self._damaged:
            known.damaged[name] = self._damaged[name]
            return
        try:
            head = decode_head(name, await whole(self.target, name, HEAD_BYTES_MAX))
            if head.cluster != self.cluster:
                raise ArchiveDamaged(f"{name} is a head of cluster {head.cluster}.")
            known.heads[name] = head
        except ArchiveMissing:
            pass  # removed since it was listed
        except ArchiveDamaged as error:
            log.warning("a head of an export is damaged", name=name, error=error.detail)
            known.damaged[name] = error

    async def publish(self, ulid: str, head: Head) -> None:
        """Store a head: from now on it counts. Its segments are stored already. Raises as ``Target.put``."""
        await store(self.target, head_name(self.cluster, ulid), encode_head(head))

    async def read(self, ref: Ref, slot: int) -> AsyncIterator[list[Entry]]:
        """The entries of a slot's parts, in order. What came is to be forgotten if this raises: ArchiveMissing, ArchiveDamaged (both name the object)."""
        name = segment_name(self.cluster, ref.segment)
        reader, hasher = PartReader(name, ref.start, slot), blake3()
        async with closing(self._bytes(name, ref)) as pieces:
            async for piece in pieces:
                hasher.update(piece)
                for _, entries in reader.feed(piece):
                    yield entries
        reader.finish()
        if hasher.hexdigest(16) != ref.digest:
            raise ArchiveDamaged(f"{name} has other parts at bytes {ref.start} to {ref.end} than were exported there.")

    async def gather(self, slot_head: SlotHead) -> GatheredSlot:
        """All that was exported of a slot. Raises: ArchiveMissing, ArchiveDamaged, naming the object; and as ``Target.read``."""
        gathered = GatheredSlot()
        for ref in slot_head.refs():
            async with closing(self.read(ref, slot_head.slot)) as parts:
                async for entries in parts:
                    gathered.add(entries)
        return gathered

    async def _bytes(self, name: str, ref: Ref) -> AsyncIterator[bytes]:
        """The bytes of a range; small ones are read with what follows them, for the slots that come next."""
        start, data = self._cached.get(name, (0, b""))
        if not (start <= ref.start and ref.end <= start + len(data)):
            if ref.size_bytes > _SHARED_BYTES_MAX:
                async with closing(self.target.read(name, ref.start, ref.end)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
            start, data = ref.start, await self._ahead(name, ref)
            self._keep(name, start, data)
        yield data[ref.start - start : ref.end - start]

    async def _ahead(self, name: str, ref: Ref) -> bytes:
        data = bytearray()
        async with closing(self.target.read(name, ref.start)) as pieces:
            async for piece in pieces:
                data += piece
                if len(data) >= max(_SHARED_BYTES_MAX, ref.size_bytes):
                    break
        if len(data) < ref.size_bytes:
            raise ArchiveDamaged(f"{name} ends before byte {ref.end}, to which parts of it were exported.")
        return bytes(data)

    def _keep(self, name: str, start: int, data: bytes) -> None:
        self._cached[name] = (start, data)
        self._cached.move_to_end(name)
        while sum(len(cached) for _, cached in self._cached.values()) > _CACHE_BYTES_MAX and len(self._cached) > 1:
            self._cached.popitem(last=False)

    # ---- what nobody needs any more

    async def prune(self, known: Known, before_ms: int, slot_count: int) -> int:
        """Remove what was made before that time, and nobody needs: heads that newer ones have taken the place of, segments that no head names,
        and the metadata of writes that every slot's export has had for a day; how many objects went.

        Raises as ``Target.page`` and ``Target.delete``.
        """
        # What cannot be read is no more use to anybody than to tell people that it was damaged.
        useless = (*known.superseded(), *known.damaged)
        old = [name for name in useless if _made_ms(name) < before_ms]
        await self._delete(old)
        for name in old:
            known.heads.pop(name, None)
        named = {ref.segment for head in known.heads.values() for one in head.slots for ref in one.refs()}
        segments = await list_names(self.target, segment_name(self.cluster, "").removesuffix(".seg"))
        unnamed = [name for name in segments if (ulid_in(name) or "") not in named and _made_ms(name) < before_ms]
        await self._delete(unnamed)
        times = known.as_of_ms()
        told_ms = min(before_ms, min((times.get(slot, 0) for slot in range(slot_count)), default=0) - WRITTEN_KEPT_MS)
        listed = await list_names(self.target, through_prefix(self.cluster)) if told_ms > 0 else []
        written = [name for name in listed if _made_ms(name) < told_ms]
        await self._delete(written)
        return len(old) + len(unnamed) + len(written)

    async def _delete(self, names: Sequence[str]) -> None:
        for at in range(0, len(names), DELETE_MAX):
            await self.target.delete(names[at : at + DELETE_MAX])


def _made_ms(name: str) -> int:
    """When an object was named; what has no such name is never old."""
    ulid = ulid_in(name)
    return ulid_time_ms(ulid) if ulid is not None else 2**62


def newest(heads: Iterable[SlotHead], copy: str, segments: Mapping[str, int]) -> SlotHead | None:
    """The newest of these that is of that copy, if all that it names is there, as far as ``segments`` tells."""
    found = next((head for head in heads if head.copy == copy), None)
    if found is None or any(segments.get(ref.segment, 0) < ref.end for ref in found.refs()):
        return None
    return found


async def check_exports(
    target: Target, cluster: str, slots: Collection[int], problem: Callable[[str], None]
) -> set[int]:
    """Read all that counts of the exported metadata of these slots, and tell what of it is damaged or gone, by name; the slots that this is of.

    Slots that never were exported are not among them. Raises: ArchiveUnavailable, ArchiveDenied.
    """
    exports = Exports(target, cluster)
    known, wrong = await exports.load(), set[int]()
    for name, error in known.damaged.items():
        problem(f"{name}: {error.detail}")
    for slot, heads in sorted(known.by_slot().items()):
        if slot in slots:
            try:
                await exports.gather(heads[0])
            except (ArchiveMissing, ArchiveDamaged) as error:
                problem(f"the metadata of slot {slot}: {error.detail}")
                wrong.add(slot)
    return wrong
