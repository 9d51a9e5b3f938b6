"""What the nodes' accounts of their copies add up to: per slot a state, and for the cluster what is below target.

Pure. The states, from good to bad:

=============  ========================================================================================================
whole          every voter answered, all roots are equal, nothing is wanted, undecided, damaged or unsynced
in-step        it is being written: every voter answered and wants nothing, and each was compared with the others since
               the moment asked for and lacked nothing; the roots differ, or records are undecided, all the same
healing        every voter answered, and some copy is behind, wants bytes, or is not filled yet
degraded       a voter did not answer; a majority of them did and is synced
corrupt        something of a copy failed its hash and was not replaced yet
unavailable    less than a majority of the voters answered and is synced: reads and writes are refused
unrecoverable  no replica could give some bytes of a version
=============  ========================================================================================================

While a slot moves, its voters are those of the old set; but for ``unavailable``, which looks at both. What the new copies lack is on its way and
keeps no slot from being whole. Nor does it that there are fewer voters than there are to be copies: there are too few nodes, and
nothing to heal. That is told beside the state (:attr:`ClusterView.slots_below_target`).

The worst that holds is told. *Healed* is said of the cluster only when every slot is whole. Databases lag behind the journal by some
seconds and the roots with them, so a slot that is written without a pause is in-step and not whole most of the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from amberblob.wire_repair import SlotHealth
from registry.routes import Route

SlotCondition = Literal["whole", "in-step", "healing", "degraded", "corrupt", "unavailable", "unrecoverable"]
CopyCondition = Literal["whole", "in-step", "moving", "behind", "wanting", "unsynced", "damaged", "unknown"]
Role = Literal["voter", "joining", "learner"]

CONDITIONS: tuple[SlotCondition, ...] = (
    "whole",
    "in-step",
    "healing",
    "degraded",
    "corrupt",
    "unavailable",
    "unrecoverable",
)
"""From good to bad."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyView:
    """One copy of a slot, seen beside the others.

    Attributes:
        role: ``voter``; ``joining``: of the new set only, while the slot moves; ``learner``: it decides nothing yet.
        state: the worst that holds: ``unknown`` (its node did not answer, or not for this slot), ``damaged``, ``unsynced`` (no vote
            before it was filled from a majority), ``wanting`` (bytes), ``behind`` (its root is not that of most), ``in-step``, ``whole``.
            Of one that is no voter: ``moving`` while it is not filled, or lacks something.
        health: what its node told; None: nothing.
    """

    node: str
    role: Role
    state: CopyCondition
    health: SlotHealth | None

    @property
    def voter(self) -> bool:
        """Whether it has a vote, on either side of a slot that moves."""
        return self.role != "learner"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotView:
    """All copies of one slot.

    Attributes:
        target: how many copies there are to be: the cluster's ``replicas``.
        voters: how many there are.
        moving: it has learners, or is on its way from one set of voters to another; ``moving_bytes``: what the new copies want.
        present: voters' copies that answered and are synced.
        unsynced: voters' copies that answered and are not.
        behind: present copies whose root is not that of most, while that is not explained by writes under way.
        undecided, damaged, wanted, wanted_bytes: sums over the voters' copies, as in :class:`SlotHealth`. A
            version that two copies want counts twice.
        unrecoverable: versions that no replica could give: of the copy that tells most. Not a sum: what nobody has, every copy lacks.
        objects: paths, of the copy that has most.
        objects_below: how many of them have fewer than ``target`` good copies; where the counts do not tell it
            exactly, an estimate upwards.
        compared: every voter's copy was compared since the moment asked for and lacked nothing.
        copies: the voters in the route's order, then those that join, then learners.
    """

    slot: int
    epoch: int
    state: SlotCondition
    target: int
    voters: int
    moving: bool
    moving_bytes: int
    present: int
    unsynced: int
    behind: int
    undecided: int
    damaged: int
    unrecoverable: int
    wanted: int
    wanted_bytes: int
    objects: int
    objects_below: int
    compared: bool
    copies: tuple[CopyView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """All slots.

    Attributes:
        state: that of the worst slot.
        healed: every slot is whole.
        slots: how many are in each state; all states are there.
        to_compare: slots of which some copy was not compared since the moment asked for, or lacked something then.
        objects, objects_below, wanted, wanted_bytes, undecided, damaged, unrecoverable: sums over the slots.
        seconds_left: until nothing is wanted, at the present rate; None: not known. So it is while bytes are lost, which no
            rate brings back, and while copies are unsynced: what they lack is not wanted before it is known.
        last_compare_ms, last_scrub_ms: of the copy for which it is longest ago; 0: one has never been (or none told).
        silent: nodes that hold copies and did not answer.
        full: nodes whose disk refuses new bytes: their copies are not mended before there is room.
        target: how many copies there are to be of each slot.
        slots_below_target: how many have fewer voters than that, and ``fewest_copies`` how many voters the one has that has fewest.
        slots_moving: how many are on their way to other nodes; ``moving_bytes``: what the new copies want.
    """

    state: SlotCondition
    healed: bool
    slots: Mapping[SlotCondition, int]
    to_compare: int
    objects: int
    objects_below: int
    wanted: int
    wanted_bytes: int
    undecided: int
    damaged: int
    unrecoverable: int
    rate_bytes_per_s: float | None
    seconds_left: float | None
    last_compare_ms: int
    last_scrub_ms: int
    silent: tuple[str, ...]
    full: tuple[str, ...]
    target: int
    slots_below_target: int
    fewest_copies: int
    slots_moving: int
    moving_bytes: int


def view_slot(
    route: Route, told: Mapping[str, SlotHealth | None], *, since_ms: int, replicas: int | None = None
) -> SlotView:
    """What the copies of one slot add up to.

    Args:
        told: by node; a node that is missing or None did not answer, or does not know of its copy.
        since_ms: copies that differ are taken to be in step if each was compared since then and lacked nothing.
        replicas: how many copies there are to be; None: one per voter.
    """
    voters = route.voter_nodes
    target = len(voters) if replicas is None else replicas
    answered = [health for node in voters if (health := told.get(node)) is not None]
    present = [health for health in answered if not health.unsynced]
    root = _reference(present)
    wanted = sum(health.wanted for health in answered)
    damaged = sum(health.damaged for health in answered)
    undecided = sum(health.undecided for health in answered)
    unrecoverable = max((health.unrecoverable for health in answered), default=0)
    all_here = len(present) == len(voters)
    unlike = sum(health.root != root for health in present)
    compared = all_here and all(health.compared_ms >= max(1, since_ms) for health in present)
    lacks_nothing = all_here and not (wanted or damaged or unrecoverable)
    whole = lacks_nothing and not unlike and not undecided
    in_step = lacks_nothing and compared and not whole
    state: SlotCondition
    if unrecoverable:
        state = "unrecoverable"
    elif not route.is_quorum({node for node, health in told.items() if health and not health.unsynced}):
        state = "unavailable"
    elif damaged:
        state = "corrupt"
    elif len(answered) < len(voters):
        state = "degraded"
    else:
        state = "whole" if whole else "in-step" if in_step else "healing"
    behind = 0 if in_step else unlike
    objects = max((health.objects for health in present), default=0)
    roles: dict[str, Role] = dict.fromkeys(voters, "voter")
    for member in route.next_voters:
        roles.setdefault(member.node, "joining")
    roles.update((member.node, "learner") for member in route.learners)
    newcomers = [told.get(node) for node in roles if node not in voters]
    return SlotView(
        slot=route.slot,
        epoch=route.epoch,
        state=state,
        target=target,
        voters=len(voters),
        moving=bool(route.next_voters or route.learners),
        moving_bytes=sum(health.wanted_bytes for health in newcomers if health is not None),
        present=len(present),
        unsynced=len(answered) - len(present),
        behind=behind,
        undecided=undecided,
        damaged=damaged,
        unrecoverable=unrecoverable,
        wanted=wanted,
        wanted_bytes=sum(health.wanted_bytes for health in answered),
        objects=objects,
        objects_below=(
            objects
            if len(voters) < target
            else _objects_below(present, objects, root, all_here=all_here, in_step=in_step)
        ),
        compared=compared and lacks_nothing,
        copies=tuple(
            CopyView(
                node=node,
                role=role,
                state=_copy_condition(told.get(node), root, in_step=in_step, votes=role == "voter"),
                health=told.get(node),
            )
            for node, role in roles.items()
        ),
    )


def _reference(present: Iterable[SlotHealth]) -> bytes:
    """The root that most copies have; among equals that of the copy with most objects."""
    count: Counter[bytes] = Counter()
    objects: dict[bytes, int] = {}
    for health in present:
        count[health.root] += 1
        objects[health.root] = max(objects.get(health.root, 0), health.objects)
    return max(count, key=lambda root: (count[root], objects[root], root), default=b"")


def _objects_below(present: list[SlotHealth], objects: int, root: bytes, *, all_here: bool, in_step: bool) -> int:
    if not all_here:
        return objects
    below = 0
    for health in present:
        below += health.wanted
        if health.root != root:
            # Copies that differ while they have as many paths: at least one of them is other.
            below += max(objects - health.objects, 0 if health.wanted else 1)
    return 0 if in_step else min(objects, below)


def _copy_condition(health: SlotHealth | None, root: bytes, *, in_step: bool, votes: bool) -> CopyCondition:
    if health is None:
        return "unknown"
    if health.damaged or health.unrecoverable:
        return "damaged"
    if not votes:
        return "moving" if health.unsynced or health.wanted or health.root != root else "whole"
    if health.unsynced:
        return "unsynced"
    if health.wanted:
        return "wanting"
    if in_step:
        return "in-step"
    return "behind" if health.root != root else "whole"


def view_cluster(
    slots: Iterable[SlotView],
    *,
    rate_bytes_per_s: float | None = None,
    silent: Iterable[str] = (),
    full: Iterable[str] = (),
) -> ClusterView:
    """What the slots add up to; of a cluster that has at least one.

    Args:
        rate_bytes_per_s: at which bytes are fetched for repair; None: not known.
        silent, full: as in :class:`ClusterView`.
    """
    views = tuple(slots)
    assert views, "a cluster has slots"
    counts: dict[SlotCondition, int] = dict.fromkeys(CONDITIONS, 0)
    for view in views:
        counts[view.state] += 1
    told = [copy.health for view in views for copy in view.copies if copy.role == "voter" and copy.health is not None]
    wanted_bytes = sum(view.wanted_bytes for view in views)
    healed = counts["whole"] == len(views)
    seconds_left: float | None = None
    if healed:
        seconds_left = 0.0
    elif wanted_bytes and rate_bytes_per_s and not any(view.unrecoverable or view.unsynced for view in views):
        seconds_left = wanted_bytes / rate_bytes_per_s
    return ClusterView(
        state=next(state for state in reversed(CONDITIONS) if counts[state]),
        healed=healed,
        slots=counts,
        to_compare=sum(not view.compared for view in views),
        objects=sum(view.objects for view in views),
        objects_below=sum(view.objects_below for view in views),
        wanted=sum(view.wanted for view in views),
        wanted_bytes=wanted_bytes,
        undecided=sum(view.undecided for view in views),
        damaged=sum(view.damaged for view in views),
        unrecoverable=sum(view.unrecoverable for view in views),
        rate_bytes_per_s=rate_bytes_per_s,
        seconds_left=seconds_left,
        last_compare_ms=min((health.compared_ms for health in told), default=0),
        last_scrub_ms=min((health.scrubbed_ms for health in told), default=0),
        silent=tuple(sorted(silent)),
        full=tuple(sorted(full)),
        target=max(view.target for view in views),
        slots_below_target=sum(view.voters < view.target for view in views),
        fewest_copies=min(view.voters for view in views),
        slots_moving=sum(view.moving for view in views),
        moving_bytes=sum(view.moving_bytes for view in views),
    )
