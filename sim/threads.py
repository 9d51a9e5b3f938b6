"""The threads of a simulated disk: greenlets on the world's loop (see :mod:`chunkstore.threads`)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from random import Random
from typing import Any

from greenlet import getcurrent, greenlet

from chunkstore.threads import Condition, Signals, Thread, Threads
from sim.loop import SimLoop


class SimThread:
    """A thread that may be waited for."""

    def __init__(self, loop: SimLoop, run: Callable[[], None]) -> None:
        self._loop = loop
        self._over = False
        self._joining: list[greenlet] = []

        def body() -> None:
            try:
                run()
            finally:
                self._over = True
                joining, self._joining = self._joining, []
                for waiting in joining:
                    loop.call_soon(waiting.switch)

        loop.spawn(body)

    def is_alive(self) -> bool:
        return not self._over

    def join(self, timeout: float | None = None) -> None:
        if self._over:
            return
        current = getcurrent()
        self._joining.append(current)
        timer = None if timeout is None else self._loop.call_later(timeout, self._give_up, current)
        self._loop.park()
        if timer is not None:
            timer.cancel()

    def _give_up(self, waiting: greenlet) -> None:
        if waiting in self._joining:
            self._joining.remove(waiting)
            waiting.switch()


class SimCondition:
    """Nobody is interrupted between two waits, so that the lock is nothing."""

    def __init__(self, loop: SimLoop, lag_s: Callable[[], float]) -> None:
        self._loop = loop
        self._lag_s = lag_s
        self._waiting: deque[greenlet] = deque()

    def __enter__(self) -> SimCondition:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def wait(self, timeout: float | None = None) -> bool:
        current = getcurrent()
        self._waiting.append(current)
        timer = None if timeout is None else self._loop.call_later(timeout, self._give_up, current)
        told = bool(self._loop.park())
        if timer is not None:
            timer.cancel()
        return told

    def _give_up(self, waiting: greenlet) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            waiting.switch(False)

    def notify(self, n: int = 1) -> None:
        for _ in range(min(n, len(self._waiting))):
            self._loop.call_later(self._lag_s(), self._waiting.popleft().switch, True)


class SimSignals:
    """A queue of flags."""

    def __init__(self, loop: SimLoop, lag_s: Callable[[], float]) -> None:
        self._loop = loop
        self._lag_s = lag_s
        self._items: deque[bool] = deque()
        self._waiting: deque[greenlet] = deque()

    def put(self, item: bool) -> None:
        if self._waiting:
            self._loop.call_later(self._lag_s(), self._waiting.popleft().switch, item)
        else:
            self._items.append(item)

    def get(self) -> bool:
        if self._items:
            return self._items.popleft()
        self._waiting.append(getcurrent())
        return bool(self._loop.park())


class SimLock:
    """A lock for code that may wait for the disk while it holds it."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self._held = False
        self._waiting: deque[greenlet] = deque()

    def __enter__(self) -> SimLock:
        while self._held:
            self._waiting.append(getcurrent())
            self._loop.park()
        self._held = True
        return self

    def __exit__(self, *error: object) -> None:
        self._held = False
        if self._waiting:
            self._loop.call_soon(self._waiting.popleft().switch)


class SimThreads(Threads):
    """Greenlets instead of threads; how long one takes to wake up is drawn."""

    def __init__(self, loop: SimLoop, random: Random) -> None:
        self._loop = loop
        self._random = random

    def _lag_s(self) -> float:
        return 2e-5 if self._random.random() < 0.9 else 2e-3 * self._random.random()

    def start(self, name: str, run: Callable[[], None]) -> Thread:
        return SimThread(self._loop, run)

    def condition(self) -> Condition:
        return SimCondition(self._loop, self._lag_s)

    def signals(self) -> Signals:
        return SimSignals(self._loop, self._lag_s)

    def lock(self) -> AbstractContextManager[Any]:
        return SimLock(self._loop)
