"""What a mutation does to a register, and what the listing shows of one. Pure; every implementation uses it.

Memory and database must come to the same register, whichever applies a mutation first; so there is one rule.
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from amberblob.ballot import BALLOT_ZERO, Ballot, Register, SlotState
from amberblob.manifest import Record
from amberblob.mutations import Accepted, Chosen, EpochSeen, Forgotten, Installed, Reserved, Synced
from amberblob.wire import ScanEntry


def accept(register: Register, mutation: Accepted) -> Register:
    """The register after ``mutation``: replaced unless it holds something of a higher ballot."""
    if register.accepted is None or mutation.ballot > register.accepted:
        return Register(mutation.ballot, mutation.record, False)
    if mutation.ballot == register.accepted and not register.chosen:
        return Register(mutation.ballot, mutation.record, False)
    return register


def choose(register: Register, mutation: Chosen) -> Register:
    """The register after ``mutation``: marked when it holds that ballot, installed when the record is newer."""
    if register.accepted == mutation.ballot:
        return register if register.chosen else Register(register.accepted, register.record, True)
    if mutation.record is None:
        return register
    if register.accepted is None or mutation.ballot > register.accepted:
        return Register(mutation.ballot, mutation.record, True)
    return register


def chosen_record(register: Register, mutation: Chosen) -> Record | None:
    """The record that ``mutation`` says is chosen, given the register before it; None: nothing is known of it."""
    if register.accepted == mutation.ballot:
        return register.record
    return mutation.record


def install(register: Register, mutation: Installed) -> Register:
    """The register after ``mutation``: as :func:`choose`, and with ``replace`` a record that failed its check gives way.

    The ballot never goes down: a chosen record may have been accepted here again above the ballot that is told.
    """
    ballot, record, held = mutation.ballot, mutation.record, register.record
    if ballot is None or record is None:
        return register
    if mutation.replace and register.accepted is not None and held is not None and held != record:
        same_revision = register.chosen and held.revision == record.revision
        if same_revision or register.accepted == ballot:
            return Register(max(register.accepted, ballot), record, True)
    return choose(register, Chosen(mutation.slot, mutation.path, ballot, record))


def forget(register: Register, mutation: Forgotten) -> bool:
    """Whether the register is the stub that ``mutation`` names, and goes."""
    record = register.record
    if record is None or not register.chosen or register.accepted != mutation.ballot:
        return False
    return record.head is None and not record.live


def change_slot(state: SlotState, mutation: Reserved | EpochSeen | Synced | Forgotten) -> SlotState:
    """The slot's own state after ``mutation``. Nothing in it ever goes down."""
    match mutation:
        case Reserved():
            return replace(state, promise_ceiling=max(state.promise_ceiling, mutation.ceiling))
        case EpochSeen():
            return replace(state, epoch=max(state.epoch, mutation.epoch))
        case Synced():
            is_own = mutation.incarnation in ("", state.incarnation)
            return replace(
                state,
                epoch=max(state.epoch, mutation.epoch),
                synced_epoch=max(state.synced_epoch, mutation.epoch if is_own else 0),
                ballot_floor=max(state.ballot_floor, mutation.ballot_floor),
                version_floor=max(state.version_floor, mutation.version_floor),
            )
        case Forgotten():
            return replace(
                state,
                ballot_floor=max(state.ballot_floor, mutation.ballot),
                version_floor=max(state.version_floor, mutation.version_max),
            )
        case _:
            assert_never(mutation)


def scan_entry(slot: int, path: str, register: Register) -> ScanEntry:
    """What the listing index keeps of a register that holds a record."""
    record = register.record
    assert record is not None
    head = record.head
    ballot: Ballot = register.accepted or BALLOT_ZERO
    if head is None:
        return ScanEntry(
            path, slot, ballot, register.chosen, 0, "", 0, "", 0, record.changed_at_ms, "", record.version_max
        )
    return ScanEntry(
        path,
        slot,
        ballot,
        register.chosen,
        head.version,
        head.blob_id,
        head.size,
        head.etag,
        head.created_at_ms,
        record.changed_at_ms,
        head.content_type,
        record.version_max,
    )


def is_visible(entry: ScanEntry) -> bool:
    """Whether the entry can stand for its group in a listing: it has a live version, or may get one."""
    return entry.version > 0 or not entry.chosen
