"""When a cluster is healed, and when waiting for it is in vain: what ``cluster heal --wait`` decides. Pure.

It is fed with the ``heal`` part of ``GET /cluster?slots=unhealed&since=…`` again and again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from amberblob.cli.output import human_size

PATIENCE_S = 30.0
"""How long nothing may become better before a node that does not answer, lost bytes or a wrong digest is taken for the reason.

Longer than databases lag (8 s) and undecided records wait for their writers (12 s)."""

REPEAT_S = 5.0
"""How long nothing may become better before the nodes are asked once more to compare: one may have been starting."""


LAG_S = 10.0
"""Longer than a database lags behind the journal: copies that differ after so long are being written."""


@dataclass(frozen=True, slots=True)
class Healed:
    """It is done. ``written``: slots that are being written: their copies lack nothing of each other, and change."""

    slots: int
    written: int


@dataclass(frozen=True, slots=True)
class InVain:
    """It will not be done as things are: why, and what to do."""

    why: str
    hint: str


@dataclass(frozen=True, slots=True)
class Left:
    """It goes on.

    Attributes:
        slots: of the cluster; ``done`` of them are healed.
        bytes_left, bytes_most: now, and the most that there were.
        ask_again: have the nodes compare once more.
    """

    slots: int
    done: int
    bytes_left: int
    bytes_most: int
    rate_bytes_per_s: float | None
    seconds_left: float | None
    ask_again: bool

    @property
    def text(self) -> str:
        """One line for people."""
        parts = [f"{self.done} of {self.slots} slots healed", f"{human_size(self.bytes_left)} left"]
        if self.rate_bytes_per_s is not None and self.bytes_left:
            parts.append(f"{human_size(int(self.rate_bytes_per_s))}/s")
        if self.seconds_left is not None and self.bytes_left:
            parts.append(f"about {duration(self.seconds_left)}")
        return ", ".join(parts)


@dataclass
class HealWatch:
    """Looks at the cluster's health over time.

    A slot is healed when it is whole and was compared since the moment asked for. One that is written without a pause may never be
    whole at the instant of a look. So a slot that is in-step counts too, once :data:`LAG_S` have gone by since it first
    was well (by then its databases hold what was written before), and if it was whole in between or its roots were
    seen to change after that. (Roots that differ and stay so are no sign of writes.) The end is when all count in one look.
    """

    well_s: dict[int, float] = field(default_factory=dict)
    """When a slot was first seen whole or in-step, and compared."""
    settled: set[int] = field(default_factory=set)
    """Slots that were seen whole and compared."""
    roots: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    """Of slots that stay in-step longer than databases lag: what they were first seen with then."""
    changing: set[int] = field(default_factory=set)
    bytes_most: int = 0
    bytes_fewest: int | None = None
    fewest: dict[str, int] = field(default_factory=dict)
    """Of what must become none: the fewest that there were."""
    better_at_s: float = 0.0
    asked_at_s: float = 0.0
    silent: frozenset[str] = frozenset()

    def look(self, slot_count: int, heal: Mapping[str, Any], now_s: float) -> Healed | InVain | Left:
        """What the newest account says."""
        rows = heal.get("by_slot")
        if rows is None:
            # The node that answered has no routes yet, and knows of no slot.
            rows = [{"slot": slot, "state": "unknown", "compared": False} for slot in range(max(1, slot_count))]
        open_slots = {int(row["slot"]): row for row in rows}
        for slot in set(range(slot_count)) - open_slots.keys():
            self.settled.add(slot)
            self.well_s.setdefault(slot, now_s)
        undone = [slot for slot, row in open_slots.items() if not self._counts(slot, row, now_s)]
        if not undone and slot_count:
            return Healed(slot_count, len(open_slots))
        left = int(heal.get("bytes_waiting") or 0)
        self.bytes_most = max(self.bytes_most, left)
        silent = frozenset(map(str, heal.get("silent_nodes", ())))
        came_back = bool(self.silent - silent)
        self.silent = silent
        fetching = bool(left and heal.get("rate_bytes_per_s"))
        if heal.get("unrecoverable"):
            # Lost bytes wait for ever, and some are always fetched where clients write: only less than ever before is better.
            fetching = self.bytes_fewest is not None and left < self.bytes_fewest
        self.bytes_fewest = left if self.bytes_fewest is None else min(left, self.bytes_fewest)
        counts = {"undone": len(undone), "to_compare": int(heal.get("slots_to_compare") or 0)}
        fewer = any(count < self.fewest.get(name, count + 1) for name, count in counts.items())
        if fewer or fetching or came_back:
            self.better_at_s = now_s
        self.fewest = {name: min(count, self.fewest.get(name, count)) for name, count in counts.items()}
        if now_s - self.better_at_s >= PATIENCE_S and (reason := _reason(heal, [open_slots[slot] for slot in undone])):
            return reason
        ask_again = came_back or now_s - max(self.better_at_s, self.asked_at_s) >= REPEAT_S
        if ask_again:
            self.asked_at_s = now_s
        return Left(
            slots=slot_count,
            done=max(0, slot_count - len(undone)),
            bytes_left=left,
            bytes_most=self.bytes_most,
            rate_bytes_per_s=heal.get("rate_bytes_per_s"),
            seconds_left=heal.get("seconds_left"),
            ask_again=ask_again,
        )

    def _counts(self, slot: int, row: Mapping[str, Any], now_s: float) -> bool:
        """Whether a slot that is not whole at this moment is healed but for what is being written."""
        if row["state"] != "in-step" or not row["compared"]:
            return False
        if now_s - self.well_s.setdefault(slot, now_s) < LAG_S:
            return False
        roots = tuple(copy.get("root") for copy in row["copies"])
        if self.roots.setdefault(slot, roots) != roots:
            self.changing.add(slot)
        return slot in self.settled or slot in self.changing


def _reason(heal: Mapping[str, Any], undone: list[Mapping[str, Any]]) -> InVain | None:
    """Why nothing becomes better, if it is something that does not mend itself soon."""
    if silent := heal.get("silent_nodes"):
        names = ", ".join(sorted(map(str, silent)))
        return InVain(
            f"{names} did not answer for {PATIENCE_S:.0f} s, and without its copies nothing more can be healed",
            f"Start {names} again, if need be with an empty disk: it is filled from the others. Then: amberblob cluster heal --wait",
        )
    if full := heal.get("full_nodes"):
        names = ", ".join(sorted(map(str, full)))
        return InVain(
            f"the disk of {names} is full, and nothing becomes better",
            "Make room there (what is in its quarantine folder may go when all else is healed). Then: amberblob cluster heal --wait",
        )
    if lost := int(heal.get("unrecoverable") or 0):
        return InVain(
            f"{lost} version{'s' if lost > 1 else ''} can be had whole from no replica",
            "amberblob cluster slots --unhealed tells where; what is damaged is kept in quarantine on those disks. "
            "Put those objects anew, or delete them; it is told until retention has removed the lost versions.",
        )
    if all(row["state"] == "in-step" and row["compared"] and not row["undecided"] for row in undone):
        return InVain(
            f"the copies of {len(undone)} slots lack nothing of each other, and their digests differ though nobody writes",
            "Scrub finds the wrong digest and sets it right; until then amberblob cluster slots --unhealed tells which slots.",
        )
    return None


def duration(seconds: float) -> str:
    """``90`` → ``2 min``: to the unit that matters."""
    for unit_s, name in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 1.5 * unit_s:
            return f"{seconds / unit_s:.0f} {name}"
    return f"{seconds:.0f} s"
