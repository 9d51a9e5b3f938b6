"""The cluster of :mod:`tests.unit.node.objects.kit` with an archive in memory that all nodes share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from amberblob.archives import ArchivedChunk
from amberblob.clock import SeededRandomness
from amberblob.config import ArchiveSection
from amberblob.manifest import ChunkRef
from archive.cache import Cache
from archive.policy import Disk
from archive.segments import cluster_name, encode_cluster
from archive.state import ArchiveState
from archive.targets.interface import Source
from archive.targets.memory import MemoryBucket, MemoryTarget
from archive.traffic import Traffic
from archive.upload import Item, Uploader
from node.archive.document import document_of
from node.archive.means import ArchiveMeans
from node.service import ObjectView
from tests.unit.node.objects.kit import Cluster, Node, SkewedClock, cluster, content, put

URL = "memory:///archive"
FOREIGN = "s3://elsewhere"


class World:
    """A cluster, its bucket, and somebody else's bucket that was imported from."""

    def __init__(self, folder: Path, section: ArchiveSection) -> None:
        self.folder = folder
        self.section = section
        self.clock = SkewedClock()
        self.bucket = MemoryBucket(self.clock)
        self.foreign = MemoryBucket(self.clock)
        self.means: dict[str, ArchiveMeans] = {}
        self.targets: dict[str, MemoryTarget] = {}
        self.cluster: Cluster

    def __getitem__(self, number: int) -> Node:
        return self.cluster[number]

    async def open(self, name: str) -> None:
        """What the machine gives a node."""
        traffic = Traffic(self.clock)
        target = self.targets[name] = MemoryTarget(self.bucket, traffic, url=URL, clock=self.clock)
        state = ArchiveState(
            self.folder / name / "archive.sqlite3", clock=self.clock, randomness=SeededRandomness(len(name))
        )
        await state.open()
        words = iter(range(10**9))
        cache = Cache(
            self.folder / name / "cache",
            int(self.section.cache),
            spare_bytes=lambda: 2**40,
            token=lambda: f"t{next(words)}",
        )
        await cache.open()
        source = MemoryTarget(self.foreign, traffic, url=FOREIGN, clock=self.clock, strict=False)

        def sources(url: str) -> tuple[Source, str]:
            return source, url.removeprefix(FOREIGN + "/")

        self.means[name] = ArchiveMeans(
            section=self.section,
            cluster_id="01ARZ3NDEKTSV4RRFFQ69G5FAV",
            target=target,
            traffic=traffic,
            state=state,
            disk=lambda: Disk(used=1, total=2),
            cache=cache,
            sources=sources,
        )

    # ---- what the jobs would do

    async def stored(self, path: str, size: int) -> tuple[bytes, ObjectView]:
        """An object that all copies have."""
        data = content(size)
        view = await put(self[1], path, data)
        await self.cluster.settle()
        for node in self.cluster:
            await node.pull()
        return data, view

    async def send(self, view: ObjectView, *, alone: bool = False) -> list[ArchivedChunk]:
        """Have all chunks of a version in the bucket; the rows, verified."""
        node, version, slot = self[1], view.version, self.cluster.slot(view.path)
        chunks = await node.reading.chunks(slot, version)
        pairs: list[tuple[Item, bytes]] = []

        def item(chunk: ChunkRef, index: int) -> Item:
            return Item(
                chunk=chunk, slot=slot, blob_id=version.blob_id, path=view.path, version=version.version, index=index
            )

        for index, chunk in enumerate(chunks):
            pairs.append((item(chunk, index), bytes(await node.reading.chunk(slot, version, chunk))))
        if version.manifest_id is not None:
            manifest = await node.store.read_manifest(slot, version.blob_id, version.manifest_id)
            pairs.append((item(ChunkRef(version.manifest_id, len(manifest)), -1), manifest))
        return await self.upload(pairs, alone=alone)

    async def upload(self, pairs: Sequence[tuple[Item, bytes]], *, alone: bool = False) -> list[ArchivedChunk]:
        rows: dict[str, ArchivedChunk] = {}

        async def source() -> AsyncIterator[tuple[Item, bytes]]:
            for pair in pairs:
                yield pair

        async def stored(told: list[tuple[Item, ArchivedChunk]]) -> None:
            rows.update({row.chunk_id: replace(row, state=row.archived_at_ms) for _, row in told})

        async def failed(items: list[Item], error: Exception) -> None:
            raise error

        coordinator = self[1].coordinator
        uploader = Uploader(
            MemoryTarget(self.bucket, url=URL, clock=self.clock),
            now_ms=coordinator.clock.now_ms,
            mint=coordinator.mint.mint,
            pack_size=64 * 1024**2,
            lone_size=1 if alone else 64 * 1024**2,
            parallel=1,
        )
        await uploader.run(source(), stored, failed)
        return list(rows.values())

    async def take(self, view: ObjectView, rows: Sequence[ArchivedChunk], numbers: Iterable[int] = (1, 2, 3)) -> None:
        """These nodes' copies know the rows."""
        for number in numbers:
            node = self[number]
            assert node.parts.archive is not None
            position = node.parts.archive.ground.facts.take(
                self.cluster.slot(view.path), view.version.blob_id, rows, at_ms=1
            )
            await node.store.durable(position)

    async def evict(self, view: ObjectView, numbers: Iterable[int] = (1, 2, 3)) -> None:
        """These nodes' copies live by their rows."""
        for number in numbers:
            went = await self[number].store.evict(self.cluster.slot(view.path), view.path, view.version)
            assert went is not None, f"n{number} does not let go of {view.path}"

    async def cold(
        self, path: str, size: int, numbers: Iterable[int] = (1, 2, 3), *, alone: bool = False
    ) -> tuple[bytes, ObjectView]:
        """An object that all copies know to be in the archive, and that these have no bytes of."""
        data, view = await self.stored(path, size)
        await self.take(view, await self.send(view, alone=alone))
        await self.evict(view, numbers)
        return data, view

    async def evicted(self, view: ObjectView, number: int) -> bool:
        return bool(await self[number].store.is_evicted(self.cluster.slot(view.path), view.version.blob_id))

    def received(self) -> int:
        """Bytes that came from the bucket so far, to all nodes."""
        return sum(means.traffic.received_bytes for means in self.means.values())

    def gets(self) -> int:
        """Requests for content so far, of all nodes."""
        return sum(
            count
            for means in self.means.values()
            for (kind, _), count in means.traffic.requests.items()
            if kind == "get"
        )


def claim(bucket: MemoryBucket, cluster: Cluster) -> None:
    """The bucket is this cluster's, as after a first upload: here rows come without one."""
    assert cluster.table is not None
    document = document_of(cluster.table.cluster)
    bucket.store(cluster_name(document.cluster), encode_cluster(document))


@asynccontextmanager
async def world(
    folder: Path, count: int = 3, *, section: ArchiveSection | None = None, on_disk: bool = False, **options: Any
) -> AsyncIterator[World]:
    """A running cluster with an archive; ``on_disk``: on real disks."""
    if on_disk:
        options["folder"] = folder / "disks"
        options["folder"].mkdir()
    made = World(folder, section or ArchiveSection(target="file:///archive"))
    names = [f"n{number}" for number in range(1, count + 1)]
    for name in names:
        (folder / name).mkdir()
        await made.open(name)
    try:
        async with cluster(count, means=made.means.__getitem__, clock=made.clock, **options) as running:
            made.cluster = running
            claim(made.bucket, running)
            yield made
            made.bucket.heal()
            for node in running:
                assert node.parts.archive is not None
                await node.parts.archive.close()
    finally:
        for means in made.means.values():
            await means.cache.close()
            await means.state.close()
