"""Chunks, items and an uploader for the tests of the archive's objects."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable

from amberblob.archives import ArchivedChunk
from amberblob.clock import HybridClock, SeededRandomness
from amberblob.errors import AmberError
from amberblob.ids import UlidMint, content_hash
from amberblob.manifest import ChunkRef
from archive.frames import Frame, encode_frame
from archive.packs import Item
from archive.targets.interface import Target
from archive.upload import Uploader

BLOB = "01JD0000000000000000000000"


def text(size: int, seed: int = 1) -> bytes:
    """Content that shrinks."""
    line = b"%d: what a log of some server would say, with numbers %d in it\n"
    out = b"".join(line % (seed, number) for number in range(size // 50 + 1))
    return out[:size]


def noise(size: int, seed: int = 1) -> bytes:
    """Content that does not."""
    return random.Random(seed).randbytes(size)


def frame_of(data: bytes) -> Frame:
    return encode_frame(content_hash(data), data)


def row_of(frame: Frame, start: int = 0, name: str = "packs/2026/11/21/x.pack") -> ArchivedChunk:
    return ArchivedChunk(frame.chunk_id, frame.length, name, start, start + frame.size_bytes, frame.head, 1)


def item_of(data: bytes, number: int = 0) -> Item:
    return Item(
        chunk=ChunkRef(content_hash(data), len(data)), slot=number % 7, blob_id=BLOB,
        path=f"photos/{number}.jpg", version=number + 1, index=0,
    )  # fmt: skip


def pairs_of(bodies: Iterable[bytes]) -> list[tuple[Item, bytes]]:
    return [(item_of(data, number), data) for number, data in enumerate(bodies)]


class Told:
    """What an uploader's callbacks are told."""

    def __init__(self) -> None:
        self.rows: list[tuple[Item, ArchivedChunk]] = []
        self.failures: list[tuple[Item, AmberError]] = []

    async def stored(self, rows: list[tuple[Item, ArchivedChunk]]) -> None:
        self.rows += rows

    async def failed(self, items: list[Item], error: AmberError) -> None:
        self.failures += [(item, error) for item in items]

    @property
    def objects(self) -> set[str]:
        return {row.target_path for _, row in self.rows}

    def row(self, item: Item) -> ArchivedChunk:
        (found,) = [row for known, row in self.rows if known is item]
        return found


def uploader_to(
    target: Target, *, pack_size: int = 64 * 1024, lone_size: int = 48 * 1024, parallel: int = 3, wall_ms: int = 10**12
) -> Uploader:
    clock = HybridClock(lambda: wall_ms)
    return Uploader(
        target,
        now_ms=clock.now_ms,
        mint=UlidMint(clock, SeededRandomness(1)).mint,
        pack_size=pack_size,
        lone_size=lone_size,
        parallel=parallel,
    )


async def each(pairs: Iterable[tuple[Item, bytes]]) -> AsyncIterator[tuple[Item, bytes]]:
    for pair in pairs:
        yield pair
