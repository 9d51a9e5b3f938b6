"""Rows of a slot's tables to values and back. Belongs to the database thread."""

from __future__ import annotations

import msgspec

from amberblob.ballot import EMPTY_REGISTER, Ballot, Register
from amberblob.manifest import ChunkRef, Ranges, Record, Version
from amberblob.wire import HistoryRow
from chunkstore.sqlite import iso_of, ms_of

_to_json = msgspec.json.encode
ballot_of = msgspec.json.Decoder(Ballot).decode
_record_of = msgspec.json.Decoder(Record).decode
_chunks_of = msgspec.json.Decoder(tuple[ChunkRef, ...]).decode
_meta_of = msgspec.json.Decoder(dict[str, str]).decode
_ranges_of = msgspec.json.Decoder(Ranges).decode

VERSION_COLUMNS = "version, blob_id, size, etag, created_at, content_type, meta, chunks, manifest_id, chunk_count, inline, tombstoned_at"

Columns = tuple[str | int | None, ...]

UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, UnicodeError)
"""What decoding a row raises when it rotted and SQLite did not notice."""


def json_text(value: object) -> str:
    """``value`` as JSON text, as the databases hold it."""
    return _to_json(value).decode()


def register_of(accepted: str | None, record: str | None, chosen: int) -> Register:
    """The register that a row of ``registers`` holds."""
    if accepted is None or record is None:
        return EMPTY_REGISTER
    return Register(ballot_of(accepted), _record_of(record), bool(chosen))


def ranges_of(text: str | None) -> Ranges:
    """The ranges of a column that is NULL when there are none."""
    return _ranges_of(text) if text else ()


def version_of(row: Columns) -> Version:
    """The version that a row of ``blobs`` holds, given its ``VERSION_COLUMNS`` (those after ``inline`` do not matter)."""
    version, blob_id, size, etag, created_at, content_type, meta, chunks, manifest_id, count, inline = row[:11]
    return Version(
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


def history_of(row: Columns) -> HistoryRow:
    """The row of ``blobs`` with its tombstone."""
    tombstoned_at = row[11]
    return HistoryRow(version_of(row), None if tombstoned_at is None else ms_of(str(tombstoned_at)))


INSERT_BLOB = (
    "INSERT OR IGNORE INTO blobs(path, version, blob_id, size, chunks, created_at, etag, content_type, "
    "meta, manifest_id, chunk_count, inline, revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
"""Takes :func:`blob_values`."""

REPLACE_BLOB = INSERT_BLOB.replace("OR IGNORE ", "") + (
    " ON CONFLICT(path, version) DO UPDATE SET blob_id = excluded.blob_id, size = excluded.size, chunks = excluded.chunks, "
    "created_at = excluded.created_at, etag = excluded.etag, content_type = excluded.content_type, meta = excluded.meta, "
    "manifest_id = excluded.manifest_id, chunk_count = excluded.chunk_count, inline = excluded.inline"
)
"""The same, in the place of a row of that version that is damaged."""


def blob_values(path: str, version: Version, revision: int) -> tuple[object, ...]:
    """What :data:`INSERT_BLOB` takes. ``revision``: of the record that added it; 0: not known."""
    return (
        path, version.version, version.blob_id, version.size, json_text(version.chunks), iso_of(version.created_at_ms),
        version.etag, version.content_type, json_text(version.meta), version.manifest_id, version.chunk_count,
        int(version.inline), revision,
    )  # fmt: skip
