"""Clusters for the tests of failures. ``cluster`` is shared by a module and whole again before each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.harness import Api, Cluster, api_of, logs_for, name_of


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Five minutes are for tests that only compute; here one waits for processes, each of its waits a minute or two at most."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    logs_for(report)
    return report


@pytest.fixture(scope="module")
def module_cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
async def cluster(module_cluster: Cluster) -> Cluster:
    """Three nodes that are ready. The test may break them; the next one finds them whole."""
    await module_cluster.heal()
    return module_cluster


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[Api]:
    async with api_of(cluster) as api:
        yield api


@pytest.fixture
def make_cluster() -> Iterator[Callable[..., Cluster]]:
    """Clusters of the test's own."""
    made: list[Cluster] = []

    def make(**options: Any) -> Cluster:
        made.append(Cluster(**options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return name_of(request.node.nodeid)
