"""What one copy does about what another one says of a path. Pure.

The rules (rfc/0012) in one paragraph. What the other copy knows to be chosen is taken over by the rules of LEARN: never over
a higher ballot, and never a record at or below the own ballot floor: below it, the slot's garbage was collected, so
such a record is proposed again by a round, which puts it above. What is not known to be chosen, there or here, is nobody's to
take: a round finishes it. Rows that the newest record calls expired stay away. A row or record that differs though it has the same
version or revision is no matter of age: one of the two is damaged, and the copies vote on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from amberblob.ballot import BALLOT_ZERO, Ballot
from amberblob.digests import DIGEST_MODULUS, SHORT_BYTES, digest_bytes, record_term, row_term
from amberblob.manifest import Ranges, Record, Version, covers
from amberblob.mutations import Installed
from amberblob.wire_repair import PathItem


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is to be done about a path.

    Attributes:
        install: what the other copy has and this one lacks; None: nothing that can be installed as it is.
        unsettled: a record, there or here, is not known to be chosen and hides what is.
        below_floor: the other copy's record is newer and at or below the own ballot floor.
        suspect: something differs that cannot differ by age.
    """

    install: Installed | None = None
    unsettled: bool = False
    below_floor: bool = False
    suspect: bool = False

    @property
    def size_bytes(self) -> int:
        """The bytes of the versions that are to be installed."""
        return sum(row.size for row in self.install.rows) if self.install is not None else 0


NOTHING = Verdict()


def weigh(slot: int, mine: PathItem | None, theirs: PathItem, floor: Ballot) -> Verdict:
    """What to do about ``theirs``, having ``mine`` (None: nothing is known of the path here). Of paths with more rows than
    are told only those are looked at that both tell; :func:`weigh_rows` does the rest.

    Args:
        floor: the own slot's ballot floor.
    """
    suspect = _contradicts(mine, theirs)
    wants_record = unsettled = False
    if theirs.ballot is not None and not theirs.chosen:
        # What hides below it is brought out by a round. The rows are known to be chosen all the same: a path that is written
        # all the time is hardly ever found decided.
        unsettled = not _supersedes(mine, theirs.ballot)
    elif theirs.ballot is not None and not suspect and not _has_record(mine, theirs):
        if mine is not None and not mine.chosen and (mine.ballot or BALLOT_ZERO) > theirs.ballot:
            unsettled = True
        elif theirs.ballot <= floor:
            return Verdict(below_floor=True)
        else:
            wants_record = True
    bottom = max(theirs.more_below or 0, (mine.more_below if mine is not None else None) or 0)
    lacking, differing = weigh_rows(
        mine.rows if mine is not None else (), theirs.rows, expired=expired_of(mine, theirs), bottom=bottom
    )
    if not wants_record and not lacking:
        return Verdict(suspect=suspect or differing, unsettled=unsettled)
    return Verdict(
        unsettled=unsettled,
        install=Installed(
            slot,
            theirs.path,
            theirs.ballot if wants_record else None,
            theirs.record if wants_record else None,
            lacking,
            theirs.writes,
        ),
        suspect=suspect or differing,
    )


def weigh_rows(
    mine: Iterable[Version], theirs: Iterable[Version], *, expired: Ranges, bottom: int = 0
) -> tuple[tuple[Version, ...], bool]:
    """Of ``theirs`` at or above ``bottom``: those that are lacking here, and whether any is here with other content."""
    here = {row.version: row for row in mine}
    lacking: list[Version] = []
    differing = False
    for row in theirs:
        if row.version < bottom or covers(expired, row.version):
            continue
        known = here.get(row.version)
        if known is None:
            lacking.append(row)
        elif known != row:
            differing = True
    return tuple(lacking), differing


def expired_of(mine: PathItem | None, theirs: PathItem) -> Ranges:
    """What the newer of the two chosen records calls expired. (By ballot: revisions begin anew once a stub was forgotten.)"""
    known = [item for item in (mine, theirs) if item is not None and item.record is not None]
    newest = max(known, key=lambda item: item.ballot or BALLOT_ZERO, default=None)
    return newest.record.expired if newest is not None and newest.record is not None else ()


def _supersedes(mine: PathItem | None, ballot: Ballot) -> bool:
    """Whether a record is known here to be chosen at ``ballot`` or above: whatever was accepted at it is that, or built under it."""
    return mine is not None and mine.chosen and mine.ballot is not None and mine.ballot >= ballot


def _has_record(mine: PathItem | None, theirs: PathItem) -> bool:
    """Whether the chosen record of ``theirs`` adds nothing to what is known to be chosen here."""
    if mine is None or mine.record is None or mine.ballot is None or theirs.ballot is None:
        return False
    return mine.ballot > theirs.ballot or mine.record == theirs.record


def _contradicts(mine: PathItem | None, theirs: PathItem) -> bool:
    """Whether both know a record to be chosen, and no history has both."""
    if mine is None or mine.record is None or theirs.record is None or mine.record == theirs.record:
        return False
    assert mine.ballot is not None and theirs.ballot is not None, "a chosen record has its ballot"
    if mine.ballot == theirs.ballot:
        return True
    if _may_have_been_forgotten(mine, theirs):
        return False
    if mine.record.revision == theirs.record.revision:
        return True
    return (mine.ballot > theirs.ballot) != (mine.record.revision > theirs.record.revision)


def _may_have_been_forgotten(mine: PathItem, theirs: PathItem) -> bool:
    """Whether the lower of the two records may be a stub that others forgot before they wrote the path again.

    One copy may have missed that, and its revisions then say nothing beside those that began anew.
    """
    lower = min(mine, theirs, key=lambda item: item.ballot or BALLOT_ZERO).record
    return mine.ballot != theirs.ballot and lower is not None and lower.head is None and not lower.live


def state_of(item: PathItem) -> bytes:
    """The short state (:mod:`amberblob.digests`) of a path that is told as a whole."""
    total = sum(row_term(item.path, row) for row in item.rows)
    if item.chosen and item.record is not None:
        total += record_term(item.path, item.record)
    return digest_bytes(total % DIGEST_MODULUS)[:SHORT_BYTES]


# ---- damage


@dataclass(frozen=True, slots=True)
class Election:
    """What the copies' vote on a damaged path came to.

    Attributes:
        install: what replaces own content; None: own content stays.
        certain: every part that differs has a winner; of a path that failed its check also: every part of it was vouched for.
    """

    install: Installed | None
    certain: bool


def elect(
    slot: int,
    path: str,
    mine: PathItem | None,
    others: Mapping[str, PathItem | None],
    voters: int,
    *,
    trusted: bool,
) -> Election:
    """Let the copies vote on each version and on the record, where the own copy has it otherwise.

    A copy votes for what it has; one that has nothing of a version has no vote on it. Own content gives way to what more than
    half of all voters have, or, if every voter was asked, to what more of them have than any other. Own content that is
    known to be damaged has no vote, and gives way to what more of the others have than any other. What replaces any of it makes its
    digest anew, over all that is here: so nothing is replaced while some of it is in doubt, or the others would take it for right.

    Args:
        others: by node, what the voters that answered have (None: nothing), all in the same range of versions.
        voters: how many there are, with this copy.
        trusted: False: the own path failed its check; then also what is lacking here is installed.
    """
    items = [item for item in others.values() if item is not None]
    count = _Count(voters=voters, everybody=len(others) + 1 >= voters, trusted=trusted)
    record, ballot, certain = _elect_record(mine, items, count)
    own_record = mine.record if mine is not None else None
    newest = record or own_record
    expired = newest.expired if newest is not None else ()
    here = {row.version: row for row in mine.rows} if mine is not None else {}
    told: dict[int, list[Version]] = {}
    for item in items:
        for row in item.rows:
            if not covers(expired, row.version):
                told.setdefault(row.version, []).append(row)
    rows: list[Version] = []
    for number, contents in sorted(told.items(), reverse=True):
        own = here.get(number)
        if trusted and (own is None or all(row == own for row in contents)):
            continue
        winner = count.winner(own, contents)
        if winner is None:
            certain = False
        elif winner != own or not trusted:
            # A path that failed its check is told as a whole, so that its digest is made anew.
            rows.append(winner)
    if not trusted:
        certain = certain and all(number in told or covers(expired, number) for number in here)
    if (record is None and not rows) or not (trusted or certain):
        return Election(None, certain)
    return Election(Installed(slot, path, ballot, record, tuple(rows), (), True), certain)


def _elect_record(
    mine: PathItem | None, items: Sequence[PathItem], count: _Count
) -> tuple[Record | None, Ballot | None, bool]:
    """The record that replaces the own one, its ballot, and whether that is certain."""
    known = [item for item in items if item.record is not None and item.ballot is not None]
    own = mine.record if mine is not None else None
    if own is None or mine is None:
        if count.trusted or not known or (mine is not None and mine.ballot is not None):
            return None, None, True
        newest = max(known, key=lambda item: item.ballot or BALLOT_ZERO)
        return newest.record, newest.ballot, True
    rivals = [
        item
        for item in known
        if item.ballot == mine.ballot or (_revision(item) == own.revision and not _may_have_been_forgotten(mine, item))
    ]
    contents = [item.record for item in rivals if item.record is not None]
    if count.trusted and all(record == own for record in contents):
        return None, None, True
    if not contents:
        # Nobody else has this one. If theirs are newer, the next compare brings them, and then it is another question.
        return None, None, False
    winner = count.winner(own, contents)
    if winner is None or (winner == own and count.trusted):
        return None, None, winner is not None
    return winner, max(item.ballot or BALLOT_ZERO for item in rivals if item.record == winner), True


def _revision(item: PathItem) -> int:
    return item.record.revision if item.record is not None else 0


C = TypeVar("C", Version, Record)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Count:
    """How votes are counted; see :func:`elect`."""

    voters: int
    everybody: bool
    trusted: bool

    def winner(self, own: C | None, others: Sequence[C]) -> C | None:
        """The content that wins; None: none does."""
        ballots: list[C] = list(others)
        if own is not None and self.trusted:
            ballots.append(own)
        distinct: list[C] = []
        for content in ballots:
            if content not in distinct:
                distinct.append(content)
        ranked = sorted(((ballots.count(content), at) for at, content in enumerate(distinct)), reverse=True)
        most, at = ranked[0]
        ahead = len(ranked) == 1 or most > ranked[1][0]
        if 2 * most > self.voters or (ahead and (self.everybody or not self.trusted)):
            return distinct[at]
        return None
