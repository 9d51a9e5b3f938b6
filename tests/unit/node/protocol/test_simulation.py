"""The protocol under a simulated unkind world, and the simulation under protocols with one thing wrong."""

from __future__ import annotations

from collections import Counter

import pytest

from amberblob.manifest import WriteMark
from node.protocol.operations import Conditions
from node.protocol.write import WriteRound
from sim.history import Call
from sim.linearizability import linearizable
from tests.unit.node.protocol import simulation
from tests.unit.node.protocol.mutants import HELD, MUTANTS, caught
from tests.unit.node.protocol.simulation import Simulation

SEEDS = 2000

SLACK = 500
"""How many seeds a mutant may take from its start. If all live: ``python -m tests.unit.node.protocol.mutants NAME 20000``."""

STARTS = {
    "promise_forgotten_by_a_restart": 750,
    "write_id_looked_up_in_the_findings_record_only": 6000,
    "refusal_from_a_held_promise": 1200,
    "held_though_one_voter_promised": 500,
    "held_promise_used_again": 700,
}


@pytest.mark.timeout(300)
def test_no_seed_breaks_a_promise():
    seen: Counter[object] = Counter()
    for seed in range(SEEDS):
        sim = Simulation(seed).run()
        assert not sim.stuck, f"seed {seed}: {sim.stuck}"
        assert not sim.given_up, f"seed {seed}: the search for an order was given up"
        for call in sim.calls:
            seen[call.kind, "void" if call.void else call.result[0] if call.result else "unknown"] += 1
            seen["tries", call.tries] += 1
    # The world was unkind, and things happened all the same.
    for kind in ("put", "delete", "delete-version", "restore"):
        assert seen[kind, "ok"] >= 100, seen
        assert seen[kind, "unknown"] >= 100, seen
        assert seen[kind, 412] >= 100, seen
    for kind in ("delete", "delete-version", "restore"):
        assert seen[kind, 404] >= 100, seen
    assert seen["put", 409] >= 100
    assert seen["tries", 3] >= 500
    for kind in ("read", "read-version", "read-all"):
        assert seen[kind, "read"] >= 500, seen


def test_no_seed_breaks_a_promise_where_promises_are_held(monkeypatch):
    begun: Counter[bool] = Counter()
    original = WriteRound._begin_held

    def begin_held(self, held):
        actions = original(self, held)
        begun[bool(actions)] += 1
        return actions

    monkeypatch.setattr(WriteRound, "_begin_held", begin_held)
    for seed in range(300):
        sim = Simulation(seed, **HELD).run()
        assert not sim.stuck and not sim.given_up, f"seed {seed}: {sim.stuck}"
    assert begun[True] >= 25 and begun[False] >= 100, begun


def test_a_seed_is_played_the_same_every_time():
    assert simulation.story(11) == simulation.story(11)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_caught(name):
    first = STARTS.get(name, 0)
    assert caught(name, first, SLACK) is not None, f"{name} lives through seeds {first} to {first + SLACK - 1}"


# ---- the check of the check: histories that have no order, and some that have

FIRST = (0, 0, 0, 0, ())


def call(number: int, kind: str, invoked: float, ended: float | None, *result: object, **options) -> Call:
    return Call(number, "p", kind, invoked, ended=ended, result=tuple(result) or None, **options)


def version_read(number: int, version: int, invoked: float, ended: float, told: object) -> Call:
    return call(number, "read-version", invoked, ended, "read", told, version=version)


def test_a_read_may_not_forget_a_put_that_ended_before_it():
    put = call(1, "put", 0, 1, "ok", 1)
    assert linearizable([put, version_read(2, 1, 2, 3, ("e1", True))], FIRST)
    assert linearizable([put, version_read(2, 1, 2, 3, None)], FIRST) is False
    assert linearizable([put, version_read(2, 1, 0.5, 3, None)], FIRST)


def test_an_unknown_put_may_happen_later_or_never_but_not_come_and_go():
    put = call(1, "put", 0, None)
    assert linearizable([put, version_read(2, 1, 5, 6, None), version_read(3, 1, 7, 8, ("e1", True))], FIRST)
    assert linearizable([put, version_read(2, 1, 5, 6, None), version_read(3, 1, 7, 8, None)], FIRST)
    assert linearizable([put, version_read(2, 1, 5, 6, ("e1", True)), version_read(3, 1, 7, 8, None)], FIRST) is False


def test_what_was_refused_does_not_happen():
    absent = Conditions(absent=True)
    first, second = call(1, "put", 0, 1, "ok", 1), call(2, "put", 2, 3, 412, conditions=absent)
    assert linearizable([first, second], FIRST)
    assert linearizable([second, call(1, "put", 4, 5, "ok", 1)], FIRST) is False, "412 on an empty path"
    assert linearizable([first, second, version_read(3, 2, 4, 5, ("e2", True))], FIRST) is False


def test_two_puts_may_not_have_one_version():
    puts = [call(1, "put", 0, 9, "ok", 1), call(2, "put", 0, 9, "ok", 1)]
    assert linearizable(puts, FIRST) is False
    puts[1].result = ("ok", 2)
    assert linearizable(puts, FIRST)


def test_deletes_and_restores_have_an_order():
    calls = [
        call(1, "put", 0, 1, "ok", 1),
        call(2, "put", 0, 1, "ok", 2),
        call(3, "delete-version", 2, 3, "ok", 2, version=2),
        call(4, "restore", 4, 5, "ok", 2),
        call(5, "delete", 6, 7, "ok", 2),
        call(6, "restore", 8, 9, "ok", 1, version=1),
    ]
    assert linearizable([*calls, version_read(7, 2, 10, 11, ("e2", False))], FIRST)
    assert linearizable([*calls, version_read(7, 2, 10, 11, ("e2", True))], FIRST) is False
    calls[3].result = ("ok", 1)
    assert linearizable(calls, FIRST) is False


def test_the_trace_names_what_it_tells():
    assert "put" in str(call(1, "put", 0, 1, "ok", 1))
    assert "prior" in simulation.brief(type("M", (), {"prior": WriteMark("w", "put", 1, 0)})())
