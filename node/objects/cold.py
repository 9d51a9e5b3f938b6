"""What reading asks of the archive: the role that :mod:`node.archive.reads` fills, and what a reader learns on its way through a version."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from amberblob.archives import ArchivedChunk
from amberblob.manifest import ChunkRef, Version

Elsewhere = Callable[[], Awaitable[bytes | memoryview | None]]
"""Asks those for the chunk that most likely do not have it; None: they do not."""


@dataclass(slots=True)
class Course:
    """What one reader of one version learnt so far, so that it does not ask everybody anew for every chunk.

    Attributes:
        chunks: the version's, in order, as far as they are read.
        cold: this copy lives by its archive rows, or this node has none; None: it was not looked.
        gave: nodes that gave a chunk of it as a file.
        lacked: nodes that did not. They are asked again only when nothing else is left.
        rows: where the archive has its chunks, by chunk id; asked: the nodes that told what they know of it.
    """

    chunks: Sequence[ChunkRef] = ()
    cold: bool | None = None
    gave: set[str] = field(default_factory=set)
    lacked: set[str] = field(default_factory=set)
    rows: dict[str, ArchivedChunk] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)


class Arriving(Protocol):
    """A chunk, or a part of one, on its way from the archive: one reader's end of it."""

    def pieces(self) -> AsyncIterator[memoryview]:
        """All bytes that were asked for, as they come, each verified; of a whole chunk the last only when that was.

        Raises: ArchiveError, when the rest cannot be had from anywhere.
        """
        ...

    async def whole(self) -> bytes:
        """All of them, and the end of it. Raises as :meth:`pieces`."""
        ...

    async def close(self) -> None:
        """This reader wants no more of it; when nobody does, it is not fetched any further. May be called twice."""
        ...


class Cold(Protocol):
    """Chunks that are not on the disks."""

    async def cached(self, chunk: ChunkRef) -> bytes | None:
        """The chunk, verified, if it was fetched lately and kept."""
        ...

    async def manifest(self, slot: int, version: Version) -> bytes | None:
        """A version's manifest file, verified; None: no copy that answers knows of it in the archive. Raises as :meth:`open`."""
        ...

    async def open(
        self,
        course: Course,
        slot: int,
        version: Version,
        chunk: ChunkRef,
        low: int,
        high: int,
        elsewhere: Elsewhere,
    ) -> Arriving | None:
        """Begin to fetch what lies between ``low`` and ``high`` of the chunk; on return its first bytes are there. None: no copy that answers
        knows of it in the archive.

        Args:
            elsewhere: what is tried when the archive fails, before and after the first byte.

        Raises: ArchiveUnavailable, ArchiveDenied, ArchiveMissing, ArchiveDamaged.
        """
        ...
