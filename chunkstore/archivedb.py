"""Questions about a slot's archive rows. Belongs to the database thread.

Every question is answered in bounded pieces of a few milliseconds: whoever asks comes again, and others get their turn in between.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from amberblob.archives import ArchivedBlob, ArchiveLine
from amberblob.manifest import Version
from amberblob.prefixes import after_prefix
from chunkstore import archiverows
from chunkstore.archiverows import ARCHIVES, CHUNK_COLUMNS, STAGED, chunk_of, covers
from chunkstore.archiverules import ids_of
from chunkstore.interface import ArchiveView, ObjectUse
from chunkstore.rowcodec import UNREADABLE, VERSION_COLUMNS, version_of
from chunkstore.slotdb import SlotDatabase
from chunkstore.sqlite import ms_of

LINES_PER_PIECE = 500
VIEWS_PER_PIECE = 150
_OBJECT_ROWS_PER_PIECE = 5000

_LINES = (
    f"SELECT pk, blob_id, EXISTS (SELECT 1 FROM evicted WHERE evicted.blob_id = {ARCHIVES}.blob_id), {CHUNK_COLUMNS} "
    f"FROM {ARCHIVES} WHERE"
)


def archived(database: SlotDatabase, blob_id: str) -> ArchivedBlob | None:
    """See :meth:`chunkstore.interface.ReplicaStore.archived`."""
    sql = database.connection
    staged = list(archiverows.rows_of(sql, STAGED, blob_id)) if database.tally.archive_staged else []
    chunks = staged or list(archiverows.rows_of(sql, ARCHIVES, blob_id))
    if not chunks:
        return None
    return ArchivedBlob(tuple(chunks), evicted=database.is_marked(blob_id), staged=bool(staged))


def lines_after(database: SlotDatabase, after: int, limit: int) -> tuple[list[ArchiveLine], int, bool]:
    """Rows above ``after``, the last number that was looked at, and whether there may be more."""
    rows = database.connection.execute(f"{_LINES} pk > ? ORDER BY pk LIMIT ?", (after, limit)).fetchall()
    return _lines_of(rows), rows[-1][0] if rows else after, len(rows) == limit


def lines_of_object(
    database: SlotDatabase, target_path: str, after: int, limit: int
) -> tuple[list[ArchiveLine], int, bool]:
    """The same of the rows that name an object."""
    query = f"{_LINES} target_path = ? AND pk > ? ORDER BY pk LIMIT ?"
    rows = database.connection.execute(query, (target_path, after, limit)).fetchall()
    return _lines_of(rows), rows[-1][0] if rows else after, len(rows) == limit


def _lines_of(rows: Sequence[tuple[Any, ...]]) -> list[ArchiveLine]:
    lines = []
    for pk, blob_id, evicted, *columns in rows:
        chunk = chunk_of(tuple(columns))
        if chunk is not None:
            lines.append(ArchiveLine(pk, blob_id, chunk, bool(evicted)))
    return lines


# ---- versions


def views_after(
    database: SlotDatabase, after: tuple[str, int], limit: int, prefix: str
) -> tuple[list[ArchiveView], tuple[str, int] | None]:
    """Some chosen versions, and where to go on; None: that were all."""
    bound, values = "", [*after, prefix]
    high = after_prefix(prefix)
    if high is not None:
        bound = "AND path < ?"
        values.append(high)
    query = (
        f"SELECT path, {VERSION_COLUMNS}, "
        "tombstoned_at IS NULL AND NOT EXISTS (SELECT 1 FROM blobs AS newer WHERE newer.path = blobs.path "
        "AND newer.version > blobs.version AND newer.tombstoned_at IS NULL) "
        f"FROM blobs WHERE (path, version) > (?, ?) AND path >= ? {bound} ORDER BY path, version LIMIT ?"
    )
    limit = min(limit, VIEWS_PER_PIECE)
    rows = database.connection.execute(query, (*values, limit)).fetchall()
    views = []
    for path, *columns, is_head in rows:
        try:
            version = version_of(tuple(columns))
            dead_at_ms = None if columns[11] is None else ms_of(columns[11])
        except UNREADABLE:
            continue
        if version.size:
            views.append(_view(database, path, version, bool(is_head), dead_at_ms))
    return views, (rows[-1][0], rows[-1][1]) if len(rows) == limit else None


def _view(database: SlotDatabase, path: str, version: Version, is_head: bool, dead_at_ms: int | None) -> ArchiveView:
    uploaded = verified = 0
    sql, ids = database.connection, ids_of(version, version.chunks)
    count = len(ids)
    if version.manifest_id is not None:
        count = version.chunk_count + 1
    if database.tally.archived_rows and version.manifest_id is not None:
        query = f"SELECT coalesce(sum(state >= 0), 0), coalesce(sum(state > 0), 0) FROM {ARCHIVES} WHERE blob_id = ?"
        uploaded, verified = sql.execute(query, (version.blob_id,)).fetchone()
    elif database.tally.archived_rows:
        query = f"SELECT state FROM {ARCHIVES} WHERE blob_id = ? AND chunk_id = ? AND typeof(state) = 'integer'"
        for one in ids:
            for (state,) in sql.execute(query, (version.blob_id, one)):
                uploaded += state >= 0
                verified += state > 0
    return ArchiveView(
        path=path, version=version, is_head=is_head, tombstoned_at_ms=dead_at_ms, uploaded=uploaded, verified=verified,
        chunk_count=count, evicted=database.is_marked(version.blob_id), wanted=database.is_wanted(version.blob_id),
    )  # fmt: skip


# ---- objects


@dataclass(slots=True)
class ObjectSum:
    """What was counted of one object so far."""

    rows: int = 0
    size_bytes: int = 0

    def use(self) -> ObjectUse:
        """As others are told."""
        return ObjectUse(rows=self.rows, size_bytes=self.size_bytes)


def count_staged(database: SlotDatabase, found: dict[str, ObjectSum], after: tuple[str, str]) -> tuple[str, str] | None:
    """Count objects that waiting rows above ``after`` name; where to go on (None: that were all)."""
    query = (
        f"SELECT blob_id, chunk_id, target_path, target_range_end - target_range_start, state FROM {STAGED} "
        "WHERE (blob_id, chunk_id) > (?, ?) ORDER BY blob_id, chunk_id LIMIT ?"
    )
    rows = database.connection.execute(query, (*after, _OBJECT_ROWS_PER_PIECE)).fetchall()
    for blob_id, chunk_id, target_path, size, state in rows:
        after = (blob_id, chunk_id)
        if state >= 0:
            _add(found, target_path, 1, size)
    return after if len(rows) == _OBJECT_ROWS_PER_PIECE else None


def count_objects(database: SlotDatabase, found: dict[str, ObjectSum], after: int) -> int | None:
    """Count objects that rows above ``after`` name. A row that changes meanwhile moves to the end: none is missed."""
    sql = database.connection
    last = sql.execute(
        f"SELECT max(pk), count(*) FROM (SELECT pk FROM {ARCHIVES} WHERE pk > ? ORDER BY pk LIMIT ?)",
        (after, _OBJECT_ROWS_PER_PIECE),
    ).fetchone()
    if not last[1]:
        return None
    query = (
        f"SELECT target_path, count(*), sum(target_range_end - target_range_start) FROM {ARCHIVES} "
        "WHERE pk > ? AND pk <= ? AND state >= 0 GROUP BY target_path"
    )
    for target_path, count, size in sql.execute(query, (after, last[0])):
        _add(found, target_path, count, size)
    return int(last[0])


def _add(found: dict[str, ObjectSum], target_path: object, count: int, size: int | None) -> None:
    known = found.setdefault(str(target_path), ObjectSum())
    known.rows += count
    known.size_bytes += size or 0


def named(database: SlotDatabase, target_paths: Collection[str]) -> set[str]:
    """Those of these objects that any row names, waiting and damaged ones too."""
    query = (
        f"SELECT EXISTS (SELECT 1 FROM {ARCHIVES} WHERE target_path = ?1) "
        f"OR EXISTS (SELECT 1 FROM {STAGED} WHERE target_path = ?1)"
    )
    sql = database.connection
    return {name for name in target_paths if sql.execute(query, (name,)).fetchone()[0]}


# ---- evicting


def evictable_bytes(database: SlotDatabase, path: str, version: Version, chunk_ids: Collection[str]) -> int | None:
    """The length of the inline body (0: there is none), if the version is here, by its row, and verified rows cover it; None: they do not."""
    row = database.connection.execute(
        "SELECT path, version FROM blobs WHERE blob_id = ?", (version.blob_id,)
    ).fetchone()
    if row != (path, version.version) or not covers(database.connection, version.blob_id, chunk_ids):
        return None
    return _body_bytes(database, version.blob_id) if version.inline else 0


def is_held(database: SlotDatabase, blob_id: str, chunk_ids: Collection[str]) -> bool:
    """Whether the blob lives by its archive rows, and they cover it."""
    if not database.is_marked(blob_id):
        return False
    return any(covers(database.connection, blob_id, chunk_ids, table=table) for table in (ARCHIVES, STAGED))


def _body_bytes(database: SlotDatabase, blob_id: str) -> int:
    """The length of an inline body; 0: there is none."""
    query = "SELECT length(body) FROM inline_bodies WHERE blob_id = ?"
    row = database.connection.execute(query, (blob_id,)).fetchone()
    return 0 if row is None else int(row[0])


def may_have_files(database: SlotDatabase, blob_id: str) -> bool:
    """Whether the blob lives by its rows and files of it are to be removed."""
    query = "SELECT 1 FROM evicted WHERE blob_id = ? AND files = 1"
    return database.connection.execute(query, (blob_id,)).fetchone() is not None


def leftovers(database: SlotDatabase, limit: int) -> list[str]:
    """Evicted blobs of which files may be left."""
    query = "SELECT blob_id FROM evicted INDEXED BY idx_evicted_files WHERE files = 1 LIMIT ?"
    return [blob_id for (blob_id,) in database.connection.execute(query, (limit,))]


def settle_files(database: SlotDatabase, blob_id: str) -> None:
    """The files of an evicted blob are gone, or somebody puts them back: they are not to be removed."""
    with database.transaction():
        database.connection.execute("UPDATE evicted SET files = 0 WHERE blob_id = ? AND files = 1", (blob_id,))


# ---- what waits


def waiting_blobs(database: SlotDatabase) -> list[str]:
    """Blobs with waiting rows of which nothing says any more that they are on their way."""
    query = (
        f"SELECT DISTINCT blob_id FROM {STAGED} AS s WHERE NOT EXISTS "
        "(SELECT 1 FROM intents WHERE blob_id = s.blob_id AND state IN ('ARCHIVED', 'STAGED'))"
    )
    return [blob_id for (blob_id,) in database.connection.execute(query)]


def waiting_before(database: SlotDatabase, older_than_ms: int, limit: int) -> list[str]:
    """Blobs whose rows wait for them since before that."""
    query = (
        "SELECT blob_id FROM intents INDEXED BY idx_intents_archived WHERE state = 'ARCHIVED' AND at_ms < ? "
        "ORDER BY at_ms LIMIT ?"
    )
    return [blob_id for (blob_id,) in database.connection.execute(query, (older_than_ms, limit))]


def forget(database: SlotDatabase, blob_id: str) -> None:
    """Rows of a blob that nothing refers to go, inside the caller's transaction."""
    if database.tally.archive_staged:
        database.unmark_evicted(blob_id)
        count = database.connection.execute(f"DELETE FROM {STAGED} WHERE blob_id = ?", (blob_id,)).rowcount
        database.tally = replace(database.tally, archive_staged=database.tally.archive_staged - count)
