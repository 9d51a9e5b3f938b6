"""Fetches bytes that this disk lacks: before accepting an undecided record, or in the background.

What is wanted is written down by the disk (``store.wanted``), for rows that came without their bytes and for what failed
its hash; it survives restarts. The queue here is a view of it: what was told lately, and as much of the table as there is
room for. Learners fetch like voters; what a node still holds of slots whose routes do not name it any more is left as it is.

Bytes come from the voters; if those lack some, from any other node that can be reached: one that held the slot before may have kept them.

Where there is an archive: a copy that lacks what others gave up takes their rows instead; and what no disk gives comes from there.

Several jobs are under way at once, each for one large version or for many small ones of a slot; how much of them is
in memory is bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Sequence
from functools import partial
from itertools import count

import structlog

from amberblob.clock import Clock
from amberblob.errors import (
    AmberError,
    ChunkCorrupt,
    ChunkMissing,
    DigestMismatch,
    PeerError,
    PeerTimeout,
    StorageError,
)
from amberblob.limits import KIB, READ_BLOBS_BYTES_MAX, READ_BLOBS_MAX
from amberblob.manifest import Version
from antientropy.failures import Failures
from antientropy.pace import Yielding
from antientropy.pull import (
    BYTES_AT_ONCE,
    Source,
    complete,
    complete_small,
    inline_body,
    lacks,
    manifest_from,
    stage_from,
)
from antientropy.room import Room
from antientropy.step import Did, Wake
from antientropy.wants import Want, WantQueue, is_small
from chunkstore.interface import BlobState, ReplicaStore
from node.pulls import ArchivedBytes
from node.routing import Routing

log = structlog.get_logger(__name__)

NOT_HAD = (ChunkMissing, ChunkCorrupt, DigestMismatch, PeerError)
"""Of whom was asked, nobody gave it."""
QUEUE_MAX = 10_000
QUEUE_LOW = 1_000
"""The tables are looked through for more before the queue is empty."""
REFILL_MAX = 1_000
"""Of one slot's wanted versions at a time."""
TRIES_MAX = 3
"""After so many failures a version leaves the queue; it comes back from the table when its time is there."""
NOW_PATIENCE_S = 2.0
"""How long a COMMIT waits for bytes; well below the time that its coordinator waits for the answer."""
LOOK_AGAIN_S = 5.0
"""How often the tables are looked through when nobody said that there is something new."""
LOOK_SOON_S = 0.5
TOLD_S = 12.0
"""So long after it was said that there is something new they are looked through more often: no row waits longer in memory."""
STEP_S = 0.25
"""How long a step waits for what is under way before it looks whether more may be begun."""
BUSY_BATCH_BYTES = 256 * KIB
"""Of small versions that are fetched together while clients are served."""
BUSY_PARALLEL = 2
"""Jobs under way while clients are served."""


class Puller:
    """A worker, and the :class:`node.pulls.PullRequests` of this node. ``source``, and ``archived`` if there is an archive, are set once before use.

    Args:
        pace: the one by which the source fetches.
        parallel: how many fetches may be under way at once.

    Attributes:
        received_bytes: fetched since the start.
    """

    name = "puller"
    pause_s = 1.0

    def __init__(self, store: ReplicaStore, routing: Routing, clock: Clock, *, pace: Yielding, parallel: int) -> None:
        self.wake = Wake()
        self.source: Source | None = None
        self.archived: ArchivedBytes | None = None
        self.received_bytes = 0
        self._store = store
        self._routing = routing
        self._clock = clock
        self._pace = pace
        self._parallel = parallel
        self._room = Room(parallel, BYTES_AT_ONCE)
        self._queue = WantQueue(QUEUE_MAX)
        self._later: list[tuple[float, int, Want]] = []
        self._later_count = count()
        self._jobs: dict[asyncio.Task[None], list[Want]] = {}
        self._doing: dict[str, Want] = {}
        self._failures = Failures()
        self._unlooked: list[int] = []
        self._look_at_s = self._told_until_s = float("-inf")
        self._staging: dict[str, asyncio.Task[None]] = {}
        self._noting: dict[str, asyncio.Task[None]] = {}

    @property
    def waiting(self) -> int:
        """How many versions are to be completed; those that were told of lately may be here and not in the table yet."""
        told = len(self._queue) + len(self._later) + len(self._doing)
        return max(told, sum(self._store.tally(slot).wanted for slot in self._slots()))

    @property
    def waiting_bytes(self) -> int:
        """How many bytes those versions have; an upper bound of what has to be fetched."""
        others = [*(want for _, _, want in self._later), *self._doing.values()]
        told = self._queue.size_bytes + sum(want.version.size for want in others)
        return max(told, sum(self._store.tally(slot).wanted_bytes for slot in self._slots()))

    @property
    def noting(self) -> bool:
        """Whether something that was missed is still being written down."""
        return bool(self._noting)

    def unrecoverable(self, slot: int) -> int:
        """Versions of the slot of which every other voter said that it lacks some bytes, when they were asked last."""
        return self._failures.nowhere(slot)

    async def now(self, slot: int, version: Version, holders: tuple[str, ...]) -> bytes | None:
        """See :meth:`node.pulls.PullRequests.now`."""
        assert self.source is not None
        others = self._others(slot, holders)
        if version.inline:
            try:
                return await inline_body(self.source, slot, version, others)
            except NOT_HAD:
                if self.archived is None or not await self.archived.adopt(slot, version, others):
                    raise
                return None
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
        if await self._store.blob_state(slot, version.blob_id) is BlobState.DURABLE:
            return
        try:
            await stage_from(self._store, self.source, slot, version, others)
        except NOT_HAD:
            if self.archived is None or not await self.archived.adopt(slot, version, others):
                raise

    async def close(self) -> None:
        """Give up what is under way, being staged or written down."""
        tasks = [*self._jobs, *self._staging.values(), *self._noting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- what is told

    def later(self, slot: int, version: Version, holders: tuple[str, ...]) -> None:
        """See :meth:`node.pulls.PullRequests.later`."""
        if version.size:
            if holders:
                self._failures.hasten(version.blob_id, self._clock.monotonic_s())
            self._enqueue(Want(slot, version, holders))

    def missed(self, slot: int, blob_id: str, *, damaged: bool) -> None:
        """See :meth:`node.pulls.PullRequests.missed`."""
        # Two copies that lack the same bytes ask each other: that must not keep both of them trying without a pause.
        is_known = blob_id in self._queue or blob_id in self._doing or blob_id in self._failures
        if blob_id in self._noting or (is_known and not damaged):
            return
        task = asyncio.get_running_loop().create_task(self._note(slot, blob_id, damaged))
        self._noting[blob_id] = task
        task.add_done_callback(partial(self._noted, blob_id))

    def look_again(self) -> None:
        """Look through the tables soon: rows came that may lack their bytes. They reach the tables within some seconds."""
        self._look_at_s = float("-inf")
        self._told_until_s = self._clock.monotonic_s() + TOLD_S
        self.wake.set()

    def _slots(self) -> list[int]:
        """The slots of which something is here and whose route names this node, in whatever role."""
        return [slot for slot in self._store.slots() if self._routing.is_member(slot)]

    async def _note(self, slot: int, blob_id: str, damaged: bool) -> None:
        found = await self._store.referred(slot, blob_id) if self._routing.is_member(slot) else None
        if found is not None and not await self._store.is_evicted(slot, blob_id):
            path, version = found
            await self._store.set_wanted(slot, path, version, damaged=damaged)
            self._failures.hasten(blob_id, self._clock.monotonic_s())
            self._enqueue(Want(slot, version))

    def _noted(self, blob_id: str, task: asyncio.Task[None]) -> None:
        del self._noting[blob_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("missing bytes not written down", blob_id=blob_id, error=str(error))

    def _enqueue(self, want: Want) -> None:
        if want.version.blob_id not in self._doing and self._queue.add(want):
            self.wake.set()

    # ---- the work

    async def step(self) -> Did:
        """Begin what may be begun, and wait a moment for some of it; or look through one slot's table for more."""
        now_s = self._clock.monotonic_s()
        while self._later and self._later[0][0] <= now_s:
            self._enqueue(heapq.heappop(self._later)[2])
        if len(self._queue) < QUEUE_LOW:
            looked = await self._look(now_s)
        else:
            looked = Did.NOTHING
        self._begin()
        if not self._jobs:
            return looked
        await asyncio.wait(list(self._jobs), timeout=STEP_S, return_when=asyncio.FIRST_COMPLETED)
        self._reap()
        return Did.WORK

    def _begin(self) -> None:
        busy = self._pace.busy
        parallel = min(self._parallel, BUSY_PARALLEL) if busy else self._parallel
        size_max = BUSY_BATCH_BYTES if busy else READ_BLOBS_BYTES_MAX
        while len(self._jobs) < parallel:
            wants = self._queue.take(READ_BLOBS_MAX, size_max)
            if not wants:
                return
            for want in wants:
                self._doing[want.version.blob_id] = want
            task = asyncio.get_running_loop().create_task(self._complete(wants))
            self._jobs[task] = wants

    def _reap(self) -> None:
        """Raises: what should not have happened in a job."""
        for task in [task for task in self._jobs if task.done()]:
            for want in self._jobs.pop(task):
                del self._doing[want.version.blob_id]
                if not task.cancelled() and task.exception() is not None:
                    self._not_had(want, AmberError(f"{task.exception()}"))
            task.result()

    async def _look(self, now_s: float) -> Did:
        """Take from the table what is due, a slot at a time."""
        if not self._unlooked:
            if now_s < self._look_at_s:
                return Did.NOTHING
            self._look_at_s = now_s + (LOOK_SOON_S if now_s < self._told_until_s else LOOK_AGAIN_S)
            self._unlooked = [slot for slot in self._slots() if self._store.tally(slot).wanted]
            if not self._unlooked:
                return Did.NOTHING
        slot = self._unlooked.pop()
        # What waits for its next try must not keep others out of sight.
        limit = REFILL_MAX + self._failures.count(slot)
        for wanted in await self._store.wanted(slot, limit):
            if self._failures.is_due(wanted.version.blob_id, now_s):
                self._enqueue(Want(slot, wanted.version, path=wanted.path))
        return Did.WORK

    async def _complete(self, wants: list[Want]) -> None:
        if is_small(wants[0].version):
            await self._complete_small(wants)
        else:
            await self._complete_large(wants[0])

    async def _complete_large(self, want: Want) -> None:
        assert self.source is not None
        slot, version = want.slot, want.version
        others = self._others(slot, want.holders)
        try:
            try:
                if self.archived is not None and await self._adopted(slot, version, others):
                    fetched = 0
                else:
                    fetched = await complete(self._store, self.source, slot, version, others, self._room)
            except NOT_HAD as error:
                fetched = await self._complete_elsewhere(want, others, error)
            self.received_bytes += fetched
            if not await self._store.is_whole(slot, version):
                raise StorageError(f"blob {version.blob_id} is not whole although its chunks came")
        except AmberError as error:
            self._not_had(want, error)
            return
        self._failures.forgive(version.blob_id)
        if fetched:
            log.info("copy completed", slot=slot, blob_id=version.blob_id, bytes=fetched)

    async def _complete_small(self, wants: list[Want]) -> None:
        assert self.source is not None
        slot, versions = wants[0].slot, [want.version for want in wants]
        others = self._others(slot, tuple(dict.fromkeys(node for want in wants for node in want.holders)))
        async with self._room.of(sum(version.size for version in versions)):
            try:
                fetched, failed = await complete_small(self._store, self.source, slot, versions, others)
                left = [version for version in versions if isinstance(failed.get(version.blob_id), NOT_HAD)]
                if left and (strangers := self._strangers(others)):
                    more, still = await complete_small(self._store, self.source, slot, left, strangers)
                    fetched += more
                    for version in left:
                        if version.blob_id not in still:
                            del failed[version.blob_id]
                if self.archived is not None:
                    left_wants = [want for want in wants if isinstance(failed.get(want.version.blob_id), NOT_HAD)]
                    fetched += await self._small_from_archive(left_wants, others, failed)
            except AmberError as error:
                fetched, failed = 0, {version.blob_id: error for version in versions}
        self.received_bytes += fetched
        for want in wants:
            why = failed.get(want.version.blob_id)
            if why is None:
                self._failures.forgive(want.version.blob_id)
            else:
                self._not_had(want, why)
        if fetched:
            log.info("copies completed", slot=slot, count=len(wants) - len(failed), bytes=fetched)

    def _not_had(self, want: Want, error: AmberError) -> None:
        blob_id, now_s = want.version.blob_id, self._clock.monotonic_s()
        failed, is_news = self._failures.note(want.slot, blob_id, now_s, nowhere=lacks(error))
        if is_news:
            log.error(
                "bytes that no copy has",
                path=want.path or None,
                version=want.version.version,
                slot=want.slot,
                blob_id=blob_id,
                error=str(error),
            )
        elif failed.tries == TRIES_MAX:
            log.warning("copy not completed", slot=want.slot, blob_id=blob_id, error=str(error))
        want.tries += 1
        if want.tries < TRIES_MAX:
            heapq.heappush(self._later, (failed.due_s, next(self._later_count), want))

    async def _complete_elsewhere(self, want: Want, others: list[str], error: AmberError) -> int:
        """The same from nodes that are no voters; how many bytes came. Raises ``error``: whether nobody has it, voters say."""
        assert self.source is not None
        strangers = self._strangers(others)
        if strangers:
            with contextlib.suppress(*NOT_HAD):
                return await complete(self._store, self.source, want.slot, want.version, strangers, self._room)
        return await self._from_archive(want, error)

    # ---- the archive

    async def _adopted(self, slot: int, version: Version, others: Sequence[str]) -> bool:
        """Whether the copy lives by its archive rows now, as others do: one question instead of one for every chunk. Raises as complete."""
        assert self.source is not None and self.archived is not None
        if version.manifest_id is not None:
            try:
                await self._store.read_manifest(slot, version.blob_id, version.manifest_id)
            except StorageError:
                # Else it comes from the archive.
                with contextlib.suppress(*NOT_HAD):
                    await manifest_from(self._store, self.source, slot, version, others)
        return await self.archived.adopt(slot, version, others)

    async def _from_archive(self, want: Want, error: AmberError) -> int:
        """What no disk gives; how many bytes came. Copies that are only away are waited for a little: the bucket costs time and money.

        Raises ``error`` if it is not known of in the archive either, and what keeps it from coming now.
        """
        if self.archived is None or not (lacks(error) or want.tries + 1 >= TRIES_MAX):
            raise error
        try:
            return await self.archived.fetch(want.slot, want.version)
        except ChunkMissing as missing:
            raise (missing if lacks(error) else error) from None

    async def _small_from_archive(
        self, wants: Sequence[Want], others: Sequence[str], failed: dict[str, AmberError]
    ) -> int:
        """The same for many small ones; those that are had are taken out of ``failed``."""
        assert self.archived is not None
        fetched = 0
        for want in wants:
            slot, version = want.slot, want.version
            try:
                if not await self.archived.adopt(slot, version, others):
                    fetched += await self._from_archive(want, failed[version.blob_id])
                if not await self._store.is_whole(slot, version):
                    continue
                del failed[version.blob_id]
            except AmberError as error:
                failed[version.blob_id] = error
        return fetched

    def _others(self, slot: int, holders: tuple[str, ...]) -> list[str]:
        """The holders, then every other voter, those of the old set first, without this node."""
        route = self._routing.table().route(slot)
        voters = (member.node for member in (*route.voters, *route.next_voters))
        return [node for node in dict.fromkeys((*holders, *voters)) if node != self._routing.node]

    def _strangers(self, asked: Sequence[str]) -> list[str]:
        """Every node of the cluster that was not asked and can be reached."""
        assert self.source is not None
        not_to_ask = {self._routing.node, *asked}
        nodes = sorted(self._routing.table().nodes)
        return [node for node in nodes if node not in not_to_ask and self.source.reachable(node)]
