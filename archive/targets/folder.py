"""A folder as a target: for a disk or a network file system that is mounted there. The same folder for all nodes.

An object is a file; it is written under another name, synced, renamed, and its folder synced. A marker file tells that this is the archive:
without it the folder may be an empty mount point, and everything in the archive would seem to be gone. Nobody but the operator makes it.
Its ETags are made of what the file system knows of a file: they change when somebody writes it, and when the archive is copied elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from amberblob.clock import Randomness, SystemRandomness
from amberblob.errors import ArchiveDamaged, ArchiveDenied, ArchiveError, ArchiveMissing, ArchiveUnavailable
from archive.targets.interface import Stored
from archive.targets.names import DELETE_MAX, LIST_MAX, PIECE_BYTES_MAX, check_name, check_prefix
from archive.targets.threads import Closed, Threads
from archive.traffic import FREE, Pace, Traffic
from chunkstore.fileops import FileOps, is_no_room

MARKER = ".amberblob-archive"
TEMPORARY = ".amberblob-tmp"
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_THREADS = 16
_PLACE_TRIES = 5
_T = TypeVar("_T")


def prepare_folder(folder: Path) -> None:
    """Make the folder and its marker, as an operator does it once."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


class FolderTarget:
    """A :class:`~archive.targets.interface.Target`; a Source if ``strict`` is false: then files of any name count, and no marker is asked for."""

    def __init__(
        self,
        folder: Path,
        traffic: Traffic,
        *,
        pace: Pace = FREE,
        ops: FileOps | None = None,
        threads: Threads | None = None,
        chance: Randomness | None = None,
        strict: bool = True,
    ) -> None:
        self._folder = folder
        self._traffic = traffic
        self._pace = pace
        self._ops = ops or FileOps()
        self._threads = threads or Threads(_THREADS, "archive-folder")
        self._chance = chance or SystemRandomness()
        self._strict = strict

    @property
    def url(self) -> str:
        """``file:///folder``."""
        return self._folder.as_uri()

    def paced(self, pace: Pace) -> FolderTarget:
        """The same for a job."""
        return FolderTarget(
            self._folder,
            self._traffic,
            pace=pace,
            ops=self._ops,
            threads=self._threads,
            chance=self._chance,
            strict=self._strict,
        )

    async def put(self, name: str, parts: AsyncIterable[bytes]) -> Stored:
        """Store it durably. Raises: ArchiveError."""
        assert self._strict, "a source is only read"
        check_name(name)
        await self._pace.request()
        temporary, path = self._folder / TEMPORARY / self._chance.token(12).hex(), self._path(name)
        placed: list[os.stat_result] = []
        done = False
        try:
            fd = await self._finish("put", lambda: self._create(temporary))
            try:
                size = 0
                async for part in parts:
                    await self._pace.bytes(len(part))
                    at = size
                    await self._finish("put", lambda part=part, at=at: self._ops.write_at(fd, [part], at))  # type: ignore[misc]
                    size += len(part)
                    self._traffic.sent_bytes += len(part)
                await self._finish("put", lambda: placed.append(self._place(fd, temporary, path)))
                done = True
            finally:
                os.close(fd)
        finally:
            if not done:
                with contextlib.suppress(OSError):
                    self._ops.unlink(path if placed else temporary)
        self._traffic.count("put", "ok")
        return _stored(name, placed[0])

    async def read(self, name: str, start: int = 0, end: int | None = None, *, etag: str = "") -> AsyncIterator[bytes]:
        """The bytes of a range. Raises: ArchiveError."""
        self._check(name)
        if end is not None and end <= start:
            return
        await self._pace.request()
        fd = await self._finish("get", lambda: self._open(name))
        try:
            facts = os.fstat(fd)
            seen = _etag(facts)
            if etag and seen != etag:
                raise self._counted(
                    "get", ArchiveDamaged(f"{self._path(name)} was overwritten: its ETag is {seen}, not {etag}")
                )
            if max(start, end or 0) > facts.st_size:
                raise self._counted("get", _short(self._path(name), facts.st_size, start, end))
            at, stop = start, facts.st_size if end is None else end
            while at < stop:
                count = min(PIECE_BYTES_MAX, stop - at)
                await self._pace.bytes(count)
                piece = await self._finish("get", lambda count=count, at=at: os.pread(fd, count, at))  # type: ignore[misc]
                if not piece:
                    raise self._counted("get", _short(self._path(name), at, start, end))
                at += len(piece)
                self._traffic.received_bytes += len(piece)
                yield piece
        finally:
            os.close(fd)
        self._traffic.count("get", "ok")

    async def head(self, name: str) -> Stored:
        """What is known of it. Raises: ArchiveError."""
        self._check(name)
        await self._pace.request()
        facts = await self._finish("head", lambda: self._facts(name))
        self._traffic.count("head", "ok")
        return _stored(name, facts)

    async def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        """Objects after a name. Raises: ArchiveError."""
        assert 1 <= limit <= LIST_MAX
        if self._strict:
            check_prefix(prefix)
        await self._pace.request()
        found = await self._finish("list", lambda: self._list(prefix, after, limit))
        self._traffic.count("list", "ok")
        return found

    async def delete(self, names: Sequence[str]) -> None:
        """Delete them. Raises: ArchiveError, naming those that stayed."""
        assert len(names) <= DELETE_MAX
        assert self._strict, "a source is only read"
        for name in names:
            check_name(name)
        if names:
            await self._pace.request()
            await self._finish("delete", lambda: self._delete(names))
            self._traffic.count("delete", "ok")

    async def probe(self) -> None:
        """Store, read and delete a small file. Raises: ArchiveError."""
        name, content = f"probe/{self._chance.token(12).hex()}", self._chance.token(256)

        async def parts() -> AsyncIterator[bytes]:
            yield content

        await self.put(name, parts())
        got = b"".join([piece async for piece in self.read(name)])
        await self.delete([name])
        if got != content:
            raise ArchiveDamaged(
                f"{self._folder} gave something else than was stored there a moment ago: check that file system"
            )

    async def sweep(self, before_ms: int) -> int:
        """Remove temporary files that were last written before that time. Raises: ArchiveError."""
        await self._pace.request()
        return await self._finish("uploads", lambda: self._sweep(before_ms))

    async def close(self) -> None:
        """Let go of the threads."""
        self._threads.close()

    # -- in threads

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _check(self, name: str) -> None:
        """Raises: ArchiveMissing for what would lead out of the folder."""
        if self._strict:
            check_name(name)
        elif "\0" in name or not name or any(part in ("", ".", "..") for part in name.split("/")):
            raise ArchiveMissing(f"{name!r} cannot be the name of a file in {self._folder}")

    def _present(self) -> os.stat_result:
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

    def _create(self, temporary: Path) -> int:
        marker = self._present()
        with contextlib.suppress(FileExistsError):
            os.mkdir(temporary.parent)
        fd = self._ops.create(temporary)
        if os.fstat(fd).st_dev != marker.st_dev:
            os.close(fd)
            raise ArchiveUnavailable(f"{self._folder} was mounted or unmounted at this moment")
        return fd

    def _place(self, fd: int, temporary: Path, path: Path) -> os.stat_result:
        """Make the content durable, and give it its name. What fails after that takes the name away again."""
        self._ops.fsync(fd)
        for attempt in range(_PLACE_TRIES):
            self._ops.make_dirs(path.parent)
            try:
                self._ops.rename(temporary, path)
                break
            except FileNotFoundError:  # a delete found the folder empty, and removed it
                if attempt == _PLACE_TRIES - 1:
                    raise
        try:
            self._ops.fsync_dir(path.parent)
            return os.fstat(fd)
        except BaseException:
            self._ops.unlink(path)
            raise

    def _open(self, name: str) -> int:
        self._present()
        try:
            fd = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                raise
            raise self._missing(name) from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise self._missing(name)
        return fd

    def _facts(self, name: str) -> os.stat_result:
        self._present()
        try:
            facts = os.stat(self._path(name), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(name) from None
        if not stat.S_ISREG(facts.st_mode):
            raise self._missing(name)
        return facts

    def _missing(self, name: str) -> ArchiveError:
        """It is not there, if the archive is there still. Raises: ArchiveUnavailable."""
        self._present()
        return ArchiveMissing(f"{self._path(name)} is gone; somebody or something else than this cluster removed it")

    def _list(self, prefix: str, after: str, limit: int) -> list[Stored]:
        self._present()
        found: list[Stored] = []
        for name, facts in self._walk("", prefix, after):
            found.append(_stored(name, facts))
            if len(found) == limit:
                break
        self._present()
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

    def _delete(self, names: Sequence[str]) -> None:
        self._present()
        stayed: list[str] = []
        failure: OSError | None = None
        folders = set()
        for name in names:
            try:
                self._ops.unlink(self._path(name))
                folders.add(self._path(name).parent)
            except NotADirectoryError:
                continue
            except OSError as error:
                stayed.append(name)
                failure = error
        for folder in sorted(folders):
            with contextlib.suppress(FileNotFoundError):
                self._ops.fsync_dir(folder)
            self._prune(folder)
        if failure is not None:
            seen = self._translated(failure)
            raise type(seen)(
                f"{len(stayed)} of {len(names)} were not deleted ({', '.join(stayed[:10])}): {seen.detail}"
            )

    def _prune(self, folder: Path) -> None:
        """Remove a folder of which nothing is left, and those above; a put that makes one at this moment makes it again."""
        with contextlib.suppress(OSError):
            while folder != self._folder:
                os.rmdir(folder)
                folder = folder.parent

    def _sweep(self, before_ms: int) -> int:
        self._present()
        swept = 0
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder / TEMPORARY) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    if entry.stat().st_mtime_ns // 1_000_000 < before_ms:
                        self._ops.unlink(Path(entry.path))
                        swept += 1
        return swept

    # -- errors

    async def _finish(self, kind: str, function: Callable[[], _T]) -> _T:
        try:
            return await self._threads.finish(function)
        except OSError as error:
            raise self._counted(kind, self._translated(error)) from error
        except ArchiveError as error:
            raise self._counted(kind, error) from None
        except Closed:
            raise ArchiveError(f"{self._folder}: this node ends; ask another one") from None

    def _counted(self, kind: str, error: ArchiveError) -> ArchiveError:
        results = {ArchiveDenied: "denied", ArchiveMissing: "missing", ArchiveDamaged: "damaged"}
        self._traffic.count(kind, results.get(type(error), "unavailable"))
        return error

    def _translated(self, error: OSError) -> ArchiveError:
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


def _etag(facts: os.stat_result) -> str:
    return f"{facts.st_ino:x}-{facts.st_size:x}-{facts.st_mtime_ns:x}"


def _stored(name: str, facts: os.stat_result) -> Stored:
    return Stored(name=name, size_bytes=facts.st_size, etag=_etag(facts), modified_ms=facts.st_mtime_ns // 1_000_000)


def _short(path: Path, size: int, start: int, end: int | None) -> ArchiveError:
    return ArchiveDamaged(
        f"{path} ends after {size} bytes, and bytes {start} to {'' if end is None else end} were wanted"
    )
