"""The queue of versions to be completed, by slot, and what of it is fetched together. Pure."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from amberblob.limits import MIB
from amberblob.manifest import Version

SMALL_BYTES_MAX = MIB
"""Up to this size a version of one chunk is fetched together with others."""


def is_small(version: Version) -> bool:
    """Whether the version is fetched together with others: one chunk, and not much of it."""
    return version.manifest_id is None and len(version.chunks) == 1 and version.size <= SMALL_BYTES_MAX


@dataclass(slots=True)
class Want:
    """A version to be completed. ``holders`` are known to have it; ``tries`` failed so far; ``path`` is for people, if it is known."""

    slot: int
    version: Version
    holders: tuple[str, ...] = ()
    tries: int = 0
    path: str = ""


class WantQueue:
    """Each blob once, at most ``count_max``; the slots take turns."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._slots: OrderedDict[int, OrderedDict[str, Want]] = OrderedDict()
        self._of: dict[str, int] = {}
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._of)

    def __contains__(self, blob_id: str) -> bool:
        return blob_id in self._of

    def add(self, want: Want) -> bool:
        """Whether it was put in: it was not there, and there is room."""
        blob_id = want.version.blob_id
        if blob_id in self._of or len(self._of) >= self._count_max:
            return False
        self._of[blob_id] = want.slot
        self._slots.setdefault(want.slot, OrderedDict())[blob_id] = want
        self.size_bytes += want.version.size
        return True

    def take(self, count_max: int, size_max: int) -> list[Want]:
        """The first of the next slot: alone, or if it is small, with others of that slot; empty: there is nothing.

        At most ``count_max``, and ``size_max`` bytes in all; one at the least.
        """
        if not self._slots:
            return []
        slot, wants = next(iter(self._slots.items()))
        taken: list[Want] = []
        size = 0
        for want in wants.values():
            alone = not is_small(want.version)
            if taken and (alone or len(taken) == count_max or size + want.version.size > size_max):
                break
            taken.append(want)
            size += want.version.size
            if alone:
                break
        for want in taken:
            del wants[want.version.blob_id], self._of[want.version.blob_id]
        self.size_bytes -= size
        self._slots.move_to_end(slot)
        if not wants:
            del self._slots[slot]
        return taken
