"""What a node has when ``[archive] target`` is set, put together in one way: by ``node.main``, and by tests and simulations.

Everything of the archive on a node is a part here. Who adds one: a kind of job is ``runner.register(kind, work)``; background work
goes to ``workers``; answers to other nodes are attributes of :class:`node.archive.answers.ArchiveAnswers`. They all stand on :class:`node.archive.ground.Ground`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from amberblob.clock import Clock, HybridClock, Randomness
from amberblob.errors import AmberError, NotReady
from amberblob.ids import UlidMint
from amberblob.metrics import Metrics
from antientropy.step import Worker
from archive.groups import GroupUploader
from archive.heat import Heat
from archive.identity import Identity
from archive.policy import Policy
from archive.targets.guarded import GuardedTarget
from archive.upload import Uploader
from chunkstore.interface import ReplicaStore
from node.archive.afterwards import ThenCheck, ThenExport
from node.archive.answers import ArchiveAnswers
from node.archive.archiver import Archiver
from node.archive.cacheroom import CacheRoom
from node.archive.cluster import ClusterArchive
from node.archive.collector import Collector
from node.archive.condemned import CondemnedObjects
from node.archive.contents import Contents, Missed
from node.archive.document import document_of
from node.archive.evictor import Evictor
from node.archive.export import ExportWork
from node.archive.facts import Facts
from node.archive.follow import Follower
from node.archive.garbage import GarbageWork
from node.archive.ground import Ground
from node.archive.healing import Healing
from node.archive.importing import ImportWork
from node.archive.installing import Admission, Installing
from node.archive.keeper import Keeper
from node.archive.known import KnownRows
from node.archive.lent import Lent
from node.archive.manifests import Manifests
from node.archive.means import ArchiveMeans
from node.archive.metadata import Metadata
from node.archive.own import OwnStatus
from node.archive.reach import Reach
from node.archive.reads import Reads
from node.archive.recover import RecoverWork
from node.archive.runner import JobRunner
from node.archive.sizes import Sizes
from node.archive.through import Through
from node.archive.uses import Uses
from node.archive.verify import VerifyWork
from node.archive.warmth import Warmth
from node.coordinator import Coordinator
from node.objects.lookup import Lookup
from node.routing import Routing


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveParts:
    """One node's archive.

    Attributes:
        ground: what all parts stand on, with the target, the state and the cache.
        policy: what goes to the archive, and what may go from the disk.
        heat: when a blob was last read here.
        reach: whether the target answers.
        runner: this node's parts of jobs.
        cluster: the archive of all nodes: what HTTP asks.
        answers: what other nodes are answered.
        own: how this node's archive is.
        condemned: objects that are to be deleted.
        rows: where the archive has single blobs, by this copy and the others.
        reads: how clients read what is only there. healing: how copies that lack bytes get them, or live without.
        lent: chunks that a restore has brought, for other copies.
        through: writes that are archived before they are acknowledged.
        keeper: goes on with the jobs of before, begins what is scheduled, takes over what another node left.
        follower: takes the rows of other copies. evictor: lets bytes go. warmth: keeps over restarts what was read.
        exporting: tells the bucket of the metadata.
        workers: the background work.
    """

    ground: Ground
    policy: Policy
    heat: Heat
    reach: Reach
    runner: JobRunner
    cluster: ClusterArchive
    answers: ArchiveAnswers
    own: OwnStatus
    condemned: CondemnedObjects
    rows: KnownRows
    reads: Reads
    healing: Healing
    lent: Lent
    through: Through
    keeper: Keeper
    follower: Follower
    evictor: Evictor
    warmth: Warmth
    exporting: ExportWork
    workers: list[Worker] = field(default_factory=list)

    def add_numbers(self, metrics: Metrics) -> None:
        """Show the node's numbers on ``/metrics``."""
        metrics.registry.register(self.own)

    async def close(self) -> None:
        """Write down how far the jobs are. After the workers have ended, before the connections are closed."""
        await self.runner.close()
        await self.through.close()
        with contextlib.suppress(AmberError):
            await self.warmth.save()
        await self.ground.means.cache.close()


def uploader_of(means: ArchiveMeans, hybrid: HybridClock, mint: UlidMint) -> Uploader:
    """One for who does not wait for jobs."""
    return Uploader(
        means.target,
        now_ms=hybrid.now_ms,
        mint=mint.mint,
        pack_size=int(means.section.pack_size),
        lone_size=int(means.section.lone_size),
        parallel=means.section.parallel,
    )


def collector_of(ground: Ground) -> Collector:
    """Deletes from the target at the pace of jobs."""
    means = ground.means

    async def newest_nodes() -> Collection[str]:
        if means.newest_nodes is None:
            raise NotReady("nobody can tell which nodes there are")
        return await means.newest_nodes()

    return Collector(
        node=ground.node,
        mint=ground.mint.mint,
        state=means.state,
        known_nodes=ground.nodes,
        newest_nodes=newest_nodes,
        ask=ground.ask_all,
        delete=means.for_job().delete,
    )


def archive_parts(
    means: ArchiveMeans,
    *,
    store: ReplicaStore,
    routing: Routing,
    coordinator: Coordinator,
    admission: Admission,
    lookup: Lookup,
    clock: Clock,
    hybrid: HybridClock,
    mint: UlidMint,
    randomness: Randomness,
    missed: Missed,
) -> ArchiveParts:
    """Put the archive of a node together; nothing runs yet.

    Args:
        means: the target, the node's notes, the cache.
        admission: the rules for what is staged: the node's replica.
        lookup: how versions are found.
        missed: is told of bytes that should be here and are not.
    """
    facts = Facts(store)

    async def has_rows() -> bool:
        if any(store.tally(slot).archived_rows for slot in store.slots()):
            return True
        return await cluster.has_rows()

    def strange() -> None:
        means.traffic.on_trouble()  # who looks whether the target answers sets it later

    identity = Identity(
        means.target,
        lambda: document_of(routing.table().cluster),
        has_rows,
        clock,
        on_strange=strange,
    )
    means = replace(means, target=GuardedTarget(means.target, identity))
    ground = Ground(
        means=means,
        identity=identity,
        store=store,
        routing=routing,
        coordinator=coordinator,
        clock=clock,
        hybrid=hybrid,
        mint=mint,
        randomness=randomness,
        facts=facts,
    )
    cluster = ClusterArchive(ground)
    policy, heat = Policy.of(means.section), Heat(clock.wall_ms())
    reach = Reach(means.target, means.traffic, clock, now_ms=hybrid.now_ms, is_ours=identity.confirm)
    runner = JobRunner(routing.node, means.state, hybrid.now_ms)
    warmth = Warmth(heat, means.state, clock)
    follower, evictor, sizes = Follower(ground), Evictor(ground, policy, heat, reach, warmth.load), Sizes(ground)

    def rows_came(slot: int) -> None:
        follower.own_changed(slot)
        evictor.rows_came(slot)

    facts.on_taken = rows_came
    contents = Contents(store, coordinator.peers, clock, others=ground.others, missed=missed)
    exporting = ExportWork(ground)
    runner.register("run", ThenExport(Archiver(ground, policy, heat, contents, reach, evictor), exporting, reach))
    own = OwnStatus(ground, runner, reach, follower, evictor, sizes)
    answers = ArchiveAnswers(
        store, facts, means.state, runner, admission, own=own.status, nodes=ground.nodes, now_ms=hybrid.now_ms
    )
    condemned = facts.barred = answers.condemning = CondemnedObjects(
        store, means.state, lambda node: routing.table().is_gone(node)
    )
    uses = answers.uses = Uses(store, ground.led_slots, clock)
    runner.register("gc", GarbageWork(ground, collector_of(ground), uses, exporting))
    runner.register("verify", ThenCheck(VerifyWork(ground, reach), exporting, reach))
    answers.installing = Installing(store, admission, lambda slot, path: routing.slot_of(path) == slot)
    answers.keep_manifest = Manifests(store, means.target)
    runner.register("export", exporting)
    runner.register("recover", RecoverWork(ground))
    runner.register("import", ImportWork(ground, means.sources))
    keeper = Keeper(ground, runner, cluster, condemned)
    rows = KnownRows(store, routing, coordinator.peers, facts, hybrid.now_ms)

    def is_down() -> bool:
        return reach.reached is False

    reads = Reads(rows, means.target, means.cache, means.sources, is_down=is_down)
    through = Through(
        coordinator,
        routing,
        lookup,
        rows,
        policy,
        means.target,
        uploader_of(means, hybrid, mint),
        GroupUploader(uploader_of(means, hybrid, mint)),
        Metadata(routing, means.target, now_ms=hybrid.now_ms, mint=mint.mint, patience_s=means.section.timeout_s),
        patience_s=means.section.timeout_s,
        is_down=is_down,
    )
    return ArchiveParts(
        ground=ground,
        policy=policy,
        heat=heat,
        reach=reach,
        runner=runner,
        cluster=cluster,
        answers=answers,
        own=own,
        condemned=condemned,
        rows=rows,
        reads=reads,
        healing=Healing(
            store,
            rows,
            facts,
            Reads(rows, means.for_job(), means.cache, means.sources, keep=False, is_down=is_down),
            hybrid.now_ms,
        ),
        lent=Lent(),
        through=through,
        keeper=keeper,
        warmth=warmth,
        exporting=exporting,
        follower=follower,
        evictor=evictor,
        workers=[CacheRoom(means.cache), keeper, reach, follower, evictor, sizes, warmth],
    )
