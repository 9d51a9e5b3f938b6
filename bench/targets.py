"""The aims, and what a document says of each. Pure.

A target finds its row by section, subject and metric. Some are about a rival: theirs is the row of ratios in the
section of the rival's own name (``swift``), of neighbouring measurements of the same subject, when it was in the run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.results import Document, Row, Series

TIMES = "times"
"""The unit of ratios."""

Of = Literal["value", "floor", "swift"]
"""What is compared: the value itself, its ratio to the floor beside it, or its ratio to Swift's beside it."""


@dataclass(frozen=True, slots=True)
class Target:
    """One aim.

    Attributes:
        title: what the reader sees.
        section: the scenario's name.
        subject: of the row.
        metric: of the row.
        of: what is compared.
        aim: the bound; None: only shown.
        at_most: whether less is better.
    """

    title: str
    section: str
    subject: str
    metric: str
    of: Of = "value"
    aim: float | None = None
    at_most: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target with what was measured; ``series`` is None when it was not."""

    target: Target
    unit: str
    series: Series | None

    @property
    def reached(self) -> bool | None:
        """None when nothing was measured, or nothing is asked."""
        if self.series is None or self.target.aim is None:
            return None
        median = self.series.median
        return median <= self.target.aim if self.target.at_most else median >= self.target.aim


_PUT_1, _PUT_16, _PUT_64 = "PUT 4 KiB, 1 client", "PUT 4 KiB, 16 clients", "PUT 4 KiB, 64 clients"
_STRONG, _LOCAL = "GET 4 KiB strong, 16 clients", "GET 4 KiB local, 16 clients"
_DEAD = "4 KiB, 16 clients, two nodes asked, the third dead"
_SLOW = "4 KiB, 16 clients, two nodes asked, through proxies, the third 100 ms away"
_REBUILT = "4 KiB, 16 clients, a node is rebuilt"
_ARCHIVED, _RESTORED = "archive run, 64 MiB bodies", "archive restore, 64 MiB bodies"
_EMPTY_DISK = "Objects of 4 KiB to 1 MiB onto an empty disk"
_MISSED = "One write of a thousand missed"
_QUIET = "A round with nothing to find"
_SYNCS = "journal fdatasync per replica"
_RATE = "throughput"
_CPU = "CPU of all nodes"
_CPU_ALL = "CPU of all nodes, databases included"
_NO_FALL = 0.95
_NO_RISE = 1.25
"""Of what should not change; two loads one after the other differ by as much on their own."""

LISTS = ("1,000 under a prefix", "first 1,000 of all", "first page of groups", "first 10 of a middle prefix")

TARGETS: tuple[Target, ...] = (
    Target(_PUT_16, "put", _PUT_16, _RATE),
    Target(_PUT_64, "put", _PUT_64, _RATE),
    Target(f"{_PUT_64}, of the three-copy group commit", "put", _PUT_64, _RATE, "floor"),
    Target(f"{_PUT_64}, of one writer's group commit", "put", _PUT_64, "throughput, beside one writer", "floor"),
    Target(f"{_PUT_16}, times Swift's", "put", _PUT_16, _RATE, "swift", 40),
    Target("Journal fdatasync per replica and PUT, 1 client", "put", _PUT_1, _SYNCS, aim=1.2, at_most=True),
    Target("Journal fdatasync per replica and PUT, 64 clients", "put", _PUT_64, _SYNCS, aim=0.2, at_most=True),
    Target("CPU of all nodes per PUT 4 KiB, 16 clients", "put", _PUT_16, _CPU_ALL, aim=250, at_most=True),
    Target("CPU of all nodes per PUT 4 KiB, 64 clients", "put", _PUT_64, _CPU_ALL, aim=250, at_most=True),
    Target("p99 over median, PUT 4 KiB, 16 clients", "put", _PUT_16, "p99 over p50", aim=4, at_most=True),
    Target(_STRONG, "get", _STRONG, _RATE),
    Target(f"{_STRONG}, times Swift's", "get", _STRONG, _RATE, "swift", 25),
    Target("CPU of all nodes per GET 4 KiB strong", "get", _STRONG, _CPU, aim=80, at_most=True),
    Target(_LOCAL, "get", _LOCAL, _RATE),
    Target(f"{_LOCAL}, times Swift's", "get", _LOCAL, _RATE, "swift", 40),
    Target("CPU of all nodes per GET 4 KiB local", "get", _LOCAL, _CPU, aim=80, at_most=True),
    Target("PUT 64 MiB, of three copies received and written at once", "large", "PUT 64 MiB", _RATE, "floor", 0.8),
    Target("GET 64 MiB, of sendfile", "large", "GET 64 MiB", _RATE, "floor", 0.9),
    *(Target(f"LIST {name}, p50", "list", f"LIST {name}", "p50", aim=30, at_most=True) for name in LISTS),
    Target("PUT with one node dead, over all well", "dead", f"PUT {_DEAD}", "throughput over that before", aim=_NO_FALL),
    Target("GET with one node dead, over all well", "dead", f"GET {_DEAD}", "throughput over that before", aim=_NO_FALL),
    Target("Objects onto an empty disk, of the disk or the loopback", "heal", _EMPTY_DISK, "rate", "floor", 0.5),
    Target("p99 of PUT while a node is rebuilt, over all well", "heal", f"PUT {_REBUILT}", "p99 over that before", aim=1.5, at_most=True),
    Target("p99 of GET while a node is rebuilt, over all well", "heal", f"GET {_REBUILT}", "p99 over that before", aim=1.5, at_most=True),
    Target("Writes that were missed, rounds until mended", "heal", _MISSED, "found and mended within", aim=2, at_most=True),
    Target("Writes that were missed, said besides what was mended", "heal", _MISSED, "said besides what was mended", aim=1024, at_most=True),
    Target("A round with nothing to find, said per slot and peer", "heal", _QUIET, "said per slot and peer"),
    Target("Archived (sent, read back), of boto3's multipart up and down", "archive", _ARCHIVED, "sent and read back", "floor", 0.8),
    Target("Archived (sent, read back), of boto3's multipart up alone", "archive", _ARCHIVED, "sent and read back, beside sending alone", "floor"),
    Target("Archived (sent only), of boto3's multipart up", "archive", "archive run without reading back, 64 MiB bodies", "sent", "floor", 0.8),
    Target("Restored, of boto3's multipart down", "archive", _RESTORED, "brought back", "floor", 0.8),
    Target("Restored, of boto3's multipart down into three synced files", "archive", _RESTORED, "brought back, beside durable copies", "floor"),
    Target("Evicted bodies read by clients, of boto3's multipart down", "archive", "GET of evicted 64 MiB bodies", _RATE, "floor"),
    Target("Requests to S3 for 1,000 objects of 4 KiB, read back too", "archive", "archive run, 4 KiB bodies", "requests to S3", aim=1, at_most=True),
    Target("p99 of PUT, one node 100 ms away, over near", "slow", f"PUT {_SLOW}", "p99 over that before", aim=_NO_RISE, at_most=True),
    Target("p99 of GET, one node 100 ms away, over near", "slow", f"GET {_SLOW}", "p99 over that before", aim=_NO_RISE, at_most=True),
)  # fmt: skip
"""In the order of the table."""


def verdicts(document: Document) -> list[Verdict]:
    """What the document says of each target."""
    return [_verdict(target, document) for target in TARGETS]


def _verdict(target: Target, document: Document) -> Verdict:
    if target.of == "swift":
        row = find_ratio(document, target.of, target.subject, target.metric)
    else:
        row = find(document, target.section, target.subject, target.metric)
    if row is None:
        return Verdict(target, "", None)
    if target.of == "floor":
        return Verdict(target, "of the floor", row.ratio)
    return Verdict(target, row.unit, row.series)


def find_ratio(document: Document, section: str, subject: str, metric: str) -> Row | None:
    """The row of ratios that :mod:`bench.pairs` made of this subject, whatever versions its title names."""
    for one in document.sections:
        if one.name == section:
            for row in one.rows:
                if row.unit == TIMES and row.subject.endswith(f": {subject}") and row.metric == metric:
                    return row
    return None


def find(document: Document, section: str, subject: str, metric: str) -> Row | None:
    """The row of that name, if the document has it."""
    for one in document.sections:
        if one.name == section:
            for row in one.rows:
                if row.subject == subject and row.metric == metric:
                    return row
    return None
