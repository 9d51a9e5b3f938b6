"""Objects of the archive that are to be deleted, as a node that is asked sees them (rfc/0016, "Deleting from the bucket").

A node agrees when no row of the object is here, and none is on its way from here. From then on it refuses every row of it, whoever brings
one. The promise is durable before it is told, and the file that it is in has a name, so that a collector sees when it was lost.

The order within :meth:`CondemnedObjects.condemn` carries it: first the object is barred, so that no further row comes in
(:meth:`node.archive.facts.Facts.take` looks and changes without a pause), then all that is here is looked at, and then the mark is written down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence

import structlog

from amberblob.errors import NotReady
from archive.packs import object_ulid
from archive.state import ArchiveState, Part
from chunkstore.interface import ReplicaStore

log = structlog.get_logger(__name__)

REPRIEVED_MAX = 50_000
"""Marks that were taken off, remembered: the question that put one on may come a second time, late."""


def owner_of(token: str) -> str:
    """The node that collects under the token."""
    return token.partition("/")[0]


class CondemnedObjects:
    """One node's marks.

    Args:
        state: open.
        gone: whether a node was removed from the cluster and is not in the route table any more. One of which the table
            knows nothing may have come a moment ago, so its tokens count. Raises: NotReady; then every token counts.
    """

    def __init__(self, store: ReplicaStore, state: ArchiveState, gone: Callable[[str], bool]) -> None:
        self._store = store
        self._state = state
        self._gone = gone
        self._tokens: dict[str, set[str]] = {}
        for mark in state.found:
            if mark.part is Part.OTHERS:
                self._tokens.setdefault(mark.name, set()).add(mark.token)
        self._asked: Counter[str] = Counter()
        self._using: Counter[str] = Counter()
        self._reprieved: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._lock = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._tokens)

    # -- what everything that brings rows asks

    def bars(self, target_path: str) -> bool:
        """Whether rows of that object are refused; from memory."""
        if target_path in self._asked:
            return True
        tokens = self._tokens.get(target_path)
        if tokens is None:
            return False
        return not all(map(self._is_void, tokens))

    def _is_void(self, token: str) -> bool:
        """Whether the token's owner is gone, by what is known here."""
        try:
            return self._gone(owner_of(token))
        except NotReady:
            return False

    @contextlib.contextmanager
    def using(self, target_paths: Iterable[str]) -> Iterator[frozenset[str]]:
        """Rows of these objects are on their way from this node to others: while that is so, it does not agree to their being deleted.

        For rows that no copy here has: those that a client's write stages on other nodes, or a job installs there. Yields
        the objects of which it may be done; rows of the others must not be sent.
        """
        may = frozenset(name for name in target_paths if not self.bars(name))
        self._using.update(may)
        try:
            yield may
        finally:
            for name in may:
                self._using[name] -= 1
                if not self._using[name]:
                    del self._using[name]

    # -- what collectors ask

    async def condemn(self, names: Sequence[str], token: str) -> tuple[tuple[str, ...], str]:
        """Those that are refused, and the file in which the token stands on the others, durably.

        A node that is gone is refused: its token would not count. If it has come back and that was not heard of here yet, it asks again another time.

        Raises: DiskFailed, DiskFull: nothing was promised.
        """
        if self._is_void(token):
            return tuple(names), self._state.identity
        async with self._lock:
            asked = [name for name in names if object_ulid(name) is not None and (name, token) not in self._reprieved]
            self._asked.update(asked)
            try:
                used = {name for name in asked if name in self._using} | await self._named(asked)
                agreed = [name for name in asked if name not in used]
                marks = await self._state.condemn(agreed, token, Part.OTHERS)
                for name in agreed:
                    self._tokens.setdefault(name, set()).add(token)
            finally:
                self._asked.subtract(asked)
                self._asked = +self._asked
            return tuple(name for name in names if name not in set(agreed)), marks

    async def reprieve(self, names: Sequence[str], token: str) -> None:
        """Take the token off these, or off all. Raises: DiskFailed, DiskFull."""
        async with self._lock:
            await self._state.reprieve(names, token, Part.OTHERS)
            for name in names or [name for name, tokens in self._tokens.items() if token in tokens]:
                self._reprieved[name, token] = None
                tokens = self._tokens.get(name, set())
                tokens.discard(token)
                if not tokens:
                    self._tokens.pop(name, None)
            while len(self._reprieved) > REPRIEVED_MAX:
                self._reprieved.popitem(last=False)

    async def let_go(self) -> None:
        """Take off the tokens of nodes that are gone. Raises: DiskFailed, DiskFull.

        They do not count; but once such a node is forgotten nothing tells that it was one, and nobody else takes them off.
        """
        async with self._lock:
            for token in sorted(
                {token for tokens in self._tokens.values() for token in tokens if self._is_void(token)}
            ):
                await self._state.reprieve((), token, Part.OTHERS)
                self._tokens = {name: left for name, tokens in self._tokens.items() if (left := tokens - {token})}

    async def _named(self, names: Sequence[str]) -> set[str]:
        """Those that rows name in any slot of this disk, whatever its part in the routes is."""
        found: set[str] = set()
        for slot in self._store.slots():
            left = [name for name in names if name not in found]
            if not left:
                break
            found |= await self._store.archive_named(slot, left)
        return found
