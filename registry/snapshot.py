"""What the entries of a registry say, put together. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from registry.interface import Change, Delete, Put, Snapshot
from registry.keys import Keys
from registry.routes import ClusterInfo, Liveness, Membership, Move, NodeInfo, Route, RouteTable, build_table, decode


@dataclass(slots=True)
class Picture:
    """The cluster's part of the registry, brought up to date change by change.

    A route that is deleted stays: routes only ever change by a higher epoch.
    """

    keys: Keys
    cluster: ClusterInfo | None = None
    nodes: dict[str, NodeInfo] = field(default_factory=dict)
    routes: dict[int, Route] = field(default_factory=dict)
    alive: dict[str, Liveness] = field(default_factory=dict)
    moves: dict[int, Move] = field(default_factory=dict)
    membership: Membership | None = None

    def put(self, key: str, value: bytes) -> None:
        """A key has this value. Keys that are not known are left to newer versions.

        Raises:
            RegistryUnavailable: the value cannot be read.
        """
        if key == self.keys.cluster:
            self.cluster = decode(value, ClusterInfo, key)
        elif key.startswith(self.keys.nodes):
            self.nodes[key.removeprefix(self.keys.nodes)] = decode(value, NodeInfo, key)
        elif key.startswith(self.keys.alive):
            self.alive[key.removeprefix(self.keys.alive)] = decode(value, Liveness, key)
        elif key.startswith(self.keys.routes):
            route = decode(value, Route, key)
            self.routes[route.slot] = route
        elif key.startswith(self.keys.moves):
            move = decode(value, Move, key)
            self.moves[move.slot] = move
        elif key == self.keys.membership:
            self.membership = decode(value, Membership, key)

    def delete(self, key: str) -> None:
        """A key is gone."""
        if key.startswith(self.keys.nodes):
            self.nodes.pop(key.removeprefix(self.keys.nodes), None)
        elif key.startswith(self.keys.alive):
            self.alive.pop(key.removeprefix(self.keys.alive), None)
        elif key.startswith(self.keys.moves):
            self.moves.pop(int(key.removeprefix(self.keys.moves)), None)

    def apply(self, change: Change) -> None:
        """Take in what one revision changed. Raises RegistryUnavailable as :meth:`put`."""
        for event in change.events:
            match event:
                case Put(key, value):
                    self.put(key, value)
                case Delete(key):
                    self.delete(key)

    def table(self) -> RouteTable | None:
        """The route table, or None while the cluster or a route is missing."""
        if self.cluster is None:
            return None
        return build_table(self.cluster, self.routes, self.nodes, self.moves, self.membership)


def picture_of(snapshot: Snapshot, keys: Keys) -> Picture:
    """The picture that a snapshot of ``keys.root`` shows. Raises RegistryUnavailable for values that cannot be read."""
    picture = Picture(keys)
    for entry in snapshot.entries:
        picture.put(entry.key, entry.value)
    return picture


def table_of(snapshot: Snapshot, keys: Keys) -> RouteTable | None:
    """The route table of a snapshot of ``keys.root``, or None while it is not complete."""
    return picture_of(snapshot, keys).table()


def touches_table(change: Change, keys: Keys) -> bool:
    """Whether a change concerns more than liveness."""
    return any(not event.key.startswith(keys.alive) for event in change.events)
