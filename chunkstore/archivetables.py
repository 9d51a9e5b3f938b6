"""What the archive's entries do to a slot's tables. Belongs to the database thread, inside a batch's transaction.

Whatever is done follows from the entries in their order alone: rows get the same numbers when a journal is replayed, so that who
follows them by number misses none after a power cut.
"""

from __future__ import annotations

from dataclasses import replace

from amberblob.archives import ArchivedChunk
from amberblob.manifest import Version
from amberblob.mutations import Archived, Evicted
from chunkstore import archiverows
from chunkstore.archiverows import ARCHIVES, STAGED
from chunkstore.archiverules import ids_of, is_sane, revives, take
from chunkstore.overlay import Intent
from chunkstore.rowcodec import UNREADABLE, VERSION_COLUMNS, version_of
from chunkstore.slotdb import SlotDatabase

_FACTS = (
    "SELECT (SELECT state FROM intents WHERE blob_id = ?1), (SELECT pk FROM blobs WHERE blob_id = ?1), "
    "EXISTS (SELECT 1 FROM garbage WHERE blob_id = ?1), EXISTS (SELECT 1 FROM evicted WHERE blob_id = ?1), "
    "EXISTS (SELECT 1 FROM wanted WHERE blob_id = ?1), EXISTS (SELECT 1 FROM inline_bodies WHERE blob_id = ?1)"
)


class ArchiveTables:
    """The archive's tables of one slot during one batch."""

    def __init__(self, database: SlotDatabase) -> None:
        self._database = database
        self._sql = database.connection
        self._blobs = database.path.parent / "blobs"
        self._fresh = 0
        self._is_news = False

    # -- entries

    def archived(self, entry: Archived) -> None:
        """See the mutation. Everything gathered before is in the tables."""
        blob_id = entry.blob_id
        intent, row, is_garbage, marked, wanted, has_body = self._sql.execute(_FACTS, (blob_id,)).fetchone()
        # An inline body that came with its record counts for more than that the blob was given up before.
        told = [chunk for chunk in entry.chunks if is_sane(chunk)]
        if is_garbage:
            return
        if intent == Intent.ABORTED.value and row is None and not has_body:
            if not revives(entry, told):
                return
            intent = Intent.ARCHIVED.value
            self._sql.execute("UPDATE intents SET state = ? WHERE blob_id = ?", (intent, blob_id))
        if intent == Intent.ARCHIVED.value and entry.evicted:
            self._sql.execute("UPDATE intents SET at_ms = max(at_ms, ?) WHERE blob_id = ?", (entry.at_ms, blob_id))
        if row is not None:
            broken = self._merge(ARCHIVES, blob_id, told, relied_on=bool(marked))
            if marked and broken:
                self._want(blob_id)
            elif entry.evicted and wanted and not marked:
                self._adopt(blob_id)
            return
        broken = self._merge(STAGED, blob_id, told, relied_on=bool(marked))
        if intent is None and told:
            # An inline body came with a record that was accepted: its rows are not to be swept as those of an upload.
            state = Intent.REFERENCED if has_body else Intent.ARCHIVED
            self._sql.execute("INSERT INTO intents VALUES (?, ?, ?)", (blob_id, state.value, entry.at_ms))
        if marked and broken:
            self._database.unmark_evicted(blob_id)
        elif entry.evicted and not marked and not has_body and intent in (None, Intent.ARCHIVED.value):
            query = f"SELECT count(*) > 0 AND min(state) > 0 FROM {STAGED} WHERE blob_id = ?"
            if self._sql.execute(query, (blob_id,)).fetchone()[0]:
                self._database.mark_waiting(blob_id)

    def evicted(self, entry: Evicted) -> None:
        """See the mutation. Everything gathered before is in the tables."""
        version = self._version(entry.blob_id, path=entry.path)
        if version is None or version.version != entry.version or not version.size:
            return
        if not set(ids_of(version, version.chunks)) <= set(entry.chunk_ids):
            return
        if not archiverows.covers(self._sql, entry.blob_id, entry.chunk_ids):
            return
        self._sql.execute("DELETE FROM inline_bodies WHERE blob_id = ?", (entry.blob_id,))
        self._database.mark_evicted(version)

    def _merge(self, table: str, blob_id: str, told: list[ArchivedChunk], *, relied_on: bool) -> bool:
        """Merge rows in; whether one that was verified is not any more."""
        news: dict[str, ArchivedChunk] = {}
        fresh, broken = 0, False
        for chunk in told:
            before = news.get(chunk.chunk_id)
            if before is None:
                is_there, before = archiverows.find(self._sql, table, blob_id, chunk.chunk_id)
            else:
                is_there = True
            after = take(before, chunk, relied_on=relied_on)
            if after is None:
                if not relied_on or before is None or take(before, chunk, relied_on=False) is None:
                    continue
                # A number is used up all the same: it does not depend on a mark, which a replay may find otherwise.
                after = before
            fresh += not is_there
            broken = broken or (before is not None and before.verified and not after.verified)
            news[chunk.chunk_id] = after
        if news:
            self._put(table, blob_id, list(news.values()), fresh)
        return broken

    def _put(self, table: str, blob_id: str, chunks: list[ArchivedChunk], fresh: int) -> None:
        archiverows.put(self._sql, table, blob_id, chunks)
        if table == STAGED:
            tally = self._database.tally
            self._database.tally = replace(tally, archive_staged=tally.archive_staged + fresh)
        else:
            self._fresh += fresh
            self._is_news = True

    def settle(self) -> None:
        """Bring the tally up to the rows that came."""
        if self._is_news:
            (head,) = self._sql.execute("SELECT max(pk) FROM blob_chunk_archives").fetchone()
            tally = self._database.tally
            self._database.tally = replace(tally, archive_head=head, archived_rows=tally.archived_rows + self._fresh)
            self._fresh, self._is_news = 0, False

    def _version(self, blob_id: str, path: str | None = None) -> Version | None:
        """The version that has the blob, by its row; None when there is none that can be read, or it is of another path."""
        found = self._sql.execute(f"SELECT path, {VERSION_COLUMNS} FROM blobs WHERE blob_id = ?", (blob_id,)).fetchone()
        if found is None or path not in (None, found[0]):
            return None
        try:
            return version_of(found[1:])
        except UNREADABLE:
            return None

    def _want(self, blob_id: str) -> None:
        """What the blob lived by is not to be relied on any more."""
        version = self._version(blob_id)
        if version is not None:
            (path,) = self._sql.execute("SELECT path FROM blobs WHERE blob_id = ?", (blob_id,)).fetchone()
            self._database.want(str(path), version, damaged=True)

    def _adopt(self, blob_id: str) -> None:
        """Rows may stand for the bytes of a wanted version."""
        version = self._version(blob_id)
        if version is None or not version.size:
            return
        if self._is_covered(version):
            self._database.mark_evicted(version)

    def _is_covered(self, version: Version) -> bool:
        ids = archiverows.ids_here(self._blobs, version)
        return ids is not None and archiverows.covers(self._sql, version.blob_id, ids)

    # -- rows of blobs that come and go

    def row_came(self, path: str, version: Version) -> bool:
        """A row of ``blobs`` came: what waited for it moves over. Whether it lives by that, or is wanted by now; False: neither."""
        blob_id = version.blob_id
        chunks = list(archiverows.rows_of(self._sql, STAGED, blob_id))
        if not chunks:
            return False
        marked = self._database.is_marked(blob_id)
        self._merge(ARCHIVES, blob_id, chunks, relied_on=False)
        self.forget_waiting(blob_id)
        # What the intent said is over: whether its bytes are here has to be told by others.
        self._sql.execute("DELETE FROM intents WHERE blob_id = ? AND state = ?", (blob_id, Intent.ARCHIVED.value))
        if not marked or not version.size:
            return False
        if self._is_covered(version):
            self._database.mark_evicted(version)
        else:
            self._database.want(path, version, damaged=False)
        return True

    def row_changed(self, path: str, version: Version) -> None:
        """The row of ``blobs`` was replaced: what it says has to be covered, if it lives by its rows."""
        if self._database.is_marked(version.blob_id):
            if self._is_covered(version):
                self._database.mark_evicted(version)
            else:
                self._database.want(path, version, damaged=False)

    def row_goes(self, blob_id: str) -> None:
        """A row of ``blobs`` expires: so does everything that the archive has of it."""
        self.settle()
        tally = self._database.tally
        if tally.archived_rows:
            count = self._sql.execute("DELETE FROM blob_chunk_archives WHERE blob_id = ?", (blob_id,)).rowcount
            if count:
                self._database.tally = replace(tally, archived_rows=tally.archived_rows - count)
        self._database.unmark_evicted(blob_id)

    def row_renamed(self, blob_id: str) -> None:
        """A row of ``blobs`` bore this blob's id by mistake: what the archive has of that waits for the right one."""
        self.settle()
        if not self._database.tally.archived_rows:
            return
        self._merge(STAGED, blob_id, list(archiverows.rows_of(self._sql, ARCHIVES, blob_id)), relied_on=False)
        self.row_goes(blob_id)

    def forget_waiting(self, blob_id: str) -> None:
        """Rows that wait go, with the mark that the blob is to live by them."""
        tally = self._database.tally
        if not tally.archive_staged:
            return
        self._database.unmark_evicted(blob_id)
        count = self._sql.execute("DELETE FROM archive_staged WHERE blob_id = ?", (blob_id,)).rowcount
        if count:
            tally = self._database.tally
            self._database.tally = replace(tally, archive_staged=tally.archive_staged - count)
