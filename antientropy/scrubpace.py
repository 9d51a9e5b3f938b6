"""How fast scrub has to go, and where it is: pure.

Work is counted in **units**: the bytes that are read, and :data:`PATH_UNITS` for each path that is looked at, because a slot of
small objects is work too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

PATH_UNITS = 4096
"""What looking at a path's rows weighs, as so many bytes."""

UNITS_PER_PATH_UNKNOWN = 64 * 1024
"""Of a path in a slot that was never scrubbed, as long as nothing better is known."""

AIM = 0.9
"""The part of the period in which scrub means to be done: the rest is for what comes in between."""

DATABASE_SHARE_MAX = 0.1
"""Of the time, how much scrub may keep a slot database busy."""


class SlotPass(msgspec.Struct):
    """Where scrub is in one slot; kept as a memo in its database, so that a restart does not begin anew.

    Attributes:
        since_ms: when the last pass ended, or when the slot was first seen (epoch ms): from then on its period counts.
        after: all paths up to this one were checked in the pass that is under way.
        units: what was done in it so far.
        last_units: what the last whole pass took; 0: there was none.
        clean: nothing was found wrong in it so far that could hide what refers to a blob.
        wrong: paths whose rows or record failed their digest, and were not seen to be right since.
    """

    since_ms: int
    after: str = ""
    units: int = 0
    last_units: int = 0
    clean: bool = True
    wrong: list[str] = msgspec.field(default_factory=list)

    def encoded(self) -> str:
        """As it is kept."""
        return msgspec.json.encode(self).decode()

    def ended(self, now_ms: int) -> SlotPass:
        """What the next pass begins with."""
        return SlotPass(since_ms=now_ms, last_units=self.units, wrong=self.wrong)


def decode_pass(text: str, now_ms: int) -> SlotPass:
    """What :meth:`SlotPass.encoded` made; the beginning if there is nothing, or nothing that can be read."""
    try:
        found = msgspec.json.decode(text, type=SlotPass)
    except msgspec.MsgspecError:
        return SlotPass(since_ms=now_ms)
    # A clock that was ahead must not keep the slot unscrubbed until its time has come.
    found.since_ms = min(found.since_ms, now_ms)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A slot to be scrubbed: by when (epoch ms), and about how many units are left of it."""

    due_ms: float
    units: int


def units_left(slot_pass: SlotPass, objects: int, units_per_object: float) -> int:
    """About how many units a slot's pass still takes."""
    whole = slot_pass.last_units or int(objects * units_per_object)
    return max(whole - slot_pass.units, PATH_UNITS)


def needed_rate(jobs: Iterable[Job], now_ms: int) -> float:
    """The lowest constant rate, in units per second, at which every job is done when it is due, earliest first.

    0 without jobs, infinite when one is late.
    """
    rate, units = 0.0, 0
    for job in sorted(jobs, key=lambda job: job.due_ms):
        units += job.units
        left_s = (job.due_ms - now_ms) / 1000
        if left_s <= 0:
            return math.inf
        rate = max(rate, units / left_s)
    return rate


class Pace:
    """When the next step may be made.

    Args:
        units_per_s_max: the ceiling.
    """

    def __init__(self, units_per_s_max: float) -> None:
        self._max = units_per_s_max
        self._spent_at_s = 0.0
        self._units = 0
        self._not_before_s = 0.0

    def spent(self, units: int, *, began_s: float, busy_s: float) -> None:
        """A step began at ``began_s`` (monotonic), did so many units, and kept a database busy for ``busy_s``."""
        self._spent_at_s, self._units = began_s, units
        self._not_before_s = began_s + busy_s / DATABASE_SHARE_MAX

    def rest_s(self, now_s: float, units_per_s: float) -> float:
        """How long to wait, seconds, if so many units per second are needed; 0: nothing to wait for."""
        rate = min(units_per_s, self._max)
        due_s = self._spent_at_s + self._units / rate if rate > 0 else self._spent_at_s
        return max(0.0, due_s - now_s, self._not_before_s - now_s)
