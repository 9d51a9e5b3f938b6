"""What a slot's leader does next with it (rfc/0013). Pure: from the route, the move and what the copies tell, one step or a reason to wait.

A member is *good* when it answered as the copy that the route names, and that copy has its memory (synced since it was named). It is
*gone* when its node answered with another copy, which is for ever, or was silent for :data:`LOST_S`.

Two rules say more than the table of rfc/0013:

* A joint epoch is not begun from where it would be given up: majorities of both sets are good, and the new set is all good or has
  as many good members as the old one. (So a slot whose kept member is down waits rather than going to and fro; one of which a dead
  node is replaced moves all the same.)
* When a member of the new set is gone in the joint epoch and both ends are possible, the one with more good copies is taken; of
  equal ones the new set, since that is what was asked for, and who is missing in the old one may be what is to be replaced.
* A copy that was lost is named anew only by a stable route. So a joint epoch in which the old set has no majority for that reason, and the new
  one cannot be had without it, is given up as well: otherwise a slot of two voters would stand still for ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from amberblob.wire_repair import CopyState
from registry.moves import fulfils
from registry.routes import Member, Move, Route, majority_of

SILENT_S = 5.0
"""A member of the new set that does not answer for so long is not waited for with the final step."""

LOST_S = 60.0
"""One that does not answer for so long is gone."""

OTHER_COPY_S = 10.0
"""A learner whose node has another copy is dropped after this time: mostly its node names the new copy itself meanwhile."""

Does = Literal["begin-joint", "finish", "abort", "drop-learners", "forget-move", "wait"]
Stage = Literal["waiting-for-node", "learning", "joint", "leaving", "done"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What to do, or why to wait.

    Attributes:
        nodes: the learners to drop.
        why: what is waited for, or why this is done, for people.
    """

    does: Does
    why: str = ""
    nodes: tuple[str, ...] = ()


def decide(
    route: Route,
    move: Move | None,
    copies: Mapping[str, CopyState],
    waited_s: Mapping[str, float],
    *,
    lost_s: float = LOST_S,
) -> Step:
    """The next step of a slot.

    Args:
        copies: by node, what was answered just now; who did not answer is missing.
        waited_s: by node, for how long it has not answered, or has answered with another copy than the route names, seconds.
            Who is missing here: not for long.
        lost_s: see :data:`LOST_S`.
    """
    look = _Look(copies, waited_s, lost_s)
    return _in_joint(route, look) if route.state == "joint" else _in_stable(route, move, look)


def stage_of(route: Route, move: Move | None) -> Stage:
    """How far the slot is on its way, by its route alone."""
    if route.state == "joint":
        return "joint"
    if move is None or fulfils(route, move.nodes):
        return "leaving" if route.learners else "done"
    named = {member.node for member in (*route.voters, *route.learners)}
    return "learning" if named.issuperset(move.nodes) else "waiting-for-node"


@dataclass(frozen=True, slots=True)
class _Look:
    """The answers, beside the members that a route names."""

    copies: Mapping[str, CopyState]
    waited_s: Mapping[str, float]
    lost_s: float

    def is_other(self, member: Member) -> bool:
        """Whether the node answered with another copy."""
        copy = self.copies.get(member.node)
        return copy is not None and copy.incarnation != member.incarnation

    def is_synced(self, member: Member, epoch: int) -> bool:
        """Whether the node answered with this copy, filled in this epoch or a later one."""
        copy = self.copies.get(member.node)
        return copy is not None and copy.incarnation == member.incarnation and copy.synced_epoch >= epoch

    def is_good(self, member: Member) -> bool:
        return self.is_synced(member, member.since if member.since > 1 else 0)

    def is_whole(self, member: Member, epoch: int) -> bool:
        """Synced in this epoch, and it wants no bytes."""
        return self.is_synced(member, epoch) and not self.copies[member.node].wanted

    def silent_s(self, member: Member) -> float:
        return 0.0 if member.node in self.copies else self.waited_s.get(member.node, 0.0)

    def is_gone(self, member: Member) -> bool:
        return self.is_other(member) or self.silent_s(member) >= self.lost_s

    def good(self, members: Iterable[Member]) -> int:
        return sum(map(self.is_good, members))

    def lacks(self, member: Member, epoch: int) -> str:
        """What this member lacks to be whole in the epoch, for people; empty: nothing."""
        copy = self.copies.get(member.node)
        if copy is None:
            return f"{member.node} does not answer"
        if copy.incarnation != member.incarnation:
            return f"{member.node} has another copy than the route names"
        if copy.synced_epoch < epoch:
            return f"{member.node} is being filled"
        if copy.wanted:
            return f"{member.node} wants {copy.wanted} versions ({copy.wanted_bytes} bytes)"
        return ""


def _in_stable(route: Route, move: Move | None, look: _Look) -> Step:
    asked_for = () if move is None else move.nodes
    unasked = tuple(member.node for member in route.learners if member.node not in asked_for)
    if unasked:
        return Step(does="drop-learners", nodes=unasked, why="no move asks for them")
    stale = tuple(
        member.node
        for member in route.learners
        if look.is_other(member) and look.waited_s.get(member.node, 0.0) >= OTHER_COPY_S
    )
    if stale:
        return Step(does="drop-learners", nodes=stale, why="their nodes have other copies")
    if move is None:
        return Step(does="wait")
    if fulfils(route, move.nodes):
        return Step(does="forget-move")
    members = {member.node: member for member in (*route.voters, *route.learners)}
    unnamed = [node for node in move.nodes if node not in members]
    if unnamed:
        return Step(does="wait", why=f"{', '.join(unnamed)} has not begun yet")
    for learner in route.learners:
        if lacks := look.lacks(learner, learner.since):
            return Step(does="wait", why=lacks)
    good = look.good(route.voters)
    if good < route.majority:
        return Step(does="wait", why="a majority of the voters does not answer")
    new = [members[node] for node in move.nodes]
    new_good = look.good(new)
    if new_good < majority_of(len(new)) or new_good < min(len(new), good):
        bad = ", ".join(member.node for member in new if not look.is_good(member))
        return Step(does="wait", why=f"{bad} is to stay, and does not answer with a copy that counts")
    return Step(does="begin-joint")


def _in_joint(route: Route, look: _Look) -> Step:
    new = route.next_voters
    pending = [member for member in new if not look.is_whole(member, route.epoch)]
    enough = len(new) - len(pending) >= route.next_majority
    old_good, new_good = look.good(route.voters), look.good(new)
    gone = [member for member in new if look.is_gone(member)]
    if gone and old_good >= route.majority and (new_good < route.next_majority or new_good < old_good):
        return Step(does="abort", why=f"{', '.join(member.node for member in gone)} is gone")
    lost = [member.node for member in route.voters if look.is_other(member)]
    if lost and old_good < route.majority and not enough:
        return Step(does="abort", why=f"{', '.join(lost)} has to be filled anew first")
    waited_for = [member for member in pending if not look.is_other(member) and look.silent_s(member) < SILENT_S]
    if enough and not waited_for:
        return Step(does="finish")
    lacks = (look.lacks(member, route.epoch) for member in (*waited_for, *pending))
    return Step(does="wait", why=next(filter(None, lacks), ""))
