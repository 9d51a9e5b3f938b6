"""The bucket of a world, which outlives its nodes, and how a node reaches it: late, in vain, or without hearing that it was done."""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Sequence
from random import Random
from typing import Any, TypeVar

from amberblob.clock import Clock, SeededRandomness
from amberblob.errors import ArchiveUnavailable
from archive.packs import CHUNKS, PACKS
from archive.targets.interface import Stored
from archive.targets.memory import MemoryBucket, MemoryTarget
from archive.targets.retrying import Retrying
from archive.traffic import FREE, Pace, Traffic
from sim.loop import SimLoop

T = TypeVar("T")

URL = "memory:///archive"

OURS = (PACKS, CHUNKS)
"""What rows name; all else is metadata, and probes."""


class WorldClock:
    """The bucket's time, which nobody's opinion changes."""

    def __init__(self, loop: SimLoop, begins_ms: int) -> None:
        self._loop = loop
        self._begins_ms = begins_ms

    def wall_ms(self) -> int:
        return self._begins_ms + int(self._loop.time() * 1000)

    def monotonic_s(self) -> float:
        return self._loop.time()


class SimBucket(MemoryBucket):
    """What all nodes share, and what goes wrong with it.

    Attributes:
        latency_s: of one way, on average. late_s: how much later answers come than that, at most.
        loses: the part of all objects that are gone as soon as they are stored, before anybody reads them back: what is lost later is lost, and
            nobody promised otherwise.
        lost: those.
        deleted: when each object that is gone was deleted, by the world's time.
        on_deleted: told of each of those deletions. on_stored: of each object that is there now, and by which node.
    """

    def __init__(
        self,
        loop: SimLoop,
        clock: Clock,
        random: Random,
        fired: Counter[str],
        note: Callable[[str], None],
        *,
        latency_s: float,
    ) -> None:
        super().__init__(clock)
        self.loop = loop
        self.clock = clock
        self.random = random
        self.fired = fired
        self.note = note
        self.latency_s = latency_s
        self.late_s = 0.0
        self.loses = 0.0
        self.lost: set[str] = set()
        self.deleted: dict[str, float] = {}
        self.on_deleted: Callable[[Sequence[str]], None] = lambda names: None
        self.on_stored: Callable[[str, str], None] = lambda node, name: None

    def way_s(self) -> float:
        """How long one way takes this time."""
        return self.latency_s * self.random.expovariate(1.0)

    def stored(self, node: str, name: str) -> None:
        """A node has stored an object; it may be gone at once."""
        if not name.startswith(OURS):
            return
        if self.loses and self.random.random() < self.loses:
            self.fired["objects lost"] += 1
            self.lost.add(name)
            self.objects.pop(name)
        self.on_stored(node, name)

    def gone(self, names: Sequence[str]) -> None:
        """Objects were deleted."""
        self.deleted.update(dict.fromkeys(names, self.loop.time()))
        if ours := [name for name in names if name.startswith(OURS)]:
            self.on_deleted(ours)


class SimTarget:
    """A :class:`~archive.targets.interface.Target`: one life of one node. What it sent is done also when it dies meanwhile."""

    def __init__(
        self,
        bucket: SimBucket,
        node: str,
        traffic: Traffic,
        *,
        timeout_s: float,
        tries: int,
        seed: int,
        pace: Pace = FREE,
    ) -> None:
        self._bucket = bucket
        self._node = node
        self._traffic = traffic
        self._timeout_s = timeout_s
        self._tries = tries
        self._seed = seed
        self._pace = pace
        self._inner = MemoryTarget(bucket, traffic, url=URL, clock=bucket.clock)
        self._retrying = Retrying(tries, traffic, SeededRandomness(seed))

    @property
    def url(self) -> str:
        return URL

    def paced(self, pace: Pace) -> SimTarget:
        """The same for a job."""
        return SimTarget(
            self._bucket,
            self._node,
            self._traffic,
            timeout_s=self._timeout_s,
            tries=self._tries,
            seed=self._seed,
            pace=pace,
        )

    async def put(self, name: str, parts: AsyncIterable[bytes]) -> Stored:
        """Store it. Raises: ArchiveError."""
        content = bytearray()
        async for part in parts:
            await self._pace.bytes(len(part))
            content += part
        data = bytes(content)

        async def whole() -> AsyncIterator[bytes]:
            yield data

        async def kept() -> Stored:
            stored = await self._inner.put(name, whole())
            self._bucket.stored(self._node, name)
            return stored

        stored = await self._ask(f"put {name} {len(data)}", kept)
        self._bucket.fired["objects stored"] += 1
        return stored

    async def read(self, name: str, start: int = 0, end: int | None = None, *, etag: str = "") -> AsyncIterator[bytes]:
        """The bytes of a range. Raises: ArchiveError."""
        if end is not None and end <= start:
            return

        async def all_of_it() -> list[bytes]:
            return [piece async for piece in self._inner.read(name, start, end, etag=etag)]

        for piece in await self._ask(f"get {name} {start}-{end}", all_of_it):
            await self._pace.bytes(len(piece))
            yield piece

    async def head(self, name: str) -> Stored:
        """What is known of it. Raises: ArchiveError."""
        return await self._ask(f"head {name}", lambda: self._inner.head(name))

    async def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        """Objects after a name. Raises: ArchiveError."""
        return await self._ask(f"list {prefix} {after}", lambda: self._inner.page(prefix, after, limit))

    async def delete(self, names: Sequence[str]) -> None:
        """Delete them. Raises: ArchiveError."""
        bucket = self._bucket

        async def deleted() -> None:
            there = [name for name in names if name in bucket.objects]
            try:
                await self._inner.delete(names)
            finally:
                bucket.gone([name for name in there if name not in bucket.objects])

        await self._ask(f"delete {' '.join(names)}", deleted)

    async def probe(self) -> None:
        """As the real ones do. Raises: ArchiveError."""
        # Each has a name of its own: two nodes may look at once.
        name = f"probe/{self._node}-{self._bucket.random.getrandbits(64):016x}"

        async def parts() -> AsyncIterator[bytes]:
            yield b"probe"

        await self.put(name, parts())
        async for piece in self.read(name):
            assert piece == b"probe"
        await self.delete([name])

    async def sweep(self, before_ms: int) -> int:
        """There is never anything."""
        return 0

    async def close(self) -> None:
        """Nothing to let go of."""

    # -- the way there and back

    async def _ask(self, what: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await self._retrying.run(lambda: self._once(what, work))

    async def _once(self, what: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        bucket = self._bucket
        await self._pace.request()
        await asyncio.sleep(bucket.way_s())
        bucket.note(f"{self._node} asks the bucket: {what}")
        task = bucket.loop.create_task(work(), context=contextvars.Context())
        task.add_done_callback(_seen, context=contextvars.Context())
        try:
            async with asyncio.timeout(self._timeout_s):
                result = await asyncio.shield(task)
        except TimeoutError:
            bucket.fired["archive did not answer"] += 1
            raise ArchiveUnavailable(f"{URL} did not answer {what} within {self._timeout_s:g} s") from None
        await asyncio.sleep(bucket.way_s() + bucket.late_s * bucket.random.random())
        return result


def _seen(task: asyncio.Task[Any]) -> None:
    """Whoever asked may be gone, or have no patience."""
    if not task.cancelled():
        task.exception()
