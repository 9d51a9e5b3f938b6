"""What a node asks of a disk. One contract suite (tests/contract) runs on every implementation.

Two rules carry the rest:

* **Memory first, disk before the answer.** :meth:`ReplicaStore.apply` changes what :meth:`peek` and
  :meth:`slot_state` say at once, and returns the journal position of the change. Nobody outside of this node
  may be told of a state before :meth:`ReplicaStore.durable` has returned for its position: otherwise a
  reader could count an accept that a power cut takes back.
* **Bytes before references.** A blob is DURABLE only after its files and folders are synced and renamed
  into place; only then may a record refer to it.

All methods belong to the event loop's thread; none blocks it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from amberblob.archives import ArchivedBlob, ArchiveLine
from amberblob.ballot import Register, SlotState
from amberblob.errors import DiskFailed
from amberblob.manifest import ChunkRef, Record, Version, WriteMark
from amberblob.mutations import Mutation
from amberblob.wire import HistoryRow, ScanEntry
from amberblob.wire_repair import LogLine, PathItem
from chunkstore.content import Content

Buffer = bytes | bytearray | memoryview


class BlobState(enum.Enum):
    """What a disk has of a blob's bytes."""

    ABSENT = "absent"
    """Nothing is known of it, or its bytes are incomplete."""
    DURABLE = "durable"
    """All bytes are held: on the disk, staged or referred to, or by verified archive rows of a blob that is evicted (rfc/0016)."""
    ABORTED = "aborted"
    """It was given up: nothing may refer to it any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A version whose bytes are not all here.

    Attributes:
        damaged: something of it was here and failed its hash.
    """

    slot: int
    path: str
    version: Version
    damaged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotTally:
    """What memory knows of a slot's database; what is not applied yet is not in it.

    Attributes:
        root: the sum of its digests, 32 bytes.
        objects: paths with a record.
        wanted, wanted_bytes, damaged: see :class:`amberblob.wire_repair.SlotHealth`.
        log_head: number of the last line of its commit log; 0: none yet.
        archive_head: ``seq`` of the last archive row that came or changed; 0: none yet. archived_rows: how many there are.
        archive_staged: rows that wait for their blob to be referred to.
        evicted, evicted_bytes: versions that live by their archive rows, and their size.
    """

    root: bytes
    objects: int = 0
    wanted: int = 0
    wanted_bytes: int = 0
    damaged: int = 0
    log_head: int = 0
    archive_head: int = 0
    archived_rows: int = 0
    archive_staged: int = 0
    evicted: int = 0
    evicted_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """One path's rows for retention: ``(version, created_at_ms, tombstoned_at_ms)``, oldest first, and its record if that is chosen."""

    path: str
    record: Record | None
    rows: tuple[tuple[int, int, int | None], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedPage:
    """Some paths of a slot, read and checked by :meth:`ReplicaStore.check_page`.

    Attributes:
        next_after: where the next page begins; None: the slot is done.
        wrong: paths whose rows or record are not what their digest was made of; what is right is to be pulled with ``replace``.
        versions: the rows of all of them, whose bytes are to be checked.
    """

    next_after: str | None
    wrong: tuple[str, ...]
    versions: tuple[tuple[str, Version], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveView:
    """One chosen version, for who decides what is archived and evicted.

    Attributes:
        is_head: it is what a GET of the path serves now, as far as this copy knows.
        tombstoned_at_ms: None: it lives.
        uploaded, verified: how many of its chunks (with its manifest) have a row that is not damaged, and a verified one.
        chunk_count: how many chunks it has, with its manifest, each id once, as far as the rows tell (a manifest is not read for this:
            then it is ``version.chunk_count + 1``, which counts a chunk that occurs twice twice).
        evicted: it lives by its rows. wanted: its bytes are not all here, and it is not evicted.
    """

    path: str
    version: Version
    is_head: bool
    tombstoned_at_ms: int | None
    uploaded: int
    verified: int
    chunk_count: int
    evicted: bool
    wanted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectUse:
    """What a slot's rows say of one object in the archive: how many name it, and the bytes of their frames."""

    rows: int
    size_bytes: int


class Staging(Protocol):
    """One blob on its way in: the checked entrance for bytes. Exactly one of finish and abort ends it."""

    async def write(self, data: Buffer) -> None:
        """Append bytes; returns when they were taken over (bounded memory), not when durable.

        Raises:
            DiskFull: free space would fall below the reserve.
            DiskFailed: the disk takes no more writes.
        """
        ...

    async def finish(self, chunks: tuple[ChunkRef, ...], manifest: bytes | None) -> None:
        """Check the bytes against ``chunks``, make all durable, rename into place, and say STAGED.

        Raises:
            DigestMismatch: the bytes are not these chunks; nothing is left behind.
            DiskFull, DiskFailed: as for write; nothing is left behind.
        """
        ...

    async def abort(self) -> None:
        """Remove what was written. May be called at any time, also twice."""
        ...


class ScanPage(Protocol):
    """A page of the listing index."""

    @property
    def entries(self) -> Sequence[ScanEntry]: ...
    @property
    def next_start(self) -> str | None: ...


class ReplicaStore(Protocol):
    """One disk: registers, history, listing, bytes."""

    @property
    def disk_id(self) -> str:
        """ULID of the disk; the incarnation of every slot that was never lost here."""
        ...

    @property
    def failed(self) -> str | None:
        """Why the disk takes no more writes; None while it is well."""
        ...

    @property
    def full(self) -> bool:
        """Whether new bytes are refused for want of space."""
        ...

    def counts(self) -> dict[str, int]:
        """What the disk counted since it was opened, for the metrics: name to number, each only grows."""
        ...

    # -- registers

    def slot_state(self, slot: int) -> SlotState:
        """The slot's own state; a slot that was never written has the defaults and the disk's incarnation."""
        ...

    def incarnations(self) -> dict[int, str]:
        """The slots whose incarnation is not :attr:`disk_id` (their database was lost and is being rebuilt)."""
        ...

    def peek(self, slot: int, path: str) -> Register | None:
        """The register as of now, if it is in memory (EMPTY_REGISTER when the path is known to be new); else None.

        The answer holds until the next await. A path that was known to be new may be unknown later: then load it.
        """
        ...

    async def load(self, slot: int, path: str) -> Register:
        """The register as of now; on return it is in memory, and :meth:`peek` finds it until the next await."""
        ...

    def apply(self, mutation: Mutation) -> int:
        """Apply to memory now, queue for the journal; returns the change's journal position (1 or more).

        The caller has checked an inline body against the record's hash: :meth:`peek_body` hands it out as it is.

        Raises:
            DiskFailed: the disk takes no more writes; nothing was applied.
            StorageError: code ``disk-busy``: an inline body comes along, and too much waits for the disk; nothing was
                applied.
        """
        ...

    def position(self, slot: int, path: str) -> int:
        """The journal position that answers about the register must wait for, if that may not be durable; else 0.

        It is that of the last change of the register or of its slot, but for the mark that its record is chosen: that
        is true whatever becomes of this disk.
        """
        ...

    def when_durable(self, position: int, callback: Callable[[DiskFailed | None], None]) -> None:
        """Call back, on the loop, once everything up to ``position`` is on the disk; with the error when it never will be.

        It is called before this returns if that is known already and the databases are not too far behind. What it raises
        later goes to the loop's exception handler. Concurrent callers share one fsync.
        """
        ...

    async def durable(self, position: int) -> None:
        """Returns once everything up to ``position`` is on the disk. Concurrent callers share one fsync.

        Raises:
            DiskFailed: it never will be.
        """
        ...

    # -- history: chosen rows only, including everything applied before the call

    async def rows(
        self, slot: int, path: str, *, version: int | None = None, below: int | None = None, limit: int = 1000
    ) -> list[HistoryRow]:
        """Chosen versions of the path, newest first; only ``version``, or only those below ``below``."""
        ...

    async def find_write(self, slot: int, path: str, write_id: str) -> WriteMark | None:
        """What a write id did that is older than the register's own short list."""
        ...

    async def undecided(self, slot: int) -> list[str]:
        """Paths whose register holds a record that is not known to be chosen."""
        ...

    def slots(self) -> list[int]:
        """Every slot that has any state here, ascending."""
        ...

    # -- listing

    async def scan(self, prefix: str, start: str, delimiter: str, limit: int, *, dead: bool = True) -> ScanPage:
        """A page of the listing index, as :class:`amberblob.wire.QueryScan` tells; includes all applied before.

        Entries without a live version are included unless ``dead`` is False (then only those of which it is not known
        for certain), except that a group
        made by the delimiter is represented by its first entry that has a live version or is undecided; a
        group with none is left out.
        """
        ...

    # -- bytes

    async def blob_state(self, slot: int, blob_id: str) -> BlobState:
        """What this disk has of the blob. DURABLE counts inline bodies too."""
        ...

    async def stage(
        self, slot: int, blob_id: str, *, chunk_bytes: int, size: int | None, revive: bool = False
    ) -> Staging:
        """Open the entrance for one blob. ``size`` (bytes), when known, is preallocated.

        A blob that was given up stays so (finish raises StorageError) unless ``revive``: its bytes come from a
        replica that accepted a record with it.

        Raises:
            DiskFull, DiskFailed: refused, nothing is left behind.
        """
        ...

    async def discard(self, slot: int, blob_id: str) -> None:
        """Abort a blob that nothing refers to and remove its bytes. Does nothing to one that a row or register refers to."""
        ...

    def peek_body(self, slot: int, blob_id: str) -> bytes | None:
        """An inline body that is in memory, whole; it was checked against its hash when it came in. None says nothing."""
        ...

    async def read_chunk(self, slot: int, blob_id: str, chunk: ChunkRef, *, fresh: bool = False) -> bytes:
        """The chunk's bytes, verified; ``fresh``: as they are on the disk, even if an inline body is in memory, too.

        Raises:
            ChunkMissing: not on this disk.
            ChunkCorrupt: they failed their hash and went to quarantine.
            DiskFailed: an I/O error.
        """
        ...

    async def read_chunk_into(self, slot: int, blob_id: str, chunk: ChunkRef, into: memoryview) -> bytes | memoryview:
        """As :meth:`read_chunk`; the bytes may be put into ``into``, which has room for them: the answer is then a view of it.

        (Memory that is used again costs a fraction of fresh memory.) Whoever is cancelled must not use ``into`` for
        anything else: a thread may still be reading into it.
        """
        ...

    async def read_manifest(self, slot: int, blob_id: str, manifest_id: str) -> bytes:
        """The manifest file's bytes, verified. Raises as :meth:`read_chunk`."""
        ...

    async def missing_chunks(self, slot: int, version: Version, chunks: tuple[ChunkRef, ...]) -> list[ChunkRef]:
        """Which of the version's chunks are not here as files of the right length (contents are not read)."""
        ...

    async def install_chunk(self, slot: int, version: Version, chunk: ChunkRef, data: Content) -> None:
        """Put back a missing or quarantined chunk of a version that a record or row refers to; durable on return.

        Checked here, whoever checked it before. Who is cancelled leaves it running to its end.

        Raises:
            DigestMismatch: ``data`` is not that chunk.
            DiskFull, DiskFailed: refused.
        """
        ...

    async def install_manifest(self, slot: int, version: Version, manifest: bytes) -> None:
        """Put back a version's manifest file; durable on return. Raises as :meth:`install_chunk`."""
        ...

    async def sweep_staged(self, older_than_ms: int, limit: int) -> int:
        """Abort staged blobs that nothing refers to and that were staged before ``older_than_ms`` (epoch ms).

        Returns how many were removed, at most ``limit``.
        """
        ...

    # -- comparing and mending (rfc/0012)

    def tally(self, slot: int) -> SlotTally:
        """What is in the slot's database, from memory."""
        ...

    async def settle(self, slots: Sequence[int]) -> None:
        """Bring the databases of these slots up to everything applied before the call. Raises DiskFailed."""
        ...

    async def bucket_sums(self, slot: int) -> bytes:
        """The 256 bucket digests, 32 bytes each; includes everything applied before the call."""
        ...

    async def fingerprints(self, slot: int, buckets: Sequence[int]) -> dict[int, bytes]:
        """Of these buckets: path keys and states (:mod:`amberblob.digests`), 8 bytes each, alternating, ascending by key.

        A path with nothing chosen is left out. Includes everything applied before the call.
        """
        ...

    async def items(self, slot: int, paths: Sequence[str], *, below: int | None = None) -> list[PathItem]:
        """Everything about these paths (those that are unknown here are left out), ascending; few at a time.

        Of a path with more rows than :data:`amberblob.limits.HISTORY_PAGE_MAX` (or more than fit a frame) the newest
        below ``below``, and ``more_below``. Durable on return.
        """
        ...

    async def items_differing(
        self, slot: int, known: Mapping[int, bytes], after: str, size_bytes: int
    ) -> tuple[list[PathItem], str | None]:
        """Of these buckets' paths above ``after``, ascending, those that ``known`` lacks or has in another state.

        At most about ``size_bytes`` as the wire has it (one item at least, if there is one), and where the next page begins; None: that is all.
        """
        ...

    async def items_after(self, slot: int, after: str, size_bytes: int) -> tuple[list[PathItem], str | None]:
        """A page of everything in the slot, as :meth:`items_differing`. Undecided registers are included."""
        ...

    async def log_lines(self, slot: int, after: int, limit: int) -> tuple[list[LogLine], bool]:
        """Lines of the commit log after ``after``, in order; and whether lines in between were cut."""
        ...

    async def trim_log(self, slot: int, keep: int) -> int:
        """Cut the commit log to its last ``keep`` lines, at most 10,000 at a time; how many went."""
        ...

    async def wanted(self, slot: int, limit: int) -> list[Wanted]:
        """Versions whose bytes are not all here, smallest first."""
        ...

    async def referred(self, slot: int, blob_id: str) -> tuple[str, Version] | None:
        """The path and the chosen version whose bytes this blob is; None: no row has it."""
        ...

    async def set_wanted(self, slot: int, path: str, version: Version, *, damaged: bool) -> None:
        """Remember that a version's bytes are not all here. (A row that comes without its bytes is remembered by itself.)"""
        ...

    async def not_whole(self, slot: int, versions: Sequence[Version]) -> list[Version]:
        """Those of these versions of one chunk each of which the file is not here, by its length; inline ones always.

        Of the others it is said that they are whole, as by :meth:`is_whole`.
        """
        ...

    async def is_whole(self, slot: int, version: Version) -> bool:
        """Whether all bytes of a version are held: here, by length, or evicted; if so it is no longer wanted, and is REFERENCED.

        One that was evicted and has all its bytes here again loses that mark.
        """
        ...

    async def install_bodies(self, slot: int, bodies: Sequence[tuple[Version, bytes]]) -> None:
        """Put back many inline bodies at once: one sync for all. Raises as :meth:`install_chunk`; then some may be in."""
        ...

    async def install_blobs(self, slot: int, blobs: Sequence[tuple[Version, bytes]]) -> None:
        """Put back many versions of one chunk each, none of them here, at once: their files are synced side by side."""
        ...

    # -- scrub

    async def check_page(self, slot: int, after: str, limit: int) -> CheckedPage:
        """Read some paths' rows and records and compare them with their digests and tombstones; mends what the record tells."""
        ...

    async def check_sums(self, slot: int) -> bool:
        """Compare the bucket digests with their paths'; a wrong one is made anew. Whether they were right."""
        ...

    async def orphans(self, slot: int, older_than_ms: int) -> list[str]:
        """Blobs whose folder or inline body lies here, older than that, and that nothing refers to: no row, register, or upload.

        :meth:`discard` removes one, if that is still so. None, as long as the slot's database was lost and is not filled again.
        """
        ...

    async def memo(self, slot: int, name: str) -> str:
        """A note kept in the slot's database, for upkeep that goes on after a restart; empty: none."""
        ...

    async def set_memo(self, slot: int, name: str, text: str) -> None:
        """Keep a note. A power cut may take the last ones back."""
        ...

    # -- garbage

    async def histories(self, slot: int, after: str, limit: int) -> tuple[list[History], str | None]:
        """Paths above ``after`` that have more than one row, or no live one; and where the next page begins (None: the end)."""
        ...

    async def sweep_garbage(self, slot: int, limit: int) -> int:
        """Remove the bytes of up to ``limit`` blobs whose rows have expired; how many were removed.

        (The rows went when the record that says so was chosen; what is then to be removed is kept in the database.)
        """
        ...

    async def forget_writes(self, slot: int, older_than_ms: int, limit: int) -> int:
        """Remove write ids that were used before; how many."""
        ...

    async def begin_anew(self, slot: int, *, fresh: bool = False) -> str:
        """Have the slot be blank, for a copy that a route is to name anew; its incarnation. Durable on return.

        What it held goes to quarantine, and a fresh database begins with a new incarnation; epoch and floors stay, and so do
        the files of bytes, which are found again by whoever installs their versions. A copy that is blank already, and never was
        synced, stays as it is, unless ``fresh``: then it gets another incarnation too, for a route may have named it before. Nothing may be
        applied to the slot meanwhile. Raises DiskFailed.
        """
        ...

    async def holds(self, slot: int) -> bool:
        """Whether there is anything that :meth:`leave` would take away."""
        ...

    async def leave(self, slot: int) -> str:
        """Have the slot be blank, as :meth:`begin_anew` does, and keep nothing of what it held: no route names it, and nobody needs it.

        Durable on return. The bytes are out of sight then; :meth:`sweep_left` gives their room back, as does the next start.
        """
        ...

    async def sweep_left(self, slot: int, limit: int) -> tuple[int, int]:
        """Remove up to ``limit`` blobs of what was left; how many went, and how many bytes they had. (0, 0): there is nothing more."""
        ...

    # -- the archive (rfc/0016). Rows come by :meth:`apply` of an ``Archived``; all questions include what was applied before.

    async def archived(self, slot: int, blob_id: str) -> ArchivedBlob | None:
        """The blob's archive rows, waiting ones too; None: there are none."""
        ...

    async def archived_after(self, slot: int, after: int, limit: int) -> tuple[list[ArchiveLine], bool]:
        """Rows above that ``seq``, ascending, durable on return; and whether there are more. Waiting ones are not told."""
        ...

    async def archive_page(
        self, slot: int, after: tuple[str, int], limit: int, *, prefix: str = ""
    ) -> tuple[list[ArchiveView], tuple[str, int] | None]:
        """Chosen versions above ``(path, version)``, ascending, of paths that begin with ``prefix``; and where the next page begins (None: the end).

        ``("", 0)`` is the beginning. Empty versions are left out: they have no bytes.
        """
        ...

    async def archive_objects(self, slot: int) -> dict[str, ObjectUse]:
        """Every object that rows of this slot name (waiting rows too, damaged ones not), by its ``target_path``."""
        ...

    async def archive_named(self, slot: int, target_paths: Collection[str]) -> set[str]:
        """Those of these objects that rows of this slot name, waiting and damaged ones too. Cheap: by an index.

        A damaged row is there only as long as its content is not archived anew: until then nobody deletes what may still be mended.
        """
        ...

    async def archive_rows_of(self, slot: int, target_path: str, after: int, limit: int) -> list[ArchiveLine]:
        """Rows that name this object, above that ``seq``, ascending."""
        ...

    async def evict(self, slot: int, path: str, version: Version) -> int | None:
        """Give up the bytes of a version, if verified rows cover it; how many bytes went (0: there were none here). None: they do not cover it.

        Also how a version without its bytes is made to live by its rows. The mark is durable before the first byte goes. A manifest must be here.

        Raises:
            DiskFailed: an I/O error.
        """
        ...

    async def is_evicted(self, slot: int, blob_id: str) -> bool:
        """Whether the blob lives by its rows here. One whose bytes were all put back does not (:meth:`is_whole` says so and takes the mark away)."""
        ...

    async def close(self) -> None:
        """Make everything durable, apply it, checkpoint, and let go of the disk."""
        ...
