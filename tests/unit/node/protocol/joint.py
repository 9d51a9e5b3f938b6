"""The simulation with a slot that moves from one set of voters to another, and on (rfc/0013).

The registry's part, the syncs and the mover are played here, by rules of their own; what is under test are the rounds over two
sets, the fences, and the way from one route to the next.

    python -m tests.unit.node.protocol.joint FIRST COUNT [MUTANT]
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from random import Random
from typing import Any
from unittest import mock

import msgspec

from amberblob.ballot import BALLOT_ZERO, EMPTY_REGISTER, Ballot, Register, SlotState
from amberblob.manifest import Record
from amberblob.mutations import Accepted
from node.protocol.hold import Holds
from node.protocol.operations import Finish
from node.protocol.quorum import Electorate, VoterSet
from node.protocol.replica import Persist
from node.protocol.write import Applied
from sim.history import Call
from tests.unit.node.protocol.model import SLOT
from tests.unit.node.protocol.readmission import Snapshot
from tests.unit.node.protocol.simulation import Node, SimDisk, Simulation, Violation

NAMES = "abcdef"
TRIES_MAX = 12
"""How often a step is tried, before the move is given up for this seed."""


def majority(side: Collection[str], who: Collection[str]) -> bool:
    """Counted here, not by what is under test."""
    return len(set(side) & set(who)) > len(side) // 2


class Joint(Simulation):
    """Moves of the slot, one after another, while clients read and write."""

    mutes = True
    """Off is a mutant: a copy speaks as soon as a route names it, and no step of a move waits for it to be filled."""

    def __init__(self, seed: int, **options: Any) -> None:
        random = Random(-seed - 1)
        size = random.choice((1, 2, 3, 3, 3, 5))
        nodes = NAMES[:size]
        fixed: dict[str, Any] = {
            "nodes": nodes,
            "coordinators": NAMES,
            "write_quorum": size // 2 + 1,
            "read_quorum": 0,
            **({"rotate": 0.0} if size == 1 else {}),
            "slow": {name: 5.0 if random.random() < 0.1 else 1.0 for name in NAMES},
        }
        self.moves = random
        self.since: dict[tuple[str, str], int] = {}
        self.sides: dict[int, tuple[str, ...]] = {}
        self.ended_with: dict[int, str] = {}
        self.records: dict[tuple[str, Ballot], Record] = {}
        super().__init__(seed, **{**fixed, **options})
        self.last_epoch = 1
        self.electorates = {}
        self.copies_made = 0
        self.learners: dict[str, str] = {}
        self.seen = {"joint": 0, "final": 0, "aborted": 0, "left": 0}
        self.route(1, {name: f"{name}/1" for name in nodes}, (nodes,))
        self.since = {(name, f"{name}/1"): 1 for name in nodes}

    # ---- the registry

    def route(self, epoch: int, voters: dict[str, str], sides: tuple[str, ...]) -> None:
        """A new route, which everybody hears of some time."""
        self.sides[epoch] = sides
        two = len(sides) > 1
        self.electorates[epoch] = Electorate(
            slot=SLOT,
            epoch=epoch,
            voters=voters,
            write_quorum=0 if two else len(voters) // 2 + 1,
            settled=not two and not self.learners,
            old=frozenset(sides[0] if two else ()),
            new=frozenset(sides[1] if two else ()),
        )
        self.last_epoch = epoch
        self.note(f"epoch {epoch}: {voters} {sides} learners {self.learners}")
        late = self.moves.choice((1, 1, 10, 30))
        for name in self.shape.coordinators:
            self.at(self.moves.random() * late, self.raise_epoch, name)

    def raise_epoch(self, name: str) -> None:
        self.nodes[name].epoch = self.last_epoch

    def incarnation(self, name: str) -> str:
        return self.nodes[name].replica.disk.state.incarnation

    # ---- who counts

    def is_mute(self, name: str) -> bool:
        state, electorate = self.nodes[name].replica.disk.state, self.electorates[self.nodes[name].epoch]
        if not electorate.counts(name, state.incarnation):
            return True
        return self.mutes and 1 < self.since[name, state.incarnation] > state.synced_epoch

    def votes(self, name: str) -> bool:
        return not self.is_mute(name)

    def may_accept(self, name: str, ballot: Ballot) -> bool:
        return name in "".join(self.sides[ballot.epoch])

    def is_enough(self, epoch: int, who: Collection[str]) -> bool:
        """A majority of each set; once a JOINT epoch is over, one of the set that it ended with.

        No round of a later epoch can miss what that has accepted, and none of the JOINT epoch can get it to accept anything else.
        """
        ended = self.ended_with.get(epoch)
        return majority(ended, who) if ended else all(majority(side, who) for side in self.sides[epoch])

    def on_accepted(self, name: str, mutation: Accepted) -> None:
        self.records[mutation.path, mutation.ballot] = mutation.record
        super().on_accepted(name, mutation)

    def is_over(self, epoch: int, side: str) -> None:
        """The JOINT epoch ends with this set of voters."""
        self.ended_with[epoch] = side
        for (path, ballot), who in self.accepts.items():
            if ballot.epoch == epoch and majority(side, who):
                self.chosen[path].setdefault(ballot, self.records[path, ballot])

    def staged_at(self, node: Node) -> frozenset[str] | None:
        voters = self.electorates[node.epoch].voters
        up = [name for name in sorted(voters) if self.nodes[name].up and not self.nodes[name].replica.full]
        up = [name for name in up if not self.is_mute(name)]
        return frozenset(up) if self.is_enough(node.epoch, up) else None

    def last_readers(self) -> Iterable[tuple[str, ...]]:
        voters = sorted(self.electorates[self.last_epoch].voters)
        enough: list[tuple[str, ...]] = []
        for size in range(1, len(voters) + 1):
            for names in itertools.combinations(voters, size):
                if self.is_enough(self.last_epoch, names) and not any(set(less) <= set(names) for less in enough):
                    enough.append(names)
        return enough

    def settle(self) -> None:
        for name in self.shape.coordinators:
            self.raise_epoch(name)
        super().settle()

    # ---- the moves

    def plan(self) -> None:
        super().plan()
        at = 0.0
        for _ in range(self.moves.choice((1, 2, 3))):
            at += self.moves.random() * 4.0 * self.shape.operations
            self.at(at, self.move)

    def move(self) -> None:
        """Choose where the slot is to go; nodes that are new begin with a blank copy, as learners."""
        if len(self.sides[self.last_epoch]) > 1 or self.learners:
            self.at(5.0, self.move) if not self.calm else None
            return
        now = self.electorates[self.last_epoch].voters
        to = "".join(sorted(self.moves.sample(NAMES, self.moves.choice((1, 2, 3, 3, 3, 5)))))
        new = [name for name in to if name not in now]
        for name in new:
            self.begin_anew(name)
            self.learners[name] = self.incarnation(name)
            self.since[name, self.incarnation(name)] = self.last_epoch + 1
        self.route(self.last_epoch + 1, dict(now), self.sides[self.last_epoch])
        for name in new:
            self.at(self.moves.random(), self.sync, name, self.last_epoch, TRIES_MAX)
        self.at(8.0, self.join, to, self.last_epoch, TRIES_MAX)

    def begin_anew(self, name: str) -> None:
        """The copy that it was left with goes, before a route names the node again."""
        self.copies_made += 1
        node = self.nodes[name]
        for run in sorted(node.runs, key=lambda run: run.round._operation_id):
            run.abandon()
        node.holds = Holds()
        state = SlotState(slot=SLOT, incarnation=f"{name}/{self.copies_made + 1}")
        node.replica.disk = SimDisk(state, name, self.on_accepted)
        node.replica.restart()
        self.seen["left"] += 1

    def join(self, to: str, epoch: int, tries: int) -> None:
        if epoch != self.last_epoch:
            return
        learnt = all(
            self.nodes[name].replica.disk.state.synced_epoch >= self.since[name, incarnation]
            for name, incarnation in self.learners.items()
        )
        if self.mutes and not learnt:
            if tries:
                self.at(4.0, self.join, to, epoch, tries - 1)
            else:
                self.learners = {}
                self.route(epoch + 1, dict(self.electorates[epoch].voters), self.sides[epoch])
            return
        voters = {**self.electorates[epoch].voters, **self.learners}
        self.seen["joint"] += 1
        self.learners = {}
        self.route(epoch + 1, voters, (*self.sides[epoch], to))
        for name in to:
            self.at(self.moves.random() * 20, self.sync, name, self.last_epoch, TRIES_MAX)
        self.at(10.0 + self.moves.random() * 20, self.end, self.last_epoch, TRIES_MAX)

    def end(self, epoch: int, tries: int) -> None:
        """Final, once a majority of the new set is filled in this epoch; or back, if that takes too long."""
        old, new = self.sides[epoch]
        voters = self.electorates[epoch].voters
        synced = [name for name in new if self.nodes[name].replica.disk.state.synced_epoch == epoch]
        if majority(new, synced) or not self.mutes:
            self.seen["final"] += 1
            self.is_over(epoch, new)
            self.route(epoch + 1, {name: voters[name] for name in new}, (new,))
        elif tries:
            self.at(4.0, self.end, epoch, tries - 1)
        else:
            self.seen["aborted"] += 1
            self.learners = {}
            self.is_over(epoch, old)
            self.route(epoch + 1, {name: voters[name] for name in old}, (old,))

    # ---- filling a copy: all pages from a majority of the old set, each told in this epoch

    def sync(self, name: str, epoch: int, tries: int) -> None:
        if epoch != self.last_epoch or not tries:
            return
        told: dict[str, Snapshot] = {}
        for other in self.sides[epoch][0]:
            self.at(self.moves.random() * 6, self.tell, name, other, epoch, told)
        self.at(7.0, self.conclude, name, epoch, told, tries)

    def tell(self, name: str, other: str, epoch: int, told: dict[str, Snapshot]) -> None:
        node = self.nodes[other]
        cut = (name, other) in self.cut or (other, name) in self.cut
        if cut or not node.up or not self.nodes[name].up or self.is_mute(other):
            return
        disk = node.replica.disk
        action = node.replica.slot.enter(disk.state, SLOT, epoch)
        if isinstance(action, Persist):
            disk.apply(action.mutation)
        elif action is not None:
            return
        told[other] = Snapshot.of(disk)

    def conclude(self, name: str, epoch: int, told: dict[str, Snapshot], tries: int) -> None:
        node = self.nodes[name]
        if epoch != self.last_epoch:
            return
        again = (3.0, self.sync, name, epoch, tries - 1)
        if not node.up or not majority(self.sides[epoch][0], told):
            self.at(*again)
            return
        self.raise_epoch(name)
        found: dict[str, Register] = {}
        for path in sorted({path for snapshot in told.values() for path in snapshot.registers}):
            registers = [snapshot.registers.get(path, EMPTY_REGISTER) for snapshot in told.values()]
            best = max(registers, key=lambda register: register.accepted or BALLOT_ZERO)
            if not any(register.chosen for register in registers if register.accepted == best.accepted):
                self.start_round(node, path, Finish(), lambda outcome: self.at(*again))
                return
            found[path] = Register(best.accepted, best.record, True)
        self.install(node.replica.disk, epoch, found, told)
        self.note(f"{name} is filled from {sorted(told)} in epoch {epoch}")

    @staticmethod
    def install(disk: SimDisk, epoch: int, found: dict[str, Register], told: dict[str, Snapshot]) -> None:
        for path, register in found.items():
            held = disk.register(path)
            assert register.accepted is not None
            if held.accepted is None or held.accepted <= register.accepted:
                disk.registers[path] = register
        for snapshot in told.values():
            for path, rows in snapshot.rows.items():
                disk.rows.setdefault(path, {}).update(rows)
            for path, marks in snapshot.write_ids.items():
                disk.write_ids.setdefault(path, {}).update(marks)
            disk.bytes_of |= snapshot.bytes_of
            disk.referenced |= snapshot.bytes_of
            disk.aborted -= snapshot.bytes_of
        state = disk.state
        disk.state = msgspec.structs.replace(
            state,
            epoch=max(state.epoch, epoch),
            synced_epoch=epoch,
            ballot_floor=max(state.ballot_floor, *(snapshot.ballot_floor for snapshot in told.values())),
            version_floor=max(state.version_floor, *(snapshot.version_floor for snapshot in told.values())),
        )

    # ---- what is not played: bytes follow their records to the new voters by the puller

    def check_copies(self, call: Call, applied: Applied) -> None:
        pass

    def can_pull(self, name: str, holders: tuple[str, ...], blob_id: str) -> bool:
        """Nodes that the slot has left give bytes, too."""
        return any(node.up and blob_id in node.replica.disk.bytes_of for node in self.nodes.values())

    def copies(self, blob_id: str) -> list[str]:
        return list(self.shape.nodes)


# ---- mutants: who counts otherwise


def _counting(sides: Any) -> AbstractContextManager[Any]:
    def post_init(self: Electorate) -> None:
        original(self)
        if self.joint:
            sets = tuple(VoterSet.of(side, write_quorum=0, read_quorum=0) for side in sides(self))
            object.__setattr__(self, "sets", sets)

    original = Electorate.__post_init__
    return mock.patch.object(Electorate, "__post_init__", post_init)


@contextmanager
def _blank_copies_heard() -> Iterator[None]:
    """A copy speaks as soon as a route names it, and it becomes a voter at once."""
    with mock.patch.object(Joint, "mutes", False):
        yield


MUTANTS = {
    "a_majority_of_the_union_counts": lambda: _counting(lambda self: [frozenset(self.voters)]),
    "only_the_old_set_counts": lambda: _counting(lambda self: [self.old]),
    "only_the_new_set_counts": lambda: _counting(lambda self: [self.new]),
    "blank_copies_answer": _blank_copies_heard,
}


def caught(name: str, first: int, count: int) -> tuple[int, str] | None:
    """The first seed that shows the mutant, and how."""
    with MUTANTS[name]():
        for seed in range(first, first + count):
            try:
                Joint(seed).run()
            except Violation as error:
                return seed, str(error).split("\n")[0]
            except AssertionError as error:
                return seed, f"assert {error}"
    return None


def main(first: int, count: int) -> None:
    """Run seeds and print what they break."""
    start, stuck = time.perf_counter(), 0
    seen: dict[str, int] = {}
    for seed in range(first, first + count):
        sim = Joint(seed)
        try:
            sim.run()
        except Violation as error:
            print(f"seed {seed}: {str(error)[:2000]}", flush=True)
            continue
        for what, times in sim.seen.items():
            seen[what] = seen.get(what, 0) + times
        if sim.stuck:
            stuck += 1
            print(f"seed {seed}: {sim.stuck}", flush=True)
    print(f"{count} seeds, {seen}, {stuck} stuck, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    if len(sys.argv) > 3:
        print(caught(sys.argv[3], int(sys.argv[1]), int(sys.argv[2])))
    else:
        main(int(sys.argv[1]), int(sys.argv[2]))
