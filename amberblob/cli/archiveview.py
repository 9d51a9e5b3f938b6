"""What ``amberblob archive status`` shows, and what a dry run found: from the documents of the nodes to lines and tables. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from amberblob.cli.archivejob import ended, part_of
from amberblob.cli.output import human_size

NODE_COLUMNS = ("node", "target", "copies>", "archived>", "evicted>", "freed>", "cache>", "sent>", "fetched>", "disk>")
JOB_COLUMNS = ("job", "what", "state", "began", "done")
PLAN_COLUMNS = ("prefix", "rule", "copies>", "size>", "to send>", "there already>", "frees>", "now>", "left alone")
JOBS_SHOWN = 5

_LEFT = {
    "kept": "kept",
    "no-rule": "no rule",
    "young": "too young",
    "read-lately": "read lately",
    "small": "too small",
    "current": "current",
    "no-bytes": "no bytes here",
    "done": "there already",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that an operator should know of, and what mends it."""

    what: str
    mend: str


def summary_lines(view: Mapping[str, Any]) -> list[str]:
    """The archive in two lines."""
    total = _mapping(view.get("total"))
    rows, stored = int(total.get("archived_rows") or 0), int(total.get("archived_bytes") or 0)
    evicted, freed = int(total.get("evicted") or 0), int(total.get("evicted_bytes") or 0)
    return [
        f"archive: {view.get('target') or 'none'} ({_reach_of(view)})",
        f"archived: {rows:,} chunks in {human_size(stored)}; evicted: {evicted:,} copies of versions, {human_size(freed)} given back on the disks",
    ]


def _reach_of(view: Mapping[str, Any]) -> str:
    nodes = _nodes(view)
    away = [node for node in nodes if node.get("reached") is False]
    if away and len(away) < len(nodes):
        return f"not reached by {', '.join(_name(node) for node in away)}"
    if away:
        return f"not reached since {_moment(min(int(node.get('since_ms') or 0) for node in away))}"
    if any(node.get("reached") for node in nodes):
        return "reached"
    return "not tried yet"


def node_rows(view: Mapping[str, Any]) -> list[list[str]]:
    """A line for each node, by :data:`NODE_COLUMNS`; silent ones too."""
    rows = []
    for node in _nodes(view):
        cache, traffic = _mapping(node.get("cache")), _mapping(node.get("traffic"))
        rows.append(
            [
                _name(node),
                _target_of(node),
                str(node.get("slots") or 0),
                f"{int(node.get('archived_rows') or 0):,}",
                f"{int(node.get('evicted') or 0):,}",
                human_size(int(node.get("evicted_bytes") or 0)),
                human_size(int(cache.get("bytes") or 0)),
                human_size(int(traffic.get("sent_bytes") or 0)),
                human_size(int(traffic.get("received_bytes") or 0)),
                f"{float(node.get('disk_full_percent') or 0):.0f} %",
            ]
        )
    for name in view.get("silent_nodes") or ():
        rows.append([str(name), "no answer", *[""] * (len(NODE_COLUMNS) - 2)])
    return rows


def _target_of(node: Mapping[str, Any]) -> str:
    if not node.get("target"):
        return "none"
    if node.get("reached") is None:
        return "not tried yet"
    return "reached" if node.get("reached") else str(node.get("code") or "not reached")


def job_rows(jobs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The newest jobs, by :data:`JOB_COLUMNS`."""
    rows = []
    for job in jobs[:JOBS_SHOWN]:
        what = str(job.get("kind"))
        if job.get("prefix"):
            what += f" {job['prefix']}"
        if job.get("dry_run"):
            what += " (dry run)"
        if node := _scheduled_on(job):
            what += f" (scheduled, {node})"
        whole = part_of("", job)
        text = whole.text if whole.state in ("running", "waiting") else ended(job).text
        if (rules := job.get("savings")) and whole.state == "done":
            text = plan_summary(rules)
        rows.append([str(job.get("job")), what, whole.state, _moment(int(job.get("asked_at_ms") or 0)), text])
    return rows


def problems_of(view: Mapping[str, Any], jobs: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """What is not well, worst first."""
    nodes = _nodes(view)
    problems = [*_reach_problems(nodes), *_configuration_problems(nodes)]
    if silent := view.get("silent_nodes"):
        names = ", ".join(map(str, silent))
        problems.append(Problem(f"{names} did not answer", f"Start {names}: amberblob cluster status"))
    return problems + _job_problems(jobs)


def _reach_problems(nodes: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Each reason once, with the nodes that tell it."""
    by_reason: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        if node.get("reached") is False:
            by_reason.setdefault((str(node.get("code") or ""), str(node.get("why") or "")), []).append(_name(node))
    return [
        Problem(f"{', '.join(names)}: {code}: {why}", _MENDS.get(code, _MENDS[""]))
        for (code, why), names in by_reason.items()
    ]


_MENDS = {
    "archive-not-ours": "Set target, endpoint or the mount right again (a changed node.toml wants a restart). "
    'If the new one is meant: docs/archive.md, "Changing the target"',
    "archive-denied": 'Mend the credentials, the rights or the bucket (docs/archive.md, "What to do when"), then: amberblob archive status',
    "archive-missing": "Somebody removed objects from the bucket. What of it is lost tells: amberblob archive verify",
    "archive-damaged": "Somebody changed objects in the bucket. What of it is lost tells: amberblob archive verify",
    "": "Bring it back; everything goes on by itself then. What is only there is answered 503 until it is.",
}


def _configuration_problems(nodes: Sequence[Mapping[str, Any]]) -> list[Problem]:
    targets: dict[str, list[str]] = {}
    for node in nodes:
        targets.setdefault(str(node.get("target") or ""), []).append(_name(node))
    if len(targets) < 2:
        return []
    told = "; ".join(f"{', '.join(names)}: {target or 'none'}" for target, names in sorted(targets.items()))
    return [
        Problem(
            f"the nodes do not have the same archive ({told})",
            "Give [archive] the same target in each node.toml, and start those nodes again.",
        )
    ]


def _job_problems(jobs: Sequence[Mapping[str, Any]]) -> list[Problem]:
    """Of the jobs that no later one has taken the place of: what came before those is history."""
    problems: list[Problem] = []
    later: list[Mapping[str, Any]] = []
    for job in jobs:
        if job.get("dry_run") or job.get("state") == "stopped":
            continue  # nothing was to be done, or somebody has taken note of it
        problem = _job_problem(job)
        if problem is not None and not _made_up_for(job, later):
            problems.append(problem)
        later.append(job)
    return problems


def _job_problem(job: Mapping[str, Any]) -> Problem | None:
    kind, name, state = str(job.get("kind")), str(job.get("job")), job.get("state")
    failures, detail = int(job.get("failures") or 0), f": {job['detail']}" if job.get("detail") else ""
    noted = f"If there is nothing to mend: amberblob archive stop {name}"
    if state == "failed":
        return Problem(
            f"job {name} ({kind}) failed{detail}", f"Mend that, then start it again: {_command(job)}. {noted}"
        )
    if state == "waiting":
        return Problem(f"job {name} ({kind}) waits{detail}", f"What for: amberblob archive follow {name}")
    if failures:
        which = f"Which: amberblob archive follow {name}. {noted}"
        return Problem(f"job {name} ({kind}) had {failures:,} problems", which)
    return None


def _command(job: Mapping[str, Any]) -> str:
    """What starts such a job by hand: for the same paths, and from and to the same places."""
    kind, source = str(job.get("kind")), str(job.get("source") or "")
    words = ["amberblob", "archive", kind, *([source] if source and kind == "import" else ())]
    given = {
        "--prefix": str(job.get("prefix") or ""),
        "--to": _option(job, "to"),
        "--from": (source or _option(job, "cluster")) if kind == "recover" else "",
        "--newer-than": _option(job, "newer_than"),
    }
    for name, value in given.items():
        words += [name, value] if value else []
    # As far as the request is told: one without "strip" keeps whole keys.
    if kind == "import" and job.get("nodes") and not _option(job, "strip"):
        words.append("--whole-keys")
    words += [name for name, option in (("--changed", "changed"), ("--claim", "claim")) if _option(job, option)]
    return shlex.join(words)


def _made_up_for(job: Mapping[str, Any], later: Sequence[Mapping[str, Any]]) -> bool:
    """Whether later jobs did, or do, what this one was to do: one on all nodes, or each node's own where this one was not well.

    If they were not well either, that is told of them.
    """
    same = [one for one in later if _covers(one, job)]
    if any(not _scheduled_on(one) for one in same):
        return True
    parts = [_mapping(part) for part in job.get("nodes") or ()]
    unwell = {_name(part) for part in parts if part.get("state") == "failed" or part.get("failures")}
    where = unwell or {_name(part) for part in parts}
    return bool(where) and where <= {_scheduled_on(one) for one in same}


def _covers(later: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    """Whether it is of the same kind, and for all that the other one was for."""
    return (
        later.get("kind") == job.get("kind")
        and str(job.get("prefix") or "").startswith(str(later.get("prefix") or ""))
        and str(job.get("source") or "").startswith(str(later.get("source") or ""))
        and _option(later, "to") == _option(job, "to")
    )


def _scheduled_on(job: Mapping[str, Any]) -> str:
    """The node that began the job by itself, for its own part; empty: somebody asked for it."""
    return next((_name(part) for part in job.get("nodes") or ()), "") if _option(job, "scheduled") else ""


def _option(job: Mapping[str, Any], name: str) -> str:
    """An option of its request; empty: it was not given."""
    for part in job.get("nodes") or ():
        return str(_mapping(_mapping(_mapping(part).get("request")).get("options")).get(name) or "")
    return ""


def stopped_text(job: str, view: Mapping[str, Any]) -> list[str]:
    """What ``archive stop`` came to, from the job's document after it."""
    kind, state = view.get("kind"), view.get("state")
    if any(_mapping(part).get("all_done") for part in view.get("nodes") or ()) and state == "done":
        noted = ", and its problems are taken note of" if view.get("failures") else ""
        return [f"{kind} done: {job}. Every slot of it was done already: there was nothing left to stop{noted}"]
    lines = [f"{kind} {state}: {job}"]
    if silent := ", ".join(map(str, view.get("silent_nodes") or ())):
        lines.append(f"no answer from {silent}: stop it again when they are back, or they go on with their part")
    return lines


def plan_rows(rules: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """What a dry run found per rule, by :data:`PLAN_COLUMNS`. All but what is to be sent counts every copy."""
    rows = []
    for rule in rules:
        action, left = str(rule.get("action") or ""), _mapping(rule.get("left"))
        alone = ", ".join(
            f"{int(count):,} {_LEFT.get(str(why), str(why))}" for why, count in left.items() if count and why != "done"
        )
        rows.append(
            [
                str(rule.get("prefix") or ("(all)" if action else "(others)")),
                action or "none",
                f"{int(rule.get('versions') or 0):,}",
                *(
                    human_size(int(rule.get(name) or 0))
                    for name in ("bytes", "send_bytes", "archived_bytes", "free_bytes", "room_bytes")
                ),
                alone,
            ]
        )
    return rows


def plan_summary(rules: Sequence[Mapping[str, Any]]) -> str:
    """All rules in one line."""
    versions, sent, room = (
        sum(int(rule.get(name) or 0) for rule in rules) for name in ("send_versions", "send_bytes", "room_bytes")
    )
    if not versions and not room:
        return "nothing would move"
    return f"{versions:,} versions, {human_size(sent)} before compression, would be sent; {human_size(room)} would be freed on the disks"


def _nodes(view: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [node for node in view.get("nodes") or () if isinstance(node, Mapping)]


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("node"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _moment(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S") if at_ms else "?"
