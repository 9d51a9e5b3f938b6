"""How this node's archive is, from memory: its answer to ``ArchiveInfo``, and its numbers for ``/metrics``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chunkstore.interface import SlotTally
from node.archive.ground import Ground
from node.archive.jobs import JobState, told
from node.archive.reach import Reach
from node.archive.runner import JobRunner
from node.archive.status import ArchiveNodeStatus


@dataclass(slots=True)
class _Sum:
    rows: int = 0
    evicted: int = 0
    evicted_bytes: int = 0

    def add(self, tally: SlotTally) -> None:
        self.rows += tally.archived_rows
        self.evicted += tally.evicted
        self.evicted_bytes += tally.evicted_bytes


class OwnStatus(Collector):
    """Tells of this node."""

    def __init__(self, ground: Ground, runner: JobRunner, reach: Reach) -> None:
        self._ground = ground
        self._runner = runner
        self._reach = reach

    async def status(self) -> ArchiveNodeStatus:
        """All of it."""
        ground, reach = self._ground, self._reach
        own, led, led_slots, slots = _Sum(), _Sum(), 0, 0
        for slot in ground.own_slots():
            slots += 1
            tally = ground.store.tally(slot)
            own.add(tally)
            if ground.looks_after(slot):
                led_slots += 1
                led.add(tally)
        traffic, error = ground.means.traffic, reach.error
        return ArchiveNodeStatus(
            node=ground.node,
            target=ground.target.url,
            reached=reach.reached,
            code=error.code if error is not None else "",
            why=error.detail if error is not None else "",
            since_ms=reach.since_ms,
            slots=slots,
            led_slots=led_slots,
            archived_rows=own.rows,
            evicted=own.evicted,
            evicted_bytes=own.evicted_bytes,
            led={"archived_rows": led.rows, "evicted": led.evicted, "evicted_bytes": led.evicted_bytes},
            traffic={
                "sent_bytes": traffic.sent_bytes,
                "received_bytes": traffic.received_bytes,
                "requests": sum(traffic.requests.values()),
                "failures": sum(count for (_, result), count in traffic.requests.items() if result != "ok"),
                "retries": traffic.retries,
                "throttles": traffic.throttles,
            },
            disk_full_percent=round(100 * ground.means.disk().share, 1),
            jobs=[told(status, slots=False) for status in self._runner.statuses()],
        )

    def collect(self) -> Iterator[Metric]:
        """The numbers, as Prometheus has them."""
        ground, traffic = self._ground, self._ground.means.traffic
        own = _Sum()
        for slot in ground.own_slots():
            own.add(ground.store.tally(slot))
        for name, text, value in (
            ("unreachable", "1 while the archive's target does not answer.", float(self._reach.reached is False)),
            ("rows", "Archive rows of this node's copies.", own.rows),
            ("evicted", "Versions of this node's copies that live by their archive rows.", own.evicted),
            ("evicted_bytes", "Their size.", own.evicted_bytes),
        ):
            yield GaugeMetricFamily(f"amberblob_archive_{name}", text, value=value)
        for name, text, value in (
            ("sent_bytes", "Bytes sent to the archive's target.", traffic.sent_bytes),
            ("received_bytes", "Bytes fetched from the archive's target.", traffic.received_bytes),
            ("retries", "Requests to the archive's target that were tried again.", traffic.retries),
            ("throttles", "How often the archive's target said that it is too much.", traffic.throttles),
            ("refused_rows", "Archive rows that were kept out: their object is being deleted.", ground.facts.refused),
        ):
            yield CounterMetricFamily(f"amberblob_archive_{name}", text, value=value)
        requests = CounterMetricFamily(
            "amberblob_archive_requests", "Requests to the archive's target.", labels=("kind", "result")
        )
        for (kind, result), count in sorted(traffic.requests.items()):
            requests.add_metric((kind, result), count)
        yield requests
        jobs = GaugeMetricFamily("amberblob_archive_jobs", "This node's parts of jobs, by state.", labels=("state",))
        for state in get_args(JobState):
            jobs.add_metric((state,), self._runner.count(state))
        yield jobs
        yield GaugeMetricFamily(
            "amberblob_archive_job_failures",
            "What the jobs that are remembered could not do and left.",
            value=sum(status.failures for status in self._runner.statuses()),
        )
