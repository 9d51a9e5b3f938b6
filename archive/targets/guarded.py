"""A target that is asked whose it is before it is believed (:mod:`archive.identity`)."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Protocol

from amberblob.errors import ArchiveDamaged, ArchiveMissing
from archive.closing import closing
from archive.targets.interface import Source, Stored, Target
from archive.targets.names import PROBES
from archive.traffic import Pace


class Guard(Protocol):
    """Tells whether the target is the cluster's own (:class:`archive.identity.Identity`)."""

    async def confirm(self) -> None: ...

    async def require(self) -> None: ...

    async def enter(self) -> None: ...


class GuardedTarget:
    """A :class:`~archive.targets.interface.Target`. Of a target that is not the cluster's own nothing is missing or damaged, nothing is stored there and nothing deleted:
    ArchiveNotOurs is raised instead. :meth:`probe` and the small objects of who looks whether it answers are free of that.
    """

    def __init__(self, target: Target, guard: Guard) -> None:
        self._target = target
        self.guard = guard

    @property
    def url(self) -> str:
        """The target's."""
        return self._target.url

    def paced(self, pace: Pace) -> GuardedTarget:
        """The same for a job."""
        return GuardedTarget(self._target.paced(pace), self.guard)

    async def put(self, name: str, parts: AsyncIterable[bytes]) -> Stored:
        """Store it. Raises: ArchiveError."""
        if not name.startswith(PROBES):
            await self.guard.enter()
        return await self._target.put(name, parts)

    async def read(self, name: str, start: int = 0, end: int | None = None, *, etag: str = "") -> AsyncIterator[bytes]:
        """The bytes of a range. Raises: ArchiveError."""
        try:
            async with closing(self._target.read(name, start, end, etag=etag)) as pieces:
                async for piece in pieces:
                    yield piece
        except (ArchiveMissing, ArchiveDamaged):
            await self.guard.confirm()
            raise

    async def head(self, name: str) -> Stored:
        """What is known of it. Raises: ArchiveError."""
        try:
            return await self._target.head(name)
        except ArchiveMissing:
            await self.guard.confirm()
            raise

    async def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        """Objects after a name. Raises: ArchiveError."""
        return await self._target.page(prefix, after, limit)

    async def delete(self, names: Sequence[str]) -> None:
        """Delete them. Raises: ArchiveError, naming those that stayed."""
        if not all(name.startswith(PROBES) for name in names):
            await self.guard.require()
        await self._target.delete(names)

    async def probe(self) -> None:
        """Whether it works. Raises: ArchiveError."""
        await self._target.probe()

    async def sweep(self, before_ms: int) -> int:
        """Remove what broken uploads left. Raises: ArchiveError."""
        await self.guard.require()
        return await self._target.sweep(before_ms)

    async def close(self) -> None:
        """Close the target."""
        await self._target.close()


async def confirm(target: Source) -> None:
    """Before it is written down that what ``target`` gave is damaged: whether it is the cluster's own at all. Raises: ArchiveNotOurs, ArchiveError."""
    if isinstance(target, GuardedTarget):
        await target.guard.confirm()
