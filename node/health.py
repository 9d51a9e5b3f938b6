"""How the copies of slots are: this node's own, and by asking, those of all nodes.

Nothing is kept here but what a rate is computed from; what the answers mean is :mod:`node.wholeness`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import msgspec
import structlog

from amberblob.ballot import SlotState
from amberblob.clock import Clock
from amberblob.errors import NotReady, PeerError
from amberblob.wire_repair import AskHealth, HealthReply, SlotHealth
from chunkstore.interface import ReplicaStore
from node.routing import Routing
from node.transport.interface import Peers
from registry.routes import Route

log = structlog.get_logger(__name__)

PAGE_SLOTS_MAX = 16_384
"""Of one answer: each slot takes at most some 100 bytes of a frame of 2 MiB."""

TIMEOUT_S = 0.75
"""How long one node is waited for. Below a second: whoever looks at /cluster every second is to get every answer."""

HEAL_TIMEOUT_S = 5.0
"""The same where it is to compare its copies: it brings their databases up to date first."""

RATE_WINDOW_S = 15.0
RATE_KEPT_S = 120.0
RATE_SPACING_S = 0.4


class Undecided(Protocol):
    """Who knows what waits to be decided (:class:`node.workers.resolver.Resolver`)."""

    def undecided_by_slot(self) -> Mapping[int, int]:
        """Records accepted here that are not known to be chosen; slots without any may be left out."""
        ...


class Compared(Protocol):
    """Who compares copies (the anti-entropy worker)."""

    def compared_ms(self, slot: int) -> int:
        """When this node's copy was last known to lack nothing, in ms since 1970 by this node's clock; 0: never."""
        ...


class Scrubbed(Protocol):
    """Who reads everything again (the scrub worker); answers from memory."""

    def scrubbed_ms(self, slot: int) -> int:
        """When the whole slot was last read and checked, in ms since 1970 by this node's clock; 0: never."""
        ...


class Fetched(Protocol):
    """Who fetches bytes for repair."""

    @property
    def received_bytes(self) -> int:
        """Fetched since the node started; only grows."""
        ...

    def unrecoverable(self, slot: int) -> int:
        """Versions of the slot of which no replica could give some bytes when last asked."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What the store does not know of its copies. A worker that does not run on this node is None: it knows nothing."""

    undecided: Undecided | None = None
    compared: Compared | None = None
    scrubbed: Scrubbed | None = None
    fetched: Fetched | None = None


def is_unsynced(route: Route, node: str, state: SlotState) -> bool:
    """Whether this copy of the node's has no vote yet: the route names another, or this one was not filled since it was named."""
    members = (*route.voters, *route.next_voters, *route.learners)
    return not any(
        member.node == node
        and member.incarnation == state.incarnation
        and (member.since <= 1 or state.synced_epoch >= member.since)
        for member in members
    )


def own_health(
    store: ReplicaStore, routing: Routing, facts: Facts, *, now_ms: int, first: int = 0, limit: int = PAGE_SLOTS_MAX
) -> HealthReply:
    """This node's copies of the slots that the route table gives it, from memory.

    Args:
        now_ms: this node's wall clock, as in :attr:`HealthReply.now_ms`.
        first: only slots from this number on, at most ``limit`` of them.
    """
    try:
        table = routing.table()
    except NotReady:
        return HealthReply(now_ms=now_ms, slots=(), received_bytes=0, full=store.full)
    held = table.slots_of(routing.node)
    asked = [slot for slot in held if slot >= first]
    undecided = facts.undecided.undecided_by_slot() if facts.undecided is not None else {}
    fetched = facts.fetched
    slots = []
    for slot in asked[:limit]:
        tally = store.tally(slot)
        slots.append(
            SlotHealth(
                slot=slot,
                root=tally.root,
                objects=tally.objects,
                undecided=undecided.get(slot, 0),
                wanted=tally.wanted,
                wanted_bytes=tally.wanted_bytes,
                damaged=tally.damaged,
                unsynced=is_unsynced(table.route(slot), routing.node, store.slot_state(slot)),
                moving=routing.node not in table.route(slot).voter_nodes,
                compared_ms=facts.compared.compared_ms(slot) if facts.compared is not None else 0,
                scrubbed_ms=facts.scrubbed.scrubbed_ms(slot) if facts.scrubbed is not None else 0,
                unrecoverable=fetched.unrecoverable(slot) if fetched is not None else 0,
                evicted=tally.evicted,
                evicted_bytes=tally.evicted_bytes,
            )
        )
    return HealthReply(
        now_ms=now_ms,
        slots=tuple(slots),
        received_bytes=fetched.received_bytes if fetched is not None else 0,
        unrecoverable=sum(map(fetched.unrecoverable, held)) if fetched is not None else 0,
        more=len(asked) > limit,
        full=store.full,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeHealth:
    """What a node told of its copies, its times translated into the asker's clock."""

    slots: Mapping[int, SlotHealth]
    unrecoverable: int
    full: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """What the holders of copies told.

    Attributes:
        at_ms: when they were asked, in ms since 1970.
        nodes: by node id; None: no answer in time.
        rate_bytes_per_s: what all of them together fetched for repair lately; None: not known (yet).
    """

    at_ms: int
    nodes: Mapping[str, NodeHealth | None]
    rate_bytes_per_s: float | None


Sample = tuple[float, Mapping[str, tuple[int, int]]]
"""When it was taken (monotonic seconds), and by node its clock (ms) and ``received_bytes``."""


def rate_of(samples: Iterable[Sample]) -> float | None:
    """Bytes per second that the nodes received, each over the samples that have it. None: none is in two of them.

    A node that began to count anew (it restarted), or whose clock went back, is left out.
    """
    of_node: dict[str, list[tuple[int, int]]] = {}
    for _, nodes in samples:
        for node, clock_and_bytes in nodes.items():
            of_node.setdefault(node, []).append(clock_and_bytes)
    rates = []
    for told in of_node.values():
        if len(told) < 2 or any(after[1] < before[1] or after[0] <= before[0] for before, after in pairwise(told)):
            continue
        (first_ms, first_bytes), (last_ms, last_bytes) = told[0], told[-1]
        rates.append((last_bytes - first_bytes) * 1000 / (last_ms - first_ms))
    return sum(rates) if rates else None


class ClusterHealth:
    """Asks every node that the route table gives a copy how its copies are.

    Args:
        own: this node's own health, from memory (:func:`own_health`).
        timeout_s: how long each node is waited for.
    """

    def __init__(
        self,
        own: Callable[[AskHealth], HealthReply],
        *,
        routing: Routing,
        peers: Peers,
        clock: Clock,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._own = own
        self._routing = routing
        self._peers = peers
        self._clock = clock
        self._timeout_s = timeout_s
        self._samples: deque[Sample] = deque()

    def own(self) -> HealthReply:
        """This node's copies, without asking anybody."""
        reply = self._own(AskHealth())
        while reply.more and reply.slots:
            reply = _joined(reply, self._own(_next_page(reply)))
        return reply

    async def gather(self, *, heal: bool = False) -> Gathering:
        """Ask all holders of copies at once. ``heal``: and have each compare its own now. Raises: NotReady (no route table)."""
        nodes = sorted({node for route in self._routing.table().routes for node in route.all_nodes})
        at_ms = self._clock.wall_ms()
        answers = await asyncio.gather(*(self._ask(node, heal) for node in nodes))
        told = {node: answer for node, answer in zip(nodes, answers, strict=True) if answer is not None}
        self._remember({node: (reply.now_ms, reply.received_bytes) for node, (reply, _) in told.items()})
        return Gathering(
            at_ms=at_ms,
            nodes={**dict.fromkeys(nodes), **{node: _translated(*answer) for node, answer in told.items()}},
            rate_bytes_per_s=rate_of(self._window()),
        )

    async def _ask(self, node: str, heal: bool) -> tuple[HealthReply, int] | None:
        """The answer, and how far this node's clock is ahead of that node's (ms; what the answer's way took is in it)."""
        timeout_s = HEAL_TIMEOUT_S if heal else self._timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._page(node, AskHealth(heal=heal), timeout_s)
                ahead_ms = self._clock.wall_ms() - reply.now_ms
                while reply.more and reply.slots:
                    reply = _joined(reply, await self._page(node, _next_page(reply), timeout_s))
        except (PeerError, TimeoutError) as error:
            log.debug("no health", peer=node, error=str(error))
            return None
        return reply, ahead_ms

    async def _page(self, node: str, request: AskHealth, timeout_s: float) -> HealthReply:
        reply = await self._peers.call(node, request, timeout_s=timeout_s)
        if not isinstance(reply, HealthReply):
            raise PeerError(f"{node} answered {type(reply).__name__}")
        return reply

    def _remember(self, told: Mapping[str, tuple[int, int]]) -> None:
        now_s = self._clock.monotonic_s()
        if not self._samples or now_s - self._samples[-1][0] >= RATE_SPACING_S:
            self._samples.append((now_s, told))
        while now_s - self._samples[0][0] > RATE_KEPT_S:
            self._samples.popleft()

    def _window(self) -> list[Sample]:
        """The samples of the last seconds; or the last two, if whoever looks takes his time."""
        newest_s = self._samples[-1][0]
        recent = [sample for sample in self._samples if newest_s - sample[0] <= RATE_WINDOW_S]
        return recent if len(recent) > 1 else list(self._samples)[-2:]


def _next_page(reply: HealthReply) -> AskHealth:
    return AskHealth(first=reply.slots[-1].slot + 1)


def _joined(reply: HealthReply, page: HealthReply) -> HealthReply:
    return msgspec.structs.replace(reply, slots=(*reply.slots, *page.slots), more=page.more)


def _translated(reply: HealthReply, ahead_ms: int) -> NodeHealth:
    """Times by the clock of whoever asked.

    They may come out late by what the answer's way took, never early: a comparison that began after it was asked for is not
    taken for one from before.
    """

    def here(at_ms: int) -> int:
        return max(1, at_ms + ahead_ms) if at_ms else 0

    return NodeHealth(
        slots={
            health.slot: msgspec.structs.replace(
                health, compared_ms=here(health.compared_ms), scrubbed_ms=here(health.scrubbed_ms)
            )
            for health in reply.slots
        },
        unrecoverable=reply.unrecoverable,
        full=reply.full,
    )
