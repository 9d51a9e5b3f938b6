"""The system calls that durability hangs on, in one place that tests can make fail.

Everything else in this package calls these and nothing else for writing files; a test passes a subclass that
raises ``OSError`` where it wants. All methods block and belong to worker threads.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

Buffer = bytes | bytearray | memoryview

_BUFFERS_MAX = 1024
"""Linux takes no more in one call (IOV_MAX)."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

FAILED_REMEDY = (
    "The disk takes no more writes until the process starts anew; look at the kernel's log and at the disk, "
    "then restart the node: it rejoins with what is durable."
)


def is_no_room(error: OSError) -> bool:
    """Whether the error says that the disk is full (and not that it is broken)."""
    return error.errno in _NO_ROOM


class FileOps:
    """The real ones."""

    def create(self, path: Path) -> int:
        """A descriptor of a new file, for reading and writing. Raises FileExistsError."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)

    def write_at(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write all of the buffers at ``offset`` (bytes); returns how many bytes that were."""
        total = 0
        for first in range(0, len(buffers), _BUFFERS_MAX):
            some = buffers[first : first + _BUFFERS_MAX]
            size = sum(len(buffer) for buffer in some)
            done = os.pwritev(fd, some, offset + total)
            if done < size:
                rest = memoryview(b"".join(some))[done:]
                while rest:
                    count = os.pwrite(fd, rest, offset + total + done)
                    done += count
                    rest = rest[count:]
            total += size
        return total

    def fdatasync(self, fd: int) -> None:
        """Make a file's data durable, and its size."""
        os.fdatasync(fd)

    def fsync(self, fd: int) -> None:
        """Make a file durable."""
        os.fsync(fd)

    def fsync_dir(self, path: Path) -> None:
        """Make a folder's entries durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fsync(fd)
        finally:
            os.close(fd)

    def allocate(self, fd: int, size_bytes: int) -> None:
        """Reserve room, so that later writes cannot run out of it."""
        if size_bytes > 0:
            os.posix_fallocate(fd, 0, size_bytes)

    def truncate(self, path: Path, size_bytes: int) -> None:
        """Cut a file and make that durable."""
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, size_bytes)
            self.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        """Atomic; durable once both parents are synced."""
        os.rename(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a file; no error when it is not there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def remove_tree(self, path: Path) -> None:
        """Remove a folder and all in it; no error when it is not there."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(path)

    def free_bytes(self, path: Path) -> int:
        """Room that this process may use on the file system of ``path``."""
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize

    def write_file(self, path: Path, data: Buffer) -> None:
        """Put a whole file in place, atomically and durably: temporary file, sync, rename, sync of the folder."""
        temporary = path.with_name(path.name + ".tmp")
        self.unlink(temporary)
        fd = self.create(temporary)
        try:
            self.write_at(fd, [data], 0)
            self.fsync(fd)
        except BaseException:
            self.unlink(temporary)
            raise
        finally:
            os.close(fd)
        self.rename(temporary, path)
        self.fsync_dir(path.parent)

    def make_dirs(self, path: Path) -> None:
        """Create a folder with its missing parents, durably. No error when it is there: so one whose name was not synced is taken back."""
        missing = []
        at = path
        while not at.is_dir():
            missing.append(at)
            at = at.parent
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
            try:
                self.fsync_dir(folder.parent)
            except OSError:
                with contextlib.suppress(OSError):  # somebody else may use it by now, and sees the next error
                    os.rmdir(folder)
                raise
