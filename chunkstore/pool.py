"""The slot databases of a disk: opened when needed, a bounded number at a time, and given up when damaged.

Belongs to the database thread. A slot is **lost** when ``disk.toml`` says that its database was once made
durable and it is not there, or when SQLite calls it corrupt. What is left of it goes to quarantine and a fresh
database begins with a new incarnation, so that nobody takes its empty memory for a vote.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
import structlog

from amberblob.ballot import SlotState
from amberblob.errors import DiskFailed, DiskMismatch
from amberblob.openfiles import databases_max
from chunkstore.fileops import FAILED_REMEDY, FileOps, is_no_room
from chunkstore.files import RETIRED
from chunkstore.identity import DiskIdentity, write_identity
from chunkstore.interface import SlotTally
from chunkstore.process import trim_memory
from chunkstore.slotdb import SlotDatabase
from chunkstore.sqlite import SchemaTooNew, is_corrupt

_log = structlog.get_logger(__name__)

DATABASE_NAME = "meta.sqlite3"
_PARTS = ("", "-wal", "-shm")

KEEP_OPEN_IDLE = 16
UNUSED_S = 20.0
_CLOSED_PER_STEP_MAX = 32


def is_damage(error: Exception) -> bool:
    """Whether the error says that the slot's file, or a row in it, is damaged: the slot is to be retired."""
    if isinstance(error, sqlite3.Error):
        return is_corrupt(error) or str(error).startswith("Could not decode to UTF-8")
    return isinstance(error, msgspec.DecodeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostSlot:
    """A slot whose database was given up.

    Attributes:
        incarnation: of the fresh database.
        quarantine: folder with what was left, relative to the disk; None when nothing was.
        damaged: False: there was nothing wrong with it, it only is not wanted any more.
    """

    slot: int
    incarnation: str
    why: str
    quarantine: str | None
    damaged: bool = True


class SlotPool:
    """Opens, keeps and closes slot databases."""

    def __init__(
        self,
        disk: Path,
        identity: DiskIdentity,
        ops: FileOps,
        mint: Callable[[], str],
        *,
        open_max: Callable[[], int] = databases_max,
    ) -> None:
        self._disk = disk
        self._identity = identity
        self._ops = ops
        self._mint = mint
        self._open_max = open_max
        self._open: OrderedDict[int, SlotDatabase] = OrderedDict()
        self._used: set[int] = set()
        self._used_before: set[int] = set()
        self._age_at_s = 0.0
        self._freed = True  # recovery opened every database once
        self._half_retired: dict[int, SlotState] = {}
        self._interrupted: dict[int, Callable[[], SlotDatabase]] = {}
        self.lost: list[LostSlot] = []
        self.tallies: dict[int, SlotTally] = {}
        """By slot; written on the database thread, read anywhere."""
        self.on_lost: Callable[[LostSlot, SlotState], None] = lambda lost, state: None
        """Called on the database thread for each slot that is lost."""
        self.on_emptied: Callable[[int], None] = lambda slot: None
        """The same, when its database is gone and there is no fresh one yet."""

    def folder(self, slot: int) -> Path:
        """``slots/<slot>``."""
        return self._disk / "slots" / str(slot)

    def known_slots(self) -> list[int]:
        """Every slot that has a database file, or should have one."""
        slots = set(self._identity.slots_created)
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._disk / "slots"):
                if name.isdecimal() and str(int(name)) == name and (self.folder(int(name)) / DATABASE_NAME).exists():
                    slots.add(int(name))
        return sorted(slots)

    def get(self, slot: int) -> SlotDatabase:
        """The slot's database, opened or created. A lost one is replaced.

        Raises:
            DiskMismatch: it was written by a later version of this software.
            DiskFailed: the disk gave an I/O error, and may have lost a name that this node counts on from now on.
            sqlite3.Error, OSError: it cannot be opened for another reason than damage.
        """
        self._used.add(slot)
        database = self._open.get(slot)
        if database is not None:
            self._open.move_to_end(slot)
            return database
        while len(self._open) >= self._open_max():
            self._let_go(next(iter(self._open)))
        path = self.folder(slot) / DATABASE_NAME
        try:
            if not path.exists() or not path.stat().st_size:
                if slot in self._identity.slots_created:
                    # One that could not be finished here is no loss: it goes on as what it was begun for.
                    lost = partial(self.retire, slot, "the database file is missing or empty")
                    return self._interrupted.get(slot, lost)()
                self._make_folder(path.parent)
                database = SlotDatabase(slot, path, self._identity.disk_id, create=True, tallies=self.tallies)
            else:
                # Half a database that a killed retire() left must not get the first incarnation.
                fresh = None if slot in self._identity.slots_created else self._identity.disk_id
                database = SlotDatabase(slot, path, fresh, create=False, tallies=self.tallies)
        except SchemaTooNew as error:
            raise DiskMismatch(
                f"{path} has {error}. Nothing is damaged and nothing was changed: start the version of AmberBlob that wrote "
                "it. To go back to this version all the same, give the node an empty disk; it is filled from the other nodes."
            ) from error
        except (sqlite3.Error, msgspec.DecodeError) as error:
            if not is_damage(error):
                raise
            return self.retire(slot, str(error))
        self._interrupted.pop(slot, None)
        self._open[slot] = database
        return database

    def _make_folder(self, folder: Path) -> None:
        """A folder that is there is not synced once more: one whose sync failed must not be used."""
        try:
            self._ops.make_dirs(folder)
        except OSError as error:
            if is_no_room(error):
                raise
            raise DiskFailed(f"{folder} cannot be made: {error}. {FAILED_REMEDY}") from error

    def _let_go(self, slot: int) -> None:
        """Close a database. SQLite tells nobody of an error in the checkpoint that a close makes, so one is made before."""
        database = self._open[slot]
        if database.dirty:
            try:
                database.checkpoint()
            except (sqlite3.Error, msgspec.DecodeError) as error:
                # Whoever opens it next finds the damage; it is not that of the slot that is asked for now.
                if not is_damage(error):
                    raise
        del self._open[slot]
        database.close()

    def was_lost(self, slot: int) -> bool:
        """Whether the slot's database is not the first that it had here."""
        return self.get(slot).state.incarnation != self._identity.disk_id

    def remake_unfinished(self, slot: int) -> bool:
        """At start, before the journal is replayed: delete a database that was never made durable; whether it was one.

        It was never synced, so that after a power cut it may hold anything, also what looks sound. Every entry of such a
        slot is still in the journal, so nothing is lost and the incarnation stays.
        """
        if slot in self._identity.slots_created:
            return False
        path = self.folder(slot) / DATABASE_NAME
        # The main file last: SQLite drops a log beside an empty database, and must not take it for that of a new one.
        for part in reversed(_PARTS):
            self._ops.unlink(path.with_name(path.name + part))
        return True

    def retire(self, slot: int, why: str, *, applied: int = 0, damaged: bool = True, keep: bool = True) -> SlotDatabase:
        """Give the slot's database up: move it to quarantine, begin a fresh one with a new incarnation.

        Args:
            applied: entries of the journal up to here are not to be applied to the fresh one, now or after a restart.
            damaged: False: there is nothing wrong with it, and the log says so.
            keep: False: it is removed. (It goes by way of ``staging``, which every start clears.)

        Raises:
            sqlite3.Error, OSError: it could not be done, for want of room perhaps; the next :meth:`get` goes on.
        """
        old = self._open.pop(slot, None)
        if old is not None:
            self._half_retired[slot] = old.state
            with contextlib.suppress(sqlite3.Error):
                old.close()
        self._interrupted[slot] = partial(self.retire, slot, why, applied=applied, damaged=damaged, keep=keep)
        incarnation = self._mint()
        path = self.folder(slot) / DATABASE_NAME
        # From here on the slot counts as lost, even if this process dies before the fresh database is there.
        self._record_created({slot})
        aside = self._disk / "quarantine" / f"{slot}-{incarnation}"
        if not keep:
            aside = self.folder(slot) / "staging" / f"{RETIRED}{incarnation}"
        quarantine = self._move_away(path, aside)
        # Before there is a fresh database: a process that dies in between begins here again, and one that found a fresh one would not.
        self.on_emptied(slot)
        self._ops.make_dirs(path.parent)
        try:
            database = self._begin_anew(slot, path, incarnation, applied)
        except BaseException:
            # Half a database must not be taken for the slot's: it may bear the wrong incarnation.
            for part in _PARTS:
                self._ops.unlink(path.with_name(path.name + part))
            raise
        self._half_retired.pop(slot, None)
        self._interrupted.pop(slot, None)
        self._open[slot] = database
        lost = LostSlot(slot=slot, incarnation=incarnation, why=why, quarantine=quarantine, damaged=damaged)
        if not keep:
            _log.info("slot-left", slot=slot, why=why, incarnation=incarnation)
            self.on_lost(lost, database.state)
            self._ops.remove_tree(aside)
            return database
        self.lost.append(lost)
        # What was damaged is for an operator to look at. What only is not wanted any more is in order: a disk that came back, or
        # what the journal held of a slot whose database was lost.
        report = partial(_log.error, "slot-lost") if damaged else partial(_log.warning, "slot-put-aside")
        report(
            slot=slot, why=why, incarnation=incarnation, quarantine=quarantine,
            action="the slot has no vote here until it was filled from its peers; keep the quarantine folder until then",
        )  # fmt: skip
        self.on_lost(lost, database.state)
        return database

    def _begin_anew(self, slot: int, path: Path, incarnation: str, applied: int) -> SlotDatabase:
        database = SlotDatabase(slot, path, incarnation, create=True, tallies=self.tallies)
        try:
            known = self._half_retired.get(slot)
            if known is not None:
                # What it was filled with is gone: synced_epoch begins at 0 again, and a replay of the journal does not raise it.
                state = SlotState(
                    slot=slot, incarnation=incarnation, epoch=known.epoch, ballot_floor=known.ballot_floor,
                    version_floor=known.version_floor, promise_ceiling=known.promise_ceiling,
                )  # fmt: skip
                with database.transaction():
                    database.write_meta(state, applied)
            database.checkpoint()
            self._ops.fsync_dir(path.parent)
        except BaseException:
            database.close()
            raise
        return database

    def _move_away(self, path: Path, target: Path) -> str | None:
        left = [part for part in _PARTS if path.with_name(path.name + part).exists()]
        if not left:
            return None
        self._ops.make_dirs(target)
        # The main file last: while it is there and damaged, a crash in between begins here again.
        for part in sorted(left, reverse=True):
            self._ops.rename(path.with_name(path.name + part), target / (path.name + part))
        self._ops.fsync_dir(target)
        self._ops.fsync_dir(path.parent)
        return str(target.relative_to(self._disk))

    def make_created(self, slots: set[int]) -> None:
        """Record in ``disk.toml`` that these slots' databases are durable (they were checkpointed just now)."""
        new = slots - self._identity.slots_created
        if not new:
            return
        for slot in sorted(new):
            self._ops.fsync_dir(self.folder(slot))
        self._ops.fsync_dir(self._disk / "slots")
        self._record_created(new)

    def _record_created(self, slots: set[int]) -> None:
        new = slots - self._identity.slots_created
        if not new:
            return
        self._identity.slots_created |= new
        try:
            write_identity(self._disk, self._identity, self._ops)
        except BaseException:
            # What is not written down is not so: the next try writes it.
            self._identity.slots_created -= new
            raise

    def close_idle(self, now_s: float, *, keep: int = KEEP_OPEN_IDLE, unused_s: float = UNUSED_S) -> int:
        """Close some of the databases that nobody used for ``unused_s`` to twice that; how many were closed.

        At least ``keep`` stay open. ``now_s`` is monotonic. An open database costs about 140 KiB; once there is
        nothing left to close, what was freed is given back to the system.
        """
        closed = 0
        while len(self._open) > keep and closed < _CLOSED_PER_STEP_MAX:
            slot = next(iter(self._open))
            if slot in self._used or slot in self._used_before:
                break  # those behind it were used later still
            self._let_go(slot)
            closed += 1
        if closed:
            self._freed = True
        elif self._freed:
            self._freed = False
            trim_memory()
        if now_s >= self._age_at_s:
            self._age_at_s = now_s + unused_s
            self._used_before, self._used = self._used, set()
        return closed

    def open_slots(self) -> list[int]:
        """Slots whose database is open."""
        return list(self._open)

    def close(self) -> None:
        """Close all."""
        while self._open:
            _, database = self._open.popitem()
            with contextlib.suppress(sqlite3.Error):
                database.close()
