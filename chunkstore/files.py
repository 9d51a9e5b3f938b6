"""Where a blob's files lie, and reading, mending and removing them. All of it blocks: it belongs to worker threads.

A folder in ``blobs/`` was renamed there when it was complete. Two things can take from it: a file that failed
its hash goes to quarantine, and a repair builds a folder chunk by chunk. Both leave a file ``incomplete`` in it
until every chunk is there, so that a folder without one can be counted on.

A name in quarantine says what it was, so that what is missing since is known although nothing else may be written.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import structlog
from blake3 import blake3

from amberblob.errors import ChunkCorrupt, ChunkMissing, DigestMismatch
from amberblob.ids import content_hash, ulid_time_ms, valid_hash, valid_ulid
from amberblob.limits import MIB
from amberblob.manifest import ChunkRef
from chunkstore.content import Content, hash_of, pieces_of, size_of
from chunkstore.fileops import FileOps

_log = structlog.get_logger(__name__)

LEFT = "left-"
"""How the names of folders in ``staging`` begin that hold what was left; no blob's does."""
RETIRED = "retired-"
"""The same, of databases on their way out: who moves one there removes it, or the next start does, but nobody who sweeps meanwhile."""

MANIFEST_NAME = "manifest.json"
INCOMPLETE_NAME = "incomplete"

_READ_BYTES = MIB


def checked_ulid(text: str) -> str:
    """``text``, if it may name a file. Raises ValueError."""
    if not valid_ulid(text):
        raise ValueError(f"{text!r} is no ULID and cannot name a folder")
    return text


def checked_hash(text: str) -> str:
    """``text``, if it may name a file. Raises ValueError."""
    if not valid_hash(text):
        raise ValueError(f"{text!r} is no chunk id and cannot name a file")
    return text


def _size_of(folder: Path) -> int:
    """How many bytes the files in a folder have; those that go meanwhile have none."""
    size_bytes = 0
    for at, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size_bytes += os.stat(os.path.join(at, name)).st_size
    return size_bytes


def _read_into(path: Path, place: memoryview) -> str | None:
    """Fill ``place`` with the whole file and name what came; None when the file has another length."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size != len(place):
            return None
        hasher, at = blake3(), 0
        while at < len(place):
            # In parts, so that what is hashed is still in the processor's cache.
            count = os.preadv(fd, [place[at : at + _READ_BYTES]], at)
            if count == 0:
                return None
            hasher.update(place[at : at + count])
            at += count
        return hasher.hexdigest()
    finally:
        os.close(fd)


def _nobody_told(slot: int, blob_id: str, is_manifest: bool) -> None:
    """What went to quarantine before anybody could be told is found by :meth:`BlobFiles.quarantined`."""


class BlobFiles:
    """The blob folders of a disk.

    Attributes:
        damaged: told, in the thread that found it, of each file that failed its hash and went to quarantine.
    """

    def __init__(self, disk: Path, ops: FileOps, mint: Callable[[], str]) -> None:
        self.damaged: Callable[[int, str, bool], None] = _nobody_told
        self._disk = disk
        self._ops = ops
        self._mint = mint
        self._prepared: set[int] = set()

    # -- places

    def slot_folder(self, slot: int) -> Path:
        """``slots/<slot>``."""
        assert slot >= 0
        return self._disk / "slots" / str(slot)

    def blob_folder(self, slot: int, blob_id: str) -> Path:
        """``slots/<slot>/blobs/<blob_id>``."""
        return self.slot_folder(slot) / "blobs" / checked_ulid(blob_id)

    def staging_folder(self, slot: int) -> Path:
        """``slots/<slot>/staging``."""
        return self.slot_folder(slot) / "staging"

    def prepare_slot(self, slot: int) -> None:
        """Create ``blobs`` and ``staging`` of the slot, durably."""
        if slot not in self._prepared:
            self._ops.make_dirs(self.slot_folder(slot) / "blobs")
            self._ops.make_dirs(self.staging_folder(slot))
            self._prepared.add(slot)

    def is_complete(self, slot: int, blob_id: str) -> bool:
        """Whether the blob's folder is in place with all that belongs in it."""
        folder = self.blob_folder(slot, blob_id)
        return folder.is_dir() and not (folder / INCOMPLETE_NAME).exists()

    def folders_before(self, slot: int, at_ms: int) -> list[str]:
        """Blobs whose folder is in place, that were made and last changed before ``at_ms`` (epoch ms)."""
        found: list[str] = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self.slot_folder(slot) / "blobs") as entries:
            for entry in entries:
                if not valid_ulid(entry.name) or ulid_time_ms(entry.name) >= at_ms:
                    continue
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_dir(follow_symlinks=False) and entry.stat().st_mtime_ns < at_ms * 1_000_000:
                        found.append(entry.name)
        return found

    # -- reading

    def read_chunk(self, slot: int, blob_id: str, chunk: ChunkRef) -> bytes:
        """A chunk's bytes, verified. Raises ChunkMissing, ChunkCorrupt, OSError."""
        path = self._chunk_path(slot, blob_id, chunk)
        return self._read(slot, blob_id, path, chunk.id, chunk.len)

    def read_chunk_into(self, slot: int, blob_id: str, chunk: ChunkRef, into: memoryview) -> memoryview:
        """A chunk's bytes, verified, at the beginning of ``into``. Raises as :meth:`read_chunk`."""
        path = self._chunk_path(slot, blob_id, chunk)
        place = into[: chunk.len]
        assert len(place) == chunk.len, "a chunk needs room"
        try:
            found = _read_into(path, place)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(slot, blob_id, path) from None
        if found == chunk.id:
            return place.toreadonly()
        raise self.quarantine_file(slot, blob_id, path, chunk.id)

    def read_manifest(self, slot: int, blob_id: str, manifest_id: str) -> bytes:
        """A manifest's bytes, verified. Raises as :meth:`read_chunk`."""
        path = self.blob_folder(slot, blob_id) / MANIFEST_NAME
        return self._read(slot, blob_id, path, checked_hash(manifest_id), None)

    def _read(self, slot: int, blob_id: str, path: Path, wanted_id: str, wanted_len: int | None) -> bytes:
        try:
            data = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(slot, blob_id, path) from None
        if (wanted_len is None or len(data) == wanted_len) and content_hash(data) == wanted_id:
            return data
        raise self.quarantine_file(slot, blob_id, path, wanted_id)

    def _chunk_path(self, slot: int, blob_id: str, chunk: ChunkRef) -> Path:
        return self.blob_folder(slot, blob_id) / "chunks" / checked_hash(chunk.id)

    @staticmethod
    def _missing(slot: int, blob_id: str, path: Path) -> ChunkMissing:
        return ChunkMissing(
            f"{path.name} of blob {blob_id} (slot {slot}) is not on this disk; "
            "`amberblob explain` tells which replica has it."
        )

    def quarantine_file(self, slot: int, blob_id: str, path: Path, wanted_id: str) -> ChunkCorrupt:
        """Move a file that failed its hash away; returns the error to raise."""
        target = self._disk / "quarantine" / f"{slot}-{blob_id}-{wanted_id}-{self._mint()}"
        self._ops.make_dirs(target.parent)
        with contextlib.suppress(FileNotFoundError):
            self._mark_incomplete(self.blob_folder(slot, blob_id))
            self._ops.rename(path, target)
            # The new name first: it is what a start knows by that something is missing.
            self._ops.fsync_dir(target.parent)
            self._ops.fsync_dir(path.parent)
        self.damaged(slot, blob_id, path.name == MANIFEST_NAME)
        return self._corrupt(slot, blob_id, wanted_id, target)

    def quarantine_body(self, slot: int, blob_id: str, wanted_id: str, body: bytes) -> ChunkCorrupt:
        """Keep a copy of an inline body that failed its hash; returns the error to raise."""
        target = self._disk / "quarantine" / f"{slot}-{blob_id}-{wanted_id}-{self._mint()}"
        self._ops.make_dirs(target.parent)
        self._ops.write_file(target, body)
        return self._corrupt(slot, blob_id, wanted_id, target)

    def _corrupt(self, slot: int, blob_id: str, wanted_id: str, target: Path) -> ChunkCorrupt:
        _log.error("chunk-corrupt", slot=slot, blob_id=blob_id, chunk_id=wanted_id, quarantine=str(target))
        return ChunkCorrupt(
            f"chunk {wanted_id} of blob {blob_id} (slot {slot}) fails its hash; what was there is now {target}. "
            "It is fetched again from a replica that has it.",
            extra={"slot": slot, "blob_id": blob_id, "chunk_id": wanted_id},
        )

    def quarantined(self) -> list[tuple[int, str, bool]]:
        """At start: blobs of which a chunk or the manifest went to quarantine, and was not put back since; whether their manifest is absent."""
        folder = self._disk / "quarantine"
        taken: dict[tuple[int, str], set[str]] = {}
        for name in os.listdir(folder) if folder.is_dir() else []:
            parts = name.split("-")
            # Slot databases that were put aside lie there, too.
            if len(parts) == 4 and parts[0].isdecimal() and valid_ulid(parts[1]) and valid_hash(parts[2]):
                taken.setdefault((int(parts[0]), parts[1]), set()).add(parts[2])
        found = []
        for (slot, blob_id), ids in sorted(taken.items()):
            blob = self.blob_folder(slot, blob_id)
            if blob.is_dir() and not self._are_in_place(blob, ids):
                found.append((slot, blob_id, not (blob / MANIFEST_NAME).exists()))
        return found

    @staticmethod
    def _are_in_place(blob: Path, ids: Iterable[str]) -> bool:
        """Whether the blob has a chunk or a manifest of each of these ids."""
        absent = {one for one in ids if not (blob / "chunks" / one).exists()}
        if len(absent) > 1:
            return False  # there is one manifest; it may be long, and is not read for each
        try:
            return not absent or content_hash((blob / MANIFEST_NAME).read_bytes()) in absent
        except OSError:
            return False

    def missing(self, slot: int, blob_id: str, chunks: Iterable[ChunkRef]) -> list[ChunkRef]:
        """Which of the chunks are not there with their length."""
        folder = self.blob_folder(slot, blob_id) / "chunks"
        absent = []
        for chunk in chunks:
            try:
                here = os.stat(folder / checked_hash(chunk.id)).st_size == chunk.len
            except (FileNotFoundError, NotADirectoryError):
                here = False
            if not here:
                absent.append(chunk)
        return absent

    # -- mending

    def _mark_incomplete(self, folder: Path) -> None:
        marker = folder / INCOMPLETE_NAME
        if marker.exists():
            # Whoever put it there may have been killed before the sync.
            self._ops.fsync_dir(folder)
        else:
            self._ops.write_file(marker, b"A repair or a quarantine: not every chunk is here.\n")

    def _begin_mending(self, slot: int, blob_id: str) -> Path:
        self.prepare_slot(slot)
        folder = self.blob_folder(slot, blob_id)
        if not folder.is_dir():
            # The marker is in the folder before the folder is in place.
            fresh = self.staging_folder(slot) / f"{blob_id}.{self._mint()}"
            self._ops.make_dirs(fresh / "chunks")
            self._mark_incomplete(fresh)
            try:
                self._ops.rename(fresh, folder)
            except OSError:
                if not folder.is_dir():
                    raise
                self._ops.remove_tree(fresh)
            self._ops.fsync_dir(folder.parent)
        return folder

    def write_loose(self, slot: int, blob_id: str, chunk: ChunkRef, data: Content) -> Path:
        """Check a chunk, and write it to a durable file in a folder of its own in ``staging``. Raises DigestMismatch, OSError.

        There it is nothing to anybody, and the next start removes it; :meth:`place_chunks` puts it in place.
        """
        if size_of(data) != chunk.len or hash_of(data) != chunk.id:
            raise DigestMismatch(f"the bytes are not chunk {chunk.id} ({chunk.len} bytes); nothing was stored")
        self.prepare_slot(slot)
        folder = self.staging_folder(slot) / f"{checked_ulid(blob_id)}.{self._mint()}"
        os.mkdir(folder)
        path = folder / checked_hash(chunk.id)
        try:
            fd = self._ops.create(path)
            try:
                self._ops.write_at(fd, pieces_of(data), 0)
                self._ops.fsync(fd)
            finally:
                os.close(fd)
        except BaseException:
            self._ops.remove_tree(folder)
            raise
        return path

    def place_chunks(self, slot: int, blob_id: str, loose: Sequence[Path]) -> None:
        """Put chunks in place that are loose, with one sync of their names, durably. Raises OSError; then some may be in place."""
        folder = self._begin_mending(slot, blob_id)
        chunks = folder / "chunks"
        self._ops.make_dirs(chunks)
        for path in loose:
            self._ops.rename(path, chunks / path.name)
        self._ops.fsync_dir(chunks)
        self.drop_loose(loose)

    def drop_loose(self, loose: Iterable[Path]) -> None:
        """Remove the folders of loose chunks, with those that were not put in place. Raises OSError."""
        for path in loose:
            self._ops.remove_tree(path.parent)

    def install_chunk(self, slot: int, blob_id: str, chunk: ChunkRef, data: Content) -> None:
        """Put a chunk in place, durably. Raises DigestMismatch, OSError."""
        self.place_chunks(slot, blob_id, [self.write_loose(slot, blob_id, chunk, data)])

    def install_manifest(self, slot: int, blob_id: str, manifest_id: str, manifest: bytes) -> None:
        """Put a manifest in place, durably. Raises DigestMismatch, OSError."""
        if content_hash(manifest) != manifest_id:
            raise DigestMismatch(f"the bytes are not manifest {manifest_id}; nothing was stored")
        folder = self._begin_mending(slot, blob_id)
        self._ops.write_file(folder / MANIFEST_NAME, manifest)

    def end_mending(self, slot: int, blob_id: str, chunks: tuple[ChunkRef, ...], manifest_id: str | None) -> bool:
        """Take the mark away if everything is there; whether it is."""
        folder = self.blob_folder(slot, blob_id)
        if self.missing(slot, blob_id, chunks):
            return False
        if manifest_id is not None and not (folder / MANIFEST_NAME).exists():
            return False
        marker = folder / INCOMPLETE_NAME
        if marker.exists():
            # A chunk that was found here may be a killed process's, who did not come to sync its name.
            if chunks:
                self._ops.fsync_dir(folder / "chunks")
            self._ops.fsync_dir(folder)
            self._ops.unlink(marker)
            self._ops.fsync_dir(folder)
        return True

    # -- removing

    def remove_blob(self, slot: int, blob_id: str) -> bool:
        """Remove a blob's folder: out of sight by one rename, then file by file. Whether there was one."""
        folder = self.blob_folder(slot, blob_id)
        if not folder.is_dir():
            return False
        self.prepare_slot(slot)
        gone = self.staging_folder(slot) / f"{blob_id}.{self._mint()}"
        self._ops.rename(folder, gone)
        # Before anything in it goes: after a power cut it must not be back in place, less some of its files.
        self._ops.fsync_dir(folder.parent)
        self._ops.remove_tree(gone)
        return True

    def evict_blob(self, slot: int, blob_id: str) -> int:
        """Remove a blob's chunks, but not its manifest; how many bytes they had. Out of sight by one rename, then file by file.

        A manifest stays in a folder that is marked as incomplete. Whoever has a file open reads on.
        """
        folder = self.blob_folder(slot, blob_id)
        if not folder.is_dir():
            return 0
        chunks = folder / "chunks"
        size_bytes = _size_of(chunks)
        if not (folder / MANIFEST_NAME).exists():
            self.remove_blob(slot, blob_id)
            return size_bytes
        self.prepare_slot(slot)
        # The mark first: without its chunks the folder must never be taken for whole.
        self._mark_incomplete(folder)
        if chunks.is_dir():
            gone = self.staging_folder(slot) / f"{blob_id}.{self._mint()}"
            self._ops.rename(chunks, gone)
            self._ops.fsync_dir(folder)
            self._ops.remove_tree(gone)
        return size_bytes

    def has_blobs(self, slot: int) -> bool:
        """Whether there is any blob's folder in place."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.slot_folder(slot) / "blobs") as entries:
            return next(entries, None) is not None
        return False

    def put_away(self, slot: int) -> None:
        """Take all blobs of a slot out of sight, durably, by one rename; :meth:`sweep_left` removes them, or the next start."""
        if self.has_blobs(slot):
            self.prepare_slot(slot)
            blobs = self.slot_folder(slot) / "blobs"
            self._ops.rename(blobs, self.staging_folder(slot) / f"{LEFT}{self._mint()}")
            self._ops.make_dirs(blobs)
            self._ops.fsync_dir(self.staging_folder(slot))
            self._ops.fsync_dir(blobs.parent)

    def sweep_left(self, slot: int, limit: int) -> tuple[int, int]:
        """Remove up to ``limit`` blobs that were put away; how many went, and how many bytes they had."""
        count = size_bytes = 0
        staging = self.staging_folder(slot)
        for name in os.listdir(staging) if staging.is_dir() else []:
            if not name.startswith(LEFT):
                continue
            for blob in os.listdir(staging / name)[: limit - count]:
                size_bytes += _size_of(staging / name / blob)
                self._ops.remove_tree(staging / name / blob)
                count += 1
            if count >= limit:
                break
            self._ops.remove_tree(staging / name)
        return count, size_bytes

    def clear_staging(self) -> int:
        """At start: remove everything that was on its way in, and how many folders that were."""
        count = 0
        slots = self._disk / "slots"
        for name in os.listdir(slots) if slots.is_dir() else []:
            folder = slots / name / "staging"
            if folder.is_dir():
                for blob in os.listdir(folder):
                    self._ops.remove_tree(folder / blob)
                    count += 1
        return count

    def sync_names(self) -> None:
        """At start: make the folders of all slots durable, and the names of the blobs in them.

        A process that was killed may have left some that only memory has. Who meets them takes them for durable, as
        whoever makes them syncs them. (A folder under repair has its mark until what is in it is synced.)
        """
        slots = self._disk / "slots"
        if not slots.is_dir():
            return
        for name in os.listdir(slots):
            for folder in (slots / name / "blobs", slots / name / "staging", slots / name):
                if folder.is_dir():
                    self._ops.fsync_dir(folder)
        self._ops.fsync_dir(slots)
