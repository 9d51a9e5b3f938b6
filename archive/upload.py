"""Chunks on their way into the archive: encoded in threads, packed, stored, several objects at once.

An object is sent while it is made: of a pack no more is in memory than what the target has not taken yet. One pack after the other is filled, while
those before it are being completed: several that are filled at once would cost more requests, and a target takes several parts of one at a time.
"""

from __future__ import annotations

import asyncio
import functools
from collections import OrderedDict
from collections.abc import AsyncIterable, Awaitable, Callable
from dataclasses import dataclass, field

from amberblob.archives import ArchivedChunk
from amberblob.errors import AmberError
from amberblob.limits import MIB
from archive.closing import closing
from archive.frames import LEVEL_DEFAULT, Frame, encode_frame
from archive.objects import OpenObject
from archive.packs import ENTRIES_MAX, Item, lone_name, pack_name
from archive.targets.interface import Target

__all__ = ["Failed", "Item", "Stored", "Uploader"]

Stored = Callable[[list[tuple[Item, ArchivedChunk]]], Awaitable[None]]
"""Is told the rows of an object as soon as it is stored, :data:`amberblob.archives.UPLOADED`. Several may be told at once."""
Failed = Callable[[list[Item], AmberError], Awaitable[None]]
"""Is told what could not be archived, and why."""

BATCH_BYTES = MIB
BATCH_ITEMS = 256
"""So much goes to a thread at once: a trip for each small chunk would cost more than its work."""
REMEMBERED_MAX = 65_536
"""Chunks of one run whose place is remembered, so that the same content is not sent again."""


@dataclass(slots=True)
class _Chunk:
    """A chunk that is on its way, and who waits for it."""

    items: list[Item]
    object: OpenObject | None = None


@dataclass(slots=True)
class _Batch:
    """What goes to a thread together."""

    pairs: list[tuple[Item, bytes]] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def full(self) -> bool:
        return self.size_bytes >= BATCH_BYTES or len(self.pairs) >= BATCH_ITEMS


class Uploader:
    """Archives chunks in one target.

    Args:
        now_ms: the node's hybrid clock, epoch milliseconds; never goes back.
        mint: a new ULID, greater than all before.
        pack_size: a pack is closed when it has so many bytes.
        lone_size: a chunk of so many bytes or more becomes an object of its own.
        parallel: objects under way at once, over all runs. Memory: about twice the largest chunk, or :data:`archive.objects.ROOM_BYTES`, for each.
        level: of zstd.
        linger_s: a pack is closed when it has waited so long to become full; its chunks are told then.
    """

    def __init__(
        self,
        target: Target,
        *,
        now_ms: Callable[[], int],
        mint: Callable[[], str],
        pack_size: int,
        lone_size: int,
        parallel: int,
        level: int = LEVEL_DEFAULT,
        linger_s: float = 300.0,
    ) -> None:
        self.target = target
        self.now_ms = now_ms
        self.mint = mint
        self.pack_size = pack_size
        self.lone_size = min(lone_size, pack_size)
        self.parallel = parallel
        self.level = level
        self.linger_s = linger_s
        self.places = asyncio.Semaphore(parallel)

    async def run(self, source: AsyncIterable[tuple[Item, bytes]], stored: Stored, failed: Failed) -> None:
        """Archive all that comes; returns when every item was told to ``stored`` or to ``failed``.

        Two items of the same chunk share a frame; the second one's bytes are not looked at. An object that cannot be stored fails for its own items,
        and the others go on. What the source or a callback raises ends the run; then, and when it is cancelled, what is not stored yet is given up
        and leaves nothing in the target that is listed.
        """
        await _Run(self, stored, failed).carry_out(source)


class _Run:
    """One call of :meth:`Uploader.run`."""

    def __init__(self, uploader: Uploader, stored: Stored, failed: Failed) -> None:
        self._uploader = uploader
        self._stored, self._failed = stored, failed
        self._ahead = asyncio.Semaphore(uploader.parallel + 1)
        self._sending = asyncio.TaskGroup()
        self._encoding = asyncio.TaskGroup()
        self._under_way: dict[str, _Chunk] = {}
        self._done: OrderedDict[str, ArchivedChunk] = OrderedDict()
        self._again: list[tuple[Item, ArchivedChunk]] = []
        self._pack: OpenObject | None = None  # that takes more
        self._choosing = asyncio.Lock()
        self._objects = 0
        self._lone_waiting = 0
        self._changed = asyncio.Event()

    async def carry_out(self, source: AsyncIterable[tuple[Item, bytes]]) -> None:
        try:
            async with self._sending:
                async with self._encoding:
                    await self._take(source)
                if self._pack is not None:
                    self._close(self._pack)
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _take(self, source: AsyncIterable[tuple[Item, bytes]]) -> None:
        """Make batches of what comes and have them encoded, no more than a few ahead."""
        batch = _Batch()
        async with closing(aiter(source)) as items:
            async for item, data in items:
                if self._known(item):
                    if len(self._again) >= BATCH_ITEMS:
                        await self._tell_again()
                elif len(data) >= self._uploader.lone_size:
                    await self._begin_batch(_Batch([(item, data)]), lone=True)
                else:
                    batch.pairs.append((item, data))
                    batch.size_bytes += len(data)
                    if batch.full:
                        await self._begin_batch(batch, lone=False)
                        batch = _Batch()
        if batch.pairs:
            await self._begin_batch(batch, lone=False)
        await self._tell_again()

    async def _begin_batch(self, batch: _Batch, lone: bool) -> None:
        await self._ahead.acquire()
        self._encoding.create_task(self._encode(batch, lone)).add_done_callback(lambda _: self._ahead.release())

    async def _tell_again(self) -> None:
        """Of those whose chunk was stored before they came."""
        again, self._again = self._again, []
        if again:
            await self._stored(again)

    def _known(self, item: Item) -> bool:
        """Whether the chunk is stored or on its way already: then this item has its share of that."""
        row = self._done.get(item.chunk.id)
        if row is not None:
            self._again.append((item, row))
            return True
        chunk = self._under_way.get(item.chunk.id)
        if chunk is None:
            self._under_way[item.chunk.id] = _Chunk([item])
            return False
        chunk.items.append(item)
        if chunk.object is not None:
            chunk.object.enter(item)
        return True

    async def _encode(self, batch: _Batch, lone: bool) -> None:
        """Make the frames of a batch and hand them on to objects."""
        pairs, batch.pairs = batch.pairs, []
        level = self._uploader.level
        frames = await asyncio.get_running_loop().run_in_executor(None, _encode_all, pairs, level)
        del pairs
        for chunk_id, frame in frames:
            if isinstance(frame, AmberError):
                await self._failed(self._under_way.pop(chunk_id).items, frame)
            elif lone:
                await self._send_alone(frame)
            else:
                self._add(await self._pack_with_room(), frame)

    async def _send_alone(self, frame: Frame) -> None:
        self._lone_waiting += 1
        self._make_way()
        try:
            await self._uploader.places.acquire()
        finally:
            self._lone_waiting -= 1
        lone = self._begin(lone_name(frame.chunk_id, self._uploader.mint()))
        try:
            self._add(lone, frame)
            lone.close()
            await self._send(lone)
        finally:
            self._ended()

    def _make_way(self) -> None:
        """Close the pack if it alone holds a place while lone chunks wait for one: it waits for more, which may come after them."""
        if self._lone_waiting and self._pack is not None and self._objects == 1 and self._uploader.places.locked():
            self._close(self._pack)

    async def _pack_with_room(self) -> OpenObject:
        """The pack that takes more now; or a new one, if there is none and one more object may be under way.

        Only one is open at a time: with a slow target several would stay small, and each costs requests of its own.
        """
        async with self._choosing:  # two that wait for a place would begin one each
            while self._pack is None or not self._pack.room:
                if self._pack is not None or (self._objects and self._uploader.places.locked()):
                    self._changed.clear()
                    await self._changed.wait()
                else:
                    await self._uploader.places.acquire()
                    self._pack = self._begin_pack()
            return self._pack

    def _begin_pack(self) -> OpenObject:
        pack = self._begin(pack_name(self._uploader.mint()))
        lingering = asyncio.get_running_loop().call_later(self._uploader.linger_s, self._close, pack)
        sending = self._sending.create_task(self._send(pack))
        # Not in the task: one that is cancelled before it began has no `finally`.
        sending.add_done_callback(functools.partial(self._sent, lingering))
        return pack

    def _begin(self, name: str) -> OpenObject:
        self._objects += 1
        return OpenObject(name, self._changed.set)

    def _add(self, to: OpenObject, frame: Frame) -> None:
        chunk = self._under_way[frame.chunk_id]
        chunk.object = to
        to.add(frame)
        for item in chunk.items:
            to.enter(item)
        if to.size_bytes >= self._uploader.pack_size or to.entries >= ENTRIES_MAX:
            self._close(to)
        self._make_way()

    def _close(self, pack: OpenObject) -> None:
        """Nothing is added to the object any more."""
        pack.close()
        if pack is self._pack:
            self._pack = None

    async def _send(self, object: OpenObject) -> None:
        """Store an object as its frames come, and tell those who wait for it."""
        try:
            await object.send(self._uploader.target)
        except AmberError as error:
            self._close(object)
            chunks = [self._under_way.pop(row.chunk_id) for row in object.rows(0)]
            await self._failed([item for chunk in chunks for item in chunk.items], error)
            return
        told: list[tuple[Item, ArchivedChunk]] = []
        for row in object.rows(self._uploader.now_ms()):
            told += [(item, row) for item in self._under_way.pop(row.chunk_id).items]
            self._done[row.chunk_id] = row
        while len(self._done) > REMEMBERED_MAX:
            self._done.popitem(last=False)
        await self._stored(told)

    def _sent(self, lingering: asyncio.TimerHandle, _: asyncio.Task[None]) -> None:
        lingering.cancel()
        self._ended()

    def _ended(self) -> None:
        """An object is stored, failed or given up: its place is free."""
        self._objects -= 1
        self._uploader.places.release()
        self._changed.set()
        # Not at once: who is given the place now counts as waiting until it runs.
        asyncio.get_running_loop().call_soon(self._make_way)


def _encode_all(pairs: list[tuple[Item, bytes]], level: int) -> list[tuple[str, Frame | AmberError]]:
    """The frame of each, or why there is none."""
    frames: list[tuple[str, Frame | AmberError]] = []
    for item, data in pairs:
        try:
            frames.append((item.chunk.id, encode_frame(item.chunk.id, data, level=level)))
        except AmberError as error:
            frames.append((item.chunk.id, error))
    return frames


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first, without the groups around it."""
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
