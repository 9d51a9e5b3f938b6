"""Background work as bounded steps: what a worker is. The node's runner owns loops, pauses and shutdown.

The shape is Garage's (``src/util/background/worker.rs``).
"""

from __future__ import annotations

import asyncio
import enum
from typing import Protocol


class Did(enum.Enum):
    """What a step did."""

    WORK = "work"
    """Something; call again at once."""
    NOTHING = "nothing"
    """There is nothing to do; call again after the worker's pause, or when it is woken."""


class Wake:
    """Ends a worker's rest early. Belongs to the loop.

    What :class:`asyncio.Event` under :func:`asyncio.timeout` does, for one that waits, and at half its price: a node has a dozen workers,
    and most of what they do while nobody needs them is to rest.
    """

    __slots__ = ("_is_set", "_resting")

    def __init__(self) -> None:
        self._is_set = False
        self._resting: asyncio.Future[None] | None = None

    def is_set(self) -> bool:
        """Whether a rest would be over at once."""
        return self._is_set

    def set(self) -> None:
        """End the rest that is under way, or the next one."""
        self._is_set = True
        if self._resting is not None:
            _end(self._resting)

    def clear(self) -> None:
        """The next rest lasts as long as it is meant to."""
        self._is_set = False

    async def rest(self, seconds: float) -> None:
        """Wait until it is set, or for so long. Only one rests at a time."""
        if self._is_set:
            return
        loop = asyncio.get_running_loop()
        self._resting = loop.create_future()
        timer = loop.call_later(seconds, _end, self._resting)
        try:
            await self._resting
        finally:
            timer.cancel()
            self._resting = None


def _end(resting: asyncio.Future[None]) -> None:
    if not resting.done():
        resting.set_result(None)


class Worker(Protocol):
    """One kind of background work.

    Attributes:
        name: for logs and status.
        pause_s: how long to rest after a step that found nothing to do.
        wake: set to end the rest early.
    """

    name: str
    pause_s: float
    wake: Wake

    async def step(self) -> Did:
        """Do one bounded unit of work."""
        ...
