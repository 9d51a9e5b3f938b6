"""LIST: pages of every node's index, merged so that the result is complete.

Each slot has to be covered by a majority of its voters. Within the stretch that all of them told, a path's
entries are votes of a quorum read: the highest accepted ballot is the state; it is decided if a voter says so or
a majority reports it, and otherwise the path is read strongly. So every acknowledged write that ended before the
listing began is in it. It is no snapshot: writes during the listing may or may not be.

With a delimiter each node tells one witness per group. A group is live when a majority names the same witness at
the same ballot; if they differ, the group is looked through without the delimiter until a live path is found.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from amberblob.errors import NotFound, PeerError, QuorumUnavailable
from amberblob.limits import LIST_LIMIT_MAX
from amberblob.prefixes import after_prefix, group_of
from amberblob.wire import QueryScan, ScanEntry, ScanReply
from node.coordinator import Coordinator
from node.objects.lookup import Lookup
from node.routing import Routing
from node.service import ListedObject, ListPage

SCAN_LIMIT = LIST_LIMIT_MAX + 1
SCAN_LIMIT_MIN = 100
PARALLEL_READS = 16


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What a quorum of nodes told of ``[start, end)``; ``end`` None: to the end of the prefix."""

    entries: dict[str, list[tuple[str, ScanEntry]]]
    """By path: (node, entry), only of nodes whose copy of the entry's slot counts."""
    end: str | None


class Listing:
    """Lists the whole cluster."""

    def __init__(self, coordinator: Coordinator, routing: Routing, lookup: Lookup) -> None:
        self._coordinator = coordinator
        self._routing = routing
        self._lookup = lookup

    async def page(
        self, *, prefix: str, delimiter: str, limit: int, start: str, tombstoned: bool, at_ms: int | None
    ) -> ListPage:
        """See :meth:`node.service.ObjectService.list`."""
        # With tombstones or a time, dead paths count too: groups are then made here from the full walk.
        node_delimiter = "" if tombstoned or at_ms is not None else delimiter
        found: list[ListedObject | str] = []
        position: str | None = max(start, prefix)
        while position is not None and len(found) <= limit:
            stretch = await self._scan(
                prefix, position, node_delimiter, min(SCAN_LIMIT, max(SCAN_LIMIT_MIN, limit + 1 - len(found)))
            )
            position = await self._walk(stretch, prefix, delimiter, node_delimiter, limit, tombstoned, at_ms, found)
        page = ListPage(next_start=None)
        more = len(found) > limit
        for item in found[:limit]:
            if isinstance(item, str):
                page.prefixes.append(item)
            else:
                page.objects.append(item)
        if more:
            last = found[limit]
            next_start = last if isinstance(last, str) else last.path
            return ListPage(objects=page.objects, prefixes=page.prefixes, next_start=next_start)
        return page

    async def _walk(
        self,
        stretch: _Stretch,
        prefix: str,
        delimiter: str,
        node_delimiter: str,
        limit: int,
        tombstoned: bool,
        at_ms: int | None,
        found: list[ListedObject | str],
    ) -> str | None:
        """Append what the stretch holds, in order; where to go on, or None at the end."""
        groups: dict[str, list[str]] = {}
        order: list[tuple[str, bool]] = []
        for path in sorted(stretch.entries):
            group = group_of(path, prefix, delimiter)
            if group is None:
                order.append((path, False))
            elif group in groups:
                groups[group].append(path)
            else:
                groups[group] = [path]
                order.append((group, True))
        order.sort()
        # What a listing shows depends on reads of undecided paths; they go in parallel, a batch at a time.
        for at in range(0, len(order), PARALLEL_READS):
            batch = order[at : at + PARALLEL_READS]
            results = await asyncio.gather(
                *(
                    self._group(name, groups[name], stretch, node_delimiter, tombstoned, at_ms)
                    if is_group
                    else self._object(name, stretch.entries[name], tombstoned, at_ms)
                    for name, is_group in batch
                )
            )
            for (name, is_group), result in zip(batch, results, strict=True):
                if result is None or (is_group and found and found[-1] == name):
                    continue
                found.append(name if is_group else result)
                if len(found) > limit:
                    return None
        if not delimiter or stretch.end is None or not found or not isinstance(found[-1], str):
            return stretch.end
        # The stretch may end inside of a group that was already shown: go on behind it.
        shown = found[-1]
        return after_prefix(shown) if stretch.end.startswith(shown) else stretch.end

    # ---- one path, one group

    async def _object(
        self, path: str, votes: list[tuple[str, ScanEntry]], tombstoned: bool, at_ms: int | None
    ) -> ListedObject | None:
        entry = self._decided(votes)
        if entry is None or (at_ms is not None and entry.changed_at_ms > at_ms) or (tombstoned and not entry.version):
            return await self._read(path, tombstoned, at_ms)
        if not entry.version:
            return None
        return ListedObject(
            path=path,
            version=entry.version,
            blob_id=entry.blob_id,
            size=entry.size,
            etag=entry.etag,
            created_at_ms=entry.created_at_ms,
            content_type=entry.content_type,
        )

    def _decided(self, votes: list[tuple[str, ScanEntry]]) -> ScanEntry | None:
        """The entry at the highest ballot if it is known to be chosen, else None."""
        best = max((entry for _, entry in votes), key=lambda entry: entry.ballot)
        same = [node for node, entry in votes if entry.ballot == best.ballot]
        chosen = any(entry.chosen for _, entry in votes if entry.ballot == best.ballot)
        if chosen or self._routing.electorate(best.slot).is_majority(same):
            return best
        return None

    async def _read(self, path: str, tombstoned: bool, at_ms: int | None) -> ListedObject | None:
        electorate = self._routing.of(path)
        try:
            view = await self._lookup.lookup(path, version=None, at_ms=at_ms, consistency="strong")
        except NotFound:
            if not tombstoned:
                return None
            views = await self._lookup.versions(electorate, path)
            views = [v for v in views if at_ms is None or v.version.created_at_ms <= at_ms]
            if not views:
                return None
            view = views[0]
        version = view.version
        dead = view.tombstoned_at_ms is not None and (at_ms is None or view.tombstoned_at_ms <= at_ms)
        return ListedObject(
            path=path,
            version=version.version,
            blob_id=version.blob_id,
            size=version.size,
            etag=version.etag,
            created_at_ms=version.created_at_ms,
            content_type=version.content_type,
            tombstoned=dead,
        )

    async def _group(
        self, group: str, paths: list[str], stretch: _Stretch, node_delimiter: str, tombstoned: bool, at_ms: int | None
    ) -> ListedObject | None:
        """Some listed object of the group, or None when it has none."""
        if not node_delimiter:
            for path in paths:
                shown = await self._object(path, stretch.entries[path], tombstoned, at_ms)
                if shown is not None:
                    return shown
            return None
        for path in paths:
            votes = stretch.entries[path]
            best = max((entry for _, entry in votes), key=lambda entry: entry.ballot)
            same = [node for node, entry in votes if entry.ballot == best.ballot]
            # Nodes that name another witness say nothing of this one, so only a majority's word is enough.
            if best.version and self._routing.electorate(best.slot).is_majority(same):
                return await self._object(path, votes, tombstoned, at_ms)
        position: str | None = group
        while position is not None:
            inner = await self._scan(group, position, "", SCAN_LIMIT)
            for path in sorted(inner.entries):
                shown = await self._object(path, inner.entries[path], tombstoned, at_ms)
                if shown is not None:
                    return shown
            position = inner.end
        return None

    # ---- asking the nodes

    async def _scan(self, prefix: str, start: str, delimiter: str, limit: int) -> _Stretch:
        request = QueryScan(prefix=prefix, start=start, delimiter=delimiter, limit=limit)
        electorates = self._routing.distinct_electorates()
        nodes = sorted({node for electorate in electorates for node in electorate.voters})
        replies: dict[str, ScanReply] = {}
        failures: dict[str, str] = {}

        async def ask(node: str) -> None:
            try:
                reply = await self._coordinator.call(node, request)
            except PeerError as error:
                failures[node] = error.detail
                return
            if isinstance(reply, ScanReply):
                replies[node] = reply
            else:
                failures[node] = f"answered {reply!r}"

        def covered() -> bool:
            # Copies that were lost bear another incarnation and do not count; only then must each slot be looked at.
            lost = any(reply.incarnations for reply in replies.values())
            for electorate in self._routing.electorates() if lost else electorates:
                slot = electorate.slot
                counting = [
                    node
                    for node, reply in replies.items()
                    if electorate.counts(node, reply.incarnations.get(slot, reply.incarnation))
                ]
                if not electorate.is_majority(counting):
                    return False
            return True

        pending = {asyncio.get_running_loop().create_task(ask(node)) for node in nodes}
        try:
            while pending and not covered():
                _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in pending:
                task.cancel()
        if not covered():
            wanted = max(electorate.majority for electorate in electorates)
            raise QuorumUnavailable.of(wanted, len(replies), failures)
        ends = [reply.next_start for reply in replies.values() if reply.next_start is not None]
        end = min(ends) if ends else None
        entries: dict[str, list[tuple[str, ScanEntry]]] = {}
        for node, reply in replies.items():
            for entry in reply.entries:
                if end is not None and entry.path >= end:
                    break
                incarnation = reply.incarnations.get(entry.slot, reply.incarnation)
                if self._routing.electorate(entry.slot).counts(node, incarnation):
                    entries.setdefault(entry.path, []).append((node, entry))
        return _Stretch(entries, end)
