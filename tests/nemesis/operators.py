"""Faults of membership: operators who change it in random moments, and nodes that are lost while slots are on their way (rfc/0013).

There are five nodes, three to begin with. What an operator does depends on what is wanted at that moment: a node that is not active is joined; one
that is active is drained if three others remain, or replaced by one that is not.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from tests.nemesis.clients import Lost

if TYPE_CHECKING:
    from tests.nemesis.cluster import NemesisCluster
    from tests.nemesis.faults import Fired, Nemesis, Step

ACTIVE_MIN = 3
"""Copies of each slot."""

ASKED_S = 90.0
"""How long an operator asks again, through one node and another, while nodes are down or the registry is away."""

SETTLED_S = 180.0


async def membership_of(nemesis: Nemesis) -> dict[str, Any] | None:
    """The ``membership`` part of ``/cluster`` as the first node that answers tells it; None if none does."""
    for index in nemesis.running():
        document = await nemesis.status(index)
        if document is not None and isinstance(found := document.get("membership"), dict):
            return found
    return None


async def ask(nemesis: Nemesis, through: int, action: str, *nodes: str) -> tuple[int, str]:
    """One request of an operator: the status, 0 if there was no answer, and what it said."""
    body = json.dumps({"action": action, "nodes": list(nodes)}).encode()
    try:
        answer = await nemesis.http(nemesis.facts.endpoints[through], "POST", "/cluster/membership", data=body)
    except Lost as error:
        return 0, str(error)
    return answer.status, str(answer.json.get("detail", ""))


def wishes(membership: dict[str, Any], node: str) -> list[tuple[str, str]]:
    """What an operator asks who wants something of this node: actions and nodes, in order."""
    states: dict[str, str] = membership["nodes"]
    active = sorted(name for name, state in states.items() if state == "active")
    others = sorted(name for name, state in states.items() if state in ("spare", "draining"))
    if node not in active:
        return [("join", node)]
    if len(active) > ACTIVE_MIN or not others:
        return [("drain", node)]
    return [("join", others[0]), ("drain", node)]


async def change(nemesis: Nemesis, node: int, fired: Fired) -> None:
    """Have what is wanted of a node changed, however often that must be asked for; the evidence is that it was accepted."""
    name = nemesis.cluster.names[node]
    end = time.monotonic() + ASKED_S
    turn = node
    asked: list[tuple[str, str]] | None = None
    said = []
    while time.monotonic() < end:
        await asyncio.sleep(0.2)
        if asked is None:
            seen = await membership_of(nemesis)
            asked = wishes(seen, name) if seen is not None else None
        if asked is None:
            continue
        turn += 1
        through = nemesis.running()
        if not through:
            continue
        action, target = asked[0]
        status, detail = await ask(nemesis, through[turn % len(through)], action, target)
        if status == 202:
            said.append(f"{action} {target}")
            asked = asked[1:]
            if not asked:
                fired.evidence = ", ".join(filter(None, [fired.evidence, *said]))
                return
        elif status == 409 and "gives no sign of life" not in detail and "Another change" not in detail:
            asked = None  # somebody else's wishes came first: look again
        else:
            assert status in (0, 409, 503, 504), f"{action} {target}: {status} {detail}"


@asynccontextmanager
async def operator(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
    """An operator changes what is wanted of a node."""
    await change(nemesis, step.nodes[0], fired)
    yield


@asynccontextmanager
async def two_operators(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
    """Two operators want something else of two nodes at the same moment."""
    await asyncio.gather(*(change(nemesis, node, fired) for node in step.nodes[:2]))
    if fired.evidence.count("join") + fired.evidence.count("drain") < 2:
        fired.evidence = ""  # one of them was never heard
    yield


@asynccontextmanager
async def kill_in_joint(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
    """SIGKILL for a member of a slot in a joint epoch: its leader, or a new member. If no slot is in one, an operator sees to it."""
    cluster = nemesis.cluster
    end = time.monotonic() + 2 * ASKED_S
    victim: int | None = None
    while victim is None and time.monotonic() < end:
        seen = await membership_of(nemesis)
        moves: dict[str, Any] = seen["moves"] if seen is not None else {"left": 1, "slots": []}
        if not moves["left"]:
            await change(nemesis, step.nodes[0], fired)
            fired.evidence = ""
        for row in moves["slots"]:
            if row["stage"] != "joint":
                continue
            new = [name for name in row["to"] if name not in row["from"]]
            wanted = new[0] if new and step.nodes[0] % 2 else row["from"][0]
            index = cluster.names.index(wanted)
            if cluster.nodes[index].running and not cluster.nodes[index].paused:
                victim = index
                fired.evidence = f"killed {wanted} of slot {row['slot']}: {row['from']} to {row['to']}"
                break
        await asyncio.sleep(0.05)
    if victim is not None:
        cluster.kill(victim)
    try:
        yield
    finally:
        if victim is not None:
            cluster.start(victim)


@asynccontextmanager
async def disk_emptied(nemesis: Nemesis, step: Step, fired: Fired) -> AsyncIterator[None]:
    """A node that holds slots is killed, loses all that was on its disk, and starts again.

    Only when every copy is filled and lacks no bytes: a majority that loses its disks is beyond what is promised.
    """
    cluster = nemesis.cluster
    end = time.monotonic() + 2 * ASKED_S
    while not (holders := await _holders_when_whole(nemesis)):
        if time.monotonic() > end:
            break
        await asyncio.sleep(0.2)
    else:
        name = holders[step.nodes[0] % len(holders)]
        index = cluster.names.index(name)
        cluster.kill(index)
        lost = empty_disk(cluster, index)
        cluster.start(index)
        fired.evidence = f"{name} lost {lost} files"
    yield


async def _holders_when_whole(nemesis: Nemesis) -> list[str]:
    """The nodes that hold slots, if every node tells of its copies, and all of them are filled and have all their bytes."""
    if len(nemesis.running()) < len(nemesis.cluster.nodes):
        return []
    try:
        answer = await nemesis.http(nemesis.facts.endpoints[0], "GET", "/cluster?slots=1", timeout_s=5.0)
    except Lost:
        return []
    document = answer.json if answer.status == 200 else {}
    heal = document.get("heal", {})
    whole = (
        not heal.get("silent_nodes", ["unknown"])
        and not heal["bytes_waiting"]
        and not heal["versions_waiting"]
        and all(not row["unsynced"] and row["present"] == row["target"] for row in heal["by_slot"])
        and all(row["votes"] == row["slots"] for row in document["nodes"])
    )
    return [row["node"] for row in document["nodes"] if row["slots"]] if whole else []


def empty_disk(cluster: NemesisCluster, index: int) -> int:
    """Remove all that is on the disk of a node that does not run, but not the folder, which may be a mount; how many files that were."""
    disk = cluster.nodes[index].disk
    count = sum(file.is_file() for file in disk.rglob("*"))
    for entry in disk.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    return count


async def all_moved(nemesis: Nemesis) -> str:
    """Wait until no slot is on its way; what is in the way if that takes too long ("" if it does not)."""
    end = time.monotonic() + SETTLED_S
    seen = None
    while time.monotonic() < end:
        seen = await membership_of(nemesis)
        if seen is not None and not seen["moves"]["left"] and not seen["planning"]:
            return ""
        await asyncio.sleep(0.2)
    return f"slots did not arrive within {SETTLED_S:g} s of healing: {seen}"


def steps_of_slots(cluster: NemesisCluster) -> Counter[str]:
    """What leaders did with slots, counted in the nodes' logs: begin-joint, finish, abort and others."""
    steps: Counter[str] = Counter()
    for index in range(len(cluster.nodes)):
        for line in cluster.log_text(index).splitlines():
            if '"event":"slot moved"' in line:
                try:
                    steps[json.loads(line)["step"]] += 1
                except ValueError:
                    continue  # cut off by SIGKILL
    return steps
