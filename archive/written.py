"""Metadata of writes that were archived first (rfc/0016): segments under ``meta/<cluster>/through/``, one for all that wait together. Pure.

A segment there is one as of an export (:mod:`archive.segments`), but each of its :class:`~archive.segments.PathEntry` tells of one write
alone: the chosen record that came of it and the row of its version. So it is merged with what is known of the path (:func:`merged`) and does
not take its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from amberblob.archives import ArchivedChunk
from amberblob.ballot import BALLOT_ZERO, Ballot
from amberblob.manifest import covers
from amberblob.wire_repair import PathItem
from archive.segments import META, PART_BYTES, ArchivedEntry, Entry, PathEntry, encode_entry, encode_part, segment_line

ENTRY_ROWS = 1000
"""Archive rows in one entry; those of a longer version are several, which are merged."""


class Written(msgspec.Struct, gc=False, frozen=True):
    """One write: what is chosen of its path, with the row of the version that it made, and where the archive has that version's chunks."""

    slot: int
    item: PathItem
    blob_id: str
    chunks: tuple[ArchivedChunk, ...]


def through_prefix(cluster: str) -> str:
    """What the names of a cluster's segments of writes begin with; they ascend with the time of the write."""
    return f"{META}{cluster}/through/"


def through_name(cluster: str, ulid: str) -> str:
    """The name of one."""
    return f"{through_prefix(cluster)}{ulid}.seg"


def encode_written(cluster: str, node: str, at_ms: int, writes: Sequence[Written]) -> bytes:
    """A segment of these writes. Takes a moment for a long one; for any thread.

    In parts that a reader takes: one of all rows of a body of many chunks would be longer than a part can be, and nobody could read it.
    """
    slots: dict[int, list[Written]] = {}
    for write in writes:
        slots.setdefault(write.slot, []).append(write)
    parts = [part for slot in sorted(slots) for part in _parts(slot, slots[slot])]
    return segment_line(cluster, node, at_ms) + b"".join(parts)


def _parts(slot: int, writes: Iterable[Written]) -> Iterator[bytes]:
    entries: list[bytes] = []
    size = 0
    for entry in _entries(writes):
        entries.append(encode_entry(entry))
        size += len(entries[-1])
        if size >= PART_BYTES:
            yield encode_part(slot, entries)
            entries, size = [], 0
    if entries:
        yield encode_part(slot, entries)


def _entries(writes: Iterable[Written]) -> Iterator[Entry]:
    for write in writes:
        yield PathEntry(write.item)
        for at in range(0, len(write.chunks), ENTRY_ROWS):
            yield ArchivedEntry(write.blob_id, write.chunks[at : at + ENTRY_ROWS])


def merged(known: PathItem | None, told: PathItem) -> PathItem:
    """What is known of a path with one more write: the later record counts, and every row stays that it has not let go of.

    In whatever order writes are merged, the same comes of it. Both are known to be chosen, so that of one ballot there is one record.
    """
    if known is None:
        return told
    newer, older = (told, known) if _ballot(told) > _ballot(known) else (known, told)
    expired = newer.record.expired if newer.record is not None else ()
    rows = {row.version: row for item in (older, newer) for row in item.rows if not covers(expired, row.version)}
    writes = {mark.write_id: mark for item in (older, newer) for mark in item.writes}
    return msgspec.structs.replace(
        newer,
        rows=tuple(rows[version] for version in sorted(rows, reverse=True)),
        writes=tuple(sorted(writes.values(), key=lambda mark: (mark.at_ms, mark.write_id))),
        more_below=None,
    )


def _ballot(item: PathItem) -> Ballot:
    """Where it was chosen. (Not its revision: those begin anew when a path was forgotten.)"""
    return item.ballot or BALLOT_ZERO
