"""Many transfers at the same time, each of which may fail without stopping the others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from amberblob.cli.output import CommandFailed, complain, printable, say_json
from amberblob.client import ObjectInfo
from amberblob.errors import AmberError

T = TypeVar("T")
FAILURES_SHOWN_MAX = 20


@dataclass(slots=True)
class Outcome:
    """What became of a batch."""

    done: list[ObjectInfo] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def fail(self, name: str, why: str) -> None:
        """Remember, and say it at once."""
        self.failed.append((name, why))
        if len(self.failed) <= FAILURES_SHOWN_MAX:
            complain(f"{printable(name)}: {why}")

    def finish(self, verb: str, *, json_output: bool) -> None:
        """Print the result. Raises CommandFailed when anything failed."""
        if json_output:
            failed = [{"path": name, "error": why} for name, why in self.failed]
            say_json({"objects": [info.to_json() for info in self.done], "failed": failed})
        if self.failed:
            more = f" (the first {FAILURES_SHOWN_MAX} are shown above)" if len(self.failed) > FAILURES_SHOWN_MAX else ""
            raise CommandFailed(
                f"{verb} {len(self.done)}, failed {len(self.failed)}{more}",
                "The same command again does what is left to do.",
            )


async def run_all(
    items: AsyncIterator[T],
    work: Callable[[T], Awaitable[ObjectInfo | None]],
    name: Callable[[T], str],
    *,
    parallel: int,
) -> Outcome:
    """Do ``work`` for every item, ``parallel`` at a time; items are taken as they are needed."""
    outcome = Outcome()
    taking = asyncio.Lock()

    async def worker() -> None:
        while True:
            async with taking:
                item = await anext(items, None)
            if item is None:
                return
            try:
                info = await work(item)
            except BrokenPipeError:
                raise
            except (AmberError, OSError, ValueError) as error:
                outcome.fail(name(item), str(error))
            else:
                if info is not None:
                    outcome.done.append(info)

    async with asyncio.TaskGroup() as group:
        for _ in range(parallel):
            group.create_task(worker())
    return outcome
