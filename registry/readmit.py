"""A copy that lost its memory is named in its slots' routes again, blank, by compare-and-set (rfc/0012).

A node whose disk was replaced, or whose slot database was lost, has another copy than the route names: nobody counts it,
and it answers nothing. Here the route's member of that node is replaced by the new copy; nothing else of the route changes
but its epoch. The copy has no vote before it was filled from a majority, which is what makes this safe without a joint epoch.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog

from amberblob.errors import RegistryUnavailable
from registry.interface import TRANSACTION_OPS_MAX, CompareAndSet, Entry, Registry
from registry.keys import Keys
from registry.routes import ClusterInfo, Member, Route, decode, encode
from registry.trust import check_cluster

_log = structlog.get_logger(__name__)

TRIES_MAX = 8
"""How often routes are read again that somebody else changed meanwhile."""

_SINGLE_MAX = 16
"""So many routes are read one by one; for more, all are read at once."""

IncarnationOf = Callable[[int, str], Awaitable[str]]
"""Given a slot and the incarnation that its route names for this node: that of the copy which is here.

If it is another one, the copy is blank when this returns: it holds nothing that it could answer for.
"""


@dataclass(slots=True)
class Readmission:
    """What :func:`readmit` found and did, by slot.

    Attributes:
        changed: the routes that name the new copy now, by this call.
        named: slots whose route names the copy already.
        refused: slots whose route is not for this call to change, and why.
        contended: slots whose route was changed by others each time; to be tried again.
    """

    changed: dict[int, Route] = field(default_factory=dict)
    named: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    contended: set[int] = field(default_factory=set)


def named_in(route: Route, node: str) -> str | None:
    """The incarnation of the node's copy among the voters; None: it is none of them."""
    return next((member.incarnation for member in route.voters if member.node == node), None)


def with_blank_copy(route: Route, node: str, incarnation: str) -> Route:
    """The route's successor, in which the node's voter is this copy, named since the successor's epoch."""
    epoch = route.epoch + 1
    voters = tuple(Member(node, incarnation, epoch) if member.node == node else member for member in route.voters)
    return msgspec.structs.replace(route, epoch=epoch, voters=voters)


def set_back(route: Route, seen_epoch: int) -> str | None:
    """What is wrong when the registry shows an older route than was seen; None: nothing."""
    if route.epoch >= seen_epoch:
        return None
    return f"the registry shows epoch {route.epoch}, and epoch {seen_epoch} was seen: restore its newest state"


def why_not(route: Route, node: str, seen_epoch: int) -> str | None:
    """Why the node must not change this route; None when it may.

    Args:
        seen_epoch: the highest epoch of the slot that the node has seen. A registry that was set back to an older state shows
            a lower one: a route made from that would give an epoch a second time, with other voters.
    """
    if (why := set_back(route, seen_epoch)) is not None:
        return why
    if route.state == "joint":
        return "the slot is being moved"
    if named_in(route, node) is None:
        return f"{node} is no voter of it"
    return None


async def readmit(
    registry: Registry,
    cluster: ClusterInfo,
    node: str,
    slots: Iterable[int],
    incarnation_of: IncarnationOf,
    *,
    seen_epoch: Callable[[int], int],
) -> Readmission:
    """Have the routes of these slots name the copies that ``node`` has now. Only the node itself calls this.

    May be broken off at any point and done again: each route changes whole or not at all, and one that names the copy stays as
    it is. What is written rests on what the registry shows at that moment, never on a table that was read before.

    Args:
        incarnation_of: see :data:`IncarnationOf`; asked only about routes that may be changed.
        seen_epoch: see :func:`why_not`.

    Raises:
        RegistryUnavailable: it cannot be reached; some routes may be changed.
        RegistryRefused: it does not hold this cluster; nothing is changed.
    """
    keys = Keys(cluster.name)
    result = Readmission()
    left = set(slots)
    if left:
        await check_cluster(registry, cluster)
    for _ in range(TRIES_MAX):
        changes: dict[int, tuple[CompareAndSet, Route]] = {}
        for slot, entry in (await _read(registry, keys, sorted(left))).items():
            route = decode(entry.value, Route, entry.key)
            refusal = why_not(route, node, seen_epoch(slot))
            if refusal is not None:
                result.refused[slot] = refusal
                continue
            named = named_in(route, node)
            assert named is not None
            incarnation = await incarnation_of(slot, named)
            if incarnation == named:
                result.named.add(slot)
                continue
            after = with_blank_copy(route, node, incarnation)
            operation = CompareAndSet(key=entry.key, expected_revision=entry.revision, value=encode(after))
            changes[slot] = (operation, after)
        left = set()
        for batch in _batches(sorted(changes)):
            if await registry.transact([changes[slot][0] for slot in batch]) is None:
                left.update(batch)  # somebody changed one of them since: read them all again
            else:
                result.changed.update({slot: changes[slot][1] for slot in batch})
        if not left:
            break
    result.contended = left
    if result.changed:
        _log.warning("copies readmitted", node=node, slots=len(result.changed), first=min(result.changed))
    return result


def _batches(slots: Sequence[int]) -> Iterable[Sequence[int]]:
    return (slots[at : at + TRANSACTION_OPS_MAX] for at in range(0, len(slots), TRANSACTION_OPS_MAX))


async def _read(registry: Registry, keys: Keys, slots: Sequence[int]) -> dict[int, Entry]:
    """The entries of these slots' routes. Raises RegistryUnavailable, also when one is not there."""
    wanted = {keys.route(slot): slot for slot in slots}
    if len(slots) <= _SINGLE_MAX:
        entries = [entry for key in wanted if (entry := await registry.get(key)) is not None]
    else:
        snapshot = await registry.range(keys.routes)
        entries = [entry for entry in snapshot.entries if entry.key in wanted]
    if len(entries) < len(wanted):
        missing = min(wanted.keys() - {entry.key for entry in entries})
        raise RegistryUnavailable(f"{missing} is not in the registry any more: restore it from its backup.")
    return {wanted[entry.key]: entry for entry in entries}
