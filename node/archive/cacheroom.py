"""The cache gives back what the disk needs."""

from __future__ import annotations

import structlog

from antientropy.step import Did, Wake
from archive.cache import Cache

log = structlog.get_logger(__name__)


class CacheRoom:
    """A worker: looks how full the disk is, and has the cache shrink before what clients write runs short of room."""

    name = "archive-cache"
    pause_s = 2.0

    def __init__(self, cache: Cache) -> None:
        self.wake = Wake()
        self._cache = cache

    async def step(self) -> Did:
        """Look once."""
        given = await self._cache.give_room()
        if given:
            log.info("cache gave back room", bytes=given)
        return Did.NOTHING
