"""What all work on blobs shares: the threads, one at a time for each blob, and what is under way."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

from amberblob.errors import DiskFailed, StorageError
from chunkstore.core import DiskCore
from chunkstore.overlay import Intent
from chunkstore.space import SpaceGuard
from chunkstore.staging import as_storage_error, is_broken, is_failed_sync, retrieve, settled

T = TypeVar("T")
Blob = tuple[int, str]

_TASKS_S = 2.0
"""How long a close waits for what cannot be stopped; on a full disk that may wait for room for ever."""


class BlobWork:
    """Whatever changes a blob's folder in ``blobs/`` (publishing, mending, giving up) does so alone: see :meth:`alone`.

    Attributes:
        publishing: blobs that are being put in place. They must not be called durable.
        discarding: blobs that are being given up. Nor must they.
        lacking: of blobs that are being mended, the ids of the chunks that are not here yet.
        put_aways: by slot, how often its files were taken out of sight.
    """

    def __init__(self, core: DiskCore, space: SpaceGuard, pool: Executor) -> None:
        self.publishing: set[Blob] = set()
        self.discarding: set[Blob] = set()
        self.lacking: dict[Blob, set[str]] = {}
        self.put_aways: Counter[int] = Counter()
        self._core = core
        self._space = space
        self._pool = pool
        self._busy: dict[Blob, asyncio.Future[None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, function: Callable[[], T]) -> T:
        """Do it in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def run_writing(self, function: Callable[[], T]) -> T:
        """Do it in a thread, to its end, if there is room. Raises: DiskFull, DiskFailed."""
        self.guard(0)
        try:
            return await settled(asyncio.get_running_loop().run_in_executor(self._pool, function))
        except OSError as error:
            raise self.failed(error) from error

    async def run_reading(self, function: Callable[[], T]) -> T:
        """Do it in a thread. Raises: StorageError; DiskFailed: not for these bytes alone."""
        try:
            return await self.run(function)
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
        return await asyncio.shield(self.begun(work))

    def begun(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """The same for whoever does not wait for it, or not alone."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(retrieve)
        return task

    def guard(self, size_bytes: int) -> None:
        """Whether so much may be written. Raises: DiskFull, DiskFailed."""
        self._core.journal.raise_if_failed()
        self._space.require(size_bytes)

    def failed(self, error: OSError) -> Exception:
        """What a failed write is told as. One that is not for want of room ends all writing."""
        return as_storage_error(error, self._core.fail, self._full)

    def _full(self) -> Exception:
        return self._space.refusal("the system found no room for what was written")

    def is_under_way(self, slot: int, blob_id: str) -> bool:
        """Whether memory knows more of the blob than the tables: it comes in, goes, is being mended or was just accepted."""
        blob, overlay = (slot, blob_id), self._core.overlay
        return (
            blob in self._busy
            or overlay.intent(slot, blob_id) in (Intent.STAGED, Intent.REFERENCED)
            or overlay.body(slot, blob_id) is not None
        )

    async def close(self, endings: list[asyncio.Future[None]]) -> None:
        """Let end what cannot be stopped, and these, for a moment."""
        # On a full disk a removal or a publishing waits for room, perhaps for ever. It then ends as the databases do.
        waiting = [*endings, *self._tasks]
        if waiting:
            await asyncio.wait(waiting, timeout=_TASKS_S)
