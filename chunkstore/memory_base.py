"""What the parts of the memory store share: its slots, and how well it is."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from typing import TYPE_CHECKING

from amberblob.ballot import EMPTY_REGISTER, Register, SlotState
from amberblob.errors import DiskFailed, DiskFull
from chunkstore import rules
from chunkstore.memory_state import MemorySlot

if TYPE_CHECKING:
    from amberblob.mutations import Mutation
    from amberblob.wire import ScanEntry


class MemoryBase:
    """The slots of one memory store. See :class:`chunkstore.memory.MemoryStore`."""

    def __init__(self, disk_id: str, *, wall_ms: Callable[[], int]) -> None:
        self.disk_id = disk_id
        self.failed: str | None = None
        self.full = False
        self._wall_ms = wall_ms
        self._slots: dict[int, MemorySlot] = {}
        self._position = 0
        self._index: dict[str, ScanEntry] = {}
        self._paths: list[str] = []

    def apply(self, mutation: Mutation) -> int:
        """See the interface."""
        raise NotImplementedError

    def guard(self) -> None:
        """Raise what a disk in this state raises when bytes come in."""
        self._raise_if_failed()
        if self.full:
            raise DiskFull("the memory store was told to be full")

    def _raise_if_failed(self) -> None:
        if self.failed is not None:
            raise DiskFailed(self.failed)

    def _slot(self, slot: int) -> MemorySlot:
        """A slot that is about to change."""
        if slot not in self._slots:
            self._slots[slot] = MemorySlot(SlotState(slot=slot, incarnation=self.disk_id))
        return self._slots[slot]

    def _look(self, slot: int) -> MemorySlot:
        """A slot to be read, its digests up to date; an empty one that is not kept when there is none."""
        at = self._slots.get(slot) or MemorySlot(SlotState(slot=slot, incarnation=self.disk_id))
        at.refresh()
        return at

    def _register(self, at: MemorySlot, path: str) -> Register:
        return at.registers.get(path, EMPTY_REGISTER)

    def _set_register(self, at: MemorySlot, path: str, register: Register) -> None:
        at.touched.add(path)
        at.registers[path] = register
        if path not in self._index:
            bisect.insort(self._paths, path)
        self._index[path] = rules.scan_entry(at.state.slot, path, register)

    def _unlist(self, path: str) -> None:
        """Nothing is known of the path any more."""
        if self._index.pop(path, None) is not None:
            self._paths.remove(path)
