"""What is known of an object: its chunks, its versions, and the record that its path's register holds.

A **path** is one consensus register. Its value is a :class:`Record`: which versions live, which one is the
head, and the row of the version that the record before it added. A :class:`Version` never changes once it
is chosen; whether it is tombstoned is told by the newest record alone (``Record.live``), so no two replicas
that know the newest record can disagree about it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from amberblob.ids import content_hash, valid_hash
from amberblob.limits import MANIFEST_INLINE_CHUNKS_MAX

Range = tuple[int, int]
Ranges = tuple[Range, ...]
"""Disjoint inclusive ranges of versions, ascending."""

Op = Literal["put", "delete", "delete-version", "restore", "expire"]


class ChunkRef(msgspec.Struct, gc=False, frozen=True):
    """One chunk: its id (blake3 of its content) and its length in bytes."""

    id: str
    len: int


class Version(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """One version of a path. Immutable once chosen.

    Attributes:
        version: 1 or more; grows with every PUT of the path.
        blob_id: ULID, unique per PUT; names the folder of its bytes.
        size: bytes.
        etag: blake3 of the whole content, 64 hex; of imported content, whose hash is not known, a name of its source (``import-…``).
        created_at_ms: milliseconds since the Unix epoch, from the coordinator's hybrid clock.
        content_type: as the client gave it.
        meta: the client's ``X-Amber-Meta-*``, names in lower case without the prefix.
        chunks: every chunk in order; empty when ``manifest_id`` is set or ``size`` is 0.
        manifest_id: the hash of the manifest file when there are more chunks than a record should carry.
        chunk_count: how many chunks there are, wherever they are listed.
        inline: the only chunk lives in the slot's database instead of a file.
    """

    version: int
    blob_id: str
    size: int
    etag: str
    created_at_ms: int
    content_type: str
    meta: dict[str, str]
    chunks: tuple[ChunkRef, ...]
    manifest_id: str | None = None
    chunk_count: int = 0
    inline: bool = False


class WriteMark(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """What a write id did: enough to give a retry the first answer."""

    write_id: str
    op: Op
    version: int
    at_ms: int


class Record(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """The value of a path's register.

    Attributes:
        revision: grows by one with every write of the path, whatever its kind.
        op: what this record did.
        version_max: the highest version that the path ever had. New versions are greater.
        head: the newest live version; None when none lives.
        live: the versions without a tombstone.
        taken: what the last delete took away, for a restore that names no version.
        changed_at_ms: when this record was made.
        deleted_at_ms: when the last delete was made; 0 when there was none.
        previous: the version that the record before this one added, if it added one. Whoever accepts this
            record keeps that row: without it a version that was acknowledged and at once superseded is lost.
        writes: the last few write ids, newest last.
        expired: versions whose retention is over (rfc/0012): no replica keeps their rows or bytes, and none brings them
            back. Never the head; never in ``live`` or ``taken``.
    """

    revision: int
    op: Op
    version_max: int
    head: Version | None
    live: Ranges
    taken: Ranges
    changed_at_ms: int
    deleted_at_ms: int
    previous: Version | None
    writes: tuple[WriteMark, ...]
    expired: Ranges = ()

    @property
    def added(self) -> Version | None:
        """The version that this record itself adds: its head, if it is a put."""
        return self.head if self.op == "put" else None

    def write(self, write_id: str) -> WriteMark | None:
        """What the given write id did, if it is among the last few."""
        for mark in self.writes:
            if mark.write_id == write_id:
                return mark
        return None


def covers(ranges: Ranges, version: int) -> bool:
    """Whether ``version`` lies in one of the ranges."""
    return any(low <= version <= high for low, high in ranges)


def merge_ranges(ranges: Iterable[Range]) -> Ranges:
    """The same set of versions as disjoint, ascending ranges, neighbours joined."""
    merged: list[Range] = []
    for low, high in sorted(ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def without(ranges: Ranges, version: int) -> Ranges:
    """The ranges with one version cut out."""
    left: list[Range] = []
    for low, high in ranges:
        if low <= version <= high:
            if low < version:
                left.append((low, version - 1))
            if version < high:
                left.append((version + 1, high))
        else:
            left.append((low, high))
    return tuple(left)


def outside(ranges: Ranges, gone: Ranges) -> Ranges:
    """The ranges without everything that lies in ``gone``."""
    left: list[Range] = []
    for low, high in ranges:
        at = low
        for first, last in gone:
            if last < at or first > high:
                continue
            if at < first:
                left.append((at, first - 1))
            at = last + 1
        if at <= high:
            left.append((at, high))
    return tuple(left)


def encode_manifest(chunks: Iterable[ChunkRef]) -> bytes:
    """The manifest file: a JSON array of ``{"id", "len"}``, readable with ``cat``."""
    return msgspec.json.encode(tuple(chunks))


_manifest_decoder = msgspec.json.Decoder(tuple[ChunkRef, ...])


def decode_manifest(data: bytes) -> tuple[ChunkRef, ...]:
    """The chunks that a manifest file lists.

    Raises:
        ValueError: the text is no manifest.
    """
    try:
        chunks = _manifest_decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a manifest: {error}") from error
    for chunk in chunks:
        if not valid_hash(chunk.id) or chunk.len <= 0:
            raise ValueError(f"not a manifest: bad chunk {chunk!r}")
    return chunks


def place_chunks(chunks: tuple[ChunkRef, ...]) -> tuple[tuple[ChunkRef, ...], str | None, bytes | None]:
    """How a version lists its chunks: ``(chunks, manifest_id, manifest)``.

    Up to 64 chunks stay in the record; more become a manifest file and the record holds its hash, because a
    1 TiB object must not make a 9 MB record.
    """
    if len(chunks) <= MANIFEST_INLINE_CHUNKS_MAX:
        return chunks, None, None
    manifest = encode_manifest(chunks)
    return (), content_hash(manifest), manifest
