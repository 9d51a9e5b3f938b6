"""A cluster in one process (:mod:`tests.unit.node.objects.kit`) whose nodes share a bucket in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from amberblob.clock import SeededRandomness
from amberblob.config import ArchiveRule, ArchiveSection
from amberblob.config.values import SizeBytes
from archive.cache import Cache
from archive.policy import Disk
from archive.state import ArchiveState
from archive.targets.memory import MemoryBucket, MemoryTarget
from archive.traffic import Traffic
from node.archive.jobs import JobRequest, JobStatus
from node.archive.means import ArchiveMeans
from node.archive.parts import ArchiveParts
from tests.unit.node.objects import kit
from tests.unit.node.objects.kit import Cluster, Node, until

EVICT = ArchiveRule(action="archive-and-evict")
KEEP_BYTES = ArchiveRule(action="archive")


class Disks:
    """How full each node's disk is, as tests say."""

    def __init__(self) -> None:
        self.of: dict[str, Disk] = {}

    def get(self, name: str) -> Disk:
        return self.of.get(name, Disk(used=1, total=100))


class World:
    """The cluster, its bucket, and what its nodes do in the background when they are told to."""

    def __init__(self, cluster: Cluster, bucket: MemoryBucket, disks: Disks) -> None:
        self.cluster = cluster
        self.bucket = bucket
        self.disks = disks
        self.jobs = 0

    def __getitem__(self, index: int) -> Node:
        return self.cluster[index]

    def archive(self, index: int) -> ArchiveParts:
        parts = self.cluster[index].parts.archive
        assert parts is not None
        return parts

    def archives(self) -> list[ArchiveParts]:
        return [self.archive(index) for index in range(1, len(self.cluster.nodes) + 1)]

    async def begin(self) -> None:
        """What a node does when its workers start."""
        for parts in self.archives():
            await parts.keeper.step()
            await parts.reach.step()

    def request(self, kind: str = "run", **more: Any) -> JobRequest:
        self.jobs += 1
        return JobRequest(job=f"01ARZ3NDEKTSV4RRFFQ69G{self.jobs:04d}", kind=kind, **more)  # type: ignore[arg-type]

    async def run(self, *indexes: int, request: JobRequest | None = None) -> dict[int, JobStatus]:
        """A job on these nodes (all), to its end."""
        request = request or self.request()
        indexes = indexes or tuple(range(1, len(self.cluster.nodes) + 1))
        for index in indexes:
            await self.archive(index).runner.start(request)
        for index in indexes:
            await self.ended(index, request.job)
        return {index: self.status(index, request.job) for index in indexes}

    async def ended(self, index: int, job: str) -> None:
        await until(lambda: self.status(index, job).state != "running", f"job {job} ended at n{index}")

    def status(self, index: int, job: str) -> JobStatus:
        status = self.archive(index).runner.status(job)
        assert status is not None
        return status

    async def follow(self, *indexes: int) -> None:
        """Have the followers of these nodes (all) hear everything."""
        for index in indexes or range(1, len(self.cluster.nodes) + 1):
            follower = self.archive(index).follower
            follower._look_s = follower._waiting_s = float("-inf")
            for _ in range(200):
                if (await follower.step()).value == "nothing":
                    break
            else:
                raise AssertionError("the follower does not come to an end")

    async def evict(self, *indexes: int) -> None:
        """Have the evictors of these nodes (all) go through everything."""
        for index in indexes or range(1, len(self.cluster.nodes) + 1):
            evictor = self.archive(index).evictor
            evictor._all_s = float("-inf")
            for _ in range(1000):
                if (await evictor.step()).value == "nothing":
                    break
            else:
                raise AssertionError("the evictor does not come to an end")

    def rows(self, index: int, path: str) -> int:
        """How many archive rows that node's copy of the path's slot has."""
        return self.cluster[index].store.tally(self.cluster.slot(path)).archived_rows

    def evicted(self, index: int) -> int:
        """How many versions of that node's copies live by their rows."""
        store = self.cluster[index].store
        return sum(store.tally(slot).evicted for slot in store.slots())


def section_of(*rules: ArchiveRule, **more: Any) -> ArchiveSection:
    return ArchiveSection(target="s3://bucket/x", rules=rules or (KEEP_BYTES,), cache=SizeBytes(0), **more)


async def means_of(
    folder: Path, name: str, cluster: Cluster, bucket: MemoryBucket, disks: Disks, section: ArchiveSection
) -> ArchiveMeans:
    chance = SeededRandomness(int(name[1:]))
    state = ArchiveState(folder / f"{name}.sqlite3", clock=cluster.clock, randomness=chance)
    await state.open()
    traffic = Traffic(cluster.clock)
    cache = Cache(folder / name, 0, spare_bytes=lambda: 1 << 40, token=lambda: chance.token(8).hex())
    await cache.open()

    def sources(url: str) -> Any:
        raise AssertionError(f"nothing was imported: {url}")

    async def newest_nodes() -> set[str]:
        assert cluster.table is not None
        return set(cluster.table.nodes)

    return ArchiveMeans(
        section=section,
        cluster_id="c",
        target=MemoryTarget(bucket, traffic, clock=cluster.clock),
        traffic=traffic,
        state=state,
        disk=lambda: disks.get(name),
        cache=cache,
        sources=sources,
        newest_nodes=newest_nodes,
    )


@asynccontextmanager
async def world(
    folder: Path,
    *rules: ArchiveRule,
    count: int = 3,
    archives: int | None = None,
    section: dict[str, Any] | None = None,
    on_disks: bool = False,
    **options: Any,
) -> AsyncIterator[World]:
    """``count`` nodes, the first ``archives`` (all) of them with an archive; on real disks below the folder, if they are wanted."""
    async with kit.cluster(count, folder=folder / "disks" if on_disks else None, **options) as cluster:
        bucket, disks = MemoryBucket(cluster.clock), Disks()
        for name in sorted(cluster.nodes)[:archives]:
            cluster.means[name] = await means_of(
                folder, name, cluster, bucket, disks, section_of(*rules, **(section or {}))
            )
            cluster.start(name)
        made = World(cluster, bucket, disks)
        try:
            for parts in (node.parts.archive for node in cluster):
                if parts is not None:
                    await parts.keeper.step()
                    await parts.reach.step()
            yield made
        finally:
            for node in cluster:
                if node.parts.archive is not None:
                    await node.parts.archive.close()
            for means in cluster.means.values():
                await means.state.close()
