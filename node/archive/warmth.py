"""Keeps what is known of reads over restarts: a worker that tells the time to :class:`archive.heat.Heat`, and writes it down."""

from __future__ import annotations

from amberblob.clock import Clock
from antientropy.step import Did, Wake
from archive.heat import Heat
from archive.state import ArchiveState

TICK_EVERY_S = 30.0
SAVE_EVERY_S = 300.0


class Warmth:
    """A worker. What was read in the last minutes before a crash may be forgotten."""

    name = "archive-heat"

    def __init__(self, heat: Heat, state: ArchiveState, clock: Clock) -> None:
        self.wake = Wake()
        self.pause_s = TICK_EVERY_S
        self._heat = heat
        self._state = state
        self._clock = clock
        self._loaded = False
        self._saved_minute = 0
        self._save_s = clock.monotonic_s() + SAVE_EVERY_S

    async def step(self) -> Did:
        """Tell the time; now and then write down what was read."""
        await self.load()
        self._heat.tick(self._clock.wall_ms())
        if self._clock.monotonic_s() >= self._save_s:
            await self.save()
        return Did.NOTHING

    async def load(self) -> None:
        """Returns once it is known what was read before the node started: who evicts waits for that."""
        if not self._loaded:
            known = await self._state.heat()
            if not self._loaded:
                self._loaded = True
                self._heat.load(known)

    async def save(self) -> None:
        """Write down what was read since the last time."""
        self._save_s = self._clock.monotonic_s() + SAVE_EVERY_S
        if not self._loaded:
            return
        minute = self._heat.minute
        await self._state.save_heat(self._heat.since(self._saved_minute))
        self._saved_minute = minute
