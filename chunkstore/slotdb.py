"""One slot's database: apply durable entries to it, and answer from it. Belongs to the database thread."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from amberblob.ballot import BALLOT_ZERO, EMPTY_REGISTER, Ballot, Register, SlotState
from amberblob.manifest import ChunkRef, Record, Version, WriteMark
from amberblob.wire import HistoryRow
from chunkstore.schema import SLOT_MIGRATIONS
from chunkstore.sqlite import checkpoint, connect, migrate, ms_of

_to_json = msgspec.json.encode
_ballot_of = msgspec.json.Decoder(Ballot).decode
_record_of = msgspec.json.Decoder(Record).decode
_chunks_of = msgspec.json.Decoder(tuple[ChunkRef, ...]).decode
_meta_of = msgspec.json.Decoder(dict[str, str]).decode

_VERSION_COLUMNS = "version, blob_id, size, etag, created_at, content_type, meta, chunks, manifest_id, chunk_count, inline, tombstoned_at"


def json_text(value: object) -> str:
    """``value`` as JSON text, as the databases hold it."""
    return _to_json(value).decode()


def register_of(accepted: str | None, record: str | None, chosen: int) -> Register:
    """The register that a row of ``registers`` holds."""
    if accepted is None or record is None:
        return EMPTY_REGISTER
    return Register(_ballot_of(accepted), _record_of(record), bool(chosen))


def _row_of(row: tuple[str | int | None, ...]) -> HistoryRow:
    version, blob_id, size, etag, created_at, content_type, meta, chunks, manifest_id, count, inline, tombstoned_at = (
        row
    )
    known = Version(
        version=int(version or 0),
        blob_id=str(blob_id),
        size=int(size or 0),
        etag=str(etag),
        created_at_ms=ms_of(str(created_at)),
        content_type=str(content_type),
        meta=_meta_of(str(meta)),
        chunks=_chunks_of(str(chunks)),
        manifest_id=None if manifest_id is None else str(manifest_id),
        chunk_count=int(count or 0),
        inline=bool(inline),
    )
    return HistoryRow(known, None if tombstoned_at is None else ms_of(str(tombstoned_at)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobFacts:
    """What a slot's tables say of a blob: the row of ``intents``, if any, and where else it occurs."""

    intent: str | None
    has_body: bool
    has_row: bool


class SlotDatabase:
    """An open ``meta.sqlite3``. Every method may raise ``sqlite3.Error``; the pool knows what to do then.

    Attributes:
        slot: its number.
        state: the row of ``slot_meta``.
        applied: journal position of the last entry in it.
    """

    def __init__(self, slot: int, path: Path, incarnation: str | None, *, create: bool, cache_kib: int = 256) -> None:
        """Open, migrate, and create if allowed.

        Args:
            incarnation: of a file that has none yet; None: then it is damaged, because it must have one.
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
            self.state, self.applied = self._read_meta()
        except BaseException:
            self.connection.close()
            raise
        self.dirty = False
        """Whether something was written since the last checkpoint by this connection."""

    def _read_meta(self) -> tuple[SlotState, int]:
        row = self.connection.execute(
            "SELECT incarnation, epoch, ballot_floor, version_floor, promise_ceiling, applied_position FROM slot_meta"
        ).fetchone()
        if row is None or not isinstance(row[0], str) or not all(isinstance(row[at], int) for at in (1, 3, 4, 5)):
            raise msgspec.ValidationError(f"slot_meta holds {row!r}")
        incarnation, epoch, ballot_floor, version_floor, ceiling, applied = row
        state = SlotState(
            slot=self.slot,
            incarnation=incarnation,
            epoch=epoch,
            ballot_floor=_ballot_of(ballot_floor) if ballot_floor else BALLOT_ZERO,
            version_floor=version_floor,
            promise_ceiling=ceiling,
        )
        return state, applied

    def write_meta(self, state: SlotState, applied: int) -> None:
        """Replace the row of ``slot_meta`` (inside the caller's transaction, if there is one)."""
        self.connection.execute(
            "UPDATE slot_meta SET incarnation = ?, epoch = ?, ballot_floor = ?, version_floor = ?, "
            "promise_ceiling = ?, applied_position = ?",
            (
                state.incarnation, state.epoch, json_text(state.ballot_floor), state.version_floor,
                state.promise_ceiling, applied,
            ),
        )  # fmt: skip
        self.state, self.applied = state, applied

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN IMMEDIATE … COMMIT; rolls back on any error, and forgets what it set in memory."""
        state, applied = self.state, self.applied
        self.connection.execute("BEGIN IMMEDIATE")
        self.dirty = True
        try:
            yield
            self.connection.execute("COMMIT")
        except BaseException:
            self.state, self.applied = state, applied
            with contextlib.suppress(sqlite3.Error):
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
            raise

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
        query, values = f"SELECT {_VERSION_COLUMNS} FROM blobs WHERE path = ?", [path]
        bounds: list[int] = []
        if version is not None:
            query += " AND version = ?"
            bounds.append(version)
        if below is not None:
            query += " AND version < ?"
            bounds.append(below)
        query += " ORDER BY version DESC LIMIT ?"
        return [_row_of(row) for row in self.connection.execute(query, (*values, *bounds, limit))]

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
        query = "SELECT path FROM registers INDEXED BY idx_registers_undecided WHERE chosen = 0 ORDER BY path"
        return [path for (path,) in self.connection.execute(query)]

    def blob_facts(self, blob_id: str) -> BlobFacts:
        """What is known of a blob."""
        intent, has_body, has_row = self.connection.execute(
            "SELECT (SELECT state FROM intents WHERE blob_id = ?1), "
            "EXISTS (SELECT 1 FROM inline_bodies WHERE blob_id = ?1), EXISTS (SELECT 1 FROM blobs WHERE blob_id = ?1)",
            (blob_id,),
        ).fetchone()
        return BlobFacts(intent=intent, has_body=bool(has_body), has_row=bool(has_row))

    def body(self, blob_id: str) -> bytes | None:
        """An inline body."""
        row = self.connection.execute("SELECT body FROM inline_bodies WHERE blob_id = ?", (blob_id,)).fetchone()
        return None if row is None else bytes(row[0])

    def remove_body(self, blob_id: str) -> None:
        """Take a corrupt inline body away (it was copied to quarantine)."""
        with self.transaction():
            self.connection.execute("DELETE FROM inline_bodies WHERE blob_id = ?", (blob_id,))

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

    # -- upkeep

    def checkpoint(self) -> bool:
        """Make everything in it durable; False when a reader was in the way."""
        done = checkpoint(self.connection)
        self.dirty = self.dirty and not done
        return done

    def close(self) -> None:
        """Close; SQLite checkpoints and removes the write-ahead log when nobody else reads."""
        self.connection.close()
