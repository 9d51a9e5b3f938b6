"""A disk's part in comparing replicas: questions to its databases, piece by piece. Belongs to the event loop.

What the databases hold was durable in the journal before, so every answer may be told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial

from amberblob.digests import BUCKETS, SHORT_BYTES
from amberblob.manifest import Version
from amberblob.wire_repair import LogLine, PathItem
from chunkstore import comparedb
from chunkstore.core import DiskCore
from chunkstore.digestdb import NO_SUMS
from chunkstore.interface import SlotTally, Wanted
from chunkstore.paging import ItemPage
from chunkstore.slotdb import NO_TALLY

_SETTLED_AT_ONCE = 16
_TRIM_MAX = 10_000
_TRIM_PIECE = 2000
_PAIR_BYTES = 2 * SHORT_BYTES


def pairs_of(data: bytes) -> dict[bytes, bytes]:
    """Path keys and states that alternate.

    Raises:
        ValueError: these are no pairs.
    """
    if len(data) % _PAIR_BYTES:
        raise ValueError(f"{len(data)} bytes are no pairs of keys and states")
    return {
        data[at : at + SHORT_BYTES]: data[at + SHORT_BYTES : at + _PAIR_BYTES]
        for at in range(0, len(data), _PAIR_BYTES)
    }


class Comparison:
    """See :class:`chunkstore.interface.ReplicaStore` for every method.

    Args:
        tallies: by slot; the database thread replaces them.
    """

    def __init__(self, core: DiskCore, tallies: Mapping[int, SlotTally]) -> None:
        self._core = core
        self._tallies = tallies

    def _is_known(self, slot: int) -> bool:
        return slot in self._core.overlay.known()

    def tally(self, slot: int) -> SlotTally:
        return self._tallies.get(slot, NO_TALLY)

    async def settle(self, slots: Sequence[int]) -> None:
        core = self._core
        behind = [slot for slot in slots if self._is_known(slot) and core.is_behind(slot)]
        for at in range(0, len(behind), _SETTLED_AT_ONCE):
            part = behind[at : at + _SETTLED_AT_ONCE]
            await asyncio.gather(*(core.ask(slot, lambda _: None, barrier=self._barrier(slot)) for slot in part))

    def _barrier(self, slot: int) -> int:
        return self._core.overlay.slot_position(slot)

    async def bucket_sums(self, slot: int) -> bytes:
        if not self._is_known(slot):
            return NO_SUMS
        return await self._core.ask(slot, lambda database: database.sums, barrier=self._barrier(slot))

    async def fingerprints(self, slot: int, buckets: Sequence[int]) -> dict[int, bytes]:
        found: dict[int, list[tuple[bytes, bytes]]] = {bucket: [] for bucket in buckets if 0 <= bucket < BUCKETS}
        after: str | None = "" if self._is_known(slot) else None
        barrier = self._barrier(slot)
        while after is not None:
            question = partial(comparedb.fingerprints, wanted=found, after=after)
            after = await self._core.ask(slot, question, barrier=barrier)
        return {bucket: b"".join(key + state for key, state in sorted(pairs)) for bucket, pairs in found.items()}

    async def items(self, slot: int, paths: Sequence[str], *, below: int | None = None) -> list[PathItem]:
        found: list[PathItem] = []
        left = sorted(set(paths), key=str.encode) if self._is_known(slot) else []
        barrier = max((self._core.overlay.path_position(slot, path) for path in left), default=0)
        while left:
            part, count = await self._core.ask(slot, partial(comparedb.items, paths=left, below=below), barrier=barrier)
            found += part
            del left[:count]
        return found

    async def items_differing(
        self, slot: int, known: Mapping[int, bytes], after: str, size_bytes: int
    ) -> tuple[list[PathItem], str | None]:
        states: dict[bytes, bytes] = {}
        for data in known.values():
            states.update(pairs_of(data))
        return await self._page(slot, after, size_bytes, frozenset(known), states)

    async def items_after(self, slot: int, after: str, size_bytes: int) -> tuple[list[PathItem], str | None]:
        return await self._page(slot, after, size_bytes, frozenset(), None)

    async def _page(
        self, slot: int, after: str, size_bytes: int, buckets: frozenset[int], known: Mapping[bytes, bytes] | None
    ) -> tuple[list[PathItem], str | None]:
        page = ItemPage(size_bytes)
        barrier = self._barrier(slot)
        while self._is_known(slot):
            question = partial(comparedb.fill_page, page=page, after=after, buckets=buckets, known=known)
            piece = await self._core.ask(slot, question, barrier=barrier)
            if piece.full:
                return page.items, piece.last
            if piece.done:
                break
            after = piece.last
        return page.items, None

    async def log_lines(self, slot: int, after: int, limit: int) -> tuple[list[LogLine], bool]:
        if not self._is_known(slot):
            return [], False
        question = partial(comparedb.log_lines, after=after, limit=limit)
        return await self._core.ask(slot, question, barrier=self._barrier(slot))

    async def trim_log(self, slot: int, keep: int) -> int:
        if not self._is_known(slot):
            return 0
        count, went, barrier = 0, _TRIM_PIECE, self._barrier(slot)
        while went == _TRIM_PIECE and count < _TRIM_MAX:
            question = partial(comparedb.trim_log, keep=keep, limit=_TRIM_PIECE)
            went = await self._core.ask(slot, question, barrier=barrier)
            count += went
        return count

    async def wanted(self, slot: int, limit: int) -> list[Wanted]:
        if not self._is_known(slot):
            return []
        return await self._core.ask(slot, partial(comparedb.wanted, limit=limit), barrier=self._barrier(slot))

    async def referred(self, slot: int, blob_id: str) -> tuple[str, Version] | None:
        if not self._is_known(slot):
            return None
        return await self._core.ask(slot, partial(comparedb.referred, blob_id=blob_id), barrier=self._barrier(slot))

    async def memo(self, slot: int, name: str) -> str:
        if not self._is_known(slot):
            return ""
        return await self._core.ask(slot, partial(comparedb.memo, name=name))

    async def set_memo(self, slot: int, name: str, text: str) -> None:
        if self._is_known(slot):
            await self._core.ask(slot, partial(comparedb.set_memo, name=name, text=text))
