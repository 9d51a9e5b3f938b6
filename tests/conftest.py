"""What holds for every test; and the order in which several workers take the modules. One process alone keeps the usual order."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from tests.schedule import in_order

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


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):  # what pytest-xdist gives to each of its workers
        return
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    items[:] = [item for name in in_order(modules) for item in modules[name]]
