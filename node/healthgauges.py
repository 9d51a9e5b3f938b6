"""What a node's own copies show on ``/metrics``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from amberblob.metrics import Metrics
from amberblob.wire_repair import HealthReply, SlotHealth
from antientropy.driving import Costs

STATES = ("complete", "moving", "wanting", "unsynced", "damaged")


def state_of(health: SlotHealth) -> str:
    """What a copy is by itself: whether it is behind only the others can tell (``/cluster``)."""
    if health.damaged or health.unrecoverable:
        return "damaged"
    if health.moving and (health.unsynced or health.wanted):
        return "moving"
    if health.unsynced:
        return "unsynced"
    return "wanting" if health.wanted else "complete"


class HealthGauges(Collector):
    """Reads the node's health once for each time that the metrics are shown."""

    def __init__(self, own: Callable[[], HealthReply]) -> None:
        self._own = own

    def describe(self) -> Iterator[Metric]:
        """Nothing is read for the registry's sake: the store may not be open yet, and the names are our own."""
        yield from ()

    def collect(self) -> Iterator[Metric]:
        health = self._own()
        copies = GaugeMetricFamily("amberblob_copies", "Copies of slots on this node, by state.", labels=("state",))
        counts = Counter(map(state_of, health.slots))
        for state in STATES:
            copies.add_metric((state,), counts[state])
        yield copies
        slots = health.slots
        # A copy that is to become a voter is compared and scrubbed once it is one.
        voting = [s for s in slots if not s.moving]
        for name, text, number in (
            ("amberblob_wanted_versions", "Versions whose bytes are not all here.", sum(s.wanted for s in slots)),
            (
                "amberblob_heal_bytes",
                "Bytes that wait to be pulled onto this disk.",
                sum(s.wanted_bytes for s in slots),
            ),
            (
                "amberblob_damaged_versions",
                "Versions of which something was here and failed its hash.",
                sum(s.damaged for s in slots),
            ),
            (
                "amberblob_unrecoverable_versions",
                "Versions of which no replica could give some bytes.",
                health.unrecoverable,
            ),
            (
                "amberblob_last_compare_age_seconds",
                "Since the copy for which it is longest ago lacked nothing that another had; +Inf: never since the start.",
                _age_s(health.now_ms, [s.compared_ms for s in voting]),
            ),
            (
                "amberblob_last_scrub_age_seconds",
                "Since the copy for which it is longest ago was read and checked as a whole; +Inf: never.",
                _age_s(health.now_ms, [s.scrubbed_ms for s in voting]),
            ),
        ):
            yield GaugeMetricFamily(name, text, number)
        yield CounterMetricFamily(
            "amberblob_heal_received_bytes", "Bytes fetched for repair since the node started.", health.received_bytes
        )


def _age_s(now_ms: int, times_ms: list[int]) -> float:
    """Of the oldest of these times; of no time at all: 0."""
    if not times_ms:
        return 0.0
    oldest_ms = min(times_ms)
    return max(0, now_ms - oldest_ms) / 1000 if oldest_ms else float("inf")


def add_costs(metrics: Metrics, costs: Costs) -> None:
    """Show what it costs to compare the copies on ``/metrics``."""
    for field in fields(costs):
        text = f"Of comparing copies since the node started: {field.name.replace('_', ' ')}."
        metrics.counted(f"amberblob_compare_{field.name}", text, partial(getattr, costs, field.name))
