"""Which slots are compared with whom, and when."""

from __future__ import annotations

import structlog

from amberblob.clock import Randomness
from amberblob.errors import AmberError
from antientropy.compare import Compared, compare
from antientropy.driving import World
from antientropy.ground import Ground, Pair
from antientropy.lanes.lane import Lane
from antientropy.needs import Steps

log = structlog.get_logger(__name__)

RETRY_FIRST_S = 10.0
"""When a slot is compared again that could not be mended; each time twice as long."""

RETRY_MAX_S = 60.0


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
