"""Where repair takes place: which copies there are, and what is known of how they compare."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from amberblob.ballot import SlotState
from amberblob.clock import Clock
from chunkstore.interface import ReplicaStore

Pair = tuple[str, str]
"""The incarnations of two copies of a slot, the own one first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Naming:
    """How the newest route names a copy of this node's (rfc/0013).

    Attributes:
        incarnation: of the copy that is named.
        since: the epoch in which it was first named; above 1 it began blank.
        epoch: the route's.
        sources: node to incarnation: the voters of whom a majority has whatever was chosen; this copy, too, if it is one of them.
            While the slot moves they are those of the *old* set.
        joins: the slot moves, and the copy is one of the new set: it has to be filled in this very epoch.
    """

    incarnation: str
    since: int
    epoch: int
    sources: Mapping[str, str]
    joins: bool = False

    def to_fill_in(self, synced_epoch: int) -> int:
        """The epoch in or after which a copy that was last filled in ``synced_epoch`` is to be filled; 0: it need not be."""
        needed = max(self.since if self.since > 1 else 0, self.epoch if self.joins else 0)
        return needed if synced_epoch < needed else 0


class Places(Protocol):
    """What this node knows of who holds what; always the newest. Methods raise NotReady before the first routes."""

    @property
    def node(self) -> str:
        """This node's id."""
        ...

    def slots(self) -> Iterable[int]:
        """The slots whose route names this node as a voter, whichever copy it names; while one moves, in either of both sets."""
        ...

    def learning(self) -> Iterable[int]:
        """The slots whose route names this node as a learner, whichever copy it names."""
        ...

    def voters(self, slot: int) -> Mapping[str, str]:
        """Node to incarnation, this node included if it is a voter; while the slot moves, of both sets. No learners."""
        ...

    def naming(self, slot: int) -> Naming | None:
        """How the route names this node's copy; None: it does not."""
        ...

    def belongs(self, slot: int, path: str) -> bool:
        """Whether a path belongs to a slot."""
        ...

    def reachable(self, node: str) -> bool:
        """Whether there is a connection. A hint."""
        ...


def is_blank(naming: Naming, state: SlotState) -> bool:
    """Whether the copy that is named began blank and was not filled since."""
    return 1 < naming.since > state.synced_epoch


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
        """Whether the route names the copy that is here as a voter, not one that was lost."""
        return self.places.voters(slot).get(self.node) == self.store.slot_state(slot).incarnation

    def counts(self, slot: int) -> bool:
        """Whether the copy that is here has a vote."""
        if not self.is_named(slot):
            return False
        naming = self.places.naming(slot)
        return naming is not None and not is_blank(naming, self.store.slot_state(slot))

    def has_learned(self, slot: int) -> bool:
        """Whether the copy that is here is a learner that was filled."""
        naming, state = self.places.naming(slot), self.store.slot_state(slot)
        return (
            naming is not None
            and naming.incarnation == state.incarnation
            and self.node not in self.places.voters(slot)
            and not is_blank(naming, state)
        )

    def to_fill(self, slot: int) -> tuple[Naming, int] | None:
        """How the copy that is here is named, and in or after which epoch it is to be filled; None: it is not named, or is filled."""
        naming, state = self.places.naming(slot), self.store.slot_state(slot)
        if naming is None or naming.incarnation != state.incarnation:
            return None
        needed = naming.to_fill_in(state.synced_epoch)
        return (naming, needed) if needed else None

    def is_outdated(self, slot: int) -> bool:
        """Whether the copy that is here has seen a newer epoch than that of the route."""
        naming = self.places.naming(slot)
        return naming is not None and self.store.slot_state(slot).epoch > naming.epoch

    def shared(self) -> dict[str, dict[int, Mapping[str, str]]]:
        """By peer: the slots of which it is a voter and this node holds a copy that counts here, with their voters.

        A learner that was filled is kept up as well, and taken for one of the voters: what expires, or is written, while it still
        fetches bytes would leave it wanting what nobody has any more, and give its slot all the more to do once that moves.

        A slot whose copy here has seen a newer epoch than that of the route is not among them: some that the route names may have left since,
        and have, if they do not know it either, what all others were allowed to forget.
        """
        found: dict[str, dict[int, Mapping[str, str]]] = {}
        for slot in (*self.places.slots(), *self.places.learning()):
            if (self.counts(slot) or self.has_learned(slot)) and not self.is_outdated(slot):
                voters = {**self.places.voters(slot), self.node: self.store.slot_state(slot).incarnation}
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
