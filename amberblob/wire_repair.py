"""The messages by which replicas find out how they differ and mend it (rfc/0012). :mod:`amberblob.wire` is their codec.

Sets of slots travel as bitmaps: bit ``slot % 8`` of byte ``slot // 8``.
"""

from __future__ import annotations

import msgspec

from amberblob.ballot import Ballot, Number, Slot, VersionNumber
from amberblob.manifest import Record, Version, WriteMark
from amberblob.message import Message

# ---- requests


class CompareRoots(Message, frozen=True, array_like=True, kw_only=True, tag="R"):
    """The roots of these slots (a bitmap), including everything applied before the answer."""

    slots: bytes


class CompareBuckets(Message, frozen=True, array_like=True, kw_only=True, tag="K"):
    """The bucket digests of one slot, shortened."""

    slot: Slot


class PullDiffering(Message, frozen=True, array_like=True, kw_only=True, tag="N"):
    """What the asked copy has in these buckets that the asker lacks, or has otherwise.

    ``known`` pairs each bucket with what the asker has in it: path keys and states, 8 bytes each, alternating, ascending by key.
    ``after``: only paths above; the answers come in the order of paths.
    """

    slot: Slot
    known: dict[int, bytes]
    after: str = ""


class PullPaths(Message, frozen=True, array_like=True, kw_only=True, tag="A"):
    """Everything about these paths. ``below``: of their rows only those of lower versions (for a path with many)."""

    slot: Slot
    paths: tuple[str, ...]
    below: VersionNumber | None = None


class PullSlot(Message, frozen=True, array_like=True, kw_only=True, tag="U"):
    """A page of all that a copy has, for a copy that begins anew.

    The asked copy refuses an epoch below its own and adopts a higher one, durably, before it answers: after that nothing
    becomes chosen by its vote in an older epoch. Only a voter that is synced answers.
    """

    slot: Slot
    epoch: Number
    after: str = ""


class LogHeads(Message, frozen=True, array_like=True, kw_only=True, tag="V"):
    """Where the commit logs of these slots (a bitmap) end."""

    slots: bytes


class ReadLog(Message, frozen=True, array_like=True, kw_only=True, tag="W"):
    """What became chosen in a slot after ``after``, in order, at most ``limit`` lines."""

    slot: Slot
    incarnation: str
    after: Number
    limit: Number = 1000


class ForgetStub(Message, frozen=True, array_like=True, kw_only=True, tag="F"):
    """The stub of a deleted path is held by every voter and may go: :class:`amberblob.mutations.Forgotten`."""

    slot: Slot
    path: str
    epoch: Number
    incarnation: str
    ballot: Ballot
    version_max: VersionNumber


class AskHealth(Message, frozen=True, array_like=True, kw_only=True, tag="T"):
    """How are your copies? ``heal``: and compare them now with all others. ``first``: only slots from this number on."""

    heal: bool = False
    first: Slot = 0


class AskCopies(Message, frozen=True, array_like=True, kw_only=True, tag="J"):
    """How far are your copies of these slots (a bitmap)? Asked by who moves slots. What was applied before is in the answer."""

    slots: bytes


class LookAtPath(Message, frozen=True, array_like=True, kw_only=True, tag="X"):
    """A reader saw that the asked copy lacks something of this path that others have: mend it. Answered by Done, at once."""

    slot: Slot
    path: str


# ---- answers


class RootsReply(Message, frozen=True, array_like=True, kw_only=True, tag="1"):
    """32 bytes for each slot that was asked for, ascending. ``without``: bitmap of slots without a copy that counts; empty: none."""

    roots: bytes
    without: bytes = b""


class BucketsReply(Message, frozen=True, array_like=True, kw_only=True, tag="2"):
    """256 times the first 8 bytes of a bucket's digest."""

    incarnation: str
    sums: bytes


class PathItem(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """Everything that a copy knows to be chosen of one path.

    Attributes:
        ballot, record, chosen: the register. If it is not known to be chosen, only its ballot is told and
            ``record`` is None.
        rows: chosen versions, newest first.
        writes: what write ids did, as far back as the copy remembers.
        more_below: there are more rows, below this version; None: these are all.
    """

    path: str
    ballot: Ballot | None
    record: Record | None
    chosen: bool
    rows: tuple[Version, ...]
    writes: tuple[WriteMark, ...]
    more_below: VersionNumber | None = None


class ItemsReply(Message, frozen=True, array_like=True, kw_only=True, tag="3"):
    """Paths, ascending. ``next_after``: more is to be asked for from there; None: these are all."""

    incarnation: str
    epoch: Number
    items: tuple[PathItem, ...]
    ballot_floor: Ballot
    version_floor: VersionNumber
    next_after: str | None = None


class HeadsReply(Message, frozen=True, array_like=True, kw_only=True, tag="4"):
    """8 bytes (little-endian) for each slot that was asked for, ascending; ``incarnations`` as in ScanReply."""

    incarnation: str
    heads: bytes
    incarnations: dict[int, str]


class LogLine(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """A record that became known to be chosen."""

    seq: Number
    path: str
    revision: Number


class LogReply(Message, frozen=True, array_like=True, kw_only=True, tag="5"):
    """``gap``: the log was cut or is another copy's, so that lines before these are missing: compare instead."""

    incarnation: str
    lines: tuple[LogLine, ...]
    gap: bool = False


class CopyState(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """One copy, whether or not a route names it.

    Attributes:
        epoch: the highest that it has seen; ``synced_epoch``: in which it was last filled from a majority.
        objects: paths with a record.
        wanted: versions whose bytes are not all here, ``wanted_bytes`` their size.
        undecided: records that are not known to be chosen.
    """

    slot: Slot
    incarnation: str
    epoch: Number
    synced_epoch: Number
    objects: int
    wanted: int
    wanted_bytes: int
    undecided: int


class CopiesReply(Message, frozen=True, array_like=True, kw_only=True, tag="7"):
    """The copies of the slots that were asked for, ascending; slots of which nothing was ever here are told too."""

    copies: tuple[CopyState, ...]


class SlotHealth(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """One copy of a slot.

    Attributes:
        slot: its number.
        root: 32 bytes; of everything that is in its database.
        objects: paths with a record.
        undecided: records that are not known to be chosen.
        wanted: versions whose bytes are not all here, ``wanted_bytes`` their size.
        damaged: of those, how many were here and failed their hash.
        unsynced: it has no vote before it was filled from a majority.
        compared_ms: when it was last known to lack nothing that another voter had; 0: never since the start.
        scrubbed_ms: when it was last read and checked as a whole; 0: never.
        unrecoverable: of the wanted, those of which no replica could give some bytes when last asked.
        moving: it is not one of the voters yet (a learner, or of the new set only while the slot moves): what it lacks is on its way.
        evicted, evicted_bytes: versions that live by their archive rows, and their size. Nothing is missing of them.
    """

    slot: Slot
    root: bytes
    objects: int
    undecided: int
    wanted: int
    wanted_bytes: int
    damaged: int
    unsynced: bool
    compared_ms: int
    scrubbed_ms: int
    unrecoverable: int = 0
    moving: bool = False
    evicted: int = 0
    evicted_bytes: int = 0


class HealthReply(Message, frozen=True, array_like=True, kw_only=True, tag="6"):
    """A node's copies, ascending by slot. ``received_bytes`` (since its start) grows with what it fetched for repair.

    ``now_ms`` is the node's wall clock, by which the times in ``slots`` are told.
    """

    now_ms: int
    slots: tuple[SlotHealth, ...]
    received_bytes: int
    unrecoverable: int = 0
    """Versions of which no replica could give some bytes when last asked; of all its slots, also of those on other pages."""
    more: bool = False
    """There are more slots than fit a frame: ask again from the one after the last."""
    full: bool = False
    """Its disk refuses new bytes: nothing is mended there before there is room."""


RepairRequest = (
    CompareRoots
    | CompareBuckets
    | PullDiffering
    | PullPaths
    | PullSlot
    | LogHeads
    | ReadLog
    | ForgetStub
    | AskHealth
    | LookAtPath
    | AskCopies
)
RepairReply = RootsReply | BucketsReply | ItemsReply | HeadsReply | LogReply | HealthReply | CopiesReply


def bitmap_of(slots: set[int] | frozenset[int] | list[int] | tuple[int, ...]) -> bytes:
    """The bitmap of a set of slots."""
    if not slots:
        return b""
    data = bytearray(max(slots) // 8 + 1)
    for slot in slots:
        data[slot // 8] |= 1 << slot % 8
    return bytes(data)


def slots_in(bitmap: bytes) -> list[int]:
    """The slots of a bitmap, ascending."""
    return [at * 8 + bit for at, byte in enumerate(bitmap) if byte for bit in range(8) if byte >> bit & 1]
