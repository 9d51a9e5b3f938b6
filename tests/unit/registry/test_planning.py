"""What a plan keeps to, whatever was before: spread, balance, and moving little."""

import time
from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amberblob.errors import ConfigError
from registry.placement import place, shares, spread_limits, voters_per_slot
from registry.planning import Plan, held_by, plan
from registry.routes import Member, Move, NodeInfo, Route
from tests.unit.registry.test_placement import node, per_slot_most


def names(nodes: Sequence[NodeInfo]) -> set[str]:
    return {each.node_id for each in nodes}


def carried_out(routes: Sequence[Route], planned: Plan) -> tuple[Route, ...]:
    def of(route: Route) -> Route:
        if route.slot not in planned.targets:
            return route
        voters = tuple(Member(name, f"disk-of-{name}") for name in planned.targets[route.slot])
        return Route(slot=route.slot, epoch=route.epoch + 3, voters=voters)

    return tuple(of(route) for route in routes)


@st.composite
def situations(draw) -> tuple[list[NodeInfo], tuple[Route, ...], int, list[set[str]]]:
    """Nodes, the routes of some slots (placed well or at random, some in a joint epoch), replicas, and who is active by and by."""
    count = draw(st.integers(1, 10))
    replicas = draw(st.integers(1, 5))
    zones, hosts = draw(st.sampled_from(["a", "ab", "abc", "abcd"])), draw(st.sampled_from([[""], ["", "h1", "h2"]]))
    capacities = draw(st.sampled_from([[100], [0, 1, 100, 150, 1000, 2**44]]))
    nodes = [
        node(
            f"n{i:02}",
            zone=draw(st.sampled_from(zones)),
            host=draw(st.sampled_from(hosts)),
            capacity=draw(st.sampled_from(capacities)),
        )
        for i in range(count)
    ]
    slots = 2 ** draw(st.integers(0, 7))
    random = draw(st.randoms(use_true_random=False))

    def voters() -> tuple[Member, ...]:
        chosen = random.sample(nodes, random.randint(1, min(count, replicas + 1)))
        return tuple(Member(each.node_id, f"disk-of-{each.node_id}") for each in chosen)

    if draw(st.booleans()):
        routes = place(random.sample(nodes, random.randint(1, count)), slots, replicas)
    else:
        routes = tuple(Route(slot=slot, epoch=1, voters=voters()) for slot in range(slots))
    if draw(st.booleans()):
        routes = tuple(
            msgspec.structs.replace(route, state="joint", next_voters=voters()) if random.random() < 0.2 else route
            for route in routes
        )
    active = [{each.node_id for each in random.sample(nodes, random.randint(1, count))} for _ in range(2)]
    return nodes, routes, replicas, active


@given(situations())
@settings(max_examples=500, deadline=None)
def test_a_plan_is_spread_balanced_and_moves_little(situation):
    nodes, routes, replicas, steps = situation
    for active in steps:
        chosen = [each for each in nodes if each.node_id in active]
        voters = voters_per_slot(chosen, replicas)
        per_zone, per_host = spread_limits(chosen, replicas)
        planned = plan(nodes, routes, replicas, active=active)
        after = carried_out(routes, planned)
        held = Counter(name for route in after for name in route.voter_nodes)
        assert planned.voters == voters
        assert all(len(set(route.voter_nodes)) == len(route.voters) == voters for route in after)
        assert set(held) <= active
        assert per_slot_most(chosen, after, lambda n: n.zone) <= per_zone
        assert per_slot_most(chosen, after, lambda n: (n.zone, n.host or "node " + n.node_id)) <= per_host
        ideal = shares(chosen, len(routes), replicas)
        assert set(planned.after) == active
        for name in active:
            assert held[name] == planned.after[name]
            assert abs(held[name] - ideal[name]) < 1
        # What moves.
        copies = [
            name
            for before, now in zip(routes, after, strict=True)
            for name in now.voter_nodes
            if name not in held_by(before)
        ]
        assert planned.copies == len(copies)
        assert planned.before == Counter(name for route in routes for name in held_by(route))
        assert planned.copies <= 2 * planned.must + (len(chosen) if planned.must else 0)
        assert set(planned.targets) == {
            route.slot
            for route, now in zip(routes, after, strict=True)
            if route.state == "joint" or set(route.voter_nodes) != set(now.voter_nodes)
        }
        # And it is enough: what was planned asks for nothing more.
        assert plan(nodes, after, replicas, active=active) == Plan(
            voters=voters, before=dict(held), after=planned.after, copies=0, must=0
        )
        routes = after


def alike(count: int) -> list[NodeInfo]:
    return [node(f"n{i:02}") for i in range(count)]


@given(st.integers(1, 9), st.integers(1, 5), st.integers(0, 8), st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_what_is_added_receives_all_that_moves(count, replicas, power, added):
    nodes = alike(count + added)
    routes = place(nodes[:count], 2**power, replicas)
    planned = plan(nodes, routes, replicas, active=names(nodes))
    new = names(nodes[count:])
    for slot, target in planned.targets.items():
        assert set(target) - set(routes[slot].voter_nodes) <= new
    assert planned.copies == sum(planned.after[name] for name in new)


@given(st.integers(2, 10), st.integers(1, 5), st.integers(0, 8), st.data())
@settings(max_examples=100, deadline=None)
def test_few_others_make_room_for_the_copies_of_those_who_leave(count, replicas, power, data):
    nodes = alike(count)
    routes = place(nodes, 2**power, replicas)
    leaving = data.draw(st.sets(st.sampled_from(sorted(names(nodes))), min_size=1, max_size=count - 1))
    planned = plan(nodes, routes, replicas, active=names(nodes) - leaving)
    gone = sum(len(leaving & set(route.voter_nodes)) for route in routes)
    again = sum(
        len(set(route.voter_nodes) - leaving - set(planned.targets.get(route.slot, route.voter_nodes)))
        for route in routes
    )
    # Where the first layout leaves few who could take them, others make room: never more than leave.
    assert again <= gone


def test_of_a_node_that_leaves_only_its_copies_move():
    nodes = alike(5)
    routes = place(nodes, 256, 3)
    planned = plan(nodes, routes, 3, active=names(nodes[:4]))
    for route in routes:
        kept = [name for name in route.voter_nodes if name != "n04"]
        assert (route.slot in planned.targets) == (len(kept) == 2)
        assert set(kept) <= set(planned.targets.get(route.slot, kept))


def test_one_to_three_to_five_and_back():
    nodes = alike(5)
    routes = place(nodes[:1], 256, 3)
    moved = []
    for count in (3, 5, 3, 1):
        planned = plan(nodes, routes, 3, active=names(nodes[:count]))
        routes = carried_out(routes, planned)
        moved.append(planned.copies)
        assert {len(route.voters) for route in routes} == {min(3, count)}
    # Two copies more; then two fifths of all; then those again; then none: one copy is everywhere by now.
    assert moved == [512, 306, 306, 0]


def test_kept_ones_come_in_the_order_of_the_route_and_first_places_are_spread():
    nodes = alike(4)
    routes = place(nodes[:3], 256, 3)
    planned = plan(nodes, routes, 3, active=names(nodes))
    for slot, target in planned.targets.items():
        doubled = (*target, *target)
        kept = [name for name in routes[slot].voter_nodes if name in target]
        assert any(
            [n for n in doubled[at : at + 3] if n != "n03"] == kept and doubled[at + 2] == "n03" for at in range(3)
        )
    firsts = Counter(route.voter_nodes[0] for route in carried_out(routes, planned))
    assert all(50 <= firsts[name] <= 78 for name in names(nodes))


def test_a_joint_slot_goes_on_to_where_it_is_going():
    nodes = alike(4)
    before = place(nodes[:3], 8, 3)
    new = tuple(Member(name, f"disk-of-{name}") for name in ("n03", "n01", "n02"))
    routes = (*before[:7], msgspec.structs.replace(before[7], state="joint", next_voters=new))
    planned = plan(nodes, routes, 3, active=names(nodes))
    assert planned.before == {"n00": 7, "n01": 8, "n02": 8, "n03": 1}
    assert set(planned.targets[7]) == {"n01", "n02", "n03"}
    assert planned.copies == 5


@pytest.mark.parametrize("kind", ["learner", "move"])
def test_who_is_on_the_way_mostly_comes_first(kind):
    nodes = alike(6)
    routes = list(place(nodes, 64, 3))
    active = names(nodes[1:])
    first = plan(nodes, routes, 3, active=active)
    # Now another plan has begun, by which other nodes take the slots; the same nodes leave.
    wanted: dict[int, str] = {}
    rest = {
        name: count - Counter(n for r in routes for n in r.voter_nodes)[name] for name, count in first.after.items()
    }
    for slot in sorted(first.targets, reverse=True):
        able = [name for name in sorted(active) if rest[name] > 0 and name not in routes[slot].voter_nodes]
        if able:
            wanted[slot] = able[0]
            rest[able[0]] -= 1
    moves = {}
    for slot, name in wanted.items():
        if kind == "learner":
            routes[slot] = msgspec.structs.replace(routes[slot], epoch=2, learners=(Member(name, "x", 2),))
        else:
            kept = [n for n in routes[slot].voter_nodes if n in active]
            moves[slot] = Move(slot=slot, generation=1, nodes=(*kept, name))
    again = plan(nodes, routes, 3, active=active, moves=moves)
    assert again.copies == first.copies
    assert len(wanted) > 20
    assert sum(name in again.targets[slot] for slot, name in wanted.items()) >= 0.8 * len(wanted)
    assert sum(name in first.targets[slot] for slot, name in wanted.items()) < 0.8 * len(wanted)


def test_the_order_of_the_nodes_does_not_matter():
    nodes = [node(f"n{i}", zone="ab"[i % 2], capacity=100 + i) for i in range(5)]
    routes = place(nodes[:3], 64, 3)
    assert plan(nodes, routes, 3, active=names(nodes)) == plan(nodes[::-1], routes, 3, active=names(nodes))


def test_nobody_active():
    with pytest.raises(ConfigError):
        plan(alike(1), place(alike(1), 2, 1), 1, active=set())


def test_it_is_fast():
    nodes = [node(f"n{i:02}", zone=f"z{i % 3}", capacity=100 + 40 * (i % 3)) for i in range(10)]
    routes = place(nodes[:9], 4096, 3)
    begun = time.process_time()
    planned = plan(nodes, routes, 3, active=names(nodes))
    assert planned.copies > 1000
    assert time.process_time() - begun < 10  # usually half a second
