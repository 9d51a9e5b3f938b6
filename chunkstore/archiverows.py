"""Rows of ``blob_chunk_archives`` and ``archive_staged`` to values and back, and what they cover. Belongs to the database thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from amberblob.archives import ArchivedChunk
from amberblob.ids import content_hash
from amberblob.limits import MANIFEST_INLINE_CHUNKS_MAX
from amberblob.manifest import ChunkRef, Version, decode_manifest
from chunkstore.archiverules import ids_of, is_sane
from chunkstore.files import MANIFEST_NAME
from chunkstore.rowcodec import UNREADABLE
from chunkstore.sqlite import iso_of, ms_of

ARCHIVES = "blob_chunk_archives"
STAGED = "archive_staged"

CHUNK_COLUMNS = "chunk_id, length, target_path, target_range_start, target_range_end, head, archived_at, state, etag"

_INSERT = {
    table: f"INSERT OR REPLACE INTO {table}(blob_id, {CHUNK_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    for table in (ARCHIVES, STAGED)
}
_SELECT_OF = {table: f"SELECT {CHUNK_COLUMNS} FROM {table} WHERE blob_id = ?" for table in (ARCHIVES, STAGED)}
_SELECT_ONE = {table: f"{query} AND chunk_id = ?" for table, query in _SELECT_OF.items()}


def chunk_of(row: tuple[object, ...]) -> ArchivedChunk | None:
    """What a row says, given its ``CHUNK_COLUMNS``; None when it rotted."""
    chunk_id, length, target_path, start, end, head, archived_at, state, etag = row
    numbers = (length, start, end, state)
    if not all(isinstance(number, int) for number in numbers) or not isinstance(target_path, str):
        return None
    try:
        chunk = ArchivedChunk(
            str(chunk_id), length, target_path, start, end, str(head), ms_of(str(archived_at)), state, str(etag)  # type: ignore[arg-type]
        )  # fmt: skip
    except UNREADABLE:
        return None
    return chunk if is_sane(chunk) else None


def put(sql: sqlite3.Connection, table: str, blob_id: str, chunks: Iterable[ArchivedChunk]) -> None:
    """Write rows; one that is there gives way, and gets a new number."""
    sql.executemany(
        _INSERT[table],
        [
            (
                blob_id, chunk.chunk_id, chunk.length, chunk.target_path, chunk.start, chunk.end, chunk.head,
                iso_of(chunk.archived_at_ms), chunk.state, chunk.etag,
            )
            for chunk in chunks
        ],
    )  # fmt: skip


def find(sql: sqlite3.Connection, table: str, blob_id: str, chunk_id: str) -> tuple[bool, ArchivedChunk | None]:
    """Whether there is a row of the chunk, and what it says, if that can be read."""
    row = sql.execute(_SELECT_ONE[table], (blob_id, chunk_id)).fetchone()
    return (False, None) if row is None else (True, chunk_of(row))


def rows_of(sql: sqlite3.Connection, table: str, blob_id: str) -> Iterator[ArchivedChunk]:
    """The blob's rows that can be read, in the order of their chunk ids."""
    for row in sql.execute(f"{_SELECT_OF[table]} ORDER BY chunk_id", (blob_id,)).fetchall():
        chunk = chunk_of(row)
        if chunk is not None:
            yield chunk


def uncovered(
    sql: sqlite3.Connection, blob_id: str, chunk_ids: Iterable[str], *, table: str = ARCHIVES
) -> set[str]:  # fmt: skip
    """Those of these chunks of which no verified row says where they are."""
    left = set(chunk_ids)
    for row in sql.execute(f"{_SELECT_OF[table]} AND state > 0", (blob_id,)):
        if row[0] in left and chunk_of(row) is not None:
            left.discard(row[0])
    return left


def covers(sql: sqlite3.Connection, blob_id: str, chunk_ids: Iterable[str], *, table: str = ARCHIVES) -> bool:
    """Whether verified rows say of every one of these chunks where it is."""
    return not uncovered(sql, blob_id, chunk_ids, table=table)


def manifest_in(blobs: Path, blob_id: str) -> tuple[str, tuple[ChunkRef, ...]] | None:
    """The id of the manifest that lies in a blob's folder, and what it lists; None: there is none that can be read."""
    try:
        data = (blobs / blob_id / MANIFEST_NAME).read_bytes()
        return content_hash(data), decode_manifest(data)
    except (OSError, ValueError):
        return None


def ids_here(blobs: Path, version: Version) -> tuple[str, ...] | None:
    """What has to have a row for a version to live by them; None when its manifest is not here. Reads that file."""
    if version.manifest_id is None:
        return ids_of(version, version.chunks)
    found = manifest_in(blobs, version.blob_id)
    if found is None or found[0] != version.manifest_id:
        return None
    return ids_of(version, found[1])


def waiting_suffice(sql: sqlite3.Connection, blobs: Path, blob_id: str) -> bool:
    """Whether the waiting rows of a blob that is to live by them are all that it needs, as far as can be told without its version.

    All verified; with the manifest of a long list here, all that it names. (A short list comes in one message.)
    """
    count, verified = sql.execute(
        f"SELECT count(*), coalesce(sum(state > 0), 0) FROM {STAGED} WHERE blob_id = ?", (blob_id,)
    ).fetchone()
    if not count or count != verified:
        return False
    found = manifest_in(blobs, blob_id)
    if found is None:
        return bool(count <= MANIFEST_INLINE_CHUNKS_MAX)
    return covers(sql, blob_id, (found[0], *(chunk.id for chunk in found[1])), table=STAGED)
