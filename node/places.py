"""Who holds which copies, as anti-entropy wants to know it: the newest routes and the connections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from amberblob.errors import NotReady
from antientropy.ground import Naming
from node.routing import Routing
from node.transport.interface import Peers
from registry.routes import Member, Route, RouteTable


class RoutedPlaces:
    """Implements :class:`antientropy.ground.Places`."""

    def __init__(self, routing: Routing, peers: Peers) -> None:
        self._routing = routing
        self._peers = peers
        self._of: RouteTable | None = None
        self._voting: tuple[int, ...] = ()
        self._learning: tuple[int, ...] = ()
        self._voters: dict[int, Mapping[str, str]] = {}
        self._namings: dict[int, Naming | None] = {}

    @property
    def node(self) -> str:
        """This node's id."""
        return self._routing.node

    def slots(self) -> Iterable[int]:
        """The slots whose route names this node as a voter, whichever copy it names; while one moves, in either of both sets.

        None while there are no routes.
        """
        try:
            self._table()
        except NotReady:
            return ()
        return self._voting

    def learning(self) -> Iterable[int]:
        """The slots whose route names this node as a learner, whichever copy it names. None while there are no routes."""
        try:
            self._table()
        except NotReady:
            return ()
        return self._learning

    def voters(self, slot: int) -> Mapping[str, str]:
        """Node to incarnation, this node included if it is a voter; while the slot moves, of both sets. No learners."""
        route = self._table().route(slot)
        found = self._voters.get(slot)
        if found is None:
            found = self._voters[slot] = _copies((*route.voters, *route.next_voters))
        return found

    def naming(self, slot: int) -> Naming | None:
        """How the route names this node's copy; None: it does not."""
        route = self._table().route(slot)
        if slot not in self._namings:
            self._namings[slot] = _naming(route, self.node)
        return self._namings[slot]

    def _table(self) -> RouteTable:
        """The newest; what was made of an older one is forgotten."""
        table = self._routing.table()
        if self._of is not table:
            self._of, self._voters, self._namings = table, {}, {}
            held = table.slots_of(self.node)
            self._voting = tuple(slot for slot in held if _votes(table.route(slot), self.node))
            self._learning = tuple(slot for slot in held if not _votes(table.route(slot), self.node))
        return table

    def belongs(self, slot: int, path: str) -> bool:
        """Whether a path belongs to a slot."""
        return self._routing.slot_of(path) == slot

    def reachable(self, node: str) -> bool:
        """Whether there is a connection. A hint."""
        return self._peers.reachable(node)


def _copies(members: Iterable[Member]) -> dict[str, str]:
    return {member.node: member.incarnation for member in members}


def _votes(route: Route, node: str) -> bool:
    return any(member.node == node for member in (*route.voters, *route.next_voters))


def _naming(route: Route, node: str) -> Naming | None:
    for member in (*route.voters, *route.next_voters, *route.learners):
        if member.node == node:
            return Naming(
                incarnation=member.incarnation,
                since=member.since,
                epoch=route.epoch,
                sources=_copies(route.voters),
                joins=member in route.next_voters,
            )
    return None
