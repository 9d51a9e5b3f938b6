"""Exported metadata in the bucket: written, found again, read, and what nobody needs any more removed (rfc/0016)."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog
from blake3 import blake3

from amberblob.errors import ArchiveDamaged, ArchiveError, ArchiveMissing
from amberblob.ids import ulid_time_ms
from amberblob.limits import KIB, MIB
from archive.closing import closing
from archive.gathered import GatheredSlot
from archive.segments import (
    META,
    PART_BYTES,
    ClusterDocument,
    Entry,
    Head,
    PartReader,
    Ref,
    SlotHead,
    cluster_name,
    cluster_of,
    decode_cluster,
    decode_head,
    encode_cluster,
    encode_entry,
    encode_head,
    encode_part,
    head_name,
    recovered_name,
    segment_line,
    segment_name,
    ulid_in,
)
from archive.targets.interface import Stored, Target
from archive.written import through_prefix

log = structlog.get_logger(__name__)

SEGMENT_BYTES = 8 * MIB
"""A segment that has reached this is stored; it is in memory until then."""
HEAD_BYTES_MAX = 64 * MIB
PAGE = 1000
READ_AT_ONCE = 8
WRITTEN_KEPT_MS = 86_400_000
"""What writes that were archived first told of themselves stays so long after the export has it, too."""
_IN_THREAD_BYTES = 64 * KIB
_CACHE_BYTES_MAX = 64 * MIB
_SHARED_BYTES_MAX = 2 * MIB
"""What is read of a segment along with a small part, because the slots that come next have theirs beside it."""


async def whole(target: Target, name: str, size_max: int) -> bytes:
    """A small object, read as a whole. Raises as ``Target.read`` does, and ArchiveDamaged if it is larger than it can be."""
    data = bytearray()
    async with closing(target.read(name)) as pieces:
        async for piece in pieces:
            data += piece
            if len(data) > size_max:
                raise ArchiveDamaged(f"{name} is larger than {size_max} bytes: it is not what was stored.")
    return bytes(data)


async def store(target: Storing, name: str, data: bytes) -> None:
    """Store a small object. Raises as ``Target.put`` does."""

    async def parts() -> AsyncIterator[bytes]:
        yield data

    await target.put(name, parts())


class Storing(Protocol):
    """The part of a :class:`~archive.targets.interface.Target` that stores."""

    async def put(self, name: str, parts: AsyncIterable[bytes]) -> Stored: ...


class SegmentWriter:
    """Takes entries slot by slot and stores them as segments of bounded size; parts of many slots share one.

    Args:
        mint: makes the ULIDs of segments.
        now_ms: the hybrid clock.

    Attributes:
        size_bytes: what was written so far, stored or to be stored.
        stored: how many segments were.
    """

    def __init__(
        self, target: Storing, cluster: str, node: str, *, mint: Callable[[], str], now_ms: Callable[[], int]
    ) -> None:
        self.size_bytes = 0
        self.stored = 0
        self._target = target
        self._cluster = cluster
        self._node = node
        self._mint = mint
        self._now_ms = now_ms
        self._segment = ""
        self._data = bytearray()
        self._entries: list[bytes] = []
        self._entries_bytes = 0
        self._slot = -1
        self._start = 0
        self._refs: list[Ref] = []

    def begin(self, slot: int) -> None:
        """What comes now is of this slot; :meth:`end` ends it."""
        assert not self._entries and not self._refs, "the slot before was not ended"
        self._slot = slot
        self._start = len(self._data)

    async def add(self, entry: Entry) -> None:
        """One more entry of the slot. Raises as ``Target.put`` does."""
        encoded = encode_entry(entry)
        self._entries.append(encoded)
        self._entries_bytes += len(encoded)
        if self._entries_bytes >= PART_BYTES:
            await self._write_part()

    async def end(self) -> tuple[Ref, ...]:
        """Where the slot's entries are: readable once :meth:`flush` has returned. Raises as ``Target.put`` does."""
        await self._write_part()
        self._close_ref()
        refs, self._refs = tuple(self._refs), []
        return refs

    def abandon(self) -> None:
        """What came of the slot is not to be told of: it stays in the segment, and nothing names it."""
        self._entries, self._entries_bytes, self._refs = [], 0, []
        self._start = len(self._data)

    async def flush(self) -> None:
        """Store what is written. Raises as ``Target.put`` does; then all of it is lost, and nothing may name it."""
        self._close_ref()
        if self._data:
            data, segment = bytes(self._data), self._segment
            self._data.clear()
            self._start = 0
            await store(self._target, segment_name(self._cluster, segment), data)
            self.stored += 1

    async def _write_part(self) -> None:
        if not self._entries:
            return
        entries, size = self._entries, self._entries_bytes
        self._entries, self._entries_bytes = [], 0
        if size >= _IN_THREAD_BYTES:
            part = await asyncio.to_thread(encode_part, self._slot, entries)
        else:
            part = encode_part(self._slot, entries)
        if not self._data:
            self._segment = self._mint()
            self._data += segment_line(self._cluster, self._node, self._now_ms())
            self._start = len(self._data)
        self._data += part
        self.size_bytes += len(part)
        if len(self._data) >= SEGMENT_BYTES:
            await self.flush()

    def _close_ref(self) -> None:
        end = len(self._data)
        if end > self._start:
            with memoryview(self._data) as view:
                digest = blake3(view[self._start : end]).hexdigest(16)
            self._refs.append(Ref(self._segment, self._start, end, digest))
        self._start = end


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
        """Heads of which every slot is told by a newer one."""
        told: set[int] = set()
        looked_at: set[int] = set()
        names: list[str] = []
        for name, head in self.heads.items():
            slots = {one.slot for one in head.slots}
            looked_at |= slots
            if slots <= told and looked_at.issuperset(head.unchanged):
                names.append(name)
            told |= slots
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
        for at in range(0, len(names), PAGE):
            await self.target.delete(names[at : at + PAGE])


def _made_ms(name: str) -> int:
    """When an object was named; what has no such name is never old."""
    ulid = ulid_in(name)
    return ulid_time_ms(ulid) if ulid is not None else 2**62


async def list_names(target: Target, prefix: str) -> list[str]:
    """Every name that begins with ``prefix``, ascending. Raises as ``Target.page``."""
    return [stored.name for stored in await list_objects(target, prefix)]


async def list_objects(target: Target, prefix: str) -> list[Stored]:
    """Every object whose name begins with ``prefix``, ascending. Raises as ``Target.page``."""
    found: list[Stored] = []
    while page := await target.page(prefix, found[-1].name if found else "", PAGE):
        found += page
    return found


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
