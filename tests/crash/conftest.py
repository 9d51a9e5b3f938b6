"""What the tests of crashes share: one reference life, one process that forks scenarios, and how much is tried."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.runs import Nursery, Point, fast_folder, points, sample
from tests.crash.tracing import why_no_strace

EVERYTHING = os.environ.get("AMBERBLOB_TEST_ALL_CRASH_POINTS") == "1"
"""Whether every point is tried, and thousands of states; else a sample that is the same every time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(7200 if EVERYTHING else 900))


@pytest.fixture(scope="session", autouse=True)
def strace() -> None:
    """Nothing here works without it. A machine of the project's CI has it, or fails."""
    why = why_no_strace()
    if why is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture(scope="session")
def every_point(tmp_path_factory: pytest.TempPathFactory) -> list[Point]:
    """Every call of a life that changes the disk."""
    return points(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Runs scenarios fast."""
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()


@pytest.fixture
def fast() -> Iterator[Path]:
    """A folder whose syncs cost nothing. A SIGKILL leaves in it what it would leave on a disk."""
    with fast_folder() as folder:
        yield folder


def some(found: list[Point], count: int) -> list[Point]:
    """All of them, or a sample of about ``count``."""
    return found if EVERYTHING else sample(found, count)
