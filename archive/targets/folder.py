"""A folder as a target: for a disk or a network file system that is mounted there. The same folder for all nodes.

An object is a file; it is written under another name, synced, renamed, and its folder synced. A marker file tells that this is the archive:
without it the folder may be an empty mount point, and everything in the archive would seem to be gone. Nobody but the operator makes it.
Its ETags are made of what the file system knows of a file: they change when somebody writes it, and when the archive is copied elsewhere.

Whatever may wait for the file system is called in threads, and waited for only so long (:mod:`archive.targets.strands`): a mount that hangs is an
archive that cannot be reached, and holds up nothing else.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from amberblob.clock import Randomness, SystemRandomness
from amberblob.errors import ArchiveDamaged, ArchiveDenied, ArchiveError, ArchiveMissing
from archive.targets.folderfiles import MARKER, TEMPORARY, Files, ends_at, etag_of, stored_of
from archive.targets.folderopen import Opened, Placing
from archive.targets.interface import Stored
from archive.targets.names import DELETE_MAX, LIST_MAX, PIECE_BYTES_MAX, check_name, check_prefix
from archive.targets.strands import LIST_TIMES, Hangs, Strand, Strands
from archive.targets.threads import Closed
from archive.traffic import FREE, Pace, Traffic
from chunkstore.fileops import FileOps

__all__ = ["MARKER", "TEMPORARY", "FolderTarget", "prepare_folder"]

_THREADS = 16
TIMEOUT_S = 30.0
"""How long a call may take: a read or write of at most 1 MiB, or a sync."""
_T = TypeVar("_T")


def prepare_folder(folder: Path) -> None:
    """Make the folder and its marker, as an operator does it once."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


class FolderTarget:
    """A :class:`~archive.targets.interface.Target`; a Source if ``strict`` is false: then files of any name count, and no marker is asked for.

    Args:
        timeout_s: how long a call of the file system may take, before the folder counts as one that cannot be reached.
    """

    def __init__(
        self,
        folder: Path,
        traffic: Traffic,
        *,
        pace: Pace = FREE,
        ops: FileOps | None = None,
        strands: Strands | None = None,
        timeout_s: float = TIMEOUT_S,
        chance: Randomness | None = None,
        strict: bool = True,
    ) -> None:
        self._folder = folder
        self._traffic = traffic
        self._pace = pace
        self._ops = ops or FileOps()
        self._strands = strands or Strands(_THREADS, "archive-folder", timeout_s)
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
            strands=self._strands,
            chance=self._chance,
            strict=self._strict,
        )

    async def put(self, name: str, parts: AsyncIterable[bytes]) -> Stored:
        """Store it durably. Raises: ArchiveError; when it hung, the object may be there later."""
        assert self._strict, "a source is only read"
        check_name(name)
        await self._pace.request()
        put, strand = Placing(self._files, self._chance.token(12).hex(), name), self._strands.begin()
        try:
            await self._call("put", put.create, strand)
            size = 0
            async for part in parts:
                await self._pace.bytes(len(part))
                await self._call("put", partial(put.write, part, size), strand)
                size += len(part)
                self._traffic.sent_bytes += len(part)
            stored = await self._call("put", put.place, strand)
        except BaseException:
            await self._undone(put, strand)
            raise
        self._traffic.count("put", "ok")
        return stored_of(name, stored)

    async def _undone(self, put: Placing, strand: Strand) -> None:
        """Leave nothing of it, if it is known how far it came; else it is put away when the file system answers."""
        if not strand.free:
            put.is_given_up = True
            strand.after(put.put_away)
            return
        with contextlib.suppress(Closed):
            await strand.end(put.undo)

    async def read(self, name: str, start: int = 0, end: int | None = None, *, etag: str = "") -> AsyncIterator[bytes]:
        """The bytes of a range. Raises: ArchiveError."""
        self._files.check(name)
        if end is not None and end <= start:
            return
        await self._pace.request()
        file, strand = Opened(self._files, name), self._strands.begin()
        try:
            facts = await self._call("get", file.open, strand)
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
                piece = await self._call("get", partial(file.read, count, at), strand)
                if not piece:
                    raise self._counted("get", ends_at(self._files.path(name), at, start, end))
                at += len(piece)
                self._traffic.received_bytes += len(piece)
                yield piece
        finally:
            strand.after(file.close)
        self._traffic.count("get", "ok")

    async def head(self, name: str) -> Stored:
        """What is known of it. Raises: ArchiveError."""
        self._files.check(name)
        await self._pace.request()
        facts = await self._call("head", partial(self._files.facts, name))
        self._traffic.count("head", "ok")
        return stored_of(name, facts)

    async def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        """Objects after a name. Raises: ArchiveError."""
        assert 1 <= limit <= LIST_MAX
        if self._strict:
            check_prefix(prefix)
        await self._pace.request()
        found = await self._call("list", partial(self._files.page, prefix, after, limit), times=LIST_TIMES)
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
            await self._call("delete", partial(self._files.delete, names), times=LIST_TIMES)
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
        return await self._call("uploads", partial(self._files.sweep, before_ms), times=LIST_TIMES)

    async def close(self) -> None:
        """Let go of the threads."""
        self._strands.close()

    async def _call(self, kind: str, function: Callable[[], _T], strand: Strand | None = None, *, times: int = 1) -> _T:
        try:
            return await (strand or self._strands.begin()).call(function, times=times)
        except OSError as error:
            raise self._counted(kind, self._files.translated(error)) from error
        except ArchiveError as error:
            raise self._counted(kind, error) from None
        except Hangs as error:
            raise self._counted(kind, self._files.hangs(error.waited_s)) from None
        except Closed:
            raise ArchiveError(f"{self._folder}: this node ends; ask another one") from None

    def _counted(self, kind: str, error: ArchiveError) -> ArchiveError:
        results = {ArchiveDenied: "denied", ArchiveMissing: "missing", ArchiveDamaged: "damaged"}
        self._traffic.count(kind, results.get(type(error), "unavailable"))
        return error
