"""Many chunks of one object at once: in few requests, each chunk whole and checked to its id."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from amberblob.archives import ArchivedChunk
from amberblob.errors import ArchiveDamaged
from archive.closing import closing
from archive.frames import FrameReader
from archive.targets.interface import Source
from archive.verifying import runs


async def fetch_rows(
    target: Source, name: str, rows: Sequence[ArchivedChunk]
) -> AsyncGenerator[tuple[ArchivedChunk, bytes | ArchiveDamaged], None]:
    """The chunks of these rows, none of them imported, in the order in which they lie in the object ``name``; or what is wrong with one.

    Rows of the same frame are given once. In memory is what one piece of the target's answer completes. Close the iterator when done early.

    Raises: ArchiveMissing, ArchiveUnavailable, ArchiveDenied; ArchiveDamaged: the object ends too early. What came before was right.
    """
    loop = asyncio.get_running_loop()
    wanted: list[ArchivedChunk] = []
    for row in {row.location: row for row in rows}.values():
        try:
            FrameReader(row)
            wanted.append(row)
        except ArchiveDamaged as error:
            yield row, error
    for run in runs(wanted):
        walk = _Walk(run)
        async with closing(target.read(name, run[0].start, run[-1].end)) as arriving:
            async for data in arriving:
                for found in await loop.run_in_executor(None, walk.feed, data):
                    yield found


class _Walk:
    """Takes the bytes of a run of frames. For any thread, one at a time."""

    def __init__(self, run: Sequence[ArchivedChunk]) -> None:
        self._left = list(reversed(run))
        self._at = run[0].start
        self._begin()

    def _begin(self) -> None:
        self._parts: list[bytes | memoryview] = []
        self._error: ArchiveDamaged | None = None
        if self._left:
            self._reader = FrameReader(self._left[-1])

    def feed(self, data: bytes) -> list[tuple[ArchivedChunk, bytes | ArchiveDamaged]]:
        """The next bytes; the chunks that they complete."""
        out: list[tuple[ArchivedChunk, bytes | ArchiveDamaged]] = []
        view = memoryview(data)
        while view and self._left:
            row = self._left[-1]
            part = view[: (row.start if self._at < row.start else row.end) - self._at]
            view = view[len(part) :]
            if self._at >= row.start and self._error is None:
                self._take(part)
            self._at += len(part)
            if self._at == row.end:
                self._take(None)
                out.append((row, b"".join(self._parts) if self._error is None else self._error))
                self._left.pop()
                self._begin()
        return out

    def _take(self, part: memoryview | None) -> None:
        if self._error is not None:
            return
        try:
            if part is None:
                self._reader.finish()
            else:
                self._parts += self._reader.feed(part)
        except ArchiveDamaged as error:
            self._error = error
