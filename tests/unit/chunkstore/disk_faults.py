"""A disk that fails when it is told to, and a process that dies at any of its system calls."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from chunkstore.fileops import Buffer, FileOps

DATABASE_THREAD = "amber-database"


class TestClock:
    """Time goes on when the test says so."""

    __test__ = False

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def wall_ms(self) -> int:
        return self.now_ms

    def monotonic_s(self) -> float:
        return self.now_ms / 1000


class FaultyOps(FileOps):
    """Real files without real syncs: a process that is killed keeps what it wrote, so that syncs only order things.

    It knows which bytes of the journal were synced: of the others a crash may leave anything.

    Attributes:
        broken: errors by the name of the call and a text that the file's path must contain.
        free: room on the disk, if it is not to be the real one.
        met: how often each fault was met.
    """

    def __init__(self) -> None:
        self.broken: dict[str, tuple[str, int]] = {}
        self.free: int | None = None
        self.met: Counter[str] = Counter()
        self.written: dict[str, int] = {}
        self.synced: dict[str, int] = {}
        self._go = threading.Event()
        self._go.set()
        self._calls_left = 0
        self._on_trap: Callable[[], None] = lambda: None
        self._copy: Callable[[], None] | None = None
        self._lock = threading.Lock()

    # -- dying

    def arm(self, calls: int, on_trap: Callable[[], None], copy: Callable[[], None]) -> None:
        """Stop every thread of the disk at the ``calls``-th system call from now; ``copy`` then takes the disk as it is.

        ``on_trap`` is called from the thread that got there.
        """
        self._on_trap, self._copy, self._calls_left = on_trap, copy, calls

    def freeze(self, copy: Callable[[], None]) -> None:
        """Stop every thread of the disk at its next system call, until :meth:`copy_once` was called."""
        self._copy, self._calls_left = copy, 0
        self._go.clear()

    def copy_once(self) -> None:
        """On the database thread: nothing else writes now."""
        with self._lock:
            copy, self._copy, self._calls_left = self._copy, None, 0
        if copy is not None:
            copy()
        self._go.set()

    def _enter(self, name: str, path: str) -> None:
        is_trap = False
        with self._lock:
            if self._calls_left:
                self._calls_left -= 1
                is_trap = not self._calls_left
            if is_trap:
                self._go.clear()
        if is_trap:
            self._on_trap()
        if not self._go.is_set():
            if threading.current_thread().name == DATABASE_THREAD:
                self.copy_once()
            else:
                assert self._go.wait(30)
        where, number = self.broken.get(name, ("", 0))
        if number and where in path:
            self.met[name] += 1
            raise OSError(number, os.strerror(number))

    @staticmethod
    def _path_of(fd: int) -> str:
        return os.readlink(f"/proc/self/fd/{fd}")

    # -- the calls

    def create(self, path: Path) -> int:
        self._enter("create", str(path))
        return super().create(path)

    def write_at(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        path = self._path_of(fd)
        self._enter("write", path)
        count = super().write_at(fd, buffers, offset)
        self.written[path] = max(self.written.get(path, 0), offset + count)
        return count

    def fdatasync(self, fd: int) -> None:
        path = self._path_of(fd)
        self._enter("fdatasync", path)
        self.synced[path] = self.written.get(path, 0)

    def fsync(self, fd: int) -> None:
        path = self._path_of(fd)
        self._enter("fsync", path)
        self.synced[path] = self.written.get(path, 0)

    def allocate(self, fd: int, size_bytes: int) -> None:
        self._enter("allocate", self._path_of(fd))
        super().allocate(fd, size_bytes)

    def truncate(self, path: Path, size_bytes: int) -> None:
        self._enter("truncate", str(path))
        super().truncate(path, size_bytes)

    def rename(self, source: Path, target: Path) -> None:
        self._enter("rename", str(target))
        super().rename(source, target)

    def unlink(self, path: Path) -> None:
        self._enter("unlink", str(path))
        super().unlink(path)

    def remove_tree(self, path: Path) -> None:
        self._enter("remove_tree", str(path))
        super().remove_tree(path)

    def free_bytes(self, path: Path) -> int:
        return super().free_bytes(path) if self.free is None else self.free

    # -- what a crash leaves

    def unsynced(self, disk: Path) -> dict[str, tuple[int, int]]:
        """Journal segments with bytes that were written and not synced: name to (from, to)."""
        found = {}
        for name, end in self.written.items():
            if "/journal/" in name and Path(name).is_relative_to(disk) and end > self.synced.get(name, 0):
                found[Path(name).name] = (self.synced.get(name, 0), end)
        return found


def copy_disk(disk: Path, target: Path) -> None:
    """The disk as it is. A file that vanishes meanwhile was being removed and need not be there."""

    def copy_file(source: str, destination: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(source, destination)

    try:
        shutil.copytree(
            disk, target, copy_function=copy_file, ignore=shutil.ignore_patterns("lock", "*-shm", "ballast")
        )
    except shutil.Error as error:
        assert all("No such file" in why for _, _, why in error.args[0]), error


NO_ROOM = errno.ENOSPC
IO_ERROR = errno.EIO
