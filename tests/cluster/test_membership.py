"""Nodes come and go under the hands of clients (rfc/0013), with real processes and the real command line.

Clients take nothing but success (:mod:`tests.cluster.traffic`); at the end every acknowledged write is there, through every node.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from amberblob import AsyncClient
from tests.cluster.commands import amberblob, cluster_json, operate, started
from tests.cluster.harness import MIB, Answer, Api, Cluster, api_of, content, found, run_serve, until
from tests.cluster.traffic import Traffic
from tests.contract.registry.servers import EtcdServer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

MakeCluster = Callable[..., Cluster]
SLOTS = 4
WAIT = ("--wait", "--timeout", "280")
DEADLINE_S = 200.0
"""For a machine with more to do than this."""


# -- what the tests look at


async def told(api: Api, node: int = 0) -> dict[str, Any]:
    """The ``membership`` part of ``GET /cluster``."""
    document: dict[str, Any] = (await api("GET", "/cluster", node=node)).json["membership"]
    return document


async def slots_of(api: Api, node: int = 0) -> dict[str, int]:
    """By node, how many slots the routes give it."""
    return {row["node"]: row["slots"] for row in (await api("GET", "/cluster", node=node)).json["nodes"]}


async def slots_are(api: Api, wanted: dict[str, int], node: int = 0) -> None:
    """Until a node, perhaps another one than was asked for the change, has heard that these nodes have so many slots."""

    async def heard() -> bool:
        slots = await slots_of(api, node)
        return {name: slots.get(name, 0) for name in wanted} == wanted

    await until(heard, f"slots by node: {wanted}")


async def settled(api: Api, node: int = 0) -> None:
    """Until no slot is on its way, and nobody writes a plan."""

    async def done() -> bool:
        seen = await told(api, node)
        return not seen["moves"]["left"] and not seen["planning"]

    await until(done, "every slot is where it is wanted", deadline_s=DEADLINE_S)


async def slot_in(api: Api, stage: str, node: int = 0) -> dict[str, Any]:
    """Until a slot is in this stage of its way to node-4, which is joined; the row that tells of it.

    Slots may arrive before anybody looks: then node-4 is drained, and joined once more.
    """
    asked = ""
    end = time.monotonic() + 2 * DEADLINE_S
    while time.monotonic() < end:
        seen = await told(api, node)
        row: dict[str, Any]
        for row in seen["moves"]["slots"]:
            if row["stage"] == stage and "node-4" in row["to"]:
                return row
        if not seen["moves"]["left"] and not seen["planning"]:
            action = "drain" if seen["nodes"].get("node-4") == "active" else "join"
            if asked != action:
                answer = await ask(api, action, "node-4", at=node)
                assert answer.status in (202, 409, 503), answer
                asked = action if answer.status == 202 else asked
        await asyncio.sleep(0.005)
    raise AssertionError(f"no slot was seen to be {stage}: {await told(api, node)}")


async def healed(cluster: Cluster, node: int = 0) -> None:
    """Every copy of every slot has the same digest, and lacks nothing."""
    said = await operate(cluster, "heal", "--wait", "--timeout", "280", node=node, timeout_s=300)
    assert f"healed: all {cluster.slot_count} slots" in said, said
    document: dict[str, Any] = {}

    async def told_by_all() -> bool:
        """Whoever does not answer at once is not told of."""
        document.update(await cluster_json(cluster, "slots", node=node))
        return all(row["state"] == "whole" and row["present"] == row["target"] for row in document["by_slot"])

    await until(told_by_all, "every copy of every slot is told of")
    for row in document["by_slot"]:
        assert len({copy["root"] for copy in row["copies"]}) == 1, row


async def copies_are(api: Api, *wanted: int, node: int = 0) -> None:
    """Until a node tells so of the copies: the target, the fewest of a slot, and how many slots have fewer than wanted."""

    async def seen() -> bool:
        heal = (await api("GET", "/cluster", node=node)).json["heal"]
        return (heal["target"], heal["fewest_copies"], heal["slots_below_target"]) == wanted

    await until(seen, f"copies: {wanted}")


async def status_says(cluster: Cluster, text: str, *, node: int, absent: bool = False) -> None:
    """Until ``cluster status`` says so, or does not say it any more, and ends well."""

    async def said() -> bool:
        status, out, _ = await amberblob(cluster, "cluster", "status", node=node)
        return status == 0 and (text in out) is not absent

    await until(said, f"status {'without' if absent else 'says'}: {text}")


async def emptied(cluster: Cluster, *indices: int) -> None:
    """Until these nodes hold nothing, and their disks have their room back."""
    for index in indices:

        def empty(index: int = index) -> bool:
            # What stays is a blank database for each slot, with its write-ahead log.
            blank = cluster.slot_count * MIB // 2
            return not found(cluster.nodes[index].disk, "slots/*/blobs/*") and cluster.disk_bytes(index) < blank

        await until(empty, f"nothing is left on {cluster.nodes[index].name}", deadline_s=DEADLINE_S)


async def begin(cluster: Cluster, count: int = 1) -> list[int]:
    """Start further nodes, and wait until they are ready, seen by all, and known to be alive."""
    indices = [cluster.add_node() for _ in range(count)]
    for index in indices:
        cluster.start(index)
    running = [index for index, node in enumerate(cluster.nodes) if node.running]
    await cluster.wait_ready(*running)
    async with api_of(cluster) as api:
        for index in indices:
            await until(lambda index=index: alive(api, cluster.nodes[index].name, running), "it gives a sign of life")
    return indices


async def alive(api: Api, name: str, nodes: Sequence[int]) -> bool:
    """Whether all of these nodes know of the node's sign of life."""
    for node in nodes:
        rows = (await api("GET", "/cluster", node=node)).json["nodes"]
        if not any(row["alive"] for row in rows if row["node"] == name):
            return False
    return True


async def ask(api: Api, action: str, *nodes: str, at: int = 0, force: bool = False) -> Answer:
    """``POST /cluster/membership``."""
    body = json.dumps({"action": action, "nodes": list(nodes), "force": force})
    return await api("POST", "/cluster/membership", node=at, data=body.encode())


async def prefilled(api: Api, count: int, size: int) -> None:
    """Objects that have to be moved."""
    gate = asyncio.Semaphore(4)

    async def put(number: int) -> None:
        async with gate:
            await api.put(f"before/{number}", content(f"before {number}", size))

    await asyncio.gather(*map(put, range(count)))


async def prefilled_is_there(api: Api, count: int, size: int) -> None:
    for number in range(count):
        for node in api.nodes:
            assert (await api.get(f"before/{number}", node=node)).body == content(f"before {number}", size)


def wanted_in_registry(file: Path) -> dict[str, bytes]:
    """What an embedded registry holds, but for signs of life."""
    with sqlite3.connect(file, timeout=60) as connection:
        rows = connection.execute("SELECT key, value FROM entries WHERE key NOT LIKE '%/alive/%'")
        return {key: bytes(value) for key, value in rows}


@pytest.fixture
async def one(make_cluster: MakeCluster) -> Cluster:
    """A machine alone, of a cluster that is to keep three copies."""
    cluster = make_cluster(nodes=1, replicas=3, slot_count=SLOTS)
    cluster.start(0)
    await cluster.wait_ready(0)
    return cluster


@pytest.fixture
async def three(make_cluster: MakeCluster) -> Cluster:
    cluster = make_cluster(slot_count=SLOTS)
    cluster.start_all()
    await cluster.wait_ready()
    return cluster


# -- growing and shrinking


async def test_one_machine_is_a_cluster_and_grows_to_three(one: Cluster) -> None:
    async with api_of(one) as api:
        traffic = Traffic(api, "grow", [0])
        async with traffic.going_on():
            await copies_are(api, 3, 1, SLOTS)
            _, status, _ = await amberblob(one, "cluster", "status")
            assert f"copies: 1 of 3 copies in {SLOTS} slots\n" in status, status
            assert "for 3 copies of each slot join 2 more nodes: start them" in status, status

            spares = await begin(one, 2)
            api.nodes[:] = traffic.through[:] = [0, *spares]
            await slots_are(api, {"node-1": SLOTS, "node-2": 0, "node-3": 0})
            for node in spares:  # a spare one holds nothing, and answers
                await api.put(f"spare/{node}", b"spare", node=node)
                assert (await api.get(f"spare/{node}", node=node)).body == b"spare"

            await status_says(one, "join 2 more nodes: amberblob cluster join node-2 node-3", node=2)
            said = await operate(one, "join", "node-2", "node-3", *WAIT, timeout_s=300)
            assert "done: every slot is where it is wanted" in said, said
            await slots_are(api, {"node-1": SLOTS, "node-2": SLOTS, "node-3": SLOTS})
        await healed(one)
        await traffic.verify()
        await copies_are(api, 3, 3, 0, node=2)
        await status_says(one, "of 3 copies", node=1, absent=True)

        # The machine that was alone may go now.
        one.kill(0)
        api.nodes[:] = traffic.through[:] = [1, 2]
        await traffic.verify()


async def test_three_nodes_become_five_and_other_three(three: Cluster) -> None:
    async with api_of(three) as api:
        traffic = Traffic(api, "five", [0, 1, 2])
        async with traffic.going_on():
            joined = await begin(three, 2)
            await operate(three, "join", "node-4", "node-5", *WAIT, timeout_s=300)
            traffic.through += joined
            slots = await slots_of(api)
            assert sum(slots.values()) == 3 * SLOTS and all(2 <= count <= 3 for count in slots.values()), slots

            said = await operate(three, "drain", "node-1", "node-2", *WAIT, node=4, timeout_s=300)
            assert "done: every slot is where it is wanted" in said, said
            # A drained node takes requests as any other, until it is removed.
            await slots_are(api, {"node-1": 0, "node-2": 0} | dict.fromkeys(("node-3", "node-4", "node-5"), SLOTS))
            await emptied(three, 0, 1)
            traffic.check()
            traffic.through[:] = api.nodes[:] = [2, 3, 4]
            under_way = traffic.under_way
            await until(lambda: not (under_way[0] or under_way[1]), "what was on its way through them has ended")
            await operate(three, "remove", "node-1", "node-2", node=2)
        await traffic.verify()

        for index in (0, 1):
            three.kill(index)
            status, said = run_serve(three.nodes[index].config)
            assert status not in (0, -9), said
            assert "was removed" in said and "forget" in said and "Traceback" not in said, said
        await healed(three, node=2)
        await traffic.verify()


# -- replacing


async def test_a_node_comes_back_with_an_empty_disk(three: Cluster) -> None:
    async with api_of(three) as api:
        traffic = Traffic(api, "disk", [0, 1])
        async with traffic.going_on():
            await until(lambda: len(traffic.known) > 20, "there is something to lose")
            three.kill(2)
            shutil.rmtree(three.nodes[2].disk)
            three.start(2)
            await three.wait_ready()
            traffic.through.append(2)

            async def voting() -> bool:
                rows = (await api("GET", "/cluster", node=0)).json["nodes"]
                return all(row["votes"] == SLOTS for row in rows)

            await until(voting, "its new copies vote", deadline_s=DEADLINE_S)
        await healed(three)
        await traffic.verify()


async def test_a_dead_node_is_replaced_by_another_one(three: Cluster) -> None:
    async with api_of(three) as api:
        traffic = Traffic(api, "dead", [0, 1])
        api.nodes[:] = [0, 1]
        async with traffic.going_on():
            await until(lambda: len(traffic.known) > 20, "there is something to lose")
            three.kill(2)
            (new,) = await begin(three)

            async def dead() -> bool:
                return not await alive(api, "node-3", [0])

            await until(dead, "it gives no sign of life")
            status, _, said = await amberblob(three, "cluster", "remove", "node-3")
            assert status == 1 and "still holds 4 slots and gives no sign of life" in said, said
            # With the new one first, no slot has ever fewer than three copies wanted.
            await operate(three, "join", "node-4", node=1)
            await operate(three, "remove", "node-3", "--force", *WAIT, timeout_s=300)
            api.nodes[:] = traffic.through[:] = [0, 1, new]
            await slots_are(api, {"node-3": 0})
        await healed(three)
        await traffic.verify()
        status, said = run_serve(three.nodes[2].config)
        assert status not in (0, -9) and "was removed" in said, said


# -- what dies in the middle


async def test_the_command_dies_and_is_given_again(three: Cluster) -> None:
    async with api_of(three) as api:
        await prefilled(api, 24, 300_000)
        traffic = Traffic(api, "again", [0, 1, 2])
        async with traffic.going_on(large=0):
            await begin(three)
            before = wanted_in_registry(three.registry)
            said = await operate(three, "join", "node-4", "--dry-run")
            assert f"{SLOTS - 1} slots would move" in said, said
            assert "node-4\tactive\t0\t3" in said, said
            assert wanted_in_registry(three.registry) == before, "a dry run changed something"

            command = started(three, "cluster", "join", "node-4", "--wait")
            assert command.stderr is not None
            assert b"slots move" in await asyncio.to_thread(command.stderr.readline)
            command.kill()
            await asyncio.to_thread(command.wait)
            command.stderr.close()

            said = await operate(three, "join", "node-4", *WAIT, node=1, timeout_s=300)
            assert "warning: node-4 is active already" in said and "done" in said, said
            await slots_are(api, {"node-4": 3})
            said = await operate(three, "join", "node-4", *WAIT)
            assert "no slot has to move" in said, said
        await prefilled_is_there(api, 24, 300_000)
        await traffic.verify()


async def test_the_leading_node_and_a_learner_are_killed_on_the_way(three: Cluster) -> None:
    async with api_of(three) as api:
        await prefilled(api, 24, 300_000)
        traffic = Traffic(api, "killed", [1, 2])
        async with traffic.going_on():
            (new,) = await begin(three)
            await slot_in(api, "learning", node=1)
            three.kill(new)
            three.start(new)
            row = await slot_in(api, "joint", node=1)
            leader = next(index for index, node in enumerate(three.nodes) if node.name == row["from"][0])
            survivors = [index for index in range(3) if index != leader]
            traffic.through[:] = survivors
            await until(lambda: not traffic.under_way[leader], "what was on its way through the leader has ended")
            three.kill(leader)
            await settled(api, survivors[0])
            await slots_are(api, {"node-4": 3}, survivors[0])
            three.start(leader)
            await three.wait_ready()
        await healed(three)
        traffic.through[:] = range(4)
        await traffic.verify()
        await prefilled_is_there(api, 24, 300_000)


# -- the registry


@pytest.fixture(params=["embedded", "etcd"])
async def registry(
    request: pytest.FixtureRequest, make_cluster: MakeCluster, tmp_path: Path
) -> AsyncIterator[tuple[Cluster, Callable[[], None], Callable[[], None]]]:
    """Three nodes, and what takes their registry away and brings it back."""
    if request.param == "etcd":
        server = EtcdServer(tmp_path / "etcd")
        server.start()
        cluster = make_cluster(slot_count=SLOTS, registry_url=server.url)

        def away() -> None:
            server.stop()

        def back() -> None:
            server.start()
    else:
        there, hidden = tmp_path / "registry", tmp_path / "hidden"
        there.mkdir()
        cluster = make_cluster(slot_count=SLOTS, registry_url=f"embedded://{there / 'registry.sqlite3'}")

        def away() -> None:
            # Nobody is in the middle of a transaction.
            with sqlite3.connect(there / "registry.sqlite3", isolation_level=None, timeout=60) as connection:
                connection.execute("BEGIN EXCLUSIVE")
                there.rename(hidden)
            connection.close()

        def back() -> None:
            hidden.rename(there)

    cluster.start_all()
    await cluster.wait_ready()
    yield cluster, away, back
    if request.param == "etcd":
        cluster.close()
        server.close()


async def test_the_registry_is_away_in_the_middle(
    registry: tuple[Cluster, Callable[[], None], Callable[[], None]],
) -> None:
    cluster, away, back = registry
    async with api_of(cluster) as api:
        await prefilled(api, 24, 300_000)
        await begin(cluster)

        async def missed(node: int, missing: bool) -> bool:
            return (await api("GET", "/cluster", node=node)).json["registry"]["ok"] is not missing

        for _ in range(10):
            await slot_in(api, "learning")
            await asyncio.to_thread(away)
            for node in range(4):
                await until(lambda node=node: missed(node, True), f"node {node} misses the registry")
            if left := (await told(api))["moves"]["left"]:
                break
            # It was done before the registry was away.
            await asyncio.to_thread(back)
            for node in range(4):
                await until(lambda node=node: missed(node, False), f"node {node} has the registry again")
        assert left, "nothing is proved"
        refused = await ask(api, "drain", "node-3")
        assert refused.status == 503, refused
        # A node that had not heard of the last change of a route refuses requests for that slot, once the copies have heard of it
        # from one that had: clients go to another one.
        for number in range(8):
            for node in (3, 2, 1, 0):
                answer = await api("PUT", f"/objects/behind/{number}", data=b"x", node=node)
                assert answer.status == 201 or (answer.status, answer.problem) == (503, "stale-route"), answer
        async with AsyncClient(cluster.endpoints) as client:
            for number in range(30):
                await client.put(f"away/{number}", b"%d" % number)
            assert (await told(api))["moves"]["left"] == left, "a route changed without a registry"
            await asyncio.to_thread(back)
            await settled(api)
            await slots_are(api, {"node-4": 3})
            for number in range(30):
                async with await client.get(f"away/{number}") as reader:
                    assert await reader.read() == b"%d" % number
        await healed(cluster)


# -- two at once


async def test_of_two_operators_at_once_one_is_told(three: Cluster) -> None:
    async with api_of(three) as api:
        await api.put("here", b"all the time")
        await begin(three, 2)
        api.nodes[:] = range(5)
        for _ in range(10):
            answers = await asyncio.gather(ask(api, "join", "node-4", at=0), ask(api, "join", "node-5", at=1))
            won = {name for name, answer in zip(("node-4", "node-5"), answers, strict=True) if answer.status == 202}
            lost = [answer for answer in answers if answer.status != 202]
            await settled(api)

            async def all_know(won: set[str] = won) -> bool:
                states = [(await told(api, node))["nodes"] for node in range(5)]
                return all({name for name in ("node-4", "node-5") if seen[name] == "active"} == won for seen in states)

            await until(all_know, f"only {won} is active")
            assert won, f"nobody won: {answers}"
            if lost:
                assert lost[0].status == 409, lost
                assert "Another change" in lost[0].json["detail"], lost[0].json
                break
            assert (await ask(api, "drain", "node-4", "node-5")).status == 202
            await settled(api)
        else:
            raise AssertionError("ten times the two did not meet")
        assert (await api.get("here", node=4)).body == b"all the time"
