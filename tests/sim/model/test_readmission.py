"""A copy that lost its memory: mute, then filled page by page, then a voter."""

from random import Random
from types import SimpleNamespace

import pytest

from sim.model import shape
from sim.model.readmission import rejoin
from sim.model.replica import Accepted, Copy, Promised, Refused, Shown, Snapshot
from sim.model.rules import ALL_RULES
from sim.model.run import run_seed
from sim.model.values import EMPTY, NEVER, NODES_MAX, ZERO, Record, Register, following, make_route
from sim.model.world import World

OLD = make_route(ALL_RULES, 1, (0, 1, 2))
FRESH = 0 + NODES_MAX
NEW = following(ALL_RULES, OLD, (FRESH, 1, 2), readmitted=FRESH)
BALLOT = (1, 1, 0, 1)


def record(version):
    mark = (version, ("ok", version))
    return Record(version, version, (version, version + 10), (version, version + 10), None, (mark,), 0.0)


def fresh(route=NEW):
    return Copy(FRESH, route, ALL_RULES, readmitted=True)


def test_a_route_says_from_when_on_a_member_has_to_be_synced():
    assert (NEW.epoch, NEW.voters, NEW.joint) == (2, (FRESH, 1, 2), False)
    assert NEW.since_of(FRESH) == 2
    assert NEW.since_of(1) == 0
    assert OLD.since_of(FRESH) == NEVER
    assert str(NEW) == "epoch 2 STABLE n0#1 n1 n2, n0#1 since 2"


def test_later_routes_keep_it_as_long_as_they_name_the_member():
    joint = following(ALL_RULES, NEW, NEW.voters, (FRESH, 1, 3))
    final = following(ALL_RULES, joint, (FRESH, 1, 3))
    again = following(ALL_RULES, final, (FRESH, 1 + NODES_MAX, 3), readmitted=1 + NODES_MAX)
    assert [route.since_of(FRESH) for route in (joint, final, again)] == [2, 2, 2]
    assert again.since_of(1 + NODES_MAX) == again.epoch == 5
    assert following(ALL_RULES, again, (4, 3, 5)).since == ()


@pytest.mark.parametrize("route", [OLD, NEW])
def test_a_mute_copy_answers_nothing_and_hears_nothing(route):
    copy = fresh(route)
    assert copy.unsynced
    asked = (Copy.prepare, Copy.commit, Copy.query, Copy.snapshot, Copy.sync_status, Copy.page)
    assert not any(copy.answers(request) for request in asked)
    assert not copy.hears(Copy.learn)
    assert not copy.hears(Copy.collect)


def test_a_node_refuses_for_its_mute_copy_and_says_so():
    world = World(Random(1), shape.draw(Random(1), "lost copies"), ALL_RULES)
    world.heal()
    node, heard = world.nodes[0], []
    asking = SimpleNamespace(answer=heard.append)
    node.copy = fresh()
    node.serve(1, Copy.query, (NEW, 0, False), asking)
    node.hear(FRESH, Copy.learn, (NEW, 0, (2, 1, 1, 1), record(1)))
    assert node.copy.registers == {}
    world.run(lambda: bool(heard), 10.0)
    assert heard == [Refused(FRESH, ZERO, NEW, mute=True)]
    node.copy.become_synced(2, ZERO, 0)
    node.serve(1, Copy.query, (NEW, 0, False), asking)
    world.run(lambda: len(heard) > 1, 20.0)
    assert heard[1:] == [Shown(FRESH, EMPTY, {})]
    node.hear(0, Copy.learn, (NEW, 0, (2, 1, 1, 1), record(1)))
    assert node.copy.registers[0].chosen


def test_a_copy_has_a_voice_once_it_is_synced_in_its_epoch_or_a_later_one():
    copy = fresh()
    copy.become_synced(1, ZERO, 0)
    assert copy.unsynced
    copy.become_synced(2, ZERO, 0)
    assert not copy.unsynced
    assert copy.answers(Copy.prepare)
    assert isinstance(copy.prepare(NEW, 0, (2, 1, 1, 1), 0), Promised)
    copy.forget_memory()
    assert not copy.unsynced


def test_a_route_that_does_not_name_it_takes_the_voice_away():
    copy = fresh()
    copy.become_synced(2, ZERO, 0)
    copy.query(following(ALL_RULES, NEW, (3, 1, 2)), 0, False)
    assert copy.unsynced


def test_whoever_shows_a_page_has_left_the_epochs_below():
    copy = Copy(1, OLD, ALL_RULES)
    assert copy.commit(OLD, 0, BALLOT, record(1)) == Accepted(1)
    page = copy.page(NEW, 0)
    assert page == Snapshot(1, {0: Register(BALLOT, record(1), False)}, {0: {}}, {0: {}}, ZERO, 0)
    assert isinstance(copy.commit(OLD, 0, (1, 2, 0, 2), record(2)), Refused)
    assert isinstance(copy.page(OLD, 0), Refused)
    copy.forget_memory()
    assert isinstance(copy.query(OLD, 0, False), Refused)


def test_a_page_is_taken_though_its_record_is_below_the_floors_and_they_come_last():
    copy = fresh()
    floor = (1, 9, 0, 9)
    register = Register(BALLOT, record(1), True)
    page = Snapshot(1, {0: register}, {0: {1: 11}}, {0: {1: ("ok", 1)}}, floor, 4)
    copy.take_page({0: register}, [page])
    assert (copy.registers, copy.rows) == ({0: register}, {0: {1: 11}})
    assert (copy.ballot_floor, copy.version_floor, copy.unsynced) == (ZERO, 0, True)
    copy.become_synced(2, floor, 4)
    assert (copy.ballot_floor, copy.version_floor, copy.unsynced) == (floor, 4, False)
    copy.learn(NEW, 1, BALLOT, record(2))
    assert 1 not in copy.registers
    newer = Register((2, 1, 1, 5), record(3), True)
    copy.registers[0] = newer
    copy.take_page({0: register}, [page])
    assert copy.registers[0] == newer


def test_a_node_readmits_its_copy_without_anybody_else():
    drawn = shape.draw(Random(1), "lost copies")
    world = World(Random(1), drawn, ALL_RULES)
    world.heal()
    before = world.registry.route
    node = world.nodes[0]
    world.nodes[1].copy.learn(before, 0, BALLOT, record(1))
    node.copy = None
    process = node.start(rejoin(node))
    assert world.run(lambda: not process.alive, 100.0)
    after = world.registry.route
    assert (after.epoch, after.joint, after.since) == (2, False, ((node.copy.number, 2),))
    assert after.voters == (node.copy.number, *before.voters[1:])
    assert (node.copy.unsynced, node.copy.synced_epoch) == (False, 2)
    assert all(copy.route.epoch == 2 for copy in (world.nodes[1].copy, world.nodes[2].copy)) or drawn.voters == 5


def test_a_world_readmits_and_is_judged():
    outcome = run_seed(3, only="lost copies")
    assert outcome.kind == "lost copies"
    assert outcome.counts["copies readmitted"] >= outcome.counts["readmitted copies synced"] > 0
    assert not outcome.faults
