"""Whether what clients saw of one path can be explained by one order of what they did.

The search is Wing and Gong's, with Lowe's memory of configurations already seen (Testing for linearizability, 2017):
operations whose outcome is unknown stay open, and may take effect at any later time or never.
"""

from __future__ import annotations

from typing import Any

from amberblob.manifest import covers
from node.protocol.operations import NO_CONDITIONS
from sim.history import READS, Call

SEARCH_MAX = 50_000
"""Configurations looked at before the search is given up."""

State = tuple[int, int, int, int, tuple[tuple[int, str], ...]]
"""(revision, version_max, live, taken, ((version, etag), …)); live and taken are bit masks over versions."""


def _etag_of(state: State, version: int) -> str | None:
    for number, etag in state[4]:
        if number == version:
            return etag
    return None


def apply_call(call: Call, state: State) -> tuple[tuple[Any, ...], State]:
    """What one write does to the state when it happens at one moment, alone."""
    revision, version_max, live, taken, versions = state
    head = live.bit_length() - 1 if live else 0
    conditions = call.conditions
    if conditions is not NO_CONDITIONS:
        if conditions.absent and head:
            return (412,), state
        if conditions.etags and (
            not head or (conditions.etags != ("*",) and _etag_of(state, head) not in conditions.etags)
        ):
            return (412,), state
        if conditions.version is not None and conditions.version != head:
            return (412,), state
    kind, version = call.kind, call.version
    if kind == "put":
        number = version_max + 1 if version is None else version
        if number <= version_max:
            return (409,), state
        return ("ok", number), (revision + 1, number, live | 1 << number, taken, (*versions, (number, call.etag)))
    if kind == "delete":
        if not head:
            return (404,), state
        return ("ok", head), (revision + 1, version_max, 0, live, versions)
    if kind == "delete-version":
        assert version is not None
        if not live >> version & 1:
            return (404,), state
        return ("ok", version), (revision + 1, version_max, live & ~(1 << version), 1 << version, versions)
    assert kind == "restore"
    if version is None:
        if not taken:
            return (404,), state
        lifted, taken = taken, 0
    else:
        if _etag_of(state, version) is None:
            return (404,), state
        if live >> version & 1:
            return ("same",), state
        lifted = 1 << version
        taken &= ~lifted
    live |= lifted
    return ("ok", live.bit_length() - 1), (revision + 1, version_max, live, taken, versions)


def shows(call: Call, state: State) -> bool:
    """Whether a read of this state tells what the call was told."""
    revision, version_max, live, _taken, versions = state
    assert call.result is not None
    told = call.result[1]
    if call.kind == "read-version":
        etag = _etag_of(state, call.version or 0)
        return bool(told == (None if etag is None else (etag, bool(live >> (call.version or 0) & 1))))
    if call.kind == "read-all":
        record, rows = told
        if rows != tuple((number, etag, bool(live >> number & 1)) for number, etag in reversed(versions)):
            return False
    else:
        record = told
    if record is None:
        return revision == 0
    head = live.bit_length() - 1 if live else 0
    return (
        record.revision == revision
        and record.version_max == version_max
        and (record.head.version if record.head else 0) == head
        and (record.head is None or record.head.etag == _etag_of(state, head))
        and all(covers(record.live, number) == bool(live >> number & 1) for number, _ in versions)
    )


def linearizable(calls: list[Call], first: State) -> bool | None:
    """Whether the calls on one path have an order that respects time and the specification (Wing-Gong-Lowe).

    None: the search was given up.
    """
    at_the_end: set[str] | None = None
    for call in calls:
        if call.kind == "read-all" and call.number < 0 and call.result is not None:
            at_the_end = {etag for _, etag, _ in call.result[1][1]}
    todo: list[tuple[float, float, Call, bool]] = []
    for call in calls:
        if call.void:
            continue
        known = call.result is not None
        if not known and call.kind in READS:
            continue
        if not known and call.kind == "put" and at_the_end is not None:
            # Versions never vanish (the last read is checked against all of them): so it is known whether it happened.
            if call.etag not in at_the_end:
                continue
            todo.append((call.invoked, float("inf"), call, True))
            continue
        todo.append((call.invoked, call.ended if known and call.ended is not None else float("inf"), call, known))
    todo.sort(key=lambda item: item[1])
    count = len(todo)
    must = sum(1 << index for index, item in enumerate(todo) if item[3])
    seen: set[tuple[int, State]] = set()
    stack: list[tuple[int, State]] = [(0, first)]
    while stack:
        done, state = stack.pop()
        if done & must == must:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        if len(seen) > SEARCH_MAX:
            return None
        limit = float("inf")
        following: list[tuple[int, State]] = []
        for index in range(count):
            if done >> index & 1:
                continue
            invoked, ended, call, needed = todo[index]
            if invoked > limit:
                continue
            if needed and ended < limit:
                limit = ended  # Sorted by end: the first one that is not done bounds all that follow.
            after = done | 1 << index
            if call.kind in READS:
                if shows(call, state):
                    following.append((after, state))
                continue
            told, changed = apply_call(call, state)
            if call.result is None:
                if changed is not state:
                    following.append((after, changed))
            elif told == call.result:
                following.append((after, changed))
        stack += reversed(following)
    return False
