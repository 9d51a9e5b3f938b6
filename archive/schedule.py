"""When the jobs of ``[[archive.jobs]]`` begin by themselves. Pure: the time is an argument.

A job begins when ``every`` has gone by since it began last, within its hours. With hours it counts from when these began, so that a daily job does
not slip through the night. After a start of the node what is overdue waits a little, each job for another time, so that a cluster which was
switched on does not begin everything at once. The wall clock may jump: forward begins a job early, back makes it wait ``every`` at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import blake3

from amberblob.config import ArchiveJobRule, parse_hours

DAY_MS = 86_400_000
CALM_MS = 60_000
"""After a start no job begins within this."""
SPREAD_MS_MAX = 30 * 60_000
"""And an overdue one at the latest this much after that, or a tenth of ``every`` if that is less."""


def key_of(rule: ArchiveJobRule) -> str:
    """By what a rule's last beginning is noted down; a changed rule is a new one."""
    return f"{rule.job}/{rule.every:g}/{rule.between}"


class Schedule:
    """What is to begin, and when.

    Args:
        rules: as the operator gave them.
        began: when each rule's job began last, epoch milliseconds, by :func:`key_of`; those that are not in it never did.
        started_ms: when the node started.
        node: its id, so that not all nodes wait for the same time.
    """

    def __init__(self, rules: Sequence[ArchiveJobRule], began: Mapping[str, int], started_ms: int, node: str) -> None:
        self._rules = tuple(rules)
        self._began = dict(began)
        self._started_ms = started_ms
        self._node = node

    @property
    def began(self) -> dict[str, int]:
        """To be noted down after :meth:`begun`."""
        return dict(self._began)

    def due(self, now_ms: int) -> list[ArchiveJobRule]:
        """The rules whose job is to begin at ``now_ms``; until :meth:`begun` it stays so."""
        self._follow(now_ms)
        return [rule for rule in self._rules if within(rule, now_ms) and now_ms >= self._from(rule)]

    def begun(self, rule: ArchiveJobRule, now_ms: int) -> None:
        """Its job began (or was found running: that counts, too)."""
        self._began[key_of(rule)] = now_ms

    def next_ms(self, now_ms: int) -> int | None:
        """When something is due at the earliest, as it looks now; None: there are no rules."""
        self._follow(now_ms)
        return min((_open_from(rule, max(now_ms, self._from(rule))) for rule in self._rules), default=None)

    def _follow(self, now_ms: int) -> None:
        """The clock may have gone back: nothing began later than now."""
        self._started_ms = min(self._started_ms, now_ms)
        for key, began_ms in self._began.items():
            if began_ms > now_ms:
                self._began[key] = now_ms

    def _from(self, rule: ArchiveJobRule) -> int:
        """From when on it is due, its hours apart."""
        every_ms = round(rule.every * 1000)
        digest = blake3.blake3(f"{self._node}\0{key_of(rule)}".encode()).digest(length=4)
        share = int.from_bytes(digest, "big") / 2**32
        calm = self._started_ms + CALM_MS + round(share * min(SPREAD_MS_MAX, every_ms / 10))
        began_ms = self._began.get(key_of(rule))
        if began_ms is None:
            return calm
        return max(calm, _opened(rule, began_ms) + every_ms)


def within(rule: ArchiveJobRule, now_ms: int) -> bool:
    """Whether the time is in the rule's hours. A job that is still under way when they end is stopped, and goes on in the next."""
    return _open_from(rule, now_ms) == now_ms


def _open_from(rule: ArchiveJobRule, at_ms: int) -> int:
    """``at_ms``, if it is within the hours; else when they begin next."""
    hours = parse_hours(rule.between)
    if hours is None:
        return at_ms
    begin_ms, end_ms = (minute * 60_000 for minute in hours)
    since_ms = (at_ms - begin_ms) % DAY_MS
    return at_ms if since_ms < (end_ms - begin_ms) % DAY_MS else at_ms + DAY_MS - since_ms


def _opened(rule: ArchiveJobRule, at_ms: int) -> int:
    """When the hours began that ``at_ms`` is in; ``at_ms`` itself if it is in none."""
    hours = parse_hours(rule.between)
    if hours is None or not within(rule, at_ms):
        return at_ms
    return at_ms - (at_ms - hours[0] * 60_000) % DAY_MS
