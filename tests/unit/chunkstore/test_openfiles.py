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
