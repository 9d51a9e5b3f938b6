"""How fast the archive's own work is, without a target: ``python -m bench.archive_codec``. MiB of plain content per second, best of a few runs.

Frames alone are one thread's work. ``upload``, ``read`` and ``verify`` go through the event loop to a target that does nothing,
so they tell what a node's Python costs; S3 comes on top.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable

from amberblob.archives import ArchivedChunk
from amberblob.clock import HybridClock, SystemClock, SystemRandomness
from amberblob.errors import AmberError
from amberblob.ids import UlidMint, content_hash
from amberblob.limits import KIB, MIB
from amberblob.manifest import ChunkRef
from archive.frames import FrameReader, encode_frame
from archive.packs import Item
from archive.reading import read_chunk
from archive.targets.interface import Stored, Target
from archive.targets.memory import MemoryTarget
from archive.upload import Uploader
from archive.verifying import verify_object

PIECE = 256 * KIB
RUNS = 3


def log_text(size: int) -> bytes:
    """Lines as a server would log them: shrinks to about a fifth."""
    line = '10.0.%d.%d - - [21/Nov/2026:17:%02d:%02d] "GET /photos/%08x.jpg HTTP/1.1" 200 %d\n'
    lines, done, number = [], 0, 1
    while done < size:
        number = number * 1103515245 + 12345 & 0x7FFFFFFF
        text = line % (number >> 8 & 255, number >> 16 & 255, done % 60, number % 60, number, number % 99999)
        lines.append(text.encode())
        done += len(text)
    return b"".join(lines)[:size]


class Sink(MemoryTarget):
    """Takes everything and keeps nothing."""

    async def put(self, name: str, parts: AsyncIterable[bytes]) -> Stored:
        size = 0
        async for part in parts:
            size += len(part)
        return Stored(name=name, size_bytes=size, etag="", modified_ms=0)


def rate(size_bytes: int, work: Callable[[], object]) -> float:
    """MiB per second."""
    best = float("inf")
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return size_bytes / MIB / best


async def uploaded(target: Target, bodies: list[bytes]) -> list[ArchivedChunk]:
    """Archive these; returns their rows."""
    clock, rows = HybridClock(SystemClock().wall_ms), []

    async def source() -> AsyncIterator[tuple[Item, bytes]]:
        for number, data in enumerate(bodies):
            ref = ChunkRef(names[number], len(data))
            yield Item(chunk=ref, slot=1, blob_id="", path=f"p/{number}", version=1, index=0), data

    async def stored(told: list[tuple[Item, ArchivedChunk]]) -> None:
        rows.extend([row for _, row in told])

    async def failed(items: list[Item], error: AmberError) -> None:
        raise error

    names = [content_hash(data) for data in bodies]
    mint = UlidMint(clock, SystemRandomness()).mint
    uploader = Uploader(target, now_ms=clock.now_ms, mint=mint, pack_size=64 * MIB, lone_size=4 * MIB, parallel=4)
    await uploader.run(source(), stored, failed)
    return rows


async def through_the_loop(name: str, bodies: list[bytes]) -> None:
    """Upload, read and verify these."""
    size = sum(len(data) for data in bodies)

    async def timed(work: Callable[[], Awaitable[object]]) -> float:
        began = time.perf_counter()
        await work()
        return size / MIB / (time.perf_counter() - began)

    sink, target = Sink(), MemoryTarget()
    up = max([await timed(lambda: uploaded(sink, bodies)) for _ in range(RUNS)])
    rows = await uploaded(target, bodies)
    objects: dict[str, list[ArchivedChunk]] = {}
    for row in rows:
        objects.setdefault(row.target_path, []).append(row)

    async def read() -> None:
        for row in rows:
            async for _ in read_chunk(target, row):
                pass

    async def verify() -> None:
        for path, held in objects.items():
            verdicts = await verify_object(target, path, held)
            assert all(verdict.outcome == "verified" for verdict in verdicts)

    back, checked = await timed(read), await timed(verify)
    print(f"{name:24} upload {up:8.0f}   read {back:8.0f}   verify {checked:8.0f}   {len(objects)} objects")


def main() -> None:
    """Print the figures."""
    for name, data in (("noise", os.urandom(8 * MIB)), ("log text", log_text(8 * MIB))):
        chunk_id = content_hash(data)
        frame = encode_frame(chunk_id, data)
        stored = b"".join(frame.parts)
        row = ArchivedChunk(chunk_id, len(data), "x", 0, len(stored), frame.head, 1)

        def decode(row: ArchivedChunk = row, stored: bytes = stored) -> None:
            reader = FrameReader(row)
            for at in range(0, len(stored), MIB):
                reader.feed(stored[at : at + MIB])
            reader.finish()

        encoded = rate(len(data), lambda chunk_id=chunk_id, data=data: encode_frame(chunk_id, data))  # type: ignore[misc]
        decoded = rate(len(data), decode)
        share = frame.size_bytes / len(data)
        print(f"{name + ', 8 MiB':24} encode {encoded:8.0f}   decode {decoded:8.0f}   stored {share:.3f} of it")
    noise, text = os.urandom(64 * MIB), log_text(64 * MIB)
    for name, data, length in (
        ("noise, 8 MiB chunks", noise, 8 * MIB),
        ("log text, 8 MiB chunks", text, 8 * MIB),
        ("noise, 4 KiB chunks", noise[: 16 * MIB], 4 * KIB),
        ("log text, 4 KiB chunks", text[: 16 * MIB], 4 * KIB),
    ):
        asyncio.run(through_the_loop(name, [data[at : at + length] for at in range(0, len(data), length)]))


if __name__ == "__main__":
    main()
