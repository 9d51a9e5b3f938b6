"""Scrub's look at bytes: chunks and manifest files against their hashes, evicted versions against their archive rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from amberblob.clock import Clock
from amberblob.errors import ChunkCorrupt, ChunkMissing, StorageError
from amberblob.manifest import ChunkRef, Version, decode_manifest
from antientropy.scrubpace import PATH_UNITS
from chunkstore.interface import CheckedPage, ReplicaStore

log = structlog.get_logger(__name__)

STEP_BYTES = 1 << 20
STEP_VERSIONS = 64


@dataclass(slots=True)
class ScrubCounts:
    """What scrub found since the start; each only grows. Of evicted versions the archive rows are checked, not the bytes."""

    bytes_checked: int = 0
    versions_checked: int = 0
    slots_checked: int = 0
    chunks_corrupt: int = 0
    chunks_missing: int = 0
    paths_wrong: int = 0
    paths_mended: int = 0
    sums_wrong: int = 0
    orphans_removed: int = 0
    evicted_checked: int = 0
    evicted_uncovered: int = 0


@dataclass(slots=True)
class Current:
    """The slot that is under way."""

    slot: int
    incarnation: str
    versions: deque[tuple[str, Version]] = field(default_factory=deque)
    chunks: deque[ChunkRef] = field(default_factory=deque)
    path: str = ""
    version: Version | None = None
    page: CheckedPage | None = None


class ByteChecks:
    """Checks the bytes of the slot that is under way, and has what is wrong wanted.

    Args:
        bytes_wanted: called when bytes turned out to be wanted.
    """

    def __init__(
        self, store: ReplicaStore, clock: Clock, counts: ScrubCounts, bytes_wanted: Callable[[], None]
    ) -> None:
        self._store = store
        self._clock = clock
        self._counts = counts
        self._bytes_wanted = bytes_wanted

    async def check(self, at: Current) -> tuple[int, float]:
        """Check about a megabyte of the versions that are at hand; the units of work, and for how long the slot's database was kept busy, seconds."""
        units, busy_s = 0, 0.0
        for _ in range(STEP_VERSIONS):
            if not at.chunks:
                if not at.versions:
                    break
                at.path, at.version = at.versions.popleft()
                self._counts.versions_checked += 1
                units += await self._open(at, at.version)
            while at.chunks and units < STEP_BYTES:
                assert at.version is not None
                began_s = self._clock.monotonic_s()
                units += await self._check_chunk(at, at.version, at.chunks.popleft())
                busy_s += self._clock.monotonic_s() - began_s if at.version.inline else 0.0
            if units >= STEP_BYTES:
                break
        return units, busy_s

    async def _open(self, at: Current, version: Version) -> int:
        """Find out which chunks a version has; the bytes read for that. One that lives by its archive rows is checked by those."""
        if version.size == 0:
            return 0
        if self._store.tally(at.slot).evicted and await self._store.is_evicted(at.slot, version.blob_id):
            return await self._check_rows_of(at, version)
        if version.manifest_id is None:
            at.chunks.extend(version.chunks)
            return 0
        manifest = await self._read(
            at, version, self._store.read_manifest(at.slot, version.blob_id, version.manifest_id)
        )
        try:
            at.chunks.extend(decode_manifest(manifest) if manifest is not None else ())
        except ValueError:
            # Its hash is right: whoever wrote it wrote nonsense, and every copy has the same.
            log.error("a manifest cannot be read", slot=at.slot, path=at.path, version=version.version)
        return len(manifest or b"")

    async def _check_rows_of(self, at: Current, version: Version) -> int:
        """Whether its archive rows still cover an evicted version; one that they do not is wanted."""
        self._counts.evicted_checked += 1
        if not await self._store.is_whole(at.slot, version) and await self._want(at, version, damaged=True):
            self._counts.evicted_uncovered += 1
            log.warning(
                "an evicted version is not covered by its archive rows", slot=at.slot, path=at.path, version=version.version
            )  # fmt: skip
        return PATH_UNITS

    async def _check_chunk(self, at: Current, version: Version, chunk: ChunkRef) -> int:
        await self._read(at, version, self._store.read_chunk(at.slot, version.blob_id, chunk, fresh=True))
        return chunk.len

    async def _read(self, at: Current, version: Version, reading: Awaitable[bytes]) -> bytes | None:
        """Verified bytes; None if they are not here any more, which was told on then."""
        try:
            data = await reading
        except (ChunkCorrupt, ChunkMissing) as error:
            damaged = isinstance(error, ChunkCorrupt)
            if await self._want(at, version, damaged=damaged):
                self._counts.chunks_corrupt += damaged
                self._counts.chunks_missing += not damaged
                log.warning("bytes wanted", slot=at.slot, path=at.path, version=version.version, error=str(error))
            return None
        except StorageError as error:
            if self._store.failed is not None:
                raise
            # The disk gives up on these sectors alone. That it keeps them from being read is for the operator to see.
            log.error("bytes cannot be read", slot=at.slot, path=at.path, version=version.version, error=str(error))
            return None
        self._counts.bytes_checked += len(data)
        return data

    async def _want(self, at: Current, version: Version, *, damaged: bool) -> bool:
        """Remember that the version's bytes are not all here, unless the version itself is gone by now."""
        rows = await self._store.rows(at.slot, at.path, version=version.version)
        if not rows or rows[0].version.blob_id != version.blob_id:
            return False
        await self._store.set_wanted(at.slot, at.path, version, damaged=damaged)
        self._bytes_wanted()
        return True
