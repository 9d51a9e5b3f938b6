"""What the scenario does to a store: every kind of durable write, told line by line."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

from amberblob.ballot import Ballot, Register
from amberblob.clock import HybridClock, SystemClock, SystemRandomness
from amberblob.errors import AmberError, DigestMismatch, DiskFailed
from amberblob.ids import UlidMint, content_hash
from amberblob.manifest import ChunkRef, Record, Version, WriteMark, encode_manifest
from amberblob.mutations import Accepted, Chosen, EpochSeen, Forgotten, Installed, Reserved, Synced
from chunkstore import DiskStore
from chunkstore.fileops import FileOps
from chunkstore.interface import BlobState
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
    Trying,
    TryingBlob,
    TryingDiscard,
    TryingForget,
    TryingSweep,
)  # fmt: skip

SEGMENT_BYTES = 20_000
CHUNK_BYTES = 6_000
NOW = 1_700_000_000_000
CHECKPOINT_S = 100.0
"""Until old segments are gone: some syncs, on a machine that has more to do than this."""

Tell = Callable[[Line], None]


async def open_store(disk: Path, *, ops: FileOps | None = None, reserve_bytes: int = 0) -> DiskStore:
    """The real store, with small segments and little patience."""
    return await DiskStore.open(
        disk, cluster_id="cluster", node_id="node", clock=SystemClock(), randomness=SystemRandomness(),
        reserve_bytes=reserve_bytes, segment_bytes=SEGMENT_BYTES, linger_s=0.02, ops=ops,
    )  # fmt: skip


def body_of(name: str, size_bytes: int) -> bytes:
    """Bytes that belong to a name, and do not repeat."""
    return hashlib.shake_128(name.encode()).digest(size_bytes)


def cut(data: bytes, chunk_bytes: int) -> tuple[ChunkRef, ...]:
    """The chunks of ``data``."""
    parts = [data[at : at + chunk_bytes] for at in range(0, len(data), chunk_bytes)]
    return tuple(ChunkRef(id=content_hash(part), len=len(part)) for part in parts)


class Hand:
    """Writes to a store as a replica does, and tells what it tries and what was acknowledged."""

    def __init__(self, store: DiskStore, mint: UlidMint, tell: Tell) -> None:
        self.store = store
        self.mint = mint.mint
        self._tell = tell
        self._counter = itertools.count(1)

    def ballots_from(self, counter: int) -> None:
        """Ballots are above all that were used before."""
        self._counter = itertools.count(counter)

    def ballot(self) -> Ballot:
        """The next one."""
        counter = next(self._counter)
        return Ballot(1, counter, "node", f"attempt-{counter}")

    # -- registers

    async def reserve(self, slot: int, ceiling: int, epoch: int) -> None:
        """Promises and the epoch."""
        self.store.apply(Reserved(slot, ceiling))
        await self.store.durable(self.store.apply(EpochSeen(slot, epoch)))
        self._tell(SlotHolds(slot, ceiling, epoch))

    def version(self, number: int, blob_id: str, body: bytes, chunks: tuple[ChunkRef, ...], *, inline: bool) -> Version:
        """What a record says of one version."""
        return Version(
            number, blob_id, len(body), content_hash(body), NOW + number, "text/plain", {"a": "b"}, chunks, None,
            len(chunks), inline,
        )  # fmt: skip

    def put_record(self, before: Record | None, version: Version) -> Record:
        """A put upon ``before``."""
        revision = before.revision + 1 if before else 1
        number = version.version
        live = (*(before.live if before else ()), (number, number))
        mark = WriteMark(f"write-{revision}-{version.blob_id}", "put", number, NOW)
        previous = before.added if before else None
        return Record(revision, "put", number, version, live, (), NOW, 0, previous, (mark,))

    def delete_record(self, before: Record) -> Record:
        """A delete of the path upon ``before``."""
        mark = WriteMark(f"delete-{before.revision + 1}", "delete", before.version_max, NOW)
        return Record(
            before.revision + 1, "delete", before.version_max, None, (), before.live, NOW, NOW, before.added, (mark,)
        )  # fmt: skip

    async def current(self, slot: int, path: str) -> Record | None:
        """The record to build upon; one that is undecided is finished first."""
        register = await self.store.load(slot, path)
        if register.record is not None and not register.chosen:
            assert register.accepted is not None
            await self.choose(slot, path, register.accepted, register.record)
        return register.record

    async def accept(self, slot: int, path: str, record: Record, body: bytes | None) -> Ballot:
        """Accept a record; acknowledged when durable."""
        ballot = self.ballot()
        register = Register(ballot, record, False)
        self._tell(Trying(slot, path, register))
        await self.store.durable(self.store.apply(Accepted(slot, path, ballot, record, body)))
        self._tell(Holds(slot, path, register))
        return ballot

    async def choose(
        self, slot: int, path: str, ballot: Ballot, record: Record, *, install: bool = False, bytes_here: bool = True
    ) -> None:
        """Learn that a record was chosen; acknowledged when durable."""
        register = Register(ballot, record, True)
        self._tell(Trying(slot, path, register, bytes_here))
        await self.store.durable(self.store.apply(Chosen(slot, path, ballot, record if install else None)))
        self._tell(Holds(slot, path, register))

    async def put(self, slot: int, path: str, body: bytes, *, choose: bool = True) -> Record:
        """A small object."""
        before = await self.current(slot, path)
        number = before.version_max + 1 if before else 1
        chunks = cut(body, len(body))
        record = self.put_record(before, self.version(number, self.mint(), body, chunks, inline=True))
        ballot = await self.accept(slot, path, record, body)
        if choose:
            await self.choose(slot, path, ballot, record)
        return record

    async def delete(self, slot: int, path: str) -> None:
        """The path."""
        before = await self.current(slot, path)
        if before is not None and before.live:
            record = self.delete_record(before)
            await self.choose(slot, path, await self.accept(slot, path, record, None), record)

    async def put_large(self, slot: int, path: str, data: bytes, *, manifest: bool = False) -> None:
        """An object whose bytes are files: staged first, then referred to."""
        before = await self.current(slot, path)
        blob_id = self.mint()
        chunks, manifest_id = await self.stage(slot, blob_id, data, manifest=manifest)
        number = before.version_max + 1 if before else 1
        version = self.version(number, blob_id, data, chunks, inline=False)
        record = self.put_record(before, version)
        if manifest_id is not None:
            head = Version(
                number, blob_id, len(data), version.etag, NOW, "text/plain", {}, (), manifest_id, len(chunks), False
            )
            record = self.put_record(before, head)
        ballot = await self.accept(slot, path, record, None)
        await self.choose(slot, path, ballot, record)

    async def pull(self, slot: int, path: str, data: bytes) -> None:
        """A record that was missed, then its chunks one by one."""
        before = await self.current(slot, path)
        blob_id = self.mint()
        chunks = cut(data, CHUNK_BYTES)
        number = before.version_max + 1 if before else 1
        version = self.version(number, blob_id, data, chunks, inline=False)
        self._tell(TryingBlob(slot, blob_id, chunks))
        record = self.put_record(before, version)
        await self.choose(slot, path, self.ballot(), record, install=True, bytes_here=False)
        for index, chunk in enumerate(chunks):
            await self.store.install_chunk(
                slot, version, chunk, data[index * CHUNK_BYTES : index * CHUNK_BYTES + chunk.len]
            )
            self._tell(ChunkHolds(slot, blob_id, chunk))
        if await self.store.blob_state(slot, blob_id) is not BlobState.DURABLE:
            self._tell(Broken(f"blob {blob_id} has all its chunks and is not durable"))
        self._tell(BlobHolds(slot, blob_id))

    async def pull_many(self, slot: int, bodies: dict[str, bytes], *, inline: bool) -> None:
        """Records that were missed, then the bytes of all at once."""
        given: list[tuple[Version, bytes]] = []
        for path, body in bodies.items():
            before = await self.current(slot, path)
            chunks = cut(body, len(body))
            version = self.version(before.version_max + 1 if before else 1, self.mint(), body, chunks, inline=inline)
            self._tell(TryingBlob(slot, version.blob_id, chunks))
            record = self.put_record(before, version)
            await self.choose(slot, path, self.ballot(), record, install=True, bytes_here=False)
            given.append((version, body))
        await (self.store.install_bodies if inline else self.store.install_blobs)(slot, given)
        for version, _ in given:
            if await self.store.blob_state(slot, version.blob_id) is not BlobState.DURABLE:
                self._tell(Broken(f"blob {version.blob_id} was put back and is not durable"))
            self._tell(BlobHolds(slot, version.blob_id))

    async def expire(self, slot: int, path: str) -> list[Version]:
        """All versions of the path but the newest, which are deleted first; returns them."""
        before = await self.current(slot, path)
        assert before is not None and before.head is not None
        newest = before.version_max
        old = [row.version for row in await self.store.rows(slot, path) if row.version.version != newest]
        mark = WriteMark(f"expire-{before.revision + 1}", "expire", 0, NOW)
        record = Record(
            before.revision + 1, "expire", newest, before.head, ((newest, newest),), (), NOW, NOW, before.added, (mark,),
            ((1, newest - 1),),
        )  # fmt: skip
        await self.choose(slot, path, await self.accept(slot, path, record, None), record)
        return old

    async def collect(self, slot: int, versions: list[Version], *, alone: bool) -> None:
        """The bytes of these expired versions, and no others if this is the first life (``alone``): one that was killed
        before it collected has left more."""
        await self.store.settle([slot])
        count = await self.store.sweep_garbage(slot, 100)
        if count < len(versions) or (alone and count > len(versions)):
            self._tell(Broken(f"{len(versions)} blobs were garbage, and {count} were removed"))
        for version in versions:
            self._tell(Discarded(slot, version.blob_id))

    async def lose(self, slot: int, path: str, body: bytes) -> None:
        """A record is accepted with its bytes, and another one is chosen: those of the first are nobody's then."""
        before = await self.current(slot, path)
        blob_id, number = self.mint(), before.version_max + 1 if before else 1
        chunks, _ = await self.stage(slot, blob_id, body)
        await self.accept(
            slot, path, self.put_record(before, self.version(number, blob_id, body, chunks, inline=False)), None
        )
        self._tell(TryingDiscard(slot, blob_id))
        winner = self.put_record(before, self.version(number, self.mint(), b"w", cut(b"w", 1), inline=True))
        await self.choose(slot, path, await self.accept(slot, path, winner, b"w"), winner)
        await self.store.settle([slot])
        # A life that was killed before may have left another.
        if blob_id not in await self.store.orphans(slot, 1 << 47):
            self._tell(Broken(f"{blob_id} is nobody's, and no orphan"))
        await self.store.discard(slot, blob_id)
        self._tell(Discarded(slot, blob_id))

    async def install(self, slot: int, path: str, bodies: list[bytes]) -> None:
        """All of a path that was missed, as another replica tells it: rows and record at once, and then the bytes."""
        given: list[tuple[Version, bytes]] = []
        record: Record | None = None
        for number, body in enumerate(bodies, start=1):
            version = self.version(number, self.mint(), body, cut(body, len(body)), inline=True)
            self._tell(TryingBlob(slot, version.blob_id, version.chunks))
            record = self.put_record(record, version)
            given.append((version, body))
        assert record is not None
        ballot, rows = self.ballot(), tuple(version for version, _ in given)
        register = Register(ballot, record, True)
        self._tell(Trying(slot, path, register, False))
        await self.store.durable(self.store.apply(Installed(slot, path, ballot, record, rows, record.writes)))
        self._tell(Holds(slot, path, register))
        if len([one for one in await self.store.wanted(slot, 100) if one.path == path]) != len(bodies):
            self._tell(Broken(f"{path} came without its bytes, and they are not all wanted"))
        await self.store.install_bodies(slot, given)
        for version, _ in given:
            self._tell(BlobHolds(slot, version.blob_id))
        if any(one.path == path for one in await self.store.wanted(slot, 100)):
            self._tell(Broken(f"the bytes of {path} came and are wanted"))

    async def sync(self, slot: int, epoch: int) -> None:
        """The copy holds what the others hold."""
        floor = Ballot(epoch, 1, "~", "~")
        await self.store.durable(self.store.apply(Synced(slot, epoch, floor, epoch)))
        self._tell(SlotHolds(slot, epoch=epoch, synced_epoch=epoch, version_floor=epoch))

    async def forget(self, slot: int, path: str, body: bytes) -> None:
        """A path comes, is deleted, expires whole, and its stub goes."""
        await self.put(slot, path, body)
        await self.delete(slot, path)
        stub = await self.current(slot, path)
        assert stub is not None
        mark = WriteMark(f"expire-{stub.revision + 1}", "expire", 0, NOW)
        record = Record(stub.revision + 1, "expire", 1, None, (), (), NOW, NOW, None, (mark,), ((1, 1),))
        ballot = await self.accept(slot, path, record, None)
        await self.choose(slot, path, ballot, record)
        self._tell(TryingForget(slot, path))
        await self.store.durable(self.store.apply(Forgotten(slot, path, ballot, 1)))
        self._tell(Forgot(slot, path))
        self._tell(SlotHolds(slot, version_floor=1))

    # -- bytes

    async def stage(
        self, slot: int, blob_id: str, data: bytes, *, chunk_bytes: int = CHUNK_BYTES, manifest: bool = False,
        revive: bool = False,
    ) -> tuple[tuple[ChunkRef, ...], str | None]:  # fmt: skip
        """Bring a blob in; acknowledged when finish returns."""
        chunks = cut(data, chunk_bytes)
        text = encode_manifest(chunks) if manifest else None
        manifest_id = None if text is None else content_hash(text)
        self._tell(TryingBlob(slot, blob_id, chunks, manifest_id))
        staging = await self.store.stage(slot, blob_id, chunk_bytes=chunk_bytes, size=len(data), revive=revive)
        await staging.write(data)
        await staging.finish(chunks, text)
        self._tell(BlobHolds(slot, blob_id))
        return chunks, manifest_id

    async def stage_wrong(self, slot: int, data: bytes) -> None:
        """Bytes that are not what was announced: nothing may be left of them."""
        staging = await self.store.stage(slot, self.mint(), chunk_bytes=CHUNK_BYTES, size=None)
        await staging.write(data)
        try:
            await staging.finish(cut(b"another", 100), None)
        except DigestMismatch:
            return
        self._tell(Broken("bytes that are not the announced chunks were taken"))

    async def stage_and_leave(self, slot: int, data: bytes) -> None:
        """A client that goes away."""
        staging = await self.store.stage(slot, self.mint(), chunk_bytes=CHUNK_BYTES, size=len(data) * 2)
        await staging.write(data)
        await staging.abort()

    async def discard(self, slot: int, blob_id: str) -> None:
        """Give a staged blob up."""
        self._tell(TryingDiscard(slot, blob_id))
        await self.store.discard(slot, blob_id)
        self._tell(Discarded(slot, blob_id))

    async def sweep(self, *blobs: tuple[int, str]) -> None:
        """Garbage collection of blobs that nothing refers to."""
        self._tell(TryingSweep())
        count = await self.store.sweep_staged(1 << 60, 100)
        if count < len(blobs):
            self._tell(Broken(f"{len(blobs)} blobs were to be swept, and {count} were"))
        for blob in blobs:
            self._tell(Discarded(*blob))


class Workload:
    """One life of a store. ``phase`` is the number of the life: later ones go on with what is there.

    With ``carry_on`` a step that the store refuses is told and the next one is tried (a full or a broken disk), also
    after ``step_s``: what asks of a full disk waits for room.
    """

    def __init__(self, disk: Path, tell: Tell, *, phase: int = 1, carry_on: bool = False, step_s: float = 3.0) -> None:
        self._disk = disk
        self._tell = tell
        self._phase = phase
        self._carry_on = carry_on
        self._step_s = step_s if carry_on else None

    async def run(self, ops: FileOps | None, *, reserve_bytes: int = 0) -> None:
        """Open, work, close."""
        store = await open_store(self._disk, ops=ops, reserve_bytes=reserve_bytes)
        self._tell(Opened(store.disk_id))
        try:
            await self._work(store)
            if store.failed is not None:
                await self._check_that_it_stays_failed(store)
        finally:
            await store.close()
        if store.failed is None:
            self._tell(Closed())

    async def _check_that_it_stays_failed(self, store: DiskStore) -> None:
        """A disk that failed takes nothing any more and acknowledges nothing."""
        self._tell(Note("failed"))
        try:
            await store.durable(store.apply(Reserved(1, 1 << 40)))
        except DiskFailed:
            pass
        else:
            self._tell(Broken("the disk has failed and takes entries"))
        try:
            await (await store.stage(1, "0" * 26, chunk_bytes=10, size=1)).abort()
        except DiskFailed:
            pass
        else:
            self._tell(Broken("the disk has failed and takes bytes"))

    async def _work(self, store: DiskStore) -> None:
        hand = Hand(store, UlidMint(HybridClock(SystemClock().wall_ms), SystemRandomness()), self._tell)
        hand.ballots_from(self._phase * 1_000_000)
        for step in (
            self._small,
            self._large,
            self._garbage,
            self._many,
            self._pulled,
            self._mended,
            self._expired,
            self._more,
            self._healed,
        ):
            try:
                async with asyncio.timeout(self._step_s):
                    await step(hand)
            except (AmberError, TimeoutError) as error:
                self._tell(Refused(step.__name__, type(error).__name__, str(error)))
                if not self._carry_on:
                    raise
            self._tell(Note(f"step:{step.__name__}"))

    def _body(self, name: str, size_bytes: int) -> bytes:
        return body_of(f"{self._phase}:{name}", size_bytes)

    async def _small(self, hand: Hand) -> None:
        await hand.reserve(1, self._phase * 2000, self._phase)
        await hand.put(1, "first", self._body("first", 300))
        await hand.put(1, "first", self._body("second", 400), choose=False)
        await hand.put(1, "first", self._body("third", 500))
        await hand.put(2, "gone", self._body("gone", 200))
        await hand.delete(2, "gone")
        await asyncio.gather(*(hand.put(1 + n % 2, f"at-once-{n}", self._body(f"at-once-{n}", 100)) for n in range(5)))

    async def _large(self, hand: Hand) -> None:
        await hand.put_large(2, "large-2", self._body("large", 14_000))
        await hand.put_large(2, "listed", self._body("listed", 7_000), manifest=True)
        await hand.put_large(3, "large-3", self._body("first-of-its-slot", 5_000))

    async def _garbage(self, hand: Hand) -> None:
        staged = [(1, hand.mint()), (3, hand.mint()), (3, hand.mint())]
        for slot, blob_id in staged:
            await hand.stage(slot, blob_id, self._body(blob_id, 7_000))
        await hand.discard(*staged[0])
        await hand.sweep(*staged[1:])
        await hand.stage_wrong(1, self._body("wrong", 7_000))
        await hand.stage_and_leave(3, self._body("left", 7_000))
        await hand.stage(3, hand.mint(), self._body("stays", 3_000))

    async def _many(self, hand: Hand) -> None:
        """More than a few segments hold; then until all but the newest are gone."""
        for n in range(12):
            await hand.put(1 + n % 3, f"many-{n}", self._body(f"many-{n}", 4_000))
            if n == 6:
                await hand.delete(1, "many-0")
        folder = self._disk / "journal"
        async with asyncio.timeout(CHECKPOINT_S):
            while len(list(folder.iterdir())) > 1 and hand.store.failed is None:
                await asyncio.sleep(0.005)
            self._tell(Note("checkpointed"))

    async def _pulled(self, hand: Hand) -> None:
        await hand.pull(3, "pulled", self._body("pulled", 8_000))

    async def _mended(self, hand: Hand) -> None:
        files = {f"mended-{n}": self._body(f"mended-{n}", 4_000 + n) for n in range(5)}
        await hand.pull_many(3, files, inline=False)
        await hand.pull_many(2, {f"body-{n}": self._body(f"body-{n}", 500) for n in range(4)}, inline=True)

    async def _expired(self, hand: Hand) -> None:
        for n in range(3):
            await hand.put_large(2, "old-files", self._body(f"old-files-{n}", 3_000))
            await hand.put(2, "old-bodies", self._body(f"old-bodies-{n}", 300))
        versions = await hand.expire(2, "old-files") + await hand.expire(2, "old-bodies")
        await hand.collect(2, versions, alone=self._phase == 1)
        await hand.lose(4, "contended", self._body("lost", 3_000))

    async def _healed(self, hand: Hand) -> None:
        phase = self._phase
        await hand.install(4, f"healed-{phase}", [self._body(f"healed-{n}", 400 + n) for n in range(3)])
        await hand.sync(4, phase + 1)
        await hand.forget(4, f"stub-{phase}", self._body("stub", 200))

    async def _more(self, hand: Hand) -> None:
        # A slot that comes up after the others are in disk.toml.
        await hand.put_large(5, "large-4", self._body("late", 5_000))
        await hand.put(3, "last", self._body("last", 700))
        await hand.put_large(1, "large-1", self._body("at-the-end", 7_000))
        blob_id = hand.mint()
        await hand.stage(1, blob_id, self._body(blob_id, 3_000))
        await hand.discard(1, blob_id)
