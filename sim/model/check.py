"""Whether what the clients were told can be explained.

Three judgements:

* **Linearizable**, per path: there is one order of the operations that respects time and gives everyone the answer they got
  (the search of Wing and Gong with Lowe's memory of configurations, Testing for linearizability, 2017). Writes with an
  unknown outcome may take effect at any time after they began, or never.
* **History**: a version that was acknowledged, or shown once, stays readable until its stub is collected; no version is
  ever two blobs, no blob two versions; nothing is shown that certainly never happened.
* **Progress**: once the faults are over, every majority knows the same, and a write and a read succeed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from sim.model.client import READS, Call
from sim.model.values import EMPTY, Record, Register, node_of
from sim.model.world import World

CONFIGURATIONS_MAX = 200_000
"""Looked at before the search is given up. Histories are small: it never was."""

FOREVER = float("inf")

State = tuple[int, int]
"""(highest version given, blob of the head or 0 for none)."""

Retired = Mapping[int, Sequence[tuple[float, int]]]
"""Of each path: from when on, up to which version, things may be gone."""


class Judgement:
    """What is wrong with a history; empty when nothing is."""

    __slots__ = ("faults", "given_up")

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.given_up = False


def judge(calls: Sequence[Call], retired: Retired) -> Judgement:
    """Judge a whole history."""
    judgement = Judgement()
    for path in dict.fromkeys(call.path for call in calls):
        on_path = [call for call in calls if call.path == path]
        collected = retired.get(path, ())
        judgement.faults += history_faults(on_path, collected)
        versions = versions_known(on_path)
        # A collection raises the floor of the whole slot, so after one the versions of any path may jump.
        verdict = linearizable(on_path, versions, gaps=bool(retired))
        if verdict is None:
            judgement.given_up = True
        elif not verdict:
            judgement.faults.append(f"path {path} is not linearizable: no order explains what its clients were told")
    return judgement


def versions_known(calls: Sequence[Call]) -> dict[int, int]:
    """Of each blob, the version that it is, if anybody was told."""
    known: dict[int, int] = {}
    for call in calls:
        result = call.result
        if result is None:
            continue
        if result[0] == "read":
            if result[1] is not None:
                known[result[1][1]] = result[1][0]
            for version, blob in (result[2] or {}).items():
                known[blob] = version
        elif result[0] == "ok" and call.kind != "delete":
            known[call.number] = result[1]
    return known


# ---- linearizability


def _after(call: Call, state: State, version: int | None, gaps: bool) -> tuple[State, tuple[str, int] | None]:
    """What one write alone does to the state, and what it would be told (None: a new version, whichever it is)."""
    highest, head = state
    kind = call.kind
    if kind == "delete":
        if not head:
            return state, ("404", 0)
        return (highest, 0), ("deleted", head)
    if kind != "put" and head != (call.expected or 0):
        return state, ("412", 0)
    if version is None:
        return (highest if gaps else highest + 1, call.number), None
    if version <= highest or not (gaps or version == highest + 1):
        return state, ("impossible", 0)
    return (version, call.number), None


def linearizable(calls: Sequence[Call], versions: Mapping[int, int], *, gaps: bool) -> bool | None:
    """Whether the calls on one path have an order; None: the search was given up.

    Args:
        calls: on one path.
        versions: of blobs, as far as anybody was told.
        gaps: whether versions may be skipped.
    """
    todo: list[tuple[float, float, Call]] = []
    for call in calls:
        if call.void or (call.result is None and call.kind in READS):
            continue
        if call.kind == "get-version":
            continue
        todo.append((FOREVER if call.result is None or call.ended is None else call.ended, call.invoked, call))
    todo.sort(key=lambda item: item[0])
    count = len(todo)
    must = sum(1 << index for index, item in enumerate(todo) if item[0] < FOREVER)
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State]] = [(0, (0, 0))]
    while stack:
        configuration = stack.pop()
        done, state = configuration
        if done & must == must:
            return True
        if configuration in seen:
            continue
        seen.add(configuration)
        if len(seen) > CONFIGURATIONS_MAX:
            return None
        limit = FOREVER
        following: list[tuple[int, State]] = []
        for index in range(count):
            if done >> index & 1:
                continue
            ended, invoked, call = todo[index]
            if invoked > limit:
                continue
            limit = min(limit, ended)  # Sorted by end: the first that is not done bounds all that follow.
            changed = _step(call, state, versions, gaps)
            if changed is not None:
                following.append((done | 1 << index, changed))
        following.reverse()
        stack += following
    return False


def _step(call: Call, state: State, versions: Mapping[int, int], gaps: bool) -> State | None:
    """The state after the call, if this is a moment at which it may have happened."""
    result = call.result
    if call.kind in READS:
        assert result is not None
        head = result[1]
        return state if (0 if head is None else head[1]) == state[1] else None
    changed, told = _after(call, state, versions.get(call.number), gaps)
    if result is None:
        return changed if changed is not state else None
    if told is None:
        return changed if result[0] == "ok" else None
    if told[0] == "deleted":
        return changed if result[0] == "ok" and versions.get(state[1], result[1]) == result[1] else None
    return state if told == result else None


# ---- history


def history_faults(calls: Sequence[Call], retired: Sequence[tuple[float, int]]) -> list[str]:
    """What is wrong with the versions of one path."""
    faults: list[str] = []
    blob_of: dict[int, int] = {}
    version_of: dict[int, int] = {}
    since: dict[int, float] = {}
    by_number = {call.number: call for call in calls}

    def tell(call: Call, version: int, blob: int) -> None:
        if blob_of.setdefault(version, blob) != blob:
            faults.append(f"version {version} was given twice: b{blob_of[version]} and b{blob} (#{call.number})")
        if version_of.setdefault(blob, version) != version:
            faults.append(f"b{blob} is version {version_of[blob]} and version {version} (#{call.number})")
        assert call.ended is not None
        since[version] = min(since.get(version, FOREVER), call.ended)
        put = by_number.get(blob)
        if put is None or not put.kind.startswith("put"):
            faults.append(f"#{call.number} was shown b{blob}, which nobody brought")
        elif put.void or (put.result is not None and put.result[0] != "ok"):
            faults.append(f"#{call.number} was shown b{blob}, whose put was refused")

    for call in calls:
        result = call.result
        if result is None or result[0] not in ("ok", "read"):
            continue
        if result[0] == "ok":
            if call.kind != "delete":
                tell(call, result[1], call.number)
            continue
        if result[1] is not None:
            tell(call, *result[1])
        for version, blob in (result[2] or {}).items():
            tell(call, version, blob)
    for call in calls:
        if call.result is None or call.result[0] != "read" or call.kind == "get":
            continue
        assert call.ended is not None
        rows = call.result[2]
        gone = max((version for when, version in retired if when <= call.ended), default=0)
        for version, known in since.items():
            if known >= call.invoked or version <= gone or version in rows:
                continue
            if call.kind == "versions" or call.version == version:
                faults.append(f"version {version} (b{blob_of[version]}) is lost: #{call.number} did not find it")
    return faults


# ---- after the faults


def progress_faults(world: World, paths: int) -> list[str]:
    """Whether every majority of the voters knows the same newest record and the same history, of each path."""
    route = world.registry.route
    if route.joint:
        return ["the route is still JOINT"]
    copies = [
        node.copy
        for node in (world.nodes[node_of(copy)] for copy in route.voters)
        if node.copy is not None and node.copy.number in route.voters
    ]
    majority = len(route.voters) // 2 + 1
    if len(copies) < majority:
        return ["a majority of the voters is gone"]
    faults: list[str] = []
    for path in range(paths):
        gone = max((version for _, version in world.retired.get(path, ())), default=0)
        seen: set[tuple[Record | None, frozenset[tuple[int, int]]]] = set()
        for some in combinations(copies, majority):
            registers: list[Register] = [copy.registers.get(path, EMPTY) for copy in some]
            newest = max(registers, key=lambda register: register.accepted).record
            rows = {row for copy in some for row in copy.rows.get(path, {}).items() if row[0] > gone}
            if newest is not None and newest.added is not None:
                rows.add(newest.added)
            seen.add((newest, frozenset(rows)))
        if len(seen) > 1:
            faults.append(f"majorities do not agree on path {path}: {' / '.join(map(str, seen))}")
    return faults
