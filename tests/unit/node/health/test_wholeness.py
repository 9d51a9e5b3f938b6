"""What copies' accounts add up to: pure, so every combination that matters can be made up."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amberblob.wire_repair import SlotHealth
from node.wholeness import CONDITIONS, SlotView, view_cluster, view_slot
from registry.routes import Member, Route

A, B = b"a" * 32, b"b" * 32
NOW = 1_000_000


def route(voters: int = 3, **options: Any) -> Route:
    members = tuple(Member(f"n{i}", f"disk{i}") for i in range(1, voters + 1))
    return Route(**{"slot": 5, "epoch": 2, "voters": members, **options})


def copy(root: bytes = A, **told: Any) -> SlotHealth:
    plain = {
        "slot": 5, "objects": 10, "undecided": 0, "wanted": 0, "wanted_bytes": 0, "damaged": 0, "unsynced": False,
        "compared_ms": NOW, "scrubbed_ms": NOW,
    }  # fmt: skip
    return SlotHealth(root=root, **{**plain, **told})


def view(*copies: SlotHealth | None, since_ms: int = NOW, **options: Any) -> SlotView:
    told = {f"n{i}": one for i, one in enumerate(copies, 1)}
    return view_slot(options.pop("route", None) or route(len(copies), **options), told, since_ms=since_ms)


OLD: Any = {"compared_ms": NOW - 1}


@pytest.mark.parametrize(
    ("copies", "state", "states"),
    [
        ([copy(), copy(), copy()], "whole", "whole whole whole"),
        ([copy(**OLD), copy(**OLD), copy(compared_ms=0)], "whole", "whole whole whole"),
        ([copy(), copy(), copy(B)], "in-step", "in-step in-step in-step"),
        ([copy(), copy(undecided=1), copy()], "in-step", "in-step in-step in-step"),
        ([copy(), copy(), copy(B, **OLD)], "healing", "whole whole behind"),
        ([copy(), copy(), copy(undecided=1, **OLD)], "healing", "whole whole whole"),
        ([copy(), copy(), copy(wanted=1, wanted_bytes=7)], "healing", "whole whole wanting"),
        ([copy(), copy(), copy(B, unsynced=True)], "healing", "whole whole unsynced"),
        ([copy(), copy(), None], "degraded", "whole whole unknown"),
        ([copy(), copy(B), None], "degraded", None),
        ([copy(), copy(), copy(damaged=1, wanted=1)], "corrupt", "whole whole damaged"),
        ([copy(damaged=1, wanted=1), copy(), None], "corrupt", "damaged whole unknown"),
        ([copy(), None, None], "unavailable", "whole unknown unknown"),
        ([copy(), copy(unsynced=True), copy(unsynced=True)], "unavailable", "whole unsynced unsynced"),
        ([copy(), copy(unsynced=True), None], "unavailable", "whole unsynced unknown"),
        ([copy(unrecoverable=1, damaged=1, wanted=1), None, None], "unrecoverable", "damaged unknown unknown"),
        ([copy(unrecoverable=1), copy(), copy()], "unrecoverable", "damaged whole whole"),
        ([copy()], "whole", "whole"),
        ([None], "unavailable", "unknown"),
    ],
)
def test_states(copies, state, states):
    told = view(*copies)
    assert told.state == state
    if states is not None:
        assert " ".join(one.state for one in told.copies) == states


def test_what_is_counted():
    told = view(
        copy(objects=10), copy(B, objects=7, wanted=2, wanted_bytes=30, undecided=1, **OLD),
        copy(objects=10, wanted=1, wanted_bytes=5, damaged=1),
    )  # fmt: skip
    assert (told.target, told.present, told.unsynced, told.behind) == (3, 3, 0, 1)
    assert (told.wanted, told.wanted_bytes, told.damaged, told.undecided) == (3, 35, 1, 1)
    assert (told.objects, told.objects_below, told.compared) == (10, 2 + 3 + 1, False)


def test_a_missing_copy_puts_every_object_below_target():
    for missing in (None, copy(B, unsynced=True, objects=0)):
        assert view(copy(), copy(), missing).objects_below == 10
    assert view(copy(), copy(), copy()).objects_below == 0
    assert view(copy(), copy(), copy(B)).objects_below == 0, "being written, and lacking nothing"
    assert view(copy(), copy(), copy(B, **OLD)).objects_below == 1, "at least one differs"


def test_most_copies_say_what_is_behind_and_among_two_the_fuller():
    assert [one.state for one in view(copy(B, **OLD), copy(A), copy(B)).copies] == ["whole", "behind", "whole"]
    assert [one.state for one in view(copy(A, objects=3, **OLD), copy(B, objects=4)).copies] == ["behind", "whole"]
    assert [one.state for one in view(copy(B, objects=3, **OLD), copy(A, objects=4)).copies] == ["behind", "whole"]


def test_without_a_moment_a_copy_that_was_never_compared_is_not_in_step():
    assert view(copy(compared_ms=0), copy(B), copy(), since_ms=0).state == "healing"
    assert view(copy(compared_ms=1), copy(B), copy(), since_ms=0).state == "in-step"


def test_learners_are_moving_and_keep_no_slot_from_being_whole():
    learning = route(learners=(Member("n4", "disk4", 2), Member("n5", "disk5", 2)))
    told = {f"n{i}": copy() for i in range(1, 4)}
    away = view_slot(learning, {**told, "n4": None}, since_ms=NOW)
    assert (away.state, away.target, away.voters, away.present, away.moving) == ("whole", 3, 3, 3, True)
    behind = copy(B, unsynced=True, wanted=3, wanted_bytes=70, undecided=2, compared_ms=0, scrubbed_ms=0)
    seen = view_slot(learning, {**told, "n4": behind, "n5": copy()}, since_ms=NOW)
    assert (seen.state, seen.unsynced, seen.behind, seen.wanted, seen.undecided) == ("whole", 0, 0, 0, 0)
    assert (seen.moving_bytes, seen.objects_below, seen.compared) == (70, 0, True)
    assert [(one.node, one.voter, one.role, one.state) for one in seen.copies][3:] == [
        ("n4", False, "learner", "moving"), ("n5", False, "learner", "whole"),
    ]  # fmt: skip
    damaged = view_slot(learning, {**told, "n4": copy(damaged=1)}, since_ms=NOW)
    assert damaged.copies[3].state == "damaged"
    total = view_cluster([seen])
    assert total.healed and (total.slots_moving, total.moving_bytes) == (1, 70)
    assert (total.last_compare_ms, total.last_scrub_ms) == (NOW, NOW), "learners are compared and scrubbed later"


def test_in_a_joint_route_the_old_set_tells_how_it_is_and_both_sides_are_needed():
    joint = route(
        state="joint", next_voters=(Member("n3", "disk3"), Member("n4", "disk4", 2), Member("n5", "disk5", 2))
    )
    told = {f"n{i}": copy() for i in range(1, 6)}
    seen = view_slot(joint, {**told, "n4": copy(B, **OLD)}, since_ms=NOW)
    assert (seen.state, seen.target, seen.voters, seen.present, seen.moving) == ("whole", 3, 3, 3, True)
    assert [(one.voter, one.role, one.state) for one in seen.copies] == [
        *[(True, "voter", "whole")] * 3, (True, "joining", "moving"), (True, "joining", "whole"),
    ]  # fmt: skip
    assert view_slot(joint, {**told, "n2": None}, since_ms=NOW).state == "degraded"
    assert view_slot(joint, {**told, "n4": None}, since_ms=NOW).state == "whole"
    assert view_slot(joint, {**told, "n4": None, "n5": None}, since_ms=NOW).state == "unavailable"
    assert view_slot(joint, {**told, "n1": None, "n2": None}, since_ms=NOW).state == "unavailable"


def test_fewer_voters_than_replicas_are_told_and_are_nothing_to_heal():
    one = view_slot(route(1), {"n1": copy()}, since_ms=NOW, replicas=3)
    assert (one.state, one.target, one.voters, one.present) == ("whole", 3, 1, 1)
    assert one.objects_below == one.objects == 10
    three = view_slot(route(3), {f"n{i}": copy() for i in range(1, 4)}, since_ms=NOW, replicas=3)
    assert three.objects_below == 0
    total = view_cluster([one, three])
    assert total.healed and (total.target, total.slots_below_target, total.fewest_copies) == (3, 1, 1)
    assert total.objects_below == 10
    five = view_slot(route(5), {f"n{i}": copy() for i in range(1, 6)}, since_ms=NOW, replicas=3)
    assert five.objects_below == 0


copies = st.one_of(
    st.none(),
    st.builds(
        copy,
        st.sampled_from([A, A, A, B]),
        objects=st.integers(0, 3),
        undecided=st.sampled_from([0, 0, 0, 2]),
        wanted=st.sampled_from([0, 0, 0, 2]),
        damaged=st.sampled_from([0, 0, 0, 0, 1]),
        unsynced=st.sampled_from([False, False, False, True]),
        unrecoverable=st.sampled_from([0, 0, 0, 0, 1]),
        compared_ms=st.sampled_from([0, NOW - 1, NOW, NOW + 1]),
    ),
)


def agrees_and_lacks_nothing(told: list[SlotHealth | None]) -> bool:
    """Said anew, as the issue says it: the digests of all replicas agree, and nothing is wanted anywhere."""
    there = [one for one in told if one is not None]
    return (
        len(there) == len(told)
        and len({one.root for one in there}) == 1
        and not any(
            (o.undecided, o.wanted, o.damaged, o.unsynced, o.unrecoverable) != (0, 0, 0, False, 0) for o in there
        )
    )


@given(st.lists(st.lists(copies, min_size=1, max_size=5), min_size=1, max_size=4))
def test_healed_is_said_when_all_agree_and_nothing_is_wanted_and_only_then(slots):
    views = [view(*told) for told in slots]
    seen = view_cluster(views)
    assert seen.healed == all(map(agrees_and_lacks_nothing, slots))
    assert sum(seen.slots.values()) == len(slots) and set(seen.slots) == set(CONDITIONS)
    assert seen.healed == (seen.state == "whole")
    assert CONDITIONS.index(seen.state) == max(CONDITIONS.index(one.state) for one in views)
    if seen.healed:
        assert seen.objects_below == seen.wanted == seen.wanted_bytes == seen.damaged == seen.undecided == 0
        assert seen.seconds_left == 0


@given(st.lists(copies, min_size=1, max_size=5))
def test_a_slot_never_looks_better_than_its_copies(told):
    seen = view(*told)
    assert 0 <= seen.objects_below <= seen.objects
    assert seen.present + seen.unsynced + told.count(None) == seen.target
    if seen.state in ("whole", "in-step"):
        assert seen.present == seen.target and seen.objects_below == seen.wanted == seen.damaged == seen.behind == 0
    if seen.state == "in-step":
        assert seen.compared
    if seen.compared:
        assert all(one.compared_ms >= NOW and not one.wanted for one in told)
    majority = 2 * sum(one is not None and not one.unsynced for one in told) > len(told)
    if not majority:
        assert seen.state in ("unavailable", "unrecoverable")


def test_the_sums_of_a_cluster():
    views = [
        view(copy(), copy(), copy(wanted=2, wanted_bytes=300, scrubbed_ms=5)),
        view(copy(**OLD), copy(wanted=1, wanted_bytes=100, scrubbed_ms=0), copy()),
        view(copy(), copy(), None),
    ]
    seen = view_cluster(views, rate_bytes_per_s=50.0, silent=["n3"], full=["n2", "n1"])
    assert seen.full == ("n1", "n2")
    assert (seen.wanted, seen.wanted_bytes, seen.objects, seen.objects_below) == (3, 400, 30, 13)
    assert (seen.seconds_left, seen.rate_bytes_per_s, seen.silent) == (8.0, 50.0, ("n3",))
    assert (seen.last_compare_ms, seen.last_scrub_ms, seen.to_compare) == (NOW - 1, 0, 3)
    assert view_cluster(views, rate_bytes_per_s=0.0).seconds_left is None
    assert view_cluster(views).seconds_left is None
    behind = [view(copy(), copy(B, **OLD))]
    assert view_cluster(behind, rate_bytes_per_s=50.0).seconds_left is None, "nobody knows yet how much that is"


def test_what_nobody_has_is_counted_once_and_no_rate_brings_it_back():
    wants = copy(wanted=1, wanted_bytes=100)
    lost = view(copy(unrecoverable=1, wanted=1, wanted_bytes=100), copy(unrecoverable=2, wanted=2), wants)
    seen = view_cluster([lost], rate_bytes_per_s=50.0)
    assert (lost.unrecoverable, seen.unrecoverable, seen.seconds_left) == (2, 2, None)
    assert view_cluster([lost, lost]).unrecoverable == 4, "other slots are other versions"
    filled = [view(copy(), copy(), wants), view(copy(), copy(), copy(unsynced=True))]
    assert view_cluster(filled[:1], rate_bytes_per_s=50.0).seconds_left == 2.0
    assert view_cluster(filled, rate_bytes_per_s=50.0).seconds_left is None, "what the unsynced copy lacks is not known"
