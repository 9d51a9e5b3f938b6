"""Which objects of the archive rows of this node name, and how much of them: what a node that collects or rewrites asks all nodes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from amberblob.clock import Clock
from amberblob.wire_archive import ObjectUsesReply
from archive.packs import ENTRY_BYTES, PACKS
from chunkstore.interface import ReplicaStore

KEPT_S = 300.0
"""The sums of bytes are kept so long: they come from a walk through all rows, and only nominate what is rewritten."""


class Uses:
    """One node's.

    Args:
        led_slots: those that the node looks after: each slot's bytes are told by one node.
    """

    def __init__(self, store: ReplicaStore, led_slots: Callable[[], Sequence[int]], clock: Clock) -> None:
        self._store = store
        self._led_slots = led_slots
        self._clock = clock
        self._sums: dict[str, int] = {}
        self._summed_s = float("-inf")
        self._lock = asyncio.Lock()

    async def of(self, names: Sequence[str], *, sizes: bool) -> ObjectUsesReply:
        """See :class:`amberblob.wire_archive.ObjectUsesReply`. Raises: DiskFailed."""
        found: set[str] = set()
        for slot in self._store.slots():
            left = [name for name in names if name not in found]
            if not left:
                break
            found |= await self._store.archive_named(slot, left)
        used = tuple(name for name in names if name in found)
        if not sizes:
            return ObjectUsesReply(used=used)
        sums = await self.sums()
        return ObjectUsesReply(used=used, sizes=tuple(sums.get(name, 0) for name in used))

    async def sums(self, *, fresh: bool = False) -> dict[str, int]:
        """By pack: bytes of frames that rows of the slots name which this node looks after, and of their entries in the pack's index, about.

        A frame that several name counts several times.

        Raises: DiskFailed.
        """
        async with self._lock:
            now_s = self._clock.monotonic_s()
            if fresh or now_s - self._summed_s > KEPT_S:
                sums: dict[str, int] = {}
                for slot in self._led_slots():
                    for name, use in (await self._store.archive_objects(slot)).items():
                        if name.startswith(PACKS):
                            sums[name] = sums.get(name, 0) + use.size_bytes + use.rows * ENTRY_BYTES
                self._sums, self._summed_s = sums, now_s
            return self._sums
