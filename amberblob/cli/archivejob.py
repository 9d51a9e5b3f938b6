"""What a job of the archive says of itself while it is followed, and when that ends. Pure.

It is fed with the answers of ``GET /archive/jobs/{job}``, again and again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from amberblob.cli.healing import duration
from amberblob.cli.output import human_size

PATIENCE_S = 60.0
"""How long nobody may get further before it is said what the job waits for. Another node takes over within seconds."""

RATE_OVER_S = 10.0
"""The speed is that of the last so many seconds: a job has phases."""

_TIME_LEFT_AFTER_S = 5.0
_STALLED_AFTER_S = 15.0
"""Who did not get further for so long has no time left that anybody could tell."""

_TOLD: Mapping[str, tuple[str, ...]] = {
    "run": ("versions", "bytes_archived", "bytes_sent", "archive_objects", "evicted_bytes"),
    "verify": ("objects", "chunks_verified", "bytes_verified", "chunks_damaged", "chunks_missing"),
}
"""Of kinds that count much: what is worth a line. Of the others everything is told, and ``--json`` has all of it."""

_SIZE_OF: Mapping[str, str] = {"object_bytes": "objects", "version_bytes": "versions"}
"""Counts that are the size of something: "4.1 MiB in objects"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One node's part of a job, or their sum (``node`` is empty then)."""

    node: str
    state: str
    slots_done: int
    slots_total: int
    bytes_done: int
    bytes_total: int
    failures: int
    detail: str

    @property
    def share(self) -> float | None:
        """How much of it is done, 0 to 1; None: not known yet. By slots, as the bytes of those that were not looked at are not known."""
        if self.slots_total:
            return self.slots_done / self.slots_total
        return self.bytes_done / self.bytes_total if self.bytes_total else None

    @property
    def text(self) -> str:
        """What is done, without speed."""
        parts = []
        if self.state not in ("running", "done"):
            parts.append(self.state)
        if self.slots_total:
            parts.append(f"{self.slots_done} of {self.slots_total} slots")
        if self.bytes_done or self.bytes_total:
            parts.append(f"{human_size(self.bytes_done)} of {human_size(self.bytes_total)}")
        if self.failures:
            parts.append(f"{self.failures} problem{'s' if self.failures > 1 else ''}")
        return ", ".join(parts) or "begins"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """It goes on. ``text`` has everything, for a line; ``parts`` are the nodes that answered; ``news`` changes when something was done."""

    whole: Part
    parts: tuple[Part, ...]
    text: str
    news: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Nobody works on it any more: done, failed or stopped."""

    kind: str
    state: str
    text: str
    problems: tuple[str, ...]
    failures: int

    @property
    def well(self) -> bool:
        """Whether all of it was done."""
        return self.state == "done" and not self.failures


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """Nobody got further for :data:`PATIENCE_S`: why, and what helps."""

    why: str
    hint: str


@dataclass
class JobWatch:
    """Looks at a job over time. ``nodes``: who began with it, as far as that is known."""

    nodes: frozenset[str] = frozenset()
    seen: deque[tuple[float, int, float]] = field(default_factory=deque)
    """Moment, bytes done, and share done, of the last seconds."""
    first: tuple[float, float] | None = None
    furthest: tuple[int, int] = (-1, -1)
    further_at_s: float = 0.0

    def look(self, view: Mapping[str, Any], now_s: float) -> UnderWay | Ended | Waits:
        """What the newest answer says."""
        whole = part_of("", view)
        parts = tuple(part_of(str(each.get("node")), each) for each in _mappings(view.get("nodes")))
        silent = tuple(map(str, view.get("silent_nodes") or ()))
        open_ended = (
            self.nodes & set(silent) if not whole.slots_total or whole.slots_done < whole.slots_total else frozenset()
        )
        if whole.state not in ("running", "waiting") and not (whole.state == "done" and open_ended):
            return ended(view)
        if (reached := (whole.slots_done, whole.bytes_done)) > self.furthest:
            self.furthest, self.further_at_s = reached, now_s
        if now_s - self.further_at_s >= PATIENCE_S and (whole.state != "running"):
            return _waits(view, silent)
        news = f"{whole.text} {silent} {view.get('detail')}"
        return UnderWay(whole=whole, parts=parts, text=self._text(view, whole, silent, now_s), news=news)

    def _text(self, view: Mapping[str, Any], whole: Part, silent: Sequence[str], now_s: float) -> str:
        self.seen.append((now_s, whole.bytes_done, whole.share or 0.0))
        while len(self.seen) > 2 and now_s - self.seen[0][0] > RATE_OVER_S:
            self.seen.popleft()
        texts = [whole.text]
        since_s, bytes_before, _ = self.seen[0]
        if now_s > since_s and whole.bytes_done > bytes_before:
            texts.append(f"{human_size(int((whole.bytes_done - bytes_before) / (now_s - since_s)))}/s")
        if now_s - self.further_at_s < _STALLED_AFTER_S and (left := self._time_left(whole.share, now_s)):
            texts.append(left)
        if silent:
            texts.append(f"no answer from {', '.join(silent)}")
        if detail := view.get("detail"):
            texts.append(str(detail))
        return ", ".join(texts)

    def _time_left(self, share: float | None, now_s: float) -> str:
        """By what was done since it was first seen to get further."""
        if share is None:
            return ""
        if self.first is None:
            self.first = now_s, share
        began_s, before = self.first
        if share <= before or now_s - began_s < _TIME_LEFT_AFTER_S:
            return ""
        return f"about {duration((1 - share) * (now_s - began_s) / (share - before))} left"


def part_of(node: str, document: Mapping[str, Any]) -> Part:
    """A node's part, or the job as a whole, from its document."""
    return Part(
        node=node,
        state=str(document.get("state") or "running"),
        slots_done=int(document.get("slots_done") or 0),
        slots_total=int(document.get("slots_total") or 0),
        bytes_done=int(document.get("bytes_done") or 0),
        bytes_total=int(document.get("bytes_total") or 0),
        failures=int(document.get("failures") or 0),
        detail=str(document.get("detail") or ""),
    )


def ended(view: Mapping[str, Any]) -> Ended:
    """What a job that nobody works on any more came to."""
    whole = part_of("", view)
    kind = str(view.get("kind") or "job")
    texts = [f"{kind} {'looked' if view.get('dry_run') and whole.state == 'done' else whole.state}"]
    texts += counts_text(kind, view.get("counts"))
    if kind == "restore" and view.get("dry_run") and whole.bytes_total:
        texts.append(f"{human_size(whole.bytes_total)} would be brought back")
    if whole.failures:
        texts.append(f"{whole.failures} problem{'s' if whole.failures > 1 else ''}")
    if whole.state != "done" and (detail := view.get("detail")):
        texts.append(str(detail))
    problems = tuple(map(str, view.get("problems") or ()))
    return Ended(kind=kind, state=whole.state, text=", ".join(texts), problems=problems, failures=whole.failures)


def counts_text(kind: str, counts: Any) -> list[str]:
    """What a job counted: ``12 objects``, ``3.4 MiB sent``; nothing of what it counted as none."""
    if not isinstance(counts, Mapping):
        return []
    return [_count_text(name, int(counts[name])) for name in _TOLD.get(kind) or map(str, counts) if counts.get(name)]


def _count_text(name: str, count: int) -> str:
    if whose := _SIZE_OF.get(name):
        return f"{human_size(count)} in {whose}"
    words = name.split("_")
    if "bytes" in words:
        rest = " ".join(word for word in words if word != "bytes")
        return f"{human_size(count)} {rest}".strip()
    return f"{count:,} {' '.join(words)}"


def _waits(view: Mapping[str, Any], silent: Sequence[str]) -> Waits:
    left = len(view.get("unfinished_slots") or ())
    what = f"{left} slots are left" if left else "a part of it is not done"
    if silent:
        names = ", ".join(silent)
        return Waits(
            why=f"{what}, {names} did not answer, and nothing got further for {PATIENCE_S:.0f} s",
            hint=f"Start {names}: the job goes on by itself.",
        )
    detail = f": {view['detail']}" if view.get("detail") else ""
    return Waits(
        why=f"{what}, and nothing got further for {PATIENCE_S:.0f} s{detail}",
        hint="The job goes on by itself once those slots have a node that can work on them: amberblob cluster status",
    )


def _mappings(rows: Any) -> list[Mapping[str, Any]]:
    return [row for row in rows or () if isinstance(row, Mapping)]
