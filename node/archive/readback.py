"""The second stage of sending: what is to be evicted is read back from the archive, while the first stage goes on.

Rows of one object are read back together. What comes right after its upload is one object's; what was uploaded long ago comes scattered over
slots, and is gathered first, so that a pack is not asked for once per slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

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

Closed = Callable[[int, int], None]
"""Is told (slot, number of rows) once they were looked at."""


class ReadBack:
    """Reads objects back. Somebody has to run :meth:`work`, in as many tasks as objects are to be read at once.

    Args:
        closed: told of rows that were looked at, and what was seen is durable.
        again: told of the slot of rows that could not be looked at now; whether it is gone through once more.
    """

    def __init__(
        self,
        ground: Ground,
        target: Target,
        progress: Progress,
        *,
        closed: Closed,
        again: Callable[[int], bool] = lambda slot: False,
    ) -> None:
        self._ground = ground
        self._target = target
        self._progress = progress
        self._closed = closed
        self._again = again
        self._queue: asyncio.Queue[list[Place]] = asyncio.Queue(WAITING_OBJECTS)
        self._gathered: dict[str, list[Place]] = {}
        self._count = 0

    async def object_stored(self, places: Sequence[Place]) -> None:
        """Rows of what was stored just now; may wait until others were read.

        Mostly of one object; of several where chunks came again that were stored before, each in an object of its own.
        """
        objects: dict[str, list[Place]] = {}
        for place in places:
            objects.setdefault(place[2].target_path, []).append(place)
        for some in objects.values():
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
        for name in list(self._gathered):
            await self._release(name)
        await self._queue.join()

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
        by_blob: dict[tuple[int, str], list[ArchivedChunk]] = {}
        for slot, blob_id, row in places:
            told = verdicts[row].told(now_ms)
            if told is not None:
                by_blob.setdefault((slot, blob_id), []).append(told)
        try:
            positions = [
                self._ground.facts.take(slot, blob_id, chunks, at_ms=now_ms)
                for (slot, blob_id), chunks in by_blob.items()
            ]
            await self._ground.store.durable(max(positions, default=0))
            # What is looked at once more, when the archive answers again, is no problem yet.
            later = {row for slot, _, row in places if verdicts[row].outcome == "unknown" and self._again(slot)}
        finally:
            for slot, _, _ in places:
                self._closed(slot, 1)
        self._tell(name, [verdict for row, verdict in verdicts.items() if row not in later])

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
