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
* Calls of unknown outcome that ask for the very same are used in the order in which they were made. Of those that do
  the same under different conditions, one that could happen in fewer states goes first.
* Versions grow. So a put whose version is known (from its answer or, since versions never vanish, from the read after
  everything was healed) happens only when all puts with lower versions have.

That is exact, and may yet take long where many outcomes are unknown. An order, once found, is proof enough; so a search
that keeps only the worlds that used up the fewest unknown calls goes first, and the whole one decides if it fails.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from node.protocol.operations import Conditions
from sim.history import READS, Call
from sim.preparing import Item, Prepared, narrower, prepare
from sim.specification import NOTHING, First, State, agrees, apply_call, shows, state_of

SEARCH_MAX = 100_000
"""Worlds looked at before the search is given up."""

WIDTHS = (8, 64, 512)
"""How many worlds are kept by the searches that go first."""

COMPARED_PER_LOOK = 32
"""Comparing so many worlds with others takes as long as looking at one."""


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
    prepared = prepare(calls)
    left = looks_max
    for width in WIDTHS:
        attempt = _Search(prepared, first, left // 4, width)
        finding = attempt.run()
        left -= finding.looked
        if finding.verdict is True or (finding.verdict is False and not attempt.left_out):
            break
    else:
        finding = _Search(prepared, first, left).run()
        left -= finding.looked
    finding.looked = looks_max - left
    return finding


World = tuple[State, int, int]
"""(state, calls under way that have happened, calls of unknown outcome that have happened): bit masks of calls."""

Worlds = dict[World, None]
"""A set that keeps its order: a search goes the same way every time."""


class _GivenUp(Exception):
    pass


class _Best:
    """Of the worlds that it was shown, those that offer something that no other one does.

    Of two worlds with one state and the same changes under way to come, the one with fewer ``passive`` calls to do and
    more to use is as good or better.
    """

    def __init__(self, passive: int) -> None:
        self._passive = passive
        self._groups: dict[tuple[State, int], list[int]] = {}
        self.compared = 0

    def add(self, world: World) -> bool:
        """Whether the world is kept; those that it makes poorer are not any more."""
        state, happened, used = world
        group = self._groups.setdefault((state, happened & ~self._passive), [])
        lacks = used | (self._passive & ~happened)
        self.compared += len(group)
        for other in group:
            if other & lacks == other:
                return False
        group[:] = [other for other in group if other & lacks != lacks]
        group.append(lacks)
        return True

    def has(self, world: World) -> bool:
        """Whether the world was kept and is still."""
        state, happened, used = world
        lacks = used | (self._passive & ~happened)
        return lacks in self._groups.get((state, happened & ~self._passive), ())

    def worlds(self) -> list[World]:
        """All that is kept, in the order in which their states came."""
        passive = self._passive
        return [
            (state, happened | (passive & ~lacks), lacks & ~passive)
            for (state, happened), group in self._groups.items()
            for lacks in group
        ]


class _Search:
    """``width``: how many worlds are kept at most. :attr:`left_out`: some were not, so only True is a verdict."""

    def __init__(self, prepared: Prepared, first: First, looks_max: int, width: int | None = None) -> None:
        self.first = prepared.forget(state_of(first))
        self.looks_max = looks_max
        self.width = width
        self.left_out = False
        self.finding = Finding(None)
        self.items = prepared.items
        self.puts = prepared.puts
        self.forget = prepared.forget
        self.active: list[Item] = []
        self.passive: list[Item] = []
        self.passive_bits = 0

    def run(self) -> Finding:
        finding = self.finding
        events: list[tuple[float, int, Item]] = []
        for item in self.items:
            events.append((item.call.invoked, 0, item))
            if item.result is not None:
                events.append((item.ended, 1, item))
        events.sort(key=lambda event: event[:2])  # what begins when something ends is concurrent with it
        worlds: Worlds = {(self.first, 0, 0): None}
        for _, returns, item in events:
            before = worlds
            try:
                if not returns:
                    worlds = self._invoked(item, worlds)
                    continue
                worlds = self._returned(item, worlds)
            except _GivenUp:
                finding.stuck = item.because
                finding.states = [world[0] for world in before]
                return finding
            finding.widest = max(finding.widest, len(worlds))
            if not worlds:
                finding.verdict = False
                finding.stuck = item.because
                finding.states = list({world[0]: None for world in before})
                return finding
        finding.verdict = True
        return finding

    # -- one event

    def _invoked(self, item: Item, worlds: Worlds) -> Worlds:
        if not item.passive:
            insort(self.active, item, key=lambda item: item.breadth)
            return worlds
        self.passive.append(item)
        self.passive_bits |= item.bit
        return dict.fromkeys(self._see(world, (item,)) for world in worlds)

    def _returned(self, item: Item, worlds: Worlds) -> Worlds:
        """The worlds in which the call has happened, now that it must have."""
        bit = item.bit
        have = [world for world in worlds if world[1] & bit]
        lack = [world for world in worlds if not world[1] & bit]
        results = self._until(item, have, lack) if lack else have
        (self.passive if item.passive else self.active).remove(item)
        self.passive_bits &= ~bit
        return self._fewest([(state, happened & ~bit, used) for state, happened, used in results])

    def _until(self, item: Item, have: list[World], lack: list[World]) -> list[World]:
        """``have``, and what becomes of ``lack`` by letting calls happen until this one has."""
        bit = item.bit
        met = _Best(self.passive_bits)
        for world in (*have, *lack):
            met.add(world)
        count = len(have)
        level = lack
        while level:
            if self.width is not None:
                if count >= self.width:
                    self.left_out = True
                    break
                level = self._narrow(level, 4 * self.width)
            following: list[World] = []
            for world in level:
                if not met.has(world):
                    continue
                for after in self._steps(world):
                    if not met.add(after):
                        continue
                    self._look(met)
                    if after[1] & bit:
                        count += 1
                    else:
                        following.append(after)
            level = following
        return [world for world in met.worlds() if world[1] & bit]

    def _fewest(self, worlds: list[World]) -> Worlds:
        """Without those that another one can become, or that offer nothing that another one does not."""
        best = _Best(self.passive_bits)
        for world in worlds:
            best.add(world)
        kept = best.worlds()
        if len(kept) > 1:
            reached: set[World] = set()
            for world in kept:
                self._look(best)
                reached.update(after for after in self._steps(world) if best.has(after))
            kept = [world for world in kept if world not in reached]
        if self.width is not None:
            kept = self._narrow(kept, self.width)
        return dict.fromkeys(kept)

    def _narrow(self, worlds: list[World], width: int) -> list[World]:
        """Those that used up the fewest calls of unknown outcome; of each state before a second one of any."""
        if len(worlds) <= width:
            return worlds
        self.left_out = True
        ranked: list[tuple[int, int, World]] = []
        ranks: Counter[State] = Counter()
        for world in sorted(worlds, key=lambda world: world[2].bit_count()):
            ranked.append((ranks[world[0]], world[2].bit_count(), world))
            ranks[world[0]] += 1
        ranked.sort(key=lambda entry: entry[:2])
        return [world for _, _, world in ranked[:width]]

    def _steps(self, world: World) -> Iterator[World]:
        """What may happen next: each call under way that changes something, as far as its answer allows."""
        state, happened, used = world
        tried: set[object] = set()
        done: dict[object, list[Conditions]] = {}
        following = bisect_right(self.puts, state[1])
        next_put = self.puts[following] if following < len(self.puts) else None
        for item in self.active:
            bit = item.bit
            if (happened | used) & bit:
                continue
            result = item.result
            if result is None:
                if item.alike in tried:
                    continue
                tried.add(item.alike)
            elif result[0] == "ok" and item.call.kind == "put" and result[1] != next_put:
                continue
            told, after = apply_call(item.asked, state)
            if result is None:
                if after is state:
                    continue
                # A put of unknown version must not take the place of one that is known to come.
                if next_put is not None and after[1] >= next_put:
                    continue
                if any(narrower(other, item.asked.conditions) for other in done.get(item.effect, ())):
                    continue
                done.setdefault(item.effect, []).append(item.asked.conditions)
                used_after, happened_after = used | bit, happened
            else:
                if not agrees(told, result):
                    continue
                used_after, happened_after = used, happened | bit
            yield self._see((self.forget(after), happened_after, used_after), self.passive)

    def _see(self, world: World, items: Iterable[Item]) -> World:
        """Let every call happen that changes nothing and is answered by this state."""
        state, happened, used = world
        for item in items:
            if happened & item.bit:
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

    def _look(self, best: _Best) -> None:
        """Count what was done. Raises: _GivenUp."""
        self.finding.looked += 1 + best.compared // COMPARED_PER_LOOK
        best.compared %= COMPARED_PER_LOOK
        if self.finding.looked > self.looks_max:
            raise _GivenUp
