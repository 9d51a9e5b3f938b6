"""A cluster of which only the registry, one node's disk and what the others answer are real: for the workers that move slots."""

from __future__ import annotations

from typing import Any

from amberblob.clock import SystemClock
from amberblob.errors import PeerUnreachable
from amberblob.wire import Reply, Request
from amberblob.wire_repair import AskCopies, CopiesReply, CopyState, slots_in
from chunkstore.memory import MemoryStore
from node.routing import Routing
from registry.interface import CompareAndDelete, CompareAndSet
from registry.keys import Keys
from registry.memory import MemoryRegistry
from registry.moves import RegistryRouteChanges
from registry.routes import ClusterInfo, Member, Membership, Move, NodeInfo, Route, RouteTable, encode
from registry.snapshot import picture_of


class StillClock(SystemClock):
    """Time that passes when it is told to."""

    now_s = 1000.0

    def monotonic_s(self) -> float:
        return self.now_s


class Answers:
    """:class:`node.transport.interface.Peers`, as far as the mover asks: what each node tells of its copies."""

    def __init__(self) -> None:
        self.copies: dict[str, dict[int, CopyState]] = {}
        self.cut: set[str] = set()
        self.asked: list[tuple[str, list[int]]] = []

    def reachable(self, node: str) -> bool:
        return node not in self.cut

    async def call(self, node: str, request: Request, *, timeout_s: float) -> Reply:
        assert isinstance(request, AskCopies)
        slots = slots_in(request.slots)
        self.asked.append((node, slots))
        if node in self.cut:
            raise PeerUnreachable(f"{node} is away")
        mine = self.copies.get(node, {})
        return CopiesReply(copies=tuple(mine[slot] for slot in slots if slot in mine))

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the mover does not need {name}")


class Scene:
    """Voters n1, n2, n3 of every slot, in that order; n4 and n5 are registered."""

    def __init__(self, slots: int = 8) -> None:
        self.registry = MemoryRegistry()
        self.keys = Keys("c")
        self.clock = StillClock()
        self.peers = Answers()
        self.info = ClusterInfo(
            cluster_id="01ARZ3NDEKTSV4RRFFQ69G5FAV",
            name="c",
            slot_count=slots,
            replicas=3,
            chunk_bytes=65536,
            format_version=1,
            created_at_ms=0,
        )
        self.table: RouteTable | None = None

    async def begin(self) -> None:
        voters = tuple(Member(f"n{number}", f"disk{number}") for number in (1, 2, 3))
        await self._put(self.keys.cluster, encode(self.info))
        for number in range(1, 6):
            node = NodeInfo(
                node_id=f"n{number}",
                disk_id=f"disk{number}",
                zone="z",
                host=f"n{number}",
                http_address=f"n{number}:80",
                peer_address=f"n{number}:81",
                capacity_bytes=1,
                version="0",
                started_at_ms=0,
            )
            await self._put(self.keys.node(node.node_id), encode(node))
        for slot in range(self.info.slot_count):
            await self.set_route(Route(slot=slot, epoch=1, voters=voters))
        await self.see()

    def routing(self, node: str) -> Routing:
        return Routing(node=node, disk_id=f"disk{node[1:]}", table=lambda: self.table)

    def store(self, node: str) -> MemoryStore:
        return MemoryStore(f"disk{node[1:]}")

    def changes(self, node: str) -> RegistryRouteChanges:
        return RegistryRouteChanges(self.registry, self.info, node)

    async def see(self) -> None:
        """The nodes see what the registry has now."""
        self.table = picture_of(await self.registry.range(self.keys.root), self.keys).table()

    async def set_route(self, route: Route) -> None:
        await self._put(self.keys.route(route.slot), encode(route))

    async def set_membership(self, membership: Membership) -> None:
        await self._put(self.keys.membership, encode(membership))

    async def set_move(self, slot: int, *nodes: str) -> None:
        """Have the slot be wanted there; without nodes: nowhere else than it is."""
        key = self.keys.move(slot)
        if nodes:
            await self._put(key, encode(Move(slot=slot, generation=1, nodes=nodes)))
            return
        entry = await self.registry.get(key)
        assert entry is not None
        assert await self.registry.transact([CompareAndDelete(key=key, expected_revision=entry.revision)])

    async def route(self, slot: int) -> Route:
        """As it is in the registry."""
        table = picture_of(await self.registry.range(self.keys.root), self.keys).table()
        assert table is not None
        return table.route(slot)

    async def moves(self) -> set[int]:
        """The slots that are to move, in the registry."""
        return set(picture_of(await self.registry.range(self.keys.root), self.keys).moves)

    async def _put(self, key: str, value: bytes) -> None:
        entry = await self.registry.get(key)
        revision = 0 if entry is None else entry.revision
        assert await self.registry.transact([CompareAndSet(key=key, expected_revision=revision, value=value)])

    def tell(self, node: str, slot: int, synced: int = 0, *, wanted: int = 0, incarnation: str = "") -> None:
        """From now on the node answers so about its copy."""
        self.peers.copies.setdefault(node, {})[slot] = CopyState(
            slot=slot,
            incarnation=incarnation or f"disk{node[1:]}",
            epoch=synced,
            synced_epoch=synced,
            objects=1,
            wanted=wanted,
            wanted_bytes=100 * wanted,
            undecided=0,
        )
