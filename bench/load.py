"""The load generator as a whole: its processes, one window for all of them, and what they found together."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec

from bench.environment import ENVIRONMENT, end_with_parent
from bench.job import Findings, Job, shares
from bench.results import percentile

PROCESSES_MAX = 2
_CLIENTS_PER_PROCESS = 32
_WARM_UP_S = 0.5
_START_S = 0.1

Probe = Callable[[], Mapping[str, float]]
"""Reads what the servers have used so far, by name: numbers that only grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One window of load.

    Attributes:
        latencies_us: of all requests, ascending.
        by_operation_us: the same by operation.
        used: by how much the numbers of the probe grew in the window.
        unsent: requests of an open loop that were due and never sent.
    """

    seconds: float
    latencies_us: list[float]
    by_operation_us: dict[str, list[float]]
    ends_s: list[float]
    statuses: dict[int, int]
    errors: dict[str, int]
    retries: int
    unsent: int
    generator_cpu_s: float
    used: dict[str, float]

    @property
    def count(self) -> int:
        """Requests that were done in the window."""
        return len(self.latencies_us)

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return self.count / self.seconds

    def latency_ms(self, part: float, operation: str = "") -> float:
        """A percentile, of one operation or all; ``part`` is 0 to 1."""
        return percentile(self.by_operation_us[operation] if operation else self.latencies_us, part) / 1000

    def per_op(self, quantity: float) -> float:
        """A quantity of the window, per request."""
        return quantity / max(1, self.count)

    def used_per_op(self, name: str) -> float:
        """What the servers used of it, per request; 0 of what the probe does not tell."""
        return self.per_op(self.used.get(name, 0.0))


def run_load(
    job: Job,
    seconds: float,
    *,
    probe: Probe | None = None,
    halfway: Callable[[], None] | None = None,
    warm_up_s: float = _WARM_UP_S,
) -> Measured:
    """Run the job's clients for ``seconds`` after a warm-up, over as many processes as they need.

    ``probe`` is read at both ends of the window; ``halfway`` is called in its middle.

    Raises:
        RuntimeError: a process of the generator failed.
    """
    with ExitStack() as stack:
        workers = _start(job, stack)
        start = time.monotonic() + _START_S
        begin = start + warm_up_s
        for worker in workers:
            worker.begin(start, begin, begin + seconds)
        _sleep_until(begin)
        before = dict(probe()) if probe is not None else {}
        if halfway is not None:
            _sleep_until(begin + seconds / 2)
            halfway()
        _sleep_until(begin + seconds)
        after = dict(probe()) if probe is not None else {}
        found = [worker.findings() for worker in workers]
    return _together(found, seconds, _growth(before, after))


def run_through(job: Job, *, probe: Probe | None = None) -> Measured:
    """Have each client send ``requests_each`` requests, as fast as it can; for what must be there before a window.

    Raises:
        RuntimeError: a process of the generator failed, or a request did.
    """
    assert job.requests_each, "else it has no end"
    with ExitStack() as stack:
        workers = _start(job, stack)
        before = dict(probe()) if probe is not None else {}
        began = time.monotonic()
        for worker in workers:
            worker.begin(began, began, float("inf"))
        found = [worker.findings() for worker in workers]
        seconds = time.monotonic() - began
        after = dict(probe()) if probe is not None else {}
    done = _together(found, seconds, _growth(before, after))
    if done.errors:
        raise RuntimeError(f"{job.operations[0].method} {job.operations[0].target}: {done.errors}")
    return done


def _start(job: Job, stack: ExitStack) -> list[_Worker]:
    workers = [stack.enter_context(_Worker(share)) for share in shares(job, PROCESSES_MAX, _CLIENTS_PER_PROCESS)]
    for worker in workers:
        worker.await_up()
    return workers


def _growth(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in after.items() if name in before}


def _together(found: list[Findings], seconds: float, used: dict[str, float]) -> Measured:
    errors: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    for one in found:
        errors.update(one.errors)
        statuses.update(one.statuses)
    names = list(dict.fromkeys(name for one in found for name in one.latencies_us))
    by_operation = {name: sorted(value for one in found for value in one.latencies_us[name]) for name in names}
    return Measured(
        seconds=seconds,
        latencies_us=sorted(value for values in by_operation.values() for value in values),
        by_operation_us=by_operation,
        ends_s=sorted(value for one in found for value in one.ends_s),
        statuses=dict(statuses),
        errors=dict(errors),
        retries=sum(one.retries for one in found),
        unsent=sum(one.unsent for one in found),
        generator_cpu_s=sum(one.cpu_s for one in found),
        used=used,
    )


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


class _Worker:
    """One process of the generator."""

    def __init__(self, job: Job) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs while it starts
        )
        self._say(msgspec.json.encode(job))

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _say(self, line: bytes) -> None:
        assert self._process.stdin is not None, "it was opened with a pipe"
        self._process.stdin.write(line + b"\n")
        self._process.stdin.flush()

    def _hear(self) -> bytes:
        assert self._process.stdout is not None, "it was opened with a pipe"
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            raise RuntimeError(f"a load generator ended with status {self._process.wait()}")
        return line

    def await_up(self) -> None:
        """Return once its clients are connected."""
        self._hear()

    def begin(self, start: float, begin: float, end: float) -> None:
        """Tell it the window, in the monotonic clock that all processes share; ``start`` is of the warm-up."""
        self._say(f"{start} {begin} {end}".encode())

    def findings(self) -> Findings:
        """What it found; waits for its end."""
        return msgspec.json.decode(self._hear(), type=Findings)
