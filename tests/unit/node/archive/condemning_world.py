"""Several nodes, a bucket and chance: rows come, are followed, staged and expire; nodes crash, lose their notes, join and leave; some collect.

The parts that are tried are the real ones (:class:`CondemnedObjects`, :class:`Collector`); what is around them is in memory and does
everything after a while that chance determines. Two things must never happen: that an object is deleted while a copy has a row of it,
and that a copy takes a row of an object that was deleted.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from amberblob.errors import PeerUnreachable, RegistryUnavailable
from amberblob.wire import Done, Reply, Request
from amberblob.wire_archive import Condemned, CondemnObjects, ReprieveObjects
from archive.state import Mark, Part
from node.archive.collector import Collector
from node.archive.condemned import CondemnedObjects

SLOTS = 3


class Violation(AssertionError):
    """An object that somebody needs was deleted."""


class MemoryState:
    """Notes that outlast a crash, unless they are lost. What is written is durable at some moment while it is waited for."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.kept: set[tuple[str, str, Part]] = set()
        self.index: set[str] = set()
        self.identity = world.fresh("file")

    def lose(self) -> None:
        self.kept, self.index, self.identity = set(), set(), self._world.fresh("file")

    @property
    def found(self) -> list[Mark]:
        return [Mark(name, token, part, 0) for name, token, part in sorted(self.kept)]

    async def _written(self, change: Callable[[], None]) -> None:
        await self._world.pause()
        change()
        await self._world.pause()

    async def marks(self) -> list[Mark]:
        await self._world.pause()
        return self.found

    async def condemn(self, names: Sequence[str], token: str, part: Part) -> str:
        told: list[str] = []

        def change() -> None:
            self.kept.update((name, token, part) for name in names)
            self.index.difference_update(names)
            told.append(self.identity)

        await self._written(change)
        return told[0]

    async def decide(self, names: Sequence[str], token: str) -> None:
        def change() -> None:
            for name in names:
                if (name, token, Part.ASKING) in self.kept:
                    self.kept.discard((name, token, Part.ASKING))
                    self.kept.add((name, token, Part.DECIDED))

        await self._written(change)

    async def reprieve(self, names: Sequence[str], token: str, part: Part) -> None:
        def change() -> None:
            gone = set(names) or {name for name, other, _ in self.kept if other == token}
            self.kept.difference_update((name, token, part) for name in gone)

        await self._written(change)


class Node:
    """A node over its lives: rows and notes stay, everything else goes with a crash."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.rows: set[tuple[int, str]] = set()
        self.state = MemoryState(world)
        self.tasks: set[asyncio.Task[Any]] = set()
        self.up = False

    def start(self) -> None:
        self.up = True
        self.look()
        self.condemned = CondemnedObjects(self, self.state, lambda name: name in self.known_removed)  # type: ignore[arg-type]
        self.collector = Collector(
            node=self.name, mint=lambda: self.world.fresh("run"), state=self.state,  # type: ignore[arg-type]
            known_nodes=lambda: self.table, newest_nodes=self.world.newest_nodes,
            ask=self._ask_all, delete=self.world.delete,
        )  # fmt: skip

    def look(self) -> None:
        """See the registry as it is now."""
        self.table, self.known_removed = set(self.world.registry), set(self.world.removed)

    def run(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Do something that ends with this life of the node."""

        async def quietly() -> None:
            try:
                await work()
            except (PeerUnreachable, RegistryUnavailable):
                pass
            except Violation as violation:
                self.world.violations.append(violation)

        task = asyncio.ensure_future(quietly())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def crash(self, *, lost: bool) -> None:
        self.up = False
        for task in list(self.tasks):
            task.cancel()
        self.tasks.clear()
        if lost:
            self.state.lose()

    # -- as a store

    def slots(self) -> list[int]:
        return list(range(SLOTS))

    async def archive_named(self, slot: int, target_paths: Collection[str]) -> set[str]:
        await self.world.pause()
        found = {name for name in target_paths if (slot, name) in self.rows}
        await self.world.pause()
        return found

    def take(self, names: Iterable[str], slot: int) -> None:
        """As node.archive.facts does it: the look and the change without a pause."""
        for name in names:
            if not self.condemned.bars(name):
                self.rows.add((slot, name))
                self.state.index.add(name)
                if name in self.world.deleted and self.name in self.world.registry:
                    raise Violation(f"{self.name} took a row of {name}, which is deleted")

    # -- between nodes

    async def call(self, to: str, work: Callable[[Node], Awaitable[Any]]) -> Any:
        """Have another node do something; questions and answers get lost, and what was thought lost may be done late."""
        world = self.world
        await world.pause()
        peer = world.nodes.get(to)
        if peer is None or not peer.up or world.chance(0.04):
            raise PeerUnreachable(to)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ended = PeerUnreachable(to)

        async def there() -> None:
            try:
                result = await work(peer)
            except BaseException:
                if not answer.done():
                    answer.set_exception(ended)
                raise
            await world.pause()
            if not answer.done():
                if world.chance(0.04):
                    answer.set_exception(ended)
                else:
                    answer.set_result(result)

        peer.run(there)
        late = asyncio.get_running_loop().create_task(world.expire(answer, ended))
        try:
            return await answer
        finally:
            late.cancel()

    async def _ask_all(self, nodes: Iterable[str], request: Request) -> Mapping[str, Reply | PeerUnreachable]:
        async def one(node: str) -> Reply | PeerUnreachable:
            try:
                reply: Reply = await self.call(node, lambda peer: peer.answer(request))
            except PeerUnreachable as error:
                return error
            return reply

        nodes = list(nodes)
        return dict(zip(nodes, await asyncio.gather(*map(one, nodes)), strict=True))

    async def answer(self, request: Request) -> Reply:
        if isinstance(request, CondemnObjects):
            refused, marks = await self.condemned.condemn(request.names, request.token)
            return Condemned(refused=refused, marks=marks)
        assert isinstance(request, ReprieveObjects)
        await self.condemned.reprieve(request.names, request.token)
        return Done()

    # -- what nodes do

    async def upload(self) -> None:
        name = self.world.new_object()
        self.world.bucket.add(name)
        await self.world.pause()
        self.take([name], self.world.random.randrange(SLOTS))

    async def follow(self, other: str) -> None:
        async def tell(peer: Node) -> set[tuple[int, str]]:
            await self.world.pause()
            return set(peer.rows)

        for slot, name in sorted(await self.call(other, tell)):
            self.take([name], slot)

    async def find_and_stage(self, other: str, third: str) -> None:
        async def find(peer: Node) -> set[str]:
            return {name for name in peer.state.index if not peer.condemned.bars(name)}

        found = sorted(await self.call(other, find))[:3]
        if other not in self.table:
            return
        slot = self.world.random.randrange(SLOTS)
        with self.condemned.using(found) as may:

            async def stage(peer: Node) -> None:
                if self.name in peer.table:
                    peer.take(sorted(may), slot)

            await self.call(third, stage)

    async def expire_rows(self) -> None:
        for row in sorted(self.rows):
            if self.world.chance(0.5):
                self.rows.discard(row)

    async def collect(self) -> None:
        await self.collector.go_on()
        names = sorted(self.world.bucket)
        if names:
            await self.collector.collect(self.world.random.sample(names, min(4, len(names))))


class World:
    """See the module."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.registry: set[str] = set()
        self.removed: set[str] = set()
        self.nodes: dict[str, Node] = {}
        self.bucket: set[str] = set()
        self.deleted: set[str] = set()
        self.violations: list[Violation] = []
        # In every other one nodes come and go all the time, and hear of it late.
        self.weights = (5, 9, 6, 7, 9, 0.8, 6, 2, 1.5, 1) if seed % 2 else (5, 9, 6, 7, 9, 0.8, 6, 0.3, 0.3, 2)
        self._count = 0
        for _ in range(3):
            self.join()

    def fresh(self, what: str) -> str:
        self._count += 1
        return f"{what}{self._count}"

    def new_object(self) -> str:
        self._count += 1
        return f"packs/1970/01/01/{self._count:026d}.pack"

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    async def pause(self) -> None:
        for _ in range(self.random.choice((0, 0, 1, 2, 5, 20))):
            await asyncio.sleep(0)

    async def expire(self, answer: asyncio.Future[Any], error: PeerUnreachable) -> None:
        for _ in range(400):
            await asyncio.sleep(0)
        if not answer.done():
            answer.set_exception(error)

    async def newest_nodes(self) -> set[str]:
        await self.pause()
        if self.chance(0.02):
            raise RegistryUnavailable("down")
        nodes = set(self.registry)
        await self.pause()
        return nodes

    async def delete(self, names: Sequence[str]) -> None:
        await self.pause()
        for name in names:
            for node in self.registry:
                if any(name == row for _, row in self.nodes[node].rows):
                    raise Violation(f"{name} is deleted, and {node} has a row of it")
        self.bucket.difference_update(names)
        self.deleted.update(names)
        await self.pause()

    def join(self) -> None:
        name = self.fresh("n")
        self.registry.add(name)
        node = self.nodes[name] = Node(self, name)
        node.start()

    def _remove(self, node: Node) -> None:
        """It hears of it late, and until then it goes on: it collects, and has rows of slots that it has not left yet."""
        if node.name in self.registry:
            self.registry.discard(node.name)
            self.removed.add(node.name)

    def _unaware(self) -> bool:
        """Whether a removed node still acts as if it was not. Marks of what was deleted must last until then."""
        return any(
            node.up and name not in self.registry and (name in node.table or node.tasks)
            for name, node in self.nodes.items()
        )

    async def step(self) -> None:
        """One thing happens."""
        up = sorted(name for name, node in self.nodes.items() if node.up)
        if not up:
            return
        one, other, third = (self.random.choice(up) for _ in range(3))
        node = self.nodes[one]
        match self.random.choices(range(10), weights=self.weights)[0]:
            case 0 if one in self.registry:
                node.run(node.upload)
            # Only those are asked, and sent anything, that the node knows of. Who joined later has none of the marks of before.
            case 1 if one != other and {one, other} <= node.table:
                node.run(partial(node.follow, other))
            case 2 if one != third and {other, third} <= node.table:
                node.run(partial(node.find_and_stage, other, third))
            case 3:
                node.run(node.expire_rows)
            case 4:
                node.run(node.collect)
            case 5:
                node.crash(lost=self.chance(0.4) and not self._unaware())
            case 6:
                for name in sorted(self.registry):
                    if not self.nodes[name].up:
                        self.nodes[name].start()
                        break
            case 7 if len(self.registry) < 5:
                self.join()
            case 8 if len(self.registry) > 2:
                self._remove(node)
            case 9:
                node.look()
                node.run(node.condemned.let_go)
            case _:
                pass
        await self.pause()

    async def run(self, steps: int) -> None:
        for _ in range(steps):
            await self.step()
            if self.violations:
                break
        for node in self.nodes.values():
            node.crash(lost=False)
        await asyncio.sleep(0)
        if self.violations:
            raise self.violations[0]
