"""The database thread: applies what is durable in the background, answers questions in between.

A question may name a *barrier*: a journal position up to which the entries of its slot (or of all slots) must
be in the databases before it is asked. Entries linger a little so that more of them share a transaction; a
question with a barrier ends the lingering.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from amberblob.errors import DiskFailed
from chunkstore.applier import Applier
from chunkstore.codec import Batch
from chunkstore.journal import FAILED_REMEDY

_log = structlog.get_logger(__name__)
T = TypeVar("T")

LINGER_S = 0.25
UNIT_ENTRIES = 2048
_RETRY_CHECKPOINT_S = 1.0
_CALLS_PER_TURN = 64
_IDLE_CLOSE_S = 30.0
_KEEP_OPEN_IDLE = 16


class _Call:
    __slots__ = ("barrier", "function", "future", "on_result", "slot")

    def __init__(
        self, function: Callable[[], Any], slot: int | None, barrier: int, future: asyncio.Future[Any],
        on_result: Callable[[Any], None] | None,
    ) -> None:  # fmt: skip
        self.function = function
        self.slot = slot
        self.barrier = barrier
        self.future = future
        self.on_result = on_result


class DatabaseThread:
    """Runs an :class:`Applier`. Made on the loop.

    Args:
        close_idle: called on the thread now and then while there is nothing to do, with how many databases may stay open.
        linger_s: how long entries wait for company.

    Attributes:
        on_applied: called on the loop with the position up to which everything is applied.
        on_failed: called on the loop when the databases cannot be written; nothing is applied afterwards.
    """

    def __init__(self, close_idle: Callable[[int], bool], *, linger_s: float = LINGER_S) -> None:
        self.on_applied: Callable[[int], None] = lambda position: None
        self.on_failed: Callable[[str], None] = lambda why: None
        self._close_idle = close_idle
        self._linger_s = linger_s
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        self._calls: list[_Call] = []
        self._backlog: deque[tuple[int, Batch]] = deque()
        self._backlog_entries = 0
        self._backlog_since = 0.0
        self._waiting = False
        self._stopping = False
        self._checkpoint_after = 0.0
        self._failed: str | None = None
        self.applier: Applier | None = None
        self._thread = threading.Thread(target=self._run, name="amber-database", daemon=True)
        self._thread.start()

    # -- the loop's side

    def feed(self, segment: int, batch: Batch) -> None:
        """Hand over a durable batch."""
        with self._condition:
            if not self._backlog:
                self._backlog_since = time.monotonic()
            self._backlog.append((segment, batch))
            self._backlog_entries += len(batch)
            if self._waiting:
                self._condition.notify()

    def call(
        self, function: Callable[[], T], *, slot: int | None = None, barrier: int = 0,
        on_result: Callable[[T], None] | None = None,
    ) -> asyncio.Future[T]:  # fmt: skip
        """Run ``function`` on the thread once everything up to ``barrier`` is applied.

        ``on_result`` is called with the result on the loop, before anything that is applied later is told of.
        """
        future: asyncio.Future[T] = self._loop.create_future()
        with self._condition:
            if self._failed is not None and barrier and not self._is_applied(slot, barrier):
                future.set_exception(DiskFailed(self._failed))
                return future
            self._calls.append(_Call(function, slot, barrier, future, on_result))
            self._condition.notify()
        return future

    def fail_barriers(self, why: str) -> None:
        """What is not durable will never be applied: questions that wait for it get DiskFailed."""
        with self._condition:
            self._failed = why
            stuck = [call for call in self._calls if not self._is_ready(call)]
            self._calls = [call for call in self._calls if self._is_ready(call)]
        for call in stuck:
            if not call.future.done():
                call.future.set_exception(DiskFailed(why))

    async def close(self) -> None:
        """Apply what was handed over, checkpoint, and end the thread."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        await asyncio.to_thread(self._thread.join)
        await asyncio.sleep(0)

    # -- the thread's side

    def _post(self, callback: Callable[..., None], *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *values)
        except RuntimeError:
            _log.warning("database-loop-gone", action="the event loop was closed before the disk")

    def _run(self) -> None:
        try:
            while self._turn():
                pass
            self._finish()
        except Exception as error:
            _log.exception("database-thread-failed")
            why = f"the databases cannot be written: {error!r}. {FAILED_REMEDY}"
            with self._condition:
                self._failed = why
            self._post(self.on_failed, why)
            while True:
                # Reads of what is applied go on.
                with self._condition:
                    if self._stopping:
                        return
                    if not self._calls:
                        self._waiting = True
                        self._condition.wait()
                        self._waiting = False
                self._answer()

    def _turn(self) -> bool:
        """Wait for something to do and do one piece of it; False at the end."""
        self._answer()
        with self._condition:
            while True:
                now = time.monotonic()
                blocked = any(not self._is_ready(call) for call in self._calls)
                due = bool(self._backlog) and (
                    blocked
                    or self._stopping
                    or self._backlog_entries >= UNIT_ENTRIES
                    or now - self._backlog_since >= self._linger_s
                )
                if due:
                    unit = self._take_unit()
                    break
                if any(self._is_ready(call) for call in self._calls):
                    return True
                if self._stopping:
                    return False
                unit = []
                if self.applier is not None and now >= self._checkpoint_after:
                    break
                timeout = _IDLE_CLOSE_S if not self._backlog else self._linger_s - (now - self._backlog_since)
                timeout = min(timeout, max(self._checkpoint_after - now, 0.001) if self._checkpoint_after else timeout)
                self._waiting = not self._backlog
                notified = self._condition.wait(max(timeout, 0.001))
                self._waiting = False
                if not notified and not self._backlog and not self._calls:
                    break
        applier = self.applier
        if applier is None:
            return True
        if unit:
            applier.apply(unit, self._is_wanted, self._answer)
            self._post(self.on_applied, applier.applied)
            # A new batch may have finished a segment.
            self._checkpoint_after = 0.0
        elif not applier.step():
            self._checkpoint_after = time.monotonic() + _RETRY_CHECKPOINT_S
            self._close_idle(_KEEP_OPEN_IDLE)
        return True

    def _take_unit(self) -> list[tuple[int, Batch]]:
        unit: list[tuple[int, Batch]] = []
        count = 0
        while self._backlog and count < UNIT_ENTRIES:
            item = self._backlog.popleft()
            count += len(item[1])
            unit.append(item)
        self._backlog_entries -= count
        return unit

    def _is_applied(self, slot: int | None, position: int) -> bool:
        return self.applier is None or position <= self.applier.applied_for(slot)

    def _is_ready(self, call: _Call) -> bool:
        return self._is_applied(call.slot, call.barrier)

    def _is_wanted(self, slot: int) -> bool:
        return any(call.slot == slot for call in self._calls)

    def _answer(self) -> None:
        """Run the questions whose barrier is passed, and post all answers at once."""
        if not self._calls:
            return
        with self._condition:
            ready = [call for call in self._calls if self._is_ready(call)][:_CALLS_PER_TURN]
            if not ready:
                return
            taken = set(map(id, ready))
            self._calls = [call for call in self._calls if id(call) not in taken]
        answers: list[tuple[_Call, Any, Exception | None]] = []
        for call in ready:
            try:
                answers.append((call, call.function(), None))
            except Exception as error:
                answers.append((call, None, error))
        self._post(_deliver, answers)

    def _finish(self) -> None:
        applier = self.applier
        if applier is None:
            return
        while applier.step(everything=True):
            pass


def _deliver(answers: list[tuple[_Call, Any, Exception | None]]) -> None:
    for call, value, error in answers:
        if error is None and call.on_result is not None:
            call.on_result(value)
        if call.future.done():
            continue
        if error is None:
            call.future.set_result(value)
        elif isinstance(error, sqlite3.Error):
            call.future.set_exception(DiskFailed(f"a database cannot be read: {error}. {FAILED_REMEDY}"))
        else:
            call.future.set_exception(error)
