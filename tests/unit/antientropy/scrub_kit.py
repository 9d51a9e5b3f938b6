"""A store with objects in it, a clock that is put forward by hand, and scrub on both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from amberblob.ballot import Ballot
from amberblob.clock import HybridClock, SeededRandomness
from amberblob.ids import UlidMint, content_hash
from amberblob.limits import CHUNK_BYTES_MIN, INLINE_BYTES_MAX
from amberblob.manifest import ChunkRef, Record, Version, encode_manifest, place_chunks
from amberblob.mutations import Accepted, Chosen, Installed
from antientropy.scrub import Scrub
from antientropy.step import Did
from chunkstore.interface import ReplicaStore
from tests.clocks import HandClock

DAY_MS = 86_400_000
START_MS = 1_700_000_000_000


class Objects:
    """Puts objects into a store, as a replica does when their records are chosen."""

    def __init__(self, store: ReplicaStore, clock: HandClock) -> None:
        self.store = store
        self.records: dict[tuple[int, str], tuple[Ballot, Record]] = {}
        self._mint = UlidMint(HybridClock(clock.wall_ms), SeededRandomness(5))
        self._clock = clock
        self._count = 0

    async def put(self, slot: int, path: str, size: int, *, inline: bool | None = None) -> Version:
        """One version of ``size`` bytes; inline where a node would keep it so."""
        self._count += 1
        data = SeededRandomness(self._count).token(size)
        inline = size <= INLINE_BYTES_MAX if inline is None else inline
        parts = [data[at : at + CHUNK_BYTES_MIN] for at in range(0, size, CHUNK_BYTES_MIN)]
        all_chunks = tuple(ChunkRef(content_hash(part), len(part)) for part in parts)
        chunks, manifest_id, manifest = place_chunks(all_chunks)
        version = Version(
            1, self._mint.mint(), size, content_hash(data), self._clock.wall_ms(), "t", {}, chunks, manifest_id,
            len(all_chunks), inline and size > 0,
        )  # fmt: skip
        assert manifest is None or manifest == encode_manifest(all_chunks)
        if not inline:
            staging = await self.store.stage(slot, version.blob_id, chunk_bytes=CHUNK_BYTES_MIN, size=size)
            await staging.write(data)
            await staging.finish(all_chunks, manifest)
        record = Record(1, "put", 1, version, ((1, 1),), (), version.created_at_ms, 0, None, ())
        ballot = Ballot(1, 1, "n", f"a{self._count}")
        self.records[slot, path] = ballot, record
        self.store.apply(Accepted(slot, path, ballot, record, data if version.inline else None))
        await self.store.durable(self.store.apply(Chosen(slot, path, ballot)))
        return version

    def mend(self, slot: int, path: str) -> None:
        """What the other copies have is installed over what is here."""
        ballot, record = self.records[slot, path]
        rows = () if record.head is None else (record.head,)
        self.store.apply(Installed(slot, path, ballot, record, rows, (), True))


class Hooks:
    """What scrub told others. ``mend`` is done about a path that is told of."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []
        self.woken = 0
        self.compared_at_ms: int | None = None
        """When the copy was compared with the others; None: always just now."""
        self.mend: Callable[[int, str], None] = lambda slot, path: None

    def found_wrong(self, slot: int, path: str) -> None:
        self.told.append((slot, path))
        self.mend(slot, path)

    def bytes_wanted(self) -> None:
        self.woken += 1

    def compared_ms(self, slot: int) -> int:
        return 1 << 62 if self.compared_at_ms is None else self.compared_at_ms


def scrub_of(
    store: ReplicaStore,
    clock: HandClock,
    hooks: Hooks,
    *,
    slots: Any = (0,),
    days: float = 14.0,
    rate: float = 32 << 20,
) -> Scrub:
    return Scrub(
        store,
        clock,
        slots=lambda: slots,
        found_wrong=hooks.found_wrong,
        bytes_wanted=hooks.bytes_wanted,
        compared_ms=hooks.compared_ms,
        days=days,
        bytes_per_s=rate,
    )


async def run(scrub: Scrub, clock: HandClock, *, slots: int = 1, within_s: float = 30 * 86_400.0) -> float:
    """Step until so many slots were checked, letting time pass in the rests; how long it took."""
    began_s, wanted = clock.now_s, scrub.counts.slots_checked + slots
    while scrub.counts.slots_checked < wanted:
        if await scrub.step() is Did.NOTHING:
            clock.now_s += scrub.pause_s
        assert clock.now_s - began_s < within_s, "scrub takes too long"
    return clock.now_s - began_s
