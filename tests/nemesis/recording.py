"""A run's calls as a file, to be looked at, checked again, or doctored so as to see that the check finds it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from node.protocol.operations import NO_CONDITIONS, Conditions
from sim.history import Call, Seen
from tests.nemesis.clients import Facts

_READ = {"read": lambda told: Seen(**told), "read-version": lambda told: told and tuple(told)}


def save(calls: list[Call], file: Path) -> None:
    """One call a line."""
    with file.open("w") as out:
        for call in calls:
            document = asdict(call)
            document["conditions"] = None
            if call.conditions != NO_CONDITIONS:
                document["conditions"] = msgspec.structs.asdict(call.conditions)
            out.write(json.dumps({name: value for name, value in document.items() if value not in (None, ())}) + "\n")


def load(file: Path) -> list[Call]:
    """What :func:`save` wrote."""
    return [_call(json.loads(line)) for line in file.read_text().splitlines()]


def _call(document: dict[str, Any]) -> Call:
    conditions = document.pop("conditions", None)
    if conditions is not None:
        document["conditions"] = Conditions(
            absent=conditions["absent"], etags=tuple(conditions["etags"]), version=conditions["version"]
        )
    document["story"] = tuple(document.get("story", ()))
    if "result" in document:
        document["result"] = _result(document["kind"], document["result"])
    return Call(**document)


def _result(kind: str, result: list[Any]) -> tuple[Any, ...]:
    if result[0] != "read":
        return tuple(result)
    told = result[1]
    if kind == "read-all":
        head, rows = told
        return "read", (Seen(**head), tuple((number, etag, live) for number, etag, live in rows))
    return "read", _READ[kind](told)


# -- doctoring: each makes a history that no correct store could have given, and tells the call it changed


def _lose_a_write(calls: list[Call], chance: random.Random) -> Call:
    """The history's end, and every read, as if an acknowledged put had never been."""
    put = chance.choice([call for call in calls if call.kind == "put" and _ok(call)])
    assert put.result is not None
    for call in calls:
        if call.kind == "read-all" and call.path == put.path and call.result is not None:
            head, rows = call.result[1]
            rows = tuple(row for row in rows if row[1] != put.etag)
            call.result = ("read", (head, rows))
    return put


def _read_stale(calls: list[Call], chance: random.Random) -> Call:
    """A read of the head tells what was there two versions before."""
    reads = [call for call in calls if call.kind == "read" and call.number > 0 and _head(call) > 2]
    chance.shuffle(reads)
    for read in reads:
        assert read.result is not None
        older = [
            call
            for call in calls
            if call.path == read.path and call.kind == "put" and _ok(call) and (call.ended or 0) < read.invoked
        ]
        older = [call for call in older if call.result is not None and call.result[1] < _head(read) - 1]
        if older and older[-1].result is not None:
            read.result = ("read", Seen(older[-1].result[1], older[-1].etag))
            return read
    raise AssertionError("no read to doctor")


def _resurrect(calls: list[Call], chance: random.Random) -> Call:
    """A delete that was applied is read as if it had not been, by all that come after it until the next write."""
    deletes = [call for call in calls if call.kind == "delete" and call.result == ("ok",)]
    chance.shuffle(deletes)
    for delete in deletes:
        others = [call for call in calls if call.path == delete.path and call is not delete and not call.void]
        writes = [call for call in others if call.kind.partition("-")[0] != "read"]
        if any((call.ended or float("inf")) > delete.invoked and call.invoked < (delete.ended or 0) for call in writes):
            continue
        following = [call for call in others if call.kind == "read" and call.invoked > (delete.ended or 0)]
        until = min((call.invoked for call in writes if call.invoked > (delete.ended or 0)), default=float("inf"))
        puts = [call for call in writes if call.kind == "put" and _ok(call) and (call.ended or 0) < delete.invoked]
        reads = [call for call in following if (call.ended or 0) < until and call.result is not None]
        if puts and reads:
            assert puts[-1].result is not None
            reads[0].result = ("read", Seen(puts[-1].result[1], puts[-1].etag))
            return reads[0]
    raise AssertionError("no delete to doctor")


def _choose_twice(calls: list[Call], chance: random.Random) -> Call:
    """Two puts were told one version."""
    puts = [call for call in calls if call.kind == "put" and _ok(call)]
    put = chance.choice(puts)
    other = chance.choice([call for call in puts if call.path == put.path and call is not put])
    put.result = other.result
    return put


def _two_winners(calls: list[Call], chance: random.Random) -> Call:
    """A conditional write that was refused was told that it was done."""
    refused = [call for call in calls if call.kind == "delete" and call.result is not None and call.result[0] == 412]
    call = chance.choice(refused)
    call.result = ("ok",)
    return call


def _ok(call: Call) -> bool:
    return call.result is not None and call.result[0] == "ok"


def _head(call: Call) -> int:
    return int(call.result[1].version) if call.result is not None else 0


DOCTORS: dict[str, Callable[[list[Call], random.Random], Call]] = {
    "lost-update": _lose_a_write,
    "stale-read": _read_stale,
    "resurrected-delete": _resurrect,
    "chosen-twice": _choose_twice,
    "two-winners": _two_winners,
}


def facts_of(calls: list[Call]) -> Facts:
    """Enough of a run's facts for :func:`tests.nemesis.verdict.check`."""
    return Facts([], sorted({call.path for call in calls}), calls=calls)
