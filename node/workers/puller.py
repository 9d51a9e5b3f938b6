"""Fetches bytes that this disk lacks: before accepting an undecided record, or in the background.

What is wanted is written down by the disk (``store.wanted``), for rows that came without their bytes and for what failed
its hash; it survives restarts. The queue here is a view of it: what was told lately, and as much of the table as there is
room for.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from dataclasses import dataclass
from functools import partial

import structlog

from amberblob.clock import Clock
from amberblob.errors import AmberError, ChunkCorrupt, ChunkMissing, PeerTimeout
from amberblob.manifest import Version
from antientropy.pull import Source, complete, inline_body, stage_from
from antientropy.step import Did
from chunkstore.interface import BlobState, ReplicaStore
from node.routing import Routing

log = structlog.get_logger(__name__)

QUEUE_MAX = 10_000
REFILL_MAX = 1_000
"""Of one slot's wanted versions at a time."""
TRIES_MAX = 3
"""After so many failures a version leaves the queue; it comes back from the table when its time is there."""
RETRY_FIRST_S = 2.0
RETRY_MAX_S = 300.0
NOW_PATIENCE_S = 2.0
"""How long a COMMIT waits for bytes; well below the time that its coordinator waits for the answer."""
LOOK_AGAIN_S = 5.0
"""How often the tables are looked through when nobody said that there is something new."""
LOOK_SOON_S = 0.5
TOLD_S = 12.0
"""So long after it was said that there is something new they are looked through more often: no row waits longer in memory."""
FAILURES_MAX = 100_000


@dataclass(slots=True)
class _Wanted:
    slot: int
    version: Version
    holders: tuple[str, ...]
    tries: int = 0


@dataclass(slots=True)
class _Failed:
    """What could not be had lately: how often it was tried, when again (monotonic), and whether nobody has it."""

    slot: int
    tries: int
    due_s: float
    nowhere: bool


class Puller:
    """A worker, and the :class:`node.pulls.PullRequests` of this node. ``source`` is set once before use.

    Attributes:
        received_bytes: fetched since the start.
    """

    name = "puller"
    pause_s = 1.0

    def __init__(self, store: ReplicaStore, routing: Routing, clock: Clock) -> None:
        self.wake = asyncio.Event()
        self.source: Source | None = None
        self.received_bytes = 0
        self._store = store
        self._routing = routing
        self._clock = clock
        self._queue: OrderedDict[str, _Wanted] = OrderedDict()
        self._failed: OrderedDict[str, _Failed] = OrderedDict()
        self._nowhere: Counter[int] = Counter()
        self._unlooked: list[int] = []
        self._look_at_s = self._told_until_s = float("-inf")
        self._staging: dict[str, asyncio.Task[None]] = {}
        self._noting: dict[str, asyncio.Task[None]] = {}

    @property
    def waiting(self) -> int:
        """How many versions are to be completed; those that were told of lately may be here and not in the table yet."""
        return max(len(self._queue), sum(self._store.tally(slot).wanted for slot in self._store.slots()))

    @property
    def waiting_bytes(self) -> int:
        """How many bytes those versions have; an upper bound of what has to be fetched."""
        told = sum(wanted.version.size for wanted in self._queue.values())
        return max(told, sum(self._store.tally(slot).wanted_bytes for slot in self._store.slots()))

    @property
    def noting(self) -> bool:
        """Whether something that was missed is still being written down."""
        return bool(self._noting)

    def unrecoverable(self, slot: int) -> int:
        """Versions of the slot of which some bytes were had by nobody when all who could have them were asked last."""
        return self._nowhere[slot]

    async def now(self, slot: int, version: Version, holders: tuple[str, ...]) -> bytes | None:
        """See :meth:`node.pulls.PullRequests.now`."""
        assert self.source is not None
        others = self._others(slot, holders)
        if version.inline:
            return await inline_body(self.source, slot, version, others)
        # A pull of its own: rounds come and go within seconds, a large blob takes longer, and two rounds may want it.
        task = self._staging.get(version.blob_id)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._stage(slot, version, others))
            self._staging[version.blob_id] = task
            task.add_done_callback(partial(self._staged, version.blob_id))
        done, _ = await asyncio.wait({task}, timeout=NOW_PATIENCE_S)
        if not done:
            raise PeerTimeout(f"blob {version.blob_id} is still being fetched; it will be here for a later attempt")
        task.result()
        return None

    def _staged(self, blob_id: str, task: asyncio.Task[None]) -> None:
        self._staging.pop(blob_id, None)
        # Whoever asked may have stopped waiting.
        if not task.cancelled() and (error := task.exception()) is not None:
            log.info("blob not fetched", blob_id=blob_id, error=str(error))

    async def _stage(self, slot: int, version: Version, others: list[str]) -> None:
        assert self.source is not None
        if await self._store.blob_state(slot, version.blob_id) is not BlobState.DURABLE:
            await stage_from(self._store, self.source, slot, version, others)

    async def close(self) -> None:
        """Give up what is being staged or written down."""
        tasks = [*self._staging.values(), *self._noting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what is told

    def later(self, slot: int, version: Version, holders: tuple[str, ...]) -> None:
        """See :meth:`node.pulls.PullRequests.later`."""
        if version.size:
            self._enqueue(slot, version, holders)

    def missed(self, slot: int, blob_id: str, *, damaged: bool) -> None:
        """See :meth:`node.pulls.PullRequests.missed`."""
        if blob_id in self._noting or (blob_id in self._queue and not damaged):
            return
        task = asyncio.get_running_loop().create_task(self._note(slot, blob_id, damaged))
        self._noting[blob_id] = task
        task.add_done_callback(partial(self._noted, blob_id))

    def look_again(self) -> None:
        """Look through the tables soon: rows came that may lack their bytes. They reach the tables within some seconds."""
        self._look_at_s = float("-inf")
        self._told_until_s = self._clock.monotonic_s() + TOLD_S
        self.wake.set()

    async def _note(self, slot: int, blob_id: str, damaged: bool) -> None:
        found = await self._store.referred(slot, blob_id)
        if found is not None:
            path, version = found
            await self._store.set_wanted(slot, path, version, damaged=damaged)
            self._forgive(blob_id)  # somebody asks for it: try at once
            self._enqueue(slot, version, ())

    def _noted(self, blob_id: str, task: asyncio.Task[None]) -> None:
        del self._noting[blob_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("missing bytes not written down", blob_id=blob_id, error=str(error))

    def _enqueue(self, slot: int, version: Version, holders: tuple[str, ...]) -> None:
        if version.blob_id not in self._queue and len(self._queue) < QUEUE_MAX:
            self._queue[version.blob_id] = _Wanted(slot, version, holders)
            self.wake.set()

    # ---- the work

    async def step(self) -> Did:
        """Complete one version, or look through one slot's table for more."""
        now_s = self._clock.monotonic_s()
        for blob_id, wanted in self._queue.items():
            failed = self._failed.get(blob_id)
            if failed is None or failed.due_s <= now_s:
                del self._queue[blob_id]
                await self._complete(wanted)
                return Did.WORK
        return await self._look(now_s)

    async def _look(self, now_s: float) -> Did:
        """Take from the table what is due, a slot at a time."""
        if not self._unlooked:
            if now_s < self._look_at_s:
                return Did.NOTHING
            self._look_at_s = now_s + (LOOK_SOON_S if now_s < self._told_until_s else LOOK_AGAIN_S)
            self._unlooked = [slot for slot in self._store.slots() if self._store.tally(slot).wanted]
            if not self._unlooked:
                return Did.NOTHING
        slot = self._unlooked.pop()
        for wanted in await self._store.wanted(slot, REFILL_MAX):
            failed = self._failed.get(wanted.version.blob_id)
            if failed is None or failed.due_s <= now_s:
                self._enqueue(slot, wanted.version, ())
        return Did.WORK

    async def _complete(self, wanted: _Wanted) -> None:
        assert self.source is not None
        slot, version = wanted.slot, wanted.version
        try:
            fetched = await complete(self._store, self.source, slot, version, self._others(slot, wanted.holders))
            self.received_bytes += fetched
            if not await self._store.is_whole(slot, version):
                raise ChunkMissing(f"blob {version.blob_id} is not whole although its chunks came")
        except AmberError as error:
            self._not_had(wanted, error)
            return
        self._forgive(version.blob_id)
        if fetched:
            log.info("copy completed", slot=slot, blob_id=version.blob_id, bytes=fetched)

    def _not_had(self, wanted: _Wanted, error: AmberError) -> None:
        blob_id = wanted.version.blob_id
        before = self._forgive(blob_id)
        tries = 1 + (before.tries if before is not None else 0)
        delay_s = min(RETRY_MAX_S, RETRY_FIRST_S * float(1 << min(tries, 16)))
        nowhere = isinstance(error, ChunkMissing | ChunkCorrupt)
        if nowhere and not (before is not None and before.nowhere):
            log.error("bytes that no copy has", slot=wanted.slot, blob_id=blob_id, error=str(error))
        elif tries == TRIES_MAX:
            log.warning("copy not completed", slot=wanted.slot, blob_id=blob_id, error=str(error))
        self._failed[blob_id] = _Failed(wanted.slot, tries, self._clock.monotonic_s() + delay_s, nowhere)
        self._nowhere[wanted.slot] += nowhere
        if len(self._failed) > FAILURES_MAX:
            self._forgive(next(iter(self._failed)))
        wanted.tries += 1
        if wanted.tries < TRIES_MAX:
            self._queue[blob_id] = wanted

    def _forgive(self, blob_id: str) -> _Failed | None:
        """Forget that it could not be had."""
        failed = self._failed.pop(blob_id, None)
        if failed is not None:
            self._nowhere[failed.slot] -= failed.nowhere
        return failed

    def _others(self, slot: int, holders: tuple[str, ...]) -> list[str]:
        """The holders, then every other voter, without this node."""
        voters = self._routing.electorate(slot).voters
        return [node for node in dict.fromkeys((*holders, *voters)) if node != self._routing.node]
