"""A node stands still with requests unread in its sockets: when it wakes, what may have been repeated elsewhere is not done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest

from tests.cluster.harness import DEADLINE_S, POLL_S, Answer, Cluster, api_of, object_url

pytestmark = pytest.mark.cluster

REQUEST_S = 3.0
"""``request_timeout_s``: who waited for longer repeats its request at another node."""


async def test_what_waited_too_long_in_a_socket_is_not_begun(make_cluster: Callable[..., Cluster], name: str) -> None:
    cluster = make_cluster(limits={"request_timeout_s": REQUEST_S, "peer_timeout_s": 1})
    await cluster.heal()
    async with api_of(cluster) as api:
        api.patience_s = DEADLINE_S  # but for what is asked while the node stands still: these seconds are soon over on a busy machine
        await api.put(f"{name}/there", b"there", node=1)
        etag = (await api.get(f"{name}/there", node=1)).headers["ETag"]
        cluster.pause(0)
        stopped_s = time.monotonic()

        def ask(method: str, last: str, data: bytes | None = None, **headers: str) -> asyncio.Task[Answer]:
            target = object_url(f"{name}/{last}")
            return asyncio.create_task(api(method, target, node=0, data=data, headers=headers))

        late = [
            ask(
                "PUT", "created", b"x", **{"If-None-Match": "*", "X-Amber-Write-Id": "one", "X-Amber-Attempt": "first"}
            ),
            ask(
                "PUT",
                "there",
                b"x" * 200_000,
                **{"If-Match": etag, "X-Amber-Write-Id": "two", "X-Amber-Attempt": "first"},
            ),
            ask("DELETE", "there", None, **{"X-Amber-Write-Id": "three", "X-Amber-Attempt": "first"}),
        ]
        plain = ask("PUT", "plain", b"plain", **{"X-Amber-Write-Id": "four"})
        # Not a state that could be waited for: the requests grow old.
        while time.monotonic() - stopped_s < REQUEST_S + 0.5:
            await asyncio.sleep(0.1)
        cluster.resume(0)
        for answer in await asyncio.gather(*late):
            assert (answer.status, answer.problem) == (503, "too-slow"), answer
        answer = await plain
        if answer.status in (503, 504):
            # Begun, and the machine had no time for it.
            assert "too-slow" not in (answer.problem, answer.json.get("attempt")), answer
        else:
            assert answer.status == 201, "nothing refuses it later"
        for node in (1, 2):
            assert (await api.get(f"{name}/there", node=node)).body == b"there"
            await api.get(f"{name}/created", node=node, expect=404)
        # What the node is sent from now on it does.
        await cluster.wait_ready()

        async def goes_on() -> Answer:
            headers = {"X-Amber-Write-Id": "five", "X-Amber-Attempt": "first"}
            end = time.monotonic() + DEADLINE_S
            while True:
                answer = await ask("DELETE", "there", None, **headers)
                if answer.status not in (503, 504) or time.monotonic() > end:
                    return answer
                if answer.status == 504:
                    headers.pop("X-Amber-Attempt", None)
                await asyncio.sleep(POLL_S)

        assert (await goes_on()).status == 204
