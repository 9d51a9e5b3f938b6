"""One copy of a slot: what it keeps, what it answers, what a restart leaves of it.

It does what ``node.protocol.replica`` does, and beyond that what membership changes and garbage collection ask of it.
Every handler is one transaction: what it changes is durable before the answer goes out, except promises. Those live
in memory, under a durable *ceiling*; after a restart everything up to the ceiling is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from sim.model.rules import Rules
from sim.model.values import EMPTY, TOP, ZERO, Ballot, CopyId, Record, Register, Result, Route

CEILING_STEP = 4
"""How far ahead of a promise the ceiling is reserved; 4,096 in the real one."""


class Refused(NamedTuple):
    """No. ``bar``: what a ballot has to exceed. ``route``: the newest that the copy knows. ``mute``: it has no voice yet."""

    copy: CopyId
    bar: Ballot
    route: Route
    mute: bool = False


class Promised(NamedTuple):
    """The promise, and what was accepted until now."""

    copy: CopyId
    register: Register
    version_floor: int
    prior: Result | None
    """What the write id in question did, if the table of older ones has it."""


class Accepted(NamedTuple):
    """Accepted, durably. ``promised``: so is what came as ``next``."""

    copy: CopyId
    promised: bool = False


class Shown(NamedTuple):
    """The answer to a read; the rows only if they were asked for."""

    copy: CopyId
    register: Register
    rows: dict[int, int]


class Snapshot(NamedTuple):
    """The answer to a sync: all that the copy has of the slot, or of one path."""

    copy: CopyId
    registers: dict[int, Register]
    rows: dict[int, dict[int, int]]
    marks: dict[int, dict[int, Result]]
    ballot_floor: Ballot
    version_floor: int


class Synced(NamedTuple):
    """Whether this copy is synced in the epoch of the question."""

    copy: CopyId
    done: bool


Reply = Refused | Promised | Accepted | Shown | Snapshot | Synced


class Copy:
    """One copy.

    Attributes:
        number: node and incarnation.
        heeds_next: it promises what a COMMIT brings as ``next``. An older program does not know of that.
        route: of the epoch that it has adopted. It answers in no lower one, ever.
        registers: by path.
        rows: by path, version to blob. Chosen ones only.
        marks: by path, what older write ids did.
        ballot_floor: nothing at or below is ever taken again (garbage collection).
        version_floor: new versions are above it.
        ceiling: promises may have been given up to this counter.
        synced_epoch: the epoch in which it was synced; 0: it never was.
        readmitted: it was made in the place of one that was lost (sim.model.readmission).
        promises: by path. Memory only.
        restart_floor: what the ceiling became at the last restart. Memory only.
    """

    __slots__ = (
        "_first_route",
        "_unflushed",
        "ballot_floor",
        "ceiling",
        "heeds_next",
        "marks",
        "number",
        "promises",
        "readmitted",
        "registers",
        "restart_floor",
        "route",
        "rows",
        "rules",
        "synced_epoch",
        "version_floor",
    )

    def __init__(
        self, number: CopyId, route: Route, rules: Rules, *, heeds_next: bool = True, readmitted: bool = False
    ) -> None:
        self.number = number
        self.readmitted = readmitted
        self.heeds_next = heeds_next
        self.route = route
        self.rules = rules
        self.registers: dict[int, Register] = {}
        self.rows: dict[int, dict[int, int]] = {}
        self.marks: dict[int, dict[int, Result]] = {}
        self.ballot_floor = ZERO
        self.version_floor = 0
        self.ceiling = 0
        self.synced_epoch = 0
        self.promises: dict[int, Ballot] = {}
        self.restart_floor = ZERO
        # What a broken rule lets a crash take back.
        self._unflushed: dict[int, Register] = {}
        self._first_route = route

    def inherit(self, old: Copy) -> None:
        """A broken rule: the new copy begins with what the node had of the slot before."""
        self.registers, self.rows, self.marks = old.registers, old.rows, old.marks

    def forget_memory(self) -> None:
        """A crash: only what is durable stays."""
        self.promises = {}
        if not self.rules.epochs_survive:
            self.route = self._first_route
        if self.rules.promises_survive:
            self.restart_floor = (self.route.epoch, self.ceiling, TOP, TOP)
        if not self.rules.accepts_are_durable:
            for path, register in self._unflushed.items():
                if register is EMPTY:
                    self.registers.pop(path, None)
                else:
                    self.registers[path] = register
            self._unflushed = {}

    # ---- what everything begins with

    def _enter(self, route: Route) -> bool:
        """Adopt a higher epoch, refuse a lower one. Whoever answers in an epoch has left those below for good."""
        mine = self.route.epoch
        if route.epoch > mine:
            self.route = route
            return True
        return route.epoch == mine

    def _bar(self, path: int, register: Register) -> Ballot:
        return max(self.restart_floor, self.ballot_floor, self.promises.get(path, ZERO), register.accepted)

    # ---- the register

    def prepare(self, route: Route, path: int, ballot: Ballot, write_id: int) -> Reply:
        """Phase one."""
        register = self.registers.get(path, EMPTY)
        if not self._enter(route) and self.rules.old_epochs_refused:
            return Refused(self.number, self._bar(path, register), self.route)
        if self.rules.ballots:
            bar = self._bar(path, register)
            if ballot <= bar:
                return Refused(self.number, bar, self.route)
            self._reserve(ballot)
            self.promises[path] = ballot
        marks = self.marks.get(path)
        return Promised(self.number, register, self.version_floor, None if marks is None else marks.get(write_id))

    def commit(self, route: Route, path: int, ballot: Ballot, record: Record, following: Ballot = ZERO) -> Reply:
        """Phase two. ``following`` is the ballot to promise with the accept (``next`` on the wire); ZERO: none."""
        register = self.registers.get(path, EMPTY)
        rules = self.rules
        if not self._enter(route) and rules.old_epochs_refused:
            return Refused(self.number, self._bar(path, register), self.route)
        if ballot[0] != route.epoch and rules.ballots_of_their_epoch:
            # A held ballot of an older epoch, under a new route. It is good because a majority promised it, but that was one of
            # the voters of its own epoch. This copy may be new: blank until its sync, it promised nothing, and knows neither
            # what was accepted above that ballot nor the floor that a collection left. Were the record taken here, a later
            # round would find it undecided and finish it, upon a path that was deleted and collected long ago. Besides,
            # whoever weighs registers takes a majority's ballot of an older epoch for chosen, because nobody takes such
            # ballots any more. The mutant 'held-of-old-epoch'.
            return Refused(self.number, self._bar(path, register), self.route)
        if register.accepted == ballot:
            # It came twice, or a LEARN overtook it. That promises nothing anew: somebody else may have been promised a
            # higher ballot since, and been told of this very record. ``next`` in its place would let the holder's COMMIT in
            # below that promise, and two records would become chosen that are both built on this one. What is answered is
            # whether the promise of the first time still stands; if it does not, this copy is none of those that promised.
            if following != ZERO and not rules.next_is_not_repeated:
                return Accepted(self.number, self._promise_next(path, following))
            return Accepted(self.number, following != ZERO and self.promises.get(path) == following)
        if not rules.ballots:
            if register.record is not None and record.revision <= register.record.revision:
                return Refused(self.number, register.accepted, self.route)
        elif not rules.accepts_heed_promises:
            if ballot < register.accepted:
                return Refused(self.number, register.accepted, self.route)
        else:
            bar = self._bar(path, register)
            if ballot < bar or (ballot == bar and ballot != self.promises.get(path)):
                return Refused(self.number, bar, self.route)
        if not rules.accepts_are_durable:
            self._unflushed = {path: register}
        self.registers[path] = Register(ballot, record, False)
        self._keep(path, record, chosen=False)
        return Accepted(self.number, following != ZERO and self._promise_next(path, following))

    def _promise_next(self, path: int, following: Ballot) -> bool:
        """As if a PREPARE had come right after the accept; whether it is promised.

        Only with the accept: a copy that refuses the COMMIT and promises all the same may have accepted a rival's record
        meanwhile. No switch stands for it: where all copies heed ``next``, those that accepted are a quorum that promised,
        and beside older programs it takes two rounds of a rival within one slow answer, which 10,000 seeds did not show.
        """
        if not self.heeds_next:
            return False
        if self.rules.next_is_covered:
            self._reserve(following)
        self.promises[path] = following
        return True

    def _reserve(self, ballot: Ballot) -> None:
        """A promise above the ceiling raises it first, durably."""
        if ballot[1] > self.ceiling:
            self.ceiling = ballot[1] + CEILING_STEP

    def learn(self, route: Route, path: int, ballot: Ballot, record: Record) -> None:
        """A record became chosen. It may always be installed, whatever was promised, but never over a higher one.

        Below the floor only what is held here is marked: its path was not collected, another's was.
        """
        accepted = self.registers.get(path, EMPTY).accepted
        if ballot <= self.ballot_floor and accepted != ballot:
            return
        if accepted <= ballot:
            self.registers[path] = Register(ballot, record, True)
        self._keep(path, record, chosen=True)

    def _keep(self, path: int, record: Record, *, chosen: bool) -> None:
        """The rows and write ids that are known to be chosen once this record is accepted, or chosen."""
        previous, added, marks = record.previous, record.added, record.marks
        if previous is not None:
            self._row(path)[previous[0]] = previous[1]
        if chosen and added is not None:
            self._row(path)[added[0]] = added[1]
        if not self.rules.old_write_ids:
            return
        known = marks if chosen else marks[:-1]
        if known:
            self.marks.setdefault(path, {}).update(known)

    def _row(self, path: int) -> dict[int, int]:
        rows = self.rows.get(path)
        if rows is None:
            rows = self.rows[path] = {}
        return rows

    def query(self, route: Route, path: int, with_rows: bool) -> Reply:
        """What is accepted here. Promises nothing."""
        if not self._enter(route) and self.rules.old_queries_refused:
            return Refused(self.number, ZERO, self.route)
        rows = dict(self.rows.get(path, ())) if with_rows else {}
        return Shown(self.number, self.registers.get(path, EMPTY), rows)

    # ---- membership (sim.model.membership)

    def snapshot(self, route: Route) -> Reply:
        """All there is, for a copy that syncs. Having answered, this copy is in no older epoch any more."""
        if self.rules.syncs_fence and not self._enter(route):
            return Refused(self.number, ZERO, self.route)
        return Snapshot(
            self.number,
            dict(self.registers),
            {path: dict(rows) for path, rows in self.rows.items()},
            {path: dict(marks) for path, marks in self.marks.items()},
            self.ballot_floor,
            self.version_floor,
        )

    def install(self, route: Route, found: dict[int, Register], snapshots: list[Snapshot]) -> bool:
        """Take over what a majority had, in one transaction; nothing, if the epoch has moved on meanwhile.

        No collection happens in the epoch of a sync, so what comes in here is not below anybody's floor.
        """
        if not self._enter(route):
            return False
        self._take(found, snapshots)
        if self.rules.syncs_copy_floors:
            for snapshot in snapshots:
                self._raise_floors(snapshot.ballot_floor, snapshot.version_floor)
        self.synced_epoch = route.epoch
        return True

    def _take(self, found: dict[int, Register], snapshots: list[Snapshot]) -> None:
        """Registers, rows and write ids of a sync."""
        rules = self.rules
        for path, register in found.items():
            if self.registers.get(path, EMPTY).accepted < register.accepted:
                self.registers[path] = register
            assert register.record is not None
            if rules.syncs_copy_rows:
                self._keep(path, register.record, chosen=True)
        for snapshot in snapshots:
            if rules.syncs_copy_rows:
                for path, rows in snapshot.rows.items():
                    self._row(path).update(rows)
            if rules.syncs_copy_write_ids:
                for path, marks in snapshot.marks.items():
                    self.marks.setdefault(path, {}).update(marks)

    def _raise_floors(self, ballot_floor: Ballot, version_floor: int) -> None:
        self.ballot_floor = max(self.ballot_floor, ballot_floor)
        self.version_floor = max(self.version_floor, version_floor)

    def sync_status(self, route: Route) -> Reply:
        """Whether it is synced in the epoch of the question."""
        if not self._enter(route):
            return Refused(self.number, ZERO, self.route)
        if self.rules.syncs_are_of_this_epoch:
            return Synced(self.number, self.synced_epoch == route.epoch)
        return Synced(self.number, self.synced_epoch > 0)

    # ---- readmission (sim.model.readmission)

    @property
    def unsynced(self) -> bool:
        """Whether it was readmitted and has not yet what the route asks of it before it has a voice."""
        return self.readmitted and self.synced_epoch < self.route.since_of(self.number)

    def answers(self, request: Callable[..., Reply]) -> bool:
        """Whether it may answer this request; a mute copy answers none."""
        if not self.unsynced or not self.rules.readmitted_are_mute:
            return True
        return request is Copy.page and not self.rules.mute_ones_show_nothing

    def hears(self, message: Callable[..., None]) -> bool:
        """Whether it takes a message that wants no answer; a mute copy takes none."""
        if not self.unsynced or not self.rules.readmitted_are_mute:
            return True
        return message is Copy.learn and not self.rules.mute_ones_hear_nothing

    def follow(self, route: Route) -> None:
        """A mute copy goes by the newest route that its node knows; it has nothing to keep the older ones for."""
        if route.epoch > self.route.epoch and self.unsynced:
            self.route = route

    def page(self, route: Route, path: int) -> Reply:
        """All that it has of one path, for a copy that was readmitted. Having answered, it is in no older epoch any more."""
        if self.rules.readmissions_fence and not self._enter(route):
            return Refused(self.number, ZERO, self.route)
        register = self.registers.get(path)
        return Snapshot(
            self.number,
            {} if register is None else {path: register},
            {path: dict(self.rows.get(path, ()))},
            {path: dict(self.marks.get(path, ()))},
            self.ballot_floor,
            self.version_floor,
        )

    def take_page(self, found: dict[int, Register], pages: list[Snapshot]) -> None:
        """Keep what a majority knows of one path. The floors come last: these records may well be below them."""
        self._take(found, pages)

    def become_synced(self, epoch: int, ballot_floor: Ballot, version_floor: int) -> None:
        """Every page is here: it has a voice from now on. ``epoch``: the lowest in which a page was read."""
        if self.rules.syncs_copy_floors:
            self._raise_floors(ballot_floor, version_floor)
        self.synced_epoch = max(self.synced_epoch, epoch)

    # ---- garbage (sim.model.garbage)

    def collect(self, route: Route, path: int, ballot: Ballot, record: Record) -> None:
        """Remove the stub if it is that very one, and raise the floors, in one transaction."""
        if not self._enter(route):
            return
        rules, register = self.rules, self.registers.get(path, EMPTY)
        if register.record is None or (register.accepted != ballot and rules.collects_if_equal):
            return
        del self.registers[path]
        self.rows.pop(path, None)
        if rules.collecting_keeps_write_ids:
            # They outlive the stub by the time in which a client may still repeat a write.
            self.marks.setdefault(path, {}).update(record.marks)
        else:
            self.marks.pop(path, None)
        if rules.collecting_raises_ballots:
            self.ballot_floor = max(self.ballot_floor, ballot)
        if rules.collecting_raises_versions:
            self.version_floor = max(self.version_floor, record.version_max)
        if not rules.collecting_keeps_promises:
            self.promises.pop(path, None)


def read_all(shown: dict[CopyId, Any]) -> dict[int, int]:
    """The union of the rows that several copies showed."""
    rows: dict[int, int] = {}
    for reply in shown.values():
        rows.update(reply.rows)
    return rows
