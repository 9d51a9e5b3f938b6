"""What a seed draws of its world's archive: the rules, the sizes, what goes wrong with the bucket, and how often somebody asks for a job."""

from __future__ import annotations

from dataclasses import dataclass, fields
from random import Random
from typing import Any, cast

from amberblob.config import ArchiveSection
from amberblob.config.sections import ArchiveAction, ArchiveJobRule, ArchiveRule
from amberblob.config.values import Duration, SizeBytes
from sim.bucket import URL

FAULTS_OF_ARCHIVES = (
    "archive away",
    "archive slow",
    "archive throttles",
    "archive hangs",
    "archive answers lost",
    "archive answers late",
    "killed evicting",
    "archive stores damage",
    "notes lost",
    "archive loses objects",
)

JOBS = {
    "run": 6,
    "gc": 4,
    "verify": 1,
    "export": 1,
    "restore": 1,
    "stop": 1,
    "two gcs": 2,
    "gc without one": 4,
    "gc meanwhile": 4,
    "run unread": 3,
}
"""What operators ask for, and how often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveShape:
    """All of it.

    Attributes:
        rules: prefix and action of each, with what it waits for.
        job_gap_s: between two jobs that somebody asks for, on average.
        scheduled: whether nodes begin jobs by themselves, too.
        latency_s: of one way to the bucket.
    """

    rules: tuple[ArchiveRule, ...]
    job_gap_s: float
    scheduled: bool
    latency_s: float
    timeout_s: float
    tries: int
    pack_bytes: int
    lone_bytes: int
    parallel: int
    grace_s: float
    rewrite_below: float

    @classmethod
    def draw(cls, random: Random) -> ArchiveShape:
        """Those of a seed's world."""
        prefixes = ["", *(prefix for prefix in ("p0", "p1", "p2", "p4") if random.random() < 0.4)]
        return cls(
            rules=tuple(_rule(random, prefix) for prefix in prefixes),
            job_gap_s=random.choice((1.0, 2.0, 4.0)),
            scheduled=random.random() < 0.3,
            latency_s=random.choice((0.002, 0.02, 0.1)),
            timeout_s=random.choice((2.0, 5.0)),
            tries=random.choice((1, 3)),
            pack_bytes=random.choice((4_000, 40_000, 1_000_000)),
            lone_bytes=random.choice((30_000, 30_000, 1_000_000)),
            parallel=random.choice((1, 2, 4)),
            grace_s=random.choice((0.2, 1.0, 5.0)),
            rewrite_below=random.choice((0.3, 0.5, 0.8)),
        )

    def section(self) -> ArchiveSection:
        """As the nodes are told."""
        jobs = [ArchiveJobRule(job=job, every=Duration(every)) for job, every in (("run", 7.0), ("gc", 11.0))]  # type: ignore[arg-type]
        return ArchiveSection(
            target=URL,
            rules=self.rules,
            jobs=tuple(jobs) if self.scheduled else (),
            timeout_s=self.timeout_s,
            tries=self.tries,
            pack_size=SizeBytes(self.pack_bytes),
            lone_size=SizeBytes(self.lone_bytes),
            parallel=self.parallel,
            grace=Duration(self.grace_s),
            rewrite_below=self.rewrite_below,
        )

    def __str__(self) -> str:
        def shown(value: Any) -> str:
            return " ".join(map(_told, value)) if isinstance(value, tuple) else str(value)

        return "{" + ", ".join(f"{item.name}={shown(getattr(self, item.name))}" for item in fields(self)) + "}"


def _rule(random: Random, prefix: str) -> ArchiveRule:
    evict = "archive-and-evict"
    actions = (evict, evict, evict, "archive", "write-through") + (("keep",) if prefix else ())
    return ArchiveRule(
        prefix=prefix,
        action=cast(ArchiveAction, random.choice(actions)),
        older_than=Duration(random.choice((0.0, 0.0, 2.0))),
        not_read_for=Duration(random.choice((0.0, 0.0, 0.0, 5.0))),
        larger_than=SizeBytes(random.choice((0, 0, 500))),
        versions=random.choice(("all", "all", "all", "old")),
        evict_above=random.choice((0.0, 0.0, 0.0, 60.0)),
    )


def _told(rule: ArchiveRule) -> str:
    return f"{rule.prefix}*:{rule.action}/{rule.older_than:g}/{rule.not_read_for:g}/{rule.larger_than}/{rule.versions}/{rule.evict_above:g}"
