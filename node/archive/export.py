"""The job ``export``: keeps the metadata of the slots that this node looks after in the bucket (rfc/0016).

A slot is told once as a whole (its base), then by what its commit log and its archive rows say that changed. The positions in both
are in the head object, so that nothing is noted here: a copy goes on from the newest head that it wrote itself. Another copy's log has other
numbers, so whoever takes a slot over makes a base. Few requests whatever the number of slots: one list, one or some segments, one head.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Container, Mapping
from dataclasses import dataclass

import msgspec
import structlog

from amberblob.limits import KIB, MIB, SLOT_COUNT_MAX
from archive.export import Exports, Known, newest
from archive.segments import FORMAT, Head, Ref, SlotHead
from archive.segmentwriter import SegmentWriter
from archive.targets.interface import Stored, Target
from node.archive.document import document_of
from node.archive.exporting import Telling, Unsettled
from node.archive.ground import Ground
from node.archive.jobs import JobRequest, Progress

log = structlog.get_logger(__name__)

CHANGES_MAX = 16
"""So many changes of a slot are told as one, if the log reaches back to the base. That costs what they are, at most what the base is."""
CHANGES_EVER_MAX = 64
"""So many, and the slot is told anew."""
BASE_BYTES_MIN = 64 * KIB
"""A base counts as this large when its changes are weighed against it."""
HEADS_MAX = 24
"""So many heads of this node that are needed, and the next tells of all its slots, so that the others may go."""
CHECKPOINT_BYTES = 256 * MIB
"""After so much a head is published, though there are slots left: what was done then stays done."""
PRUNE_EVERY_MS = 3_600_000


@dataclass(slots=True)
class _Slot:
    """What becomes of a slot: ``head`` to be told of, and whether anything was written for it."""

    head: SlotHead
    written: bool


class ExportWork:
    """A :class:`node.archive.jobs.JobWork`.

    Options: ``full``: ``yes``: tell every slot as a whole, whatever is there. ``claim``: ``yes``: the target is this cluster's from now on, also if what was
    archived before is not there.

    Attributes:
        compared_ms: when a slot's copy was last known to lack nothing that another voter had (:meth:`antientropy.worker.Repairer.compared_ms`).
            Set once, while the node is put together; None: copies never lack anything.
    """

    def __init__(self, ground: Ground) -> None:
        self.ground = ground
        self.compared_ms: Callable[[int], int] | None = None
        self._telling = Telling(ground.store, ground.coordinator, ground.routing)
        self._exports: Exports | None = None
        self._introduced = False
        self._pruned_ms = ground.now_ms()  # not while the node starts
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self, request: JobRequest, progress: Progress) -> None:
        """Export the slots that this node looks after. Raises: ArchiveError, NotReady, DiskFailed."""
        anew = range(SLOT_COUNT_MAX) if request.options.get("full") == "yes" else ()
        target = self.ground.means.for_job(request)
        if request.options.get("claim") == "yes" and not request.dry_run:
            await self.ground.identity.claim()
        await self.export(target, progress, by_slot=True, dry_run=request.dry_run, anew=anew)

    async def export(
        self,
        target: Target,
        progress: Progress,
        *,
        by_slot: bool = False,
        dry_run: bool = False,
        anew: Container[int] = (),
    ) -> None:
        """The same, as the last part of another job. Counts ``exported_slots``, ``exported_bases``, ``exported_bytes``.

        One goes on at a time: a head that is published later must not tell of less.

        Args:
            by_slot: the job is nothing else, and goes slot by slot.
            anew: these slots are told as a whole, whatever is there.

        Raises: ArchiveError, NotReady, DiskFailed.
        """
        async with self._one_at_a_time:
            await self._export(target, progress, by_slot=by_slot, dry_run=dry_run, anew=anew)

    async def _export(
        self, target: Target, progress: Progress, *, by_slot: bool, dry_run: bool, anew: Container[int]
    ) -> None:
        ground = self.ground
        table = ground.routing.table()
        cluster = table.cluster.cluster_id
        if self._exports is None:
            self._exports = Exports(target, cluster)
        exports = self._exports
        exports.target = target
        if not self._introduced and not dry_run:
            await exports.introduce(document_of(table.cluster))
            self._introduced = True
        known = await exports.load()
        segments = await exports.segments() if known.heads else {}
        writer = SegmentWriter(
            _Nowhere() if dry_run else target,
            cluster,
            ground.node,
            mint=ground.mint.mint,
            now_ms=ground.now_ms,
        )
        slot_count = table.cluster.slot_count
        batch = _Batch(
            self, exports, known, segments, writer, progress, slot_count, by_slot=by_slot, dry_run=dry_run, anew=anew
        )
        await batch.run()
        now_ms = ground.now_ms()
        if not dry_run and now_ms - self._pruned_ms >= PRUNE_EVERY_MS:
            gone = await exports.prune(await exports.load(), now_ms - int(ground.section.grace * 1000), slot_count)
            self._pruned_ms = now_ms
            progress.add(pruned_objects=gone)

    async def slot(self, slot: int, known: list[SlotHead], segments: Mapping[str, int], writer: SegmentWriter) -> _Slot:
        """Write what is new of a slot. ``known``: what heads tell of it, newest first. ``segments``: what is there of what they name.

        Raises: Unsettled, DiskFailed, ArchiveError.
        """
        store = self.ground.store
        at_ms = self._level_ms(slot)
        copy = store.slot_state(slot).incarnation
        await store.settle([slot])
        tally = store.tally(slot)
        before = self._base_of(known, copy, segments, self.ground.now_ms())
        if before is not None:
            at_ms = max(at_ms, before.at_ms)  # what this copy had then it has now
        if before is None or before.log > tally.log_head or before.archived > tally.archive_head:
            return await self._base(slot, copy, at_ms, writer)
        if before.log == tally.log_head and before.archived == tally.archive_head:
            return _Slot(msgspec.structs.replace(before, at_ms=at_ms), written=False)
        limit = max(1000, tally.objects)
        outweighed = before.changes_bytes >= max(before.base_bytes, BASE_BYTES_MIN)
        if outweighed or len(before.changes) >= CHANGES_EVER_MAX:
            return await self._base(slot, copy, at_ms, writer)
        if len(before.changes) >= CHANGES_MAX:
            changes = await self._changes(slot, before.base_log, before.base_archived, limit, writer)
            if changes is not None:
                refs, lines, rows = changes
                head = msgspec.structs.replace(before, changes=refs, log=lines, archived=rows, at_ms=at_ms)
                return _Slot(head, written=True)
        changes = await self._changes(slot, before.log, before.archived, limit, writer)
        if changes is None:
            return await self._base(slot, copy, at_ms, writer)
        refs, lines, rows = changes
        all_changes = (*before.changes, *refs)
        return _Slot(
            msgspec.structs.replace(before, changes=all_changes, log=lines, archived=rows, at_ms=at_ms), written=True
        )

    def _level_ms(self, slot: int) -> int:
        """What was chosen before this is in this node's copy; to be asked before the copy is read.

        A copy with a voice may lack what others chose while it was away, or cut off. Were that said to be exported, writes of that time
        which were archived first, and are told of by nothing but their segments, would be passed over when the cluster is built again.
        """
        now_ms = self.ground.now_ms()
        return now_ms if self.compared_ms is None else min(now_ms, self.compared_ms(slot))

    def _base_of(self, known: list[SlotHead], copy: str, segments: Mapping[str, int], now_ms: int) -> SlotHead | None:
        """The head that this copy may go on from.

        One that another copy has told of the slot since may be on its way out of the bucket: it is too old for that once half of the time is over
        for which what is superseded stays.
        """
        before = newest(known, copy, segments)
        if before is None or before is known[0] or now_ms - before.at_ms < int(self.ground.section.grace * 500):
            return before
        return None

    async def _base(self, slot: int, copy: str, at_ms: int, writer: SegmentWriter) -> _Slot:
        # The positions first: what changes meanwhile is told twice then, and nothing is left out.
        log_head = self.ground.store.tally(slot).log_head
        writer.begin(slot)
        try:
            async for entry in self._telling.everything(slot):
                await writer.add(entry)
            rows = await self._archived(slot, 0, writer)
            refs = await writer.end()
        except BaseException:
            writer.abandon()
            raise
        head = SlotHead(
            slot=slot,
            copy=copy,
            log=log_head,
            archived=rows,
            base_log=log_head,
            base_archived=rows,
            base=refs,
            at_ms=at_ms,
            base_ms=at_ms,
        )
        return _Slot(head, written=True)

    async def _changes(
        self, slot: int, log_after: int, archived_after: int, limit: int, writer: SegmentWriter
    ) -> tuple[tuple[Ref, ...], int, int] | None:
        """Write what changed after these positions: where it is, and the new positions. None: it is not known, or too much."""
        logged = await self._telling.logged(slot, log_after, limit)
        if logged is None:
            return None
        paths, lines = logged
        writer.begin(slot)
        try:
            async for entry in self._telling.paths(slot, paths):
                await writer.add(entry)
            rows = await self._archived(slot, archived_after, writer)
            refs = await writer.end()
        except BaseException:
            writer.abandon()
            raise
        return refs, lines, rows

    async def _archived(self, slot: int, after: int, writer: SegmentWriter) -> int:
        """Write the archive rows above that ``seq``; the last one's."""
        async for seq, entry in self._telling.archived(slot, after):
            await writer.add(entry)
            after = seq
        return after


class _Batch:
    """One run: slot after slot, and heads that tell of them."""

    def __init__(
        self,
        work: ExportWork,
        exports: Exports,
        known: Known,
        segments: Mapping[str, int],
        writer: SegmentWriter,
        progress: Progress,
        slot_count: int,
        *,
        by_slot: bool,
        dry_run: bool,
        anew: Container[int],
    ) -> None:
        self._anew = anew
        self._work = work
        self.ground = work.ground
        self._by_slot = by_slot
        self._exports = exports
        self._known = known.by_slot()
        self._segments = segments
        needed = known.heads.keys() - set(known.superseded())
        self._own_heads = sum(known.heads[name].node == work.ground.node for name in needed)
        self._writer = writer
        self._progress = progress
        self._slot_count = slot_count
        self._dry_run = dry_run
        self._told: list[SlotHead] = []
        self._unchanged: list[SlotHead] = []
        self._done: list[int] = []
        self._published_bytes = 0

    async def run(self) -> None:
        """Export all slots. Raises: ArchiveError, DiskFailed, NotReady."""
        slots = self.ground.led_slots()
        if self._by_slot:
            slots = [slot for slot in slots if not self._progress.is_done(slot)]
            self._progress.status.slots_total = len(self._progress.status.done_slots) + len(slots)
        for slot in slots:
            if self.ground.looks_after(slot):
                await self._slot(slot)
            if self._writer.size_bytes - self._published_bytes >= CHECKPOINT_BYTES:
                await self._publish()
        if self._own_heads >= HEADS_MAX:
            self._told += self._unchanged
            self._unchanged = []
        await self._publish()

    async def _slot(self, slot: int) -> None:
        known = self._known.get(slot, []) if slot not in self._anew else []
        try:
            done = await self._work.slot(slot, known, self._segments, self._writer)
        except Unsettled as error:
            self._progress.problem(error.detail)
            return
        newest_known = known[0] if known else None
        if done.written or newest_known is None or newest_known.copy != done.head.copy:
            self._told.append(done.head)
            self._progress.add(exported_bases=int(all(done.head.base != one.base for one in known)))
        else:
            self._unchanged.append(done.head)
        self._done.append(slot)

    async def _publish(self) -> None:
        await self._writer.flush()
        fresh = self._writer.size_bytes - self._published_bytes
        self._published_bytes = self._writer.size_bytes
        unchanged = tuple(one.slot for one in self._unchanged)
        if (self._told or unchanged) and not self._dry_run:
            ground = self.ground
            head = Head(
                format=FORMAT,
                cluster=self._exports.cluster,
                slot_count=self._slot_count,
                node=ground.node,
                at_ms=min(one.at_ms for one in (*self._told, *self._unchanged)),
                slots=tuple(self._told),
                unchanged=unchanged,
            )
            await self._exports.publish(ground.mint.mint(), head)
        self._progress.add(exported_slots=len(self._told), exported_bytes=fresh)
        for slot in self._done if self._by_slot else ():
            self._progress.slot_done(slot)
        self._told, self._unchanged, self._done = [], [], []


class _Nowhere:
    """Where the segments of a dry run go."""

    async def put(self, name: str, parts: AsyncIterable[bytes]) -> Stored:
        """Forget it."""
        size = 0
        async for part in parts:
            size += len(part)
        return Stored(name=name, size_bytes=size, etag="", modified_ms=0)
