"""What simulated nodes log: shown when a trace is wanted; an error that nobody foresaw breaks the world."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from amberblob.errors import AmberError
from sim.loop import PROCESS


def listen(surprised: Callable[[BaseException, str], None], note: Callable[[str], None] | None) -> None:
    """Take the logs of all nodes in this process.

    Args:
        surprised: called with an error that was logged with its traceback and is none of ours, and with the line.
        note: told of each line.
    """

    def take(logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        process = PROCESS.get()
        line = f"{process.name if process else '-'} logs {event}"
        if event.get("exc_info"):
            error = sys.exc_info()[1]
            if error is not None and not isinstance(error, AmberError) and "simulated" not in str(error):
                surprised(error, line)
        if note is not None:
            note(line)
        raise structlog.DropEvent

    level = logging.INFO if note is not None else logging.WARNING
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level), processors=[take])
