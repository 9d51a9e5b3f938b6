"""One disk against a dict: anything that can be asked of it, in any order, with restarts, crashes and faults between.

The model is :mod:`tests.unit.chunkstore.disk_model`. What was acknowledged must be there after every crash; what was
not may be there or not, but only as a prefix of the journal, entry by entry. Reproduce a failure by running this file
again: the examples are the same every time. ``AMBERBLOB_TEST_EXAMPLES=2000`` looks for new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from amberblob.archives import ArchivedChunk
from amberblob.ballot import EMPTY_REGISTER, Register, SlotState
from amberblob.clock import HybridClock, SeededRandomness
from amberblob.errors import (
    ChunkCorrupt,
    ChunkMissing,
    DigestMismatch,
    DiskFailed,
    DiskFull,
    JournalCorrupt,
    StorageError,
)
from amberblob.ids import UlidMint, content_hash
from amberblob.manifest import ChunkRef, Op, Record, Version, covers
from amberblob.mutations import Aborted, Accepted, Archived, Chosen, EpochSeen, Evicted, Mutation, Reserved, Staged
from amberblob.wire import ScanEntry
from chunkstore import BlobState, DiskStore, staging
from chunkstore.codec import BodyKept
from chunkstore.segments import scan_file, segment_numbers, segment_path
from tests.unit.chunkstore.disk_faults import IO_ERROR, NO_ROOM, FaultyOps, TestClock, copy_disk
from tests.unit.chunkstore.disk_model import (
    CHUNK_BYTES,
    NOW_MS,
    PATHS,
    SLOTS,
    Author,
    Blob,
    Folder,
    Model,
    ModelSlot,
    Proposal,
    listing,
    slot_of,
)

EXAMPLES = int(os.environ.get("AMBERBLOB_TEST_EXAMPLES", "0"))
MET: Counter[str] = Counter()
"""What really happened, over all examples."""

FAULTS = (
    "reboot", "crash", "evicted", "not evicted", "crash within evict", "crash within stage", "crash within discard", "crash within install", "crash within deliver",
    "unsynced journal bytes", "torn tail", "failed sync", "no room", "no room within a write", "failed write",
    "rotten chunk", "rotten manifest", "rotten body", "lost slot", "slot lost while running", "lost index",
    "corrupt journal", "staging over close", "swept",
)  # fmt: skip

T = TypeVar("T")
_MANIFEST = "manifest"
_BLOBS_MAX = 24
_paths = st.sampled_from(PATHS)
_sizes = st.sampled_from([0, 1, 63, 64, 65, 130, 200, 400])
_kinds = st.sampled_from(["inline", "files", "manifest"])
_ops = st.sampled_from(["put", "put", "put", "delete", "delete-version", "restore"])
_back = st.integers(0, 20)


def _temporary() -> Path:
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="amber-machine-", dir=memory if os.access(memory, os.W_OK) else None))


class Disk(RuleBasedStateMachine):
    """Rules are what a node, an operator, or bad luck may do."""

    def __init__(self) -> None:
        super().__init__()
        self.root = _temporary()
        self.folder = self.root / "0"
        self.runner = asyncio.Runner()
        self.numbers = itertools.count(1)
        self.clock = TestClock(NOW_MS)
        self.mint = UlidMint(HybridClock(self.clock.wall_ms), SeededRandomness(5)).mint
        self.ops = FaultyOps()
        self.model = Model()
        self.author = Author()
        self.known: list[Blob] = []
        self.proposals: list[Proposal] = []
        self.write_ids: dict[str, set[str]] = {path: set() for path in PATHS}
        self.used: set[str] = set()
        self.vague: set[str] = set()
        """Evicted blobs whose manifest rotted: the mark goes, which is no entry, and may come back with a replay."""
        self.options: tuple[int, int, int, float]
        self.store: DiskStore
        # A piece is handed to the threads as soon as there is one.
        self.small = mock.patch.object(staging, "PIECE_BYTES", 100)
        self.small.start()

    def teardown(self) -> None:
        try:
            if hasattr(self, "store"):
                with contextlib.suppress(DiskFailed):
                    self.run(self.store.close())
        finally:
            self.runner.close()
            self.small.stop()
            shutil.rmtree(self.root, ignore_errors=True)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(60):
                return await work

        return self.runner.run(bounded())

    def met(self, what: str) -> None:
        MET[what] += 1

    # -- opening

    async def _open(self, *, check: bool = True) -> None:
        seed = next(self.numbers)
        self.ops.broken.clear()
        self.ops.free = None
        self.store = await DiskStore.open(
            self.folder, cluster_id="c", node_id="n", clock=self.clock, randomness=SeededRandomness(seed),
            reserve_bytes=3, segment_bytes=self.options[0], registers_clean_max=self.options[1],
            open_databases_max=self.options[2], linger_s=self.options[3], ops=self.ops,
        )  # fmt: skip
        # The journal tells how far it reaches: by the position of the next entry.
        position = self.store.apply(EpochSeen(0, 0))
        for slot in self.model.slots:
            if slot in {lost.slot for lost in self.store.lost_slots}:
                self.model.lost.add(slot)
        self.model.cut(position - 1)
        self.model.append(EpochSeen(0, 0))
        await self.store.durable(position)
        self.model.acknowledge(position)
        await self._adopt()
        if check:
            await self._check_everything()

    async def _known_writes(self, slot: int, path: str) -> set[str]:
        return {write_id for write_id in self.write_ids[path] if await self.store.find_write(slot, path, write_id)}

    async def _adopt(self) -> None:
        """Slots whose database was lost know a suffix of what they were told."""
        for slot in sorted(self.model.lost):
            registers = {path: await self.store.load(slot, path) for path in PATHS if slot_of(path) == slot}
            rows = {path: {row.version.version for row in await self.store.rows(slot, path)} for path in registers}

            writes = {path: await self._known_writes(slot, path) for path in registers}
            state = self.store.slot_state(slot)
            explains = partial(_explains, state, registers, rows, writes)
            before = self.model.slots[slot]
            assert self.model.adopt(slot, explains), (
                f"slot {slot} was lost and knows what no replay explains: {registers} {rows} {state}"
            )
            after = self.model.slots[slot]
            # Which inline bodies the replay brought back is not told by positions alone.
            for blob in self.known:
                if blob.slot == slot and blob.inline:
                    left = await self.store.missing_chunks(slot, blob.version(1, 0), blob.chunks)
                    after.bodies.pop(blob.blob_id, None)
                    if not left:
                        after.bodies[blob.blob_id] = blob.data
                        if blob.blob_id not in before.bodies:
                            self.model.bad_bodies.discard((slot, blob.blob_id))

    @initialize(
        segment=st.sampled_from([8192, 20_000]), clean=st.sampled_from([1, 3, 100]), opened=st.sampled_from([1, 2, 16]),
        linger=st.sampled_from([0.0, 0.01, 60.0]),
    )  # fmt: skip
    def begin(self, segment: int, clean: int, opened: int, linger: float) -> None:
        self.options = (segment, clean, opened, linger)
        self.run(self._open())
        for path, size, kind in (("a", 130, "files"), ("a/1", 65, "manifest"), ("a/2", 30, "inline")):
            self.new_blob(path, size, "a", False, kind)
            self._propose(path, "put", 1, 0, is_chosen=True)
            self.run(self._deliver(self.proposals[-1], "accept", load=True, wait=True))
            self.run(self._deliver(self.proposals[-1], "mark", load=True, wait=False))

    # -- what the cluster does

    def blob(self, back: int) -> Blob:
        """One of the blobs; 0 is the newest."""
        return self.known[-1 - back % len(self.known)]

    def made(self, back: int) -> Proposal | None:
        """One of the records that were tried; 0 is the newest."""
        return self.proposals[-1 - back % len(self.proposals)] if self.proposals else None

    @rule(path=_paths, size=_sizes, letter=st.sampled_from("abc"), same=st.booleans(), kind=_kinds)
    def new_blob(self, path: str, size: int, letter: str, same: bool, kind: str) -> None:
        if len(self.known) >= _BLOBS_MAX:
            return
        self.clock.now_ms += 3
        data = letter.encode() * size if same else bytes((n * 7 + ord(letter)) % 251 for n in range(size))
        blob = Blob(slot_of(path), self.mint(), data, kind == "inline" and size > 0, kind == "manifest" and size > 64)
        self.known.append(blob)

    def _propose(self, path: str, op: Op, version: int, back: int, *, is_chosen: bool) -> None:
        blob = self.blob(back)
        if op == "put":
            if blob.blob_id in self.used:
                return
            self.used.add(blob.blob_id)
            path = next(name for name in PATHS[PATHS.index(path) :] + PATHS if slot_of(name) == blob.slot)
        self._made(self.author.propose(path, op, blob if op == "put" else None, version, is_chosen=is_chosen))

    def _made(self, made: Proposal | None) -> None:
        if made is not None:
            self.write_ids[made.path] |= {mark.write_id for mark in made.record.writes}
            self.proposals.append(made)

    @rule(path=_paths, op=_ops, version=st.integers(1, 4), back=_back, is_chosen=st.booleans())
    def propose(self, path: str, op: Op, version: int, back: int, is_chosen: bool) -> None:
        self._propose(path, op, version, back, is_chosen=is_chosen)

    @rule(back=_back)
    def propose_again(self, back: int) -> None:
        old = self.made(back)
        if old is not None and not old.is_chosen:
            self._made(self.author.propose_again(old))

    @rule(
        writes=st.lists(
            st.tuples(_paths, _ops, _sizes, _kinds, st.sampled_from(["all", "accept", "learn", "none"])), max_size=8
        ),
        letter=st.sampled_from("abc"),
    )
    def busy(self, writes: list[tuple[str, Op, int, str, str]], letter: str) -> None:
        """Several writes, of which this replica hears everything, the half, or nothing."""
        for path, op, size, kind, heard in writes:
            if op == "put":
                self.new_blob(path, size, letter, False, kind)
            before = len(self.proposals)
            self._propose(path, op, 1, 0, is_chosen=True)
            if len(self.proposals) > before:
                if heard in ("all", "accept"):
                    self.run(self._deliver(self.proposals[-1], "accept", load=True, wait=heard == "all"))
                if heard in ("all", "learn"):
                    self.run(
                        self._deliver(self.proposals[-1], "mark" if heard == "all" else "learn", load=True, wait=False)
                    )

    # -- what a replica is told

    @rule(
        back=_back,
        kind=st.sampled_from(["accept", "accept", "mark", "learn"]),
        load=st.booleans(),
        wait=st.booleans(),
    )
    def deliver(self, back: int, kind: str, load: bool, wait: bool) -> None:
        made = self.made(back)
        if made is None:
            return
        self.run(self._deliver(made, kind, load=load, wait=wait))

    @rule(back=_back)
    def accept_and_choose(self, back: int) -> None:
        made = self.made(back)
        if made is None:
            return
        self.run(self._deliver(made, "accept", load=True, wait=True))
        self.run(self._deliver(made, "mark", load=True, wait=False))

    async def _entry(self, made: Proposal, kind: str) -> Mutation | None:
        """The entry, once the replica may apply it: bytes come before references."""
        slot = slot_of(made.path)
        if kind != "accept":
            if not made.is_chosen:
                return None
            return Chosen(slot, made.path, made.ballot, made.record if kind == "learn" else None)
        blob = made.blob
        if blob is not None and not blob.inline:
            state = await self._blob_state(blob)
            if state is BlobState.ABORTED:
                return None
            if state is BlobState.ABSENT:
                await self._stage(blob, revive=False)
        return Accepted(slot, made.path, made.ballot, made.record, blob.data if blob and blob.inline else None)

    async def _deliver(self, made: Proposal, kind: str, *, load: bool, wait: bool) -> None:
        entry = await self._entry(made, kind)
        if entry is not None:
            await self._apply(made.path, entry, load=load, wait=wait)

    async def _apply(self, path: str, entry: Mutation, *, load: bool, wait: bool) -> None:
        slot = entry.slot
        if load:
            await self._check_register(path)
        is_blind = self.store.peek(slot, path) is None
        position = self.store.apply(entry)
        assert position == self.model.append(entry)
        if not is_blind:
            assert self.store.peek(slot, path) == _register(self.model.slots[slot], path)
        if wait:
            await self.store.durable(position)
            self.model.acknowledge(position)
            assert self.store.position(slot, path) == 0
        elif is_blind:
            await self.store.scan("", "", "", 1)

    @rule(slot=st.integers(0, SLOTS - 1), number=st.integers(1, 5000), epoch=st.booleans(), wait=st.booleans())
    def reserve(self, slot: int, number: int, epoch: bool, wait: bool) -> None:
        entry = EpochSeen(slot, number) if epoch else Reserved(slot, number)
        position = self.store.apply(entry)
        assert position == self.model.append(entry)
        self._check_state(slot)
        if wait:
            self.run(self.store.durable(position))
            self.model.acknowledge(position)

    # -- bytes

    @rule(
        back=_back,
        revive=st.booleans(),
        how=st.sampled_from(["finish", "finish", "wrong", "abort"]),
        step=st.sampled_from([1, 50, 1000]),
    )
    def stage(self, back: int, revive: bool, how: str, step: int) -> None:
        blob = self.blob(back)
        if blob.inline:
            return
        if how == "finish":
            self.run(self._stage(blob, revive=revive, step=step))
        else:
            self.run(self._stage_badly(blob, how, step))

    async def _stage(self, blob: Blob, *, revive: bool, step: int = 1000) -> None:
        state = await self._blob_state(blob)
        if state is BlobState.ABORTED and not revive:
            with pytest.raises(StorageError, match="given up"):
                await self._staging(blob, revive=False, step=step)
            return
        self._staged(blob, revive=revive)
        await self._staging(blob, revive=revive, step=step)
        self.model.acknowledge(self.model.position)
        assert await self.store.blob_state(blob.slot, blob.blob_id) is BlobState.DURABLE

    def _staged(self, blob: Blob, *, revive: bool) -> None:
        """What a finished staging means to the model."""
        self.model.append(Staged(blob.slot, blob.blob_id, self.clock.now_ms, revive))
        key = (blob.slot, blob.blob_id)
        if key not in self.model.folders or self.model.folders[key].is_marked:
            self.model.folders[key] = _full(blob)

    async def _staging(self, blob: Blob, *, revive: bool, step: int) -> None:
        size = len(blob.data) if step % 2 else None
        entrance = await self.store.stage(blob.slot, blob.blob_id, chunk_bytes=CHUNK_BYTES, size=size, revive=revive)
        for at in range(0, len(blob.data), step):
            await entrance.write(blob.data[at : at + step])
        await entrance.finish(blob.chunks, blob.manifest)

    async def _stage_badly(self, blob: Blob, how: str, step: int) -> None:
        entrance = await self.store.stage(blob.slot, blob.blob_id, chunk_bytes=CHUNK_BYTES, size=None)
        for at in range(0, len(blob.data), step):
            await entrance.write(blob.data[at : at + step])
        if how == "wrong":
            with pytest.raises(DigestMismatch):
                await entrance.finish((*blob.chunks, ChunkRef(id=content_hash(b"x"), len=1)), blob.manifest)
        else:
            await entrance.abort()
        await entrance.abort()
        await self._check_blob(blob)

    @rule(back=_back)
    def discard(self, back: int) -> None:
        blob = self.blob(back)
        if self._may_discard(blob):
            self.run(self._discard(blob))

    def _may_discard(self, blob: Blob) -> bool:
        # A reference that only a row makes is known to the database alone; before it has the row, the entry
        # ``Aborted`` is written all the same, without effect.
        self.run(self.store.undecided(blob.slot))
        return not blob.inline and blob.slot not in self.model.lost

    def _discarded(self, blob: Blob) -> None:
        if not self.model.slots.get(blob.slot, ModelSlot()).is_referenced(blob.blob_id):
            self.model.append(Aborted(blob.slot, blob.blob_id))
            self.model.folders.pop((blob.slot, blob.blob_id), None)

    async def _discard(self, blob: Blob) -> None:
        before = self.model.position
        self._discarded(blob)
        await self.store.discard(blob.slot, blob.blob_id)
        if self.model.position > before:
            self.model.acknowledge(self.model.position)
        await self._check_blob(blob)

    @rule(age=st.sampled_from([-1, 0, 10, 100]), limit=st.sampled_from([0, 1, 1000]))
    def sweep(self, age: int, limit: int) -> None:
        if len(self.known) < _BLOBS_MAX:
            self.new_blob(PATHS[limit % 3], 65, "b", True, "files")
            self.run(self._stage(self.blob(0), revive=False))
        self.run(self._sweep(self.clock.now_ms - age, limit))

    async def _sweep(self, older_than_ms: int, limit: int) -> None:
        before = {blob: await self._blob_state(blob) for blob in self.known}
        count = await self.store.sweep_staged(older_than_ms, limit)
        gone = [
            blob
            for blob, state in before.items()
            if state is not BlobState.ABORTED
            and await self.store.blob_state(blob.slot, blob.blob_id) is BlobState.ABORTED
        ]
        assert len(gone) == count <= limit
        due = []
        for blob in self.known:
            slot = self.model.slots.get(blob.slot, ModelSlot())
            is_staged = slot.intents.get(blob.blob_id) == "STAGED" and not slot.is_referenced(blob.blob_id)
            if is_staged and slot.staged_at_ms[blob.blob_id] < older_than_ms:
                due.append(blob)
        assert all(blob in due or blob.slot in self.model.lost for blob in gone)
        if limit > len(self.known):
            assert {blob for blob in due if blob.slot not in self.model.lost} <= set(gone)
        for blob in gone:
            self.model.append(Aborted(blob.slot, blob.blob_id), acknowledge=True)
            self.model.slots[blob.slot].intents[blob.blob_id] = "ABORTED"
            self.model.folders.pop((blob.slot, blob.blob_id), None)
            self.met("swept")

    def _version(self, blob: Blob) -> Version | None:
        """The version that a record or row has of the blob: only then may it be mended."""
        slot = self.model.slots.get(blob.slot, ModelSlot())
        for path, (_, record, _) in slot.registers.items():
            for version in (record.added, *slot.rows.get(path, {}).values()):
                if version is not None and version.blob_id == blob.blob_id:
                    return version
        for rows in slot.rows.values():
            for version in rows.values():
                if version.blob_id == blob.blob_id:
                    return version
        return None

    @rule(back=_back, number=st.integers(0, 7))
    def install(self, back: int, number: int) -> None:
        blob = self.blob(back)
        version = self._version(blob)
        if version is not None and blob.data:
            self.run(self._install(blob, version, number))

    @rule(back=_back)
    def heal(self, back: int) -> None:
        """As a repair does: everything that is missing."""
        blob = self.blob(back)
        self.run(self._heal(blob))

    async def _heal(self, blob: Blob) -> None:
        version = self._version(blob)
        if version is None:
            return
        names = [blob.chunks.index(chunk) for chunk in await self.store.missing_chunks(blob.slot, version, blob.chunks)]
        if blob.has_manifest:
            names.append(len(blob.chunks))
        for number in names:
            await self._install(blob, version, number)

    def _installed(self, blob: Blob, name: str) -> None:
        """What a chunk or manifest that was put in place means to the model."""
        if blob.inline:
            self.model.append(BodyKept(blob.slot, blob.blob_id, blob.data))
            return
        folder = self.model.folders.setdefault((blob.slot, blob.blob_id), Folder(is_marked=True))
        folder.files[name] = True
        if set(folder.files) == set(_full(blob).files):
            folder.is_marked = False

    async def _installing(self, blob: Blob, version: Version, number: int) -> str:
        """Put a chunk (or, after the last, the manifest) in place; returns its name."""
        number %= len(blob.chunks) + blob.has_manifest
        if number == len(blob.chunks):
            assert blob.manifest is not None
            await self.store.install_manifest(blob.slot, version, blob.manifest)
            return _MANIFEST
        chunk = blob.chunks[number]
        await self.store.install_chunk(blob.slot, version, chunk, blob.parts[number])
        return chunk.id

    async def _install(self, blob: Blob, version: Version, number: int) -> None:
        with pytest.raises(DigestMismatch):
            await self.store.install_chunk(blob.slot, version, blob.chunks[0], b"no")
        self._installed(blob, await self._installing(blob, version, number))
        self.model.acknowledge(self.model.position if blob.inline else 0)
        await self._check_blob(blob)

    # -- the archive

    def _rows_of(self, blob: Blob, *, verified: bool) -> tuple[ArchivedChunk, ...]:
        chunks = {chunk.id: chunk.len for chunk in blob.chunks}
        if blob.manifest is not None:
            chunks[content_hash(blob.manifest)] = len(blob.manifest)
        state = NOW_MS if verified else 0
        return tuple(
            ArchivedChunk(one, size, "packs/a", 0, size, "ab" * 32, NOW_MS, state) for one, size in chunks.items()
        )

    @rule(back=_back, verified=st.booleans(), all_of_it=st.booleans(), wait=st.booleans())
    def archive(self, back: int, verified: bool, all_of_it: bool, wait: bool) -> None:
        blob = self.blob(back)
        slot = self.model.slots.get(blob.slot)
        if slot is None or slot.row(blob.blob_id) is None or blob.slot in self.model.lost:
            return
        chunks = self._rows_of(blob, verified=verified)
        self.run(self._archive(blob, chunks if all_of_it else chunks[1:], wait=wait))

    async def _archive(self, blob: Blob, chunks: tuple[ArchivedChunk, ...], *, wait: bool) -> None:
        entry = Archived(blob.slot, blob.blob_id, chunks, self.clock.now_ms)
        position = self.store.apply(entry)
        assert position == self.model.append(entry)
        if wait:
            await self.store.durable(position)
            self.model.acknowledge(position)

    def _evictable(self, blob: Blob) -> tuple[str, Version, bool] | None:
        """The row that has the blob, and whether it may be evicted; None: nobody would try."""
        slot = self.model.slots.get(blob.slot)
        row = None if slot is None or not blob.data else slot.row(blob.blob_id)
        files = self.model.folders.get((blob.slot, blob.blob_id), Folder()).files
        if slot is None or row is None or blob.slot in self.model.lost or files.get(_MANIFEST) is False:
            return None
        ids = {chunk.chunk_id for chunk in self._rows_of(blob, verified=True)}
        return *row, ids <= slot.verified.get(blob.blob_id, set()) and (not blob.has_manifest or _MANIFEST in files)

    def _evicted(self, blob: Blob, path: str, version: Version) -> None:
        """What evicting means to the model."""
        ids = tuple(chunk.chunk_id for chunk in self._rows_of(blob, verified=True))
        self.model.append(Evicted(blob.slot, path, version.version, blob.blob_id, ids))
        self.model.bad_bodies.discard((blob.slot, blob.blob_id))
        if self.model.folders.pop((blob.slot, blob.blob_id), None) is not None and blob.has_manifest:
            self.model.folders[blob.slot, blob.blob_id] = Folder({_MANIFEST: True}, True)

    @rule(back=_back)
    def evict(self, back: int) -> None:
        blob = self.blob(back)
        found = self._evictable(blob)
        if found is not None:
            self.run(self._evict(blob, *found))

    async def _evict(self, blob: Blob, path: str, version: Version, may: bool) -> None:
        if may:
            self._evicted(blob, path, version)
        went = await self.store.evict(blob.slot, path, version)
        assert (went is not None) == may
        if may:
            self.model.acknowledge(self.model.position)
            assert await self.store.is_evicted(blob.slot, blob.blob_id)
        self.met("evicted" if may else "not evicted")
        await self._check_blob(blob)

    @rule(back=_back, calls=st.integers(1, 8), tail=st.sampled_from(["keep", "cut", "zero"]))
    def crash_within_evict(self, back: int, calls: int, tail: str) -> None:
        blob = self.blob(back)
        found = self._evictable(blob)
        if found is None or not found[2]:
            return
        path, version, _ = found
        before = self.model.folders.get((blob.slot, blob.blob_id))
        before = None if before is None else Folder(dict(before.files), before.is_marked)
        self._evicted(blob, path, version)
        position = self.model.position
        done = self.run(self._crash(self._evicting(blob, path, version), calls, tail))
        seen = self._settle_folder(blob)
        if done:
            self.model.acknowledge(position)
            assert seen == self.model.folders.get((blob.slot, blob.blob_id))
        else:
            self.met("crash within evict")
            if seen != before:
                # Files go only after the entry was durable.
                self.model.acknowledge(position)
            if seen is not None and before is not None and seen.files != before.files:
                assert seen.is_marked, "without its chunks it must not be taken for whole"
            self._put_folder(blob, seen)
        self.run(self._reopened())

    async def _evicting(self, blob: Blob, path: str, version: Version) -> None:
        await self.store.evict(blob.slot, path, version)

    # -- questions

    @rule(path=_paths, below=st.integers(0, 5), limit=st.integers(1, 3))
    def ask_history(self, path: str, below: int, limit: int) -> None:
        self.run(self._check_register(path))
        self.run(self._check_rows(path, below, limit))

    @rule(
        prefix=st.sampled_from(["", "a", "a/", "a/b/", "z/", "z/\uffff", "é", "nothing"]),
        start=st.sampled_from(["", "a/", "a/1", "a/b/2", "b", "z/\uffff", "~"]),
        delimiter=st.sampled_from(["", "/", "/b/"]), limit=st.integers(1, 10),
    )  # fmt: skip
    def ask_listing(self, prefix: str, start: str, delimiter: str, limit: int) -> None:
        self.run(self._check_listing(prefix, start, delimiter, limit))

    @rule(slot=st.integers(0, SLOTS - 1))
    def ask_slot(self, slot: int) -> None:
        self._check_state(slot)
        self.run(self._check_undecided(slot))

    @rule(back=_back)
    def ask_blob(self, back: int) -> None:
        blob = self.blob(back)
        self.run(self._check_blob(blob))

    @rule(number=st.integers(1, 50))
    def time_passes(self, number: int) -> None:
        self.clock.now_ms += number

    async def _check_register(self, path: str) -> None:
        slot = slot_of(path)
        wanted = _register(self.model.slots.get(slot, ModelSlot()), path)
        assert await self.store.load(slot, path) == wanted
        assert self.store.peek(slot, path) == wanted

    async def _check_rows(self, path: str, below: int, limit: int) -> None:
        slot = slot_of(path)
        known = self.model.slots.get(slot, ModelSlot())
        wanted = sorted(known.rows.get(path, {}).values(), key=lambda version: -version.version)
        rows = await self.store.rows(slot, path)
        assert [row.version for row in rows] == wanted
        assert [row.version for row in await self.store.rows(slot, path, below=below, limit=limit)] == [
            version for version in wanted if version.version < below
        ][:limit]
        assert [row.version for row in await self.store.rows(slot, path, version=below)] == [
            version for version in wanted if version.version == below
        ]
        register = known.registers.get(path)
        if register is not None and register[2] and slot not in self.model.lost:
            record = register[1]
            for row in rows:
                is_live = covers(record.live, row.version.version)
                assert (row.tombstoned_at_ms is None) == is_live, (path, row, record)
        marks = known.writes.get(path, {})
        for write_id in self.write_ids[path]:
            assert await self.store.find_write(slot, path, write_id) == marks.get(write_id)

    async def _check_undecided(self, slot: int) -> None:
        assert await self.store.undecided(slot) == self.model.slots.get(slot, ModelSlot()).undecided

    async def _check_listing(self, prefix: str, start: str, delimiter: str, limit: int) -> None:
        page = await self.store.scan(prefix, start, delimiter, limit)
        entries, following = listing(self.model.slots, prefix, start, delimiter, limit)
        assert list(page.entries) == entries, _difference(page.entries, entries)
        assert page.next_start == following

    def _check_state(self, slot: int) -> None:
        known, state = self.model.slots.get(slot, ModelSlot()), self.store.slot_state(slot)
        if slot in self.model.lost:
            assert state.incarnation != self.store.disk_id
            assert self.store.incarnations()[slot] == state.incarnation
            assert state.epoch >= known.epoch and state.promise_ceiling >= known.ceiling
        else:
            assert state.incarnation == self.store.disk_id and slot not in self.store.incarnations()
            assert (state.epoch, state.promise_ceiling) == (known.epoch, known.ceiling)

    async def _blob_state(self, blob: Blob) -> BlobState:
        """The blob's state, checked."""
        state = await self.store.blob_state(blob.slot, blob.blob_id)
        slot = self.model.slots.get(blob.slot, ModelSlot())
        folder = self.model.folders.get((blob.slot, blob.blob_id))
        if blob.blob_id in slot.bodies or blob.blob_id in slot.evicted:
            wanted = BlobState.DURABLE
        elif slot.intents.get(blob.blob_id) == "ABORTED":
            wanted = BlobState.ABORTED
        else:
            wanted = BlobState.DURABLE if folder and not folder.is_marked else BlobState.ABSENT
        # What a lost database knew of blobs is not told by registers and rows, so that its model is a guess.
        known = blob.slot not in self.model.lost and blob.blob_id not in self.vague
        assert state is wanted or not known, (state, wanted, blob)
        return state

    async def _check_blob(self, blob: Blob) -> None:
        await self._blob_state(blob)
        for chunk, part in zip(blob.chunks, blob.parts, strict=True):
            await self._check_chunk(blob, chunk, part)
        if blob.has_manifest:
            await self._check_manifest(blob)

    async def _check_chunk(self, blob: Blob, chunk: ChunkRef, part: bytes) -> None:
        key = (blob.slot, blob.blob_id)
        bodies = self.model.slots.get(blob.slot, ModelSlot()).bodies
        folder = self.model.folders.get(key, Folder())
        read = self.store.read_chunk(blob.slot, blob.blob_id, chunk)
        missing = await self.store.missing_chunks(blob.slot, blob.version(1, 0), blob.chunks)
        assert (chunk in missing) == (blob.blob_id not in bodies and chunk.id not in folder.files)
        if chunk in missing:
            with pytest.raises(ChunkMissing):
                await read
        elif key in self.model.bad_bodies or folder.files.get(chunk.id) is False:
            quarantined = len(list((self.folder / "quarantine").glob("*"))) if self._has_quarantine else 0
            with pytest.raises(ChunkCorrupt):
                await read
            assert len(list((self.folder / "quarantine").glob("*"))) == quarantined + 1
            if key in self.model.bad_bodies:
                self.model.bad_bodies.discard(key)
                del bodies[blob.blob_id]
                self.met("rotten body")
            else:
                del folder.files[chunk.id]
                folder.is_marked = True
                self.met("rotten chunk")
        else:
            assert await read == part

    @property
    def _has_quarantine(self) -> bool:
        return (self.folder / "quarantine").is_dir()

    async def _check_manifest(self, blob: Blob) -> None:
        assert blob.manifest is not None
        folder = self.model.folders.get((blob.slot, blob.blob_id), Folder())
        read = self.store.read_manifest(blob.slot, blob.blob_id, content_hash(blob.manifest))
        if _MANIFEST not in folder.files:
            with pytest.raises(ChunkMissing):
                await read
        elif not folder.files[_MANIFEST]:
            with pytest.raises(ChunkCorrupt):
                await read
            del folder.files[_MANIFEST]
            folder.is_marked = True
            if blob.blob_id in self.model.slots.get(blob.slot, ModelSlot()).evicted:
                self.vague.add(blob.blob_id)
            self.met("rotten manifest")
        else:
            assert await read == blob.manifest

    async def _check_everything(self) -> None:
        assert set(self.model.slots) <= set(self.store.slots())
        assert set(self.store.incarnations()) == self.model.lost
        for slot in range(SLOTS):
            self._check_state(slot)
            await self._check_undecided(slot)
        for path in PATHS:
            await self._check_register(path)
            await self._check_rows(path, 3, 1)
        for delimiter in ("", "/"):
            await self._check_listing("", "", delimiter, 1000)
        for blob in self.known:
            await self._check_blob(blob)
        for slot in range(SLOTS):
            staging_folder = self.folder / "slots" / str(slot) / "staging"
            assert not staging_folder.is_dir() or not list(staging_folder.iterdir())

    # -- restarts

    @rule(back=_back, is_open=st.booleans())
    def reboot(self, back: int, is_open: bool) -> None:
        blob = self.blob(back)
        self.run(self._reboot(blob if is_open and not blob.inline else None))

    async def _reboot(self, coming: Blob | None = None) -> None:
        if coming is not None:
            # Somebody sends bytes while the disk is closed: nothing is left of them.
            entrance = await self.store.stage(coming.slot, coming.blob_id, chunk_bytes=CHUNK_BYTES, size=None)
            await entrance.write(coming.data)
            self.met("staging over close")
        await self._close()
        await self._open()
        self.met("reboot")

    async def _close(self) -> None:
        await self.store.close()
        if self.store.failed is None:
            self.model.acknowledge(self.model.position)

    @rule(garbage=st.binary(max_size=80), tail=st.sampled_from(["keep", "cut", "zero", "flip"]))
    def crash(self, garbage: bytes, tail: str) -> None:
        self.run(self._crash(None, 0, tail, garbage))
        self.met("crash")
        self.run(self._reopened())

    @rule(
        back=_back,
        kind=st.sampled_from(["accept", "mark", "learn"]),
        calls=st.integers(1, 3),
        tail=st.sampled_from(["keep", "cut", "zero", "flip"]),
    )
    def crash_within_deliver(self, back: int, kind: str, calls: int, tail: str) -> None:
        made = self.made(back)
        if made is None:
            return
        entry = self.run(self._entry(made, kind))
        if entry is None:
            return

        async def work() -> None:
            position = self.store.apply(entry)
            assert position == self.model.append(entry)
            await self.store.durable(position)

        if self.run(self._crash(work(), calls, tail)):
            self.model.acknowledge(self.model.position)
        else:
            self.met("crash within deliver")
        self.run(self._reopened())

    @rule(back=_back, calls=st.integers(1, 20), tail=st.sampled_from(["keep", "cut", "zero"]))
    def crash_within_stage(self, back: int, calls: int, tail: str) -> None:
        blob = self.blob(back)
        if blob.inline or self.run(self._blob_state(blob)) is BlobState.ABORTED or blob.slot in self.model.lost:
            return
        before = self.model.folders.get((blob.slot, blob.blob_id))
        self._staged(blob, revive=False)
        position = self.model.position
        done = self.run(self._crash(self._staging(blob, revive=False, step=1000), calls, tail))
        seen = self._settle_folder(blob)
        if done:
            self.model.acknowledge(position)
            assert seen == self.model.folders[blob.slot, blob.blob_id]
        else:
            self.met("crash within stage")
            assert seen in (before, _full(blob)) or (before is not None and before.is_marked and seen is None)
            if seen is not None and seen != before:
                # Bytes are in place only after the entry was durable.
                self.model.acknowledge(position)
            self._put_folder(blob, seen)
        self.run(self._reopened())

    @rule(back=_back, calls=st.integers(1, 6), tail=st.sampled_from(["keep", "cut", "zero"]))
    def crash_within_discard(self, back: int, calls: int, tail: str) -> None:
        blob = self.blob(back)
        if not self._may_discard(blob):
            return
        before = self.model.folders.get((blob.slot, blob.blob_id))
        known = self.model.position
        self._discarded(blob)
        position = self.model.position
        done = self.run(self._crash(self.store.discard(blob.slot, blob.blob_id), calls, tail))
        seen = self._settle_folder(blob)
        if done:
            self.model.acknowledge(position if position > known else 0)
            assert seen == self.model.folders.get((blob.slot, blob.blob_id))
        elif position > known:
            self.met("crash within discard")
            assert seen in (before, None)
            if seen is None and before is not None:
                self.model.acknowledge(position)
            self.run(self._open(check=False))
            # A restart ends what was begun; bytes whose end was not durable are all there.
            is_aborted = self.model.slots.get(blob.slot, ModelSlot()).intents.get(blob.blob_id) == "ABORTED"
            assert self._settle_folder(blob) == (None if is_aborted else before)
            self._put_folder(blob, None if is_aborted else before)
            self.run(self._check_everything())
            return
        self.run(self._reopened())

    @rule(back=_back, number=st.integers(0, 7), calls=st.integers(1, 12))
    def crash_within_install(self, back: int, number: int, calls: int) -> None:
        blob = self.blob(back)
        version = self._version(blob)
        if version is None or not blob.data or blob.inline:
            return
        key = (blob.slot, blob.blob_id)
        before = self.model.folders.get(key, Folder(is_marked=True))
        before = Folder(dict(before.files), before.is_marked)
        number %= len(blob.chunks) + blob.has_manifest
        name = _MANIFEST if number == len(blob.chunks) else blob.chunks[number].id
        self._installed(blob, name)
        after = self.model.folders[key]
        done = self.run(self._crash(self._installing_(blob, version, number), calls, "keep"))
        seen = self._settle_folder(blob)
        if done:
            assert seen == after
        else:
            self.met("crash within install")
            if seen is None:
                assert not before.files
            else:
                assert seen.files in (before.files, after.files)
                assert seen.is_marked in (before.is_marked, after.is_marked)
                assert seen.is_marked or set(seen.files) == set(_full(blob).files)
            self._put_folder(blob, seen)
        self.run(self._reopened())

    async def _installing_(self, blob: Blob, version: Version, number: int) -> None:
        await self._installing(blob, version, number)

    def _settle_folder(self, blob: Blob) -> Folder | None:
        """The blob's folder as it lies on the disk."""
        folder = self.folder / "slots" / str(blob.slot) / "blobs" / blob.blob_id
        if not folder.is_dir():
            return None
        seen = Folder(is_marked=(folder / "incomplete").exists())
        for path in (folder / "chunks").iterdir() if (folder / "chunks").is_dir() else ():
            if not path.name.endswith(".tmp"):
                seen.files[path.name] = content_hash(path.read_bytes()) == path.name
        if (folder / "manifest.json").exists():
            seen.files[_MANIFEST] = (folder / "manifest.json").read_bytes() == blob.manifest
        return seen

    def _put_folder(self, blob: Blob, seen: Folder | None) -> None:
        self.model.folders.pop((blob.slot, blob.blob_id), None)
        if seen is not None:
            self.model.folders[blob.slot, blob.blob_id] = seen

    async def _crash(self, work: Coroutine[Any, Any, None] | None, calls: int, tail: str, garbage: bytes = b"") -> bool:
        """The process dies at the ``calls``-th system call within ``work``; whether that was done before.

        Leaves a copy of the disk as :attr:`folder`, not opened.
        """
        target = self.root / str(next(self.numbers))
        loop, reached = asyncio.get_running_loop(), asyncio.Event()

        def copy() -> None:
            unsynced = self.ops.unsynced(self.folder)
            copy_disk(self.folder, target)
            for name, (begin, end) in unsynced.items():
                if _spoil(target / "journal" / name, begin, end, tail):
                    MET["unsynced journal bytes"] += 1

        def trapped() -> None:
            loop.call_soon_threadsafe(reached.set)

        done = work is None
        database = self.store._core._database
        if work is None:
            self.ops.freeze(copy)
            await database.call(self.ops.copy_once)
        else:
            self.ops.arm(calls, trapped, copy)
            task = asyncio.create_task(work)
            waiting = asyncio.create_task(reached.wait())
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
            if not reached.is_set():
                done = True
                self.ops.freeze(copy)
            await database.call(self.ops.copy_once)
            waiting.cancel()
            await task
        await self.store.close()
        if garbage.strip(b"\0"):
            numbers = segment_numbers(target / "journal")
            scan = scan_file(target / "journal", numbers[-1])
            if scan.header is not None and not scan.problem:
                with segment_path(target / "journal", numbers[-1]).open("r+b") as file:
                    file.seek(scan.stop)
                    file.write(garbage)
                self.met("torn tail")
        shutil.rmtree(self.folder)
        self.folder = target
        return done

    async def _reopened(self) -> None:
        await self._open()

    # -- bad luck

    @rule(slot=st.integers(0, SLOTS - 1), tail=st.sampled_from(["keep", "cut", "zero", "flip"]))
    def failing_sync(self, slot: int, tail: str) -> None:
        async def work() -> None:
            self.ops.broken["fdatasync"] = ("/journal/", IO_ERROR)
            position = self.store.apply(Reserved(slot, 9000))
            assert position == self.model.append(Reserved(slot, 9000))
            with pytest.raises(DiskFailed):
                await self.store.durable(position)
            assert self.store.failed
            with pytest.raises(DiskFailed):
                self.store.apply(Reserved(slot, 9001))
            with pytest.raises(DiskFailed):
                await self.store.stage(slot, self.mint(), chunk_bytes=CHUNK_BYTES, size=None)
            unsynced = self.ops.unsynced(self.folder)
            await self._close()
            self.met("failed sync")
            for name, (begin, end) in unsynced.items():
                if _spoil(self.folder / "journal" / name, begin, end, tail):
                    self.met("unsynced journal bytes")
            await self._open()

        self.run(work())

    @rule(back=_back, name=st.sampled_from(["free", "write", "allocate", "create"]))
    def no_room(self, back: int, name: str) -> None:
        blob = self.blob(back)
        if not blob.inline and blob.data:
            self.run(self._no_room(blob, name))

    async def _no_room(self, blob: Blob, name: str) -> None:
        state = await self._blob_state(blob)
        position = self.store.apply(EpochSeen(blob.slot, 1))
        self.model.append(EpochSeen(blob.slot, 1))
        self.clock.now_ms += 1000
        if name == "free":
            self.ops.free = 0
            assert self.store.full
            self.met("no room")
            version = self._version(blob)
            if version is not None:
                with pytest.raises(DiskFull):
                    await self.store.install_chunk(blob.slot, version, blob.chunks[0], blob.parts[0])
        else:
            self.ops.broken[name] = ("/staging/", NO_ROOM)
        before = self.ops.met[name]
        with pytest.raises(DiskFull):
            await self._staging(blob, revive=False, step=7)
        if name != "free":
            assert self.ops.met[name] > before
            self.met("no room within a write")
        # Decisions still go through.
        await self.store.durable(position)
        self.model.acknowledge(position)
        assert self.store.failed is None
        self.ops.broken.clear()
        self.ops.free = None
        self.clock.now_ms += 1000
        assert not self.store.full
        assert await self._blob_state(blob) is state
        assert not list((self.folder / "slots" / str(blob.slot) / "staging").glob("*"))
        await self._check_blob(blob)

    @rule(back=_back, where=st.sampled_from(["write", "fsync", "rename", "rename into blobs"]))
    def failing_write(self, back: int, where: str) -> None:
        blob = self.blob(back)
        if not blob.inline and blob.data and blob.slot not in self.model.lost:
            self.run(self._failing_write(blob, where))

    async def _failing_write(self, blob: Blob, where: str) -> None:
        state = await self._blob_state(blob)
        name = where.split()[0]
        if where == "rename into blobs":
            if state is not BlobState.ABSENT or (blob.slot, blob.blob_id) in self.model.folders:
                return
            self.model.append(Staged(blob.slot, blob.blob_id, self.clock.now_ms), acknowledge=True)
        self.ops.broken[name] = ("/blobs/" if where == "rename into blobs" else "/staging/", IO_ERROR)
        with pytest.raises(DiskFailed):
            await self._staging(blob, revive=False, step=13)
        assert self.store.failed
        self.met("failed write")
        # What was known is still answered.
        for path in PATHS:
            with contextlib.suppress(DiskFailed):
                assert await self.store.load(slot_of(path), path) == _register(
                    self.model.slots.get(slot_of(path), ModelSlot()), path
                )
        await self._close()
        await self._open()

    @rule(back=_back, number=st.integers(0, 7), manifest=st.booleans(), read=st.booleans(), heal=st.booleans())
    def rotten_file(self, back: int, number: int, manifest: bool, read: bool, heal: bool) -> None:
        blob = self.blob(back)
        folder = self.model.folders.get((blob.slot, blob.blob_id))
        if folder is None or not folder.files:
            return
        name = _MANIFEST if manifest and _MANIFEST in folder.files else sorted(folder.files)[number % len(folder.files)]
        if not folder.files[name]:
            return
        place = self.folder / "slots" / str(blob.slot) / "blobs" / blob.blob_id
        path = place / "manifest.json" if name == _MANIFEST else place / "chunks" / name
        data = bytearray(path.read_bytes())
        data[number % len(data)] ^= 1
        path.write_bytes(data)
        folder.files[name] = False
        if read or name == _MANIFEST:
            self.run(self._check_blob(blob))
            if heal:
                self.run(self._heal(blob))

    @rule(back=_back)
    def rotten_body(self, back: int) -> None:
        """A bit of an inline body flips in the database, while the disk is off."""
        blob = self.blob(back)
        slot = self.model.slots.get(blob.slot, ModelSlot())
        if blob.blob_id not in slot.bodies or (blob.slot, blob.blob_id) in self.model.bad_bodies:
            return
        self.run(self._close())
        with contextlib.closing(sqlite3.connect(self.folder / "slots" / str(blob.slot) / "meta.sqlite3")) as database:
            body = bytes([blob.data[0] ^ 1]) + blob.data[1:]
            count = database.execute(
                "UPDATE inline_bodies SET body = ? WHERE blob_id = ?", (body, blob.blob_id)
            ).rowcount
            assert count == 1
            database.commit()
        self.model.bad_bodies.add((blob.slot, blob.blob_id))
        self.run(self._open())

    @rule(
        slot=st.integers(0, SLOTS - 1),
        how=st.sampled_from(["delete", "garbage", "empty", "header"]),
        clean=st.booleans(),
    )
    def lost_slot(self, slot: int, how: str, clean: bool) -> None:
        """A slot's database is gone after a restart, or after a crash."""
        if clean:
            self.run(self._close())
        else:
            self.run(self._crash(None, 0, "keep"))
        path = self.folder / "slots" / str(slot) / "meta.sqlite3"
        if path.exists():
            _damage(path, how)
            if how in ("delete", "empty"):
                for part in ("-wal", "-shm"):
                    path.with_name(path.name + part).unlink(missing_ok=True)
        self.run(self._open())
        if [lost.slot for lost in self.store.lost_slots] == [slot]:
            self.met("lost slot")
        else:
            # It was never made durable: the journal still has everything, and that was checked.
            assert not self.store.lost_slots

    @rule(slot=st.integers(0, SLOTS - 1))
    def slot_lost_while_running(self, slot: int) -> None:
        self.run(self._lose_running(slot, gentle=False))

    async def _lose_running(self, slot: int, *, gentle: bool) -> None:
        if gentle:
            await self._applied()
        file = self.folder / "slots" / str(slot) / "meta.sqlite3"
        before = len(self.store.lost_slots)

        def damage() -> bool:
            # On the database thread, so that nobody has it open.
            if slot in self.store._pool.open_slots() or not file.exists():
                return False
            _damage(file, "garbage")
            return True

        if not await self.store._core._database.call(damage):
            return
        await self.store.undecided(slot)
        await self.store.scan("", "", "", 1)
        assert [lost.slot for lost in self.store.lost_slots[before:]] == [slot]
        await asyncio.sleep(0)
        self.model.acknowledge(self.model.position)
        self.model.lost.add(slot)
        await self._adopt()
        self.met("slot lost while running")
        if gentle:
            await self.store.durable(self.store.apply(EpochSeen(slot, 0)))
            self.model.append(EpochSeen(slot, 0), acknowledge=True)
            await self._applied()
        await self._check_everything()

    async def _applied(self) -> None:
        """Until every database has everything, and memory knows that."""
        for slot in range(SLOTS):
            await self.store.undecided(slot)
        while self.store._core.overlay.unapplied_bytes:
            await asyncio.sleep(0.001)

    @rule(how=st.sampled_from(["delete", "garbage", "empty", "header"]), clean=st.booleans())
    def lost_index(self, how: str, clean: bool) -> None:
        if clean:
            self.run(self._close())
        else:
            self.run(self._crash(None, 0, "keep"))
        path = self.folder / "index.sqlite3"
        _damage(path, how)
        if how in ("delete", "empty"):
            for part in ("-wal", "-shm"):
                path.with_name(path.name + part).unlink(missing_ok=True)
        self.run(self._open())
        assert not self.store.lost_slots
        self.met("lost index")

    @rule(number=st.integers(0, 1000), at=st.integers(0, 1000))
    def corrupt_journal(self, number: int, at: int) -> None:
        """What was durable in the journal is damaged, and more follows: nobody may vote with that disk."""
        self.run(self._corrupt_journal(number, at))

    async def _corrupt_journal(self, number: int, at: int) -> None:
        copy = self.root / str(next(self.numbers))

        def take() -> None:
            copy_disk(self.folder, copy)

        self.ops.freeze(take)
        await self.store._core._database.call(self.ops.copy_once)
        frames = [
            (segment, frame)
            for segment in segment_numbers(copy / "journal")
            for frame in scan_file(copy / "journal", segment).frames
        ][:-1]
        if frames:
            segment, frame = frames[number % len(frames)]
            _spoil(segment_path(copy / "journal", segment), frame.payload_offset + at % frame.payload_length, 0, "flip")
            with pytest.raises(JournalCorrupt):
                await DiskStore.open(
                    copy, cluster_id="c", node_id="n", clock=self.clock, randomness=SeededRandomness(1), reserve_bytes=0,
                    segment_bytes=8192,
                )  # fmt: skip
            self.met("corrupt journal")
        shutil.rmtree(copy)


def _register(slot: ModelSlot, path: str) -> Register:
    known = slot.registers.get(path)
    return EMPTY_REGISTER if known is None else Register(*known)


def _explains(
    state: SlotState, registers: dict[str, Register], rows: dict[str, set[int]], writes: dict[str, set[str]],
    known: ModelSlot,
) -> bool:  # fmt: skip
    """Whether a slot that knows ``known`` gives these answers. (Its own state may be remembered from before.)"""
    return (
        known.epoch <= state.epoch
        and known.ceiling <= state.promise_ceiling
        and all(registers[path] == _register(known, path) for path in registers)
        and all(rows[path] == set(known.rows.get(path, {})) for path in rows)
        and all(writes[path] == set(known.writes.get(path, {})) for path in writes)
    )


def _difference(seen: Sequence[ScanEntry], wanted: Sequence[ScanEntry]) -> str:
    def told(entries: Iterable[ScanEntry]) -> list[tuple[str, int, bool, str]]:
        return [(entry.path, entry.version, entry.chosen, str(entry.ballot)) for entry in entries]

    more, less = set(told(seen)) - set(told(wanted)), set(told(wanted)) - set(told(seen))
    return f"listed and not there: {more}; there and not listed: {less}"


def _full(blob: Blob) -> Folder:
    files = {chunk.id: True for chunk in blob.chunks}
    return Folder({**files, _MANIFEST: True} if blob.has_manifest else files)


def _spoil(path: Path, begin: int, end: int, how: str) -> bool:
    """Do to bytes of a file what a crash may do to those that were not synced; whether they are worse for it."""
    with path.open("r+b") as file:
        file.seek(begin)
        data = file.read(max(end - begin, 1))
        if how == "cut":
            file.truncate(begin + len(data) // 2)
        elif how != "keep":
            file.seek(begin)
            file.write(bytes(len(data)) if how == "zero" else bytes([data[0] ^ 0x40]) + data[1:])
    return how != "keep"


def _damage(path: Path, how: str) -> None:
    match how:
        case "delete":
            path.unlink()
        case "garbage":
            path.write_bytes(b"this is no database at all" * 400)
        case "empty":
            path.write_bytes(b"")
        case _:
            path.write_bytes(b"\0" * 100 + path.read_bytes()[100:])


def _walk() -> None:
    """Every fault once, on a disk that has something to lose."""
    disk = Disk()
    try:
        disk.begin(segment=8192, clean=3, opened=1, linger=0.0)
        for _ in range(2):
            disk.new_blob(path="a", size=200, letter="c", same=False, kind="manifest")
            disk.crash_within_stage(back=0, calls=4, tail="keep")
            disk.crash_within_stage(back=0, calls=16, tail="keep")
            disk.stage(back=0, revive=False, how="finish", step=50)
            disk.crash_within_discard(back=0, calls=2, tail="keep")
            disk.sweep(age=-1, limit=1000)
            second = len(disk.known) - 2
            disk.rotten_file(back=second, number=0, manifest=True, read=True, heal=False)
            disk.rotten_file(back=second, number=0, manifest=False, read=True, heal=False)
            disk.heal(back=second)
        # What was given up stays so, also when only the database knows it.
        disk.new_blob(path="a", size=65, letter="b", same=False, kind="files")
        disk.stage(back=0, revive=False, how="finish", step=50)
        disk.discard(back=0)
        for revive in (False, True):
            disk.reboot(back=0, is_open=False)
            disk.stage(back=0, revive=revive, how="finish", step=50)
        for op in ("delete", "restore", "delete-version", "restore"):
            disk.propose(path="a/2", op=op, version=1, back=0, is_chosen=True)
            disk.accept_and_choose(back=0)
            disk.ask_history(path="a/2", below=2, limit=1)
        # Given up, with the bytes in files, in the database, and with a manifest.
        for path, size, kind in (("a", 200, "files"), ("a/1", 30, "inline"), ("a/2", 200, "manifest")):
            disk.new_blob(path=path, size=size, letter="b", same=False, kind=kind)
            disk.propose(path=path, op="put", version=1, back=0, is_chosen=True)
            disk.accept_and_choose(back=0)
            disk.archive(back=0, verified=False, all_of_it=True, wait=False)
            disk.evict(back=0)
            disk.archive(back=0, verified=True, all_of_it=True, wait=True)
            for calls in range(1, 8):
                disk.crash_within_evict(back=0, calls=calls, tail="keep")
                disk.evict(back=0)
                disk.heal(back=0)
        # Installed anew: what only a record tells of.
        disk.new_blob(path="a/1", size=200, letter="a", same=False, kind="files")
        disk.propose(path="a/1", op="put", version=1, back=0, is_chosen=True)
        disk.deliver(back=0, kind="learn", load=True, wait=True)
        for calls in range(1, 12):
            disk.crash_within_install(back=0, number=calls, calls=calls)
        for tail in ("cut", "zero", "flip"):
            disk.propose(path="b", op="put", version=1, back=0, is_chosen=True)
            disk.crash_within_deliver(back=0, kind="learn", calls=2, tail=tail)
            disk.failing_sync(slot=1, tail=tail)
        disk.crash(garbage=b"\xabAJb torn", tail="keep")
        disk.rotten_body(back=len(disk.known) - 3)
        for name in ("free", "write", "allocate", "create"):
            disk.no_room(back=0, name=name)
        for where in ("write", "fsync", "rename", "rename into blobs"):
            disk.failing_write(back=0, where=where)
        disk.reboot(back=0, is_open=True)
        for how in ("delete", "garbage", "empty", "header"):
            disk.lost_index(how=how, clean=True)
            disk.lost_slot(slot=0, how=how, clean=True)
        for number in range(3):
            disk.reserve(slot=1, number=number, epoch=False, wait=True)
        disk.corrupt_journal(number=1, at=5)
        for slot in range(SLOTS):
            disk.slot_lost_while_running(slot=slot)
    finally:
        disk.teardown()


@pytest.mark.timeout(900 + 2 * EXAMPLES)
def test_a_disk_is_a_dict():
    MET.clear()
    _walk()
    assert [fault for fault in FAULTS if not MET[fault]] == []
    run_machine(
        Disk,
        settings=settings(
            max_examples=EXAMPLES or 50, stateful_step_count=40, deadline=None, derandomize=not EXAMPLES, database=None,
            print_blob=True, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
    print(f"met {dict(MET)}")


async def test_a_register_that_waits_for_its_database_is_not_known_when_that_is_lost(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", open_databases_max=1, linger_s=60.0)
    record, ballot = kit.record(), kit.ballot()
    await store.load(0, "p")
    await store.durable(store.apply(Accepted(0, "p", ballot, record, b"body")))
    await store.rows(0, "p")
    await kit.put(store, 1, "q")
    await store.rows(1, "q")
    # The record is in the database of slot 0, which is closed now; that it was chosen waits in the journal.
    await store.durable(store.apply(Chosen(0, "p", ballot)))
    _damage(tmp_path / "d/slots/0/meta.sqlite3", "garbage")
    assert await store.rows(0, "p") == []
    assert [lost.slot for lost in store.lost_slots] == [0]
    await kit.until(lambda: store.incarnations())
    seen = await store.load(0, "p")
    await store.close()
    again = await kit.open(tmp_path / "d")
    assert await again.load(0, "p") == seen


async def test_what_a_restart_gives_back_to_a_lost_slot_is_listed(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d", open_databases_max=1, linger_s=0.0)
    await kit.put(store, 0, "p")
    await kit.put(store, 1, "q")
    await store.rows(0, "p")
    await store.rows(1, "q")
    await store.scan("", "", "", 10)
    await kit.until(lambda: not store._core.overlay.unapplied_bytes)
    _damage(tmp_path / "d/slots/0/meta.sqlite3", "garbage")
    assert await store.rows(0, "p") == []
    assert [entry.path for entry in (await store.scan("", "", "", 10)).entries] == ["q"]
    # The process dies before the fresh database gets anything: its next start reads the journal from the beginning.
    again = await kit.open(await kit.copy_still(store, tmp_path / "copy"))
    there = {path for path in ("p", "q") if (await again.load("pq".index(path), path)).record is not None}
    assert {entry.path for entry in (await again.scan("", "", "", 10)).entries} == there


async def test_a_blob_that_only_a_row_refers_to_is_known(kit, tmp_path: Path):
    store = await kit.open(tmp_path / "d")
    before, data = kit.record(), b"three chunks of bytes"
    chunk = ChunkRef(id=content_hash(data), len=len(data))
    put = Version(1, kit.mint(), len(data), chunk.id, 1, "t", {}, (chunk,), None, 1, False)
    delete = Record(2, "delete", 1, None, (), ((1, 1),), 2, 2, put, before.writes)
    # This replica missed the put; it learns of it by the delete, and then fetches its bytes.
    await store.load(0, "p")
    await store.durable(store.apply(Chosen(0, "p", kit.ballot(), delete)))
    await store.install_chunk(0, put, chunk, data)
    assert await store.read_chunk(0, put.blob_id, chunk) == data
    assert await store.blob_state(0, put.blob_id) is BlobState.DURABLE
