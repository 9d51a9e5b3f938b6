"""Which versions of a path may go, and when its stub may: pure decisions over what one copy knows.

Time only nominates (rfc/0012): what is named here is proposed as a round of the path, and that round decides over the record
that is current then. So a wrong clock can shorten how long something is kept, but never takes what is live.

A version may go when it is not the head, is not among the newest that are kept in any case, and has been out of use for
``keep``: a live one since the next live version was made, a tombstoned one since it was deleted. Where this copy cannot know
for certain, it counts from the later time, or names nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from amberblob.config import Keep, RetentionSection
from amberblob.manifest import Ranges, Record, covers, merge_ranges
from chunkstore.interface import History

REPEATS_MS = 15 * 60_000
"""A version stays at least so long after it was made, whatever the rule: by its row a repeat of its write is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """What is kept of a path.

    Attributes:
        keep_ms: how long a version is kept that is out of use; None: for ever.
        versions: so many of the newest versions, and of the newest live ones, are kept in any case.
    """

    keep_ms: int | None
    versions: int = 0


class Retention:
    """The rule for every path.

    Args:
        default: for paths that no prefix fits.
        rules: by prefix; the longest that fits wins.
        stub_keep_ms: how long, at the least, a deleted path is remembered of which nothing is left.
            If that is less than :data:`REPEATS_MS`, it holds for the rows of versions too.
    """

    def __init__(self, default: Rule, rules: Mapping[str, Rule], *, stub_keep_ms: int) -> None:
        self._default = default
        self._longest_first = sorted(rules.items(), key=lambda rule: len(rule[0]), reverse=True)
        self._stub_keep_ms = stub_keep_ms
        self._row_keep_ms = min(stub_keep_ms, REPEATS_MS)

    @classmethod
    def of(cls, section: RetentionSection) -> Retention:
        """The rules that the operator gave."""
        rules = {
            rule.prefix: Rule(
                keep_ms=_milliseconds(section.keep if rule.keep is None else rule.keep),
                versions=section.versions if rule.versions is None else rule.versions,
            )
            for rule in section.rules
        }
        default = Rule(keep_ms=_milliseconds(section.keep), versions=section.versions)
        return cls(default, rules, stub_keep_ms=math.ceil(section.stub_keep * 1000))

    def rule(self, path: str) -> Rule:
        """The rule for a path."""
        for prefix, rule in self._longest_first:
            if path.startswith(prefix):
                return rule
        return self._default

    def expendable(self, history: History, now_ms: int) -> tuple[int, ...]:
        """The versions that may go at ``now_ms`` (epoch milliseconds), ascending.

        Once a version may go it may at every later time, as long as nothing is written.
        """
        record, rule = history.record, self.rule(history.path)
        if record is None or rule.keep_ms is None:
            return ()
        if history.rows and history.rows[-1][0] > record.version_max:
            # The record here is older than a version here: what it says of heads and tombstones is not to be relied on.
            return ()
        kept = _newest(history, record, rule.versions)
        if record.head is not None:
            kept.add(record.head.version)
        kept.update(version for version, created_at_ms, _ in history.rows if now_ms - created_at_ms < self._row_keep_ms)
        return tuple(
            version
            for version, since_ms in _out_of_use(history, record)
            if version not in kept and now_ms - since_ms >= rule.keep_ms
        )

    def nominated(self, history: History, now_ms: int) -> Ranges:
        """:meth:`expendable` in as few ranges as there are runs between versions that stay.

        A range runs over numbers that are no version here, down to the version before that stays. (Clients may choose numbers,
        times for example; a range for each version would be too many to keep track of.)
        """
        going, head = set(self.expendable(history, now_ms)), history.record.head if history.record else None
        here = {version for version, _, _ in history.rows} | ({head.version} if head else set())
        ranges: list[tuple[int, int]] = []
        stays = 0
        for version in sorted(here):
            if version in going:
                ranges.append((stays + 1, version))
            else:
                stays = version
        return merge_ranges(ranges)

    def stub_may_go(self, history: History, now_ms: int) -> bool:
        """Whether the path is deleted, nothing is left of it, and it need not be remembered any longer."""
        record, rule = history.record, self.rule(history.path)
        if record is None or rule.keep_ms is None or history.rows or record.head is not None or record.live:
            return False
        deleted_at_ms = record.deleted_at_ms or record.changed_at_ms
        return now_ms - deleted_at_ms >= max(rule.keep_ms, self._stub_keep_ms)


def _milliseconds(keep: Keep) -> int | None:
    return None if keep.for_ever else math.ceil(keep * 1000)


def _newest(history: History, record: Record, count: int) -> set[int]:
    """The newest versions, and the newest live ones: neither a deleted nor a live one takes the other's place."""
    if not count:
        return set()
    versions = [version for version, _, _ in history.rows]
    live = [version for version in versions if covers(record.live, version)]
    return {*versions[-count:], *live[-count:]}


def _out_of_use(history: History, record: Record) -> list[tuple[int, int]]:
    """(version, since when it is out of use), ascending; without live versions above which none lives."""
    found: list[tuple[int, int]] = []
    head = record.head
    # Of the next live version above; the head's row may not be here yet, but the record has it.
    next_at_ms: int | None = None if head is None else head.created_at_ms
    for version, created_at_ms, tombstoned_at_ms in reversed(history.rows):
        if not covers(record.live, version):
            since_ms = record.changed_at_ms if tombstoned_at_ms is None else tombstoned_at_ms
            if covers(record.taken, version):
                # What the last delete took was taken then; an older tombstone of it had been lifted in between.
                since_ms = max(since_ms, record.deleted_at_ms)
            found.append((version, since_ms))
            continue
        if next_at_ms is not None and (head is None or version < head.version):
            # A restore may just have put the newer one back in its place.
            restored_at_ms = record.changed_at_ms if record.op == "restore" else 0
            found.append((version, max(next_at_ms, restored_at_ms)))
        next_at_ms = created_at_ms
    found.reverse()
    return found
