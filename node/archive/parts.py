"""What a node has when ``[archive] target`` is set, put together in one way: by ``node.main``, and by tests and simulations.

Everything of the archive on a node is a part here. Who adds one: a kind of job is ``runner.register(kind, work)``; background work
goes to ``workers``; answers to other nodes are attributes of :class:`node.archive.answers.ArchiveAnswers`. They all stand on :class:`node.archive.ground.Ground`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from amberblob.clock import Clock, HybridClock, Randomness
from amberblob.ids import UlidMint
from amberblob.metrics import Metrics
from antientropy.step import Worker
from archive.heat import Heat
from archive.policy import Policy
from chunkstore.interface import ReplicaStore
from node.archive.answers import Admission, ArchiveAnswers
from node.archive.cluster import ClusterArchive
from node.archive.facts import Facts
from node.archive.ground import Ground
from node.archive.keeper import Keeper
from node.archive.means import ArchiveMeans
from node.archive.own import OwnStatus
from node.archive.reach import Reach
from node.archive.runner import JobRunner
from node.coordinator import Coordinator
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
        keeper: goes on with the jobs of before, begins what is scheduled, takes over what another node left.
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
    keeper: Keeper
    workers: list[Worker] = field(default_factory=list)

    def add_numbers(self, metrics: Metrics) -> None:
        """Show the node's numbers on ``/metrics``."""
        metrics.registry.register(self.own)

    async def close(self) -> None:
        """Write down how far the jobs are. After the workers have ended, before the connections are closed."""
        await self.runner.close()


def archive_parts(
    means: ArchiveMeans,
    *,
    store: ReplicaStore,
    routing: Routing,
    coordinator: Coordinator,
    admission: Admission,
    clock: Clock,
    hybrid: HybridClock,
    mint: UlidMint,
    randomness: Randomness,
) -> ArchiveParts:
    """Put the archive of a node together; nothing runs yet.

    Args:
        means: the target, the node's notes, the cache.
        admission: the rules for what is staged: the node's replica.
    """
    facts = Facts(store)
    ground = Ground(
        means=means,
        store=store,
        routing=routing,
        coordinator=coordinator,
        clock=clock,
        hybrid=hybrid,
        mint=mint,
        randomness=randomness,
        facts=facts,
    )
    policy, heat = Policy.of(means.section), Heat(clock.wall_ms())
    reach = Reach(means.target, means.traffic, clock, now_ms=hybrid.now_ms)
    runner = JobRunner(routing.node, means.state, hybrid.now_ms)
    own = OwnStatus(ground, runner, reach)
    answers = ArchiveAnswers(store, facts, means.state, runner, admission, own=own.status, now_ms=hybrid.now_ms)
    cluster = ClusterArchive(ground)
    keeper = Keeper(ground, runner, cluster)
    return ArchiveParts(
        ground=ground,
        policy=policy,
        heat=heat,
        reach=reach,
        runner=runner,
        cluster=cluster,
        answers=answers,
        own=own,
        keeper=keeper,
        workers=[keeper, reach],
    )
