"""The nemesis: what goes wrong, when, and the proof that it did.

:func:`plan` makes the schedule from a seed: a main track (processes, cuts, disks) and a side track (registry, slow
links, resets, operators) that overlaps it. Each step is one of :data:`FAULTS`: it strikes, waits until its effect was *seen*, lasts,
and is undone. A step without evidence is a failure of the run.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from tests.nemesis import mounts, operators
from tests.nemesis.clients import Facts, Http, Lost
from tests.nemesis.cluster import NemesisCluster
from tests.nemesis.proxy import Mode, Way
from tests.processes import process_state

EVIDENCE_S = 60.0
"""How long the effect of a fault is waited for."""

HANG_SEEN_S = 60.0
RECOVERED_S = 90.0

MIB = 1024 * 1024


@dataclass(frozen=True)
class Step:
    """One fault of a schedule: after a gap, on these nodes, for so long."""

    fault: str
    nodes: tuple[int, ...]
    gap_s: float
    duration_s: float

    def __str__(self) -> str:
        where = ",".join(f"node-{node + 1}" for node in self.nodes)
        return f"{self.fault} {where}"


@dataclass
class Fired:
    """What became of a step."""

    step: Step
    began_s: float
    ended_s: float = 0.0
    evidence: str = ""


@dataclass
class Nemesis:
    """Plays a schedule on a cluster."""

    cluster: NemesisCluster
    facts: Facts
    http: Http
    main: list[Step]
    side: list[Step]
    fired: list[Fired] = field(default_factory=list)

    async def run(self) -> None:
        """Both tracks to their ends; everything is undone when it returns or raises."""
        try:
            async with asyncio.TaskGroup() as tracks:
                tracks.create_task(self._track(self.main))
                tracks.create_task(self._track(self.side))
        finally:
            self.undo()

    def undo(self) -> None:
        """Whatever a fault that was broken off has left: the rest of healing is ``Cluster.heal``."""
        self.cluster.bring_registry_back()
        for node in self.cluster.mounted:
            mounts.resize_disk(node, leave_bytes=None)

    async def _track(self, steps: list[Step]) -> None:
        for step in steps:
            await asyncio.sleep(step.gap_s)
            fired = Fired(step, self.facts.now())
            self.fired.append(fired)
            async with FAULTS[step.fault](self, step, fired):
                left_s = fired.began_s + step.duration_s - self.facts.now()
                await asyncio.sleep(max(0.0, left_s))
            fired.ended_s = self.facts.now()

    async def see(
        self,
        fired: Fired,
        look: Callable[[], str | None] | Callable[[], Awaitable[str | None]],
        *,
        deadline_s: float = EVIDENCE_S,
    ) -> None:
        """Wait until ``look`` tells what was seen."""
        end = time.monotonic() + deadline_s
        while time.monotonic() < end:
            found = look()
            if not isinstance(found, str | None):
                found = await found
            if found:
                fired.evidence = f"{fired.evidence}; {found}" if fired.evidence else found
                return
            await asyncio.sleep(0.05)

    async def status(self, index: int) -> dict[str, object] | None:
        """What ``/cluster`` of a node says; None if it does not answer."""
        try:
            answer = await self.http(self.facts.endpoints[index], "GET", "/cluster", timeout_s=5.0)
        except Lost:
            return None
        return dict(json.loads(answer.body)) if answer.status == 200 else None

    async def recovered(self, nodes: tuple[int, ...]) -> None:
        """Wait until these nodes, some of which may just have been started, have opened their disks."""
        end = time.monotonic() + RECOVERED_S
        for index in nodes:
            while await self.status(index) is None and time.monotonic() < end:
                await asyncio.sleep(0.1)

    def running(self) -> list[int]:
        return [index for index, node in enumerate(self.cluster.nodes) if node.running and not node.paused]


Fault = Callable[[Nemesis, Step, Fired], AbstractAsyncContextManager[None]]


# -- processes


@asynccontextmanager
async def kill(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
    """SIGKILL; afterwards they start again."""
    cluster = nemesis.cluster
    pids = [cluster.nodes[index].pid for index in step.nodes]
    for index in step.nodes:
        cluster.kill(index)
    codes = [process.returncode for index in step.nodes if (process := cluster.nodes[index].process)]
    if codes == [-9] * len(step.nodes) and not any(map(process_state, pids)):
        fired.evidence = f"killed {pids}"
    try:
        yield
    finally:
        for index in step.nodes:
            cluster.start(index)


@asynccontextmanager
async def kill_again(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
    """SIGKILL, again and again while it recovers."""
    cluster = nemesis.cluster
    kills = 0
    for pause_s in (0.3, 0.6, 1.0):
        for index in step.nodes:
            cluster.kill(index)
            kills += 1
            cluster.start(index)
        await asyncio.sleep(pause_s)
    fired.evidence = f"{kills} kills, now {[cluster.nodes[index].pid for index in step.nodes]}"
    yield


@asynccontextmanager
async def stop(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
    """SIGSTOP: nobody answers, and nothing breaks."""
    cluster = nemesis.cluster
    pids = [cluster.nodes[index].pid for index in step.nodes]
    for index in step.nodes:
        cluster.pause(index)
    try:
        await nemesis.see(fired, lambda: f"stopped {pids}" if all(process_state(pid) == "T" for pid in pids) else None)
        yield
    finally:
        for index in step.nodes:
            cluster.resume(index)


@asynccontextmanager
async def stop_and_kill(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
    """SIGSTOP, and SIGKILL before it moves again."""
    async with stop(nemesis, step, fired):
        await asyncio.sleep(step.duration_s / 2)
    async with kill(nemesis, step, fired):
        yield


@asynccontextmanager
async def stop_in_turn(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
    """One after the other stands still for a while."""
    for index in step.nodes:
        async with stop(nemesis, Step("stop", (index,), 0, 0), fired):
            await asyncio.sleep(step.duration_s / len(step.nodes))
    yield


# -- the network


def _cut(what: Callable[[NemesisCluster, Step], frozenset[Way]], mode: Mode, delay_s: float = 0.0) -> Fault:
    count = {"drop": "dropped", "hold": "held", "slow": "delayed", "refuse": "refused"}[mode]

    @asynccontextmanager
    async def cut(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
        network = nemesis.cluster.network
        ways = what(nemesis.cluster, step)
        # Whoever was just started, on a slow machine perhaps, has nothing to say yet, and nobody can talk to it: a node
        # whose peers all start is not cut off from anyone.
        await nemesis.recovered(tuple(nemesis.running()))
        before = network.count(count, ways)
        rule = network.add(mode, ways, delay_s=delay_s)
        unit = "connections" if mode == "refuse" else "bytes"
        try:
            await nemesis.see(fired, lambda: f"{count} {unit}" if network.count(count, ways) > before else None)
            yield
        finally:
            network.remove(rule)
            fired.evidence = fired.evidence and f"{count} {network.count(count, ways) - before} {unit}"

    return cut


def _isolated(cluster: NemesisCluster, step: Step) -> frozenset[Way]:
    return frozenset().union(*(cluster.out_of(index) | cluster.into(index) for index in step.nodes))


def _outward(cluster: NemesisCluster, step: Step) -> frozenset[Way]:
    return frozenset().union(*(cluster.out_of(index) for index in step.nodes))


def _inward(cluster: NemesisCluster, step: Step) -> frozenset[Way]:
    return frozenset().union(*(cluster.into(index) for index in step.nodes))


def _one_way(cluster: NemesisCluster, step: Step) -> frozenset[Way]:
    return frozenset(((cluster.names[step.nodes[0]], cluster.names[step.nodes[1]]),))


def _link(cluster: NemesisCluster, step: Step) -> frozenset[Way]:
    return cluster.between(*step.nodes[:2])


def _everything(cluster: NemesisCluster, _step: Step) -> frozenset[Way]:
    return cluster.all_ways()


@asynccontextmanager
async def reset(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
    """Every connection between nodes breaks, again and again; at least until there was one."""
    network = nemesis.cluster.network
    ways = nemesis.cluster.all_ways()
    before = network.count("reset", ways)

    def strike() -> str | None:
        network.reset(ways)
        return "connections" if network.count("reset", ways) > before else None

    for _ in range(4):
        await nemesis.see(fired, strike)
        await asyncio.sleep(step.duration_s / 4)
    fired.evidence = fired.evidence and f"{network.count('reset', ways) - before} connections reset"
    yield


# -- the registry


async def _registry_lost(nemesis: Nemesis) -> str | None:
    for index in nemesis.running():
        status = await nemesis.status(index)
        registry = status and status["registry"]
        if isinstance(registry, dict) and not registry["ok"] and registry["error"]:
            return f"node-{index + 1}: {str(registry['error'])[-60:]}"
    return None


@asynccontextmanager
async def registry_gone(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
    """Its folder is away."""
    await asyncio.to_thread(nemesis.cluster.take_registry_away)
    try:
        await nemesis.see(fired, lambda: _registry_lost(nemesis))
        yield
    finally:
        nemesis.cluster.bring_registry_back()


@asynccontextmanager
async def registry_hangs(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
    """Somebody holds its lock: whoever asks waits, for more than the ten seconds that they are willing to."""
    lock: sqlite3.Connection = await asyncio.to_thread(nemesis.cluster.hang_registry)
    try:
        # Those that are started anew meanwhile begin to wait anew.
        await nemesis.see(fired, lambda: _registry_lost(nemesis), deadline_s=HANG_SEEN_S)
        yield
    finally:
        lock.rollback()
        lock.close()


# -- disks


def _full(leave_bytes: int) -> Fault:
    @asynccontextmanager
    async def full(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
        cluster = nemesis.cluster
        # A node that finds its disk full to the last byte when it starts does not start: it says so and ends.
        await nemesis.recovered(step.nodes)
        if cluster.small_disks:
            disks = [cluster.nodes[index].disk for index in step.nodes]
            for disk in disks:
                mounts.resize_disk(disk, leave_bytes=leave_bytes)
        else:
            await _reserve(nemesis, step.nodes, "1000TiB")
        try:
            for index in step.nodes:
                await nemesis.see(fired, lambda index=index: _disk_full(nemesis, index, leave_bytes))
            if len(step.nodes) > 1:
                before = nemesis.facts.tries["507"]
                await nemesis.see(fired, lambda: "507 to clients" if nemesis.facts.tries["507"] > before else None)
                if "507" not in fired.evidence:
                    fired.evidence = ""
            yield
        finally:
            if cluster.small_disks:
                for disk in disks:
                    mounts.resize_disk(disk, leave_bytes=None)
            else:
                await _reserve(nemesis, step.nodes, "16MiB")

    return full


async def _disk_full(nemesis: Nemesis, index: int, leave_bytes: int) -> str | None:
    disk = nemesis.cluster.nodes[index].disk
    if nemesis.cluster.small_disks and mounts.free_bytes(disk) > leave_bytes + 8 * MIB:
        mounts.resize_disk(disk, leave_bytes=leave_bytes)  # the node has given up a segment of its journal meanwhile
    status = await nemesis.status(index)
    me = status and status["self"]
    if not isinstance(me, dict) or not me["disk"]["full"]:
        return None
    left = f" with {mounts.free_bytes(disk) // 1024} KiB left" if nemesis.cluster.small_disks else ""
    return f"node-{index + 1} says full{left}"


async def _reserve(nemesis: Nemesis, nodes: tuple[int, ...], reserve: str) -> None:
    """Without disks of our own: start them anew with a reserve that no disk can have."""
    for index in nodes:
        node = nemesis.cluster.nodes[index]
        node.settings["storage"]["reserve"] = reserve
        node.write_config()
        nemesis.cluster.kill(index)
        nemesis.cluster.start(index)


FAULTS: dict[str, Fault] = {
    "kill": kill,
    "kill-again": kill_again,
    "stop": stop,
    "stop-and-kill": stop_and_kill,
    "stop-in-turn": stop_in_turn,
    "isolate-drop": _cut(_isolated, "drop"),
    "isolate-hold": _cut(_isolated, "hold"),
    "isolate-refuse": _cut(_isolated, "refuse"),
    "mute-drop": _cut(_outward, "drop"),
    "mute-hold": _cut(_outward, "hold"),
    "deaf-drop": _cut(_inward, "drop"),
    "one-way-drop": _cut(_one_way, "drop"),
    "one-way-hold": _cut(_one_way, "hold"),
    "link-drop": _cut(_link, "drop"),
    "link-refuse": _cut(_link, "refuse"),
    "all-apart-drop": _cut(_everything, "drop"),
    "all-apart-refuse": _cut(_everything, "refuse"),
    "slow-node": _cut(_isolated, "slow", 0.08),
    "slow-all": _cut(_everything, "slow", 0.03),
    "reset": reset,
    "registry-gone": registry_gone,
    "registry-hangs": registry_hangs,
    "disk-full": _full(4 * MIB),
    "disk-overfull": _full(0),
    "disk-emptied": operators.disk_emptied,
    "operator": operators.operator,
    "two-operators": operators.two_operators,
    "kill-in-joint": operators.kill_in_joint,
}
"""By name. A node that is mute is not heard, one that is deaf does not hear; a link is between two nodes, both ways."""

HOW_MANY: dict[str, tuple[int, ...]] = {
    "kill": (1, 1, 2, 3),
    "stop": (1, 1, 2, 2, 3),
    "stop-in-turn": (3,),
    "one-way-drop": (2,),
    "one-way-hold": (2,),
    "link-drop": (2,),
    "link-refuse": (2,),
    "all-apart-drop": (3,),
    "all-apart-refuse": (3,),
    "slow-all": (3,),
    "reset": (3,),
    "registry-gone": (3,),
    "registry-hangs": (3,),
    "disk-full": (1, 2),
    "disk-overfull": (1, 2, 3),
    "two-operators": (2,),
}
"""On how many nodes, drawn anew each time; one where nothing is said."""

DURATION_S: dict[str, tuple[float, float]] = {
    "kill-again": (2.0, 2.5),
    "stop-in-turn": (3.0, 4.0),
    "registry-gone": (4.0, 9.0),
    "registry-hangs": (12.0, 13.0),
    "reset": (1.5, 3.0),
    "slow-node": (2.0, 5.0),
    "slow-all": (2.0, 5.0),
}


@dataclass(frozen=True)
class Profile:
    """What a run is about: faults that it must have, and those that fill the rest of its time."""

    main: tuple[str, ...]
    side: tuple[str, ...]
    fill: tuple[str, ...]
    fill_side: tuple[str, ...] = ("registry-gone", "slow-node", "slow-all", "reset")
    small_disks: bool = False
    nodes: int = 3
    """Three of them to begin with; the others may be joined."""


CRASHES = ("kill", "kill-again", "stop-and-kill")
STOPS = ("stop", "stop-in-turn")
CUTS = tuple(name for name in FAULTS if name.startswith(("isolate", "mute", "deaf", "one-way", "link", "all-apart")))
DISKS = ("disk-full", "disk-overfull")
OPERATORS = ("operator", "two-operators")

PROFILES: dict[str, Profile] = {
    "crash": Profile(
        main=("kill", "kill-again", "stop-and-kill", "stop", "isolate-refuse", "one-way-drop"),
        side=("registry-gone", "reset"),
        fill=CRASHES + STOPS,
    ),
    "pause": Profile(
        main=("stop", "stop-in-turn", "stop", "kill", "one-way-hold", "mute-hold"),
        side=("slow-all", "registry-gone", "slow-node"),
        fill=(*STOPS, "stop-and-kill", "isolate-hold"),
    ),
    "partition": Profile(
        main=("isolate-drop", "one-way-drop", "mute-drop", "all-apart-refuse", "deaf-drop", "link-drop", "kill"),
        side=("registry-gone", "reset"),
        fill=CUTS,
    ),
    "storage": Profile(
        main=("disk-full", "disk-overfull", "kill", "stop", "isolate-hold"),
        side=("registry-hangs", "registry-gone"),
        fill=(*DISKS, "kill", "stop"),
        small_disks=True,
    ),
    "membership": Profile(
        main=("kill-in-joint", "isolate-drop", "disk-emptied", "one-way-hold", "kill-in-joint", "stop-and-kill"),
        side=("operator", "two-operators", "registry-gone", "operator"),
        fill=("kill-in-joint", "kill", "kill-again", "isolate-hold", "mute-drop", "stop", "disk-emptied"),
        fill_side=(*OPERATORS, "operator", "registry-gone", "slow-node", "reset"),
        nodes=5,
    ),
    "quiet": Profile(main=("one-way-hold",), side=("slow-node",), fill=("one-way-hold",), fill_side=("slow-node",)),
    "all": Profile(
        main=("kill", "stop", "isolate-drop", "one-way-drop", "disk-full", "disk-emptied"),
        side=("registry-gone", "operator"),
        fill=(*CRASHES, *STOPS, *CUTS, *DISKS, "kill-in-joint", "disk-emptied"),
        fill_side=(*OPERATORS, "registry-gone", "slow-node", "slow-all", "reset"),
        small_disks=True,
        nodes=5,
    ),
}


def plan(seed: int, seconds: float, profile: Profile) -> tuple[list[Step], list[Step]]:
    """The main and the side track of a seed."""
    chance = random.Random(f"nemesis {seed}")
    return (
        _track(chance, seconds, profile.main, profile.fill, profile.nodes, gap_s=(0.4, 1.6)),
        _track(chance, seconds, profile.side, profile.fill_side, profile.nodes, gap_s=(1.0, 5.0)),
    )


def _track(
    chance: random.Random,
    seconds: float,
    needed: tuple[str, ...],
    fill: tuple[str, ...],
    nodes: int,
    *,
    gap_s: tuple[float, float],
) -> list[Step]:
    names = chance.sample(needed, len(needed))
    steps: list[Step] = []
    # What is needed comes in any case, the shorter the less time there is.
    left_s = seconds - 2.0
    for number in itertools.count():
        if number >= len(names):
            names.append(chance.choice(fill))
        name = names[number]
        low, high = DURATION_S.get(name, (1.5, 5.0))
        step = Step(
            name,
            tuple(chance.sample(range(nodes), min(nodes, chance.choice(HOW_MANY.get(name, (1,)))))),
            round(chance.uniform(*gap_s), 2),
            round(chance.uniform(low, high), 2),
        )
        if number >= len(needed) and step.gap_s + step.duration_s > left_s:
            return steps
        left_s -= step.gap_s + step.duration_s
        steps.append(step)
    raise AssertionError


__all__ = ["FAULTS", "PROFILES", "Fired", "Nemesis", "Profile", "Step", "plan"]
