"""Blocking calls on a file system that may hang: in threads, each within a time, and what is left behind is put away when it ends at last.

A call on a network mount whose server is away returns after hours, or never, and nothing ends it. So it is waited for only so long, and the
thread is left to it. Once all threads are taken and none has come back for that long, nothing more is begun before one does: it would only wait.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from archive.targets.threads import Threads

_T = TypeVar("_T")

CANCELLED_S = 5.0
"""Who is cancelled waits so long for the end of the call that is under way, to know what became of it."""
LIST_TIMES = 10
"""A list may go through a large folder on each call: it may take so many times as long as another call."""


class Hangs(Exception):
    """The file system did not answer in time. ``waited_s``: how long it was waited for; 0: not at all, as so many calls hang already."""

    def __init__(self, waited_s: float) -> None:
        super().__init__(waited_s)
        self.waited_s = waited_s


class Strands:
    """Makes strands, which share threads.

    Args:
        threads_max: at most so many threads, 1 or more.
        timeout_s: how long a call may take, waiting for a thread included.
    """

    def __init__(self, threads_max: int, name: str, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._threads_max = threads_max
        self._threads = Threads(threads_max, name)
        self._moved_s = 0.0
        """When a call ended last, or the first of those began that are under way."""

    @property
    def unfinished(self) -> int:
        """Calls that are under way or wait for a thread, whether or not anybody waits for them."""
        return self._threads.unfinished

    def begin(self) -> Strand:
        """One for calls that follow each other."""
        return Strand(self)

    def close(self) -> None:
        """Take no more calls; those under way end by themselves, if they do."""
        self._threads.close()

    def submit(self, function: Callable[[], _T]) -> Future[_T]:
        """Have it called in a thread. Raises: Hangs, Closed."""
        now_s, unfinished = time.monotonic(), self._threads.unfinished
        if not unfinished:
            self._moved_s = now_s
        elif unfinished >= self._threads_max and now_s - self._moved_s > self.timeout_s:
            raise Hangs(0.0)
        return self.submit_last(function)

    def submit_last(self, function: Callable[[], _T]) -> Future[_T]:
        """The same, however many calls hang: it lets go of what earlier ones took. Raises: Closed."""
        return self._threads.submit(partial(self._moving, function))

    def spend(self, function: Callable[[], object]) -> None:
        """Have it called some time, if there are threads for that."""
        self._threads.spend(partial(self._moving, function))

    def _moving(self, function: Callable[[], _T]) -> _T:
        try:
            return function()
        finally:
            self._moved_s = time.monotonic()


class Strand:
    """Calls of one operation, one after the other: what they share (a descriptor) is used by one at a time, also when nobody waits any more."""

    def __init__(self, strands: Strands) -> None:
        self._strands = strands
        self._last: Future[Any] | None = None

    @property
    def free(self) -> bool:
        """Whether no call is under way."""
        return self._last is None or self._last.done()

    async def call(self, function: Callable[[], _T], *, times: int = 1) -> _T:
        """Its result. Who is cancelled waits a moment for its end.

        Args:
            times: it may take so many times as long as others.

        Raises: Hangs, Closed, and as ``function`` does.
        """
        submitted: Future[_T] = self._strands.submit(function)
        self._last = submitted
        future: asyncio.Future[_T] = asyncio.wrap_future(submitted)
        timeout_s = self._strands.timeout_s * times
        future.add_done_callback(_seen)
        try:
            done, _ = await asyncio.wait([future], timeout=timeout_s)
        except asyncio.CancelledError:
            if not submitted.cancel():
                await asyncio.wait([future], timeout=CANCELLED_S)
            raise
        finally:
            submitted.cancel()
            if not future.done():
                future.cancel()  # nobody waits for it any more, nor does a loop that has ended
        if done:
            return future.result()
        raise Hangs(timeout_s)

    async def end(self, function: Callable[[], object]) -> None:
        """Have it called now that no call is under way, and wait a moment for its end; nobody hears of its errors. Raises: Closed."""
        ending = asyncio.wrap_future(self._strands.submit_last(function))
        ending.add_done_callback(_seen)
        await asyncio.wait([ending], timeout=CANCELLED_S)

    def after(self, function: Callable[[], object]) -> None:
        """Have it called when the last call has ended, whenever that is; nobody waits for it, nor hears of its errors. Not at all where there was no call."""
        if self._last is not None:
            self._last.add_done_callback(lambda _: self._strands.spend(function))


def _seen(over: asyncio.Future[Any]) -> None:
    """Perhaps nobody else looks at its error."""
    if not over.cancelled():
        over.exception()
