"""Archive facts: where the archive has a chunk (rfc/0016). Rows of ``blob_chunk_archives`` as values, and how two of them merge."""

from __future__ import annotations

import msgspec

from amberblob.ids import content_hash

_IMPORTED = b"amberblob-import\0"
UPLOADED = 0
"""The target said that it has it; it was not read back."""
DAMAGED = -1
"""It was looked at and is not what it was, or is gone. Never held by it; kept so that the others hear of it."""


class ArchivedChunk(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """Where the archive has one chunk.

    Attributes:
        chunk_id: the chunk's id: blake3 of its plain content (of imported content: a name of its source).
        length: of the plain content, bytes.
        target_path: the object's name within the target; of imported content a whole URL (``s3://bucket/key``).
        start, end: byte range of the chunk's frame in the object, end exclusive; of imported content, of the content itself.
        head: blake3 of the frame's header, 64 hex; empty for imported content.
        archived_at_ms: when it was uploaded, epoch milliseconds of the uploader's hybrid clock.
        state: :data:`UPLOADED`, :data:`DAMAGED`, or since when it is known that it can be read back (epoch milliseconds).
        etag: imported content only: the source's ETag, without which it is not the same content.
    """

    chunk_id: str
    length: int
    target_path: str
    start: int
    end: int
    head: str
    archived_at_ms: int
    state: int = UPLOADED
    etag: str = ""

    @property
    def verified(self) -> bool:
        """Whether it was read back and found right: only then may a copy rely on it."""
        return self.state > 0

    @property
    def foreign(self) -> bool:
        """Whether it is imported content, of which the hash is not known."""
        return not self.head

    @property
    def possible(self) -> bool:
        """Whether the row can be true: imported content is named after its source, and other content is never taken from there.

        Else a row made up (or mixed up) for some chunk would have its readers take bytes that nobody can check.
        """
        return not self.foreign or self.chunk_id == import_id(self.target_path, self.etag, self.start, self.end)

    @property
    def location(self) -> tuple[str, int, int]:
        """Names the bytes; names are never used again, so it never comes to mean others."""
        return self.target_path, self.start, self.end

    @property
    def frame(self) -> ArchivedChunk:
        """The row without what it says of time and state: the frame alone, whoever wrote it down when."""
        return msgspec.structs.replace(self, archived_at_ms=0, state=0)


def import_id(url: str, etag: str, start: int, end: int) -> str:
    """The name of a range of an object whose content is not known: blake3 of its source, 64 hex characters."""
    parts = (url.encode(), etag.encode(), b"%d" % start, b"%d" % end)
    return content_hash(_IMPORTED + b"\0".join(parts))


def merge(known: ArchivedChunk | None, told: ArchivedChunk) -> ArchivedChunk:
    """What is known of a chunk after it was told; the same object as ``known`` when that is no news.

    Commutative, associative, idempotent: copies that were told the same facts in any order agree.
    """
    if known is None or known == told:
        return known or told
    if _rank(known) >= _rank(told):
        return known
    return told


def _rank(chunk: ArchivedChunk) -> tuple[int, str, int, int, int, str, str, int]:
    """Later uploads first; of one place, what was seen of it last counts, and damage most."""
    seen = _EVER if chunk.state == DAMAGED else chunk.state
    return (
        chunk.archived_at_ms, chunk.target_path, chunk.start, chunk.end, seen, chunk.head, chunk.etag, chunk.length,
    )  # fmt: skip


_EVER = 2**63 - 1


class ArchiveLine(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """One row of a copy, as another follows it.

    Attributes:
        seq: grows with every insert and change in that copy's table.
        evicted: the copy lives by its rows: it has given the bytes up.
    """

    seq: int
    blob_id: str
    chunk: ArchivedChunk
    evicted: bool = False


class ArchivedBlob(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """What one copy knows of a blob's archive copies; ``staged``: nothing refers to the blob yet."""

    chunks: tuple[ArchivedChunk, ...]
    evicted: bool = False
    staged: bool = False

    def find(self, chunk_id: str) -> ArchivedChunk | None:
        """Where the archive has that chunk."""
        for chunk in self.chunks:
            if chunk.chunk_id == chunk_id:
                return chunk
        return None
