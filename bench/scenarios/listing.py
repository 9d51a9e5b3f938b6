"""Pages of a listing of very many objects."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import tomli_w

from bench import bulk, procfs
from bench.cluster import Cluster
from bench.fill import OBJECTS_PER_PREFIX, fill_disks, prefix_of
from bench.results import Recorder, percentile
from bench.scenarios.common import MIB, Plan

_SETTLE_S = 2.0
_PAGES = 20
_FILL_MIN_S = 60.0
_CALM_MAX_S = 20.0
_OPEN_SLOTS = 8


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
            to.add(f"{size} on each node", "resident memory, idle", "MiB", procfs.rss_bytes(pid) / MIB)
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
                to.add(f"LIST {name}", "p50", "ms", percentile(sorted(times), 0.5), note=f"of {plan.listed:,}")
                to.add(f"LIST {name}", "slowest of 20", "ms", max(times))
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
