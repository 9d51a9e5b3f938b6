"""What the archive asks of a target. One contract suite (tests/contract/archive) runs on every implementation.

Names are relative to the target's URL, with ``/`` between their parts, ASCII, at most 512 characters; no part begins with a dot,
and no name is the beginning of another's up to a ``/`` (a folder cannot have both). A name is stored once and never again, but by who tries the same
content again: what replaces something has a name of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from archive.traffic import Pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One object of a target.

    Attributes:
        name: relative to the target.
        size_bytes: of its content.
        etag: changes with its content, as far as the target tells.
        modified_ms: when it was stored, by the target's clock, epoch milliseconds.
        version: the target's own id of this version; None where it keeps none.
    """

    name: str
    size_bytes: int
    etag: str
    modified_ms: int
    version: str | None = None


class Target(Protocol):
    """A place for objects. Every method may raise ArchiveUnavailable and ArchiveDenied (:mod:`amberblob.errors`); all may be cancelled.

    Attributes:
        url: as the operator gave it, without secrets.
    """

    @property
    def url(self) -> str: ...

    def paced(self, pace: Pace) -> Target:
        """The same target (connections, threads, counts) for somebody who keeps to a pace: a job. Only the original is closed."""
        ...

    async def put(self, name: str, parts: AsyncIterable[bytes]) -> Stored:
        """Store what comes, durably, with checksums sent along; it is listed and readable on return.

        Parts are of any size, at most 64 MiB each; memory is bounded whatever they add up to. What raises, or is cancelled, leaves nothing that is listed.
        """
        ...

    def read(self, name: str, start: int = 0, end: int | None = None, *, etag: str = "") -> AsyncIterator[bytes]:
        """The bytes of a range (end exclusive; None: to the end), in pieces as they come, at most 1 MiB each. Close the iterator when done early.

        Args:
            etag: the object must have this ETag still.

        Raises:
            ArchiveMissing: there is no such object.
            ArchiveDamaged: it ends before ``end``, or has another ETag.
        """
        ...

    async def head(self, name: str) -> Stored:
        """What is known of it. Raises: ArchiveMissing."""
        ...

    async def page(self, prefix: str, after: str, limit: int) -> list[Stored]:
        """Objects whose names begin with ``prefix`` and are above ``after``, ascending (by UTF-8 bytes), at most ``limit`` (1 to 1,000). Empty: that was all."""
        ...

    async def delete(self, names: Sequence[str]) -> None:
        """Delete these, at most 1,000; such as are not there are fine. Raises also: ArchiveError, naming those that stayed."""
        ...

    async def probe(self) -> None:
        """Store, read and delete a small object. Raises what is wrong, and what to do about it."""
        ...

    async def sweep(self, before_ms: int) -> int:
        """Remove what broken uploads left before that time (by the target's clock): it is not listed, but takes room. How many of them there were."""
        ...

    async def close(self) -> None:
        """Let go of connections and threads."""
        ...


class Source(Protocol):
    """A bucket that is somebody else's, to be read: names are its keys, any UTF-8 text. As :class:`Target` otherwise."""

    @property
    def url(self) -> str: ...

    def paced(self, pace: Pace) -> Source: ...

    def read(self, name: str, start: int = 0, end: int | None = None, *, etag: str = "") -> AsyncIterator[bytes]: ...

    async def head(self, name: str) -> Stored: ...

    async def page(self, prefix: str, after: str, limit: int) -> list[Stored]: ...

    async def close(self) -> None: ...
