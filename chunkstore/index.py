"""The listing index of a disk: one row per register, in byte order of the path. Belongs to the database thread.

What is deleted for certain stands in a table of its own, so that a walk over what lives does not meet it.
It is derived: a missing, damaged or stale index is made anew from the slot databases.
"""

from __future__ import annotations

import contextlib
import heapq
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from amberblob.prefixes import after_prefix, group_of
from amberblob.wire import ScanEntry
from chunkstore.fileops import FileOps
from chunkstore.rowcodec import json_text
from chunkstore.rules import is_visible
from chunkstore.schema import INDEX_MIGRATIONS
from chunkstore.sqlite import SchemaTooNew, checkpoint, connect, is_corrupt, migrate

_log = structlog.get_logger(__name__)

INDEX_NAME = "index.sqlite3"
_TABLES = ("objects", "deleted")
_ROWS_MAX = 1024
_RUN_ROWS = 128
_MERGE_ROWS = 8192
_CHECKPOINT_ROWS = 65_536
_CREATE_LOADING = """
CREATE TABLE loading (
  slot INTEGER NOT NULL, path TEXT NOT NULL, entry TEXT NOT NULL, visible INTEGER NOT NULL,
  PRIMARY KEY (slot, path)) WITHOUT ROWID
"""
_INSERT = {table: f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)" for table in _TABLES}
_CACHE_KIB = 32 * 1024
_decode_page = msgspec.json.Decoder(tuple[ScanEntry, ...]).decode

Row = tuple[str, str, int]
"""Path, entry as JSON, and whether it is visible."""


def _select(*, dead: bool, is_open: bool) -> str:
    bound = "path >= ?1" if is_open else "path >= ?1 AND path < ?2"
    query = f"SELECT path, entry, 1 FROM objects WHERE {bound}"
    if dead:
        # SQLite merges the two as they come, each in the order of its key.
        query += f" UNION ALL SELECT path, entry, 0 FROM deleted WHERE {bound}"
    return f"{query} ORDER BY 1 LIMIT ?3"


_SELECT = {(dead, is_open): _select(dead=dead, is_open=is_open) for dead in (False, True) for is_open in (False, True)}


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the listing index."""

    entries: tuple[ScanEntry, ...]
    next_start: str | None


def _damaged(why: str) -> sqlite3.DatabaseError:
    """What SQLite raises for a damaged page, for a row that cannot be read."""
    error = sqlite3.DatabaseError(f"a row of the listing index cannot be read: {why}")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT  # as SQLite's own errors have it
    return error


def _entries_of(texts: list[str]) -> tuple[ScanEntry, ...]:
    # One call for all: a third of the time of one call each.
    try:
        return _decode_page(f"[{','.join(texts)}]")
    except msgspec.DecodeError as error:
        raise _damaged(str(error)) from error


class ListingIndex:
    """An open ``index.sqlite3``.

    Attributes:
        applied: journal position of the last entry in it.
        complete: False until it was filled from the slot databases.
    """

    def __init__(self, disk: Path, ops: FileOps) -> None:
        """Open it; one that cannot be read is deleted and begun anew (with ``complete`` False)."""
        self._path = disk / INDEX_NAME
        try:
            self._open()
        except (sqlite3.Error, SchemaTooNew) as error:
            if isinstance(error, sqlite3.Error) and not is_corrupt(error):
                raise
            _log.warning("index-damaged", error=str(error), action="made anew from the slot databases")
            for part in ("", "-wal", "-shm"):
                ops.unlink(self._path.with_name(self._path.name + part))
            self._open()

    def _open(self) -> None:
        self.connection = connect(self._path, cache_kib=_CACHE_KIB, create=not self._path.exists())
        try:
            # Some builds of SQLite overwrite with zeros what is freed: emptying a large index would write all of it anew.
            self.connection.execute("PRAGMA secure_delete = OFF")
            migrate(self.connection, INDEX_MIGRATIONS)
            row = self.connection.execute("SELECT applied_position, complete FROM index_meta").fetchone()
        except BaseException:
            self.connection.close()
            raise
        self.applied: int = row[0]
        self.complete = bool(row[1])
        self._loading = False
        self._unsynced = 0
        # A process that died may have left a log that was never synced.
        self.dirty = True

    def update(self, entries: Iterable[ScanEntry], applied: int, gone: Sequence[str] = ()) -> None:
        """Put the entries in and take these paths out, in one transaction with the position that they reach to."""
        if self._loading:
            assert not gone, "the slots' databases are read for it, and what is gone is not in them"
            self._load(entries)
            return
        rows: dict[bool, list[tuple[str, int, str]]] = {True: [], False: []}
        for entry in entries:
            rows[is_visible(entry)].append((entry.path, entry.slot, json_text(entry)))
        with self._transaction():
            for there, elsewhere, found in (("objects", "deleted", rows[True]), ("deleted", "objects", rows[False])):
                if found:
                    self.connection.executemany(_INSERT[there], found)
                    self.connection.executemany(
                        f"DELETE FROM {elsewhere} WHERE path = ?", ((path,) for path, _, _ in found)
                    )
            for table in _TABLES if gone else ():
                self.connection.executemany(f"DELETE FROM {table} WHERE path = ?", ((path,) for path in gone))
            self.connection.execute("UPDATE index_meta SET applied_position = ?", (applied,))
        self.applied = max(self.applied, applied)

    @contextlib.contextmanager
    def _transaction(self, kind: Literal["IMMEDIATE", "DEFERRED"] = "IMMEDIATE") -> Iterator[None]:
        """DEFERRED to read only."""
        self.connection.execute(f"BEGIN {kind}")
        self.dirty = self.dirty or kind == "IMMEDIATE"
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
            raise

    # -- made anew

    def begin_rebuild(self) -> None:
        """Empty it. What :meth:`update` gets until :meth:`end_rebuild` comes slot by slot, so it is only put by.

        In the order of its slots each row would go to another page of the whole index, and every page would be written
        once per slot.
        """
        with self._transaction():
            for table in _TABLES:
                self.connection.execute(f"DELETE FROM {table}")
            self.connection.execute("DROP TABLE IF EXISTS loading")
            self.connection.execute(_CREATE_LOADING)
            self.connection.execute("UPDATE index_meta SET complete = 0, applied_position = 0")
        self.complete, self._loading, self._unsynced = False, True, 0

    def _load(self, entries: Iterable[ScanEntry]) -> None:
        rows = [(entry.slot, entry.path, json_text(entry), is_visible(entry)) for entry in entries]
        with self._transaction():
            self.connection.executemany("INSERT OR REPLACE INTO loading VALUES (?, ?, ?, ?)", rows)
        self._unsynced += len(rows)

    def _run(self, slot: int) -> Iterator[tuple[str, int, str, int]]:
        """A slot's rows, read in pieces: a query that stays open would keep the log from being moved."""
        last = ""
        while rows := self.connection.execute(
            "SELECT path, slot, entry, visible FROM loading WHERE slot = ? AND path > ? ORDER BY path LIMIT ?",
            (slot, last, _RUN_ROWS),
        ).fetchall():
            yield from rows
            last = rows[-1][0]

    def end_rebuild(self, applied: int) -> None:
        """Put everything in its place, in order, and say that it holds everything up to ``applied``."""
        if self._loading:
            slots = [slot for (slot,) in self.connection.execute("SELECT DISTINCT slot FROM loading")]
            merged = heapq.merge(*map(self._run, slots))
            while rows := list(islice(merged, _MERGE_ROWS)):
                with self._transaction():
                    self.connection.executemany(_INSERT["objects"], (row[:3] for row in rows if row[3]))
                    self.connection.executemany(_INSERT["deleted"], (row[:3] for row in rows if not row[3]))
                self._unsynced += len(rows)
                self.checkpoint()
        with self._transaction():
            self.connection.execute("DROP TABLE IF EXISTS loading")
            self.connection.execute("UPDATE index_meta SET complete = 1, applied_position = ?", (applied,))
        self.complete, self.applied, self._loading = True, applied, False

    def forget_slot(self, slot: int) -> None:
        """Remove a lost slot's rows: its copy knows nothing any more. Walks the whole index; rare."""
        with self._transaction():
            for table in (*_TABLES, *(("loading",) if self._loading else ())):
                self.connection.execute(f"DELETE FROM {table} WHERE slot = ?", (slot,))

    def scan(self, prefix: str, start: str, delimiter: str, limit: int, *, dead: bool = True) -> Page:
        """A page; see :meth:`chunkstore.interface.ReplicaStore.scan`.

        Args:
            dead: also paths without a live version that are known to be so. Without them it makes no difference how
                many there are.
        """
        low, high = max(prefix, start), after_prefix(prefix)
        try:
            if delimiter:
                # Many small queries: in one transaction each costs no locks of its own.
                with self._transaction("DEFERRED"):
                    rows = list(islice(self._walk(prefix, low, high, delimiter, dead=dead), limit + 1))
            else:
                rows = self._rows(low, high, limit + 1, dead=dead)
        except sqlite3.OperationalError as error:
            if str(error).startswith("Could not decode to UTF-8"):
                raise _damaged(str(error)) from error
            raise
        return Page(_entries_of([entry for _, entry, _ in rows[:limit]]), rows[limit][0] if len(rows) > limit else None)

    def _rows(self, low: str, high: str | None, limit: int, *, dead: bool) -> list[Row]:
        """At most ``limit`` rows in order of the path."""
        return self.connection.execute(_SELECT[dead, high is None], (low, high, limit)).fetchall()

    def _walk(self, prefix: str, start: str, high: str | None, delimiter: str, *, dead: bool) -> Iterator[Row]:
        """The rows of a listing by groups. A group costs two seeks, however many paths it has."""
        low: str | None = start
        count = 1
        while low is not None:
            rows = self._rows(low, high, count, dead=dead)
            for row in rows:
                group = group_of(row[0], prefix, delimiter)
                if group is None:
                    yield row
                    continue
                low = after_prefix(group)
                # The first of a group that is deleted is no witness: the first that is not, is.
                yield from (row,) if row[2] else self._rows(row[0], low, 1, dead=False)
                count = 1
                break
            else:
                if len(rows) < count:
                    return
                low = rows[-1][0] + "\0"
                count = min(4 * count, _ROWS_MAX)

    def checkpoint(self) -> bool:
        """Make it durable; False when a reader was in the way. One that is being made anew is not worth a sync per slot."""
        if self._loading:
            if self._unsynced < _CHECKPOINT_ROWS:
                return True
            self._unsynced = 0
        done = checkpoint(self.connection)
        self.dirty = self.dirty and not done
        return done

    def close(self) -> None:
        """Close it."""
        self.connection.close()
