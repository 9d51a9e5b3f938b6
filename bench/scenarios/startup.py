"""How long a cluster takes to start, and what it takes of memory then."""

from __future__ import annotations

import time
from pathlib import Path

from bench import procfs
from bench.cluster import Cluster
from bench.job import Job, put
from bench.load import run_load
from bench.results import Recorder
from bench.scenarios.common import MIB, SMALL_BYTES, Plan

_IDLE_S = 2.0


def starts(plan: Plan, folder: Path, to: Recorder) -> None:
    """`amberblob dev` until `ready`, on new folders and on existing data; memory when idle."""
    for number in range(plan.starts):
        with Cluster(folder / str(number)) as cluster:
            to.add("amberblob dev, 3 nodes", "start on an empty folder until ready", "s", cluster.start_s)
            time.sleep(_IDLE_S)
            for pid in cluster.pids:
                resident, note = procfs.rss_bytes(pid) / MIB, "every node of every start"
                to.add("node, idle", "resident memory", "MiB", resident, note=note)
            if number == 0:
                job = Job(ports=tuple(cluster.ports), clients=16, operations=(put("p"),), body_bytes=SMALL_BYTES)
                run_load(job, plan.window_s)
    for _ in range(plan.starts):
        with Cluster(folder / "0") as cluster:
            to.add("amberblob dev, 3 nodes", "start on existing data until ready", "s", cluster.start_s)
