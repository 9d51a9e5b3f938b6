"""Trying again what may help, with pauses that grow and are not alike on all nodes. Knows no target."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from amberblob.clock import Randomness
from amberblob.errors import ArchiveUnavailable
from archive.targets.failures import Throttled
from archive.traffic import Sleep, Traffic

PAUSE_FIRST_S = 0.1
PAUSE_MAX_S = 20.0

_T = TypeVar("_T")


class Retrying:
    """Tries a request up to ``tries`` times while it ends in ArchiveUnavailable; anything else is not mended by trying again.

    Args:
        tries: 1 or more, the first one counted.
        chance: the pause before try n+1 is a random share, half to whole, of 0.1 s · 2^(n-1), at most 20 s; four times as long when throttled.
    """

    def __init__(self, tries: int, traffic: Traffic, chance: Randomness, sleep: Sleep = asyncio.sleep) -> None:
        assert tries >= 1
        self._tries = tries
        self._traffic = traffic
        self._chance = chance
        self._sleep = sleep

    async def run(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """The result of the first try that succeeds. Raises: the last try's error."""
        failed = 0
        while True:
            try:
                return await attempt()
            except ArchiveUnavailable as error:
                failed += 1
                await self.pause(failed, error)

    async def pause(self, failed: int, error: ArchiveUnavailable) -> None:
        """Before the next try, after so many have failed in a row. Raises: the error, when those were all."""
        if failed >= self._tries:
            if failed > 1:
                error.detail = f"{error.detail} (tried {failed} times)"
                error.args = (error.detail,)
            raise error
        self._traffic.retries += 1
        longest_s = PAUSE_FIRST_S * 2 ** (failed - 1)
        asked_s = 0.0
        if isinstance(error, Throttled):
            longest_s *= 4
            asked_s = error.wait_s
        await self._sleep(asked_s + min(longest_s, PAUSE_MAX_S) * (0.5 + 0.5 * self._chance.fraction()))
