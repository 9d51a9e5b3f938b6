"""Which copies are filled, several at a time, and when."""

from __future__ import annotations

import asyncio
import heapq
from dataclasses import dataclass, replace

import structlog

from amberblob.errors import ClusterError, PeerError
from antientropy.driving import Running, Unhurried, World
from antientropy.ground import Ground, Naming, is_blank
from antientropy.lanes.compares import Compares
from antientropy.needs import Steps
from antientropy.sync import Progress, SyncResult, sync

log = structlog.get_logger(__name__)

SYNC_RETRY_S = 5.0
"""When a copy that cannot be filled now is tried again."""

SYNCS_AT_ONCE = 8
"""Copies that are filled at the same time while no client is served; each holds one page of another copy in memory."""


@dataclass(slots=True)
class _Filling:
    """A copy that is to be filled, and in or after which epoch: ``progress.since``."""

    progress: Progress
    joins: bool = False
    """Its slot moves, and needs majorities of both sets until this is done: it comes first."""
    due_s: float = 0.0
    why: str = ""
    running: Running[SyncResult] | None = None


class Syncs:
    """Copies that are to be filled, several slots at a time: filling one is mostly waiting for disks and peers.

    Those are voters and learners that began blank, and, while a slot moves, the members of its new set.
    """

    def __init__(self, ground: Ground, world: World, compares: Compares) -> None:
        self._ground = ground
        self._world = world
        self._hurried_world = replace(world, pace=Unhurried())
        self._compares = compares
        self._fillings: dict[int, _Filling] = {}
        self._looked_s = float("-inf")

    @property
    def hurried(self) -> bool:
        """Whether a slot waits for this in its joint epoch. That costs clients two majorities: it is over sooner if they are not yielded to."""
        return any(filling.joins and filling.running is not None for filling in self._fillings.values())

    def why(self, slot: int) -> str:
        """Why a copy could not be filled when last tried; empty: it was not tried, or is filled."""
        known = self._fillings.get(slot)
        return known.why if known is not None else ""

    def now(self) -> None:
        """Try all of them at once."""
        self._looked_s = float("-inf")
        for filling in self._fillings.values():
            filling.due_s = 0.0

    async def turn(self) -> bool:
        """Meet one need of each session under way, after beginning those that are due. Whether there was anything to do.

        Raises:
            StorageError, NotReady: the own disk, or there are no routes; the sessions that met it have ended.
        """
        now_s = self._world.clock.monotonic_s()
        self._begin(now_s)
        ready = [
            (slot, filling, filling.running)
            for slot, filling in self._fillings.items()
            if filling.running is not None and filling.running.due_s <= now_s
        ]
        outcomes = await asyncio.gather(*(self._advance(*one) for one in ready), return_exceptions=True)
        for outcome in outcomes:
            if outcome is not None:
                raise outcome
        return bool(ready)

    def _begin(self, now_s: float) -> None:
        if now_s >= self._looked_s + 1.0:
            self._looked_s = now_s
            self._look()
        running = sum(filling.running is not None for filling in self._fillings.values())
        if running >= SYNCS_AT_ONCE:
            return
        due = [
            (not one.joins, one.due_s, slot)
            for slot, one in self._fillings.items()
            if one.running is None and one.due_s <= now_s
        ]
        for waits, _, slot in heapq.nsmallest(SYNCS_AT_ONCE - running, due):
            filling = self._fillings[slot]
            if waits and running and self._world.pace.busy:
                return
            running += 1
            wanted = self._ground.to_fill(slot)
            if wanted is None or wanted[0].incarnation != filling.progress.incarnation:
                # The route, or the copy, changed since the last look.
                self._looked_s = float("-inf")
                continue
            naming, filling.progress.since = wanted
            world = self._hurried_world if filling.joins else self._world
            filling.running = Running(world, self._session(filling.progress, naming))

    def _session(self, progress: Progress, naming: Naming) -> Steps[SyncResult]:
        ground, slot = self._ground, progress.slot
        # Not all copies of a node from the same peer.
        others = sorted(naming.sources)
        turned = [others[(at + slot) % len(others)] for at in range(len(others))]
        order = sorted(turned, key=lambda peer: not ground.places.reachable(peer))
        counts = ground.node in naming.sources and not is_blank(naming, ground.store.slot_state(slot))
        return sync(ground.node, progress, naming.epoch, naming.sources, order, counts=counts)

    def _look(self) -> None:
        """Which copies are to be filled now; what was read for one stays with it, and so does what is under way."""
        found = {slot: filling for slot, filling in self._fillings.items() if filling.running is not None}
        places = self._ground.places
        for slot in (*places.slots(), *places.learning()):
            wanted = None if slot in found else self._ground.to_fill(slot)
            if wanted is None:
                continue
            naming, needed = wanted
            known = self._fillings.get(slot)
            if known is None or known.progress.incarnation != naming.incarnation:
                known = _Filling(Progress(slot, naming.incarnation, needed))
            elif known.progress.since != needed:
                # What was in the way before need not be now.
                known.due_s = 0.0
            known.joins = naming.joins
            found[slot] = known
        self._fillings = found

    async def _advance(self, slot: int, filling: _Filling, running: Running[SyncResult]) -> None:
        try:
            await running.advance()
        except (PeerError, ClusterError) as error:
            self._ended(slot, filling, SyncResult(why=str(error)))
        except BaseException:
            filling.running = None
            raise
        else:
            if running.over:
                self._ended(slot, filling, running.result)

    def _ended(self, slot: int, filling: _Filling, result: SyncResult) -> None:
        filling.running = None
        if result.why:
            filling.why = result.why
            filling.due_s = self._world.clock.monotonic_s() + SYNC_RETRY_S
            log.info("copy not filled yet", slot=slot, why=result.why)
            return
        if self._fillings.get(slot) is filling:
            del self._fillings[slot]
        taken = filling.progress.taken
        log.info("copy filled", slot=slot, epoch=filling.progress.since, paths=taken.paths, bytes=taken.size_bytes)
        if slot not in self._ground.places.slots():
            return
        for peer in self._ground.places.voters(slot):
            if peer != self._ground.node:
                self._compares.want(peer, {slot})
