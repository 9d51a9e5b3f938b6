"""Clusters in one process with an archive in memory, and a bucket that outlives them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from amberblob.archivejobs import JobKind
from amberblob.archives import ArchivedChunk
from amberblob.clock import SeededRandomness, SystemClock
from amberblob.config import ArchiveSection
from amberblob.manifest import ChunkRef, Record, Version, decode_manifest
from archive.cache import Cache
from archive.policy import Disk
from archive.state import ArchiveState
from archive.targets.interface import Source
from archive.targets.memory import MemoryBucket, MemoryTarget
from archive.traffic import Traffic
from archive.upload import Item, Uploader
from archive.verifying import verify_object
from node.archive.export import ExportWork
from node.archive.ground import Ground
from node.archive.importing import ImportWork
from node.archive.jobs import JobRequest, JobStatus, Progress
from node.archive.means import ArchiveMeans
from node.archive.recover import RecoverWork
from tests.unit.node.objects import kit
from tests.unit.node.objects.kit import Cluster, Node

FIRST = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
SECOND = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
URL = "memory:///archive"
SOURCE_URL = "s3://theirs"

Choose = Callable[[str, Version], bool]


@dataclass(eq=False)
class Store:
    """What outlives a cluster: its bucket, and one of somebody else's."""

    bucket: MemoryBucket
    source: MemoryBucket

    @classmethod
    def new(cls) -> Store:
        return cls(MemoryBucket(), MemoryBucket())

    def target(self) -> MemoryTarget:
        return MemoryTarget(self.bucket, url=URL)

    def sources(self, url: str) -> tuple[Source, str]:
        rest = url.removeprefix(SOURCE_URL).removeprefix("/")
        return MemoryTarget(self.source, url=SOURCE_URL, strict=False), rest


@asynccontextmanager
async def world(
    store: Store,
    scratch: Path,
    *,
    cluster_id: str = FIRST,
    slots: int = 4,
    section: ArchiveSection | None = None,
    **more: Any,
) -> AsyncIterator[Cluster]:
    """A cluster of three nodes whose archive is that bucket. What was fetched is never kept."""
    section = section or ArchiveSection(target="file:///nowhere")
    scratch.mkdir(parents=True, exist_ok=True)
    async with kit.cluster(slots=slots, **more) as cluster:
        assert cluster.table is not None
        cluster.table = replace(cluster.table, cluster=replace(cluster.table.cluster, cluster_id=cluster_id))
        states: list[ArchiveState] = []
        try:
            for name in sorted(cluster.nodes):
                state = ArchiveState(scratch / f"{name}.sqlite3", clock=cluster.clock, randomness=SeededRandomness(1))
                await state.open()
                states.append(state)
                cluster.means[name] = ArchiveMeans(
                    section=section,
                    cluster_id=cluster_id,
                    target=store.target(),
                    traffic=Traffic(SystemClock()),
                    state=state,
                    disk=lambda: Disk(used=1, total=2),
                    cache=Cache(scratch / name, 0, spare_bytes=lambda: 0, token=lambda: "t"),
                    sources=store.sources,
                )
                cluster.start(name)
            yield cluster
        finally:
            for node in cluster:
                if node.parts.archive is not None:
                    await node.parts.archive.close()
            for state in states:
                await state.close()


def ground(node: Node) -> Ground:
    assert node.parts.archive is not None
    return node.parts.archive.ground


def progress(kind: JobKind, node: str = "n1", **more: Any) -> Progress:
    return Progress(JobStatus(request=JobRequest(job="j", kind=kind, **more), node=node))


class Exporters:
    """The export work of every node, as long as its process lives."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._works = {node.name: ExportWork(ground(node)) for node in cluster}

    async def run(self, *names: str) -> dict[str, Progress]:
        """An export of these nodes (all)."""
        told: dict[str, Progress] = {}
        for name, work in self._works.items():
            if not names or name in names:
                told[name] = progress("export", name)
                await work(told[name].status.request, told[name])
        return told

    def restart(self, name: str) -> None:
        self._works[name] = ExportWork(ground(self.cluster.nodes[name]))


async def recover(cluster: Cluster, node: int = 1, **more: Any) -> Progress:
    """Run the recover job on one node, to its end."""
    told = progress("recover", **more)
    await RecoverWork(ground(cluster[node]))(told.status.request, told)
    await cluster.settle()
    return told


async def take_over(cluster: Cluster, store: Store, source: str, node: int = 1, **more: Any) -> Progress:
    """Run the import job on one node, to its end."""
    told = progress("import", source=source, **more)
    await ImportWork(ground(cluster[node]), store.sources)(told.status.request, told)
    await cluster.settle()
    return told


async def archive(
    cluster: Cluster, choose: Choose = lambda path, version: True, *, verified: bool = True, tell: bool = True
) -> None:
    """Upload what is not archived yet, as the archiver does; the rows reach every copy. ``tell``: else they reach none."""
    for name, disk in cluster.stores.items():
        for slot in disk.slots():
            if slot not in ground(cluster.nodes[name]).led_slots():
                continue
            after: tuple[str, int] | None = ("", 0)
            while after is not None:
                views, after = await disk.archive_page(slot, after, 100)
                for view in views:
                    if view.verified < view.chunk_count and choose(view.path, view.version):
                        await _archive(cluster, name, slot, view.path, view.version, verified=verified, tell=tell)


async def _archive(
    cluster: Cluster, name: str, slot: int, path: str, version: Version, *, verified: bool, tell: bool
) -> None:
    on, disk = ground(cluster.nodes[name]), cluster.stores[name]
    chunks = list(version.chunks)
    pairs: list[tuple[Item, bytes]] = []
    if version.manifest_id is not None:
        manifest = await disk.read_manifest(slot, version.blob_id, version.manifest_id)
        chunks = list(decode_manifest(manifest))
        pairs.append((_item(ChunkRef(version.manifest_id, len(manifest)), slot, path, version, -1), manifest))
    for index, chunk in enumerate(chunks):
        pairs.append((_item(chunk, slot, path, version, index), await disk.read_chunk(slot, version.blob_id, chunk)))
    rows: dict[str, ArchivedChunk] = {}

    async def source() -> AsyncIterator[tuple[Item, bytes]]:
        for pair in pairs:
            yield pair

    async def stored(told: list[tuple[Item, ArchivedChunk]]) -> None:
        rows.update((item.chunk.id, row) for item, row in told)

    async def failed(items: list[Item], error: Exception) -> None:
        raise error

    uploader = Uploader(
        on.target, now_ms=on.now_ms, mint=on.mint.mint, pack_size=4 << 20, lone_size=1 << 20, parallel=2
    )
    await uploader.run(source(), stored, failed)
    if verified:
        for object_name in {row.target_path for row in rows.values()}:
            of = [row for row in rows.values() if row.target_path == object_name]
            for verdict in await verify_object(on.target, object_name, of):
                seen = verdict.told(on.now_ms())
                assert seen is not None
                rows[seen.chunk_id] = seen
    for node in cluster if tell else ():
        ground(node).facts.take(slot, version.blob_id, list(rows.values()), at_ms=on.now_ms())


def _item(chunk: ChunkRef, slot: int, path: str, version: Version, index: int) -> Item:
    return Item(chunk=chunk, slot=slot, blob_id=version.blob_id, path=path, version=version.version, index=index)


Picture = dict[str, tuple[Record | None, tuple[Version, ...], frozenset[str]]]
"""By path: its record, its rows, and the write ids that are remembered."""


async def picture(cluster: Cluster) -> Picture:
    """What the cluster holds, by the copies of every slot, which must be alike."""
    await cluster.settle()
    found: Picture = {}
    for slot in range(cluster.table.slot_count if cluster.table else 0):
        copies = []
        for disk in cluster.stores.values():
            items, after = await disk.items_after(slot, "", 1 << 30)
            assert after is None
            copies.append(
                {
                    item.path: (item.record, item.rows, frozenset(mark.write_id for mark in item.writes))
                    for item in items
                }
            )
        assert copies.count(copies[0]) == len(copies), "the copies are not alike"
        found.update(copies[0])
    return found


async def contents(cluster: Cluster, picture: Picture, node: int = 2) -> dict[tuple[str, int], bytes]:
    """The bytes of every version that lives, as a client reads them."""
    found: dict[tuple[str, int], bytes] = {}
    for path, (record, rows, _) in picture.items():
        for row in rows:
            if record is not None and any(low <= row.version <= high for low, high in record.live):
                found[path, row.version] = await kit.get(cluster[node], path, version=row.version)
    return found
