"""Metadata of writes that were archived first (rfc/0016): segments under ``meta/<cluster>/through/``, one for all that wait together. Pure.

A segment there is one as of an export (:mod:`archive.segments`), but each of its :class:`~archive.segments.PathEntry` tells of one write
alone: the chosen record that came of it and the row of its version. So it is merged with what is known of the path (:func:`merged`) and does
not take its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from amberblob.archives import ArchivedChunk
from amberblob.ballot import BALLOT_ZERO, Ballot
from amberblob.manifest import covers
from amberblob.wire_repair import PathItem
from archive.segments import META, ArchivedEntry, Entry, PathEntry, encode_entry, encode_part, segment_line


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
    """A segment of these writes."""
    slots: dict[int, list[Entry]] = {}
    for write in writes:
        entries = slots.setdefault(write.slot, [])
        entries.append(PathEntry(write.item))
        if write.chunks:
            entries.append(ArchivedEntry(write.blob_id, write.chunks))
    parts = [encode_part(slot, [encode_entry(entry) for entry in slots[slot]]) for slot in sorted(slots)]
    return segment_line(cluster, node, at_ms) + b"".join(parts)


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
