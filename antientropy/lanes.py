"""The four kinds of session that a node runs, one of each at a time (and several syncs): when one begins, and what becomes of its result."""

from __future__ import annotations

import asyncio
import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import structlog

from amberblob.clock import Randomness
from amberblob.errors import AmberError, ClusterError, PeerError
from antientropy.compare import Compared, compare
from antientropy.driving import Running, Unhurried, World
from antientropy.follow import Cursor, Followed, follow
from antientropy.ground import Ground, Naming, Pair, is_blank
from antientropy.needs import Steps
from antientropy.remake import remake
from antientropy.sync import Progress, SyncResult, sync

log = structlog.get_logger(__name__)

RETRY_FIRST_S = 10.0
"""When a slot is compared again that could not be mended; each time twice as long."""

RETRY_MAX_S = 60.0

SYNC_RETRY_S = 5.0
"""When a copy that cannot be filled now is tried again."""

SYNCS_AT_ONCE = 8
"""Copies that are filled at the same time while no client is served; each holds one page of another copy in memory."""

WRONG_MAX = 10_000
"""Damaged paths that wait. More are found again by the next scrub."""

REMAKE_FEW = 64
"""Paths of one session."""

T = TypeVar("T")


class Turns(Protocol):
    """Work that is done a turn at a time."""

    @property
    def hurried(self) -> bool:
        """Whether clients are better served by this being over soon than by its making room for them."""
        ...

    async def turn(self) -> bool:
        """Do a bounded piece of it; whether there was any."""
        ...


class Lane(ABC, Generic[T]):
    """One kind of session; at most one is under way."""

    hurried = False

    def __init__(self, ground: Ground, world: World) -> None:
        self._ground = ground
        self._world = world
        self._running: Running[T] | None = None

    @property
    def busy(self) -> bool:
        """Whether a session is under way."""
        return self._running is not None

    def now_s(self) -> float:
        """Monotonic time."""
        return self._world.clock.monotonic_s()

    async def turn(self) -> bool:
        """Begin a session if one is due, or meet one need of the one under way. Whether there was anything to do.

        Raises:
            StorageError, NotReady: the own disk, or there are no routes; the session has ended.
        """
        if self._running is None:
            session = self.begin()
            if session is None:
                return False
            self._running = Running(self._world, session)
        running = self._running
        if running.due_s > self.now_s():
            return False
        advanced = False
        try:
            await running.advance()
            advanced = True
        except (PeerError, ClusterError) as error:
            self._running = None
            self.failed(error)
            return True
        finally:
            if not advanced:
                self._running = None
        if running.over:
            self._running = None
            self.ended(running.result)
        return True

    @abstractmethod
    def begin(self) -> Steps[T] | None:
        """The session that is due; None: none is."""

    @abstractmethod
    def ended(self, result: T) -> None:
        """It came to its end."""

    @abstractmethod
    def failed(self, error: AmberError) -> None:
        """It could not go on."""


class Compares(Lane[dict[int, Compared]]):
    """All shared slots with every peer now and then; some of them at once when there is a reason."""

    def __init__(self, ground: Ground, world: World, every_s: float, randomness: Randomness) -> None:
        super().__init__(ground, world)
        self._every_s = every_s
        self._randomness = randomness
        self._due_s: dict[str, float] = {}
        self._wanted: dict[str, set[int]] = {}
        self._retries: dict[tuple[str, int], tuple[float, float]] = {}
        self._known: dict[str, set[int]] = {}
        self._peer = ""
        self._began_ms = 0
        self._pairs: dict[int, Pair] = {}

    def begin_at(self, peer: str, slots: set[int]) -> None:
        """The peer's log is followed from a head that was told by now, so these may be compared."""
        self._known.setdefault(peer, set()).update(slots)

    def want(self, peer: str, slots: set[int]) -> None:
        """Compare these with the peer at once."""
        if slots:
            self._wanted.setdefault(peer, set()).update(slots)

    def all_at(self, peer: str, due_s: float) -> None:
        """Compare all slots with the peer at that time, if not before."""
        self._due_s[peer] = min(due_s, self._due_s.get(peer, due_s))

    def begin(self) -> Steps[dict[int, Compared]] | None:
        now_s = self.now_s()
        for (peer, slot), (due_s, delay_s) in self._retries.items():
            if due_s <= now_s:
                self.want(peer, {slot})
                self._retries[peer, slot] = (float("inf"), delay_s)
        chosen = self._next(now_s)
        return self._begin(chosen, now_s) if chosen is not None else None

    def _begin(self, peer: str, now_s: float) -> Steps[dict[int, Compared]] | None:
        # Without a cursor what becomes chosen there meanwhile would be missed; follow comes first.
        known = self._known.get(peer, set())
        shared = {slot: v for slot, v in self._ground.shared().get(peer, {}).items() if slot in known}
        wanted = self._wanted.pop(peer, set())
        if self._due_s.get(peer, 0.0) > now_s:
            shared = {slot: voters for slot, voters in shared.items() if slot in wanted}
        else:
            self._due_s[peer] = now_s + self._every_s * (0.9 + 0.2 * self._randomness.fraction())
        if not shared:
            return None
        self._peer = peer
        self._began_ms = self._world.clock.wall_ms()
        self._pairs = {slot: self._ground.pair(slot, peer) for slot in shared}
        return compare(self._ground.node, peer, shared)

    def _next(self, now_s: float) -> str | None:
        """The peer whose turn it is."""
        ready = [
            peer
            for peer in self._known
            if (self._wanted.get(peer) or self._due_s.get(peer, 0.0) <= now_s) and self._ground.places.reachable(peer)
        ]
        return min(ready, key=lambda peer: (self._due_s.get(peer, 0.0), peer), default=None)

    def ended(self, result: dict[int, Compared]) -> None:
        peer = self._peer
        paths = sum(one.paths for one in result.values())
        why = {slot: one.why for slot, one in result.items() if one.why}
        for slot, one in result.items():
            if one.why:
                self._again_later(peer, slot)
            else:
                self._retries.pop((peer, slot), None)
                self._ground.lacks_nothing(slot, peer, self._pairs[slot], self._began_ms)
        if paths or why:
            log.info(
                "compared",
                peer=peer,
                slots=len(result),
                paths=paths,
                unmended=len(why),
                why=next(iter(why.values()), ""),
            )

    def _again_later(self, peer: str, slot: int) -> None:
        _, delay_s = self._retries.get((peer, slot), (0.0, RETRY_FIRST_S / 2))
        delay_s = min(2 * delay_s, RETRY_MAX_S, self._every_s)
        self._retries[peer, slot] = (self.now_s() + delay_s, delay_s)

    def failed(self, error: AmberError) -> None:
        log.info("compare failed", peer=self._peer, error=str(error))
        self.all_at(self._peer, self.now_s() + RETRY_FIRST_S)


class Follows(Lane[Followed]):
    """Every peer's logs, one peer after the other, every few seconds."""

    def __init__(self, ground: Ground, world: World, compares: Compares, every_s: float) -> None:
        super().__init__(ground, world)
        self._compares = compares
        self._every_s = every_s
        self._due_s = 0.0
        self._queue: list[str] = []
        self._cursors: dict[str, Mapping[int, Cursor]] = {}
        self._peer = ""

    def now(self) -> None:
        """Follow all of them at once."""
        self._due_s = 0.0

    def begin(self) -> Steps[Followed] | None:
        if not self._queue:
            if self._due_s > self.now_s():
                return None
            self._due_s = self.now_s() + self._every_s
            self._queue = sorted(self._ground.shared(), reverse=True)
        while self._queue:
            peer = self._queue.pop()
            if not self._ground.places.reachable(peer):
                continue
            slots = {slot: voters[peer] for slot, voters in self._ground.shared().get(peer, {}).items()}
            if slots:
                self._peer = peer
                return follow(peer, slots, self._cursors.get(peer, {}))
        return None

    def _over(self) -> None:
        # Counted from the end: peers that take long to answer, or never do, must not keep this lane busy all the time.
        if not self._queue:
            self._due_s = self.now_s() + self._every_s

    def ended(self, result: Followed) -> None:
        self._over()
        self._cursors[self._peer] = result.cursors
        self._compares.begin_at(self._peer, set(result.cursors))
        self._compares.want(self._peer, result.compare)
        if result.paths:
            log.debug("followed", peer=self._peer, paths=result.paths)

    def failed(self, error: AmberError) -> None:
        self._over()
        log.debug("follow failed", peer=self._peer, error=str(error))


class Remakes(Lane[dict[str, str]]):
    """Paths that failed their check here."""

    def __init__(self, ground: Ground, world: World) -> None:
        super().__init__(ground, world)
        self._wrong: OrderedDict[tuple[int, str], None] = OrderedDict()
        self._slot = 0

    @property
    def waiting(self) -> int:
        """How many damaged paths are still to be looked at."""
        return len(self._wrong)

    def found(self, slot: int, path: str) -> None:
        """The own path is not what its digest was made of."""
        if len(self._wrong) < WRONG_MAX:
            self._wrong[slot, path] = None

    def begin(self) -> Steps[dict[str, str]] | None:
        if not self._wrong:
            return None
        self._slot = next(iter(self._wrong))[0]
        keys = [key for key in self._wrong if key[0] == self._slot][:REMAKE_FEW]
        for key in keys:
            del self._wrong[key]
        if not self._ground.counts(self._slot):
            return None
        voters = self._ground.places.voters(self._slot)
        return remake(self._ground.node, self._slot, [path for _, path in keys], voters, trusted=False)

    def ended(self, result: dict[str, str]) -> None:
        for path, why in result.items():
            log.warning("damaged path not mended", slot=self._slot, path=path, why=why)

    def failed(self, error: AmberError) -> None:
        log.warning("damaged paths not mended", slot=self._slot, error=str(error))


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
