"""How long this process stood still a moment ago: stopped by a signal, with its machine, or starved of processors.

Requests that came meanwhile waited in their sockets, and nobody noted when they came. Whoever sent one may have given it up and
repeated it elsewhere (rfc/0002, "Why a refusal is final"), so their time counts from the beginning of the standstill.
"""

from __future__ import annotations

import asyncio

TICK_S = 0.25
STANDSTILL_S = 1.0
"""Less is no standstill: a busy loop."""
AFTERWARDS_S = 3.0
"""So long after it what is read may have come during it."""


class Standstill:
    """Watches the running loop, by a timer that tells that it turns. ``start`` it; it ends with :meth:`stop`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._turned_s = self._woke_s = self._loop.time()
        self._stood_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Watch from now on."""
        self._turned_s = self._loop.time()
        self._tick()

    async def stop(self) -> None:
        """Watch no more."""
        if self._timer is not None:
            self._timer.cancel()

    def late_s(self) -> float:
        """So many seconds ago, at most, a request came that is met now; 0 unless the process has just stood still."""
        now_s = self._look()
        if not self._stood_s or now_s - self._woke_s >= AFTERWARDS_S:
            return 0.0
        return self._stood_s + now_s - self._woke_s

    def _look(self) -> float:
        """What is asked before the timer's turn, right after a standstill, sees it, too."""
        now_s = self._loop.time()
        if now_s - self._turned_s >= STANDSTILL_S:
            began_s = self._turned_s
            if self._stood_s and began_s - self._woke_s < AFTERWARDS_S:
                # What came during the one before may still be unread: they are one.
                began_s = self._woke_s - self._stood_s
            self._woke_s, self._stood_s = now_s, now_s - began_s
        self._turned_s = now_s
        return now_s

    def _tick(self) -> None:
        self._look()
        self._timer = self._loop.call_later(TICK_S, self._tick)
