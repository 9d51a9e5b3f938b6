"""Temporary files: a run begins only where there is room for them, and only what a failed test left stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from tests.conftest import FREE_BYTES_MIN, pytest_sessionstart

ROOT = Path(__file__).parents[2]
Usage = namedtuple("Usage", "total used free")

TESTS = """
import os
from pathlib import Path

def test_that_passes(tmp_path, tmp_path_factory):
    (tmp_path / "large").write_bytes(bytes(1000))
    (tmp_path_factory.mktemp("shared") / "large").write_bytes(bytes(1000))

def test_that_may_fail(tmp_path):
    (tmp_path / "traces").write_bytes(bytes(1000))
    assert not os.environ.get("FAILS")
"""


def run(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest as `make test` does, over tests of our own, with temporary files below a folder."""
    tests, temporary = folder / "test_of_its_own.py", folder / "temporary"
    tests.write_text(TESTS)
    temporary.mkdir(exist_ok=True)
    others = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(ROOT / "pyproject.toml"),
        *arguments,
        str(tests),
    ]
    given = {**others, "TMPDIR": str(temporary), **environment}
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=False, timeout=120)


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "temporary").rglob("*") if path.is_file() and not path.is_symlink())


@pytest.mark.parametrize("workers", [[], ["-n", "2", "--dist", "loadscope"]], ids=["alone", "workers"])
def test_what_passed_leaves_nothing(tmp_path: Path, workers: list[str]):
    done = run(tmp_path, *workers)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
    assert files(tmp_path) == []


def test_of_failed_ones_the_last_runs_stay(tmp_path: Path):
    for _ in range(3):
        done = run(tmp_path, FAILS="yes")
        assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
        assert "1 failed, 1 passed" in done.stdout
    left = files(tmp_path)
    assert left.count("traces") == 1
    assert left.count("large") == 1  # what tests share is not removed one by one


@pytest.fixture
def works_in() -> Iterator[list[Path]]:
    """As a fixture that closes what it opened in a test's folder."""
    folders: list[Path] = []
    yield folders
    assert folders and all(folder.is_dir() for folder in folders)


def test_the_folder_goes_after_what_is_open_in_it(works_in: list[Path], tmp_path: Path):
    works_in.append(tmp_path)


@pytest.mark.parametrize("missing", [1, 0])
def test_no_run_begins_without_room(monkeypatch: pytest.MonkeyPatch, missing: int):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2 * FREE_BYTES_MIN, 0, FREE_BYTES_MIN - missing))
    controller = cast(
        pytest.Session, SimpleNamespace(config=SimpleNamespace(option=SimpleNamespace(collectonly=False)))
    )
    if missing:
        with pytest.raises(pytest.exit.Exception, match=r"the tests need \d+ GiB .* make room, or name another folder"):
            pytest_sessionstart(controller)
    else:
        pytest_sessionstart(controller)
