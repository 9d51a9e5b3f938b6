"""The archive beside what boto3 itself does with the same S3 server, in turn; and what small objects cost in requests."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench import bulk, procfs
from bench.archiving import JobDone, evicted, requests_by_kind, run_job
from bench.cluster import NODES, Cluster
from bench.job import OBJECTS, Job, put
from bench.load import run_through
from bench.plain_s3 import Direction, PlainJob, Transferred, transfer
from bench.results import Recorder
from bench.s3_servers import BUCKET, S3, s3_server
from bench.scenarios.common import LARGE_BYTES, MIB, SMALL_BYTES, Plan, rest

PARALLEL = 4
"""Requests under way at once per node: what `[archive] parallel` is if nobody sets it."""
PART_BYTES = 16 * 2**20
"""What `[archive] part_size` is if nobody sets it."""
_CLIENTS = 64
_GIB = 2**30
_EVICTED_S = 60.0
_KEPT = "kept/"
"""What is below it is archived and stays on the disks, so that nothing is read back; everything else is evicted."""
_RULES = f"""\
[[archive.rules]]
prefix = ""
action = "archive-and-evict"

[[archive.rules]]
prefix = "{_KEPT}"
action = "archive"
"""
_SENT_ONLY = "archive run without reading back, 64 MiB bodies"
_SENT, _RESTORED = "archive run, 64 MiB bodies", "archive restore, 64 MiB bodies"
T = TypeVar("T")


def archive(plan: Plan, folder: Path, to: Recorder) -> None:
    """64 MiB bodies that do not shrink: archived and restored beside plain multipart; then 4 KiB bodies, for their requests."""
    theirs = folder / "s3"
    theirs.mkdir()
    with s3_server(theirs) as s3:
        for node in range(1, NODES + 1):
            file = folder / "ours" / f"node-{node}" / "node.toml"
            file.parent.mkdir(parents=True)
            file.write_text(_RULES)
        options = ("--archive", f"s3://{BUCKET}/archive", "--archive-endpoint", s3.endpoint)
        with Cluster(folder / "ours", environment=s3.environment(), options=options) as cluster:
            for run in plan.rounds():
                _large(plan, cluster, s3, run, to)
                _sent_only(plan, cluster, s3, run, to)
            _small(plan, cluster, to)


def _large(plan: Plan, cluster: Cluster, s3: S3, run: int, to: Recorder) -> None:
    """One round: sent, by both; brought back onto the disks, and read by clients, beside boto3's download. Who comes first changes with the round."""
    restored, read = f"large/{run}/restored/", f"large/{run}/read/"
    half, mib = plan.archived, plan.archived * LARGE_BYTES / MIB
    gone_before = evicted(cluster.ports[0])
    for number in range(half):
        for prefix in (restored, read):
            body = os.urandom(LARGE_BYTES)
            bulk.put(cluster.ports[number % NODES], f"{OBJECTS}{prefix}{number}", len(body), body)
    rest(cluster)
    both = 2 * half
    plain_up_s, sent = _in_turn(
        run, lambda: _plain_s(both, s3, run, "upload"), lambda: run_job(cluster.ports[0], "run", f"large/{run}/")
    )
    _await_evicted(cluster, gone_before + NODES * both)
    plain_both_s = _plain_s(both, s3, run, "download")
    to.add(
        _SENT, "sent and read back", "MiB/s", 2 * mib / sent.seconds,
        floor=("boto3, up and down again", 2 * mib / (plain_up_s + plain_both_s)), note=f"{both} bodies to {s3.title}",
    )  # fmt: skip
    floor = ("boto3, up", 2 * mib / plain_up_s)
    to.add(_SENT, "sent and read back, beside sending alone", "MiB/s", 2 * mib / sent.seconds, floor=floor)
    _costs(to, _SENT, sent, 2 * mib)

    served_s = procfs.cpu_s(s3.pids)
    before = _plain(half, s3, run, "download")
    served_s = procfs.cpu_s(s3.pids) - served_s
    used = _Used()
    kept_s, back = _in_turn(
        run,
        lambda: _kept_s(cluster, half, s3, run),
        lambda: used.of(cluster, s3, lambda: run_job(cluster.ports[0], "restore", restored)),
    )
    plain_s = (before.seconds + _plain_s(half, s3, run, "download")) / 2
    floor = ("boto3, down", mib / plain_s)
    to.add(_RESTORED, "brought back", "MiB/s", mib / back.seconds, floor=floor, note="each byte once")
    kept = (f"boto3, down and into {NODES} synced files", mib / kept_s)
    to.add(
        _RESTORED, "brought back, beside durable copies", "MiB/s", mib / back.seconds, floor=kept, note="each byte once"
    )
    to.add(
        _RESTORED,
        "brought back, all copies",
        "MiB/s",
        NODES * mib / back.seconds,
        floor=floor,
        note=f"onto {NODES} disks",
    )
    _costs(to, _RESTORED, back, mib)
    gib = mib * MIB / _GIB
    # With as many cores as this machine has, the processes of one side wait for each other: what both cost decides more than what waits for what.
    to.add(
        _RESTORED,
        "CPU of all nodes",
        "s/GiB",
        used.nodes_s / gib,
        floor=("boto3's processes, down", before.cpu_s / gib),
    )
    to.add(_RESTORED, "CPU of the S3 server", "s/GiB", used.server_s / gib, floor=("boto3, down", served_s / gib))

    plain_s, seconds = _in_turn(
        run, lambda: _plain_s(half, s3, run, "download"), lambda: _read_s(cluster, f"{OBJECTS}{read}", half)
    )
    to.add(
        "GET of evicted 64 MiB bodies",
        "throughput",
        "MiB/s",
        mib / seconds,
        floor=("boto3, down", mib / plain_s),
        note="all at once",
    )


def _sent_only(plan: Plan, cluster: Cluster, s3: S3, run: int, to: Recorder) -> None:
    """The same number of bodies by a rule that leaves them on the disks: sending, beside sending."""
    prefix, count = f"{_KEPT}{run}/", 2 * plan.archived
    mib = count * LARGE_BYTES / MIB
    for number in range(count):
        body = os.urandom(LARGE_BYTES)
        bulk.put(cluster.ports[number % NODES], f"{OBJECTS}{prefix}{number}", len(body), body)
    rest(cluster)
    plain_s, sent = _in_turn(
        run, lambda: _plain_s(count, s3, run, "upload"), lambda: run_job(cluster.ports[0], "run", prefix)
    )
    to.add(_SENT_ONLY, "sent", "MiB/s", mib / sent.seconds, floor=("boto3, up", mib / plain_s))
    _costs(to, _SENT_ONLY, sent, mib)


def _read_s(cluster: Cluster, base: str, count: int) -> float:
    """GET each body once, all at once, through the nodes in turn; seconds until the last one is whole."""

    def one(number: int) -> None:
        bulk.get(cluster.ports[number % NODES], f"{base}{number}", LARGE_BYTES)

    began = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(one, range(count)))
    return time.monotonic() - began


def _in_turn(run: int, theirs: Callable[[], float], ours: Callable[[], T]) -> tuple[float, T]:
    """Both, right after each other; ours first in every other round."""
    if run % 2:
        done = ours()
        return theirs(), done
    seconds = theirs()
    return seconds, ours()


def _kept_s(cluster: Cluster, count: int, s3: S3, run: int) -> float:
    """Download so many, and have each in as many files as there are copies, on the same file system, synced."""
    folder = cluster.folder.parent / f"kept-{run}"
    folder.mkdir()
    try:
        return _plain_s(count, s3, run, "download", folder)
    finally:
        shutil.rmtree(folder)


@dataclass(slots=True)
class _Used:
    """CPU seconds of all nodes, and of the S3 server, while something was done."""

    nodes_s: float = 0.0
    server_s: float = 0.0

    def of(self, cluster: Cluster, s3: S3, do: Callable[[], T]) -> T:
        """Do it, and remember what it took."""
        nodes_s, server_s = procfs.cpu_s(cluster.pids), procfs.cpu_s(s3.pids)
        done = do()
        self.nodes_s = procfs.cpu_s(cluster.pids) - nodes_s
        self.server_s = procfs.cpu_s(s3.pids) - server_s
        return done


def _plain_s(count: int, s3: S3, run: int, direction: Direction, folder: Path | None = None) -> float:
    """How many seconds :func:`_plain` takes."""
    return _plain(count, s3, run, direction, folder).seconds


def _plain(count: int, s3: S3, run: int, direction: Direction, folder: Path | None = None) -> Transferred:
    """So many bodies of the same size, divided among as many processes as there are nodes."""
    names = [f"plain/{run}/{number}" for number in range(count)]
    jobs = [
        PlainJob(
            endpoint=s3.endpoint, access_key=s3.access_key, secret_key=s3.secret_key, bucket=BUCKET, direction=direction,
            names=tuple(names[process::NODES]), size_bytes=LARGE_BYTES, parallel=PARALLEL, part_bytes=PART_BYTES,
            folder=str(folder or ""), copies=NODES if folder else 0,
        )
        for process in range(min(NODES, len(names)))
    ]  # fmt: skip
    return transfer(jobs)


def _await_evicted(cluster: Cluster, count: int) -> None:
    """The bytes are gone from all disks: each node evicts its own, as it hears that they are archived."""
    deadline = time.monotonic() + _EVICTED_S
    while (found := evicted(cluster.ports[0])) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{found} of {count} copies were evicted after {_EVICTED_S:.0f} s")
        time.sleep(0.2)


def _costs(to: Recorder, subject: str, done: JobDone, mib: float) -> None:
    to.add(subject, "sent to S3", "bytes per byte", done.sent_bytes / MIB / mib)
    to.add(subject, "fetched from S3", "bytes per byte", done.received_bytes / MIB / mib)
    to.add(subject, "requests to S3", "per GiB", done.requests * _GIB / MIB / mib)


def _small(plan: Plan, cluster: Cluster, to: Recorder) -> None:
    """What 4 KiB objects, each with content of its own, cost in requests, reading them back included."""
    each = max(1, plan.archived_small // _CLIENTS)
    count = each * _CLIENTS
    job = Job(
        ports=tuple(cluster.ports), clients=_CLIENTS, operations=(put("small", paths=each),), body_bytes=SMALL_BYTES,
        own_bodies=True, requests_each=each,
    )  # fmt: skip
    run_through(job)
    rest(cluster)
    nothing = run_job(cluster.ports[0], "run", "there is nothing of this name")
    cpu, kinds = procfs.cpu_s(cluster.pids), requests_by_kind(cluster.ports)
    done = run_job(cluster.ports[0], "run", "small/")
    cpu, kinds = procfs.cpu_s(cluster.pids) - cpu, requests_by_kind(cluster.ports) - kinds
    by_kind = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
    subject = "archive run, 4 KiB bodies"
    requests = max(0, done.requests - nothing.requests)
    to.add(
        subject,
        "requests to S3",
        "per 1,000 objects",
        requests * 1000 / count,
        note=f"{count:,} objects, read back too",
    )
    to.add(subject, "requests to S3 for a GiB", "", requests * _GIB / (count * SMALL_BYTES))
    to.add(subject, "requests to S3, of all kinds", "", done.requests, note=by_kind)
    to.add(subject, "requests to S3 of a run with nothing to do", "", nothing.requests, note="not counted above")
    to.add(subject, "sent to S3", "bytes per byte", done.sent_bytes / (count * SMALL_BYTES))
    to.add(subject, "throughput", "objects/s", count / done.seconds)
    to.add(subject, "CPU of all nodes", "µs/object", cpu * 1e6 / count)
