"""Paths, versions and rows for tests of exported metadata."""

from __future__ import annotations

from amberblob.archives import ArchivedChunk
from amberblob.ballot import Ballot
from amberblob.clock import HybridClock, SeededRandomness
from amberblob.ids import UlidMint, content_hash
from amberblob.manifest import ChunkRef, Ranges, Record, Version, WriteMark
from amberblob.wire_repair import PathItem
from archive.targets.memory import MemoryBucket, MemoryTarget

NOW_MS = 1_700_000_000_000
CLUSTER = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


class Hand:
    """A clock that is put forward by hand, with the mint that goes by it."""

    def __init__(self) -> None:
        self.now_ms = NOW_MS
        self._mint = UlidMint(HybridClock(lambda: self.now_ms), SeededRandomness(1))

    def time(self) -> int:
        return self.now_ms

    def ulid(self) -> str:
        return self._mint.mint()


def target() -> MemoryTarget:
    return MemoryTarget(MemoryBucket())


def version(number: int, *, size: int = 10, seed: int = 0) -> Version:
    data = SeededRandomness(number * 1000 + seed).token(size)
    chunk = ChunkRef(content_hash(data), size)
    blob_id = UlidMint(HybridClock(lambda: NOW_MS + number), SeededRandomness(number * 7 + seed)).mint()
    chunks = (chunk,) if size else ()
    return Version(number, blob_id, size, chunk.id, NOW_MS + number, "text/plain", {}, chunks, None, len(chunks), True)


def item(path: str, *versions: Version, live: Ranges | None = None, expired: Ranges = ()) -> PathItem:
    """A path that was put so often; ``live``: after deletes."""
    newest = versions[-1]
    live = ((versions[0].version, newest.version),) if live is None else live
    marks = tuple(WriteMark(f"w{one.version}", "put", one.version, NOW_MS + one.version) for one in versions)
    head = next((one for one in reversed(versions) if any(low <= one.version <= high for low, high in live)), None)
    record = Record(
        revision=len(versions),
        op="put" if head is newest else "delete",
        version_max=newest.version,
        head=head,
        live=live,
        taken=(),
        changed_at_ms=NOW_MS + newest.version,
        deleted_at_ms=0,
        previous=versions[-2] if len(versions) > 1 else None,
        writes=marks[-8:],
        expired=expired,
    )
    return PathItem(path, Ballot(1, len(versions), "n1", "x"), record, True, tuple(reversed(versions)), marks)


def row(of: Version, *, state: int = NOW_MS, name: str = "packs/a") -> ArchivedChunk:
    chunk = of.chunks[0]
    return ArchivedChunk(chunk.id, chunk.len, name, 16, 16 + chunk.len, "0" * 64, NOW_MS, state)
