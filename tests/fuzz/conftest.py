"""Nodes to attack; a module's tests share one."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

from tests.cluster.harness import logs_for
from tests.fuzz.kit import Victim, victim


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    logs_for(report)
    return report


@pytest.fixture(scope="module")
def module_node() -> Iterator[Victim]:
    with victim() as made:
        yield made


@pytest.fixture
def node(module_node: Victim) -> Iterator[Victim]:
    """A node that runs; afterwards it must be as well as before."""
    module_node.mark()
    yield module_node
    module_node.check()
