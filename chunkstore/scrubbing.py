"""A disk's part in scrub: rows and digests, piece by piece. Belongs to the event loop."""

from __future__ import annotations

from functools import partial

from amberblob.manifest import Version
from chunkstore import scrubdb
from chunkstore.core import DiskCore
from chunkstore.interface import CheckedPage


class Scrubbing:
    """See :class:`chunkstore.interface.ReplicaStore` for every method."""

    def __init__(self, core: DiskCore) -> None:
        self._core = core

    async def check_page(self, slot: int, after: str, limit: int) -> CheckedPage:
        wrong: list[str] = []
        versions: list[tuple[str, Version]] = []
        done = slot not in self._core.overlay.known()
        barrier = self._core.overlay.slot_position(slot)
        while limit > 0 and not done:
            piece = await self._core.ask(slot, partial(scrubdb.check, after=after, limit=limit), barrier=barrier)
            wrong += piece.wrong
            versions += piece.versions
            after, done = piece.last, piece.done
            limit -= piece.count
        for _, version in versions:
            if version.inline:
                # Whoever reads it next, to check it, is to read what the database has.
                self._core.overlay.verified.drop((slot, version.blob_id))
        return CheckedPage(next_after=None if done else after, wrong=tuple(wrong), versions=tuple(versions))

    async def check_sums(self, slot: int) -> bool:
        if slot not in self._core.overlay.known():
            return True
        return await self._core.ask(slot, scrubdb.check_sums, barrier=self._core.overlay.slot_position(slot))
