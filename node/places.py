"""Who holds which copies, as anti-entropy wants to know it: the newest routes and the connections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from antientropy.ground import Naming
from node.routing import Routing
from node.transport.interface import Peers
from registry.routes import Route, RouteTable


class RoutedPlaces:
    """Implements :class:`antientropy.ground.Places`."""

    def __init__(self, routing: Routing, peers: Peers) -> None:
        self._routing = routing
        self._peers = peers
        self._of: RouteTable | None = None
        self._namings: dict[int, Naming | None] = {}

    @property
    def node(self) -> str:
        """This node's id."""
        return self._routing.node

    def slots(self) -> Iterable[int]:
        """The slots whose route names this node as a voter, whichever copy it names; while one moves, in either of both sets.

        None while there are no routes.
        """
        return self._routing.own_votes()

    def learning(self) -> Iterable[int]:
        """The slots whose route names this node as a learner, whichever copy it names. None while there are no routes."""
        return self._routing.own_learning()

    def voters(self, slot: int) -> Mapping[str, str]:
        """Node to incarnation, this node included if it is a voter; while the slot moves, of both sets. No learners."""
        return self._routing.electorate(slot).voters

    def naming(self, slot: int) -> Naming | None:
        """How the route names this node's copy; None: it does not."""
        table = self._routing.table()
        if self._of is not table:
            self._of, self._namings = table, {}
        if slot not in self._namings:
            self._namings[slot] = _naming(table.route(slot), self.node)
        return self._namings[slot]

    def belongs(self, slot: int, path: str) -> bool:
        """Whether a path belongs to a slot."""
        return self._routing.slot_of(path) == slot

    def reachable(self, node: str) -> bool:
        """Whether there is a connection. A hint."""
        return self._peers.reachable(node)


def _naming(route: Route, node: str) -> Naming | None:
    for member in (*route.voters, *route.next_voters, *route.learners):
        if member.node == node:
            return Naming(
                incarnation=member.incarnation,
                since=member.since,
                epoch=route.epoch,
                sources={voter.node: voter.incarnation for voter in route.voters},
                joins=member in route.next_voters,
            )
    return None
