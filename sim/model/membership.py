"""How the voters of a slot change. This docstring is the specification (rfc/0007); issue 6 builds it in the real code.

A route is {epoch, voters, joining, learners}; STABLE when ``joining`` is None, JOINT otherwise. ``voters`` are the ones
that hold the slot (the *old* set in a JOINT epoch), ``joining`` is the whole *new* set, which may share copies with the
old one. Members are **copies**: a node together with an incarnation.

**Routes**

 1. A route changes only by compare-and-set in the registry, from the very route that was read to one whose epoch is
    higher by one. So an epoch names one route, for ever.
 2. Allowed changes: STABLE(V) → STABLE(V) with other learners; STABLE(V) → JOINT(V, V'); JOINT(V, V') → STABLE(V')
    (*FINAL*, rule 9); JOINT(V, V') → STABLE(V) (*abort*, at any time, without conditions). Two different sets of voters
    never follow each other without a JOINT epoch of both. (One exception has rules of its own: a copy that lost its memory, and its
    successor on the same node, :mod:`sim.model.readmission`.)
 3. Whoever changes routes keeps nothing. Each step may be the last one of its operator; the next one, here or elsewhere,
    reads the route and goes on from there. Two at once cost nothing but the loser's effort.

**Epochs at the copies**

 4. Every request bears its epoch: PREPARE, COMMIT, *and reads*, sync, collection. A copy refuses a lower epoch than its own.
    A higher one it adopts before it answers, durably: whoever answered in epoch E never again answers in a lower one.
    LEARN is exempt: what is chosen stays chosen. But it names the copy that it is for: one that comes late, for a
    copy that is no more, would tell its blank successor of a record whose stub was collected since, before the successor knows
    the floors (the mutant ``learn-any-copy``, which the model itself had at first). A ballot's epoch is the epoch of its messages.
 5. Only the answers of copies that the coordinator's route names, by incarnation, as voters are *heard at all*. It is not enough
    not to count the others: a copy that is not named may remember a record whose stub was collected since, and
    who weighs it brings back what was deleted (the mutant ``strangers-heard``). Learners are sent COMMIT and LEARN, never asked.

**Quorums**

 6. STABLE: a majority of V. JOINT: a majority of V *and* a majority of V', for COMMIT, for PREPARE, and for reads. Of a
    new copy that is still blank the answers count here: it says that it has not left the epoch, and that is what is asked.
    *The design said that reads use the old set until FINAL. That is unsafe*: a reader that has not heard of FINAL asks old
    voters that have not heard either, and shows what the new set has long overwritten. The old set has no way to know.
    PREPARE alone may answer a client too (412, 404, a retry), so it is a read in this.

**New copies**

 7. A copy that a route names for the first time is blank. Its incarnation is minted by the node, durably, when the
    operator asks for an *offer*; each offer has a new one and withdraws the one before. When the node first meets
    a route that names its offer, it wipes what it has of the slot and becomes that copy, in one transaction that uses
    the offer up. So no copy ever comes back with old memory, and none that lost its disk comes back as itself.
    A set that names an offer which was withdrawn has a dead copy; then abort, or go on if a majority is alive.

**Sync** (of a copy, in a JOINT epoch E)

 8. a. The copy asks V for snapshots in epoch E. Each answer adopts E first (rule 4), so once a majority of V has answered,
       nothing can become chosen in an epoch below E any more. That replaces "a sync begun after every node acknowledged
       JOINT": no other node has to acknowledge anything, and one that is down does not hold the move up.
    b. Of each path the highest accepted ballot among that majority counts. If its record is not known to be chosen, it is
       finished by an ordinary round in E, and the sync asks again. That a majority of V holds a ballot proves that it is chosen
       only if its epoch is below E: in E itself that is half of what it takes. (The model had this wrong at first and was caught by a seed; it is
       too rare to be a mutant that 10,000 seeds of any shape would catch, so no switch stands for it.)
    c. In one transaction, and only if the copy is still in E: the chosen registers (never over a higher ballot), the union
       of the rows, the union of the write ids, and the highest of the floors. Then the copy is *synced in E*.
    A sync in another epoch (as a learner, or in an earlier JOINT that was aborted) saves work, and counts for nothing.
    A large slot is copied in pieces. A piece is as good as the whole if each is answered in E: what is chosen in E after
    a piece was read is on a majority of V' anyway.

 9. FINAL needs that **a majority of V' is synced in E**, copies that V and V' share included.
    *The design asked that each new voter be synced. That is too little when the set shrinks* (five copies to three:
    no new voter at all, and two of the three may have missed what the other three chose), and more than safety needs
    when it does not. An operator still waits for all new copies that are alive, for redundancy's sake.

**Why this is safe**

    Let v be chosen at ballot b in epoch e, and let a later quorum be asked in epoch E' >= e. If both are of one set, they
    meet. An abort goes back to V, and every JOINT choice is on a majority of V. After a FINAL: if b is of the
    JOINT epoch, v is on a majority of V'. If it is older, then b was accepted by a majority of V before they adopted E
    (8a), so every sync has v or something later, and a majority of V' synced. Either way the set V' stands as if it had
    chosen v itself, and so on by induction over the epochs. Coordinators that lag: one in an epoch below E meets no majority of V
    that has not adopted E; one in E itself meets no majority of V' once anything was chosen above E.
    Rows and write ids: on a majority of the set, by the same argument, because an accept writes the predecessor's.

**Garbage**

10. Stubs are collected in STABLE epochs without learners only (:mod:`sim.model.garbage`). That and rule 7 are why a
    sync never has to remove anything.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from sim.model.coordinator import finish, weigh
from sim.model.replica import Copy, Snapshot
from sim.model.values import CopyId, Register, Route, following, majority_of, make_route, node_of, quorate
from sim.model.world import Answers, Ask, Node, Wait, World

POLLS = 6
"""How often an operator looks whether the copies are synced before it leaves the move to the next one."""

SYNC_TRIES = 5


# ---- a copy syncs


def sync(node: Node, copy: CopyId, route: Route) -> Generator[Wait, Any, bool]:
    """Rule 8, as a process of the copy's node; whether it was done."""
    world = node.world
    rules = world.rules
    if not world.calm:
        yield world.shape.sync_delay * world.random.random()
    needed = (majority_of(route.voters),) if rules.syncs_ask_majority else ()
    asked = route.voters if rules.syncs_ask_majority else (route.voters[world.random.randrange(len(route.voters))],)
    for attempt in range(SYNC_TRIES):
        if attempt:
            yield 1.0 + world.random.random() * 2
        if node.copy is None or node.copy.number != copy or node.copy.route.epoch > route.epoch:
            return False
        answers: Answers = yield Ask(asked, Copy.snapshot, (route,), needed)
        snapshots: dict[CopyId, Snapshot] = answers.replies
        if not quorate(needed, snapshots) or not snapshots:
            continue
        found = yield from settle(node, route, snapshots, trusting=not rules.syncs_ask_majority)
        if found is None:
            continue
        if node.copy is None or node.copy.number != copy:
            return False
        if node.copy.install(route, found, list(snapshots.values())):
            world.counts["syncs"] += 1
            world.note("copy %d synced in epoch %d from %s: %s", copy, route.epoch, sorted(snapshots), found)
            return True
    return False


def settle(
    node: Node, route: Route, snapshots: dict[CopyId, Snapshot], *, trusting: bool
) -> Generator[Wait, Any, dict[int, Register] | None]:
    """The chosen register of each path; None if one had to be finished first.

    ``trusting``: a broken rule has asked too few to tell what is decided, and takes everything for it.
    """
    old = make_route(node.world.rules, route.epoch, route.voters)
    found: dict[int, Register] = {}
    undecided = False
    for path in dict.fromkeys(path for snapshot in snapshots.values() for path in snapshot.registers):
        registers = {
            copy: snapshot.registers[path] for copy, snapshot in snapshots.items() if path in snapshot.registers
        }
        finding = weigh(node, old, registers)
        decided = finding.decided
        if decided and route.joint and finding.register.accepted[0] == route.epoch:
            decided = finding.register.chosen or finding.register.record is None
        if decided or trusting:
            found[path] = Register(finding.register.accepted, finding.register.record, True)
        elif node.world.rules.syncs_finish:
            node.world.counts["syncs that had to finish"] += 1
            undecided = True
            yield from finish(node, path)
    return None if undecided else found


# ---- an operator


def _request_syncs(node: Node, route: Route, copies: tuple[CopyId, ...], running: dict[CopyId, bool]) -> None:
    """Ask copies to sync. A copy that is at it already is left alone."""
    world = node.world

    def begin(target: Node, copy: CopyId) -> None:
        target.meet(route)
        found = target.copy
        if found is None or found.number != copy or running.get(copy):
            return
        if found.synced_epoch >= (route.epoch if world.rules.syncs_are_of_this_epoch else 1):
            return
        running[copy] = True

        def ended(_done: bool) -> None:
            running[copy] = False

        target.start(sync(target, copy, route), ended)

    for copy in copies:
        target = world.nodes[node_of(copy)]
        world.transmit(node.number, target.number, begin, (target, copy))


def _synced(node: Node, route: Route, copies: tuple[CopyId, ...]) -> Generator[Wait, Any, set[CopyId]]:
    """Which of the copies say that they are synced."""
    answers: Answers = yield Ask(copies, Copy.sync_status, (route,), ())
    return {copy for copy, reply in answers.replies.items() if reply.done}


def _offers(node: Node, places: list[int]) -> Generator[Wait, Any, list[CopyId]]:
    """New incarnations, as the nodes offer them (rule 7)."""
    world = node.world
    offered: list[CopyId] = []

    def offer(target: Node) -> None:
        target.candidate = world.mint(target.number)
        world.transmit(target.number, node.number, offered.append, (target.candidate,))

    for place in places:
        world.transmit(node.number, place, offer, (world.nodes[place],))
    for _ in range(4):
        yield 2.0
        if len(offered) >= len(places):
            break
    newest = {node_of(copy): copy for copy in offered}
    return [newest[place] for place in places if place in newest]


def plan(world: World, route: Route) -> tuple[list[CopyId], list[int]]:
    """Which voters stay, and on which nodes new copies begin."""
    random = world.random
    alive = [copy for copy in route.voters if world.exists(copy)]
    dead = len(route.voters) - len(alive)
    places = [node.number for node in world.nodes if node.copy is None or node.copy.number not in alive]
    random.shuffle(places)
    if dead:
        return alive, places[:dead]
    size = len(route.voters)
    wish = random.random()
    if size == 1 and wish < 0.6:
        return alive, places[:2]
    if size >= 5 and wish < 0.7:
        random.shuffle(alive)
        return alive[: size - 2], places[: random.randrange(2)]
    if size < 5 and wish < 0.15:
        return alive, places[: random.choice((1, 2))]
    swapped = min(2, len(places)) if random.random() < world.shape.swap_two else 1
    random.shuffle(alive)
    return alive[swapped:] if len(places) >= swapped else alive, places[:swapped]


def operate(node: Node, *, until_stable: bool = False) -> Generator[Wait, Any, None]:
    """One operator: begin a move, or take up the one that somebody left, and bring it as far as it goes.

    ``until_stable``: do not choose to move anything but dead copies; for the time after the faults.
    """
    world = node.world
    running: dict[CopyId, bool] = {}
    yield 0.1 + world.random.random() * (0.1 if world.calm else 3.0)
    route = world.registry.route
    if world.registry.out:
        world.counts["registry out"] += 1
        return
    node.meet(route)
    if not route.joint:
        began = yield from _begin(node, route, running, until_stable=until_stable)
        if began is None:
            return
        route = began
    else:
        world.counts["moves taken up"] += 1
        if not until_stable and world.random.random() < 0.2:
            yield from abort(node, route)
            return
    done = yield from complete(node, route, running)
    if not done and until_stable:
        yield from abort(node, route)


def _begin(
    node: Node, route: Route, running: dict[CopyId, bool], *, until_stable: bool
) -> Generator[Wait, Any, Route | None]:
    """From STABLE to JOINT, perhaps by way of learners; None if that did not come about."""
    world, rules = node.world, node.world.rules
    if route.learners and (until_stable or world.random.random() < 0.7):
        # Somebody left them: take them in, or let them go.
        new = [copy for copy in route.learners if world.exists(copy)]
        kept = [copy for copy in route.voters if world.exists(copy)]
        if until_stable or not new or world.random.random() < 0.5:
            changed = following(rules, route, route.voters)
            if not world.registry.change(route, changed):
                return None
            route, new = changed, []
            kept, places = plan(world, route)
        else:
            kept = kept[: max(len(route.voters) - len(new), 1)]
            places = []
    else:
        kept, places = plan(world, route)
        new = []
    if until_stable and len(kept) == len(route.voters):
        return None
    if places:
        new = yield from _offers(node, places)
    joining = (*kept, *new)
    if joining == route.voters or len(joining) < min(3, len(route.voters)):
        return None
    if new and not route.learners and not until_stable and world.random.random() < world.shape.learner_phase:
        learning = following(rules, route, route.voters, None, tuple(new))
        yield world.random.random()
        if not world.registry.change(route, learning):
            return None
        world.counts["learner phases"] += 1
        route = learning
        node.meet(route)
        _request_syncs(node, route, tuple(new), running)
        yield world.random.random() * world.shape.learning
    if not rules.moves_are_joint:
        world.registry.change(route, following(rules, route, joining))
        return None
    joint = following(rules, route, route.voters, joining)
    yield world.random.random()
    if not world.registry.change(route, joint):
        return None
    world.counts["moves begun"] += 1
    node.meet(joint)
    return joint


def complete(node: Node, route: Route, running: dict[CopyId, bool]) -> Generator[Wait, Any, bool]:
    """From JOINT to FINAL (rules 8 and 9)."""
    world, rules = node.world, node.world.rules
    assert route.joining is not None
    joining = route.joining
    new = tuple(copy for copy in joining if copy not in route.voters)
    patient = world.random.random() < 0.5
    for poll in range(POLLS):
        if not rules.final_awaits_sync:
            break
        _request_syncs(node, route, joining if rules.final_counts_kept else new, running)
        yield 3.0 if world.calm else 0.5 + 6.0 * world.random.random()
        if world.registry.route is not route and rules.routes_by_compare:
            return False
        synced = yield from _synced(node, route, joining)
        if not rules.final_counts_kept:
            if synced.issuperset(new) or quorate((majority_of(joining),), synced):
                break
            continue
        waits = patient and poll < POLLS - 1 and not synced.issuperset(new)
        if quorate((majority_of(joining),), synced) and not waits:
            break
    else:
        world.counts["moves left in the middle"] += 1
        return False
    final = following(rules, route, joining)
    if not world.registry.change(route, final):
        return False
    world.counts["moves completed"] += 1
    if len(joining) < len(route.voters):
        world.counts["sets that shrank"] += 1
    node.meet(final)
    return True


def abort(node: Node, route: Route) -> Generator[Wait, Any, None]:
    """Back to the old set. Always allowed: whatever was chosen in the JOINT epoch is on a majority of it too."""
    yield 0.5
    world = node.world
    assert route.joining is not None
    new = tuple(copy for copy in route.joining if copy not in route.voters) if world.shape.learners_first else ()
    if world.registry.change(route, following(world.rules, route, route.voters, None, new)):
        world.counts["moves aborted"] += 1
