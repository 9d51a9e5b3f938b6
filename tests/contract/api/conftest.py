"""One cluster for all tests of the HTTP contract; each test has names of its own in it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pytest

from tests.cluster.harness import Api, Cluster, api_of, logs_for, name_of, until_sync


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
        yield api


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses."""
    return name_of(request.node.nodeid)


@pytest.fixture
def nothing_stored(shared_cluster: Cluster) -> Iterator[None]:
    """Whatever the test does, nothing new is on any disk afterwards."""
    before = shared_cluster.blob_folders()
    yield
    until_sync(lambda: not shared_cluster.staged(), f"staging empty: {shared_cluster.staged()}", deadline_s=10)
    until_sync(
        lambda: shared_cluster.blob_folders() <= before,
        f"nothing new in blobs/: {shared_cluster.blob_folders() - before}",
        deadline_s=10,
    )
