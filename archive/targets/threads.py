"""Blocking calls in threads of one's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


class Threads:
    """At most so many threads, begun when they are needed."""

    def __init__(self, threads_max: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads_max, thread_name_prefix=name)

    def start(self, function: Callable[[], _T]) -> asyncio.Future[_T]:
        """Begin; the future may be dropped, the function runs to its end all the same."""
        return asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def run(self, function: Callable[[], _T]) -> _T:
        """Its result. Who is cancelled leaves it running."""
        return await self.start(function)

    async def finish(self, function: Callable[[], _T]) -> _T:
        """Its result; who is cancelled waits for its end nevertheless. For what is short, and must be known to be over."""
        future = self.start(function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # seen: nobody else will look
            raise

    def close(self) -> None:
        """Take no more calls; those under way end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
