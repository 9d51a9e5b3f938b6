"""What a job is to send of a slot: the store's pages judged by the policy, and what the archive has already left out.

Content that is known gets its rows here and is not sent. Rows that were uploaded before and not read back yet go to the job's second stage.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from amberblob.archives import DAMAGED, ArchivedChunk, merge
from amberblob.errors import AmberError
from amberblob.manifest import ChunkRef, Version, decode_manifest
from archive.heat import Heat
from archive.packs import Item
from archive.policy import Policy, Rule, Why, is_old
from chunkstore.interface import ArchiveView
from node.archive.contents import Contents
from node.archive.finder import Finder
from node.archive.ground import Ground
from node.archive.jobs import Progress

PAGE_VERSIONS = 500
LOOKED_UP_MAX = 4096
"""Chunk ids that are looked up at once, about."""
CURRENT_MAX = 10_000
"""Current versions that wait until the old ones of the slot were sent."""

Place = tuple[int, str, ArchivedChunk]
"""Slot, blob id and row."""
Only = Callable[[int, ArchiveView], Awaitable[bool]]
"""Whether a version of a slot is to be looked at."""


class ReadBackLater(Protocol):
    """Takes rows that are to be read back."""

    async def add(self, places: Sequence[Place]) -> None: ...


@dataclass(slots=True)
class _Due:
    """A version that is to be sent, and what of it."""

    slot: int
    view: ArchiveView
    items: list[Item]
    damaged: Mapping[str, ArchivedChunk]
    """Rows of which this copy knows that they are damaged, by chunk id; who is asked where the content is may not know yet."""

    def helps(self, row: ArchivedChunk) -> bool:
        """Whether a place that is known elsewhere can be this version's: an older one than a damaged one would never take that one's place."""
        broken = self.damaged.get(row.chunk_id)
        return broken is None or (row.location != broken.location and merge(broken, row) == row)


def prefixes_within(policy: Policy, prefix: str) -> list[str]:
    """Below which of the prefixes that begin with ``prefix`` something may be to do; none within another."""
    found: set[str] = set()
    for one in policy.prefixes():
        if one.startswith(prefix):
            found.add(one)
        elif prefix.startswith(one):
            return [prefix]
    return sorted(found)


def needs_reading_back(rule: Rule | None) -> bool:
    """Whether what is sent by a rule is to be read back: its bytes are to go from the disks."""
    return rule is not None and rule.action == "archive-and-evict"


class Selection:
    """What is to be sent, slot by slot.

    Args:
        read_back: where rows go that were uploaded before, and have to be read back.
        only: of what has anything to be done, versions for which this says so; None: all of them.
    """

    def __init__(
        self,
        ground: Ground,
        policy: Policy,
        heat: Heat,
        contents: Contents,
        finder: Finder,
        read_back: ReadBackLater,
        progress: Progress,
        *,
        only: Only | None = None,
    ) -> None:
        self._only = only
        self._ground = ground
        self._policy = policy
        self._heat = heat
        self._contents = contents
        self._finder = finder
        self._read_back = read_back
        self._progress = progress

    async def slot(self, slot: int, prefix: str) -> AsyncIterator[tuple[Item, Version]]:
        """Chunks of the slot that the archive lacks, those of old versions first. Rows of known content are durable when it ends."""
        current: list[ArchiveView] = []
        for begin in prefixes_within(self._policy, prefix):
            after: tuple[str, int] | None = ("", 0)
            while after is not None:
                page, after = await self._ground.store.archive_page(slot, after, PAGE_VERSIONS, prefix=begin)
                due = await self._judged(slot, page)
                current += [view for view in due if not is_old(view)]
                async for pair in self._sent(slot, [view for view in due if is_old(view)]):
                    yield pair
                if len(current) >= CURRENT_MAX:
                    async for pair in self._sent(slot, current):
                        yield pair
                    current = []
        async for pair in self._sent(slot, current):
            yield pair

    async def _judged(self, slot: int, page: list[ArchiveView]) -> list[ArchiveView]:
        """Those that are to be sent; what was sent before and is to be read back is told."""
        now_ms, due = self._ground.now_ms(), []
        for view in page:
            last_read_ms = self._heat.last_read_ms(view.version.blob_id, view.version.created_at_ms)
            judgement = self._policy.judge(view, last_read_ms, now_ms)
            unread = needs_reading_back(judgement.rule) and view.verified < view.uploaded and not view.evicted
            if self._only is not None and not ((unread or judgement.send is Why.DUE) and await self._only(slot, view)):
                continue
            self._progress.add(versions=1)
            if unread:
                await self._again(slot, view)
            if judgement.send is Why.DUE:
                due.append(view)
        return due

    async def _again(self, slot: int, view: ArchiveView) -> None:
        blob_id = view.version.blob_id
        blob = await self._ground.store.archived(slot, blob_id)
        if blob is not None:
            await self._read_back.add(
                [(slot, blob_id, chunk) for chunk in blob.chunks if chunk.state == 0 and not chunk.foreign]
            )

    async def _sent(self, slot: int, views: Sequence[ArchiveView]) -> AsyncIterator[tuple[Item, Version]]:
        for batch in _batches(views):
            due = [one for view in batch if (one := await self._lacking(slot, view)) is not None]
            found = await self._finder.find([item.chunk.id for one in due for item in one.items])
            position = 0
            for one in due:
                rows = [found[item.chunk.id] for item in one.items if item.chunk.id in found]
                rows = [row for row in rows if one.helps(row)]
                taken = await self._give(one, rows)
                position = max(position, taken)
                # A row of an object that was condemned meanwhile was kept out: then the chunk is sent.
                have = {row.chunk_id for row in self._ground.facts.admitted(rows)} if taken else set()
                for item in one.items:
                    if item.chunk.id not in have:
                        self._progress.bytes(total=item.chunk.len)
                        yield item, one.view.version
            if position:
                await self._ground.store.durable(position)

    async def _give(self, due: _Due, rows: Sequence[ArchivedChunk]) -> int:
        """Give known content its rows; the position at which they are durable, 0: none was given."""
        if not rows:
            return 0
        blob_id = due.view.version.blob_id
        position = self._ground.facts.take(due.slot, blob_id, rows, at_ms=self._ground.now_ms())
        self._progress.add(chunks_known=len(rows), bytes_known=sum(row.length for row in rows))
        if needs_reading_back(self._policy.rule(due.view.path)):
            await self._read_back.add([(due.slot, blob_id, row) for row in rows if not row.verified])
        return position

    async def _lacking(self, slot: int, view: ArchiveView) -> _Due | None:
        """What of a version has no row here; None: nothing, or it cannot be told."""
        version = view.version
        chunks: Iterable[tuple[int, ChunkRef]] = enumerate(version.chunks)
        if version.manifest_id is not None:
            try:
                manifest = await self._contents.manifest(slot, version)
            except AmberError as error:
                self._progress.problem(f"{view.path} version {version.version}: {error.detail}")
                return None
            chunks = [*enumerate(decode_manifest(manifest)), (-1, ChunkRef(id=version.manifest_id, len=len(manifest)))]
        blob = await self._ground.store.archived(slot, version.blob_id)
        known = blob.chunks if blob is not None else ()
        have = {row.chunk_id for row in known if row.state != DAMAGED}
        broken = [row for row in known if row.state == DAMAGED]
        for row in broken:
            self._ground.facts.give_way(row)
        damaged = {row.chunk_id: row for row in broken}
        items: dict[str, Item] = {}
        for index, chunk in chunks:
            if chunk.id not in have and chunk.id not in items:
                items[chunk.id] = Item(
                    chunk=chunk,
                    slot=slot,
                    blob_id=version.blob_id,
                    path=view.path,
                    version=version.version,
                    index=index,
                )
        return _Due(slot, view, list(items.values()), damaged) if items else None


def _batches(views: Sequence[ArchiveView]) -> Iterable[list[ArchiveView]]:
    """In parts whose chunks are looked up together."""
    batch: list[ArchiveView] = []
    chunks = 0
    for view in views:
        batch.append(view)
        chunks += view.chunk_count
        if chunks >= LOOKED_UP_MAX:
            yield batch
            batch, chunks = [], 0
    if batch:
        yield batch
