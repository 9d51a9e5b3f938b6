"""One run: a cluster, clients, a nemesis; then healing, and the verdict."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from amberblob import AsyncClient
from amberblob.client.http import Timeouts
from tests.nemesis import recording
from tests.nemesis.clients import Client, Facts, Http, LibraryClient, http_session
from tests.nemesis.cluster import NemesisCluster
from tests.nemesis.faults import PROFILES, Fired, Nemesis, plan
from tests.nemesis.operators import all_moved, steps_of_slots
from tests.nemesis.verdict import Verdict, check, read_all

CLIENTS = 8
LIBRARY_CLIENTS = 2
"""How many of them go through amberblob.client; the others speak HTTP, so that the outcome of each try is seen."""
TIMEOUTS = Timeouts(connect_s=1.0, idle_s=3.0, answer_s=4.5, expect_s=1.0, answer_large_s=4.5)
KEYS = 20
RATE = 12.0
"""Operations per second and client, at most."""


@dataclass
class Outcome:
    """What a run was, and what came out."""

    seed: int
    profile: str
    seconds: float
    facts: Facts
    verdict: Verdict = field(default_factory=Verdict)
    fired: list[Fired] = field(default_factory=list)
    folder: Path | None = None
    """Kept, because something was wrong."""
    small_disks: bool = False
    took_s: dict[str, float] = field(default_factory=dict)
    log_errors: Counter[str] = field(default_factory=Counter)
    """What the nodes logged as an error, by event."""
    moved: Counter[str] = field(default_factory=Counter)
    """What became of slots on their way: joint epochs begun, finished, given up."""

    def table(self) -> Iterator[str]:
        """The summary, line by line."""
        facts, verdict = self.facts, self.verdict
        good = "GOOD" if verdict.good else "BAD"
        yield f"== seed {self.seed}, profile {self.profile}, {self.seconds:g} s: {good}"
        by_kind: dict[str, Counter[str]] = {}
        for (kind, what), count in facts.statuses.items():
            by_kind.setdefault(kind, Counter())[what] += count
        columns = sorted({what for counter in by_kind.values() for what in counter}, key=lambda what: (len(what), what))
        head = [what if len(what) < 10 else what.partition(" (")[0] for what in columns]
        yield f"{'tries':16}" + "".join(f"{name:>{max(6, len(name) + 2)}}" for name in head)
        for kind in sorted(by_kind):
            cells = (
                f"{by_kind[kind][what] or '':>{max(6, len(name) + 2)}}"
                for what, name in zip(columns, head, strict=True)
            )
            yield f"{kind:16}" + "".join(cells)
        calls = [call for call in facts.calls if call.number > 0]
        writes = [call for call in calls if not call.kind.startswith("read")]
        unknown = sum(call.result is None and not call.void for call in writes)
        void = sum(call.void for call in writes)
        yield (
            f"{len(calls)} operations, {len(writes)} of them writes ({void} not done, {unknown} unknown, "
            f"{sum(call.tries > 1 for call in writes)} tried again), {facts.bytes_checked >> 20} MiB checked"
        )
        for fired in self.fired:
            yield (
                f"  {fired.began_s:6.1f} to {fired.ended_s:5.1f}  {fired.step!s:38} {fired.evidence or 'NOT SEEN TO FIRE'}"
            )
        if not self.small_disks and any("disk" in fired.step.fault for fired in self.fired):
            yield "  (no mounts permitted: disks were made full by a reserve that they cannot have)"
        for name, count in verdict.counts().items():
            yield f"{count:6}  {name}"
        if self.log_errors:
            yield f"errors in the nodes' logs: {dict(self.log_errors)}"
        if self.moved:
            yield "slots on their way: " + ", ".join(f"{count} {step}" for step, count in sorted(self.moved.items()))
        times = ", ".join(f"{name} {took:.1f} s" for name, took in self.took_s.items())
        yield f"{times}; {verdict.searched} worlds looked at, at most {verdict.widest} at once"
        yield from verdict.details()
        if self.folder is not None:
            yield f"node logs and history.jsonl are in {self.folder}"


async def run(
    seed: int,
    seconds: float,
    profile_name: str,
    *,
    rate: float = RATE,
    doctor: str | None = None,
    forget: bool = False,
    may_mount: bool = True,
) -> Outcome:
    """The whole of it.

    ``doctor``: falsify what was written down before it is checked (recording.DOCTORS). ``forget``: keep no folder.
    ``may_mount``: this process is in a mount namespace of its own.
    """
    profile = PROFILES[profile_name]
    cluster = NemesisCluster(nodes=profile.nodes, small_disks=may_mount and profile.small_disks)
    keys = [f"nemesis/{number:02}" for number in range(KEYS)]
    outcome = Outcome(seed, profile_name, seconds, Facts(cluster.endpoints, keys), small_disks=cluster.small_disks)
    good = forget
    try:
        await _play(outcome, cluster, seed, seconds, rate)
        _judge(outcome, doctor, seed)
        good = good or outcome.verdict.good
        return outcome
    finally:
        if not good:
            outcome.folder = cluster.folder
            recording.save(outcome.facts.calls, cluster.folder / "history.jsonl")
            if sys.exc_info()[0] is not None:
                print(f"node logs and history.jsonl are in {cluster.folder}", flush=True)
        await cluster.network.close()
        cluster.end(keep=not good)


async def _play(outcome: Outcome, cluster: NemesisCluster, seed: int, seconds: float, rate: float) -> None:
    facts, took = outcome.facts, outcome.took_s
    began = time.monotonic()
    await cluster.open()
    took["start"] = time.monotonic() - began
    async with contextlib.AsyncExitStack() as stack:
        http = Http(await stack.enter_async_context(http_session()))
        libraries = [
            await stack.enter_async_context(
                AsyncClient(_turned(facts.endpoints, number), timeout_s=5.0, timeouts=TIMEOUTS)
            )
            for number in range(LIBRARY_CLIENTS)
        ]
        main, side = plan(seed, seconds, PROFILES[outcome.profile])
        nemesis = Nemesis(cluster, facts, http, main, side)
        outcome.fired = nemesis.fired
        facts.began = time.monotonic()
        stop = asyncio.Event()
        clients = [Client(number, seed, facts, http, rate=rate) for number in range(CLIENTS - len(libraries))]
        for library in libraries:
            clients.append(LibraryClient(len(clients), seed, facts, http, library, rate=rate))
        tasks = [asyncio.create_task(client.run(stop)) for client in clients]
        try:
            await nemesis.run()
            await asyncio.sleep(max(0.0, seconds - facts.now()))
            took["faults"] = facts.now()
            stop.set()
            await asyncio.wait_for(asyncio.gather(*tasks), 180.0)
        finally:
            for task in tasks:
                task.cancel()
        outcome.verdict.anomalies += cluster.ended_by_themselves()
        began = time.monotonic()
        await cluster.heal()
        took["healing"] = time.monotonic() - began
        if PROFILES[outcome.profile].nodes > 3:
            began = time.monotonic()
            if why := await all_moved(nemesis):
                outcome.verdict.anomalies.append(why)
            took["moving"] = time.monotonic() - began
        began = time.monotonic()
        await read_all(facts, http, outcome.verdict)
        outcome.log_errors, tracebacks = cluster.log_errors()
        outcome.verdict.anomalies += tracebacks
        took["final reads"] = time.monotonic() - began
    planned = len(main) + len(side)
    if len(nemesis.fired) != planned:
        outcome.verdict.not_fired.append(f"{planned - len(nemesis.fired)} steps never began")
    outcome.moved = steps_of_slots(cluster)
    if PROFILES[outcome.profile].nodes > 3:
        outcome.verdict.not_fired += [
            f"no slot's leader did {step}" for step in ("begin-joint", "finish") if not outcome.moved[step]
        ]
    outcome.verdict.not_fired += [str(fired.step) for fired in nemesis.fired if not fired.evidence]


def _turned(endpoints: list[str], first: int) -> list[str]:
    return endpoints[first % len(endpoints) :] + endpoints[: first % len(endpoints)]


def _judge(outcome: Outcome, doctor: str | None, seed: int) -> None:
    if doctor is not None:
        recording.DOCTORS[doctor](outcome.facts.calls, random.Random(seed))
    check(outcome.facts, outcome.verdict)
    outcome.took_s["check"] = outcome.verdict.search_s


def check_again(file: Path) -> Verdict:
    """The verdict on a history that was saved."""
    verdict = Verdict()
    check(recording.facts_of(recording.load(file)), verdict, looks_max=5_000_000)
    return verdict
