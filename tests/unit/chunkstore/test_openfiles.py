"""A process that may have few files open."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

import pytest

from amberblob.errors import StorageError
from amberblob.openfiles import databases_max, uploads_max


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda what: (200, 200))


def open_databases(disk: Path) -> int:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith(str(disk)) and target.endswith("meta.sqlite3"):
                found.add(target)
    return len(found)


async def test_no_more_databases_are_open_than_there_are_files_for_whatever_is_configured(kit, tmp_path: Path, few):
    store = await kit.open(tmp_path, open_databases_max=256)
    slots = range(databases_max() + 10)
    for slot in slots:
        await kit.put(store, slot, "p")
    await store.settle(slots)
    assert open_databases(tmp_path) == databases_max() == 25
    for slot in slots:
        assert (await store.load(slot, "p")).record is not None


async def test_no_more_blobs_come_in_than_there_are_files_for(kit, tmp_path: Path, few):
    store = await kit.open(tmp_path)
    allowed = uploads_max()
    assert allowed == 25
    stagings = [await store.stage(0, kit.mint(), chunk_bytes=1 << 16, size=100) for _ in range(allowed)]
    with pytest.raises(StorageError, match="25 blobs are coming in"):
        await store.stage(1, kit.mint(), chunk_bytes=1 << 16, size=100)
    await stagings.pop().abort()
    stagings.append(await store.stage(1, kit.mint(), chunk_bytes=1 << 16, size=100))
    for staging in stagings:
        await staging.abort()
    assert store.failed is None


async def test_what_other_nodes_bring_back_comes_in_beside_the_uploads_of_clients(kit, tmp_path: Path, few):
    """A copy that could not get a record's bytes would not accept the record: the path could not be written as long as uploads last."""
    store = await kit.open(tmp_path)
    stagings = [await store.stage(0, kit.mint(), chunk_bytes=1 << 16, size=100) for _ in range(25)]
    stagings.append(await store.stage(0, kit.mint(), chunk_bytes=1 << 16, size=100, revive=True))
    for staging in stagings:
        await staging.abort()


async def test_a_limit_that_is_lowered_holds_for_databases_too(kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    store = await kit.open(tmp_path)
    for slot in range(30):
        await kit.put(store, slot, "p")
    await store.settle(range(30))
    assert open_databases(tmp_path) == 30
    monkeypatch.setattr(resource, "getrlimit", lambda what: (160, 160))
    await kit.put(store, 30, "p")
    await store.settle([30])
    assert open_databases(tmp_path) == databases_max() == 20
