"""A folder as a target: for a disk or a network file system that is mounted there. The same folder for all nodes.

An object is a file; it is written under another name, synced, renamed, and its folder synced. A marker file tells that this is the archive:
without it the folder may be an empty mount point, and everything in the archive would seem to be gone. Nobody but the operator makes it.
Its ETags are made of what the file system knows of a file: they change when somebody writes it, and when the archive is copied elsewhere.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from amberblob.clock import Randomness, SystemRandomness
from amberblob.errors import ArchiveDamaged, ArchiveDenied, ArchiveError, ArchiveMissing
from archive.targets.folderfiles import MARKER, TEMPORARY, Files, ends_at, etag_of, stored_of
from archive.targets.interface import Stored
from archive.targets.names import DELETE_MAX, LIST_MAX, PIECE_BYTES_MAX, check_name, check_prefix
from archive.targets.threads import Closed, Threads
from archive.traffic import FREE, Pace, Traffic
from chunkstore.fileops import FileOps

__all__ = ["MARKER", "TEMPORARY", "FolderTarget", "prepare_folder"]

_THREADS = 16
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
        self._files = Files(folder, self._ops, strict)

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
        temporary, path = self._folder / TEMPORARY / self._chance.token(12).hex(), self._files.path(name)
        placed: list[os.stat_result] = []
        done = False
        try:
            fd = await self._finish("put", lambda: self._files.create(temporary))
            try:
                size = 0
                async for part in parts:
                    await self._pace.bytes(len(part))
                    await self._finish("put", partial(self._ops.write_at, fd, [part], size))
                    size += len(part)
                    self._traffic.sent_bytes += len(part)
                await self._finish("put", lambda: placed.append(self._files.place(fd, temporary, path)))
                done = True
            finally:
                os.close(fd)
        finally:
            if not done:
                with contextlib.suppress(OSError):
                    self._ops.unlink(path if placed else temporary)
        self._traffic.count("put", "ok")
        return stored_of(name, placed[0])

    async def read(self, name: str, start: int = 0, end: int | None = None, *, etag: str = "") -> AsyncIterator[bytes]:
        """The bytes of a range. Raises: ArchiveError."""
        self._files.check(name)
        if end is not None and end <= start:
            return
        await self._pace.request()
        fd = await self._finish("get", lambda: self._files.open(name))
        try:
            facts = os.fstat(fd)
            seen = etag_of(facts)
            if etag and seen != etag:
                raise self._counted(
                    "get", ArchiveDamaged(f"{self._files.path(name)} was overwritten: its ETag is {seen}, not {etag}")
                )
            if max(start, end or 0) > facts.st_size:
                raise self._counted("get", ends_at(self._files.path(name), facts.st_size, start, end))
            at, stop = start, facts.st_size if end is None else end
            while at < stop:
                count = min(PIECE_BYTES_MAX, stop - at)
                await self._pace.bytes(count)
                piece = await self._finish("get", partial(os.pread, fd, count, at))
                if not piece:
                    raise self._counted("get", ends_at(self._files.path(name), at, start, end))
                at += len(piece)
                self._traffic.received_bytes += len(piece)
                yield piece
        finally:
            os.close(fd)
        self._traffic.count("get", "ok")

    async def head(self, name: str) -> Stored:
        """What is known of it. Raises: ArchiveError."""
        self._files.check(name)
        await self._pace.request()
        facts = await self._finish("head", lambda: self._files.facts(name))
        self._traffic.count("head", "ok")
        return stored_of(name, facts)

    async def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        """Objects after a name. Raises: ArchiveError."""
        assert 1 <= limit <= LIST_MAX
        if self._strict:
            check_prefix(prefix)
        await self._pace.request()
        found = await self._finish("list", lambda: self._files.page(prefix, after, limit))
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
            await self._finish("delete", lambda: self._files.delete(names))
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
        return await self._finish("uploads", lambda: self._files.sweep(before_ms))

    async def close(self) -> None:
        """Let go of the threads."""
        self._threads.close()

    async def _finish(self, kind: str, function: Callable[[], _T]) -> _T:
        try:
            return await self._threads.finish(function)
        except OSError as error:
            raise self._counted(kind, self._files.translated(error)) from error
        except ArchiveError as error:
            raise self._counted(kind, error) from None
        except Closed:
            raise ArchiveError(f"{self._folder}: this node ends; ask another one") from None

    def _counted(self, kind: str, error: ArchiveError) -> ArchiveError:
        results = {ArchiveDenied: "denied", ArchiveMissing: "missing", ArchiveDamaged: "damaged"}
        self._traffic.count(kind, results.get(type(error), "unavailable"))
        return error
