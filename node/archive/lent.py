"""Chunks that a restore has put on this disk a moment ago: the other copies that restore as well get them from memory.

They ask for each of them soon. To read it from the disk, and to check what was checked a moment ago, would cost more than to send it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from amberblob.limits import MIB
from amberblob.manifest import ChunkRef

LENT_BYTES_MAX = 64 * MIB


class Lent:
    """The latest of them, by content. What is here was verified, and is durable on this disk.

    Args:
        size_bytes_max: of all together.
    """

    def __init__(self, size_bytes_max: int = LENT_BYTES_MAX) -> None:
        self._max = size_bytes_max
        self._chunks: OrderedDict[str, bytes | Sequence[memoryview]] = OrderedDict()
        self._lengths: dict[str, int] = {}
        self._users = 0
        self.size_bytes = 0

    def begin(self) -> None:
        """A restore begins."""
        self._users += 1

    def end(self) -> None:
        """It has ended; with the last one all are forgotten."""
        self._users -= 1
        if not self._users:
            self._chunks.clear()
            self._lengths.clear()
            self.size_bytes = 0

    def put(self, chunk: ChunkRef, pieces: Sequence[memoryview]) -> None:
        """Keep one for a while, if a restore is under way. The oldest are forgotten for it."""
        if not self._users or chunk.id in self._chunks or chunk.len > self._max:
            return
        self._chunks[chunk.id] = pieces
        self._lengths[chunk.id] = chunk.len
        self.size_bytes += chunk.len
        while self.size_bytes > self._max:
            oldest, _ = self._chunks.popitem(last=False)
            self.size_bytes -= self._lengths.pop(oldest)

    def get(self, chunk: ChunkRef) -> bytes | None:
        """The bytes of a chunk, if it is here."""
        data = self._chunks.get(chunk.id)
        if data is None or self._lengths[chunk.id] != chunk.len:
            return None
        if not isinstance(data, bytes):
            data = self._chunks[chunk.id] = b"".join(data)  # once, for all who ask
        return data
