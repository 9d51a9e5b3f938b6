"""Where slots are to go when nodes come or leave, moving as little as can be. Pure and deterministic.

Quotas and spread are those of :mod:`registry.placement`, over the active nodes. What is there is kept: from the present voters
everything is taken that spread forbids and that lies on nodes which are not active, then nodes that hold more than their share
hand on what is too much, and empty places go to the nodes that have the least of theirs.

**Balance**: afterwards each node holds its share rounded down or up (less than 1 away from it), whatever was before. That it always
works out follows from flows: zones, hosts and nodes are nested limits, and the shares themselves are a fractional solution of them. A
*hand-over* is a slot in which one node gives its place to another that may have it; where no direct one is possible, a chain of them from
a node with too much to one with too little is searched (cheapest first, Dijkstra over the nodes). As long as shares are not met there is a
chain; and a plan for what a plan asks for is empty.

**Copies moved**: ``must`` counts the places that cannot stay as they are: those emptied (by nodes that leave, and by spread) and what nodes
then hold above their share; or, if that is more, what nodes lack of their share. A copy may have to make room for another, so at most ``2 * must``
are moved, give or take one per node; nearly always it is ``must`` where spread does not bind (one zone, or as many replicas allowed in each).
A node that is added to nodes that are alike receives all that moves. Where nothing must move, nothing does.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

from registry.placement import shares, spread_limits, voters_per_slot
from registry.routes import Move, NodeInfo, Route

_HELD, _COMING, _NEW = 0, 1, 2
"""What it costs to have a node in a slot: it holds a voter's copy, or is on its way to, or begins with nothing."""

_PRICE: Final = (0, 0, 1, 1_000, 1_000_000)
"""Of a hand-over, by the difference of these costs plus 2: copies moved count first, then those begun already, then the chain's length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        targets: by slot, the nodes that are to be its voters, in the order of the route that is wanted; only slots whose
            route is not that set already. Slots in a joint epoch are among them.
        voters: copies of each slot afterwards.
        before: slots that each node holds as a voter (of a joint route: of the new set).
        after: slots that each active node is to hold.
        copies: how many copies come to be where none is now.
        must: how many cannot stay as they are; see the module.
    """

    targets: dict[int, tuple[str, ...]] = field(default_factory=dict)
    voters: int = 0
    before: dict[str, int] = field(default_factory=dict)
    after: dict[str, int] = field(default_factory=dict)
    copies: int = 0
    must: int = 0


def held_by(route: Route) -> tuple[str, ...]:
    """The nodes that a route gives the slot to: of a joint one those that it is on the way to."""
    return tuple(member.node for member in route.next_voters) or route.voter_nodes


def plan(
    nodes: Sequence[NodeInfo],
    routes: Sequence[Route],
    replicas: int,
    *,
    active: Collection[str],
    moves: Mapping[int, Move] | None = None,
) -> Plan:
    """Where the slots of these routes are to be when ``active`` are the nodes that hold them.

    Args:
        nodes: what is known of nodes; those that are not active are left out of account.
        replicas: voters per slot, or as many as there are active nodes if they are fewer.
        active: each of them is in ``nodes``.
        moves: what was wanted before: nodes that are on their way into a slot come into it first.

    Raises:
        ConfigError: no node is active.
    """
    chosen = sorted((node for node in nodes if node.node_id in active), key=lambda node: node.node_id)
    assert len(chosen) == len(set(active)), "an active node is not known"
    board = _Board(chosen, routes, voters_per_slot(chosen, replicas), replicas, moves or {})
    board.keep()
    board.level_directly()
    board.fill()
    board.level()
    return board.result()


class _Board:
    """The slots while they are planned. Nodes are numbers here (their place in ``nodes``), slots their place in ``routes``."""

    def __init__(
        self, nodes: list[NodeInfo], routes: Sequence[Route], voters: int, replicas: int, moves: Mapping[int, Move]
    ) -> None:
        self._nodes = nodes
        self._routes = routes
        self._voters = voters
        self._names = [node.node_id for node in nodes]
        number = {name: index for index, name in enumerate(self._names)}
        ideal = shares(nodes, len(routes), replicas)
        self._least = [ideal[name].__floor__() for name in self._names]
        self._most = [ideal[name].__ceil__() for name in self._names]
        self._per_zone, self._per_host = spread_limits(nodes, replicas)
        self._free = self._per_zone >= voters and self._per_host >= voters
        zones = {zone: index for index, zone in enumerate(sorted({node.zone for node in nodes}))}
        self._zone = [zones[node.zone] for node in nodes]
        hosts: dict[tuple[str, bool, str], int] = {}
        self._host = [
            hosts.setdefault((node.zone, bool(node.host), node.host or node.node_id), len(hosts)) for node in nodes
        ]
        self._held = [[number[name] for name in held_by(route) if name in number] for route in routes]
        self._coming = [
            {
                number[name]
                for name in (*(each.node for each in route.learners), *_nodes_of(moves.get(route.slot)))
                if name in number
            }.difference(held)
            for route, held in zip(routes, self._held, strict=True)
        ]
        self._now = [list(held) for held in self._held]
        self._load = [0] * len(nodes)
        for held in self._now:
            for node in held:
                self._load[node] += 1
        self._emptied = 0
        self._surplus = 0
        self._offers: list[dict[int, tuple[list[int], ...]] | None] = [None] * len(nodes)

    # -- what may be where

    def _may_enter(self, slot: int, node: int, leaving: int = -1) -> bool:
        """Whether ``node`` may have a place in the slot when ``leaving`` has given up its own."""
        members = self._now[slot]
        if node in members:
            return False
        if self._free:
            return True
        zone, host, in_zone, on_host = self._zone[node], self._host[node], 0, 0
        for member in members:
            if member != leaving and self._zone[member] == zone:
                in_zone += 1
                on_host += self._host[member] == host
        return in_zone < self._per_zone and on_host < self._per_host

    def _cost(self, slot: int, node: int) -> int:
        return _HELD if node in self._held[slot] else _COMING if node in self._coming[slot] else _NEW

    # -- the steps

    def keep(self) -> None:
        """Take out what spread forbids, and what is more than the voters of a slot: from the fullest nodes."""
        for members in self._now:
            for label, most in ((self._host, self._per_host), (self._zone, self._per_zone), (None, self._voters)):
                while len(members) > 1:
                    crowds: dict[int, list[int]] = {}
                    for member in members:
                        crowds.setdefault(label[member] if label else 0, []).append(member)
                    crowd = next((each for each in crowds.values() if len(each) > most), None)
                    if crowd is None:
                        break
                    leaving = max(crowd, key=lambda node: (self._load[node] - self._most[node], node))
                    members.remove(leaving)
                    self._load[leaving] -= 1
            self._emptied += self._voters - len(members)
        self._surplus = sum(max(0, load - most) for load, most in zip(self._load, self._most, strict=True))

    def level_directly(self) -> None:
        """Each slot once: whoever has the most too much gives to whoever lacks most. This does nearly everything.

        Before empty places are filled: so it takes only what is too much of what was there.
        """
        load, most = self._load, self._most
        for hinted in (True, False):
            for slot, members in enumerate(self._now):
                if all(load[node] <= most[node] for node in members):
                    continue
                for giver in sorted(members, key=lambda node: (most[node] - load[node], node)):
                    if load[giver] <= most[giver]:
                        break
                    able = [
                        node
                        for node in (sorted(self._coming[slot]) if hinted else range(len(load)))
                        if load[node] < self._least[node] and self._may_enter(slot, node, giver)
                    ]
                    if able:
                        self._swap(slot, giver, max(able, key=lambda node: (self._lack(node), -node)))
                        break

    def fill(self) -> None:
        """Give empty places away, first to nodes that are on their way, and then to those that lack most of their share."""
        for coming in (True, False):
            for slot, members in enumerate(self._now):
                while len(members) < self._voters:
                    able = [
                        node
                        for node in (sorted(self._coming[slot]) if coming else range(len(self._nodes)))
                        if (not coming or self._load[node] < self._most[node]) and self._may_enter(slot, node)
                    ]
                    if not able:
                        assert coming, "nested limits leave room for whatever is missing"
                        break
                    best = max(able, key=lambda node: (self._lack(node), -node))
                    members.append(best)
                    self._load[best] += 1

    def _lack(self, node: int) -> float:
        """How much of its share a node lacks, as a part of it; below 0 when it has enough."""
        return (self._most[node] - self._load[node]) / max(1, self._most[node])

    def level(self) -> None:
        """Have nodes with too much hand on to nodes with too little, by chains: what the steps before could not see."""
        wrong = sum(
            max(0, load - most) + max(0, least - load)
            for load, most, least in zip(self._load, self._most, self._least, strict=True)
        )
        # Each chain puts one right. The bound only guards against a fault of this program: a plan is good without the last ones.
        for _ in range(2 * wrong + len(self._nodes)):
            over = [node for node, load in enumerate(self._load) if load > self._most[node]]
            if over:
                takers = [load < most for load, most in zip(self._load, self._most, strict=True)]
            else:
                takers = [load < least for load, least in zip(self._load, self._least, strict=True)]
                over = [node for node, load in enumerate(self._load) if load > self._least[node]]
            if not any(takers) or not self._hand_on(over, takers):
                return

    def _swap(self, slot: int, giver: int, taker: int) -> None:
        members = self._now[slot]
        members[members.index(giver)] = taker
        self._load[giver] -= 1
        self._load[taker] += 1
        for member in members:
            if self._offers[member] is not None:
                self._offer(slot, member)

    def _hand_on(self, givers: list[int], takers: list[bool]) -> bool:
        """One chain from any giver to any taker, the cheapest. False: there is none."""
        price = dict.fromkeys(givers, 0)
        came: dict[int, int] = {}
        queue = [(0, node) for node in givers]
        done: set[int] = set()
        while queue:
            paid, node = heapq.heappop(queue)
            if node in done:
                continue
            done.add(node)
            if takers[node] and node in came:
                chain = [node]
                while chain[-1] in came:
                    chain.append(came[chain[-1]])
                return self._carry_out(chain[::-1])
            for taker in range(len(self._load)):
                if taker in done or (found := self._best(node, taker)) is None:
                    continue
                total = paid + _PRICE[found[0]]
                if total < price.get(taker, total + 1):
                    price[taker] = total
                    came[taker] = node
                    heapq.heappush(queue, (total, taker))
        return False

    def _carry_out(self, chain: list[int]) -> bool:
        """Whether at least its first hand-over was possible. A later one may not be any more, then the rest is searched again."""
        done = False
        for giver, taker in pairwise(chain):
            found = self._best(giver, taker)
            if found is None:
                break
            self._swap(found[1], giver, taker)
            done = True
        return done

    def _best(self, giver: int, taker: int) -> tuple[int, int] | None:
        """(its price, a slot) of the cheapest hand-over between the two that is possible now."""
        offers = self._offers[giver]
        if offers is None:
            offers = self._offers[giver] = {}
            for slot, members in enumerate(self._now):
                if giver in members:
                    self._offer(slot, giver)
        for price, slots in enumerate(offers.get(taker, ())):
            while slots:
                slot = slots[-1]
                if giver in self._now[slot] and self._may_enter(slot, taker, giver):
                    return price, slot
                slots.pop()
        return None

    def _offer(self, slot: int, giver: int) -> None:
        """Note to whom a node could hand on its place in a slot. What is noted may not hold later: :meth:`_best` looks again."""
        offers = self._offers[giver]
        assert offers is not None
        kept = self._cost(slot, giver)
        for taker in range(len(self._load)):
            if self._may_enter(slot, taker, giver):
                lists = offers.setdefault(taker, tuple([] for _ in _PRICE))
                lists[self._cost(slot, taker) - kept + 2].append(slot)

    # -- what came out

    def result(self) -> Plan:
        """The plan. Kept voters come in the route's order, then the new ones; turned so that each node comes first equally often."""
        targets: dict[int, tuple[str, ...]] = {}
        firsts = [0] * len(self._nodes)
        changed: list[int] = []
        copies = 0
        for slot, route in enumerate(self._routes):
            now, held = self._now[slot], self._held[slot]
            copies += sum(node not in held for node in now)
            wanted = {self._names[node] for node in now}
            if route.state == "stable" and set(route.voter_nodes) == wanted:
                firsts[self._held[slot][0]] += 1
            else:
                changed.append(slot)
        for slot in changed:
            held = self._held[slot]
            now = self._now[slot]
            order = [node for node in held if node in now] + sorted(node for node in now if node not in held)
            at = min(range(len(order)), key=lambda at: (firsts[order[at]] / max(1, self._load[order[at]]), at))
            firsts[order[at]] += 1
            targets[self._routes[slot].slot] = tuple(self._names[node] for node in (*order[at:], *order[:at]))
        before: dict[str, int] = {}
        for route in self._routes:
            for name in held_by(route):
                before[name] = before.get(name, 0) + 1
        after = {name: load for name, load in zip(self._names, self._load, strict=True)}
        lacking = sum(max(0, least - before.get(name, 0)) for name, least in zip(self._names, self._least, strict=True))
        return Plan(
            targets=targets,
            voters=self._voters,
            before=before,
            after=after,
            copies=copies,
            must=max(self._emptied + self._surplus, lacking),
        )


def _nodes_of(move: Move | None) -> tuple[str, ...]:
    return () if move is None else move.nodes
