"""Bytes that nobody needs: of versions that expired, and of those that nothing ever came to refer to. Belongs to the event loop.

The order is always the same: the tables say first that a blob is nobody's, durably or in a way that the journal repeats; its files
go after. A crash in between leaves files that the next sweep finds, never a row without its bytes.
"""

from __future__ import annotations

from functools import partial

from amberblob.ids import ulid_time_ms, valid_ulid
from chunkstore import garbagedb
from chunkstore.archiving import Archiving
from chunkstore.blobs import Blobs
from chunkstore.core import DiskCore
from chunkstore.files import BlobFiles
from chunkstore.interface import History

_BLOBS_PER_PIECE = 500
_SWEPT_AT_ONCE_MAX = 1000


class Garbage:
    """See :class:`chunkstore.interface.ReplicaStore` for every method.

    Args:
        disk_id: the incarnation of a slot whose database was never lost.
    """

    def __init__(self, core: DiskCore, blobs: Blobs, files: BlobFiles, disk_id: str, archiving: Archiving) -> None:
        self._archiving = archiving
        self._core = core
        self._blobs = blobs
        self._files = files
        self._disk_id = disk_id

    def _is_known(self, slot: int) -> bool:
        return slot in self._core.overlay.known()

    # -- retention

    async def histories(self, slot: int, after: str, limit: int) -> tuple[list[History], str | None]:
        found: list[History] = []
        done, barrier = not self._is_known(slot), self._core.overlay.slot_position(slot)
        while not done:
            question = partial(garbagedb.histories, after=after, limit=limit - len(found))
            part, after, done = await self._core.ask(slot, question, barrier=barrier)
            found += part
            if len(found) >= limit:
                break
        return found, None if done else after

    async def forget_writes(self, slot: int, older_than_ms: int, limit: int) -> int:
        after: tuple[str, str] | None = ("", "") if self._is_known(slot) else None
        count = 0
        while after is not None and count < limit:
            question = partial(
                garbagedb.forget_writes, after=after, older_than_ms=older_than_ms, limit=limit - count
            )  # fmt: skip
            went, after = await self._core.ask(slot, question)
            count += went
        return count

    async def sweep_garbage(self, slot: int, limit: int) -> int:
        if not self._is_known(slot):
            return 0
        self._core.journal.raise_if_failed()
        listed = await self._core.ask(slot, partial(garbagedb.garbage, limit=min(limit, _SWEPT_AT_ONCE_MAX)))
        if not listed:
            return await self._archiving.sweep_leftovers(slot, limit)
        claimed = await self._claimed(slot, set(listed))
        went = {b: await self._blobs.giving_up.remove_garbage(slot, b, is_claimed=b in claimed) for b in listed}
        # Whoever is stopped before this leaves some on the list whose files are gone: the next sweep finds nothing to remove.
        ended = [blob_id for blob_id, gone in went.items() if gone is not None]
        await self._core.ask(slot, partial(garbagedb.end_garbage, blob_ids=ended))
        return sum(gone is True for gone in went.values())

    async def _claimed(self, slot: int, suspects: set[str]) -> set[str]:
        """Those of these blobs that the record of some register names."""
        claimed: set[str] = set()
        after: str | None = ""
        barrier = self._core.overlay.slot_position(slot)
        while after is not None:
            question = partial(garbagedb.claimed_after, suspects=suspects, after=after)
            found, after = await self._core.ask(slot, question, barrier=barrier)
            claimed |= found
        return claimed

    # -- what was left

    async def holds(self, slot: int) -> bool:
        if not self._is_known(slot):
            return False
        return not await self._core.is_blank(slot) or await self._blobs.work.run_reading(
            lambda: self._files.has_blobs(slot)
        )

    async def leave(self, slot: int) -> str:
        incarnation = await self._core.begin_anew(slot, keep=False)
        await self._blobs.giving_up.put_away(slot)
        return incarnation

    async def sweep_left(self, slot: int, limit: int) -> tuple[int, int]:
        return await self._blobs.work.run_reading(lambda: self._files.sweep_left(slot, limit))

    # -- orphans

    async def orphans(self, slot: int, older_than_ms: int) -> list[str]:
        if not self._is_known(slot):
            return []
        folders = await self._blobs.work.run_reading(lambda: self._files.folders_before(slot, older_than_ms))
        barrier = self._core.overlay.slot_position(slot)
        lone = await self._core.ask(slot, partial(garbagedb.lone_bodies, disk_id=self._disk_id), barrier=barrier)
        bodies = (blob_id for blob_id in lone if valid_ulid(blob_id) and ulid_time_ms(blob_id) < older_than_ms)
        old = sorted({*folders, *bodies})
        suspects: set[str] = set()
        for at in range(0, len(old), _BLOBS_PER_PIECE):
            part = old[at : at + _BLOBS_PER_PIECE]
            question = partial(garbagedb.without_claims, blob_ids=part, disk_id=self._disk_id)
            suspects |= await self._core.ask(slot, question, barrier=barrier)
        if suspects:
            suspects -= await self._claimed(slot, suspects)
        return sorted(blob_id for blob_id in suspects if not self._blobs.work.is_under_way(slot, blob_id))
