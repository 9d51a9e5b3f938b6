"""Bounded memory for what is on its way: so many pieces at once, and so many bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """First come, first served.

    Args:
        pieces: how many may be on their way at once; at least 1.
        size_bytes: how large all of them may be together. A single piece that is larger comes alone.
    """

    def __init__(self, pieces: int, size_bytes: int) -> None:
        assert pieces > 0
        self.pieces = pieces
        self._bytes = size_bytes
        self._taken_pieces = 0
        self._taken_bytes = 0
        self._line: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken_bytes(self) -> int:
        """How much is on its way."""
        return self._taken_bytes

    @asynccontextmanager
    async def of(self, size_bytes: int) -> AsyncIterator[None]:
        """Wait for room, and have it meanwhile."""
        if self._line or not self._fits(size_bytes):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._line.append((size_bytes, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():
                    self._leave(size_bytes)  # it was given just now
                elif (size_bytes, turn) in self._line:
                    self._line.remove((size_bytes, turn))
                    self._admit()
                raise
        else:
            self._take(size_bytes)
        try:
            yield
        finally:
            self._leave(size_bytes)

    def _fits(self, size_bytes: int) -> bool:
        if self._taken_pieces == 0:
            return True
        return self._taken_pieces < self.pieces and self._taken_bytes + size_bytes <= self._bytes

    def _take(self, size_bytes: int) -> None:
        self._taken_pieces += 1
        self._taken_bytes += size_bytes

    def _leave(self, size_bytes: int) -> None:
        self._taken_pieces -= 1
        self._taken_bytes -= size_bytes
        self._admit()

    def _admit(self) -> None:
        while self._line and self._fits(self._line[0][0]):
            size_bytes, turn = self._line.popleft()
            if not turn.done():
                self._take(size_bytes)
                turn.set_result(None)
