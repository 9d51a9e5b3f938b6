from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from amberblob.ballot import Ballot
from amberblob.clock import HybridClock, SeededRandomness, SystemClock
from amberblob.ids import UlidMint, content_hash
from amberblob.manifest import ChunkRef, Record, Version, WriteMark
from amberblob.mutations import Accepted, Chosen
from chunkstore import DiskStore
from chunkstore.fileops import FileOps
from tests.unit.chunkstore.disk_faults import copy_disk

NOW = 1_700_000_000_000


class Kit:
    """What tests of a disk need again and again."""

    def __init__(self) -> None:
        self.mint = UlidMint(HybridClock(SystemClock().wall_ms), SeededRandomness(11)).mint
        self._counter = itertools.count(1)
        self._seed = itertools.count(1)
        self._opened: list[DiskStore] = []

    async def open(self, disk: Path, **options) -> DiskStore:
        options = {"reserve_bytes": 0, "segment_bytes": 1 << 20, "linger_s": 0.02, **options}
        store = await DiskStore.open(
            disk,
            cluster_id="c",
            node_id="n",
            clock=SystemClock(),
            randomness=SeededRandomness(next(self._seed)),
            **options,
        )
        self._opened.append(store)
        return store

    async def close_all(self) -> None:
        for store in self._opened:
            await store.close()

    def ballot(self) -> Ballot:
        counter = next(self._counter)
        return Ballot(1, counter, "node-1", f"attempt-{counter}")

    def record(self, body: bytes = b"body", before: Record | None = None) -> Record:
        chunk = ChunkRef(id=content_hash(body), len=len(body))
        number = before.version_max + 1 if before else 1
        revision = before.revision + 1 if before else 1
        head = Version(
            number, self.mint(), len(body), chunk.id, NOW + number, "text/plain", {}, (chunk,), None, 1, True
        )
        live = (*(before.live if before else ()), (number, number))
        mark = WriteMark(f"w{revision}", "put", number, NOW)
        return Record(revision, "put", number, head, live, (), NOW, 0, before.added if before else None, (mark,))

    async def put(
        self, store: DiskStore, slot: int, path: str, body: bytes = b"body", *, choose: bool = True
    ) -> Record:
        register = await store.load(slot, path)
        record, ballot = self.record(body, register.record), self.ballot()
        position = store.apply(Accepted(slot, path, ballot, record, body))
        if choose:
            position = store.apply(Chosen(slot, path, ballot))
        await store.durable(position)
        return record

    async def stage(self, store: DiskStore, slot: int, blob_id: str, data: bytes, chunk_bytes: int = 1 << 16):
        parts = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
        chunks = tuple(ChunkRef(id=content_hash(part), len=len(part)) for part in parts)
        staging = await store.stage(slot, blob_id, chunk_bytes=chunk_bytes, size=len(data))
        await staging.write(data)
        await staging.finish(chunks, None)
        return chunks

    async def until(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.005)

    def copy(self, disk: Path, target: Path) -> Path:
        """The disk as a kill at this instant would leave it (files that vanish meanwhile are left out)."""
        copy_disk(disk, target)
        return target

    async def copy_still(self, store: DiskStore, target: Path) -> Path:
        """The same while the database thread does nothing (it makes databases, and removes segments, oldest first), and no task goes on."""
        still, go = threading.Event(), threading.Event()

        def stand_still() -> None:
            still.set()
            go.wait()

        standing = store._core._database.call(stand_still)
        try:
            assert await asyncio.to_thread(still.wait, 60)
            return self.copy(store.path, target)
        finally:
            go.set()
            await standing

    def sql(self, database: Path, query: str) -> list[tuple]:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()


@pytest.fixture
async def kit() -> AsyncIterator[Kit]:
    made = Kit()
    yield made
    await made.close_all()


class FaultyOps(FileOps):
    """Fails where it is told to."""

    def __init__(self) -> None:
        self.errors: dict[str, OSError] = {}
        self.free: int | None = None
        self.calls: list[str] = []

    def _maybe(self, name: str) -> None:
        self.calls.append(name)
        if name in self.errors:
            raise self.errors[name]

    def fdatasync(self, fd: int) -> None:
        self._maybe("fdatasync")
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._maybe("fsync")
        super().fsync(fd)

    def write_at(self, fd, buffers, offset):
        self._maybe("write")
        return super().write_at(fd, buffers, offset)

    def allocate(self, fd: int, size_bytes: int) -> None:
        self._maybe("allocate")
        super().allocate(fd, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        self._maybe("rename")
        super().rename(source, target)

    def free_bytes(self, path: Path) -> int:
        return super().free_bytes(path) if self.free is None else self.free


@pytest.fixture
def faulty() -> FaultyOps:
    return FaultyOps()
