"""Blocking calls in threads of one's own. They are daemons: a server that does not answer holds up nobody's end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")
_Work = tuple[Future[Any], Callable[[], object]]


class Closed(Exception):
    """There are no threads any more: the node ends."""


class Threads:
    """At most so many threads, begun when they are needed, kept until :meth:`close`."""

    def __init__(self, threads_max: int, name: str) -> None:
        self._max = threads_max
        self._name = name
        self._queue: SimpleQueue[_Work | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._count = 0
        self._unfinished = 0
        self._closed = False

    async def run(self, function: Callable[[], _T]) -> _T:
        """Its result. Who is cancelled leaves it running. Raises also: Closed."""
        return await asyncio.wrap_future(self.submit(function))

    async def finish(self, function: Callable[[], _T]) -> _T:
        """Its result; who is cancelled waits for its end nevertheless, if it has begun. For what must be known to be over. Raises also: Closed."""
        submitted = self.submit(function)
        future = asyncio.wrap_future(submitted)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            if not submitted.cancel():
                await asyncio.wait([future])
                if not future.cancelled():
                    future.exception()  # seen: nobody else will look
            raise

    def spend(self, function: Callable[[], object]) -> None:
        """Run it some time; nobody wants to know what comes of it. Not at all once closed."""
        with contextlib.suppress(Closed):
            self.submit(function)

    @property
    def unfinished(self) -> int:
        """Calls that are under way or wait for a thread, those that nobody waits for any more too."""
        return self._unfinished

    def close(self) -> None:
        """Take no more calls; those that have not begun end in Closed, those under way end by themselves."""
        with self._lock:
            self._closed = True
            with contextlib.suppress(Empty):
                while True:
                    work = self._queue.get_nowait()
                    if work is not None and work[0].set_running_or_notify_cancel():
                        work[0].set_exception(Closed(self._name))
            for _ in range(self._count):
                self._queue.put(None)

    def submit(self, function: Callable[[], _T]) -> Future[_T]:
        """Its result to come; may be cancelled as long as it has not begun. Raises: Closed."""
        future: Future[_T] = Future()
        with self._lock:
            if self._closed:
                raise Closed(self._name)
            self._queue.put((future, function))
            self._unfinished += 1
            if self._unfinished > self._count and self._count < self._max:
                self._count += 1
                threading.Thread(target=self._work, name=f"{self._name}-{self._count}", daemon=True).start()
        return future

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            self._carry_out(*work)
            del work  # nor its result: it may be large

    def _carry_out(self, future: Future[Any], function: Callable[[], object]) -> None:
        result: object = None
        failure: BaseException | None = None
        runs = future.set_running_or_notify_cancel()
        if runs:
            try:
                result = function()
            except BaseException as error:
                failure = error
        with self._lock:
            self._unfinished -= 1  # before anybody hears of it, and comes with the next
        if failure is not None:
            future.set_exception(failure)
        elif runs:
            future.set_result(result)
