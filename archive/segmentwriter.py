"""Segments of exported metadata on their way into the bucket (rfc/0016)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from blake3 import blake3

from amberblob.limits import KIB, MIB
from archive.segments import PART_BYTES, Entry, Ref, encode_entry, encode_part, segment_line, segment_name
from archive.targets.small import Storing, store

SEGMENT_BYTES = 8 * MIB
"""A segment that has reached this is stored; it is in memory until then."""
_IN_THREAD_BYTES = 64 * KIB


class SegmentWriter:
    """Takes entries slot by slot and stores them as segments of bounded size; parts of many slots share one.

    Args:
        mint: makes the ULIDs of segments.
        now_ms: the hybrid clock.

    Attributes:
        size_bytes: what was written so far, stored or to be stored.
        stored: how many segments were.
    """

    def __init__(
        self, target: Storing, cluster: str, node: str, *, mint: Callable[[], str], now_ms: Callable[[], int]
    ) -> None:
        self.size_bytes = 0
        self.stored = 0
        self._target = target
        self._cluster = cluster
        self._node = node
        self._mint = mint
        self._now_ms = now_ms
        self._segment = ""
        self._data = bytearray()
        self._entries: list[bytes] = []
        self._entries_bytes = 0
        self._slot = -1
        self._start = 0
        self._refs: list[Ref] = []

    def begin(self, slot: int) -> None:
        """What comes now is of this slot; :meth:`end` ends it."""
        assert not self._entries and not self._refs, "the slot before was not ended"
        self._slot = slot
        self._start = len(self._data)

    async def add(self, entry: Entry) -> None:
        """One more entry of the slot. Raises as ``Target.put`` does."""
        encoded = encode_entry(entry)
        self._entries.append(encoded)
        self._entries_bytes += len(encoded)
        if self._entries_bytes >= PART_BYTES:
            await self._write_part()

    async def end(self) -> tuple[Ref, ...]:
        """Where the slot's entries are: readable once :meth:`flush` has returned. Raises as ``Target.put`` does."""
        await self._write_part()
        self._close_ref()
        refs, self._refs = tuple(self._refs), []
        return refs

    def abandon(self) -> None:
        """What came of the slot is not to be told of: it stays in the segment, and nothing names it."""
        self._entries, self._entries_bytes, self._refs = [], 0, []
        self._start = len(self._data)

    async def flush(self) -> None:
        """Store what is written. Raises as ``Target.put`` does; then all of it is lost, and nothing may name it."""
        self._close_ref()
        if self._data:
            data, segment = bytes(self._data), self._segment
            self._data.clear()
            self._start = 0
            await store(self._target, segment_name(self._cluster, segment), data)
            self.stored += 1

    async def _write_part(self) -> None:
        if not self._entries:
            return
        entries, size = self._entries, self._entries_bytes
        self._entries, self._entries_bytes = [], 0
        if size >= _IN_THREAD_BYTES:
            part = await asyncio.to_thread(encode_part, self._slot, entries)
        else:
            part = encode_part(self._slot, entries)
        if not self._data:
            self._segment = self._mint()
            self._data += segment_line(self._cluster, self._node, self._now_ms())
            self._start = len(self._data)
        self._data += part
        self.size_bytes += len(part)
        if len(self._data) >= SEGMENT_BYTES:
            await self.flush()

    def _close_ref(self) -> None:
        end = len(self._data)
        if end > self._start:
            with memoryview(self._data) as view:
                digest = blake3(view[self._start : end]).hexdigest(16)
            self._refs.append(Ref(self._segment, self._start, end, digest))
        self._start = end
