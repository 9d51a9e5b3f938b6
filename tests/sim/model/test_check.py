"""The judge of the model: it passes what is right, and it rejects histories that are known to be wrong."""

import itertools

import pytest

from sim.model.check import history_faults, judge, linearizable, versions_known
from sim.model.client import Call

NONE: dict[int, list[tuple[float, int]]] = {}


def call(number, kind, invoked, ended, result, **more):
    made = Call(number, kind, 0, invoked, **more)
    made.ended = ended
    made.result = result
    return made


def put(number, invoked, ended, version, kind="put", **more):
    return call(number, kind, invoked, ended, None if version is None else ("ok", version), **more)


def get(number, invoked, ended, head):
    return call(number, "get", invoked, ended, ("read", head, None))


def versions(number, invoked, ended, head, rows):
    return call(number, "versions", invoked, ended, ("read", head, rows))


def accepted(*calls, retired=NONE):
    return not judge(calls, retired).faults


def test_one_write_and_its_read():
    assert accepted(put(1, 0, 1, 1), get(2, 2, 3, (1, 1)))


def test_an_empty_history():
    assert accepted()


def test_a_stale_read():
    assert not accepted(put(1, 0, 1, 1), put(2, 2, 3, 2), get(3, 4, 5, (1, 1)))


def test_a_read_beside_the_write_may_show_either():
    for head in (None, (1, 1)):
        assert accepted(put(1, 0, 5, 1), get(2, 1, 4, head))


def test_a_value_that_was_shown_does_not_vanish():
    assert not accepted(put(1, 0, None, None), get(2, 1, 2, (1, 1)), get(3, 3, 4, None))


def test_an_unknown_write_may_take_effect_late_or_never():
    assert accepted(put(1, 0, None, None), get(2, 1, 2, None), get(3, 3, 4, (1, 1)))
    assert accepted(put(1, 0, None, None), get(2, 1, 2, None), get(3, 3, 4, None))


def test_an_unknown_write_does_not_take_effect_before_it_began():
    assert not accepted(get(1, 0, 1, (1, 2)), put(2, 2, None, None))


def test_two_versions_out_of_order():
    assert not accepted(put(1, 0, 1, 2), put(2, 2, 3, 1))


def test_a_version_is_skipped_only_if_something_was_collected():
    history = (put(1, 0, 1, 1), put(2, 2, 3, 3))
    assert not accepted(*history)
    assert accepted(*history, retired={0: [(1.5, 1)]})


def test_a_version_given_twice():
    assert not accepted(put(1, 0, 9, 1), put(2, 0, 9, 1))
    assert any("given twice" in fault for fault in history_faults([put(1, 0, 9, 1), put(2, 0, 9, 1)], ()))


def test_a_blob_that_is_two_versions():
    history = [put(1, 0, 1, 1), versions(2, 2, 3, (2, 1), {1: 1, 2: 1})]
    assert any("is version" in fault for fault in history_faults(history, ()))


def test_a_delete_and_what_comes_after():
    deleted = call(2, "delete", 2, 3, ("ok", 1))
    assert accepted(put(1, 0, 1, 1), deleted, get(3, 4, 5, None))
    assert not accepted(put(1, 0, 1, 1), deleted, get(3, 4, 5, (1, 1)))


def test_a_delete_of_nothing_is_404():
    assert accepted(call(1, "delete", 0, 1, ("404", 0)))
    assert not accepted(put(1, 0, 1, 1), call(2, "delete", 2, 3, ("404", 0)))


@pytest.mark.parametrize("kind", ["put-if-etag", "put-if-absent"])
def test_conditions(kind):
    wanted = {"expected": 1} if kind == "put-if-etag" else {}
    first = put(1, 0, 1, 1)
    refused = call(2, kind, 2, 3, ("412", 0), **wanted)
    passed = put(2, 2, 3, 2, kind=kind, **wanted)
    assert accepted(first, passed) == (kind == "put-if-etag")
    assert accepted(first, refused) == (kind == "put-if-absent")


def test_a_refused_put_is_never_shown():
    history = [
        put(1, 0, 1, 1),
        call(2, "put-if-absent", 2, 3, ("412", 0)),
        versions(3, 4, 5, (2, 2), {1: 1, 2: 2}),
    ]
    assert any("was refused" in fault for fault in history_faults(history, ()))


def test_an_acknowledged_version_that_is_lost():
    history = [put(1, 0, 1, 1), put(2, 2, 3, 2), versions(3, 4, 5, (2, 2), {2: 2})]
    assert any("is lost" in fault for fault in history_faults(history, ()))
    assert not history_faults(history, [(3.5, 1)]), "it was collected"
    assert history_faults(history, [(5.5, 1)]), "it was collected only later"


def test_an_old_version_that_is_not_found():
    history = [put(1, 0, 1, 1), put(2, 2, 3, 2), call(3, "get-version", 4, 5, ("read", (2, 2), {2: 2}), version=1)]
    assert any("is lost" in fault for fault in history_faults(history, ()))


def test_versions_known_come_from_answers_of_all_kinds():
    calls = [put(1, 0, 1, 1), get(2, 2, 3, (2, 7)), versions(3, 4, 5, (2, 7), {1: 1, 2: 7})]
    assert versions_known(calls) == {1: 1, 7: 2}


def test_the_search_agrees_with_trying_all_orders():
    """On every small history of two puts and two gets with these times: brute force over the orders."""
    spans = [(0, 3), (1, 6), (2, 5), (4, 7)]
    heads = [None, (1, 1), (2, 2), (1, 2), (2, 1)]
    for first, second in itertools.product(heads, heads):
        for numbers in ((1, 2), (2, 1)):
            calls = [
                put(1, *spans[0], numbers[0]),
                put(2, *spans[1], numbers[1]),
                get(3, *spans[2], first),
                get(4, *spans[3], second),
            ]
            assert linearizable(calls, {1: numbers[0], 2: numbers[1]}, gaps=False) == _some_order(calls)


def _some_order(calls):
    for order in itertools.permutations(calls):
        if any(later.ended < earlier.invoked for earlier, later in itertools.combinations(order, 2)):
            continue
        version, blob = 0, 0
        for one in order:
            if one.kind == "put":
                version, blob = version + 1, one.number
                if one.result != ("ok", version):
                    break
            elif (one.result[1][1] if one.result[1] else 0) != blob:
                break
        else:
            return True
    return False
