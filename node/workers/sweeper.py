"""Removes staged uploads that nothing came to refer to, once they are too old to be committed."""

from __future__ import annotations

import structlog

from amberblob.clock import Clock
from antientropy.step import Did, Wake
from chunkstore.interface import ReplicaStore

log = structlog.get_logger(__name__)

BATCH_MAX = 64


class Sweeper:
    """A worker. ``ttl_s`` must exceed the longest time between staging and COMMIT (a write's deadline) by far."""

    name = "sweeper"

    def __init__(self, store: ReplicaStore, clock: Clock, *, ttl_s: float, pause_s: float = 60.0) -> None:
        self.wake = Wake()
        self.pause_s = pause_s
        self._store = store
        self._clock = clock
        self._ttl_ms = int(ttl_s * 1000)

    async def step(self) -> Did:
        """Remove a batch."""
        removed = await self._store.sweep_staged(self._clock.wall_ms() - self._ttl_ms, BATCH_MAX)
        if removed:
            log.info("abandoned uploads removed", count=removed)
        return Did.WORK if removed >= BATCH_MAX else Did.NOTHING
