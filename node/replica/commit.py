"""Phase two: a copy accepts a record, when the bytes of the version that it adds are durable here."""

from __future__ import annotations

import asyncio
from functools import partial

from amberblob.ballot import Register
from amberblob.errors import DigestMismatch
from amberblob.ids import content_hash
from amberblob.limits import INLINE_BYTES_MAX
from amberblob.wire import Commit, Refused, Reply
from chunkstore.interface import ReplicaStore
from node.protocol.replica import BytesHere
from node.replica.bodies import Bodies
from node.replica.copies import Copies
from node.transport.answers import responded
from node.transport.interface import Respond

NOTHING_NEEDED = BytesHere(durable=True)
BODY_ALONG = BytesHere(durable=False)


class Commits:
    """Answers COMMITs."""

    def __init__(self, store: ReplicaStore, copies: Copies, bodies: Bodies) -> None:
        self._store = store
        self._copies = copies
        self._bodies = bodies
        self._reloading = asyncio.Lock()

    def answer_now(self, message: Commit, respond: Respond) -> bool:
        """Answer if the register is in memory and the bytes come along; whether that was done. Raises: DigestMismatch."""
        added = message.record.added
        if added is not None and added.size > 0 and message.body is None:
            return False
        register = self._store.peek(message.slot, message.path)
        if register is None or register.accepted == message.ballot:
            return False
        refused = self._refused(message)
        if refused is not None:
            if self._copies.lags(message.slot, message.epoch):
                return False
            respond(refused)
        else:
            here = NOTHING_NEEDED if added is None or added.size == 0 else BODY_ALONG
            self._decide(message, register, here, respond)
        return True

    async def answer(self, message: Commit) -> Reply:
        """AcceptedReply, or Refused. Raises: DigestMismatch."""
        slot, path, added = message.slot, message.path, message.record.added
        await self._copies.catch_up(slot, message.epoch)
        refused = self._refused(message)
        if refused is not None:
            return refused
        register = await self._store.load(slot, path)
        if register.accepted == message.ballot and message.body is not None and added is not None:
            # Accepted before, or (a LEARN overtook this) learnt without its bytes: then keep them.
            message = await self._bodies.keep(message, added)
        here = NOTHING_NEEDED
        if added is not None and added.size > 0:
            if message.body is None:
                message = await self._bodies.fetched(message, added)
            # Nothing is awaited between this and the decision: the blob must not be given up in between.
            here = await self._bodies.here(message, added)
            while (now := self._store.peek(slot, path)) is None:
                # One at a time: where memory is short, two would push each other's register out for ever.
                async with self._reloading:
                    await self._store.load(slot, path)
                    here = await self._bodies.here(message, added)
            register = now
        return await responded(partial(self._decide, message, register, here))

    def _refused(self, message: Commit) -> Refused | None:
        """Why the COMMIT is not even looked at. Raises: DigestMismatch."""
        slot, added = message.slot, message.record.added
        muted = self._copies.muted(slot, message.epoch)
        if muted is not None:
            return muted
        if self._store.failed is not None:
            return self._copies.refused(slot, "disk-failed", self._store.failed)
        if added is not None and added.size > 0 and message.body is not None:
            if len(message.body) > INLINE_BYTES_MAX or content_hash(message.body) != added.etag:
                raise DigestMismatch("the body of a COMMIT does not match its record")
            if self._store.full and not message.holders:
                return self._copies.refused(slot, "disk-full")
        return None

    def _decide(self, message: Commit, register: Register, here: BytesHere, respond: Respond) -> None:
        slot, path = message.slot, message.path
        muted = self._copies.muted(slot, message.epoch)
        if muted is not None:  # since it was asked: the bytes took a while
            respond(muted)
            return
        actions = self._copies.slot(slot).commit(self._store.slot_state(slot), message, register, here)
        if len(actions) > 1:  # something is to be persisted
            self._copies.on_undecided(slot, path)
            self._bodies.complete_previous(slot, message.record, register)
        self._copies.carry_out(slot, path, actions, respond)
