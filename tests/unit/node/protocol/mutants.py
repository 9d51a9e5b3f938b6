"""The protocol with one thing wrong at a time: what the simulation has to notice.

python -m tests.unit.node.protocol.mutants [NAME [SEEDS_MAX]]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import msgspec

import node.protocol.operations
import node.protocol.read
import node.protocol.write
from amberblob.ballot import Register
from amberblob.manifest import Record
from amberblob.mutations import Chosen
from amberblob.wire import AcceptedReply
from chunkstore import rules
from node.protocol.hold import Holds
from node.protocol.operations import Propose, Refuse, Situation, decide
from node.protocol.quorum import Electorate, Finding
from node.protocol.read import Read, ReadRound
from node.protocol.replica import BytesHere, ReplicaSlot
from node.protocol.write import Finished, Rejected, WriteRound
from tests.unit.node.protocol import simulation
from tests.unit.node.protocol.simulation import Simulation, Violation

Mutant = Callable[[], AbstractContextManager[Any]]
MUTANTS: dict[str, Mutant] = {}


def mutant(make: Mutant) -> Mutant:
    MUTANTS[make.__name__] = make
    return make


@mutant
def commit_ignores_a_promise():
    original = ReplicaSlot.commit

    def commit(self, state, message, register, here):
        promised = self._promises.pop(message.path, None)
        actions = original(self, state, message, register, here)
        if promised is not None:
            self._promises[message.path] = promised
        return actions

    return mock.patch.object(ReplicaSlot, "commit", commit)


@mutant
def promise_forgotten_by_a_restart():
    return mock.patch.object(Simulation, "forgets_promises", True)


@mutant
def folded_promise_forgotten():
    def promise(self, path, ballot):
        self._promises[path] = ballot
        self._promises.move_to_end(path)
        while len(self._promises) > self._promises_max:
            self._promises.popitem(last=False)

    return mock.patch.object(ReplicaSlot, "_promise", promise)


@mutant
def read_asks_one_replica():
    def answer(self, node, reply):
        return Read(Finding(reply.accepted, reply.record, decided=True, holders=(node,)), {node: reply})

    return mock.patch.object(ReadRound, "answer", answer)


@mutant
def read_returns_undecided():
    original = node.protocol.read.weigh

    def weigh(electorate, votes):
        found = original(electorate, votes)
        return Finding(found.ballot, found.record, decided=True, holders=found.holders)

    return mock.patch.object(node.protocol.read, "weigh", weigh)


def _before_finishing(kind: type, then: Callable[[WriteRound, Any], Any]) -> AbstractContextManager[Any]:
    original = WriteRound._finish

    def finish(self, *, fully=False):
        if not fully:
            situation = Situation(
                current=self._finding.record,
                version_floor=self._version_floor,
                prior=self._prior,
                write_id=self._write_id,
                now_ms=self._now_ms,
                history=self._history,
            )
            decision = node.protocol.write.decide(self._operation, situation)
            if isinstance(decision, kind):
                return then(self, decision)
        return original(self, fully=fully)

    return mock.patch.object(WriteRound, "_finish", finish)


@mutant
def refusal_from_an_undecided_record():
    return _before_finishing(Refuse, lambda self, decision: self._end(Rejected(decision.error)))


@mutant
def built_on_an_undecided_record():
    return _before_finishing(Propose, lambda self, decision: self._commit(decision.record))


@mutant
def own_record_at_the_ballot_of_a_finished_one():
    original = WriteRound._prepare

    def prepare(self):
        if self.phase is node.protocol.write.Phase.FINISHING and not self._fully:
            self._finding = Finding(self._ballot, self._proposal, decided=True, holders=())
            return self._decide()
        return original(self)

    return mock.patch.object(WriteRound, "_prepare", prepare)


@mutant
def retry_without_write_ids():
    original = node.protocol.operations.decide

    def decide(operation, situation):
        current = situation.current
        if current is not None:
            left = tuple(mark for mark in current.writes if mark.write_id != situation.write_id)
            current = msgspec.structs.replace(current, writes=left)
        return original(
            operation,
            Situation(
                current=current,
                version_floor=situation.version_floor,
                prior=None,
                write_id=situation.write_id,
                now_ms=situation.now_ms,
                history=situation.history,
            ),
        )

    return mock.patch.object(node.protocol.write, "decide", decide)


@mutant
def write_id_looked_up_in_the_findings_record_only():
    def remembered(self, promises):
        return next((promise.prior for promise in promises if promise.prior is not None), None)

    return mock.patch.object(WriteRound, "_remembered", remembered)


@mutant
def write_id_not_looked_up_in_the_tables():
    original = WriteRound._remembered

    def remembered(self, promises):
        return original(self, [msgspec.structs.replace(promise, prior=None) for promise in promises])

    return mock.patch.object(WriteRound, "_remembered", remembered)


@mutant
def write_id_of_an_undecided_record_believed():
    def remembered(self, promises):
        for promise in promises:
            mark = promise.prior or (promise.record.write(self._write_id) if promise.record is not None else None)
            if mark is not None:
                return mark
        return None

    return mock.patch.object(WriteRound, "_remembered", remembered)


@mutant
def record_without_previous():
    original = node.protocol.operations._record

    def record(*args, **options) -> Record:
        return msgspec.structs.replace(original(*args, **options), previous=None)

    return mock.patch.object(node.protocol.operations, "_record", record)


@mutant
def restarted_replica_with_an_empty_memory_votes():
    return mock.patch.object(Simulation, "amnesia", True)


@mutant
def version_without_regard_to_version_max():
    original = node.protocol.operations._put

    def put(operation, situation):
        current = situation.current
        if current is not None:
            highest = current.head.version if current.head is not None else 0
            current = msgspec.structs.replace(current, version_max=highest)
        return original(
            operation,
            Situation(
                current=current,
                version_floor=situation.version_floor,
                prior=situation.prior,
                write_id=situation.write_id,
                now_ms=situation.now_ms,
            ),
        )

    return mock.patch.object(node.protocol.operations, "_put", put)


@mutant
def accept_without_bytes():
    original = ReplicaSlot.commit

    def commit(self, state, message, register, here):
        return original(
            self, state, message, register, here if here.durable else BytesHere(durable=message.body is None)
        )

    return mock.patch.object(ReplicaSlot, "commit", commit)


@mutant
def learn_overwrites_a_higher_accepted_ballot():
    original = rules.choose

    def choose(register: Register, mutation: Chosen) -> Register:
        if mutation.record is not None and mutation.ballot != register.accepted:
            return Register(mutation.ballot, mutation.record, True)
        return original(register, mutation)

    return mock.patch.object(rules, "choose", choose)


@mutant
def acknowledged_by_a_majority_below_the_write_quorum():
    return mock.patch.object(Electorate, "is_write_quorum", Electorate.is_majority)


@mutant
def retry_acknowledged_without_confirming_its_copies():
    return mock.patch.object(WriteRound, "_on_write_quorum", lambda self: True)


@mutant
def unavailable_said_after_a_commit():
    """503, "nothing was applied", although a COMMIT went out."""
    original = WriteRound._give_up

    def give_up(self):
        self.sent_commit = False
        return original(self)

    return mock.patch.object(WriteRound, "_give_up", give_up)


@mutant
def history_of_one_replica():
    """A round that needs older rows believes the first replica."""
    original = WriteRound._on_history

    def on_history(self, node, reply):
        with mock.patch.object(Electorate, "is_read_quorum", lambda self, nodes: True):
            return original(self, node, reply)

    return mock.patch.object(WriteRound, "_on_history", on_history)


@mutant
def stale_tokens_counted():
    """An answer to an earlier phase counts in this one."""
    original = WriteRound.answer
    return mock.patch.object(
        WriteRound, "answer", lambda self, node, token, reply: original(self, node, self._token, reply)
    )


# ---- held promises (rfc/0009)


@mutant
def refusal_from_a_held_promise():
    def begin_held(self, held):
        self._finding, self._version_floor = held.finding, held.version_floor
        decision = decide(self._operation, self._situation())
        return self._end(Rejected(decision.error)) if isinstance(decision, Refuse) else original(self, held)

    original = WriteRound._begin_held
    return mock.patch.object(WriteRound, "_begin_held", begin_held)


@mutant
def held_promise_used_again():
    return mock.patch.object(Holds, "take", lambda self, path: self._by_path.get(path))


@mutant
@contextmanager
def held_though_one_voter_promised():
    """All but one accept and promise nothing; the coordinator takes each accept for a promise."""

    def answer(self, node, token, reply):
        if isinstance(reply, AcceptedReply):
            reply = msgspec.structs.replace(reply, promised=True)
        return original_answer(self, node, token, reply)

    def commit(self, state, message, register, here):
        if not state.incarnation.startswith("c"):
            message = msgspec.structs.replace(message, next=None)
        return original_commit(self, state, message, register, here)

    original_answer, original_commit = WriteRound.answer, ReplicaSlot.commit
    with (
        mock.patch.object(WriteRound, "answer", answer),
        mock.patch.object(ReplicaSlot, "commit", commit),
    ):
        yield


@mutant
def retry_begins_from_a_held_promise():
    def begin_held(self, held):
        lingers, self._may_linger = self._may_linger, False
        actions = original(self, held)
        self._may_linger = lingers
        return actions

    original = WriteRound._begin_held
    return mock.patch.object(WriteRound, "_begin_held", begin_held)


@contextmanager
def mutated(name: str) -> Iterator[None]:
    with MUTANTS[name]():
        yield


HELD: dict[str, Any] = {
    "sticky": True, "nodes": "abc", "coordinators": "abc", "write_quorum": 2, "read_quorum": 0, "paths": ("p",),
    "liked": "put", "abandon": 0.0, "operations": 18,
}  # fmt: skip

FAVOURABLE: dict[str, dict[str, Any]] = {
    "refusal_from_a_held_promise": HELD,
    # A node with a copy of its own finds that it promises something else by then.
    "held_promise_used_again": {**HELD, "coordinators": "abcx"},
    "held_though_one_voter_promised": HELD,
    "retry_begins_from_a_held_promise": HELD,
    # Rare without help. All are also found in plain seeds, after thousands of them.
    "promise_forgotten_by_a_restart": {"crashes": 10, "down": 0.5, "gap": 0.5, "loss": 0.0},
    "folded_promise_forgotten": {"promises_max": 1, "paths": ("p", "q"), "gap": 0.5},
    "write_id_looked_up_in_the_findings_record_only": {
        "nodes": "abc",
        "coordinators": "abc",
        "write_quorum": 2,
        "read_quorum": 0,
        "paths": ("p",),
        "recent_writes": 2,
        "learn_loss": 0.0,
        "loss": 0.0,
        "abandon": 0.3,
        "rotate": 30.0,
        "retry_after": 30.0,
        "gap": 8.0,
        "warm": 0,
        "liked": "put",
        "crashes": 0,
    },
}
"""What to fix of a seed's shape, so that a mutant shows soon."""


def caught(name: str, first: int, count: int, *, plain: bool = False) -> tuple[int, str] | None:
    """The first seed of the window that shows the mutant, and how. ``plain``: without :data:`FAVOURABLE`."""
    fixed = {} if plain else FAVOURABLE.get(name, {})
    with mutated(name):
        for seed in range(first, first + count):
            try:
                sim = Simulation(seed, **fixed).run()
            except Violation as error:
                return seed, str(error).split("\n")[0]
            except AssertionError as error:
                return seed, f"assert {error}"
            if sim.stuck:
                return seed, sim.stuck[0]
    return None


def main(names: list[str], seeds_max: int) -> None:
    for name in names:
        start = time.perf_counter()
        found = caught(name, 0, seeds_max)
        took = time.perf_counter() - start
        print(
            f"{name}: {f'seed {found[0]}: {found[1][:140]}' if found else f'NOT CAUGHT in {seeds_max}'} ({took:.1f} s)",
            flush=True,
        )


__all__ = ["MUTANTS", "Finished", "caught", "mutated", "simulation"]

if __name__ == "__main__":
    main(sys.argv[1:2] or list(MUTANTS), int(sys.argv[2]) if len(sys.argv) > 2 else 5000)
