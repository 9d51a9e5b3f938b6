"""A disk's part in the archive: what it knows of archive copies, and giving up bytes that it can live without. Belongs to the event loop.

The order of giving up, for a power cut at any instant: the rows that cover the version are durable and applied; ``Evicted`` is
durable in the journal; the tables have the mark, and not the inline body any more, in one transaction; only then files go. What
is left of those is found by the mark: the next sweep removes them.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

from amberblob.archives import ArchivedBlob, ArchiveLine
from amberblob.manifest import Version
from amberblob.mutations import Evicted
from chunkstore import archivedb
from chunkstore.archivedb import ObjectSum
from chunkstore.archiverules import ids_of
from chunkstore.blobs import Blobs
from chunkstore.core import DiskCore
from chunkstore.files import BlobFiles, checked_ulid
from chunkstore.interface import ArchiveView, ObjectUse
from chunkstore.slotdb import SlotDatabase

_NAMES_PER_PIECE = 500


class Archiving:
    """See :class:`chunkstore.interface.ReplicaStore` for every method without a docstring."""

    def __init__(self, core: DiskCore, blobs: Blobs, files: BlobFiles) -> None:
        self._core = core
        self._blobs = blobs
        self._files = files

    def _barrier(self, slot: int) -> int:
        return self._core.overlay.slot_position(slot)

    def knows_nothing(self, slot: int) -> bool:
        """Whether the slot has no archive rows, and no entry that is not applied yet can have brought any."""
        tally = self._core.tally(slot)
        if tally.archived_rows or tally.archive_staged or tally.evicted:
            return False
        overlay = self._core.overlay
        return slot not in overlay.known() or self._core.is_applied(overlay.archive_position(slot))

    # -- rows

    async def archived(self, slot: int, blob_id: str) -> ArchivedBlob | None:
        if self.knows_nothing(slot):
            return None
        return await self._core.ask(slot, partial(archivedb.archived, blob_id=blob_id), barrier=self._barrier(slot))

    async def archived_after(self, slot: int, after: int, limit: int) -> tuple[list[ArchiveLine], bool]:
        found: list[ArchiveLine] = []
        more, barrier = not self.knows_nothing(slot), self._barrier(slot)
        while more and len(found) < limit:
            question = partial(
                archivedb.lines_after, after=after, limit=min(archivedb.LINES_PER_PIECE, limit - len(found))
            )
            part, after, more = await self._core.ask(slot, question, barrier=barrier)
            found += part
        return found, more and self._core.tally(slot).archive_head > after

    async def archive_rows_of(self, slot: int, target_path: str, after: int, limit: int) -> list[ArchiveLine]:
        found: list[ArchiveLine] = []
        more, barrier = not self.knows_nothing(slot), self._barrier(slot)
        while more and len(found) < limit:
            question = partial(
                archivedb.lines_of_object, target_path=target_path, after=after,
                limit=min(archivedb.LINES_PER_PIECE, limit - len(found)),
            )  # fmt: skip
            part, after, more = await self._core.ask(slot, question, barrier=barrier)
            found += part
        return found

    async def archive_page(
        self, slot: int, after: tuple[str, int], limit: int, *, prefix: str = ""
    ) -> tuple[list[ArchiveView], tuple[str, int] | None]:
        found: list[ArchiveView] = []
        position: tuple[str, int] | None = after if slot in self._core.overlay.known() else None
        barrier = self._barrier(slot)
        while position is not None and len(found) < limit:
            question = partial(archivedb.views_after, after=position, limit=limit - len(found), prefix=prefix)
            part, position = await self._core.ask(slot, question, barrier=barrier)
            found += part
        return found, position

    async def archive_objects(self, slot: int) -> dict[str, ObjectUse]:
        found: dict[str, ObjectSum] = {}
        if self.knows_nothing(slot):
            return {}
        barrier = self._barrier(slot)
        # The waiting ones first: one that moves over meanwhile is counted again, and not missed.
        staged: tuple[str, str] | None = ("", "")
        while staged is not None:
            question = partial(archivedb.count_staged, found=found, after=staged)
            staged = await self._core.ask(slot, question, barrier=barrier)
        at: int | None = 0
        while at is not None:
            at = await self._core.ask(slot, partial(archivedb.count_objects, found=found, after=at), barrier=barrier)
        return {name: known.use() for name, known in found.items()}

    async def archive_named(self, slot: int, target_paths: Collection[str]) -> set[str]:
        found: set[str] = set()
        names = [] if self.knows_nothing(slot) else list(target_paths)
        barrier = self._barrier(slot)
        for at in range(0, len(names), _NAMES_PER_PIECE):
            question = partial(archivedb.named, target_paths=names[at : at + _NAMES_PER_PIECE])
            found |= await self._core.ask(slot, question, barrier=barrier)
        return found

    # -- living by rows

    async def is_evicted(self, slot: int, blob_id: str) -> bool:
        tally, overlay = self._core.tally(slot), self._core.overlay
        is_applied = slot not in overlay.known() or self._core.is_applied(overlay.archive_position(slot))
        if is_applied and not (tally.evicted or tally.archive_staged):
            return False
        return await self._core.ask(slot, lambda database: database.is_marked(blob_id), barrier=self._barrier(slot))

    async def evicted_among(self, slot: int, blob_ids: Collection[str]) -> set[str]:
        """Those of these blobs that bear the mark."""
        if self.knows_nothing(slot) or not blob_ids:
            return set()

        def question(database: SlotDatabase) -> set[str]:
            return {blob_id for blob_id in blob_ids if database.is_marked(blob_id)}

        return await self._core.ask(slot, question, barrier=self._barrier(slot))

    async def chunk_ids(self, slot: int, version: Version) -> tuple[str, ...] | None:
        """What has to have a row for the version to live by them; None when its manifest is not here."""
        if version.manifest_id is None:
            return ids_of(version, version.chunks)
        chunks = await self._blobs.work.run_reading(lambda: self._blobs.mending.chunks(slot, version))
        return None if chunks is None else ids_of(version, chunks)

    async def is_held(self, slot: int, version: Version) -> bool:
        """Whether the version lives by its archive rows, and they cover all of it."""
        if not await self.is_evicted(slot, version.blob_id):
            return False
        ids = await self.chunk_ids(slot, version)
        if ids is None:
            return False
        question = partial(archivedb.is_held, blob_id=version.blob_id, chunk_ids=ids)
        return await self._core.ask(slot, question, barrier=self._barrier(slot))

    async def evict(self, slot: int, path: str, version: Version) -> int | None:
        checked_ulid(version.blob_id)
        if self.knows_nothing(slot):
            return None
        self._core.journal.raise_if_failed()
        return await self._blobs.work.to_the_end(self._evict(slot, path, version))

    async def _evict(self, slot: int, path: str, version: Version) -> int | None:
        core, blob_id = self._core, version.blob_id
        async with self._blobs.work.alone((slot, blob_id)):
            ids = await self.chunk_ids(slot, version)
            if ids is None or not version.size:
                return None
            # In as few trips to the database's thread as can be: of small versions there are many.
            question = partial(archivedb.evictable_bytes, path=path, version=version, chunk_ids=ids)
            went = await core.ask(slot, question, barrier=self._barrier(slot))
            if went is None:
                return None
            position = core.apply(Evicted(slot, path, version.version, blob_id, ids))
            await core.durable(position)
            # The tables decide: a row may have turned out to be damaged, or the version may have expired, while this waited.
            if not await core.ask(slot, lambda database: database.is_marked(blob_id), barrier=position):
                return None
            core.overlay.verified.drop((slot, blob_id))
            return went if version.inline else await self._remove_files(slot, blob_id)

    async def _remove_files(self, slot: int, blob_id: str) -> int:
        """Remove the files of a blob that is marked; whoever calls this is alone with it."""
        self._core.overlay.mark_complete(slot, blob_id, complete=False)
        self._blobs.work.lacking.pop((slot, blob_id), None)
        went = await self._blobs.work.run_reading(lambda: self._files.evict_blob(slot, blob_id))
        await self._core.ask(slot, partial(archivedb.settle_files, blob_id=blob_id))
        return went

    async def sweep_leftovers(self, slot: int, limit: int) -> int:
        """Remove what an eviction that was killed left of up to ``limit`` blobs; of how many there was something."""
        if self.knows_nothing(slot):
            return 0
        count = 0
        for blob_id in await self._core.ask(slot, partial(archivedb.leftovers, limit=limit)):
            count += await self._blobs.work.to_the_end(self._sweep_one(slot, blob_id))
        return count

    async def _sweep_one(self, slot: int, blob_id: str) -> bool:
        async with self._blobs.work.alone((slot, blob_id)):
            # Its bytes may have been put back since it was listed, and the mark taken away.
            if not await self._core.ask(slot, partial(archivedb.may_have_files, blob_id=blob_id)):
                return False
            return await self._remove_files(slot, blob_id) > 0
