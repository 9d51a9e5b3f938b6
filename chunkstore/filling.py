"""Fills the path filters of slots that had paths at start: piece by piece, one slot at a time, in the background.

Why that is right is told in :mod:`pathfilter`. A slot is filled only once loads have asked its database in vain a few
times, so that a node which holds millions of objects and gets no new ones does no work for it.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import structlog

from amberblob.errors import StorageError
from chunkstore.pathfilter import Layer, crc_of, fill, layer_for
from chunkstore.slotdb import SlotDatabase

_log = structlog.get_logger(__name__)

MISSES_MIN = 16
"""Loads of paths that the database did not know, before a slot's filter is filled."""

_PIECE_PATHS = 1024
_PAUSE_S = 0.005
_PATHS_MAX = 1 << 22
"""Of a slot that is walked; four bytes each are held meanwhile."""


class Ask(Protocol):
    """As :meth:`chunkstore.core.DiskCore.ask`."""

    def __call__(self, slot: int, question: Callable[[SlotDatabase], Any], *, barrier: int = 0) -> Awaitable[Any]: ...


class Filling:
    """Counts loads in vain, and walks the slots that had enough of them. Belongs to the loop.

    Args:
        ask: asks a slot's database.
        begin: begins a slot's filter and returns the barrier for the walk; None when it has one already.
        end: hands over what the walk found; None: the filter is given up.
    """

    def __init__(self, ask: Ask, begin: Callable[[int], int | None], end: Callable[[int, Layer | None], None]) -> None:
        self._ask = ask
        self._begin = begin
        self._end = end
        self._misses: dict[int, int] = {}
        self._waiting: deque[int] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def missed(self, slot: int) -> None:
        """A load asked the slot's database for a path that it does not have."""
        misses = self._misses[slot] = self._misses.get(slot, 0) + 1
        if misses == MISSES_MIN and not self._closed:
            self._waiting.append(slot)
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting:
                slot = self._waiting.popleft()
                barrier = self._begin(slot)
                if barrier is not None:
                    await self._fill(slot, barrier)
        finally:
            self._task = None

    async def _fill(self, slot: int, barrier: int) -> None:
        layer: Layer | None = None
        try:
            layer = await self._walk(slot, barrier)
        except (StorageError, OSError) as error:
            _log.info("path-filter-given-up", slot=slot, error=str(error))
        finally:
            self._end(slot, layer)

    async def _walk(self, slot: int, barrier: int) -> Layer | None:
        crcs = array("I")
        last: str | None = ""

        def read(database: SlotDatabase) -> str | None:
            paths = database.paths_after(last or "", _PIECE_PATHS)
            crcs.extend(map(crc_of, paths))
            return paths[-1] if len(paths) == _PIECE_PATHS else None

        while last is not None:
            last = await self._ask(slot, read, barrier=barrier)
            if len(crcs) > _PATHS_MAX:
                return None
            await asyncio.sleep(_PAUSE_S)
        layer = layer_for(len(crcs))

        def take(piece: array[int], _: SlotDatabase) -> None:
            fill(layer, piece)

        for at in range(0, len(crcs), _PIECE_PATHS):
            piece = crcs[at : at + _PIECE_PATHS]
            await self._ask(slot, partial(take, piece))
            await asyncio.sleep(_PAUSE_S)
        return layer

    async def close(self) -> None:
        """Stop."""
        self._closed = True
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
