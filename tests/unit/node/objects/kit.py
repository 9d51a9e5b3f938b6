"""A cluster in one process: real replicas, coordinators, objects and workers over a network that can be broken.

Messages go through the codec both ways. :class:`Net` holds the faults: nodes that are down, and rules for single
messages, by the name of their type (``Data`` stands for the bytes of a stage).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from msgspec.structs import replace

from amberblob import wire
from amberblob.ballot import Register
from amberblob.clock import HybridClock, SeededRandomness, SystemClock
from amberblob.errors import OutcomeUnknown, PeerError, PeerTimeout, PeerUnreachable, QuorumUnavailable
from amberblob.ids import UlidMint
from amberblob.limits import CHUNK_BYTES_MIN
from amberblob.wire import Failed, Refused, Reply, Request, StageClose, StageOpen
from antientropy.step import Did
from chunkstore.interface import ReplicaStore
from chunkstore.memory import MemoryStore
from chunkstore.overlay import Intent
from chunkstore.store import DiskStore
from node import reads, rounds
from node.archive.means import ArchiveMeans
from node.assembly import Parts, assemble
from node.coordinator import Coordinator
from node.objects.bytes import Reading
from node.objects.lookup import Lookup
from node.objects.service import Objects
from node.protocol.operations import NO_CONDITIONS, Conditions
from node.replica import Replica
from node.routing import Routing
from node.service import Consistency, ListPage, ObjectView, PutOptions
from node.transport.answers import answer, raised, served
from node.transport.interface import Buffer, PeerHandler, Told
from node.transport.local import LocalPeer, LocalStage
from node.workers.puller import Puller
from node.workers.resolver import Resolver
from node.workers.sweeper import Sweeper
from registry.keys import Keys
from registry.memory import MemoryRegistry
from registry.readmit import readmit
from registry.routes import ClusterInfo, Member, NodeInfo, Route, RouteTable, advance, encode
from registry.snapshot import picture_of

WAIT_S = 60.0
PATIENCE_S = 30.0
"""What a request, a write or a read may take, and a replica may lag, where a test does not say: a busy machine is none of them."""
CHUNK = CHUNK_BYTES_MIN
STAGED = CHUNK + 1
"""The size of a small body that does not travel inline."""

Do = Literal["drop", "lose", "hold"]


async def until(condition: Callable[[], Any], what: str = "") -> None:
    """Wait for a state."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.002)


class SkewedClock(SystemClock):
    """The machine's clocks, put forward by hand."""

    ahead_s = 0.0

    def wall_ms(self) -> int:
        return super().wall_ms() + int(self.ahead_s * 1000)

    def monotonic_s(self) -> float:
        return super().monotonic_s() + self.ahead_s


class StillClock(SkewedClock):
    """Time for waiting that goes on only by hand."""

    def monotonic_s(self) -> float:
        return 1000.0 + self.ahead_s


# ---- the network


@dataclass(eq=False)
class Rule:
    """What happens to messages of one type. ``hits`` counts those that it was applied to."""

    kind: str
    do: Do
    to: str | None
    source: str | None
    skip: int
    times: int | None
    when: Callable[[Any], bool]
    released: asyncio.Event = field(default_factory=asyncio.Event)
    hits: int = 0

    def takes(self, kind: str, source: str, to: str, message: Any) -> bool:
        if kind != self.kind or self.to not in (None, to) or self.source not in (None, source):
            return False
        if not self.when(message) or (self.times is not None and self.hits >= self.times):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.hits += 1
        return True


class Net:
    """Who can talk to whom."""

    def __init__(self) -> None:
        self.down: set[str] = set()
        self.rules: list[Rule] = []
        self.sent: list[tuple[str, str, str]] = []
        self.messages: list[tuple[str, str, Any]] = []
        self.handlers: dict[str, PeerHandler] = {}

    def fault(
        self,
        kind: str,
        do: Do,
        *,
        to: str | None = None,
        source: str | None = None,
        skip: int = 0,
        times: int | None = None,
        when: Callable[[Any], bool] = lambda _: True,
    ) -> Rule:
        """``drop``: never arrives. ``lose``: is handled, the answer does not arrive. ``hold``: waits for ``released``."""
        rule = Rule(kind, do, to, source, skip, times, when)
        self.rules.append(rule)
        return rule

    def heal(self) -> None:
        """Everything works again, and what was held goes on."""
        self.down.clear()
        for rule in self.rules:
            rule.released.set()
        self.rules.clear()

    def check(self, source: str, to: str) -> None:
        for node in (source, to):
            if node in self.down:
                raise PeerUnreachable(f"{to} cannot be reached: {node} is down")

    async def before(self, kind: str, source: str, to: str, message: Any) -> bool:
        """Whatever happens to a message on its way; whether its answer is lost."""
        self.sent.append((kind, source, to))
        self.messages.append((source, to, message))
        await asyncio.sleep(0)
        self.check(source, to)
        lose = False
        for rule in list(self.rules):
            if rule.takes(kind, source, to, message):
                if rule.do == "drop":
                    raise PeerUnreachable(f"{kind} to {to} was dropped")
                if rule.do == "lose":
                    lose = True
                else:
                    await rule.released.wait()
                    self.check(source, to)
        return lose

    def after(self, kind: str, source: str, to: str, lost: bool) -> None:
        if lost:
            raise PeerUnreachable(f"the answer of {to} to {kind} was lost")
        self.check(source, to)

    def count(self, kind: str, to: str | None = None) -> int:
        return sum(k == kind and to in (None, t) for k, _, t in self.sent)


class _WireStage(LocalStage):
    """A stage to another node: the real windows, and the errors of the real caller when it answers too early."""

    def _answered(self, task: asyncio.Task[Reply]) -> None:
        reply = None if task.cancelled() else task.result()
        if isinstance(reply, Refused):
            text = f"{self._node_id} refused the blob: {reply.reason} {reply.detail}".rstrip()
            self._sender.fail(PeerError(text, code=reply.reason))
        else:
            super()._answered(task)


class FakeStage:
    """The sending end; faults first."""

    def __init__(self, net: Net, source: str, to: str, inner: LocalStage, stall_s: float) -> None:
        self._net = net
        self._source = source
        self._to = to
        self._inner = inner
        self._stall_s = stall_s

    async def write(self, data: Buffer) -> None:
        try:
            async with asyncio.timeout(self._stall_s):
                lost = await self._net.before("Data", self._source, self._to, data)
        except TimeoutError:
            raise PeerTimeout(f"{self._to} took no bytes of the blob for {self._stall_s:g} s") from None
        await self._inner.write(bytes(data))
        self._net.after("Data", self._source, self._to, lost)

    async def close(self, message: StageClose, manifest: bytes | None, *, timeout_s: float) -> Reply:
        try:
            lost = await self._net.before("StageClose", self._source, self._to, message)
        except PeerError:
            await self._inner.abort()  # as the caller's end of a connection does when close() fails
            raise
        decoded = wire.decode_request(wire.encode(message))
        assert isinstance(decoded, StageClose)
        reply = await self._inner.close(decoded, manifest, timeout_s=timeout_s)
        self._net.after("StageClose", self._source, self._to, lost)
        return wire.decode_reply(wire.encode(reply))

    async def abort(self) -> None:
        await self._inner.abort()


class FakePeers:
    """:class:`node.transport.interface.Peers` of one node."""

    def __init__(self, net: Net, me: str, clock: HybridClock) -> None:
        self._net = net
        self._me = me
        self._clock = clock
        self._local: LocalPeer | None = None
        self.stages: set[asyncio.Task[Any]] = set()

    def ask(self, node: str, request: Request, told: Told, *, timeout_s: float) -> None:
        task = asyncio.get_running_loop().create_task(self._ask(node, request, told, timeout_s))
        self.stages.add(task)
        task.add_done_callback(self.stages.discard)

    async def _ask(self, node: str, request: Request, told: Told, timeout_s: float) -> None:
        try:
            told(await self.call(node, request, timeout_s=timeout_s))
        except PeerError as error:
            told(error)

    async def call(self, node: str, request: Request, *, timeout_s: float) -> Reply:
        kind = type(request).__name__
        try:
            async with asyncio.timeout(timeout_s):
                lost = await self._net.before(kind, self._me, node, request)
                decoded = wire.decode_request(wire.encode(request))
                reply = await served(self._net.handlers[node], self._me, decoded)
                await asyncio.sleep(0)
                self._net.after(kind, self._me, node, lost)
                return wire.decode_reply(wire.encode(reply))
        except TimeoutError:
            raise PeerTimeout(f"{node} did not answer {kind} within {timeout_s:.3g} s") from None

    async def stage(self, node: str, message: StageOpen, *, timeout_s: float) -> FakeStage:
        if await self._net.before("StageOpen", self._me, node, message):
            raise PeerUnreachable(f"the connection to {node} broke")
        handler = self._net.handlers[node]
        if node == self._me:
            inner = LocalStage(node, handler, message, timeout_s)
        else:
            decoded = wire.decode_request(wire.encode(message))
            assert isinstance(decoded, StageOpen)
            inner = _WireStage(node, handler, decoded, timeout_s)
        self.stages.add(inner.task)
        inner.task.add_done_callback(self.stages.discard)
        return FakeStage(self._net, self._me, node, inner, timeout_s)

    async def fetch(self, node: str, request: Request, *, timeout_s: float) -> AsyncIterator[bytes]:
        kind = type(request).__name__
        try:
            async with asyncio.timeout(timeout_s):
                lost = await self._net.before(kind, self._me, node, request)
                decoded = wire.decode_request(wire.encode(request))
                data = await answer(self._net.handlers[node].handle_read(self._me, decoded), decoded)
        except TimeoutError:
            raise PeerTimeout(f"{node} did not read within {timeout_s:.3g} s") from None
        self._net.after(kind, self._me, node, lost)
        if isinstance(data, Failed):
            raise raised(data, node)
        for at in range(0, len(data), 50_000):
            yield data[at : at + 50_000]

    def reachable(self, node: str) -> bool:
        return node == self._me or not {node, self._me} & self._net.down


# ---- nodes


@dataclass(eq=False)
class Node:
    """One node's parts, as ``node.main`` puts them together."""

    name: str
    store: Any
    routing: Routing
    peers: FakePeers
    replica: Replica
    coordinator: Coordinator
    lookup: Lookup
    reading: Reading
    objects: Objects
    puller: Puller
    resolver: Resolver
    sweeper: Sweeper
    parts: Parts[FakePeers]

    def register(self, path: str) -> Register:
        register = self.store.peek(self.routing.slot_of(path), path)
        assert register is not None
        return register

    async def pull(self) -> None:
        """Run the puller until it is done (or gave up)."""
        async with asyncio.timeout(WAIT_S):
            while await self.puller.step() is not Did.NOTHING or self.puller.waiting or self.puller.noting:
                await asyncio.sleep(0.001)


class Cluster:
    """Nodes ``n1``, ``n2``, … and the network between them."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.net = Net()
        self.clock: SkewedClock = options.get("clock") or SkewedClock()
        self.nodes: dict[str, Node] = {}
        self.stores: dict[str, Any] = {}
        self.table: RouteTable | None = None
        self.registry = MemoryRegistry(clock=self.clock)
        self.means: dict[str, ArchiveMeans] = {}

    def __getitem__(self, index: int) -> Node:
        return self.nodes[f"n{index}"]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def slot(self, path: str) -> int:
        assert self.table is not None
        return self.table.slot_of(path)

    def path(self, first: int, stem: str = "p") -> str:
        """A path of which node ``first`` is the first voter: here it is asked first, and answers first."""
        assert self.table is not None
        for index in range(1000):
            path = f"{stem}{index}"
            if self.table.route_of(path).voter_nodes[0] == f"n{first}":
                return path
        raise AssertionError("no such path")

    def start(self, name: str) -> Node:
        """A node's process on its disk: at first, and again after a crash."""
        options, store = self.options, self.stores[name]
        hybrid = HybridClock(self.clock.wall_ms)
        chance = SeededRandomness(int(name[1:]) * 100_000 + len(self.net.sent))
        routing = Routing(
            node=name,
            disk_id=store.disk_id,
            table=lambda: self.table,
            write_quorum=options.get("write_quorum", 0),
            read_quorum=options.get("read_quorum", 0),
        )
        parts = assemble(
            routing=routing,
            store=store,
            connect=lambda replica: FakePeers(self.net, name, hybrid),
            clock=self.clock,
            hybrid=hybrid,
            mint=UlidMint(hybrid, chance),
            randomness=chance,
            peer_timeout_s=options.get("peer_timeout_s", PATIENCE_S),
            request_timeout_s=options.get("request_timeout_s", PATIENCE_S),
            repair=options.get("repair"),
            retention=options.get("retention"),
            archive=options["means"](name) if "means" in options else self.means.get(name),
            readmit=partial(readmit, self.registry, self.table.cluster, name) if self.table is not None else None,
        )
        parts.health._timeout_s = PATIENCE_S
        node = Node(
            name,
            store,
            routing,
            parts.peers,
            parts.replica,
            parts.coordinator,
            parts.lookup,
            parts.reading,
            parts.objects,
            parts.puller,
            parts.resolver,
            parts.sweeper,
            parts,
        )
        self.net.handlers[name] = parts.replica
        self.nodes[name] = node
        return node

    async def publish_routes(self) -> None:
        """Put the routes into the registry, as they are."""
        assert self.table is not None
        keys = Keys(self.table.cluster.name)
        assert await self.registry.compare_and_set(keys.cluster, 0, encode(self.table.cluster)) is not None
        for route in self.table.routes:
            assert await self.registry.compare_and_set(keys.route(route.slot), 0, encode(route)) is not None

    async def see_routes(self) -> None:
        """Every node sees the routes that the registry has now."""
        assert self.table is not None
        keys = Keys(self.table.cluster.name)
        picture = picture_of(await self.registry.range(keys.root), keys)
        self.table = advance(
            self.table, replace(self.table, routes=tuple(picture.routes[slot] for slot in sorted(picture.routes)))
        )

    def give_up_after(self, timeout_s: float) -> None:
        """From now on writes and reads take no longer. What has to succeed comes before."""
        for node in self:
            node.coordinator._write_timeout_s = node.coordinator.read_timeout_s = timeout_s

    async def settle(self, *numbers: int) -> None:
        """Wait until nothing is under way any more (LEARNs, late accepts, discards) of these nodes (all)."""
        nodes = [self[number] for number in numbers] or list(self)
        await until(lambda: not any(n.coordinator._tasks or n.peers.stages for n in nodes), "quiet")

    async def resolve(self, *numbers: int, rounds: int = 1) -> None:
        """Let time pass and the resolvers of these nodes (all) do all that is due."""
        for _ in range(rounds):
            self.clock.ahead_s += 60.0
            for number in numbers or range(1, len(self.nodes) + 1):
                for _ in range(500):
                    if await self[number].resolver.step() is Did.NOTHING:
                        break
                else:
                    raise AssertionError("the resolver does not come to an end")
            await self.settle()

    def staged(self) -> dict[str, list[str]]:
        """By node: blobs whose bytes lie there and that nothing refers to (memory stores only)."""
        found: dict[str, list[str]] = {}
        for name, store in self.stores.items():
            for slot in store._slots.values():
                for blob_id in slot.files:
                    if slot.intents.get(blob_id, (None,))[0] is not Intent.REFERENCED:
                        found.setdefault(name, []).append(blob_id)
        return found

    def blobs(self) -> dict[str, list[str]]:
        """By node: every blob that has files there (memory stores only)."""
        return {
            name: sorted(blob_id for slot in store._slots.values() for blob_id in slot.files)
            for name, store in self.stores.items()
        }


def table_of(cluster: Cluster, names: list[str], *, replicas: int, slots: int, epoch: int = 1) -> RouteTable:
    def members(slot: int) -> tuple[Member, ...]:
        chosen = [names[(slot + i) % len(names)] for i in range(replicas)]
        return tuple(Member(name, cluster.stores[name].disk_id) for name in chosen)

    nodes = {
        name: NodeInfo(
            node_id=name,
            disk_id=cluster.stores[name].disk_id,
            zone=f"z{name}",
            host=name,
            http_address=f"{name}:80",
            peer_address=f"{name}:81",
            capacity_bytes=1,
            version="0",
            started_at_ms=0,
        )
        for name in names
    }
    info = ClusterInfo(
        cluster_id="01ARZ3NDEKTSV4RRFFQ69G5FAV",
        name="c",
        slot_count=slots,
        replicas=replicas,
        chunk_bytes=cluster.options.get("chunk_bytes", CHUNK),
        format_version=1,
        created_at_ms=0,
    )
    routes = tuple(Route(slot=slot, epoch=epoch, voters=members(slot)) for slot in range(slots))
    return RouteTable(cluster=info, routes=routes, nodes=nodes)


@asynccontextmanager
async def cluster(
    count: int = 3,
    *,
    replicas: int = 3,
    slots: int = 8,
    folder: Path | None = None,
    nobody_late: bool = False,
    **options: Any,
) -> AsyncIterator[Cluster]:
    """A running cluster on memory stores, or with ``folder`` on real disks.

    ``nobody_late``: a voter that is spared is asked because another failed, never because this machine was slow for a moment.
    """
    made = Cluster(**options)
    stack = ExitStack()
    if nobody_late:
        for module in (rounds, reads):
            stack.enter_context(mock.patch.object(module, "LATE_S", PATIENCE_S))
    names = [f"n{index}" for index in range(1, count + 1)]
    mint = UlidMint(HybridClock(made.clock.wall_ms), SeededRandomness(3))
    try:
        for name in names:
            store: ReplicaStore
            if folder is None:
                store = MemoryStore(mint.mint(), wall_ms=made.clock.wall_ms)
            else:
                store = await DiskStore.open(
                    folder / name,
                    cluster_id="c",
                    node_id=name,
                    clock=made.clock,
                    randomness=SeededRandomness(int(name[1:])),
                    reserve_bytes=0,
                )
            made.stores[name] = store
        made.table = table_of(made, names, replicas=replicas, slots=slots)
        await made.publish_routes()
        for name in names:
            made.start(name)
        yield made
    finally:
        made.net.heal()
        for node in made:
            await node.coordinator.close(0.2)
        for store in made.stores.values():
            await store.close()
        stack.close()


# ---- what a client does


async def body_of(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def pieces(data: bytes, size: int = 300_000) -> Iterable[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def content(size: int, seed: int = 0) -> bytes:
    return SeededRandomness(size * 1000 + seed).token(size)


async def put(
    node: Node,
    path: str,
    data: bytes = b"body",
    *,
    write_id: str | None = None,
    repeat: bool = False,
    conditions: Conditions = NO_CONDITIONS,
    version: int | None = None,
    size: int | None = None,
    content_type: str = "text/plain",
    meta: dict[str, str] | None = None,
    digests: tuple[tuple[str, bytes], ...] = (),
) -> ObjectView:
    options = PutOptions(
        size=size,
        content_type=content_type,
        meta=meta or {},
        version=version,
        conditions=conditions,
        digests=digests,
        write_id=write_id,
        repeat=repeat,
    )
    return await node.objects.put(path, body_of(*pieces(data)), options)


async def put_in_vain(node: Node, path: str, data: bytes = b"body", **options: Any) -> None:
    """A write whose outcome is unknown. One whose time was over before its COMMITs went out was none: it is tried again."""
    for _ in range(100):
        try:
            await put(node, path, data, **options)
        except QuorumUnavailable:
            continue
        except OutcomeUnknown:
            return
        raise AssertionError("it was acknowledged")
    raise AssertionError("no COMMIT goes out")


async def delete(
    node: Node,
    path: str,
    *,
    version: int | None = None,
    write_id: str | None = None,
    repeat: bool = False,
    conditions: Conditions = NO_CONDITIONS,
) -> None:
    await node.objects.delete(path, version=version, conditions=conditions, write_id=write_id, repeat=repeat)


async def restore(
    node: Node,
    path: str,
    *,
    version: int | None = None,
    write_id: str | None = None,
    repeat: bool = False,
    conditions: Conditions = NO_CONDITIONS,
) -> ObjectView:
    return await node.objects.restore(path, version=version, conditions=conditions, write_id=write_id, repeat=repeat)


async def look(
    node: Node,
    path: str,
    *,
    version: int | None = None,
    at_ms: int | None = None,
    consistency: Consistency = "strong",
) -> ObjectView:
    return await node.objects.lookup(path, version=version, at_ms=at_ms, consistency=consistency)


async def read(node: Node, view: ObjectView, offset: int = 0, length: int | None = None) -> bytes:
    length = view.version.size - offset if length is None else length
    return b"".join([bytes(part) async for part in node.objects.read(view, offset, length)])


async def get(node: Node, path: str, *, version: int | None = None, consistency: Consistency = "strong") -> bytes:
    return await read(node, await look(node, path, version=version, consistency=consistency))


async def listing(
    node: Node,
    *,
    prefix: str = "",
    delimiter: str = "",
    limit: int = 1000,
    start: str = "",
    tombstoned: bool = False,
    at_ms: int | None = None,
) -> ListPage:
    return await node.objects.list(
        prefix=prefix, delimiter=delimiter, limit=limit, start=start, tombstoned=tombstoned, at_ms=at_ms
    )


async def walk(node: Node, *, limit: int, **options: Any) -> tuple[list[str], list[str]]:
    """Every page of a listing: (paths, prefixes), each page in order and within the limit."""
    objects: list[str] = []
    prefixes: list[str] = []
    start = ""
    for _ in range(3000):
        page = await listing(node, limit=limit, start=start, **options)
        names = [item.path for item in page.objects]
        assert len(names) + len(page.prefixes) <= limit
        objects += names
        prefixes += page.prefixes
        if page.next_start is None:
            assert objects == sorted(set(objects)) and prefixes == sorted(set(prefixes))
            return objects, prefixes
        assert len(names) + len(page.prefixes) == limit, "a page that is not the last one is full"
        assert page.next_start > start
        start = page.next_start
    raise AssertionError("the listing does not end")
