"""The numbers that a process shows to Prometheus, around a registry of its own.

One :class:`Metrics` per process, handed to whoever counts. The HTTP face's numbers are defined here; other
modules add theirs by :meth:`Metrics.counter`, :meth:`Metrics.gauge` and :meth:`Metrics.histogram`, which give
the same collector for the same name, so that several disks of one process share it.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

SECONDS_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""From a small cached read to a large upload."""

_Metric = TypeVar("_Metric", bound=MetricWrapperBase)


class _Counted(Collector):
    def __init__(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        self._name = name
        self._documentation = documentation
        self._read = read

    def collect(self) -> Iterator[CounterMetricFamily]:
        yield CounterMetricFamily(self._name, self._documentation, value=self._read())


class _Kind:
    """Requests of one operation that ended in one class of status."""

    __slots__ = ("buckets", "seconds", "since_s")

    def __init__(self) -> None:
        self.buckets = [0] * (len(SECONDS_BUCKETS) + 1)
        self.seconds = 0.0
        self.since_s = time.time()


class HttpNumbers(Collector):
    """What the HTTP face counts: plain numbers, made into metrics only when somebody asks.

    To be counted from the event loop's thread alone. (A counter and a histogram of prometheus-client take a lock each
    time, and 6 µs for what is 0.7 µs here.)
    """

    def __init__(self) -> None:
        self._in_flight = 0
        self._received_bytes = 0
        self._sent_bytes = 0
        self._kinds: dict[tuple[str, str], _Kind] = {}
        self._since_s = time.time()

    def started(self) -> None:
        """A request's handling begins."""
        self._in_flight += 1

    def finished(self, operation: str, status: str, seconds: float, received_bytes: int, sent_bytes: int) -> None:
        """A request's handling ended. ``status`` is its class (``2xx``), or ``aborted`` when no whole answer went out."""
        self._in_flight -= 1
        kind = self._kinds.get((operation, status))
        if kind is None:
            kind = self._kinds[operation, status] = _Kind()
        kind.buckets[bisect_left(SECONDS_BUCKETS, seconds)] += 1
        kind.seconds += seconds
        self._received_bytes += received_bytes
        self._sent_bytes += sent_bytes

    def collect(self) -> Iterator[Metric]:
        labels = ("operation", "status")
        requests = CounterMetricFamily(
            "amberblob_http_requests", "Requests answered, by operation and class of status.", labels=labels
        )
        seconds = HistogramMetricFamily(
            "amberblob_http_request_seconds",
            "Time from the request's head to the answer's last byte, by operation and class of status.",
            labels=labels,
        )
        bounds = [*map(floatToGoString, SECONDS_BUCKETS), "+Inf"]
        for key, kind in list(self._kinds.items()):
            counts = list(accumulate(kind.buckets))
            requests.add_metric(key, counts[-1], created=kind.since_s)
            seconds.add_metric(key, list(zip(bounds, counts, strict=True)), kind.seconds)
            seconds.add_sample(seconds.name + "_created", dict(zip(labels, key, strict=True)), kind.since_s)
        yield requests
        yield seconds
        for name, documentation, number in (
            ("amberblob_http_received_bytes", "Bytes of request bodies received.", self._received_bytes),
            ("amberblob_http_sent_bytes", "Bytes of answers sent, heads included.", self._sent_bytes),
        ):
            family = CounterMetricFamily(name, documentation)
            family.add_metric((), number, created=self._since_s)
            yield family
        yield GaugeMetricFamily("amberblob_http_in_flight", "Requests being handled right now.", self._in_flight)


class Metrics:
    """Counters, gauges and histograms of one process; those of the HTTP face are :attr:`http`.

    Args:
        process: also show the process's own numbers (memory, CPU time, open files, garbage collection).
    """

    def __init__(self, *, process: bool = True) -> None:
        self.registry = CollectorRegistry()
        self._collectors: dict[str, MetricWrapperBase] = {}
        if process:
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)
            GCCollector(registry=self.registry)
        self.http = HttpNumbers()
        self.registry.register(self.http)

    def counter(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Counter:
        """A number that only grows; Prometheus sees it as ``<name>_total``."""
        return self._once(name, Counter, lambda: Counter(name, documentation, labels, registry=self.registry))

    def gauge(self, name: str, documentation: str, labels: Sequence[str] = ()) -> Gauge:
        """A number that goes up and down."""
        return self._once(name, Gauge, lambda: Gauge(name, documentation, labels, registry=self.registry))

    def histogram(
        self, name: str, documentation: str, labels: Sequence[str] = (), buckets: Sequence[float] = SECONDS_BUCKETS
    ) -> Histogram:
        """A distribution, by default of durations in seconds."""
        return self._once(
            name, Histogram, lambda: Histogram(name, documentation, labels, registry=self.registry, buckets=buckets)
        )

    def counted(self, name: str, documentation: str, read: Callable[[], float]) -> None:
        """A number that only grows and that somebody else counts: it is read when it is shown."""
        self.registry.register(_Counted(name, documentation, read))

    def expose(self, accept: str = "") -> tuple[bytes, str]:
        """Everything as text, and its content type, in the newest format that ``accept`` asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _once(self, name: str, kind: type[_Metric], make: Callable[[], _Metric]) -> _Metric:
        known = self._collectors.get(name)
        if known is None:
            known = self._collectors[name] = make()
        if not isinstance(known, kind):
            raise TypeError(f"{name} is a {type(known).__name__}, not a {kind.__name__}")
        return known
