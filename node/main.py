"""One node, from configuration to shutdown: the only place that knows the concrete classes.

Start: registry and cluster identity, then the disk (recovery runs here), then the peer port, registration,
routes, and at last readiness. The public port opens before the routes are known, so that ``/healthz`` and
``/readyz`` tell what is being waited for. Stop: the public port first (requests under way finish), then
background work, peers, the disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import structlog
import uvloop

from amberblob.clock import HybridClock, SystemClock, SystemRandomness
from amberblob.config import NodeConfig
from amberblob.errors import AmberError, ConfigError, NotReady, RegistryUnavailable
from amberblob.ids import UlidMint
from amberblob.metrics import Metrics
from archive.cache import Cache
from archive.policy import Disk
from archive.state import ArchiveState
from archive.targets.factory import Sources, open_target
from archive.traffic import Traffic
from chunkstore.identity import read_identity
from chunkstore.store import DiskStore
from node.archive.means import ArchiveMeans
from node.assembly import assemble
from node.epochs import seen_epoch
from node.healthgauges import add_costs
from node.http.app import build_app
from node.http.server import HttpServer
from node.logs import configure_logs
from node.membership import MembershipChanges
from node.plans import RegistryPlans
from node.routing import Routing
from node.standstill import Standstill
from node.status import Status
from node.transport.clients import PeerClients
from node.transport.handshake import Identity
from node.transport.server import PeerServer
from registry.bootstrap import ClusterSettings, ensure_cluster, ensure_routes, register_node
from registry.cache import load_cache
from registry.factory import open_registry
from registry.interface import Registry
from registry.moves import RegistryRouteChanges
from registry.newest import newest_nodes
from registry.readmit import readmit
from registry.routes import FORMAT_VERSION, ClusterInfo, NodeInfo, RouteTable
from registry.trust import check_known
from registry.view import RouteWatcher

log = structlog.get_logger(__name__)

THREADS = 4
"""For hashing and other work off the loop; the disk has threads of its own."""

ROUTES_PATIENCE_S = 10.0
ROUTE_CACHE = "routes.json"
ARCHIVE_STATE = Path("archive", "archive.sqlite3")
ARCHIVE_CACHE = Path("archive", "cache")
"""Below the disk's folder."""
COLLECT_AFTER = (50_000, 20, 20)
"""Objects beyond those freed again, then collections of the younger generation, after which each generation is collected."""

OPEN_FILES_WANTED = 65_536


def software_version() -> str:
    """The installed version, or ``0`` when running from a plain folder."""
    try:
        return version("amberblob")
    except PackageNotFoundError:
        return "0"


def run(config: NodeConfig) -> int:
    """Run one node in this process until SIGTERM or SIGINT; returns the exit status.

    Raises: AmberError when the node cannot start (bad configuration, wrong or busy disk, corrupt journal).
    """
    configure_logs(level=config.log.level, format=config.log.format, node=config.node.id)
    _raise_open_files()
    _spare_the_collector()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_main(config))


def _spare_the_collector() -> None:
    """Have the cycle collector look rarely, and never at what was imported.

    Nearly all that a node makes is freed by counting references. By default the collector looks after every 700 objects
    that live on, and now and then at all of them: a fifth of the CPU time of a PUT (rfc/0011).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)


def _raise_open_files() -> None:
    """Databases and connections need many descriptors; take what the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(OPEN_FILES_WANTED, hard) if hard != resource.RLIM_INFINITY else OPEN_FILES_WANTED
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _main(config: NodeConfig) -> int:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="work"))
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    node = Node(config)
    starting = loop.create_task(node.start())
    stopping = loop.create_task(stop.wait())
    failed = False
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
        elif not starting.cancelled() and starting.exception() is not None:
            failed = True
        else:
            await stopping
    finally:
        log.info("stopping")
        await node.stop()
    if failed:
        await starting  # raises
    log.info("stopped")
    return 0


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


class Node:
    """One node's parts and their life."""

    def __init__(self, config: NodeConfig) -> None:
        self.config = config
        self._clock = SystemClock()
        self._randomness = SystemRandomness()
        self._hybrid = HybridClock(self._clock.wall_ms)
        self._mint = UlidMint(self._hybrid, self._randomness)
        self._metrics = Metrics()
        self._closers = contextlib.AsyncExitStack()
        self._watcher: RouteWatcher | None = None
        self._first_table: RouteTable | None = None

    def _table(self) -> RouteTable | None:
        if self._watcher is not None and self._watcher.table is not None:
            return self._watcher.table
        return self._first_table

    async def start(self) -> None:
        """Start everything; returns once the routes are known."""
        config = self.config
        disk = config.node.disk
        known_cluster = _known_cluster(disk)
        registry = open_registry(config.cluster.registry, clock=self._clock, create=known_cluster is None)
        self._closers.push_async_callback(registry.close)
        cached = load_cache(disk / ROUTE_CACHE)
        settings = ClusterSettings(
            name=config.cluster.name,
            slot_count=config.cluster.slot_count,
            replicas=config.cluster.replicas,
            chunk_bytes=int(config.storage.chunk_size),
            bootstrap_nodes=tuple(config.cluster.bootstrap_nodes),
        )
        cluster = await self._cluster(registry, settings, known_cluster, cached)
        if cached is not None and cached.cluster.cluster_id == cluster.cluster_id:
            self._first_table = cached
        store = await DiskStore.open(
            disk,
            cluster_id=cluster.cluster_id,
            node_id=config.node.id,
            clock=self._clock,
            randomness=self._randomness,
            reserve_bytes=int(config.storage.reserve),
            open_databases_max=config.storage.max_open_slots,
        )
        self._closers.push_async_callback(store.close)
        log.info("disk open", disk=str(disk), disk_id=store.disk_id)
        routing = Routing(
            node=config.node.id,
            disk_id=store.disk_id,
            table=self._table,
            write_quorum=config.cluster.write_quorum,
            read_quorum=config.cluster.read_quorum,
        )
        await self._serve(registry, settings, cluster, store, routing)

    async def _cluster(
        self, registry: Registry, settings: ClusterSettings, known: str | None, cached: RouteTable | None
    ) -> ClusterInfo:
        try:
            return await ensure_cluster(
                registry, settings, mint=self._mint.mint, now_ms=self._clock.wall_ms(), known_cluster_id=known
            )
        except RegistryUnavailable as error:
            if cached is None or known is None or cached.cluster.cluster_id != known:
                raise
            log.warning("registry not usable: starting with the routes last seen", error=str(error))
            return cached.cluster

    async def _serve(
        self, registry: Registry, settings: ClusterSettings, cluster: ClusterInfo, store: DiskStore, routing: Routing
    ) -> None:
        config = self.config
        node = config.node.id
        archive = await self._archive(cluster, registry)
        identity = Identity(
            cluster_id=cluster.cluster_id,
            node_id=node,
            secret=config.cluster.secret.reveal().encode(),
            clock=self._hybrid,
        )
        parts = assemble(
            routing=routing,
            store=store,
            connect=lambda replica: PeerClients(identity, routing.address, replica),
            clock=self._clock,
            hybrid=self._hybrid,
            mint=self._mint,
            randomness=self._randomness,
            peer_timeout_s=config.limits.peer_timeout_s,
            request_timeout_s=config.limits.request_timeout_s,
            readmit=partial(readmit, registry, cluster, node),
            changes=RegistryRouteChanges(registry, cluster, node),
            plans=RegistryPlans(registry, cluster, now_ms=self._clock.wall_ms, seen_epoch=routing.epoch),
            repair=config.repair,
            retention=config.retention,
            archive=archive,
        )
        peers = parts.peers
        self._closers.push_async_callback(peers.close)
        self._closers.push_async_callback(parts.coordinator.close, config.limits.shutdown_timeout_s)
        standstill = Standstill()
        standstill.start()
        self._closers.push_async_callback(standstill.stop)
        parts.coordinator.late_s = standstill.late_s
        parts.coordinator.hears_routes = lambda: self._watcher is None or self._watcher.follows
        status = Status(
            node=node,
            routing=routing,
            watcher=lambda: self._watcher,
            peers=peers,
            store=store,
            resolver=parts.resolver,
            health=parts.health,
            runner=parts.runner,
            membership=MembershipChanges(
                registry, cluster, self._clock, seen_epoch=partial(seen_epoch, routing, store)
            ),
            version=software_version(),
            compare_every_s=config.repair.compare_every_s,
        )
        status.add_gauges(self._metrics)
        parts.upkeep.add_counts(self._metrics)
        add_costs(self._metrics, parts.repairer.costs)

        peer_host, peer_port = _host_port(config.peer.listen)
        peer_server = PeerServer(peer_host, peer_port, parts.replica, identity)
        actual_port = await peer_server.start()
        self._closers.push_async_callback(peer_server.close)

        self._closers.push_async_callback(parts.puller.close)
        if parts.archive is not None:
            parts.archive.add_numbers(self._metrics)
            self._closers.push_async_callback(parts.archive.close)
        self._closers.push_async_callback(parts.runner.close)
        host, port = _host_port(config.http.listen)
        http = HttpServer(
            build_app(
                parts.objects,
                status,
                token=config.http.token.reveal() or None,
                metrics=self._metrics,
                archive=parts.archive.cluster if parts.archive is not None else None,
                clock=self._clock,
                randomness=self._randomness,
                requests_max=config.limits.requests_max,
            ),
            host=host,
            port=port,
            databases=config.storage.max_open_slots,
        )
        try:
            await http.start()
        except OSError as error:
            raise ConfigError(
                f"[http] listen = {config.http.listen!r}: cannot listen there: {error}. Is another process using it?"
            ) from None
        self._closers.push_async_callback(http.close, config.limits.shutdown_timeout_s)

        me = NodeInfo(
            node_id=node,
            disk_id=store.disk_id,
            zone=config.node.zone,
            host=config.node.host,
            http_address=config.http.advertised,
            peer_address=_advertised_peer(config, actual_port),
            capacity_bytes=_capacity_bytes(config.node.disk),
            version=software_version(),
            started_at_ms=self._clock.wall_ms(),
            registry_format=FORMAT_VERSION,
        )
        # It was removed and comes back, perhaps: while it was away nobody asked it before objects were deleted.
        arriving = archive.state.forget_known if archive is not None else None
        table = await self._enter(registry, settings, cluster, me, arriving, status)
        self._watcher = RouteWatcher(
            registry,
            cluster.name,
            clock=self._clock,
            randomness=self._randomness,
            table=table,
            cache_path=config.node.disk / ROUTE_CACHE,
            me=me,
            arriving=arriving,
        )

        def meet(known: RouteTable) -> None:
            for other in known.nodes:
                peers.reachable(other)  # begins to connect

        def routes_changed(known: RouteTable) -> None:
            meet(known)
            parts.routes_changed()

        self._watcher.add_listener(routes_changed)
        self._watcher.start()
        self._closers.push_async_callback(self._watcher.stop)
        meet(table)
        parts.start_workers()
        status.phase = None
        log.info(
            "serving", http=f"http://{config.http.advertised}", peer=me.peer_address, slots=len(table.slots_of(node))
        )

    async def _archive(self, cluster: ClusterInfo, registry: Registry) -> ArchiveMeans | None:
        """What the archive is made with; None: none is configured. The target is not asked anything yet."""
        section, disk = self.config.archive, self.config.node.disk
        if not section.target:
            return None
        traffic = Traffic(self._clock, bytes_per_s=int(section.bytes_per_s), requests_per_s=section.requests_per_s)
        target = open_target(section, traffic)
        self._closers.push_async_callback(target.close)
        state = ArchiveState(disk / ARCHIVE_STATE, clock=self._clock, randomness=self._randomness)
        await state.open()
        self._closers.push_async_callback(state.close)
        cache = Cache(
            disk / ARCHIVE_CACHE,
            int(section.cache),
            spare_bytes=partial(_spare_bytes, disk, int(self.config.storage.reserve)),
            token=self._mint.mint,
        )
        await cache.open()
        sources = Sources(section, traffic)
        self._closers.push_async_callback(sources.close)
        return ArchiveMeans(
            section=section,
            cluster_id=cluster.cluster_id,
            target=target,
            traffic=traffic,
            state=state,
            disk=partial(_disk_use, disk),
            cache=cache,
            sources=sources.find,
            newest_nodes=partial(newest_nodes, registry, self.config.cluster.name, self._table),
        )

    async def _enter(
        self,
        registry: Registry,
        settings: ClusterSettings,
        cluster: ClusterInfo,
        me: NodeInfo,
        arriving: Callable[[], Awaitable[None]] | None,
        status: Status,
    ) -> RouteTable:
        """Register and get the routes, waiting as long as it takes; with routes from the cache, do not wait."""
        while True:
            try:
                if self._first_table is not None:
                    await check_known(registry, self._first_table)
                registration = await register_node(registry, cluster, me, arriving=arriving)
                log.info("registered", what=str(registration))
                return await ensure_routes(registry, cluster, settings, timeout_s=ROUTES_PATIENCE_S)
            except (RegistryUnavailable, NotReady) as error:
                if self._first_table is not None:
                    log.warning("going on with the routes last seen", error=str(error))
                    return self._first_table
                status.phase = error.detail
                log.warning("waiting for the cluster", error=error.detail)
                await asyncio.sleep(1.0 if isinstance(error, RegistryUnavailable) else 0)

    async def stop(self) -> None:
        """Stop everything in the reverse order of its start."""
        try:
            await self._closers.aclose()
        except AmberError as error:
            log.error("stopping met an error", error=str(error))


def _known_cluster(disk: Path) -> str | None:
    """The cluster that the disk belongs to; None for a new disk."""
    try:
        return read_identity(disk).cluster_id
    except FileNotFoundError:
        return None


def _advertised_peer(config: NodeConfig, actual_port: int) -> str:
    if config.peer.advertise:
        return config.peer.advertise
    host, _ = _host_port(config.peer.listen)
    shown = f"[{host}]" if ":" in host else host
    return f"{shown}:{actual_port}"


def _capacity_bytes(disk: Path) -> int:
    stat = os.statvfs(disk)
    return stat.f_blocks * stat.f_frsize


def _spare_bytes(disk: Path, reserve_bytes: int) -> int:
    """How much may be written before the reserve is touched."""
    stat = os.statvfs(disk)
    return stat.f_bavail * stat.f_frsize - reserve_bytes


def _disk_use(disk: Path) -> Disk:
    """How full it is: of what this process may use, as ``df`` counts it."""
    stat = os.statvfs(disk)
    used = stat.f_blocks - stat.f_bfree
    return Disk(used=used * stat.f_frsize, total=max(1, used + stat.f_bavail) * stat.f_frsize)


if __name__ == "__main__":
    sys.exit("This is a library module; run: amberblob serve --config FILE")
