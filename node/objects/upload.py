"""A body on its way to all replicas at once: cut into pieces, hashed in a thread, sent with backpressure.

The pace is set by the slowest replica as long as it keeps moving. One that stands still for ``STALL_S`` while a
write quorum moves on is dropped from this upload, so that a hung node cannot hang a client.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Collection, Iterable
from typing import Any

import structlog
from blake3 import blake3

from amberblob.errors import AmberError, InsufficientStorage, PeerError, QuorumUnavailable
from amberblob.manifest import ChunkRef, place_chunks
from amberblob.wire import Discard, Refused, Reply, StageClose, StagedReply, StageOpen
from node.coordinator import Coordinator, not_counted
from node.protocol.quorum import Electorate
from node.transport.interface import OutgoingStage

log = structlog.get_logger(__name__)

STALL_S = 2.0
STUCK_S = 12.0
"""Less than a client waits for its body to be taken (:class:`amberblob.client.Timeouts`, 15 s)."""

OPEN_S = 5.0
CLOSE_S = 60.0
LAGGARD_GRACE_S = 0.5
UNREACHABLE_GRACE_S = 0.05
"""For a node that did not answer lately; it may be back."""


class Digests:
    """The running hashes of one body: blake3 always, others as the client asked for."""

    def __init__(self, extra: Iterable[str] = ()) -> None:
        self._blake3 = blake3()
        self._extra: dict[str, Any] = {
            name: hashlib.new({"sha-256": "sha256", "sha-512": "sha512"}[name]) for name in extra if name != "blake3"
        }

    def update(self, data: bytes) -> None:
        """Take in bytes. Releases the interpreter lock for large ones."""
        self._blake3.update(data)
        for digest in self._extra.values():
            digest.update(data)

    def value(self, algorithm: str) -> bytes:
        """The digest so far."""
        if algorithm == "blake3":
            return self._blake3.digest()
        return bytes(self._extra[algorithm].digest())

    @property
    def etag(self) -> str:
        """blake3 of everything, in hex."""
        return self._blake3.hexdigest()


class ChunkHasher:
    """Cuts a stream into chunks of a fixed size and names them."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._current = blake3()
        self._length = 0
        self._chunks: list[ChunkRef] = []

    def update(self, data: bytes) -> None:
        """Take in bytes."""
        view = memoryview(data)
        while view:
            part = view[: self._chunk_bytes - self._length]
            self._current.update(part)
            self._length += len(part)
            view = view[len(part) :]
            if self._length == self._chunk_bytes:
                self._cut()

    def _cut(self) -> None:
        self._chunks.append(ChunkRef(self._current.hexdigest(), self._length))
        self._current, self._length = blake3(), 0

    def finish(self) -> tuple[ChunkRef, ...]:
        """Every chunk; the last one may be short."""
        if self._length:
            self._cut()
        return tuple(self._chunks)


class Upload:
    """One blob on its way to the voters of a slot. Use :meth:`open`, :meth:`write`, then :meth:`finish` or :meth:`abort`.

    While the slot moves, it goes to the voters of both sets, and "a write quorum" is one of each.

    Attributes:
        chunks, close, manifest: once finished, all chunks in order, and how the blob was closed.
    """

    def __init__(self, coordinator: Coordinator, electorate: Electorate, *, blob_id: str, chunk_bytes: int) -> None:
        self._coordinator = coordinator
        self._electorate = electorate
        self._blob_id = blob_id
        self._chunk_bytes = chunk_bytes
        self._live: dict[str, OutgoingStage] = {}
        self._out: dict[str, str] = {}
        self._full: set[str] = set()
        self._strangers: set[str] = set()
        """Those whose copy is another one than the route named when this began."""
        self._hasher = ChunkHasher(chunk_bytes)
        self.chunks: tuple[ChunkRef, ...] = ()
        self.close = StageClose(chunks=(), manifest_id=None)
        self.manifest: bytes | None = None

    async def open(self, size: int | None) -> None:
        """Open a stream to every voter. Raises: QuorumUnavailable."""
        message = StageOpen(
            slot=self._electorate.slot,
            epoch=self._electorate.epoch,
            blob_id=self._blob_id,
            chunk_bytes=self._chunk_bytes,
            size=size,
        )

        async def one(node: str) -> None:
            try:
                # This bounds each later wait, too: how long the stream may take to open is bounded below.
                stage = await self._coordinator.peers.stage(node, message, timeout_s=STUCK_S)
            except PeerError as error:
                self._out[node] = error.detail
                return
            if node in self._out:  # came too late
                await stage.abort()
            else:
                self._live[node] = stage

        there = all(self._coordinator.peers.reachable(node) for node in self._electorate.voters)
        await self._each(
            {node: one(node) for node in self._electorate.voters},
            patience_s=OPEN_S,
            grace_s=LAGGARD_GRACE_S if there else UNREACHABLE_GRACE_S,
        )
        self._need_quorum()

    async def write(self, piece: bytes, digests: Digests) -> None:
        """Hash and send one piece. Raises: QuorumUnavailable, InsufficientStorage."""

        def hash_piece() -> None:
            digests.update(piece)
            self._hasher.update(piece)

        hashing = asyncio.get_running_loop().run_in_executor(None, hash_piece)

        async def one(node: str, stage: OutgoingStage) -> None:
            try:
                await stage.write(piece)
            except PeerError as error:
                if error.code == "disk-full":
                    self._full.add(node)
                await self._drop(node, error.detail)

        try:
            await self._each(
                {node: one(node, stage) for node, stage in self._live.items()}, patience_s=STUCK_S, grace_s=STALL_S
            )
        finally:
            await hashing
        self._need_quorum()

    async def finish(self) -> tuple[tuple[ChunkRef, ...], str | None, int, frozenset[str]]:
        """Make the blob durable: (chunks or (), manifest id, chunk count, who has it).

        Those who have it are a write quorum; or fewer, if a newer route of the slot is known meanwhile: they are for :class:`Restage`
        to bring it to that one's voters. Raises: QuorumUnavailable, InsufficientStorage.
        """
        all_chunks = self._hasher.finish()
        chunks, manifest_id, manifest = place_chunks(all_chunks)
        message = StageClose(chunks=chunks, manifest_id=manifest_id)
        self.chunks, self.close, self.manifest = all_chunks, message, manifest
        staged: set[str] = set()

        async def one(node: str, stage: OutgoingStage) -> None:
            try:
                reply = await stage.close(message, manifest, timeout_s=CLOSE_S)
            except PeerError as error:
                self._out[node] = error.detail
                return
            if isinstance(reply, StagedReply) and self._electorate.counts(node, reply.incarnation):
                staged.add(node)
                return
            self._note_refusal(node, reply)

        await self._each(
            {node: one(node, stage) for node, stage in self._live.items()},
            patience_s=CLOSE_S,
            grace_s=LAGGARD_GRACE_S,
            done=staged,
        )
        if not self._electorate.is_write_quorum(staged):
            error = self._error(staged)
            if isinstance(error, InsufficientStorage) or not staged:
                raise error
            if not await self._coordinator.moves_on(self._electorate, self._strangers):
                raise error
        return chunks, manifest_id, len(all_chunks), frozenset(staged)

    async def abort(self) -> None:
        """Give the blob up everywhere. Never raises."""
        for node, stage in list(self._live.items()):
            await stage.abort()
            self._coordinator.spawn(self._discard(node))
        self._live.clear()

    async def _discard(self, node: str) -> None:
        try:
            await self._coordinator.call(node, Discard(slot=self._electorate.slot, blob_id=self._blob_id))
        except PeerError as error:
            log.info("discard not delivered; the node's sweep will remove it", peer=node, error=error.detail)

    async def _drop(self, node: str, why: str) -> None:
        stage = self._live.pop(node, None)
        self._out[node] = why
        if stage is not None:
            await stage.abort()

    def _note_refusal(self, node: str, reply: Reply) -> None:
        self._out[node] = not_counted(reply)
        if isinstance(reply, StagedReply):
            self._strangers.add(node)
            return  # it has the bytes: abort() discards them there, too
        self._live.pop(node, None)
        if isinstance(reply, Refused) and reply.reason == "disk-full":
            self._full.add(node)

    async def _each(
        self, work: dict[str, Any], *, patience_s: float, grace_s: float, done: set[str] | None = None
    ) -> None:
        """Run one coroutine per node. Those that lag ``grace_s`` behind a write quorum, or ``patience_s`` at all, are dropped."""
        loop = asyncio.get_running_loop()
        tasks = {loop.create_task(coroutine): node for node, coroutine in work.items()}
        pending = set(tasks)
        end_s = loop.time() + patience_s
        try:
            while pending and loop.time() < end_s:
                finished = [node for task, node in tasks.items() if task not in pending and node not in self._out]
                ahead = [node for node in finished if done is None or node in done]
                if self._electorate.is_write_quorum(ahead):
                    end_s = min(end_s, loop.time() + grace_s)
                    _, pending = await asyncio.wait(pending, timeout=max(0.0, end_s - loop.time()))
                    break
                _, pending = await asyncio.wait(
                    pending, timeout=max(0.0, end_s - loop.time()), return_when=asyncio.FIRST_COMPLETED
                )
        except BaseException:
            # The caller went away: its streams stay on the list, for abort() to give them up.
            for task in tasks:
                task.cancel()
            raise
        for task in pending:
            task.cancel()
            await self._drop(tasks[task], "too slow: dropped from this upload")
        for task in tasks:
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _need_quorum(self) -> None:
        if not self._electorate.is_write_quorum(self._live):
            raise self._error(self._live)

    def _error(self, got: Collection[str]) -> AmberError:
        if self._full and not self._electorate.write_quorum_possible(self._full):
            return InsufficientStorage.of(self._full)
        return QuorumUnavailable.of(*self._electorate.writes_short(got), self._out)
