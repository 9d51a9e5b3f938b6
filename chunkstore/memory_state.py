"""What the memory store keeps of a path and of a slot."""

from __future__ import annotations

from dataclasses import dataclass, field

from amberblob.ballot import Register, SlotState
from amberblob.manifest import Record, Version, WriteMark, covers
from chunkstore.overlay import Intent


@dataclass(slots=True)
class PathState:
    """What is kept of one path beside its register."""

    rows: dict[int, tuple[Version, int | None]] = field(default_factory=dict)
    writes: dict[str, WriteMark] = field(default_factory=dict)
    newest_chosen: Record | None = None

    def learn(self, record: Record) -> None:
        """A record is chosen."""
        if self.newest_chosen is None or record.revision >= self.newest_chosen.revision:
            self.newest_chosen = record
        self.add_row(record.previous)
        self.add_row(record.added)
        self.add_writes(record.writes)
        self._bury()

    def add_row(self, version: Version | None) -> None:
        """A version is chosen."""
        if version is not None and version.version not in self.rows:
            self.rows[version.version] = (version, None)
            self._bury()

    def add_writes(self, marks: tuple[WriteMark, ...]) -> None:
        """These writes are chosen."""
        for mark in marks:
            self.writes.setdefault(mark.write_id, mark)

    def _bury(self) -> None:
        """Set the tombstones as the newest chosen record says."""
        newest = self.newest_chosen
        if newest is None:
            return
        for number, (version, dead_at) in self.rows.items():
            if covers(newest.live, number):
                self.rows[number] = (version, None)
            elif dead_at is None and number <= newest.version_max:
                self.rows[number] = (version, newest.deleted_at_ms or newest.changed_at_ms)


@dataclass(slots=True)
class MemorySlot:
    """One slot: state, registers, history, intents, bytes."""

    state: SlotState
    registers: dict[str, Register] = field(default_factory=dict)
    paths: dict[str, PathState] = field(default_factory=dict)
    intents: dict[str, tuple[Intent, int]] = field(default_factory=dict)
    bodies: dict[str, bytes] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    incomplete: set[str] = field(default_factory=set)
