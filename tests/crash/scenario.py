"""The process that is killed: runs the workload on a folder and writes its lines to file descriptor 1.

``python -m tests.crash.scenario DISK`` runs it once. With ``--nursery`` it reads one JSON command per line from
standard input and runs each in a fork, so that the imports are paid for once; see :mod:`tests.crash.runs`.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

GATE_S = 120.0
LIFE_S_MAX = 200.0


class _OneThread(concurrent.futures.ThreadPoolExecutor):
    """One worker: its calls come in the same order every time."""

    def __init__(self, max_workers: int | None = None, *args: Any, **options: Any) -> None:
        super().__init__(1, *args, **options)


def _line(line: Any) -> None:
    from tests.crash.lines import encode_line

    os.write(1, encode_line(line))


def _introduce_threads(gate: str | None) -> None:
    """Every thread says who it is when it begins; the one named ``gate`` then waits until somebody traces it."""
    run = threading.Thread.run

    def introduced(self: threading.Thread) -> None:
        introduce(self.name, gate)
        run(self)

    threading.Thread.run = introduced  # type: ignore[method-assign]


def introduce(name: str, gate: str | None) -> None:
    """Say who this thread is, and wait for its tracer if it is ``gate``."""
    from tests.crash.lines import Started

    tid = threading.get_native_id()
    _line(Started(name, os.getpid(), tid))
    if name != gate:
        return
    until = time.monotonic() + GATE_S
    while not _is_traced():
        if time.monotonic() > until:
            os._exit(70)
        time.sleep(0.001)


def _is_traced() -> bool:
    """Whether the tracer sees what this thread calls: then it has this one fail, and nobody else makes it.

    That there is a tracer says less: between seizing the thread and stopping it may lie any time.
    """
    try:
        os.getsid(0)
    except OSError:
        return True
    return False


def run(
    disk: str, *, phase: int = 1, gate: str | None = None, mutant: str | None = None, one_thread: bool = False,
    die_after: int = 0, die_before: str | None = None, carry_on: bool = False, step_s: float = 3.0,
    reserve_bytes: int = 0,
) -> None:  # fmt: skip
    """One life in this process.

    Args:
        gate: name of the thread that waits for a tracer.
        mutant: a mistake to build in, see :mod:`tests.crash.mutants`.
        one_thread: one thread for the files instead of a few.
        die_after: kill this process after so many acknowledgements.
        die_before: kill it before one of the store's own calls, see :class:`tests.crash.mutants.DyingOps`.
        carry_on: go on when the store refuses a step.
        step_s: then a step is given up after so long.
    """
    if one_thread:
        concurrent.futures.ThreadPoolExecutor = _OneThread  # type: ignore[misc]
    import structlog

    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    from tests.crash.lines import BlobHolds, Broken, Discarded, Holds, Refused
    from tests.crash.mutants import build_in
    from tests.crash.workload import Workload

    _introduce_threads(gate)
    introduce("main", gate)
    left = die_after

    def tell(line: Any) -> None:
        nonlocal left
        _line(line)
        if left and isinstance(line, Holds | BlobHolds | Discarded):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    ops = build_in(mutant, die_before)
    try:
        workload = Workload(Path(disk), tell, phase=phase, carry_on=carry_on, step_s=step_s)
        asyncio.run(workload.run(ops, reserve_bytes=reserve_bytes))
    except AssertionError as error:
        _line(Broken(repr(error)))
        raise
    except Exception as error:
        _line(Refused("open", type(error).__name__, str(error)))
        sys.exit(3)


def _fork(command: dict[str, Any]) -> int:
    """The exit status (as of waitpid) of a life in a fork, whose lines go to the file ``output``."""
    output = command.pop("output")
    pid = os.fork()
    if pid == 0:
        code = 71
        try:
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(fd, 1)
            os.close(fd)
            # One that hangs tells where, and ends.
            faulthandler.dump_traceback_later(LIFE_S_MAX, exit=True)
            run(**command)
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def _nursery() -> None:
    import structlog  # noqa: F401

    if os.environ.get("ONE_THREAD"):
        concurrent.futures.ThreadPoolExecutor = _OneThread  # type: ignore[misc]
    import tests.crash.mutants
    import tests.crash.workload  # noqa: F401

    for text in sys.stdin:
        os.write(1, f"{_fork(json.loads(text))}\n".encode())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("disk", nargs="?")
    parser.add_argument("--nursery", action="store_true")
    parser.add_argument("--phase", type=int, default=1)
    parser.add_argument("--mutant")
    parser.add_argument("--die-after", type=int, default=0)
    parser.add_argument("--die-before")
    parser.add_argument("--one-thread", action="store_true")
    options = parser.parse_args()
    if options.nursery:
        _nursery()
        return
    go: Callable[[], None] = partial(
        run, options.disk, phase=options.phase, mutant=options.mutant, die_after=options.die_after,
        die_before=options.die_before, one_thread=options.one_thread,
    )  # fmt: skip
    go()


if __name__ == "__main__":
    main()
