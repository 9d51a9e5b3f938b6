"""The parts of a node that need no socket and no thread of their own, put together in one way.

``node.main`` gives them a disk and real connections; a simulation gives them its own. So whatever a simulation
shows is shown of the composition that runs in production.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from amberblob.clock import Clock, HybridClock, Randomness
from amberblob.config import RepairSection, RetentionSection
from amberblob.ids import UlidMint
from amberblob.limits import INLINE_BYTES_MAX
from amberblob.mutations import Installed
from amberblob.wire_repair import AskHealth, HealthReply
from antientropy.pace import Yielding
from antientropy.step import Worker
from antientropy.worker import Repairer
from chunkstore.interface import ReplicaStore
from node.archive.means import ArchiveMeans
from node.archive.parts import ArchiveParts, archive_parts
from node.archive.restore import Restoring
from node.coordinator import Coordinator
from node.finishes import Finishes
from node.health import ClusterHealth, Facts, own_health
from node.moving import Plans, RouteChanges
from node.objects.bytes import Reading
from node.objects.lookup import Lookup
from node.objects.service import Objects
from node.places import RoutedPlaces
from node.repairs import Repairs
from node.replica import Replica
from node.routing import Routing
from node.served import Served
from node.sources import PeerSource
from node.transport.interface import Peers
from node.upkeep import Upkeep, upkeep_of
from node.workers.caretaker import Caretaker
from node.workers.movedecision import LOST_S
from node.workers.mover import Mover
from node.workers.newcomer import Newcomer
from node.workers.puller import Puller
from node.workers.rejoin import Readmit, Rejoin
from node.workers.resolver import Resolver
from node.workers.runner import Runner
from node.workers.sweeper import Sweeper

P = TypeVar("P", bound=Peers)

STAGED_TTL_S = 900.0
"""An upload that nothing refers to after this time is given up; far above any write's deadline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts(Generic[P]):
    """What a node consists of, between its disk and its sockets.

    Attributes:
        rejoin: None where copies that are not those of the routes are never named.
        newcomer, mover: None where no slot ever moves.
        caretaker: None where nobody ever changes the set of nodes.
        archive: None where none is configured.
    """

    peers: P
    replica: Replica
    coordinator: Coordinator
    lookup: Lookup
    reading: Reading
    objects: Objects
    puller: Puller
    resolver: Resolver
    sweeper: Sweeper
    rejoin: Rejoin | None
    newcomer: Newcomer | None
    mover: Mover | None
    caretaker: Caretaker | None
    repairer: Repairer
    upkeep: Upkeep
    runner: Runner
    health: ClusterHealth
    archive: ArchiveParts | None = None

    def workers(self) -> tuple[Worker, ...]:
        """The background work, in the order in which it is started."""
        return (
            self.resolver,
            *self._movers(),
            self.repairer,
            self.puller,
            self.sweeper,
            *self.upkeep.workers(),
            *(self.archive.workers if self.archive is not None else ()),
        )

    def _movers(self) -> tuple[Worker, ...]:
        """Those that change routes."""
        return tuple(
            worker for worker in (self.rejoin, self.newcomer, self.mover, self.caretaker) if worker is not None
        )

    def routes_changed(self) -> None:
        """There is a new route table: a copy may have been lost, be named now, or be wanted elsewhere."""
        for worker in self._movers():
            worker.wake.set()
        self.repairer.wake.set()
        self.upkeep.leaver.wake.set()

    def start_workers(self) -> None:
        """Begin the background work."""
        for worker in self.workers():
            self.runner.start(worker)


def assemble(
    *,
    routing: Routing,
    store: ReplicaStore,
    connect: Callable[[Replica], P],
    clock: Clock,
    hybrid: HybridClock,
    mint: UlidMint,
    randomness: Randomness,
    peer_timeout_s: float,
    request_timeout_s: float,
    readmit: Readmit | None = None,
    changes: RouteChanges | None = None,
    plans: Plans | None = None,
    move_lost_s: float = LOST_S,
    repair: RepairSection | None = None,
    retention: RetentionSection | None = None,
    archive: ArchiveMeans | None = None,
) -> Parts[P]:
    """Put a node's parts together; nothing runs yet.

    Args:
        connect: makes the way to the other nodes; given this node's own answerer.
        peer_timeout_s: how long one request to one peer may take.
        request_timeout_s: how long a read or write may take.
        readmit: how copies that are not those of the routes are named there; None: they never are.
        changes: how slots are moved; None: they never are.
        plans: how what operators left undone is finished; None: it never is.
        move_lost_s: see :data:`node.workers.movedecision.LOST_S`.
        repair, retention: what the operator set; None: the defaults.
        archive: what an archive is made with; None: there is none.
    """
    repair, retention = repair or RepairSection(), retention or RetentionSection()
    served = Served()
    fetching = Yielding(clock, served.count, repair.busy_bytes_per_s)
    puller = Puller(store, routing, clock, pace=fetching, parallel=repair.pull_parallel)
    repairs = Repairs(store, mute=routing.mute)
    replica = Replica(
        store,
        mute=routing.mute,
        newcomers=routing.newcomers,
        epoch_of=routing.epoch,
        pulls=puller,
        repairs=repairs,
        clock=hybrid,
    )
    replica.streams.pace = Yielding(clock, served.count, repair.busy_bytes_per_s)
    peers = connect(replica)
    coordinator = Coordinator(
        node=routing.node,
        peers=peers,
        counters=replica.copies,
        mint=mint,
        clock=hybrid,
        randomness=randomness,
        electorate_of=routing.electorate,
        peer_timeout_s=peer_timeout_s,
        write_timeout_s=request_timeout_s,
        read_timeout_s=request_timeout_s,
    )
    resolver = Resolver(coordinator, routing, store, clock, randomness)
    replica.copies.on_undecided, replica.copies.on_decided = resolver.accepted, resolver.decided
    finishes = Finishes(coordinator, routing)
    lookup = Lookup(coordinator, routing, store)
    reading = Reading(coordinator, routing, store, puller)
    puller.source = PeerSource(peers, fetching, clock)
    served.by = (replica.copies, reading)

    def installed(mutation: Installed) -> None:
        if mutation.rows or mutation.record is not None:
            puller.look_again()
        register = store.peek(mutation.slot, mutation.path)
        if register is not None and register.chosen:
            resolver.decided(mutation.slot, mutation.path)

    def heal() -> None:
        resolver.hurry()
        repairer.heal_now()

    repairer = Repairer(
        places=RoutedPlaces(routing, peers),
        store=store,
        call=coordinator.call,
        settle=finishes.settle,
        refresh=finishes.refresh,
        pace=fetching,
        clock=clock,
        randomness=randomness,
        installed=installed,
        follow_every_s=repair.follow_every_s,
        compare_every_s=repair.compare_every_s,
    )
    upkeep = upkeep_of(
        store,
        clock,
        routing,
        coordinator,
        repair=repair,
        retention=retention,
        found_wrong=repairer.found_wrong,
        bytes_wanted=puller.look_again,
        compared_ms=repairer.compared_ms,
    )
    facts = Facts(undecided=resolver, compared=repairer, fetched=puller, scrubbed=upkeep.scrub)

    def own(ask: AskHealth) -> HealthReply:
        return own_health(store, routing, facts, now_ms=clock.wall_ms(), first=ask.first)

    objects = Objects(coordinator, routing, lookup, reading, inline_bytes_max=INLINE_BYTES_MAX)
    cold: ArchiveParts | None = None
    if archive is not None:
        cold = archive_parts(
            archive,
            store=store,
            routing=routing,
            coordinator=coordinator,
            admission=replica.copies,
            lookup=lookup,
            clock=clock,
            hybrid=hybrid,
            mint=mint,
            randomness=randomness,
            missed=lambda slot, blob_id, damaged: puller.missed(slot, blob_id, damaged=damaged),
        )
        replica.archive, replica.streams.lent = cold.answers.answer, cold.lent.get
        replica.streams.on_read = reading.on_read = cold.heat.read
        reading.cold, puller.archived, objects.putting.through = cold.reads, cold.healing, cold.through
        cold.exporting.compared_ms = repairer.compared_ms
        cold.runner.register(
            "restore", Restoring(cold.ground, cold.rows, reading, puller.source, objects.put, cold.reach, cold.lent)
        )
    repairs.health, repairs.heal = own, heal
    repairs.compare, repairs.found_wrong = repairer.compare_soon, repairer.found_wrong
    return Parts(
        peers=peers,
        replica=replica,
        coordinator=coordinator,
        lookup=lookup,
        reading=reading,
        objects=objects,
        puller=puller,
        rejoin=None if readmit is None else Rejoin(store, routing, readmit),
        newcomer=None if changes is None else Newcomer(store, routing, changes),
        mover=None
        if changes is None
        else Mover(routing, peers, changes, clock, timeout_s=peer_timeout_s, lost_s=move_lost_s),
        caretaker=None if plans is None else Caretaker(routing, plans, clock, reachable=peers.reachable),
        resolver=resolver,
        sweeper=Sweeper(store, clock, ttl_s=STAGED_TTL_S),
        runner=Runner(),
        health=ClusterHealth(own, routing=routing, peers=peers, clock=clock),
        repairer=repairer,
        upkeep=upkeep,
        archive=cold,
    )
