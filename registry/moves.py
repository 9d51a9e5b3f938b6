"""The steps by which a slot moves from one set of voters to another (rfc/0013): pure successors of a route."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from registry.routes import Member, Route


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
