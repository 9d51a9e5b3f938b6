"""One slot's database: apply durable entries to it, and answer from it. Belongs to the database thread."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from amberblob.ballot import BALLOT_ZERO, EMPTY_REGISTER, Register, SlotState
from amberblob.digests import DIGEST_BYTES
from amberblob.manifest import Version, WriteMark
from amberblob.wire import HistoryRow
from chunkstore import digestdb
from chunkstore.interface import SlotTally
from chunkstore.rowcodec import VERSION_COLUMNS, ballot_of, history_of, json_text, register_of, version_of
from chunkstore.schema import SLOT_MIGRATIONS
from chunkstore.sqlite import checkpoint, connect, migrate

NO_TALLY = SlotTally(root=bytes(DIGEST_BYTES))
"""Of a slot without a database."""

_COUNTS = """
SELECT wanted.*, staged.*, evicted.*,
  coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'commit_log'), 0),
  coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'blob_chunk_archives'), 0)
FROM (SELECT count(*), coalesce(sum(bytes), 0), coalesce(sum(damaged), 0) FROM wanted) AS wanted,
  (SELECT count(*) FROM archive_staged) AS staged,
  (SELECT count(*), coalesce(sum(bytes), 0) FROM evicted WHERE waiting = 0) AS evicted
"""
"""One statement for all: a database is opened again and again. Unlike max(seq) the heads do not go back when all lines are cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobFacts:
    """What a slot's tables say of a blob: the row of ``intents``, if any, and where else it occurs."""

    intent: str | None
    has_body: bool
    has_row: bool
    evicted: bool = False
    """It lives by its archive rows."""
    waits: bool = False
    """It is to live by archive rows that wait; whether those are all that it needs, nobody has looked."""


class SlotDatabase:
    """An open ``meta.sqlite3``. Every method may raise ``sqlite3.Error``; the pool knows what to do then.

    Attributes:
        slot: its number.
        state: the row of ``slot_meta``.
        applied: journal position of the last entry in it.
        sums: the 256 bucket sums.
        tally: what others are told of it.
    """

    def __init__(
        self, slot: int, path: Path, incarnation: str | None, *, create: bool, cache_kib: int = 256,
        tallies: dict[int, SlotTally] | None = None,
    ) -> None:  # fmt: skip
        """Open, migrate, and create if allowed.

        Args:
            incarnation: of a file that has none yet; None: then it is damaged, because it must have one.
            tallies: where the slot's tally is to stand, from now on and after every transaction that changes it.
        """
        self.slot = slot
        self.path = path
        self.connection = connect(path, cache_kib=cache_kib, create=create)
        try:
            migrate(self.connection, SLOT_MIGRATIONS)
            if incarnation is not None:
                self.connection.execute(
                    "INSERT OR IGNORE INTO slot_meta(id, incarnation) VALUES (1, ?)", (incarnation,)
                )
            self.dirty = False
            """Whether something was written since the last checkpoint by this connection."""
            self.sums, self.tally = digestdb.NO_SUMS, NO_TALLY
            self._tallies: dict[int, SlotTally] = {} if tallies is None else tallies
            self.state, self.applied = self._read_meta()
            self._read_digests()
        except BaseException:
            self.connection.close()
            raise
        self._tell()

    def _read_meta(self) -> tuple[SlotState, int]:
        row = self.connection.execute(
            "SELECT incarnation, epoch, ballot_floor, version_floor, promise_ceiling, applied_position, synced_epoch, objects, "
            "archived_rows FROM slot_meta"
        ).fetchone()
        if row is None or not isinstance(row[0], str) or not all(isinstance(row[at], int) for at in (1, *range(3, 9))):
            raise msgspec.ValidationError(f"slot_meta holds {row!r}")
        incarnation, epoch, ballot_floor, version_floor, ceiling, applied, synced_epoch, objects, archived_rows = row
        state = SlotState(
            slot=self.slot,
            incarnation=incarnation,
            epoch=epoch,
            ballot_floor=ballot_of(ballot_floor) if ballot_floor else BALLOT_ZERO,
            version_floor=version_floor,
            promise_ceiling=ceiling,
            synced_epoch=synced_epoch,
        )
        self.tally = replace(self.tally, objects=objects, archived_rows=archived_rows)
        return state, applied

    def _read_digests(self) -> None:
        """The bucket sums and what else :attr:`tally` tells. A file of an older version gets its digests now."""
        found = self.connection.execute("SELECT sums FROM bucket_sums").fetchone()
        if found is None or not isinstance(found[0], bytes) or len(found[0]) != digestdb.SUMS_BYTES:
            with self.transaction():
                sums, objects = digestdb.rebuild(self.connection)
                self.write_sums(sums)
                self._want_absent_files()
                self.tally = replace(self.tally, objects=objects)
                self.write_meta(self.state, self.applied)
            if objects:
                # Every page of the registers was written: not worth keeping twice until somebody closes this.
                self.checkpoint()
        else:
            self.sums = found[0]
        self._recount()

    def _want_absent_files(self) -> None:
        """Older software noted a record that it heard of without its bytes as one that has them: a look at the names tells.

        (A folder that is there and lacks a chunk is found by scrub.)
        """
        try:
            here = set(os.listdir(self.path.parent / "blobs"))
        except FileNotFoundError:
            here = set()
        query = "SELECT blob_id, path, version, size FROM blobs WHERE inline = 0 AND size > 0"
        absent = [row for row in self.connection.execute(query) if row[0] not in here]
        self.connection.executemany("INSERT OR IGNORE INTO wanted VALUES (?, ?, ?, ?, 0)", absent)

    def _recount(self) -> None:
        (
            count, size_bytes, damaged, staged, evicted, evicted_bytes, log_head, archive_head
        ) = self.connection.execute(_COUNTS).fetchone()  # fmt: skip
        self.tally = replace(
            self.tally, root=digestdb.root_of(self.sums), wanted=count, wanted_bytes=size_bytes, damaged=damaged,
            log_head=log_head, archive_head=archive_head,
            archive_staged=staged, evicted=evicted, evicted_bytes=evicted_bytes,
        )  # fmt: skip

    def write_sums(self, sums: bytes) -> None:
        """Replace the bucket sums, inside the caller's transaction. (The root in :attr:`tally` is the caller's business.)"""
        self.connection.execute("INSERT OR REPLACE INTO bucket_sums(id, sums) VALUES (1, ?)", (sums,))
        self.sums = sums

    def write_meta(self, state: SlotState, applied: int) -> None:
        """Replace the row of ``slot_meta`` (inside the caller's transaction, if there is one)."""
        self.connection.execute(
            "UPDATE slot_meta SET incarnation = ?, epoch = ?, ballot_floor = ?, version_floor = ?, "
            "promise_ceiling = ?, applied_position = ?, synced_epoch = ?, objects = ?, archived_rows = ?",
            (
                state.incarnation, state.epoch, json_text(state.ballot_floor), state.version_floor,
                state.promise_ceiling, applied, state.synced_epoch, self.tally.objects,
                self.tally.archived_rows,
            ),
        )  # fmt: skip
        self.state, self.applied = state, applied

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN IMMEDIATE … COMMIT; rolls back on any error, and forgets what it set in memory."""
        state, applied, sums, tally = self.state, self.applied, self.sums, self.tally
        self.connection.execute("BEGIN IMMEDIATE")
        self.dirty = True
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            self.state, self.applied, self.sums, self.tally = state, applied, sums, tally
            with contextlib.suppress(sqlite3.Error):
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
            raise
        if self.tally is not tally:
            self._tell()

    def _tell(self) -> None:
        """Let the loop read the new tally: a whole value takes the place of another, so that no lock is needed."""
        self._tallies[self.slot] = self.tally

    # -- questions

    def register(self, path: str) -> Register:
        """The register of ``path``; the empty one when there is none."""
        row = self.connection.execute(
            "SELECT accepted_ballot, record, chosen FROM registers WHERE path = ?", (path,)
        ).fetchone()
        return EMPTY_REGISTER if row is None else register_of(*row)

    def registers(self) -> Iterator[tuple[str, Register]]:
        """Every register that holds a record, for a rebuild of the index."""
        query = "SELECT path, accepted_ballot, record, chosen FROM registers WHERE record IS NOT NULL"
        for path, accepted, record, chosen in self.connection.execute(query):
            yield path, register_of(accepted, record, chosen)

    def paths_after(self, path: str, limit: int) -> list[str]:
        """Paths of registers above ``path``, ascending, for the path filter."""
        query = "SELECT path FROM registers WHERE path > ? ORDER BY path LIMIT ?"
        return [found for (found,) in self.connection.execute(query, (path, limit))]

    def rows(self, path: str, version: int | None, below: int | None, limit: int) -> list[HistoryRow]:
        """Chosen versions of ``path``, newest first."""
        query, values = f"SELECT {VERSION_COLUMNS} FROM blobs WHERE path = ?", [path]
        bounds: list[int] = []
        if version is not None:
            query += " AND version = ?"
            bounds.append(version)
        if below is not None:
            query += " AND version < ?"
            bounds.append(below)
        query += " ORDER BY version DESC LIMIT ?"
        return [history_of(row) for row in self.connection.execute(query, (*values, *bounds, limit))]

    def versions(self, path: str, below: int | None = None) -> Iterator[Version]:
        """Chosen versions of ``path``, newest first, as they are asked for: nothing is to be written meanwhile."""
        bound = "" if below is None else " AND version < ?"
        query = f"SELECT {VERSION_COLUMNS} FROM blobs WHERE path = ?{bound} ORDER BY version DESC"
        for row in self.connection.execute(query, (path,) if below is None else (path, below)):
            yield version_of(row)

    def find_write(self, path: str, write_id: str) -> WriteMark | None:
        """What a write id did: by the table, or by the record that is chosen, whose last one is not in it yet."""
        known = self.register(path)
        if known.chosen and known.record is not None and (mark := known.record.write(write_id)) is not None:
            return mark
        row = self.connection.execute(
            "SELECT op, version, at_ms FROM write_ids WHERE path = ? AND write_id = ?", (path, write_id)
        ).fetchone()
        return None if row is None else WriteMark(write_id, row[0], row[1], row[2])

    def is_blank(self) -> bool:
        """Whether it says nothing of any path, and never was synced, so that it can have told nobody anything."""
        (something,) = self.connection.execute(
            "SELECT EXISTS (SELECT 1 FROM registers) OR EXISTS (SELECT 1 FROM blobs) OR EXISTS (SELECT 1 FROM write_ids)"
        ).fetchone()
        return not something and not self.state.synced_epoch

    def undecided(self) -> list[str]:
        """Paths whose register is not known to be chosen."""
        query = (
            "SELECT path FROM registers INDEXED BY idx_registers_undecided "
            "WHERE chosen = 0 AND record IS NOT NULL ORDER BY path"
        )
        return [path for (path,) in self.connection.execute(query)]

    def blob_facts(self, blob_id: str) -> BlobFacts:
        """What is known of a blob."""
        intent, has_body, has_row, waiting = self.connection.execute(
            "SELECT (SELECT state FROM intents WHERE blob_id = ?1), "
            "EXISTS (SELECT 1 FROM inline_bodies WHERE blob_id = ?1), EXISTS (SELECT 1 FROM blobs WHERE blob_id = ?1), "
            "(SELECT waiting FROM evicted WHERE blob_id = ?1)",
            (blob_id,),
        ).fetchone()
        return BlobFacts(
            intent=intent, has_body=bool(has_body), has_row=bool(has_row), evicted=waiting == 0, waits=waiting == 1
        )  # fmt: skip

    def body(self, blob_id: str) -> bytes | None:
        """An inline body."""
        row = self.connection.execute("SELECT body FROM inline_bodies WHERE blob_id = ?", (blob_id,)).fetchone()
        return None if row is None else bytes(row[0])

    def staged(self) -> dict[str, int]:
        """Blobs that nothing refers to yet: blob id to the time (epoch ms) of their staging."""
        return dict(self._pairs("SELECT blob_id, at_ms FROM intents WHERE state = 'STAGED'"))

    def _pairs(self, query: str) -> Iterable[tuple[str, int]]:
        return ((str(first), int(second)) for first, second in self.connection.execute(query))

    def newest_blob_id(self) -> str:
        """The greatest blob id that occurs anywhere in the tables; empty when there is none."""
        (newest,) = self.connection.execute(
            "SELECT max(coalesce((SELECT max(blob_id) FROM intents), ''), "
            "coalesce((SELECT max(blob_id) FROM inline_bodies), ''), coalesce((SELECT max(blob_id) FROM blobs), ''))"
        ).fetchone()
        return str(newest)

    # -- bytes that are not here

    def want(self, path: str, version: Version, *, damaged: bool) -> None:
        """Put a version on the list, inside the caller's transaction; that it was damaged is not forgotten.

        It lives by its archive rows no more, if it did.
        """
        self.unmark_evicted(version.blob_id)
        values = (version.blob_id, path, version.version, version.size, int(damaged))
        tally = self.tally
        if self.connection.execute("INSERT OR IGNORE INTO wanted VALUES (?, ?, ?, ?, ?)", values).rowcount:
            self.tally = replace(
                tally, wanted=tally.wanted + 1, wanted_bytes=tally.wanted_bytes + version.size,
                damaged=tally.damaged + damaged,
            )  # fmt: skip
        elif damaged:
            mark = "UPDATE wanted SET damaged = 1 WHERE blob_id = ? AND damaged = 0"
            if self.connection.execute(mark, (version.blob_id,)).rowcount:
                self.tally = replace(tally, damaged=tally.damaged + 1)

    def unwant(self, blob_id: str) -> None:
        """Take a blob from the list, inside the caller's transaction: it is whole, or nobody needs it any more."""
        tally = self.tally
        if not tally.wanted:
            return
        gone = self.connection.execute(
            "DELETE FROM wanted WHERE blob_id = ? RETURNING bytes, damaged", (blob_id,)
        ).fetchone()
        if gone is not None:
            self.tally = replace(
                tally, wanted=tally.wanted - 1, wanted_bytes=tally.wanted_bytes - gone[0],
                damaged=tally.damaged - gone[1],
            )  # fmt: skip

    def is_wanted(self, blob_id: str) -> bool:
        """Whether the blob is on the list."""
        query = "SELECT 1 FROM wanted WHERE blob_id = ?"
        return bool(self.tally.wanted) and self.connection.execute(query, (blob_id,)).fetchone() is not None

    # -- bytes that were given up

    def mark_evicted(self, version: Version) -> None:
        """A version lives by its archive rows from now on, inside the caller's transaction; it is wanted no more."""
        blob_id, size = version.blob_id, version.size
        self.unmark_evicted(blob_id)
        self.connection.execute("INSERT INTO evicted VALUES (?, ?, 0, ?)", (blob_id, size, int(not version.inline)))
        tally = self.tally
        self.tally = replace(tally, evicted=tally.evicted + 1, evicted_bytes=tally.evicted_bytes + size)
        self.unwant(blob_id)

    def mark_waiting(self, blob_id: str) -> None:
        """A blob that no row of ``blobs`` has yet is to live by its archive rows; it does not count as a version."""
        self.connection.execute("INSERT OR IGNORE INTO evicted VALUES (?, 0, 1, 0)", (blob_id,))

    def unmark_evicted(self, blob_id: str) -> bool:
        """Take the mark away, inside the caller's transaction; whether there was one."""
        tally = self.tally
        if not (tally.evicted or tally.archive_staged):
            return False
        gone = self.connection.execute(
            "DELETE FROM evicted WHERE blob_id = ? RETURNING bytes, waiting", (blob_id,)
        ).fetchone()
        if gone is None:
            return False
        if not gone[1]:
            self.tally = replace(tally, evicted=tally.evicted - 1, evicted_bytes=tally.evicted_bytes - gone[0])
        return True

    def is_marked(self, blob_id: str) -> bool:
        """Whether the blob bears the mark that it lives by its archive rows."""
        if not (self.tally.evicted or self.tally.archive_staged):
            return False
        return self.connection.execute("SELECT 1 FROM evicted WHERE blob_id = ?", (blob_id,)).fetchone() is not None

    # -- upkeep

    def checkpoint(self) -> bool:
        """Make everything in it durable; False when a reader was in the way."""
        done = checkpoint(self.connection)
        self.dirty = self.dirty and not done
        return done

    def close(self) -> None:
        """Close; SQLite checkpoints and removes the write-ahead log when nobody else reads."""
        self.connection.close()
