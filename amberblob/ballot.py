"""Ballots, and what one replica's register holds.

A ballot is unique per attempt (its last part is the ULID of the operation that tries), so a coordinator
keeps nothing durable: CASPaxos, Rystsov 2018, arXiv 1802.07000.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from amberblob.limits import NUMBER_MAX, SLOT_COUNT_MAX, VERSION_MAX
from amberblob.manifest import Record

Number = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
"""A count or an epoch, as a peer may send it: what is beyond cannot be written down or counted on from."""

Slot = Annotated[int, msgspec.Meta(ge=0, lt=SLOT_COUNT_MAX)]
VersionNumber = Annotated[int, msgspec.Meta(ge=0, le=VERSION_MAX)]


class Ballot(msgspec.Struct, gc=False, frozen=True, order=True, array_like=True):
    """(epoch, counter, coordinator, attempt), compared in this order."""

    epoch: Number
    counter: Number
    coordinator: str
    attempt: str

    def __str__(self) -> str:
        return f"{self.epoch}.{self.counter}.{self.coordinator}.{self.attempt}"


BALLOT_ZERO = Ballot(0, 0, "", "")


def floor_ballot(epoch: int, counter: int) -> Ballot:
    """The highest ballot of a counter: a promise or accept must lie above it. (``~`` sorts after every node id.)"""
    return Ballot(epoch, counter, "~", "~")


class Register(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """What one replica accepted for a path.

    Attributes:
        accepted: the ballot of the newest accepted record; None when nothing was.
        record: that record.
        chosen: whether it is known here to be chosen. False does not mean that it is not.
    """

    accepted: Ballot | None = None
    record: Record | None = None
    chosen: bool = False


EMPTY_REGISTER = Register()


class SlotState(msgspec.Struct, gc=False, frozen=True):
    """What one replica keeps per slot, beside its registers (``slot_meta``).

    Attributes:
        slot: its number.
        incarnation: names this copy of the slot's state; a lost or rebuilt database has a new one, and is
            no voter until it was synced.
        epoch: the highest route epoch seen.
        ballot_floor: ballots at or below were garbage collected; nothing at or below is ever taken again.
        version_floor: versions at or below were given before; new ones are greater.
        promise_ceiling: promises may have been given up to this counter.
        synced_epoch: the epoch in which this copy was last filled from a majority; 0: never. A copy that joined its
            slot in a later epoch answers for nothing (rfc/0012).
    """

    slot: int
    incarnation: str
    epoch: int = 0
    ballot_floor: Ballot = BALLOT_ZERO
    version_floor: int = 0
    promise_ceiling: int = 0
    synced_epoch: int = 0
