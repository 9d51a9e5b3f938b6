"""Memory, journal and databases of one disk, tied together. Belongs to the event loop.

The way of an entry: into memory (:mod:`overlay`), into the queue of the journal thread, onto the disk, to the
database thread, into SQLite, out of the pinned part of memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import msgspec
import structlog

from amberblob.ballot import EMPTY_REGISTER, Register, SlotState
from amberblob.errors import DiskFailed, DiskFull, StorageError
from amberblob.limits import MIB
from amberblob.mutations import Accepted
from chunkstore.applier import Applier, DurableBatch
from chunkstore.codec import Entry
from chunkstore.dbthread import FULL_REMEDY, DatabaseThread
from chunkstore.fileops import is_no_room
from chunkstore.filling import Filling
from chunkstore.index import ListingIndex
from chunkstore.interface import SlotTally
from chunkstore.journal import CLOSED, Journal, Told
from chunkstore.overlay import Overlay, entry_bytes
from chunkstore.pool import LostSlot, SlotPool, is_damage
from chunkstore.segments import SegmentWriter
from chunkstore.slotdb import NO_TALLY, SlotDatabase
from chunkstore.sqlite import is_corrupt
from chunkstore.threads import Threads

_log = structlog.get_logger(__name__)
T = TypeVar("T")

UNAPPLIED_BYTES_MAX = 96 * MIB
"""When more than this waits to be applied, durable() waits too; at twice that, bodies are refused.

Three times what is applied at once: one part gathers while another is being applied.
"""

_UNPINNED_PER_TURN = 256

_SLACK_BYTES = 8 * MIB


class DiskCore:
    """Applies entries, makes them durable, and asks the databases."""

    def __init__(
        self, overlay: Overlay, database: DatabaseThread, applier: Applier, pool: SlotPool, *, unapplied_bytes_max: int,
        threads: Threads,
    ) -> None:  # fmt: skip
        self.overlay = overlay
        self._database = database
        self._applier = applier
        self._pool = pool
        self._unapplied_bytes_max = unapplied_bytes_max
        self._unapplied_bytes_bound = unapplied_bytes_max + max(unapplied_bytes_max, _SLACK_BYTES)
        self._threads = threads
        self._journal: Journal | None = None
        self._drained: list[Told] = []
        self._applied = 0
        self._unpinning = False
        self._filling = Filling(self.ask, overlay.begin_filter, overlay.end_filter)
        self._loop = asyncio.get_running_loop()
        self._closing = False
        self._closed = False
        self.failed: str | None = None
        applier.on_slot_lost = self._slot_lost_on_thread
        database.on_applied = self.applied
        database.on_failed = self.fail

    def start(self, writer: SegmentWriter, next_position: int) -> None:
        """Begin to take entries."""
        self._journal = Journal(writer, next_position, self._durable_batch, self._journal_failed, self._threads)

    @property
    def journal(self) -> Journal:
        """The journal, once started."""
        assert self._journal is not None
        return self._journal

    # -- entries

    def apply(self, entry: Entry) -> int:
        """To memory now, to the journal soon; returns the position.

        Raises:
            DiskFailed: the disk takes no more writes.
            StorageError: ``disk-busy``: the entry carries a body, and too much waits for the disk already.
        """
        journal = self.journal
        if self._closing:
            raise DiskFailed(CLOSED)
        journal.raise_if_failed()
        waiting = self.overlay.unapplied_bytes
        if waiting > self._unapplied_bytes_bound and isinstance(entry, Accepted) and entry.body is not None:
            raise StorageError(
                f"{waiting // MIB} MiB wait to be written to the disk, which does not keep up. Try again later; if it "
                "lasts, look at the disk's latency.",
                code="disk-busy",
            )
        size_bytes = entry_bytes(entry)
        register = self.overlay.apply(entry, journal.next_position, size_bytes)
        return journal.append(entry, size_bytes, register)

    def when_durable(self, position: int, callback: Told) -> None:
        """Call back after the sync, and after the databases when they are far behind."""
        if position <= 0:
            callback(None)
        elif self._closed:
            callback(DiskFailed(CLOSED))
        else:
            self.journal.when_durable(position, partial(self._synced, callback))

    def _synced(self, callback: Told, error: DiskFailed | None) -> None:
        if error is not None or self.overlay.unapplied_bytes <= self._unapplied_bytes_max:
            callback(error)
        elif self._closed or self.journal.failed is not None:
            callback(DiskFailed(self.journal.failed or CLOSED))
        else:
            self._drained.append(callback)

    async def durable(self, position: int) -> None:
        """Wait for :meth:`when_durable`. Raises DiskFailed."""
        future = self._loop.create_future()

        def told(error: DiskFailed | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        self.when_durable(position, told)
        await future

    def position(self, slot: int, path: str) -> int:
        """Position of what may not be durable of a register and its slot; else 0."""
        position = self.overlay.position(slot, path)
        return position if position > self.journal.durable_position else 0

    def _durable_batch(self, batch: DurableBatch) -> None:
        self._database.feed(batch)

    def applied(self, position: int) -> None:
        """The databases hold everything up to ``position``: thousands of entries at a time perhaps, unpinned in slices."""
        self._applied = max(self._applied, position)
        if not self._unpinning:
            self._unpin()

    def _unpin(self) -> None:
        self._unpinning = not self.overlay.applied(self._applied, _UNPINNED_PER_TURN)
        if self._unpinning:
            self._loop.call_soon(self._unpin)
        if self._drained and self.overlay.unapplied_bytes <= self._unapplied_bytes_max:
            self._wake_drained()

    def _wake_drained(self) -> None:
        """Whoever waits for room looks again: at the room, or at what ended the waiting."""
        drained, self._drained = self._drained, []
        for callback in drained:
            self.journal.tell(partial(self._synced, callback), None)

    def is_behind(self, slot: int) -> bool:
        """Whether the slot's database may lack something that was applied."""
        return self.overlay.slot_position(slot) > self._applied

    def tally(self, slot: int) -> SlotTally:
        """What is in the slot's database."""
        return self._pool.tallies.get(slot, NO_TALLY)

    def is_applied(self, position: int) -> bool:
        """Whether the databases hold everything up to ``position``, as far as the loop was told."""
        return position <= self._applied

    def fail(self, why: str) -> None:
        """The disk takes no more writes."""
        if self._journal is not None:
            self._journal.fail(why)

    def _journal_failed(self, why: str) -> None:
        self.failed = why
        _log.critical("disk-failed", why=why)
        self._database.fail_barriers(why)
        self._wake_drained()

    def _slot_lost_on_thread(self, lost: LostSlot, state: SlotState) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.overlay.replace_slot, state)

    def counts(self) -> dict[str, int]:
        """See the interface."""
        return {"journal_syncs": self.journal.batches, "journal_entries": self.journal.entries}

    # -- questions

    async def ask(
        self, slot: int, question: Callable[[SlotDatabase], T], *, barrier: int = 0,
        on_result: Callable[[T], None] | None = None,
    ) -> T:  # fmt: skip
        """Ask a slot's database once it holds everything up to ``barrier``. A damaged one is replaced. Raises: DiskFailed, DiskFull."""

        def run() -> T:
            try:
                return applier.with_room(lambda: question(self._pool.get(slot)))
            except (sqlite3.Error, msgspec.DecodeError) as error:
                if not is_damage(error):
                    raise
                return question(self._pool.retire(slot, str(error)))

        applier = self._applier
        if barrier > self.journal.durable_position:
            self.journal.flush()
        try:
            return await self._database.call(run, slot=slot, barrier=barrier, on_result=on_result)
        except OSError as error:
            if is_no_room(error):
                raise DiskFull(f"a database needs room, and there is none: {error}. {FULL_REMEDY}") from error
            raise DiskFailed(
                f"a database cannot be used: {error}. Look at the kernel's log and at the disk."
            ) from error

    async def is_blank(self, slot: int) -> bool:
        """Whether the slot's database says nothing of any path, and was never filled."""
        overlay = self.overlay
        if slot not in overlay.known():
            return True
        return await self.ask(slot, lambda database: database.is_blank(), barrier=overlay.slot_position(slot))

    async def begin_anew(self, slot: int, *, fresh: bool = False, keep: bool = True) -> str:
        """See the interface. ``keep``: the database goes to quarantine; else it is removed."""
        overlay = self.overlay
        if slot not in overlay.known() and not fresh:
            return overlay.slot_state(slot).incarnation
        barrier = overlay.slot_position(slot)
        why = "not the copy that the slot's route names: it begins anew, blank, and is filled from the others"
        if not keep:
            why = "the slot's route does not name this node any more, and all voters have what it held"

        def run() -> str:
            database = self._pool.get(slot)
            blank = database.is_blank()
            if fresh or not blank:
                # The journal may hold what made it: none of that may come back after a restart. (There is nothing to keep of a blank one.)
                database = self._pool.retire(
                    slot, why, applied=database.applied, damaged=False, keep=keep and not blank
                )
            return database.state.incarnation

        if barrier > self.journal.durable_position:
            self.journal.flush()
        return await self._database.call(run, slot=slot, barrier=barrier)

    async def ask_index(self, question: Callable[[ListingIndex], T]) -> T:
        """Ask the listing index, including everything applied before the call. Raises DiskFailed."""
        applier = self._applier

        def run() -> T:
            try:
                return applier.with_room(lambda: question(applier.ready_index()))
            except sqlite3.Error as error:
                if not is_corrupt(error):
                    raise
                return question(applier.remake_index(str(error)))

        barrier = self.journal.next_position - 1
        if barrier > self.journal.durable_position:
            self.journal.flush()
        return await self._database.call(run, barrier=barrier)

    async def load(self, slot: int, path: str) -> Register:
        """The register as of now; in memory on return."""
        overlay = self.overlay
        while True:
            register = overlay.peek(slot, path)
            if register is not None:
                return register
            barrier = overlay.path_position(slot, path)

            def keep(found: Register, barrier: int = barrier) -> None:
                overlay.loaded(slot, path, found, barrier)
                if found is EMPTY_REGISTER:
                    self._filling.missed(slot)

            await self.ask(slot, lambda database: database.register(path), barrier=barrier, on_result=keep)

    async def close(self) -> None:
        """Make everything durable, apply it, checkpoint, end the threads."""
        self._closing = True
        await self._filling.close()
        if self._journal is not None:
            await self._journal.close()
        await self._database.close()
        self.overlay.applied(self._applied)
        self._closed = True
        self._wake_drained()
