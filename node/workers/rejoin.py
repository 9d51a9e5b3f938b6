"""Has the routes name the copies that this node has now, when they are not the ones that it had (rfc/0012).

A copy is another one when its slot database was lost, when the disk was replaced by an empty one, and when an old disk came
back after another had taken its place. Nobody counts such a copy and it answers nothing. Here it begins blank and is named
in the route; from then on it is filled from a majority (:mod:`antientropy`), and has a vote again once it is.

What is blank is decided here and not believed: a copy that holds anything began when another was a voter in its place, and may
remember what all the others were allowed to forget since. It is put aside, and a fresh one is named.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Protocol

import structlog

from amberblob.errors import RegistryUnavailable
from antientropy.step import Did, Wake
from chunkstore.interface import ReplicaStore
from node.epochs import seen_epoch
from node.routing import Routing
from registry.readmit import IncarnationOf, Readmission
from registry.routes import RouteTable

log = structlog.get_logger(__name__)


class Readmit(Protocol):
    """Changes this node's own routes: :func:`registry.readmit.readmit` with the node's own registry."""

    async def __call__(
        self, slots: Collection[int], incarnation_of: IncarnationOf, *, seen_epoch: Callable[[int], int]
    ) -> Readmission: ...


class Rejoin:
    """A worker over the slots whose route names this node with a copy that it does not have.

    Args:
        readmit: the way to the registry.
        pause_s: how often to look whether a slot was lost.
    """

    name = "rejoin"

    def __init__(self, store: ReplicaStore, routing: Routing, readmit: Readmit, *, pause_s: float = 1.0) -> None:
        self.wake = Wake()
        self.pause_s = pause_s
        self._store = store
        self._routing = routing
        self._readmit = readmit
        self._refused: dict[int, RouteTable] = {}

    def strangers(self) -> list[int]:
        """The slots whose route names this node as a voter with another copy, ascending. Empty while there are no routes."""
        state_of = self._store.slot_state
        own = self._routing.own_votes()
        return sorted(slot for slot, member in own.items() if member.incarnation != state_of(slot).incarnation)

    async def step(self) -> Did:
        """Have all of them named that the registry lets be named; what it does not is looked at again after the next change."""
        if self._store.failed is not None or self._store.full:
            return Did.NOTHING  # a copy that cannot be filled is not to be waited for
        slots = self.strangers()
        if not slots:
            self._refused.clear()
            return Did.NOTHING
        table = self._routing.table()
        slots = [slot for slot in slots if self._refused.get(slot) is not table]
        if not slots:
            return Did.NOTHING
        try:
            result = await self._readmit(
                slots, self._incarnation_of, seen_epoch=partial(seen_epoch, self._routing, self._store)
            )
        except RegistryUnavailable as error:
            log.info("copies not readmitted yet", slots=len(slots), error=str(error))
            return Did.NOTHING
        for slot, why in result.refused.items():
            self._refused[slot] = table
            log.warning("copy not readmitted", slot=slot, why=why)
        # Those that are named now: the routes say so as soon as this node sees them.
        return Did.NOTHING

    async def _incarnation_of(self, slot: int, named: str) -> str:
        incarnation = self._store.slot_state(slot).incarnation
        return incarnation if incarnation == named else await self._store.begin_anew(slot)
