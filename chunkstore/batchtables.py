"""What a batch does to the tables beside ``registers``, statement by statement. Belongs to the database thread.

Rows of ``blobs`` go in one by one, because only what really went in counts for the path's digest. Everything that nobody
asks about before the end of the batch is gathered and goes in at once.
"""

from __future__ import annotations

from amberblob.ballot import Register
from amberblob.digests import DIGEST_MODULUS, row_term
from amberblob.manifest import Ranges, Record, Version, WriteMark, covers, merge_ranges
from amberblob.mutations import Archived, Evicted
from chunkstore import digestdb
from chunkstore.archivetables import ArchiveTables
from chunkstore.codec import BodyKept
from chunkstore.rowcodec import INSERT_BLOB, REPLACE_BLOB, UNREADABLE, VERSION_COLUMNS, blob_values, version_of
from chunkstore.slotdb import SlotDatabase
from chunkstore.sqlite import iso_of

_INSERT_LOG = "INSERT INTO commit_log(path, version, blob_id, revision, op, at_ms) VALUES (?, ?, ?, ?, ?, ?)"
_INSERT_WRITE = "INSERT OR IGNORE INTO write_ids(path, write_id, op, version, at_ms) VALUES (?, ?, ?, ?, ?)"
_INSERT_BODY = "INSERT OR REPLACE INTO inline_bodies(blob_id, body) VALUES (?, ?)"
_KEEP_BODY = (
    "INSERT OR REPLACE INTO inline_bodies(blob_id, body) SELECT ?1, ?2 "
    "WHERE NOT EXISTS (SELECT 1 FROM garbage WHERE blob_id = ?1)"
)
_REFERENCE = (
    "INSERT INTO intents(blob_id, state, at_ms) VALUES (?, 'REFERENCED', ?) "
    "ON CONFLICT(blob_id) DO UPDATE SET state = 'REFERENCED'"
)
_STAGE = (
    "INSERT INTO intents(blob_id, state, at_ms) VALUES (?, 'STAGED', ?) "
    "ON CONFLICT(blob_id) DO UPDATE SET state = 'STAGED', at_ms = excluded.at_ms WHERE state = 'ARCHIVED'"
)
_REVIVE = (
    "INSERT INTO intents(blob_id, state, at_ms) VALUES (?, 'STAGED', ?) "
    "ON CONFLICT(blob_id) DO UPDATE SET state = 'STAGED', at_ms = excluded.at_ms "
    "WHERE state IN ('ABORTED', 'ARCHIVED')"
)
_ABORT = (
    "INSERT INTO intents(blob_id, state, at_ms) SELECT ?1, 'ABORTED', 0 "
    "WHERE NOT EXISTS (SELECT 1 FROM inline_bodies WHERE blob_id = ?1) "
    "AND NOT EXISTS (SELECT 1 FROM blobs WHERE blob_id = ?1) "
    "ON CONFLICT(blob_id) DO UPDATE SET state = 'ABORTED' WHERE state <> 'REFERENCED'"
)
_BURY = (
    "UPDATE blobs SET tombstoned_at = ?, revision = max(revision, ?) "
    "WHERE path = ? AND version > ? AND version < ? AND tombstoned_at IS NULL"
)
_LIFT = (
    "UPDATE blobs SET tombstoned_at = NULL, revision = max(revision, ?) "
    "WHERE path = ? AND version >= ? AND version <= ? AND tombstoned_at IS NOT NULL"
)


class PathRow:
    """A row of ``registers`` while a batch changes it.

    Attributes:
        register: as it is now. found: as it was read.
        materialised: revision of the newest record whose rows are in ``blobs``.
        stale: older rows came in after it, tombstones are to be set anew.
        expired: versions that are gone for certain.
        digest: as it was read. term: what the record adds to it, kept so that an old record is not hashed again. delta: what the rows of ``blobs`` that came and went since then add to it.
        remake: the digest is to be made anew from the tables.
    """

    __slots__ = (
        "changed",
        "delta",
        "digest",
        "expired",
        "found",
        "materialised",
        "path",
        "register",
        "remake",
        "stale",
        "term",
    )

    def __init__(
        self, path: str, register: Register, materialised: int, stale: bool, expired: Ranges, digest: int,
        term: int,
    ) -> None:  # fmt: skip
        self.path = path
        self.register = self.found = register
        self.materialised = materialised
        self.stale = stale
        self.expired = expired
        self.digest = digest
        self.term = term
        self.delta = 0
        self.remake = False
        self.changed = False

    def is_expired(self, version: Version) -> bool:
        """Whether the version is gone for certain, and must not come in again."""
        return covers(self.expired, version.version)


class BatchTables:
    """The tables of one slot during one batch, inside its transaction."""

    def __init__(self, database: SlotDatabase) -> None:
        self._database = database
        self._sql = database.connection
        self._cursor = self._sql.cursor()
        self._log: list[tuple[object, ...]] = []
        self._writes: list[tuple[object, ...]] = []
        self._bodies: list[tuple[str, bytes]] = []
        self._references: list[tuple[str, int]] = []
        self._archives = ArchiveTables(database)
        self.log_lines = 0
        """How many lines of the commit log this batch wrote."""

    # -- gathered

    def log(self, path: str, head: Version | None, revision: int, op: str, at_ms: int) -> None:
        """A line of the commit log."""
        version, blob_id = (head.version, head.blob_id) if head else (0, "")
        self._log.append((path, version, blob_id, revision, op, at_ms))
        self.log_lines += 1

    def write(self, path: str, mark: WriteMark) -> None:
        """What a write id did."""
        self._writes.append((path, mark.write_id, mark.op, mark.version, mark.at_ms))

    def body(self, blob_id: str, body: bytes) -> None:
        """An inline body that came with its record."""
        self._bodies.append((blob_id, body))
        if self._database.tally.wanted:
            self._database.unwant(blob_id)

    def reference(self, version: Version) -> None:
        """A record refers to the blob's files."""
        self._references.append((version.blob_id, version.created_at_ms))

    def flush(self) -> None:
        """Write what was gathered."""
        self._archives.settle()
        self._flush_references()
        self._flush_bodies()
        for statement, values in ((_INSERT_LOG, self._log), (_INSERT_WRITE, self._writes)):
            if values:
                self._sql.executemany(statement, values)
                values.clear()

    def _flush_bodies(self) -> None:
        if self._bodies:
            self._sql.executemany(_INSERT_BODY, self._bodies)
            self._bodies.clear()

    def _flush_references(self) -> None:
        if self._references:
            self._sql.executemany(_REFERENCE, self._references)
            self._references.clear()

    # -- blobs

    def stage(self, blob_id: str, at_ms: int, *, revived: bool) -> None:
        """The blob's files are about to come into place, and nothing refers to them."""
        self._flush_references()
        self._sql.execute(_REVIVE if revived else _STAGE, (blob_id, at_ms))

    def abort(self, blob_id: str) -> None:
        """The blob was given up, unless something refers to it."""
        self.flush()
        if self._sql.execute(_ABORT, (blob_id,)).rowcount:
            self._archives.forget_waiting(blob_id)

    def archived(self, entry: Archived) -> None:
        """Where the archive has chunks of a blob."""
        self._flush_references()
        self._flush_bodies()
        self._archives.archived(entry)

    def evicted(self, entry: Evicted) -> None:
        """The bytes of a version are given up, if its archive rows cover it."""
        self._flush_bodies()
        self._archives.evicted(entry)

    def keep_body(self, entry: BodyKept) -> None:
        """A repair put an inline body back. It may come too late: the version may have expired meanwhile."""
        self.flush()
        if self._sql.execute(_KEEP_BODY, (entry.blob_id, entry.body)).rowcount:
            self._database.unmark_evicted(entry.blob_id)
        self._database.unwant(entry.blob_id)

    def insert(self, row: PathRow, version: Version, revision: int, *, here: bool = False) -> bool:
        """Put a chosen version in, unless it is there or has expired; whether it was put in.

        ``here`` spares the look whether its bytes are: if they are not, they are wanted.
        """
        if row.expired and row.is_expired(version):
            return False
        if not self._cursor.execute(INSERT_BLOB, blob_values(row.path, version, revision)).rowcount:
            return False
        row.delta += row_term(row.path, version)
        row.changed = True
        if self._database.tally.archive_staged:
            self._flush_references()
            if self._archives.row_came(row.path, version):
                return True
        if not here:
            self._want_unless_here(row.path, version)
        return True

    def _want_unless_here(self, path: str, version: Version) -> None:
        if version.size and not self._is_here(version):
            self._database.want(path, version, damaged=False)

    def _is_here(self, version: Version) -> bool:
        if version.inline:
            self._flush_bodies()
            query = "SELECT 1 FROM inline_bodies WHERE blob_id = ?"
        else:
            self._flush_references()
            # STAGED says that a folder is about to get its name: it may never have. Whoever looks what is wanted finds it.
            query = "SELECT 1 FROM intents WHERE blob_id = ? AND state = 'REFERENCED'"
        return self._sql.execute(query, (version.blob_id,)).fetchone() is not None

    def replace(self, row: PathRow, version: Version) -> tuple[bool, str | None]:
        """Put a version in the place of a row that failed its check, if that is not equal to it.

        Returns whether anything changed, and another path whose row had claimed the blob, if there was one.
        """
        if row.is_expired(version):
            return False, None
        where, query = (
            (row.path, version.version),
            f"SELECT {VERSION_COLUMNS} FROM blobs WHERE path = ? AND version = ?",
        )
        found = None
        try:
            found = self._sql.execute(query, where).fetchone()
            if found is not None and version_of(found) == version:
                return False, None
        except UNREADABLE:
            pass
        archives = self._archives
        archives.settle()
        if self._database.tally.archived_rows:
            # The row that archive rows refer to may be away for a moment.
            self._sql.execute("PRAGMA defer_foreign_keys = ON")
        # A blob belongs to one version: a row that has it under another name is a damaged one.
        rival = self._sql.execute(
            "SELECT path, version FROM blobs WHERE blob_id = ?1 AND NOT (path = ?2 AND version = ?3)",
            (version.blob_id, *where),
        ).fetchone()
        if rival is not None:
            self._sql.execute("DELETE FROM blobs WHERE path = ? AND version = ?", rival)
        self._sql.execute(REPLACE_BLOB, blob_values(row.path, version, 0))
        if found is not None and found[1] != version.blob_id:
            self._database.unwant(str(found[1]))
            archives.row_renamed(str(found[1]))
        if self._database.tally.archive_staged:
            archives.row_came(row.path, version)
        archives.row_changed(row.path, version)
        if not self._database.is_marked(version.blob_id):
            self._want_unless_here(row.path, version)
        row.remake = row.changed = True
        return True, rival[0] if rival is not None and rival[0] != row.path else None

    def has_rows(self, path: str) -> bool:
        """Whether any version of the path is there."""
        return self._sql.execute("SELECT 1 FROM blobs WHERE path = ? LIMIT 1", (path,)).fetchone() is not None

    def tombstones(self, path: str, record: Record) -> None:
        """Set them as the record says. It is the newest that is known to be chosen."""
        dead_at = iso_of(record.deleted_at_ms or record.changed_at_ms)
        below = 0
        for low, high in record.live:
            self._sql.execute(_BURY, (dead_at, record.revision, path, below, low))
            self._sql.execute(_LIFT, (record.revision, path, low, high))
            below = high
        # A version above version_max is no business of this record.
        self._sql.execute(_BURY, (dead_at, record.revision, path, below, record.version_max + 1))

    # -- what expired

    def expire(self, row: PathRow, record: Record) -> bool:
        """The versions that a chosen record calls expired go, and their blobs become garbage; whether any was there."""
        if not record.expired or record.expired == row.expired:
            return False
        known, row.expired = row.expired, merge_ranges((*row.expired, *record.expired))
        if row.expired == known:
            return False
        row.changed = True
        gone: list[str] = []
        for low, high in row.expired:
            query = f"SELECT {VERSION_COLUMNS} FROM blobs WHERE path = ? AND version BETWEEN ? AND ?"
            for found in self._sql.execute(query, (row.path, low, high)).fetchall():
                gone.append(str(found[1]))
                try:
                    row.delta -= row_term(row.path, version_of(found))
                except UNREADABLE:
                    row.remake = True
            self._archives.settle()
            if self._database.tally.archived_rows:
                for blob_id in gone:
                    self._archives.row_goes(blob_id)
            self._sql.execute("DELETE FROM blobs WHERE path = ? AND version BETWEEN ? AND ?", (row.path, low, high))
        for blob_id in gone:
            self.drop(row, blob_id, record.changed_at_ms)
        return bool(gone)

    def drop(self, row: PathRow, blob_id: str, at_ms: int) -> None:
        """A blob whose version has expired becomes garbage, unless a row or the path's record still refers to it."""
        record = row.register.record
        for version in (record.head, record.previous) if record is not None else ():
            if version is not None and version.blob_id == blob_id:
                return
        if self._sql.execute("SELECT 1 FROM blobs WHERE blob_id = ?", (blob_id,)).fetchone() is not None:
            return
        self.flush()
        for table in ("inline_bodies", "intents"):
            self._sql.execute(f"DELETE FROM {table} WHERE blob_id = ?", (blob_id,))
        self._archives.forget_waiting(blob_id)
        self._database.unmark_evicted(blob_id)
        self._database.unwant(blob_id)
        self._sql.execute("INSERT OR IGNORE INTO garbage(blob_id, at_ms) VALUES (?, ?)", (blob_id, at_ms))

    # -- digests

    def digest_after(self, row: PathRow) -> int:
        """The path's digest as it is at the end of the batch; changes its term."""
        before, after = row.found, row.register
        term = row.term
        if row.remake or before.record is not after.record or before.chosen != after.chosen:
            row.term = digestdb.register_term(row.path, after)
        if row.remake:
            return digestdb.path_digest(self._sql, row.path, after)
        return (row.digest + row.delta + row.term - term) % DIGEST_MODULUS
