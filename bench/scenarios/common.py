"""How much of everything, and the rows that one load makes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import procfs
from bench.cluster import NODES, SYNCS, Cluster
from bench.job import Job, Operation, put
from bench.load import Measured, run_through
from bench.results import Recorder

SMALL_BYTES = 4096
LARGE_BYTES = 64 * 2**20
MIB = 2**20
US = 1e6
MANY = 2000
"""From so many requests on p99.9 is shown."""

LINGER_S = 8.0
"""How long the nodes let entries wait on their way into the databases: what a load costs may come so much later."""

_REST_S_MAX = 40.0
_QUIET_S = 3
_IDLE_CPU_S = 0.05
SETTLE_S = 0.5
"""Between loads, so that one does not pay for the upkeep of the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything.

    Attributes:
        runs: how often each thing is measured that a target is about; the others once.
        window_s: how long a load goes on.
        cell_s: the same, for each cell of a table of many.
        floor_s: how long a floor of small writes goes on.
        clients: of the tables of many cells.
        crowds: how many clients move 64 MiB each at once.
        starts: how often a cluster is started.
        huge_bytes: of the body that is larger than memory should be.
        listed: objects in the listing.
        healed: objects on the disk that is emptied.
        compared: objects of which one in a thousand is missed.
        archived: bodies of 64 MiB that are restored, and as many that are read, at once; both are archived.
        archived_small: objects of 4 KiB that are archived at once.
        death_s: how long the load goes on in whose middle a node dies.
        scenario_s: after so long a scenario begins no further run or cell.
        reserve_s: of the whole run, kept for the listing, whose disks take long to fill.
        deadline: the moment (monotonic) after which nothing more begins; a scenario's plan has its own.
    """

    runs: int
    window_s: float
    cell_s: float
    floor_s: float
    clients: tuple[int, ...]
    crowds: tuple[int, ...]
    starts: int
    huge_bytes: int
    listed: int
    healed: int
    compared: int
    archived: int
    archived_small: int
    death_s: float
    scenario_s: float
    reserve_s: float
    deadline: float

    def rounds(self) -> Iterator[int]:
        """The runs, as many as time allows, at least one."""
        for run in range(self.runs):
            if run == 0 or self.in_time():
                yield run

    def in_time(self) -> bool:
        """Whether something more may begin."""
        return time.monotonic() < self.deadline


Scenario = Callable[[Plan, Path, Recorder], None]


def size_name(size_bytes: int) -> str:
    """``4 KiB``, ``64 MiB``."""
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:g} {name}"
    return f"{size_bytes} B"


def clients_name(count: int) -> str:
    """``1 client``, ``16 clients``."""
    return f"{count} client{'s' * (count != 1)}"


def add_load(
    to: Recorder,
    subject: str,
    load: Measured,
    floor: tuple[str, float] | None = None,
    *,
    stored_bytes: int = 0,
    writes: bool = False,
    cluster: Cluster | None = None,
) -> None:
    """The rows of one load.

    Args:
        stored_bytes: of the body that each request stores once.
        writes: every request is a write, so that syncs are told.
        cluster: whose memory is told.
    """
    to.add(subject, "throughput", "ops/s", load.per_s, floor=floor)
    add_latencies(to, subject, load)
    if procfs.CPU in load.used:
        to.add(subject, "CPU of all nodes", "µs/op", load.used_per_op(procfs.CPU) * US)
    if writes and SYNCS in load.used:
        to.add(subject, "journal fdatasync per replica", "per op", load.used_per_op(SYNCS) / NODES)
    if stored_bytes and procfs.WRITTEN in load.used:
        written = load.used_per_op(procfs.WRITTEN) / stored_bytes
        to.add(subject, "written to disk by all nodes", "bytes per byte", written)
    to.add(subject, "CPU of the generator", "µs/op", load.per_op(load.generator_cpu_s * US))
    if cluster is not None:
        to.add(subject, "resident memory, largest node", "MiB", cluster.resident_bytes() / MIB)
    add_errors(to, subject, load)


def add_latencies(to: Recorder, subject: str, load: Measured, operation: str = "") -> None:
    """Percentiles, as far as there are samples enough for them."""
    prefix = f"{operation} " if operation else ""
    count = len(load.by_operation_us[operation]) if operation else load.count
    parts = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)]
    for name, part in parts if count >= MANY else parts[:2]:
        to.add(subject, prefix + name, "ms", load.latency_ms(part, operation))


def add_errors(to: Recorder, subject: str, load: Measured) -> None:
    """How many requests were given up, and of what."""
    to.add(subject, "errors", "", sum(load.errors.values()), note=", ".join(load.errors))


def write_all(
    ports: tuple[int, ...], clients: int, prefix: str, paths: int, size_bytes: int = SMALL_BYTES
) -> Operation:
    """PUT ``paths`` paths for each client; returns the operation that did."""
    operation = put(prefix, paths=paths)
    job = Job(ports=ports, clients=clients, operations=(operation,), body_bytes=size_bytes, requests_each=paths)
    run_through(job)
    return operation


def settle() -> None:
    """Let what the load before left behind be done."""
    time.sleep(SETTLE_S)


def rest(cluster: Cluster) -> None:
    """Wait until the nodes are idle: a new cluster makes its databases some seconds after its first writes, once."""
    deadline = time.monotonic() + _REST_S_MAX
    quiet = 0
    while quiet < _QUIET_S and time.monotonic() < deadline:
        before = cluster.usage()[procfs.CPU]
        time.sleep(1.0)
        quiet = quiet + 1 if cluster.usage()[procfs.CPU] - before < _IDLE_CPU_S else 0
