from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amberblob.errors import ConfigError
from registry.placement import BALANCE_BOUND, place, quotas, shares, spread_limits, voters_per_slot
from registry.routes import NodeInfo, Route


def node(name: str, *, zone: str = "z", host: str = "", capacity: int = 100) -> NodeInfo:
    return NodeInfo(
        node_id=name,
        disk_id=f"disk-of-{name}",
        zone=zone,
        host=host,
        http_address="h:1",
        peer_address="h:2",
        capacity_bytes=capacity,
        version="0",
        started_at_ms=0,
    )


@st.composite
def clusters(draw) -> tuple[list[NodeInfo], int, int]:
    count = draw(st.integers(1, 12))
    nodes = [
        node(
            f"n{i}",
            zone=draw(st.sampled_from("abcd")),
            host=draw(st.sampled_from(["", "h1", "h2", "h3"])),
            capacity=draw(st.one_of(st.integers(0, 5), st.integers(0, 2**44))),
        )
        for i in range(count)
    ]
    return nodes, 2 ** draw(st.integers(0, 8)), draw(st.integers(1, min(count, 5)))


def per_slot_most(nodes: Sequence[NodeInfo], routes: Sequence[Route], label) -> int:
    by_id = {n.node_id: n for n in nodes}
    return max(max(Counter(label(by_id[m.node]) for m in route.voters).values()) for route in routes)


@given(clusters())
@settings(max_examples=300, deadline=None)
def test_every_slot_has_its_replicas_on_different_nodes(cluster):
    nodes, slot_count, replicas = cluster
    routes = place(nodes, slot_count, replicas)
    assert [route.slot for route in routes] == list(range(slot_count))
    for route in routes:
        assert len(set(route.voter_nodes)) == len(route.voters) == replicas
        assert (route.epoch, route.state, route.learners, route.next_voters) == (1, "stable", (), ())
        assert all(member.incarnation == f"disk-of-{member.node}" for member in route.voters)


@given(clusters())
@settings(max_examples=300, deadline=None)
def test_balance_within_the_stated_bound(cluster):
    nodes, slot_count, replicas = cluster
    held = Counter(name for route in place(nodes, slot_count, replicas) for name in route.voter_nodes)
    wanted = shares(nodes, slot_count, replicas)
    assert sum(wanted.values()) == slot_count * replicas
    for group in (lambda n: n.node_id, lambda n: (n.zone, n.host or n.node_id), lambda n: n.zone):
        for name in {group(n) for n in nodes}:
            members = [n.node_id for n in nodes if group(n) == name]
            assert abs(sum(held[m] for m in members) - sum(wanted[m] for m in members)) < BALANCE_BOUND
    assert {n.node_id: held[n.node_id] for n in nodes} == quotas(nodes, slot_count, replicas)


@given(clusters())
@settings(max_examples=300, deadline=None)
def test_spread_is_the_best_possible(cluster):
    nodes, slot_count, replicas = cluster
    routes = place(nodes, slot_count, replicas)
    per_zone, per_host = spread_limits(nodes, replicas)
    assert per_slot_most(nodes, routes, lambda n: n.zone) <= per_zone
    assert per_slot_most(nodes, routes, lambda n: (n.zone, n.host or "node " + n.node_id)) <= per_host
    sizes = Counter(n.zone for n in nodes)
    if len(sizes) >= replicas:
        assert per_zone == 1
    # One less per zone could not hold all replicas.
    assert sum(min(per_zone - 1, size) for size in sizes.values()) < replicas


@given(clusters(), st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_order_of_the_nodes_does_not_matter(cluster, random):
    nodes, slot_count, replicas = cluster
    shuffled = list(nodes)
    random.shuffle(shuffled)
    assert place(nodes, slot_count, replicas) == place(shuffled, slot_count, replicas)


@given(st.integers(1, 10), st.integers(1, 5))
def test_equal_nodes_hold_equally_and_are_first_equally(count, replicas):
    nodes = [node(f"n{i}") for i in range(max(count, replicas))]
    held = quotas(nodes, 256, replicas)
    assert max(held.values()) - min(held.values()) <= 1


def test_capacity_is_the_weight():
    nodes = [node("small", capacity=100), node("small-too", capacity=100), node("big", capacity=200)]
    assert quotas(nodes, 256, 1) == {"small": 64, "small-too": 64, "big": 128}
    # No node holds a slot twice, however large it is.
    huge = [node("a"), node("b"), node("c"), node("huge", capacity=10**6)]
    assert quotas(huge, 256, 2)["huge"] == 256


def test_hosts_are_kept_apart_where_there_are_enough():
    nodes = [node(f"n{i}", host=f"host-{i // 2}") for i in range(6)]
    assert spread_limits(nodes, 3) == (3, 1)
    assert per_slot_most(nodes, place(nodes, 64, 3), lambda n: n.host) == 1


def test_one_machine_may_hold_all():
    nodes = [node(f"n{i}", host="laptop") for i in range(3)]
    assert spread_limits(nodes, 3) == (3, 3)
    assert len(place(nodes, 256, 3)) == 256


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_nodes_hold_as_many_copies_as_they_are(count):
    nodes = [node(f"n{i}") for i in range(count)]
    assert voters_per_slot(nodes, 3) == count
    assert all(len(route.voters) == count for route in place(nodes, 256, 3))
    assert quotas(nodes, 256, 3) == {each.node_id: 256 for each in nodes}
    assert spread_limits(nodes, 3) == (count, 1)


def test_no_nodes_are_refused():
    with pytest.raises(ConfigError, match="no node"):
        place([], 256, 3)
