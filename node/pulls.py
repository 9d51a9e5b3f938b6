"""Asking for bytes that a copy lacks: the role that the replica needs, filled by ``node.workers.puller``."""

from __future__ import annotations

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
        """Complete a version that this disk refers to, in the background, if there is room in the queue; never raises."""
        ...
