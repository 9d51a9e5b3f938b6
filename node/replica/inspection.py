"""Everything that a copy knows of a path, also one without a voice: for ``explain``."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from amberblob.archives import ArchivedBlob
from amberblob.manifest import Version, decode_manifest
from amberblob.wire import Inspect, InspectReply, Reply
from chunkstore.interface import ReplicaStore
from node.replica.copies import Copies
from node.replica.questions import in_one_answer

log = structlog.get_logger(__name__)

INSPECT_ROWS_MAX = 100
INSPECT_ARCHIVED_MAX = 64
"""Archive rows of one version that are told, of at most so many versions."""
INSPECT_WANTED_MAX = 10_000
"""How many wanted versions of a slot are looked through for those of one path."""


class Inspection:
    """Answers Inspect."""

    def __init__(self, store: ReplicaStore, copies: Copies) -> None:
        self._store = store
        self._copies = copies

    async def answer(self, message: Inspect) -> Reply:
        """The register, its newest rows, and what of their bytes is here."""
        slot, path = message.slot, message.path
        register = await self._store.load(slot, path)
        found = await self._store.rows(slot, path, limit=INSPECT_ROWS_MAX)
        rows = in_one_answer(found)
        versions = {row.version.version: row.version for row in rows}
        if register.record is not None and register.record.added is not None:
            versions.setdefault(register.record.added.version, register.record.added)
        damaged = await self._wanted_of(slot, path)
        archived = await self._archived_of(slot, versions)
        present = {
            number: "damaged"
            if damaged.get(number)
            else await self._presence(slot, version, archived[number].evicted if number in archived else False)
            for number, version in versions.items()
        }
        state = self._store.slot_state(slot)
        return InspectReply(
            incarnation=state.incarnation,
            accepted=register.accepted,
            record=register.record,
            chosen=register.chosen,
            rows=tuple(rows),
            bytes_present=present,
            disk=self._store.disk_id,
            more=len(rows) < len(found) or len(found) >= INSPECT_ROWS_MAX,
            detail=self._store.failed or "",
            unsynced=self._copies.mute(state) is not None,
            wanted=tuple(sorted(damaged)),
            archived={
                number: blob.chunks[:INSPECT_ARCHIVED_MAX]
                for number, blob in sorted(archived.items(), reverse=True)[:INSPECT_ARCHIVED_MAX]
            },
        )

    async def _archived_of(self, slot: int, versions: Mapping[int, Version]) -> dict[int, ArchivedBlob]:
        """What is known of these versions' archive copies; those of which nothing is known are left out."""
        if not self._store.tally(slot).archived_rows:
            return {}
        found = {number: await self._store.archived(slot, version.blob_id) for number, version in versions.items()}
        return {number: blob for number, blob in found.items() if blob is not None}

    async def _wanted_of(self, slot: int, path: str) -> dict[int, bool]:
        """Versions of the path whose bytes are to be fetched, and whether they were damaged here; of very many not all."""
        if not self._store.tally(slot).wanted:
            return {}
        found = await self._store.wanted(slot, INSPECT_WANTED_MAX)
        return {wanted.version.version: wanted.damaged for wanted in found if wanted.path == path}

    async def _presence(self, slot: int, version: Version, evicted: bool) -> str:
        if version.size == 0:
            return "all"
        if evicted:
            return "archived"
        chunks = version.chunks
        if version.manifest_id is not None:
            try:
                chunks = decode_manifest(await self._store.read_manifest(slot, version.blob_id, version.manifest_id))
            except Exception as error:
                log.info("manifest not readable", slot=slot, blob_id=version.blob_id, error=str(error))
                return "none"
        missing = await self._store.missing_chunks(slot, version, chunks)
        if not missing:
            return "all"
        return "none" if len(missing) == len(chunks) else "some"
