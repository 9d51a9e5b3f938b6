"""Lets go of versions whose retention is over, and of deleted paths of which nothing is left.

Of each slot one node looks: the first of its voters, in the route's order, that can be reached. What the policy
(:mod:`antientropy.retention`) names is proposed as an ordinary round of the path, so that all copies let go of the same. When
two nodes look at once, as they may while a connection is down, the second round finds nothing left to do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from amberblob.clock import Clock
from amberblob.errors import AmberError, NotReady
from antientropy.rest import Rest
from antientropy.retention import Retention
from antientropy.step import Did, Wake
from chunkstore.interface import History, ReplicaStore
from node.coordinator import Coordinator
from node.protocol.operations import Expire
from node.routing import Routing

log = structlog.get_logger(__name__)

PAGE_PATHS = 200
AT_ONCE_MAX = 8
REST_PER_ROUND_TIME = 3.0
"""After a batch of rounds the worker rests this many times as long as they took."""
REST_PER_LOOK_TIME = 9.0
REST_MAX_S = 5.0
SOON_S = 1.0


@dataclass(slots=True)
class ExpiryCounts:
    """What was done since the start; each only grows."""

    paths_looked_at: int = 0
    paths_expired: int = 0
    stubs_collected: int = 0
    failures: int = 0


class Expirer:
    """A worker.

    Args:
        reachable: whether a node can be reached, as far as is known.
        every_s: between the beginnings of two searches.
    """

    name = "expirer"

    def __init__(
        self,
        coordinator: Coordinator,
        routing: Routing,
        store: ReplicaStore,
        clock: Clock,
        *,
        reachable: Callable[[str], bool],
        retention: Retention,
        every_s: float,
    ) -> None:
        self.wake = Wake()
        self.pause_s = SOON_S
        self.counts = ExpiryCounts()
        self._coordinator = coordinator
        self._routing = routing
        self._store = store
        self._clock = clock
        self._reachable = reachable
        self._retention = retention
        self._every_s = every_s
        self._next_s = float("-inf")
        self._rest = Rest(clock, max_s=REST_MAX_S)
        self._slots: deque[int] = deque()
        self._after: str | None = ""
        self._found: deque[History] = deque()

    async def step(self) -> Did:
        """Read a page of paths, or write what is due for a few of them; or rest."""
        now_s = self._clock.monotonic_s()
        if (rest_s := self._rest.left_s(now_s)) > 0:
            return self._pause(rest_s)
        if not self._slots:
            if now_s < self._next_s:
                return self._pause(self._next_s - now_s)
            try:
                self._begin(now_s)
            except NotReady:
                return self._pause(SOON_S)
            return Did.WORK
        slot = self._slots[0]
        if not self._looks_after(slot) or (self._after is None and not self._found):
            self._slots.popleft()
            self._after = ""
            self._found.clear()
        elif self._found:
            batch = [self._found.popleft() for _ in range(min(AT_ONCE_MAX, len(self._found)))]
            await asyncio.gather(*(self._write(slot, history) for history in batch))
            self._rest.begin(now_s, REST_PER_ROUND_TIME)
        elif self._after is not None:
            await self._look(slot, self._after)
            self._rest.begin(now_s, REST_PER_LOOK_TIME)
        return Did.WORK

    def _pause(self, seconds: float) -> Did:
        self.pause_s = seconds
        return Did.NOTHING

    def _begin(self, now_s: float) -> None:
        here = self._store.slots()
        self._routing.table()
        self._slots.extend(slot for slot in here if self._looks_after(slot))
        self._next_s = now_s + self._every_s

    def _looks_after(self, slot: int) -> bool:
        """Whether this node's copy counts, and no voter before it in the route can be reached."""
        if self._routing.mute(self._store.slot_state(slot)) is not None:
            return False
        for node in self._routing.electorate(slot).voters:
            if node == self._routing.node:
                return True
            if self._reachable(node):
                return False
        return False

    async def _look(self, slot: int, after: str) -> None:
        page, self._after = await self._store.histories(slot, after, PAGE_PATHS)
        self.counts.paths_looked_at += len(page)
        now_ms = self._now_ms()
        self._found.extend(
            history
            for history in page
            if self._retention.nominated(history, now_ms) or self._retention.stub_may_go(history, now_ms)
        )

    async def _write(self, slot: int, history: History) -> None:
        electorate, path, now_ms = self._routing.electorate(slot), history.path, self._now_ms()
        versions = self._retention.nominated(history, now_ms)
        live = history.record.live if history.record is not None else ()
        try:
            if versions:
                await self._coordinator.write(electorate, path, Expire(versions=versions, live=live))
                self.counts.paths_expired += 1
            elif self._retention.stub_may_go(history, now_ms):
                self.counts.stubs_collected += await self._coordinator.collect_stub(electorate, path)
        except AmberError as error:
            # The next search finds it again.
            self.counts.failures += 1
            log.info("not expired", path=path, error=str(error))

    def _now_ms(self) -> int:
        """The time that versions and deletes are dated by."""
        return self._coordinator.clock.now_ms()
