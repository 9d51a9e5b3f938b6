"""Finishes what operators' commands left undone (rfc/0013): plans whose writer died, and the registrations of removed nodes.

One node does it: the first by its name, of those that were not removed, that can be reached. When two do it at once, the
second finds it done.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from amberblob.clock import Clock
from amberblob.errors import AmberError, NotReady
from antientropy.step import Did, Wake
from node.moving import Plans
from node.routing import Routing
from registry.routes import NodeState, RouteTable

log = structlog.get_logger(__name__)

PATIENCE_S = 10.0
"""So long a plan is left to whoever writes it, and a removed node to the news of it."""

PAUSE_S = 5.0


class Caretaker:
    """A worker.

    Args:
        reachable: whether a node can be reached, as far as is known.
    """

    name = "caretaker"
    pause_s = PAUSE_S

    def __init__(self, routing: Routing, plans: Plans, clock: Clock, *, reachable: Callable[[str], bool]) -> None:
        self.wake = Wake()
        self._routing = routing
        self._plans = plans
        self._clock = clock
        self._reachable = reachable
        self._planning: tuple[int, float] | None = None
        """The generation that is being planned, and since when this node has known of it."""
        self._removed: tuple[tuple[str, ...], float] = ((), 0.0)

    async def step(self) -> Did:
        """Look once."""
        try:
            table = self._routing.table()
        except NotReady:
            return Did.NOTHING
        if table.membership is None:
            return Did.NOTHING
        now_s = self._clock.monotonic_s()
        due = [self._plan_is_due(table, now_s), self._sweep_is_due(table, now_s)]
        if not any(due) or not self._leads(table):
            return Did.NOTHING
        try:
            if due[0] and await self._plans.resume():
                log.warning("a plan that was left half written was finished")
            if due[1] and (swept := await self._plans.sweep_removed()):
                log.info("removed nodes forgotten", nodes=list(swept))
        except AmberError as error:
            log.info("operators' work not finished yet", error=str(error))
        return Did.NOTHING

    def _plan_is_due(self, table: RouteTable, now_s: float) -> bool:
        membership = table.membership
        if membership is None or not membership.planning:
            self._planning = None
            return False
        if self._planning is None or self._planning[0] != membership.generation:
            self._planning = (membership.generation, now_s)
        return now_s - self._planning[1] >= PATIENCE_S

    def _sweep_is_due(self, table: RouteTable, now_s: float) -> bool:
        removed = tuple(sorted(node for node in table.nodes if table.state_of(node) is NodeState.REMOVED))
        if removed:
            named = {node for route in table.routes for node in route.all_nodes}
            named.update(node for move in table.moves.values() for node in move.nodes)
            removed = tuple(node for node in removed if node not in named)
        if removed != self._removed[0]:
            self._removed = (removed, now_s)
        return bool(removed) and now_s - self._removed[1] >= PATIENCE_S

    def _leads(self, table: RouteTable) -> bool:
        for node in sorted(table.nodes):
            if table.state_of(node) is NodeState.REMOVED:
                continue
            if node == self._routing.node:
                return True
            if self._reachable(node):
                return False
        return False
