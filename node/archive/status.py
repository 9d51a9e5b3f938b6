"""What a node tells of its archive, and what the nodes' answers add up to: the JSON of ``GET /archive`` and ``GET /archive/jobs``.

Shapes only, and pure functions over them. Times are epoch milliseconds, sizes bytes; counters count since the node started.

``GET /archive``::

    {"target": "s3://bucket/prefix", "warnings": [], "nodes": [ArchiveNodeStatus, ...], "silent_nodes": ["n3"], "total": ArchiveTotal}

``POST /archive/jobs`` takes :class:`amberblob.archivejobs.JobWanted` and answers 202 :class:`JobStarted`. ``GET /archive/jobs``: ``{"jobs": [JobView, ...],
"silent_nodes": [...]}``, newest first; ``GET /archive/jobs/{id}``: one :class:`JobView` with ``unfinished_slots``; ``DELETE /archive/jobs/{id}``:
202 with the :class:`JobView` after it. Errors: no-archive and job-conflict 409, no-such-job 404, bad-request 400.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from amberblob.archivejobs import JobKind
from archive.savings import RuleSavings, add_up
from node.archive.jobs import PROBLEMS_MAX, SCHEDULED, SCOPES, JobRequest, JobStatus

OverallState = Literal["running", "waiting", "done", "failed", "stopped"]
"""Of a job on all nodes. waiting: nobody works on it, and slots are left: they are taken over within seconds, or wait for their nodes."""


class ArchiveNodeStatus(msgspec.Struct, kw_only=True):
    """One node's archive.

    Attributes:
        target: as configured, without secrets; empty: this node has no archive.
        reached: whether the target answered last; None: it was not tried yet.
        code, why: of the error, when it did not. since_ms: since when it is (not) reached.
        slots: the copies that this node has. led_slots: the slots that it looks after: those of the sums.
        archived_rows, archived_bytes: rows of its copies, and the bytes of the frames that they name; the latter may lag a little.
        evicted, evicted_bytes: versions of its copies that live by their rows, and their size.
        led: the same four of the slots that it looks after, by name.
        cache: what the local cache holds and did, by name (``bytes``, ``budget_bytes``, ``hits``, ``misses``, ...).
        traffic: what was sent and fetched since the start, by name (``sent_bytes``, ``received_bytes``, ``requests``, ``failures``, ...).
        condemned: objects that bear a token here.
        disk_full_percent: how full the disk is.
        follow_behind: rows of other copies that are not here yet, as far as was heard.
        jobs: the last ones, without slots.
    """

    node: str
    target: str = ""
    reached: bool | None = None
    code: str = ""
    why: str = ""
    since_ms: int = 0
    slots: int = 0
    led_slots: int = 0
    archived_rows: int = 0
    archived_bytes: int = 0
    evicted: int = 0
    evicted_bytes: int = 0
    led: dict[str, int] = {}
    cache: dict[str, int] = {}
    traffic: dict[str, int] = {}
    condemned: int = 0
    disk_full_percent: float = 0.0
    follow_behind: int = 0
    jobs: list[JobStatus] = []


class ArchiveTotal(msgspec.Struct, frozen=True, kw_only=True):
    """All nodes together. Rows and archived bytes count once, not once per copy; evicted versions count per copy, as does the room they gave back."""

    reached: bool
    archived_rows: int
    archived_bytes: int
    evicted: int
    evicted_bytes: int
    cache_bytes: int
    sent_bytes: int
    received_bytes: int
    requests: int
    condemned: int


class ArchiveView(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``GET /archive``. ``warnings``: what is wrong between the nodes, in sentences."""

    target: str
    warnings: tuple[str, ...]
    nodes: tuple[ArchiveNodeStatus, ...]
    silent_nodes: tuple[str, ...]
    total: ArchiveTotal


class JobStarted(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``POST /archive/jobs``: who began; who did not answer; who refused, and why; what is to be known beforehand."""

    job: str
    nodes: tuple[str, ...]
    silent_nodes: tuple[str, ...]
    refused: dict[str, str]
    warnings: tuple[str, ...] = ()


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """A job on all nodes: sums, and each node's part.

    Attributes:
        slots_total: of the cluster, if the job goes by slots, else 0. slots_done: of them, each counted once where the slots are told.
        unfinished_slots: that nobody has done, as far as those who answered tell; only where one job is asked for, and if it goes by slots.
        problems: the first of them, each with its node's name.
        savings: of a dry run, what each rule would move and free, all nodes together; what is freed counts each copy.
        warnings: what whoever began it was told: what rules that were in place will make of it.
    """

    job: str
    kind: JobKind
    prefix: str
    dry_run: bool
    source: str
    state: OverallState
    asked_at_ms: int
    ended_ms: int
    slots_total: int
    slots_done: int
    bytes_total: int
    bytes_done: int
    counts: dict[str, int]
    failures: int
    problems: tuple[str, ...]
    savings: tuple[RuleSavings, ...]
    detail: str
    unfinished_slots: tuple[int, ...]
    nodes: tuple[JobStatus, ...]
    silent_nodes: tuple[str, ...]
    warnings: tuple[str, ...] = ()


class JobsView(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of ``GET /archive/jobs``."""

    jobs: tuple[JobView, ...]
    silent_nodes: tuple[str, ...]


def total_of(nodes: Iterable[ArchiveNodeStatus]) -> ArchiveTotal:
    """What the nodes that answered add up to."""
    nodes = list(nodes)
    return ArchiveTotal(
        reached=any(node.reached for node in nodes) and not any(node.reached is False for node in nodes),
        archived_rows=sum(node.led.get("archived_rows", 0) for node in nodes),
        archived_bytes=sum(node.led.get("archived_bytes", 0) for node in nodes),
        evicted=sum(node.evicted for node in nodes),
        evicted_bytes=sum(node.evicted_bytes for node in nodes),
        cache_bytes=sum(node.cache.get("bytes", 0) for node in nodes),
        sent_bytes=sum(node.traffic.get("sent_bytes", 0) for node in nodes),
        received_bytes=sum(node.traffic.get("received_bytes", 0) for node in nodes),
        requests=sum(node.traffic.get("requests", 0) for node in nodes),
        condemned=max((node.condemned for node in nodes), default=0),
    )


def warnings_of(nodes: Iterable[ArchiveNodeStatus]) -> tuple[str, ...]:
    """What is wrong between the nodes: they must all have the same target, for their rows name objects of it."""
    by_target: dict[str, list[str]] = {}
    for node in nodes:
        by_target.setdefault(node.target, []).append(node.node)
    lacking = by_target.pop("", [])
    warnings = []
    if lacking:
        warnings.append(f"{', '.join(lacking)} without an archive: set [archive] target there as on the other nodes.")
    if len(by_target) > 1:
        said = "; ".join(f"{', '.join(names)}: {target}" for target, names in sorted(by_target.items()))
        warnings.append(f"The nodes have different targets ({said}): set [archive] target alike on all of them.")
    return tuple(warnings)


def view_job(parts: Iterable[JobStatus], *, slot_count: int, silent: Iterable[str] = (), slots: bool) -> JobView:
    """One job from the parts of at least one node.

    Args:
        slot_count: of the cluster.
        silent: nodes that did not answer.
        slots: whether the parts tell which slots they have done.
    """
    parts = sorted(parts, key=lambda part: part.node)
    request: JobRequest = parts[0].request
    # What a node began by its own schedule is its own part alone.
    by_slot = SCOPES[request.kind] == "slots" and SCHEDULED not in request.options
    done = {slot for part in parts for slot in part.done_slots}
    if by_slot and slots and any(part.all_done for part in parts):
        done = set(range(slot_count))  # also those of nodes that are away, and cannot tell
    unfinished = tuple(slot for slot in range(slot_count) if slot not in done) if by_slot and slots else ()
    state = _overall(parts, unfinished=bool(unfinished), all_done=by_slot and slots and not unfinished)
    counts: dict[str, int] = {}
    for part in parts:
        for name, count in part.counts.items():
            counts[name] = counts.get(name, 0) + count
    problems = [f"{part.node}: {problem}" for part in parts for problem in part.problems]
    slots_done = len(done) if slots else sum(part.slots_done for part in parts)
    return JobView(
        job=request.job,
        kind=request.kind,
        prefix=request.prefix,
        dry_run=request.dry_run,
        source=request.source,
        state=state,
        asked_at_ms=request.asked_at_ms,
        ended_ms=0 if state in ("running", "waiting") else max(part.ended_ms for part in parts),
        slots_total=slot_count if by_slot else sum(part.slots_total for part in parts),
        slots_done=min(slot_count, slots_done) if by_slot else slots_done,
        bytes_total=sum(part.bytes_total for part in parts),
        bytes_done=sum(part.bytes_done for part in parts),
        counts=counts,
        failures=sum(part.failures for part in parts),
        problems=tuple(problems[:PROBLEMS_MAX]),
        savings=tuple(add_up(part.savings for part in parts)),
        detail=_detail(parts, state),
        unfinished_slots=unfinished,
        nodes=tuple(msgspec.structs.replace(part, done_slots=[], notes={}) for part in parts),
        silent_nodes=tuple(sorted(silent)),
        warnings=request.warnings,
    )


def _overall(parts: Iterable[JobStatus], *, unfinished: bool, all_done: bool) -> OverallState:
    states = {part.state for part in parts}
    if "running" in states:
        return "running"
    if "failed" in states:
        return "failed"
    if "stopped" in states and not all_done:
        return "stopped"
    return "waiting" if unfinished else "done"


def _detail(parts: Iterable[JobStatus], state: OverallState) -> str:
    """The line of the part that explains the state best."""
    for part in parts:
        if part.detail and part.state == state:
            return f"{part.node}: {part.detail}"
    return ""


def view_jobs(told: Mapping[str, Iterable[JobStatus]], *, slot_count: int, silent: Iterable[str]) -> JobsView:
    """All jobs, newest first, from each node's list (without slots)."""
    by_job: dict[str, list[JobStatus]] = {}
    for parts in told.values():
        for part in parts:
            by_job.setdefault(part.request.job, []).append(part)
    silent = tuple(sorted(silent))
    views = (view_job(parts, slot_count=slot_count, silent=silent, slots=False) for parts in by_job.values())
    return JobsView(jobs=tuple(sorted(views, key=lambda view: view.job, reverse=True)), silent_nodes=silent)
