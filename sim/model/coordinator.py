"""The rounds: what ``node.protocol.write`` and ``node.protocol.read`` do, as processes of a node.

Any node coordinates; it keeps nothing durable and may die anywhere. A write is PREPARE, decide, COMMIT, and LEARN in
the background. The commit point is the accept that makes a majority (of each set, in a JOINT epoch) durable.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

from sim.model.replica import Copy, Promised, Refused, read_all
from sim.model.values import (
    EMPTY,
    MARKS_IN_RECORD,
    ZERO,
    Ballot,
    Mark,
    Record,
    Register,
    Result,
    Route,
    Version,
    quorate,
)
from sim.model.world import Answers, Ask, Held, Node, Wait

ATTEMPTS = 6
DEADLINE = 40.0
"""After this a round sends no COMMIT any more. A client that was not answered waits longer than that."""


class Propose(NamedTuple):
    """Write this."""

    record: Record


class Answer(NamedTuple):
    """Write nothing, and say this."""

    result: Any


Decision = Propose | Answer
Decide = Callable[[Record | None, int], Decision]
"""From the current record and the version floor, what to do."""

FAILED = ("failed", 0)
"""503: nothing was sent that could take effect."""

UNKNOWN = ("unknown", 0)
"""504."""


class Finding(NamedTuple):
    """What a majority's registers say."""

    register: Register
    decided: bool
    """Its record is known to be chosen (or it is known that none is)."""


def weigh(node: Node, route: Route, registers: dict[int, Register]) -> Finding:
    """The register with the highest ballot is the only one whose record can be chosen now.

    It is, if one says so or if a majority (of each set) holds it. That a majority holds a ballot of an older epoch is
    as good: they answer in this one, so they take nothing older any more, and every later majority meets them.
    """
    best = EMPTY
    if node.world.rules.ballots_decide:
        for register in registers.values():
            if register.accepted > best.accepted:
                best = register
    else:
        for register in registers.values():
            if register.record is not None and (best.record is None or register.record.stamp > best.record.stamp):
                best = register
    if best.record is None:
        return Finding(best, True)
    holders = [copy for copy, register in registers.items() if register.accepted == best.accepted]
    for copy in holders:
        if registers[copy].chosen:
            return Finding(registers[copy], True)
    return Finding(best, quorate(route.read_sets, holders))


def _heed(node: Node, refusals: Iterable[Refused]) -> None:
    """Learn from refusals: how high to go, and what the route is by now."""
    for refused in refusals:
        node.counter = max(node.counter, refused.bar[1])
        if refused.route.epoch > node.route.epoch:
            node.meet(refused.route)
            node.world.counts["epochs learnt by refusal"] += 1


def _remembered(write_id: int, promises: Iterable[Promised], chosen: Record | None) -> Result | None:
    """What this write id did before, by any voter's word: its table, or the list in any record that it reports.

    Of a record that is not known to be chosen the last mark does not count: the others are its predecessors'.
    """
    for mark, result in chosen.marks if chosen is not None else ():
        if mark == write_id:
            return result
    for promised in promises:
        if promised.prior is not None:
            return promised.prior
        record = promised.register.record
        if record is None:
            continue
        marks = record.marks if promised.register.chosen else record.marks[:-1]
        for mark, result in marks:
            if mark == write_id:
                return result
    return None


def _take_held(node: Node, route: Route, path: int, write_id: int, *, first_try: bool) -> Held | None:
    """What is held for the path, if this write may begin with it. It is used or forgotten, whatever comes of it.

    That this node's own copy still promises it is asked to save a COMMIT that would be refused; nothing rests on it.
    """
    world = node.world
    rules = world.rules
    held = node.held.pop(path, None) if rules.held_used_once else node.held.get(path)
    if held is None:
        return None
    if not first_try and (rules.held_for_first_tries or any(mark == write_id for mark, _ in held.record.marks)):
        return None
    ballot = held.ballot
    if ballot[0] != route.epoch:
        world.counts["held promises of another epoch"] += 1
        if not rules.held_in_one_epoch:
            return held._replace(ballot=(route.epoch, *ballot[1:]))
        return None if rules.ballots_of_their_epoch else held
    copy = node.copy
    if world.shape.own_copy_looked_at and copy is not None and copy.promises.get(path, ZERO) != ballot:
        world.counts["held promises that a rival outdid"] += 1
        return None
    return held


def write(
    node: Node, path: int, write_id: int, decide: Decide, *, first_try: bool = False
) -> Generator[Wait, Any, Any]:
    """One round, from PREPARE to its outcome; returns what ``decide`` answered, or what the record did.

    A ``first_try`` of a write may begin with COMMIT, if a promise is held (rfc/0009). Only a COMMIT proves that
    nothing came in between, so that nothing else is decided on what is held.
    """
    world = node.world
    rules, counts = world.rules, world.counts
    deadline = world.now + DEADLINE
    sent = False
    route = node.route
    held = _take_held(node, route, path, write_id, first_try=first_try)
    if held is not None:
        decision = decide(held.record, held.version_floor)
        if isinstance(decision, Propose):
            counts["writes begun from a held promise"] += 1
            sent = True
            accepted = yield from _propose(node, route, path, held.ballot, decision.record, held.version_floor)
            if accepted:
                return decision.record.marks[-1][1]
            counts["writes begun from a held promise that were refused"] += 1
        elif not rules.held_only_proposes:
            return decision.result
    for attempt in range(ATTEMPTS):
        if attempt or sent:
            yield world.random.random() * 3 * attempt
        route = node.route
        ballot = world.ballot(node, route)
        answers: Answers = yield Ask(
            route.asked, Copy.prepare, (route, path, ballot, write_id if rules.write_ids else 0), route.read_sets
        )
        _heed(node, answers.refusals)
        promises = answers.replies
        if not quorate(route.read_sets, promises) or world.now > deadline:
            continue
        finding = weigh(node, route, {copy: promised.register for copy, promised in promises.items()})
        current = finding.register.record
        version_floor = max(promised.version_floor for promised in promises.values())
        prior: Result | None = None
        if rules.write_ids:
            prior = _remembered(write_id, promises.values(), current if finding.decided else None)
            if prior is not None:
                counts["write ids recognised"] += 1
        if not finding.decided:
            decision = decide(current, version_floor)
            if isinstance(decision, Answer) and not rules.refusals_rest_on_chosen and prior is None:
                return decision.result
            if isinstance(decision, Answer) or rules.builds_on_chosen:
                assert current is not None
                if any(mark == write_id for mark, _ in current.marks):
                    sent = True  # An earlier try's record is ours too.
                counts["undecided records finished"] += 1
                chosen = yield from _propose(node, route, path, ballot, current)
                if chosen and isinstance(decision, Answer) and decision.result[0] == "read":
                    return decision.result
                continue  # A ballot carries one value only, so our own record needs the next one.
        if prior is not None:
            return prior
        decision = decide(current, version_floor)
        if isinstance(decision, Answer):
            return decision.result
        sent = True
        accepted = yield from _propose(node, route, path, ballot, decision.record, version_floor)
        if accepted:
            return decision.record.marks[-1][1]
    if sent:
        return UNKNOWN
    return FAILED


def _propose(
    node: Node, route: Route, path: int, ballot: Ballot, record: Record, version_floor: int | None = None
) -> Generator[Wait, Any, bool]:
    """COMMIT, and LEARN once it is chosen; whether it is.

    With a ``version_floor`` the record is this round's own, and the next ballot is asked for, to be held.
    """
    world = node.world
    following = ZERO
    if version_floor is not None and world.rules.ballots and node.heeds_next:
        node.counter += int(world.random.random() * (world.shape.leap + 1))
        following = world.ballot(node, route)
    answers: Answers = yield Ask(route.told, Copy.commit, (route, path, ballot, record, following), route.write_sets)
    _heed(node, answers.refusals)
    if not quorate(route.write_sets, answers.replies):
        return False
    if route.joint:
        world.counts["records chosen in a JOINT epoch"] += 1
    if world.tracing:
        world.note("chosen at %s: %s, accepted by %s", ballot, record, sorted(answers.replies))
    if version_floor is not None and following != ZERO:
        promised = {copy for copy, reply in answers.replies.items() if reply.promised}
        if quorate(route.read_sets, promised) or not world.rules.held_by_quorum:
            world.counts["promises held"] += 1
            node.held[path] = Held(following, record, version_floor)
        else:
            world.counts["promises of too few to be held"] += 1
    _spread(node, (route, path, ballot, record))
    return True


def _spread(node: Node, learnt: tuple[Route, int, Ballot, Record]) -> None:
    """LEARN, in the background: some time, to everyone, unless the node goes down before."""
    world = node.world
    route = learnt[0]
    if not world.calm and world.random.random() < world.shape.deaf:
        world.counts["learns never sent"] += 1
    elif world.calm or not world.shape.learn_delay:
        node.tell(route.told, Copy.learn, learnt)
    else:

        def later() -> None:
            if node.up:
                node.tell(route.told, Copy.learn, learnt)

        world.after(world.random.random() * world.shape.learn_delay, later)


def finish(node: Node, path: int) -> Generator[Wait, Any, Any]:
    """Make sure that what may be chosen is chosen; returns ("read", the current record), or FAILED."""
    result = yield from write(node, path, 0, lambda current, _floor: Answer(("read", current)))
    return result


def read(node: Node, path: int, *, with_rows: bool) -> Generator[Wait, Any, Any]:
    """GET, ``?version=`` and ``?versions``: ("read", the current record, the rows), or FAILED.

    A majority's word; if it leaves the newest record undecided, that is finished first, and they are asked again.
    """
    world = node.world
    rules = world.rules
    for attempt in range(ATTEMPTS):
        if attempt:
            yield world.random.random() * 3
        route = node.route
        needed = route.read_sets
        answers: Answers = yield Ask(route.asked, Copy.query, (route, path, with_rows), needed)
        _heed(node, answers.refusals)
        shown = answers.replies
        if not rules.reads_ask_majority and shown:
            one = min(shown)
            return ("read", shown[one].register.record, shown[one].rows)
        if not quorate(needed, shown):
            continue
        finding = weigh(node, route, {copy: reply.register for copy, reply in shown.items()})
        record = finding.register.record
        if not finding.decided and rules.reads_finish:
            world.counts["reads that had to finish"] += 1
            told = yield from finish(node, path)
            if told == FAILED or with_rows:
                continue
            record = told[1]
        rows = read_all(shown) if with_rows else {}
        if with_rows and record is not None:
            for version in (record.previous, record.added):
                if version is not None:
                    rows[version[0]] = version[1]
        return ("read", record, rows)
    return FAILED


# ---- what each kind of write makes of the current record


def _next(
    node: Node, current: Record | None, *, mark: Mark, head: Version | None, version_max: int, added: Version | None
) -> Record:
    previous = current.added if current is not None and node.world.rules.records_carry_predecessor else None
    marks = (*(current.marks if current is not None else ()), mark)[-MARKS_IN_RECORD:]
    return Record(
        revision=current.revision + 1 if current is not None else 1,
        version_max=version_max,
        head=head,
        added=added,
        previous=previous,
        marks=marks,
        stamp=node.clock(),
    )


def put(node: Node, write_id: int, blob: int, holds: Callable[[Version | None], bool]) -> Decide:
    """A new version, if the condition holds of the head."""

    def decide(current: Record | None, version_floor: int) -> Decision:
        if not holds(current.head if current is not None else None):
            return Answer(("412", 0))
        number = max(current.version_max if current is not None else 0, version_floor) + 1
        added = (number, blob)
        mark = (write_id, ("ok", number))
        return Propose(_next(node, current, mark=mark, head=added, version_max=number, added=added))

    return decide


def delete(node: Node, write_id: int) -> Decide:
    """A tombstone on the path; the versions stay until the stub is collected."""

    def decide(current: Record | None, _floor: int) -> Decision:
        if current is None or current.head is None:
            return Answer(("404", 0))
        mark = (write_id, ("ok", current.head[0]))
        return Propose(_next(node, current, mark=mark, head=None, version_max=current.version_max, added=None))

    return decide
