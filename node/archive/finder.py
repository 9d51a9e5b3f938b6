"""Where the archive has chunks already: looked up in the node's own index, then in those of the others (rfc/0016, "Who uploads")."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import structlog

from amberblob.archives import DAMAGED, ArchivedChunk, merge
from amberblob.errors import NotReady
from amberblob.wire_archive import FIND_ARCHIVED_MAX, FindArchived, FoundArchived
from node.archive.ground import Ground

log = structlog.get_logger(__name__)


class Finder:
    """Looks chunks up by their ids."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    async def find(self, chunk_ids: Sequence[str]) -> dict[str, ArchivedChunk]:
        """Places of those that somebody knows, by chunk id; nothing that is damaged, imported or condemned here."""
        return await self._find(chunk_ids, verified=False)

    async def find_verified(self, chunk_ids: Sequence[str]) -> dict[str, ArchivedChunk]:
        """As :meth:`find`, of places that were read back alone."""
        found = await self._find(chunk_ids, verified=True)
        return {chunk_id: chunk for chunk_id, chunk in found.items() if chunk.verified}

    async def _find(self, chunk_ids: Sequence[str], *, verified: bool) -> dict[str, ArchivedChunk]:
        found: dict[str, ArchivedChunk] = {}
        self._merge(found, await self._ground.means.state.find(chunk_ids, verified=verified))
        left = [chunk_id for chunk_id in dict.fromkeys(chunk_ids) if chunk_id not in found]
        try:
            peers, nodes = self._ground.coordinator.peers, self._ground.nodes()
        except NotReady:
            return found
        others = [node for node in nodes if node != self._ground.node and peers.reachable(node)]
        for begin in range(0, len(left), FIND_ARCHIVED_MAX):
            message = FindArchived(chunk_ids=tuple(left[begin : begin + FIND_ARCHIVED_MAX]))
            asked = set(message.chunk_ids)
            for node, reply in (await self._ground.ask_all(others, message)).items():
                # Who does not answer may know of them: then they are sent again, which is harmless. What a node knows that was
                # removed meanwhile may be gone: collectors do not ask it any more.
                if isinstance(reply, FoundArchived) and node in self._ground.nodes():
                    self._merge(found, (chunk for chunk in reply.chunks if chunk.chunk_id in asked))
        return found

    def _merge(self, found: dict[str, ArchivedChunk], told: Iterable[ArchivedChunk]) -> None:
        for chunk in self._ground.facts.admitted(told):
            if chunk.state != DAMAGED and not chunk.foreign:
                found[chunk.chunk_id] = merge(found.get(chunk.chunk_id), chunk)
