"""Whether what clients saw of one path can be explained by one order of what they did.

The search walks through the history once, from event to event, with the set of all worlds that are still possible
(Lowe, Testing for linearizability, 2017: just-in-time linearization). A world is a state, the calls under way that
have happened in it already, and the calls of unknown outcome that it has used up: those stay open for ever, and may
happen at any later time or never. A call happens in a world only when it must, because a call returns whose answer
asks for it. When no world is left the history has no order, and the call that just returned tells where.

What keeps the worlds few, and loses none that matters: of two worlds, one is dropped when whatever may follow in it
may also follow in the other.

* A call whose answer says that it changed nothing (a read, a refusal) happens as soon as it can: whoever still has
  it to do is no better off.
* Such a call that can happen at once needs nothing else to happen before it: that may still happen after it.
* A world that another one can become by calls that are still open is dropped.
* Calls of unknown outcome that ask for the very same are used in the order in which they were made.
* Versions grow. So a put whose version is known (from its answer or, since versions never vanish, from the read after
  everything was healed) happens only when all puts with lower versions have.

That is exact, and may yet take long where many outcomes are unknown. An order, once found, is proof enough; so a search
that keeps only the worlds that used up the fewest unknown calls goes first, and the whole one decides if it fails.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from amberblob.manifest import Record, covers
from node.protocol.operations import NO_CONDITIONS
from sim.history import READS, Call, Seen

SEARCH_MAX = 200_000
"""Worlds looked at before the search is given up."""

ANY_VERSION = -1
"""In a :class:`~sim.history.Seen`: a head there was, whatever its version."""

WIDTHS = (8, 64, 512)
"""How many worlds are kept by the searches that go first."""


class Versions:
    """The versions of a path, oldest to newest, as a chain. Each chain exists once, so that ``is`` compares them."""

    __slots__ = ("before", "etag", "following", "number")

    def __init__(self, before: Versions | None = None, number: int = 0, etag: str = "") -> None:
        self.before = before
        self.number = number
        self.etag = etag
        self.following: dict[tuple[int, str], Versions] = {}

    def then(self, number: int, etag: str) -> Versions:
        """This chain and one version more."""
        found = self.following.get((number, etag))
        if found is None:
            found = self.following[number, etag] = Versions(self, number, etag)
        return found

    def newest_first(self) -> Iterator[tuple[int, str]]:
        at = self
        while at.before is not None:
            yield at.number, at.etag
            at = at.before

    def etag_of(self, version: int) -> str | None:
        at = self
        while at.before is not None and at.number >= version:
            if at.number == version:
                return at.etag
            at = at.before
        return None


State = tuple[int, int, int, int, Versions]
"""(revision, version_max, live, taken, versions); live and taken are bit masks over versions."""

First = tuple[int, int, int, int, tuple[tuple[int, str], ...]]
"""A state with its versions written out: ((version, etag), …), ascending."""

NOTHING: First = (0, 0, 0, 0, ())
"""The state of a path that nobody has written."""


def state_of(first: First) -> State:
    """A state as the search wants it."""
    revision, version_max, live, taken, rows = first
    versions = Versions()
    for number, etag in rows:
        versions = versions.then(number, etag)
    return revision, version_max, live, taken, versions


def apply_call(call: Call, state: State) -> tuple[tuple[Any, ...], State]:
    """What one write does to the state when it happens at one moment, alone; and everything a client may be told."""
    revision, version_max, live, taken, versions = state
    head = live.bit_length() - 1 if live else 0
    conditions = call.conditions
    if conditions is not NO_CONDITIONS:
        etag = versions.etag_of(head)
        if (
            (conditions.absent and head)
            or (conditions.etags and (not head or (conditions.etags != ("*",) and etag not in conditions.etags)))
            or (conditions.version is not None and conditions.version != head)
        ):
            return (412, head, etag), state
    kind, version = call.kind, call.version
    if kind == "put":
        number = version_max + 1 if version is None else version
        if number <= version_max:
            return (409, version_max), state
        return ("ok", number), (revision + 1, number, live | 1 << number, taken, versions.then(number, call.etag))
    if kind == "delete":
        if not head:
            return (404,), state
        return ("ok", head), (revision + 1, version_max, 0, live, versions)
    if kind == "delete-version":
        assert version is not None
        if not live >> version & 1:
            return (404,), state
        return ("ok", version), (revision + 1, version_max, live & ~(1 << version), 1 << version, versions)
    assert kind == "restore"
    if version is None:
        if not taken:
            return (404,), state
        lifted, taken = taken, 0
    else:
        if versions.etag_of(version) is None:
            return (404,), state
        if live >> version & 1:
            return ("same", head), state
        lifted = 1 << version
        taken &= ~lifted
    live |= lifted
    return ("ok", live.bit_length() - 1), (revision + 1, version_max, live, taken, versions)


def agrees(told: tuple[Any, ...], result: tuple[Any, ...]) -> bool:
    """Whether a client that was told ``result`` was told the truth, as far as that goes."""
    if result[0] == "done":
        return told[0] in ("ok", "same") and told[1 : len(result)] == result[1:]
    return told[: len(result)] == result


def shows(call: Call, state: State) -> bool:
    """Whether a read of this state tells what the call was told."""
    assert call.result is not None
    told = call.result[1]
    live, versions = state[2], state[4]
    if call.kind == "read-version":
        etag = versions.etag_of(call.version or 0)
        return bool(told == (None if etag is None else (etag, bool(live >> (call.version or 0) & 1))))
    if call.kind == "read":
        return _shows_head(told, state)
    head, rows = told
    return _shows_head(head, state) and rows == tuple(
        (number, etag, bool(live >> number & 1)) for number, etag in versions.newest_first()
    )


def _shows_head(told: Record | Seen | None, state: State) -> bool:
    revision, version_max, live, _taken, versions = state
    head = live.bit_length() - 1 if live else 0
    if told is None:
        return revision == 0
    if isinstance(told, Seen):
        return (
            (told.version == head or (told.version == ANY_VERSION and head > 0))
            and (told.etag is None or told.etag == versions.etag_of(head))
            and (told.version_max is None or told.version_max == version_max)
        )
    return (
        told.revision == revision
        and told.version_max == version_max
        and (told.head.version if told.head else 0) == head
        and (told.head is None or told.head.etag == versions.etag_of(head))
        and all(covers(told.live, number) == bool(live >> number & 1) for number, _ in versions.newest_first())
    )


@dataclass(slots=True)
class Finding:
    """What a search found.

    Attributes:
        verdict: whether there is an order; None: the search was given up.
        stuck: the call whose answer nothing explains, when there is no order; or at which it was given up.
        states: the states that were possible when it returned.
        looked: how many worlds were looked at.
        widest: the most worlds that were possible at once.
    """

    verdict: bool | None
    stuck: Call | None = None
    states: list[State] = field(default_factory=list)
    looked: int = 0
    widest: int = 1


def linearizable(calls: Iterable[Call], first: First = NOTHING) -> bool | None:
    """Whether the calls on one path have an order that respects time and the specification.

    None: the search was given up.
    """
    return search(calls, first).verdict


def search(calls: Iterable[Call], first: First = NOTHING, *, looks_max: int = SEARCH_MAX) -> Finding:
    """As :func:`linearizable`, and where it ends when there is no order."""
    calls = list(calls)
    looked = 0
    for width in WIDTHS:
        attempt = _Search(calls, first, looks_max, width)
        finding = attempt.run()
        looked += finding.looked
        if finding.verdict is True or not attempt.left_out:
            finding.looked = looked
            return finding
    finding = _Search(calls, first, looks_max).run()
    finding.looked += looked
    return finding


World = tuple[State, int, int]
"""(state, calls under way that have happened, calls of unknown outcome that have happened): bit masks of calls."""

Worlds = dict[World, None]
"""A set that keeps its order: a search goes the same way every time."""


@dataclass(slots=True)
class _Item:
    """A call, as the search sees it."""

    index: int
    call: Call
    invoked: float
    ended: float
    result: tuple[Any, ...] | None
    passive: bool
    """Its answer says that it changed nothing."""
    alike: object = None
    """Calls of unknown outcome with equal ``alike`` ask for the same."""

    @property
    def bit(self) -> int:
        return 1 << self.index


class _GivenUp(Exception):
    pass


class _Search:
    """``width``: how many worlds are kept at most. :attr:`left_out`: some were not, so only True is a verdict."""

    def __init__(self, calls: list[Call], first: First, looks_max: int, width: int | None = None) -> None:
        self.first = state_of(first)
        self.looks_max = looks_max
        self.width = width
        self.left_out = False
        self.finding = Finding(None)
        self.items: list[_Item] = []
        rows = _rows_at_the_end(calls)
        for call in calls:
            self._add(call, rows)
        self.puts = sorted(
            item.result[1]
            for item in self.items
            if item.call.kind == "put" and item.result is not None and item.result[0] == "ok"
        )
        self.counts_revisions = any(_tells_revision(item) for item in self.items)
        self.open: list[_Item] = []

    def _add(self, call: Call, rows: dict[str, int] | None) -> None:
        if call.void:
            return
        result, ended = call.result, call.ended
        if result is None:
            ended = None
            if call.kind in READS:
                return
            if call.kind == "put" and rows is not None:
                if call.etag not in rows:
                    return
                result = ("ok", rows[call.etag])
        passive = call.kind in READS or (result is not None and result[0] in (404, 409, 412, "same"))
        alike = (call.kind, call.version, call.conditions, call.etag if call.kind == "put" else "")
        end = float("inf") if ended is None else ended
        self.items.append(_Item(len(self.items), call, call.invoked, end, result, passive, alike))

    def run(self) -> Finding:
        finding = self.finding
        events: list[tuple[float, int, _Item]] = []
        for item in self.items:
            events.append((item.invoked, 0, item))
            if item.result is not None:
                events.append((item.ended, 1, item))
        events.sort(key=lambda event: event[:2])  # what begins when something ends is concurrent with it
        worlds: Worlds = {(self.first, 0, 0): None}
        for _, returns, item in events:
            before = worlds
            try:
                if not returns:
                    self.open.append(item)
                    if item.passive:
                        worlds = dict.fromkeys(self._see(world, (item,)) for world in worlds)
                    continue
                worlds = self._returned(item, worlds)
                self.open.remove(item)
                worlds = self._fewest(worlds)
            except _GivenUp:
                finding.stuck = item.call
                finding.states = [world[0] for world in before]
                return finding
            finding.widest = max(finding.widest, len(worlds))
            if not worlds:
                finding.verdict = False
                finding.stuck = item.call
                finding.states = list({world[0]: None for world in before})
                return finding
        finding.verdict = True
        return finding

    # -- one event

    def _returned(self, item: _Item, worlds: Worlds) -> Worlds:
        """The worlds in which the call has happened, now that it must have."""
        bit = item.bit
        results: dict[World, None] = {}
        seen: set[World] = set()
        level: list[World] = []
        for world in worlds:
            if world[1] & bit:
                results[world[0], world[1] & ~bit, world[2]] = None
            else:
                level.append(world)
        active = [other for other in self.open if not other.passive]
        while level:
            if self.width is not None and len(results) >= self.width:
                self.left_out = True
                break
            following: list[World] = []
            for world in level:
                if world in seen:
                    continue
                seen.add(world)
                self._look()
                for after in self._steps(world, active):
                    if after[1] & bit:
                        results[after[0], after[1] & ~bit, after[2]] = None
                    else:
                        following.append(after)
            level = following
        return results

    def _fewest(self, worlds: Worlds) -> Worlds:
        """Without those that offer nothing that another one does not."""
        if len(worlds) < 2:
            return worlds
        active = [item for item in self.open if not item.passive]
        reached: set[World] = set()
        for world in worlds:
            self._look()
            reached.update(after for after in self._steps(world, active) if after in worlds)
        passive = sum(item.bit for item in self.open if item.passive)
        kept = _without_poorer([world for world in worlds if world not in reached], passive)
        if self.width is not None and len(kept) > self.width:
            self.left_out = True
            kept = sorted(kept, key=lambda world: world[2].bit_count())[: self.width]
        return dict.fromkeys(kept)

    def _steps(self, world: World, active: list[_Item]) -> Iterator[World]:
        """What may happen next: each call under way that changes something, as far as its answer allows."""
        state, happened, used = world
        tried: set[object] = set()
        following = bisect_right(self.puts, state[1])
        next_put = self.puts[following] if following < len(self.puts) else None
        for item in active:
            bit = item.bit
            if (happened | used) & bit:
                continue
            if item.result is None:
                if item.alike in tried:
                    continue
                tried.add(item.alike)
            elif item.call.kind == "put" and item.result[0] == "ok" and item.result[1] != next_put:
                continue
            told, after = apply_call(item.call, state)
            if item.result is None:
                if after is state:
                    continue
                # A put of unknown version must not take the place of one that is known to come.
                if next_put is not None and after[1] >= next_put:
                    continue
                used_after, happened_after = used | bit, happened
            else:
                if not agrees(told, item.result):
                    continue
                used_after, happened_after = used, happened | bit
            if not self.counts_revisions:
                after = (0, *after[1:])
            yield self._see((after, happened_after, used_after), self.open)

    def _see(self, world: World, items: Iterable[_Item]) -> World:
        """Let every call happen that changes nothing and is answered by this state."""
        state, happened, used = world
        for item in items:
            if not item.passive or happened & item.bit:
                continue
            call = item.call
            assert item.result is not None
            if shows(call, state) if call.kind in READS else self._refused(call, state, item.result):
                happened |= item.bit
        return state, happened, used

    @staticmethod
    def _refused(call: Call, state: State, result: tuple[Any, ...]) -> bool:
        told, after = apply_call(call, state)
        return after is state and agrees(told, result)

    def _look(self) -> None:
        self.finding.looked += 1
        if self.finding.looked > self.looks_max:
            raise _GivenUp


def _without_poorer(worlds: list[World], passive: int) -> list[World]:
    """Of worlds with one state and the same changes to come, those with fewer ``passive`` calls to do and more to use."""
    alike: dict[tuple[State, int], list[World]] = {}
    for world in worlds:
        alike.setdefault((world[0], world[1] & ~passive), []).append(world)
    kept: list[World] = []
    for group in alike.values():
        for world in group:
            _, happened, used = world
            if not any(
                other is not world and other[1] & happened == happened and other[2] & used == other[2]
                for other in group
            ):
                kept.append(world)
    return kept


def _rows_at_the_end(calls: list[Call]) -> dict[str, int] | None:
    """The version of each etag, by the last read after everything was healed; None if there was none."""
    rows: dict[str, int] | None = None
    for call in calls:
        if call.kind == "read-all" and call.number < 0 and call.result is not None:
            rows = {etag: version for version, etag, _ in call.result[1][1]}
    return rows


def _tells_revision(item: _Item) -> bool:
    if item.call.kind not in ("read", "read-all") or item.result is None:
        return False
    told = item.result[1]
    return not isinstance(told if item.call.kind == "read" else told[0], Seen)
