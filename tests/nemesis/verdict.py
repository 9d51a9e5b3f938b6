"""What is found out about a run once everything is healed: the final reads, and the checks of all that was written down."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from sim.history import Call
from sim.linearizability import SEARCH_MAX, Finding, search
from sim.specification import NOTHING, State
from tests.cluster.harness import Answer, object_url
from tests.nemesis.clients import Facts, Http, Lost, by_path, history_told, seen_of

HEALED_S = 120.0
"""How long after the end of all faults a key may take until every node can read it, and all agree."""

WITNESSES = 14


@dataclass
class Verdict:
    """Everything that must be empty or zero."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged versions that are not there at the end, or whose bytes are not."""
    resurrected: list[str] = field(default_factory=list)
    """Deletes that nothing came after, and yet the object is there."""
    ghosts: list[str] = field(default_factory=list)
    """Writes that were refused or void, and are there."""
    twice: list[str] = field(default_factory=list)
    wrong_bytes: list[str] = field(default_factory=list)
    not_linearizable: list[str] = field(default_factory=list)
    given_up: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    """Keys that some node could not read after healing, or that nodes told differently."""
    anomalies: list[str] = field(default_factory=list)
    not_fired: list[str] = field(default_factory=list)
    stories: list[str] = field(default_factory=list)
    """For people: what happened around each key that has no order."""
    searched: int = 0
    widest: int = 0
    search_s: float = 0.0

    def counts(self) -> dict[str, int]:
        return {
            "lost acknowledged writes": len(self.lost),
            "non-linearizable keys": len(self.not_linearizable),
            "searches given up": len(self.given_up),
            "resurrected deletes": len(self.resurrected),
            "refused writes that are there": len(self.ghosts),
            "(path, version) chosen twice": len(self.twice),
            "bytes that do not match": len(self.wrong_bytes),
            "keys not readable after healing": len(self.unreadable),
            "answers that api.md does not allow": len(self.anomalies),
            "faults that did not fire": len(self.not_fired),
        }

    @property
    def good(self) -> bool:
        return not any(self.counts().values())

    def details(self, most: int = 8) -> Iterable[str]:
        for name, found in (
            ("lost", self.lost),
            ("not linearizable", self.not_linearizable),
            ("given up", self.given_up),
            ("resurrected", self.resurrected),
            ("ghost", self.ghosts),
            ("chosen twice", self.twice),
            ("wrong bytes", self.wrong_bytes),
            ("unreadable", self.unreadable),
            ("anomaly", self.anomalies),
            ("did not fire", self.not_fired),
        ):
            for line in found[:most]:
                yield f"{name}: {line}"
            if len(found) > most:
                yield f"{name}: {len(found) - most} more"
        yield from self.stories


# -- reading everything at the end


async def read_all(facts: Facts, http: Http, verdict: Verdict) -> None:
    """Every key through every node: its versions, its head, each version's bytes. Written down as calls below zero."""
    gate = asyncio.Semaphore(6)
    numbers = iter(range(-1, -10_000_000, -1))

    async def one(path: str) -> None:
        async with gate:
            try:
                await _read_key(facts, http, verdict, path, numbers)
            except AssertionError as error:
                verdict.anomalies.append(f"at the end, {path}: {error}")

    await asyncio.gather(*map(one, facts.keys))
    for node, endpoint in enumerate(facts.endpoints):
        try:
            await _list(facts, http, verdict, endpoint)
        except (Lost, AssertionError) as error:
            verdict.unreadable.append(f"the listing of node-{node + 1}: {error}")


async def _at_last(http: Http, endpoint: str, target: str) -> Answer:
    """What a node answers to a reader who asks again after a 503, or when nothing came in time: healed is not the same as idle. Raises Lost."""
    end = time.monotonic() + HEALED_S
    while True:
        try:
            answer = await http(endpoint, "GET", target)
            if answer.status != 503 or time.monotonic() > end:
                return answer
        except Lost:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(0.2)


async def _list(facts: Facts, http: Http, verdict: Verdict, endpoint: str) -> None:
    """A listing is complete: exactly the keys that live, each with its head."""
    heads: dict[str, tuple[int, str | None]] = {}
    for call in facts.calls:
        if call.number < 0 and call.kind == "read" and call.result is not None and call.result[1].version:
            heads[call.path] = (call.result[1].version, call.result[1].etag)
    answer = await _at_last(http, endpoint, "/objects?prefix=nemesis/")
    assert answer.status == 200, f"{answer.status} {answer.body[:300]!r}"
    listed = {entry["path"]: (entry["version"], entry["etag"]) for entry in answer.json["objects"]}
    assert verdict.unreadable or listed == heads, f"differs in {sorted(set(listed.items()) ^ set(heads.items()))}"


async def _read_key(facts: Facts, http: Http, verdict: Verdict, path: str, numbers: Iterable[int]) -> None:
    end = time.monotonic() + HEALED_S
    told: list[tuple[object, ...]] = []
    turn = 0
    rows: tuple[tuple[int, str, bool], ...] = ()
    why = "never asked"
    while len(told) < len(facts.endpoints):
        if time.monotonic() > end:
            verdict.unreadable.append(f"{path} within {HEALED_S:g} s: {why}")
            return
        endpoint = facts.endpoints[turn % len(facts.endpoints)]
        call = Call(0, path, "read-all", facts.now(), tries=1)
        try:
            answer = await http(endpoint, "GET", object_url(path, "versions"))
        except Lost as error:
            why = f"node-{turn % len(facts.endpoints) + 1}: {error}"
            await asyncio.sleep(0.2)
            continue
        if answer.status not in (200, 404):
            why = f"node-{turn % len(facts.endpoints) + 1}: {answer.status} {answer.body[:200]!r}"
            await asyncio.sleep(0.2)
            continue
        call.number = next(iter(numbers))
        call.ended, call.result = facts.now(), ("read", history_told(answer))
        facts.calls.append(call)
        if answer.status == 200:
            for row in answer.json["versions"]:
                facts.told(path, row["version"], row["etag"], row["blob_id"])
        rows = call.result[1][1]
        # What is still undecided at one node may be finished by this very read; then all must agree.
        if told and told[-1] != rows:
            told = []
        told.append(rows)
        turn += 1
    for node, endpoint in enumerate(facts.endpoints):
        await _read_head(facts, http, verdict, path, endpoint, numbers, node)
    for number, etag, _live in rows:
        endpoint = facts.endpoints[number % len(facts.endpoints)]
        await _read_version(facts, http, verdict, path, number, etag, endpoint, end)


async def _read_head(
    facts: Facts, http: Http, verdict: Verdict, path: str, endpoint: str, numbers: Iterable[int], node: int
) -> None:
    call = Call(next(iter(numbers)), path, "read", facts.now(), tries=1)
    try:
        answer = await _at_last(http, endpoint, object_url(path))
    except Lost as error:
        verdict.unreadable.append(f"{path} through node-{node + 1}: {error}")
        return
    if answer.status not in (200, 404):
        verdict.unreadable.append(f"{path} through node-{node + 1}: {answer.status} {answer.body[:200]!r}")
        return
    call.ended, call.result = facts.now(), ("read", seen_of(answer))
    facts.calls.append(call)
    if answer.status == 200:
        facts.check_bytes(path, answer.version, answer.etag, answer.body)


async def _read_version(
    facts: Facts, http: Http, verdict: Verdict, path: str, number: int, etag: str, endpoint: str, end: float
) -> None:
    why = ""
    while True:
        try:
            answer = await http(endpoint, "GET", object_url(path, f"version={number}"))
            if answer.status == 200:
                break
            why = f"{answer.status} {answer.body[:200]!r}"
        except Lost as error:
            why = str(error)
        if time.monotonic() > end:
            verdict.lost.append(f"{path} version {number} through {endpoint}: {why}")
            return
        await asyncio.sleep(0.2)
    facts.told(path, answer.version, answer.etag, answer.blob_id)
    facts.check_bytes(path, number, etag, answer.body)


# -- checking


def check(facts: Facts, verdict: Verdict, *, looks_max: int = SEARCH_MAX) -> None:
    """Everything that the calls tell."""
    began = time.monotonic()
    verdict.twice += facts.twice
    verdict.wrong_bytes += facts.wrong_bytes
    verdict.anomalies += facts.anomalies
    for path, calls in sorted(by_path(facts.calls).items()):
        _check_rows(path, calls, verdict)
        _check_deletes(path, calls, verdict)
        finding = search(calls, NOTHING, looks_max=looks_max)
        verdict.searched += finding.looked
        verdict.widest = max(verdict.widest, finding.widest)
        if finding.verdict is True:
            continue
        (verdict.given_up if finding.verdict is None else verdict.not_linearizable).append(
            f"{path}, at {finding.stuck}"
        )
        verdict.stories.append(witness(path, calls, finding))
    verdict.search_s = time.monotonic() - began


def _check_rows(path: str, calls: list[Call], verdict: Verdict) -> None:
    final: tuple[tuple[int, str, bool], ...] | None = None
    for call in calls:
        if call.number < 0 and call.kind == "read-all" and call.result is not None:
            final = call.result[1][1]
    if final is None:
        return  # told already: unreadable
    there = {number: etag for number, etag, _ in final}
    etags = [etag for _, etag, _ in final]
    verdict.twice += [f"{path}: {etag} is there twice" for etag in {e for e in etags if etags.count(e) > 1}]
    acknowledged: dict[int, Call] = {}
    for call in calls:
        if call.kind != "put" or call.number < 0:
            continue
        if call.result is not None and call.result[0] == "ok":
            version = call.result[1]
            if there.get(version) != call.etag:
                verdict.lost.append(f"{call}: version {version} is {there.get(version)}")
            if version in acknowledged:
                verdict.twice.append(f"{path} version {version}: {acknowledged[version]} and {call}")
            acknowledged[version] = call
        elif (call.void or call.result is not None) and call.etag in etags:
            verdict.ghosts.append(str(call))


def _check_deletes(path: str, calls: list[Call], verdict: Verdict) -> None:
    """A plain check beside the search: after a delete that nothing was concurrent with, or followed, nothing lives."""
    deletes = [call for call in calls if call.kind == "delete" and call.result == ("ok",)]
    if not deletes:
        return
    last = max(deletes, key=lambda call: call.invoked)
    for call in calls:
        lifts = call.kind in ("put", "restore") and not call.void
        refused = call.result is not None and call.result[0] in (404, 409, 412)
        if lifts and not refused and (call.ended is None or call.result is None or call.ended >= last.invoked):
            return
    for call in calls:
        if call.number < 0 and call.kind == "read" and call.result is not None and call.result[1].version:
            verdict.resurrected.append(f"{path}: {last}, and at the end {call}")


def witness(path: str, calls: list[Call], finding: Finding) -> str:
    """A short story: what was possible, what came then, and what was under way."""
    stuck = finding.stuck
    assert stuck is not None
    at = stuck.ended if stuck.ended is not None else float("inf")
    before = [call for call in calls if call.ended is not None and call.ended <= at and call.result is not None]
    lines = [f"-- {path}: nothing explains", f"   {stuck}", "   in any of these states:"]
    lines += [f"   {_shown(state)}" for state in finding.states[:5]]
    if len(finding.states) > 5:
        lines.append(f"   and {len(finding.states) - 5} more")
    lines.append("   what ended before it:")
    lines += [f"   {call}" for call in sorted(before, key=lambda call: call.ended or 0)[-WITNESSES:]]
    still = [call for call in calls if not call.void and call.invoked <= at and (call.ended or at + 1) > at]
    lines.append("   what was under way, or is unknown:")
    lines += [f"   {call}" for call in still[-WITNESSES:] if call.kind.partition("-")[0] != "read"]
    return "\n".join(lines)


def _shown(state: State) -> str:
    _, version_max, live, taken, versions = state
    rows = [(number, etag) for number, etag in versions.newest_first()]
    shown = " ".join(f"{number}:{etag[:8]}{'' if live >> number & 1 else ' (deleted)'}" for number, etag in rows[:8])
    lifts = [number for number, _ in rows if taken >> number & 1]
    return f"highest {version_max}; {shown}{' …' if len(rows) > 8 else ''}; a restore would lift {lifts}"
