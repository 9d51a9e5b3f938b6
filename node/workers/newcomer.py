"""Names this node's own blank copies as learners of the slots that are to move here (rfc/0013).

A copy is begun anew, durably, before a route names it, so that nothing it held before is ever taken for what its slot remembers.
From then on it is filled from a majority (:mod:`antientropy`); the slot's leader (:mod:`node.workers.mover`) makes it a voter.
A learner whose copy was lost is named anew in the same way.
"""

from __future__ import annotations

from functools import partial

import structlog

from amberblob.errors import NotReady, RegistryUnavailable
from antientropy.step import Did, Wake
from chunkstore.interface import ReplicaStore
from node.epochs import seen_epoch
from node.moving import RouteChanges
from node.routing import Routing
from registry.routes import Move, Route, RouteTable

log = structlog.get_logger(__name__)

AT_ONCE_MAX = 16
"""So many slots are taken in at a time: they share the pace of repair, and few that become whole soon are worth more than many
that do late."""

Seen = tuple[int, Move | None]
"""The epoch of a slot's route, and its move."""


class Newcomer:
    """A worker over the slots whose move names this node, and whose route does not.

    Args:
        changes: the way to the registry.
        pause_s: how often to look.
    """

    name = "newcomer"

    def __init__(self, store: ReplicaStore, routing: Routing, changes: RouteChanges, *, pause_s: float = 1.0) -> None:
        self.wake = Wake()
        self.pause_s = pause_s
        self._store = store
        self._routing = routing
        self._changes = changes
        self._named: dict[int, int] = {}
        """Slots that were changed by this node, with the epoch of the change, until the table shows it."""
        self._begun: dict[int, tuple[str, Seen]] = {}
        """The copies that were begun here to be named, by incarnation, with what was seen then."""
        self._refused: dict[int, Seen] = {}
        """Slots that the registry did not let be named, with what was seen then: there is no use in asking before that changes."""

    async def step(self) -> Did:
        """Name what is due. What the registry refuses is looked at again once its route or its move has changed."""
        if self._store.failed is not None or self._store.full:
            return Did.NOTHING  # a copy that cannot be filled is not to be waited for
        try:
            table = self._routing.table()
        except NotReady:
            return Did.NOTHING
        self._named = {slot: epoch for slot, epoch in self._named.items() if table.route(slot).epoch < epoch}
        self._begun = {slot: begun for slot, begun in self._begun.items() if _seen(table, slot) == begun[1]}
        self._refused = {slot: seen for slot, seen in self._refused.items() if _seen(table, slot) == seen}
        for slot in self.due(table):
            if _seen(self._routing.table(), slot) != _seen(table, slot):
                continue  # there was news while the others were named
            try:
                incarnation = await self._begin(table, slot)
                changed = await self._changes.name_learner(
                    slot, incarnation, seen_epoch=partial(seen_epoch, self._routing, self._store)
                )
            except RegistryUnavailable as error:
                log.info("copy not named yet", slot=slot, error=str(error))
                return Did.NOTHING
            if changed.route is not None and changed.route.epoch > table.route(slot).epoch:
                self._named[slot] = changed.route.epoch
            if changed.why:
                self._refused[slot] = _seen(table, slot)
                log.info("copy not named", slot=slot, why=changed.why)
            else:
                log.info("copy named as a learner", slot=slot, incarnation=incarnation)
        return Did.NOTHING  # the routes say so as soon as this node sees them

    async def _begin(self, table: RouteTable, slot: int) -> str:
        """Begin a copy that no route has named; its incarnation. One that was begun for this and could not be named will do again.

        A copy that is blank is not enough: by a route of the past, that this node may find in its cache after a restart, it may have been a
        voter, or a learner that is to be filled. By that it would hear of what all others have forgotten since.
        """
        incarnation, seen = self._begun.get(slot, ("", None))
        if seen != _seen(table, slot) or incarnation != self._store.slot_state(slot).incarnation:
            incarnation = await self._store.begin_anew(slot, fresh=True)
            self._begun[slot] = incarnation, _seen(table, slot)
        return incarnation

    def due(self, table: RouteTable) -> list[int]:
        """The slots to name a copy for now, ascending, as many as there is room for."""
        node = self._routing.node
        wanted = sorted(slot for slot, move in table.moves.items() if node in move.nodes)
        if not wanted:
            return []
        arriving = self.arriving(table)
        due = [slot for slot in wanted if slot not in arriving and self._may_be_named(table, slot)]
        return due[: max(0, AT_ONCE_MAX - len(arriving))]

    def arriving(self, table: RouteTable) -> set[int]:
        """The slots that are being taken in: with the copy here as a learner, or as a new voter of a joint route."""
        node = self._routing.node
        arriving = set(self._named)
        for route in table.routes:
            if node not in route.voter_nodes:
                new = (*route.learners, *route.next_voters)
                if any(member.node == node for member in new) and not self._lost_learner(route):
                    arriving.add(route.slot)
        return arriving

    def _may_be_named(self, table: RouteTable, slot: int) -> bool:
        route = table.route(slot)
        return (
            route.state == "stable"
            and self._routing.node not in route.voter_nodes
            and self._refused.get(slot) != _seen(table, slot)
            # A copy here that saw a newer route than this node did may have a vote in that: every copy that is given one
            # was filled in the epoch in which it was named, or a later one.
            and self._store.slot_state(slot).epoch <= route.epoch
        )

    def _lost_learner(self, route: Route) -> bool:
        """Whether the learner that is named here is not the copy that is here. In a joint route only the leader can help that."""
        here = self._store.slot_state(route.slot).incarnation
        return any(member.node == self._routing.node and member.incarnation != here for member in route.learners)


def _seen(table: RouteTable, slot: int) -> Seen:
    return table.route(slot).epoch, table.moves.get(slot)
