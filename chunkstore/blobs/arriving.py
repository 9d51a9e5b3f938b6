"""Blobs that come in: staged beside the others, then published."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path

import structlog

from amberblob.errors import StorageError
from amberblob.mutations import Staged
from amberblob.openfiles import OnceAMinute, uploads_max
from chunkstore.blobs.states import BlobStates
from chunkstore.blobs.work import BlobWork
from chunkstore.core import DiskCore
from chunkstore.fileops import FileOps
from chunkstore.files import INCOMPLETE_NAME, BlobFiles, checked_ulid
from chunkstore.interface import BlobState
from chunkstore.overlay import Intent
from chunkstore.staging import ChunkWriter, DiskStaging, settled

_MORE = "More would take open files that the store needs itself"
_LIMIT = "the limit of open files (LimitNOFILE, ulimit -n)"

_log = structlog.get_logger(__name__)


class Arriving:
    """Takes blobs in."""

    def __init__(
        self, core: DiskCore, work: BlobWork, states: BlobStates, files: BlobFiles, ops: FileOps, pool: Executor,
        wall_ms: Callable[[], int], mint: Callable[[], str],
    ) -> None:  # fmt: skip
        self._core = core
        self._work = work
        self._states = states
        self._files = files
        self._ops = ops
        self._pool = pool
        self._wall_ms = wall_ms
        self._mint = mint
        self._active: dict[Path, DiskStaging] = {}
        self._refusals = OnceAMinute()

    async def stage(
        self, slot: int, blob_id: str, chunk_bytes: int, size: int | None, revive: bool = False
    ) -> DiskStaging:
        """See the interface."""
        checked_ulid(blob_id)
        assert chunk_bytes > 0
        self._work.guard(size or 0)
        if not revive:  # what other nodes bring back is one at a time per blob, and no client's slowness keeps it
            self._admit()
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
            guard=self._work.guard,
            failed=self._work.failed,
            ended=ended,
        )
        self._active[folder] = staging
        try:
            await settled(asyncio.get_running_loop().run_in_executor(self._pool, create))
        except OSError as error:
            await staging.abort()
            raise self._work.failed(error) from error
        except BaseException:
            await staging.abort()
            raise
        return staging

    def _admit(self) -> None:
        """Raises StorageError when more blobs of clients are coming in than there are open files for."""
        allowed, coming = uploads_max(), len(self._active)
        if allowed is None or coming < allowed:
            return
        if self._refusals.is_due(asyncio.get_running_loop().time()):
            _log.warning("uploads_refused", coming=coming, detail=f"{_MORE}. Have {_LIMIT} raised.")
        raise StorageError(f"{coming} blobs are coming in here. {_MORE}: try again, and have {_LIMIT} raised.")

    async def _publish(self, slot: int, blob_id: str, source: Path, *, revive: bool) -> None:
        """``Staged`` durable, then the rename, then both parents. Must not be left before it ends."""
        blob = (slot, blob_id)
        overlay = self._core.overlay
        async with self._work.alone(blob):
            if await self._states.blob_state(slot, blob_id) is BlobState.ABORTED and not revive:
                raise StorageError(f"blob {blob_id} was given up here before; a new attempt needs a new blob id")
            # Until the folders are synced the blob must not be called durable.
            self._work.publishing.add(blob)
            self._work.lacking.pop(blob, None)
            put_aways = self._work.put_aways[slot]
            try:
                await self._core.durable(self._core.apply(Staged(slot, blob_id, self._wall_ms(), revive)))
                if overlay.intent(slot, blob_id) is not Intent.ABORTED:
                    await self._settle_files(lambda: self._put_in_place(slot, blob_id, source))
                if overlay.intent(slot, blob_id) is Intent.ABORTED:
                    await self._settle_files(lambda: self._files.remove_blob(slot, blob_id))
                    raise StorageError(
                        f"blob {blob_id} was given up while it came in; a new attempt needs a new blob id"
                    )
                if self._work.put_aways[slot] != put_aways:
                    # Perhaps with this one among them, perhaps not: it is not to be relied on.
                    raise StorageError(f"slot {slot} was left while blob {blob_id} came in")
                overlay.mark_complete(slot, blob_id, complete=True)
            finally:
                self._work.publishing.discard(blob)

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

    def abort(self) -> list[asyncio.Future[None]]:
        """Begin to abort all that is on its way in; what that ends with."""
        return [asyncio.ensure_future(staging.abort()) for staging in self._active.values()]
