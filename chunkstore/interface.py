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
from collections.abc import Callable, Sequence
from typing import Protocol

from amberblob.ballot import Register, SlotState
from amberblob.errors import DiskFailed
from amberblob.manifest import ChunkRef, Version, WriteMark
from amberblob.mutations import Mutation
from amberblob.wire import HistoryRow, ScanEntry

Buffer = bytes | bytearray | memoryview


class BlobState(enum.Enum):
    """What a disk has of a blob's bytes."""

    ABSENT = "absent"
    """Nothing is known of it, or its bytes are incomplete."""
    DURABLE = "durable"
    """All bytes are on the disk, staged or referred to."""
    ABORTED = "aborted"
    """It was given up: nothing may refer to it any more."""


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
        """Abort a staged blob that nothing refers to and remove its bytes. Does nothing to a referenced one."""
        ...

    def peek_body(self, slot: int, blob_id: str) -> bytes | None:
        """An inline body that is in memory, whole; it was checked against its hash when it came in. None says nothing."""
        ...

    async def read_chunk(self, slot: int, blob_id: str, chunk: ChunkRef) -> bytes:
        """The chunk's bytes, verified.

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

    async def install_chunk(self, slot: int, version: Version, chunk: ChunkRef, data: bytes) -> None:
        """Put back a missing or quarantined chunk of a version that a record or row refers to; durable on return.

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

    async def close(self) -> None:
        """Make everything durable, apply it, checkpoint, and let go of the disk."""
        ...
