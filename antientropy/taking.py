"""The middle of every session: items of another copy come in, mutations go out, and what cannot be taken is noted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from amberblob.ballot import Ballot
from amberblob.digests import path_key
from amberblob.errors import ClusterError, PeerError
from amberblob.mutations import Installed
from amberblob.wire_repair import PathItem
from antientropy.mending import NOTHING, expired_of, state_of, weigh, weigh_rows
from antientropy.needs import (
    OWN_ITEMS_FEW,
    Refresh,
    Settle,
    Steps,
    by_few,
    flush,
    install,
    own_items,
    own_state,
    pull_paths,
)

OPEN_MAX = 1000
"""Paths per slot that a session goes on about. More are left to the next one."""

Seen = tuple[Ballot | None, Ballot | None]
"""The ballots of a register here and there."""


@dataclass(slots=True)
class Taken:
    """What a session took over of one slot.

    Attributes:
        paths, size_bytes: of how many paths something was installed, and the size of the versions among that.
        unsettled: paths whose newest record is not known to be chosen, with the ballots that were seen.
        below_floor: paths whose record is to be proposed again.
        suspect: paths that are damaged in one of the copies.
        wrong: paths whose own digest is not that of what is here.
        overflowed: there were more than these.
    """

    paths: int = 0
    size_bytes: int = 0
    unsettled: dict[str, Seen] = field(default_factory=dict)
    below_floor: set[str] = field(default_factory=set)
    suspect: set[str] = field(default_factory=set)
    wrong: set[str] = field(default_factory=set)
    overflowed: bool = False

    @property
    def is_open(self) -> bool:
        """Whether something could not be taken over as it was."""
        return bool(self.unsettled or self.below_floor or self.suspect or self.wrong or self.overflowed)

    def has_room(self) -> bool:
        """Whether another path may be noted."""
        if len(self.unsettled) + len(self.below_floor) + len(self.suspect) + len(self.wrong) < OPEN_MAX:
            return True
        self.overflowed = True
        return False


@dataclass(frozen=True, slots=True)
class Copy:
    """Another copy of a slot, as the route names it."""

    node: str
    incarnation: str
    slot: int


def take(
    copy: Copy,
    items: Sequence[PathItem],
    taken: Taken,
    states: Mapping[bytes, bytes] | None = None,
    *,
    marks: bool = False,
) -> Steps[None]:
    """Install what these items of another copy have that is lacking here, durably; the rest is noted in ``taken``.

    Args:
        states: by path key, what the own digests say; given when the items are told because theirs differ.
        marks: also what write ids did, where nothing else is lacking: they are in no digest, and one copy may remember more than another.
    """
    slot = copy.slot
    for few in by_few(items, OWN_ITEMS_FEW):
        mine = yield from own_items(slot, [item.path for item in few])
        floor = (yield from own_state(slot)).ballot_floor
        changes: list[Installed] = []
        for theirs in few:
            own = mine.get(theirs.path)
            verdict = weigh(slot, own, theirs, floor)
            if verdict.install is not None:
                taken.paths += 1
                taken.size_bytes += verdict.size_bytes
                changes.append(verdict.install)
            elif marks and not verdict.below_floor and own is not None and not set(theirs.writes).issubset(own.writes):
                changes.append(Installed(slot, theirs.path, None, None, (), theirs.writes))
            if verdict.unsettled and taken.has_room():
                taken.unsettled[theirs.path] = (own.ballot if own is not None else None, theirs.ballot)
            if verdict.below_floor and taken.has_room():
                taken.below_floor.add(theirs.path)
            if verdict.suspect and taken.has_room():
                taken.suspect.add(theirs.path)
            if states is not None and verdict == NOTHING and _has_wrong_digest(own, states) and taken.has_room():
                taken.wrong.add(theirs.path)
            if (theirs.more_below or (own is not None and own.more_below)) and not (
                verdict.unsettled or verdict.below_floor
            ):
                yield from install(changes)
                changes = []
                yield from _take_below(copy, own, theirs, taken)
        yield from install(changes)
    yield from flush()


def _has_wrong_digest(own: PathItem | None, states: Mapping[bytes, bytes]) -> bool:
    """Whether nothing differs from the other copy but the digests, and it is the own one that is wrong."""
    return own is not None and own.more_below is None and states.get(path_key(own.path)) != state_of(own)


def _take_below(copy: Copy, mine: PathItem | None, theirs: PathItem, taken: Taken) -> Steps[None]:
    """Go on with the older rows of a path that has too many for one answer."""
    slot, path = copy.slot, theirs.path
    expired = expired_of(mine, theirs)
    own, other = mine, theirs
    while True:
        # Both tell their rows down to here; what lies below is read next.
        below = max(other.more_below or 0, (own.more_below if own is not None else None) or 0)
        if below == 0:
            return
        own = (yield from own_items(slot, (path,), below=below)).get(path)
        pulled = yield from pull_paths(copy.node, copy.incarnation, slot, (path,), below=below)
        if not pulled:
            return
        other = pulled[0]
        bottom = max(other.more_below or 0, (own.more_below if own is not None else None) or 0)
        if bottom >= below:
            raise PeerError(f"{copy.node} tells the rows of a path in no order")
        lacking, differing = weigh_rows(own.rows if own is not None else (), other.rows, expired=expired, bottom=bottom)
        if lacking:
            taken.paths += 1
            taken.size_bytes += sum(row.size for row in lacking)
            yield from install([Installed(slot, path, None, None, lacking)])
        if differing and taken.has_room():
            taken.suspect.add(path)


def settle_all(slot: int, paths: Iterable[str]) -> Steps[str]:
    """Finish these by rounds; why not all of them could be ("" if they could)."""
    why = ""
    for path in paths:
        try:
            yield Settle(slot, path)
        except ClusterError as error:
            why = f"undecided: {error}"
    return why


def refresh_all(copy: Copy, paths: Iterable[str]) -> Steps[str]:
    """Propose what that copy has of these again; why not all of them could be ("" if they could)."""
    why = ""
    for path in paths:
        try:
            yield Refresh(copy.slot, path, copy.node)
        except ClusterError as error:
            why = f"below the ballot floor: {error}"
    return why


def still_as_seen(before: Mapping[str, Seen], now: Mapping[str, Seen]) -> list[str]:
    """The paths that nobody has worked on in between."""
    return [path for path, seen in now.items() if before.get(path) == seen]
