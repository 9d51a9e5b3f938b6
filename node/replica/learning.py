"""What is chosen: LEARN, and deleted paths that every copy may forget."""

from __future__ import annotations

from functools import partial

from amberblob.ballot import Register
from amberblob.errors import DiskFailed
from amberblob.wire import Done, Learn, Learnt, Reply
from amberblob.wire_repair import ForgetStub
from chunkstore.interface import ReplicaStore
from node.protocol.replica import Persist
from node.pulls import PullRequests
from node.replica.bodies import Bodies
from node.replica.copies import Copies
from node.transport.answers import responded
from node.transport.interface import Respond


class Learning:
    """Answers LEARNs and ForgetStubs."""

    def __init__(self, store: ReplicaStore, copies: Copies, bodies: Bodies, pulls: PullRequests) -> None:
        self._store = store
        self._copies = copies
        self._bodies = bodies
        self._pulls = pulls

    def learn_now(self, message: Learn, respond: Respond) -> bool:
        """Learn it if all its registers are in memory; whether that was done."""
        peek = self._store.peek
        if any(peek(item.slot, item.path) is None for item in message.items):
            return False
        for item in message.items:
            if self._copies.mute(self._store.slot_state(item.slot)) is None:
                register = peek(item.slot, item.path)
                # One item may push another out of memory: that one is as good as lost on its way.
                if register is not None:
                    self._learnt(item, register)
        respond(Done())
        return True

    async def learn(self, message: Learn) -> Reply:
        """Learn it, item by item."""
        for item in message.items:
            await self._learn(item)
        return Done()

    async def _learn(self, item: Learnt) -> None:
        # A copy that is not filled yet has no floors: it must not hear of what may be forgotten elsewhere.
        if self._copies.mute(self._store.slot_state(item.slot)) is None:
            register = await self._store.load(item.slot, item.path)
            if self._copies.mute(self._store.slot_state(item.slot)) is None:
                self._learnt(item, register)

    def _learnt(self, item: Learnt, register: Register) -> None:
        actions = self._copies.slot(item.slot).learn(self._store.slot_state(item.slot), item, register)
        try:
            for action in actions:
                if isinstance(action, Persist):
                    self._store.apply(action.mutation)
        except DiskFailed:
            return
        now = self._store.peek(item.slot, item.path)
        if now is not None and now.chosen:
            self._copies.on_decided(item.slot, item.path)
        # What was accepted here has its bytes here; what is new here may lack them.
        if actions and item.record is not None and register.accepted != item.ballot:
            added = item.record.added
            if added is not None and added.size > 0:
                self._pulls.later(item.slot, added, item.holders)
            self._bodies.complete_previous(item.slot, item.record, register)

    async def forget(self, message: ForgetStub) -> Reply:
        """Forget a deleted path that nobody can need any more: Done, or Refused."""
        slot, path = message.slot, message.path
        mute = self._copies.mute(self._store.slot_state(slot))
        if mute is not None:
            return self._copies.refused(slot, mute)
        register = await self._store.load(slot, path)
        mute = self._copies.mute(self._store.slot_state(slot))
        if mute is not None:
            return self._copies.refused(slot, mute)
        actions = self._copies.slot(slot).forget(self._store.slot_state(slot), message, register)
        reply = await responded(partial(self._copies.carry_out, slot, path, actions))
        if isinstance(reply, Done):
            self._copies.on_decided(slot, path)
        return reply
