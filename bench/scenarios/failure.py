"""What a dead, a slow and a returning node cost the clients of the others."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

from msgspec.structs import replace

from bench import bulk
from bench.cluster import Cluster
from bench.job import OBJECTS, WRITE_ID, Job, get, put
from bench.load import Measured, run_load, run_through
from bench.proxied import ProxiedCluster
from bench.results import Recorder
from bench.scenarios.common import SMALL_BYTES, Plan, add_load, settle, write_all

_CLIENTS = 16
_PATHS = 20
_RETRY_DEADLINE_S = 30.0
_SLOW_S = 0.1
_NOTICED_S = 1.0


def dead(plan: Plan, folder: Path, to: Recorder) -> None:
    """PUT and GET through two nodes, the third alive and then dead: its share of the work is gone, not the data."""
    with Cluster(folder) as cluster:
        ports, third = tuple(cluster.ports[:2]), cluster.nodes[2]
        write_all(ports, 64, "warm", 32)
        write_all(ports, _CLIENTS, "dead", _PATHS)
        for run in plan.rounds():
            settle()
            before = {name: _load(plan, cluster, ports, name, f"alive/{run}") for name in ("PUT", "GET")}
            cluster.kill(third)
            time.sleep(_NOTICED_S)
            after = {name: _load(plan, cluster, ports, name, f"killed/{run}") for name in ("PUT", "GET")}
            for name, usual in before.items():
                subject = f"{name} 4 KiB, {_CLIENTS} clients, two nodes asked"
                _add_pair(to, subject, usual, after[name], "the third dead")
            cluster.restart(third)


def slow(plan: Plan, folder: Path, to: Recorder) -> None:
    """The same with the third 100 ms away from its peers, each way; all that peers say goes through our proxies."""
    with ProxiedCluster(folder) as cluster:
        ports = tuple(cluster.ports[:2])
        write_all(ports, 64, "warm", 32)
        write_all(ports, _CLIENTS, "dead", _PATHS)
        for run in plan.rounds():
            cluster.line.set("node-3", 0.0)
            settle()
            before = {name: _load(plan, cluster, ports, name, f"near/{run}") for name in ("PUT", "GET")}
            cluster.line.set("node-3", _SLOW_S)
            time.sleep(_NOTICED_S)
            seconds = bulk.put(cluster.ports[2], f"{OBJECTS}through/{run}", 1, b"1")
            to.add("PUT through the far node, alone", "latency", "ms", seconds * 1000, note="shows that it is far")
            after = {name: _load(plan, cluster, ports, name, f"far/{run}") for name in ("PUT", "GET")}
            for name, usual in before.items():
                subject = f"{name} 4 KiB, {_CLIENTS} clients, two nodes asked, through proxies"
                _add_pair(to, subject, usual, after[name], f"the third {_SLOW_S * 1000:.0f} ms away")


def _load(
    plan: Plan,
    cluster: Cluster,
    ports: tuple[int, ...],
    method: str,
    prefix: str,
    read: str = "dead",
    paths: int = _PATHS,
) -> Measured:
    operation = put(prefix) if method == "PUT" else get(read, paths=paths)
    job = Job(ports=ports, clients=_CLIENTS, operations=(operation,), body_bytes=SMALL_BYTES, deadline_s=10.0)
    return run_load(job, plan.window_s, probe=cluster.usage)


def _add_pair(to: Recorder, subject: str, before: Measured, after: Measured, what: str) -> None:
    """Both loads, and the second over the first."""
    add_load(to, f"{subject}, all well", before)
    subject = f"{subject}, {what}"
    add_load(to, subject, after)
    to.add(subject, "throughput over that before", "", after.per_s / max(1e-9, before.per_s))
    to.add(subject, "p99 over that before", "", after.latency_ms(0.99) / max(1e-9, before.latency_ms(0.99)))
    to.add(subject, "repeated attempts", "", after.retries)


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
