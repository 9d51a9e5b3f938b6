"""Who counts: the voters of a slot as the route table names them, and when they are enough."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from amberblob.ballot import Ballot
from amberblob.manifest import Record


@dataclass(frozen=True, slots=True)
class Electorate:
    """The voters of one slot at one epoch.

    Quorums come from these configured sets, never from who happens to answer. A copy whose incarnation is not
    the one named here has lost its memory and does not count, whatever it says.

    While the slot moves (a JOINT route, rfc/0013) there are two sets, the old one and the new one, which may share copies. Then
    whatever has to be a majority, a read quorum or a write quorum is one of each.

    Attributes:
        slot: the slot.
        epoch: the route's epoch; goes out with every message.
        voters: node id to the incarnation of its copy; of both sets.
        write_quorum: how many durable accepts a write needs before it is acknowledged; at least a majority. Of one set; of the
            other one :attr:`next_write_quorum`.
        read_quorum: how many registers a read or a promise phase asks for; 0 stands for a majority, its least.
        settled: the slot is not on its way anywhere: no other voters are to come, and nobody learns it. Only then is
            there no copy beside these that could hold something older and vote later (rfc/0007, garbage).
        old, new: the nodes of the two sets; both empty when there is one set, ``voters``.
    """

    slot: int
    epoch: int
    voters: Mapping[str, str]
    write_quorum: int
    read_quorum: int = 0
    settled: bool = True
    old: frozenset[str] = frozenset()
    new: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert self.majority <= self.write_quorum <= len(self.voters), "no quorum below a majority"
        assert self.majority <= (self.read_quorum or self.majority) <= len(self.voters), "no quorum below a majority"

    @property
    def majority(self) -> int:
        """⌊N/2⌋+1 of the configured voters."""
        return len(self.voters) // 2 + 1

    def counts(self, node: str, incarnation: str) -> bool:
        """Whether an answer of this copy is a vote."""
        return self.voters.get(node) == incarnation

    def is_majority(self, nodes: Collection[str]) -> bool:
        """Whether these voters are enough for a record to be chosen."""
        return len(nodes) >= self.majority

    def is_read_quorum(self, nodes: Collection[str]) -> bool:
        """Whether these voters are enough to promise or to read."""
        return len(nodes) >= (self.read_quorum or self.majority)

    def is_write_quorum(self, nodes: Collection[str]) -> bool:
        """Whether these voters are enough to acknowledge a write."""
        return len(nodes) >= self.write_quorum

    def majority_possible(self, out: Collection[str]) -> bool:
        """Whether a majority can still be had without the nodes in ``out``."""
        return len(self.voters) - len(out) >= self.majority

    def read_quorum_possible(self, out: Collection[str]) -> bool:
        """Whether a read quorum can still be had without the nodes in ``out``."""
        return len(self.voters) - len(out) >= (self.read_quorum or self.majority)

    def write_quorum_possible(self, out: Collection[str]) -> bool:
        """Whether a write quorum can still be had without the nodes in ``out``."""
        return len(self.voters) - len(out) >= self.write_quorum


class Vote(msgspec.Struct, frozen=True):
    """What one voter reported of the register."""

    node: str
    accepted: Ballot | None
    record: Record | None
    chosen: bool


class Finding(msgspec.Struct, frozen=True):
    """What a majority's votes say about the register.

    Attributes:
        ballot: the highest accepted ballot among the votes; None when nothing was accepted.
        record: the record at that ballot.
        decided: the record is known to be chosen, or it is known that none is. When False the record may or
            may not be chosen, and whoever wants to rely on it has to finish it with a round first.
        holders: the voters that reported this ballot, so they have its bytes unless they only learnt of it.
    """

    ballot: Ballot | None
    record: Record | None
    decided: bool
    holders: tuple[str, ...]


def weigh(electorate: Electorate, votes: Iterable[Vote]) -> Finding:
    """What the votes of a majority say.

    The record with the highest accepted ballot is the only one that can be chosen now. It is known to be if a
    voter says so or if a majority reports it; an empty register at a whole majority means that none is.
    """
    votes = list(votes)
    assert electorate.is_majority([vote.node for vote in votes]), "weigh needs a majority"
    best: Vote | None = None
    for vote in votes:
        if vote.accepted is not None and (best is None or best.accepted is None or vote.accepted > best.accepted):
            best = vote
    if best is None or best.accepted is None:
        return Finding(ballot=None, record=None, decided=True, holders=())
    same = [vote for vote in votes if vote.accepted == best.accepted]
    decided = any(vote.chosen for vote in same) or electorate.is_majority([vote.node for vote in same])
    return Finding(
        ballot=best.accepted, record=best.record, decided=decided, holders=tuple(sorted(vote.node for vote in same))
    )
