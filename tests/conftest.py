"""The order in which several workers take the modules; one process alone keeps the usual order."""

from __future__ import annotations

import pytest

from tests.schedule import in_order


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not hasattr(config, "workerinput"):  # what pytest-xdist gives to each of its workers
        return
    modules: dict[str, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.nodeid.partition("::")[0], []).append(item)
    items[:] = [item for name in in_order(modules) for item in modules[name]]
