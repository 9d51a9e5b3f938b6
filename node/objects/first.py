"""What a PUT asks of the archive where it is acknowledged only when it is archived, too: the role that :mod:`node.archive.through` fills."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from amberblob.manifest import ChunkRef, Version
from node.protocol.quorum import Electorate
from node.protocol.write import Applied
from node.service import ObjectView, PutOptions

MOVES_MAX = 4
"""How many routes a slot may have while one upload ends."""

ReadBack = Callable[[ChunkRef], Awaitable[bytes | memoryview]]
"""Gives a chunk of the body, verified."""


class ArchivedWrite(Protocol):
    """One write whose chunks the archive has."""

    async def stage(self, electorate: Electorate) -> Electorate:
        """Have the archive rows on a write quorum of these voters; where they are already they stay.

        Returns whose voters have them: a newer route's, if one was needed and came meanwhile. Raises: QuorumUnavailable.
        """
        ...

    async def give_up(self) -> None:
        """Nothing refers to the rows, and nothing will. Never raises."""
        ...

    async def confirm(self, applied: Applied, view: ObjectView) -> None:
        """The round is through: have the archive know of the version. Raises: OutcomeUnknown."""
        ...


class WriteThrough(Protocol):
    """Archives bodies before they are written."""

    def wanted(self, path: str) -> bool:
        """Whether a PUT of this path is to be archived first."""
        ...

    async def hint(self, electorate: Electorate, path: str, options: PutOptions) -> None:
        """Look before the body is sent anywhere whether this node may archive it, and at the conditions: those that do not hold now most likely do not later.

        Raises: NotReady: the node was struck off; PreconditionFailed, VersionConflict; QuorumUnavailable.
        """
        ...

    async def archive(
        self,
        electorate: Electorate,
        path: str,
        draft: Version,
        chunks: Sequence[ChunkRef],
        manifest: bytes | None,
        read: ReadBack,
    ) -> ArchivedWrite:
        """Send all chunks of a body, and its manifest, to the archive.

        Raises: ArchiveUnavailable, ArchiveDenied, or another error of the target: nothing was written; ClusterError of ``read``.
        """
        ...
