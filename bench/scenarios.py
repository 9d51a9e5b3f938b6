"""What is done to the cluster: one function per scenario, each with a cluster in a folder of its own.

Each adds its values run by run; a floor is measured right before or after the value that it stands beside, because
on a shared machine nothing else is comparable.
"""

from __future__ import annotations

import os
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import tomli_w
from msgspec.structs import replace

from bench import bulk, floors, procfs
from bench.cluster import Cluster
from bench.fill import OBJECTS_PER_PREFIX, fill_disks, prefix_of
from bench.job import OBJECTS, WRITE_ID, Job, get, put
from bench.load import Measured, run_load, run_through
from bench.results import Recorder, percentile

SMALL_BYTES = 4096
LARGE_BYTES = 64 * 2**20
_MIB = 2**20
_US = 1e6
_PATHS = 100
_SETTLE_S = 2.0
_PAGES = 20
_FILL_MIN_S = 60.0
_CALM_MAX_S = 20.0
_OPEN_SLOTS = 8
_RETRY_DEADLINE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything.

    Attributes:
        runs: how often each thing is measured.
        window_s: how long a load goes on.
        floor_s: how long a floor of small writes goes on.
        starts: how often a cluster is started.
        huge_bytes: of the body that is larger than memory should be.
        listed: objects in the listing.
        death_s: how long the load goes on in whose middle a node dies.
        deadline: the moment (monotonic) after which no further run begins.
    """

    runs: int
    window_s: float
    floor_s: float
    starts: int
    huge_bytes: int
    listed: int
    death_s: float
    deadline: float

    def rounds(self) -> Iterator[int]:
        """The runs, as many as time allows, at least one."""
        for run in range(self.runs):
            if run == 0 or time.monotonic() < self.deadline:
                yield run


Scenario = Callable[[Plan, Path, Recorder], None]


def _add_load(
    to: Recorder, subject: str, load: Measured, floor: tuple[str, float] | None, *, stored_bytes: int
) -> None:
    to.add(subject, "throughput", "ops/s", load.per_s, floor=floor)
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        to.add(subject, name, "ms", load.latency_ms(part))
    to.add(subject, "CPU of all nodes", "µs/op", load.used_per_op(procfs.CPU) * _US)
    to.add(subject, "CPU of the generator", "µs/op", load.per_op(load.generator_cpu_s * _US))
    if stored_bytes:
        to.add(
            subject,
            "written to disk by all nodes",
            "bytes per byte",
            load.used_per_op(procfs.WRITTEN) / stored_bytes,
        )
    to.add(subject, "errors", "", sum(load.errors.values()), note=", ".join(load.errors))


def put_small(plan: Plan, folder: Path, to: Recorder) -> None:
    """PUT 4 KiB at 1, 16 and 64 clients, beside group commits of as many."""
    with Cluster(folder) as cluster:
        # The first writes of a new cluster make a database per slot on each node: a cost of its own, met once.
        job = Job(
            ports=tuple(cluster.ports), clients=64, operations=(put("new"),), body_bytes=SMALL_BYTES
        )  # fmt: skip
        load = run_load(job, plan.window_s, probe=cluster.usage)
        _add_load(to, "PUT 4 KiB, 64 clients, first seconds of a new cluster", load, None, stored_bytes=SMALL_BYTES)
        for run in plan.rounds():
            for clients in (1, 16, 64):
                time.sleep(_SETTLE_S)
                floor = floors.group_commit_per_s(folder, SMALL_BYTES, clients, plan.floor_s)
                job = Job(
                    ports=tuple(cluster.ports), clients=clients, operations=(put(f"put/{run}/{clients}"),),
                    body_bytes=SMALL_BYTES,
                )  # fmt: skip
                load = run_load(job, plan.window_s, probe=cluster.usage)
                name = f"append + fdatasync per {clients}"
                subject = f"PUT 4 KiB, {clients} client{'s' * (clients > 1)}"
                _add_load(to, subject, load, (name, floor), stored_bytes=SMALL_BYTES)


def get_small(plan: Plan, folder: Path, to: Recorder) -> None:
    """GET 4 KiB at 16 clients, strong and local, beside a server that answers from memory without looking."""
    clients = 16
    with Cluster(folder) as cluster, floors.null_server(SMALL_BYTES) as (null_port, null_pid):
        ports = tuple(cluster.ports)
        run_through(
            Job(
                ports=ports, clients=clients, operations=(put("get", paths=_PATHS),), body_bytes=SMALL_BYTES,
                requests_each=_PATHS,
            )
        )  # fmt: skip
        for _ in plan.rounds():
            null_job = Job(ports=(null_port,), clients=clients, operations=(get("get", paths=_PATHS),))
            null = run_load(null_job, plan.floor_s, probe=lambda: procfs.usage([null_pid]))
            subject = "GET 4 KiB from the null server, 16 clients"
            to.add(subject, "throughput (the generator's own limit)", "ops/s", null.per_s)
            to.add(subject, "CPU of the generator", "µs/op", null.per_op(null.generator_cpu_s * _US))
            for consistency in ("strong", "local"):
                headers = f"X-Amber-Consistency: {consistency}\r\n"
                reading = Job(ports=ports, clients=clients, operations=(get("get", paths=_PATHS, headers=headers),))
                load = run_load(reading, plan.window_s, probe=cluster.usage)
                subject = f"GET 4 KiB {consistency}, {clients} clients"
                _add_load(to, subject, load, ("null server", null.per_s), stored_bytes=0)


def large(plan: Plan, folder: Path, to: Recorder) -> None:
    """PUT and GET 64 MiB, one at a time."""
    body = os.urandom(LARGE_BYTES)
    mib = LARGE_BYTES / _MIB
    with Cluster(folder) as cluster:
        for run in plan.rounds():
            copies = floors.three_copies_s(folder, body)
            port = cluster.ports[run % len(cluster.ports)]
            cpu = procfs.cpu_s(cluster.pids)
            seconds = bulk.put(port, f"{OBJECTS}large/{run}", len(body), body)
            cpu = procfs.cpu_s(cluster.pids) - cpu
            to.add("PUT 64 MiB", "throughput", "MiB/s", mib / seconds, floor=("three files + fsync", mib / copies))
            to.add("PUT 64 MiB", "CPU of all nodes", "ms/MiB", cpu * 1000 / mib)
            to.add("loopback, 64 MiB from memory", "throughput", "MiB/s", mib / floors.loopback_s(body))
            sent = floors.sendfile_s(folder, body)
            cpu = procfs.cpu_s(cluster.pids)
            seconds = bulk.get(port, f"{OBJECTS}large/{run}", len(body))
            cpu = procfs.cpu_s(cluster.pids) - cpu
            to.add("GET 64 MiB", "throughput", "MiB/s", mib / seconds, floor=("sendfile, loopback", mib / sent))
            to.add("GET 64 MiB", "CPU of all nodes", "ms/MiB", cpu * 1000 / mib)


def huge(plan: Plan, folder: Path, to: Recorder) -> None:
    """PUT and GET a body of gigabytes: the nodes' memory must not follow its size."""
    part = os.urandom(LARGE_BYTES)
    size = f"{plan.huge_bytes / 2**30:g} GiB"
    with Cluster(folder) as cluster:
        for run in plan.rounds():
            port = cluster.ports[run % len(cluster.ports)]
            path = f"{OBJECTS}huge/{run}"
            for name, transfer in (
                ("PUT", partial(bulk.put, port, path, plan.huge_bytes, part)),
                ("GET", partial(bulk.get, port, path, plan.huge_bytes)),
            ):
                memory = bulk.PeakMemory.watch(cluster)
                seconds = transfer()
                above = memory.above_bytes() / _MIB
                to.add(f"{name} {size}", "throughput", "MiB/s", plan.huge_bytes / _MIB / seconds)
                to.add(f"{name} {size}", "peak memory above idle, worst node", "MiB", above, note="aim: under 256")


def starts(plan: Plan, folder: Path, to: Recorder) -> None:
    """`amberblob dev` until `ready`, on new folders and on existing data; memory when idle."""
    for number in range(plan.starts):
        with Cluster(folder / str(number)) as cluster:
            to.add("amberblob dev, 3 nodes", "start on an empty folder until ready", "s", cluster.start_s)
            time.sleep(_SETTLE_S)
            for pid in cluster.pids:
                to.add(
                    "node, idle",
                    "resident memory",
                    "MiB",
                    procfs.rss_bytes(pid) / _MIB,
                    note="every node of every start",
                )
            if number == 0:
                job = Job(ports=tuple(cluster.ports), clients=16, operations=(put("p"),), body_bytes=SMALL_BYTES)
                run_load(job, plan.window_s)
    for _ in range(plan.starts):
        with Cluster(folder / "0") as cluster:
            to.add("amberblob dev, 3 nodes", "start on existing data until ready", "s", cluster.start_s)


def listing(plan: Plan, folder: Path, to: Recorder) -> None:
    """Pages of a listing of very many objects, and what they make the nodes open."""
    with Cluster(folder) as cluster:
        disks = [node.disk for node in cluster.nodes]
    began = time.monotonic()
    fill_disks(disks, plan.listed, timeout_s=max(_FILL_MIN_S, plan.deadline - began))
    size = f"{plan.listed:,} objects"
    to.add(f"{size} on each node", "time to fill three disks", "s", time.monotonic() - began)
    groups = plan.listed // OBJECTS_PER_PREFIX
    queries: dict[str, Callable[[int], str]] = {
        "1,000 under a prefix": lambda turn: f"prefix={prefix_of(turn * 7919 % groups)}&limit=1000",
        "first 1,000 of all": lambda turn: "limit=1000",
        "first page of groups": lambda turn: "prefix=list/&delimiter=/&limit=1000",
        "first 10 of a middle prefix": lambda turn: f"prefix=list/{turn * 7919 % groups:06d}&limit=10",
    }
    with Cluster(folder) as cluster:
        to.add(f"{size} on each node", "start until ready", "s", cluster.start_s)
        time.sleep(_SETTLE_S)
        for pid in cluster.pids:
            to.add(f"{size} on each node", "resident memory, idle", "MiB", procfs.rss_bytes(pid) / _MIB)
    for disk in disks:
        _limit_open_slots(disk.parent / "node.toml")
    with Cluster(folder) as cluster:
        before = _settled_databases(cluster)
        for _ in plan.rounds():
            for name, query in queries.items():
                times = []
                for turn in range(_PAGES):
                    seconds, text = bulk.list_page(cluster.ports[turn % len(cluster.ports)], query(turn))
                    times.append(seconds * 1000)
                    if turn == 0:
                        _check_page(text, name, plan.listed)
                to.add(f"LIST {name} of {plan.listed:,}", "p50", "ms", percentile(sorted(times), 0.5))
                to.add(f"LIST {name} of {plan.listed:,}", "slowest of 20", "ms", max(times))
        after = _open_databases(cluster)
    note = f"each node may have {_OPEN_SLOTS} open, so that any other would be seen"
    to.add("LIST", "slot databases open before, all nodes", "", len(before), note=note)
    to.add("LIST", "slot databases opened by the listings, all nodes", "", len(after - before))


def _limit_open_slots(config: Path) -> None:
    """Recovery leaves every slot database open; with few of them it shows which ones a listing would open."""
    document = tomllib.loads(config.read_text())
    document.setdefault("storage", {})["max_open_slots"] = _OPEN_SLOTS
    config.write_text(tomli_w.dumps(document))


def _settled_databases(cluster: Cluster) -> set[str]:
    """The open slot databases, once what the nodes do after a start no longer changes them."""
    deadline, before = time.monotonic() + _CALM_MAX_S, _open_databases(cluster)
    while time.monotonic() < deadline:
        time.sleep(_SETTLE_S)
        now = _open_databases(cluster)
        if now == before:
            break
        before = now
    return before


def _open_databases(cluster: Cluster) -> set[str]:
    return {name for pid in cluster.pids for name in procfs.open_files(pid, "meta.sqlite3")}


def _check_page(text: bytes, name: str, listed: int) -> None:
    if not text.count(b'"version":') and not text.count(b"list/"):
        raise RuntimeError(f"LIST {name} of {listed} answered an empty page: {text[:200]!r}")


def death(plan: Plan, folder: Path, to: Recorder) -> None:
    """One of three nodes killed in the middle of a mixed load; clients repeat what failed."""
    clients = 16
    subject = f"70 % GET, 30 % PUT, 4 KiB, {clients} clients, one node killed"
    with Cluster(folder) as cluster:
        reads, writes = get("mixed", paths=20, share=0.7), put("mixed", paths=20, headers=WRITE_ID, share=0.3)
        filling = Job(
            ports=tuple(cluster.ports), clients=clients, operations=(writes,), body_bytes=SMALL_BYTES, requests_each=20
        )  # fmt: skip
        run_through(filling)
        job = replace(filling, operations=(reads, writes), requests_each=0, deadline_s=_RETRY_DEADLINE_S)
        for run in plan.rounds():
            victim = cluster.nodes[-1 - run % len(cluster.nodes)]
            load = run_load(job, plan.death_s, halfway=lambda: cluster.kill(victim))  # noqa: B023
            half = plan.death_s / 2
            before = sum(moment < half for moment in load.ends_s)
            to.add(subject, "throughput before", "ops/s", before / half)
            to.add(subject, "throughput after", "ops/s", (load.count - before) / half)
            to.add(subject, "after over before", "", (load.count - before) / max(1, before))
            moments = [half, *(moment for moment in load.ends_s if moment >= half)]
            gap = max((later - earlier for earlier, later in pairwise(moments)), default=half)
            to.add(subject, "longest time without any answer after it", "ms", gap * 1000)
            to.add(subject, "p99 over the whole run", "ms", load.latency_ms(0.99))
            to.add(subject, "repeated attempts", "", load.retries)
            to.add(
                subject, "errors after the client's retry", "", sum(load.errors.values()), note=", ".join(load.errors)
            )
            cluster.restart(victim)


SCENARIOS: dict[str, tuple[str, Scenario]] = {
    "put": ("PUT 4 KiB", put_small),
    "get": ("GET 4 KiB", get_small),
    "large": ("PUT and GET 64 MiB", large),
    "huge": ("A body of gigabytes", huge),
    "start": ("Start and idle memory", starts),
    "death": ("A node dies", death),
    "list": ("Listing", listing),
}
