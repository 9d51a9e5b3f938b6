"""Follows the archive rows of the other copies, and has the node's own index by chunk id follow its copies (rfc/0016, "Follow").

Every few seconds each other node tells how far its tables are (``ArchiveHeads``); what is above the cursor is read page by page and merged in.
Rows of blobs that are not known here yet, or of objects that are condemned here, wait in memory, and the cursor that is written down stays below
them: they may have to be read again after a restart. A copy that lacks bytes and hears that another lives by its rows does so, too.

Cursors are of one incarnation of either copy: one that began anew is read from its beginning, and reads all others from theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import structlog

from amberblob.archives import ArchivedChunk, ArchiveLine, merge
from amberblob.errors import NotReady, PeerError
from amberblob.limits import NUMBER_MAX
from amberblob.wire_archive import ArchivedLines, ArchiveHeads, ReadArchived
from amberblob.wire_repair import HeadsReply, bitmap_of
from antientropy.step import Did, Wake
from node.archive.ground import Ground

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 3.0
"""How often the others are asked how far they are."""
PAGE_LINES = 1000
WAITING_MAX = 10_000
"""Lines of one copy that wait for their blob. What comes after so many is read later."""
WAITING_EVERY_S = 10.0
"""How often it is looked whether their blobs have come."""
READ_AGAIN_S = 600.0
"""What waits for so long is read again: a row that is gone there (its version has expired) is not told any more."""
_HEAD_BYTES = 8


@dataclass(slots=True)
class FollowCounts:
    """What was done since the start; each only grows."""

    lines: int = 0
    news: int = 0
    adopted: int = 0
    failures: int = 0


@dataclass(slots=True)
class _Copy:
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
        return max(0, self.head - self.at) + len(self.waiting)


class Follower:
    """A worker."""

    name = "archive-follow"

    def __init__(self, ground: Ground) -> None:
        self.wake = Wake()
        self.pause_s = LOOK_EVERY_S
        self.counts = FollowCounts()
        self._ground = ground
        self._copies: dict[tuple[int, str], _Copy] = {}
        self._own: dict[int, tuple[str, int]] = {}
        self._unlearnt: set[int] = set()
        self._loaded = False
        self._look_s = float("-inf")
        self._waiting_s = float("-inf")

    @property
    def behind(self) -> int:
        """Rows of other copies that are not here yet, as far as was heard."""
        return sum(copy.behind for copy in self._copies.values())

    def own_changed(self, slot: int) -> None:
        """Rows came to a copy of this node: the index is to know them."""
        self._unlearnt.add(slot)
        self.wake.set()

    async def step(self) -> Did:
        """Take a page of somebody's rows, or ask how far all are; or rest."""
        if not self._loaded:
            await self._load()
        now_s = self._ground.clock.monotonic_s()
        look = now_s >= self._look_s
        if look:
            self._unlearnt.update(self._slots())
        if await self._index():  # also finds out which of the own copies began anew: before the others are heard
            return Did.WORK
        if look:
            self._look_s = now_s + LOOK_EVERY_S
            await self._look()
        for (slot, node), copy in list(self._copies.items()):
            if copy.has_more and self._ground.coordinator.peers.reachable(node) and await self._page(slot, node, copy):
                return Did.WORK
        if now_s >= self._waiting_s:
            self._waiting_s = now_s + WAITING_EVERY_S
            for (slot, node), copy in list(self._copies.items()):
                await self._look_at_waiting(slot, node, copy, now_s)
        self.pause_s = max(0.05, self._look_s - self._ground.clock.monotonic_s())
        return Did.NOTHING

    async def follow_now(self, slot: int) -> None:
        """Bring one slot up to what the others that can be reached know now; for who cannot wait. Raises: DiskFailed, NotReady."""
        if not self._loaded:
            await self._load()
        await self._look([slot])
        for (one, node), copy in list(self._copies.items()):
            while one == slot and copy.has_more:
                if not await self._page(slot, node, copy):
                    break

    async def _load(self) -> None:
        own = self._ground.node
        for (slot, node), (incarnation, seq) in (await self._ground.means.state.cursors()).items():
            if node == own:
                self._own[slot] = incarnation, seq
            else:
                self._copies[slot, node] = _Copy(incarnation, seq, saved=seq)
        self._loaded = True

    # ---- the index by chunk id

    async def _index(self) -> bool:
        """Have the index learn a page of some copy's rows; whether there was any."""
        ground = self._ground
        for slot in sorted(self._unlearnt):
            incarnation = ground.store.slot_state(slot).incarnation
            known, seq = self._own.get(slot, ("", 0))
            if known != incarnation:
                await self._begin_anew(slot, incarnation)
                seq = 0
            if ground.store.tally(slot).archive_head <= seq:
                self._unlearnt.discard(slot)
                continue
            lines, _ = await ground.store.archived_after(slot, seq, PAGE_LINES)
            if ground.store.slot_state(slot).incarnation != incarnation:
                continue
            await ground.means.state.learn([line.chunk for line in lines])
            seq = lines[-1].seq if lines else ground.store.tally(slot).archive_head
            await ground.means.state.set_cursors([(slot, ground.node, incarnation, seq)])
            self._own[slot] = incarnation, seq
            return True
        return False

    async def _begin_anew(self, slot: int, incarnation: str) -> None:
        """This node's copy is a new one: what was followed for the one before counts for nothing."""
        cursors = [(slot, self._ground.node, incarnation, 0)]
        for one, node in [key for key in self._copies if key[0] == slot]:
            del self._copies[one, node]
            cursors.append((slot, node, "", 0))
        await self._ground.means.state.set_cursors(cursors)
        self._own[slot] = incarnation, 0

    # ---- other copies

    def _slots(self) -> list[int]:
        """The slots of which the route gives this node a copy, in any role."""
        return sorted({*self._ground.routing.own_votes(), *self._ground.routing.own_learning()})

    async def _look(self, slots: Iterable[int] | None = None) -> None:
        """Ask all nodes that share slots with this one how far their tables are."""
        shared: dict[str, list[int]] = {}
        peers = self._ground.coordinator.peers
        try:
            for slot in self._slots() if slots is None else slots:
                for node in self._ground.routing.electorate(slot).voters:
                    if node != self._ground.node and peers.reachable(node):
                        shared.setdefault(node, []).append(slot)
        except NotReady:
            return
        asked = {node: ArchiveHeads(slots=bitmap_of(some)) for node, some in shared.items()}
        replies = await asyncio.gather(*(self._heads(node, message) for node, message in asked.items()))
        for (node, some), reply in zip(shared.items(), replies, strict=True):
            if reply is not None:
                self._heard(node, some, reply)
        if slots is None:
            self._forget_others(shared)

    async def _heads(self, node: str, message: ArchiveHeads) -> HeadsReply | None:
        try:
            reply = await self._ground.ask(node, message)
        except PeerError as error:
            # It may have no archive configured, or not know of archives at all.
            log.debug("archive heads not told", peer=node, error=error.detail)
            return None
        return reply if isinstance(reply, HeadsReply) else None

    def _heard(self, node: str, slots: Sequence[int], reply: HeadsReply) -> None:
        if len(reply.heads) != _HEAD_BYTES * len(slots):
            log.warning("archive heads that do not fit the question", peer=node)
            return
        for index, slot in enumerate(slots):
            head = int.from_bytes(reply.heads[index * _HEAD_BYTES : (index + 1) * _HEAD_BYTES], "little")
            if head > NUMBER_MAX:
                log.warning("an archive head that cannot be", slot=slot, peer=node)
                continue
            incarnation = reply.incarnations.get(slot, reply.incarnation)
            copy = self._copies.get((slot, node))
            if copy is None or copy.incarnation != incarnation:
                if not head:
                    continue
                copy = self._copies[slot, node] = _Copy(incarnation, 0)
            copy.head = head

    def _forget_others(self, shared: dict[str, list[int]]) -> None:
        """Copies that the routes do not name any more are not followed; their cursors stay, for they may come back."""
        named = {(slot, node) for node, slots in shared.items() for slot in slots}
        reachable = self._ground.coordinator.peers.reachable
        for key in [key for key in self._copies if key not in named and reachable(key[1])]:
            self._copies[key].head = 0
            self._copies[key].waiting.clear()

    async def _page(self, slot: int, node: str, copy: _Copy) -> bool:
        """Read one page of a copy's rows and take it; whether it got on."""
        message = ReadArchived(slot=slot, incarnation=copy.incarnation, after=copy.at, limit=PAGE_LINES)
        asked = copy.head  # what is heard of while the answer is on its way may be of rows that it does not have yet
        try:
            reply = await self._ground.ask(node, message)
        except PeerError as error:
            self.counts.failures += 1
            log.info("archive rows not told", slot=slot, peer=node, error=error.detail)
            copy.head = copy.at  # until it tells its head again
            return False
        if not isinstance(reply, ArchivedLines) or reply.incarnation != copy.incarnation:
            self._copies.pop((slot, node), None)  # another copy is there now: its head tells
            return False
        if not _ascending(reply.lines, copy.at):
            self.counts.failures += 1
            log.warning("archive rows that cannot be", slot=slot, peer=node)
            copy.head = copy.at
            return False
        self.counts.lines += len(reply.lines)
        await self._take(slot, node, copy, reply.lines)
        copy.at = reply.lines[-1].seq if reply.lines else max(copy.at, asked)
        if reply.more:
            copy.head = max(copy.head, copy.at + 1)
        await self._save(slot, node, copy)
        return True

    async def _look_at_waiting(self, slot: int, node: str, copy: _Copy, now_s: float) -> None:
        """Take what waits, if its blob has come; what waits for long is read again: it may be gone there, too."""
        if not copy.waiting:
            return
        if now_s - copy.waits_since_s < READ_AGAIN_S:
            await self._take(slot, node, copy, [copy.waiting[seq] for seq in sorted(copy.waiting)])
        else:
            copy.at, copy.waits_since_s = copy.cursor, now_s
            copy.waiting.clear()

    async def _take(self, slot: int, node: str, copy: _Copy, lines: Sequence[ArchiveLine]) -> None:
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
            self.counts.news += len(news)
            self.counts.adopted += evicted
        if position:
            await store.durable(position)
        if lines and not copy.waiting:
            await self._save(slot, node, copy)

    async def _save(self, slot: int, node: str, copy: _Copy) -> None:
        cursor = copy.cursor
        if cursor == copy.saved or self._copies.get((slot, node)) is not copy:
            return
        await self._ground.means.state.set_cursors([(slot, node, copy.incarnation, cursor)])
        copy.saved = cursor


def _is_news(known: ArchivedChunk | None, line: ArchiveLine) -> bool:
    return merge(known, line.chunk) != known


def _ascending(lines: Sequence[ArchiveLine], after: int) -> bool:
    """Whether they are a page above ``after``, with numbers that there can be."""
    for line in lines:
        if not after < line.seq <= NUMBER_MAX:
            return False
        after = line.seq
    return True
