"""What holds for every test; and the order in which several workers take the modules. One process alone keeps the usual order."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, settings

from tests.schedule import in_order

GIB = 2**30
FREE_BYTES_MIN = 4 * GIB
"""What must be free where temporary files go: several clusters at a time are there, and nodes refuse writes on a disk that is
nearly full. Hundreds of tests would fail in as many ways."""

# A busy machine is slow now and then, which says nothing of what is tested; and what a run meets, the next one meets, too.
# Whoever asks for more examples by hand wants others each time.
settings.register_profile(
    "amberblob",
    deadline=None,
    derandomize=not int(os.environ.get("AMBERBLOB_TEST_EXAMPLES", "0")),
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("amberblob")


def pytest_sessionstart(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput") or session.config.option.collectonly:
        return
    folder = tempfile.gettempdir()
    usage = shutil.disk_usage(folder)
    free = usage.free
    if usage.total and free < FREE_BYTES_MIN:  # a disk in memory without a limit tells 0 of both
        pytest.exit(
            f"the tests need {FREE_BYTES_MIN / GIB:.0f} GiB for temporary files, and {folder} has {free / GIB:.1f} GiB free: "
            "make room, or name another folder in TMPDIR",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        # What a test has open is closed before its folder goes, in whatever order it names them.
        if isinstance(item, pytest.Function) and "tmp_path" in item.fixturenames:
            item.fixturenames.sort(key="tmp_path".__ne__)
    if not hasattr(config, "workerinput"):  # what pytest-xdist gives to each of its workers
        return
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    items[:] = [item for name in in_order(modules) for item in modules[name]]
