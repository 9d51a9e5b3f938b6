"""The bytes of versions that COMMITs and LEARNs bring: kept, fetched, or asked for later."""

from __future__ import annotations

import msgspec
import structlog

from amberblob.ballot import Register
from amberblob.errors import DigestMismatch, PeerError, StorageError
from amberblob.manifest import Record, Version
from amberblob.wire import Commit
from chunkstore.interface import BlobState, ReplicaStore
from node.protocol.replica import BytesHere
from node.pulls import PullRequests

log = structlog.get_logger(__name__)


class Bodies:
    """Has the bytes that this disk's rows refer to come here."""

    def __init__(self, store: ReplicaStore, pulls: PullRequests) -> None:
        self._store = store
        self._pulls = pulls

    async def keep(self, message: Commit, added: Version) -> Commit:
        """The bytes of an inline version that the register already refers to; the message without them."""
        body = message.body
        if body and await self._store.blob_state(message.slot, added.blob_id) is not BlobState.DURABLE:
            try:
                await self._store.install_chunk(message.slot, added, added.chunks[0], body)
            except StorageError as error:
                log.info("body not kept", slot=message.slot, blob_id=added.blob_id, error=str(error))
        return msgspec.structs.replace(message, body=None)

    async def fetched(self, message: Commit, added: Version) -> Commit:
        """Try to get an undecided record's bytes from those that accepted it; an inline body joins the message."""
        slot = message.slot
        # A blob that was given up here is fetched again: the holders accepted a record that refers to it.
        if not message.holders or await self._store.blob_state(slot, added.blob_id) is BlobState.DURABLE:
            return message
        try:
            body = await self._pulls.now(slot, added, message.holders)
        except (PeerError, StorageError, DigestMismatch) as error:
            log.info("pull before accept failed", slot=slot, blob_id=added.blob_id, error=str(error))
            return message
        return message if body is None else msgspec.structs.replace(message, body=body)

    async def here(self, message: Commit, added: Version) -> BytesHere:
        """What the disk has of the bytes of the version that the COMMIT adds."""
        if message.body is not None:
            return BytesHere(durable=False)
        state = await self._store.blob_state(message.slot, added.blob_id)
        return BytesHere(durable=state is BlobState.DURABLE, aborted=state is BlobState.ABORTED)

    def complete_previous(self, slot: int, record: Record | None, before: Register) -> None:
        """A record whose predecessor was never seen here brings that one's row, not its bytes: fetch them."""
        previous = record.previous if record is not None else None
        known = before.record.added if before.record is not None else None
        if previous is not None and (known is None or known.blob_id != previous.blob_id):
            self._pulls.later(slot, previous, ())
