"""One cluster for all tests of the HTTP contract; each test has names of its own in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pytest

from tests.cluster.harness import DEADLINE_S, Api, Cluster, api_of, logs_for, name_of, until_sync


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    report = yield
    logs_for(report)
    return report


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    try:
        cluster.start_all()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
async def api(shared_cluster: Cluster) -> AsyncIterator[Api]:
    await shared_cluster.wait_ready()
    async with api_of(shared_cluster) as api:
        api.patience_s = DEADLINE_S  # nodes that get no processor for a while may take each other for dead
        yield api


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return name_of(request.node.nodeid)


@pytest.fixture
def nothing_stored(shared_cluster: Cluster) -> Iterator[None]:
    """Whatever the test does, nothing new is on any disk afterwards."""
    before = blobs(shared_cluster)
    yield
    until_sync(lambda: not shared_cluster.staged(), "staging is empty")
    until_sync(lambda: blobs(shared_cluster) <= before, "nothing new is in blobs/")


def blobs(cluster: Cluster) -> set[tuple[str, str]]:
    """Slots and blob ids of which a node has files. (Which nodes: what was written before may be on its way to the last of them.)"""
    return {(folder.parents[1].name, folder.name) for folder in cluster.blob_folders()}
