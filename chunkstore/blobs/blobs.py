"""The bytes of a disk, as the event loop sees them: what the parts of this package are put together to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

from chunkstore.blobs.arriving import Arriving
from chunkstore.blobs.givingup import GivingUp
from chunkstore.blobs.mending import Mending
from chunkstore.blobs.reading import Reading
from chunkstore.blobs.states import BlobStates
from chunkstore.blobs.work import BlobWork
from chunkstore.core import DiskCore
from chunkstore.fileops import FileOps
from chunkstore.files import BlobFiles
from chunkstore.space import SpaceGuard


class Blobs:
    """Chunk files and inline bodies.

    Attributes:
        work: what they all share. states, arriving, reading, mending, giving_up: an operation each.
    """

    def __init__(
        self, core: DiskCore, files: BlobFiles, ops: FileOps, space: SpaceGuard, pool: Executor,
        wall_ms: Callable[[], int], mint: Callable[[], str], disk_id: str,
    ) -> None:  # fmt: skip
        self.work = BlobWork(core, space, pool)
        self.states = BlobStates(core, self.work, files)
        self.arriving = Arriving(core, self.work, self.states, files, ops, pool, wall_ms, mint)
        self.reading = Reading(core, self.work, files)
        self.mending = Mending(core, self.work, self.reading, files)
        self.giving_up = GivingUp(core, self.work, self.states, files, disk_id)

    async def close(self) -> None:
        """Abort what is on its way in, and let end what cannot be stopped, for a moment."""
        await self.work.close(self.arriving.abort())
