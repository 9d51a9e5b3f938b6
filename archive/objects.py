"""One object on its way into the archive: takes frames while its first bytes are being sent already."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from amberblob.archives import ArchivedChunk
from amberblob.errors import ArchiveDamaged
from amberblob.limits import MIB
from archive.frames import Frame
from archive.packs import ENTRIES_MAX, HEADER, Item, PackWriter
from archive.targets.interface import Target

PART_BYTES = MIB
"""Frames are handed to the target in parts of about this size; larger ones as they are."""
PART_BYTES_MAX = 64 * MIB
"""What a target takes at once."""
ROOM_BYTES = 8 * MIB
"""How much of an open object waits for the target before no more frames are added."""

assert PART_BYTES <= ROOM_BYTES <= PART_BYTES_MAX, "an object whose room is used up has a part to send"


class OpenObject:
    """An object that is made and sent at once.

    Args:
        on_change: is called when there may be room again.

    Attributes:
        name: in the target; never used before.
        size_bytes: of what was added.
        entries: items that its index names.
    """

    def __init__(self, name: str, on_change: Callable[[], None]) -> None:
        self.name = name
        self._on_change = on_change
        self._writer = PackWriter()
        self._frames: list[tuple[str, int, int, int, str]] = []
        self._waiting: list[bytes] = [HEADER]
        self._waiting_bytes = len(HEADER)
        self._closed = False
        self._more = asyncio.Event()

    @property
    def size_bytes(self) -> int:
        return self._writer.size_bytes

    @property
    def entries(self) -> int:
        return self._writer.entries

    @property
    def room(self) -> bool:
        """Whether a frame may be added without more bytes in memory than there should be."""
        return not self._closed and self._waiting_bytes < ROOM_BYTES

    def add(self, frame: Frame) -> None:
        """The frame is the next one. One per chunk."""
        assert not self._closed
        start, end = self._writer.add(frame)
        self._frames.append((frame.chunk_id, frame.length, start, end, frame.head))
        self._waiting += frame.parts
        self._waiting_bytes += frame.size_bytes
        if self._waiting_bytes >= PART_BYTES:
            self._more.set()

    def enter(self, item: Item) -> None:
        """Name the item in the index, unless that is closed already. Its frame was added."""
        if not self._closed and self._writer.entries < ENTRIES_MAX:
            self._writer.enter(item)

    def close(self) -> None:
        """No more frames come."""
        self._closed = True
        self._more.set()

    def rows(self, at_ms: int) -> list[ArchivedChunk]:
        """Where its chunks are, as of that time (epoch milliseconds)."""
        return [
            ArchivedChunk(
                chunk_id=chunk_id, length=length, target_path=self.name, start=start, end=end, head=head, archived_at_ms=at_ms
            )
            for chunk_id, length, start, end, head in self._frames
        ]  # fmt: skip

    async def send(self, target: Target) -> None:
        """Store it; returns when the target has all of it, which is some time after :meth:`close`.

        Raises: ArchiveError; ArchiveDamaged also when the target says that it has another length.
        """
        async with aclosing(self._parts()) as parts:
            stored = await target.put(self.name, parts)
        if stored.size_bytes != self._writer.size_bytes:
            raise ArchiveDamaged(
                f"{self.name} was sent with {self._writer.size_bytes} bytes and is said to have {stored.size_bytes}. It is not used; look at the target, or try again.",
                extra={"object": self.name},
            )

    async def _parts(self) -> AsyncGenerator[bytes, None]:
        while True:
            while self._waiting_bytes < PART_BYTES and not self._closed:
                self._more.clear()
                await self._more.wait()
            if not self._waiting:
                break
            waiting, self._waiting = self._waiting, []
            self._waiting_bytes = 0
            self._on_change()
            for part in _parts_of(waiting):
                yield part
        # Thousands of entries take a moment to be packed.
        yield await asyncio.get_running_loop().run_in_executor(None, self._writer.finish)


def _parts_of(buffers: list[bytes]) -> list[bytes]:
    """The same bytes in parts of a handy size; what is large is not copied."""
    parts: list[bytes] = []
    small: list[bytes] = []
    size = 0
    for buffer in buffers:
        if len(buffer) >= PART_BYTES:
            if small:
                parts.append(b"".join(small))
                small, size = [], 0
            if len(buffer) <= PART_BYTES_MAX:
                parts.append(buffer)
            else:
                parts += [buffer[at : at + PART_BYTES_MAX] for at in range(0, len(buffer), PART_BYTES_MAX)]
            continue
        small.append(buffer)
        size += len(buffer)
        if size >= PART_BYTES:
            parts.append(b"".join(small))
            small, size = [], 0
    if small:
        parts.append(b"".join(small))
    return parts
