"""What operators ask of a cluster's nodes (rfc/0013): it changes what is wanted, and the nodes bring what is real there.

A change has three parts, and whoever makes it may die between any two writes:

1. one compare-and-set of ``<name>/membership``: the nodes' new states, the next generation, and ``planning``;
2. the moves are written, in transactions of at most :data:`~registry.interface.TRANSACTION_OPS_MAX` operations;
3. ``planning`` ends with the last of them.

Every transaction of 2 and 3 also writes the membership, from the revision that its writer saw. So of two who write moves at once one
is always told to look again, and one who slept meanwhile writes nothing: no move of a plan that another one replaced comes in late. Whoever looks again
plans again, from what the registry shows then; what was written already counts as wanted, so the plan stays what it was, by and large.
A plan that nobody has worked at for :data:`PATIENCE_MS` is finished by :func:`resume`, by any node.

A new plan supersedes the moves of the one before. Slots in a joint epoch first go where they are going.

``removed`` is for good: the node is refused when it comes back (:func:`registry.bootstrap.register_node`), until :func:`change` is asked
to *forget* it. Then its id is free: a node that registers under it is a spare, as any other, and can be joined.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import structlog
from msgspec.structs import replace

from amberblob.errors import BadRequest, MembershipConflict, NoSuchNode, NotReady, RegistryUnavailable
from registry.formats import FORMAT_OF_MEMBERSHIP, raise_format
from registry.interface import TRANSACTION_OPS_MAX, CompareAndDelete, CompareAndSet, Operation, Registry
from registry.keys import Keys
from registry.planning import Plan, plan
from registry.readmit import set_back
from registry.routes import ClusterInfo, Membership, Move, NodeState, RouteTable, encode, majority_of
from registry.snapshot import picture_of

_log = structlog.get_logger(__name__)

PATIENCE_MS = 15_000
"""After so long without a write, whoever wrote the moves of a plan is taken for dead."""

_TRIES_MAX = 100
"""How often a plan is made again because something changed meanwhile: slots that arrive, or others who write it too."""


class Action(enum.StrEnum):
    """What an operator asks for."""

    JOIN = "join"
    """Registered nodes become active: they take their share of the slots. Also ends the draining of a node."""
    DRAIN = "drain"
    """Active nodes give away all slots, and stay nodes that take requests."""
    REMOVE = "remove"
    """Nodes that hold nothing any more (or, forced, that are dead) are no nodes of the cluster from now on."""
    FORGET = "forget"
    """The ids of removed nodes that no route names any more are free again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a change does, or would do.

    Attributes:
        plan: the slots that are to move. Of a real change: as it was when the last move was written.
        membership: as wanted afterwards; of a real change, as it is in the registry.
        warnings: what an operator should know about it.
    """

    plan: Plan
    membership: Membership
    warnings: tuple[str, ...] = ()


async def change(
    registry: Registry,
    cluster: ClusterInfo,
    action: Action,
    nodes: Sequence[str],
    *,
    now_ms: Callable[[], int],
    force: bool = False,
    dry_run: bool = False,
    seen_epoch: Callable[[int], int] = lambda slot: 0,
) -> Outcome:
    """Have the cluster's nodes be as the operator asks. Returns when all moves are written, or at once for a dry run.

    Asking for the same again is no error, since a command may have died, or its answer been lost: what is left of it is planned again, and
    a warning tells that the nodes were as asked for. Where that plan is what is wanted already, nothing is written.

    Args:
        nodes: one or more ids.
        now_ms: the time, since the Unix epoch.
        force: drain below the number of replicas; join a node that gives no sign of life; remove a dead node that holds slots.
        dry_run: change nothing.
        seen_epoch: the highest epoch of a slot that was seen, see :func:`registry.readmit.why_not`.

    Raises:
        BadRequest: no nodes, or one is named twice.
        NoSuchNode: a node that is not known.
        MembershipConflict: the action does not go with the state of a node or of the cluster, or another change is being made.
        NotReady: (nodes-too-old) nodes of an older version are to be upgraded first; or the change is decided, but its moves could not all be written for being disturbed: a node finishes it.
        RegistryUnavailable: it cannot be reached, or shows an older state than was seen. The change may be decided then.
    """
    if not nodes or len(set(nodes)) != len(nodes):
        raise BadRequest("Name one or more nodes, each once.", code="bad-parameter")
    board = await _look(registry, cluster, seen_epoch)
    at = board.membership
    title = f"{action} {' '.join(nodes)}"
    written_now = at.planning and abs(now_ms() - at.changed_at_ms) < PATIENCE_MS
    if written_now and at.action != title and not dry_run:
        raise MembershipConflict(
            f"Another change ({at.action}) is being written at this moment. Wait until it is, look at the cluster's status, and ask again."
        )
    wanted, warnings = _wanted(board, action, nodes, force=force)
    planned = _plan(board, wanted)
    if wanted == at.nodes and not at.planning and not _differences(board, planned, at.generation):
        return Outcome(plan=planned, membership=at, warnings=warnings)
    after = Membership(
        generation=at.generation + 1,
        nodes=wanted,
        planning=True,
        moves=len(planned.targets),
        copies=planned.copies,
        action=title,
        changed_at_ms=now_ms(),
    )
    if dry_run:
        return Outcome(plan=planned, membership=replace(after, planning=False), warnings=warnings)
    # Nodes of the version before know nothing of joint routes: they would count one majority where two are needed.
    gone = {node for node, state in wanted.items() if state is NodeState.REMOVED}
    await raise_format(registry, cluster.name, FORMAT_OF_MEMBERSHIP, leaving=gone)
    if wanted == at.nodes and at.planning:
        after = replace(after, generation=at.generation)  # the same again: its writer died
    if await registry.compare_and_set(board.keys.membership, board.revision, encode(after)) is None:
        now = (await _look(registry, cluster, seen_epoch)).membership
        raise MembershipConflict(
            f"Another change was made at the same moment ({now.action}); nothing was done. Look, and ask again."
        )
    _log.info("membership changed", action=title, generation=after.generation, moves=after.moves, copies=after.copies)
    written = await _write_moves(registry, cluster, after.generation, now_ms, seen_epoch)
    return Outcome(plan=written.plan, membership=written.membership, warnings=warnings)


async def resume(
    registry: Registry,
    cluster: ClusterInfo,
    *,
    now_ms: Callable[[], int],
    seen_epoch: Callable[[int], int] = lambda slot: 0,
) -> Outcome | None:
    """Finish a change whose writer is gone; None when there is none, or somebody worked at it less than :data:`PATIENCE_MS` ago.

    Any node may call this at any time, and several at once.

    Raises: as :func:`change`, of which MembershipConflict says that another change was made meanwhile.
    """
    entry = await registry.get(Keys(cluster.name).membership)
    if entry is None:
        return None
    board = await _look(registry, cluster, seen_epoch)
    at = board.membership
    if not at.planning or abs(now_ms() - at.changed_at_ms) < PATIENCE_MS:
        return None
    _log.warning("going on with a change that was left half written", action=at.action, generation=at.generation)
    return await _write_moves(registry, cluster, at.generation, now_ms, seen_epoch)


async def sweep_removed(
    registry: Registry, cluster: ClusterInfo, *, seen_epoch: Callable[[int], int] = lambda slot: 0
) -> tuple[str, ...]:
    """Delete what is known of removed nodes that no route and no move names any more; their ids. Any node may call this at any time.

    That they were removed stays known, so that they are refused if they come back.
    """
    board = await _look(registry, cluster, seen_epoch)
    named = board.named()
    swept: list[str] = []
    for node, state in board.membership.nodes.items():
        revision = board.revisions.get(board.keys.node(node))
        if state is not NodeState.REMOVED or node in named or revision is None:
            continue
        if await registry.delete(board.keys.node(node), revision) is not None:
            swept.append(node)
    return tuple(swept)


@dataclass(frozen=True, slots=True)
class _Board:
    """What the registry showed at one moment. ``revision`` is that of the membership, 0 when there is none."""

    keys: Keys
    table: RouteTable
    alive: frozenset[str]
    membership: Membership
    revision: int
    revisions: Mapping[str, int]

    def named(self) -> set[str]:
        """Nodes that a route or a move names."""
        routes = {node for route in self.table.routes for node in route.all_nodes}
        return routes.union(*(move.nodes for move in self.table.moves.values()))


async def _look(registry: Registry, cluster: ClusterInfo, seen_epoch: Callable[[int], int]) -> _Board:
    keys = Keys(cluster.name)
    snapshot = await registry.range(keys.root)
    picture = picture_of(snapshot, keys)
    table = picture.table()
    if table is None:
        raise NotReady("The cluster has no routes yet: its first nodes must start before its membership can change.")
    if table.cluster.cluster_id != cluster.cluster_id:
        raise RegistryUnavailable(
            f"The registry now holds cluster {table.cluster.cluster_id}, not {cluster.cluster_id}."
        )
    for route in table.routes:
        if (why := set_back(route, seen_epoch(route.slot))) is not None:
            raise RegistryUnavailable(f"Slot {route.slot}: {why}. Until then membership cannot change.")
    revisions = {entry.key: entry.revision for entry in snapshot.entries}
    membership = picture.membership or _first_membership(table)
    return _Board(keys, table, frozenset(picture.alive), membership, revisions.get(keys.membership, 0), revisions)


def _first_membership(table: RouteTable) -> Membership:
    """As it is before the first change: the nodes that the routes give slots to are active."""
    holders = sorted({node for route in table.routes for node in route.voter_nodes})
    return Membership(generation=0, nodes=dict.fromkeys(holders, NodeState.ACTIVE))


def _plan(board: _Board, wanted: Mapping[str, NodeState]) -> Plan:
    active = _active(wanted)
    missing = sorted(active - board.table.nodes.keys())
    if missing:
        raise MembershipConflict(
            f"{', '.join(missing)} is active, and the registry does not know it any more: start it, so that it registers again."
        )
    table = board.table
    return plan(tuple(table.nodes.values()), table.routes, table.cluster.replicas, active=active, moves=table.moves)


def _active(nodes: Mapping[str, NodeState]) -> set[str]:
    return {node for node, state in nodes.items() if state is NodeState.ACTIVE}


# -- what is refused

_STATE_AFTER = {
    Action.JOIN: NodeState.ACTIVE,
    Action.DRAIN: NodeState.DRAINING,
    Action.REMOVE: NodeState.REMOVED,
}
_ALREADY = {Action.JOIN: "is active", Action.DRAIN: "is draining", Action.REMOVE: "was removed"}


def _wanted(
    board: _Board, action: Action, nodes: Sequence[str], *, force: bool
) -> tuple[dict[str, NodeState], tuple[str, ...]]:
    """The states that the action asks for, and warnings. Raises as :func:`change`."""
    states = dict(board.membership.nodes)
    for node in nodes:
        if node not in board.table.nodes and node not in states:
            raise NoSuchNode(
                f"No node {node!r} is registered. Start it with this cluster's registry and name; nodes that are: "
                f"{', '.join(sorted(board.table.nodes))}."
            )
    warnings: list[str] = []
    for node in nodes:
        state = board.membership.nodes.get(node)
        if action is Action.FORGET:
            _check_forget(board, node)
            del states[node]
            continue
        if state is _STATE_AFTER[action]:
            warnings.append(f"{node} {_ALREADY[action]} already.")
            continue
        match action:
            case Action.JOIN:
                _check_join(board, state, node, force=force)
            case Action.DRAIN:
                _check_drain(state, node)
            case Action.REMOVE:
                _check_remove(board, state, node, force=force)
        states[node] = _STATE_AFTER[action]
    if action is Action.REMOVE:
        _check_majorities(board, states)
    return states, (*warnings, *_check_active(board, states, force=force))


def _check_join(board: _Board, state: NodeState | None, node: str, *, force: bool) -> None:
    if state is NodeState.REMOVED:
        raise MembershipConflict(
            f"{node} was removed. Forget it, start it, and join it then; or give the node a new id."
        )
    if node not in board.alive and not force:
        raise MembershipConflict(
            f"{node} gives no sign of life: start it first, and give it a moment (or force it, if it is to come later)."
        )


def _check_drain(state: NodeState | None, node: str) -> None:
    if state is None:
        raise MembershipConflict(f"{node} was never joined and holds nothing: there is nothing to drain.")
    if state is NodeState.REMOVED:
        raise MembershipConflict(f"{node} was removed: its slots are being taken from it already.")


def _check_remove(board: _Board, state: NodeState | None, node: str, *, force: bool) -> None:
    slots = len(board.table.slots_of(node))
    if not slots and state is not NodeState.ACTIVE:
        return
    holds = f"{node} still holds {slots} slots" if slots else f"{node} is active"
    if node in board.alive:
        raise MembershipConflict(f"{holds} and is alive: drain it, and remove it when that is done.")
    if not force:
        raise MembershipConflict(
            f"{holds} and gives no sign of life. Start it and drain it; or, if it is lost for good, force it: the other nodes then "
            "make its copies anew from theirs."
        )


def _check_majorities(board: _Board, states: Mapping[str, NodeState]) -> None:
    """A removed node never answers again: no slot may lose its majority by that."""
    removed = {node for node, state in states.items() if state is NodeState.REMOVED}
    lost = [
        route.slot
        for route in board.table.routes
        for nodes in (route.voter_nodes, tuple(member.node for member in route.next_voters))
        if nodes and sum(node not in removed for node in nodes) < majority_of(len(nodes))
    ]
    if lost:
        raise MembershipConflict(
            f"{len(set(lost))} slots (the first is {lost[0]}) would have no majority of their copies left, so nobody could say any more what "
            "they hold. Start the node again, or wait until the slots have moved."
        )


def _check_forget(board: _Board, node: str) -> None:
    if board.membership.nodes.get(node) is not NodeState.REMOVED:
        raise MembershipConflict(f"{node} was not removed: only removed nodes can be forgotten.")
    if node in board.named():
        raise MembershipConflict(f"{node} is still named by slots that move away from it: forget it when they have.")


def _check_active(board: _Board, states: Mapping[str, NodeState], *, force: bool) -> tuple[str, ...]:
    """Raises when too few nodes would be active; warnings about it otherwise."""
    before, after = len(_active(board.membership.nodes)), len(_active(states))
    replicas = board.table.cluster.replicas
    if after == 0:
        raise MembershipConflict("That would leave no node that holds anything: join another one first.")
    if after >= replicas:
        return ()
    told = f"{after} active nodes are fewer than the {replicas} copies that the cluster is to keep: there will be {after} of each object"
    if after < before and not force:
        raise MembershipConflict(f"{told}. Join others first, or force it.")
    return (f"{told}.",)


# -- the moves


def _differences(board: _Board, planned: Plan, generation: int) -> list[Operation]:
    """What brings the moves in the registry to those of the plan."""
    there = board.table.moves
    operations: list[Operation] = []
    for slot, target in planned.targets.items():
        known = there.get(slot)
        if known is not None and set(known.nodes) == set(target):
            continue
        key = board.keys.move(slot)
        move = Move(slot=slot, generation=generation, nodes=target)
        operations.append(CompareAndSet(key=key, expected_revision=board.revisions.get(key, 0), value=encode(move)))
    for slot in sorted(there.keys() - planned.targets.keys()):
        key = board.keys.move(slot)
        operations.append(CompareAndDelete(key=key, expected_revision=board.revisions[key]))
    return operations


async def _write_moves(
    registry: Registry,
    cluster: ClusterInfo,
    generation: int,
    now_ms: Callable[[], int],
    seen_epoch: Callable[[int], int],
) -> Outcome:
    """Write the moves of a generation that is decided, and end its planning. Raises as :func:`change`."""
    for _ in range(_TRIES_MAX):
        board = await _look(registry, cluster, seen_epoch)
        at, revision = board.membership, board.revision
        if at.generation != generation:
            raise MembershipConflict(f"This change was made, and then another one replaced its plan ({at.action}).")
        planned = _plan(board, at.nodes)
        if not at.planning:
            return Outcome(plan=planned, membership=at)  # somebody else finished it
        batches = _batches(_differences(board, planned, generation))
        for number, batch in enumerate(batches, 1):
            at = replace(at, planning=number < len(batches), changed_at_ms=now_ms())
            fence = CompareAndSet(key=board.keys.membership, expected_revision=revision, value=encode(at))
            written = await registry.transact([fence, *batch])
            if written is None:
                break  # a slot has arrived, or another one writes too
            revision = written
        else:
            _log.info("moves written", action=at.action, generation=generation, slots=len(planned.targets))
            return Outcome(plan=planned, membership=at)
    raise NotReady(
        "The change is decided, but its moves could not all be written for being disturbed: a node will finish it."
    )


def _batches(operations: Sequence[Operation]) -> list[Sequence[Operation]]:
    """At least one, if an empty one; each leaves room for the membership."""
    size = TRANSACTION_OPS_MAX - 1
    return [operations[at : at + size] for at in range(0, len(operations), size)] or [()]
