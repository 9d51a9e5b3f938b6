"""Writes and what is known of them, to be compared with what the cluster says after a failure."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.cluster.harness import KIB, MIB, Answer, Api, Cluster, content, etag_of, object_url


@dataclass
class Write:
    """One PUT. ``version`` once it was acknowledged; ``refused`` if the cluster said that it was not applied."""

    path: str
    seed: str
    size: int
    etag: str = ""
    version: int | None = None
    refused: bool = False

    @property
    def unknown(self) -> bool:
        return self.version is None and not self.refused


@dataclass
class Stream:
    """Writers that go on until :meth:`end`, some on paths of their own, some all on one."""

    api: Api
    name: str
    sizes: Sequence[int] = (20, 3 * KIB, 64 * KIB, 64 * KIB + 1, 200 * KIB)
    writes: list[Write] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    _ended: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def acknowledged(self) -> list[Write]:
        return [write for write in self.writes if write.version is not None]

    def begin(self, *, writers: int = 6, rivals: int = 3, large: int = 1) -> None:
        """``writers`` on paths of their own, ``rivals`` on one path, ``large`` with 20 MiB bodies."""
        nodes = len(self.api.cluster.nodes)
        for index in range(writers):
            self._spawn(f"w{index}", index % nodes, self.sizes, shared=False)
        for index in range(rivals):
            self._spawn(f"r{index}", index % nodes, (20, 70 * KIB), shared=True)
        for index in range(large):
            self._spawn(f"l{index}", index % nodes, (20 * MIB,), shared=False)

    async def end(self) -> None:
        self._ended = True
        await asyncio.gather(*self._tasks)

    def _spawn(self, who: str, node: int, sizes: Sequence[int], *, shared: bool) -> None:
        self._tasks.append(asyncio.create_task(self._write_on(who, node, sizes, shared=shared)))

    async def _write_on(self, who: str, node: int, sizes: Sequence[int], *, shared: bool) -> None:
        chance = random.Random(f"{self.name}{who}")
        count = 0
        while not self._ended:
            count += 1
            path = f"{self.name}/shared" if shared else f"{self.name}/{who}-{count:05}"
            write = Write(path, f"{self.name}/{who}-{count}", chance.choice(sizes))
            data = content(write.seed, write.size)
            write.etag = etag_of(data)
            self.writes.append(write)
            try:
                answer = await self.api("PUT", object_url(path), data=data, node=node, timeout_s=40)
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                node = (node + 1) % len(self.api.cluster.nodes)
                await asyncio.sleep(0.01)  # all may be down: do not spin
                continue
            self.statuses.append(answer.status)
            if answer.status == 504:
                print(f"{path} through node {node}: {answer.status} {answer.json['detail']}")
            assert answer.status in (201, 503, 504), answer
            if answer.status == 201:
                assert answer.json["etag"] == write.etag
                write.version = answer.json["version"]
            elif answer.status == 503:
                write.refused = True


async def verify(api: Api, cluster: Cluster, writes: list[Write]) -> dict[str, int]:
    """Compare every write with what each node says now; returns how many of the unknown ones were applied."""
    by_path: dict[str, list[Write]] = {}
    for write in writes:
        by_path.setdefault(write.path, []).append(write)
    counts = {"acknowledged": 0, "unknown applied": 0, "unknown absent": 0, "refused": 0}
    gate = asyncio.Semaphore(12)

    async def check(path: str, expected: list[Write]) -> None:
        async with gate:
            await _check_path(api, path, expected, counts)

    await asyncio.gather(*(check(path, expected) for path, expected in by_path.items()))
    return counts


async def _settled_history(api: Api, path: str) -> list[dict[str, Any]]:
    """The versions, asked of one node after the other until all agree. What one has told the next may not forget.

    A write whose outcome is unknown may be held by a minority; the first read that meets it finishes it.
    """
    histories: list[list[dict[str, Any]]] = []
    for turn in range(5 * len(api.nodes)):
        node = api.nodes[turn % len(api.nodes)]
        answer = await _read(api, path, "versions", node)
        assert answer.status in (200, 404), answer
        histories.append(answer.json["versions"] if answer.status == 200 else [])
        if turn:
            forgotten = {row["blob_id"] for row in histories[-2]} - {row["blob_id"] for row in histories[-1]}
            assert not forgotten, f"{path}: node {node} does not know what was read before: {histories[-2:]}"
        last = histories[-len(api.nodes) :]
        if len(last) == len(api.nodes) and all(history == last[0] for history in last):
            return last[0]
    raise AssertionError(f"{path}: nodes disagree: {histories[-3:]}")


async def _read(api: Api, path: str, query: str, node: int) -> Answer:
    """What a client is told who asks again after a 503: several nodes may be finishing what the dead ones left, each with a ballot of its own."""
    for _ in range(120):
        answer = await api("GET", object_url(path, query), node=node)
        if answer.status != 503:
            break
        await asyncio.sleep(0.25)
    return answer


async def _check_path(api: Api, path: str, expected: list[Write], counts: dict[str, int]) -> None:
    history = await _settled_history(api, path)
    rows = {row["version"]: row for row in history}
    by_etag = {row["etag"]: row for row in history}
    assert len(by_etag) == len(rows), f"{path}: a content is there twice"
    for write in expected:
        if write.version is not None:
            counts["acknowledged"] += 1
            assert write.version in rows, f"acknowledged {write} is not in {rows}"
            assert rows[write.version]["etag"] == write.etag, f"{write}: other bytes: {rows[write.version]}"
        elif write.refused:
            counts["refused"] += 1
            assert write.etag not in by_etag, f"refused {write} was applied"
        else:
            counts["unknown applied" if write.etag in by_etag else "unknown absent"] += 1
    known = {write.etag: write for write in expected}
    for row in history:
        write = known[row["etag"]]  # anything else was never sent
        assert row["size"] == write.size
        node = api.nodes[row["version"] % len(api.nodes)]
        got = await _read(api, path, f"version={row['version']}", node)
        assert got.status == 200, got
        assert etag_of(got.body) == write.etag, f"{write}: wrong bytes through node {node}"
    # One that a single copy accepted before its coordinator died may be finished by any later read, or never.
    open_ended = {write.etag for write in expected if write.version is None and not write.refused} - set(by_etag)
    for node in api.nodes:
        head = await _read(api, path, "", node)
        if head.status == 200 and etag_of(head.body) in open_ended:
            continue
        if rows:
            assert (head.status, head.version) == (200, max(rows)), f"{path} through node {node}: {head.status}"
            assert etag_of(head.body) == rows[head.version]["etag"]
        else:
            assert head.status == 404
