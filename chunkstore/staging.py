"""The checked entrance for bytes: chunk files are written, hashed and synced while the body still arrives.

Order, for a power cut at any instant: every chunk file synced; the manifest synced; the chunks folder and the
blob's folder synced; the entry ``Staged`` durable in the journal; one rename into ``blobs/``; both parents
synced. Only then does finish return.

From the check of the bytes on there is no way back: sealing and publishing are one task that belongs to the staging
and runs to its end whoever goes away. The files are removed by the same task or not at all, so that nothing is ever
removed while it is being put in place.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

import structlog
from blake3 import blake3

from amberblob.errors import DigestMismatch, DiskFailed, StorageError
from amberblob.limits import KIB
from amberblob.manifest import ChunkRef
from chunkstore.fileops import Buffer, FileOps, is_no_room
from chunkstore.files import MANIFEST_NAME, checked_hash

_log = structlog.get_logger(__name__)
T = TypeVar("T")

PIECE_BYTES = 512 * KIB
"""Bytes are handed to the threads in pieces of at least this size, so that the interpreter lock is let go."""

_SYNCS_MAX = 4
"""Chunks of one blob that may be waiting for their sync."""

_BROKEN = (errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.EUCLEAN)
"""What a disk says that cannot be relied on any more. Everything else is the trouble of one blob."""


async def settled(future: asyncio.Future[T]) -> T:
    """The result of a thread's work. Whoever is cancelled meanwhile is so only after the work has ended."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        retrieve(future)
        raise cancelled
    return future.result()


def retrieve(future: asyncio.Future[T]) -> None:
    """Nobody has to ask for the error of a future that is done."""
    if not future.cancelled():
        future.exception()


class ChunkWriter:
    """The blocking half: one chunk file at a time. Its methods are never called at the same time."""

    def __init__(self, folder: Path, ops: FileOps, chunk_bytes: int, size: int | None) -> None:
        self.folder = folder
        self._ops = ops
        self._chunk_bytes = chunk_bytes
        self._left = size
        self._fd = -1
        self._path = folder
        self._offset = 0
        self._index = 0
        self._hasher = blake3()
        self.refs: list[ChunkRef] = []

    def create(self) -> None:
        """Make the staging folder. Raises FileExistsError, OSError."""
        os.mkdir(self.folder)
        os.mkdir(self.folder / "chunks")

    def write(self, pieces: list[Buffer]) -> list[int]:
        """Append bytes; returns descriptors of files that became complete: to be synced and closed."""
        complete: list[int] = []
        try:
            self._write(pieces, complete)
        except BaseException:
            for fd in complete:
                os.close(fd)
            raise
        return complete

    def _write(self, pieces: list[Buffer], complete: list[int]) -> None:
        for piece in pieces:
            view = memoryview(piece)
            while view:
                if self._fd < 0:
                    self._begin()
                part = view[: self._chunk_bytes - self._offset]
                self._ops.write_at(self._fd, [part], self._offset)
                self._hasher.update(part)
                self._offset += len(part)
                view = view[len(part) :]
                if self._offset == self._chunk_bytes:
                    complete.append(self.end_chunk())

    def _begin(self) -> None:
        self._path = self.folder / "chunks" / f"{self._index}.part"
        self._fd = self._ops.create(self._path)
        self._index += 1
        self._offset = 0
        self._hasher = blake3()
        if self._left is not None:
            room = max(0, min(self._left, self._chunk_bytes))
            self._ops.allocate(self._fd, room)
            self._left -= room

    @property
    def is_open(self) -> bool:
        """Whether a chunk was begun and not ended."""
        return self._fd >= 0

    def end_chunk(self) -> int:
        """Give the file its name; returns its descriptor, to be synced and closed by the caller."""
        chunk_id = checked_hash(self._hasher.hexdigest())
        # The descriptor stays the writer's own, to be closed by remove, until nothing can fail any more.
        if os.fstat(self._fd).st_size != self._offset:
            os.ftruncate(self._fd, self._offset)
        self._ops.rename(self._path, self.folder / "chunks" / chunk_id)
        fd, self._fd = self._fd, -1
        self.refs.append(ChunkRef(id=chunk_id, len=self._offset))
        return fd

    def sync_chunk(self, fd: int) -> None:
        """Make a complete chunk file durable, and close it."""
        try:
            self._ops.fsync(fd)
        finally:
            os.close(fd)

    def seal(self, manifest: bytes | None) -> None:
        """Write the manifest, and make the folders durable."""
        if manifest is not None:
            fd = self._ops.create(self.folder / MANIFEST_NAME)
            try:
                self._ops.write_at(fd, [manifest], 0)
                self._ops.fsync(fd)
            finally:
                os.close(fd)
        self._ops.fsync_dir(self.folder / "chunks")
        self._ops.fsync_dir(self.folder)

    def remove(self) -> None:
        """Take everything away again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._ops.remove_tree(self.folder)


class DiskStaging:
    """One blob on its way in; see :class:`chunkstore.interface.Staging`.

    Args:
        publish: makes ``Staged`` durable and renames the folder into place; given the staging folder.
        guard: raises DiskFull or DiskFailed before more bytes (their count) are taken.
        failed: tells an OSError to the disk and returns the error to raise.
        ended: called once when the staging is over.
    """

    def __init__(
        self, writer: ChunkWriter, pool: Executor, *, publish: Callable[[Path], Awaitable[None]],
        guard: Callable[[int], None], failed: Callable[[OSError], Exception], ended: Callable[[], None],
    ) -> None:  # fmt: skip
        self._writer = writer
        self._pool = pool
        self._publish = publish
        self._guard = guard
        self._failed = failed
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._pieces: list[Buffer] = []
        self._waiting_bytes = 0
        self._job: asyncio.Future[list[int]] | None = None
        self._syncs: list[asyncio.Future[None]] = []
        self._over = False
        self._ending: asyncio.Task[None] | None = None

    async def write(self, data: Buffer) -> None:
        """Append bytes; waits while the previous piece is still being written."""
        self._raise_if_over()
        if not len(data):
            return
        # Only bytes cannot change under our hands, and views of bytes.
        fixed = isinstance(data, bytes) or (isinstance(data, memoryview) and isinstance(data.obj, bytes))
        self._pieces.append(data if fixed else bytes(data))
        self._waiting_bytes += len(data)
        if self._waiting_bytes >= PIECE_BYTES:
            await self._hand_over()

    async def _hand_over(self) -> None:
        await self._settle_job()
        self._raise_if_over()
        if not self._pieces:
            return
        try:
            self._guard(self._waiting_bytes)
        except BaseException:
            await self.abort()
            raise
        pieces, self._pieces, self._waiting_bytes = self._pieces, [], 0
        self._job = self._loop.run_in_executor(self._pool, self._writer.write, pieces)

    async def _settle_job(self) -> None:
        """Wait for the piece under way, then let its complete chunks be synced."""
        if self._job is None:
            return
        job = self._job
        try:
            complete = await asyncio.shield(job)
        except OSError as error:
            self._job = None
            await self.abort()
            raise self._failed(error) from error
        # What the job left open is closed by whoever aborts.
        self._raise_if_over()
        self._job = None
        # All of them are handed over before any is waited for: each one closes its own descriptor, whatever happens.
        for fd in complete:
            self._syncs.append(self._loop.run_in_executor(self._pool, self._writer.sync_chunk, fd))
        while len(self._syncs) > _SYNCS_MAX:
            await self._await_sync(self._syncs[0])

    async def _await_sync(self, sync: asyncio.Future[None]) -> None:
        try:
            await asyncio.shield(sync)
        except OSError as error:
            await self.abort()
            raise self._failed(error) from error
        if sync in self._syncs:
            self._syncs.remove(sync)

    async def finish(self, chunks: tuple[ChunkRef, ...], manifest: bytes | None) -> None:
        """Check, make durable, put in place, say STAGED."""
        self._raise_if_over()
        try:
            await self._hand_over()
            await self._settle_job()
            self._raise_if_over()
            if self._writer.is_open:
                self._job = self._loop.run_in_executor(self._pool, lambda: [self._writer.end_chunk()])
                await self._settle_job()
            if tuple(self._writer.refs) != tuple(chunks):
                raise DigestMismatch(
                    f"the bytes make {len(self._writer.refs)} chunks that are not the {len(chunks)} that were announced; "
                    "nothing was stored. They were changed on their way: send them again."
                )
            while self._syncs:
                await self._await_sync(self._syncs[0])
            self._raise_if_over()
        except BaseException:
            await self.abort()
            raise
        await asyncio.shield(self._begin_ending(self._seal_and_publish(manifest)))

    def _raise_if_over(self) -> None:
        if self._over:
            raise StorageError("the blob was given up while it came in: the disk is being closed; try again")

    def _begin_ending(self, ending: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """What ends the staging: a task that nobody's cancellation reaches."""
        assert not self._over, "a staging ends once"
        self._over = True
        self._pieces.clear()
        self._ending = self._loop.create_task(ending)
        self._ending.add_done_callback(retrieve)
        return self._ending

    async def _seal_and_publish(self, manifest: bytes | None) -> None:
        try:
            await settled(self._loop.run_in_executor(self._pool, self._writer.seal, manifest))
            await self._publish(self._writer.folder)
        except OSError as error:
            await self._remove()
            raise self._failed(error) from error
        except BaseException:
            await self._remove()
            raise
        finally:
            self._ended()

    async def abort(self) -> None:
        """Remove what was written, or wait for the end that is under way; what was published stays."""
        if self._ending is None:
            self._begin_ending(self._clear())
        assert self._ending is not None
        await asyncio.wait([self._ending])

    async def _clear(self) -> None:
        jobs: list[asyncio.Future[object]] = [job for job in (self._job, *self._syncs) if job is not None]  # type: ignore[misc]
        try:
            # What is under way in a thread must end before its files may go.
            results = await settled(asyncio.gather(*jobs, return_exceptions=True)) if jobs else []
            for result in results:
                if isinstance(result, list):
                    for fd in result:
                        os.close(fd)
                elif isinstance(result, OSError):
                    # The blob goes anyway; but a disk that fails has failed, whoever meets it.
                    self._failed(result)
            await self._remove()
        finally:
            self._ended()

    async def _remove(self) -> None:
        try:
            await settled(self._loop.run_in_executor(self._pool, self._writer.remove))
        except RuntimeError:
            _log.info("staging-left", folder=str(self._writer.folder), why="the disk is closed")
        except OSError as error:
            # Whoever waits is told why the blob did not come in; the next start clears the folder.
            _log.warning("staging-left", folder=str(self._writer.folder), error=str(self._failed(error)))


def is_failed_sync(error: OSError) -> bool:
    """Whether it came out of a sync: then nobody knows what is on the disk, whatever the error's number is."""
    at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_code.co_name in ("fsync", "fdatasync"):
            return True
        at = at.tb_next
    return False


def is_broken(error: OSError) -> bool:
    """Whether the disk is to blame, and not this one file or this process (names, descriptors, rights)."""
    return not is_no_room(error) and (error.errno in _BROKEN or is_failed_sync(error))


def as_storage_error(error: OSError, report: Callable[[str], None], full: Callable[[], Exception]) -> Exception:
    """DiskFull for want of room, DiskFailed (and reported) when the disk is to blame; else an error of this blob."""
    if is_no_room(error):
        return full()
    if not is_broken(error):
        return StorageError(f"a blob cannot be written: {error}. The disk goes on; try again.")
    why = f"a blob cannot be written: {error}. Look at the kernel's log and at the disk, then restart the node."
    report(why)
    return DiskFailed(why)
