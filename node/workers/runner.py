"""Runs background workers: each is a bounded step that says whether there was something to do.

The shape is Garage's (``src/util/background/worker.rs``): no worker owns a loop, a pause or its shutdown.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog

from antientropy.step import Did, Worker

log = structlog.get_logger(__name__)

ERROR_PAUSE_S = 5.0


@dataclass(slots=True)
class _State:
    doing: str = "starting"
    steps: int = 0
    errors: int = 0
    last_error: str = ""


class Runner:
    """Runs workers until it is closed."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._states: dict[str, _State] = {}

    def start(self, worker: Worker) -> None:
        """Run the worker in the background."""
        state = self._states[worker.name] = _State()
        self._tasks.append(asyncio.get_running_loop().create_task(self._run(worker, state), name=worker.name))

    async def _run(self, worker: Worker, state: _State) -> None:
        while True:
            try:
                state.doing = "working"
                did = await worker.step()
                state.steps += 1
                pause_s = 0.0 if did is Did.WORK else worker.pause_s
            except Exception as error:
                # One failed step must not end the worker; what failed is told and tried again later.
                state.errors += 1
                state.last_error = str(error)
                log.warning("background step failed", worker=worker.name, error=str(error), exc_info=True)
                pause_s = ERROR_PAUSE_S
            if pause_s:
                state.doing = "resting"
                await worker.wake.rest(pause_s)
            worker.wake.clear()

    def status(self) -> dict[str, Any]:
        """What every worker is doing."""
        return {
            name: {"doing": s.doing, "steps": s.steps, "errors": s.errors, "last_error": s.last_error}
            for name, s in self._states.items()
        }

    async def close(self) -> None:
        """Stop every worker between two awaits of its step."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
