"""Memory for chunks on their way to clients: how many at once, and the same memory again and again."""

from __future__ import annotations

import asyncio
import mmap
from contextlib import suppress

from amberblob.errors import ClusterError

PLACE_PATIENCE_S = 0.25
RESERVE_PATIENCE_S = 10.0


class Places:
    """Room for chunks in memory: ``soft`` places that are taken freely, and ``reserve`` more after some waiting."""

    def __init__(self, soft: int, reserve: int) -> None:
        self._soft = asyncio.Semaphore(soft)
        self._reserve = asyncio.Semaphore(reserve)

    async def take_free(self) -> asyncio.Semaphore | None:
        """A soft place if one is free now, without waiting; release it when done."""
        if self._soft.locked():
            return None
        await self._soft.acquire()
        return self._soft

    async def take(self) -> asyncio.Semaphore:
        """A place; release it when done."""
        try:
            async with asyncio.timeout(PLACE_PATIENCE_S):
                await self._soft.acquire()
            return self._soft
        except TimeoutError:
            pass
        try:
            async with asyncio.timeout(RESERVE_PATIENCE_S):
                await self._reserve.acquire()
        except TimeoutError:
            raise ClusterError(
                "This node holds as many chunks for slow readers as it may. Ask another node, or try again.",
                code="overloaded",
            ) from None
        return self._reserve


class Buffers:
    """Memory for chunks of up to ``size_bytes``, used again and again. A place bounds how much there is."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._free: list[memoryview] = []

    def take(self, size_bytes: int) -> memoryview:
        """A buffer of at least ``size_bytes``, with whatever is in it."""
        if self._free and len(self._free[-1]) >= size_bytes:
            return self._free.pop()
        fresh = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError, AttributeError):  # only a hint, which not every kernel knows
            fresh.madvise(mmap.MADV_HUGEPAGE)
        return memoryview(fresh)

    def give(self, buffer: memoryview) -> None:
        """Nobody uses the buffer any more. (One that a thread may still write to is not given back, but forgotten.)"""
        if len(self._free) < self._kept:
            self._free.append(buffer)
