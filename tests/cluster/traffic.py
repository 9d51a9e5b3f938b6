"""Clients that take nothing but success: what they are told is compared, request by request, with what must be true.

Each owner has a prefix to itself, so it knows what every answer must be. Rivals count on one object, each step a conditional PUT: whoever of
them is told 201 has counted. ``large`` ones send bodies that are staged in several chunks. What is not as it must be ends in :attr:`Traffic.wrong`,
with the client that met it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from tests.cluster.harness import KIB, MIB, Answer, Api, content, etag_of, object_url

SIZES = (0, 20, 3 * KIB, 64 * KIB, 64 * KIB + 1, 150 * KIB)
PATHS_MAX = 12
"""Of one owner, so that they are overwritten, deleted and made anew."""
PAUSE_S = 0.05
LARGE_PAUSE_S = 1.0
"""A slot that is filled more quickly than it can be copied would never arrive."""


@dataclass
class Known:
    """An object of an owner: what it holds, None when it was deleted, and every version that was acknowledged, with its etag."""

    data: bytes | None = None
    version: int = 0
    versions: dict[int, str] = field(default_factory=dict)


@dataclass
class Traffic:
    """``through``: the nodes that clients speak with; it may be changed at any time."""

    api: Api
    name: str
    through: list[int]
    large_bytes: int = 3 * MIB
    wrong: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    known: dict[str, Known] = field(default_factory=dict)
    counted: int = 0
    """What the rivals counted together."""
    under_way: Counter[int] = field(default_factory=Counter)
    """By node: how many clients have begun something through it that has not ended."""
    _ended: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _turn: int = 0

    @contextlib.asynccontextmanager
    async def going_on(self, *, owners: int = 3, rivals: int = 2, large: int = 1) -> AsyncIterator[None]:
        """As many clients, until the end of the block; then everything is compared. Fails if anything was wrong.

        (What the block itself raises comes first.)
        """
        if rivals and not self.counted:
            await self.api.put(self._counter, b"0", node=self.through[0])
        clients = [(f"o{number}", self._own) for number in range(owners)]
        clients += [(f"r{number}", self._count) for number in range(rivals)]
        clients += [(f"l{number}", self._large) for number in range(large)]
        self._ended = False
        self._tasks = [asyncio.create_task(self._run(who, client)) for who, client in clients]
        try:
            yield
        finally:
            self._ended = True
            await asyncio.gather(*self._tasks)
        self.check()

    def check(self) -> None:
        """Fails if anything was wrong until now."""
        assert not self.wrong, "\n".join(self.wrong)

    async def verify(self) -> None:
        """Every node tells all that was acknowledged, and nothing else."""
        self.check()
        gate = asyncio.Semaphore(8)

        async def one(path: str, known: Known, node: int) -> None:
            async with gate:
                await self._verify(path, known, node)

        await asyncio.gather(*(one(path, known, node) for path, known in self.known.items() for node in self.through))
        for node in self.through:
            if self.counted:
                assert (await self.api.get(self._counter, node=node)).body == str(self.counted).encode()
            await self._list(self.name, node)

    # -- one client

    @property
    def _counter(self) -> str:
        return f"{self.name}-counter"

    async def _run(self, who: str, client: object) -> None:
        chance = random.Random(f"{self.name} {who}")
        while not self._ended:
            self._turn += 1
            node = self.through[self._turn % len(self.through)]
            self.under_way[node] += 1
            try:
                await client(who, chance, node)  # type: ignore[operator]
            except (AssertionError, aiohttp.ClientError, OSError, TimeoutError) as error:
                self.wrong.append(
                    f"{who} through {self.api.cluster.nodes[node].name}: {type(error).__name__}: {str(error)[:1000]}"
                )
                return
            finally:
                self.under_way[node] -= 1
            await asyncio.sleep(LARGE_PAUSE_S if client == self._large else PAUSE_S)

    async def _own(self, who: str, chance: random.Random, node: int) -> None:
        path = f"{self.name}/{who}/{chance.randrange(PATHS_MAX):02}"
        known = self.known.setdefault(path, Known())
        kind = chance.choice(["put", "put", "put", "get", "get", "delete", "list", "conditional"])
        self.counts[kind] += 1
        if kind == "put":
            await self._put(path, known, chance, node)
        elif kind == "get":
            await self._get(path, known, node)
        elif kind == "list":
            await self._list(f"{self.name}/{who}", node)
        elif kind == "delete":
            if known.data is not None:
                await self.api.delete(path, node=node)
                known.data = None
            await self._get(path, known, node)
        elif known.data is None:
            await self._put(path, known, chance, node, {"If-None-Match": "*"})
        else:
            await self.api.put(path, b"no", node=node, headers={"If-None-Match": "*"}, expect=412)
            await self.api.put(path, b"no", node=node, headers={"If-Match": f'"{etag_of(b"other")}"'}, expect=412)
            await self._put(path, known, chance, node, {"If-Match": f'"{etag_of(known.data)}"'})

    async def _large(self, who: str, chance: random.Random, node: int) -> None:
        path = f"{self.name}/{who}/{chance.randrange(2)}"
        known = self.known.setdefault(path, Known())
        self.counts["large"] += 1
        await self._put(path, known, chance, node, size=self.large_bytes + chance.randrange(KIB))
        other = self.through[self._turn % len(self.through)]
        self.under_way[other] += 1
        try:
            await self._get(path, known, other)
        finally:
            self.under_way[other] -= 1

    async def _count(self, who: str, chance: random.Random, node: int) -> None:
        told = await self.api.get(self._counter, node=node)
        number = int(told.body)
        answer = await self.api(
            "PUT",
            object_url(self._counter),
            node=node,
            data=str(number + 1).encode(),
            headers={"X-Amber-If-Version": str(told.version)},
        )
        assert answer.status in (201, 412), f"counting: {answer.status} {answer.body[:600]!r}"
        self.counts[f"counted {answer.status}"] += 1
        self.counted += answer.status == 201

    async def _put(
        self,
        path: str,
        known: Known,
        chance: random.Random,
        node: int,
        headers: dict[str, str] | None = None,
        size: int | None = None,
    ) -> None:
        seed = f"{path} {len(known.versions)}"
        # Even an empty one is told from others by its place: a content is put twice into no path.
        data = content(seed, chance.choice(SIZES) if size is None else size) or seed.encode()
        answer = await self.api.put(path, data, node=node, headers=headers)
        assert answer.json["etag"] == etag_of(data), f"{path}: {answer.json}"
        version = answer.json["version"]
        assert version > max(known.versions, default=0), f"{path}: version {version} after {max(known.versions)}"
        known.data, known.version = data, version
        known.versions[version] = etag_of(data)

    async def _get(self, path: str, known: Known, node: int) -> None:
        answer = await self.api("GET", object_url(path), node=node)
        self._compare(path, known, answer)

    def _compare(self, path: str, known: Known, answer: Answer) -> None:
        if known.data is None:
            assert answer.status == 404, f"{path} was deleted or never put: {answer.status} {answer.body[:300]!r}"
            return
        assert answer.status == 200, f"{path}: {answer.status} {answer.body[:600]!r}"
        assert answer.version == known.version, f"{path}: version {answer.version}, not {known.version}"
        assert answer.body == known.data, f"{path}: {len(answer.body)} bytes that were never put"

    async def _list(self, folder: str, node: int) -> None:
        expected = {
            path: known.version for path, known in self.known.items() if path.startswith(f"{folder}/") and known.data is not None
        }  # fmt: skip
        found: dict[str, int] = {}
        query: dict[str, Any] = {"prefix": f"{folder}/"}
        while True:
            page = await self.api.page(node=node, **query)
            found |= {entry["path"]: entry["version"] for entry in page["objects"]}
            if "cursor" not in page:
                break
            query["cursor"] = page["cursor"]
        assert found == expected, f"listing of {folder}: {found}, not {expected}"

    async def _verify(self, path: str, known: Known, node: int) -> None:
        await self._get(path, known, node)
        if known.versions:
            told = {row["version"]: row["etag"] for row in await self.api.versions(path, node=node)}
            assert told == known.versions, f"{path} through node {node}: {told}, not {known.versions}"


__all__ = ["Known", "Traffic"]
