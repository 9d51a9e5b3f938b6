"""Mistakes that the tests must find: each is one that somebody could make, and that a SIGKILL cannot show."""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from chunkstore import segments
from chunkstore.fileops import Buffer, FileOps
from chunkstore.files import BlobFiles
from chunkstore.index import ListingIndex
from chunkstore.slotdb import SlotDatabase
from chunkstore.store import DiskStore


class _NoDirFsync(FileOps):
    def fsync_dir(self, path: Path) -> None:
        pass


class _NoFileFsync(FileOps):
    def fsync(self, fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            super().fsync(fd)


class _NoJournalSync(FileOps):
    def fdatasync(self, fd: int) -> None:
        pass


def _ack_before_sync() -> FileOps:
    async def durable(self: DiskStore, position: int) -> None:
        pass

    DiskStore.durable = durable  # type: ignore[method-assign]
    DiskStore.when_durable = lambda self, position, callback: callback(None)  # type: ignore[method-assign]
    return FileOps()


def _no_checkpoint() -> FileOps:
    """A segment goes although the databases were never synced."""

    def checkpoint(self: Any) -> bool:
        return True

    SlotDatabase.checkpoint = checkpoint  # type: ignore[method-assign]
    ListingIndex.checkpoint = checkpoint  # type: ignore[method-assign]
    return FileOps()


def _no_settle() -> FileOps:
    """What a killed process left in the page cache only is taken for durable."""
    segments._settle = lambda folder, scan, ops: None
    return FileOps()


def _no_names_sync() -> FileOps:
    """Names that a killed process left in memory only are built upon."""
    BlobFiles.sync_names = lambda self: None  # type: ignore[method-assign]
    return FileOps()


class _RenameUnsynced(FileOps):
    """The renames of finished blobs are not made durable."""

    def fsync_dir(self, path: Path) -> None:
        if path.name not in ("blobs", "staging"):
            super().fsync_dir(path)


def _remove_unsynced() -> FileOps:
    """A blob that was given up is renamed away, and nobody syncs that."""

    def remove_blob(self: BlobFiles, slot: int, blob_id: str) -> bool:
        folder = self.blob_folder(slot, blob_id)
        if not folder.is_dir():
            return False
        gone = self.staging_folder(slot) / f"{blob_id}.{self._mint()}"
        self._ops.rename(folder, gone)
        self._ops.remove_tree(gone)
        return True

    BlobFiles.remove_blob = remove_blob  # type: ignore[method-assign]
    return FileOps()


class DyingOps(FileOps):
    """Kills the process before one of the store's own calls, whichever thread makes it. (SQLite's are not counted.)

    Args:
        die_before: ``17``: the 17th call; ``fsync_dir:slots:3``: the third fsync_dir of a folder of that name.
    """

    def __init__(self, die_before: str) -> None:
        self._method, self._name, count = die_before.split(":") if ":" in die_before else ("", "", die_before)
        self._left = int(count)
        self._lock = threading.Lock()

    def _count(self, method: str, at: Path | int) -> None:
        name = (Path(os.readlink(f"/proc/self/fd/{at}")) if isinstance(at, int) else at).name
        if self._method and (method, name) != (self._method, self._name):
            return
        with self._lock:
            self._left -= 1
            if not self._left:
                os.kill(os.getpid(), signal.SIGKILL)

    def create(self, path: Path) -> int:
        self._count("create", path)
        return super().create(path)

    def write_at(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self._count("write_at", fd)
        return super().write_at(fd, buffers, offset)

    def fdatasync(self, fd: int) -> None:
        self._count("fdatasync", fd)
        super().fdatasync(fd)

    def fsync(self, fd: int) -> None:
        self._count("fsync", fd)
        super().fsync(fd)

    def fsync_dir(self, path: Path) -> None:
        self._count("fsync_dir", path)
        super().fsync_dir(path)

    def rename(self, source: Path, target: Path) -> None:
        self._count("rename", target)
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._count("unlink", path)
        super().unlink(path)

    def remove_tree(self, path: Path) -> None:
        self._count("remove_tree", path)
        super().remove_tree(path)


MUTANTS: dict[str, Callable[[], FileOps]] = {
    "no-dir-fsync": _NoDirFsync,
    "no-file-fsync": _NoFileFsync,
    "no-journal-sync": _NoJournalSync,
    "ack-before-sync": _ack_before_sync,
    "no-checkpoint": _no_checkpoint,
    "rename-unsynced": _RenameUnsynced,
    "remove-unsynced": _remove_unsynced,
    "no-names-sync": _no_names_sync,
    "no-settle": _no_settle,
}


def build_in(name: str | None, die_before: str | None = None) -> FileOps | None:
    """Make the mistake in this process; returns the system calls to use."""
    if die_before is not None:
        return DyingOps(die_before)
    return None if name is None else MUTANTS[name]()
