"""Who counts: the voters of a slot as the route table names them, and when they are enough."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from amberblob.ballot import Ballot
from amberblob.manifest import Record


@dataclass(frozen=True, slots=True)
class VoterSet:
    """One set of voters, and how many of it are enough: the quorums are clamped to ``majority`` … ``len(nodes)``."""

    nodes: frozenset[str]
    majority: int
    read_quorum: int
    write_quorum: int

    @classmethod
    def of(cls, nodes: Collection[str], *, write_quorum: int, read_quorum: int) -> VoterSet:
        """The set with ⌊N/2⌋+1 as its majority. What is asked for beyond its size, or below its majority, becomes that."""
        most = len(nodes)
        majority = most // 2 + 1
        return cls(
            frozenset(nodes), majority, min(max(read_quorum, majority), most), min(max(write_quorum, majority), most)
        )

    def count(self, nodes: Iterable[str]) -> int:
        """How many of these (different) nodes belong to the set."""
        members = self.nodes
        return sum(node in members for node in nodes)


@dataclass(frozen=True, slots=True)
class Electorate:
    """The voters of one slot at one epoch.

    Quorums come from these configured sets, never from who happens to answer. A copy whose incarnation is not
    the one named here has lost its memory and does not count, whatever it says.

    While the slot moves (a JOINT route, rfc/0013) there are two sets, the old one and the new one, which may share copies. Then
    whatever has to be a majority, a read quorum or a write quorum is one of each. There is no such number of the union.

    Attributes:
        slot: the slot.
        epoch: the route's epoch; goes out with every message.
        voters: node id to the incarnation of its copy; of both sets.
        write_quorum: how many durable accepts of each set a write needs before it is acknowledged; at least a majority. In JOINT it
            is clamped to what each set can have.
        read_quorum: how many registers of each set a read or a promise phase asks for; 0 stands for a majority, its least.
        settled: the slot is not on its way anywhere: no other voters are to come, and nobody learns it. Only then is
            there no copy beside these that could hold something older and vote later (rfc/0007, garbage).
        old, new: the nodes of the two sets; both empty when there is one set, ``voters``.
        sets: the one set, or the old one and the new one.
    """

    slot: int
    epoch: int
    voters: Mapping[str, str]
    write_quorum: int
    read_quorum: int = 0
    settled: bool = True
    old: frozenset[str] = frozenset()
    new: frozenset[str] = frozenset()
    sets: tuple[VoterSet, ...] = field(init=False, compare=False, repr=False)
    _one: VoterSet | None = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        write_quorum, read_quorum = self.write_quorum, self.read_quorum
        if self.old or self.new:
            assert self.old and self.new and self.old | self.new == set(self.voters), "two sets, and nobody beside them"
            assert not self.settled, "a slot that moves is not settled"
            sides: tuple[frozenset[str], ...] = (self.old, self.new)
        else:
            least = len(self.voters) // 2 + 1
            assert least <= write_quorum <= len(self.voters), "no quorum below a majority"
            assert least <= (read_quorum or least) <= len(self.voters), "no quorum below a majority"
            sides = (frozenset(self.voters),)
        sets = tuple(VoterSet.of(side, write_quorum=write_quorum, read_quorum=read_quorum) for side in sides)
        object.__setattr__(self, "sets", sets)
        object.__setattr__(self, "_one", sets[0] if len(sets) == 1 else None)

    @property
    def joint(self) -> bool:
        """Whether there are two sets."""
        return self._one is None

    @property
    def majority_writes(self) -> bool:
        """Whether a write quorum is no more than a majority, in every set."""
        return all(each.write_quorum == each.majority for each in self.sets)

    def counts(self, node: str, incarnation: str) -> bool:
        """Whether an answer of this copy is a vote."""
        return self.voters.get(node) == incarnation

    def still(self, holders: Iterable[str], before: Electorate) -> frozenset[str]:
        """Of the nodes whose copies had something when the route was ``before``, those that have it: their copies did not begin anew.

        One that is no voter any more may still have it; one that was none then and is one now may have begun anew.
        """
        now, then = self.voters, before.voters
        return frozenset(node for node in holders if node not in now or now[node] == then.get(node))

    # Of one set all that is given is of it: then its number is enough, and a hot path needs no more.

    def is_majority(self, nodes: Collection[str]) -> bool:
        """Whether these voters are enough for a record to be chosen."""
        if self._one is not None:
            return len(nodes) >= self._one.majority
        return all(each.count(nodes) >= each.majority for each in self.sets)

    def is_read_quorum(self, nodes: Collection[str]) -> bool:
        """Whether these voters are enough to promise or to read."""
        if self._one is not None:
            return len(nodes) >= self._one.read_quorum
        return all(each.count(nodes) >= each.read_quorum for each in self.sets)

    def is_write_quorum(self, nodes: Collection[str]) -> bool:
        """Whether these voters are enough to acknowledge a write."""
        if self._one is not None:
            return len(nodes) >= self._one.write_quorum
        return all(each.count(nodes) >= each.write_quorum for each in self.sets)

    def is_write_quorum_among(self, nodes: Iterable[str]) -> bool:
        """The same of the voters among these nodes, of which others may be none any more."""
        return self.is_write_quorum(self.voters.keys() & nodes)

    def majority_possible(self, out: Collection[str]) -> bool:
        """Whether a majority can still be had without the voters in ``out``."""
        return all(len(each.nodes) - each.count(out) >= each.majority for each in self.sets)

    def read_quorum_possible(self, out: Collection[str]) -> bool:
        """Whether a read quorum can still be had without the voters in ``out``."""
        return all(len(each.nodes) - each.count(out) >= each.read_quorum for each in self.sets)

    def write_quorum_possible(self, out: Collection[str]) -> bool:
        """Whether a write quorum can still be had without the voters in ``out``."""
        return all(len(each.nodes) - each.count(out) >= each.write_quorum for each in self.sets)

    def split(self, order: list[str]) -> tuple[list[str], list[str]]:
        """Of all voters in this order: those to ask first, who are a read quorum if none fails, and the others."""
        if self._one is not None:
            needed = self._one.read_quorum
            return order[:needed], order[needed:]
        first = enough_of(order, {each: each.read_quorum for each in self.sets})
        return first, [node for node in order if node not in first]

    def reads_short(self, got: Collection[str]) -> tuple[int, int]:
        """For people, when ``got`` are no read quorum: of the set that lacks most, how many are needed and how many are there."""
        return self._short([(each.read_quorum, each.count(got)) for each in self.sets])

    def writes_short(self, got: Collection[str]) -> tuple[int, int]:
        """The same for a write quorum."""
        return self._short([(each.write_quorum, each.count(got)) for each in self.sets])

    def majority_short(self, got: Collection[str]) -> tuple[int, int]:
        """The same for a majority."""
        return self._short([(each.majority, each.count(got)) for each in self.sets])

    @staticmethod
    def _short(pairs: list[tuple[int, int]]) -> tuple[int, int]:
        return max(pairs, key=lambda pair: pair[0] - pair[1])


def enough_of(order: Iterable[str], wanted: Mapping[VoterSet, int]) -> list[str]:
    """Of the nodes, in their order, those that help one of the sets to the number that is wanted of it, until all have that."""
    lacking = dict(wanted)
    chosen = []
    for node in order:
        helped = [each for each, lacks in lacking.items() if lacks > 0 and node in each.nodes]
        if helped:
            chosen.append(node)
            for each in helped:
                lacking[each] -= 1
    return chosen


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
