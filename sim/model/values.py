"""What the model speaks of: ballots, versions, records, routes; and who makes a quorum."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import NamedTuple

from sim.model.rules import Rules

Ballot = tuple[int, int, int, int]
"""(epoch, counter, node, attempt), compared in this order; unique per attempt, so coordinators keep nothing."""

ZERO: Ballot = (0, 0, 0, 0)
NEVER = 1 << 60
"""An epoch that does not come."""

TOP = 1 << 60
"""Above every node and every attempt: (epoch, counter, TOP, TOP) is the highest ballot of a counter."""

Version = tuple[int, int]
"""(number, blob): one row of a path's history. A blob is the number of the call that brought it."""

Result = tuple[str, int]
"""What a client is told of a write: ("ok", version), ("412", 0), ("404", 0)."""

Mark = tuple[int, Result]
"""(write id, what it did)."""

MARKS_IN_RECORD = 2
"""Eight in the real one; two, so that small histories need the table of older ones."""

CopyId = int
"""Names one copy: its node and its incarnation. A node that loses its disk has another one."""

NODES_MAX = 8


def node_of(copy: CopyId) -> int:
    """On which node the copy lies."""
    return copy % NODES_MAX


class Record(NamedTuple):
    """One state of a path; a write makes the next one from the current one.

    Attributes:
        revision: grows by one with each record.
        version_max: the highest version ever given.
        head: the newest version; None: deleted, the record is a stub (a tombstone).
        added: the version that this record adds; None for a delete.
        previous: what the record before added: known to be chosen, so whoever accepts this may keep it as a row.
        marks: the last write ids and what they did, this record's own last.
        stamp: what the coordinator's clock showed. Nominates garbage, decides nothing.
    """

    revision: int
    version_max: int
    head: Version | None
    added: Version | None
    previous: Version | None
    marks: tuple[Mark, ...]
    stamp: float


class Register(NamedTuple):
    """What one copy has accepted for a path."""

    accepted: Ballot
    record: Record | None
    chosen: bool


EMPTY = Register(ZERO, None, False)


Quorum = tuple[tuple[CopyId, ...], int]
"""(who counts, how many of them are enough)."""


def majority_of(voters: tuple[CopyId, ...]) -> Quorum:
    """⌊N/2⌋+1 of those that the route names, whoever answers."""
    return voters, len(voters) // 2 + 1


@dataclass(frozen=True, slots=True)
class Route:
    """Who holds a slot, at one epoch. Changed only by compare-and-set in the registry.

    Attributes:
        epoch: grows by one with each change.
        voters: STABLE: the voters. JOINT: the old ones.
        joining: JOINT: the whole new set of voters. STABLE: None.
        learners: copies that are sent what is written, and never counted.
        read_sets: PREPARE and reads need a majority of each of these.
        write_sets: COMMIT needs a majority of each of these.
        asked: whoever is sent PREPARE and reads.
        told: whoever is sent COMMIT and LEARN.
        since: of each member that was readmitted (:mod:`sim.model.readmission`), the epoch that named it first.
    """

    epoch: int
    voters: tuple[CopyId, ...]
    joining: tuple[CopyId, ...] | None
    learners: tuple[CopyId, ...]
    read_sets: tuple[Quorum, ...]
    write_sets: tuple[Quorum, ...]
    asked: tuple[CopyId, ...]
    told: tuple[CopyId, ...]
    since: tuple[tuple[CopyId, int], ...] = ()

    def since_of(self, copy: CopyId) -> int:
        """From which epoch on a readmitted copy has to be synced to have a voice; 0: the route asks nothing of it."""
        for member, epoch in self.since:
            if member == copy:
                return epoch
        return 0 if copy in self.told else NEVER

    @property
    def joint(self) -> bool:
        """Whether two sets of voters hold the slot together."""
        return self.joining is not None

    def __str__(self) -> str:
        voters = " ".join(map(name_of, self.voters))
        joining = "" if self.joining is None else f" → {' '.join(map(name_of, self.joining))}"
        learners = f", learners {' '.join(map(name_of, self.learners))}" if self.learners else ""
        since = "".join(f", {name_of(copy)} since {epoch}" for copy, epoch in self.since)
        return f"epoch {self.epoch} {'JOINT' if self.joint else 'STABLE'} {voters}{joining}{learners}{since}"


def name_of(copy: CopyId) -> str:
    """A copy as a reader sees it: node and incarnation."""
    return f"n{node_of(copy)}" if copy < NODES_MAX else f"n{node_of(copy)}#{copy // NODES_MAX}"


def make_route(
    rules: Rules,
    epoch: int,
    voters: tuple[CopyId, ...],
    joining: tuple[CopyId, ...] | None = None,
    learners: tuple[CopyId, ...] = (),
    since: tuple[tuple[CopyId, int], ...] = (),
) -> Route:
    """A route, with its quorums worked out. What ``since`` says of copies that it does not name is left out."""
    asked = voters if rules.learners_do_not_count else (*voters, *learners)
    old: Quorum = (asked, majority_of(voters)[1])
    both = (old,) if joining is None else (old, majority_of(joining))
    everyone = tuple(dict.fromkeys((*asked, *(joining or ()))))
    told = tuple(dict.fromkeys((*everyone, *learners)))
    return Route(
        epoch=epoch,
        voters=voters,
        joining=joining,
        learners=learners,
        read_sets=both if rules.joint_reads_both else (old,),
        write_sets=both if rules.joint_writes_both else (old,),
        asked=everyone if rules.joint_reads_both else asked,
        told=told,
        since=tuple((copy, first) for copy, first in since if copy in told),
    )


def following(
    rules: Rules,
    route: Route,
    voters: tuple[CopyId, ...],
    joining: tuple[CopyId, ...] | None = None,
    learners: tuple[CopyId, ...] = (),
    readmitted: CopyId | None = None,
) -> Route:
    """The route after this one: its members keep their ``since``, and the one that is readmitted gets its own."""
    epoch = route.epoch + 1
    since = route.since if rules.since_is_kept else ()
    if readmitted is not None:
        since = (*since, (readmitted, epoch))
    return make_route(rules, epoch, voters, joining, learners, since)


def quorate(quorums: tuple[Quorum, ...], present: Container[CopyId]) -> bool:
    """Whether enough of each set are present."""
    for voters, needed in quorums:
        count = 0
        for copy in voters:
            if copy in present:
                count += 1
        if count < needed:
            return False
    return True
