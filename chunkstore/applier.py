"""Durable entries into the databases, and journal segments out of the way. Belongs to the database thread.

A segment may go once everything in it is applied, the slot databases that it touched and the index are
checkpointed (synced), and ``disk.toml`` names those slots. This is done in small steps, so that reads never
wait for more than one database's checkpoint.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from amberblob.ballot import Register, SlotState
from chunkstore.applying import SlotBatch
from chunkstore.codec import Batch
from chunkstore.fileops import FileOps
from chunkstore.index import ListingIndex
from chunkstore.pool import LostSlot, SlotPool
from chunkstore.rules import scan_entry
from chunkstore.segments import segment_path
from chunkstore.sqlite import is_corrupt, is_full

_log = structlog.get_logger(__name__)

_REBUILD_BATCH = 5000


@dataclass(slots=True)
class _Segment:
    """A journal segment that still stands, and what must be synced before it may go."""

    number: int
    touched: set[int]
    to_sync: list[int] | None = None


class Applier:
    """Applies batches in journal order.

    Attributes:
        applied: position up to which everything is in the databases.
        index: the listing index; replaced when it has to be made anew.
    """

    def __init__(
        self, disk: Path, pool: SlotPool, ops: FileOps, release_ballast: Callable[[], bool]
    ) -> None:  # fmt: skip
        self._disk = disk
        self._pool = pool
        self._ops = ops
        self._release_ballast = release_ballast
        self._segments: list[_Segment] = []
        self._remaining: dict[int, Batch] = {}
        self._unit_last = 0
        self.applied = 0
        self.index: ListingIndex | None = None
        self.on_slot_lost: Callable[[LostSlot, SlotState], None] = lambda lost, state: None
        pool.on_lost = self._slot_lost

    def _slot_lost(self, lost: LostSlot, state: SlotState) -> None:
        if self.index is not None and self.index.complete:
            self.index.forget_slot(lost.slot)
        self.on_slot_lost(lost, state)

    def applied_for(self, slot: int | None) -> int:
        """Position up to which the slot's entries (None: all, and the index) are in the databases."""
        if slot is None or slot in self._remaining:
            return self.applied
        return max(self.applied, self._unit_last)

    # -- applying

    def add_segment(self, number: int) -> None:
        """Make a segment known that holds no entries to apply."""
        if not self._segments or self._segments[-1].number < number:
            self._segments.append(_Segment(number, set()))

    def touch(self, number: int, slots: set[int]) -> None:
        """Say that a segment holds entries of these slots."""
        for segment in self._segments:
            if segment.number == number:
                segment.touched |= slots

    def apply(
        self, batches: Iterable[tuple[int, Batch]], wanted: Callable[[int], bool] = lambda slot: False,
        between: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Apply batches (segment number, entries): one transaction per slot, then one of the index.

        ``wanted`` slots go first; ``between`` is called after each, so that others get a turn.

        Raises:
            sqlite3.Error, OSError: the disk is broken, or full beyond its ballast.
        """
        groups: dict[int, Batch] = {}
        last = self.applied
        for number, batch in batches:
            self.add_segment(number)
            slots: set[int] = set()
            for item in batch:
                slot = item[1].slot
                slots.add(slot)
                group = groups.get(slot)
                if group is None:
                    groups[slot] = [item]
                else:
                    group.append(item)
            self.touch(number, slots)
            last = batch[-1][0]
        if not groups:
            return
        self._remaining, self._unit_last = groups, last
        registers: list[tuple[int, str, Register]] = []
        while groups:
            slot = next((slot for slot in groups if wanted(slot)), next(iter(groups)))
            for path, register in self._apply_group(slot, groups[slot]).items():
                registers.append((slot, path, register))
            del groups[slot]
            between()
        self._update_index(registers, last)
        self.applied = last

    def _apply_group(self, slot: int, group: Batch) -> dict[str, Register]:
        attempts = 3
        while True:
            attempts -= 1
            try:
                return SlotBatch(self._pool.get(slot)).apply(group)
            except sqlite3.Error as error:
                if attempts and is_corrupt(error):
                    self._pool.retire(slot, str(error))
                elif not (attempts and is_full(error) and self._release_ballast()):
                    raise

    def _update_index(self, registers: list[tuple[int, str, Register]], last: int) -> None:
        index = self.index
        if index is None or not index.complete or index.applied >= last:
            return
        entries = [scan_entry(slot, path, register) for slot, path, register in registers if register.record]
        try:
            try:
                index.update(entries, last)
            except sqlite3.Error as error:
                if not (is_full(error) and self._release_ballast()):
                    raise
                index.update(entries, last)
        except sqlite3.Error as error:
            if not is_corrupt(error):
                raise
            self.remake_index(str(error), last)

    # -- the index

    def open_index(self, first_position: int) -> None:
        """Open the index, before the replay. ``first_position`` is where the journal begins."""
        self.index = ListingIndex(self._disk, self._ops)
        if self.index.complete and self.index.applied < first_position - 1:
            _log.warning("index-stale", applied=self.index.applied, journal_begins=first_position)
            self.index.begin_rebuild()

    def ready_index(self) -> ListingIndex:
        """The index, filled; made anew from the slot databases if need be."""
        index = self.index
        assert index is not None, "open_index comes first"
        if not index.complete:
            self._fill(index, self.applied)
        return index

    def remake_index(self, why: str, applied: int) -> ListingIndex:
        """Throw a damaged index away and make it anew."""
        _log.error("index-damaged", error=why, action="made anew from the slot databases")
        assert self.index is not None
        self.index.close()
        for part in ("", "-wal", "-shm"):
            self._ops.unlink(self._disk / f"index.sqlite3{part}")
        self.index = ListingIndex(self._disk, self._ops)
        self._fill(self.index, applied)
        return self.index

    def _fill(self, index: ListingIndex, applied: int) -> None:
        slots = self._pool.known_slots()
        index.begin_rebuild()
        count = 0
        for done, slot in enumerate(slots, start=1):
            entries = []
            for path, register in self._pool.get(slot).registers():
                entries.append(scan_entry(slot, path, register))
                if len(entries) >= _REBUILD_BATCH:
                    index.update(entries, 0)
                    count += len(entries)
                    entries = []
            index.update(entries, 0)
            count += len(entries)
            index.checkpoint()
            if done % 16 == 0:
                _log.info("index-rebuild", slots_done=done, slots=len(slots), objects=count)
        index.end_rebuild(applied)
        _log.info("index-rebuilt", slots=len(slots), objects=count)

    # -- checkpoints

    def step(self, *, everything: bool = False) -> bool:
        """One small piece of work towards letting the oldest finished segment go; False when there is none.

        The newest segment is still written to; with ``everything`` (at close) it counts as finished too, and
        its databases are synced, but its file stays: it tells the next start where positions go on.
        """
        if not self._segments or (len(self._segments) == 1 and not everything):
            return False
        segment = self._segments[0]
        if segment.to_sync is None:
            segment.to_sync = sorted(segment.touched)
        if segment.to_sync:
            slot = segment.to_sync[-1]
            try:
                database = self._pool.get(slot)
                if not database.checkpoint():
                    return False
            except sqlite3.Error as error:
                if not is_corrupt(error):
                    raise
                self._pool.retire(slot, str(error))
            segment.to_sync.pop()
            return True
        if self.index is not None and self.index.dirty and not self.index.checkpoint():
            return False
        self._pool.make_created(segment.touched)
        del self._segments[0]
        if self._segments:
            self._ops.unlink(segment_path(self._disk / "journal", segment.number))
            # One at a time: a gap among the segments would look like a loss.
            self._ops.fsync_dir(self._disk / "journal")
        return bool(self._segments)
