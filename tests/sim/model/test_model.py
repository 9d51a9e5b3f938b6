"""The model of the commit protocol, run small; `make model` runs it large."""

import hashlib
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields

import pytest

from sim.model.__main__ import MUST_HAPPEN, main
from sim.model.mutants import BY_NAME, MUTANTS, hunt
from sim.model.rules import Rules
from sim.model.run import APART, holds, run_all, run_seed
from sim.model.shape import KINDS_ALL, KINDS_APART

SEEDS = 1_000


def _some(first):
    counts, bad = Counter(), []
    for seed in range(first, first + SEEDS // 10):
        for outcome in run_all(seed):
            counts += outcome.counts
            if outcome.faults or outcome.given_up:
                bad.append((outcome.seed, outcome.kind, outcome.faults))
    return counts, bad


@pytest.mark.timeout(300)
def test_the_protocol_holds_and_everything_happened():
    counts, bad = Counter(), []
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        for some, failed in pool.map(_some, range(1, SEEDS + 1, SEEDS // 10)):
            counts += some
            bad += failed
    assert not bad
    assert [name for name in MUST_HAPPEN if not counts[name]] == []


def test_a_seed_decides_everything():
    first, second = run_seed(17, tracing=True), run_seed(17, tracing=True)
    assert [str(call) for call in first.calls] == [str(call) for call in second.calls]
    assert first.counts == second.counts
    assert first.notes == second.notes
    assert [str(call) for call in run_seed(18).calls] != [str(call) for call in first.calls]


def test_tracing_changes_nothing():
    assert [str(call) for call in run_seed(29).calls] == [str(call) for call in run_seed(29, tracing=True).calls]


@pytest.mark.parametrize(
    "name",
    [
        "accept-ignores-promise",
        "read-one",
        "no-write-id",
        "no-predecessor",
        "build-on-undecided",
        "held-refuses",
        "next-lost",
        "no-joint",
        "sync-no-rows",
        "readmit-unsynced",
        "gc-with-mute",
    ],
)
def test_a_shortcut_is_caught(name):
    """One of each part of the protocol; ``make model`` hunts all."""
    assert hunt(BY_NAME[name], 1_000) is not None


def test_two_voters_lose_their_memories_in_turn():
    fixed = {"voters": 2, "nodes": 4, "losses": 4, "losses_again": 0.5, "losses_down": 2.0}
    counts = Counter()
    for seed in range(1, 301):
        outcome = run_seed(seed, only="learners first", fixed={**fixed, "moves": seed % 3})
        assert outcome.faults == [], f"seed {seed}"
        counts.update(outcome.counts)
    assert counts["readmitted copies synced"] > 500 and counts["moves begun"] > 10


def test_each_rule_has_a_mutant():
    assert {mutant.rule for mutant in MUTANTS} == {field.name for field in fields(Rules)}
    assert len(BY_NAME) == len(MUTANTS)


def test_every_kind_of_world_is_counted():
    assert {f"seeds: {kind}" for kind in KINDS_ALL} <= set(MUST_HAPPEN)


def test_a_kind_apart_has_seeds_of_its_own():
    assert [outcome.kind in KINDS_APART for outcome in run_all(APART + 1)] == [False]
    drawn, *apart = run_all(3 * APART)
    assert [str(call) for call in drawn.calls] == [str(call) for call in run_seed(3 * APART).calls]
    assert [(outcome.seed, outcome.kind) for outcome in apart] == [(3, kind) for kind in KINDS_APART]
    assert all(run_seed(seed).kind not in KINDS_APART for seed in range(1, 201))


def test_nobody_readmits_where_seeds_are_drawn():
    counts = Counter()
    for seed in range(1, 201):
        counts.update(run_seed(seed).counts)
    assert [name for name in counts if "readmi" in name or "mute" in name or "page" in name] == []


def test_promises_are_held_in_every_other_world():
    counts = {False: Counter(), True: Counter()}
    for seed in range(1, 201):
        counts[holds(seed)].update(run_seed(seed).counts)
    without = [name for name in counts[False] if "held" in name or "one writer" in name]
    assert without == []
    assert counts[True]["writes begun from a held promise"] > 0
    assert run_seed(7).counts == run_seed(7, holding=False).counts != run_seed(7, holding=True).counts


def test_a_seed_means_what_it_meant_before_promises_were_held():
    calls = "".join(f"{call}\n" for seed in range(1, 101) for call in run_seed(seed, holding=False).calls)
    assert hashlib.sha256(calls.encode()).hexdigest()[:16] == "202b2914b1cab5ef"


def test_a_mutant_has_its_own_worlds():
    mutant = BY_NAME["next-lost"]
    counts = mutant.run(1, kept=True).counts
    assert counts["seeds: one writer"] == 1
    assert counts["power cuts"] == mutant.fixed["power_cuts"]
    assert all(mutant.holding == (mutant.rule.startswith(("held", "next", "ballots_of"))) for mutant in MUTANTS)


def test_the_command_shows_a_seed(capsys):
    assert main(["--seed", "1", "--trace"]) == 0
    shown = capsys.readouterr().out
    assert "nothing is wrong" in shown
    assert "#1 " in shown


def test_the_command_tells_what_a_mutant_broke(capsys):
    caught = hunt(BY_NAME["no-predecessor"])
    assert caught is not None
    assert main(["--mutant", "no-predecessor", "--seed", str(caught.seed)]) == 1
    assert "VIOLATION" in capsys.readouterr().out
    assert main(["--mutant", "no-predecessor", "--kept", "--seed", str(caught.seed)]) == 0
    assert "nothing is wrong" in capsys.readouterr().out
    assert main(["--mutant", "no-predecessor"]) == 0
    assert "1 of 1 caught" in capsys.readouterr().out


def test_the_command_runs_seeds(capsys):
    assert main(["--seeds", "20", "--first", "5", "--jobs", "1"]) == 0
    assert "No violation." in capsys.readouterr().out
