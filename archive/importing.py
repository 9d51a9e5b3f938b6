"""What an object of somebody else's bucket becomes as a version here, without its content being read (rfc/0016). Pure.

Its content hash is not known, so chunks and content are named after the source: url, ETag and byte range. Whoever reads asks for that ETag, and
cannot check more than that and the length.
"""

from __future__ import annotations

import mimetypes
from dataclasses import dataclass

from amberblob.archives import ArchivedChunk, import_id
from amberblob.limits import CHUNK_BYTES_DEFAULT, CHUNK_BYTES_MAX, MANIFEST_INLINE_CHUNKS_MAX
from amberblob.manifest import ChunkRef, Version, place_chunks
from archive.targets.interface import Stored

ETAG_PREFIX = "import-"
"""What the etag of an imported version begins with: it is no hash of its content."""
META_SOURCE = "source"
META_ETAG = "source-etag"
UNKNOWN_TYPE = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """One object of a source as a version.

    Attributes:
        draft: the version, without its number.
        chunks: all of its archive rows, in order; all name the source.
        manifest: the bytes of its manifest, which are to be archived here; None: it has none.
    """

    draft: Version
    chunks: tuple[ArchivedChunk, ...]
    manifest: bytes | None


def import_etag(url: str, etag: str, size: int) -> str:
    """The etag of an imported version: the same for the same content of the same source."""
    return ETAG_PREFIX + import_id(url, etag, 0, size)


def chunk_bytes(size: int) -> int:
    """How long the chunks of an imported object are: as usual, or longer, so that a record can list them all, up to the longest there is."""
    length = CHUNK_BYTES_DEFAULT
    while length < CHUNK_BYTES_MAX and size > length * MANIFEST_INLINE_CHUNKS_MAX:
        length *= 2
    return min(length, CHUNK_BYTES_MAX)


def imported(url: str, stored: Stored, path: str, *, blob_id: str, now_ms: int) -> Imported:
    """What an object becomes.

    Args:
        url: the object's own, ``s3://bucket/key``.
        stored: as it was listed.
        now_ms: the hybrid time: when its rows count as verified.
    """
    step, size = chunk_bytes(stored.size_bytes), stored.size_bytes
    spans = [(start, min(start + step, size)) for start in range(0, size, step)]
    rows = tuple(
        ArchivedChunk(
            chunk_id=import_id(url, stored.etag, start, end),
            length=end - start,
            target_path=url,
            start=start,
            end=end,
            head="",
            archived_at_ms=now_ms,
            state=now_ms,
            etag=stored.etag,
        )
        for start, end in spans
    )
    chunks, manifest_id, manifest = place_chunks(tuple(ChunkRef(row.chunk_id, row.length) for row in rows))
    draft = Version(
        version=0,
        blob_id=blob_id,
        size=size,
        etag=import_etag(url, stored.etag, size),
        created_at_ms=min(max(0, stored.modified_ms), now_ms) or now_ms,
        content_type=mimetypes.guess_type(path, strict=False)[0] or UNKNOWN_TYPE,
        meta={META_SOURCE: url, META_ETAG: stored.etag},
        chunks=chunks,
        manifest_id=manifest_id,
        chunk_count=len(rows),
        inline=False,
    )
    return Imported(draft=draft, chunks=rows, manifest=manifest)


def is_same(head: Version, url: str, etag: str) -> bool:
    """Whether a version is of this content of this source, also when it was written anew with its true hash since."""
    return head.meta.get(META_SOURCE) == url and head.meta.get(META_ETAG) == etag


def is_of(head: Version, url: str) -> bool:
    """Whether a version is of this source, in whatever state that was."""
    return head.meta.get(META_SOURCE) == url
