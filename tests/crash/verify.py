"""What a store promised before it died, and whether it is kept."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from amberblob.ballot import EMPTY_REGISTER, Register, SlotState
from amberblob.clock import HybridClock, SystemClock, SystemRandomness
from amberblob.errors import AmberError, ChunkMissing
from amberblob.ids import UlidMint, content_hash
from amberblob.manifest import ChunkRef, Ranges, Version, covers
from amberblob.wire import HistoryRow, ScanEntry
from chunkstore import BlobState, DiskStore
from chunkstore.doctor import examine
from tests.crash.lines import (
    BlobHolds,
    Broken,
    ChunkHolds,
    Closed,
    Discarded,
    Forgot,
    Holds,
    Line,
    Note,
    Opened,
    Refused,
    SlotHolds,
    Started,
    Trying,
    TryingBlob,
    TryingDiscard,
    TryingForget,
    TryingSweep,
)  # fmt: skip
from tests.crash.workload import Hand, open_store

Blob = tuple[int, str]
Key = tuple[int, str]


@dataclass(slots=True)
class Promises:
    """What must be there (``holds``...), and what may be."""

    disk_id: str | None = None
    holds: dict[Key, Register] = field(default_factory=dict)
    tried: dict[Key, list[Trying]] = field(default_factory=dict)
    slots: dict[int, SlotHolds] = field(default_factory=dict)
    blobs: dict[Blob, TryingBlob] = field(default_factory=dict)
    blobs_here: set[Blob] = field(default_factory=set)
    chunks_here: dict[Blob, list[ChunkRef]] = field(default_factory=dict)
    referred: set[str] = field(default_factory=set)
    may_be_gone: set[Blob] = field(default_factory=set)
    gone: set[Blob] = field(default_factory=set)
    refused: list[Refused] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chosen: dict[Key, dict[int, Version]] = field(default_factory=dict)
    expired: dict[Key, Ranges] = field(default_factory=dict)
    may_be_empty: set[Key] = field(default_factory=set)
    forgotten: set[Key] = field(default_factory=set)
    closed: bool = False
    acknowledged: int = 0

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Promises:
        """What these lines come to."""
        promises = cls()
        for line in lines:
            promises.add(line)
        return promises

    def add(self, line: Line) -> None:
        """Take one more line in."""
        if isinstance(line, Opened | Holds | SlotHolds | BlobHolds | ChunkHolds | Discarded | Forgot | Closed):
            self.acknowledged += 1
        match line:
            case Opened():
                self.disk_id = line.disk_id
                self.closed = False
            case Trying():
                self.tried.setdefault((line.slot, line.path), []).append(line)
                self._note_expired(line)
            case Holds():
                known = self.holds.get((line.slot, line.path), EMPTY_REGISTER)
                if _rank(line.register) > _rank(known):
                    self.holds[line.slot, line.path] = line.register
                self._note_chosen((line.slot, line.path), line.register)
            case SlotHolds():
                before = self.slots.get(line.slot, SlotHolds(line.slot))
                self.slots[line.slot] = SlotHolds(
                    line.slot, max(before.ceiling, line.ceiling), max(before.epoch, line.epoch),
                    max(before.synced_epoch, line.synced_epoch), max(before.version_floor, line.version_floor),
                )  # fmt: skip
            case TryingForget():
                # Until it is acknowledged both are right: the stub, and nothing.
                self.may_be_empty.add((line.slot, line.path))
            case Forgot():
                self.forgotten.add((line.slot, line.path))
            case TryingBlob():
                self.blobs[line.slot, line.blob_id] = line
            case BlobHolds():
                self.blobs_here.add((line.slot, line.blob_id))
            case ChunkHolds():
                self.chunks_here.setdefault((line.slot, line.blob_id), []).append(line.chunk)
            case TryingDiscard():
                self.may_be_gone.add((line.slot, line.blob_id))
            case TryingSweep():
                self.may_be_gone |= {blob for blob in self.blobs if blob[1] not in self.referred}
            case Discarded():
                self.gone.add((line.slot, line.blob_id))
            case Refused():
                self.refused.append(line)
            case Broken():
                self.broken.append(line.why)
            case Note():
                self.notes.append(line.what)
            case Closed():
                self.closed = True
            case Started():
                pass

    def _note_expired(self, line: Trying) -> None:
        """From now on these rows may go, and the bytes of their blobs."""
        record, key = line.register.record, (line.slot, line.path)
        if record is None or not record.expired:
            return
        self.expired[key] = record.expired
        for number, version in self.chosen.get(key, {}).items():
            if covers(record.expired, number):
                self.may_be_gone.add((line.slot, version.blob_id))

    def _note_chosen(self, key: Key, register: Register) -> None:
        """A record that is acknowledged tells of the chosen one before it; and of itself, once it is chosen."""
        record = register.record
        assert record is not None
        if record.head is not None:
            self.referred.add(record.head.blob_id)
        for version in (record.previous, record.added if register.chosen else None):
            if version is not None:
                self.chosen.setdefault(key, {})[version.version] = version


def _rank(register: Register) -> tuple[object, ...]:
    return (register.accepted is not None, register.accepted, register.chosen)


class PromiseBroken(AssertionError):
    """A store did not keep what was promised. Its text lists every finding."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All that a store says of what was ever tried."""

    slots: dict[int, SlotState]
    registers: dict[Key, Register]
    rows: dict[Key, list[HistoryRow]]
    blobs: dict[Blob, BlobState]
    listing: tuple[ScanEntry, ...]
    digests: dict[int, bytes]
    wrong: tuple[str, ...]


async def look(store: DiskStore, promises: Promises) -> Snapshot:
    """Ask for everything."""
    registers, rows, blobs = {}, {}, {}
    for key in promises.tried:
        registers[key] = await store.load(*key)
        rows[key] = await store.rows(*key)
    for blob in promises.blobs:
        blobs[blob] = await store.blob_state(*blob)
    page = await store.scan("", "", "", 10_000)
    slots = {slot: store.slot_state(slot) for slot in store.slots()}
    digests, wrong = {}, []
    for slot in store.slots():
        digests[slot] = await store.bucket_sums(slot) + store.tally(slot).root
        if not await store.check_sums(slot):
            wrong.append(f"the bucket sums of slot {slot}")
        wrong += (await store.check_page(slot, "", 10_000)).wrong
    return Snapshot(slots, registers, rows, blobs, tuple(page.entries), digests, tuple(wrong))


class Verifier:
    """Looks for broken promises in one folder. Findings are gathered, so that a failure tells all of them."""

    def __init__(self, disk: Path, promises: Promises) -> None:
        self._disk = disk
        self._promises = promises
        self.findings: list[str] = list(promises.broken)

    def _say(self, what: str) -> None:
        self.findings.append(what)

    async def verify(self, *, again: bool = True) -> None:
        """Open, compare, close; with ``again`` open once more, compare, go on working, close, examine.

        Raises:
            PromiseBroken: with everything that was found.
        """
        with structlog.testing.capture_logs():
            try:
                first = await self._open_and_check()
                if again and first is not None:
                    await self._open_again(first)
                if first is not None:
                    self._examine()
            except Exception as error:
                self._say(f"{type(error).__name__}: {error}")
                if not isinstance(error, AmberError | OSError):
                    raise PromiseBroken("\n".join(self.findings)) from error
        if self.findings:
            raise PromiseBroken("\n".join(self.findings))

    async def _open_and_check(self) -> Snapshot | None:
        promises = self._promises
        store = await open_store(self._disk)
        try:
            if promises.disk_id is not None and store.disk_id != promises.disk_id:
                self._say(f"the disk was formatted anew: it was {promises.disk_id} and is {store.disk_id}")
                return None
            if store.lost_slots:
                self._say(f"slots were lost: {store.lost_slots}")
            snapshot = await look(store, promises)
            self._check_slots(store.disk_id, snapshot)
            self._check_registers(snapshot)
            self._check_listing(snapshot)
            if snapshot.wrong:
                self._say(f"digests are not those of the rows: {snapshot.wrong}")
            await self._check_bytes(store, snapshot)
            return snapshot
        finally:
            await store.close()
            if store.failed is not None:
                self._say(f"the disk failed: {store.failed}")

    def _check_slots(self, disk_id: str, snapshot: Snapshot) -> None:
        for slot, state in snapshot.slots.items():
            if state.incarnation != disk_id:
                self._say(f"slot {slot} has incarnation {state.incarnation}")
        for slot, promised in self._promises.slots.items():
            found = snapshot.slots.get(slot)
            if (
                found is None
                or found.promise_ceiling < promised.ceiling
                or found.epoch < promised.epoch
                or found.synced_epoch < promised.synced_epoch
                or found.version_floor < promised.version_floor
            ):
                self._say(f"slot {slot} went back: promised {promised}, found {found}")

    def _check_registers(self, snapshot: Snapshot) -> None:
        promises = self._promises
        for key, register in snapshot.registers.items():
            if key in promises.forgotten and register.record is not None:
                self._say(f"{key} was forgotten and holds {register}")
            if key in promises.may_be_empty and register.record is None:
                continue
            promised = promises.holds.get(key, EMPTY_REGISTER)
            allowed = [promised, *(tried.register for tried in promises.tried[key])]
            if _rank(register) < _rank(promised):
                self._say(f"{key} went back: promised {promised}, found {register}")
            if register not in allowed:
                self._say(f"{key} holds what nobody wrote: {register}")
            self._check_rows(key, register, snapshot.rows[key])

    def _check_rows(self, key: Key, found: Register, rows: list[HistoryRow]) -> None:
        by_version = {row.version.version: row for row in rows}
        gone = found.record.expired if found.chosen and found.record is not None else ()
        for number in by_version:
            if covers(gone, number):
                self._say(f"{key} version {number} has expired and is in the history")
        for number, version in self._promises.chosen.get(key, {}).items():
            row = by_version.get(number)
            if row is None and covers(self._promises.expired.get(key, ()), number):
                continue
            if row is None:
                self._say(f"{key} version {number} is not in the history")
            elif row.version != version:
                self._say(f"{key} version {number} is another: {row.version} instead of {version}")
            elif found.chosen and found.record is not None:
                lives = covers(found.record.live, number)
                if lives != (row.tombstoned_at_ms is None):
                    self._say(f"{key} version {number}: lives is {lives}, the row says {row.tombstoned_at_ms}")

    def _check_listing(self, snapshot: Snapshot) -> None:
        listed = {(entry.slot, entry.path): entry for entry in snapshot.listing}
        for key, register in snapshot.registers.items():
            entry = listed.get(key)
            if (entry is None) != (register.record is None):
                self._say(f"{key} holds {register}, and the listing has {entry}")
            elif entry is not None and (entry.ballot, entry.chosen) != (register.accepted, register.chosen):
                self._say(f"{key} is at {register.accepted} {register.chosen}, the listing at {entry}")

    async def _check_bytes(self, store: DiskStore, snapshot: Snapshot) -> None:
        promises = self._promises
        for blob, state in snapshot.blobs.items():
            if state is BlobState.DURABLE:
                await self._check_blob(store, blob, "it is called durable")
            if blob in promises.gone and state is BlobState.DURABLE:
                self._say(f"blob {blob} was given up and is durable again")
            if blob in promises.gone and (self._disk / "slots" / str(blob[0]) / "blobs" / blob[1]).exists():
                self._say(f"blob {blob} was given up and its folder is still there")
            if blob in promises.blobs_here and blob not in promises.may_be_gone and state is not BlobState.DURABLE:
                self._say(f"blob {blob} was durable and is {state}")
        for blob, chunks in promises.chunks_here.items():
            for chunk in chunks:
                await self._check_chunk(store, blob, chunk, "it was put back")
        for key, register in snapshot.registers.items():
            tried = next((tried for tried in promises.tried[key] if tried.register == register), None)
            added = register.record.added if register.record is not None else None
            if tried is None or added is None or not tried.bytes_here:
                continue
            blob = (key[0], added.blob_id)
            if added.inline:
                for chunk in added.chunks:
                    await self._check_chunk(store, blob, chunk, f"{key} refers to it")
            else:
                await self._check_blob(store, blob, f"{key} refers to it")

    async def _check_blob(self, store: DiskStore, blob: Blob, why: str) -> None:
        known = self._promises.blobs[blob]
        if known.manifest_id is not None:
            try:
                await store.read_manifest(*blob, known.manifest_id)
            except AmberError as error:
                self._say(f"manifest of blob {blob}: {why}, and {error}")
        for chunk in known.chunks:
            await self._check_chunk(store, blob, chunk, why)

    async def _check_chunk(self, store: DiskStore, blob: Blob, chunk: ChunkRef, why: str) -> None:
        try:
            await store.read_chunk(*blob, chunk)
        except AmberError as error:
            self._say(f"chunk {chunk.id[:8]} of blob {blob}: {why}, and {type(error).__name__}: {error}")

    async def _open_again(self, first: Snapshot) -> None:
        promises = self._promises
        store = await open_store(self._disk)
        try:
            second = await look(store, promises)
            if store.lost_slots:
                self._say(f"slots were lost at the second start: {store.lost_slots}")
            for name in ("slots", "registers", "rows", "blobs", "listing", "digests", "wrong"):
                if getattr(first, name) != getattr(second, name):
                    self._say(f"{name} at the second start are {getattr(second, name)}, were {getattr(first, name)}")
            await self._work_on(store)
        finally:
            await store.close()
            if store.failed is not None:
                self._say(f"the disk failed at the second start: {store.failed}")

    async def _work_on(self, store: DiskStore) -> None:
        hand = Hand(store, UlidMint(HybridClock(SystemClock().wall_ms), SystemRandomness()), tell=lambda line: None)
        hand.ballots_from(1_000_000_000)
        body = b"after the crash"
        await hand.put(1, "afterwards", body)
        data = os.urandom(5000)
        blob_id = hand.mint()
        chunks, _ = await hand.stage(2, blob_id, data, chunk_bytes=2000)
        parts = [await store.read_chunk(2, blob_id, chunk) for chunk in chunks]
        if b"".join(parts) != data:
            self._say("a blob written afterwards reads differently")
        inline = ChunkRef(id=content_hash(body), len=len(body))
        record = (await store.load(1, "afterwards")).record
        assert record is not None and record.head is not None
        if await store.read_chunk(1, record.head.blob_id, inline) != body:
            self._say("an object written afterwards reads differently")
        try:
            await store.read_chunk(1, hand.mint(), chunks[0])
        except ChunkMissing:
            pass
        else:
            self._say("a blob that nobody wrote can be read")

    def _examine(self) -> None:
        promises = self._promises
        # A record that was missed is known before its bytes: doctor is right to miss them.
        missed = {
            tried.register.record.head.blob_id
            for trials in promises.tried.values()
            for tried in trials
            if not tried.bytes_here and tried.register.record and tried.register.record.head
        }
        # So are the older rows of a path that came whole.
        missed |= {blob_id for _, blob_id in promises.blobs}
        missed -= {blob_id for _, blob_id in promises.blobs_here}
        for finding in examine(self._disk, deep=True).findings:
            is_awaited = any(blob_id in finding.where for blob_id in missed)
            is_rest_of_repair = finding.where.endswith(".tmp") and finding.severity == "warning"
            if finding.severity != "info" and not is_awaited and not is_rest_of_repair:
                self._say(f"doctor: {finding.severity}: {finding.where}: {finding.what}")


def verify(disk: Path, promises: Promises, *, again: bool = True) -> None:
    """Check a folder against what was promised of it. Raises PromiseBroken."""
    asyncio.run(Verifier(disk, promises).verify(again=again))
