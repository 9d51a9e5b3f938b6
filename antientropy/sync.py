"""Sync: a session that fills a copy that began blank, so that it may vote (rfc/0012).

The proof is this: every page of the slot, from so many voters that one of them has whatever was chosen, each of them synced, each
answer given in an epoch not before the one in which this copy was named. An answer in that epoch fences older ones, so
what was chosen with the vote of the copy that was lost is in one of these answers, or never was chosen. A register that
is not decided there hides what was chosen under it; a round brings that out before the page counts.

What a voter told counts as long as it is the same copy and this copy is the same: :class:`Progress` keeps it between sessions
of one process. A voter that failed is replaced by another one, which is read from its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amberblob.ballot import BALLOT_ZERO, Ballot
from amberblob.errors import PeerError
from amberblob.mutations import Synced
from amberblob.wire_repair import ItemsReply, PullSlot
from antientropy.needs import Steps, ask, checked_page, make_voter, pull_paths
from antientropy.taking import Copy, Taken, refresh_all, settle_all, take


@dataclass(slots=True)
class Walk:
    """How far one voter was read.

    Attributes:
        incarnation: of its copy.
        after: the pages up to here are installed.
        done: all of them are.
        epoch: the lowest in which one of them was told.
    """

    incarnation: str
    after: str = ""
    done: bool = False
    epoch: int = 0
    ballot_floor: Ballot = BALLOT_ZERO
    version_floor: int = 0


@dataclass(slots=True)
class Progress:
    """What was read for one blank copy: the one of ``incarnation``, that was named in epoch ``since``."""

    slot: int
    incarnation: str
    since: int
    walks: dict[str, Walk] = field(default_factory=dict)
    taken: Taken = field(default_factory=Taken)


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """What came of it: the copy votes (``why`` is empty), or why not yet."""

    why: str = ""


def needed(voters: int) -> int:
    """How many other voters have to be read: a majority of all.

    With two voters both have whatever was chosen, so the other one is enough (and all that there is).
    """
    return min(voters // 2 + 1, voters - 1)


def sync(
    node: str, progress: Progress, epoch: int, voters: Mapping[str, str], order: Sequence[str]
) -> Steps[SyncResult]:
    """Fill the copy and make it a voter.

    Args:
        node: this node.
        progress: what was read before; it is brought up to date page by page.
        epoch: the route's, ``progress.since`` or later.
        voters: the route's, node to incarnation, this copy included.
        order: whom to ask, nearest first: nodes of ``voters``.
    """
    assert epoch >= progress.since >= 1, "the route names this copy"
    assert voters.get(node) == progress.incarnation, "the route names this copy"
    count = needed(len(voters))
    if count == 0:
        return SyncResult(why="no other voter has the slot")
    failures: dict[str, str] = {}
    candidates = [peer for peer in order if peer != node and peer in voters]
    # Whoever was read to its end needs no more reading, and whoever was begun less.
    candidates.sort(key=lambda peer: not _known(progress, peer, voters[peer]).done)
    read: list[str] = []
    for peer in candidates:
        if len(read) == count:
            break
        try:
            why = yield from _walk(Copy(peer, voters[peer], progress.slot), progress, epoch)
        except PeerError as error:
            why = str(error)
        if why:
            failures[peer] = why
        else:
            read.append(peer)
    if len(read) < count:
        told = "; ".join(f"{peer}: {why}" for peer, why in sorted(failures.items()))
        return SyncResult(why=f"{len(read)} of the {count} voters that are needed could be read ({told})")
    walks = [progress.walks[peer] for peer in read]
    done = Synced(
        progress.slot,
        min(walk.epoch for walk in walks),
        max(walk.ballot_floor for walk in walks),
        max(walk.version_floor for walk in walks),
    )
    still = yield from make_voter(progress.incarnation, done)
    return SyncResult(why="" if still else "the copy was lost while it was filled")


def _known(progress: Progress, peer: str, incarnation: str) -> Walk:
    """What was read of this voter; a copy that lost its memory is another voter."""
    walk = progress.walks.get(peer)
    if walk is None or walk.incarnation != incarnation:
        walk = progress.walks[peer] = Walk(incarnation)
    return walk


def _walk(copy: Copy, progress: Progress, epoch: int) -> Steps[str]:
    """Read one voter to its end; why that was not possible ("" if it was)."""
    walk = _known(progress, copy.node, copy.incarnation)
    while not walk.done:
        request = PullSlot(slot=copy.slot, epoch=epoch, after=walk.after)
        reply = yield from ask(copy.node, request, ItemsReply)
        page = checked_page(copy.node, copy.incarnation, walk.after, reply)
        if page.epoch < progress.since:
            return f"answers in epoch {page.epoch}, before {progress.since}"
        why = yield from _take_page(copy, page, progress.taken)
        if why:
            return why
        walk.epoch = min(walk.epoch or page.epoch, page.epoch)
        walk.ballot_floor = max(walk.ballot_floor, page.ballot_floor)
        walk.version_floor = max(walk.version_floor, page.version_floor)
        if page.next_after is None:
            walk.done = True
        else:
            walk.after = page.next_after
    return ""


def _take_page(copy: Copy, page: ItemsReply, total: Taken) -> Steps[str]:
    """Install a page; what is undecided in it is finished first, so that what it hid comes out."""
    taken = Taken()
    yield from take(copy, page.items, taken)
    why = "more is undecided than one session settles; it goes on" if taken.overflowed else ""
    if taken.unsettled or taken.below_floor:
        again = [*taken.unsettled, *taken.below_floor]
        unsettled = yield from settle_all(copy.slot, list(taken.unsettled))
        unrefreshed = yield from refresh_all(copy, sorted(taken.below_floor))
        why = unsettled or unrefreshed or why
        # A round that began after this voter had left the older epochs has made whatever was chosen in them part of a record
        # that is chosen in the new one. What is undecided on top of that by now is a write that knows it.
        items = yield from pull_paths(copy.node, copy.incarnation, copy.slot, again)
        taken.below_floor.clear()
        yield from take(copy, items, taken)
        if taken.below_floor and not why:
            # Then this voter's versions of it were not taken over, and it may be the only one of those read that has them.
            why = f"{len(taken.below_floor)} paths stay below the ballot floor"
    total.paths += taken.paths
    total.size_bytes += taken.size_bytes
    return why
