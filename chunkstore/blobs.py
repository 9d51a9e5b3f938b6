"""The bytes of a disk, as the event loop sees them: staging, reading, mending and giving up blobs."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from amberblob.errors import ChunkCorrupt, ChunkMissing, DigestMismatch, DiskFailed, StorageError
from amberblob.ids import content_hash, valid_ulid
from amberblob.limits import INLINE_BYTES_MAX
from amberblob.manifest import ChunkRef, Version, decode_manifest
from amberblob.mutations import Aborted, Staged
from chunkstore import archivedb, archiverows, garbagedb
from chunkstore.codec import BodyKept
from chunkstore.content import Content, joined, size_of
from chunkstore.core import DiskCore
from chunkstore.fileops import FileOps
from chunkstore.files import INCOMPLETE_NAME, BlobFiles, checked_hash, checked_ulid
from chunkstore.interface import BlobState
from chunkstore.overlay import Intent
from chunkstore.slotdb import BlobFacts, SlotDatabase
from chunkstore.space import SpaceGuard
from chunkstore.staging import (
    ChunkWriter,
    DiskStaging,
    as_storage_error,
    is_broken,
    is_failed_sync,
    retrieve,
    settled,
)

T = TypeVar("T")
Blob = tuple[int, str]

_TASKS_S = 2.0
"""How long a close waits for what cannot be stopped; on a full disk that may wait for room for ever."""


@dataclass(slots=True)
class _Loose:
    """A chunk that was written, checked and synced, and is to be put in place.

    Attributes:
        is_over: that was tried; ``error`` says why it was in vain.
    """

    chunk_id: str
    path: Path
    is_over: bool = False
    error: Exception | None = None


class Blobs:
    """Chunk files and inline bodies.

    Whatever changes a blob's folder in ``blobs/`` (publishing, mending, giving up) does so alone: see :meth:`alone`.
    """

    def __init__(
        self, core: DiskCore, files: BlobFiles, ops: FileOps, space: SpaceGuard, pool: Executor,
        wall_ms: Callable[[], int], mint: Callable[[], str], disk_id: str,
    ) -> None:  # fmt: skip
        self._core = core
        self._files = files
        self._ops = ops
        self._space = space
        self._pool = pool
        self._wall_ms = wall_ms
        self._mint = mint
        self._disk_id = disk_id
        self.publishing: set[Blob] = set()
        self.discarding: set[Blob] = set()
        self._put_aways: Counter[int] = Counter()
        """By slot, how often its files were taken out of sight."""
        self._busy: dict[Blob, asyncio.Future[None]] = {}
        self._active: dict[Path, DiskStaging] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self.mending: dict[Blob, set[str]] = {}
        self._loose: dict[Blob, list[_Loose]] = {}

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def run_writing(self, function: Callable[[], T]) -> T:
        self.guard(0)
        try:
            return await settled(asyncio.get_running_loop().run_in_executor(self._pool, function))
        except OSError as error:
            raise self.failed(error) from error

    async def run_reading(self, function: Callable[[], T]) -> T:
        try:
            return await self._run(function)
        except OSError as error:
            if is_failed_sync(error):
                raise self.failed(error) from error
            if not is_broken(error):
                raise StorageError(f"a file cannot be read: {error}. The disk goes on; try again.") from error
            raise DiskFailed(f"the disk cannot be read: {error}. Look at the kernel's log and at the disk.") from error

    @contextlib.asynccontextmanager
    async def alone(self, blob: Blob) -> AsyncIterator[None]:
        """Nobody else changes the blob's folder meanwhile."""
        while (other := self._busy.get(blob)) is not None:
            await asyncio.wait([other])
        done = self._busy[blob] = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            del self._busy[blob]
            done.set_result(None)

    async def to_the_end(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it, also when the caller goes away."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(retrieve)
        return await asyncio.shield(task)

    def guard(self, size_bytes: int) -> None:
        self._core.journal.raise_if_failed()
        self._space.require(size_bytes)

    def failed(self, error: OSError) -> Exception:
        return as_storage_error(error, self._core.fail, self._full)

    def _full(self) -> Exception:
        return self._space.refusal("the system found no room for what was written")

    # -- in

    async def stage(
        self, slot: int, blob_id: str, chunk_bytes: int, size: int | None, revive: bool = False
    ) -> DiskStaging:
        """See the interface."""
        checked_ulid(blob_id)
        assert chunk_bytes > 0
        self.guard(size or 0)
        # Never a name that was used before: an earlier try may still be being cleared away.
        folder = place = self._files.staging_folder(slot) / f"{blob_id}.{self._mint()}"

        def ended() -> None:
            self._active.pop(place, None)

        writer = ChunkWriter(folder, self._ops, chunk_bytes, size)

        def create() -> None:
            self._files.prepare_slot(slot)
            writer.create()

        staging = DiskStaging(
            writer,
            self._pool,
            publish=lambda source: self._publish(slot, blob_id, source, revive=revive),
            guard=self.guard,
            failed=self.failed,
            ended=ended,
        )
        self._active[folder] = staging
        try:
            await settled(asyncio.get_running_loop().run_in_executor(self._pool, create))
        except OSError as error:
            await staging.abort()
            raise self.failed(error) from error
        except BaseException:
            await staging.abort()
            raise
        return staging

    async def _publish(self, slot: int, blob_id: str, source: Path, *, revive: bool) -> None:
        """``Staged`` durable, then the rename, then both parents. Must not be left before it ends."""
        blob = (slot, blob_id)
        overlay = self._core.overlay
        async with self.alone(blob):
            if await self.blob_state(slot, blob_id) is BlobState.ABORTED and not revive:
                raise StorageError(f"blob {blob_id} was given up here before; a new attempt needs a new blob id")
            # Until the folders are synced the blob must not be called durable.
            self.publishing.add(blob)
            self.mending.pop(blob, None)
            put_aways = self._put_aways[slot]
            try:
                await self._core.durable(self._core.apply(Staged(slot, blob_id, self._wall_ms(), revive)))
                if overlay.intent(slot, blob_id) is not Intent.ABORTED:
                    await self._settle_files(lambda: self._put_in_place(slot, blob_id, source))
                if overlay.intent(slot, blob_id) is Intent.ABORTED:
                    await self._settle_files(lambda: self._files.remove_blob(slot, blob_id))
                    raise StorageError(
                        f"blob {blob_id} was given up while it came in; a new attempt needs a new blob id"
                    )
                if self._put_aways[slot] != put_aways:
                    # Perhaps with this one among them, perhaps not: it is not to be relied on.
                    raise StorageError(f"slot {slot} was left while blob {blob_id} came in")
                overlay.mark_complete(slot, blob_id, complete=True)
            finally:
                self.publishing.discard(blob)

    async def _settle_files(self, function: Callable[[], object]) -> None:
        await settled(asyncio.get_running_loop().run_in_executor(self._pool, function))

    def _put_in_place(self, slot: int, blob_id: str, source: Path) -> None:
        target = self._files.blob_folder(slot, blob_id)
        if (target / INCOMPLETE_NAME).exists():
            self._files.remove_blob(slot, blob_id)
        if self._files.is_complete(slot, blob_id):
            self._drop_second(source, target)
            return
        try:
            self._ops.rename(source, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY) or not self._files.is_complete(slot, blob_id):
                raise
            self._drop_second(source, target)
            return
        try:
            self._ops.fsync_dir(target.parent)
            self._ops.fsync_dir(source.parent)
        except OSError:
            # In place, and nobody knows whether for good: it must not be found there.
            try:
                self._files.remove_blob(slot, blob_id)
            except OSError as error:
                raise OSError(errno.EIO, f"{target} cannot be made durable nor taken away: {error}") from error
            raise

    def _drop_second(self, source: Path, target: Path) -> None:
        """The blob is in place already: that copy stays, once its folder entry is durable."""
        self._ops.fsync_dir(target.parent)
        self._ops.remove_tree(source)

    # -- state

    async def _facts(self, slot: int, blob_id: str) -> BlobFacts:
        if slot not in self._core.overlay.known():
            return BlobFacts(intent=None, has_body=False, has_row=False)
        barrier = self._core.overlay.blob_position(slot, blob_id)
        return await self._core.ask(slot, lambda database: database.blob_facts(blob_id), barrier=barrier)

    async def blob_state(self, slot: int, blob_id: str) -> BlobState:
        """See the interface."""
        while True:
            state = await self._blob_state(slot, blob_id)
            position = self._core.overlay.blob_position(slot, blob_id) if state is BlobState.DURABLE else 0
            if position <= self._core.journal.durable_position:
                return state
            # A body that a repair has just put back: here, and not yet on the disk.
            await self._core.durable(position)

    async def _blob_state(self, slot: int, blob_id: str) -> BlobState:
        """What memory, the database and the folders say. Asks the database only about blobs that memory cannot tell."""
        checked_ulid(blob_id)
        overlay = self._core.overlay
        known = self._state_now(slot, blob_id)
        if known is not None:
            return known
        if overlay.is_unheard_of(slot, blob_id):
            return BlobState.ABSENT
        if overlay.intent(slot, blob_id) is not Intent.STAGED:
            facts = await self._facts(slot, blob_id)
            # What came in while the answer was on its way counts for more than the answer.
            known = self._state_now(slot, blob_id)
            if known is not None:
                return known
            if facts.has_body:
                return BlobState.DURABLE
            if facts.evicted:
                return BlobState.DURABLE
            if facts.intent == Intent.ABORTED.value and overlay.intent(slot, blob_id) is None:
                return BlobState.ABORTED
            if facts.waits and await self._waiting_suffice(slot, blob_id):
                return BlobState.DURABLE
        complete = await self.run_reading(lambda: self._files.is_complete(slot, blob_id))
        known = self._state_now(slot, blob_id)
        if known is not None:
            return known
        return BlobState.DURABLE if complete else BlobState.ABSENT

    async def _waiting_suffice(self, slot: int, blob_id: str) -> bool:
        """Whether the archive rows of a blob that no bytes will come for are all there."""

        def question(database: SlotDatabase) -> bool:
            return archiverows.waiting_suffice(database.connection, database.path.parent / "blobs", blob_id)

        return await self._core.ask(slot, question)

    def _state_now(self, slot: int, blob_id: str) -> BlobState | None:
        """What memory says; None when it cannot tell. To be asked again after every await."""
        overlay = self._core.overlay
        blob = (slot, blob_id)
        if overlay.intent(slot, blob_id) is Intent.ABORTED:
            return BlobState.ABORTED
        if blob in self.publishing or blob in self.discarding:
            return BlobState.ABSENT
        if overlay.body(slot, blob_id) is not None or overlay.is_complete(slot, blob_id):
            return BlobState.DURABLE
        return None

    # -- out

    async def _body(self, slot: int, blob_id: str) -> bytes | None:
        """An inline body as the journal or the database has it, not verified: what is in memory only does not count."""
        overlay = self._core.overlay
        body = overlay.body(slot, blob_id)
        if body is None and slot in overlay.known() and not overlay.is_unheard_of(slot, blob_id):
            body = await self._core.ask(slot, lambda database: database.body(blob_id))
        return body

    def peek_body(self, slot: int, blob_id: str) -> bytes | None:
        """See the interface."""
        overlay = self._core.overlay
        if overlay.intent(slot, blob_id) is Intent.ABORTED:
            return None
        return overlay.body(slot, blob_id) or overlay.verified.get((slot, blob_id))

    async def read_chunk(self, slot: int, blob_id: str, chunk: ChunkRef, *, fresh: bool = False) -> bytes:
        """See the interface. A small chunk may be an inline body; those are looked for first."""
        checked_ulid(blob_id)
        checked_hash(chunk.id)
        if chunk.len <= INLINE_BYTES_MAX:
            overlay = self._core.overlay
            cache, blob = overlay.verified, (slot, blob_id)
            body = cache.get(blob)
            if not fresh and body is not None and len(body) == chunk.len and content_hash(body) == chunk.id:
                return body
            dropped = cache.dropped
            body = await self._body(slot, blob_id)
            if body is not None:
                if len(body) == chunk.len and content_hash(body) == chunk.id:
                    if cache.dropped == dropped and overlay.body(slot, blob_id) is None:
                        cache.put(blob, body)
                    return body
                raise await self._give_up_body(slot, blob_id, chunk, body)
        return await self._read_file(slot, blob_id, lambda: self._files.read_chunk(slot, blob_id, chunk))

    async def _give_up_body(self, slot: int, blob_id: str, chunk: ChunkRef, body: bytes) -> Exception:
        self._core.overlay.verified.drop((slot, blob_id))
        error = await self.run_reading(lambda: self._files.quarantine_body(slot, blob_id, chunk.id, body))
        await self._want_damaged(slot, blob_id, inline=True)
        return error

    async def _want_damaged(self, slot: int, blob_id: str, *, inline: bool, manifest: bool = False) -> None:
        """What failed its hash is in quarantine: what is right is to be pulled."""
        if slot in self._core.overlay.known():
            barrier = self._core.overlay.blob_position(slot, blob_id)
            question = partial(garbagedb.want_damaged, blob_id=blob_id, inline=inline, manifest=manifest)
            await self._core.ask(slot, question, barrier=barrier)

    async def read_chunk_into(self, slot: int, blob_id: str, chunk: ChunkRef, into: memoryview) -> bytes | memoryview:
        """See the interface."""
        if chunk.len <= INLINE_BYTES_MAX:
            return await self.read_chunk(slot, blob_id, chunk)
        checked_ulid(blob_id)
        checked_hash(chunk.id)
        return await self._read_file(slot, blob_id, lambda: self._files.read_chunk_into(slot, blob_id, chunk, into))

    async def _read_file(self, slot: int, blob_id: str, read: Callable[[], T], *, manifest: bool = False) -> T:
        try:
            return await self.run_reading(read)
        except ChunkMissing:
            self._core.overlay.mark_complete(slot, blob_id, complete=False)
            raise
        except ChunkCorrupt:
            self._core.overlay.mark_complete(slot, blob_id, complete=False)
            await self._want_damaged(slot, blob_id, inline=False, manifest=manifest)
            raise

    async def read_manifest(self, slot: int, blob_id: str, manifest_id: str) -> bytes:
        """See the interface."""
        checked_ulid(blob_id)
        checked_hash(manifest_id)
        return await self._read_file(
            slot, blob_id, lambda: self._files.read_manifest(slot, blob_id, manifest_id), manifest=True
        )

    # -- mending

    async def missing_chunks(self, slot: int, version: Version, chunks: tuple[ChunkRef, ...]) -> list[ChunkRef]:
        """See the interface."""
        checked_ulid(version.blob_id)
        if version.inline:
            body = await self._body(slot, version.blob_id)
            return [chunk for chunk in chunks if body is None or len(body) != chunk.len]
        return await self.run_reading(lambda: self._files.missing(slot, version.blob_id, chunks))

    async def install_chunk(self, slot: int, version: Version, chunk: ChunkRef, data: Content) -> None:
        """See the interface."""
        blob_id = checked_ulid(version.blob_id)
        self.guard(size_of(data))
        if version.inline:
            body = joined(data)
            if len(body) != chunk.len or content_hash(body) != chunk.id:
                raise DigestMismatch(f"the bytes are not chunk {chunk.id} ({chunk.len} bytes); nothing was stored")
            await self._core.durable(self._core.apply(BodyKept(slot, blob_id, body)))
            return
        await self.to_the_end(self._install_chunk(slot, version, chunk, data))

    async def _install_chunk(self, slot: int, version: Version, chunk: ChunkRef, data: Content) -> None:
        """Written and synced side by side with others of the blob; those that are ready get their names together."""
        blob = (slot, version.blob_id)
        loose = _Loose(
            chunk.id, await self.run_writing(lambda: self._files.write_loose(slot, version.blob_id, chunk, data))
        )
        self._loose.setdefault(blob, []).append(loose)
        async with self.alone(blob):
            if not loose.is_over:
                await self._place(slot, version, self._loose.pop(blob))
        if loose.error is not None:
            raise loose.error

    async def _place(self, slot: int, version: Version, loose: list[_Loose]) -> None:
        """Put all of these in place; whether that was done is told with each of them."""
        paths = [one.path for one in loose]
        failed: Exception | None = StorageError("a chunk was not put in place: the disk is being closed; try again")
        try:
            await self._keep_files(slot, version.blob_id)
            await self.run_writing(lambda: self._files.place_chunks(slot, version.blob_id, paths))
            await self._mended(slot, version, {one.chunk_id for one in loose})
            failed = None
        except Exception as error:
            failed = error
            with contextlib.suppress(OSError, RuntimeError):
                await self._run(lambda: self._files.drop_loose(paths))
        finally:
            for one in loose:
                one.error, one.is_over = failed, True

    async def install_manifest(self, slot: int, version: Version, manifest: bytes) -> None:
        """See the interface."""
        blob_id = checked_ulid(version.blob_id)
        if version.manifest_id is None:
            raise DigestMismatch(f"version {version.version} of blob {blob_id} has no manifest file")
        manifest_id = checked_hash(version.manifest_id)
        self.guard(len(manifest))
        async with self.alone((slot, blob_id)):
            await self.run_writing(lambda: self._files.install_manifest(slot, blob_id, manifest_id, manifest))
            self.mending.pop((slot, blob_id), None)
            await self._mended(slot, version, set())

    async def _keep_files(self, slot: int, blob_id: str) -> None:
        """Bytes of a blob that was evicted are put back: no sweep takes them for leftovers of the eviction."""
        barrier = self._core.overlay.archive_position(slot)
        may_be = self._core.tally(slot).evicted or not self._core.is_applied(barrier)
        if may_be and (slot, blob_id) not in self.mending:
            await self._core.ask(slot, partial(archivedb.settle_files, blob_id=blob_id), barrier=barrier)

    async def _mended(self, slot: int, version: Version, came: set[str]) -> None:
        """Count what is still missing, and take the mark off the folder when nothing is."""
        blob = (slot, version.blob_id)
        left = self.mending.get(blob)
        if left is None:

            def look() -> set[str] | None:
                chunks = self.chunks(slot, version)
                if chunks is None:
                    return None
                return {chunk.id for chunk in self._files.missing(slot, version.blob_id, chunks)}

            left = await self.run_reading(look)
            if left is None:
                return
            self.mending[blob] = left
        left -= came
        if left:
            return
        self.mending.pop(blob, None)

        def end() -> bool:
            chunks = self.chunks(slot, version)
            return chunks is not None and self._files.end_mending(slot, version.blob_id, chunks, version.manifest_id)

        await self.run_writing(end)

    def chunks(self, slot: int, version: Version) -> tuple[ChunkRef, ...] | None:
        """Every chunk of the version; None when the manifest is not here. Blocks."""
        if version.manifest_id is None:
            return version.chunks
        try:
            return decode_manifest(self._files.read_manifest(slot, version.blob_id, version.manifest_id))
        except (ChunkMissing, ChunkCorrupt):
            return None

    # -- giving up

    async def discard(self, slot: int, blob_id: str) -> bool:
        """See the interface; whether the blob was given up. One that is being published is so afterwards."""
        checked_ulid(blob_id)
        return await self.to_the_end(self._discard(slot, blob_id))

    async def _discard(self, slot: int, blob_id: str) -> bool:
        overlay = self._core.overlay
        blob = (slot, blob_id)
        async with self.alone(blob):
            if overlay.intent(slot, blob_id) is Intent.REFERENCED:
                return False
            facts = await self._facts(slot, blob_id)
            is_nobodys = facts.intent in (Intent.STAGED.value, Intent.ARCHIVED.value)
            if facts.has_row or (not is_nobodys and not await self._release(slot, blob_id, facts)):
                overlay.staged.pop(blob, None)  # a second copy came in of what is referred to
                return False
            if overlay.intent(slot, blob_id) is Intent.REFERENCED:
                return False
            # From here to the end of the removal nobody is told that the blob is durable.
            self.discarding.add(blob)
            try:
                position = self._core.apply(Aborted(slot, blob_id))
                overlay.mark_complete(slot, blob_id, complete=False)
                self.mending.pop(blob, None)
                await self._core.durable(position)
                # The database decides: a reference may have come in while this coroutine waited.
                facts = await self._facts(slot, blob_id)
                if facts.intent != Intent.ABORTED.value or overlay.intent(slot, blob_id) is Intent.REFERENCED:
                    return False
                await self.run_reading(lambda: self._files.remove_blob(slot, blob_id))
                return True
            finally:
                self.discarding.discard(blob)

    async def _release(self, slot: int, blob_id: str, facts: BlobFacts) -> bool:
        """Whether nothing refers to a blob that was accepted once, or of which the tables know nothing.

        Nothing is nobody's in a slot whose database was lost and whose rows are not all back.
        """
        is_here = facts.has_body or facts.intent == Intent.REFERENCED.value
        if not is_here and not await self.run_reading(lambda: self._files.blob_folder(slot, blob_id).is_dir()):
            return True
        if slot not in self._core.overlay.known():
            return False
        question = partial(garbagedb.release, blob_id=blob_id, disk_id=self._disk_id)
        released = await self._core.ask(slot, question, barrier=self._core.overlay.slot_position(slot))
        if released:
            self._core.overlay.verified.drop((slot, blob_id))
        return released

    def is_under_way(self, slot: int, blob_id: str) -> bool:
        """Whether memory knows more of the blob than the tables: it comes in, goes, is being mended or was just accepted."""
        blob, overlay = (slot, blob_id), self._core.overlay
        return (
            blob in self._busy
            or overlay.intent(slot, blob_id) in (Intent.STAGED, Intent.REFERENCED)
            or overlay.body(slot, blob_id) is not None
        )

    async def remove_garbage(self, slot: int, blob_id: str, *, is_claimed: bool) -> bool | None:
        """Remove the files of a blob that has expired, unless something came to refer to it since; whether they went.

        None: memory knows more of it than the tables, so that it cannot be told yet.
        """
        if not valid_ulid(blob_id):
            return False  # the row that said so was damaged, and nothing here bears such a name
        return await self.to_the_end(self._remove_garbage(slot, blob_id, is_claimed))

    async def _remove_garbage(self, slot: int, blob_id: str, is_claimed: bool) -> bool | None:
        overlay, blob = self._core.overlay, (slot, blob_id)
        async with self.alone(blob):
            # From here to the end of the removal nobody is told that the blob is durable.
            self.discarding.add(blob)
            try:
                question = partial(garbagedb.still_garbage, blob_ids=(blob_id,))
                if is_claimed or not await self._core.ask(slot, question):
                    return False
                if overlay.intent(slot, blob_id) is not None or overlay.body(slot, blob_id) is not None:
                    return None
                overlay.mark_complete(slot, blob_id, complete=False)
                overlay.verified.drop(blob)
                self.mending.pop(blob, None)
                await self.run_reading(lambda: self._files.remove_blob(slot, blob_id))
                return True
            finally:
                self.discarding.discard(blob)

    async def put_away(self, slot: int) -> None:
        """Take the files of all blobs of a slot out of sight; nothing refers to any of them."""
        await self.to_the_end(self._put_away(slot))

    async def _put_away(self, slot: int) -> None:
        await self.run_reading(lambda: self._files.put_away(slot))
        self._put_aways[slot] += 1
        self._core.overlay.forget_files(slot)
        for blob in [blob for blob in self.mending if blob[0] == slot]:
            del self.mending[blob]

    async def sweep_staged(self, older_than_ms: int, limit: int) -> int:
        """See the interface."""
        staged = self._core.overlay.staged
        old = [blob for blob, at_ms in staged.items() if at_ms < older_than_ms and blob not in self.publishing][:limit]
        if len(old) < limit:
            old += await self._waiting_before(older_than_ms, limit - len(old))
        count = 0
        for slot, blob_id in old:
            count += await self.discard(slot, blob_id)
        return count

    async def _waiting_before(self, older_than_ms: int, limit: int) -> list[Blob]:
        """Blobs of which only archive rows are here, and that nothing came to refer to since before then."""
        found: list[Blob] = []
        for slot in self._core.overlay.slots():
            if len(found) >= limit:
                break
            barrier = self._core.overlay.archive_position(slot)
            if self._core.tally(slot).archive_staged or not self._core.is_applied(barrier):
                question = partial(archivedb.waiting_before, older_than_ms=older_than_ms, limit=limit - len(found))
                found += [(slot, blob_id) for blob_id in await self._core.ask(slot, question, barrier=barrier)]
        return found

    async def close(self) -> None:
        """Abort what is on its way in, and let end what cannot be stopped, for a moment."""
        endings = [asyncio.ensure_future(staging.abort()) for staging in self._active.values()]
        # On a full disk a removal or a publishing waits for room, perhaps for ever. It then ends as the databases do.
        waiting = [*endings, *self._tasks]
        if waiting:
            await asyncio.wait(waiting, timeout=_TASKS_S)
