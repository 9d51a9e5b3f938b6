"""LIST: pages of the nodes' indexes, merged so that the result is complete.

Each slot has to be covered by a majority of its voters (of both sets, while it moves). Within the stretch that all of them told, a path's
entries are votes of a quorum read: the highest accepted ballot is the state; it is decided if a voter says so or
a majority reports it, and otherwise the path is read strongly. So every acknowledged write that ended before the
listing began is in it. It is no snapshot: writes during the listing may or may not be.

Nodes leave out what is deleted for certain, however much that is, unless it was asked for. So the silence of one
may hide a delete that another has not heard of, and a path counts only where a majority told something of it; else
it is read strongly, too. An object that lives was accepted by a majority, so at least one of those asked tells of it.

No more nodes are asked than a majority of every slot needs, this one first; the others when one of those fails or is
slow, or when so much is undecided that one more page is cheaper than the reads.

One stretch goes by the routes of one moment. A copy that has seen a later epoch of its slot does not count by them: whatever
was acknowledged in a later one, some copy of each majority of the voters before has seen it. Then the newer routes are waited for.

With a delimiter each node tells one witness per group. A group is live when a majority names the same witness at
the same ballot; if they differ, the group is looked through without the delimiter until a live path is found.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from amberblob.ballot import Ballot
from amberblob.errors import NotFound, PeerError, QuorumUnavailable, StaleRoute
from amberblob.limits import LIST_LIMIT_MAX
from amberblob.prefixes import after_prefix, group_of
from amberblob.wire import QueryScan, ScanEntry, ScanReply
from node.coordinator import AGAIN_S, Coordinator
from node.objects.lookup import Lookup
from node.protocol.quorum import Electorate, enough_of
from node.routing import Electorates, Routing
from node.service import ListedObject, ListPage

SCAN_LIMIT = LIST_LIMIT_MAX + 1
SCAN_LIMIT_MIN = 100
PARALLEL_READS = 16
PATIENCE_S = 0.2
"""When those that were asked first take longer, all others are asked, too."""
UNSURE_MAX = PARALLEL_READS
"""With more undecided paths than this in a stretch the rest of the nodes is asked, too ..."""
NEWS_PATIENCE_S = 2.0
"""How long newer routes are waited for that may not come: the registry is away, or copies without which there is no majority are away or
lost. Else the news are on their way, and a listing waits for them as a read does: until its time is over."""
ROUTE_POLL_S = 0.02
"""How often is looked for the newer routes of which a node knows, or which others have not seen yet."""
REST_PATIENCE_S = 0.5
"""... and so long is waited for them. What is undecided then is read strongly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What a listing wants to know."""

    prefix: str
    delimiter: str
    limit: int
    tombstoned: bool
    at_ms: int | None

    @property
    def dead(self) -> bool:
        """Whether paths without a live version count too. Groups are then made here, from the full walk."""
        return self.tombstoned or self.at_ms is not None

    @property
    def node_delimiter(self) -> str:
        """The delimiter that nodes are asked to jump by."""
        return "" if self.dead else self.delimiter

    def needs_history(self, entry: ScanEntry) -> bool:
        """Whether more than the newest state has to be known of the path."""
        return (self.at_ms is not None and entry.changed_at_ms > self.at_ms) or (self.tombstoned and not entry.version)


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What a quorum of nodes told of ``[start, end)``; ``end`` None: to the end of the prefix."""

    end: str | None
    dead: bool
    """Whether they told of paths that are deleted for certain."""
    entries: dict[str, list[ScanEntry]] = field(default_factory=dict)
    """By path: what each node told whose copy of the entry's slot counts."""
    tellers: dict[str, list[str]] = field(default_factory=dict)
    """By path: which nodes told the entries, in their order. Only of slots that move: there it matters who they are."""
    electorates: dict[int, Electorate] = field(default_factory=dict)
    """By slot."""

    def _by_majority(self, path: str, slot: int, ballot: Ballot | None = None) -> bool:
        """Whether a majority told of the path; with a ballot: told of it at that ballot."""
        votes, electorate = self.entries[path], self.electorates[slot]
        if not electorate.joint:
            told = len(votes) if ballot is None else sum(entry.ballot == ballot for entry in votes)
            return told >= electorate.sets[0].majority
        tellers = zip(self.tellers[path], votes, strict=True)
        return electorate.is_majority([node for node, entry in tellers if ballot is None or entry.ballot == ballot])

    def decided(self, path: str) -> ScanEntry | None:
        """The entry at the highest ballot if it is known to be chosen, else None."""
        votes = self.entries[path]
        best, chosen = votes[0], False
        for entry in votes:
            if entry.ballot == best.ballot:
                chosen = chosen or entry.chosen
            elif entry.ballot > best.ballot:
                best, chosen = entry, entry.chosen
        if not self.dead and not self._by_majority(path, best.slot):
            return None
        return best if chosen or self._by_majority(path, best.slot, best.ballot) else None

    def has_witness(self, paths: Iterable[str]) -> bool:
        """Whether a majority names the same of these paths as the witness of their group."""
        for path in paths:
            votes = self.entries[path]
            best = max(votes, key=lambda entry: entry.ballot)
            # Nodes that name another witness say nothing of this one, so only a majority's word is enough.
            if best.version and self._by_majority(path, best.slot, best.ballot):
                return True
        return False

    def is_unsure(self) -> bool:
        """Whether many paths are undecided."""
        left = UNSURE_MAX
        for path in self.entries:
            if self.decided(path) is None:
                left -= 1
                if left < 0:
                    return True
        return False


def _enough(nodes: Iterable[str], electorates: Sequence[Electorate]) -> list[str]:
    """Of the nodes, in their order, those that make a majority of every electorate if none fails."""
    return enough_of(nodes, {each: each.majority for electorate in electorates for each in electorate.sets})


def _counts(electorate: Electorate, node: str, reply: ScanReply) -> bool:
    """Whether what the node told of the slot is of a copy that counts."""
    slot = electorate.slot
    incarnation = reply.incarnations.get(slot, reply.incarnation)
    return electorate.counts(node, incarnation) and reply.epochs.get(slot, 1) <= electorate.epoch


class _RoutesDiffer(Exception):
    """All answered, and too many go by other routes than this node; ``error`` is what to say if that lasts.

    ``for_long``: the routes may not become the same soon.
    """

    def __init__(self, error: QuorumUnavailable, *, for_long: bool) -> None:
        super().__init__(error.detail)
        self.error = error
        self.for_long = for_long


def _shown(entry: ScanEntry) -> ListedObject:
    return ListedObject(
        path=entry.path,
        version=entry.version,
        blob_id=entry.blob_id,
        size=entry.size,
        etag=entry.etag,
        created_at_ms=entry.created_at_ms,
        content_type=entry.content_type,
    )


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
        asked = _Asked(prefix=prefix, delimiter=delimiter, limit=limit, tombstoned=tombstoned, at_ms=at_ms)
        found: list[ListedObject | str] = []
        position: str | None = max(start, prefix)
        while position is not None and len(found) <= limit:
            wanted = min(SCAN_LIMIT, max(SCAN_LIMIT_MIN, limit + 1 - len(found)))
            stretch = await self._scan(prefix, position, asked.node_delimiter, wanted, dead=asked.dead)
            position = await self._walk(stretch, asked, found)
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

    async def _walk(self, stretch: _Stretch, asked: _Asked, found: list[ListedObject | str]) -> str | None:
        """Append what the stretch holds, in order; where to go on, or None at the end."""
        groups: dict[str, list[str]] = {}
        order: list[tuple[str, bool]] = []
        for path in sorted(stretch.entries):
            group = group_of(path, asked.prefix, asked.delimiter)
            if group is None:
                order.append((path, False))
            elif group in groups:
                groups[group].append(path)
            else:
                groups[group] = [path]
                order.append((group, True))
        if groups:
            order.sort()
        at = 0
        while at < len(order):
            batch = order[at : at + max(PARALLEL_READS, asked.limit + 1 - len(found))]
            at += len(batch)
            items = [(name, groups[name] if is_group else None) for name, is_group in batch]
            for (name, is_group), result in zip(batch, await self._look(items, stretch, asked), strict=True):
                if result is None or (is_group and found and found[-1] == name):
                    continue
                found.append(name if is_group else result)
                if len(found) > asked.limit:
                    return None
        if not asked.delimiter or stretch.end is None or not found or not isinstance(found[-1], str):
            return stretch.end
        # The stretch may end inside of a group that was already shown: go on behind it.
        shown = found[-1]
        return after_prefix(shown) if stretch.end.startswith(shown) else stretch.end

    # ---- one path, one group

    async def _look(
        self, items: list[tuple[str, list[str] | None]], stretch: _Stretch, asked: _Asked
    ) -> list[ListedObject | str | None]:
        """For each path, and for each group with its paths, whether it is listed: the object, or any text."""
        results: list[ListedObject | str | None] = []
        unsure: list[int] = []
        for name, paths in items:
            if paths is None:
                entry = stretch.decided(name)
                is_known = entry is not None and not asked.needs_history(entry)
                results.append(_shown(entry) if entry is not None and is_known and entry.version else None)
            else:
                is_known = not asked.dead and stretch.has_witness(paths)
                results.append(name if is_known else None)
            if not is_known:
                unsure.append(len(results) - 1)
        # What a listing shows depends on reads of undecided paths; they go in parallel, a few at a time.
        for first in range(0, len(unsure), PARALLEL_READS):
            some = unsure[first : first + PARALLEL_READS]
            answers = await asyncio.gather(*(self._look_closely(*items[at], stretch, asked) for at in some))
            for at, result in zip(some, answers, strict=True):
                results[at] = result
        return results

    async def _look_closely(
        self, name: str, paths: list[str] | None, stretch: _Stretch, asked: _Asked
    ) -> ListedObject | None:
        if paths is None:
            return await self._object(name, stretch, asked)
        return await self._group(name, paths, stretch, asked)

    async def _object(self, path: str, stretch: _Stretch, asked: _Asked) -> ListedObject | None:
        entry = stretch.decided(path)
        if entry is None or asked.needs_history(entry):
            return await self._read(path, asked.tombstoned, asked.at_ms)
        return _shown(entry) if entry.version else None

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

    async def _group(self, group: str, paths: list[str], stretch: _Stretch, asked: _Asked) -> ListedObject | None:
        """Some listed object of the group, or None when it has none."""
        if asked.dead:
            for path in paths:
                shown = await self._object(path, stretch, asked)
                if shown is not None:
                    return shown
            return None
        position: str | None = group
        limit = SCAN_LIMIT_MIN
        while position is not None:
            inner = await self._scan(group, position, "", min(limit, SCAN_LIMIT), dead=False)
            for path in sorted(inner.entries):
                shown = await self._object(path, inner, asked)
                if shown is not None:
                    return shown
            position = inner.end
            limit *= 4
        return None

    # ---- asking the nodes

    async def _scan(self, prefix: str, start: str, delimiter: str, limit: int, *, dead: bool) -> _Stretch:
        """What a majority of each slot tells. Raises: QuorumUnavailable."""
        request = QueryScan(prefix=prefix, start=start, delimiter=delimiter, limit=limit, dead=dead)
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        end_s = began_s + self._coordinator.read_timeout_s
        while True:
            known, asked_s = self._routing.known(), loop.time()
            try:
                return await self._scan_by(known, request, max(AGAIN_S, end_s - asked_s))
            except _RoutesDiffer as differ:
                if self._coordinator.asks_again(differ.error, asked_s, end_s):
                    continue
                patience_s = NEWS_PATIENCE_S if differ.for_long else self._coordinator.read_timeout_s
                if loop.time() - began_s >= patience_s:
                    raise differ.error from None
            except QuorumUnavailable as error:
                if self._coordinator.asks_again(error, asked_s, end_s):
                    continue
                if known is self._routing.known() or loop.time() >= end_s:
                    raise
            if known is self._routing.known():
                await asyncio.sleep(ROUTE_POLL_S)

    async def _scan_by(self, known: Electorates, request: QueryScan, left_s: float) -> _Stretch:
        """The same by the routes of one moment. Raises: QuorumUnavailable, _RoutesDiffer."""
        electorates = known.distinct()
        replies: dict[str, ScanReply] = {}
        failures: dict[str, str] = {}

        async def ask(node: str) -> None:
            try:
                reply = await self._coordinator.call(node, request, within_s=left_s)
            except PeerError as error:
                failures[node] = error.detail
                return
            if isinstance(reply, ScanReply):
                replies[node] = reply
            else:
                failures[node] = f"answered {reply!r}"

        def covered() -> bool:
            # Slots whose copy somewhere is not the disk's, is mute or has seen a later epoch, are looked at one by one; the others
            # by sets of voters.
            special = {slot for reply in replies.values() for slot in (*reply.incarnations, *reply.epochs)}
            for slot in {electorate.slot for electorate in electorates} | special:
                electorate = known.electorate(slot)
                if not electorate.is_majority([node for node in replies if _counts(electorate, node, replies[node])]):
                    return False
            return True

        spawn = asyncio.get_running_loop().create_task
        nodes = self._in_order({node for electorate in electorates for node in electorate.voters})
        first = _enough(nodes, electorates)
        rest = [node for node in nodes if node not in first]
        pending = {spawn(ask(node)) for node in first}
        late = False
        try:
            while not covered():
                if rest and (late or failures or not pending):
                    pending |= {spawn(ask(node)) for node in rest}
                    rest = []
                if not pending:
                    raise self._uncovered(known, replies, failures)
                done, pending = await asyncio.wait(
                    pending, timeout=PATIENCE_S if rest else None, return_when=asyncio.FIRST_COMPLETED
                )
                late = not done
            stretch = self._merge(known, replies, dead=request.dead)
            if (rest or pending) and stretch.is_unsure():
                pending |= {spawn(ask(node)) for node in rest}
                _, pending = await asyncio.wait(pending, timeout=REST_PATIENCE_S)
                stretch = self._merge(known, replies, dead=request.dead)
        finally:
            for task in pending:
                task.cancel()
        return stretch

    def _uncovered(self, known: Electorates, replies: dict[str, ScanReply], failures: dict[str, str]) -> Exception:
        """Why everybody's answers are not enough: nodes are missing, or those that answered go by other routes than this one."""
        short = [each.majority_short(replies.keys()) for each in known.distinct()]
        wanted, got = max(short, key=lambda pair: pair[0] - pair[1])
        error = QuorumUnavailable.of(wanted, got, failures)
        newest: dict[int, int] = {}
        for slot, epoch in (seen for reply in replies.values() for seen in reply.epochs.items()):
            if epoch > max(known.electorate(slot).epoch, newest.get(slot, 0)):
                newest[slot] = epoch
        heard = self._coordinator.hears_routes()
        if newest and not heard:
            slot = min(newest)
            error = StaleRoute.behind(slot, known.electorate(slot).epoch, newest[slot], failures)
        moves = any(each.joint for each in known.distinct())
        if not (newest or moves or not failures):
            return error
        comes = bool(newest) or (moves and not failures)
        return _RoutesDiffer(error, for_long=not (heard and comes))

    def _in_order(self, nodes: Iterable[str]) -> list[str]:
        """The nodes, this one first, then those that can be reached, each node in another order."""
        own, peers = self._coordinator.node, self._coordinator.peers
        return sorted(nodes, key=lambda node: (node != own, not peers.reachable(node), node < own, node))

    @staticmethod
    def _merge(known: Electorates, replies: dict[str, ScanReply], *, dead: bool) -> _Stretch:
        ends = [reply.next_start for reply in replies.values() if reply.next_start is not None]
        end = min(ends) if ends else None
        stretch = _Stretch(end, dead)
        moves = any(each.joint for each in known.distinct())
        entries, electorates = stretch.entries, stretch.electorates
        for node, reply in replies.items():
            counting: dict[int, bool] = {}
            for entry in reply.entries:
                path, slot = entry.path, entry.slot
                if end is not None and path >= end:
                    break
                counts = counting.get(slot)
                if counts is None:
                    electorate = electorates[slot] = known.electorate(slot)
                    counts = counting[slot] = _counts(electorate, node, reply)
                if counts:
                    if moves:
                        stretch.tellers.setdefault(path, []).append(node)
                    votes = entries.get(path)
                    if votes is None:
                        entries[path] = [entry]
                    else:
                        votes.append(entry)
        return stretch
