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


class Worker(Protocol):
    """One kind of background work.

    Attributes:
        name: for logs and status.
        pause_s: how long to rest after a step that found nothing to do.
        wake: set to end the rest early.
    """

    name: str
    pause_s: float
    wake: asyncio.Event

    async def step(self) -> Did:
        """Do one bounded unit of work."""
        ...
