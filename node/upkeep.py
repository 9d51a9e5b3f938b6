"""The workers that keep a disk in order: scrub, the expirer, garbage and the leaver; made together from what the operator set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

from amberblob.clock import Clock
from amberblob.config import RepairSection, RetentionSection
from amberblob.metrics import Metrics
from antientropy.retention import Retention
from antientropy.scrub import Scrub
from antientropy.step import Worker
from chunkstore.interface import ReplicaStore
from node.coordinator import Coordinator
from node.routing import Routing
from node.workers.expirer import Expirer
from node.workers.garbage import EVERY_S, Garbage
from node.workers.leaver import Leaver


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """What keeps one disk in order."""

    scrub: Scrub
    expirer: Expirer
    garbage: Garbage
    leaver: Leaver

    def workers(self) -> tuple[Worker, ...]:
        """All of them."""
        return (self.scrub, self.expirer, self.garbage, self.leaver)

    def add_counts(self, metrics: Metrics) -> None:
        """Show what they did since the start on ``/metrics``."""
        for name, counts in (
            ("scrub", self.scrub.counts),
            ("retention", self.expirer.counts),
            ("garbage", self.garbage.counts),
            ("leaver", self.leaver.counts),
        ):
            for field in fields(counts):
                text = f"Counted by {name} since the node started: {field.name.replace('_', ' ')}."
                metrics.counted(f"amberblob_{name}_{field.name}", text, partial(getattr, counts, field.name))


def upkeep_of(
    store: ReplicaStore,
    clock: Clock,
    routing: Routing,
    coordinator: Coordinator,
    *,
    repair: RepairSection,
    retention: RetentionSection,
    found_wrong: Callable[[int, str], None],
    bytes_wanted: Callable[[], None],
    compared_ms: Callable[[int], int],
) -> Upkeep:
    """The workers of one node.

    Args:
        found_wrong, bytes_wanted, compared_ms: see :class:`antientropy.scrub.Scrub`.
    """
    return Upkeep(
        scrub=Scrub(
            store,
            clock,
            slots=lambda: [slot for slot in store.slots() if routing.mute(store.slot_state(slot)) is None],
            found_wrong=found_wrong,
            bytes_wanted=bytes_wanted,
            compared_ms=compared_ms,
            days=repair.scrub_days,
            bytes_per_s=repair.scrub_bytes_per_s,
        ),
        expirer=Expirer(
            coordinator,
            routing,
            store,
            clock,
            reachable=coordinator.peers.reachable,
            retention=Retention.of(retention),
            every_s=retention.check_every_s,
        ),
        # What expired is removed as soon as it is looked for.
        garbage=Garbage(store, clock, every_s=min(EVERY_S, retention.check_every_s)),
        leaver=Leaver(store, routing, clock, call=coordinator.call),
    )
