"""What of slots that another node looks after is this node's to send: rows that went wrong and that the other one never hears of (rfc/0016).

A copy that lives by an older place that was read back keeps to that one, whatever is told of later places, until a later one was read back, too. So
the node that looks after a slot may be content with its rows for ever, while other copies have a later row that is damaged, or that nobody
has read back, and cannot let their bytes go by it. The first of those copies has the bytes, and sends.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from amberblob.archives import ArchivedChunk, merge
from amberblob.errors import PeerError
from amberblob.wire_archive import ArchivedBlobReply, AskArchived
from chunkstore.interface import ArchiveView
from node.archive.ground import Ground
from node.archive.known import CHUNKS_ASKED

log = structlog.get_logger(__name__)


class Deputy:
    """One node's."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def slots(self) -> list[int]:
        """Slots of which this node has a copy with archive rows, and that another node looks after."""
        ground = self._ground
        led = set(ground.led_slots())
        return [slot for slot in ground.own_slots() if slot not in led and ground.store.tally(slot).archived_rows]

    async def sends(self, slot: int, view: ArchiveView) -> bool:
        """Whether rows of the version went wrong here, and every voter before this one that answers lives by older places. Raises: DiskFailed."""
        ground = self._ground
        if view.evicted or view.wanted:
            return False
        blob_id = view.version.blob_id
        blob = await ground.store.archived(slot, blob_id)
        wrong = [row for row in blob.chunks if not row.verified and not row.foreign] if blob is not None else []
        if not wrong or not ground.has_voice(slot):
            return False
        for node in ground.routing.electorate(slot).voters:
            if node == ground.node:
                return True
            if ground.coordinator.peers.reachable(node) and not await self._is_content(node, slot, blob_id, wrong):
                return False
        return False

    async def _is_content(self, node: str, slot: int, blob_id: str, wrong: Sequence[ArchivedChunk]) -> bool:
        """Whether that copy lives by places that rows from here never take the place of."""
        chunk_ids = tuple(row.chunk_id for row in wrong[:CHUNKS_ASKED])
        try:
            reply = await self._ground.ask(node, AskArchived(slot=slot, blob_id=blob_id, chunk_ids=chunk_ids))
        except PeerError as error:
            log.info("archive rows not told", peer=node, slot=slot, blob_id=blob_id, error=error.detail)
            return False
        told = reply.blob if isinstance(reply, ArchivedBlobReply) else None
        if told is None or not told.evicted:
            return False
        pairs = [(row, other) for row in wrong if (other := told.find(row.chunk_id)) is not None]
        return any(
            other.verified and other.location != row.location and merge(other, row) == row for row, other in pairs
        )
