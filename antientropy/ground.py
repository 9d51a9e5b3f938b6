"""Where repair takes place: which copies there are, and what is known of how they compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from amberblob.clock import Clock
from chunkstore.interface import ReplicaStore

Pair = tuple[str, str]
"""The incarnations of two copies of a slot, the own one first."""


class Places(Protocol):
    """What this node knows of who holds what; always the newest. Methods raise NotReady before the first routes."""

    @property
    def node(self) -> str:
        """This node's id."""
        ...

    def slots(self) -> Iterable[int]:
        """The slots whose route names this node as a voter, whichever copy it names."""
        ...

    def voters(self, slot: int) -> Mapping[str, str]:
        """Node to incarnation, this node included."""
        ...

    def epoch(self, slot: int) -> int:
        """The route's epoch."""
        ...

    def since(self, slot: int) -> int:
        """The epoch in which the own copy was first named."""
        ...

    def belongs(self, slot: int, path: str) -> bool:
        """Whether a path belongs to a slot."""
        ...

    def reachable(self, node: str) -> bool:
        """Whether there is a connection. A hint."""
        ...


class Ground:
    """The own copies and the others of the same slots."""

    def __init__(self, places: Places, store: ReplicaStore, clock: Clock) -> None:
        self.places = places
        self.store = store
        self.clock = clock
        self._compared: dict[tuple[int, str], tuple[Pair, int]] = {}

    @property
    def node(self) -> str:
        """This node's id."""
        return self.places.node

    def is_named(self, slot: int) -> bool:
        """Whether the route names the copy that is here, not one that was lost."""
        return self.places.voters(slot).get(self.node) == self.store.slot_state(slot).incarnation

    def is_blank(self, slot: int) -> bool:
        """Whether the copy that is here began blank and was not filled since."""
        since = self.places.since(slot)
        return since > 1 and self.store.slot_state(slot).synced_epoch < since

    def counts(self, slot: int) -> bool:
        """Whether the copy that is here has a vote."""
        return self.is_named(slot) and not self.is_blank(slot)

    def shared(self) -> dict[str, dict[int, Mapping[str, str]]]:
        """By peer: the slots of which both it and this node hold a copy that counts (here), with their voters."""
        found: dict[str, dict[int, Mapping[str, str]]] = {}
        for slot in self.places.slots():
            if self.counts(slot):
                voters = self.places.voters(slot)
                for peer in voters:
                    if peer != self.node:
                        found.setdefault(peer, {})[slot] = voters
        return found

    def lacks_nothing(self, slot: int, peer: str, pair: Pair, at_ms: int) -> None:
        """A compare of this pair that began at ``at_ms`` (epoch ms) left nothing that the peer had and this copy has not."""
        self._compared[slot, peer] = (pair, at_ms)

    def pair(self, slot: int, peer: str) -> Pair:
        """Which two copies a fact is about: another copy of the same slot knows nothing of it."""
        return self.store.slot_state(slot).incarnation, self.places.voters(slot).get(peer, "")

    def compared_ms(self, slot: int) -> int:
        """When the own copy was last known to lack nothing that any other voter had (epoch ms); 0: never since the start.

        The oldest over the other voters. A copy that is the only one lacks nothing now.
        """
        if not self.counts(slot):
            return 0
        oldest = self.clock.wall_ms()
        for peer in self.places.voters(slot):
            if peer != self.node:
                pair, at_ms = self._compared.get((slot, peer), (("", ""), 0))
                oldest = min(oldest, at_ms if pair == self.pair(slot, peer) else 0)
        return oldest
