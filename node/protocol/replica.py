"""What one copy of a slot answers: promises, accepts, what it learns. Pure.

The theory in one paragraph. A register takes a ballot only above everything that it has promised or accepted
and above the slot's floors. Promises live in memory alone: before the first promise with a counter, a
*ceiling* at or above it is made durable (one entry per 4,096 counters), and a copy that starts anew refuses
everything up to its ceiling, which is at least what it may have promised. An accept is durable before it is
told. A record that adds a version is accepted only when its bytes are durable here. What is *learnt* to be
chosen may always be installed: a majority holds it already, so no promise given here can contradict it.

What is ugly: the table of promises is bounded, and when it overflows the oldest promises are folded into the
slot's floor. That refuses some ballots that could have been taken; their coordinators come again with a higher one.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from amberblob.ballot import BALLOT_ZERO, Ballot, Register, SlotState, floor_ballot
from amberblob.limits import PROMISE_RESERVE, PROMISES_IN_MEMORY_MAX
from amberblob.manifest import WriteMark
from amberblob.mutations import Accepted, Chosen, EpochSeen, Forgotten, Mutation, Reserved
from amberblob.wire import AcceptedReply, Commit, Done, Learnt, Prepare, Promised, RefusalReason, Refused, Reply
from amberblob.wire_repair import ForgetStub


class Persist(msgspec.Struct, frozen=True):
    """Apply this mutation; it is durable before any answer that follows it goes out."""

    mutation: Mutation


class Respond(msgspec.Struct, frozen=True):
    """Answer, once everything that the register and the slot say is durable."""

    reply: Reply


Action = Persist | Respond


class BytesHere(msgspec.Struct, frozen=True, kw_only=True):
    """What the disk has of the blob that a COMMIT adds: durable, or given up for good."""

    durable: bool
    aborted: bool = False


class ReplicaSlot:
    """The voting state of one copy of one slot. One per slot and process; not shared between threads."""

    def __init__(self, state: SlotState, *, promises_max: int = PROMISES_IN_MEMORY_MAX) -> None:
        self._promises: OrderedDict[str, Ballot] = OrderedDict()
        self._promises_max = promises_max
        # Whatever was promised before this process started lies at or below the ceiling.
        restart_floor = floor_ballot(state.epoch, state.promise_ceiling) if state.promise_ceiling else BALLOT_ZERO
        self._floor = max(state.ballot_floor, restart_floor)
        self.counter_seen = max(state.promise_ceiling, state.ballot_floor.counter)
        """The highest ballot counter met in this slot; a coordinator on this node starts above it."""

    def _bar(self, state: SlotState, path: str, register: Register) -> Ballot:
        """The ballot that a new promise has to exceed."""
        return max(
            self._floor, state.ballot_floor, self._promises.get(path, BALLOT_ZERO), register.accepted or BALLOT_ZERO
        )

    def _meet(self, ballot: Ballot) -> None:
        self.counter_seen = max(self.counter_seen, ballot.counter)

    def prepare(self, state: SlotState, message: Prepare, register: Register, prior: WriteMark | None) -> list[Action]:
        """Phase one. ``prior`` is what the disk remembers of the message's write id."""
        actions: list[Action] = []
        self._meet(message.ballot)
        if message.epoch < state.epoch or message.ballot.epoch != message.epoch:
            return [self._refuse(state, "epoch", self._bar(state, message.path, register))]
        bar = self._bar(state, message.path, register)
        if message.ballot <= bar:
            return [self._refuse(state, "ballot", bar)]
        if message.epoch > state.epoch:
            actions.append(Persist(EpochSeen(message.slot, message.epoch)))
        self._reserve(state, message.slot, message.ballot, actions)
        self._promise(message.path, message.ballot)
        actions.append(
            Respond(
                Promised(
                    incarnation=state.incarnation,
                    accepted=register.accepted,
                    record=register.record,
                    chosen=register.chosen,
                    version_floor=state.version_floor,
                    prior=prior,
                )
            )
        )
        return actions

    def _promise(self, path: str, ballot: Ballot) -> None:
        self._promises[path] = ballot
        self._promises.move_to_end(path)
        while len(self._promises) > self._promises_max:
            _, oldest = self._promises.popitem(last=False)
            self._floor = max(self._floor, oldest)

    def commit(self, state: SlotState, message: Commit, register: Register, here: BytesHere) -> list[Action]:
        """Phase two."""
        self._meet(message.ballot)
        bar = self._bar(state, message.path, register)
        if message.epoch < state.epoch or message.ballot.epoch != message.epoch:
            return [self._refuse(state, "epoch", bar)]
        if register.accepted == message.ballot:
            # A copy that merely learnt of the record has its ballot and not its bytes: that is no durable copy.
            if message.record.added is not None and not here.durable:
                return [self._refuse(state, "bytes-missing", bar)]
            still = message.next is not None and self._promises.get(message.path) == message.next
            return [Respond(AcceptedReply(incarnation=state.incarnation, promised=still))]
        promised = self._promises.get(message.path, BALLOT_ZERO)
        # What was promised before a stub was forgotten is still promised, so that its ballot alone would let it pass.
        forgotten = message.ballot <= state.ballot_floor
        if forgotten or message.ballot < bar or (message.ballot == bar and message.ballot != promised):
            return [self._refuse(state, "ballot", bar)]
        if message.record.added is not None:
            if here.aborted:
                return [self._refuse(state, "aborted", bar)]
            if not here.durable and message.body is None:
                return [self._refuse(state, "bytes-missing", bar)]
        actions: list[Action] = []
        if message.epoch > state.epoch:
            actions.append(Persist(EpochSeen(message.slot, message.epoch)))
        body = None if here.durable else message.body
        actions.append(Persist(Accepted(message.slot, message.path, message.ballot, message.record, body)))
        follows = message.next is not None and message.next > message.ballot and message.next.epoch == message.epoch
        if follows and message.next is not None:
            # As if a PREPARE had followed the accept: the answer to both is that this record is accepted.
            self._meet(message.next)
            self._reserve(state, message.slot, message.next, actions)
            self._promise(message.path, message.next)
        actions.append(Respond(AcceptedReply(incarnation=state.incarnation, promised=follows)))
        return actions

    def forget(self, state: SlotState, message: ForgetStub, register: Register) -> list[Action]:
        """The stub of a dead path goes: every voter holds it, so that nobody's vote can bring anything older back.

        Promises stay: a round that saw the stub may bring it back as a stub, and must not over what was written since.
        """
        self._meet(message.ballot)
        if message.incarnation != state.incarnation:
            return [self._refuse(state, "unsynced", message.ballot)]
        if message.epoch != (state.epoch or 1):
            return [self._refuse(state, "epoch", message.ballot)]
        # Nothing there: it was forgotten before, and the answer was lost.
        record = register.record
        if record is not None:
            if register.accepted != message.ballot or not register.chosen:
                return [self._refuse(state, "ballot", register.accepted or BALLOT_ZERO)]
            if record.head is not None or record.live or message.version_max < record.version_max:
                return [self._refuse(state, "ballot", message.ballot)]
        return [
            Persist(Forgotten(message.slot, message.path, message.ballot, message.version_max)),
            Respond(Done()),
        ]

    @staticmethod
    def enter(state: SlotState, slot: int, epoch: int) -> Action | None:
        """What a question of this epoch needs before its answer: nothing, a higher epoch made durable, or a refusal.

        A slot that never saw an epoch is in the first one, so that its first read costs no write.
        """
        known = state.epoch or 1
        if epoch == known:
            return None
        if epoch > known:
            return Persist(EpochSeen(slot, epoch))
        return Respond(
            Refused(incarnation=state.incarnation, reason="epoch", ballot=state.ballot_floor, epoch=state.epoch)
        )

    def promises(self, path: str, ballot: Ballot) -> bool:
        """Whether this ballot is what was promised last."""
        return self._promises.get(path) == ballot

    @staticmethod
    def _reserve(state: SlotState, slot: int, ballot: Ballot, actions: list[Action]) -> None:
        """A promise above the ceiling raises it first."""
        if ballot.counter > state.promise_ceiling:
            actions.append(Persist(Reserved(slot, ballot.counter + PROMISE_RESERVE)))

    def learn(self, state: SlotState, item: Learnt, register: Register) -> list[Action]:
        """A record became chosen. Nobody waits for the answer."""
        self._meet(item.ballot)
        if register.accepted == item.ballot:
            # Also below the floor: what is here was not collected, another path's stub was. A mark brings nothing back, and
            # without it the record would stay undecided here for ever, however often it is finished: a majority holds it.
            return [] if register.chosen else [Persist(Chosen(item.slot, item.path, item.ballot))]
        if item.record is None or item.ballot <= state.ballot_floor:
            return []
        return [Persist(Chosen(item.slot, item.path, item.ballot, item.record))]

    def _refuse(self, state: SlotState, reason: RefusalReason, bar: Ballot) -> Respond:
        return Respond(Refused(incarnation=state.incarnation, reason=reason, ballot=bar, epoch=state.epoch))
