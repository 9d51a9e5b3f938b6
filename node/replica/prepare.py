"""Phase one: a copy promises a ballot, and tells what it has accepted and what the write id did there."""

from __future__ import annotations

from functools import partial

from amberblob.ballot import Register
from amberblob.manifest import Record, WriteMark
from amberblob.wire import Prepare, Refused, Reply
from chunkstore.interface import ReplicaStore
from node.replica.copies import Copies
from node.transport.answers import responded
from node.transport.interface import Respond


def _looks_back(message: Prepare, record: Record | None) -> bool:
    """Whether what the write id did has to be looked up in the database: the record's own list does not reach back,
    or the path may have been forgotten since the write was applied (its write ids stay).
    """
    if not message.write_id:
        return False
    return message.repeated or (record is not None and record.revision > len(record.writes))


class Prepares:
    """Answers PREPAREs."""

    def __init__(self, store: ReplicaStore, copies: Copies) -> None:
        self._store = store
        self._copies = copies

    def answer_now(self, message: Prepare, respond: Respond) -> bool:
        """Answer if the register is in memory; whether that was done."""
        refused = self._refused(message)
        if refused is not None:
            if self._copies.lags(message.slot, message.epoch):
                return False
            respond(refused)
            return True
        register = self._store.peek(message.slot, message.path)
        if register is None or _looks_back(message, register.record):
            return False
        actions = self._copies.slot(message.slot).prepare(self._store.slot_state(message.slot), message, register, None)
        self._copies.carry_out(message.slot, message.path, actions, respond)
        return True

    async def answer(self, message: Prepare) -> Reply:
        """Promised, or Refused."""
        await self._copies.catch_up(message.slot, message.epoch)
        refused = self._refused(message)
        if refused is not None:
            return refused
        register, prior = await self._register_and_prior(message)
        refused = self._refused(message)
        if refused is not None:
            return refused
        actions = self._copies.slot(message.slot).prepare(
            self._store.slot_state(message.slot), message, register, prior
        )
        return await responded(partial(self._copies.carry_out, message.slot, message.path, actions))

    def _refused(self, message: Prepare) -> Refused | None:
        muted = self._copies.muted(message.slot, message.epoch)
        if muted is not None:
            return muted
        if self._store.failed is not None:
            # Nothing that is promised or accepted from now on would survive a restart.
            return self._copies.refused(message.slot, "disk-failed", self._store.failed)
        if message.body_bytes and self._store.full:
            return self._copies.refused(message.slot, "disk-full")
        return None

    async def _register_and_prior(self, message: Prepare) -> tuple[Register, WriteMark | None]:
        """The register as of now and what the write id did, both of the same moment."""
        register = await self._store.load(message.slot, message.path)
        while _looks_back(message, register.record):
            prior = await self._store.find_write(message.slot, message.path, message.write_id)
            now = await self._store.load(message.slot, message.path)
            if prior is not None or now.accepted == register.accepted:
                return now, prior
            register = now
        return register, None
