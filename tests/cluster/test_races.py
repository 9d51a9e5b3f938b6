"""Conditional writes that race through different nodes."""

from __future__ import annotations

import asyncio
import random
import time

import pytest

from tests.cluster.harness import DEADLINE_S, KIB, Answer, Api, content, object_url

pytestmark = pytest.mark.cluster


async def test_exactly_one_creates(api: Api, name: str) -> None:
    for number in range(30):
        path = f"{name}/{number}"
        size = 30 if number % 3 else 80 * KIB

        async def create(client: int, path: str = path, size: int = size) -> tuple[int, int]:
            answer = await api.decided(path, content(client, size), headers={"If-None-Match": "*"}, node=client % 3)
            return client, answer.status

        answers = await asyncio.gather(*(create(client) for client in range(12)))
        winners = [client for client, status in answers if status == 201]
        assert len(winners) == 1, answers
        assert {status for client, status in answers if client not in winners} == {412}, answers
        for node in range(3):
            assert (await api.get(path, node=node)).body == content(winners[0], size)
        assert len(await api.versions(path)) == 1


async def test_a_counter_loses_no_increment(api: Api, name: str) -> None:
    clients, increments = 6, 12
    await api.put(name, b"0")
    tried: list[int] = []

    async def count(client: int) -> None:
        done = 0
        chance = random.Random(client)
        while done < increments:
            node = client % 3
            now = await api.get(name, node=node)
            answer = await api(
                "PUT",
                object_url(name),
                node=node,
                data=str(int(now.body) + 1).encode(),
                headers={"X-Amber-If-Version": str(now.version)},
            )
            tried.append(answer.status)
            assert answer.status in (201, 412, 503), answer
            if answer.status == 201:
                assert answer.json["version"] == now.version + 1
                done += 1
            else:
                await asyncio.sleep(chance.random() * 0.01)  # the clients' own backoff

    await asyncio.gather(*map(count, range(clients)))
    print({status: tried.count(status) for status in set(tried)})
    final = await api.get(name)
    assert int(final.body) == clients * increments
    assert final.version == clients * increments + 1


async def test_writers_without_conditions_all_get_versions_of_their_own(api: Api, name: str) -> None:
    api.patience_s = DEADLINE_S
    answers = await asyncio.gather(*(api.put(name, content(index, 50), node=index % 3) for index in range(60)))
    assert sorted(answer.json["version"] for answer in answers) == list(range(1, 61))
    for index, answer in enumerate(answers):
        got = await api.get(name, query=f"version={answer.json['version']}")
        assert got.body == content(index, 50)


async def test_nobody_starves(api: Api, name: str) -> None:
    """Three that write one path again and again, each through a node of its own: each of them gets through."""
    acknowledged = [0, 0, 0]
    refused: list[Answer] = []
    passed_by: list[int] = []
    """For each refused write: how many of the three's were acknowledged meanwhile."""

    def are_few() -> bool:
        # A write that the machine kept from going on loses to its rivals until its time is over, and says so. A standstill may
        # cost each of the three one. On a slow machine there are more, but few writes pass them by in their ten seconds.
        starved = [count for count in passed_by if count > 200]
        return len(starved) <= 3 and len(refused) <= 12 + sum(acknowledged) // 100

    async def write(node: int) -> None:
        # One whom the machine did not let go on for a while did not starve for that: it has time to catch up.
        while are_few() and (sum(acknowledged) < 600 or (100 * min(acknowledged) <= sum(acknowledged) < 12_000)):
            before, begun_s = sum(acknowledged), time.monotonic()
            answer = await api("PUT", object_url(name), node=node, data=b"x" * 20)
            if answer.status == 201:
                acknowledged[node] += 1
            else:
                refused.append(answer)
                passed_by.append(sum(acknowledged) - before)
                # Of its ten seconds a standstill may have taken half; no node gives up a race before its time is over.
                assert "refused: ballot" not in answer.json["detail"] or time.monotonic() - begun_s > 3, answer
                await asyncio.sleep(1)  # as users do

    await asyncio.gather(*map(write, range(3)))
    print(f"acknowledged by node: {acknowledged}, refused while so many were: {passed_by}")
    assert are_few(), (passed_by, refused)
    assert {answer.problem for answer in refused} <= {"quorum-unavailable", "outcome-unknown"}, refused
    assert 100 * min(acknowledged) > sum(acknowledged), acknowledged


async def test_readers_never_see_time_run_backwards(api: Api, name: str) -> None:
    await api.put(name, b"1")
    done = False

    async def write() -> None:
        nonlocal done
        for _ in range(60):
            await api.put(name, b"x" * 100)
        done = True

    async def read(first_node: int) -> int:
        seen = reads = 0
        while not done:
            version = (await api.get(name, node=(first_node + reads) % 3)).version
            assert version >= seen
            seen = version
            reads += 1
        return reads

    reads = await asyncio.gather(*(read(node) for node in range(3)), write())
    print(f"reads: {reads[:3]}")
