"""From the registry's route table to the electorates that the protocol works with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from amberblob.ballot import SlotState
from amberblob.errors import NotReady
from node.protocol.quorum import Electorate
from registry.routes import Member, Route, RouteTable

Mute = Literal["not-a-member", "unsynced"]
"""Why a copy has no voice, as it refuses with it."""


class Electorates:
    """The electorates of one route table, each made when it is first asked for.

    Attributes:
        by_slot: those that were made.
    """

    def __init__(self, table: RouteTable, *, write_quorum: int, read_quorum: int) -> None:
        self._table = table
        self._write_quorum = write_quorum
        self._read_quorum = read_quorum
        self._distinct: tuple[Electorate, ...] = ()
        self.by_slot: dict[int, Electorate] = {}

    def electorate(self, slot: int) -> Electorate:
        """The voters of a slot, of both sets while it moves. What is configured beyond a set's size is its size."""
        found = self.by_slot.get(slot)
        if found is None:
            found = self.by_slot[slot] = self._of(self._table.route(slot))
        return found

    def _of(self, route: Route) -> Electorate:
        voters = {member.node: member.incarnation for member in (*route.voters, *route.next_voters)}
        write_quorum, read_quorum = self._write_quorum, self._read_quorum
        if route.state == "stable":
            majority = len(voters) // 2 + 1
            write_quorum = min(max(write_quorum, majority), len(voters))
            read_quorum = min(max(read_quorum, majority), len(voters))
        return Electorate(
            slot=route.slot,
            epoch=route.epoch,
            voters=voters,
            write_quorum=write_quorum,
            read_quorum=read_quorum,
            settled=route.state == "stable" and not route.learners,
            old=frozenset(route.voter_nodes if route.state == "joint" else ()),
            new=frozenset(member.node for member in route.next_voters),
        )

    def distinct(self) -> tuple[Electorate, ...]:
        """One electorate of each different set of voters; two sets of a slot that moves are other than one of the same nodes."""
        if not self._distinct:
            by_voters = {(route.voters, route.next_voters): route.slot for route in self._table.routes}
            self._distinct = tuple(self.electorate(slot) for slot in by_voters.values())
        return self._distinct


class Routing:
    """What this node knows of who owns what; always the newest table that was seen.

    Args:
        node: this node's id.
        disk_id: this node's disk: its incarnation as a member.
        table: gives the current table, or None before the first.
        write_quorum, read_quorum: the configured ones; 0 means a majority.
    """

    def __init__(
        self,
        *,
        node: str,
        disk_id: str,
        table: Callable[[], RouteTable | None],
        write_quorum: int = 0,
        read_quorum: int = 0,
    ) -> None:
        self.node = node
        self.disk_id = disk_id
        self._table = table
        self._write_quorum = write_quorum
        self._read_quorum = read_quorum
        self._cached_for: RouteTable | None = None
        self._electorates: Electorates | None = None
        self._mine: frozenset[int] = frozenset()
        self._votes_here: dict[int, Member] = {}
        self._learns_here: dict[int, Member] = {}
        self._newcomers: dict[int, int] = {}

    def table(self) -> RouteTable:
        """The current table. Raises: NotReady while there is none."""
        table = self._table()
        if table is None:
            raise NotReady("The node has no routes yet: it waits for the registry and for the other nodes.")
        if table is not self._cached_for:
            self._cached_for = table
            self._electorates = Electorates(table, write_quorum=self._write_quorum, read_quorum=self._read_quorum)
            self._mine = frozenset(table.slots_of(self.node))
            # A node that is in both sets of a joint route is the same member in both.
            self._votes_here = {
                route.slot: member
                for route in table.routes
                for member in (*route.voters, *route.next_voters)
                if member.node == self.node
            }
            self._learns_here = {
                route.slot: member for route in table.routes for member in route.learners if member.node == self.node
            }
            here = {**self._votes_here, **self._learns_here}
            self._newcomers = {slot: member.since for slot, member in here.items() if member.since > 1}
        return table

    def slot_of(self, path: str) -> int:
        """The slot of a path."""
        return self.table().slot_of(path)

    def electorate(self, slot: int) -> Electorate:
        """The voters of a slot, of both sets while it moves. What is configured beyond a set's size is its size."""
        known = self.known()
        return known.by_slot.get(slot) or known.electorate(slot)

    def known(self) -> Electorates:
        """The electorates of the current table, to go by them all the while that something takes. Raises: NotReady."""
        self.table()
        assert self._electorates is not None
        return self._electorates

    def of(self, path: str) -> Electorate:
        """The voters of a path's slot."""
        return self.electorate(self.slot_of(path))

    def is_registered(self) -> bool:
        """Whether the route table knows this node; else it was removed, and struck off once no route named it. Raises: NotReady."""
        return self.node in self.table().nodes

    def is_member(self, slot: int) -> bool:
        """Whether the route table gives this node a copy of the slot, in any role."""
        try:
            self.table()
        except NotReady:
            return False
        return slot in self._mine

    def own_votes(self) -> Mapping[int, Member]:
        """The slots of which this node is a voter, on either side of a joint route, with the member that the route names.

        Empty while there are no routes.
        """
        try:
            self.table()
        except NotReady:
            return {}
        return self._votes_here

    def own_learning(self) -> Mapping[int, Member]:
        """The slots of which this node is a learner, with the member that the route names. Empty while there are no routes."""
        try:
            self.table()
        except NotReady:
            return {}
        return self._learns_here

    def epoch(self, slot: int) -> int:
        """The epoch of the slot's newest route here; 0 while there are no routes."""
        table = self._table()
        return table.routes[slot].epoch if table is not None else 0

    def mute(self, state: SlotState) -> Mute | None:
        """Why this node's copy of a slot, being in this state, has no voice (rfc/0012); None: it counts.

        It has one if the route names it, by incarnation, as a voter on either side, and it was filled from a majority since it was
        first named. A learner never has: it is ``unsynced``, however well it is filled. What the route does not name is a stranger.
        """
        try:
            self.table()
        except NotReady:
            return "not-a-member"
        member = self._votes_here.get(state.slot)
        if member is None:
            return "unsynced" if state.slot in self._learns_here else "not-a-member"
        if member.incarnation != state.incarnation or 1 < member.since > state.synced_epoch:
            return "unsynced"
        return None

    def newcomers(self) -> dict[int, int]:
        """The slots whose copy here was first named after the slot's first epoch, with the epoch in which it was. Do not change it.

        As a voter, on either side of a joint route, or as a learner. These may be mute; what else may be are copies that the route
        does not name, which are none of these.
        """
        try:
            self.table()
        except NotReady:
            return {}
        return self._newcomers

    def electorates(self) -> Iterable[Electorate]:
        """The voters of every slot."""
        return (self.electorate(slot) for slot in range(self.table().slot_count))

    def distinct_electorates(self) -> tuple[Electorate, ...]:
        """One electorate of each different set of voters; two sets of a slot that moves are other than one of the same nodes."""
        return self.known().distinct()

    def address(self, node: str) -> tuple[str, int] | None:
        """Where a peer listens, or None when it is not registered."""
        table = self._table()
        info = table.nodes.get(node) if table is not None else None
        if info is None or not info.peer_address:
            return None
        host, _, port = info.peer_address.rpartition(":")
        return host.strip("[]"), int(port)
