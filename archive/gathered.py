"""The entries of an export put together again: what was known of a slot when it was last exported. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from amberblob.archives import ArchivedChunk, merge
from amberblob.manifest import Version
from amberblob.wire_repair import PathItem
from archive.segments import ArchivedEntry, Entry, GoneEntry, PathEntry


@dataclass(slots=True)
class GatheredSlot:
    """One slot, of entries in the order in which they were written.

    Attributes:
        items: by path: the newest that was told, with all rows.
        archived: by blob id and chunk id: where the archive has it.
    """

    items: dict[str, PathItem] = field(default_factory=dict)
    archived: dict[str, dict[str, ArchivedChunk]] = field(default_factory=dict)

    def add(self, entries: Iterable[Entry]) -> None:
        """More entries, newer than all before."""
        for entry in entries:
            match entry:
                case PathEntry(item, continued=True):
                    self._continue(item)
                case PathEntry(item):
                    self.items[item.path] = item
                case GoneEntry(path):
                    self.items.pop(path, None)
                case ArchivedEntry(blob_id, chunks):
                    self.learn(blob_id, chunks)

    def learn(self, blob_id: str, chunks: Iterable[ArchivedChunk]) -> None:
        """Merge rows of a blob."""
        known = self.archived.setdefault(blob_id, {})
        for chunk in chunks:
            known[chunk.chunk_id] = merge(known.get(chunk.chunk_id), chunk)

    def rows(self, version: Version) -> dict[str, ArchivedChunk]:
        """What is known of a version's archive copies, by chunk id."""
        return self.archived.get(version.blob_id, {})

    def blobs(self) -> Iterator[str]:
        """The blobs of all versions."""
        for item in self.items.values():
            for row in item.rows:
                yield row.blob_id
            # What the record tells of comes back, too, also when its row is not among them.
            for version in (item.record.head, item.record.previous) if item.record is not None else ():
                if version is not None:
                    yield version.blob_id

    def _continue(self, more: PathItem) -> None:
        before = self.items[more.path]
        self.items[more.path] = msgspec.structs.replace(
            before, rows=(*before.rows, *more.rows), more_below=more.more_below
        )
