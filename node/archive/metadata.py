"""The metadata of writes that were archived first, on its way to the bucket: one segment for all that wait together (rfc/0016)."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

from archive.export import Exports
from archive.targets.interface import Target
from archive.targets.small import store
from archive.written import Written, encode_written, through_name
from node.archive.document import document_of
from node.archive.together import Together
from node.routing import Routing

GROUPS = 2
"""Segments under way at once."""
GROUP_COUNT_MAX = 4096
"""Writes in one of them, and archive rows."""
ROWS_HERE_MAX = 1000
"""Rows that are encoded at once; more are in a thread: it would hold up everybody else."""


class Metadata:
    """Tells the bucket of writes.

    Args:
        now_ms: the node's hybrid clock.
        mint: makes ULIDs.
        patience_s: how long the archive may take.
    """

    def __init__(
        self,
        routing: Routing,
        target: Target,
        *,
        now_ms: Callable[[], int],
        mint: Callable[[], str],
        patience_s: float,
    ) -> None:
        self._routing = routing
        self._target = target
        self._now_ms = now_ms
        self._mint = mint
        self._patience_s = patience_s
        self._told_cluster = False
        self._writes: Together[Written, None] = Together(
            self._send,
            flights=GROUPS,
            count_max=GROUP_COUNT_MAX,
            size_max=GROUP_COUNT_MAX,
            size_of=lambda write: 1 + len(write.chunks),
        )

    async def tell(self, write: Written) -> None:
        """Have the archive know of a write that is chosen; returns when it does. Raises: ArchiveError, TimeoutError."""
        async with asyncio.timeout(self._patience_s):
            await self._writes.of(write)

    async def close(self) -> None:
        """Give up what is under way."""
        await self._writes.close()

    async def _send(self, writes: list[Written]) -> list[None]:
        info = self._routing.table().cluster
        async with asyncio.timeout(self._patience_s):
            if not self._told_cluster:
                await self._tell_cluster()
            encode = functools.partial(encode_written, info.cluster_id, self._routing.node, self._now_ms(), writes)
            if sum(len(write.chunks) for write in writes) > ROWS_HERE_MAX:
                data = await asyncio.get_running_loop().run_in_executor(None, encode)
            else:
                data = encode()
            await store(self._target, through_name(info.cluster_id, self._mint()), data)
        return [None] * len(writes)

    async def _tell_cluster(self) -> None:
        """The bucket explains itself only with the cluster's document; before the first export there is none."""
        info = self._routing.table().cluster
        await Exports(self._target, info.cluster_id).introduce(document_of(info))
        self._told_cluster = True
