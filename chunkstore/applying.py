"""What entries do to a slot's tables: one transaction per slot and batch. Belongs to the database thread.

Applying is idempotent: an entry at or below ``applied_position`` is skipped, and every statement may run twice.

Registers are read once per path and batch, changed in memory, and written once at the end. The cheap path is
a put upon the record that was materialised here last: its row goes in and nothing else changes. In every other
case the path's tombstones are set anew as ``Record.live`` says.

The last write id of a chosen record is in the row of ``registers`` while that holds the record, and goes into
``write_ids`` when another takes its place: most paths are written once (measured: 0.7 pages of the write-ahead log less).
"""

from __future__ import annotations

from collections.abc import Sequence

from amberblob.ballot import EMPTY_REGISTER, Register
from amberblob.manifest import Record, Version, WriteMark
from amberblob.mutations import Aborted, Accepted, Chosen, EpochSeen, Reserved, Staged
from chunkstore import rules
from chunkstore.codec import BodyKept, Entry
from chunkstore.slotdb import SlotDatabase, json_text, register_of
from chunkstore.sqlite import iso_of

_INSERT_BLOB = (
    "INSERT OR IGNORE INTO blobs(path, version, blob_id, size, chunks, created_at, tombstoned_at, etag, content_type, "
    "meta, manifest_id, chunk_count, inline, revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_LOG = "INSERT INTO commit_log(path, version, blob_id, revision, op, at_ms) VALUES (?, ?, ?, ?, ?, ?)"
_INSERT_WRITE = "INSERT OR IGNORE INTO write_ids(path, write_id, op, version, at_ms) VALUES (?, ?, ?, ?, ?)"
_INSERT_BODY = "INSERT OR REPLACE INTO inline_bodies(blob_id, body) VALUES (?, ?)"
_REFERENCE = (
    "INSERT INTO intents(blob_id, state, at_ms) VALUES (?, 'REFERENCED', ?) "
    "ON CONFLICT(blob_id) DO UPDATE SET state = 'REFERENCED'"
)
_STAGE = "INSERT OR IGNORE INTO intents(blob_id, state, at_ms) VALUES (?, 'STAGED', ?)"
_REVIVE = (
    "INSERT INTO intents(blob_id, state, at_ms) VALUES (?, 'STAGED', ?) "
    "ON CONFLICT(blob_id) DO UPDATE SET state = 'STAGED', at_ms = excluded.at_ms WHERE state = 'ABORTED'"
)
_ABORT = (
    "INSERT INTO intents(blob_id, state, at_ms) SELECT ?1, 'ABORTED', 0 "
    "WHERE NOT EXISTS (SELECT 1 FROM inline_bodies WHERE blob_id = ?1) "
    "AND NOT EXISTS (SELECT 1 FROM blobs WHERE blob_id = ?1) "
    "ON CONFLICT(blob_id) DO UPDATE SET state = 'ABORTED' WHERE state <> 'REFERENCED'"
)
_UPSERT_REGISTER = (
    "INSERT INTO registers(path, accepted_ballot, record, chosen, materialised, stale) VALUES (?, ?, ?, ?, ?, ?) "
    "ON CONFLICT(path) DO UPDATE SET accepted_ballot = excluded.accepted_ballot, record = excluded.record, "
    "chosen = excluded.chosen, materialised = excluded.materialised, stale = excluded.stale"
)


class _Row:
    """A row of ``registers`` while a batch changes it."""

    __slots__ = ("changed", "materialised", "register", "stale")

    def __init__(self, register: Register, materialised: int, stale: bool) -> None:
        self.register = register
        self.materialised = materialised
        self.stale = stale
        self.changed = False


class SlotBatch:
    """Applies one batch to one slot. Use once."""

    def __init__(self, database: SlotDatabase) -> None:
        self._database = database
        self._sql = database.connection
        self._rows: dict[str, _Row] = {}
        self._blobs: list[tuple[object, ...]] = []
        self._log: list[tuple[object, ...]] = []
        self._writes: list[tuple[object, ...]] = []
        self._bodies: list[tuple[str, bytes]] = []
        self._references: list[tuple[str, int]] = []

    def apply(self, entries: Sequence[tuple[int, Entry]]) -> dict[str, Register]:
        """Apply in one transaction; returns every register that the entries named, as it is afterwards.

        Raises:
            sqlite3.Error: nothing was applied.
        """
        database = self._database
        with database.transaction():
            state, applied = database.state, database.applied
            for position, entry in entries:
                if position <= applied:
                    if isinstance(entry, Accepted | Chosen):
                        self._row(entry.path)
                    continue
                match entry:
                    case Accepted():
                        self._accepted(entry)
                    case Chosen():
                        self._chosen(entry)
                    case Reserved() | EpochSeen():
                        state = rules.change_slot(state, entry)
                    case Staged():
                        self._flush_references()
                        self._sql.execute(_REVIVE if entry.revived else _STAGE, (entry.blob_id, entry.at_ms))
                    case Aborted():
                        self._flush()
                        self._sql.execute(_ABORT, (entry.blob_id,))
                    case BodyKept():
                        self._bodies.append((entry.blob_id, entry.body))
            self._flush()
            self._write_registers()
            database.write_meta(state, max(applied, entries[-1][0]))
        return {path: row.register for path, row in self._rows.items()}

    # -- entries

    def _row(self, path: str) -> _Row:
        row = self._rows.get(path)
        if row is None:
            found = self._sql.execute(
                "SELECT accepted_ballot, record, chosen, materialised, stale FROM registers WHERE path = ?", (path,)
            ).fetchone()
            if found is None:
                row = _Row(EMPTY_REGISTER, 0, False)
            else:
                row = _Row(register_of(found[0], found[1], found[2]), found[3], bool(found[4]))
            self._rows[path] = row
        return row

    def _accepted(self, entry: Accepted) -> None:
        row, record = self._row(entry.path), entry.record
        if row.materialised < record.revision:
            self._predecessor(row, entry.path, record)
        else:
            self._late(row, entry.path, record, chosen=False)
        after = rules.accept(row.register, entry)
        if after is row.register:
            return
        self._replace(row, entry.path, after)
        added = record.added
        if added is not None:
            if entry.body is not None:
                self._bodies.append((added.blob_id, entry.body))
            elif not added.inline:
                self._references.append((added.blob_id, added.created_at_ms))

    def _replace(self, row: _Row, path: str, after: Register) -> None:
        before = row.register
        if before.chosen and before.record is not None and before.record.writes and before.record is not after.record:
            self._write(path, before.record.writes[-1])
        row.register, row.changed = after, True

    def _predecessor(self, row: _Row, path: str, record: Record) -> None:
        """What a record tells of the chosen one before it: its row, and all write ids but the record's own."""
        if row.materialised == record.revision - 1:
            return
        if record.previous is not None:
            self._blob(path, record.previous, record.revision - 1)
        for mark in record.writes[:-1]:
            self._write(path, mark)

    def _chosen(self, entry: Chosen) -> None:
        row = self._row(entry.path)
        record = rules.chosen_record(row.register, entry)
        after = rules.choose(row.register, entry)
        if after is not row.register:
            self._replace(row, entry.path, after)
        if record is None:
            return
        if record.added is not None and entry.record is not None and not record.added.inline:
            self._references.append((record.added.blob_id, record.added.created_at_ms))
        if record.revision > row.materialised:
            self._materialise(row, entry.path, record)
        elif record.revision < row.materialised:
            self._late(row, entry.path, record)

    def _materialise(self, row: _Row, path: str, record: Record) -> None:
        contiguous = row.materialised == record.revision - 1
        self._predecessor(row, path, record)
        if record.added is not None:
            self._blob(path, record.added, record.revision)
        if record.writes and row.register.record is not record:
            self._write(path, record.writes[-1])
        if record.op != "put" or not contiguous or row.stale:
            self._tombstones(path, record)
        self._log_line(path, record)
        row.materialised, row.stale, row.changed = record.revision, False, True

    def _late(self, row: _Row, path: str, record: Record, *, chosen: bool = True) -> None:
        """A record older than the newest known. Its rows may be missing; the newest says whether they live.

        With ``chosen`` False the record itself is not known to be chosen, only its predecessor is.
        """
        self._flush_blobs()
        before = self._sql.total_changes
        if record.previous is not None:
            self._blob(path, record.previous, record.revision - 1)
        if chosen and record.added is not None:
            self._blob(path, record.added, record.revision)
        self._flush_blobs()
        for mark in record.writes if chosen else record.writes[:-1]:
            self._write(path, mark)
        if self._sql.total_changes == before:
            return
        if chosen:
            self._log_line(path, record)
        if row.register.chosen and row.register.record is not None:
            self._tombstones(path, row.register.record)
        else:
            # What lives is not known before the next record is chosen; that one sets the tombstones anew.
            row.stale = True
        row.changed = True

    def _log_line(self, path: str, record: Record) -> None:
        version, blob_id = (record.head.version, record.head.blob_id) if record.head else (0, "")
        self._log.append((path, version, blob_id, record.revision, record.op, record.changed_at_ms))

    # -- tables

    def _blob(self, path: str, version: Version, revision: int) -> None:
        self._blobs.append(
            (
                path, version.version, version.blob_id, version.size, json_text(version.chunks),
                iso_of(version.created_at_ms), None, version.etag, version.content_type, json_text(version.meta),
                version.manifest_id, version.chunk_count, int(version.inline), revision,
            )
        )  # fmt: skip

    def _write(self, path: str, mark: WriteMark) -> None:
        self._writes.append((path, mark.write_id, mark.op, mark.version, mark.at_ms))

    def _tombstones(self, path: str, record: Record) -> None:
        self._flush_blobs()
        dead_at = iso_of(record.deleted_at_ms or record.changed_at_ms)
        bury = (
            "UPDATE blobs SET tombstoned_at = ?, revision = max(revision, ?) "
            "WHERE path = ? AND version > ? AND version < ? AND tombstoned_at IS NULL"
        )
        lift = (
            "UPDATE blobs SET tombstoned_at = NULL, revision = max(revision, ?) "
            "WHERE path = ? AND version >= ? AND version <= ? AND tombstoned_at IS NOT NULL"
        )
        below = 0
        for low, high in record.live:
            self._sql.execute(bury, (dead_at, record.revision, path, below, low))
            self._sql.execute(lift, (record.revision, path, low, high))
            below = high
        # A version above version_max is no business of this record.
        self._sql.execute(bury, (dead_at, record.revision, path, below, record.version_max + 1))

    def _flush_blobs(self) -> None:
        if self._blobs:
            self._sql.executemany(_INSERT_BLOB, self._blobs)
            self._blobs.clear()

    def _flush_references(self) -> None:
        if self._references:
            self._sql.executemany(_REFERENCE, self._references)
            self._references.clear()

    def _flush(self) -> None:
        self._flush_blobs()
        self._flush_references()
        for statement, values in ((_INSERT_LOG, self._log), (_INSERT_WRITE, self._writes)):
            if values:
                self._sql.executemany(statement, values)
                values.clear()
        if self._bodies:
            self._sql.executemany(_INSERT_BODY, self._bodies)
            self._bodies.clear()

    def _write_registers(self) -> None:
        values = []
        for path, row in self._rows.items():
            if row.changed:
                register = row.register
                ballot = None if register.accepted is None else json_text(register.accepted)
                record = None if register.record is None else json_text(register.record)
                values.append((path, ballot, record, int(register.chosen), row.materialised, int(row.stale)))
        self._sql.executemany(_UPSERT_REGISTER, values)
