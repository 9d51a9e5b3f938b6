"""A large version comes back to the disks of several copies at once: each brings its share of the chunks from the archive, and takes the others' from them.

No copy tells another what it does. Who works alone finds that out by waiting in vain, for a short while in all, and then brings everything itself.
"""

from __future__ import annotations

import asyncio

import structlog

from amberblob.errors import AmberError, DiskFull
from amberblob.manifest import Version
from antientropy.pull import Source, complete, lacks
from antientropy.room import Room
from node.archive.ground import Ground
from node.archive.healing import Healing
from node.archive.jobs import Progress

log = structlog.get_logger(__name__)

LOOK_AGAIN_S = (0.05, 0.1, 0.2, 0.4)
"""When another copy does not have its share of a version yet, it is asked again after these pauses; when they bring nothing, the archive is."""
PATIENCE_S = 1.5
"""So long, in all, the others are waited for in vain; then they are taken to do something else, until one does bring something."""


class Shares:
    """Brings versions back for one job.

    Args:
        source: other copies' files.
        healing: the archive.
        room: for the chunks of all versions that are on their way.
        progress: told how much came from where.
    """

    def __init__(self, ground: Ground, source: Source, healing: Healing, room: Room, progress: Progress) -> None:
        self._ground = ground
        self._source = source
        self._healing = healing
        self._room = room
        self._progress = progress
        self._patience_s = PATIENCE_S

    async def bring(self, slot: int, version: Version) -> None:
        """Put back what is missing: what other copies have, this node's share from the archive, what the others have brought meanwhile, the rest.

        Raises: DiskFull; as :meth:`node.archive.healing.Healing.fetch`. What came stays.
        """
        here, others = self._ground.node, self._ground.others(slot)
        if await self._from_others(slot, version, others) is None:
            return
        voters = self._ground.routing.electorate(slot).voters
        together = [node for node in voters if node == here or node in others]
        # One that became no voter, or is none any more, while the job ran has no share: it fetches all.
        share = (together.index(here), len(together)) if here in together else (0, 1)
        await self._from_archive(slot, version, share)
        if others and await self._awaited(slot, version, others):
            return
        await self._from_archive(slot, version, (0, 1))

    async def _awaited(self, slot: int, version: Version, others: list[str]) -> bool:
        """Take what the others bring, as it comes; whether that was all that was missing."""
        pauses = iter(LOOK_AGAIN_S)
        while True:
            came = await self._from_others(slot, version, others)
            if came is None:
                self._patience_s = PATIENCE_S
                return True
            if came:
                pauses, self._patience_s = iter(LOOK_AGAIN_S), PATIENCE_S
                continue
            pause_s = next(pauses, None)
            if pause_s is None or self._patience_s <= 0:
                return False
            self._patience_s -= pause_s
            await asyncio.sleep(pause_s)

    async def _from_archive(self, slot: int, version: Version, share: tuple[int, int]) -> None:
        fetched = await self._healing.fetch(slot, version, room=self._room, share=share)
        self._progress.add(from_archive_bytes=fetched)

    async def _from_others(self, slot: int, version: Version, others: list[str]) -> int | None:
        """Take what other copies have of it; how many bytes came, None: nothing is missing any more. Raises: DiskFull."""
        total = 0

        def came(size_bytes: int) -> None:
            nonlocal total
            total += size_bytes
            self._progress.add(from_copies_bytes=size_bytes)

        try:
            await complete(self._ground.store, self._source, slot, version, others, self._room, came)
        except DiskFull:
            raise
        except AmberError as error:
            if not lacks(error):
                log.info("not from other copies", slot=slot, blob_id=version.blob_id, error=error.detail)
            return total
        return None
