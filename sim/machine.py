"""One simulated machine: a disk that outlives its processes, a clock that may be wrong, and a node that runs on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

from amberblob.clock import HybridClock, SeededRandomness
from amberblob.config import ArchiveSection, RepairSection, RetentionSection
from amberblob.errors import AmberError, ConfigError, StorageError
from amberblob.ids import UlidMint
from archive.cache import Cache
from archive.policy import Disk
from archive.targets.interface import Source
from archive.traffic import Traffic
from chunkstore.store import DiskStore
from node.archive.means import ArchiveMeans
from node.assembly import Parts, assemble
from node.plans import RegistryPlans
from node.routing import Routing
from registry.moves import RegistryRouteChanges
from registry.newest import newest_nodes
from registry.routes import RouteTable
from sim.bucket import SimBucket, SimTarget
from sim.disk import SimDisk, SimFileOps
from sim.loop import Process, SimLoop
from sim.network import Network, Peer, SimPeers
from sim.notes import Notes, SimArchiveState
from sim.registry import SimKeys, SimRegistry
from sim.threads import SimThreads

CLUSTER_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
WALL_MS = 1_800_000_000_000

SEGMENT_BYTES = 128 * 1024
RESERVE_BYTES = 64 * 1024

DISK_BYTES, FULL_BYTES = 1_000_000, 800_000
"""What the archive's rules with a high water mark are told."""


class SimClock:
    """A machine's clocks: the world's time, and an opinion about the date."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.skew_ms = 0
        self.drift = 0.0

    def wall_ms(self) -> int:
        return WALL_MS + self.skew_ms + int(self._loop.time() * 1000 * (1 + self.drift))

    def monotonic_s(self) -> float:
        return self._loop.time()


@dataclass(slots=True, kw_only=True)
class Settings:
    """What all nodes of a world have in common.

    Attributes:
        archive: with a bucket: that there is one.
    """

    write_quorum: int
    read_quorum: int
    peer_timeout_s: float = 3.0
    request_timeout_s: float = 10.0
    registers_clean_max: int = 64
    open_databases_max: int = 8
    linger_s: float = 1.0
    body_cache_bytes: int = 1 << 20
    move_lost_s: float = 60.0
    repair: RepairSection = field(default_factory=RepairSection)
    retention: RetentionSection = field(default_factory=RetentionSection)
    archive: ArchiveSection | None = None
    bucket: SimBucket | None = None


class Machine:
    """See the module.

    Args:
        registry: of the routes, once there are any.
        keys: the way to it.
    """

    def __init__(
        self,
        name: str,
        *,
        loop: SimLoop,
        random: Random,
        disk: SimDisk,
        network: Network,
        settings: Settings,
        registry: SimRegistry,
        keys: SimKeys,
    ) -> None:
        self.name = name
        self.settings = settings
        self.disk = disk
        self.notes = Notes()
        self.clock = SimClock(loop)
        self.lives = 0
        self.process: Process | None = None
        self.store: DiskStore | None = None
        self.parts: Parts[SimPeers] | None = None
        self.error: str | None = None
        """Why the last start failed."""
        self.on_open: Callable[[Machine, DiskStore], None] | None = None
        """Told of every start that found a sound disk, before the node does anything."""
        self._loop = loop
        self._random = random
        self._network = network
        self._registry = registry
        self._keys = keys
        self._starting: asyncio.Task[None] | None = None
        self._cut_short: set[int] = set()

    def _routes(self) -> RouteTable | None:
        return self._registry.seen(self.name)

    @property
    def serving(self) -> bool:
        """Whether clients can be served."""
        return self.process is not None and self.process.alive and self.parts is not None

    def boot(self) -> None:
        """Start a node on the disk as it is now."""
        assert self.process is None or not self.process.alive
        self.lives += 1
        self.error = None
        self.parts = self.store = None
        process = self.process = Process(f"{self.name}/{self.lives}")
        self._starting = self._loop.create_task(self._start(process), context=process.context())

    async def started(self) -> None:
        """Wait for the start that is under way."""
        while self._starting is not None and not self._starting.done() and self.process and self.process.alive:
            await asyncio.sleep(0.01)

    async def _start(self, process: Process) -> None:
        settings, disk = self.settings, self.disk
        randomness = SeededRandomness(self._random.getrandbits(64))
        hybrid = HybridClock(self.clock.wall_ms)
        try:
            store = await DiskStore.open(
                disk.folder,
                cluster_id=CLUSTER_ID,
                node_id=self.name,
                clock=self.clock,
                randomness=randomness,
                reserve_bytes=RESERVE_BYTES,
                segment_bytes=SEGMENT_BYTES,
                registers_clean_max=settings.registers_clean_max,
                open_databases_max=settings.open_databases_max,
                linger_s=settings.linger_s,
                body_cache_bytes=settings.body_cache_bytes,
                ops=SimFileOps(disk, process),
                threads=SimThreads(self._loop, self._random),
            )
        except (AmberError, OSError) as error:
            self.error = repr(error)
            return
        self.store = store
        if self.on_open is not None:
            self.on_open(self, store)
        # Routes need the disks of all; the first time they are made when all have one.
        while self._routes() is None:
            await asyncio.sleep(0.01)
        routing = Routing(
            node=self.name,
            disk_id=store.disk_id,
            table=self._routes,
            write_quorum=settings.write_quorum,
            read_quorum=settings.read_quorum,
        )
        cluster = routing.table().cluster
        mint = UlidMint(hybrid, randomness)
        archive = None
        if settings.archive is not None and settings.bucket is not None:
            archive = await self._means(settings.archive, settings.bucket, mint)
        parts = assemble(
            routing=routing,
            store=store,
            connect=lambda replica: SimPeers(self._network, self.name, process, replica),
            clock=self.clock,
            hybrid=hybrid,
            mint=mint,
            randomness=randomness,
            peer_timeout_s=settings.peer_timeout_s,
            request_timeout_s=settings.request_timeout_s,
            readmit=self._registry.readmit_for(self.name),
            changes=RegistryRouteChanges(self._keys, cluster, self.name),
            plans=RegistryPlans(self._keys, cluster, now_ms=self.clock.wall_ms, seen_epoch=routing.epoch),
            move_lost_s=settings.move_lost_s,
            repair=settings.repair,
            retention=settings.retention,
            archive=archive,
        )
        self._network.peers[self.name] = Peer(process, parts.replica)
        parts.start_workers()
        self.parts = parts

    async def _means(self, section: ArchiveSection, bucket: SimBucket, mint: UlidMint) -> ArchiveMeans:
        """What this life of the node has an archive with; what is fetched from it is not kept."""
        traffic = Traffic(self.clock)
        seed = self._random.getrandbits(64)
        state = SimArchiveState(self.notes, self.disk, clock=self.clock, randomness=SeededRandomness(seed))
        while True:
            try:
                await state.open()
                break
            except StorageError:
                # The real node would end, and be started again.
                await asyncio.sleep(0.5)

        def no_source(url: str) -> tuple[Source, str]:
            raise ConfigError(f"nothing is imported in a world, and not {url}")

        return ArchiveMeans(
            section=section,
            cluster_id=CLUSTER_ID,
            target=SimTarget(
                bucket, self.name, traffic, timeout_s=section.timeout_s, tries=section.tries, seed=seed + 1
            ),
            traffic=traffic,
            state=state,
            disk=self._how_full,
            cache=Cache(self.disk.folder / "archive-cache", 0, spare_bytes=lambda: 0, token=mint.mint),
            sources=no_source,
            newest_nodes=partial(newest_nodes, self._keys, "sim", self._routes),
        )

    def _how_full(self) -> Disk:
        """It is full for a while now and then."""
        return Disk(used=FULL_BYTES if self._loop.time() % 40.0 > 20.0 else FULL_BYTES // 4, total=DISK_BYTES)

    def unexplained_losses(self) -> list[int]:
        """Slots whose database this life gave up as damaged, although nobody damaged it, nor was the life before killed while it began it anew."""
        if self.store is None:
            return []
        lost = {slot.slot for slot in self.store.lost_slots if slot.damaged}
        return sorted(lost - self.disk.damaged - self._cut_short)

    def count(self) -> None:
        """Tell the world what the upkeep of this life did."""
        if self.parts is not None:
            upkeep, fired = self.parts.upkeep, self.disk.fired
            fired["paths expired"] += upkeep.expirer.counts.paths_expired
            fired["stubs collected"] += upkeep.expirer.counts.stubs_collected
            fired["blobs swept"] += upkeep.garbage.counts.blobs
            fired["slots scrubbed"] += upkeep.scrub.counts.slots_checked
            fired["bytes repaired"] += self.parts.puller.received_bytes
            fired["slots left"] += upkeep.leaver.counts.slots_left
            if self.parts.mover is not None:
                fired["races for a route lost"] += self.parts.mover.counts.lost_races
            if self.parts.archive is not None:
                fired["versions evicted"] += self.parts.archive.evictor.counts.versions
                fired["copies that adopted rows"] += self.parts.archive.follower.counts.adopted

    def become_new(self) -> None:
        """An empty disk takes the place of this machine's, which is off."""
        self.disk.become_new()
        self.notes.lose()

    def kill(self, *, power: bool, worst: bool = False) -> None:
        """End the process at this very moment; with ``power``, what was not synced is at risk too (``worst``: see :meth:`SimDisk.crash`)."""
        process = self.process
        assert process is not None and process.alive
        self.count()
        if self.store is not None:
            # Slots that begin anew just now: the next life that comes so far finds no database, and says that it is lost.
            self._cut_short = set(self.store._core._pool._half_retired)
        process.alive = False
        self.disk.crash(power=power, worst=worst)
        self.notes.crash(self.disk, power=power)
        self._loop.kill(process)
        self._network.died(self.name)
        self.parts = self.store = None
