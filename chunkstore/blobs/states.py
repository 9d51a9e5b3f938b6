"""Whether a blob is durable, absent, or given up for good."""

from __future__ import annotations

from chunkstore import archiverows
from chunkstore.blobs.work import BlobWork
from chunkstore.core import DiskCore
from chunkstore.files import BlobFiles, checked_ulid
from chunkstore.interface import BlobState
from chunkstore.overlay import Intent
from chunkstore.slotdb import BlobFacts, SlotDatabase


class BlobStates:
    """What memory, the tables and the folders say of blobs."""

    def __init__(self, core: DiskCore, work: BlobWork, files: BlobFiles) -> None:
        self._core = core
        self._work = work
        self._files = files

    async def facts(self, slot: int, blob_id: str) -> BlobFacts:
        """What the slot's tables say of the blob."""
        if slot not in self._core.overlay.known():
            return BlobFacts(intent=None, has_body=False, has_row=False)
        barrier = self._core.overlay.blob_position(slot, blob_id)
        return await self._core.ask(slot, lambda database: database.blob_facts(blob_id), barrier=barrier)

    async def blob_state(self, slot: int, blob_id: str) -> BlobState:
        """See the interface."""
        while True:
            state = await self._blob_state(slot, blob_id)
            position = self._core.overlay.blob_position(slot, blob_id) if state is BlobState.DURABLE else 0
            if position <= self._core.journal.durable_position:
                return state
            # A body that a repair has just put back: here, and not yet on the disk.
            await self._core.durable(position)

    async def _blob_state(self, slot: int, blob_id: str) -> BlobState:
        """What memory, the database and the folders say. Asks the database only about blobs that memory cannot tell."""
        checked_ulid(blob_id)
        overlay = self._core.overlay
        known = self._state_now(slot, blob_id)
        if known is not None:
            return known
        if overlay.is_unheard_of(slot, blob_id):
            return BlobState.ABSENT
        if overlay.intent(slot, blob_id) is not Intent.STAGED:
            facts = await self.facts(slot, blob_id)
            # What came in while the answer was on its way counts for more than the answer.
            known = self._state_now(slot, blob_id)
            if known is not None:
                return known
            if facts.has_body:
                return BlobState.DURABLE
            if facts.evicted:
                return BlobState.DURABLE
            if facts.intent == Intent.ABORTED.value and overlay.intent(slot, blob_id) is None:
                return BlobState.ABORTED
            if facts.waits and await self._waiting_suffice(slot, blob_id):
                return BlobState.DURABLE
        complete = await self._work.run_reading(lambda: self._files.is_complete(slot, blob_id))
        known = self._state_now(slot, blob_id)
        if known is not None:
            return known
        return BlobState.DURABLE if complete else BlobState.ABSENT

    async def _waiting_suffice(self, slot: int, blob_id: str) -> bool:
        """Whether the archive rows of a blob that no bytes will come for are all there."""

        def question(database: SlotDatabase) -> bool:
            return archiverows.waiting_suffice(database.connection, database.path.parent / "blobs", blob_id)

        return await self._core.ask(slot, question)

    def _state_now(self, slot: int, blob_id: str) -> BlobState | None:
        """What memory says; None when it cannot tell. To be asked again after every await."""
        overlay = self._core.overlay
        blob = (slot, blob_id)
        if overlay.intent(slot, blob_id) is Intent.ABORTED:
            return BlobState.ABORTED
        if blob in self._work.publishing or blob in self._work.discarding:
            return BlobState.ABSENT
        if overlay.body(slot, blob_id) is not None or overlay.is_complete(slot, blob_id):
            return BlobState.DURABLE
        return None
