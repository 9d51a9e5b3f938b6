"""Blocking calls in threads of one's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_T = TypeVar("_T")


class Threads:
    """At most so many threads, begun when they are needed."""

    def __init__(self, threads_max: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads_max, thread_name_prefix=name)

    async def run(self, function: Callable[[], _T]) -> _T:
        """Its result. Who is cancelled leaves it running."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def finish(self, function: Callable[[], _T]) -> _T:
        """Its result; who is cancelled waits for its end nevertheless. For what is short, and must be known to be over."""
        future = asyncio.get_running_loop().run_in_executor(self._pool, function)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            if not future.cancelled():
                future.exception()  # seen: nobody else will look
            raise

    def spend(self, function: Callable[[], object]) -> None:
        """Run it some time; nobody wants to know what comes of it. Not at all once closed."""

        def quietly() -> None:
            with contextlib.suppress(Exception):
                function()

        with contextlib.suppress(RuntimeError):
            self._pool.submit(quietly)

    def close(self) -> None:
        """Take no more calls; those under way end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)
