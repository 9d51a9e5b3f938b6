"""A folder's files as objects of an archive: the blocking part of ``folder``. Everything here belongs to worker threads."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from amberblob.errors import ArchiveDamaged, ArchiveDenied, ArchiveError, ArchiveMissing, ArchiveUnavailable
from archive.targets.interface import Stored
from archive.targets.names import check_name
from chunkstore.fileops import FileOps, is_no_room

MARKER = ".amberblob-archive"
TEMPORARY = ".amberblob-tmp"
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_PLACE_TRIES = 5


class Files:
    """The files below a folder. Methods raise OSError (:meth:`translated` makes an ArchiveError of it) and ArchiveError.

    Args:
        strict: only names of an archive, and only where its marker is; else files of any name.
    """

    def __init__(self, folder: Path, ops: FileOps, strict: bool) -> None:
        self._folder = folder
        self.ops = ops
        self._strict = strict

    def path(self, name: str) -> Path:
        """Where the file of a name is; the name was checked."""
        return self._folder / name

    def check(self, name: str) -> None:
        """Raises: ArchiveMissing for what would lead out of the folder."""
        if self._strict:
            check_name(name)
        elif "\0" in name or not name or any(part in ("", ".", "..") for part in name.split("/")):
            raise ArchiveMissing(f"{name!r} cannot be the name of a file in {self._folder}")

    def present(self) -> os.stat_result:
        """The marker's facts: it is the archive, and there. Raises: ArchiveUnavailable."""
        path = self._folder / MARKER if self._strict else self._folder
        try:
            return os.stat(path)
        except FileNotFoundError:
            if not self._strict or not self._folder.is_dir():
                raise ArchiveUnavailable(
                    f"there is no folder {self._folder}: mount it, or mend [archive] target"
                ) from None
            raise ArchiveUnavailable(
                f"{self._folder} has no {MARKER}: either its file system is not mounted (then mount it), or nobody has said yet that this "
                f"is the archive's folder (then do it once, on one node: touch {path})"
            ) from None

    def create(self, temporary: Path) -> int:
        """A descriptor of a new file in the folder of temporary ones."""
        marker = self.present()
        with contextlib.suppress(FileExistsError):
            os.mkdir(temporary.parent)
        fd = self.ops.create(temporary)
        if os.fstat(fd).st_dev != marker.st_dev:
            os.close(fd)
            raise ArchiveUnavailable(f"{self._folder} was mounted or unmounted at this moment")
        return fd

    def place(self, fd: int, temporary: Path, path: Path, is_wanted: Callable[[], bool]) -> os.stat_result:
        """Make the content durable, and give it its name, if it is still wanted then. What fails after that takes the name away again."""
        self.ops.fsync(fd)
        if not is_wanted():
            raise ArchiveUnavailable(f"{path} was given up: the file system did not answer for too long")
        for attempt in range(_PLACE_TRIES):
            self.ops.make_dirs(path.parent)
            try:
                self.ops.rename(temporary, path)
                break
            except FileNotFoundError:  # a delete found the folder empty, and removed it
                if attempt == _PLACE_TRIES - 1:
                    raise
        facts = os.fstat(fd)
        try:
            self.ops.fsync_dir(path.parent)
        except BaseException:
            self.take_back(path, facts)
            raise
        return facts

    def take_back(self, path: Path, facts: os.stat_result) -> None:
        """Take the name away from this file, unless the same was stored again under it: that is somebody else's, and may be told of."""
        with contextlib.suppress(FileNotFoundError):
            if etag_of(os.stat(path, follow_symlinks=False)) == etag_of(facts):
                self.ops.unlink(path)

    def open(self, name: str) -> int:
        """A descriptor to read from. Raises: ArchiveMissing."""
        self.present()
        try:
            fd = os.open(self.path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                raise
            raise self._missing(name) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self._missing(name)
        return fd

    def facts(self, name: str) -> os.stat_result:
        """What the file system knows of it. Raises: ArchiveMissing."""
        self.present()
        try:
            facts = os.stat(self.path(name), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(name) from None
        if not stat.S_ISREG(facts.st_mode):
            raise self._missing(name)
        return facts

    def _missing(self, name: str) -> ArchiveError:
        """It is not there, if the archive is there still. Raises: ArchiveUnavailable."""
        self.present()
        return ArchiveMissing(f"{self.path(name)} is gone; somebody or something else than this cluster removed it")

    def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        """As :meth:`archive.targets.interface.Target.page`."""
        self.present()
        found: list[Stored] = []
        for name, facts in self._walk("", prefix, after):
            found.append(stored_of(name, facts))
            if len(found) == limit:
                break
        self.present()
        return found

    def _walk(self, above: str, prefix: str, after: str) -> Iterator[tuple[str, os.stat_result]]:
        """Files by their whole names, ascending: a folder stands where its name with a slash does."""
        try:
            with os.scandir(self._folder / above) as entries:
                children = sorted((each.name + "/" * each.is_dir(follow_symlinks=False), each) for each in entries)
        except FileNotFoundError:
            return
        for child, entry in children:
            name = above + child
            if not self._shows(above, child) or not (
                name.startswith(prefix) or (child[-1] == "/" and prefix.startswith(name))
            ):
                continue
            if child[-1] == "/":
                if name > after or after.startswith(name):
                    yield from self._walk(name, prefix, after)
            elif name > after:
                with contextlib.suppress(FileNotFoundError):
                    facts = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(facts.st_mode):
                        yield name, facts

    def _shows(self, above: str, child: str) -> bool:
        """Whether this may be an object, or lead to one."""
        try:
            child.encode()
        except UnicodeEncodeError:
            return False
        return child[0] != "." if self._strict else bool(above) or child not in (MARKER, TEMPORARY + "/")

    def delete(self, names: Sequence[str]) -> None:
        """Delete them, durably, and folders of which nothing is left. Raises: ArchiveError, naming those that stayed."""
        self.present()
        stayed: list[str] = []
        failure: OSError | None = None
        folders = set()
        for name in names:
            try:
                self.ops.unlink(self.path(name))
                folders.add(self.path(name).parent)
            except NotADirectoryError:
                continue
            except OSError as error:
                stayed.append(name)
                failure = error
        for folder in sorted(folders):
            with contextlib.suppress(FileNotFoundError):
                self.ops.fsync_dir(folder)
            self._prune(folder)
        if failure is not None:
            seen = self.translated(failure)
            raise type(seen)(
                f"{len(stayed)} of {len(names)} were not deleted ({', '.join(stayed[:10])}): {seen.detail}"
            )

    def _prune(self, folder: Path) -> None:
        """Remove a folder of which nothing is left, and those above; a put that makes one at this moment makes it again."""
        with contextlib.suppress(OSError):
            while folder != self._folder:
                os.rmdir(folder)
                folder = folder.parent

    def sweep(self, before_ms: int) -> int:
        """Delete temporary files that were last written before that time; how many."""
        self.present()
        swept = 0
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder / TEMPORARY) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat().st_mtime_ns // 1_000_000 < before_ms:
                        self.ops.unlink(Path(entry.path))
                        swept += 1
        return swept

    def hangs(self, waited_s: float) -> ArchiveError:
        """Its file system does not answer. ``waited_s``: since when; 0: as many calls hang as there may be."""
        seen = f"did not answer within {waited_s:g} s" if waited_s else "does not answer"
        return ArchiveUnavailable(
            f"The file system of {self._folder} {seen}: its mount hangs. Look at its server and the network; it goes on by itself."
        )

    def translated(self, error: OSError) -> ArchiveError:
        """Whose fault it is, and what helps."""
        what = f"{self._folder}: {error.strerror or error}"
        if is_no_room(error):
            return ArchiveUnavailable(
                f"{what}: the archive's file system is full; make room there, and it goes on by itself"
            )
        if error.errno in _REFUSED:
            return ArchiveDenied(
                f"{what}: the node may not write or read there; mend the mount or the rights of user {os.geteuid()}"
            )
        return ArchiveUnavailable(f"{what}: look at that file system, its mount and its server")


def etag_of(facts: os.stat_result) -> str:
    """Changes whenever somebody writes the file."""
    return f"{facts.st_ino:x}-{facts.st_size:x}-{facts.st_mtime_ns:x}"


def stored_of(name: str, facts: os.stat_result) -> Stored:
    """A file as an object."""
    return Stored(name=name, size_bytes=facts.st_size, etag=etag_of(facts), modified_ms=facts.st_mtime_ns // 1_000_000)


def ends_at(path: Path, size: int, start: int, end: int | None) -> ArchiveError:
    """The error of a range that the file does not have."""
    return ArchiveDamaged(
        f"{path} ends after {size} bytes, and bytes {start} to {'' if end is None else end} were wanted"
    )
