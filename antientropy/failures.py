"""Versions whose bytes could not be had lately: when to try again, and of which it is known that nobody has them. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, replace

RETRY_FIRST_S = 2.0
RETRY_MAX_S = 300.0
FAILURES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class Failed:
    """What could not be had: how often it was tried, when again (monotonic seconds), and whether nobody has it."""

    slot: int
    tries: int
    due_s: float
    nowhere: bool


class Failures:
    """At most :data:`FAILURES_MAX` of them; the oldest are forgotten first, and then tried anew."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Failed] = OrderedDict()
        self._count: Counter[int] = Counter()
        self._nowhere: Counter[int] = Counter()

    def count(self, slot: int) -> int:
        """How many versions of the slot could not be had."""
        return self._count[slot]

    def nowhere(self, slot: int) -> int:
        """Of how many every other copy said that it lacks some bytes when it was asked last."""
        return self._nowhere[slot]

    def __contains__(self, blob_id: str) -> bool:
        return blob_id in self._known

    def hasten(self, blob_id: str, now_s: float) -> None:
        """Something is known that it may be had by now: it may be tried at once."""
        known = self._known.get(blob_id)
        if known is not None:
            self._known[blob_id] = replace(known, due_s=min(known.due_s, now_s))

    def is_due(self, blob_id: str, now_s: float) -> bool:
        """Whether it may be tried now: it never failed, or long enough ago."""
        known = self._known.get(blob_id)
        return known is None or known.due_s <= now_s

    def note(self, slot: int, blob_id: str, now_s: float, *, nowhere: bool) -> tuple[Failed, bool]:
        """It could not be had; when it is due again, and whether it is news that nobody has it."""
        before = self.forgive(blob_id)
        tries = 1 + (before.tries if before is not None else 0)
        delay_s = min(RETRY_MAX_S, RETRY_FIRST_S * float(1 << min(tries, 16)))
        if len(self._known) >= FAILURES_MAX:
            self.forgive(next(iter(self._known)))
        failed = self._known[blob_id] = Failed(slot, tries, now_s + delay_s, nowhere)
        self._count[slot] += 1
        self._nowhere[slot] += nowhere
        return failed, nowhere and not (before is not None and before.nowhere)

    def forgive(self, blob_id: str) -> Failed | None:
        """Forget that it could not be had; what was known of it."""
        failed = self._known.pop(blob_id, None)
        if failed is not None:
            self._count[failed.slot] -= 1
            self._nowhere[failed.slot] -= failed.nowhere
        return failed
