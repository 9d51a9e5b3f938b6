"""How a voter that lost its memory becomes one again on its own node. This docstring is the specification (rfc/0012).

A disk is replaced by an empty one, or a slot's database is lost. The copy is dead: what it accepted and promised is gone.
:mod:`sim.model.membership` would move the slot away from it, by way of a JOINT epoch and an operator. Here the node does it alone,
without JOINT, because the set of nodes stays as it is. The numbers go on from there.

**The route**

11. The node makes a blank copy under a new incarnation, durably, that no route ever named, and changes the route by compare-and-set to the
    next epoch: the same members, its own one replaced, and ``since`` of the new one = that epoch. Only from a STABLE route
    to a STABLE one. Whether it came about is read from the route: if the route does not name the copy, the next try has
    another one. Learners stay.
12. ``since`` belongs to the member, in all routes that name it, JOINT ones included (the mutant ``since-forgotten``). A copy that a JOINT route
    names first has none: in a JOINT epoch blank copies answer, and have to (rule 6).

**Mute**

13. A copy that was readmitted is *mute* as long as its own ``synced_epoch`` is below its ``since``, or no route names it. It
    answers nothing: no PREPARE, COMMIT, read, sync, no page for another copy, no question of a collector. And it hears
    nothing: a LEARN may be late, and tell of a record whose stub was collected meanwhile; the floors would keep it out, but
    the copy does not know them yet (``mute-learns``). *Once it has its floors it may take any LEARN, those for its predecessors on the node
    included* (in these worlds it is given them), so what was learnt need not name an incarnation for readmission's sake; rule 4 stays, for JOINT.
14. Quorums are counted from all voters that the route names, mute ones among them: ⌊N/2⌋+1 of three or five, never of those
    that have a voice. As many may be mute or dead at one time as a set can lose: a minority.

**Sync**

15. The copy reads the slot page by page, in any order. Each page is asked of all voters, in the newest route that its node knows (so in
    an epoch >= ``since``), and counts once a majority of them has answered it in that epoch. The copy itself is none
    of them, nor is any other mute one (``mute-counts``). Each answer adopts the epoch first, durably. Pages may be of different epochs and
    of different majorities.
16. Of each path the highest ballot of a page counts. If its record is not known to be chosen (rule 8b, in JOINT too), a round
    finishes it, and the page is read again.
    *Of two voters* the other one is enough, and its last word is taken as it is: what it accepted is chosen as soon as the blank copy has it. No
    round can finish it, since each needs both. None is needed: whatever was chosen, that one had accepted; it has left the older epochs,
    and accepts nothing in later ones as long as this copy is mute.
17. A page is installed when it comes: chosen registers, never over a higher ballot; the union of rows and of write ids. **The floors
    only with the last one**: records of other paths may well be below them, and are taken nevertheless.
18. When all pages are installed, the copy is synced, in one transaction: the highest floors that any answer told, and ``synced_epoch`` = the
    *lowest* epoch in which a page was read. (So a sync that began before a JOINT epoch does not count for its FINAL, rule 9.)
    The sync of rule 8 makes a mute copy that a JOINT epoch keeps a voter as well: it is the same, and in a later epoch.
19. A crash in the middle loses nothing but time: the pages stay, the next sync reads all of them again. A copy that is lost again is
    replaced again, by rule 11.

**Why this is safe**

    Say that x was replaced by x', first named in epoch s, and that v was chosen before s by a majority M of the set, x in it perhaps.
    While x' is mute, whoever has a majority of the new set has the same copies as a majority of the old one: the two meet.
    When x' is synced, every page was read from a majority Q, without x', in epochs >= s. Q meets M, in a copy that had accepted v when it
    was asked for the page: afterwards it is in an epoch >= s, and takes no older ballot. (Without that, an accept of x that was told before
    its end, and one that comes to another copy after its page was read, are a majority together: the mutant ``readmit-no-fence``.)
    So x' has v or what followed it, just as x had. What is chosen from s on, while x' is mute, is on a majority without it.
    What x promised was of epochs below s. A round in such an epoch needs, besides x, others that have left it.
    By induction over the losses: whatever was chosen is on every majority of copies with a voice, or would be once the mute ones are synced.

**Garbage**

20. No stub is collected while a voter is mute. It may have read a page with what the stub deleted, and the floors that it was told of may be
    those of before (``gc-with-mute``). It follows from rule 13, if a collector asks *every* voter that is named.
    A collection that the epoch of the readmission overtakes does no harm: each copy removes the stub or has left that epoch.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from sim.model.membership import settle
from sim.model.replica import Copy, Snapshot
from sim.model.values import ZERO, Ballot, CopyId, Route, following, node_of, quorate
from sim.model.world import Answers, Ask, Node, Wait

PAGE_TRIES = 6
"""How often a page is asked for before the node looks at the registry again."""


def rejoin(node: Node) -> Generator[Wait, Any, None]:
    """Rules 11 to 19, as a process of the node that goes on until its copy has a voice, or until no route wants one here."""
    world = node.world
    counts = world.counts
    while True:
        yield 0.1 + world.random.random() * (0.5 if world.calm else min(3.0, world.shape.page_delay))
        registry = world.registry
        if registry.out or node.blind:
            counts["readmissions that could not reach the registry"] += 1
            continue
        route = registry.route
        node.meet(route)
        if node.copy is None or node.copy.number not in route.told:
            if not any(node_of(voter) == node.number for voter in route.voters):
                return
            if route.joint:
                counts["readmissions that waited for the end of a JOINT epoch"] += 1
                yield 2.0
                continue
            yield from readmit(node, route)
        copy = node.copy
        if copy is None or copy.number not in node.route.told:
            continue
        if not copy.unsynced:
            return
        done = yield from fill(node, copy)
        if done:
            return


def needs(node: Node) -> bool:
    """Whether the node has something to rejoin for, as far as it knows when it starts."""
    return node.copy is None or node.copy.unsynced


def readmit(node: Node, route: Route) -> Generator[Wait, Any, None]:
    """Rule 11: a new incarnation in the place of the one that is lost."""
    world = node.world
    fresh = Copy(world.mint(node.number), node.route, world.rules, heeds_next=node.heeds_next, readmitted=True)
    node.copy = fresh
    yield world.random.random() * min(1.0, world.shape.page_delay)
    voters = tuple(fresh.number if node_of(voter) == node.number else voter for voter in route.voters)
    wanted = following(world.rules, route, voters, None, route.learners, fresh.number)
    if node.copy is fresh and world.registry.change(route, wanted):
        world.counts["copies readmitted"] += 1
        node.meet(wanted)


def fill(node: Node, copy: Copy) -> Generator[Wait, Any, bool]:
    """Rules 15 to 18: read all pages, then have a voice; whether that came about."""
    world = node.world
    lowest, ballot_floor, version_floor = node.route.epoch, ZERO, 0
    began = node.route.epoch
    for path in range(world.shape.paths):
        told = yield from _page(node, copy, path)
        if told is None:
            world.counts["readmissions that have to begin anew"] += 1
            return False
        epoch, ballots, versions = told
        lowest = min(lowest, epoch)
        ballot_floor, version_floor = max(ballot_floor, ballots), max(version_floor, versions)
    yield _pause(node)
    if node.copy is not copy:
        return False
    copy.become_synced(lowest, ballot_floor, version_floor)
    world.counts["readmitted copies synced"] += 1
    if node.route.epoch > began:
        world.counts["readmissions that saw a newer route"] += 1
    world.note("copy %d is synced in epoch %d and has a voice", copy.number, lowest)
    return True


def _pause(node: Node) -> float:
    """A slot is large; its pages take their time."""
    return 0.05 if node.world.calm else node.world.random.random() * node.world.shape.page_delay


def _page(node: Node, copy: Copy, path: int) -> Generator[Wait, Any, tuple[int, Ballot, int] | None]:
    """Read one page and install it; its epoch and the highest floors that came with it. None: it did not come about."""
    world = node.world
    rules = world.rules
    for _ in range(PAGE_TRIES):
        yield _pause(node)
        route = node.route
        if node.copy is not copy or copy.number not in route.told:
            return None
        sources = tuple(voter for voter in route.voters if voter != copy.number)
        survivor = rules.survivors_decide and copy.number in route.voters and len(route.voters) == 2
        needed = 1 if survivor else len(route.voters) // 2 + (1 if rules.readmissions_ask_majority else 0)
        answers: Answers = yield Ask(sources, Copy.page, (route, path), ((sources, needed),))
        for refused in answers.refusals:
            node.meet(refused.route)
        pages: dict[CopyId, Snapshot] = answers.replies
        if not quorate(((sources, needed),), pages):
            continue
        found = yield from settle(node, route, pages, trusting=survivor or not rules.readmissions_ask_majority)
        if found is None:
            world.counts["pages that had to be finished"] += 1
            continue
        if node.copy is not copy:
            return None
        shown = list(pages.values())
        copy.take_page(found, shown)
        world.note("copy %d has page %d of epoch %d from %s: %s", copy.number, path, route.epoch, sorted(pages), found)
        return route.epoch, max(page.ballot_floor for page in shown), max(page.version_floor for page in shown)
    return None
