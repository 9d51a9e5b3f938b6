"""LEARN messages, gathered per node for a moment and sent together. Losing one costs nothing but a later round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from amberblob.errors import PeerError
from amberblob.wire import Learn, Learnt
from node.protocol.write import Spread
from node.transport.interface import Peers

GATHER_S = 0.03
"""How long LEARNs wait for company, and for a late accept that makes one smaller. Readers do not need them: a majority's
accepts show that a record is chosen."""

BATCH_MAX = 256
BATCH_BYTES_MAX = 512 * 1024
QUEUE_MAX = 20_000
"""Per node; beyond it the oldest are dropped, and the node finds out by a later round or by anti-entropy."""


class Learns:
    """Batches LEARNs. ``spawn`` runs a coroutine in the background."""

    def __init__(self, peers: Peers, spawn: Callable[[Coroutine[Any, Any, None]], None], *, timeout_s: float) -> None:
        self._peers = peers
        self._spawn = spawn
        self._timeout_s = timeout_s
        self._waiting: dict[str, list[Spread]] = {}
        self._sending: set[str] = set()

    def add(self, spread: Spread) -> None:
        """Tell the node, some time soon."""
        node = spread.node
        queue = self._waiting.setdefault(node, [])
        queue.append(spread)
        if len(queue) > QUEUE_MAX:
            del queue[: QUEUE_MAX // 10]
        if node not in self._sending:
            self._sending.add(node)
            self._spawn(self._drain(node))

    async def _drain(self, node: str) -> None:
        try:
            while queue := self._waiting.get(node):
                if len(queue) < BATCH_MAX:
                    await asyncio.sleep(GATHER_S)
                batch = _take(queue)
                try:
                    await self._peers.call(node, Learn(items=tuple(batch)), timeout_s=self._timeout_s)
                except PeerError:
                    # The node is away. What it misses it gets by the next round on the path, or by anti-entropy.
                    queue.clear()
        finally:
            self._sending.discard(node)


def _take(queue: list[Spread]) -> list[Learnt]:
    """The next batch, taken off the queue; bounded in number and (roughly) in bytes."""
    size = 0
    batch: list[Learnt] = []
    for spread in queue[:BATCH_MAX]:
        item = spread.bare if spread.bare is not None and spread.node in spread.accepted else spread.item
        # A record's size is dominated by its chunk list, its ranges and its metadata.
        record = item.record
        size += 512
        if record is not None:
            heads = [version for version in (record.head, record.previous) if version is not None]
            size += sum(len(h.chunks) * 80 + sum(len(k) + len(v) for k, v in h.meta.items()) for h in heads)
            size += len(record.live) * 20 + len(record.taken) * 20
        if batch and size > BATCH_BYTES_MAX:
            break
        batch.append(item)
    del queue[: len(batch)]
    return batch
