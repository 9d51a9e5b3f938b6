"""What a copy tells of a slot, as entries of an export: everything, or what changed since (rfc/0016).

Nothing undecided is told: a register whose record is not known to be chosen is finished by a round first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from itertools import groupby
from typing import Protocol

import msgspec
import structlog

from amberblob.errors import AmberError
from amberblob.limits import HISTORY_PAGE_MAX, KIB
from amberblob.manifest import Version
from amberblob.wire_repair import PathItem
from archive.segments import ArchivedEntry, Entry, GoneEntry, PathEntry
from chunkstore.interface import ReplicaStore
from node.coordinator import Coordinator
from node.protocol.operations import Finish
from node.protocol.quorum import Electorate

log = structlog.get_logger(__name__)

PAGE_BYTES = 512 * KIB
LINES = 1000
PATHS_FEW = 64
SETTLE_TRIES = 4
SETTLE_PAUSE_S = 0.05


class Electorates(Protocol):
    """Who votes on a slot."""

    def electorate(self, slot: int) -> Electorate: ...


class Unsettled(AmberError):
    """What is chosen of a path could not be learnt: its slot cannot be told as a whole now."""

    code = "not-settled"
    retryable = True


class Telling:
    """Reads one node's copies.

    Args:
        store: the disk.
        coordinator: finishes what is undecided.
    """

    def __init__(self, store: ReplicaStore, coordinator: Coordinator, routing: Electorates) -> None:
        self._store = store
        self._coordinator = coordinator
        self._routing = routing

    async def everything(self, slot: int) -> AsyncIterator[Entry]:
        """Every path of the slot, as of now or later. Raises: Unsettled, DiskFailed."""
        after: str | None = ""
        while after is not None:
            items, after = await self._store.items_after(slot, after, PAGE_BYTES)
            for item in items:
                async for entry in self._entries(slot, item):
                    yield entry

    async def paths(self, slot: int, paths: Iterable[str]) -> AsyncIterator[Entry]:
        """These paths, as of now or later; what is forgotten is told as gone. Raises: Unsettled, DiskFailed."""
        ordered = sorted(set(paths))
        for at in range(0, len(ordered), PATHS_FEW):
            few = ordered[at : at + PATHS_FEW]
            items = {item.path: item for item in await self._store.items(slot, few)}
            for path in few:
                if path not in items:
                    yield GoneEntry(path)
                    continue
                async for entry in self._entries(slot, items[path]):
                    yield entry

    async def archived(self, slot: int, after: int) -> AsyncIterator[tuple[int, ArchivedEntry]]:
        """The archive rows above that ``seq``, with the one that each entry reaches to. Raises: DiskFailed."""
        more = True
        while more:
            lines, more = await self._store.archived_after(slot, after, LINES)
            for blob_id, group in groupby(lines, key=lambda line: line.blob_id):
                of_blob = list(group)
                after = of_blob[-1].seq
                yield after, ArchivedEntry(blob_id, tuple(line.chunk for line in of_blob))
            more = more and bool(lines)

    async def logged(self, slot: int, after: int, paths_max: int) -> tuple[set[str], int] | None:
        """The paths of which something became chosen after that line of the log, and the last line that was read.

        None: it is not known any more, or there are more than ``paths_max`` of them. Raises: DiskFailed.
        """
        paths: set[str] = set()
        while True:
            lines, gap = await self._store.log_lines(slot, after, LINES)
            if gap:
                return None
            if not lines:
                return paths, after
            paths.update(line.path for line in lines)
            after = lines[-1].seq
            if len(paths) > paths_max:
                return None

    async def _entries(self, slot: int, item: PathItem) -> AsyncIterator[Entry]:
        settled = item if item.chosen else await self._settled(slot, item.path)
        if settled is None:
            yield GoneEntry(item.path)
            return
        yield PathEntry(settled)
        below = settled.more_below
        while below is not None:
            more = await self._store.items(slot, (item.path,), below=below)
            if not more:
                return
            older = msgspec.structs.replace(more[0], ballot=None, record=None, chosen=False, writes=())
            yield PathEntry(older, continued=True)
            if older.more_below is not None and older.more_below >= below:
                raise Unsettled(f"the disk tells the rows of {item.path!r} in no order")
            below = older.more_below

    async def _settled(self, slot: int, path: str) -> PathItem | None:
        """A path whose register is not known to be chosen, once it is; None: the path is not there any more."""
        for tries in range(SETTLE_TRIES):
            try:
                applied = await self._coordinator.write(self._routing.electorate(slot), path, Finish())
            except AmberError as error:
                raise Unsettled(
                    f"What is chosen of {path!r} cannot be learnt now, so that slot {slot} is not exported: {error.detail}"
                ) from error
            items = await self._store.items(slot, (path,))
            if not items:
                return None
            item = items[0]
            if item.chosen:
                return item
            if tries == SETTLE_TRIES - 1:
                if applied.record is None or applied.ballot is None:
                    return None
                # It is written all the time. This is chosen; whatever is chosen after it has a later line in the log.
                rows = _with(item.rows, applied.record.previous, applied.record.added)
                return msgspec.structs.replace(
                    item, ballot=applied.ballot, record=applied.record, chosen=True, rows=rows
                )
            await asyncio.sleep(SETTLE_PAUSE_S)
        raise AssertionError("the last try returns")


def _with(rows: tuple[Version, ...], *more: Version | None) -> tuple[Version, ...]:
    """Rows, newest first, with those that are lacking."""
    by_version = {row.version: row for row in (*(one for one in more if one is not None), *rows)}
    return tuple(by_version[version] for version in sorted(by_version, reverse=True)[: HISTORY_PAGE_MAX + 2])
