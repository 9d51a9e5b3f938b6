"""What was told of another node's copy: how far it was followed, and its rows, merged into this node's copy or waiting for their blobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amberblob.archives import ArchivedChunk, ArchiveLine, merge
from node.archive.ground import Ground

WAITING_MAX = 10_000
"""Lines of one copy that wait for their blob. What comes after so many is read later."""
READ_AGAIN_S = 600.0
"""What waits for so long is read again: a row that is gone there (its version has expired) is not told any more."""


@dataclass(slots=True)
class FollowCounts:
    """What was done since the start; each only grows."""

    lines: int = 0
    news: int = 0
    adopted: int = 0
    failures: int = 0


@dataclass(slots=True)
class Followed:
    """How far another node's copy of a slot was followed.

    Attributes:
        at: its lines up to here were taken, or wait. head: of its table, as it was told last.
        waiting: lines that could not be taken yet, by ``seq``.
        saved: the cursor as it was written down.
        waits_since_s: since when something waits, monotonic.
    """

    incarnation: str
    at: int
    head: int = 0
    waiting: dict[int, ArchiveLine] = field(default_factory=dict)
    saved: int = 0
    waits_since_s: float = 0.0

    @property
    def cursor(self) -> int:
        """Everything up to here is in this copy."""
        return min(self.waiting) - 1 if self.waiting else self.at

    @property
    def has_more(self) -> bool:
        """Whether there is a page to be read that may be taken."""
        return self.head > self.at and len(self.waiting) < WAITING_MAX

    @property
    def behind(self) -> int:
        """Its rows that are not here yet, as far as was heard."""
        return max(0, self.head - self.at) + len(self.waiting)


class Merging:
    """Takes lines of followed copies into this node's copies.

    Args:
        copies: those that are followed, by slot and node. What became of one that is not among them any more is not written down.
    """

    def __init__(self, ground: Ground, copies: Mapping[tuple[int, str], Followed], counts: FollowCounts) -> None:
        self._ground = ground
        self._copies = copies
        self._counts = counts

    async def take(self, slot: int, node: str, copy: Followed, lines: Sequence[ArchiveLine]) -> None:
        """Merge lines into this node's copy, durably; those of unknown blobs, or of condemned objects, wait."""
        ground, store, facts = self._ground, self._ground.store, self._ground.facts
        by_blob: dict[str, list[ArchiveLine]] = {}
        for line in lines:
            by_blob.setdefault(line.blob_id, []).append(line)
        position = 0
        lacking = store.tally(slot).wanted > 0
        for blob_id, some in by_blob.items():
            is_here = await store.referred(slot, blob_id) is not None
            known = await store.archived(slot, blob_id) if is_here else None
            # Nothing is awaited from here on: what is condemned now is kept out, and waits.
            free = [line for line in some if is_here and not facts.barred.bars(line.chunk.target_path)]
            if not copy.waiting:
                copy.waits_since_s = ground.clock.monotonic_s()
            for line in some:
                copy.waiting[line.seq] = line
            for line in free:
                del copy.waiting[line.seq]
            if not free:
                continue
            news = [line for line in free if known is None or _is_news(known.find(line.chunk.chunk_id), line)]
            evicted = lacking and any(line.evicted for line in free) and not (known is not None and known.evicted)
            if not news and not evicted:
                continue
            chunks = [line.chunk for line in (free if evicted else news)]
            position = max(position, facts.take(slot, blob_id, chunks, at_ms=ground.now_ms(), evicted=evicted))
            self._counts.news += len(news)
            self._counts.adopted += evicted
        if position:
            await store.durable(position)
        if lines and not copy.waiting:
            await self.save(slot, node, copy)

    async def look_at_waiting(self, slot: int, node: str, copy: Followed, now_s: float) -> None:
        """Take what waits, if its blob has come; what waits for long is read again: it may be gone there, too."""
        if not copy.waiting:
            return
        if now_s - copy.waits_since_s < READ_AGAIN_S:
            await self.take(slot, node, copy, [copy.waiting[seq] for seq in sorted(copy.waiting)])
        else:
            copy.at, copy.waits_since_s = copy.cursor, now_s
            copy.waiting.clear()

    async def save(self, slot: int, node: str, copy: Followed) -> None:
        """Write down how far the copy was followed."""
        cursor = copy.cursor
        if cursor == copy.saved or self._copies.get((slot, node)) is not copy:
            return
        await self._ground.means.state.set_cursors([(slot, node, copy.incarnation, cursor)])
        copy.saved = cursor


def _is_news(known: ArchivedChunk | None, line: ArchiveLine) -> bool:
    return merge(known, line.chunk) != known
