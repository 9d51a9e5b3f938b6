"""The messages between nodes and their one codec (MessagePack by msgspec).

Requests and answers are frozen structs, told apart by a tag. Every request about a path bears the slot and
the route's epoch; every answer bears the incarnation of the copy that gave it, so that a coordinator counts
only copies that the route table names as voters.

Bodies do not travel in messages (but for inline ones): they follow a request as data frames on its stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from amberblob.archives import ArchivedChunk
from amberblob.ballot import Ballot, Number, Slot, VersionNumber
from amberblob.manifest import ChunkRef, Record, Version, WriteMark
from amberblob.message import Message
from amberblob.wire_archive import ArchiveReply, ArchiveRequest
from amberblob.wire_repair import RepairReply, RepairRequest


@dataclass(frozen=True, slots=True)
class WireVersions:
    """The wire versions that a node speaks: every one from ``oldest`` to ``newest``."""

    oldest: int
    newest: int

    def __str__(self) -> str:
        if self.oldest == self.newest:
            return f"wire version {self.newest}"
        return f"wire versions {self.oldest} to {self.newest}"

    def common(self, other: WireVersions) -> int | None:
        """The newest version that both speak; None when there is none."""
        newest = min(self.newest, other.newest)
        return newest if newest >= max(self.oldest, other.oldest) else None


WIRE_VERSIONS = WireVersions(1, 3)
"""What this software speaks (rfc/0015).

1: the first. 2: introductions tell a range of versions, and :data:`SINCE` says which requests may be sent.
3: the archive (rfc/0016).
"""

SINCE: Mapping[str, int] = {
    "AskCopies": 2,
    "StageArchived": 3,
    "ArchiveHeads": 3,
    "ReadArchived": 3,
    "AskArchived": 3,
    "FindArchived": 3,
    "CondemnObjects": 3,
    "ReprieveObjects": 3,
    "ArchiveJob": 3,
    "ArchiveInfo": 3,
    "InstallRows": 3,
    "ObjectUses": 3,
}
"""Requests that not every spoken version knows: the name of the message's class, and the first version with it.

They are not sent to a peer with which an older version was agreed on. A field at the end of a message, with a default that says
the same as its absence, needs no entry and no new version: older nodes skip it, newer ones fill it in.
"""

RefusalReason = Literal[
    "ballot", "epoch", "aborted", "bytes-missing", "not-a-member", "unsynced", "disk-full", "disk-failed"
]
"""Why a replica refused a PREPARE, COMMIT or staging.

ballot: it promised, or has a floor, at or above. epoch: the sender's route is older. aborted: the blob was
given up. bytes-missing: the record's bytes are not durable there. not-a-member: the node holds no copy of
that slot. unsynced: its copy is new and was not filled from a majority yet. disk-full, disk-failed: what they say.
"""


# ---- requests about one path


class Prepare(Message, frozen=True, array_like=True, kw_only=True, tag="P"):
    """Phase one: promise ``ballot`` for ``path`` and tell what was accepted."""

    slot: Slot
    path: str
    epoch: Number
    ballot: Ballot
    body_bytes: int = 0
    """What an inline body will need on the disk: refused now if the disk is full, before anything is decided."""
    write_id: str = ""
    """The replica tells what this write did, if its own record's short list does not reach back. Empty: do not look."""
    repeated: bool = False
    """A COMMIT of this write may have gone out before: the replica looks in any case. The path may be new by now: deleted and
    forgotten in between. (Of all writes of new paths next to none was sent before, and looking costs a query.)"""


class Commit(Message, frozen=True, array_like=True, kw_only=True, tag="C"):
    """Phase two: accept ``record`` at ``ballot``.

    ``body`` are the bytes of an inline head. ``holders`` name nodes from which missing bytes can be pulled
    before accepting (set when somebody else's undecided record is finished); empty means refuse when missing.
    ``next`` is to be promised with the accept, for the coordinator's next write of the path (rfc/0009).
    """

    slot: Slot
    path: str
    epoch: Number
    ballot: Ballot
    record: Record
    body: bytes | None = None
    holders: tuple[str, ...] = ()
    next: Ballot | None = None


class Learnt(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """One record that became chosen. ``record`` is given to replicas that may have missed the accept."""

    slot: Slot
    path: str
    epoch: Number
    ballot: Ballot
    record: Record | None = None
    holders: tuple[str, ...] = ()


class Learn(Message, frozen=True, array_like=True, kw_only=True, tag="L"):
    """Several chosen records at once; answered by :class:`Done`."""

    items: tuple[Learnt, ...]


class Query(Message, frozen=True, array_like=True, kw_only=True, tag="Q"):
    """What does the register of ``path`` hold? ``known``: the record of this ballot need not be told."""

    slot: Slot
    path: str
    epoch: Number
    known: Ballot | None = None


class QueryHistory(Message, frozen=True, array_like=True, kw_only=True, tag="H"):
    """Rows of ``path`` that are known to be chosen, newest first: below a version, or just one version."""

    slot: Slot
    path: str
    epoch: Number
    version: VersionNumber | None = None
    below: VersionNumber | None = None
    limit: Number = 1000


class QueryScan(Message, frozen=True, array_like=True, kw_only=True, tag="S"):
    """One page of the node's listing index: registers whose path begins with ``prefix`` and is ``>= start``.

    With a ``delimiter``, of each group of paths that share the text up to the first delimiter after the
    prefix only the first live one is told (as a witness). ``limit`` counts entries. Without ``dead`` a node may leave
    out the paths of which it knows for certain that no version lives.
    """

    prefix: str
    start: str
    delimiter: str
    limit: Number
    dead: bool = True


class Inspect(Message, frozen=True, array_like=True, kw_only=True, tag="I"):
    """Everything that this replica knows of one path, for ``explain``."""

    slot: Slot
    path: str


# ---- requests about bytes


class StageOpen(Message, frozen=True, array_like=True, kw_only=True, tag="O"):
    """Data frames with the blob's bytes follow on this stream, then :class:`StageClose`."""

    slot: Slot
    epoch: Number
    blob_id: str
    chunk_bytes: int
    size: int | None = None


class StageClose(Message, frozen=True, array_like=True, kw_only=True, tag="E"):
    """The bytes are complete: these are their chunks. Answered by :class:`StagedReply` once they are durable."""

    chunks: tuple[ChunkRef, ...]
    manifest_id: str | None
    """Set when there are too many chunks for a message: they follow as data frames holding the manifest file."""


class Discard(Message, frozen=True, array_like=True, kw_only=True, tag="D"):
    """Give up a staged blob that nothing refers to."""

    slot: Slot
    blob_id: str


class ReadChunk(Message, frozen=True, array_like=True, kw_only=True, tag="B"):
    """The bytes of a chunk follow the :class:`Done` answer as data frames, verified. ``repair``: no client waits for them."""

    slot: Slot
    blob_id: str
    chunk: ChunkRef
    repair: bool = False


class ReadManifest(Message, frozen=True, array_like=True, kw_only=True, tag="M"):
    """The bytes of a manifest file follow the :class:`Done` answer as data frames, verified."""

    slot: Slot
    blob_id: str
    manifest_id: str


class ReadBlobs(Message, frozen=True, array_like=True, kw_only=True, tag="Y"):
    """The bytes of many small blobs of one chunk each, verified, for a copy that lacks them.

    They follow the :class:`Done` answer as data frames, in the form of :func:`pack_parts`; what is not here, or failed its
    hash, is left out.
    """

    slot: Slot
    blobs: tuple[tuple[str, ChunkRef], ...]


class Ping(Message, frozen=True, array_like=True, kw_only=True, tag="G"):
    """Are you there? Carries and returns the hybrid time."""

    now_ms: int


Request = (
    Prepare
    | Commit
    | Learn
    | Query
    | QueryHistory
    | QueryScan
    | Inspect
    | StageOpen
    | StageClose
    | Discard
    | ReadChunk
    | ReadManifest
    | ReadBlobs
    | Ping
    | RepairRequest
    | ArchiveRequest
)

BytesRequest = ReadChunk | ReadManifest | ReadBlobs
"""Those that are answered with bytes."""


# ---- answers


class Promised(Message, frozen=True, array_like=True, kw_only=True, tag="p"):
    """The ballot is promised. What was accepted, and what must stay above."""

    incarnation: str
    accepted: Ballot | None
    record: Record | None
    chosen: bool
    version_floor: int
    prior: WriteMark | None = None


class AcceptedReply(Message, frozen=True, array_like=True, kw_only=True, tag="a"):
    """Accepted and durable here. (Not yet chosen: that takes a majority.) ``promised``: so is what came as ``next``."""

    incarnation: str
    promised: bool = False


class Refused(Message, frozen=True, array_like=True, kw_only=True, tag="r"):
    """Not promised, not accepted, not staged. ``ballot`` is what must be exceeded; ``epoch`` the replica's."""

    incarnation: str
    reason: RefusalReason
    ballot: Ballot
    epoch: Number
    detail: str = ""


class RegisterReply(Message, frozen=True, array_like=True, kw_only=True, tag="g"):
    """The register, durable as told. ``record`` is left out when ``accepted`` is the ballot that the asker knows."""

    incarnation: str
    accepted: Ballot | None
    record: Record | None
    chosen: bool


class HistoryRow(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """One chosen version; ``tombstoned_at_ms`` as far as this replica knows (the newest record decides)."""

    version: Version
    tombstoned_at_ms: int | None


class HistoryReply(Message, frozen=True, array_like=True, kw_only=True, tag="h"):
    """Rows newest first, and the register at the same moment. ``more``: the page was full."""

    incarnation: str
    accepted: Ballot | None
    record: Record | None
    chosen: bool
    rows: tuple[HistoryRow, ...]
    more: bool


class ScanEntry(msgspec.Struct, gc=False, frozen=True, array_like=True):
    """One register in the listing index. ``version`` 0: no version lives (``blob_id`` and ``etag`` are empty)."""

    path: str
    slot: Slot
    ballot: Ballot
    chosen: bool
    version: VersionNumber
    blob_id: str
    size: int
    etag: str
    created_at_ms: int
    changed_at_ms: int
    content_type: str
    version_max: int


class ScanReply(Message, frozen=True, array_like=True, kw_only=True, tag="s"):
    """Entries in byte order of the path.

    ``next_start`` is where the following page begins, None at the end of the prefix. ``incarnations`` tells
    the copies whose state is in the page: slot to incarnation, for every slot that this node holds.
    ``incarnation`` is the disk's; slots that are not in ``incarnations`` bear it. ``epochs``: the slots that have seen a later epoch
    than the first, and which: who goes by an older route of such a slot may be asking the wrong copies.
    """

    incarnation: str
    entries: tuple[ScanEntry, ...]
    next_start: str | None
    incarnations: dict[int, str]
    epochs: dict[int, int] = msgspec.field(default_factory=dict)


class InspectReply(Message, frozen=True, array_like=True, kw_only=True, tag="i"):
    """A replica's view of one path. ``bytes_present`` pairs each row's version with "all", "some", "none", "damaged" or "archived"
    (the copy lives by its archive rows).

    ``more``: there are older rows that are not told. ``unsynced``: this copy has no voice; ``incarnation`` names it all the same.
    ``wanted``: versions whose bytes are to be fetched. ``archived``: by version, where the archive has chunks of it, of long ones not all.
    """

    incarnation: str
    accepted: Ballot | None
    record: Record | None
    chosen: bool
    rows: tuple[HistoryRow, ...]
    bytes_present: dict[int, str]
    disk: str
    more: bool = False
    detail: str = ""
    unsynced: bool = False
    wanted: tuple[VersionNumber, ...] = ()
    archived: dict[int, tuple[ArchivedChunk, ...]] = msgspec.field(default_factory=dict)


class StagedReply(Message, frozen=True, array_like=True, kw_only=True, tag="t"):
    """The blob's bytes are durable here and match the chunks."""

    incarnation: str


class Done(Message, frozen=True, array_like=True, kw_only=True, tag="d"):
    """It is done; the bytes asked for, if any, follow. ``now_ms`` is the answering node's hybrid time."""

    now_ms: int = 0
    size: int = 0


class Failed(Message, frozen=True, array_like=True, kw_only=True, tag="f"):
    """The request failed at the peer: an error of :mod:`amberblob.errors` by its code."""

    code: str
    detail: str


Reply = (
    Promised
    | AcceptedReply
    | Refused
    | RegisterReply
    | HistoryReply
    | ScanReply
    | InspectReply
    | StagedReply
    | Done
    | Failed
    | RepairReply
    | ArchiveReply
)

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Message) -> bytes:
    """One message as MessagePack."""
    return _encoder.encode(message)


def decode_request(data: bytes | memoryview) -> Request:
    """A request from a peer.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    try:
        return _request_decoder.decode(data)
    except UnicodeDecodeError as error:
        # For a text that is no UTF-8 msgspec raises an error that is not of its own tree.
        raise msgspec.DecodeError(str(error)) from error


def decode_reply(data: bytes | memoryview) -> Reply:
    """An answer from a peer.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    try:
        return _reply_decoder.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(str(error)) from error


_LACKING = 0xFFFF_FFFF
_LENGTH_BYTES = 4


def pack_parts(parts: Sequence[bytes | None]) -> bytes:
    """Several byte strings as one: the length of each (4 bytes, little-endian), then their bytes. None: it is lacking."""
    lengths = (_LACKING if part is None else len(part) for part in parts)
    head = b"".join(length.to_bytes(_LENGTH_BYTES, "little") for length in lengths)
    return b"".join([head, *(part for part in parts if part is not None)])


def unpack_parts(data: bytes | memoryview, count: int) -> list[bytes | None]:
    """What :func:`pack_parts` made of ``count`` parts. Raises ValueError."""
    at = count * _LENGTH_BYTES
    if len(data) < at:
        raise ValueError(f"{len(data)} bytes cannot tell of {count} parts")
    parts: list[bytes | None] = []
    for index in range(count):
        head = data[index * _LENGTH_BYTES : (index + 1) * _LENGTH_BYTES]
        length = int.from_bytes(head, "little")
        if length == _LACKING:
            parts.append(None)
            continue
        parts.append(bytes(data[at : at + length]))
        at += length
    if at != len(data):
        raise ValueError(f"{len(data)} bytes came where {at} were announced")
    return parts
