"""An event loop whose time is virtual, and whose every callback belongs to a simulated process.

When nothing is ready the clock jumps to the next timer. Blocking code (the threads of a disk, what is handed to an
executor) runs in greenlets on the same thread: :meth:`SimLoop.sleep` and :meth:`SimLoop.park` let the others go on.

A process that was killed never runs again: its callbacks are dropped, its greenlets end where they stand. One that
is paused keeps its callbacks until it goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")

_numbers = itertools.count()
"""Begins anew with each loop: the order of a set depends on the hashes themselves, not only on their order."""


class Gone(GreenletExit):
    """Raised in code of a process that was killed, wherever it waits."""


class Deadlock(AssertionError):
    """Nothing is ready and nothing will ever be."""


class Process:
    """One simulated process: what it runs can be killed and paused as a whole."""

    __slots__ = ("alive", "greenlets", "held", "name", "on_death", "paused", "tasks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.held: list[asyncio.Handle] = []
        self.greenlets: dict[greenlet, None] = {}
        self.tasks: dict[SimTask, None] = {}
        self.on_death: dict[int, Callable[[], None]] = {}

    def context(self) -> contextvars.Context:
        """A fresh context whose callbacks belong to this process."""
        context = contextvars.Context()
        context.run(PROCESS.set, self)
        return context


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class SimTask(asyncio.Task[Any]):
    """A task that sorts into sets in the same way in each run: sets of tasks are walked, and addresses differ."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], **options: Any) -> None:
        self._number = next(_numbers)
        super().__init__(coroutine, **options)
        context = options.get("context")
        self.process = PROCESS.get() if context is None else context.get(PROCESS)
        if self.process is not None:
            self.process.tasks[self] = None
            self.add_done_callback(self.process.tasks.pop, context=_NO_PROCESS)

    def __hash__(self) -> int:
        return self._number


class SimFuture(asyncio.Future[Any]):
    """As :class:`SimTask`."""

    def __init__(self, **options: Any) -> None:
        self._number = next(_numbers)
        super().__init__(**options)

    def __hash__(self) -> int:
        return self._number


_NO_PROCESS = contextvars.Context()


class SimLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self) -> None:
        global _numbers
        super().__init__()
        _numbers = itertools.count()
        self._now = 0.0
        self._hub = getcurrent()
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = itertools.count()
        self.turns = 0
        self.turns_max = 0
        """How many callbacks may run in all; 0: any number. A livelock in virtual time ends here."""
        self.set_task_factory(lambda loop, coroutine, **options: SimTask(coroutine, loop=loop, **options))
        self.graveyard: list[Any] = []

    # -- what asyncio asks of a loop

    def time(self) -> float:
        return self._now

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        # Timers of one instant go in the order in which they were set.
        heapq.heappush(self._timers, (when, next(self._order), timer))
        return timer

    def create_future(self) -> SimFuture:
        return SimFuture(loop=self)

    def _write_to_self(self) -> None:
        """Nobody has to be woken: there is one thread."""

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is passed over when its time comes."""

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers  # type: ignore[attr-defined]
        while not ready:
            if not timers:
                raise Deadlock("nothing is ready, and nothing will ever be")
            when, _, timer = heapq.heappop(timers)
            if not timer._cancelled:
                self._now = max(self._now, when)
                ready.append(timer)
        now = self._now
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            if not timer._cancelled:
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None:
                if not process.alive:
                    self.graveyard.append(handle)
                    continue
                if process.paused:
                    process.held.append(handle)
                    continue
            self.turns += 1
            handle._run()
        if self.turns_max and self.turns > self.turns_max:
            raise Deadlock(f"{self.turns} callbacks have run: something goes round in circles")

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, function: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            try:
                result = function(*args)
            except GreenletExit:
                raise
            except BaseException as error:
                if not future.cancelled():
                    future.set_exception(error)
            else:
                if not future.cancelled():
                    future.set_result(result)

        self.spawn(run)
        return future

    # -- blocking code

    def spawn(self, run: Callable[[], None]) -> greenlet:
        """Run blocking code; it begins soon and belongs to the process that asked for it."""
        process = PROCESS.get()

        def body() -> None:
            try:
                run()
            except GreenletExit:
                if process is None or process.alive:
                    raise
            except BaseException:
                if process is None or process.alive:
                    raise
                # Code of a dead process stumbles over what is no longer there; nobody sees it.
            finally:
                if process is not None and process.alive:
                    process.greenlets.pop(new, None)

        new = greenlet(body, parent=self._hub)
        new.gr_context = contextvars.copy_context()
        if process is not None:
            process.greenlets[new] = None
        self.call_soon(new.switch)
        return new

    @property
    def may_wait(self) -> bool:
        """Whether the caller is blocking code and not the loop itself."""
        return getcurrent() is not self._hub

    def sleep(self, seconds: float) -> None:
        """Blocking code waits; the loop goes on meanwhile. On the loop itself it does not wait at all."""
        current = getcurrent()
        if current is self._hub:
            return
        self.call_later(seconds, current.switch)
        self._hub.switch()

    def park(self) -> Any:
        """Blocking code waits until somebody calls ``switch`` on it; what was given to that is returned."""
        assert self.may_wait, "the loop itself must not wait"
        return self._hub.switch()

    # -- life and death

    def kill(self, process: Process) -> None:
        """End a process between two of its callbacks or in the middle of what blocks."""
        assert not self.may_wait
        process.alive = False
        self.graveyard += process.held
        process.held.clear()
        for waiting in list(process.greenlets):
            if not waiting.dead:
                waiting.throw(Gone)
        # Coroutines that are dropped would run their cleaning up, which a kill does not do.
        for task in process.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            self.graveyard.append(task)
        told = list(process.on_death.values())
        process.on_death.clear()
        for callback in told:
            callback()

    def pause(self, process: Process) -> None:
        """Stop a process as SIGSTOP does."""
        process.paused = True

    def resume(self, process: Process) -> None:
        """Let it go on."""
        process.paused = False
        held, process.held = process.held, []
        self._ready.extend(held)  # type: ignore[attr-defined]
