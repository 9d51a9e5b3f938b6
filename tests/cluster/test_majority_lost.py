"""Two of three nodes are dead: a clear no, in time, and no write that shows up later."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.cluster.harness import DEADLINE_S, KIB, Answer, Api, Cluster, api_of, object_url, until

pytestmark = pytest.mark.cluster

ANSWER_WITHIN_S = 30.0
LOCAL = {"X-Amber-Consistency": "local"}


@pytest.mark.parametrize("still", [False, True], ids=["killed", "stopped-by-SIGSTOP"])
async def test_two_dead(make_cluster: Callable[..., Cluster], name: str, still: bool) -> None:
    cluster = make_cluster(limits={"request_timeout_s": 3, "peer_timeout_s": 1})
    await cluster.heal()
    async with api_of(cluster) as api:
        api.patience_s = DEADLINE_S  # before and after: a second is soon over on a busy machine
        await two_dead(api, cluster, name, still)


async def two_dead(api: Api, cluster: Cluster, name: str, still: bool) -> None:
    # Through another node than the one that stays: that one would hold a promise (rfc/0009), and begin with a COMMIT, whose
    # outcome is unknown, as long as it takes those that stand still for reachable.
    for last in ("there", "other"):
        await api.put(f"{name}/{last}", last.encode(), node=1)

    async def has_a_copy() -> bool:
        answers = [await api("GET", object_url(f"{name}/{last}"), node=0, headers=LOCAL) for last in ("there", "other")]
        return all(answer.status == 200 for answer in answers)

    await until(has_a_copy, "the survivor has its copies")
    for node in (1, 2):
        if still:
            cluster.pause(node)
        else:
            cluster.kill(node)
    refused: list[tuple[str, Answer]] = []

    async def ask(method: str, last: str, query: str = "", data: bytes | None = None, **headers: str) -> None:
        start = time.monotonic()
        target = object_url(f"{name}/{last}", query) if last else f"/objects?prefix={name}"
        answer = await api(method, target, node=0, data=data, headers=headers)
        took_s = time.monotonic() - start
        assert took_s < ANSWER_WITHIN_S, (method, last, took_s)
        assert answer.status == 503, (method, last, answer)
        print(f"{method} {last or 'list'}: {answer.status} after {took_s:.2f} s")
        refused.append((method, answer))

    await ask("PUT", "new", data=b"small")
    await ask("PUT", "new-large", data=b"x" * 200 * KIB)
    await ask("PUT", "there", data=b"changed")
    await ask("PUT", "created", data=b"x", **{"If-None-Match": "*"})
    await ask("DELETE", "there")
    await ask("GET", "there")
    await ask("GET", "there", "versions")
    await ask("GET", "")
    if not still:
        assert {answer.problem for method, answer in refused if method != "HEAD"} == {"quorum-unavailable"}

    for last in ("there", "other"):
        local = await api.get(f"{name}/{last}", node=0, headers=LOCAL)
        assert local.body == last.encode()

    async def not_ready() -> bool:
        answer = await api("GET", "/readyz", node=0)
        return answer.status == 503 and "node-" in answer.json["detail"]

    if not still:
        await until(not_ready, "/readyz tells whom it waits for")

        async def nothing_available() -> bool:
            view = (await api("GET", "/cluster", node=0)).json
            return bool(view["slots"]["unavailable"] == cluster.slot_count)

        await until(nothing_available, "/cluster tells that no slot is available")
    assert (await api("GET", "/healthz", node=0)).status == 200

    await cluster.heal()
    for node in range(3):
        for last in ("new", "new-large", "created"):
            await api.get(f"{name}/{last}", node=node, expect=404)
            await api.get(f"{name}/{last}", query="versions", node=node, expect=404)
        assert (await api.get(f"{name}/there", node=node)).body == b"there"
        assert [row["version"] for row in await api.versions(f"{name}/there", node=node)] == [1]
    for last in ("new", "new-large", "created", "there"):
        await api.put(f"{name}/{last}", b"now")
        assert (await api.get(f"{name}/{last}")).body == b"now"
    assert len(await api.versions(f"{name}/new")) == 1


async def test_all_dead_and_back(api: Api, cluster: Cluster, name: str) -> None:
    for index in range(20):
        await api.put(f"{name}/{index}", str(index).encode() * 10_000)
    for node in range(3):
        cluster.kill(node)
    await cluster.heal()
    for index in range(20):
        assert (await api.get(f"{name}/{index}")).body == str(index).encode() * 10_000
    await api.put(f"{name}/0", b"goes on")
