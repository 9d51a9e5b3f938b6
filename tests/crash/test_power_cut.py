"""The power goes: of what was not synced anything may be lost, and nothing that was acknowledged is.

The rules of what may be lost are in :mod:`tests.crash.powercut`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.conftest import EVERYTHING
from tests.crash.mutants import MUTANTS
from tests.crash.powercut import Recording
from tests.crash.runs import Unclear, record, record_two_lives, replay

STATES = 4000 if EVERYTHING else 250
STATES_AFTER_A_KILL = 300 if EVERYTHING else 25

UNCLEAR_MAX = 20
"""So many recordings of one kill tell nothing only if something is wrong: at most one in eight did on a busy machine."""

KILLS = ("fsync_dir:slots:5", "fsync_dir:journal:2", "rename:disk.toml:2", "fdatasync:00000002.log:3")
"""Calls before which the first of two lives is killed: what it left unsynced is not to be built upon."""

MORE_KILLS = tuple(str(number) for number in range(5, 420, 9)) if EVERYTHING else ()


def _two_lives(folder: Path, kill: str, mutant: str | None = None) -> Recording:
    for attempt in range(UNCLEAR_MAX):
        try:
            return record_two_lives(folder / str(attempt), die_before=kill, mutant=mutant)
        except Unclear:
            continue
    pytest.fail(
        f"{UNCLEAR_MAX} kills came within another thread's call, whose outcome nobody knows: is the log read rightly?"
    )


def test_nothing_acknowledged_is_lost(tmp_path: Path):
    result = replay(record(tmp_path), STATES, seed=1)
    assert not result.broken, result.told()
    assert result.verified == STATES and result.lossy > STATES * 3 // 4


def test_a_disk_whose_folder_the_store_made_itself(tmp_path: Path):
    result = replay(record(tmp_path, given=False), STATES_AFTER_A_KILL, seed=2)
    assert not result.broken, result.told()
    assert result.verified == STATES_AFTER_A_KILL


@pytest.mark.parametrize("kill", [*KILLS, *MORE_KILLS])
def test_what_a_killed_process_left_unsynced_is_not_built_upon(tmp_path: Path, kill: str):
    result = replay(_two_lives(tmp_path, kill), STATES_AFTER_A_KILL, seed=3)
    assert not result.broken, result.told()
    assert result.verified == STATES_AFTER_A_KILL


_AFTER_A_KILL = {"no-names-sync": "fsync_dir:slots:5", "no-settle": "fdatasync:00000002.log:3"}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_replay_finds_what_is_built_in(tmp_path: Path, mutant: str):
    """A replay that finds nothing proves something only if it would have found these."""
    kill = _AFTER_A_KILL.get(mutant)
    verified = 0
    for life in range(3):  # what its threads do together is not the same in each life, and on a busy machine less so
        folder = tmp_path / str(life)
        recorded = record(folder, mutant=mutant) if kill is None else _two_lives(folder, kill, mutant)
        result = replay(recorded, 300, seed=1, stop_after=1)
        verified += result.verified
        if result.broken:
            return
    raise AssertionError(f"{mutant} was not found in {verified} states")
