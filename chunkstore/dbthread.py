"""The database thread: applies what is durable in the background, answers questions in between.

A question may name a *barrier*: a journal position up to which the entries of its slot (or of all slots) must
be in the databases before it is asked. Entries linger so that more of them share a transaction (measured: four times
fewer microseconds per entry than without); a question with a barrier ends the lingering for its own slot alone.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import structlog

from amberblob.clock import Clock
from amberblob.errors import DiskFailed, DiskFull
from amberblob.limits import MIB
from chunkstore.applier import Applier, DurableBatch
from chunkstore.fileops import FAILED_REMEDY
from chunkstore.journal import CLOSED
from chunkstore.sqlite import is_full, is_io_error
from chunkstore.threads import Threads

_log = structlog.get_logger(__name__)
T = TypeVar("T")

LINGER_S = 8.0
UNIT_ENTRIES = 16_384
_UNIT_BYTES = 32 * MIB
_WAKE_BYTES = 1 * MIB
_WAKE_S = 1.0
_INDEX_ROWS = 256
_REST_S_MAX = 0.02
_RETRY_CHECKPOINT_S = 1.0
_RETRY_FULL_S = 1.0
_CALLS_PER_TURN = 64


FULL_REMEDY = "Free space on the disk or add some. A node needs a few MiB to start; what it holds is safe meanwhile."


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
        close_idle: called on the thread about once a second while there is nothing to do, with the monotonic time.
        linger_s: how long entries wait for company.

    Attributes:
        on_applied: called on the loop with the position up to which everything is applied.
        on_failed: called on the loop when the databases cannot be written; nothing is applied afterwards.
    """

    def __init__(
        self, close_idle: Callable[[float], object], *, clock: Clock, threads: Threads, linger_s: float = LINGER_S
    ) -> None:
        self.on_applied: Callable[[int], None] = lambda position: None
        self.on_failed: Callable[[str], None] = lambda why: None
        self._close_idle = close_idle
        self._monotonic_s = clock.monotonic_s
        self._told_applied = 0
        self._linger_s = linger_s
        self._loop = asyncio.get_running_loop()
        self._condition = threads.condition()
        self._calls: list[_Call] = []
        self._fed: deque[DurableBatch] = deque()
        self._fed_bytes = 0
        self._lingering_since: float | None = None
        self._drain: list[int] = []
        self._drain_after = 0.0
        self._index_behind = False
        self._fed_position = 0
        self._waiting = False
        self._stopping = False
        self._checkpoint_after = 0.0
        self._full_until = 0.0
        self._failed: str | None = None
        self.applier: Applier | None = None
        self._thread = threads.start("amber-database", self._run)

    # -- the loop's side

    def start(self, applier: Applier) -> None:
        """Begin to apply."""
        with self._condition:
            self.applier = applier
            self._fed_position = applier.taken
            self._condition.notify()

    def feed(self, batch: DurableBatch) -> None:
        """Hand over a durable batch."""
        with self._condition:
            self._fed.append(batch)
            self._fed_position = batch.entries[-1][0]
            self._fed_bytes += batch.size_bytes
            # Otherwise the thread comes by itself within a second: waking it for every batch costs both threads.
            if self._waiting and (self._calls or self._fed_bytes >= _WAKE_BYTES or self._linger_s < _WAKE_S):
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
            if self._stopping:
                future.set_exception(DiskFailed(CLOSED))
                return future
            if self._failed is not None and barrier > self._fed_position:
                future.set_exception(DiskFailed(self._failed))
                return future
            self._calls.append(_Call(function, slot, barrier, future, on_result))
            self._condition.notify()
        return future

    def fail_barriers(self, why: str) -> None:
        """What is not durable will never be applied: questions that wait for it get DiskFailed."""
        with self._condition:
            self._failed = why
            stuck = [call for call in self._calls if call.barrier > self._fed_position]
            self._calls = [call for call in self._calls if call.barrier <= self._fed_position]
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
            while self._turn_or_wait():
                pass
            self._finish()
        except Exception as error:
            _log.exception("database-thread-failed")
            why = f"the databases cannot be written: {error!r}. {FAILED_REMEDY}"
            self._post(self.on_failed, why)
            self._serve_failed(why)

    def _serve_failed(self, why: str) -> None:
        """Nothing is applied any more; questions about what is applied are still answered."""
        while not self._stopping:
            self._answer()
            with self._condition:
                stuck = [call for call in self._calls if not self._is_ready(call)]
                self._calls = [call for call in self._calls if self._is_ready(call)]
                if not self._calls and not stuck and not self._stopping:
                    self._condition.wait()
            if stuck:
                self._post(_deliver, [(call, None, DiskFailed(why)) for call in stuck])
        self._refuse_left(why)
        if self.applier is not None:
            self.applier.close()

    def _turn_or_wait(self) -> bool:
        """A turn. When the disk is full the ballast goes, and what could not be applied is tried again later."""
        try:
            return self._turn()
        except (sqlite3.Error, OSError) as error:
            applier = self.applier
            if applier is None or not applier.is_no_room(error):
                raise
            applier.tell_full(error)
            if applier.make_room(error):
                return True
            self._tell_applied(applier)
            self._full_until = self._monotonic_s() + _RETRY_FULL_S
            # At the end nobody waits for room: the next start applies what the journal holds.
            return not self._stopping

    def _wait_for_room(self) -> bool:
        """Wait while the disk was full a moment ago; questions about what is applied are answered meanwhile."""
        remaining = self._full_until - self._monotonic_s()
        if remaining <= 0 or self._stopping:
            return False
        with self._condition:
            if not (self._fed or self._stopping or any(map(self._is_ready, self._calls))):
                self._waiting = True
                self._condition.wait(remaining)
                self._waiting = False
        return True

    def _turn(self) -> bool:
        """Do one piece of work, or wait for some; False at the end."""
        applier = self.applier
        if applier is None:
            self._answer_or_raise()
            with self._condition:
                if not (self._calls or self._stopping or self.applier is not None):
                    self._condition.wait()
                return not self._stopping or self.applier is not None
        if self._fed:
            self._fed_bytes = 0
        while self._fed:
            applier.take(self._fed.popleft())
        self._answer_or_raise()
        if self._wait_for_room():
            return True
        unblocked = self._unblock(applier)
        # Also while questions keep coming: the journal waits for what is drained.
        if self._drain_some(applier) or unblocked:
            return True
        if self._stopping and not self._fed:
            return False
        return self._upkeep(applier)

    def _unblock(self, applier: Applier) -> bool:
        """Apply what a waiting question needs; False when none waits for what is here."""
        for call in list(self._calls):
            if call.barrier <= applier.taken and not self._is_ready(call):
                if call.slot is None:
                    applier.update_index()
                else:
                    applier.apply_slot(call.slot)
                return True
        return False

    def _drain_some(self, applier: Applier) -> bool:
        """Apply one slot, if enough has gathered or waited long enough."""
        if self._index_behind:
            self._index_behind = not applier.update_index(_INDEX_ROWS)
            if not self._drain:
                return True
        if not self._drain:
            if not applier.waiting_entries:
                self._lingering_since = None
                return False
            now = self._monotonic_s()
            if self._lingering_since is None:
                self._lingering_since = now
            is_due = (
                self._stopping
                or applier.waiting_entries >= UNIT_ENTRIES
                or applier.waiting_bytes >= _UNIT_BYTES
                or now - self._lingering_since >= self._linger_s
            )
            if not is_due:
                return False
            self._drain = applier.waiting_slots()
            self._lingering_since = None
        began_s = self._monotonic_s()
        if began_s < self._drain_after and not self._stopping and applier.waiting_bytes < 2 * _UNIT_BYTES:
            return False
        applier.apply_slot(self._drain.pop())
        # The loop's thread needs the interpreter, too: work for a while, rest for as long.
        ended_s = self._monotonic_s()
        self._drain_after = ended_s + min(ended_s - began_s, _REST_S_MAX)
        if not self._drain:
            self._index_behind = True
            self._tell_applied(applier)
            # A segment may be finished now.
            self._checkpoint_after = 0.0
        return True

    def _tell_applied(self, applier: Applier) -> None:
        """Tell the loop how far the databases are, if that is news: somebody may wait for room in memory."""
        applied = applier.applied
        if applied > self._told_applied:
            self._told_applied = applied
            self._post(self.on_applied, applied)

    def _upkeep(self, applier: Applier) -> bool:
        """A step towards letting a segment go, or a wait."""
        # Questions and the index apply entries too, so that nothing may be left for the next drain to tell of.
        self._tell_applied(applier)
        now = self._monotonic_s()
        if now >= self._checkpoint_after:
            if not applier.step():
                self._checkpoint_after = now + _RETRY_CHECKPOINT_S
                self._close_idle(now)
            return True
        timeout = self._checkpoint_after - now
        if self._lingering_since is not None:
            timeout = min(timeout, self._linger_s - (now - self._lingering_since))
        if self._drain:
            timeout = min(timeout, self._drain_after - now)
        with self._condition:
            if not (self._calls or self._fed or self._stopping) or self._only_undelivered(applier):
                self._waiting = True
                self._condition.wait(max(timeout, 0.001))
                self._waiting = False
        return True

    def _only_undelivered(self, applier: Applier) -> bool:
        """Whether every question waits for entries that the journal has not handed over."""
        return (
            bool(self._calls)
            and not self._fed
            and not self._stopping
            and all(call.barrier > applier.taken for call in self._calls)
        )

    def _is_applied(self, slot: int | None, position: int) -> bool:
        return self.applier is None or position == 0 or self.applier.is_applied(slot, position)

    def _is_ready(self, call: _Call) -> bool:
        return self._is_applied(call.slot, call.barrier)

    def _answer(self) -> Exception | None:
        """Run the questions whose barrier is passed, and post all answers at once; the error that breaks the disk, if any."""
        if not self._calls:
            return None
        with self._condition:
            ready = [call for call in self._calls if self._is_ready(call)][:_CALLS_PER_TURN]
            if not ready:
                return None
            taken = set(map(id, ready))
            self._calls = [call for call in self._calls if id(call) not in taken]
        answers: list[tuple[_Call, Any, Exception | None]] = []
        broken: Exception | None = None
        for call in ready:
            try:
                answers.append((call, call.function(), None))
            except Exception as error:
                answers.append((call, None, error))
                if self._is_broken(error):
                    broken = error
        self._post(_deliver, answers)
        return broken

    def _answer_or_raise(self) -> None:
        broken = self._answer()
        if broken is not None:
            raise broken

    def _is_broken(self, error: Exception) -> bool:
        """Whether a question met an I/O error, in a sync perhaps: then nobody knows what SQLite's files, or a folder, hold now."""
        applier = self.applier
        if isinstance(error, DiskFailed):
            return True
        return is_io_error(error) and not (applier is not None and applier.is_no_room(error))

    def _finish(self) -> None:
        self._refuse_left(CLOSED)
        applier = self.applier
        if applier is None:
            return
        while applier.step(everything=True):
            pass
        applier.close()

    def _refuse_left(self, why: str) -> None:
        with self._condition:
            left, self._calls = self._calls, []
        self._post(_deliver, [(call, None, DiskFailed(why)) for call in left])


def _deliver(answers: list[tuple[_Call, Any, Exception | None]]) -> None:
    for call, value, error in answers:
        if error is None and call.on_result is not None:
            call.on_result(value)
        if call.future.done():
            continue
        if error is None:
            call.future.set_result(value)
        elif isinstance(error, sqlite3.Error) and is_full(error):
            call.future.set_exception(DiskFull(f"a database needs room, and there is none: {error}. {FULL_REMEDY}"))
        elif isinstance(error, sqlite3.Error):
            call.future.set_exception(DiskFailed(f"a database cannot be read: {error}. {FAILED_REMEDY}"))
        else:
            call.future.set_exception(error)
