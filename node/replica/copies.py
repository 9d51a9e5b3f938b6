"""The copies on one disk: which of them have a voice, what the others answer instead, and how an answer becomes durable."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from amberblob.ballot import Ballot, Register, SlotState
from amberblob.errors import DiskFailed
from amberblob.wire import Done, RefusalReason, Refused, Reply
from chunkstore.interface import ReplicaStore
from node.protocol.replica import Action, Persist, ReplicaSlot
from node.transport.interface import Respond

ROUTE_POLL_S = 0.02
ROUTE_LOOKS_MAX = 50
"""How often, and how many times, a copy that has no voice by this node's route looks for the newer one that it was asked by."""


def _ignore(slot: int, path: str) -> None:
    """Nobody wants to know."""


class Copies:
    """What every operation on the copies stands on, and what this node's own coordinator asks of them.

    Args:
        store: the disk.
        mute: why the copy of this state has no voice here; None: it has one (:meth:`node.routing.Routing.mute`).
        epoch_of: the epoch of a slot's newest route here, 0 without one (:meth:`node.routing.Routing.epoch`).

    Attributes:
        on_undecided: called with (slot, path) whenever a record was accepted here and is not known to be chosen.
        on_decided: called when it is.
        served: grows with everything that is done here for clients, of this node's or another's.
    """

    def __init__(
        self,
        store: ReplicaStore,
        *,
        mute: Callable[[SlotState], RefusalReason | None],
        epoch_of: Callable[[int], int],
    ) -> None:
        self.on_undecided: Callable[[int, str], None] = _ignore
        self.on_decided: Callable[[int, str], None] = _ignore
        self.served = 0
        self.mute = mute
        self._store = store
        self._epoch_of = epoch_of
        self._slots: dict[int, ReplicaSlot] = {}

    def slot(self, slot: int) -> ReplicaSlot:
        """The voting state of a slot, made on first use."""
        found = self._slots.get(slot)
        if found is None:
            found = self._slots[slot] = ReplicaSlot(self._store.slot_state(slot))
        return found

    def counter(self, slot: int) -> int:
        """The highest ballot counter that was met in the slot; where a coordinator here begins."""
        return self.slot(slot).counter_seen

    def met_counter(self, slot: int, counter: int) -> None:
        """A coordinator here met this counter."""
        voting = self.slot(slot)
        voting.counter_seen = max(voting.counter_seen, counter)

    def promises(self, slot: int, path: str, ballot: Ballot) -> bool:
        """Whether this node has no copy of the slot that counts, or its copy promised this ballot last and has room for more.

        Full disks come together: a PREPARE is refused and nothing was sent, a COMMIT has an unknown outcome.
        """
        if self.mute(self._store.slot_state(slot)) is not None:
            return True
        return not self._store.full and self.slot(slot).promises(path, ballot)

    def peek(self, slot: int, path: str) -> Register | None:
        """What the own register holds, if that is in memory; it may not be durable yet."""
        return self._store.peek(slot, path) if self.mute(self._store.slot_state(slot)) is None else None

    # ---- copies without a voice

    def refused(self, slot: int, reason: RefusalReason, detail: str = "") -> Refused:
        """A refusal, as the copy's state is now."""
        state = self._store.slot_state(slot)
        return Refused(
            incarnation=state.incarnation, reason=reason, ballot=state.ballot_floor, epoch=state.epoch, detail=detail
        )

    def muted(self, slot: int, epoch: int) -> Refused | None:
        """The refusal of a copy that has no voice, to a request of this epoch; None: it has one.

        Who goes by an older route than this node's is told so, and not that the copy does not count: it comes again with the newer one.
        """
        state = self._store.slot_state(slot)
        mute = self.mute(state)
        if mute is None:
            return None
        known = self._epoch_of(slot)
        if epoch < known:
            return Refused(
                incarnation=state.incarnation, reason="epoch", ballot=state.ballot_floor, epoch=max(known, state.epoch)
            )
        return self.refused(slot, mute)

    def lags(self, slot: int, epoch: int) -> bool:
        """Whether the copy has no voice by a route that is older than the asker's: by that one it may have."""
        return epoch > self._epoch_of(slot) and self.mute(self._store.slot_state(slot)) is not None

    async def catch_up(self, slot: int, epoch: int) -> None:
        """Wait a moment for the route that the asker goes by. The registry tells every node, each at its own time."""
        for _ in range(ROUTE_LOOKS_MAX):
            if not self.lags(slot, epoch):
                return
            await asyncio.sleep(ROUTE_POLL_S)

    def enter(self, slot: int, epoch: int) -> Refused | None:
        """Why a question of this epoch is not answered here. A higher epoch than the copy's is adopted first.

        Nothing may be awaited between this and the look at the register: what an older epoch is told must be from
        before a newer one was. And the answer must wait for the register's position, which then is the epoch's too.
        """
        muted = self.muted(slot, epoch)
        if muted is not None:
            return muted
        action = ReplicaSlot.enter(self._store.slot_state(slot), slot, epoch)
        if action is None:
            return None
        if not isinstance(action, Persist):
            return self.refused(slot, "epoch")
        try:
            self._store.apply(action.mutation)
        except DiskFailed as error:
            return self.refused(slot, "disk-failed", error.detail)
        return None

    async def stage_refused(self, slot: int, epoch: int) -> Refused | None:
        """Why nothing may be staged in the slot by that epoch's route; None: it may."""
        await self.catch_up(slot, epoch)
        muted = self.muted(slot, epoch)
        # One that was left behind by a route that the sender has not seen yet takes the bytes: they are fetched from here then.
        return None if muted is None or muted.reason == "epoch" else muted

    # ---- answers

    def carry_out(self, slot: int, path: str, actions: list[Action], respond: Respond) -> None:
        """Apply, and respond once all that the register and its slot say is durable."""
        reply: Reply = Done()
        try:
            for action in actions:
                if isinstance(action, Persist):
                    self._store.apply(action.mutation)
                else:
                    reply = action.reply
        except DiskFailed as error:
            respond(self.refused(slot, "disk-failed", error.detail))
            return
        self.respond_durably(slot, path, reply, respond)

    def respond_durably(self, slot: int, path: str, reply: Reply, respond: Respond) -> None:
        """Respond once all that the register and its slot say is durable, or that the disk failed."""
        position = self._store.position(slot, path)
        if not position:
            respond(reply)
            return

        def durable(error: DiskFailed | None) -> None:
            respond(reply if error is None else self.refused(slot, "disk-failed", error.detail))

        self._store.when_durable(position, durable)
