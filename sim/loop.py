"""An event loop whose time is virtual, and whose every callback belongs to a simulated process.

When nothing is ready the clock jumps to the next timer. Blocking code (the threads of a disk, what is handed to an
executor) runs in greenlets on the same thread: :meth:`SimLoop.sleep` and :meth:`SimLoop.park` let the others go on.

A process that was killed never runs again: its callbacks are dropped, its greenlets end where they stand. One that
is paused keeps its callbacks until it goes on.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import copy_context
from heapq import heappop, heappush
from typing import Any, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

T = TypeVar("T")

TASKS_DONE_MAX = 64
"""So many tasks of a process that are done are kept at least before they are forgotten, all at once."""


class Gone(GreenletExit):
    """Raised in code of a process that was killed, wherever it waits."""


class Deadlock(AssertionError):
    """Nothing is ready and nothing will ever be."""


class Process:
    """One simulated process: what it runs can be killed and paused as a whole."""

    __slots__ = ("_context", "alive", "greenlets", "held", "name", "on_death", "paused", "tasks", "tasks_max")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.paused = False
        self.held: list[SimHandle] = []
        self.greenlets: dict[greenlet, None] = {}
        self.tasks: dict[int, SimTask] = {}
        """By number; some of them are done."""
        self.tasks_max = TASKS_DONE_MAX
        self.on_death: dict[int, Callable[[], None]] = {}
        self._context = contextvars.Context()
        self._context.run(PROCESS.set, self)

    def own(self, task: SimTask) -> None:
        """Remember a task until it is done. (A callback of each that is done would be every eighth turn of the loop.)"""
        self.tasks[task._number] = task
        if len(self.tasks) > self.tasks_max:
            self.tasks = {number: task for number, task in self.tasks.items() if not task.done()}
            self.tasks_max = 2 * len(self.tasks) + TASKS_DONE_MAX

    def context(self) -> contextvars.Context:
        """A fresh context whose callbacks belong to this process."""
        return self._context.copy()


PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class SimTask(asyncio.Task[Any]):
    """A task that sorts into sets in the same way in each run: sets of tasks are walked, and addresses differ.

    Numbered by :meth:`SimLoop.create_task`, before it is initialised.
    """

    _number: int

    def __hash__(self) -> int:
        return self._number


class SimFuture(asyncio.Future[Any]):
    """As :class:`SimTask`, by :meth:`SimLoop.create_future`."""

    _number: int

    def __hash__(self) -> int:
        return self._number


class SimHandle(list[Any]):
    """A callback, its arguments and its context; empty once it was cancelled.

    Stands for :class:`asyncio.TimerHandle`, of which only :meth:`cancel` is used; a world makes 50,000 of these, and a list is made
    without running Python code.
    """

    __slots__ = ()
    __hash__ = object.__hash__  # type: ignore[assignment]

    def cancel(self) -> None:
        """It will not run. Its arguments are let go at once: it stays among the timers until its time."""
        self.clear()


class SimLoop(asyncio.BaseEventLoop):
    """See the module."""

    def __init__(self) -> None:
        super().__init__()
        # Asked for with each future and task; called without going through Python code.
        self.get_debug = bool  # type: ignore[method-assign]
        # Begins anew with each loop: the order of a set depends on the hashes themselves, not only on their order.
        self._numbers = itertools.count()
        self._now = 0.0
        self._hub = getcurrent()
        self._timers: list[tuple[float, int, SimHandle]] = []
        self._order = itertools.count()
        self.turns = 0
        self.turns_max = 0
        """How many callbacks may run in all; 0: any number. A livelock in virtual time ends here."""
        self.graveyard: list[Any] = []

    # -- what asyncio asks of a loop

    def time(self) -> float:
        return self._now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> SimHandle:
        if self._closed:  # type: ignore[attr-defined]
            raise RuntimeError("Event loop is closed")
        handle = SimHandle((callback, args, copy_context() if context is None else context))
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> SimHandle:
        handle = SimHandle((callback, args, copy_context() if context is None else context))
        # Timers of one instant go in the order in which they were set.
        heappush(self._timers, (self._now + delay, next(self._order), handle))
        return handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> SimHandle:
        handle = SimHandle((callback, args, copy_context() if context is None else context))
        heappush(self._timers, (when, next(self._order), handle))
        return handle

    def create_future(self) -> SimFuture:
        future = SimFuture(loop=self)
        future._number = next(self._numbers)
        return future

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, T], *, name: str | None = None, context: contextvars.Context | None = None
    ) -> asyncio.Task[T]:
        if self._closed:  # type: ignore[attr-defined]
            raise RuntimeError("Event loop is closed")
        task = SimTask.__new__(SimTask)
        # Its initialisation puts it into a set.
        task._number = next(self._numbers)
        task.__init__(coro, loop=self, name=name, context=context)  # type: ignore[misc]
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            process.own(task)
        return task

    def _write_to_self(self) -> None:
        """Nobody has to be woken: there is one thread."""

    def _process_events(self, event_list: list[Any]) -> None:
        """There are none."""

    def _run_once(self) -> None:
        """Run what is ready, and then what became ready by that, until the loop is to stop."""
        ready, timers, graveyard = self._ready, self._timers, self.graveyard  # type: ignore[attr-defined]
        next_ready, process_of = ready.popleft, PROCESS
        while True:
            while not ready:
                if not timers:
                    raise Deadlock("nothing is ready, and nothing will ever be")
                when, _, handle = heappop(timers)
                if handle:
                    self._now = max(self._now, when)
                    ready.append(handle)
            now = self._now
            while timers and timers[0][0] <= now:
                handle = heappop(timers)[2]
                if handle:
                    ready.append(handle)
            turns = len(ready)
            for _ in range(turns):
                handle = next_ready()
                if not handle:
                    continue
                callback, args, context = handle
                process = context.get(process_of)
                if process is not None:
                    if not process.alive:
                        graveyard.append(handle)
                        continue
                    if process.paused:
                        process.held.append(handle)
                        continue
                try:
                    context.run(callback, *args)
                except (SystemExit, KeyboardInterrupt):
                    raise
                except BaseException as error:
                    self.call_exception_handler({"message": f"in {callback!r}", "exception": error})
            self.turns += turns
            if self.turns_max and self.turns > self.turns_max:
                raise Deadlock(f"{self.turns} callbacks have run: something goes round in circles")
            if self._stopping:  # type: ignore[attr-defined]
                return

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
        new.gr_context = copy_context()
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
        for task in process.tasks.values():
            if task.done():
                continue
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
