"""Several of the same at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def in_parallel(do: Callable[[T], Awaitable[None]], items: Iterable[T] | AsyncIterable[T], at_once: int) -> None:
    """Call ``do`` with every item, ``at_once`` at a time. What one of them raises ends the others, and is raised."""
    queue = _each(items)
    lock = asyncio.Lock()

    async def worker() -> None:
        while True:
            async with lock:  # an iterator is asked by one at a time
                try:
                    item = await anext(queue)
                except StopAsyncIteration:
                    return
            await do(item)

    tasks = [asyncio.ensure_future(worker()) for _ in range(at_once)]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncIterator[T]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item
