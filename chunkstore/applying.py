"""What entries do to a slot's tables: one transaction per slot and batch. Belongs to the database thread.

Applying is idempotent: an entry at or below ``applied_position`` is skipped, and every statement may run twice.

Registers are read once per path and batch, changed in memory, and written once at the end, with the digest of their path
(:mod:`amberblob.digests`). The cheap path is
a put upon the record that was materialised here last: its row goes in and nothing else changes. In every other
case the path's tombstones are set anew as ``Record.live`` says.

The last write id of a chosen record is in the row of ``registers`` while that holds the record, and goes into
``write_ids`` when another takes its place: most paths are written once (measured: 0.7 pages of the write-ahead log less).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import assert_never

from amberblob.ballot import EMPTY_REGISTER, Register
from amberblob.digests import bucket_of, digest_of
from amberblob.manifest import Record
from amberblob.mutations import (
    Aborted,
    Accepted,
    Archived,
    Chosen,
    EpochSeen,
    Evicted,
    Forgotten,
    Installed,
    Reserved,
    Staged,
    Synced,
)
from chunkstore import digestdb, rules
from chunkstore.batchtables import BatchTables, PathRow
from chunkstore.codec import BodyKept, Entry, OfRegister
from chunkstore.rowcodec import json_text, ranges_of, register_of
from chunkstore.slotdb import SlotDatabase

_SELECT_REGISTER = (
    "SELECT accepted_ballot, record, chosen, materialised, stale, expired, digest, term FROM registers WHERE path = ?"
)
_UPSERT_REGISTER = (
    "INSERT INTO registers(path, accepted_ballot, record, chosen, materialised, stale, expired, digest, term) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
    "ON CONFLICT(path) DO UPDATE SET accepted_ballot = excluded.accepted_ballot, record = excluded.record, "
    "chosen = excluded.chosen, materialised = excluded.materialised, stale = excluded.stale, "
    "expired = excluded.expired, digest = excluded.digest, term = excluded.term"
)


class SlotBatch:
    """Applies one batch to one slot. Use once."""

    def __init__(self, database: SlotDatabase) -> None:
        self._database = database
        self._sql = database.connection
        self._tables = BatchTables(database)
        self._rows: dict[str, PathRow] = {}

    def apply(self, entries: Sequence[tuple[int, Entry]]) -> dict[str, Register]:
        """Apply in one transaction; returns every register that the entries named, as it is afterwards.

        Raises:
            sqlite3.Error: nothing was applied.
        """
        database, tables = self._database, self._tables
        with database.transaction():
            state, applied = database.state, database.applied
            for position, entry in entries:
                if position <= applied:
                    if isinstance(entry, OfRegister):
                        self._row(entry.path)
                    continue
                match entry:
                    case Accepted():
                        self._accepted(entry)
                    case Chosen():
                        self._chosen(entry)
                    case Reserved() | EpochSeen() | Synced():
                        state = rules.change_slot(state, entry)
                    case Staged():
                        tables.stage(entry.blob_id, entry.at_ms, revived=entry.revived)
                    case Aborted():
                        tables.abort(entry.blob_id)
                    case Archived():
                        tables.archived(entry)
                    case Evicted():
                        tables.evicted(entry)
                    case BodyKept():
                        tables.keep_body(entry)
                    case Installed():
                        self._installed(entry)
                    case Forgotten():
                        self._forgotten(entry)
                        state = rules.change_slot(state, entry)
                    case _:
                        assert_never(entry)
            tables.flush()
            self._write_registers()
            database.write_meta(state, max(applied, entries[-1][0]))
        return {path: row.register for path, row in self._rows.items()}

    # -- entries

    def _row(self, path: str) -> PathRow:
        row = self._rows.get(path)
        if row is None:
            found = self._sql.execute(_SELECT_REGISTER, (path,)).fetchone()
            if found is None:
                row = PathRow(path, EMPTY_REGISTER, 0, False, (), 0, 0)
            else:
                accepted, record, chosen, materialised, stale, expired, digest, term = found
                row = PathRow(
                    path, register_of(accepted, record, chosen), materialised, bool(stale), ranges_of(expired),
                    digest_of(digest) if digest else 0, digest_of(term) if term else 0,
                )  # fmt: skip
            self._rows[path] = row
        return row

    def _accepted(self, entry: Accepted) -> None:
        row, record = self._row(entry.path), entry.record
        before = row.register
        if row.materialised < record.revision:
            self._predecessor(row, record)
        else:
            self._late(row, record, chosen=False)
        after = rules.accept(before, entry)
        if after is before:
            return
        self._replace(row, after)
        added = record.added
        if added is not None:
            if entry.body is not None:
                self._tables.body(added.blob_id, entry.body)
            elif not added.inline:
                self._tables.reference(added)
                if self._database.tally.wanted:
                    # It is accepted only once its bytes are here, whatever was missing of them before.
                    self._database.unwant(added.blob_id)
            if added.inline and self._database.tally.archive_staged:
                # Its archive rows may wait already: they are not to be swept any more.
                self._tables.reference(added)
        if row.expired:
            self._release(row, before)

    def _replace(self, row: PathRow, after: Register) -> None:
        before = row.register
        if before.chosen and before.record is not None and before.record.writes and before.record is not after.record:
            self._tables.write(row.path, before.record.writes[-1])
        row.register, row.changed = after, True

    def _release(self, row: PathRow, before: Register) -> None:
        """The register held a record that is no longer there: what it kept of expired versions goes."""
        if before.record is not None and before.record is not row.register.record:
            for version in (before.record.head, before.record.previous):
                if version is not None and row.is_expired(version):
                    self._tables.drop(row, version.blob_id, before.record.changed_at_ms)

    def _predecessor(self, row: PathRow, record: Record) -> None:
        """What a record tells of the chosen one before it: its row, and all write ids but the record's own."""
        if row.materialised == record.revision - 1:
            return
        if record.previous is not None:
            self._tables.insert(row, record.previous, record.revision - 1)
        for mark in record.writes[:-1]:
            self._tables.write(row.path, mark)

    def _chosen(self, entry: Chosen) -> None:
        row = self._row(entry.path)
        before = row.register
        record = rules.chosen_record(before, entry)
        after = rules.choose(before, entry)
        if after is not before:
            self._replace(row, after)
        if record is None:
            return
        # What was accepted here came with its bytes.
        self._learn(row, record, is_news=after is not before, here=before.accepted == entry.ballot)
        if entry.record is not None:
            self._refer(row, record)
        if row.expired:
            self._release(row, before)

    def _refer(self, row: PathRow, record: Record) -> None:
        """A record came in without its accept: whether its bytes are here or not, they are not to be given up."""
        added = record.added
        if added is not None and not added.inline and not row.is_expired(added):
            self._tables.reference(added)

    def _learn(self, row: PathRow, record: Record, *, is_news: bool, here: bool) -> None:
        """A record is known to be chosen. ``is_news``: the register changed with it. ``here``: so are its bytes."""
        if record.expired:
            self._tables.expire(row, record)
        if record.revision > row.materialised:
            self._materialise(row, record, here=here)
        elif is_news and row.register.record is record:
            # It was proposed once more; or the path was forgotten elsewhere, and its revisions began anew.
            self._materialise(row, record, here=here)
        elif record.revision < row.materialised:
            self._late(row, record, here=here)

    def _materialise(self, row: PathRow, record: Record, *, here: bool) -> None:
        path = row.path
        contiguous = row.materialised == record.revision - 1
        self._predecessor(row, record)
        if record.added is not None:
            self._tables.insert(row, record.added, record.revision, here=here)
        if record.writes and row.register.record is not record:
            self._tables.write(path, record.writes[-1])
        if record.op != "put" or not contiguous or row.stale:
            self._tables.tombstones(path, record)
        self._log_line(path, record)
        row.materialised, row.stale, row.changed = record.revision, False, True

    def _late(self, row: PathRow, record: Record, *, chosen: bool = True, here: bool = False) -> None:
        """A record older than the newest known. Its rows may be missing; the newest says whether they live.

        With ``chosen`` False the record itself is not known to be chosen, only its predecessor is.
        """
        inserted = False
        if record.previous is not None:
            inserted = self._tables.insert(row, record.previous, record.revision - 1)
        if chosen and record.added is not None:
            inserted = self._tables.insert(row, record.added, record.revision, here=here) or inserted
        for mark in record.writes if chosen else record.writes[:-1]:
            self._tables.write(row.path, mark)
        if not inserted:
            return
        if chosen:
            self._log_line(row.path, record)
        self._bury(row)

    def _bury(self, row: PathRow) -> None:
        """Rows came in late: set the tombstones as the newest chosen record says."""
        known = row.register
        if known.chosen and known.record is not None:
            self._tables.tombstones(row.path, known.record)
            row.stale = False
        else:
            # What lives is not known before the next record is chosen; that one sets the tombstones anew.
            row.stale = True
        row.changed = True

    def _log_line(self, path: str, record: Record) -> None:
        self._tables.log(path, record.head, record.revision, record.op, record.changed_at_ms)

    def _installed(self, entry: Installed) -> None:
        tables = self._tables
        row = self._row(entry.path)
        before, lines = row.register, tables.log_lines
        after = rules.install(before, entry)
        is_news = after is not before
        is_same = before.accepted == entry.ballot and not entry.replace
        record = before.record if is_same and entry.record is not None else entry.record
        if is_news:
            self._replace(row, after)
        changed = record is not None and tables.expire(row, record)
        came = False
        for version in entry.rows:
            if entry.replace:
                replaced, rival = tables.replace(row, version)
                came = came or replaced
                if rival is not None:
                    self._row(rival).remake = True
            else:
                came = tables.insert(row, version, 0) or came
        # With what materialising finds to do, or below.
        row.stale = row.stale or came
        if record is not None:
            self._learn(row, record, is_news=is_news, here=before.accepted == entry.ballot)
            self._refer(row, record)
        if came and row.stale:
            self._bury(row)
        for mark in entry.writes:
            tables.write(row.path, mark)
        if entry.replace:
            row.remake = True
        if (came or changed) and tables.log_lines == lines:
            newest = max(entry.rows, key=lambda version: version.version, default=None)
            known = row.register.record if row.register.chosen else None
            tables.log(
                row.path, newest, known.revision if known else 0, known.op if known else "put",
                newest.created_at_ms if newest else 0,
            )  # fmt: skip
        self._release(row, before)

    def _forgotten(self, entry: Forgotten) -> None:
        row = self._row(entry.path)
        # A version that has not expired keeps its stub: without it nothing would say that it is deleted.
        if not rules.forget(row.register, entry) or self._tables.has_rows(entry.path):
            return
        before = row.register
        self._replace(row, EMPTY_REGISTER)
        self._release(row, before)
        row.materialised, row.stale, row.expired = 0, False, ()

    # -- the end

    def _write_registers(self) -> None:
        database, tables = self._database, self._tables
        values: list[tuple[object, ...]] = []
        gone: list[tuple[str]] = []
        deltas: dict[int, int] = {}
        objects = 0
        for path, row in self._rows.items():
            if not (row.changed or row.remake):
                continue
            register, digest = row.register, tables.digest_after(row)
            if digest != row.digest:
                bucket = bucket_of(path)
                deltas[bucket] = deltas.get(bucket, 0) + digest - row.digest
            objects += (register.record is not None) - (row.found.record is not None)
            if register.record is None and not tables.has_rows(path):
                gone.append((path,))
                continue
            ballot = None if register.accepted is None else json_text(register.accepted)
            record = None if register.record is None else json_text(register.record)
            expired = json_text(row.expired) if row.expired else None
            values.append(
                (
                    path, ballot, record, int(register.chosen), row.materialised, int(row.stale), expired,
                    digestdb.stored(digest), digestdb.stored(row.term),
                )
            )  # fmt: skip
        self._sql.executemany(_UPSERT_REGISTER, values)
        if gone:
            self._sql.executemany("DELETE FROM registers WHERE path = ?", gone)
        tally, sums = database.tally, database.sums
        if any(row.remake for row in self._rows.values()):
            # What was stored may be what rotted: then the bucket is not what the difference would be added to.
            sums = digestdb.sums_of_paths(self._sql)
            tally = replace(tally, root=digestdb.root_of(sums))
        elif deltas:
            sums = digestdb.shifted(sums, deltas)
            tally = replace(tally, root=digestdb.root_after(tally.root, deltas))
        if sums is not database.sums:
            database.write_sums(sums)
        if objects or tables.log_lines:
            tally = replace(tally, objects=tally.objects + objects, log_head=tally.log_head + tables.log_lines)
        if tally is not database.tally:
            database.tally = tally
