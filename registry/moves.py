"""The steps by which a slot moves from one set of voters to another (rfc/0013): pure successors of a route, and their making."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from amberblob.errors import RegistryUnavailable
from registry.interface import CompareAndDelete, CompareAndSet, Entry, Operation, Registry
from registry.keys import Keys
from registry.readmit import set_back
from registry.routes import ClusterInfo, Member, Move, Route, decode, encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What became of a change.

    Attributes:
        route: as it is now, changed or not; None: it was not read.
        why: why it was not changed; empty: it was, by this call.
    """

    route: Route | None
    why: str = ""


def with_learner(route: Route, node: str, incarnation: str) -> Route:
    """The stable route with one more learner, first named in the new epoch. A learner of that node is replaced."""
    assert route.state == "stable" and node not in route.voter_nodes
    epoch = route.epoch + 1
    others = tuple(member for member in route.learners if member.node != node)
    return replace(route, epoch=epoch, learners=(*others, Member(node, incarnation, epoch)))


def without_learners(route: Route, nodes: Collection[str]) -> Route:
    """The stable route without the learners on these nodes."""
    assert route.state == "stable"
    return replace(
        route, epoch=route.epoch + 1, learners=tuple(each for each in route.learners if each.node not in nodes)
    )


def to_joint(route: Route, nodes: Sequence[str]) -> Route:
    """The joint route to the set of these nodes, each of which is a voter or a learner of the stable one; others learn no more.

    Raises:
        ValueError: one of the nodes is neither.
    """
    assert route.state == "stable"
    members = {member.node: member for member in (*route.voters, *route.learners)}
    missing = [node for node in nodes if node not in members]
    if missing:
        raise ValueError(f"{', '.join(missing)}: neither voter nor learner of slot {route.slot}")
    return replace(
        route,
        epoch=route.epoch + 1,
        state="joint",
        next_voters=tuple(members[node] for node in nodes),
        learners=(),
    )


def to_final(route: Route) -> Route:
    """The stable route of the new set."""
    assert route.state == "joint"
    return replace(route, epoch=route.epoch + 1, state="stable", voters=route.next_voters, next_voters=())


def to_aborted(route: Route) -> Route:
    """The stable route of the old set; the new members are learners, so that they stay named without a gap."""
    assert route.state == "joint"
    old = set(route.voter_nodes)
    learners = tuple(member for member in route.next_voters if member.node not in old)
    return replace(route, epoch=route.epoch + 1, state="stable", next_voters=(), learners=learners)


def fulfils(route: Route, nodes: Sequence[str]) -> bool:
    """Whether the route is what a move to these nodes asks for."""
    return route.state == "stable" and not route.learners and set(route.voter_nodes) == set(nodes)


class RegistryRouteChanges:
    """The changes of rfc/0013, each by one compare-and-set on the route that was read.

    Every method reads what the registry shows at that moment, never a table that was read before, and makes at most one transaction.
    It changes nothing when a precondition does not hold, and says which: :class:`Changed`. All raise RegistryUnavailable when the registry
    cannot be reached; then the change may have been made, and whoever asks again is told by the route what it is.

    An ``epoch`` that is given is that of the route that the caller judged by. A registry that was set back to an older state shows
    another one, so it is refused there by the same comparison.

    Args:
        node: who asks; only its own copies are named by :meth:`name_learner`.
    """

    def __init__(self, registry: Registry, cluster: ClusterInfo, node: str) -> None:
        self._registry = registry
        self._keys = Keys(cluster.name)
        self._node = node

    async def name_learner(self, slot: int, incarnation: str, *, seen_epoch: Callable[[int], int]) -> Changed:
        """Name this node's own blank copy as a learner, if the slot's move names this node and the route is stable without it.

        A learner of this node whose copy was lost meanwhile is replaced by the new copy, which is named since the new epoch. Should the move be
        taken back at this moment, then the learner is one that nobody wants: it does no harm, and the leader drops it.

        Args:
            incarnation: of a copy that was begun anew, durably, and that no route ever named.
            seen_epoch: see :func:`registry.readmit.why_not`.
        """
        entry, route = await self._route(slot)
        node = self._node
        if (why := set_back(route, seen_epoch(slot))) is not None:
            return Changed(route=route, why=why)
        if route.state != "stable":
            return Changed(route=route, why="the slot is being moved")
        if node in route.voter_nodes:
            return Changed(route=route, why=f"{node} is a voter of it")
        if any(each.node == node and each.incarnation == incarnation for each in route.learners):
            return Changed(route=route, why="the copy is named already")
        _, move = await self._move(slot)
        if move is None or node not in move.nodes:
            return Changed(route=route, why=f"the slot is not to go to {node}")
        return await self._make(entry, with_learner(route, node, incarnation))

    async def drop_learners(self, slot: int, epoch: int, nodes: Sequence[str]) -> Changed:
        """Take these learners out of a stable route of this epoch. Nodes that are none are left alone."""
        entry, route = await self._route(slot)
        if (why := _not_as_seen(route, epoch, "stable")) is not None:
            return Changed(route=route, why=why)
        if not any(each.node in nodes for each in route.learners):
            return Changed(route=route, why="none of them is a learner of it")
        return await self._make(entry, without_learners(route, nodes))

    async def begin_joint(self, slot: int, epoch: int) -> Changed:
        """From the stable route of this epoch, of which every node of the move is a voter or a learner, to the joint one.

        The move is written again as it is, in the same transaction: so a plan that takes it back meanwhile and this change cannot both
        be made, and no slot goes where nobody wants it any more.
        """
        entry, route = await self._route(slot)
        if (why := _not_as_seen(route, epoch, "stable")) is not None:
            return Changed(route=route, why=why)
        move_entry, move = await self._move(slot)
        if move_entry is None or move is None:
            return Changed(route=route, why="the slot has no move")
        if set(move.nodes) == set(route.voter_nodes):
            return Changed(route=route, why="the slot is where its move asks for")
        missing = sorted({*move.nodes} - {*route.voter_nodes, *(each.node for each in route.learners)})
        if missing:
            return Changed(route=route, why=f"{', '.join(missing)} is no learner of it yet")
        same = CompareAndSet(key=move_entry.key, expected_revision=move_entry.revision, value=move_entry.value)
        return await self._make(entry, to_joint(route, move.nodes), same)

    async def finish(self, slot: int, epoch: int) -> Changed:
        """From the joint route of this epoch to the new set alone; the move is deleted with it if it is fulfilled."""
        entry, route = await self._route(slot)
        if (why := _not_as_seen(route, epoch, "joint")) is not None:
            return Changed(route=route, why=why)
        after = to_final(route)
        move_entry, move = await self._move(slot)
        if move_entry is None or move is None or not fulfils(after, move.nodes):
            return await self._make(entry, after)
        return await self._make(
            entry, after, CompareAndDelete(key=move_entry.key, expected_revision=move_entry.revision)
        )

    async def abort(self, slot: int, epoch: int) -> Changed:
        """From the joint route of this epoch back to the old set; the new members stay as learners."""
        entry, route = await self._route(slot)
        if (why := _not_as_seen(route, epoch, "joint")) is not None:
            return Changed(route=route, why=why)
        return await self._make(entry, to_aborted(route))

    async def forget_move(self, slot: int, epoch: int) -> Changed:
        """Delete the slot's move, if the stable route of this epoch is what it asks for, without learners.

        The route need not be compared in the transaction: nobody can change the set of such a route while the move stands as it is.
        """
        _, route = await self._route(slot)
        if (why := _not_as_seen(route, epoch, "stable")) is not None:
            return Changed(route=route, why=why)
        entry, move = await self._move(slot)
        if entry is None or move is None:
            return Changed(route=route, why="the slot has no move")
        if not fulfils(route, move.nodes):
            return Changed(route=route, why="the route is not what the move asks for")
        if await self._registry.delete(entry.key, entry.revision) is None:
            return Changed(route=route, why=_MEANWHILE)
        return Changed(route=route)

    async def _route(self, slot: int) -> tuple[Entry, Route]:
        key = self._keys.route(slot)
        entry = await self._registry.get(key)
        if entry is None:
            raise RegistryUnavailable(f"{key} is not in the registry any more: restore it from its backup.")
        return entry, decode(entry.value, Route, key)

    async def _move(self, slot: int) -> tuple[Entry | None, Move | None]:
        key = self._keys.move(slot)
        entry = await self._registry.get(key)
        return entry, None if entry is None else decode(entry.value, Move, key)

    async def _make(self, entry: Entry, after: Route, *more: Operation) -> Changed:
        change = CompareAndSet(key=entry.key, expected_revision=entry.revision, value=encode(after))
        if await self._registry.transact([change, *more]) is not None:
            return Changed(route=after)
        _, route = await self._route(after.slot)
        return Changed(route=route, why=_MEANWHILE)


_MEANWHILE = "somebody else changed it meanwhile"


def _not_as_seen(route: Route, epoch: int, state: str) -> str | None:
    """Why the route is not the one that the caller judged by; None: it is."""
    if route.epoch != epoch:
        return set_back(route, epoch) or f"the route has epoch {route.epoch} by now"
    return None if route.state == state else f"the route is {route.state}"
