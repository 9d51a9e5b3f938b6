"""Repair yields to clients: how fast bytes may be moved while somebody is served (rfc/0012).

Whether clients are served is told by a counter that only grows, and is looked at here, at each turn: serving a request
costs an increment, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from amberblob.clock import Clock
from amberblob.limits import KIB

BUSY_S = 0.5
"""So long after somebody was served a node counts as busy."""

SMALL_BYTES = 64 * KIB
"""A turn for less than this is not put off for its bytes: they are counted, and later ones wait for them."""

REST_S = 0.002
"""What a small turn rests while clients are served, so that many of them in a row do not hold the loop."""

REST_SHARE = 2.0
REST_MAX_S = 0.1
"""After work while clients are served: a rest of so many times as long, at most this."""

LOOK_S = 0.05
"""Who waits looks this often whether clients are still served."""


class Yielding:
    """A pace (:class:`antientropy.driving.Pace`) with a limit that only counts while clients are served.

    Args:
        clock: monotonic time.
        served: a counter that grows whenever a client was served something by this node.
        busy_bytes_per_s: what may be moved per second meanwhile.
        sleep: waits for so many seconds; by the same clock.
    """

    def __init__(
        self,
        clock: Clock,
        served: Callable[[], int],
        busy_bytes_per_s: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        assert busy_bytes_per_s > 0
        self._clock = clock
        self._served = served
        self._rate = busy_bytes_per_s
        self._sleep = sleep
        self._count = served()
        self._busy_until_s = float("-inf")
        self._free_s = float("-inf")
        self._line = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """Whether clients were served within the last :data:`BUSY_S`, or since this was last asked."""
        now_s = self._clock.monotonic_s()
        count = self._served()
        if count != self._count:
            self._count = count
            self._busy_until_s = now_s + BUSY_S
        return now_s < self._busy_until_s

    async def turn(self, size_bytes: int) -> None:
        """Return when so many bytes may be moved; first come, first served. Others always get a turn in between."""
        if not self.busy:
            await self._sleep(0)
        elif size_bytes < SMALL_BYTES:
            self._spend(size_bytes)
            await self._sleep(REST_S)
        else:
            async with self._line:
                while self.busy and (left_s := self._free_s - self._clock.monotonic_s()) > 0:
                    await self._sleep(min(left_s, LOOK_S))
                self._spend(size_bytes)

    async def rest(self, worked_s: float) -> None:
        """Leave the machine to clients after work of so many seconds; comparing rows is CPU and syncs, not bytes."""
        if worked_s > 0 and self.busy:
            await self._sleep(min(REST_MAX_S, REST_SHARE * worked_s))

    def _spend(self, size_bytes: int) -> None:
        """From when on the next bytes may be moved, should clients still be served then."""
        self._free_s = max(self._free_s, self._clock.monotonic_s()) + size_bytes / self._rate
