"""What everything of the archive on a node stands on: handed to every worker and job, so that each says what it uses of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from amberblob.clock import Clock, HybridClock, Randomness
from amberblob.config import ArchiveSection
from amberblob.errors import PeerError
from amberblob.ids import UlidMint
from amberblob.wire import Failed, Reply, Request
from archive.identity import Identity
from archive.targets.interface import Target
from chunkstore.interface import ReplicaStore
from node.archive.facts import Facts
from node.archive.means import ArchiveMeans
from node.coordinator import Coordinator
from node.routing import Routing

PEER_TIMEOUT_S = 10.0
"""How long another node is waited for by what no client waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """One node's.

    Attributes:
        means: the target, the node's notes, the cache: what is given by the machine.
        identity: whether the target is this cluster's own.
        facts: the one entrance of archive rows into this node's copies.
    """

    means: ArchiveMeans
    identity: Identity
    store: ReplicaStore
    routing: Routing
    coordinator: Coordinator
    clock: Clock
    hybrid: HybridClock
    mint: UlidMint
    randomness: Randomness
    facts: Facts

    @property
    def node(self) -> str:
        """This node's id."""
        return self.routing.node

    @property
    def section(self) -> ArchiveSection:
        """``[archive]``."""
        return self.means.section

    @property
    def target(self) -> Target:
        """Where archived things are; counted, and not limited: jobs ask :meth:`ArchiveMeans.limited`."""
        return self.means.target

    def nodes(self) -> list[str]:
        """Every node of the route table, sorted, this one included. Raises: NotReady."""
        return sorted(self.routing.table().nodes)

    def has_voice(self, slot: int) -> bool:
        """Whether this node's copy of the slot counts."""
        return self.routing.mute(self.store.slot_state(slot)) is None

    def looks_after(self, slot: int) -> bool:
        """Whether this node's copy counts, and no voter before it in the route can be reached."""
        if not self.has_voice(slot):
            return False
        for node in self.routing.electorate(slot).voters:
            if node == self.node:
                return True
            if self.coordinator.peers.reachable(node):
                return False
        return False

    def led_slots(self) -> list[int]:
        """The slots that this node looks after, ascending; none while there are no routes."""
        return sorted(slot for slot in self.routing.own_votes() if self.looks_after(slot))

    def own_slots(self) -> list[int]:
        """The slots of which this node has a copy that counts, ascending; none while there are no routes."""
        return sorted(slot for slot in self.routing.own_votes() if self.has_voice(slot))

    def others(self, slot: int) -> list[str]:
        """The other nodes that have a copy of the slot that counts, those that can be reached, in the route's order."""
        peers = self.coordinator.peers
        return [node for node in self.routing.electorate(slot).voters if node != self.node and peers.reachable(node)]

    async def ask(self, node: str, request: Request, *, timeout_s: float = PEER_TIMEOUT_S) -> Reply:
        """One request, one answer.

        Raises: PeerError; also for an answer that says that it failed there (with its code and detail), and PeerRefused of a node
            whose software does not know the archive yet.
        """
        reply = await self.coordinator.peers.call(node, request, timeout_s=timeout_s)
        if isinstance(reply, Failed):
            raise PeerError(f"{node}: {reply.detail}", code=reply.code)
        return reply

    async def ask_all(
        self, nodes: Iterable[str], request: Request, *, timeout_s: float = PEER_TIMEOUT_S
    ) -> dict[str, Reply | PeerError]:
        """The same request to many at once: each one's answer, or why there is none."""

        async def one(node: str) -> Reply | PeerError:
            try:
                return await self.ask(node, request, timeout_s=timeout_s)
            except PeerError as error:
                return error

        nodes = list(nodes)
        return dict(zip(nodes, await asyncio.gather(*map(one, nodes)), strict=True))

    def now_ms(self) -> int:
        """The hybrid time: what archive rows and versions are dated by."""
        return self.hybrid.now_ms()

    def rows_ms(self) -> int:
        """The hybrid time as rows bear it that are made now: see :meth:`node.archive.facts.Facts.dated`."""
        return self.facts.dated(self.now_ms())
