"""How this node's archive is, from memory: its answer to ``ArchiveInfo``, and its numbers for ``/metrics``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from chunkstore.interface import SlotTally
from node.archive.evictor import Evictor
from node.archive.follow import Follower
from node.archive.ground import Ground
from node.archive.jobs import JobState, told
from node.archive.reach import Reach
from node.archive.runner import JobRunner
from node.archive.sizes import Sizes
from node.archive.status import ArchiveNodeStatus


@dataclass(slots=True)
class _Sum:
    rows: int = 0
    bytes: int = 0
    evicted: int = 0
    evicted_bytes: int = 0

    def add(self, tally: SlotTally, size_bytes: int) -> None:
        self.bytes += size_bytes
        self.rows += tally.archived_rows
        self.evicted += tally.evicted
        self.evicted_bytes += tally.evicted_bytes


class OwnStatus(Collector):
    """Tells of this node.

    Attributes:
        condemned: how many objects bear a token here. Set once, while the node is put together.
    """

    condemned: Callable[[], int] = staticmethod(lambda: 0)

    def __init__(
        self, ground: Ground, runner: JobRunner, reach: Reach, follower: Follower, evictor: Evictor, sizes: Sizes
    ) -> None:
        self._ground = ground
        self._runner = runner
        self._reach = reach
        self._follower = follower
        self._evictor = evictor
        self._sizes = sizes.by_slot

    async def status(self) -> ArchiveNodeStatus:
        """All of it."""
        ground, reach = self._ground, self._reach
        own, led, led_slots, slots = _Sum(), _Sum(), 0, 0
        for slot in ground.own_slots():
            slots += 1
            tally = ground.store.tally(slot)
            size_bytes = self._sizes.get(slot, 0)
            own.add(tally, size_bytes)
            if ground.looks_after(slot):
                led_slots += 1
                led.add(tally, size_bytes)
        traffic, cache, error = ground.means.traffic, ground.means.cache, reach.error
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
            archived_bytes=own.bytes,
            evicted=own.evicted,
            evicted_bytes=own.evicted_bytes,
            led={
                "archived_rows": led.rows,
                "archived_bytes": led.bytes,
                "evicted": led.evicted,
                "evicted_bytes": led.evicted_bytes,
            },
            traffic={
                "sent_bytes": traffic.sent_bytes,
                "received_bytes": traffic.received_bytes,
                "requests": sum(traffic.requests.values()),
                "failures": sum(count for (_, result), count in traffic.requests.items() if result != "ok"),
                "retries": traffic.retries,
                "throttles": traffic.throttles,
            },
            cache={
                "bytes": cache.size_bytes,
                "budget_bytes": int(ground.section.cache),
                "chunks": len(cache),
                "hits": cache.hits,
                "misses": cache.misses,
            },
            condemned=self.condemned(),
            follow_behind=self._follower.behind,
            disk_full_percent=round(100 * ground.means.disk().share, 1),
            jobs=[told(status, slots=False) for status in self._runner.statuses()],
        )

    def collect(self) -> Iterator[Metric]:
        """The numbers, as Prometheus has them."""
        ground, traffic = self._ground, self._ground.means.traffic
        own = _Sum()
        for slot in ground.own_slots():
            own.add(ground.store.tally(slot), self._sizes.get(slot, 0))
        cache, counts, followed = ground.means.cache, self._evictor.counts, self._follower.counts
        for name, text, value in (
            ("unreachable", "1 while the archive's target does not answer.", float(self._reach.reached is False)),
            ("rows", "Archive rows of this node's copies.", own.rows),
            ("evicted", "Versions of this node's copies that live by their archive rows.", own.evicted),
            ("evicted_bytes", "Their size.", own.evicted_bytes),
            ("bytes", "Bytes of the archive that this node's copies name; may lag by a minute.", own.bytes),
            ("cache_bytes", "Bytes in the archive's local cache.", cache.size_bytes),
            ("condemned", "Objects of the archive that bear a token here: they are to be deleted.", self.condemned()),
            ("follow_behind", "Archive rows of other copies that are not here yet.", self._follower.behind),
        ):
            yield GaugeMetricFamily(f"amberblob_archive_{name}", text, value=value)
        for name, text, value in (
            ("sent_bytes", "Bytes sent to the archive's target.", traffic.sent_bytes),
            ("received_bytes", "Bytes fetched from the archive's target.", traffic.received_bytes),
            ("retries", "Requests to the archive's target that were tried again.", traffic.retries),
            ("throttles", "How often the archive's target said that it is too much.", traffic.throttles),
            ("cache_hits", "Reads of archived chunks that the local cache served.", cache.hits),
            ("cache_misses", "Reads of archived chunks that it did not.", cache.misses),
            ("evictions", "Versions whose bytes were let go.", counts.versions),
            ("freed_bytes", "Bytes that were let go.", counts.bytes),
            ("eviction_failures", "Versions whose bytes could not be let go.", counts.failures),
            ("followed_rows", "Rows of other copies that were news here.", followed.news),
            ("adopted", "Versions that live by their rows because another copy does.", followed.adopted),
            ("follow_failures", "Rows of other copies that could not be had.", followed.failures),
            ("job_failures", "What jobs could not do and left.", self._runner.failures),
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
