"""The threads of a disk and what they wait on, in one place: a simulation puts its own instead and decides who runs when.

Everything in this package that waits outside of the event loop does so through these.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol


class Thread(Protocol):
    """A thread that was started."""

    def is_alive(self) -> bool: ...
    def join(self, timeout: float | None = None) -> None: ...


class Condition(Protocol):
    """As :class:`threading.Condition`."""

    def __enter__(self) -> Any: ...
    def __exit__(self, *error: Any) -> Any: ...
    def wait(self, timeout: float | None = None) -> bool: ...
    def notify(self, n: int = 1) -> None: ...


class Signals(Protocol):
    """As :class:`queue.SimpleQueue` of flags."""

    def put(self, item: bool) -> None: ...
    def get(self) -> bool: ...


class Threads:
    """The real ones."""

    def start(self, name: str, run: Callable[[], None]) -> Thread:
        """Run ``run`` in a thread that does not keep the process alive."""
        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def condition(self) -> Condition:
        """A condition with its lock."""
        return threading.Condition()

    def signals(self) -> Signals:
        """A queue of flags between the loop and one thread."""
        return queue.SimpleQueue[bool]()

    def lock(self) -> AbstractContextManager[Any]:
        """A lock."""
        return threading.Lock()
