"""Putting many versions' bytes back at once, and saying that a version is whole. Belongs to the event loop.

One version of one chunk costs three syncs (its file and two folders) beside those of the slot's folders. So they are written by
several threads side by side: the file system makes one commit of the syncs that come together (measured on ext4, 100 KiB each:
100 blobs/s one after the other, 700 to 900 with eight threads, which was what the disk gave for a single big file). The renames
of a whole call, and the syncs of the slot's folders, are done once. The threads are their own, so that no client's read waits
behind a repair.

For a power cut at any instant: each folder is complete and synced before it is renamed into place, and nothing is said of it
before the names are synced too. What a killed process leaves in staging is removed at the next start, what it leaves in
place is complete. No entry of the journal is needed, because a row refers to each of the blobs already.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from amberblob.errors import DigestMismatch
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Version
from chunkstore import garbagedb
from chunkstore.archiving import Archiving
from chunkstore.blobs import Blobs
from chunkstore.codec import BodyKept
from chunkstore.core import DiskCore
from chunkstore.fileops import FileOps
from chunkstore.files import BlobFiles, checked_hash, checked_ulid
from chunkstore.staging import ChunkWriter, settled

T = TypeVar("T")
Given = Sequence[tuple[Version, bytes]]

_THREADS = 8


def _only_chunk(version: Version) -> ChunkRef:
    """The chunk of a version that has one. Raises DigestMismatch."""
    if len(version.chunks) != 1 or version.manifest_id is not None:
        raise DigestMismatch(f"blob {version.blob_id} is not of one chunk; it was not stored")
    checked_ulid(version.blob_id)
    checked_hash(version.chunks[0].id)
    return version.chunks[0]


def _check_all(given: Given) -> None:
    """Raise DigestMismatch unless all of these are the bytes of their version."""
    for version, data in given:
        chunk = _only_chunk(version)
        if len(data) != chunk.len or content_hash(data) != chunk.id:
            raise DigestMismatch(f"the bytes are not chunk {chunk.id} of blob {version.blob_id}; they were not stored")


class Bulk:
    """See :class:`chunkstore.interface.ReplicaStore` for every method but close."""

    def __init__(
        self, core: DiskCore, blobs: Blobs, files: BlobFiles, ops: FileOps, mint: Callable[[], str], archiving: Archiving
    ) -> None:  # fmt: skip
        self._core = core
        self._blobs = blobs
        self._archiving = archiving
        self._files = files
        self._ops = ops
        self._mint = mint
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="amber-bulk")

    async def _run(self, function: Callable[[], T]) -> T:
        return await settled(asyncio.get_running_loop().run_in_executor(self._threads, function))

    async def _referred(self, slot: int, given: Given) -> Given:
        """Those that something refers to still: others expired while their bytes were on their way."""
        if slot not in self._core.overlay.known():
            return []
        blob_ids = {version.blob_id for version, _ in given}
        barrier = self._core.overlay.slot_position(slot)
        known = await self._core.ask(slot, partial(garbagedb.referred, blob_ids=blob_ids), barrier=barrier)
        return [(version, data) for version, data in given if version.blob_id in known]

    # -- whole or not

    async def set_wanted(self, slot: int, path: str, version: Version, *, damaged: bool) -> None:
        if slot not in self._core.overlay.known() or not version.size:
            return
        ids: tuple[str, ...] | None = None
        if await self._archiving.is_evicted(slot, version.blob_id):
            ids = await self._archiving.chunk_ids(slot, version)
        barrier = self._core.overlay.slot_position(slot)
        question = partial(garbagedb.want, path=path, version=version, damaged=damaged, chunk_ids=ids)
        await self._core.ask(slot, question, barrier=barrier)

    async def not_whole(self, slot: int, versions: Sequence[Version]) -> list[Version]:
        files = [version for version in versions if not version.inline]

        def look() -> list[Version]:
            return [one for one in files if not self._files.missing(slot, checked_ulid(one.blob_id), one.chunks)]

        found = await self._blobs.work.run_reading(look) if files else []
        here = {version.blob_id for version in found if await self.is_whole(slot, version)}
        evicted = await self._archiving.evicted_among(slot, {one.blob_id for one in versions} - here)
        here |= {one.blob_id for one in versions if one.blob_id in evicted and await self._archiving.is_held(slot, one)}
        return [version for version in versions if version.blob_id not in here]

    async def is_whole(self, slot: int, version: Version) -> bool:
        if slot not in self._core.overlay.known():
            return version.size == 0
        if await self._keep_if_here(slot, version):
            return True
        return await self._archiving.is_held(slot, version)

    async def _keep_if_here(self, slot: int, version: Version) -> bool:
        """Whether all bytes are here; if so the version is wanted no more, and needs no archive rows.

        Alone with the blob until the tables have it: nobody evicts it meanwhile.
        """
        async with contextlib.AsyncExitStack() as stack:
            if version.inline:
                is_here = not await self._blobs.mending.missing_chunks(slot, version, version.chunks)
            elif version.size:
                await stack.enter_async_context(self._blobs.work.alone((slot, checked_ulid(version.blob_id))))
                is_here = await self._has_files(slot, version)
            else:
                is_here = True
            if is_here:
                await self._keep(slot, [version], barrier=self._core.overlay.slot_position(slot))
            return is_here

    async def _has_files(self, slot: int, version: Version) -> bool:
        chunks = await self._blobs.work.run_reading(lambda: self._blobs.mending.chunks(slot, version))
        if chunks is None:
            return False
        missing = await self._blobs.work.run_reading(lambda: self._files.missing(slot, version.blob_id, chunks))
        if missing:
            return False
        if not await self._blobs.work.run_reading(lambda: self._files.is_complete(slot, version.blob_id)):
            # The mark of a repair that was killed before its end.
            await self._blobs.work.run_writing(
                lambda: self._files.end_mending(slot, version.blob_id, chunks, version.manifest_id)
            )
        return True

    async def _keep(self, slot: int, versions: Sequence[Version], *, barrier: int = 0) -> None:
        await self._core.ask(slot, partial(garbagedb.keep_whole, versions=versions), barrier=barrier)

    # -- many at once

    async def install_bodies(self, slot: int, bodies: Given) -> None:
        """All in one sync of the journal, and as far as possible in one transaction of the database."""
        assert all(version.inline for version, _ in bodies), "a file does not belong into the database"
        await self._run(lambda: _check_all(bodies))
        self._blobs.work.guard(sum(len(data) for _, data in bodies))
        position = 0
        for version, data in await self._referred(slot, bodies):
            position = self._core.apply(BodyKept(slot, version.blob_id, data))
        await self._core.durable(position)

    async def install_blobs(self, slot: int, blobs: Given) -> None:
        assert not any(version.inline for version, _ in blobs), "an inline body is no file"
        for version, _ in blobs:
            _only_chunk(version)
        self._blobs.work.guard(sum(len(data) for _, data in blobs))
        given = {version.blob_id: (version, data) for version, data in await self._referred(slot, blobs)}
        if given:
            await self._blobs.work.to_the_end(self._install(slot, [given[blob_id] for blob_id in sorted(given)]))

    async def _install(self, slot: int, given: Given) -> None:
        """Alone with all of the blobs, which are in order, so that two calls never wait for each other."""
        blobs = [(slot, version.blob_id) for version, _ in given]
        async with contextlib.AsyncExitStack() as stack:
            for blob in blobs:
                await stack.enter_async_context(self._blobs.work.alone(blob))
                self._blobs.work.lacking.pop(blob, None)
            # Until their names are synced nobody is told that they are durable.
            self._blobs.work.publishing.update(blobs)
            stack.callback(self._blobs.work.publishing.difference_update, blobs)
            await self._store(slot, given)
            for _, blob_id in blobs:
                self._core.overlay.mark_complete(slot, blob_id, complete=True)
            await self._keep(slot, [version for version, _ in given])

    async def _store(self, slot: int, given: Given) -> None:
        await self._blobs.work.run_writing(lambda: self._files.prepare_slot(slot))
        folders = [self._files.staging_folder(slot) / f"{version.blob_id}.{self._mint()}" for version, _ in given]
        writes = [
            asyncio.ensure_future(self._run(partial(self._write, slot, folder, version, data)))
            for folder, (version, data) in zip(folders, given, strict=True)
        ]
        results = await asyncio.gather(*writes, return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        staged = [(version.blob_id, folder) for (version, _), folder, result in zip(given, folders, results, strict=True) if result is True]  # fmt: skip
        try:
            for error in errors:
                raise error
            await self._run(lambda: self._place(slot, staged))
        except BaseException as error:
            await self._run(lambda: self._clear(folders))
            if isinstance(error, OSError):
                raise self._blobs.work.failed(error) from error
            raise

    def _write(self, slot: int, folder: Path, version: Version, data: bytes) -> bool:
        """Make the blob's folder in staging, durably; False: it has a folder in place, and was put into that."""
        if self._files.blob_folder(slot, version.blob_id).is_dir():
            self._files.install_chunk(slot, version.blob_id, version.chunks[0], data)
            self._files.end_mending(slot, version.blob_id, version.chunks, None)
            return False
        writer = ChunkWriter(folder, self._ops, len(data), len(data))
        try:
            writer.create()
            for fd in writer.write([data]):
                writer.sync_chunk(fd)
            if tuple(writer.refs) != version.chunks:
                raise DigestMismatch(f"the bytes are not those of blob {version.blob_id}; they were not stored")
            writer.seal(None)
        except BaseException:
            writer.remove()
            raise
        return True

    def _place(self, slot: int, staged: Sequence[tuple[str, Path]]) -> None:
        """Rename into place, and sync the slot's folders once for all."""
        placed: list[str] = []
        try:
            for blob_id, folder in staged:
                self._ops.rename(folder, self._files.blob_folder(slot, blob_id))
                placed.append(blob_id)
            if placed:
                self._ops.fsync_dir(self._files.blob_folder(slot, placed[0]).parent)
                self._ops.fsync_dir(self._files.staging_folder(slot))
        except OSError:
            # In place, and nobody knows whether for good: they must not be found there.
            self._take_away(slot, placed)
            raise

    def _take_away(self, slot: int, blob_ids: Sequence[str]) -> None:
        """Raises OSError (EIO) when it is not sure that all are gone; all were renamed out of sight then, as far as that goes."""
        left: list[str] = []
        for blob_id in blob_ids:
            try:
                self._files.remove_blob(slot, blob_id)
            except OSError as error:
                left.append(f"{blob_id} ({error})")
        if left:
            raise OSError(errno.EIO, f"blobs cannot be made durable nor taken away: {', '.join(left[:5])}")

    def _clear(self, folders: Sequence[Path]) -> None:
        for folder in folders:
            # What stays is removed at the next start; whoever waits is told why the bytes did not come in.
            with contextlib.suppress(OSError):
                self._ops.remove_tree(folder)

    async def close(self) -> None:
        """Let go of the threads, once what they do has ended."""
        await asyncio.to_thread(self._threads.shutdown)
