"""Those that wait while others are under way go together: group commit, for whatever takes a request each time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from amberblob.errors import AmberError
from chunkstore.staging import retrieve

T = TypeVar("T")
R = TypeVar("R")


class Together(Generic[T, R]):
    """Gathers things to be done into groups.

    Args:
        do: does a group; its results, or what went wrong with one, in the same order. What it raises, everybody of the group gets.
        flights: how many groups may be under way at once. The first thing that comes never waits.
        count_max, size_max: of one group; ``size_of`` says how large a thing is. One that is larger goes alone.
    """

    def __init__(
        self,
        do: Callable[[list[T]], Awaitable[Sequence[R | AmberError]]],
        *,
        flights: int,
        count_max: int,
        size_max: int,
        size_of: Callable[[T], int] = lambda thing: 1,
    ) -> None:
        self._do = do
        self._flights = flights
        self._count_max = count_max
        self._size_max = size_max
        self._size_of = size_of
        self._line: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    async def of(self, thing: T) -> R:
        """The result for one thing. Who is cancelled while it waits in line is not done; what is under way goes on."""
        done: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        done.add_done_callback(retrieve)
        self._line.append((thing, done))
        self._begin()
        return await done

    async def close(self) -> None:
        """Give up what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self) -> None:
        while self._line and len(self._tasks) < self._flights:
            group = self._take()
            if group:
                task = asyncio.get_running_loop().create_task(self._carry_out(group))
                self._tasks.add(task)
                task.add_done_callback(self._ended)

    def _take(self) -> list[tuple[T, asyncio.Future[R]]]:
        group: list[tuple[T, asyncio.Future[R]]] = []
        size = 0
        while self._line and len(group) < self._count_max:
            if self._line[0][1].done():  # nobody waits for it any more
                self._line.popleft()
                continue
            more = self._size_of(self._line[0][0])
            if group and size + more > self._size_max:
                break
            size += more
            group.append(self._line.popleft())
        return group

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._begin()

    async def _carry_out(self, group: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._do([thing for thing, _ in group])
        except BaseException as error:
            for _, done in group:
                if not done.done():
                    if isinstance(error, asyncio.CancelledError):
                        done.cancel()
                    else:
                        done.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, done), result in zip(group, results, strict=True):
            if done.done():
                continue
            if isinstance(result, AmberError):
                done.set_exception(result)
            else:
                done.set_result(result)
