"""The simulation with copies that lose their memory, and become voters again by themselves (rfc/0012).

The registry's part and the sync are played here; the fences, the rounds and their way to the newer route are the real ones.

    python -m tests.unit.node.protocol.readmission FIRST COUNT
"""

from __future__ import annotations

import copy
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from amberblob.ballot import BALLOT_ZERO, EMPTY_REGISTER, Ballot, Register, SlotState
from amberblob.manifest import Version, WriteMark
from node.protocol.hold import Holds
from node.protocol.operations import Finish
from node.protocol.replica import Persist
from node.protocol.write import Applied
from sim.history import Call
from tests.unit.node.protocol.model import SLOT
from tests.unit.node.protocol.simulation import SimDisk, Simulation, Violation


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a voter told a copy that begins anew."""

    registers: dict[str, Register]
    rows: dict[str, dict[int, Version]]
    write_ids: dict[str, dict[str, WriteMark]]
    bytes_of: set[str]
    ballot_floor: Ballot
    version_floor: int

    @classmethod
    def of(cls, disk: SimDisk) -> Snapshot:
        return cls(
            dict(disk.registers), copy.deepcopy(disk.rows), copy.deepcopy(disk.write_ids), set(disk.bytes_of),
            disk.state.ballot_floor, disk.state.version_floor,
        )  # fmt: skip


class Readmission(Simulation):
    """One copy after another loses its memory; the next one only when the last one is a voter again."""

    mutes = True
    """Off is a mutant: a copy speaks as soon as a route names it."""
    asks_majority = True
    """Off is a mutant: one voter's word fills a copy."""

    def __init__(self, seed: int, **options: Any) -> None:
        super().__init__(seed, **options)
        self.last_epoch = 1
        self.since: dict[str, int] = dict.fromkeys(self.shape.nodes, 1)
        self.losing = ""
        self.copies_made = 1
        self.filled = 0

    def is_mute(self, name: str) -> bool:
        if not self.mutes:
            return False
        state, epoch = self.nodes[name].replica.disk.state, self.nodes[name].epoch
        if not self.electorates[epoch].counts(name, state.incarnation):
            return True
        return 1 < self.since[name] > state.synced_epoch

    def plan(self) -> None:
        super().plan()
        for _ in range(self.random.choice((1, 2, 4))):
            self.at(self.random.random() * 6.0 * self.shape.operations, self.lose, self.random.choice(self.shape.nodes))

    def raise_epoch(self, name: str) -> None:
        """The node hears of the newest route."""
        self.nodes[name].epoch = self.last_epoch

    def lose(self, name: str) -> None:
        if self.losing:
            return
        self.losing = name
        self.copies_made += 1
        node = self.nodes[name]
        self.note(f"{name} loses its memory")
        for run in sorted(node.runs, key=lambda run: run.round._operation_id):
            run.abandon()
        node.holds = Holds()
        state = SlotState(slot=SLOT, incarnation=f"{name}/{self.copies_made}")
        node.replica.disk = SimDisk(state, name, self.on_accepted)
        node.replica.restart()
        self.at(self.random.random() * 10, self.name_anew, name)

    def name_anew(self, name: str) -> None:
        """The compare-and-set, which everybody hears of some time."""
        before = self.electorates[self.last_epoch]
        self.last_epoch += 1
        voters = {**before.voters, name: self.nodes[name].replica.disk.state.incarnation}
        self.electorates[self.last_epoch] = replace(before, epoch=self.last_epoch, voters=voters)
        self.since[name] = self.last_epoch
        self.note(f"epoch {self.last_epoch}: {voters}")
        self.raise_epoch(name)
        for other in self.shape.coordinators:
            self.at(self.random.random() * self.random.choice((1, 30)), self.raise_epoch, other)
        self.at(self.random.random(), self.sync, name)

    def sync(self, name: str) -> None:
        told: dict[str, Snapshot] = {}
        for other in self.shape.nodes:
            if other != name:
                self.at(self.random.random() * 6, self.tell, name, other, told)
        self.at(7.0, self.conclude, name, told)

    def tell(self, name: str, other: str, told: dict[str, Snapshot]) -> None:
        """A page, which is all here. What is answered in an epoch leaves the older ones."""
        node = self.nodes[other]
        cut = (name, other) in self.cut or (other, name) in self.cut
        if cut or not node.up or not self.nodes[name].up or self.is_mute(other):
            return
        disk = node.replica.disk
        # (Without this nothing broke in 2,000 seeds: it takes a COMMIT that is on its way for the whole sync. See sim/model.)
        action = node.replica.slot.enter(disk.state, SLOT, self.since[name])
        if isinstance(action, Persist):
            disk.apply(action.mutation)
        elif action is not None:
            return
        told[other] = Snapshot.of(disk)

    def conclude(self, name: str, told: dict[str, Snapshot]) -> None:
        node, electorate = self.nodes[name], self.electorates[self.last_epoch]
        if not node.up or (not electorate.is_majority(told) if self.asks_majority else not told):
            self.at(3.0, self.sync, name)
            return
        found: dict[str, Register] = {}
        for path in sorted({path for snapshot in told.values() for path in snapshot.registers}):
            best, chosen = self._best(told, path)
            if not chosen:
                self.start_round(node, path, Finish(), lambda outcome: self.finished(name, outcome))
                return
            found[path] = best
        self._install(node.replica.disk, found, told)
        self.losing = ""
        self.filled += 1
        self.note(f"{name} is filled from {sorted(told)} in epoch {electorate.epoch}")

    @staticmethod
    def _best(told: dict[str, Snapshot], path: str) -> tuple[Register, bool]:
        registers = [snapshot.registers.get(path, EMPTY_REGISTER) for snapshot in told.values()]
        best = max(registers, key=lambda register: register.accepted or BALLOT_ZERO)
        chosen = any(register.chosen for register in registers if register.accepted == best.accepted)
        return Register(best.accepted, best.record, True), chosen

    def finished(self, name: str, outcome: object) -> None:
        self.note(f"{name} finished what was undecided: {isinstance(outcome, Applied)}")
        self.at(3.0, self.sync, name)

    def _install(self, disk: SimDisk, found: dict[str, Register], told: dict[str, Snapshot]) -> None:
        disk.registers.update(found)
        for snapshot in told.values():
            for path, rows in snapshot.rows.items():
                disk.rows.setdefault(path, {}).update(rows)
            for path, marks in snapshot.write_ids.items():
                disk.write_ids.setdefault(path, {}).update(marks)
            disk.bytes_of |= snapshot.bytes_of
            disk.referenced |= snapshot.bytes_of
        disk.state = msgspec.structs.replace(
            disk.state,
            epoch=self.last_epoch,
            synced_epoch=self.last_epoch,
            ballot_floor=max(snapshot.ballot_floor for snapshot in told.values()),
            version_floor=max(snapshot.version_floor for snapshot in told.values()),
        )

    # ---- what is not promised of copies that were lost

    def check_copies(self, call: Call, applied: Applied) -> None:
        """Lost bytes are pulled again, which is not played here."""

    def copies(self, blob_id: str) -> list[str]:
        return list(self.shape.nodes)


def main(first: int, count: int) -> None:
    """Run seeds and print what they break."""
    start, filled, stuck = time.perf_counter(), 0, 0
    for seed in range(first, first + count):
        try:
            sim = Readmission(seed)
            sim.run()
        except Violation as error:
            print(f"seed {seed}: {str(error)[:2000]}", flush=True)
            continue
        filled += sim.filled
        stuck += bool(sim.stuck)
    print(f"{count} seeds, {filled} copies filled, {stuck} stuck, {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
