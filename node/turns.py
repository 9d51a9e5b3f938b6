"""Who may run a round on a path: one at a time on each node."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """One round at a time per path, first come, first served.

    Rounds of one node on one path only get into each other's way: each PREPARE refuses the COMMITs of all before it.
    With dozens of them none comes through. So only nodes are rivals, and there are few of those.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        self._watching: dict[str, asyncio.Future[None]] = {}

    def take(self, path: str) -> asyncio.Future[None]:
        """Stand in line; done when it is one's turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(path, deque())
        queue.append(turn)
        if len(queue) == 1:
            turn.set_result(None)
        return turn

    def left(self, path: str) -> asyncio.Future[None] | None:
        """Done when the round that has its turn now ends; None when none has."""
        if path not in self._queues:
            return None
        return self._watching.setdefault(path, asyncio.get_running_loop().create_future())

    def leave(self, path: str, turn: asyncio.Future[None]) -> None:
        """Let the next one have it, whether one's turn had come or not."""
        queue = self._queues[path]
        if queue[0] is turn and (watched := self._watching.pop(path, None)) is not None:
            watched.set_result(None)
        queue.remove(turn)
        if not queue:
            del self._queues[path]
        elif not queue[0].done():
            queue[0].set_result(None)
