"""Chunks on their way back: fetched by range, checked piece by piece, handed on while the rest still comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from amberblob.archives import ArchivedChunk
from amberblob.errors import ArchiveDamaged
from amberblob.limits import KIB
from archive.closing import closing
from archive.frames import PIECE_BYTES, Buffer, FrameReader
from archive.packs import FOOTER_BYTES, TAIL_BYTES, PackEntry, read_footer, read_index
from archive.targets.interface import Source, Target

CHECK_IN_THREAD_BYTES = 128 * KIB
"""What is larger is checked and unpacked in a thread: it would hold up everybody else."""
PASS_OVER_BYTES = 512 * KIB
"""So many unwanted bytes between the header and the first wanted piece are read rather than asking twice."""


async def read_chunk(
    target: Source, row: ArchivedChunk, start: int = 0, end: int | None = None, *, check_whole: bool = True
) -> AsyncGenerator[Buffer, None]:
    """The plain bytes ``[start, end)`` of a chunk (``end`` None: to its end), each piece verified before it is handed on, in order.

    A whole chunk is checked against its id, too, before its last piece is handed on, unless ``check_whole`` is false: then the caller does that. Of imported content only the source's ETag and the length
    can be checked; ``target`` is then the source's, whose URL the row's path begins with. Close the iterator when done early.

    Raises:
        ArchiveDamaged: what is there is not what was stored. All that came before was right.
        ArchiveMissing, ArchiveUnavailable, ArchiveDenied: as the target says.
        ValueError: ``[start, end)`` is not within the chunk, or the imported content is not of this target.
    """
    if row.foreign:
        async with aclosing(_read_foreign(target, row, start, end)) as pieces:
            async for piece in pieces:
                yield piece
        return
    reader = FrameReader(row, start, end, check_whole=check_whole)
    end = row.length if end is None else end
    if start == end:
        return
    name, first = row.target_path, row.start
    # Stored pieces are never longer than plain ones: what is wanted lies before this.
    last = min(row.end, first + reader.header_bytes + -(-end // PIECE_BYTES) * PIECE_BYTES)
    if start // PIECE_BYTES * PIECE_BYTES > PASS_OVER_BYTES:
        async for _ in _fed(reader, target, name, first, first + reader.header_bytes):
            raise AssertionError("a header completes no piece")
        if reader.wanted is None:
            reader.finish()
        else:
            reader.jump()
            first, last = row.start + reader.wanted[0], row.start + reader.wanted[1]
    async with aclosing(_fed(reader, target, name, first, last)) as pieces:
        async for piece in pieces:
            yield piece
    reader.finish()


async def _fed(reader: FrameReader, target: Source, name: str, start: int, end: int) -> AsyncGenerator[Buffer, None]:
    """What the bytes of this range complete."""
    loop = asyncio.get_running_loop()
    left = end - start
    async with closing(target.read(name, start, end)) as arriving:
        async for data in arriving:
            left -= len(data)
            if len(data) < CHECK_IN_THREAD_BYTES:
                pieces = reader.feed(data)
            else:
                pieces = await loop.run_in_executor(None, reader.feed, data)
            for piece in pieces:
                yield piece
            # What was read to its end leaves a connection that can be used again; so it is left early only for a reason.
            if reader.done and left > 0:
                return


async def _read_foreign(
    target: Source, row: ArchivedChunk, start: int, end: int | None
) -> AsyncGenerator[Buffer, None]:
    end = row.length if end is None else end
    if not 0 <= start <= end <= row.length:
        raise ValueError(f"{start} to {end} is not within {row.length} bytes")
    root = target.url.rstrip("/") + "/"
    if not row.target_path.startswith(root):
        raise ValueError(f"{row.target_path} is not of {target.url}")
    if start == end:
        return
    if not row.possible or row.length != row.end - row.start:
        raise ArchiveDamaged(
            f"{row.target_path}, bytes {row.start} to {row.end}, was never imported as chunk {row.chunk_id}: who told so is wrong.",
            extra={"object": row.target_path},
        )
    left = end - start
    async with closing(
        target.read(row.target_path.removeprefix(root), row.start + start, row.start + end, etag=row.etag)
    ) as arriving:
        async for data in arriving:
            left -= len(data)
            if left < 0:
                break
            yield data
    if left:
        raise ArchiveDamaged(
            f"{row.target_path} gave {-left if left < 0 else left} bytes too {'many' if left < 0 else 'few'} for bytes {row.start + start} to {row.start + end}. "
            "It is not what was imported: import it again, or restore the object from elsewhere.",
            extra={"object": row.target_path},
        )


async def fetch_index(target: Target, name: str, size_bytes: int | None = None) -> list[PackEntry]:
    """What an object of ours says that it holds, by its own index. ``size_bytes``: as listed; None: asked for.

    Raises: ArchiveDamaged: it is no such object, or is not whole; other ArchiveErrors as the target says.
    """
    size = (await target.head(name)).size_bytes if size_bytes is None else size_bytes
    tail = await _bytes(target, name, max(0, size - TAIL_BYTES), size)
    footer = read_footer(name, tail, size)
    ready = size - len(tail)
    if footer.start < ready:
        tail = await _bytes(target, name, footer.start, ready) + tail
        ready = footer.start
    stored = tail[footer.start - ready : len(tail) - FOOTER_BYTES]
    return await asyncio.get_running_loop().run_in_executor(None, read_index, name, footer, stored)


async def _bytes(target: Target, name: str, start: int, end: int) -> bytes:
    async with closing(target.read(name, start, end)) as arriving:
        return b"".join([data async for data in arriving])
