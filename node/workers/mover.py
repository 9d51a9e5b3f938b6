"""Leads slots from one set of voters to another (rfc/0013): asks their copies how far they are, and changes their routes.

Of each slot one node leads: the first in the route's order, voters before new voters, that can be reached. That is a habit, not a
right: when two lead at once, as they may while a connection is down, the second only loses a compare-and-set. What is done next
is decided in :mod:`node.workers.movedecision`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from amberblob.clock import Clock
from amberblob.errors import AmberError, NotReady, RegistryUnavailable
from amberblob.wire_repair import AskCopies, CopiesReply, CopyState, bitmap_of
from antientropy.step import Did, Wake
from node.moving import RouteChanges
from node.routing import Routing
from node.transport.interface import Peers
from node.workers.movedecision import LOST_S, Stage, Step, decide, stage_of
from registry.moves import Changed
from registry.routes import Route, RouteTable

log = structlog.get_logger(__name__)

PAUSE_S = 1.0
ASKED_MAX = 64
"""Slots that are asked about at a time. Each answer makes a copy apply all that it has journaled."""

JOINT_MAX = 8
"""Of the slots that one node leads, so many are in a joint epoch at a time: everything in them needs two majorities."""

GAP_MAX_S = 2 * PAUSE_S
"""Between two rounds a node is taken to have been silent for so long at most: this one may have slept itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveFacts:
    """How far a slot is that this node leads.

    Attributes:
        why: what it waits for; empty: for nothing, it goes on.
        wanted, wanted_bytes: what its new copies want yet, as far as they know. One that is not filled knows only a part.
    """

    slot: int
    stage: Stage
    why: str
    wanted: int
    wanted_bytes: int


@dataclass(slots=True)
class MoveCounts:
    """What was done since the start; each only grows."""

    joints_begun: int = 0
    finished: int = 0
    aborted: int = 0
    learners_dropped: int = 0
    moves_forgotten: int = 0
    lost_races: int = 0


class Mover:
    """A worker.

    Args:
        peers: the own node included.
        changes: the way to the registry.
        timeout_s: how long one answer is waited for.
        lost_s: see :data:`node.workers.movedecision.LOST_S`.

    Attributes:
        counts: what was done.
    """

    name = "mover"

    def __init__(
        self,
        routing: Routing,
        peers: Peers,
        changes: RouteChanges,
        clock: Clock,
        *,
        timeout_s: float = 3.0,
        lost_s: float = LOST_S,
    ) -> None:
        self.wake = Wake()
        self.pause_s = PAUSE_S
        self.counts = MoveCounts()
        self._routing = routing
        self._peers = peers
        self._changes = changes
        self._clock = clock
        self._timeout_s = timeout_s
        self._lost_s = lost_s
        self._table: RouteTable | None = None
        self._moving: tuple[int, ...] = ()
        self._next = 0
        self._round_s = float("-inf")
        self._silent_s: dict[str, float] = {}
        self._other_s: dict[tuple[int, str], tuple[str, float]] = {}
        """By slot and node: the copy that the route does not name, and since when it was told of."""
        self._changed: dict[int, int] = {}
        self._facts: dict[int, MoveFacts] = {}

    def facts(self) -> tuple[MoveFacts, ...]:
        """The slots in motion that this node leads, ascending, as they were when last looked at."""
        return tuple(self._facts[slot] for slot in sorted(self._facts))

    async def step(self) -> Did:
        """Ask the copies of some slots in motion, and do what is next for each of them."""
        try:
            table = self._routing.table()
        except NotReady:
            return Did.NOTHING
        self._look_at(table)
        led = [slot for slot in self._moving if self._leads(table.route(slot))]
        self._facts = {slot: facts for slot, facts in self._facts.items() if slot in led}
        if not led:
            self._silent_s.clear()
            self._other_s.clear()
            return Did.NOTHING
        now_s = self._clock.monotonic_s()
        gap_s, self._round_s = min(GAP_MAX_S, now_s - self._round_s), now_s
        for slot in led:
            if not _asks(table, slot):
                self._note(table, slot, decide(table.route(slot), table.moves.get(slot), {}, {}), {})
        slots = self._turn([slot for slot in led if _asks(table, slot)])
        if not slots:
            return Did.NOTHING
        answers = await self._ask(table, slots, gap_s)
        joint = sum(table.route(slot).state == "joint" for slot in led)
        for slot in slots:
            if self._routing.table().route(slot).epoch != table.route(slot).epoch:
                continue  # there was news meanwhile
            copies = {node: copies[slot] for node, copies in answers.items() if slot in copies}
            step = self._decide(table, slot, copies)
            if step.does == "begin-joint":
                if joint >= JOINT_MAX:
                    step = Step(does="wait", why="its turn comes after others")
                joint += 1
            self._note(table, slot, step, copies)
            if step.does == "wait":
                continue
            try:
                await self._do(table, slot, step)
            except RegistryUnavailable as error:
                self._note(table, slot, Step(does="wait", why="the registry cannot be reached"), copies)
                log.info("slot not moved yet", slot=slot, step=step.does, error=str(error))
                break
        return Did.NOTHING

    # -- which slots

    def _look_at(self, table: RouteTable) -> None:
        """Know which slots are in motion; only once for each table."""
        if table is not self._table:
            self._table = table
            moving = {route.slot for route in table.routes if route.state == "joint" or route.learners}
            self._moving = tuple(sorted(moving.union(table.moves)))
            self._changed = {slot: epoch for slot, epoch in self._changed.items() if table.route(slot).epoch < epoch}

    def _leads(self, route: Route) -> bool:
        for member in (*route.voters, *route.next_voters):
            if member.node == self._routing.node:
                return True
            if self._peers.reachable(member.node):
                return False
        return False

    def _turn(self, slots: list[int]) -> list[int]:
        """The slots whose turn it is, without those of which the last change was not seen yet."""
        later = [slot for slot in slots if slot >= self._next]
        turn = (later + slots[: len(slots) - len(later)])[:ASKED_MAX]
        self._next = turn[-1] + 1 if turn else 0
        return [slot for slot in turn if slot not in self._changed]

    # -- asking

    async def _ask(self, table: RouteTable, slots: list[int], gap_s: float) -> Mapping[str, Mapping[int, CopyState]]:
        """What each node tells of its copies; who does not answer is missing."""
        by_node: dict[str, set[int]] = {}
        for slot in slots:
            for node in table.route(slot).all_nodes:
                by_node.setdefault(node, set()).add(slot)
        told = await asyncio.gather(*(self._ask_node(node, asked) for node, asked in by_node.items()))
        answers: dict[str, Mapping[int, CopyState]] = {}
        for node, copies in zip(by_node, told, strict=True):
            if copies is None:
                self._silent_s[node] = self._silent_s.get(node, 0.0) + gap_s
            else:
                self._silent_s.pop(node, None)
                answers[node] = copies
        return answers

    async def _ask_node(self, node: str, slots: set[int]) -> Mapping[int, CopyState] | None:
        try:
            reply = await self._peers.call(node, AskCopies(slots=bitmap_of(slots)), timeout_s=self._timeout_s)
        except AmberError:
            return None
        return {copy.slot: copy for copy in reply.copies} if isinstance(reply, CopiesReply) else None

    # -- deciding and doing

    def _decide(self, table: RouteTable, slot: int, copies: Mapping[str, CopyState]) -> Step:
        route, now_s = table.route(slot), self._clock.monotonic_s()
        waited_s = dict(self._silent_s)
        for member in (*route.voters, *route.next_voters, *route.learners):
            copy = copies.get(member.node)
            key = (slot, member.node)
            if copy is None or copy.incarnation == member.incarnation:
                self._other_s.pop(key, None)
                continue
            incarnation, since_s = self._other_s.get(key, ("", now_s))
            if incarnation != copy.incarnation:
                since_s = now_s
            self._other_s[key] = (copy.incarnation, since_s)
            waited_s[member.node] = now_s - since_s
        return decide(route, table.moves.get(slot), copies, waited_s, lost_s=self._lost_s)

    def _note(self, table: RouteTable, slot: int, step: Step, copies: Mapping[str, CopyState]) -> None:
        route = table.route(slot)
        old = set(route.voter_nodes)
        new = [copies[node] for node in route.all_nodes if node not in old and node in copies]
        self._facts[slot] = MoveFacts(
            slot=slot,
            stage=stage_of(route, table.moves.get(slot)),
            why=step.why if step.does == "wait" else "",
            wanted=sum(copy.wanted for copy in new),
            wanted_bytes=sum(copy.wanted_bytes for copy in new),
        )

    async def _do(self, table: RouteTable, slot: int, step: Step) -> None:
        """Change the route. Raises RegistryUnavailable: then it may be changed, and the table will tell."""
        changes, counts, epoch = self._changes, self.counts, table.route(slot).epoch
        match step.does:
            case "begin-joint":
                changed = await changes.begin_joint(slot, epoch)
            case "finish":
                changed = await changes.finish(slot, epoch)
            case "abort":
                changed = await changes.abort(slot, epoch)
            case "drop-learners":
                changed = await changes.drop_learners(slot, epoch, step.nodes)
            case "forget-move":
                changed = await changes.forget_move(slot, epoch)
            case "wait":
                raise AssertionError("nothing is done")
        if changed.route is not None and changed.route.epoch > epoch:
            self._changed[slot] = changed.route.epoch
        if changed.why:
            counts.lost_races += 1
            log.info("slot not moved", slot=slot, step=step.does, why=changed.why)
            return
        self._count(step)
        log.info("slot moved", slot=slot, step=step.does, why=step.why, epoch=_epoch_of(changed))

    def _count(self, step: Step) -> None:
        counts = self.counts
        counts.joints_begun += step.does == "begin-joint"
        counts.finished += step.does == "finish"
        counts.aborted += step.does == "abort"
        counts.learners_dropped += len(step.nodes)
        counts.moves_forgotten += step.does == "forget-move"


def _asks(table: RouteTable, slot: int) -> bool:
    """Whether what its copies tell matters: not while a node that is to hold it has yet to begin."""
    route = table.route(slot)
    return bool(route.learners) or stage_of(route, table.moves.get(slot)) != "waiting-for-node"


def _epoch_of(changed: Changed) -> int | None:
    return changed.route.epoch if changed.route is not None else None
