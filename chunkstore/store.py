"""One disk as a node sees it: :class:`DiskStore` composes the parts of this package."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import structlog
from msgspec.structs import replace

from amberblob.archives import ArchivedBlob, ArchiveLine
from amberblob.ballot import Register, SlotState
from amberblob.clock import Clock, HybridClock, Randomness
from amberblob.errors import DiskFailed, DiskFull
from amberblob.ids import UlidMint
from amberblob.manifest import ChunkRef, Version, WriteMark
from amberblob.mutations import Mutation, Synced
from amberblob.openfiles import DATABASES_MAX, databases_max
from amberblob.wire import HistoryRow
from amberblob.wire_repair import LogLine, PathItem
from chunkstore.applier import Applier
from chunkstore.archiving import Archiving
from chunkstore.blobs import Blobs
from chunkstore.bodycache import BODY_CACHE_BYTES_DEFAULT
from chunkstore.bulk import Bulk
from chunkstore.comparison import Comparison
from chunkstore.content import Content
from chunkstore.core import UNAPPLIED_BYTES_MAX, DiskCore
from chunkstore.dbthread import FULL_REMEDY, LINGER_S, DatabaseThread
from chunkstore.fileops import FileOps
from chunkstore.files import BlobFiles
from chunkstore.garbage import Garbage
from chunkstore.identity import DiskIdentity, DiskLock, open_identity
from chunkstore.index import Page
from chunkstore.interface import ArchiveView, BlobState, CheckedPage, History, ObjectUse, SlotTally, Staging, Wanted
from chunkstore.overlay import REGISTERS_CLEAN_MAX, Overlay
from chunkstore.pool import LostSlot, SlotPool
from chunkstore.recovery import SlotFacts, recover_databases, recover_journal
from chunkstore.scrubbing import Scrubbing
from chunkstore.segments import SEGMENT_BYTES_DEFAULT, Recovered, SegmentWriter
from chunkstore.space import RESERVE_BYTES_DEFAULT, SpaceGuard
from chunkstore.staging import retrieve
from chunkstore.threads import Threads

_log = structlog.get_logger(__name__)

_IO_THREADS = 4
_BALLAST_EVERY_S = 30.0


def _make_disk_folder(path: Path, ops: FileOps) -> Path:
    path = path.absolute()
    ops.make_dirs(path)
    return path


def _safe_mint(clock: Clock, randomness: Randomness, threads: Threads) -> Callable[[], str]:
    """A mint for this disk's own names that any of its threads may use."""
    mint, lock = UlidMint(HybridClock(clock.wall_ms), randomness), threads.lock()

    def minted() -> str:
        with lock:
            return mint.mint()

    return minted


class DiskStore:
    """A :class:`chunkstore.interface.ReplicaStore` on a folder. Open it with :meth:`open`, on the loop that uses it."""

    def __init__(
        self, *, disk: Path, identity: DiskIdentity, lock: DiskLock, core: DiskCore, blobs: Blobs, bulk: Bulk,
        garbage: Garbage, archiving: Archiving, pool: SlotPool, space: SpaceGuard, threads: ThreadPoolExecutor,
    ) -> None:  # fmt: skip
        """For :meth:`open` only."""
        self.path = disk
        self._identity = identity
        self._lock = lock
        self._core = core
        self._blobs = blobs
        self._bulk = bulk
        self._garbage = garbage
        self._archiving = archiving
        self._scrubbing = Scrubbing(core)
        self._pool = pool
        self._comparison = Comparison(core, pool.tallies)
        self._space = space
        self._threads = threads
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._ballast_timer = self._loop.call_later(0, self._tend_ballast)

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        cluster_id: str,
        node_id: str,
        clock: Clock,
        randomness: Randomness,
        reserve_bytes: int = RESERVE_BYTES_DEFAULT,
        segment_bytes: int = SEGMENT_BYTES_DEFAULT,
        registers_clean_max: int = REGISTERS_CLEAN_MAX,
        unapplied_bytes_max: int = UNAPPLIED_BYTES_MAX,
        body_cache_bytes: int = BODY_CACHE_BYTES_DEFAULT,
        open_databases_max: int | None = None,
        linger_s: float = LINGER_S,
        ops: FileOps | None = None,
        threads: Threads | None = None,
    ) -> DiskStore:
        """Open a disk, or format an empty folder (created if absent); replay what is not applied.

        Args:
            reserve_bytes: free room below which new bytes are refused.
            segment_bytes: size of a journal segment.
            registers_clean_max: registers kept in memory beyond those that must be.
            unapplied_bytes_max: backlog of the databases beyond which durable() waits.
            body_cache_bytes: memory for inline bodies that were verified.
            open_databases_max: slot databases open at a time; by default 256, fewer when files are scarce.
            linger_s: how long entries wait in memory for company on their way into the databases.
            ops: the system calls; tests make them fail.
            threads: where the disk's own threads come from; a simulation brings its own.

        Raises:
            DiskInUse: another process has it.
            DiskMismatch: it is not this node's disk, or of an unknown format.
            DiskFull: there is no room left even for a start.
            JournalCorrupt: something that was acknowledged may be lost.
            OSError: it cannot be read or written.
        """
        ops, threads = ops or FileOps(), threads or Threads()
        mint = _safe_mint(clock, randomness, threads)
        path = await asyncio.to_thread(_make_disk_folder, path, ops)
        new = DiskIdentity(disk_id=mint(), cluster_id=cluster_id, node_id=node_id)
        lock = DiskLock(path)
        overlay: Overlay
        database: DatabaseThread | None = None
        io_threads = ThreadPoolExecutor(_IO_THREADS, thread_name_prefix="amber-io")
        try:
            identity, is_new = open_identity(path, new, ops)
            space = SpaceGuard(path, ops, reserve_bytes, clock.monotonic_s, threads)
            files = BlobFiles(path, ops, mint)
            wanted = open_databases_max or DATABASES_MAX
            pool = SlotPool(path, identity, ops, mint, open_max=partial(databases_max, wanted))
            applier = Applier(path, pool, ops, space.release_ballast, clock.monotonic_s)
            overlay = Overlay(identity.disk_id, clean_max=registers_clean_max, body_cache_bytes=body_cache_bytes)
            database = DatabaseThread(pool.close_idle, clock=clock, threads=threads, linger_s=linger_s)
            core = DiskCore(overlay, database, applier, pool, unapplied_bytes_max=unapplied_bytes_max, threads=threads)

            def recover() -> tuple[Recovered, SegmentWriter, list[SlotFacts]]:
                try:
                    recovered = recover_journal(path, identity.disk_id, ops, is_new=is_new)
                    writer = SegmentWriter(
                        recovered,
                        identity.disk_id,
                        ops,
                        randomness.token,
                        space.release_ballast,
                        segment_bytes=segment_bytes,
                    )
                    return recovered, writer, recover_databases(path, recovered, pool, files, applier, writer)
                except (sqlite3.Error, OSError) as error:
                    if not applier.is_no_room(error):
                        raise
                    raise DiskFull(f"{path} has no room left for a start: {error}. {FULL_REMEDY}") from error

            recovered, writer, facts = await database.call(recover)
            for fact in facts:
                overlay.set_slot(fact.state, fact.newest_blob_id, fact.staged)
            core.start(writer, recovered.next_position)
            database.start(applier)
            blobs = Blobs(core, files, ops, space, io_threads, clock.wall_ms, mint, identity.disk_id)
            archiving = Archiving(core, blobs, files)
            bulk = Bulk(core, blobs, files, ops, mint, archiving)
            garbage = Garbage(core, blobs, files, identity.disk_id, archiving)
        except BaseException:
            if database is not None:
                await database.close()
            io_threads.shutdown()
            lock.close()
            raise
        _log.info(
            "disk-opened", disk=str(path), disk_id=identity.disk_id, slots=len(facts), lost_slots=len(pool.lost),
            sqlite=sqlite3.sqlite_version, new=is_new,
        )  # fmt: skip
        return cls(
            disk=path,
            identity=identity,
            lock=lock,
            core=core,
            blobs=blobs,
            bulk=bulk,
            garbage=garbage,
            archiving=archiving,
            pool=pool,
            space=space,
            threads=io_threads,
        )

    def _tend_ballast(self) -> None:
        if self._closed:
            return
        self._loop.run_in_executor(self._threads, self._space.ensure_ballast).add_done_callback(retrieve)
        self._ballast_timer = self._loop.call_later(_BALLAST_EVERY_S, self._tend_ballast)

    # -- about the disk

    @property
    def disk_id(self) -> str:
        """See the interface; so for all that follows."""
        return self._identity.disk_id

    @property
    def failed(self) -> str | None:
        return self._core.failed

    @property
    def full(self) -> bool:
        return self._space.full

    @property
    def free_bytes(self) -> int:
        """Free room on the file system, at most half a second old."""
        return self._space.free_bytes()

    @property
    def lost_slots(self) -> list[LostSlot]:
        """Slots whose database was given up since this process opened the disk."""
        return list(self._pool.lost)

    def counts(self) -> dict[str, int]:
        return self._core.counts()

    # -- registers

    def slot_state(self, slot: int) -> SlotState:
        return self._core.overlay.slot_state(slot)

    def incarnations(self) -> dict[int, str]:
        return self._core.overlay.incarnations()

    def peek(self, slot: int, path: str) -> Register | None:
        return self._core.overlay.peek(slot, path)

    async def load(self, slot: int, path: str) -> Register:
        return await self._core.load(slot, path)

    def apply(self, mutation: Mutation) -> int:
        if type(mutation) is Synced:
            mutation = replace(mutation, incarnation=self.slot_state(mutation.slot).incarnation)
        return self._core.apply(mutation)

    def position(self, slot: int, path: str) -> int:
        return self._core.position(slot, path)

    def when_durable(self, position: int, callback: Callable[[DiskFailed | None], None]) -> None:
        self._core.when_durable(position, callback)

    async def durable(self, position: int) -> None:
        await self._core.durable(position)

    # -- history

    async def rows(
        self, slot: int, path: str, *, version: int | None = None, below: int | None = None, limit: int = 1000
    ) -> list[HistoryRow]:
        if slot not in self._core.overlay.known():
            return []
        barrier = self._core.overlay.path_position(slot, path)
        return await self._core.ask(slot, lambda database: database.rows(path, version, below, limit), barrier=barrier)

    async def find_write(self, slot: int, path: str, write_id: str) -> WriteMark | None:
        if slot not in self._core.overlay.known():
            return None
        barrier = self._core.overlay.path_position(slot, path)
        return await self._core.ask(slot, lambda database: database.find_write(path, write_id), barrier=barrier)

    async def undecided(self, slot: int) -> list[str]:
        if slot not in self._core.overlay.known():
            return []
        barrier = self._core.overlay.slot_position(slot)
        return await self._core.ask(slot, lambda database: database.undecided(), barrier=barrier)

    def slots(self) -> list[int]:
        return self._core.overlay.slots()

    # -- listing

    async def scan(self, prefix: str, start: str, delimiter: str, limit: int, *, dead: bool = True) -> Page:
        return await self._core.ask_index(lambda index: index.scan(prefix, start, delimiter, limit, dead=dead))

    # -- bytes

    async def blob_state(self, slot: int, blob_id: str) -> BlobState:
        return await self._blobs.states.blob_state(slot, blob_id)

    async def stage(
        self, slot: int, blob_id: str, *, chunk_bytes: int, size: int | None, revive: bool = False
    ) -> Staging:
        return await self._blobs.arriving.stage(slot, blob_id, chunk_bytes, size, revive)

    async def discard(self, slot: int, blob_id: str) -> None:
        await self._blobs.giving_up.discard(slot, blob_id)

    def peek_body(self, slot: int, blob_id: str) -> bytes | None:
        return self._blobs.reading.peek_body(slot, blob_id)

    async def read_chunk(self, slot: int, blob_id: str, chunk: ChunkRef, *, fresh: bool = False) -> bytes:
        return await self._blobs.reading.read_chunk(slot, blob_id, chunk, fresh=fresh)

    async def read_chunk_into(self, slot: int, blob_id: str, chunk: ChunkRef, into: memoryview) -> bytes | memoryview:
        return await self._blobs.reading.read_chunk_into(slot, blob_id, chunk, into)

    async def read_manifest(self, slot: int, blob_id: str, manifest_id: str) -> bytes:
        return await self._blobs.reading.read_manifest(slot, blob_id, manifest_id)

    async def missing_chunks(self, slot: int, version: Version, chunks: tuple[ChunkRef, ...]) -> list[ChunkRef]:
        return await self._blobs.mending.missing_chunks(slot, version, chunks)

    async def install_chunk(self, slot: int, version: Version, chunk: ChunkRef, data: Content) -> None:
        await self._blobs.mending.install_chunk(slot, version, chunk, data)

    async def install_manifest(self, slot: int, version: Version, manifest: bytes) -> None:
        await self._blobs.mending.install_manifest(slot, version, manifest)

    async def sweep_staged(self, older_than_ms: int, limit: int) -> int:
        return await self._blobs.giving_up.sweep_staged(older_than_ms, limit)

    # -- comparing and mending

    def tally(self, slot: int) -> SlotTally:
        return self._comparison.tally(slot)

    async def settle(self, slots: Sequence[int]) -> None:
        await self._comparison.settle(slots)

    async def bucket_sums(self, slot: int) -> bytes:
        return await self._comparison.bucket_sums(slot)

    async def fingerprints(self, slot: int, buckets: Sequence[int]) -> dict[int, bytes]:
        return await self._comparison.fingerprints(slot, buckets)

    async def items(self, slot: int, paths: Sequence[str], *, below: int | None = None) -> list[PathItem]:
        return await self._comparison.items(slot, paths, below=below)

    async def items_differing(
        self, slot: int, known: Mapping[int, bytes], after: str, size_bytes: int
    ) -> tuple[list[PathItem], str | None]:
        return await self._comparison.items_differing(slot, known, after, size_bytes)

    async def items_after(self, slot: int, after: str, size_bytes: int) -> tuple[list[PathItem], str | None]:
        return await self._comparison.items_after(slot, after, size_bytes)

    async def log_lines(self, slot: int, after: int, limit: int) -> tuple[list[LogLine], bool]:
        return await self._comparison.log_lines(slot, after, limit)

    async def trim_log(self, slot: int, keep: int) -> int:
        return await self._comparison.trim_log(slot, keep)

    async def wanted(self, slot: int, limit: int) -> list[Wanted]:
        return await self._comparison.wanted(slot, limit)

    async def memo(self, slot: int, name: str) -> str:
        return await self._comparison.memo(slot, name)

    async def set_memo(self, slot: int, name: str, text: str) -> None:
        await self._comparison.set_memo(slot, name, text)

    async def referred(self, slot: int, blob_id: str) -> tuple[str, Version] | None:
        return await self._comparison.referred(slot, blob_id)

    async def begin_anew(self, slot: int, *, fresh: bool = False) -> str:
        return await self._core.begin_anew(slot, fresh=fresh)

    async def holds(self, slot: int) -> bool:
        return await self._garbage.holds(slot)

    async def leave(self, slot: int) -> str:
        return await self._garbage.leave(slot)

    async def sweep_left(self, slot: int, limit: int) -> tuple[int, int]:
        return await self._garbage.sweep_left(slot, limit)

    async def set_wanted(self, slot: int, path: str, version: Version, *, damaged: bool) -> None:
        await self._bulk.set_wanted(slot, path, version, damaged=damaged)

    async def not_whole(self, slot: int, versions: Sequence[Version]) -> list[Version]:
        return await self._bulk.not_whole(slot, versions)

    async def is_whole(self, slot: int, version: Version) -> bool:
        return await self._bulk.is_whole(slot, version)

    async def install_bodies(self, slot: int, bodies: Sequence[tuple[Version, bytes]]) -> None:
        await self._bulk.install_bodies(slot, bodies)

    async def install_blobs(self, slot: int, blobs: Sequence[tuple[Version, bytes]]) -> None:
        await self._bulk.install_blobs(slot, blobs)

    # -- scrub and garbage

    async def check_page(self, slot: int, after: str, limit: int) -> CheckedPage:
        return await self._scrubbing.check_page(slot, after, limit)

    async def check_sums(self, slot: int) -> bool:
        return await self._scrubbing.check_sums(slot)

    async def orphans(self, slot: int, older_than_ms: int) -> list[str]:
        return await self._garbage.orphans(slot, older_than_ms)

    async def histories(self, slot: int, after: str, limit: int) -> tuple[list[History], str | None]:
        return await self._garbage.histories(slot, after, limit)

    async def sweep_garbage(self, slot: int, limit: int) -> int:
        return await self._garbage.sweep_garbage(slot, limit)

    async def forget_writes(self, slot: int, older_than_ms: int, limit: int) -> int:
        return await self._garbage.forget_writes(slot, older_than_ms, limit)

    # -- the archive

    async def archived(self, slot: int, blob_id: str) -> ArchivedBlob | None:
        return await self._archiving.archived(slot, blob_id)

    async def archived_after(self, slot: int, after: int, limit: int) -> tuple[list[ArchiveLine], bool]:
        return await self._archiving.archived_after(slot, after, limit)

    async def archive_page(
        self, slot: int, after: tuple[str, int], limit: int, *, prefix: str = ""
    ) -> tuple[list[ArchiveView], tuple[str, int] | None]:
        return await self._archiving.archive_page(slot, after, limit, prefix=prefix)

    async def archive_objects(self, slot: int) -> dict[str, ObjectUse]:
        return await self._archiving.archive_objects(slot)

    async def archive_named(self, slot: int, target_paths: Collection[str]) -> set[str]:
        return await self._archiving.archive_named(slot, target_paths)

    async def archive_rows_of(self, slot: int, target_path: str, after: int, limit: int) -> list[ArchiveLine]:
        return await self._archiving.archive_rows_of(slot, target_path, after, limit)

    async def evict(self, slot: int, path: str, version: Version) -> int | None:
        return await self._archiving.evict(slot, path, version)

    async def is_evicted(self, slot: int, blob_id: str) -> bool:
        return await self._archiving.is_evicted(slot, blob_id)

    # -- the end

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._ballast_timer.cancel()
        with contextlib.suppress(DiskFailed):
            await self._blobs.close()
        await self._bulk.close()
        await self._core.close()
        await asyncio.to_thread(self._threads.shutdown)
        self._lock.close()


assert os.name == "posix", "durable renames and folder syncs are relied on"
