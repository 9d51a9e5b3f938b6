"""What it takes to make copies equal again: a node with an empty disk, writes that were missed, and a round with nothing to find."""

from __future__ import annotations

import http.client
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from bench import floors, procfs
from bench.cluster import Cluster, ClusterFailed, Node, metric
from bench.environment import HOST
from bench.fill import fill_disks
from bench.job import Job, get, put
from bench.load import Measured, run_load
from bench.results import Recorder
from bench.scenarios.common import MIB, SMALL_BYTES, Plan, add_load, rest, write_all

_MIX = ((4 * 1024, 0.50), (32 * 1024, 0.20), (128 * 1024, 0.15), (256 * 1024, 0.10), (MIB, 0.05))
"""Sizes and their shares: 104 KiB on average, so that 100,000 objects are 10 GiB."""

_CLIENTS = 16
_PATHS = 20
_MISSED_PART = 0.001
_HEAL_TIMEOUT_S = 1800.0
_ASK_AGAIN_S = 10.0
_END_TIMEOUT_S = 30.0
_POLL_S = 0.5
_FLOOR_BYTES = 256 * MIB
_LOOPBACK_BYTES = 256 * MIB
_FILL_TIMEOUT_S = 900.0

_COMPARING = ("amberblob_compare_asked_bytes_total", "amberblob_compare_answered_bytes_total")
_ITEMS = "amberblob_compare_item_bytes_total"
_RECEIVED = "amberblob_heal_received_bytes_total"


def heal(plan: Plan, folder: Path, to: Recorder) -> None:
    """All of it, the parts in clusters of their own."""
    _rebuild(plan, folder / "rebuild", to)
    _missed(plan, folder / "missed", to)


# ---- an empty disk


def _rebuild(plan: Plan, folder: Path, to: Recorder) -> None:
    """A node's disk is emptied: first nobody asks for anything meanwhile, then clients do."""
    with Cluster(folder) as cluster:
        ports, third = tuple(cluster.ports), cluster.nodes[2]
        size = fill_mixed(ports, plan.healed)
        write_all(ports, _CLIENTS, "known", _PATHS)
        rest(cluster)
        subject = "Objects of 4 KiB to 1 MiB onto an empty disk"
        to.add(subject, "how many", "objects", plan.healed)
        to.add(subject, "bytes", "MiB", size / MIB)
        for _ in plan.rounds():
            before = _raw_mib_per_s(folder)
            empty(cluster, third)
            cpu, began = _cpu(cluster), time.monotonic()
            cluster.restart(third)
            healed(cluster.ports[0])
            seconds = time.monotonic() - began
            floor = (before[0], min(before[1], _raw_mib_per_s(folder)[1]))
            received = metric(third.port, _RECEIVED)
            if received < size:
                raise ClusterFailed(f"{received} bytes came where {size} were lost")
            to.add(subject, "from its start to healed", "s", seconds)
            to.add(subject, "rate", "MiB/s", size / MIB / seconds, floor=floor)
            to.add(subject, "CPU of all nodes", "s per GiB", (_cpu(cluster) - cpu) / (size / MIB / 1024))
        rest(cluster)
        _beside_clients(plan, cluster, third, to)


def _beside_clients(plan: Plan, cluster: Cluster, third: Node, to: Recorder) -> None:
    """What clients see of a rebuild."""
    ports = tuple(cluster.ports)
    for run in plan.rounds():
        usual = {name: _load(plan, cluster, ports, name, f"before/{run}") for name in ("PUT", "GET")}
        empty(cluster, third)
        cluster.restart(third)
        moved = metric(third.port, _RECEIVED)
        for name, before in usual.items():
            during = _load(plan, cluster, ports, name, f"during/{run}")
            rate = (metric(third.port, _RECEIVED) - moved) / MIB / plan.window_s
            moved = metric(third.port, _RECEIVED)
            subject = f"{name} 4 KiB, {_CLIENTS} clients"
            add_load(to, f"{subject}, all well", before)
            subject = f"{subject}, a node is rebuilt"
            add_load(to, subject, during)
            before_ms, during_ms = before.latency_ms(0.99), during.latency_ms(0.99)
            to.add(subject, "throughput over that before", "", during.per_s / max(1e-9, before.per_s))
            to.add(subject, "p99 over that before", "", during_ms / max(1e-9, before_ms))
            to.add(subject, "rebuilt meanwhile", "MiB/s", rate)
        if not _account(cluster.ports[0])["bytes_waiting"]:
            raise ClusterFailed("the rebuild ended before its window; ask for more objects")
        healed(cluster.ports[0])
        rest(cluster)


def _load(plan: Plan, cluster: Cluster, ports: tuple[int, ...], method: str, prefix: str) -> Measured:
    operation = put(prefix) if method == "PUT" else get("known", paths=_PATHS)
    job = Job(ports=ports, clients=_CLIENTS, operations=(operation,), body_bytes=SMALL_BYTES, deadline_s=10.0)
    return run_load(job, plan.window_s, probe=cluster.usage)


def fill_mixed(ports: tuple[int, ...], count: int) -> int:
    """PUT about so many objects of all sizes; how many bytes they have."""
    size = 0
    for size_bytes, share in _MIX:
        each = max(1, round(count * share / _CLIENTS))
        write_all(ports, _CLIENTS, f"mixed/{size_bytes}", each, size_bytes)
        size += each * _CLIENTS * size_bytes
    return size


def empty(cluster: Cluster, node: Node) -> None:
    """End a node, and take everything from its disk."""
    cluster.kill(node)
    deadline = time.monotonic() + _END_TIMEOUT_S
    while not procfs.has_ended(node.pid):
        if time.monotonic() > deadline:
            raise ClusterFailed(f"node-{node.number} does not end")
        time.sleep(0.01)
    shutil.rmtree(node.disk)


def _raw_mib_per_s(folder: Path) -> tuple[str, float]:
    """The lower of what the disk takes and what the loopback carries, and which it is."""
    disk = _FLOOR_BYTES / MIB / floors.write_s(folder, _FLOOR_BYTES)
    loopback = _LOOPBACK_BYTES / MIB / floors.loopback_s(bytes(_LOOPBACK_BYTES))
    return min(("the disk, one file, one fsync", disk), ("the loopback", loopback), key=lambda floor: floor[1])


def _cpu(cluster: Cluster) -> float:
    return cluster.usage()[procfs.CPU]


# ---- missed writes


@dataclass(frozen=True, slots=True)
class _Costs:
    """Of comparing, over all nodes: bytes besides what is mended, and bytes that tell what is to be mended."""

    besides: float
    items: float


def _missed(plan: Plan, folder: Path, to: Recorder) -> None:
    """One of many writes in a thousand is missed by a node that was away; then a round in which nothing is to be found."""
    missed = max(1, round(plan.compared * _MISSED_PART / _CLIENTS)) * _CLIENTS
    with Cluster(folder) as cluster:
        disks = [node.disk for node in cluster.nodes]
    fill_disks(disks, plan.compared, timeout_s=_FILL_TIMEOUT_S)
    subject = "One write of a thousand missed"
    to.add(subject, "written", "objects", plan.compared)
    to.add(subject, "missed", "objects", missed)
    with Cluster(folder) as cluster:
        third = cluster.nodes[2]
        healed(cluster.ports[0])
        for run in plan.rounds():
            cluster.kill(third)
            write_all(tuple(cluster.ports[:2]), _CLIENTS, f"missed/{run}", missed // _CLIENTS)
            time.sleep(1.0)
            before = _costs(cluster)
            cluster.restart(third)  # its counters begin anew, and so do its cursors
            began = time.monotonic()
            rounds = healed(cluster.ports[0])
            seconds = time.monotonic() - began
            after = _costs(cluster)
            to.add(subject, "found and mended within", "rounds", rounds)
            to.add(subject, "from its start to healed", "s", seconds)
            to.add(subject, "said besides what was mended", "KiB", (after.besides - before.besides) / 1024)
            to.add(subject, "rows that were told", "KiB", (after.items - before.items) / 1024)
        peers = len(cluster.nodes) * (len(cluster.nodes) - 1)
        for _ in plan.rounds():
            time.sleep(1.0)
            before = _costs(cluster)
            healed(cluster.ports[0])
            said = _costs(cluster).besides - before.besides
            slots = int(_document(cluster.ports[0])["slot_count"])
            to.add(
                "A round with nothing to find",
                "said per slot and peer",
                "bytes",
                said / slots / peers,
                note="32 are the root; the rest is what follows the logs",
            )


def _costs(cluster: Cluster) -> _Costs:
    alive = cluster.alive
    items = sum(metric(node.port, _ITEMS) for node in alive)
    return _Costs(sum(metric(node.port, name) for node in alive for name in _COMPARING) - items, items)


# ---- health


def healed(port: int) -> int:
    """Wait until the node says that all copies are whole, compared since now; how often that had to be asked for.

    Raises:
        ClusterFailed: it does not say so in time.
    """
    deadline, asked, since, asked_at = time.monotonic() + _HEAL_TIMEOUT_S, 0, "", float("-inf")
    told: dict[str, Any] = {}
    while time.monotonic() < deadline:
        waits = not told or told["bytes_waiting"] or told["slots"].get("degraded")
        if not asked or (time.monotonic() - asked_at > _ASK_AGAIN_S and not waits):
            since, asked, asked_at = str(_json(port, "POST", "/cluster/heal")["since"]), asked + 1, time.monotonic()
        told = _account(port, since)
        if told["healed"] and not told["slots_to_compare"]:
            return asked
        time.sleep(_POLL_S)
    raise ClusterFailed(f"not healed within {_HEAL_TIMEOUT_S:.0f} s: {told}")


def _account(port: int, since: str = "") -> dict[str, Any]:
    account: dict[str, Any] = _document(port, since)["heal"]
    return account


def _document(port: int, since: str = "") -> dict[str, Any]:
    return _json(port, "GET", f"/cluster?since={quote(since)}")


def _json(port: int, method: str, target: str) -> dict[str, Any]:
    connection = http.client.HTTPConnection(HOST, port, timeout=30.0)
    try:
        connection.request(method, target)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise ClusterFailed(f"{method} {target} of port {port}: {error!r}") from error
    finally:
        connection.close()
    if answer.status not in (200, 202):
        raise ClusterFailed(f"{method} {target} of port {port}: {answer.status} {body!r}")
    document: dict[str, Any] = json.loads(body)
    return document
