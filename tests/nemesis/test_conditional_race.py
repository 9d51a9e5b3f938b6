"""32 clients race one conditional PUT through different nodes: one 201 and thirty-one 412, hundreds of times; ``make sim-long`` does it thousands of times."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter

import pytest

from tests.cluster.harness import Answer, Api, content, etag_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

CLIENTS = 32
ROUNDS = int(os.environ.get("AMBERBLOB_TEST_RACES", "240"))
AT_ONCE = 4
"""Rounds on different paths that run side by side."""


async def test_exactly_one_of_32_wins_every_time(api: Api, name: str) -> None:
    statuses: Counter[int] = Counter()
    slowest_s = 0.0
    began = time.monotonic()
    rounds = iter(range(ROUNDS))

    async def race(number: int, path: str, headers: dict[str, str]) -> tuple[bytes, Answer]:
        """One round; what won."""

        async def put(client: int) -> Answer:
            return await api.decided(
                path, content(f"{number}/{client}", 40), headers=headers, node=(client + number) % 3
            )

        answers = await asyncio.gather(*map(put, range(CLIENTS)))
        found = Counter(answer.status for answer in answers)
        statuses.update(found)
        others = [answer.json for answer in answers if answer.status not in (201, 412)]
        assert found == {201: 1, 412: CLIENTS - 1}, f"round {number}, {headers}: {found} {others[:3]}"
        winner = next(client for client, answer in enumerate(answers) if answer.status == 201)
        won = answers[winner]
        for answer in answers:
            assert (answer.version, answer.etag) == (won.version, won.etag), "a 412 tells the head that refused it"
        return content(f"{number}/{winner}", 40), won

    async def racer(number_of: int) -> None:
        """Rounds on one path after the other: it is created, then replaced, once by its etag, once by its version."""
        nonlocal slowest_s
        while True:
            path = f"{name}/{number_of}-{next(paths)}"
            headers = {"If-None-Match": "*"}
            body = b""
            for step in range(3):
                number = next(rounds, None)
                if number is None:
                    return
                start = time.monotonic()
                body, won = await race(number, path, headers)
                slowest_s = max(slowest_s, time.monotonic() - start)
                assert won.version == step + 1
                headers = {"If-Match": f'"{won.etag}"'} if step == 0 else {"X-Amber-If-Version": str(won.version)}
            answers = await asyncio.gather(*(api.get(path, node=node) for node in range(3)))
            assert {etag_of(answer.body) for answer in answers} == {etag_of(body)}
            assert [row["version"] for row in await api.versions(path)] == [3, 2, 1]

    paths = iter(range(ROUNDS))
    await asyncio.gather(*map(racer, range(AT_ONCE)))
    took_s = time.monotonic() - began
    print(f"{ROUNDS} rounds of {CLIENTS} in {took_s:.1f} s, slowest {slowest_s:.2f} s: {dict(statuses)}")
    assert statuses == {201: ROUNDS, 412: ROUNDS * (CLIENTS - 1)}
