"""Large bodies: 64 MiB beside the floors of copies and of sending, and one that is larger than memory should be."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from bench import bulk, floors, procfs
from bench.cluster import Cluster
from bench.job import OBJECTS, Job, Operation, put
from bench.load import run_through
from bench.results import Recorder
from bench.scenarios.common import LARGE_BYTES, MIB, Plan, clients_name, settle

_TURNS = 2
_WRITERS_MAX = 16
"""More of them would write a dozen GiB."""


def large(plan: Plan, folder: Path, to: Recorder) -> None:
    """PUT and GET 64 MiB, one at a time beside the floors, and at several clients."""
    body = os.urandom(LARGE_BYTES)
    mib = LARGE_BYTES / MIB
    with Cluster(folder) as cluster:
        bulk.put(cluster.ports[0], f"{OBJECTS}large/first", len(body), body)
        for run in plan.rounds():
            settle()
            port = cluster.ports[run % len(cluster.ports)]
            target = f"{OBJECTS}large/{run}"
            copies = floors.three_copies_s(folder, body, over_loopback=True)
            alone = floors.three_copies_s(folder, body)
            used = cluster.usage()
            seconds = bulk.put(port, target, len(body), body)
            used = {name: value - used[name] for name, value in cluster.usage().items()}
            subject, rate = "PUT 64 MiB", mib / seconds
            floor = ("received, hashed, three files + fsync", mib / copies)
            to.add(subject, "throughput", "MiB/s", rate, floor=floor)
            floor = ("hashed, three files + fsync", mib / alone)
            to.add(subject, "throughput, beside copies from memory", "MiB/s", rate, floor=floor)
            to.add(subject, "CPU of all nodes", "ms/MiB", used[procfs.CPU] * 1000 / mib)
            to.add(subject, "written to disk by all nodes", "bytes per byte", used[procfs.WRITTEN] / len(body))
            to.add("loopback, 64 MiB from memory", "throughput", "MiB/s", mib / floors.loopback_s(body))
            for turn in range(_TURNS):
                sent = floors.sendfile_s(folder, body)
                cpu = procfs.cpu_s(cluster.pids)
                seconds = bulk.get(cluster.ports[turn], target, len(body))
                cpu = procfs.cpu_s(cluster.pids) - cpu
                subject, floor = "GET 64 MiB", ("sendfile, loopback", mib / sent)
                to.add(subject, "throughput", "MiB/s", mib / seconds, floor=floor)
                to.add(subject, "CPU of all nodes", "ms/MiB", cpu * 1000 / mib)
        for clients in plan.crowds:
            if plan.in_time():
                _at_once(cluster, clients, to)


def _at_once(cluster: Cluster, clients: int, to: Recorder) -> None:
    """One body from or to each of several clients at the same time, until the last is done."""
    ports = tuple(cluster.ports)
    operations = [Operation(method="GET", target=f"{OBJECTS}large/first", ok=(200,))]
    if clients <= _WRITERS_MAX:
        operations.insert(0, put("many"))
    for operation in operations:
        job = Job(ports=ports, clients=clients, operations=(operation,), body_bytes=LARGE_BYTES, requests_each=1)
        load = run_through(job)
        subject = f"{operation.method} 64 MiB, {clients_name(clients)}"
        to.add(subject, "throughput", "MiB/s", load.per_s * LARGE_BYTES / MIB)
        to.add(subject, "p50", "ms", load.latency_ms(0.5))
        to.add(subject, "slowest", "ms", load.latency_ms(1.0))
        to.add(subject, "resident memory, largest node", "MiB", cluster.resident_bytes() / MIB)


def huge(plan: Plan, folder: Path, to: Recorder) -> None:
    """PUT and GET a body of gigabytes: the nodes' memory must not follow its size."""
    part = os.urandom(LARGE_BYTES)
    size = f"{plan.huge_bytes / 2**30:g} GiB"
    with Cluster(folder) as cluster:
        port, path = cluster.ports[0], f"{OBJECTS}huge"
        for name, transfer in (
            ("PUT", partial(bulk.put, port, path, plan.huge_bytes, part)),
            ("GET", partial(bulk.get, port, path, plan.huge_bytes)),
        ):
            memory = bulk.PeakMemory.watch(cluster)
            seconds = transfer()
            above = memory.above_bytes() / MIB
            to.add(f"{name} {size}", "throughput", "MiB/s", plan.huge_bytes / MIB / seconds)
            to.add(f"{name} {size}", "peak memory above idle, worst node", "MiB", above, note="aim: under 256")
