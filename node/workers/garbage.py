"""Removes what a disk keeps without need: bytes of expired versions, old lines of commit logs, old write ids.

Nothing here decides what may go: rows went when the record that says so was chosen, and what is old is old everywhere.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import structlog

from amberblob.clock import Clock
from antientropy.rest import Rest
from antientropy.step import Did, Wake
from chunkstore.interface import ReplicaStore

log = structlog.get_logger(__name__)

EVERY_S = 600.0
BLOBS_MAX = 64
WRITES_MAX = 1000
LOG_LINES_KEPT = 10_000
"""Per slot: what a peer that follows may be behind, before it has to compare instead."""
LOG_SLACK = 1000
"""A log is cut only when it is longer by this: not line by line."""
WRITES_KEPT_S = 86_400.0
"""For so long a retry of a write is known to be one (rfc/0012)."""
REST_PER_TIME = 9.0
REST_MAX_S = 5.0


@dataclass(slots=True)
class GarbageCounts:
    """What was removed since the start; each only grows."""

    blobs: int = 0
    log_lines: int = 0
    writes: int = 0


class Garbage:
    """A worker: one slot after the other, a batch at a time."""

    name = "garbage"

    def __init__(self, store: ReplicaStore, clock: Clock, *, every_s: float = EVERY_S) -> None:
        self.wake = Wake()
        self.pause_s = every_s
        self.counts = GarbageCounts()
        self._store = store
        self._clock = clock
        self._every_s = every_s
        self._next_s = float("-inf")
        self._rest = Rest(clock, max_s=REST_MAX_S)
        self._slots: deque[int] = deque()
        self._cut_to: dict[int, int] = {}

    async def step(self) -> Did:
        """Remove a batch of one slot's; or rest."""
        now_s = self._clock.monotonic_s()
        rest_s = self._rest.left_s(now_s)
        if not self._slots and rest_s <= 0:
            if now_s >= self._next_s:
                self._next_s = now_s + self._every_s
                self._slots.extend(self._store.slots())
            if not self._slots:
                rest_s = self._next_s - now_s
        if rest_s > 0:
            self.pause_s = rest_s
            return Did.NOTHING
        slot = self._slots[0]
        if not await self._clean(slot):
            self._slots.popleft()
        self._rest.begin(now_s, REST_PER_TIME)  # others want the slot's database, too
        return Did.WORK

    async def _clean(self, slot: int) -> bool:
        """Whether there may be more."""
        blobs = await self._store.sweep_garbage(slot, BLOBS_MAX)
        old_ms = self._clock.wall_ms() - int(WRITES_KEPT_S * 1000)
        writes = await self._store.forget_writes(slot, old_ms, WRITES_MAX)
        lines = await self._trim(slot)
        self.counts.blobs += blobs
        self.counts.writes += writes
        self.counts.log_lines += lines
        if blobs:
            log.info("bytes of expired versions removed", slot=slot, count=blobs)
        return blobs >= BLOBS_MAX or writes >= WRITES_MAX

    async def _trim(self, slot: int) -> int:
        head = self._store.tally(slot).log_head
        if head - self._cut_to.get(slot, 0) <= LOG_LINES_KEPT + LOG_SLACK:
            return 0
        cut = await self._store.trim_log(slot, LOG_LINES_KEPT)
        if not cut:
            self._cut_to[slot] = head - LOG_LINES_KEPT
        return cut
