"""SIGKILL before a call that changes the disk: what was acknowledged is there afterwards, and the store works on.

The page cache survives a SIGKILL, so this cannot show a missing sync; :mod:`tests.crash.test_power_cut` does.
"""

from __future__ import annotations

from pathlib import Path

from tests.crash.conftest import some
from tests.crash.runs import Nursery, Point
from tests.crash.verify import PromiseBroken, verify

POINTS = 36


def test_a_kill_before_any_call_loses_nothing(every_point: list[Point], nursery: Nursery, fast: Path):
    chosen = some(every_point, POINTS)
    assert {point.thread for point in chosen} >= {"main", "amber-io_0", "amber-journal", "amber-database"}
    calls = {point.call for point in chosen}
    assert calls >= {"pwrite64", "fsync", "fdatasync", "rename", "unlink", "mkdir", "fallocate", "ftruncate", "openat"}
    missed, broken = [], []
    for number, point in enumerate(chosen):
        disk = fast / str(number) / "disk"
        disk.mkdir(parents=True)
        life = nursery.run(disk, point=point)
        if life.killed:
            # It came at that call, which was entered and never returned.
            made = [line for line in life.log.splitlines() if line.startswith(f"{point.call}(")]
            assert len(made) == point.when and made[-1].endswith("= ?"), (point, made[-3:])
        else:
            missed.append(str(point))
            assert life.code == 0, (point, life.code, nursery.errors())
        try:
            verify(disk, life.promises, again=number % 3 == 0)
        except PromiseBroken as error:
            broken.append(f"{point}: {error}")
    assert not broken, "\n\n".join(broken[:5])
    # How entries share a batch is not the same every time: some lives make fewer of the journal's and SQLite's calls.
    assert {name.split(":")[0] for name in missed} <= {"amber-journal", "amber-database"}, missed
    assert len(missed) <= len(chosen) // 2, missed


def test_a_second_kill_during_recovery_loses_nothing(every_point: list[Point], nursery: Nursery, fast: Path):
    """Killed late, killed again while the next life begins, then let alone."""
    late = [point for point in every_point if (point.thread, point.call) == ("amber-journal", "fdatasync")]
    early = [point for point in every_point if point.thread == "amber-database" and point.when <= 12]
    killed = 0
    for number, point in enumerate(some(early, 9)):
        disk = fast / str(number) / "disk"
        disk.mkdir(parents=True)
        first = nursery.run(disk, point=late[(len(late) * (2 + number % 7)) // 10])
        second = nursery.run(disk, point=point, phase=2)
        killed += first.killed and second.killed
        third = nursery.run(disk, phase=3)
        assert third.code == 0, nursery.errors()
        lines = [*first.lines, *second.lines, *third.lines]
        verify(disk, type(third.promises).of(lines), again=number % 3 == 0)
    assert killed > 4
