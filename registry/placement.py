"""Where the first routes go. Pure and deterministic: the same nodes give the same routes, in whatever order given.

The method is a line and a wheel. Each node gets a quota of slots (:func:`quotas`). The nodes are laid on a line,
sorted by zone, host and id, each as long as its quota; the line is wound around a wheel of ``slot_count`` positions,
so that position p serves slot ``p % slot_count``. The line is exactly ``replicas`` turns long, and whatever covers
at most k turns in one piece (a node, a host, a zone) meets each slot at most k times. So spread follows from quotas
alone, and nothing needs to be searched or repaired afterwards.

The quotas are shares rounded along the line (each end of a node is rounded down), so a piece's quota is less than 1
away from its share, be it a node, a host or a zone.

This is for making a cluster: it does not try to move little when a node is added. What moves slots later can take
:func:`quotas` as its aim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, pairwise
from typing import Final

from amberblob.errors import ConfigError
from registry.routes import Member, NodeInfo, Route

BALANCE_BOUND: Final = 1
"""A node's, host's or zone's number of slots is less than this away from its share (see :func:`shares`)."""


def place(nodes: Sequence[NodeInfo], slot_count: int, replicas: int) -> tuple[Route, ...]:
    """A stable route of epoch 1 for each slot, each with :func:`voters_per_slot` voters on different nodes.

    Spread: no zone holds more replicas of one slot than :func:`spread_limits` tells, which is the least possible
    (one each, where there are at least ``replicas`` zones); likewise no host, given that.

    Balance: each node holds less than :data:`BALANCE_BOUND` slots more or fewer than its share, which is
    ``slot_count * replicas * capacity / total capacity`` unless the spread limits bind (see :func:`shares`).

    Raises:
        ConfigError: there is no node.
    """
    line = _line(nodes)
    replicas = voters_per_slot(line, replicas)
    wheel: list[list[Member]] = [[] for _ in range(slot_count)]
    position = 0
    for node, quota in zip(line, _quotas(line, slot_count, replicas), strict=True):
        for p in range(position, position + quota):
            wheel[p % slot_count].append(Member(node.node_id, node.disk_id))
        position += quota
    assert position == slot_count * replicas
    return tuple(Route(slot=slot, epoch=1, voters=_rotated(voters, slot)) for slot, voters in enumerate(wheel))


def voters_per_slot(nodes: Sequence[NodeInfo], replicas: int) -> int:
    """``replicas``, or as many as there are nodes if they are fewer: one machine is a cluster with one copy."""
    return min(replicas, len(nodes))


def quotas(nodes: Sequence[NodeInfo], slot_count: int, replicas: int) -> dict[str, int]:
    """How many slots each node gets, by node id: its share rounded down or up; their sum is exact.

    Raises:
        ConfigError: there is no node.
    """
    line = _line(nodes)
    found = _quotas(line, slot_count, voters_per_slot(line, replicas))
    return {node.node_id: quota for node, quota in zip(line, found, strict=True)}


def shares(nodes: Sequence[NodeInfo], slot_count: int, replicas: int) -> dict[str, Fraction]:
    """The ideal number of slots of each node, by node id.

    Zones share all replicas by capacity, hosts a zone's, nodes a host's; whatever would exceed its limit gets the
    limit, and the rest is shared anew among the others.

    Raises:
        ConfigError: there is no node.
    """
    line = _line(nodes)
    found = _shares(line, slot_count, voters_per_slot(line, replicas))
    return {node.node_id: share for node, share in zip(line, found, strict=True)}


def spread_limits(nodes: Sequence[NodeInfo], replicas: int) -> tuple[int, int]:
    """(replicas of one slot per zone, and per host): the least that is possible, zones first.

    Raises:
        ConfigError: there is no node.
    """
    line = _line(nodes)
    return _limits(_zones(line), voters_per_slot(line, replicas))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A part of the line with a weight, and the most turns of the wheel that it may cover."""

    weight: int
    turns_max: int


_Host = list[NodeInfo]
_Zone = list[_Host]


def _line(nodes: Sequence[NodeInfo]) -> list[NodeInfo]:
    assert len({node.node_id for node in nodes}) == len(nodes), "a node is given twice"
    if not nodes:
        raise ConfigError("There is no node to place slots on.")
    return sorted(nodes, key=lambda node: (*_host_of(node), node.node_id))


def _host_of(node: NodeInfo) -> tuple[str, bool, str]:
    """What tells hosts apart: a node without a host label is a host of its own."""
    return (node.zone, True, node.host) if node.host else (node.zone, False, node.node_id)


def _zones(line: list[NodeInfo]) -> list[_Zone]:
    return [
        [list(host) for _, host in groupby(zone, key=_host_of)] for _, zone in groupby(line, key=lambda node: node.zone)
    ]


def _limits(zones: list[_Zone], replicas: int) -> tuple[int, int]:
    def room(per_zone: int, per_host: int) -> int:
        return sum(min(per_zone, sum(min(per_host, len(host)) for host in zone)) for zone in zones)

    per_zone = next(k for k in range(1, replicas + 1) if room(k, replicas) >= replicas)
    per_host = next(h for h in range(1, replicas + 1) if room(per_zone, h) >= replicas)
    return per_zone, per_host


def _weight(nodes: Sequence[NodeInfo]) -> int:
    return sum(max(1, node.capacity_bytes) for node in nodes)


def _shares(line: list[NodeInfo], slot_count: int, replicas: int) -> list[Fraction]:
    zones = _zones(line)
    per_zone, per_host = _limits(zones, replicas)

    def host_piece(host: _Host) -> _Piece:
        return _Piece(_weight(host), min(per_host, len(host)))

    def zone_piece(zone: _Zone) -> _Piece:
        turns_max = min(per_zone, sum(host_piece(host).turns_max for host in zone))
        return _Piece(sum(_weight(host) for host in zone), turns_max)

    result: list[Fraction] = []
    of_zones = _fill(Fraction(slot_count * replicas), [zone_piece(zone) for zone in zones], slot_count)
    for zone, of_zone in zip(zones, of_zones, strict=True):
        of_hosts = _fill(of_zone, [host_piece(host) for host in zone], slot_count)
        for host, of_host in zip(zone, of_hosts, strict=True):
            result += _fill(of_host, [_Piece(_weight([node]), 1) for node in host], slot_count)
    return result


def _fill(total: Fraction, pieces: list[_Piece], slot_count: int) -> list[Fraction]:
    """Share ``total`` by weight; what would exceed its limit gets the limit, and the others share the rest."""
    limits = [Fraction(piece.turns_max * slot_count) for piece in pieces]
    assert total <= sum(limits)
    full: set[int] = set()
    while True:
        rest = total - sum(limits[i] for i in full)
        weight = sum(piece.weight for i, piece in enumerate(pieces) if i not in full)
        filled = [limits[i] if i in full else rest * piece.weight / weight for i, piece in enumerate(pieces)]
        over = {i for i, share in enumerate(filled) if share > limits[i]}
        if not over:
            return filled
        full |= over


def _quotas(line: list[NodeInfo], slot_count: int, replicas: int) -> list[int]:
    ends: list[int] = [0]
    end = Fraction(0)
    for share in _shares(line, slot_count, replicas):
        end += share
        ends.append(end.__floor__())
    return [after - before for before, after in pairwise(ends)]


def _rotated(voters: list[Member], slot: int) -> tuple[Member, ...]:
    """Begin with another voter in each slot: whoever prefers the first does not always prefer the same node."""
    first = slot % len(voters)
    return (*voters[first:], *voters[:first])
