"""The stores that the contract tests run on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from chunkstore import ReplicaStore
from tests.contract.chunkstore.kit import MAKERS
from tests.contract.chunkstore.rot import Rot, rot_of


@pytest.fixture(params=sorted(MAKERS))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ReplicaStore]:
    made = await MAKERS[request.param](tmp_path)
    yield made
    await made.close()


@pytest.fixture
def rot(store: ReplicaStore) -> Rot:
    return rot_of(store)
