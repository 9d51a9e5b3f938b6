"""From the registry's route table to the electorates that the protocol works with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from amberblob.ballot import SlotState
from amberblob.errors import NotReady
from node.protocol.quorum import Electorate
from registry.routes import Member, RouteTable

Mute = Literal["not-a-member", "unsynced"]
"""Why a copy has no voice, as it refuses with it."""


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
        self._electorates: dict[int, Electorate] = {}
        self._distinct: tuple[Electorate, ...] = ()
        self._mine: frozenset[int] = frozenset()
        self._votes_here: dict[int, Member] = {}
        self._newcomers: dict[int, int] = {}

    def table(self) -> RouteTable:
        """The current table. Raises: NotReady while there is none."""
        table = self._table()
        if table is None:
            raise NotReady("The node has no routes yet: it waits for the registry and for the other nodes.")
        if table is not self._cached_for:
            self._cached_for = table
            self._electorates = {}
            self._distinct = ()
            self._mine = frozenset(table.slots_of(self.node))
            self._votes_here = {
                route.slot: member for route in table.routes for member in route.voters if member.node == self.node
            }
            self._newcomers = {slot: member.since for slot, member in self._votes_here.items() if member.since > 1}
        return table

    def slot_of(self, path: str) -> int:
        """The slot of a path."""
        return self.table().slot_of(path)

    def electorate(self, slot: int) -> Electorate:
        """The voters of a slot."""
        table = self.table()
        found = self._electorates.get(slot)
        if found is None:
            route = table.route(slot)
            voters = {member.node: member.incarnation for member in route.voters}
            majority = len(voters) // 2 + 1
            found = self._electorates[slot] = Electorate(
                slot=slot,
                epoch=route.epoch,
                voters=voters,
                write_quorum=min(max(self._write_quorum, majority), len(voters)),
                read_quorum=min(max(self._read_quorum, majority), len(voters)),
                settled=route.state == "stable" and not route.learners,
            )
        return found

    def of(self, path: str) -> Electorate:
        """The voters of a path's slot."""
        return self.electorate(self.slot_of(path))

    def is_member(self, slot: int) -> bool:
        """Whether the route table gives this node a copy of the slot, in any role."""
        try:
            self.table()
        except NotReady:
            return False
        return slot in self._mine

    def own_votes(self) -> Mapping[int, Member]:
        """The slots of which this node is a voter, with the member that the route names. Empty while there are no routes."""
        try:
            self.table()
        except NotReady:
            return {}
        return self._votes_here

    def mute(self, state: SlotState) -> Mute | None:
        """Why this node's copy of a slot, being in this state, has no voice (rfc/0012); None: it counts.

        It has one if the route names it, by incarnation, as a voter, and it was filled from a majority since it was named.
        """
        try:
            self.table()
        except NotReady:
            return "not-a-member"
        member = self._votes_here.get(state.slot)
        if member is None:
            return "not-a-member"
        if member.incarnation != state.incarnation or 1 < member.since > state.synced_epoch:
            return "unsynced"
        return None

    def newcomers(self) -> dict[int, int]:
        """The slots whose copy here was named after the slot's first epoch, with the epoch in which it was. Do not change it."""
        try:
            self.table()
        except NotReady:
            return {}
        return self._newcomers

    def electorates(self) -> Iterable[Electorate]:
        """The voters of every slot."""
        return (self.electorate(slot) for slot in range(self.table().slot_count))

    def distinct_electorates(self) -> tuple[Electorate, ...]:
        """One electorate of each different set of voters."""
        table = self.table()
        if not self._distinct:
            by_voters = {route.voters: route.slot for route in table.routes}
            self._distinct = tuple(self.electorate(slot) for slot in by_voters.values())
        return self._distinct

    def address(self, node: str) -> tuple[str, int] | None:
        """Where a peer listens, or None when it is not registered."""
        table = self._table()
        info = table.nodes.get(node) if table is not None else None
        if info is None or not info.peer_address:
            return None
        host, _, port = info.peer_address.rpartition(":")
        return host.strip("[]"), int(port)
