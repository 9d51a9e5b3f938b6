"""What a run finds: rows of repeated measurements with their floors, and the document that keeps them. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import msgspec


class Series(msgspec.Struct, frozen=True):
    """One quantity, measured several times."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        """The least."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The greatest."""
        return max(self.values)


class Floor(msgspec.Struct, frozen=True):
    """What the machine itself does of the same kind, measured beside each run."""

    name: str
    series: Series


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One quantity of one subject.

    Attributes:
        subject: what was done, for example ``PUT 4 KiB, 16 clients``.
        metric: what was measured of it.
        unit: of the values.
        series: the values, one per run.
        floor: of the same unit, run by run beside the values.
        note: what the reader must know.
    """

    subject: str
    metric: str
    unit: str
    series: Series
    floor: Floor | None = None
    note: str = ""

    @property
    def ratio(self) -> Series | None:
        """Each value over the floor that was measured next to it; None without a floor."""
        if self.floor is None or not all(self.floor.series.values):
            return None
        pairs = zip(self.series.values, self.floor.series.values, strict=True)
        return Series(tuple(value / floor for value, floor in pairs))


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """What one scenario found.

    Attributes:
        problem: why it found nothing, or not all, though it should have.
        note: why it had nothing to do.
        others_share: of the machine's CPU time meanwhile, what went to neither the nodes nor the generator, 0 to 1.
    """

    name: str
    title: str
    rows: tuple[Row, ...] = ()
    problem: str = ""
    note: str = ""
    seconds: float = 0.0
    others_share: float = 0.0


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run, as the JSON file keeps it."""

    command: str
    commit: str
    started_at: str
    seconds: float
    machine: dict[str, str]
    load_before: str
    load_after: str
    sections: tuple[Section, ...]


class Recorder:
    """Gathers values run by run, and makes rows of them in the order in which they first came."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str, str], list[float]] = {}
        self._floors: dict[tuple[str, str, str], tuple[str, list[float]]] = {}
        self._notes: dict[tuple[str, str, str], str] = {}

    def add(
        self,
        subject: str,
        metric: str,
        unit: str,
        value: float,
        *,
        floor: tuple[str, float] | None = None,
        note: str = "",
    ) -> None:
        """One run's value; ``floor`` is the name and value of its floor."""
        key = (subject, metric, unit)
        self._values.setdefault(key, []).append(value)
        if floor is not None:
            self._floors.setdefault(key, (floor[0], []))[1].append(floor[1])
        if note:
            self._notes[key] = note

    def rows(self) -> tuple[Row, ...]:
        """All of it, subject by subject: a later run may have added a metric that the first had too few samples for."""
        subjects = list(dict.fromkeys(subject for subject, _, _ in self._values))
        keys = sorted(self._values, key=lambda key: subjects.index(key[0]))
        return tuple(self._row(key, self._values[key]) for key in keys)

    def _row(self, key: tuple[str, str, str], values: Sequence[float]) -> Row:
        floor = self._floors.get(key)
        return Row(
            subject=key[0],
            metric=key[1],
            unit=key[2],
            series=Series(tuple(values)),
            floor=Floor(floor[0], Series(tuple(floor[1]))) if floor else None,
            note=self._notes.get(key, ""),
        )


def percentile(ordered: Sequence[float], part: float) -> float:
    """The value below which ``part`` (0 to 1) of the ordered values lie; 0 of none."""
    if not ordered:
        return 0.0
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def save(document: Document, file: Path) -> None:
    """Write the JSON file."""
    file.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def load(file: Path) -> Document:
    """Read what :func:`save` wrote. Raises msgspec.DecodeError, OSError."""
    return msgspec.json.decode(file.read_bytes(), type=Document)
