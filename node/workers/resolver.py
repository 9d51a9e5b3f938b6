"""Finishes what a dead coordinator left: records accepted here that nobody told to be chosen.

Each is given time to be decided the ordinary way; then this node runs an ordinary round that writes nothing new.
The other copies of the slot do the same, so the delay has jitter, and whoever comes first tells the others.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from amberblob.clock import Clock, Randomness
from amberblob.errors import ClusterError
from antientropy.step import Did, Wake
from chunkstore.interface import ReplicaStore
from node.coordinator import Coordinator
from node.protocol.operations import Finish
from node.routing import Routing

DELAY_S = 4.0
JITTER_S = 8.0
RETRY_S = 30.0
TRACKED_MAX = 100_000


class Resolver:
    """A worker over the paths that :meth:`accepted` and :meth:`decided` tell about, and those found at start."""

    name = "resolver"
    pause_s = 1.0

    def __init__(
        self, coordinator: Coordinator, routing: Routing, store: ReplicaStore, clock: Clock, randomness: Randomness
    ) -> None:
        self.wake = Wake()
        self._coordinator = coordinator
        self._routing = routing
        self._store = store
        self._clock = clock
        self._randomness = randomness
        self._due: OrderedDict[tuple[int, str], float] = OrderedDict()
        self._unscanned: list[int] | None = None
        self._overflowed = False

    def accepted(self, slot: int, path: str) -> None:
        """A record was accepted here and is not known to be chosen."""
        if len(self._due) >= TRACKED_MAX and (slot, path) not in self._due:
            # It stays undecided on disk; once there is room, the slots are looked through again.
            self._overflowed = True
            return
        due_s = self._clock.monotonic_s() + DELAY_S + JITTER_S * self._randomness.fraction()
        self._due[slot, path] = due_s
        self._due.move_to_end((slot, path))

    def decided(self, slot: int, path: str) -> None:
        """It is chosen."""
        self._due.pop((slot, path), None)

    def hurry(self) -> None:
        """Finish all of them now: somebody waits until everything is decided."""
        now_s = self._clock.monotonic_s()
        for key, due_s in self._due.items():
            self._due[key] = min(due_s, now_s)
        self.wake.set()

    @property
    def waiting(self) -> int:
        """How many paths are not known to be decided here."""
        return len(self._due)

    def undecided_by_slot(self) -> Counter[int]:
        """The same by slot."""
        return Counter(slot for slot, _ in self._due)

    async def step(self) -> Did:
        """Resolve one path that is due, or look through one slot for what a restart left."""
        room = len(self._due) < TRACKED_MAX
        if self._unscanned is None or (self._overflowed and not self._due and not self._unscanned):
            self._unscanned, self._overflowed = self._store.slots(), False
        if self._unscanned and room:
            slot = self._unscanned.pop()
            for path in await self._store.undecided(slot):
                if (slot, path) not in self._due:
                    self.accepted(slot, path)
            return Did.WORK
        now_s = self._clock.monotonic_s()
        # In order of arrival, with jitter: the first few are enough to look at.
        for key, due_s in list(self._due.items())[:64]:
            if due_s <= now_s:
                await self._resolve(*key)
                return Did.WORK
        return Did.NOTHING

    async def _resolve(self, slot: int, path: str) -> None:
        register = await self._store.load(slot, path)
        if register.chosen or register.accepted is None or not self._routing.is_member(slot):
            self.decided(slot, path)
            return
        try:
            await self._coordinator.write(self._routing.electorate(slot), path, Finish(), hear=self._routing.node)
        except ClusterError:
            self._due[slot, path] = self._clock.monotonic_s() + RETRY_S
            self._due.move_to_end((slot, path))
            return
        # Our own LEARN marks it here soon; should that get lost, the next round of waiting sees to it.
        self._due[slot, path] = self._clock.monotonic_s() + RETRY_S
        self._due.move_to_end((slot, path))
