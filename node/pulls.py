"""Asking for bytes that a copy lacks: the role that the replica needs, filled by ``node.workers.puller``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from amberblob.manifest import Version


class PullRequests(Protocol):
    """Fetches a version's missing bytes from other nodes onto this disk."""

    async def now(self, slot: int, version: Version, holders: tuple[str, ...]) -> bytes | None:
        """Pull what an undecided record needs before it can be accepted.

        An inline body is returned, to be accepted with its record; other bytes are staged, and None is returned.
        Raises: PeerError, StorageError, DigestMismatch.
        """
        ...

    def later(self, slot: int, version: Version, holders: tuple[str, ...]) -> None:
        """Complete a version that this disk refers to, in the background, soon; never raises.

        Whatever becomes of it: the disk remembers by itself the rows that came without their bytes.
        """
        ...

    def missed(self, slot: int, blob_id: str, *, damaged: bool) -> None:
        """Bytes that this disk refers to were asked for and are not here, or failed their hash: have them back.

        The disk remembers it, so that it survives a restart. Never raises.
        """
        ...


class ArchivedBytes(Protocol):
    """What the archive can do for a copy that lacks bytes; filled by :mod:`node.archive.healing`."""

    async def adopt(self, slot: int, version: Version, nodes: Sequence[str]) -> bool:
        """Have this copy live by its archive rows, if another copy does: whether it does so now.

        ``nodes`` are asked, one after the other, until one says that it gave the bytes up. A manifest that is not here comes from the archive. Never raises an AmberError.
        """
        ...

    async def fetch(self, slot: int, version: Version) -> int:
        """Put back what is missing of a version that this disk refers to, from the archive; how many bytes came.

        Raises: ChunkMissing: no copy that answers knows of some chunk there, or it is damaged there. ArchiveError: it cannot be had now. StorageError.
        """
        ...
