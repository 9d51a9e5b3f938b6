"""The memory store's part in the archive: rows, and versions that live by them."""

from __future__ import annotations

from collections.abc import Collection

from amberblob.archives import ArchivedBlob, ArchivedChunk, ArchiveLine
from amberblob.limits import MANIFEST_INLINE_CHUNKS_MAX
from amberblob.manifest import Version
from amberblob.mutations import Archived, Evicted
from chunkstore.archiverules import is_sane, revives, take
from chunkstore.files import checked_ulid
from chunkstore.interface import ArchiveView, ObjectUse
from chunkstore.memory_state import MemorySlot
from chunkstore.memory_upkeep import MemoryUpkeep
from chunkstore.overlay import Intent


class MemoryArchive(MemoryUpkeep):
    """See the interface for every method without a docstring."""

    # -- entries

    def _archived(self, at: MemorySlot, entry: Archived) -> None:
        """See the mutation."""
        blob_id = entry.blob_id
        intent, at_ms = at.intents.get(blob_id, (None, 0))
        told = [chunk for chunk in entry.chunks if is_sane(chunk)]
        marked, row = blob_id in at.evicted, at.row_of(blob_id)
        if blob_id in at.garbage:
            return
        if intent is Intent.ABORTED:
            if row is not None or not revives(entry, told):
                return
            intent = Intent.ARCHIVED
        if intent is Intent.ARCHIVED and entry.evicted:
            at.intents[blob_id] = (intent, max(at_ms, entry.at_ms))
        known = at.archives if row is not None else at.waiting
        broken = self._merge(at, known.setdefault(blob_id, {}), blob_id, told, relied_on=marked, staged=row is None)
        if not known[blob_id]:
            del known[blob_id]
        if row is not None:
            if marked and broken:
                at.want(*row, damaged=True)
            elif entry.evicted and blob_id in at.wanted and not marked and at.is_covered(row[1]):
                at.mark_evicted(row[1])
            return
        if intent is None and told:
            at.intents[blob_id] = (Intent.ARCHIVED, entry.at_ms)
        if marked and broken:
            at.evicted.discard(blob_id)
        elif entry.evicted and blob_id not in at.bodies and intent in (None, Intent.ARCHIVED):
            chunks = at.waiting.get(blob_id, {}).values()
            if chunks and all(chunk.verified for chunk in chunks):
                at.evicted.add(blob_id)

    @staticmethod
    def _merge(
        at: MemorySlot, known: dict[str, ArchivedChunk], blob_id: str, told: Collection[ArchivedChunk], *, relied_on: bool,
        staged: bool,
    ) -> bool:  # fmt: skip
        """Merge rows in; whether one that was verified is not any more."""
        news: dict[str, ArchivedChunk] = {}
        broken = False
        for chunk in told:
            before = news.get(chunk.chunk_id) or known.get(chunk.chunk_id)
            after = take(before, chunk, relied_on=relied_on)
            if after is None and relied_on and take(before, chunk, relied_on=False) is not None:
                after = before  # as a disk does: a number is used up all the same
            if after is not None:
                broken = broken or (before is not None and before.verified and not after.verified)
                news[chunk.chunk_id] = after
        known.update(news)
        for chunk_id in news if not staged else ():
            at.archive_head += 1
            at.archive_seqs.pop((blob_id, chunk_id), None)
            at.archive_seqs[blob_id, chunk_id] = at.archive_head
        return broken

    def _evicted(self, at: MemorySlot, entry: Evicted) -> None:
        """See the mutation."""
        row = at.row_of(entry.blob_id)
        if row is None or row[0] != entry.path or row[1].version != entry.version or not row[1].size:
            return
        if not {chunk.id for chunk in row[1].chunks} <= set(entry.chunk_ids):
            return
        if row[1].manifest_id not in (None, *entry.chunk_ids) or not at.is_covered_by(entry.blob_id, entry.chunk_ids):
            return
        at.bodies.pop(entry.blob_id, None)
        at.corrupt.discard(entry.blob_id)
        at.mark_evicted(row[1])

    def _row_came(self, at: MemorySlot, path: str, version: Version) -> bool:
        """A row came: what waited for it moves over. Whether it lives by that, or is wanted by now."""
        blob_id = version.blob_id
        chunks = at.waiting.pop(blob_id, None)
        if not chunks:
            return False
        marked = blob_id in at.evicted
        at.evicted.discard(blob_id)
        known = at.archives.setdefault(blob_id, {})
        self._merge(
            at, known, blob_id, [chunks[chunk_id] for chunk_id in sorted(chunks)], relied_on=False, staged=False
        )
        if not marked or not version.size:
            return False
        if at.is_covered(version):
            at.mark_evicted(version)
        else:
            at.want(path, version, damaged=False)
        return True

    def _row_renamed(self, at: MemorySlot, blob_id: str) -> None:
        """A row bore this blob's id by mistake: what the archive has of that waits for the right one."""
        chunks = at.archives.get(blob_id)
        self._archives_expire(at, blob_id)
        if chunks:
            at.waiting[blob_id] = chunks

    @staticmethod
    def _archives_expire(at: MemorySlot, blob_id: str) -> None:
        at.evicted.discard(blob_id)
        at.waiting.pop(blob_id, None)
        for chunk_id in at.archives.pop(blob_id, {}):
            del at.archive_seqs[blob_id, chunk_id]

    # -- questions

    async def archived(self, slot: int, blob_id: str) -> ArchivedBlob | None:
        at = self._look(slot)
        waiting = at.waiting.get(blob_id)
        chunks = waiting or at.archives.get(blob_id)
        if not chunks:
            return None
        told = tuple(chunks[chunk_id] for chunk_id in sorted(chunks))
        return ArchivedBlob(told, evicted=blob_id in at.evicted, staged=waiting is not None)

    def _lines(self, at: MemorySlot, after: int) -> list[ArchiveLine]:
        return [
            ArchiveLine(seq, blob_id, at.archives[blob_id][chunk_id], blob_id in at.evicted)
            for (blob_id, chunk_id), seq in at.archive_seqs.items()
            if seq > after
        ]

    async def archived_after(self, slot: int, after: int, limit: int) -> tuple[list[ArchiveLine], bool]:
        lines = self._lines(self._look(slot), after)
        return lines[:limit], len(lines) > limit

    async def archive_rows_of(self, slot: int, target_path: str, after: int, limit: int) -> list[ArchiveLine]:
        lines = self._lines(self._look(slot), after)
        return [line for line in lines if line.chunk.target_path == target_path][:limit]

    async def archive_page(
        self, slot: int, after: tuple[str, int], limit: int, *, prefix: str = ""
    ) -> tuple[list[ArchiveView], tuple[str, int] | None]:
        at, found = self._look(slot), list[ArchiveView]()
        for path in sorted(path for path in at.paths if path.startswith(prefix) and path >= after[0]):
            rows = at.paths[path].rows
            head = max((number for number, (_, dead_at_ms) in rows.items() if dead_at_ms is None), default=0)
            for number in sorted(rows):
                version, dead_at_ms = rows[number]
                if (path, number) <= after or not version.size:
                    continue
                if len(found) == limit:
                    return found, (found[-1].path, found[-1].version.version)
                found.append(self._view(at, path, version, number == head, dead_at_ms))
        return found, None

    @staticmethod
    def _view(at: MemorySlot, path: str, version: Version, is_head: bool, dead_at_ms: int | None) -> ArchiveView:
        known = at.archives.get(version.blob_id, {})
        if version.manifest_id is None:
            ids = {chunk.id for chunk in version.chunks}
            count, known = len(ids), {one: known[one] for one in ids if one in known}
        else:
            count = version.chunk_count + 1
        return ArchiveView(
            path=path, version=version, is_head=is_head, tombstoned_at_ms=dead_at_ms,
            uploaded=sum(chunk.state >= 0 for chunk in known.values()),
            verified=sum(chunk.verified for chunk in known.values()), chunk_count=count,
            evicted=version.blob_id in at.evicted, wanted=version.blob_id in at.wanted,
        )  # fmt: skip

    def _rows(self, slot: int) -> list[ArchivedChunk]:
        at = self._look(slot)
        blobs = (*at.waiting.values(), *at.archives.values())
        return [chunk for chunks in blobs for chunk in chunks.values()]

    async def archive_objects(self, slot: int) -> dict[str, ObjectUse]:
        found: dict[str, ObjectUse] = {}
        for chunk in self._rows(slot):
            if chunk.state < 0:
                continue
            known = found.get(chunk.target_path, ObjectUse(rows=0, size_bytes=0))
            size_bytes = known.size_bytes + chunk.end - chunk.start
            found[chunk.target_path] = ObjectUse(rows=known.rows + 1, size_bytes=size_bytes)
        return found

    async def archive_named(self, slot: int, target_paths: Collection[str]) -> set[str]:
        return {chunk.target_path for chunk in self._rows(slot)} & set(target_paths)

    async def is_evicted(self, slot: int, blob_id: str) -> bool:
        return blob_id in self._look(slot).evicted

    # -- giving up

    async def evict(self, slot: int, path: str, version: Version) -> int | None:
        blob_id = checked_ulid(version.blob_id)
        self._raise_if_failed()
        at = self._look(slot)
        ids = at.needed_ids(version)
        row = at.row_of(blob_id)
        if ids is None or not version.size or row is None or (row[0], row[1].version) != (path, version.version):
            return None
        if not at.is_covered_by(blob_id, ids):
            return None
        went = len(at.bodies.get(blob_id, b""))
        self.apply(Evicted(slot, path, version.version, blob_id, ids))
        if blob_id not in at.evicted:
            return None
        files = at.files.get(blob_id, {})
        kept = {name: data for name, data in files.items() if name == version.manifest_id}
        if kept:
            at.files[blob_id] = kept
            at.incomplete.add(blob_id)
        else:
            at.files.pop(blob_id, None)
            at.incomplete.discard(blob_id)
        return went + sum(len(data) for name, data in files.items() if name not in kept)

    def _waiting_suffice(self, at: MemorySlot, blob_id: str) -> bool:
        """Whether the waiting rows of a blob that is to live by them are all that it needs, as far as can be told."""
        chunks = at.waiting.get(blob_id, {})
        if not chunks or not all(chunk.verified for chunk in chunks.values()):
            return False
        named = at.manifest_names(blob_id)
        if named is None:
            return len(chunks) <= MANIFEST_INLINE_CHUNKS_MAX
        return named <= set(chunks)
