"""The listing index of a disk: one row per register, in byte order of the path. Belongs to the database thread.

It is derived: a missing, damaged or stale index is made anew from the slot databases.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import structlog

from amberblob.ballot import Ballot
from amberblob.prefixes import after_prefix, group_of
from amberblob.wire import ScanEntry
from chunkstore.fileops import FileOps
from chunkstore.rules import is_visible
from chunkstore.schema import INDEX_MIGRATIONS
from chunkstore.slotdb import json_text
from chunkstore.sqlite import SchemaTooNew, checkpoint, connect, is_corrupt, migrate

_log = structlog.get_logger(__name__)

INDEX_NAME = "index.sqlite3"
_COLUMNS = (
    "path, slot, ballot, chosen, version, blob_id, size, etag, created_at_ms, changed_at_ms, content_type, version_max"
)
_UPSERT = f"INSERT OR REPLACE INTO objects({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ballot_of = msgspec.json.Decoder(Ballot).decode


@dataclass(frozen=True, slots=True)
class Page:
    """A page of the listing index."""

    entries: tuple[ScanEntry, ...]
    next_start: str | None


def _row_of(entry: ScanEntry) -> tuple[object, ...]:
    return (
        entry.path, entry.slot, json_text(entry.ballot), int(entry.chosen), entry.version, entry.blob_id, entry.size,
        entry.etag, entry.created_at_ms, entry.changed_at_ms, entry.content_type, entry.version_max,
    )  # fmt: skip


def _entry_of(row: tuple[str | int, ...]) -> ScanEntry:
    path, slot, ballot, chosen, version, blob_id, size, etag, created, changed, content_type, version_max = row
    return ScanEntry(
        str(path), int(slot), _ballot_of(str(ballot)), bool(chosen), int(version), str(blob_id), int(size), str(etag),
        int(created), int(changed), str(content_type), int(version_max),
    )  # fmt: skip


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
        self.connection = connect(self._path, cache_kib=8192, create=not self._path.exists())
        try:
            migrate(self.connection, INDEX_MIGRATIONS)
            row = self.connection.execute("SELECT applied_position, complete FROM index_meta").fetchone()
        except BaseException:
            self.connection.close()
            raise
        self.applied: int = row[0]
        self.complete = bool(row[1])
        # A process that died may have left a log that was never synced.
        self.dirty = True

    def update(self, entries: Iterable[ScanEntry], applied: int) -> None:
        """Put the entries in, in one transaction with the position that they reach to."""
        with self._transaction():
            self.connection.executemany(_UPSERT, map(_row_of, entries))
            self.connection.execute("UPDATE index_meta SET applied_position = ?", (applied,))
        self.applied = max(self.applied, applied)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN IMMEDIATE")
        self.dirty = True
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
            raise

    def begin_rebuild(self) -> None:
        """Empty it."""
        with self._transaction():
            self.connection.execute("DELETE FROM objects")
            self.connection.execute("UPDATE index_meta SET complete = 0, applied_position = 0")
        self.complete = False

    def end_rebuild(self, applied: int) -> None:
        """Say that it holds everything up to ``applied``."""
        with self._transaction():
            self.connection.execute("UPDATE index_meta SET complete = 1, applied_position = ?", (applied,))
        self.complete, self.applied = True, applied

    def forget_slot(self, slot: int) -> None:
        """Remove a lost slot's rows: its copy knows nothing any more. Walks the whole index; rare."""
        with self._transaction():
            self.connection.execute("DELETE FROM objects WHERE slot = ?", (slot,))

    def scan(self, prefix: str, start: str, delimiter: str, limit: int) -> Page:
        """A page; see :meth:`chunkstore.interface.ReplicaStore.scan`."""
        entries: list[ScanEntry] = []
        for entry in self._walk(prefix, start, delimiter):
            if len(entries) == limit:
                return Page(tuple(entries), entry.path)
            entries.append(entry)
        return Page(tuple(entries), None)

    def _range(self, low: str, high: str | None, *, visible: bool = False) -> Iterator[ScanEntry]:
        query, values = f"SELECT {_COLUMNS} FROM objects WHERE path >= ?", [low]
        if high is not None:
            query += " AND path < ?"
            values.append(high)
        if visible:
            query += " AND (version > 0 OR chosen = 0)"
        cursor = self.connection.execute(query + " ORDER BY path", values)
        try:
            for row in cursor:
                yield _entry_of(row)
        finally:
            cursor.close()

    def _walk(self, prefix: str, start: str, delimiter: str) -> Iterator[ScanEntry]:
        """The entries of a listing. A group costs two seeks, however many paths it has."""
        low: str | None = max(prefix, start)
        high = after_prefix(prefix)
        while low is not None:
            group: str | None = None
            for entry in self._range(low, high):
                group = group_of(entry.path, prefix, delimiter)
                if group is None:
                    yield entry
                    continue
                witness: ScanEntry | None = entry
                if not is_visible(entry):
                    witness = next(self._range(entry.path, after_prefix(group), visible=True), None)
                if witness is not None:
                    yield witness
                break
            low = None if group is None else after_prefix(group)

    def checkpoint(self) -> bool:
        """Make it durable; False when a reader was in the way."""
        done = checkpoint(self.connection)
        self.dirty = self.dirty and not done
        return done

    def close(self) -> None:
        """Close it."""
        self.connection.close()
