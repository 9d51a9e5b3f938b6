"""The one entrance of archive rows into this node's copies (rfc/0016).

Whoever has rows for a copy, from an upload, from another node, from a client's request, gives them to :class:`Facts`. Here, and nowhere else,
rows of condemned objects are kept out. (The index by chunk id is fed from the copies themselves: :mod:`node.archive.indexing`.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from amberblob.archives import ArchivedChunk
from amberblob.mutations import Archived
from chunkstore.interface import ReplicaStore


class Barred(Protocol):
    """Which objects of the target are condemned here; answers from memory."""

    def bars(self, target_path: str) -> bool:
        """Whether rows of that object are refused."""
        ...

    def using(self, target_paths: Iterable[str]) -> AbstractContextManager[frozenset[str]]:
        """Rows of these are on their way to other nodes: see :meth:`Facts.using`."""
        ...


def _ignore(slot: int) -> None:
    """Nobody wants to know."""


class NothingBarred:
    """Nothing is condemned."""

    def bars(self, target_path: str) -> bool:
        return False

    def using(self, target_paths: Iterable[str]) -> AbstractContextManager[frozenset[str]]:
        return nullcontext(frozenset(target_paths))


class Facts:
    """Takes rows.

    Attributes:
        on_taken: called with the slot whenever rows were taken.
        barred: which objects are condemned. Set once, while the node is put together.
        refused: rows that were kept out since the start.
    """

    def __init__(self, store: ReplicaStore) -> None:
        self.barred: Barred = NothingBarred()
        self.on_taken: Callable[[int], None] = _ignore
        self.refused = 0
        self._store = store
        self._seen_ms = 0

    def admitted(self, chunks: Iterable[ArchivedChunk]) -> tuple[ArchivedChunk, ...]:
        """Those that can be true, and do not name a condemned object."""
        bars = self.barred.bars
        return tuple(chunk for chunk in chunks if chunk.possible and not bars(chunk.target_path))

    def give_way(self, row: ArchivedChunk) -> None:
        """The row is to give way to one of another place: such as are made from now on are dated later than it (:meth:`dated`)."""
        self._seen_ms = max(self._seen_ms, row.archived_at_ms)

    def dated(self, now_ms: int) -> int:
        """When rows that are made now were archived: now, or later than all that are to give way to them, if those have come from a clock that was ahead.

        Else what is sent anew, because its place is damaged or to be emptied, would be sent again and again, and never take that one's place.
        """
        return max(now_ms, self._seen_ms + 1)

    def using(self, target_paths: Iterable[str]) -> AbstractContextManager[frozenset[str]]:
        """Rows of these objects that no copy here has are on their way to other nodes: meanwhile this node does not agree to their being deleted.

        Yields those of which that may be; the others are being deleted, and whoever is sent rows of them refuses.
        """
        return self.barred.using(target_paths)

    def take(
        self, slot: int, blob_id: str, chunks: Sequence[ArchivedChunk], *, at_ms: int, evicted: bool = False
    ) -> int:
        """Merge rows into the slot's copy, at once; the position at which they are durable, 0 if all were kept out.

        Nothing is awaited between the look at what is condemned and the change: who condemns an object counts its rows after that.

        Args:
            at_ms: since when a blob that nothing refers to counts as staged.
            evicted: see :class:`amberblob.mutations.Archived`.

        Raises: DiskFailed.
        """
        admitted = self.admitted(chunks)
        self.refused += len(chunks) - len(admitted)
        if not admitted:
            return 0
        position = self._store.apply(
            Archived(slot=slot, blob_id=blob_id, chunks=admitted, at_ms=at_ms, evicted=evicted)
        )
        self.on_taken(slot)
        return position
