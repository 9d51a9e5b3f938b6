"""The values kept in the registry, and the route table that a node works by. Pure.

A **route** names the members that hold a slot. It changes only by compare-and-set in the registry, and every
change raises its epoch. A **member** is a node together with its disk (the incarnation): a node that comes back
with another disk is not the member that the route names, and has no vote until the route is changed.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Mapping
from typing import Literal, TypeVar

import msgspec

from amberblob.errors import NotReady, RegistryUnavailable
from amberblob.ids import slot_of

FORMAT_VERSION = 2
"""The newest format of a registry's contents that this version knows. 2: members of routes change (rfc/0013)."""

FORMAT_VERSION_OLDEST = 1
"""The oldest that it can work with, and the one in which a cluster is made; ``registry.formats`` raises it when that is needed.

Fields that are added with a default do not make a new format (rfc/0015).
"""


class ClusterInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster's identity, and what was fixed when it was made.

    Attributes:
        cluster_id: a ULID; disks bear it and are refused elsewhere.
        slot_count: a power of two.
        replicas: voters per slot.
        chunk_bytes: the size of a chunk of a new object.
        format_version: of the registry's contents.
        created_at_ms: since the Unix epoch.
    """

    cluster_id: str
    name: str
    slot_count: int
    replicas: int
    chunk_bytes: int
    format_version: int
    created_at_ms: int


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a node tells about itself. Durable: it stays while the node is down.

    Attributes:
        disk_id: ULID of its disk, the incarnation of its copies unless they began anew on it.
        zone: what may fail together (a rack, a site).
        host: the machine; empty: one of its own.
        http_address: ``host:port`` where clients reach it.
        peer_address: ``host:port`` where nodes reach it.
        capacity_bytes: the weight of its disk in placement.
        version: of the software.
        started_at_ms: since the Unix epoch.
        registry_format: the newest format of the registry's contents that it knows; 1: also one that does not tell.
    """

    node_id: str
    disk_id: str
    zone: str
    host: str
    http_address: str
    peer_address: str
    capacity_bytes: int
    version: str
    started_at_ms: int
    registry_format: int = 1


class Liveness(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a liveness key: which process of the node holds it."""

    disk_id: str
    started_at_ms: int


class Member(msgspec.Struct, frozen=True, order=True):
    """A node with one certain copy.

    Attributes:
        incarnation: the disk's id, or that of a slot that was lost on it and began anew.
        since: the epoch in which this copy was first named. One named after the first epoch began blank: it answers for nothing
            before it was filled from a majority in that epoch or a later one (rfc/0012).
    """

    node: str
    incarnation: str
    since: int = 1


class NodeState(enum.StrEnum):
    """What the operators want of a node (rfc/0013)."""

    ACTIVE = "active"
    """It is to hold its share of the slots."""
    DRAINING = "draining"
    """It is to hold none, and stays a node that takes requests."""
    REMOVED = "removed"
    """It is no node of the cluster any more, and is refused if it comes back with that id."""


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """What operators want of the nodes; changed by compare-and-set, each change raises ``generation``.

    A node that is registered and not in ``nodes`` is a *spare*: it takes requests and holds nothing until it is joined. Before the
    first change there is no such value: then the nodes that the routes name are active.

    Attributes:
        planning: the moves of this generation are still being written: whoever sees that for long plans anew.
        moves: how many slots the last plan moves, ``copies`` how many copies that makes.
        action: what the operator asked for, for people ("join n4").
        changed_at_ms: since the Unix epoch.
    """

    generation: int
    nodes: dict[str, NodeState]
    planning: bool = False
    moves: int = 0
    copies: int = 0
    action: str = ""
    changed_at_ms: int = 0


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """The nodes that are to be a slot's voters, in the order of the route that is wanted. ``generation``: of the plan."""

    slot: int
    generation: int
    nodes: tuple[str, ...]


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """Who holds a slot.

    Attributes:
        epoch: 1 when made; every change raises it.
        voters: whose majorities decide.
        learners: fetch the slot's data and have no vote; only when stable.
        state: ``joint`` while the slot moves from ``voters`` to ``next_voters``: majorities of both are needed.
        next_voters: empty when stable.
    """

    slot: int
    epoch: int
    voters: tuple[Member, ...]
    learners: tuple[Member, ...] = ()
    state: Literal["stable", "joint"] = "stable"
    next_voters: tuple[Member, ...] = ()

    def __post_init__(self) -> None:
        if self.slot < 0 or self.epoch < 1:
            raise ValueError("slot is 0 or more, epoch 1 or more")
        if not self.voters:
            raise ValueError("a route has voters")
        if (self.state == "joint") != bool(self.next_voters):
            raise ValueError("next_voters are there in a joint route, and only there")
        for members in (self.voters, self.next_voters, self.learners):
            if len({member.node for member in members}) != len(members):
                raise ValueError("a node is named twice")
        both = {member.node: member for member in self.voters}
        if any(both.get(member.node, member) != member for member in self.next_voters):
            raise ValueError("a node that stays has the same copy in both sets")
        if any(member.node in both for member in self.learners) or (self.learners and self.next_voters):
            raise ValueError("learners are no voters, and there are none in a joint route")

    @property
    def majority(self) -> int:
        """How many of ``voters`` decide."""
        return majority_of(len(self.voters))

    @property
    def next_majority(self) -> int:
        """How many of ``next_voters`` must agree too; 0 when stable."""
        return majority_of(len(self.next_voters)) if self.next_voters else 0

    @property
    def voter_nodes(self) -> tuple[str, ...]:
        """The nodes of ``voters``, in the route's order."""
        return tuple(member.node for member in self.voters)

    @property
    def all_nodes(self) -> tuple[str, ...]:
        """Every node that the route names, each once: voters, then next voters, then learners."""
        return tuple(dict.fromkeys(member.node for member in (*self.voters, *self.next_voters, *self.learners)))

    def is_voter(self, node: str, incarnation: str) -> bool:
        """Whether this node with this disk has a vote (in a joint route: on either side)."""
        members = (*self.voters, *self.next_voters)
        return any(member.node == node and member.incarnation == incarnation for member in members)

    def is_quorum(self, nodes: Collection[str]) -> bool:
        """Whether these nodes, each answering for the member that the route names, are enough to decide."""
        return _count(self.voters, nodes) >= self.majority and _count(self.next_voters, nodes) >= self.next_majority


def majority_of(voters: int) -> int:
    """The smallest number of which any two choices overlap."""
    return voters // 2 + 1


def _count(members: Iterable[Member], nodes: Collection[str]) -> int:
    return sum(member.node in nodes for member in members)


class RouteTable(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable snapshot of the cluster: complete (every slot has its route), or it is not built at all.

    Do not change ``nodes`` and ``moves`` in place.

    Attributes:
        moves: by slot, where a slot is to go. A wish: routes alone say who holds it.
        membership: what operators want of the nodes; None before their first change.
    """

    cluster: ClusterInfo
    routes: tuple[Route, ...]
    nodes: dict[str, NodeInfo]
    moves: dict[int, Move] = {}
    membership: Membership | None = None

    def __post_init__(self) -> None:
        if [route.slot for route in self.routes] != list(range(self.cluster.slot_count)):
            raise ValueError(f"not the routes of slots 0 to {self.cluster.slot_count - 1} in order")

    @property
    def slot_count(self) -> int:
        return self.cluster.slot_count

    def slot_of(self, path: str) -> int:
        """The slot of a path in this cluster."""
        return slot_of(path, self.cluster.slot_count)

    def route(self, slot: int) -> Route:
        """The route of a slot, 0 to ``slot_count - 1``."""
        return self.routes[slot]

    def route_of(self, path: str) -> Route:
        """The route of a path's slot."""
        return self.routes[self.slot_of(path)]

    def node(self, node_id: str) -> NodeInfo:
        """What is known of a node.

        Raises:
            NotReady: a route names it, but it is not registered.
        """
        info = self.nodes.get(node_id)
        if info is None:
            raise NotReady(f"Node {node_id} is not registered; its address is unknown. See /cluster.")
        return info

    def slots_of(self, node_id: str) -> tuple[int, ...]:
        """The slots whose route names the node in any role, ascending."""
        return tuple(route.slot for route in self.routes if node_id in route.all_nodes)

    def votes(self, slot: int, node_id: str) -> bool:
        """Whether the node is a voter with a copy that it may have now, by what the registry tells.

        That is the disk that it is registered with, or a copy that was named later: that one the node named itself.
        """
        info, route = self.nodes.get(node_id), self.routes[slot]
        return info is not None and any(
            member.node == node_id and (member.incarnation == info.disk_id or member.since > 1)
            for member in (*route.voters, *route.next_voters)
        )

    def state_of(self, node_id: str) -> NodeState | None:
        """What is wanted of the node; None: it is a spare, or not known."""
        if self.membership is not None:
            return self.membership.nodes.get(node_id)
        return NodeState.ACTIVE if any(node_id in route.voter_nodes for route in self.routes) else None

    def is_gone(self, node_id: str) -> bool:
        """Whether the node was removed and, as no route named it any more, struck off. One that this table has never heard of is not."""
        return node_id not in self.nodes and self.state_of(node_id) is NodeState.REMOVED

    def epochs(self) -> tuple[int, ...]:
        """The epoch of each slot."""
        return tuple(route.epoch for route in self.routes)


def advance(seen: RouteTable | None, read: RouteTable) -> RouteTable:
    """What to work by after ``seen`` when the registry shows ``read``: never an older epoch than was seen.

    (One that shows older epochs is refused before: :mod:`registry.trust`.) Slot by slot the higher epoch is taken; at equal epochs what was seen stays (they are the same unless someone
    broke the registry's rules). Nodes are as read, and those that are still named by a kept route stay known.

    Raises:
        RegistryUnavailable: ``read`` is of another cluster, or of a format that this version does not know.
    """
    if (unknown := unknown_format(read.cluster)) is not None:
        raise RegistryUnavailable(f"{unknown} Until then this node goes on with the routes that it has.")
    if seen is None:
        return read
    if seen.cluster.cluster_id != read.cluster.cluster_id:
        raise RegistryUnavailable(
            f"The registry now holds cluster {read.cluster.cluster_id}, this node belongs to "
            f"{seen.cluster.cluster_id}. It goes on with the routes that it has; correct [cluster] registry."
        )
    routes = tuple(new if new.epoch > old.epoch else old for old, new in zip(seen.routes, read.routes, strict=True))
    named = {node for route in routes for node in route.all_nodes}
    kept = {node: info for node, info in seen.nodes.items() if node in named}
    return RouteTable(
        cluster=read.cluster,
        routes=routes,
        nodes={**kept, **read.nodes},
        moves=read.moves,
        membership=read.membership,
    )


def unknown_format(cluster: ClusterInfo) -> str | None:
    """What is wrong with the format of the registry's contents, and what to do; None when this version knows it."""
    found = cluster.format_version
    if FORMAT_VERSION_OLDEST <= found <= FORMAT_VERSION:
        return None
    known = (
        f"{FORMAT_VERSION_OLDEST} to {FORMAT_VERSION}"
        if FORMAT_VERSION_OLDEST < FORMAT_VERSION
        else f"{FORMAT_VERSION}"
    )
    older = found < FORMAT_VERSION_OLDEST
    todo = (
        "Upgrade the cluster through the versions in between."
        if older
        else "Install the newer version of AmberBlob that wrote it on this node."
    )
    return f"Cluster {cluster.name!r} has format {found} in the registry; this version knows {known}. {todo}"


def build_table(
    cluster: ClusterInfo,
    routes: Mapping[int, Route],
    nodes: Mapping[str, NodeInfo],
    moves: Mapping[int, Move] | None = None,
    membership: Membership | None = None,
) -> RouteTable | None:
    """The table of these parts, or None while a slot has no route yet."""
    if len(routes) < cluster.slot_count or any(slot not in routes for slot in range(cluster.slot_count)):
        return None
    return RouteTable(
        cluster=cluster,
        routes=tuple(routes[slot] for slot in range(cluster.slot_count)),
        nodes=dict(nodes),
        moves=dict(moves or {}),
        membership=membership,
    )


_Value = TypeVar("_Value", ClusterInfo, NodeInfo, Liveness, Route, RouteTable, Membership, Move)


def encode(value: msgspec.Struct) -> bytes:
    """JSON, the same bytes for equal values (struct fields in their order, mapping keys sorted)."""
    if isinstance(value, RouteTable):
        # Its moves are by number, and only text keys can be sorted.
        return msgspec.json.encode(msgspec.to_builtins(value, str_keys=True), order="deterministic")
    return msgspec.json.encode(value, order="deterministic")


def decode(data: bytes, kind: type[_Value], where: str) -> _Value:
    """The value behind :func:`encode`; unknown fields are left to newer versions.

    Raises:
        RegistryUnavailable: ``data`` is no such value; ``where`` tells the reader whence it came.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError) as error:
        raise RegistryUnavailable(f"{where} does not hold a valid {kind.__name__}: {error}") from error
