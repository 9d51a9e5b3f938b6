"""Follows the archive rows of the other copies, and has the node's own index by chunk id follow its copies (rfc/0016, "Follow").

Every few seconds each other node tells how far its tables are (``ArchiveHeads``); what is above the cursor is read page by page and merged in.
Rows of blobs that are not known here yet, or of objects that are condemned here, wait in memory, and the cursor that is written down stays below
them: they may have to be read again after a restart. A copy that lacks bytes and hears that another lives by its rows does so, too.

Cursors are of one incarnation of either copy: one that began anew is read from its beginning, and reads all others from theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence

import structlog

from amberblob.archives import ArchiveLine
from amberblob.errors import NotReady, PeerError
from amberblob.limits import NUMBER_MAX
from amberblob.wire_archive import ArchivedLines, ArchiveHeads, ReadArchived
from amberblob.wire_repair import HeadsReply, bitmap_of
from antientropy.step import Did, Wake
from node.archive.followed import FollowCounts, Followed, Merging
from node.archive.ground import Ground
from node.archive.indexing import Indexing

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 3.0
"""How often the others are asked how far they are."""
PAGE_LINES = 1000
WAITING_EVERY_S = 10.0
"""How often it is looked whether their blobs have come."""
_HEAD_BYTES = 8


class Follower:
    """A worker."""

    name = "archive-follow"

    def __init__(self, ground: Ground) -> None:
        self.wake = Wake()
        self.pause_s = LOOK_EVERY_S
        self.counts = FollowCounts()
        self._ground = ground
        self._copies: dict[tuple[int, str], Followed] = {}
        self._merging = Merging(ground, self._copies, self.counts)
        self._indexing = Indexing(ground, self._begin_anew)
        self._loaded = False
        self._look_s = float("-inf")
        self._waiting_s = float("-inf")

    @property
    def behind(self) -> int:
        """Rows of other copies that are not here yet, as far as was heard."""
        return sum(copy.behind for copy in self._copies.values())

    def own_changed(self, slot: int) -> None:
        """Rows came to a copy of this node: the index is to know them."""
        self._indexing.changed((slot,))
        self.wake.set()

    async def step(self) -> Did:
        """Take a page of somebody's rows, or ask how far all are; or rest."""
        if not self._loaded:
            await self._load()
        now_s = self._ground.clock.monotonic_s()
        look = now_s >= self._look_s
        if look:
            self._indexing.changed(self._slots())
        # Also finds out which of the own copies began anew: before the others are heard.
        if await self._indexing.step():
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
                await self._merging.look_at_waiting(slot, node, copy, now_s)
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
                self._indexing.recall(slot, incarnation, seq)
            else:
                self._copies[slot, node] = Followed(incarnation, seq, saved=seq)
        self._loaded = True

    async def _begin_anew(self, slot: int, incarnation: str) -> None:
        """This node's copy is a new one: what was followed for the one before counts for nothing."""
        cursors = [(slot, self._ground.node, incarnation, 0)]
        for one, node in [key for key in self._copies if key[0] == slot]:
            del self._copies[one, node]
            cursors.append((slot, node, "", 0))
        await self._ground.means.state.set_cursors(cursors)

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
                copy = self._copies[slot, node] = Followed(incarnation, 0)
            copy.head = head

    def _forget_others(self, shared: dict[str, list[int]]) -> None:
        """Copies that the routes do not name any more are not followed; their cursors stay, for they may come back."""
        named = {(slot, node) for node, slots in shared.items() for slot in slots}
        reachable = self._ground.coordinator.peers.reachable
        for key in [key for key in self._copies if key not in named and reachable(key[1])]:
            self._copies[key].head = 0
            self._copies[key].waiting.clear()

    async def _page(self, slot: int, node: str, copy: Followed) -> bool:
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
        await self._merging.take(slot, node, copy, reply.lines)
        copy.at = reply.lines[-1].seq if reply.lines else max(copy.at, asked)
        if reply.more:
            copy.head = max(copy.head, copy.at + 1)
        await self._merging.save(slot, node, copy)
        return True


def _ascending(lines: Sequence[ArchiveLine], after: int) -> bool:
    """Whether they are a page above ``after``, with numbers that there can be."""
    for line in lines:
        if not after < line.seq <= NUMBER_MAX:
            return False
        after = line.seq
    return True
