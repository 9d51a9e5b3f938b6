"""The pieces of the model by themselves: quorums, copies, what a crash leaves."""

from sim.model.replica import Accepted, Copy, Promised, Refused, Shown, Synced
from sim.model.rules import ALL_RULES
from sim.model.values import EMPTY, NODES_MAX, Record, Register, majority_of, make_route, name_of, node_of, quorate

STABLE = make_route(ALL_RULES, 1, (0, 1, 2))
JOINT = make_route(ALL_RULES, 2, (0, 1, 2), (2, 3, 4))


def record(version, **more):
    return Record(
        **{
            "revision": version,
            "version_max": version,
            "head": (version, version + 10),
            "added": (version, version + 10),
            "previous": None,
            "marks": ((version, ("ok", version)),),
            "stamp": 0.0,
        }
        | more
    )


def test_a_majority_of_each_set():
    assert quorate(STABLE.write_sets, {0, 1})
    assert not quorate(STABLE.write_sets, {0, 3})
    assert quorate(JOINT.write_sets, {1, 2, 3})
    assert not quorate(JOINT.write_sets, {0, 1, 2})
    assert not quorate(JOINT.read_sets, {0, 1})
    assert not quorate((majority_of((0, 1, 2, 3)),), {0, 1})


def test_who_is_asked_and_who_is_told():
    route = make_route(ALL_RULES, 3, (0, 1, 2), None, (3,))
    assert route.asked == (0, 1, 2)
    assert route.told == (0, 1, 2, 3)
    assert JOINT.asked == (0, 1, 2, 3, 4)
    assert str(JOINT) == "epoch 2 JOINT n0 n1 n2 → n2 n3 n4"


def test_a_copy_is_a_node_and_an_incarnation():
    assert node_of(3 + 2 * NODES_MAX) == 3
    assert name_of(3 + 2 * NODES_MAX) == "n3#2"


def test_a_promise_binds_and_outlives_a_crash():
    copy = Copy(0, STABLE, ALL_RULES)
    assert isinstance(copy.prepare(STABLE, 0, (1, 5, 0, 1), 0), Promised)
    assert isinstance(copy.commit(STABLE, 0, (1, 4, 0, 2), record(1)), Refused)
    copy.forget_memory()
    assert isinstance(copy.prepare(STABLE, 0, (1, 5, 1, 3), 0), Refused)
    assert isinstance(copy.prepare(STABLE, 0, (1, 100, 1, 4), 0), Promised)


def test_an_accept_promises_what_comes_next():
    copy = Copy(0, STABLE, ALL_RULES)
    assert copy.commit(STABLE, 0, (1, 1, 0, 1), record(1), (1, 50, 0, 2)) == Accepted(0, True)
    assert isinstance(copy.prepare(STABLE, 0, (1, 49, 1, 3), 0), Refused)
    copy.forget_memory()
    assert isinstance(copy.commit(STABLE, 0, (1, 50, 0, 2), record(2)), Refused)
    assert isinstance(copy.prepare(STABLE, 0, (1, 51, 1, 4), 0), Refused)


def test_a_refused_commit_promises_nothing_and_an_older_program_never():
    copy = Copy(0, STABLE, ALL_RULES)
    copy.prepare(STABLE, 0, (1, 5, 1, 1), 0)
    assert isinstance(copy.commit(STABLE, 0, (1, 4, 0, 2), record(1), (1, 9, 0, 3)), Refused)
    assert isinstance(copy.prepare(STABLE, 0, (1, 6, 1, 4), 0), Promised)
    old = Copy(1, STABLE, ALL_RULES, heeds_next=False)
    assert old.commit(STABLE, 0, (1, 1, 0, 1), record(1), (1, 9, 0, 3)) == Accepted(1, False)
    assert isinstance(old.prepare(STABLE, 0, (1, 2, 1, 4), 0), Promised)


def test_a_commit_that_comes_twice_promises_nothing_anew():
    copy = Copy(0, STABLE, ALL_RULES)
    first = (STABLE, 0, (1, 1, 0, 1), record(1), (1, 2, 0, 2))
    assert copy.commit(*first) == copy.commit(*first) == Accepted(0, True)
    assert isinstance(copy.prepare(STABLE, 0, (1, 9, 1, 3), 0), Promised)
    assert copy.commit(*first) == Accepted(0, False)
    assert isinstance(copy.commit(STABLE, 0, (1, 2, 0, 2), record(2)), Refused)


def test_a_ballot_of_an_older_epoch_is_not_taken_under_a_new_route():
    blank = Copy(3, JOINT, ALL_RULES)
    assert isinstance(blank.commit(JOINT, 0, (1, 2, 0, 2), record(2)), Refused)
    assert isinstance(blank.commit(JOINT, 0, (2, 2, 0, 2), record(2)), Accepted)


def test_an_accept_brings_the_predecessors_row_and_not_its_own():
    copy = Copy(0, STABLE, ALL_RULES)
    assert copy.commit(STABLE, 0, (1, 1, 0, 1), record(2, previous=(1, 11))) == Accepted(0)
    assert copy.rows == {0: {1: 11}}
    copy.learn(STABLE, 0, (1, 1, 0, 1), record(2, previous=(1, 11)))
    assert copy.rows == {0: {1: 11, 2: 12}}
    assert copy.registers[0].chosen


def test_what_is_learnt_never_covers_a_higher_ballot():
    copy = Copy(0, STABLE, ALL_RULES)
    copy.commit(STABLE, 0, (1, 9, 0, 1), record(2))
    copy.learn(STABLE, 0, (1, 3, 0, 1), record(1))
    assert copy.registers[0] == Register((1, 9, 0, 1), record(2), False)
    assert copy.rows == {0: {1: 11}}


def test_whoever_answers_in_an_epoch_has_left_those_below():
    copy = Copy(0, STABLE, ALL_RULES)
    copy.snapshot(JOINT)
    for answer in (
        copy.prepare(STABLE, 0, (1, 1, 0, 1), 0),
        copy.commit(STABLE, 0, (1, 1, 0, 1), record(1)),
        copy.query(STABLE, 0, False),
        copy.snapshot(STABLE),
        copy.sync_status(STABLE),
    ):
        assert isinstance(answer, Refused)
    copy.forget_memory()
    assert isinstance(copy.query(STABLE, 0, False), Refused)
    assert copy.query(JOINT, 0, False) == Shown(0, EMPTY, {})


def test_a_sync_takes_what_a_majority_had_and_only_in_its_epoch():
    source, target = Copy(0, STABLE, ALL_RULES), Copy(3, JOINT, ALL_RULES)
    source.learn(STABLE, 0, (1, 1, 0, 1), record(1))
    snapshot = source.snapshot(JOINT)
    found = {0: Register((1, 1, 0, 1), record(1), True)}
    assert target.install(JOINT, found, [snapshot])
    assert target.rows == source.rows
    assert target.sync_status(JOINT) == Synced(3, True)
    later = make_route(ALL_RULES, 3, (0, 1, 2))
    assert target.sync_status(later) == Synced(3, False)
    assert not target.install(JOINT, found, [snapshot])


def test_a_stub_goes_only_if_it_is_still_there_and_floors_keep_out_what_is_older():
    copy = Copy(0, STABLE, ALL_RULES)
    stub = record(1, revision=2, head=None, added=None, previous=(1, 11))
    copy.learn(STABLE, 0, (1, 2, 0, 2), stub)
    copy.collect(STABLE, 0, (1, 1, 0, 1), stub)
    assert copy.registers
    copy.collect(STABLE, 0, (1, 2, 0, 2), stub)
    assert not copy.registers
    assert not copy.rows
    copy.learn(STABLE, 0, (1, 1, 0, 1), record(1))
    assert not copy.registers
    assert isinstance(copy.commit(STABLE, 0, (1, 2, 0, 1), record(1)), Refused)
    promised = copy.prepare(STABLE, 0, (1, 3, 0, 3), 1)
    assert promised == Promised(0, EMPTY, 1, ("ok", 1))
