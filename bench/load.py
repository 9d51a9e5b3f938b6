"""The load generator as a whole: its processes, one window for all of them, and what they found together."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import msgspec

from bench import procfs
from bench.cluster import end_with_parent
from bench.results import percentile
from bench.worker import Findings, Job

PROCESSES_MAX = 2
_CLIENTS_PER_PROCESS = 32
_WARM_UP_S = 0.5
_START_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One window of load."""

    seconds: float
    latencies_us: list[float]
    ends_s: list[float]
    errors: dict[str, int]
    retries: int
    generator_cpu_s: float
    nodes_cpu_s: float
    nodes_written_bytes: int

    @property
    def count(self) -> int:
        """Requests that were answered in the window."""
        return len(self.latencies_us)

    @property
    def per_s(self) -> float:
        """Requests per second."""
        return self.count / self.seconds

    def latency_ms(self, part: float) -> float:
        """A percentile; ``part`` is 0 to 1."""
        return percentile(self.latencies_us, part) / 1000

    def per_op(self, quantity: float) -> float:
        """A quantity of the window, per request."""
        return quantity / max(1, self.count)


def run_load(
    job: Job, seconds: float, *, pids: Sequence[int] = (), halfway: Callable[[], None] | None = None
) -> Measured:
    """Run the job's clients for ``seconds`` after a short warm-up, over as many processes as they need.

    ``pids`` are the nodes, to learn what they used; ``halfway`` is called in the middle of the window.

    Raises:
        RuntimeError: a process of the generator failed.
    """
    shares = _shares(job)
    with ExitStack() as stack:
        workers = [stack.enter_context(_Worker(share)) for share in shares]
        for worker in workers:
            worker.await_up()
        begin = time.monotonic() + _START_S + _WARM_UP_S
        for worker in workers:
            worker.begin(begin, begin + seconds)
        _sleep_until(begin)
        cpu, written = procfs.cpu_s(pids), procfs.written_bytes(pids)
        if halfway is not None:
            _sleep_until(begin + seconds / 2)
            halfway()
        _sleep_until(begin + seconds)
        if halfway is None:  # else one of them is gone
            cpu, written = procfs.cpu_s(pids) - cpu, procfs.written_bytes(pids) - written
        found = [worker.findings() for worker in workers]
    errors: dict[str, int] = {}
    for one in found:
        for what, count in one.errors.items():
            errors[what] = errors.get(what, 0) + count
    return Measured(
        seconds=seconds,
        latencies_us=sorted(value for one in found for value in one.latencies_us),
        ends_s=sorted(value for one in found for value in one.ends_s),
        errors=errors,
        retries=sum(one.retries for one in found),
        generator_cpu_s=sum(one.cpu_s for one in found),
        nodes_cpu_s=cpu,
        nodes_written_bytes=written,
    )


def _shares(job: Job) -> list[Job]:
    count = min(PROCESSES_MAX, -(-job.clients // _CLIENTS_PER_PROCESS))
    first, shares = job.first_client, []
    for index in range(count):
        clients = job.clients // count + (index < job.clients % count)
        shares.append(msgspec.structs.replace(job, clients=clients, first_client=first))
        first += clients
    return shares


def _sleep_until(moment: float) -> None:
    time.sleep(max(0.0, moment - time.monotonic()))


class _Worker:
    """One process of the generator."""

    def __init__(self, job: Job) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
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
        if not line:
            raise RuntimeError(f"a load generator ended with status {self._process.wait()}")
        return line

    def await_up(self) -> None:
        """Return once its clients are connected."""
        self._hear()

    def begin(self, begin: float, end: float) -> None:
        """Tell it the window, in the monotonic clock that all processes share."""
        self._say(f"{begin} {end}".encode())

    def findings(self) -> Findings:
        """What it found; waits for its end."""
        return msgspec.json.decode(self._hear(), type=Findings)
