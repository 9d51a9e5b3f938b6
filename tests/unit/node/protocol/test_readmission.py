"""Copies that lose their memory become voters again, in the simulation; and the rules that it takes, one off at a time."""

from __future__ import annotations

import pytest

from tests.unit.node.protocol.readmission import Readmission
from tests.unit.node.protocol.simulation import Violation

SEEDS = 400


def test_no_seed_breaks_a_promise_though_copies_lose_their_memory():
    filled = rerouted = 0
    for seed in range(SEEDS):
        sim = Readmission(seed, trace=seed < 50)
        sim.run()
        assert not sim.stuck and not sim.given_up, f"seed {seed}: {sim.stuck}"
        assert not sim.losing, f"seed {seed}: {sim.losing} was never filled"
        filled += sim.filled
        rerouted += sum("reason=epoch" in line for line in sim.log or ())
    assert filled >= SEEDS and rerouted >= 20, (filled, rerouted)


@pytest.mark.parametrize("rule,first", [("mutes", 100), ("asks_majority", 240)])
def test_each_rule_is_needed(monkeypatch, rule, first):
    monkeypatch.setattr(Readmission, rule, False)
    for seed in range(first, first + 500):
        try:
            Readmission(seed).run()
        except (Violation, AssertionError):
            return
    raise AssertionError(f"without {rule!r} nothing breaks from seed {first} on")
