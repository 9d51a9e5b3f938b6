"""How far a change of membership is, and when waiting for it is in vain: what ``cluster join --wait`` and its like decide. Pure.

It is fed with the ``membership`` part of ``GET /cluster`` again and again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amberblob.cli.healing import duration
from amberblob.cli.output import human_size

PATIENCE_S = 120.0
"""How long no slot may get further before a node that cannot be reached is taken for the reason. A move is given up and begun anew within half of it."""


RATE_AFTER_S = 5.0
"""So long slots are counted before it is told how long the others take."""


@dataclass(frozen=True, slots=True)
class Moved:
    """It is done: no slot is on its way."""

    slots: int


@dataclass(frozen=True, slots=True)
class Stuck:
    """It will not be done as things are: why, and what to do."""

    why: str
    hint: str


@dataclass(frozen=True, slots=True)
class Moving:
    """It goes on. ``left`` of ``total`` slots are on their way."""

    total: int
    left: int
    text: str

    @property
    def done(self) -> int:
        return max(0, self.total - self.left)


@dataclass
class MoveWatch:
    """Looks at the moves over time. ``generation``: of the plan; who knows only of an older one has not heard of the moves yet."""

    generation: int = 0
    total: int = 0
    fewest: tuple[int, int] | None = None
    better_at_s: float = 0.0
    last_text: str = ""
    first: tuple[int, float] | None = None
    """How many slots were left when that was first known, and when."""

    def look(self, membership: Mapping[str, Any], now_s: float) -> Moved | Stuck | Moving:
        """What the newest account says."""
        moves = membership.get("moves")
        moves = moves if isinstance(moves, Mapping) else {}
        left = int(moves.get("left") or 0)
        self.total = max(self.total, left)
        heard = int(membership.get("generation") or 0) >= self.generation
        if not left and heard and not membership.get("planning"):
            return Moved(self.total)
        bytes_left = int(moves.get("bytes_left") or 0)
        best = self.fewest
        if left and self.first is None:
            self.first = left, now_s
        text = moving_text(moves, self.total) if left else "planning"
        if best is None or left < best[0] or (left == best[0] and bytes_left < best[1]) or text != self.last_text:
            self.better_at_s = now_s
        if best is None or (left, bytes_left) < best:
            self.fewest = (left, bytes_left)
        self.last_text = text
        if now_s - self.better_at_s >= PATIENCE_S and (reasons := reasons_in(moves)):
            return Stuck(
                f"{left} slots are on their way, and nothing got further for {PATIENCE_S:.0f} s: {'; '.join(reasons)}",
                "Start what is down, and it goes on by itself; or take the node out of the plan: "
                "amberblob cluster remove NODE --force if it is lost for good.",
            )
        return Moving(self.total, left, text + self._time_left(left, now_s))

    def _time_left(self, left: int, now_s: float) -> str:
        """By the slots that have arrived so far: what others hold is not known before they begin."""
        if self.first is None or left >= self.first[0] or now_s - self.first[1] < RATE_AFTER_S:
            return ""
        began, since_s = self.first
        return f", about {duration(left * (now_s - since_s) / (began - left))}"


def reasons_in(moves: Mapping[str, Any]) -> list[str]:
    """What slots wait for, each reason once."""
    rows = [row for row in moves.get("slots") or () if isinstance(row, Mapping)]
    return list(dict.fromkeys(str(row["why"]) for row in rows if row.get("why")))


def moving_text(moves: Mapping[str, Any], total: int) -> str:
    """One line for people: ``12 of 64 slots moved, 1.2 MB left, 3.4 MB/s, about 10 s``."""
    left = int(moves.get("left") or 0)
    parts = [f"{max(0, total - left)} of {total} slots moved"]
    if bytes_left := int(moves.get("bytes_left") or 0):
        parts.append(f"{human_size(bytes_left)} left in those that have begun")
        if rate := moves.get("rate_bytes_per_s"):
            parts.append(f"{human_size(int(rate))}/s")
        if (seconds := moves.get("seconds_left")) is not None:
            parts.append(f"about {duration(float(seconds))} for these")
    stages = moves.get("stages") or {}
    told = ", ".join(f"{count} {stage}" for stage, count in stages.items() if stage in ("learning", "joint"))
    if told:
        parts.append(told)
    parts += reasons_in(moves)
    return ", ".join(parts)
