"""The messages by which nodes tell each other of the archive (rfc/0016). :mod:`amberblob.wire` is their codec."""

from __future__ import annotations

from typing import Literal

from amberblob.archives import ArchivedBlob, ArchivedChunk, ArchiveLine
from amberblob.ballot import Number, Slot
from amberblob.manifest import Version, WriteMark
from amberblob.message import Message

ArchiveJobAction = Literal["start", "stop", "status"]

# ---- requests


class StageArchived(Message, frozen=True, array_like=True, kw_only=True, tag="ba"):
    """Note where the archive has chunks of a blob that nothing refers to yet; answered by StagedReply or Refused, when it is durable.

    May come several times for one blob, with other chunks each. ``evicted``: the bytes will not come at all, the rows stand for them.
    With ``manifest_id`` the copy fetches the manifest's bytes from the archive and keeps them before it answers.
    """

    slot: Slot
    epoch: Number
    blob_id: str
    chunks: tuple[ArchivedChunk, ...]
    evicted: bool = False
    manifest_id: str | None = None


class ArchiveHeads(Message, frozen=True, array_like=True, kw_only=True, tag="bb"):
    """The last ``seq`` of these slots' archive rows (a bitmap). Answered by HeadsReply."""

    slots: bytes


class ReadArchived(Message, frozen=True, array_like=True, kw_only=True, tag="bc"):
    """Archive rows of a slot above ``after``, ascending by ``seq``, at most ``limit``."""

    slot: Slot
    incarnation: str
    after: Number
    limit: Number = 1000


class AskArchived(Message, frozen=True, array_like=True, kw_only=True, tag="bd"):
    """What does the copy know of this blob's archive copies? Of so many chunks as fit a frame; ``chunk_ids``: only of these, empty: of all."""

    slot: Slot
    blob_id: str
    chunk_ids: tuple[str, ...] = ()


class FindArchived(Message, frozen=True, array_like=True, kw_only=True, tag="be"):
    """Of which of these chunks does the node know a place in the archive, in whatever slot? (What was not read back yet says so.)"""

    chunk_ids: tuple[str, ...]


class CondemnObjects(Message, frozen=True, array_like=True, kw_only=True, tag="bf"):
    """These objects are to be deleted: refuse their rows from now on. Those of which rows are here are refused."""

    names: tuple[str, ...]
    token: str
    """``<node id>/<ULID>``: who collects, and in which run."""


class ReprieveObjects(Message, frozen=True, array_like=True, kw_only=True, tag="bg"):
    """These are not deleted after all: forget the token. Empty ``names``: all that bear it. Answered by Done."""

    names: tuple[str, ...]
    token: str


class ArchiveJob(Message, frozen=True, array_like=True, kw_only=True, tag="bh"):
    """Start, stop, or tell of a job. ``request``: the JSON of :class:`node.archive.jobs.JobRequest` when it is to start."""

    action: ArchiveJobAction
    job: str = ""
    """ULID; empty with ``status``: all that are known."""
    request: bytes = b""


class ObjectUses(Message, frozen=True, array_like=True, kw_only=True, tag="bk"):
    """Do rows of the node name these objects, and how much of them? At most :data:`CONDEMN_MAX`. Answered by ObjectUsesReply."""

    names: tuple[str, ...]
    sizes: bool = False
    """Tell the bytes as well; that takes a while."""


class ArchiveInfo(Message, frozen=True, array_like=True, kw_only=True, tag="bi"):
    """How is your archive? Answered by ArchiveInfoReply."""


class InstallRows(Message, frozen=True, array_like=True, kw_only=True, tag="bj"):
    """Older versions of a path that was recovered from an archive, newest first, and what write ids did there.

    Another cluster had chosen them, and the path's record, which says which of them live, is chosen here. Their archive rows came
    by StageArchived. Answered by StagedReply, when they are durable, or Refused.
    """

    slot: Slot
    epoch: Number
    path: str
    rows: tuple[Version, ...]
    writes: tuple[WriteMark, ...] = ()


# ---- answers


class ArchivedLines(Message, frozen=True, array_like=True, kw_only=True, tag="b1"):
    """Rows, ascending by seq; ``more``: there are further ones. ``incarnation``: of the copy that told them."""

    incarnation: str
    lines: tuple[ArchiveLine, ...]
    more: bool = False


class ArchivedBlobReply(Message, frozen=True, array_like=True, kw_only=True, tag="b2"):
    """None: the copy knows of none."""

    incarnation: str
    blob: ArchivedBlob | None


class FoundArchived(Message, frozen=True, array_like=True, kw_only=True, tag="b3"):
    """Those that are known, in any order."""

    chunks: tuple[ArchivedChunk, ...]


class Condemned(Message, frozen=True, array_like=True, kw_only=True, tag="b4"):
    """Rows of ``refused`` are here, or on their way from here; the others bear the token now, durably.

    ``marks``: the file in which that is written down. One that was lost and begun anew has another name.
    """

    refused: tuple[str, ...]
    marks: str = ""


class ArchiveJobReply(Message, frozen=True, array_like=True, kw_only=True, tag="b5"):
    """The node's part of the jobs: JSON of a list of :class:`node.archive.jobs.JobStatus`."""

    jobs: bytes


class ObjectUsesReply(Message, frozen=True, array_like=True, kw_only=True, tag="b7"):
    """Those of the objects that rows of the node name: in any of its slots.

    ``sizes``: of each, in their order, the bytes of frames, with their entries in the index, that rows of the slots name which the node looks after;
    empty if not asked for.
    """

    used: tuple[str, ...]
    sizes: tuple[Number, ...] = ()


class ArchiveInfoReply(Message, frozen=True, array_like=True, kw_only=True, tag="b6"):
    """JSON of :class:`node.archive.status.ArchiveNodeStatus`."""

    info: bytes


ArchiveRequest = (
    StageArchived
    | ArchiveHeads
    | ReadArchived
    | AskArchived
    | FindArchived
    | CondemnObjects
    | ReprieveObjects
    | ArchiveJob
    | ArchiveInfo
    | InstallRows
    | ObjectUses
)
ArchiveReply = (
    ArchivedLines | ArchivedBlobReply | FoundArchived | Condemned | ArchiveJobReply | ArchiveInfoReply | ObjectUsesReply
)

FIND_ARCHIVED_MAX = 4096
"""Chunk ids in one :class:`FindArchived`: their rows are below half a frame."""
ARCHIVED_LINES_MAX = 4096
"""Rows in one answer or one :class:`StageArchived`."""
CONDEMN_MAX = 1000
"""Names in one :class:`CondemnObjects`, :class:`ReprieveObjects` or :class:`ObjectUses`."""
