"""Sync: a session that fills a copy from a majority, so that it may vote (rfc/0012), or that its slot may move on (rfc/0013).

Three kinds of copies are filled: a voter that began blank where another was lost; a learner, that is to become a voter; and, while a
slot moves, each member of the new set once more, also if it was a voter all the time. The *sources* are the voters of the
route, or, while the slot moves, those of the old set.

The proof is this: every page of the slot, from so many sources that one of them has whatever was chosen, each of them synced, each
answer given in an epoch not before the one in which this is needed. An answer in that epoch fences older ones, so
what was chosen in those is in one of these answers, or never was chosen. A register that
is not decided there hides what was chosen under it; a round brings that out before the page counts. Only what its source knows to
be chosen is taken over: while the slot moves, that a majority of the old set has accepted something is half of what it takes.

A copy that votes in the old set and in the new one is itself one of the sources that it needs. What holds for the others' answers holds for
it: it leaves the older epochs durably, and what is undecided in it is finished by rounds, before it counts.

Where two voters are all there are, and this copy is the one that began blank, no round can finish anything: each needs both. None is needed
either. Whatever was chosen, the other one had accepted. It has left the epochs before this copy was named, and accepts nothing in
later ones as long as this copy is mute. So what it accepted last is the only thing that may be chosen of a path, and is chosen as soon as
this copy has it as well.

What a source told counts as long as it is the same copy, this copy is the same and the sources are the same nodes: :class:`Progress`
keeps it between sessions of one process. One that failed is replaced by another one, which is read from its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from msgspec.structs import replace

from amberblob.ballot import BALLOT_ZERO, Ballot
from amberblob.errors import PeerError
from amberblob.mutations import Synced
from amberblob.wire import Query, RegisterReply
from amberblob.wire_repair import ItemsReply, PathItem, PullSlot
from antientropy.needs import (
    Steps,
    ask,
    by_few,
    checked_page,
    make_voter,
    own_registers,
    own_state,
    own_undecided,
    pull_paths,
    see_epoch,
)
from antientropy.taking import OPEN_MAX, Copy, Taken, refresh_all, settle_all, take

REGISTERS_FEW = 64
"""Own registers that are looked at together."""


@dataclass(slots=True)
class Walk:
    """How far one source was read.

    Attributes:
        incarnation: of its copy.
        after: the pages up to here are installed.
        done: all of them are.
        epoch: the lowest in which one of them was asked for.
    """

    incarnation: str
    after: str = ""
    done: bool = False
    epoch: int = 0
    ballot_floor: Ballot = BALLOT_ZERO
    version_floor: int = 0


@dataclass(slots=True)
class Progress:
    """What was read for one copy: the one of ``incarnation``, which is to be filled in epoch ``since`` or later.

    Attributes:
        nodes: whose pages those are that were read: the sources. Of other ones other majorities count.
        taken: what was taken over; for people.
    """

    slot: int
    incarnation: str
    since: int
    walks: dict[str, Walk] = field(default_factory=dict)
    taken: Taken = field(default_factory=Taken)
    nodes: frozenset[str] = frozenset()

    def needs(self, since: int, nodes: frozenset[str]) -> None:
        """From now on the copy is to be filled in this epoch or later, from these nodes. What does not count for that is forgotten."""
        if nodes != self.nodes:
            self.walks.clear()
        self.nodes, self.since = nodes, since
        # One that has told nothing yet has the epoch 0.
        self.walks = {node: walk for node, walk in self.walks.items() if walk.epoch >= since}


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """What came of it: the copy is filled (``why`` is empty), or why not yet."""

    why: str = ""


def needed(voters: int, *, among: bool, counts: bool) -> int:
    """How many other copies have to be read, so that one of them (or this one) has whatever was chosen by the voters.

    Args:
        among: this copy is one of the voters.
        counts: and one that has a vote, so that it stands for itself.
    """
    majority = voters // 2 + 1
    if not among:
        return majority
    # A blank one has nothing. With two voters both have whatever was chosen, so the other one is enough (and all that there is).
    return majority - 1 if counts else min(majority, voters - 1)


def sync(
    node: str,
    progress: Progress,
    epoch: int,
    sources: Mapping[str, str],
    order: Sequence[str],
    *,
    counts: bool = False,
) -> Steps[SyncResult]:
    """Fill the copy, and say durably that it is.

    Args:
        node: this node.
        progress: what was read before; it is brought up to date page by page.
        epoch: the route's, ``progress.since`` or later. The copy is filled in no later one than this: in later ones the sources may
            be others.
        sources: the route's voters (the old set's, while the slot moves), node to incarnation.
        order: whom to ask, nearest first: nodes of ``sources``.
        counts: this copy is one of the sources and has a vote, so that it counts as one that was read.
    """
    assert epoch >= progress.since >= 1, "the route names this copy"
    assert sources.get(node, progress.incarnation) == progress.incarnation, "the route names this copy"
    assert not counts or node in sources, "only a source counts"
    progress.needs(progress.since, frozenset(sources))
    count = needed(len(sources), among=node in sources, counts=counts)
    if count == 0 and not counts:
        return SyncResult(why="no other voter has the slot")
    if counts:
        why = yield from _leave_older_epochs(progress, epoch)
        if why:
            return SyncResult(why=why)
    survivor = node in sources and not counts and len(sources) == 2
    failures: dict[str, str] = {}
    candidates = [peer for peer in order if peer != node and peer in sources]
    # Whoever was read to its end needs no more reading, and whoever was begun less.
    candidates.sort(key=lambda peer: not _known(progress, peer, sources[peer]).done)
    read: list[str] = []
    for peer in candidates:
        if len(read) == count:
            break
        try:
            why = yield from _walk(Copy(peer, sources[peer], progress.slot), progress, epoch, survivor=survivor)
        except PeerError as error:
            why = str(error)
        if why:
            failures[peer] = why
        else:
            read.append(peer)
    if len(read) < count:
        told = "; ".join(f"{peer}: {why}" for peer, why in sorted(failures.items()))
        return SyncResult(why=f"{len(read)} of the {count} voters that are needed could be read ({told})")
    state = yield from own_state(progress.slot)
    if state.epoch > epoch:
        return SyncResult(why=f"there is a newer route, of epoch {state.epoch}")
    walks = [progress.walks[peer] for peer in read]
    done = Synced(
        progress.slot,
        min((walk.epoch for walk in walks), default=epoch),
        max((walk.ballot_floor for walk in walks), default=BALLOT_ZERO),
        max((walk.version_floor for walk in walks), default=0),
    )
    still = yield from make_voter(progress.incarnation, done)
    return SyncResult(why="" if still else "the copy was lost while it was filled")


def _leave_older_epochs(progress: Progress, epoch: int) -> Steps[str]:
    """Make the own copy one that has told all that was chosen by its vote before ``epoch``; why that is not so yet ("" if it is)."""
    slot = progress.slot
    state = yield from own_state(slot)
    if state.epoch > epoch:
        return f"there is a newer route, of epoch {state.epoch}"
    # Also when a request brought that epoch a moment ago: it may not be on the disk yet.
    still = yield from see_epoch(progress.incarnation, slot, epoch)
    if not still:
        return "the copy was lost while it was filled"
    # What is accepted from here on is of this epoch or a later one, and whoever wrote it knew what was chosen before.
    undecided = yield from _undecided_before(slot, epoch, (yield from own_undecided(slot)))
    few = list(islice(undecided, OPEN_MAX))
    why = yield from settle_all(slot, few)
    if not why and len(few) < len(undecided):
        return "more is undecided than one session settles; it goes on"
    if not why and (left := (yield from _undecided_before(slot, epoch, few))):
        # The round came to its end elsewhere; that it did is told here, too, in a moment.
        return f"{len(left)} paths are undecided here"
    return why


def _undecided_before(slot: int, epoch: int, paths: Sequence[str]) -> Steps[list[str]]:
    """Those of these paths that hold a record of an epoch before ``epoch`` that is not known to be chosen."""
    found: list[str] = []
    for few in by_few(paths, REGISTERS_FEW):
        registers = yield from own_registers(slot, few)
        found.extend(
            path
            for path, register in zip(few, registers, strict=True)
            if not register.chosen and register.accepted is not None and register.accepted.epoch < epoch
        )
    return found


def _known(progress: Progress, peer: str, incarnation: str) -> Walk:
    """What was read of this source; a copy that lost its memory is another one."""
    walk = progress.walks.get(peer)
    if walk is None or walk.incarnation != incarnation:
        walk = progress.walks[peer] = Walk(incarnation)
    return walk


def _walk(copy: Copy, progress: Progress, epoch: int, *, survivor: bool) -> Steps[str]:
    """Read one source to its end; why that was not possible ("" if it was).

    Args:
        survivor: it is the only one of two voters that has a memory.
    """
    walk = _known(progress, copy.node, copy.incarnation)
    while not walk.done:
        request = PullSlot(slot=copy.slot, epoch=epoch, after=walk.after)
        reply = yield from ask(copy.node, request, ItemsReply)
        page = checked_page(copy.node, copy.incarnation, walk.after, reply)
        if page.epoch < progress.since:
            return f"answers in epoch {page.epoch}, before {progress.since}"
        items = page.items
        if survivor:
            items = yield from _with_last_words(copy, items, epoch)
        why = yield from _take_page(copy, items, progress.taken)
        if why:
            return why
        # The copy had left the epochs before the one that it was asked in when it read what it told; later ones perhaps only after.
        told_in = min(page.epoch, epoch)
        walk.epoch = min(walk.epoch or told_in, told_in)
        walk.ballot_floor = max(walk.ballot_floor, page.ballot_floor)
        walk.version_floor = max(walk.version_floor, page.version_floor)
        if page.next_after is None:
            walk.done = True
        else:
            walk.after = page.next_after
    return ""


def _with_last_words(survivor: Copy, items: Sequence[PathItem], epoch: int) -> Steps[tuple[PathItem, ...]]:
    """The same items, in which what the survivor of two voters accepted last is chosen.

    Its answer to the question leaves the older epochs, durably, as its page did. What is damaged there stays undecided.
    """
    found: list[PathItem] = []
    for item in items:
        if item.ballot is not None and not item.chosen:
            request = Query(slot=survivor.slot, path=item.path, epoch=epoch)
            reply = yield from ask(survivor.node, request, RegisterReply)
            if reply.incarnation != survivor.incarnation:
                raise PeerError(f"{survivor.node} answered for another copy than the route names", code="not-a-member")
            record = reply.record
            # A path that rotted there is told without its versions, whatever they were: its history would be lost with that.
            is_whole = record is not None and (record.previous is None or bool(item.rows))
            if is_whole and not reply.chosen and reply.accepted == item.ballot:
                item = replace(item, record=record, chosen=True)
        found.append(item)
    return tuple(found)


def _take_page(copy: Copy, items: Sequence[PathItem], total: Taken) -> Steps[str]:
    """Install a page; what is undecided in it is finished first, so that what it hid comes out."""
    taken = Taken()
    yield from take(copy, items, taken, marks=True)
    why = "more is undecided than one session settles; it goes on" if taken.overflowed else ""
    if taken.unsettled or taken.below_floor:
        again = [*taken.unsettled, *taken.below_floor]
        unsettled = yield from settle_all(copy.slot, list(taken.unsettled))
        unrefreshed = yield from refresh_all(copy, sorted(taken.below_floor))
        why = unsettled or unrefreshed or why
        # A round that began after this voter had left the older epochs has made whatever was chosen in them part of a record
        # that is chosen in the new one. What is undecided on top of that by now is a write that knows it.
        told = yield from pull_paths(copy.node, copy.incarnation, copy.slot, again)
        taken.below_floor.clear()
        yield from take(copy, told, taken, marks=True)
        if taken.below_floor and not why:
            # Then this voter's versions of it were not taken over, and it may be the only one of those read that has them.
            why = f"{len(taken.below_floor)} paths stay below the ballot floor"
    total.paths += taken.paths
    total.size_bytes += taken.size_bytes
    return why
