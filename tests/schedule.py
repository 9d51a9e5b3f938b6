"""Which module of tests goes when, if several workers share them: a module is one piece of work.

Two things cost time. A long module that begins last keeps one worker at work while the others have nothing more to do: so the
long ones go first. And modules that start nodes wait most of the time, while the others compute: all of one sort at once would
leave the processors idle, or have nodes wait for them. So both sorts are handed out side by side, in proportion.
"""

from __future__ import annotations

from collections.abc import Iterable

WAITING = ("tests/cluster/", "tests/crash/", "tests/fuzz/", "tests/nemesis/", "tests/unit/bench/", "tests/unit/deploy/")
"""Folders of tests that start processes and wait for them."""

LAST = ("tests/contract/",)
"""These start processes, too, which then stay until the worker ends: they go last of their sort."""

SECONDS = {
    "tests/cluster/test_archive.py": 50,
    "tests/cluster/test_bench.py": 26,
    "tests/cluster/test_corruption.py": 15,
    "tests/cluster/test_crash.py": 100,
    "tests/cluster/test_dev.py": 14,
    "tests/cluster/test_heal.py": 31,
    "tests/cluster/test_healing.py": 41,
    "tests/cluster/test_majority_lost.py": 31,
    "tests/cluster/test_membership.py": 110,
    "tests/cluster/test_minority.py": 33,
    "tests/cluster/test_operations.py": 24,
    "tests/cluster/test_races.py": 25,
    "tests/cluster/test_rivals.py": 38,
    "tests/cluster/test_shutdown.py": 57,
    "tests/cluster/test_start.py": 35,
    "tests/cluster/test_upgrade.py": 60,
    "tests/cluster/test_upkeep.py": 37,
    "tests/cluster/test_versus.py": 75,
    "tests/contract/registry/test_membership.py": 30,
    "tests/contract/registry/test_registry.py": 15,
    "tests/crash/test_errors.py": 60,
    "tests/crash/test_kill.py": 40,
    "tests/crash/test_power_cut.py": 80,
    "tests/fuzz/test_idle.py": 21,
    "tests/fuzz/test_peer.py": 50,
    "tests/fuzz/test_public.py": 33,
    "tests/nemesis/test_conditional_race.py": 25,
    "tests/nemesis/test_nemesis.py": 95,
    "tests/sim/test_worlds.py": 30,
    "tests/unit/amberblob/cli/test_dev.py": 30,
    "tests/unit/antientropy/test_scrub.py": 12,
    "tests/unit/bench/test_fill.py": 15,
    "tests/unit/chunkstore/test_state_machine.py": 40,
    "tests/unit/deploy/test_dockerfile.py": 40,
    "tests/unit/node/driver/test_moving.py": 12,
    "tests/unit/node/http/test_objects.py": 15,
    "tests/unit/node/protocol/test_simulation.py": 60,
}
"""About how long the long ones take. Nothing but the order depends on it: a module that is not named here goes after these."""

SECONDS_OTHERS = 3


def in_order(modules: Iterable[str]) -> list[str]:
    """The modules, given by their paths, in the order in which they are to be handed out. The same for each worker."""
    by_length = sorted(modules, key=lambda name: (name.startswith(LAST), -_seconds(name)))
    waiting = [name for name in by_length if name.startswith((*WAITING, *LAST))]
    computing = [name for name in by_length if not name.startswith((*WAITING, *LAST))]
    return _side_by_side(waiting, computing)


def _seconds(name: str) -> int:
    """About how long a module takes."""
    return SECONDS.get(name, SECONDS_OTHERS)


def _side_by_side(*sorts: list[str]) -> list[str]:
    """Always the next one of that sort of which the smaller part was handed out."""
    parts: list[tuple[float, int, str]] = []
    for sort, names in enumerate(sorts):
        all_s, before_s = sum(map(_seconds, names)), 0
        for name in names:
            parts.append((before_s / all_s, sort, name))
            before_s += _seconds(name)
    # Stable: within a sort nothing changes its place.
    return [name for *_, name in sorted(parts, key=lambda part: part[:2])]
