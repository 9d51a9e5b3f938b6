"""The second stage of sending: what is to be evicted is read back from the archive, while the first stage goes on.

Rows of one object are read back together. What comes right after its upload is one object's; what was uploaded before comes scattered over
slots, and is gathered first, so that a pack is not asked for once per slot. Of what was gathered, much may have been read back meanwhile, as rows
of other blobs: by this job, or by another node's. A chunk at one place is read back once, whichever blobs refer to it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import structlog

from amberblob.archives import ArchivedChunk
from amberblob.errors import AmberError
from archive.targets.interface import Target
from archive.verifying import Verdict, verify_object
from node.archive.ground import Ground
from node.archive.jobs import Progress
from node.archive.selection import Place

log = structlog.get_logger(__name__)

WAITING_OBJECTS = 8
"""Objects that wait to be read back; then the first stage waits, too."""
GATHERED_MAX = 100_000
"""Rows of earlier uploads that are gathered; then the object with most of them is read."""
REMEMBERED_MAX = 50_000
"""Places that were read back, and objects that were stored, of which this is remembered."""
WRONG_MAX = 50_000
"""Objects in which something turned out to be damaged or gone; once there are so many, everything is read."""

Closed = Callable[[int, int], None]
"""Is told (slot, number of rows) once they were looked at."""
Find = Callable[[Sequence[str]], Awaitable[Mapping[str, ArchivedChunk]]]
"""Of which of these chunks somebody knows a place that was read back, by chunk id."""


async def _find_nothing(chunk_ids: Sequence[str]) -> Mapping[str, ArchivedChunk]:
    return {}


class ReadBack:
    """Reads objects back. Somebody has to run :meth:`work`, in as many tasks as objects are to be read at once.

    Args:
        closed: told of rows that were looked at, and what was seen is durable.
        again: told of the slot of rows that could not be looked at now; whether it is gone through once more.
        find: asked before what was gathered is read.
    """

    def __init__(
        self,
        ground: Ground,
        target: Target,
        progress: Progress,
        *,
        closed: Closed,
        again: Callable[[int], bool] = lambda slot: False,
        find: Find = _find_nothing,
    ) -> None:
        self._ground = ground
        self._target = target
        self._progress = progress
        self._closed = closed
        self._again = again
        self._find = find
        self._queue: asyncio.Queue[list[Place]] = asyncio.Queue(WAITING_OBJECTS)
        self._gathered: dict[str, list[Place]] = {}
        self._count = 0
        self._stored: OrderedDict[str, None] = OrderedDict()
        self._verified: OrderedDict[ArchivedChunk, int] = OrderedDict()
        self._wrong: set[str] = set()

    async def object_stored(self, places: Sequence[Place]) -> None:
        """Rows of what was stored just now; may wait until others were read.

        Mostly of one object. Where chunks came again that were stored before, of several, and those are on their way already: they are gathered.
        """
        objects: dict[str, list[Place]] = {}
        for place in places:
            objects.setdefault(place[2].target_path, []).append(place)
        for name, some in objects.items():
            if name in self._stored:
                await self.add(some)
            else:
                _remember(self._stored, name, None)
                await self._queue.put(some)

    async def add(self, places: Sequence[Place]) -> None:
        """Rows of any objects; they are read when many of one object have come, or at the end."""
        for place in places:
            self._gathered.setdefault(place[2].target_path, []).append(place)
            self._count += 1
        while self._count > GATHERED_MAX:
            name = max(self._gathered, key=lambda name: len(self._gathered[name]))
            await self._release(name)

    async def flush(self) -> None:
        """Read all that was gathered; returns when everything was looked at."""
        await self._queue.join()  # the same places may be among it
        await self._look_up()
        for name in list(self._gathered):
            await self._release(name)
        await self._queue.join()

    async def _look_up(self) -> None:
        """What was gathered and read back meanwhile needs no reading. Raises: DiskFailed."""
        if not self._gathered or len(self._wrong) >= WRONG_MAX:
            return
        # Others may not have heard yet that something of an object is damaged, or that it is gone: what was seen here counts for more.
        right = {name: places for name, places in self._gathered.items() if name not in self._wrong}
        found = await self._find([*{row.chunk_id for places in right.values() for _, _, row in places}])
        known: list[tuple[Place, ArchivedChunk]] = []
        for name, places in right.items():
            left: list[Place] = []
            for place in places:
                row, other = place[2], found.get(place[2].chunk_id)
                state = self._verified.get(row.frame, 0)
                if not state and other is not None and other.frame == row.frame:
                    state = max(0, other.state)
                if state:
                    known.append((place, msgspec.structs.replace(row, state=state)))
                else:
                    left.append(place)
            self._gathered[name] = left
            if not left:
                del self._gathered[name]
        self._count -= len(known)
        try:
            await self._take(known)
        finally:
            for (slot, _, _), _ in known:
                self._closed(slot, 1)

    async def _release(self, name: str) -> None:
        places = self._gathered.pop(name)
        self._count -= len(places)
        await self._queue.put(places)

    async def work(self) -> None:
        """Read what waits, for ever. Raises: DiskFailed."""
        while True:
            places = await self._queue.get()
            try:
                await self._read(places)
            finally:
                self._queue.task_done()

    async def _read(self, places: list[Place]) -> None:
        name = places[0][2].target_path
        rows = list(dict.fromkeys(row for _, _, row in places))
        verdicts = {verdict.row: verdict for verdict in await verify_object(self._target, name, rows)}
        now_ms = self._ground.now_ms()
        told = [(place, news) for place in places if (news := verdicts[place[2]].told(now_ms)) is not None]
        for _, news in told:
            if news.verified:
                _remember(self._verified, news.frame, news.state)
            elif len(self._wrong) < WRONG_MAX:
                self._wrong.add(name)
        try:
            await self._take(told)
            # What is looked at once more, when the archive answers again, is no problem yet.
            later = {row for slot, _, row in places if verdicts[row].outcome == "unknown" and self._again(slot)}
        finally:
            for slot, _, _ in places:
                self._closed(slot, 1)
        self._tell(name, [verdict for row, verdict in verdicts.items() if row not in later])

    async def _take(self, told: Sequence[tuple[Place, ArchivedChunk]]) -> None:
        """Make what is known of rows facts of this node's copies; durable on return. Raises: DiskFailed."""
        now_ms = self._ground.now_ms()
        by_blob: dict[tuple[int, str], list[ArchivedChunk]] = {}
        for (slot, blob_id, _), row in told:
            by_blob.setdefault((slot, blob_id), []).append(row)
        positions = [
            self._ground.facts.take(slot, blob_id, rows, at_ms=now_ms) for (slot, blob_id), rows in by_blob.items()
        ]
        await self._ground.store.durable(max(positions, default=0))

    def _tell(self, name: str, verdicts: list[Verdict]) -> None:
        right = [verdict for verdict in verdicts if verdict.outcome == "verified"]
        self._progress.add(
            chunks_verified=len(right), bytes_verified=sum(verdict.row.end - verdict.row.start for verdict in right)
        )
        wrong: dict[str, list[Verdict]] = {}
        for verdict in verdicts:
            if verdict.outcome != "verified":
                wrong.setdefault(verdict.outcome, []).append(verdict)
        for outcome, some in wrong.items():
            error = some[0].error
            why = error.detail if isinstance(error, AmberError) else "it could not be looked at"
            self._progress.problem(f"{name}: {len(some)} chunks {outcome}: {why}", count=len(some))
            log.warning("not read back", object=name, outcome=outcome, chunks=len(some), error=why)


K = TypeVar("K")
V = TypeVar("V")


def _remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    memory.move_to_end(key)
    if len(memory) > REMEMBERED_MAX:
        memory.popitem(last=False)
