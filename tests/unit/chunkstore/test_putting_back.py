"""Chunks of one blob that are put back at once: side by side, one sync for the names of those that are ready, and nothing half."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from amberblob.errors import DigestMismatch, StorageError
from amberblob.ids import content_hash
from amberblob.limits import CHUNK_BYTES_MIN
from amberblob.manifest import ChunkRef, Version
from amberblob.mutations import Installed
from chunkstore import DiskStore
from chunkstore.fileops import FileOps
from tests.unit.chunkstore.test_bulk import SLOT, Counting

COUNT = 6


async def missed(kit, store: DiskStore) -> tuple[Version, list[bytes]]:
    """A version whose row is here and whose bytes are not."""
    parts = [bytes([number + 1]) * CHUNK_BYTES_MIN for number in range(COUNT)]
    chunks = tuple(ChunkRef(content_hash(part), len(part)) for part in parts)
    whole = b"".join(parts)
    version = Version(1, kit.mint(), len(whole), content_hash(whole), 1001, "t", {}, chunks, None, COUNT, False)
    await store.durable(store.apply(Installed(SLOT, "p", None, None, (version,))))
    return version, parts


def cut(data: bytes, size: int) -> list[memoryview]:
    view = memoryview(data)
    return [view[at : at + size] for at in range(0, len(data), size)]


def put_back(store: DiskStore, version: Version, parts: list[bytes]) -> list[asyncio.Task[None]]:
    return [
        asyncio.create_task(store.install_chunk(SLOT, version, chunk, cut(part, 40)))
        for chunk, part in zip(version.chunks, parts, strict=True)
    ]


def staged(store: DiskStore) -> list[str]:
    return os.listdir(store.path / "slots" / str(SLOT) / "staging")


async def test_chunks_of_a_blob_are_synced_side_by_side_and_get_their_names_together(kit, tmp_path: Path):
    ops = Counting()
    store = await kit.open(tmp_path / "d", ops=ops)
    version, parts = await missed(kit, store)
    await store.install_chunk(SLOT, version, version.chunks[0], parts[0])
    ops.folders.clear()
    ops.go.clear()
    tasks = put_back(store, version, parts)
    await kit.until(lambda: ops.at_once >= 4)
    ops.go.set()
    await asyncio.gather(*tasks)
    assert ops.folders.count("chunks") < COUNT, "one sync for several names"
    for chunk, part in zip(version.chunks, parts, strict=True):
        assert await store.read_chunk(SLOT, version.blob_id, chunk) == part
    assert await store.is_whole(SLOT, version) and staged(store) == []


async def test_in_more_pieces_than_the_system_takes_at_once(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    version, parts = await missed(kit, store)
    assert len(cut(parts[0], 40)) > 1024
    await store.install_chunk(SLOT, version, version.chunks[0], cut(parts[0], 40))
    assert await store.read_chunk(SLOT, version.blob_id, version.chunks[0]) == parts[0]


async def test_pieces_that_are_not_the_chunk_leave_nothing(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    version, parts = await missed(kit, store)
    for wrong in (cut(parts[1], 40), cut(parts[0], 40)[1:], [*cut(parts[0], 40), memoryview(b"x")], []):
        with pytest.raises(DigestMismatch):
            await store.install_chunk(SLOT, version, version.chunks[0], wrong)
    assert await store.missing_chunks(SLOT, version, version.chunks) == list(version.chunks)


async def test_who_goes_away_leaves_it_to_its_end(kit, tmp_path: Path):
    ops = Counting()
    store = await kit.open(tmp_path / "d", ops=ops)
    version, parts = await missed(kit, store)
    store._bulk._files.prepare_slot(SLOT)
    ops.go.clear()
    tasks = put_back(store, version, parts)
    await kit.until(lambda: ops.at_once >= 2)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    ops.go.set()
    async with asyncio.timeout(30):
        while await store.missing_chunks(SLOT, version, version.chunks) or staged(store):
            await asyncio.sleep(0.01)
    for chunk, part in zip(version.chunks, parts, strict=True):
        assert await store.read_chunk(SLOT, version.blob_id, chunk) == part


class NamesFail(FileOps):
    """Chunks cannot be renamed into place."""

    broken = True

    def rename(self, source: Path, target: Path) -> None:
        if self.broken and target.parent.name == "chunks":
            raise OSError(errno.EPERM, "not permitted")
        super().rename(source, target)


async def test_all_whose_names_could_not_be_made_are_told_and_may_come_again(kit, tmp_path: Path):
    ops = NamesFail()
    store = await kit.open(tmp_path / "d", ops=ops)
    version, parts = await missed(kit, store)
    results = await asyncio.gather(*put_back(store, version, parts), return_exceptions=True)
    assert all(isinstance(result, StorageError) for result in results), results
    assert await store.missing_chunks(SLOT, version, version.chunks) == list(version.chunks)
    assert staged(store) == [] and not await store.is_whole(SLOT, version)
    ops.broken = False
    await asyncio.gather(*put_back(store, version, parts))
    assert await store.is_whole(SLOT, version)
