"""Inline bodies in memory: whole, verified when they came in, the least recently used go first. The loop's own."""

from __future__ import annotations

from collections import OrderedDict

from amberblob.limits import MIB

BODY_CACHE_BYTES_DEFAULT = 32 * MIB
_ENTRY_BYTES = 400

Blob = tuple[int, str]


class BodyCache:
    """Bodies by (slot, blob id), about ``size_bytes_max`` of memory.

    It says what the bytes of a blob are, never that the disk has them: whoever asks that asks the database.

    Attributes:
        dropped: goes up with every removal; who reads a body elsewhere puts it in only if nothing was dropped meanwhile.
    """

    def __init__(self, size_bytes_max: int = BODY_CACHE_BYTES_DEFAULT) -> None:
        self._max = size_bytes_max
        self._bodies: OrderedDict[Blob, bytes] = OrderedDict()
        self.size_bytes = 0
        self.dropped = 0

    def get(self, blob: Blob) -> bytes | None:
        """The body, if it is here."""
        body = self._bodies.get(blob)
        if body is not None:
            self._bodies.move_to_end(blob)
        return body

    def put(self, blob: Blob, body: bytes) -> None:
        """Keep a body whose hash was checked."""
        bodies = self._bodies
        old = bodies.pop(blob, None)
        if old is not None:
            self.size_bytes -= len(old) + _ENTRY_BYTES
        bodies[blob] = body
        self.size_bytes += len(body) + _ENTRY_BYTES
        while self.size_bytes > self._max:
            self.size_bytes -= len(bodies.popitem(last=False)[1]) + _ENTRY_BYTES

    def drop(self, blob: Blob) -> None:
        """Forget a body that is discarded or damaged."""
        self.dropped += 1
        body = self._bodies.pop(blob, None)
        if body is not None:
            self.size_bytes -= len(body) + _ENTRY_BYTES

    def drop_slot(self, slot: int) -> None:
        """Forget the bodies of a slot whose database was lost. Walks all; rare."""
        self.dropped += 1
        for blob in [blob for blob in self._bodies if blob[0] == slot]:
            self.drop(blob)
