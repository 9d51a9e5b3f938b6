"""Files of a folder that are open: one that is read, one that is written. Everything here belongs to worker threads, one call at a time."""

from __future__ import annotations

import os
from pathlib import Path

from archive.targets.folderfiles import TEMPORARY, Files


class Opened:
    """A file that is read. Methods raise OSError and ArchiveError."""

    def __init__(self, files: Files, name: str) -> None:
        self._files = files
        self._name = name
        self._fd: int | None = None

    def open(self) -> os.stat_result:
        """Open it; what the file system knows of it. Raises: ArchiveMissing."""
        self._fd = self._files.open(self._name)
        return os.fstat(self._fd)

    def read(self, count: int, at: int) -> bytes:
        """So many bytes from there; fewer at its end."""
        assert self._fd is not None
        return os.pread(self._fd, count, at)

    def close(self) -> None:
        """Let go of it; also where it was never opened."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


class Placing:
    """A file that is written under another name, and gets its own when it is whole. Methods raise OSError and ArchiveError.

    Args:
        token: of the other name; nobody else's.
        name: was checked.

    Attributes:
        is_given_up: nobody waits for it any more: it is not to get its name. May be set while a call is under way.
    """

    def __init__(self, files: Files, token: str, name: str) -> None:
        self._files = files
        self._temporary = files.path(TEMPORARY) / token
        self._path: Path = files.path(name)
        self._fd: int | None = None
        self._placed: os.stat_result | None = None
        self.is_given_up = False

    def create(self) -> None:
        """Begin it."""
        self._fd = self._files.create(self._temporary)

    def write(self, part: bytes, at: int) -> None:
        """What comes next."""
        assert self._fd is not None
        self._files.ops.write_at(self._fd, [part], at)

    def place(self) -> os.stat_result:
        """Make it durable, and give it its name."""
        assert self._fd is not None
        self._placed = self._files.place(self._fd, self._temporary, self._path, lambda: not self.is_given_up)
        self._close()
        return self._placed

    def undo(self) -> None:
        """Leave nothing of it."""
        self._close()
        if self._placed is not None:
            self._files.take_back(self._path, self._placed)
        else:
            self._files.ops.unlink(self._temporary)

    def put_away(self) -> None:
        """The same, when it hung and ends late. If it has its name by now it keeps it: the same may have been stored again meanwhile."""
        if self._placed is not None:
            self._close()
        else:
            self.undo()

    def _close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)
