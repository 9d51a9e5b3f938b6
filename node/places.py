"""Who holds which copies, as anti-entropy wants to know it: the newest routes and the connections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from node.routing import Routing
from node.transport.interface import Peers


class RoutedPlaces:
    """Implements :class:`antientropy.ground.Places`."""

    def __init__(self, routing: Routing, peers: Peers) -> None:
        self._routing = routing
        self._peers = peers

    @property
    def node(self) -> str:
        """This node's id."""
        return self._routing.node

    def slots(self) -> Iterable[int]:
        """The slots whose route names this node as a voter, whichever copy it names."""
        return self._routing.own_votes()

    def voters(self, slot: int) -> Mapping[str, str]:
        """Node to incarnation, this node included."""
        return self._routing.electorate(slot).voters

    def epoch(self, slot: int) -> int:
        """The route's epoch."""
        return self._routing.electorate(slot).epoch

    def since(self, slot: int) -> int:
        """The epoch in which the own copy was first named."""
        return self._routing.own_votes()[slot].since

    def belongs(self, slot: int, path: str) -> bool:
        """Whether a path belongs to a slot."""
        return self._routing.slot_of(path) == slot

    def reachable(self, node: str) -> bool:
        """Whether there is a connection. A hint."""
        return self._peers.reachable(node)
