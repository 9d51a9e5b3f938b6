"""Every kind of request over sizes and numbers of clients, once each; and the open loop."""

from __future__ import annotations

from pathlib import Path

from bench import floors
from bench.cluster import Cluster
from bench.job import OBJECTS, Job, Operation, get, put
from bench.load import Measured, run_load, run_through
from bench.results import Recorder
from bench.scenarios.common import (
    MIB,
    SMALL_BYTES,
    Plan,
    add_errors,
    add_latencies,
    add_load,
    clients_name,
    settle,
    size_name,
    write_all,
)

_SIZES_BYTES = (0, 4096, 64 * 1024, MIB)
_MEMORY_MAX_BYTES = 64 * MIB
_DELETED = 3000
_LISTED = 100
_LOAD_PARTS = (0.5, 0.8)


def sizes(plan: Plan, folder: Path, to: Recorder) -> None:
    """PUT and GET of 0 bytes to 1 MiB."""
    with Cluster(folder) as cluster:
        ports = tuple(cluster.ports)
        write_all(ports, 64, "warm", 32, 0)
        for size_bytes in _SIZES_BYTES:
            for clients in plan.clients:
                if not plan.in_time():
                    return
                name = f"{size_name(size_bytes)}, {clients_name(clients)}"
                commit = floors.three_group_commits_per_s(folder, size_bytes, clients, plan.floor_s)
                prefix = f"{size_bytes}/{clients}"
                job = Job(ports=ports, clients=clients, operations=(put(prefix),), body_bytes=size_bytes)
                load = run_load(job, plan.cell_s, probe=cluster.usage)
                floor = (f"three-copy group commit of {clients}", commit)
                add_load(to, f"PUT {name}", load, floor, stored_bytes=size_bytes, writes=True, cluster=cluster)
                settle()
                paths = max(1, min(100, _MEMORY_MAX_BYTES // (clients * max(1, size_bytes))))
                write_all(ports, clients, f"read/{prefix}", paths, size_bytes)
                reading = Job(ports=ports, clients=clients, operations=(get(f"read/{prefix}", paths=paths),))
                with floors.null_server(size_bytes) as (null_port, _):
                    null_job = Job(ports=(null_port,), clients=clients, operations=reading.operations)
                    null = run_load(null_job, plan.floor_s)
                load = run_load(reading, plan.cell_s, probe=cluster.usage)
                add_load(to, f"GET {name}", load, ("null server", null.per_s), cluster=cluster)
                settle()


def kinds(plan: Plan, folder: Path, to: Recorder) -> None:
    """HEAD, DELETE, LIST, conditional PUT, and 70 % GET with 30 % PUT."""
    with Cluster(folder) as cluster:
        ports = tuple(cluster.ports)
        write_all(ports, 64, "kinds", _LISTED)

        def load_of(clients: int, *operations: Operation) -> Measured:
            job = Job(ports=ports, clients=clients, operations=operations, body_bytes=SMALL_BYTES)
            load = run_load(job, plan.cell_s, probe=cluster.usage)
            settle()
            return load

        for clients in plan.clients:
            if not plan.in_time():
                return
            name = clients_name(clients)
            load = load_of(clients, get("kinds", paths=_LISTED, method="HEAD"))
            add_load(to, f"HEAD, {name}", load, cluster=cluster)

            each = -(-_DELETED // clients) if clients > 1 else _DELETED // 4
            write_all(ports, clients, f"gone/{clients}", each)
            deleting = Operation(method="DELETE", target=f"{OBJECTS}gone/{clients}/{{client}}/{{turn}}", ok=(204,))
            job = Job(ports=ports, clients=clients, operations=(deleting,), requests_each=each)
            load = run_through(job, probe=cluster.usage)
            add_load(to, f"DELETE, {name}", load, writes=True, cluster=cluster)
            settle()

            query = f"/objects?prefix=kinds/{{client}}/&limit={_LISTED}"
            load = load_of(clients, Operation(method="GET", target=query, ok=(200,), name="LIST"))
            add_load(to, f"LIST of {_LISTED} objects, {name}", load, cluster=cluster)

            new = put(f"new/{clients}", headers="If-None-Match: *\r\n")
            add_load(to, f"PUT if there is none, {name}", load_of(clients, new), writes=True, cluster=cluster)
            if clients > 1:
                race = Operation(
                    method="PUT",
                    target=f"{OBJECTS}race/{clients}/{{turn}}",
                    headers="If-None-Match: *\r\n",
                    ok=(201, 412),
                )
                load = load_of(clients, race)
                subject = f"PUT if there is none, {name} race for each path"
                add_load(to, subject, load, cluster=cluster)
                to.add(subject, "of them won", "ops/s", load.statuses.get(201, 0) / load.seconds)

            reads = get("kinds", paths=_LISTED, share=0.7)
            load = load_of(clients, reads, put("kinds", paths=_LISTED, share=0.3))
            subject = f"70 % GET, 30 % PUT, {name}"
            add_load(to, subject, load, cluster=cluster)
            for operation in ("GET", "PUT"):
                add_latencies(to, subject, load, operation)


def open_loop(plan: Plan, folder: Path, to: Recorder) -> None:
    """Requests at a fixed rate, some part of what 16 clients reach in a closed loop right before."""
    with Cluster(folder) as cluster:
        ports = tuple(cluster.ports)
        write_all(ports, 64, "open", 32)
        for operation in (put("open/new"), get("open", paths=32)):
            closed = Job(ports=ports, clients=16, operations=(operation,), body_bytes=SMALL_BYTES)
            most = run_load(closed, plan.cell_s).per_s
            for part in _LOAD_PARTS:
                settle()
                rate = most * part
                target = operation.target.replace("open/new", f"open/{part}")
                one = Operation(method=operation.method, target=target, ok=operation.ok, paths=operation.paths)
                job = Job(ports=ports, clients=64, operations=(one,), body_bytes=SMALL_BYTES, rate_per_s=rate)
                load = run_load(job, plan.window_s, probe=cluster.usage)
                subject = f"{operation.method} 4 KiB, Poisson arrivals at {part:.0%} of the closed loop's rate"
                to.add(subject, "rate asked for", "ops/s", rate)
                to.add(subject, "throughput", "ops/s", load.per_s)
                add_latencies(to, subject, load)
                to.add(subject, "due and never sent", "", load.unsent)
                add_errors(to, subject, load)
