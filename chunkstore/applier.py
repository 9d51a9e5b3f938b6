"""Durable entries into the databases, and journal segments out of the way. Belongs to the database thread.

A segment may go once everything in it is applied, the slot databases that it touched and the index are
checkpointed (synced), and ``disk.toml`` names those slots. This is done in small steps, so that reads never
wait for more than one database's checkpoint.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from amberblob.ballot import Register, SlotState
from chunkstore.applying import SlotBatch
from chunkstore.codec import Batch, OfRegister
from chunkstore.fileops import FileOps, is_no_room
from chunkstore.index import ListingIndex
from chunkstore.pool import LostSlot, SlotPool, is_damage
from chunkstore.rules import scan_entry
from chunkstore.segments import segment_path
from chunkstore.sqlite import is_corrupt, is_full

_log = structlog.get_logger(__name__)

T = TypeVar("T")

_REBUILD_BATCH = 5000
_OPENING = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR_SHMSIZE)
_SCARCE_BYTES = 1 << 20
_TELL_FULL_S = 60.0


@dataclass(slots=True)
class DurableBatch:
    """A batch that was synced, on its way into the databases.

    Attributes:
        segment: number of the segment that holds it.
        entries: with their positions.
        registers: beside each entry what it makes of its register, where memory knew; empty: nowhere.
        size_bytes: about how much memory it holds.
    """

    segment: int
    entries: Batch
    registers: list[Register | None]
    size_bytes: int


@dataclass(slots=True)
class _Segment:
    """A journal segment that still stands: what it touched, its last position, and what must yet be synced."""

    number: int
    touched: set[int]
    last: int
    to_sync: list[int] | None = None


class Applier:
    """Applies durable batches: to each slot in journal order, slot by slot as somebody asks or time allows.

    Attributes:
        taken: position of the last entry that was handed over.
        waiting_entries: handed over and not yet in their slot's database.
        waiting_bytes: about how much memory those hold.
        index: the listing index; replaced when it has to be made anew.
    """

    def __init__(
        self, disk: Path, pool: SlotPool, ops: FileOps, release_ballast: Callable[[], bool],
        monotonic_s: Callable[[], float],
    ) -> None:  # fmt: skip
        self._disk = disk
        self._pool = pool
        self._ops = ops
        self._release_ballast = release_ballast
        self._monotonic_s = monotonic_s
        self._segments: list[_Segment] = []
        self._groups: dict[int, Batch] = {}
        self._group_bytes: dict[int, int] = {}
        self._to_forget: set[int] = set()
        self._tell_full_at = float("-inf")
        self._listing: dict[tuple[int, str], Register | None] = {}
        self.taken = 0
        self.waiting_entries = 0
        self.waiting_bytes = 0
        self.index: ListingIndex | None = None
        self.on_slot_lost: Callable[[LostSlot, SlotState], None] = lambda lost, state: None
        pool.on_lost, pool.on_emptied = self._slot_lost, self._slot_emptied

    def _slot_lost(self, lost: LostSlot, state: SlotState) -> None:
        for key in [key for key in self._listing if key[0] == lost.slot]:
            del self._listing[key]
        for _, entry in self._groups.get(lost.slot, ()):
            if isinstance(entry, OfRegister):
                self._listing[lost.slot, entry.path] = None
        self.on_slot_lost(lost, state)

    def _slot_emptied(self, slot: int) -> None:
        if self.index is not None and self.index.complete:
            self._to_forget.add(slot)
            self._forget_lost(self.index)
            # Nor may a power cut bring the rows back: nothing would tell of them any more.
            self.with_room(self.index.checkpoint)

    def _forget_lost(self, index: ListingIndex) -> None:
        """Take the rows of lost slots out of the index. Without room for that they are still to be forgotten."""
        for slot in sorted(self._to_forget):
            self.with_room(partial(index.forget_slot, slot))
            self._to_forget.discard(slot)

    # -- room

    def is_no_room(self, error: Exception) -> bool:
        """Whether the error says that the disk is full, and not that it is broken."""
        if isinstance(error, sqlite3.Error):
            # SQLite does not tell a full disk from others where it opens files and where it makes the -shm longer.
            code = getattr(error, "sqlite_errorcode", 0)
            return is_full(error) or (code in _OPENING and self._ops.free_bytes(self._disk) < _SCARCE_BYTES)
        return isinstance(error, OSError) and is_no_room(error)

    def make_room(self, error: Exception) -> bool:
        """Drop the ballast if ``error`` says that the disk is full; whether there was something to drop."""
        return self.is_no_room(error) and self._release_ballast()

    def tell_full(self, error: Exception) -> None:
        """Log, at most once a minute, that the databases wait for room."""
        now = self._monotonic_s()
        if now >= self._tell_full_at:
            self._tell_full_at = now + _TELL_FULL_S
            _log.error(
                "disk-full", disk=str(self._disk), error=str(error), waiting_entries=self.waiting_entries,
                action="what is durable waits in the journal and is applied once there is room: free space",
            )  # fmt: skip

    def with_room(self, work: Callable[[], T]) -> T:
        """Do ``work``, and once more when it meets a full disk that has ballast to drop."""
        try:
            return work()
        except (sqlite3.Error, OSError) as error:
            if not self.make_room(error):
                raise
        return work()

    # -- handing over

    def begin_at(self, position: int) -> None:
        """Say that everything up to ``position`` is in the databases, at start."""
        self.taken = position

    def add_segment(self, number: int, last: int) -> None:
        """Make a segment known that holds positions up to ``last`` so far."""
        if not self._segments or self._segments[-1].number < number:
            self._segments.append(_Segment(number, set(), last))

    def touch(self, number: int, slots: set[int], last: int) -> None:
        """Say that a segment holds entries of these slots, up to ``last``."""
        for segment in self._segments:
            if segment.number == number:
                segment.touched |= slots
                segment.last = max(segment.last, last)

    def take(self, batch: DurableBatch) -> None:
        """Take over a durable batch."""
        groups, listing = self._groups, self._listing
        indexed = 0 if self.index is None else self.index.applied
        slots: set[int] = set()
        share = batch.size_bytes // len(batch.entries)
        registers = batch.registers or [None] * len(batch.entries)
        for item, register in zip(batch.entries, registers, strict=True):
            entry = item[1]
            slot = entry.slot
            slots.add(slot)
            group = groups.get(slot)
            if group is None:
                groups[slot] = [item]
                self._group_bytes[slot] = share
            else:
                group.append(item)
                self._group_bytes[slot] += share
            if isinstance(entry, OfRegister) and item[0] > indexed:
                listing[slot, entry.path] = register
        self.taken = batch.entries[-1][0]
        self.add_segment(batch.segment, self.taken)
        self.touch(batch.segment, slots, self.taken)
        self.waiting_entries += len(batch.entries)
        self.waiting_bytes += share * len(batch.entries)

    # -- applying

    @property
    def applied(self) -> int:
        """Position up to which everything is in the slots' databases."""
        return min((group[0][0] for group in self._groups.values()), default=self.taken + 1) - 1

    @property
    def listed(self) -> int:
        """Position up to which everything is in the index."""
        if self._to_forget:
            return 0
        return self.taken if not self._listing else 0 if self.index is None else self.index.applied

    def is_applied(self, slot: int | None, position: int) -> bool:
        """Whether the slot's database (None: the index) holds everything up to ``position``."""
        if position > self.taken:
            return False
        if slot is None:
            return position <= self.listed
        group = self._groups.get(slot)
        return group is None or group[0][0] > position

    def waiting_slots(self) -> list[int]:
        """Slots with entries that are not in their database, those that wait longest last."""
        return list(reversed(self._groups))

    def apply_slot(self, slot: int) -> None:
        """Bring one slot's database up to what was handed over, in one transaction.

        Raises:
            sqlite3.Error, OSError: the disk is broken, or full beyond its ballast; nothing was applied.
        """
        group = self._groups.get(slot)
        if group is None:
            return
        for path, register in self._apply_group(slot, group).items():
            if self._listing.get((slot, path), register) is None:
                self._listing[slot, path] = register
        del self._groups[slot]
        self.waiting_entries -= len(group)
        self.waiting_bytes -= self._group_bytes.pop(slot)

    def _apply_group(self, slot: int, group: Batch) -> dict[str, Register]:
        attempts = 3
        while True:
            attempts -= 1
            try:
                return SlotBatch(self._pool.get(slot)).apply(group)
            except (sqlite3.Error, OSError, msgspec.DecodeError) as error:
                if attempts and is_damage(error):
                    self._pool.retire(slot, str(error))
                elif not (attempts and self.make_room(error)):
                    raise

    def apply_all(self) -> None:
        """Bring every database and the index up to what was handed over."""
        for slot in self.waiting_slots():
            self.apply_slot(slot)
        self.update_index()

    def update_index(self, limit: int | None = None) -> bool:
        """Bring the index up to what was handed over, or by ``limit`` rows; whether it is there."""
        index = self.index
        if index is None or not index.complete:
            self._listing.clear()
            self._to_forget.clear()
            return True
        self._forget_lost(index)
        if not self._listing and index.applied >= self.taken:
            return True
        keys = list(islice(self._listing, limit))
        for key in keys:
            # A slot that turns out to be lost takes its keys away, but for those that are still to be applied.
            if key in self._listing and self._listing[key] is None:
                # Memory did not know the register: its slot's database does, once it has the entries.
                self.apply_slot(key[0])
        rows = [scan_entry(*key, found) for key in keys if (found := self._listing.get(key)) and found.record]
        # The register of a path that was forgotten is empty.
        gone = [key[1] for key in keys if (found := self._listing.get(key)) and not found.record]
        # The position goes up with the last rows; until then a replay would repeat some, which does no harm.
        is_all = sum(key in self._listing for key in keys) == len(self._listing)
        applied = self.taken if is_all else index.applied
        try:
            self.with_room(lambda: index.update(rows, applied, gone))
        except sqlite3.Error as error:
            if not is_corrupt(error):
                raise
            self.remake_index(str(error))
            keys = list(self._listing)
        for key in keys:
            self._listing.pop(key, None)
        return not self._listing

    # -- the index

    def relist(self, slot: int) -> None:
        """Put the rows of a slot that was lost, and has only what the journal still held, into the index."""
        index = self.index
        assert index is not None
        if index.complete:
            rows = (scan_entry(slot, path, register) for path, register in self._pool.get(slot).registers())
            index.update(rows, index.applied)

    def open_index(self, first_position: int) -> None:
        """Open the index, before the replay. ``first_position`` is where the journal begins."""
        self.index = ListingIndex(self._disk, self._ops)
        if self.index.complete and self.index.applied < first_position - 1:
            _log.warning("index-stale", applied=self.index.applied, journal_begins=first_position)
            self.index.begin_rebuild()

    def ready_index(self) -> ListingIndex:
        """The index, filled; made anew from the slot databases if need be."""
        index = self.index
        if index is None:
            # It was damaged, and there was no room for a new one then.
            index = self.index = ListingIndex(self._disk, self._ops)
        if not index.complete:
            self._fill(index)
        return index

    def remake_index(self, why: str) -> ListingIndex:
        """Throw a damaged index away and make it anew."""
        _log.error("index-damaged", error=why, action="made anew from the slot databases")
        if self.index is not None:
            self.index.close()
            self.index = None
        for part in ("", "-wal", "-shm"):
            self._ops.unlink(self._disk / f"index.sqlite3{part}")
        self.index = ListingIndex(self._disk, self._ops)
        self._fill(self.index)
        return self.index

    def _fill(self, index: ListingIndex) -> None:
        for slot in self.waiting_slots():
            self.apply_slot(slot)
        slots = self._pool.known_slots()
        index.begin_rebuild()
        count = 0
        for done, slot in enumerate(slots, start=1):
            count += self._list_slot(index, slot)
            index.checkpoint()
            if done % 16 == 0:
                _log.info("index-rebuild", slots_done=done, slots=len(slots), objects=count)
        index.end_rebuild(self.taken)
        _log.info("index-rebuilt", slots=len(slots), objects=count)

    def _list_slot(self, index: ListingIndex, slot: int) -> int:
        registers = self._pool.get(slot).registers()
        count = 0
        while True:
            try:
                rows = [scan_entry(slot, *found) for found in islice(registers, _REBUILD_BATCH)]
            except (sqlite3.Error, msgspec.DecodeError) as error:
                if not is_damage(error):
                    raise
                self._pool.retire(slot, str(error))
                index.forget_slot(slot)
                return 0
            if not rows:
                return count
            index.update(rows, 0)
            count += len(rows)

    # -- checkpoints

    def step(self, *, everything: bool = False) -> bool:
        """One small piece of work towards letting the oldest finished segment go; False when there is none.

        False, too, when the disk is full: the ballast is dropped then, and the caller tries again a little later.

        The newest segment is still written to; with ``everything`` (at close) it counts as finished too, and
        its databases are synced, but its file stays: it tells the next start where positions go on.
        """
        try:
            return self._step(everything=everything)
        except (sqlite3.Error, OSError) as error:
            if not self.is_no_room(error):
                raise
            self.make_room(error)
            self.tell_full(error)
            return False

    def _step(self, *, everything: bool) -> bool:
        if not self._segments or (len(self._segments) == 1 and not everything):
            return False
        segment = self._segments[0]
        if self.applied < segment.last:
            return False
        if self.index is not None and self.index.applied < segment.last:
            self.update_index()
            return True
        if segment.to_sync is None:
            segment.to_sync = sorted(segment.touched)
        if segment.to_sync:
            slot = segment.to_sync[-1]
            try:
                database = self._pool.get(slot)
                if not database.checkpoint():
                    return False
            except (sqlite3.Error, msgspec.DecodeError) as error:
                if not is_damage(error):
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

    def close(self) -> None:
        """Close every database."""
        self._pool.close()
        if self.index is not None:
            self.index.close()
