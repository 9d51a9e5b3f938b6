"""The numbers that a process shows to Prometheus, around a registry of its own.

One :class:`Metrics` per process, handed to whoever counts. The HTTP face's numbers are defined here; other
modules add theirs by :meth:`Metrics.counter`, :meth:`Metrics.gauge` and :meth:`Metrics.histogram`, which give
the same collector for the same name, so that several disks of one process share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

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


class Metrics:
    """Counters, gauges and histograms of one process.

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
        self._http_requests = self.counter(
            "amberblob_http_requests", "Requests answered, by operation and class of status.", ("operation", "status")
        )
        self._http_seconds = self.histogram(
            "amberblob_http_request_seconds",
            "Time from the request's head to the answer's last byte, by operation and class of status.",
            ("operation", "status"),
        )
        self._http_received = self.counter("amberblob_http_received_bytes", "Bytes of request bodies received.")
        self._http_sent = self.counter("amberblob_http_sent_bytes", "Bytes of answers sent, heads included.")
        self._http_in_flight = self.gauge("amberblob_http_in_flight", "Requests being handled right now.")
        # The label lookup of prometheus-client costs more than the counting, so the children are kept.
        self._http_children: dict[tuple[str, str], tuple[Counter, Histogram]] = {}

    def http_started(self) -> None:
        """A request's handling begins."""
        self._http_in_flight.inc()

    def http_finished(
        self, operation: str, status: str, *, seconds: float, received_bytes: int, sent_bytes: int
    ) -> None:
        """A request's handling ended. ``status`` is its class (``2xx``), or ``aborted`` when no whole answer went out."""
        self._http_in_flight.dec()
        key = (operation, status)
        children = self._http_children.get(key)
        if children is None:
            children = self._http_requests.labels(*key), self._http_seconds.labels(*key)
            self._http_children[key] = children
        requests, latency = children
        requests.inc()
        latency.observe(seconds)
        if received_bytes:
            self._http_received.inc(received_bytes)
        if sent_bytes:
            self._http_sent.inc(sent_bytes)

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
