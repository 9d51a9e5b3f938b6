"""Fetches bytes that this disk lacks: before accepting an undecided record, or later in the background."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import structlog

from amberblob.clock import Clock
from amberblob.errors import AmberError, PeerTimeout
from amberblob.manifest import Version
from antientropy.pull import Source, complete, inline_body, stage_from
from antientropy.step import Did
from chunkstore.interface import BlobState, ReplicaStore
from node.routing import Routing

log = structlog.get_logger(__name__)

QUEUE_MAX = 10_000
TRIES_MAX = 20
RETRY_FIRST_S = 2.0
NOW_PATIENCE_S = 2.0
"""How long a COMMIT waits for bytes; well below the time that its coordinator waits for the answer."""
RETRY_MAX_S = 300.0


@dataclass(slots=True)
class _Wanted:
    slot: int
    version: Version
    holders: tuple[str, ...]
    tries: int = 0
    due_s: float = 0.0


class Puller:
    """A worker, and the :class:`node.pulls.PullRequests` of this node. ``source`` is set once before use."""

    name = "puller"
    pause_s = 1.0

    def __init__(self, store: ReplicaStore, routing: Routing, clock: Clock) -> None:
        self.wake = asyncio.Event()
        self.source: Source | None = None
        self._store = store
        self._routing = routing
        self._clock = clock
        self._queue: OrderedDict[str, _Wanted] = OrderedDict()
        self._staging: dict[str, asyncio.Task[None]] = {}

    @property
    def waiting(self) -> int:
        """How many versions are to be completed."""
        return len(self._queue)

    @property
    def waiting_bytes(self) -> int:
        """How many bytes those versions have; an upper bound of what has to be fetched."""
        return sum(wanted.version.size for wanted in self._queue.values())

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
        """Give up what is being staged."""
        tasks = list(self._staging.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def later(self, slot: int, version: Version, holders: tuple[str, ...]) -> None:
        """See :meth:`node.pulls.PullRequests.later`."""
        if version.size == 0 or version.blob_id in self._queue or len(self._queue) >= QUEUE_MAX:
            return
        self._queue[version.blob_id] = _Wanted(slot, version, holders)
        self.wake.set()

    async def step(self) -> Did:
        """Complete one version."""
        assert self.source is not None
        now_s = self._clock.monotonic_s()
        blob_id = next((blob_id for blob_id, wanted in self._queue.items() if wanted.due_s <= now_s), None)
        if blob_id is None:
            return Did.NOTHING
        wanted = self._queue.pop(blob_id)
        slot, version = wanted.slot, wanted.version
        try:
            fetched = await complete(self._store, self.source, slot, version, self._others(slot, wanted.holders))
        except AmberError as error:
            wanted.tries += 1
            if wanted.tries < TRIES_MAX:
                wanted.due_s = self._clock.monotonic_s() + min(RETRY_MAX_S, RETRY_FIRST_S * float(1 << wanted.tries))
                self._queue[blob_id] = wanted
            else:
                log.warning("copy not completed", slot=slot, blob_id=blob_id, error=str(error))
        else:
            if fetched:
                log.info("copy completed", slot=slot, blob_id=blob_id, bytes=fetched)
        return Did.WORK

    def _others(self, slot: int, holders: tuple[str, ...]) -> list[str]:
        """The holders, then every other voter, without this node."""
        voters = self._routing.electorate(slot).voters
        return [node for node in dict.fromkeys((*holders, *voters)) if node != self._routing.node]
