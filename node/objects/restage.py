"""Staged bytes on their way to the voters of a newer route, which was made while they arrived.

The coordinator reads them, verified, from the nodes that have them, a chunk at a time, and stages them where they are
missing. The client has sent its body once and notices nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from amberblob.errors import PeerError, QuorumUnavailable
from amberblob.manifest import ChunkRef, Version
from amberblob.wire import StageClose, StagedReply, StageOpen
from node.coordinator import Coordinator, not_counted
from node.objects.bytes import Reading
from node.protocol.quorum import Electorate
from node.transport.interface import OutgoingStage

log = structlog.get_logger(__name__)

STUCK_S = 20.0
CLOSE_S = 60.0


class Restage:
    """One blob for the voters that lack it.

    Args:
        version: its draft, with the blob's id.
        chunks: all of them, in order.
        close: ends the blob, with ``manifest``, if it has one.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        reading: Reading,
        electorate: Electorate,
        version: Version,
        chunks: Sequence[ChunkRef],
        close: StageClose,
        manifest: bytes | None,
        *,
        chunk_bytes: int,
    ) -> None:
        self._coordinator = coordinator
        self._reading = reading
        self._electorate = electorate
        self._version = version
        self._chunks = chunks
        self._close = close
        self._manifest = manifest
        self._open = StageOpen(
            slot=electorate.slot,
            epoch=electorate.epoch,
            blob_id=version.blob_id,
            chunk_bytes=chunk_bytes,
            size=version.size,
        )
        self._live: dict[str, OutgoingStage] = {}
        self._out: dict[str, str] = {}
        self._strangers: set[str] = set()

    async def bring(self, holders: frozenset[str], *, last: bool) -> frozenset[str]:
        """Have the blob on voters; who has it then, ``holders`` included.

        That is a write quorum; or fewer, if a newer route of the slot is known meanwhile: then it is to be brought to that one's, unless
        this was the ``last`` try.
        Raises: QuorumUnavailable: too few of them took it, or it cannot be read any more.
        """
        staged: list[str] = []
        lacking = [node for node in self._electorate.voters if node not in holders]
        log.info("blob follows the route", slot=self._electorate.slot, blob_id=self._version.blob_id, to=lacking)
        try:
            await asyncio.gather(*map(self._begin, lacking))
            for chunk in self._chunks:
                if not self._electorate.is_write_quorum_among(holders | self._live.keys()):
                    break
                data = await self._reading.staged(self._electorate.slot, self._version, chunk, holders=holders)
                await asyncio.gather(*(self._write(node, data) for node in list(self._live)))
            else:
                staged = await asyncio.gather(*map(self._finish, list(self._live)))
        finally:
            for stage in self._live.values():
                await stage.abort()
        have = holders | {node for node in staged if node}
        if not self._electorate.is_write_quorum_among(have) and (
            last or not await self._coordinator.moves_on(self._electorate, self._strangers)
        ):
            raise QuorumUnavailable.of(*self._electorate.writes_short(have), self._out)
        return have

    async def _begin(self, node: str) -> None:
        try:
            self._live[node] = await self._coordinator.peers.stage(node, self._open, timeout_s=STUCK_S)
        except PeerError as error:
            self._out[node] = error.detail

    async def _write(self, node: str, data: bytes | memoryview) -> None:
        try:
            await self._live[node].write(data)
        except PeerError as error:
            self._out[node] = error.detail
            await self._live.pop(node).abort()

    async def _finish(self, node: str) -> str:
        """The node, if it has the blob now; else nothing."""
        try:
            reply = await self._live[node].close(self._close, self._manifest, timeout_s=CLOSE_S)
        except PeerError as error:
            self._out[node] = error.detail
            return ""
        del self._live[node]
        if isinstance(reply, StagedReply) and self._electorate.counts(node, reply.incarnation):
            return node
        if isinstance(reply, StagedReply):
            self._strangers.add(node)
        self._out[node] = not_counted(reply)
        return ""
