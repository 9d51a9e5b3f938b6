"""Blobs that are read: verified, and what fails is put aside and wanted.

A thread that has put a file aside tells so itself: whoever asked it to read may be gone by then, or may only have wanted to
know whether something is whole.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from amberblob.errors import ChunkCorrupt, ChunkMissing
from amberblob.ids import content_hash
from amberblob.limits import INLINE_BYTES_MAX
from amberblob.manifest import ChunkRef
from chunkstore import garbagedb
from chunkstore.blobs.work import Blob, BlobWork
from chunkstore.core import DiskCore
from chunkstore.files import BlobFiles, checked_hash, checked_ulid
from chunkstore.overlay import Intent

T = TypeVar("T")


class Reading:
    """Reads chunk files, manifest files and inline bodies."""

    def __init__(self, core: DiskCore, work: BlobWork, files: BlobFiles) -> None:
        self._core = core
        self._work = work
        self._files = files
        self._loop = asyncio.get_running_loop()
        self._noting: dict[Blob, asyncio.Task[None]] = {}
        files.damaged = self._damaged

    async def body(self, slot: int, blob_id: str) -> bytes | None:
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
            body = await self.body(slot, blob_id)
            if body is not None:
                if len(body) == chunk.len and content_hash(body) == chunk.id:
                    if cache.dropped == dropped and overlay.body(slot, blob_id) is None:
                        cache.put(blob, body)
                    return body
                raise await self._give_up_body(slot, blob_id, chunk, body)
        return await self._read_file(slot, blob_id, lambda: self._files.read_chunk(slot, blob_id, chunk))

    async def read_chunk_into(self, slot: int, blob_id: str, chunk: ChunkRef, into: memoryview) -> bytes | memoryview:
        """See the interface."""
        if chunk.len <= INLINE_BYTES_MAX:
            return await self.read_chunk(slot, blob_id, chunk)
        checked_ulid(blob_id)
        checked_hash(chunk.id)
        return await self._read_file(slot, blob_id, lambda: self._files.read_chunk_into(slot, blob_id, chunk, into))

    async def read_manifest(self, slot: int, blob_id: str, manifest_id: str) -> bytes:
        """See the interface."""
        checked_ulid(blob_id)
        checked_hash(manifest_id)
        return await self._read_file(slot, blob_id, lambda: self._files.read_manifest(slot, blob_id, manifest_id))

    async def _read_file(self, slot: int, blob_id: str, read: Callable[[], T]) -> T:
        try:
            return await self._work.run_reading(read)
        except ChunkMissing:
            self._core.overlay.mark_complete(slot, blob_id, complete=False)
            raise
        except ChunkCorrupt:
            # The thread told of it before it ended. A disk that fails takes no note, and the next start sees to it.
            if (noting := self._noting.get((slot, blob_id))) is not None:
                await asyncio.wait([noting])
            raise

    def _damaged(self, slot: int, blob_id: str, is_manifest: bool) -> None:
        """In the thread that found it: a file of the blob is in quarantine."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._note, slot, blob_id, is_manifest)

    def _note(self, slot: int, blob_id: str, is_manifest: bool) -> None:
        blob = (slot, blob_id)
        self._core.overlay.mark_complete(slot, blob_id, complete=False)
        task = self._work.begun(self._want_damaged(slot, blob_id, inline=False, manifest=is_manifest))
        self._noting[blob] = task

        def noted(task: asyncio.Task[None]) -> None:
            if self._noting.get(blob) is task:
                del self._noting[blob]

        task.add_done_callback(noted)

    async def _give_up_body(self, slot: int, blob_id: str, chunk: ChunkRef, body: bytes) -> Exception:
        self._core.overlay.verified.drop((slot, blob_id))
        error = await self._work.run_reading(lambda: self._files.quarantine_body(slot, blob_id, chunk.id, body))
        await self._want_damaged(slot, blob_id, inline=True)
        return error

    async def _want_damaged(self, slot: int, blob_id: str, *, inline: bool, manifest: bool = False) -> None:
        """What failed its hash is in quarantine: what is right is to be pulled."""
        if slot in self._core.overlay.known():
            barrier = self._core.overlay.blob_position(slot, blob_id)
            question = partial(garbagedb.want_damaged, blob_id=blob_id, inline=inline, manifest=manifest)
            await self._core.ask(slot, question, barrier=barrier)
