"""Blobs that go: given up before anything referred to them, expired, or of a slot that was left."""

from __future__ import annotations

from functools import partial

from amberblob.ids import valid_ulid
from amberblob.mutations import Aborted
from chunkstore import archivedb, garbagedb
from chunkstore.blobs.states import BlobStates
from chunkstore.blobs.work import Blob, BlobWork
from chunkstore.core import DiskCore
from chunkstore.files import BlobFiles, checked_ulid
from chunkstore.overlay import Intent
from chunkstore.slotdb import BlobFacts


class GivingUp:
    """Removes blobs.

    Args:
        disk_id: the incarnation of a slot whose database was never lost.
    """

    def __init__(self, core: DiskCore, work: BlobWork, states: BlobStates, files: BlobFiles, disk_id: str) -> None:
        self._core = core
        self._work = work
        self._states = states
        self._files = files
        self._disk_id = disk_id

    async def discard(self, slot: int, blob_id: str) -> bool:
        """See the interface; whether the blob was given up. One that is being published is so afterwards."""
        checked_ulid(blob_id)
        return await self._work.to_the_end(self._discard(slot, blob_id))

    async def _discard(self, slot: int, blob_id: str) -> bool:
        overlay = self._core.overlay
        blob = (slot, blob_id)
        async with self._work.alone(blob):
            if overlay.intent(slot, blob_id) is Intent.REFERENCED:
                return False
            facts = await self._states.facts(slot, blob_id)
            is_nobodys = facts.intent in (Intent.STAGED.value, Intent.ARCHIVED.value)
            if facts.has_row or (not is_nobodys and not await self._release(slot, blob_id, facts)):
                overlay.staged.pop(blob, None)  # a second copy came in of what is referred to
                return False
            if overlay.intent(slot, blob_id) is Intent.REFERENCED:
                return False
            # From here to the end of the removal nobody is told that the blob is durable.
            self._work.discarding.add(blob)
            try:
                position = self._core.apply(Aborted(slot, blob_id))
                overlay.mark_complete(slot, blob_id, complete=False)
                self._work.lacking.pop(blob, None)
                await self._core.durable(position)
                # The database decides: a reference may have come in while this coroutine waited.
                facts = await self._states.facts(slot, blob_id)
                if facts.intent != Intent.ABORTED.value or overlay.intent(slot, blob_id) is Intent.REFERENCED:
                    return False
                await self._work.run_reading(lambda: self._files.remove_blob(slot, blob_id))
                return True
            finally:
                self._work.discarding.discard(blob)

    async def _release(self, slot: int, blob_id: str, facts: BlobFacts) -> bool:
        """Whether nothing refers to a blob that was accepted once, or of which the tables know nothing.

        Nothing is nobody's in a slot whose database was lost and whose rows are not all back.
        """
        is_here = facts.has_body or facts.intent == Intent.REFERENCED.value
        if not is_here and not await self._work.run_reading(lambda: self._files.blob_folder(slot, blob_id).is_dir()):
            return True
        if slot not in self._core.overlay.known():
            return False
        question = partial(garbagedb.release, blob_id=blob_id, disk_id=self._disk_id)
        released = await self._core.ask(slot, question, barrier=self._core.overlay.slot_position(slot))
        if released:
            self._core.overlay.verified.drop((slot, blob_id))
        return released

    async def remove_garbage(self, slot: int, blob_id: str, *, is_claimed: bool) -> bool | None:
        """Remove the files of a blob that has expired, unless something came to refer to it since; whether they went.

        None: memory knows more of it than the tables, so that it cannot be told yet.
        """
        if not valid_ulid(blob_id):
            return False  # the row that said so was damaged, and nothing here bears such a name
        return await self._work.to_the_end(self._remove_garbage(slot, blob_id, is_claimed))

    async def _remove_garbage(self, slot: int, blob_id: str, is_claimed: bool) -> bool | None:
        overlay, blob = self._core.overlay, (slot, blob_id)
        async with self._work.alone(blob):
            # From here to the end of the removal nobody is told that the blob is durable.
            self._work.discarding.add(blob)
            try:
                question = partial(garbagedb.still_garbage, blob_ids=(blob_id,))
                if is_claimed or not await self._core.ask(slot, question):
                    return False
                if overlay.intent(slot, blob_id) is not None or overlay.body(slot, blob_id) is not None:
                    return None
                overlay.mark_complete(slot, blob_id, complete=False)
                overlay.verified.drop(blob)
                self._work.lacking.pop(blob, None)
                await self._work.run_reading(lambda: self._files.remove_blob(slot, blob_id))
                return True
            finally:
                self._work.discarding.discard(blob)

    async def put_away(self, slot: int) -> None:
        """Take the files of all blobs of a slot out of sight; nothing refers to any of them."""
        await self._work.to_the_end(self._put_away(slot))

    async def _put_away(self, slot: int) -> None:
        await self._work.run_reading(lambda: self._files.put_away(slot))
        self._work.put_aways[slot] += 1
        self._core.overlay.forget_files(slot)
        for blob in [blob for blob in self._work.lacking if blob[0] == slot]:
            del self._work.lacking[blob]

    async def sweep_staged(self, older_than_ms: int, limit: int) -> int:
        """See the interface."""
        staged = self._core.overlay.staged
        old = [blob for blob, at_ms in staged.items() if at_ms < older_than_ms and blob not in self._work.publishing][
            :limit
        ]
        if len(old) < limit:
            old += await self._waiting_before(older_than_ms, limit - len(old))
        count = 0
        for slot, blob_id in old:
            count += await self.discard(slot, blob_id)
        return count

    async def _waiting_before(self, older_than_ms: int, limit: int) -> list[Blob]:
        """Blobs of which only archive rows are here, and that nothing came to refer to since before then."""
        found: list[Blob] = []
        for slot in self._core.overlay.slots():
            if len(found) >= limit:
                break
            barrier = self._core.overlay.archive_position(slot)
            if self._core.tally(slot).archive_staged or not self._core.is_applied(barrier):
                question = partial(archivedb.waiting_before, older_than_ms=older_than_ms, limit=limit - len(found))
                found += [(slot, blob_id) for blob_id in await self._core.ask(slot, question, barrier=barrier)]
        return found
