"""Gives up the copies of slots whose routes do not name this node any more, once nobody can need them (rfc/0013).

A node that leaves a slot keeps its copy at first: the voters that came after it may want bytes yet. When all voters of a STABLE route, asked by
this node, are filled and want nothing, the slot begins anew here, durably and with another incarnation, and what it held is
removed. So a route of the past that somebody still has can never make this node vote with an empty memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import structlog

from amberblob.clock import Clock
from amberblob.errors import NotReady, PeerError
from amberblob.wire import Reply
from amberblob.wire_repair import AskCopies, CopiesReply, CopyState, RepairRequest, bitmap_of
from antientropy.rest import Rest
from antientropy.step import Did, Wake
from chunkstore.interface import ReplicaStore
from node.routing import Routing
from registry.routes import Member, Route, RouteTable

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 10.0
"""How often the voters are asked again where something was in the way."""
AGAIN_S = 60.0
"""What was given up is looked at once more after this time: longer than a fetch lasts."""
ASK_SLOTS_MAX = 64
"""In one question: each of them is looked up in its database there."""
BLOBS_MAX = 32
"""Removed in one step."""
REST_PER_TIME = 4.0
"""After a step that removed something the worker rests so many times as long as it took: disks are the clients'."""
REST_MAX_S = 5.0

Call = Callable[[str, RepairRequest], Awaitable[Reply]]
"""One request to one node, one answer. Raises PeerError."""


@dataclass(slots=True)
class LeaverCounts:
    """What was given up since the start; each only grows."""

    slots_left: int = 0
    blobs_removed: int = 0
    bytes_freed: int = 0


class Leaver:
    """A worker over the slots that this node has something of and that do not name it.

    Args:
        call: asks another node.
    """

    name = "leaver"

    def __init__(self, store: ReplicaStore, routing: Routing, clock: Clock, *, call: Call) -> None:
        self.wake = Wake()
        self.pause_s = LOOK_EVERY_S
        self.counts = LeaverCounts()
        self._store = store
        self._routing = routing
        self._clock = clock
        self._call = call
        self._clean: dict[int, tuple[str, float]] = {}
        """The copies, by incarnation, of which nothing is left, and when that is looked at again: a fetch that was under way when
        the slot was left may have brought something since."""
        self._waiting: deque[int] = deque()
        self._table: RouteTable | None = None
        self._due_s = float("-inf")
        self._rest = Rest(clock, max_s=REST_MAX_S)
        self._sweeping: deque[int] = deque()

    async def step(self) -> Did:
        """Remove some of what was left, or ask the voters of some slots whether they need this node's copies.

        Raises: StorageError.
        """
        now_s = self._clock.monotonic_s()
        if self._store.failed is not None:
            return self._pause(LOOK_EVERY_S)
        if (rest_s := self._rest.left_s(now_s)) > 0:
            return self._pause(rest_s)
        if self._sweeping:
            await self._sweep(self._sweeping[0])
            self._rest.begin(now_s, REST_PER_TIME)
            return Did.WORK
        try:
            table = self._routing.table()
        except NotReady:
            return self._pause(LOOK_EVERY_S)
        if not self._waiting and (table is not self._table or now_s >= self._due_s):
            # Only what the newest table says counts; an older one may not have known that this node was named again.
            self._table, self._due_s = table, now_s + LOOK_EVERY_S
            self._waiting.extend(slot for slot in self._store.slots() if self._is_left(slot))
        if not self._waiting:
            return self._pause(self._due_s - now_s)
        slots = [self._waiting.popleft() for _ in range(min(ASK_SLOTS_MAX, len(self._waiting)))]
        await self._look_at([slot for slot in slots if await self._holds(slot)])
        return Did.WORK

    def _pause(self, seconds: float) -> Did:
        self.pause_s = max(0.1, seconds)
        return Did.NOTHING

    def _is_left(self, slot: int) -> bool:
        """Whether the newest route, no older than what the copy has seen, is one that does without this node, and so it is to be."""
        table, state = self._routing.table(), self._store.slot_state(slot)
        incarnation, again_s = self._clean.get(slot, ("", 0.0))
        if slot >= table.slot_count or (incarnation == state.incarnation and self._clock.monotonic_s() < again_s):
            return False
        route, move, node = table.route(slot), table.moves.get(slot), self._routing.node
        # A route that is older than the copy may be followed by one that names it.
        return (
            route.state == "stable"
            and node not in route.all_nodes
            and route.epoch >= state.epoch
            and (move is None or node not in move.nodes)
        )

    async def _holds(self, slot: int) -> bool:
        incarnation = self._store.slot_state(slot).incarnation
        if await self._store.holds(slot):
            return True
        known = self._clean.get(slot, ("", 0.0))[0] == incarnation
        self._clean[slot] = (incarnation, float("inf") if known else self._clock.monotonic_s() + AGAIN_S)
        return False

    async def _look_at(self, slots: list[int]) -> None:
        """Give up those of these slots whose voters all say that they need nothing."""
        routes = {slot: self._routing.table().route(slot) for slot in slots}
        of_node: dict[str, list[int]] = {}
        for slot, route in routes.items():
            for node in route.voter_nodes:
                of_node.setdefault(node, []).append(slot)
        nodes = sorted(of_node)
        answers = await asyncio.gather(*(self._ask(node, of_node[node]) for node in nodes))
        told = dict(zip(nodes, answers, strict=True))
        for slot, route in routes.items():
            if all(_needs_nothing(member, told[member.node].get(slot)) for member in route.voters):
                await self._leave(slot, route)

    async def _ask(self, node: str, slots: Iterable[int]) -> dict[int, CopyState]:
        """What the node has of these slots; nothing, if it does not tell."""
        try:
            reply = await self._call(node, AskCopies(slots=bitmap_of(set(slots))))
        except PeerError as error:
            log.debug("copies not told", peer=node, error=str(error))
            return {}
        return {copy.slot: copy for copy in reply.copies} if isinstance(reply, CopiesReply) else {}

    async def _leave(self, slot: int, asked: Route) -> None:
        """Begin anew, if nothing has changed since the voters were asked."""
        if self._routing.table().route(slot) != asked or not self._is_left(slot):
            return
        incarnation = await self._store.leave(slot)
        self._sweeping.append(slot)
        self.counts.slots_left += 1
        log.info("slot left", slot=slot, epoch=asked.epoch, voters=asked.voter_nodes, incarnation=incarnation)

    async def _sweep(self, slot: int) -> None:
        count, size_bytes = await self._store.sweep_left(slot, BLOBS_MAX)
        self.counts.blobs_removed += count
        self.counts.bytes_freed += size_bytes
        if count < BLOBS_MAX:
            self._sweeping.popleft()


def _needs_nothing(member: Member, copy: CopyState | None) -> bool:
    """Whether this voter told that it is the copy that the route names, filled since it was named, with all its bytes."""
    return (
        copy is not None
        and copy.incarnation == member.incarnation
        and (member.since <= 1 or copy.synced_epoch >= member.since)
        and copy.wanted == 0
    )
