"""A disk that cannot sync, and one that has no room: nothing acknowledged is lost, and the error is the right one."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.conftest import some
from tests.crash.runs import Life, Nursery, Point
from tests.crash.verify import PromiseBroken, verify

SYNC_POINTS = 24
ROOM_POINTS = 18

PATIENCE_S = 30.0
"""For a step on a disk that fails: nothing waits for room there, so only a busy machine takes long."""

_PATH = re.compile(r"\A\w+\(\d+<(.*?)>")


def _failed_path(life: Life) -> Path:
    """Of the file or folder whose sync failed."""
    line = next(line for line in life.log.splitlines() if "(INJECTED)" in line)
    match = _PATH.match(line)
    assert match is not None, line
    return Path(match[1])


def _syncs_again(life: Life) -> list[str]:
    """Syncs of one of the store's own files after one of it had failed.

    SQLite's are left out: it tries its log again when it closes it.
    """
    path, log = _failed_path(life), life.log.splitlines()
    if path.suffix != ".log" and path.parent.name != "chunks" and path.name != "manifest.json":
        return []
    first = next(at for at, line in enumerate(log) if "(INJECTED)" in line)
    return [line for line in log[first + 1 :] if line.startswith(("fsync(", "fdatasync(")) and f"<{path}>" in line]


def _is_sqlites_own_business(point: Point, life: Life) -> bool:
    """Whether SQLite met the error and kept it to itself.

    It ignores an error of the sync (an fdatasync) of the folder in which it made its log; the store syncs that folder
    itself before it relies on the database.
    """
    if point.thread != "amber-database" or point.call != "fdatasync":
        return False
    path = _failed_path(life)
    return path.name.isdecimal() or path.name == "disk"


def test_a_sync_that_fails_ends_all_acknowledgement(every_point: list[Point], nursery: Nursery, fast: Path):
    chosen = some([point for point in every_point if point.call in ("fsync", "fdatasync", "syncfs")], SYNC_POINTS)
    missed, broken, unnoticed = [], [], []
    for number, point in enumerate(chosen):
        disk = fast / str(number) / "disk"
        disk.mkdir(parents=True)
        life = nursery.run(disk, point=point, fault="error=EIO", carry_on=True, step_s=PATIENCE_S)
        promises = life.promises
        if "(INJECTED)" not in life.log:
            missed.append(str(point))
        else:
            assert not _syncs_again(life), (point, _syncs_again(life))
            # It failed then and there, or within close, which says so by not being told of as Closed.
            if "failed" not in promises.notes and life.code == 0 and promises.closed:
                unnoticed.append((str(point), _is_sqlites_own_business(point, life)))
        for refused in promises.refused:
            wanted = ("OSError", "DiskFailed") if refused.step == "open" else ("DiskFailed",)
            assert refused.error in wanted, (point, refused)
        assert life.code in (0, 3), (point, life.code, nursery.errors())
        try:
            verify(disk, promises, again=number % 3 == 0)
        except PromiseBroken as error:
            broken.append(f"{point}: {error}")
    assert not broken, "\n\n".join(broken[:5])
    assert all(is_sqlites for _, is_sqlites in unnoticed), unnoticed
    assert len(missed) <= len(chosen) // 2, missed


def test_no_room_for_one_call_loses_nothing(every_point: list[Point], nursery: Nursery, fast: Path):
    calls = ("pwrite64", "pwritev2", "fallocate", "mkdir", "openat", "rename")
    chosen = some([point for point in every_point if point.call in calls], ROOM_POINTS)
    missed, broken = [], []
    for number, point in enumerate(chosen):
        disk = fast / str(number) / "disk"
        disk.mkdir(parents=True)
        life = nursery.run(disk, point=point, fault="error=ENOSPC", carry_on=True)
        if "(INJECTED)" not in life.log:
            # How many calls a thread needs depends on what it finds to do together: this life was over before.
            missed.append(str(point))
        _check_refusals(life, point)
        try:
            verify(disk, life.promises, again=number % 3 == 0)
        except PromiseBroken as error:
            broken.append(f"{point}: {error}")
    assert not broken, "\n\n".join(broken[:5])
    assert len(missed) <= len(chosen) // 2, missed


def _check_refusals(life: Life, where: object) -> None:
    assert life.code in (0, 3), (where, life.code, life.lines[-1])
    for refused in life.promises.refused:
        # TimeoutError: a question that waits for room, given up by the scenario.
        wanted = ["DiskFull", "DiskFailed", "StorageError", "TimeoutError", *(["OSError"] * (refused.step == "open"))]
        assert refused.error in wanted, (where, refused)


@contextmanager
def _small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory of that size."""
    folder.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "amber-crash", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted (root only): {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True, capture_output=True)


def _grow(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True, capture_output=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
@pytest.mark.parametrize(("size", "reserve_bytes"), [("256k", 0), ("512k", 0), ("1m", 0), ("1m", 1 << 17)])
def test_a_disk_of_a_mebibyte_fills_up_and_works_on_when_there_is_room(
    nursery: Nursery, tmp_path: Path, size: str, reserve_bytes: int
):
    with _small_disk(tmp_path / "small", size) as base:
        disk = base / "disk"
        disk.mkdir()
        life = nursery.run(disk, carry_on=True, reserve_bytes=reserve_bytes)
        _check_refusals(life, size)
        assert life.promises.refused, "it never was full"
        # A start without room succeeds or says so; either way it loses nothing.
        again = nursery.run(disk, phase=2, carry_on=True, reserve_bytes=reserve_bytes)
        _check_refusals(again, size)
        _grow(base, "64m")
        third = nursery.run(disk, phase=3)
        assert third.code == 0, nursery.errors()
        verify(disk, type(third.promises).of([*life.lines, *again.lines, *third.lines]))
