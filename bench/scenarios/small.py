"""PUT and GET of 4 KiB, which most targets are about: several runs, each beside its floors."""

from __future__ import annotations

import time
from pathlib import Path

from bench import floors, procfs
from bench.cluster import Cluster
from bench.job import Job, get, put
from bench.load import run_load
from bench.results import Recorder
from bench.scenarios.common import LINGER_S, SMALL_BYTES, US, Plan, add_load, clients_name, rest, settle, write_all

_PATHS = 100


def put_small(plan: Plan, folder: Path, to: Recorder) -> None:
    """PUT 4 KiB at 1, 16 and 64 clients, beside group commits of as many by one writer and by three at once."""
    with Cluster(folder) as cluster:
        ports = tuple(cluster.ports)
        # The first writes of a new cluster make a database per slot on each node: a cost of its own, met once.
        job = Job(ports=ports, clients=64, operations=(put("new"),), body_bytes=SMALL_BYTES)
        load = run_load(job, plan.window_s, probe=cluster.usage)
        subject = "PUT 4 KiB, 64 clients, first seconds of a new cluster"
        add_load(to, subject, load, stored_bytes=SMALL_BYTES, writes=True)
        time.sleep(LINGER_S)
        rest(cluster)
        for run in plan.rounds():
            for clients in (1, 16, 64):
                settle()
                one = floors.group_commit_per_s(folder, SMALL_BYTES, clients, plan.floor_s)
                three = floors.three_group_commits_per_s(folder, SMALL_BYTES, clients, plan.floor_s)
                prefix = f"put/{run}/{clients}"
                job = Job(ports=ports, clients=clients, operations=(put(prefix),), body_bytes=SMALL_BYTES)
                used, puts = cluster.usage(), cluster.puts()
                load = run_load(job, plan.window_s, probe=cluster.usage)
                subject = f"PUT 4 KiB, {clients_name(clients)}"
                time.sleep(LINGER_S)
                rest(cluster)
                # The databases are written after the window: what they cost belongs to the PUTs, and not to the next floor.
                puts = max(1.0, cluster.puts() - puts)
                used = {name: value - used[name] for name, value in cluster.usage().items()}
                to.add(subject, "CPU of all nodes, databases included", "µs/op", used[procfs.CPU] * US / puts)
                written = used[procfs.WRITTEN] / puts / SMALL_BYTES
                to.add(subject, "written to disk, databases included", "bytes per byte", written)
                floor = (f"three-copy group commit of {clients}", three)
                add_load(to, subject, load, floor, stored_bytes=SMALL_BYTES, writes=True, cluster=cluster)
                floor = (f"group commit of {clients}, one writer", one)
                to.add(subject, "throughput, beside one writer", "ops/s", load.per_s, floor=floor)
                to.add(subject, "p99 over p50", "", load.latency_ms(0.99) / max(1e-9, load.latency_ms(0.5)))


def get_small(plan: Plan, folder: Path, to: Recorder) -> None:
    """GET 4 KiB at 16 clients, strong and local, beside a server that answers from memory without looking."""
    clients = 16
    with Cluster(folder) as cluster, floors.null_server(SMALL_BYTES) as (null_port, null_pid):
        ports = tuple(cluster.ports)
        write_all(ports, clients, "get", _PATHS)
        time.sleep(LINGER_S)
        rest(cluster)
        for _ in plan.rounds():
            settle()
            null_job = Job(ports=(null_port,), clients=clients, operations=(get("get", paths=_PATHS),))
            null = run_load(null_job, plan.floor_s, probe=lambda: procfs.usage([null_pid]))
            subject = "GET 4 KiB from the null server, 16 clients"
            to.add(subject, "throughput (the generator's own limit)", "ops/s", null.per_s)
            to.add(subject, "CPU of the null server", "µs/op", null.used_per_op(procfs.CPU) * US)
            to.add(subject, "CPU of the generator", "µs/op", null.per_op(null.generator_cpu_s * US))
            for consistency in ("strong", "local"):
                headers = f"X-Amber-Consistency: {consistency}\r\n"
                reading = Job(ports=ports, clients=clients, operations=(get("get", paths=_PATHS, headers=headers),))
                load = run_load(reading, plan.window_s, probe=cluster.usage)
                subject = f"GET 4 KiB {consistency}, {clients_name(clients)}"
                add_load(to, subject, load, ("null server", null.per_s), cluster=cluster)
