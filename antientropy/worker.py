"""The worker that keeps this node's copies equal to the others': which session runs when.

Four lanes, the first that has something to do has the turn: *follow* (short, every few seconds), *remake* (paths that were
found damaged here), *sync* (copies that began blank have no vote before), *compare*. A step meets one need of one session.
A lane that waited long for a peer that does not answer is last for as long as it kept the others waiting.

Compares happen soon after the start, when a peer comes back (a little later: who was away has more to find, and
begins at once), when follow cannot go on, when somebody asks, and every ten minutes. What could not be mended is tried again
sooner than that, at growing intervals, up to a minute.
"""

from __future__ import annotations

from collections.abc import Callable

from amberblob.clock import Clock, Randomness
from amberblob.errors import NotReady
from amberblob.mutations import Installed
from antientropy.driving import Again, Call, Costs, Finish, Pace, World, nobody
from antientropy.ground import Ground, Places
from antientropy.lanes.compares import Compares
from antientropy.lanes.follows import Follows
from antientropy.lanes.lane import Turns
from antientropy.lanes.remakes import Remakes
from antientropy.lanes.syncs import Syncs
from antientropy.step import Did, Wake
from chunkstore.interface import ReplicaStore

FOLLOW_EVERY_S = 5.0
COMPARE_EVERY_S = 600.0

BACK_AFTER_S = 5.0
"""How long a peer that came back is left to itself before it is compared with; twice that at most."""

LOOK_EVERY_S = 1.0

LONG_S = 1.0
"""A turn that took longer than this waited for a peer."""


class Repairer:
    """A worker over all slots of this node.

    Args:
        call: asks another node.
        settle: finishes what may be chosen of a path (slot, path) with an ordinary round.
        refresh: proposes again, above all floors, what a node has of a path.
        installed: told of everything that was taken over; it must not raise.
        follow_every_s, compare_every_s: how often.

    Attributes:
        costs: what the sessions cost since the start.
    """

    name = "anti-entropy"
    pause_s = 1.0

    def __init__(
        self,
        *,
        places: Places,
        store: ReplicaStore,
        call: Call,
        settle: Finish,
        refresh: Again,
        pace: Pace,
        clock: Clock,
        randomness: Randomness,
        installed: Callable[[Installed], None] = nobody,
        follow_every_s: float = FOLLOW_EVERY_S,
        compare_every_s: float = COMPARE_EVERY_S,
    ) -> None:
        self.wake = Wake()
        self.costs = Costs()
        self._ground = Ground(places, store, clock)
        self._clock = clock
        self._pace = pace
        self._randomness = randomness
        world = World(
            store=store,
            call=call,
            belongs=places.belongs,
            settle=settle,
            refresh=refresh,
            pace=pace,
            clock=clock,
            costs=self.costs,
            installed=installed,
        )
        self._compares = Compares(self._ground, world, compare_every_s, randomness)
        self._follows = Follows(self._ground, world, self._compares, follow_every_s)
        self._remakes = Remakes(self._ground, world)
        self._syncs = Syncs(self._ground, world, self._compares)
        lanes: tuple[Turns, ...] = (self._follows, self._remakes, self._syncs, self._compares)
        self._last_until_s = dict.fromkeys(lanes, float("-inf"))
        self._looked_s = float("-inf")
        self._away: set[str] = set()

    async def step(self) -> Did:
        """Meet one need of the session whose turn it is, or begin one.

        Raises:
            StorageError: the own disk does not do what it should.
        """
        try:
            self._look_around()
            look_s = self._clock.monotonic_s()
            for lane in sorted(self._last_until_s, key=lambda lane: self._last_until_s[lane] > look_s):
                began_s = self._clock.monotonic_s()
                if await lane.turn():
                    now_s = self._clock.monotonic_s()
                    took_s = now_s - began_s
                    if took_s > LONG_S:
                        self._last_until_s[lane] = now_s + took_s
                    if not lane.hurried:
                        await self._pace.rest(took_s)
                    return Did.WORK
        except NotReady:
            # No routes yet: there is nobody to compare with.
            pass
        return Did.NOTHING

    def _look_around(self) -> None:
        """Notice who comes back."""
        now_s = self._clock.monotonic_s()
        if now_s < self._looked_s + LOOK_EVERY_S:
            return
        self._looked_s = now_s
        for peer in self._ground.shared():
            if not self._ground.places.reachable(peer):
                self._away.add(peer)
            elif peer in self._away:
                self._away.discard(peer)
                self._compares.all_at(peer, now_s + BACK_AFTER_S * (1.0 + self._randomness.fraction()))

    def heal_now(self) -> None:
        """Compare all copies with all others at once, and try again what could not be done."""
        now_s = self._clock.monotonic_s()
        for peer in self._ground.shared():
            self._compares.all_at(peer, now_s)
        self._follows.now()
        self._syncs.now()
        self.wake.set()

    def compare_soon(self, slot: int) -> None:
        """Compare one slot with all others at once: somebody saw that it lacks something."""
        for peer, slots in self._ground.shared().items():
            if slot in slots:
                self._compares.want(peer, {slot})
        self.wake.set()

    def found_wrong(self, slot: int, path: str) -> None:
        """The own path is not what its digest was made of: have it mended from the others."""
        self._remakes.found(slot, path)
        self.wake.set()

    @property
    def wrong(self) -> int:
        """How many paths that were found damaged here wait to be mended."""
        return self._remakes.waiting

    def compared_ms(self, slot: int) -> int:
        """When the own copy was last known to lack nothing that any other voter had (epoch ms); 0: never since the start.

        The oldest over the other voters. A copy that is the only one lacks nothing now.
        """
        return self._ground.compared_ms(slot)

    def unsynced_why(self, slot: int) -> str:
        """Why a blank copy could not be filled when that was last tried; empty: it was not tried, or is filled."""
        return self._syncs.why(slot)
