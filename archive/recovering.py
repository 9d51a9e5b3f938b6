"""What a path becomes when it is recovered from what was exported of it (rfc/0016). Pure.

A path comes back as it was: the same record, versions, tombstones and write ids. Versions whose bytes were never archived are gone; they are
let go of as if their retention were over, in a record that follows the exported one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from msgspec.structs import replace

from amberblob.archives import DAMAGED, ArchivedChunk
from amberblob.ids import content_hash
from amberblob.limits import RECENT_WRITES_MAX, WRITE_ID_CHARS_MAX
from amberblob.manifest import ChunkRef, Record, Version, WriteMark, covers, merge_ranges, outside
from amberblob.wire_repair import PathItem


@dataclass(frozen=True, slots=True, kw_only=True)
class Revival:
    """What is written for a path.

    Attributes:
        record: what its register is to hold; the round's write id is that of its last write.
        rows: all versions that come back, newest first.
        writes: what write ids did.
        lost: versions that do not come back, newest first.
    """

    path: str
    record: Record
    rows: tuple[Version, ...]
    writes: tuple[WriteMark, ...]
    lost: tuple[int, ...]

    @property
    def write_id(self) -> str:
        """Names the round."""
        return self.record.writes[-1].write_id

    @property
    def older(self) -> tuple[Version, ...]:
        """The rows that the record itself does not bring."""
        brought = {version.version for version in (self.record.added, self.record.previous) if version is not None}
        return tuple(row for row in self.rows if row.version not in brought)


def revive(item: PathItem, is_held: Callable[[Version], bool], at_ms: int) -> Revival:
    """What becomes of a path.

    Args:
        item: all that was exported of it; its record is known to have been chosen.
        is_held: whether the archive has all bytes of a version.
        at_ms: the hybrid time now.
    """
    record = item.record
    assert record is not None, "only what was chosen is exported"
    known = {row.version: row for row in (record.head, record.previous) if row is not None}
    known.update((row.version, row) for row in item.rows)
    rows = [known[number] for number in sorted(known, reverse=True) if not covers(record.expired, number)]
    lost = tuple(row.version for row in rows if not is_held(row))
    if not lost:
        return Revival(path=item.path, record=record, rows=tuple(rows), writes=item.writes, lost=())
    kept = tuple(row for row in rows if row.version not in lost)
    return Revival(path=item.path, record=_without(record, lost, kept, at_ms), rows=kept, writes=item.writes, lost=lost)


def _without(record: Record, lost: tuple[int, ...], kept: tuple[Version, ...], at_ms: int) -> Record:
    """The record that lets go of the lost versions."""
    expired = merge_ranges((*record.expired, *((number, number) for number in lost)))
    live = outside(record.live, expired)
    head = next((row for row in kept if covers(live, row.version)), None)
    mark = WriteMark(_write_id(record), "expire", head.version if head is not None else 0, at_ms)
    added = record.added
    return replace(
        record,
        revision=record.revision + 1,
        op="expire",
        head=head,
        live=live if head is not None else (),
        taken=outside(record.taken, expired),
        changed_at_ms=max(at_ms, record.changed_at_ms),
        previous=added if added is not None and added.version not in lost else None,
        writes=(*record.writes, mark)[-RECENT_WRITES_MAX:],
        expired=expired,
    )


def _write_id(record: Record) -> str:
    """Always the same for one record, so that a recovery that is done again finds its own write."""
    before = record.writes[-1].write_id if record.writes else ""
    return ("recover-" + content_hash(f"{record.revision} {before}".encode()))[:WRITE_ID_CHARS_MAX]


def lacking(chunks: Iterable[ChunkRef], rows: Mapping[str, ArchivedChunk]) -> list[ChunkRef]:
    """The chunks of which no place in the archive is known, or only one that is damaged; each once."""
    found = {chunk.id: chunk for chunk in chunks}
    return [chunk for chunk in found.values() if not _usable(chunk, rows.get(chunk.id))]


def _usable(chunk: ChunkRef, row: ArchivedChunk | None) -> bool:
    return row is not None and row.state != DAMAGED and row.length == chunk.len
