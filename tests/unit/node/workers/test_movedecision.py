"""What the leader of a slot does next: a table of what its copies tell."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from amberblob.wire_repair import CopyState
from node.workers.movedecision import LOST_S, OTHER_COPY_S, SILENT_S, Does, Step, decide, stage_of
from registry.moves import to_aborted, to_joint, with_learner
from registry.routes import Member, Move, Route

OLD = tuple(Member(f"n{number}", f"disk{number}") for number in (1, 2, 3))


def stable(*voters: int, learners: tuple[int, ...] = (), epoch: int = 5) -> Route:
    """Learners were named in the epochs before this one, the last one in this."""
    route = Route(slot=0, epoch=epoch - len(learners), voters=tuple(Member(f"n{n}", f"disk{n}") for n in voters))
    for number in learners:
        route = with_learner(route, f"n{number}", f"disk{number}")
    return route


def move_to(*numbers: int) -> Move:
    return Move(slot=0, generation=1, nodes=tuple(f"n{number}" for number in numbers))


def joint(old: tuple[int, ...], new: tuple[int, ...]) -> Route:
    """In epoch 6."""
    route = stable(*old, learners=tuple(number for number in new if number not in old))
    return to_joint(route, [f"n{number}" for number in new])


def copy(number: int, synced: int = 0, *, wanted: int = 0, incarnation: str = "") -> tuple[str, CopyState]:
    return f"n{number}", CopyState(
        slot=0,
        incarnation=incarnation or f"disk{number}",
        epoch=6,
        synced_epoch=synced,
        objects=1,
        wanted=wanted,
        wanted_bytes=10 * wanted,
        undecided=0,
    )


def told(*copies: tuple[str, CopyState]) -> dict[str, CopyState]:
    return dict(copies)


def step(
    route: Route, move: Move | None, copies: Mapping[str, CopyState], waited: Mapping[int, float] | None = None
) -> Step:
    return decide(route, move, copies, {f"n{number}": seconds for number, seconds in (waited or {}).items()})


# -- stable


def test_nothing_is_done_without_a_move():
    assert step(stable(1, 2, 3), None, told(copy(1), copy(2), copy(3))).does == "wait"
    assert stage_of(stable(1, 2, 3), None) == "done"


def test_a_move_that_is_fulfilled_is_forgotten_whatever_its_order():
    assert step(stable(1, 2, 3), move_to(3, 1, 2), {}).does == "forget-move"


def test_learners_that_nobody_asks_for_are_dropped_at_once():
    route = stable(1, 2, 3, learners=(4, 5))
    assert step(route, None, {}) == Step(does="drop-learners", nodes=("n4", "n5"), why="no move asks for them")
    assert step(route, move_to(1, 2, 5), {}).nodes == ("n4",)
    assert step(route, move_to(1, 2, 3), {}).does == "drop-learners", "before the move is forgotten"
    assert stage_of(route, None) == "leaving"


def test_a_learner_with_another_copy_is_left_to_its_node_for_a_while():
    route = stable(1, 2, 3, learners=(4,))
    copies = told(copy(1), copy(2), copy(3), copy(4, 5, incarnation="other"))
    assert step(route, move_to(1, 2, 4), copies, {4: OTHER_COPY_S - 0.1}).does == "wait"
    assert step(route, move_to(1, 2, 4), copies, {4: OTHER_COPY_S}).nodes == ("n4",)
    silent = told(copy(1), copy(2), copy(3))
    assert step(route, move_to(1, 2, 4), silent, {4: 10 * LOST_S}).does == "wait", "a silent one may come back"


def test_it_waits_for_a_node_that_named_no_copy():
    found = step(stable(1, 2, 3, learners=(4,)), move_to(1, 4, 5), told(copy(4, 5)))
    assert found.does == "wait" and found.why == "n5 has not begun yet"
    assert stage_of(stable(1, 2, 3, learners=(4,)), move_to(1, 4, 5)) == "waiting-for-node"
    assert stage_of(stable(1, 2, 3, learners=(4, 5)), move_to(1, 4, 5)) == "learning"


@pytest.mark.parametrize(
    ("learner", "does", "why"),
    [
        (None, "wait", "n4 does not answer"),
        (copy(4, 4), "wait", "n4 is being filled"),
        (copy(4, 5, wanted=2), "wait", "n4 wants 2 versions (20 bytes)"),
        (copy(4, 5, incarnation="other"), "wait", "n4 has another copy than the route names"),
        (copy(4, 5), "begin-joint", ""),
        (copy(4, 7), "begin-joint", ""),
    ],
)
def test_a_joint_epoch_begins_when_the_learner_is_whole(learner: tuple[str, CopyState] | None, does: Does, why: str):
    route = stable(1, 2, 3, learners=(4,))
    assert route.learners[0].since == 5
    copies = told(copy(1), copy(2), copy(3), *([learner] if learner else []))
    found = step(route, move_to(1, 2, 4), copies)
    assert (found.does, found.why) == (does, why)


def test_all_learners_of_the_move_are_waited_for():
    route = stable(1, 2, 3, learners=(4, 5))
    copies = told(copy(1), copy(2), copy(3), copy(4, 5), copy(5, 4))
    assert step(route, move_to(1, 4, 5), copies).why == "n5 is being filled"


@pytest.mark.parametrize(
    ("old", "new", "good", "does"),
    [
        ((1, 2, 3), (1, 2, 4), (1, 2, 4), "begin-joint"),  # n3 is dead and is replaced
        ((1, 2, 3), (1, 2, 4), (1, 3, 4), "begin-joint"),  # n2 is down: as many are left of the new set as of the old
        ((1, 2, 3), (1, 2, 4), (1, 4), "wait"),  # no majority of the old one to read from
        ((1, 2, 3, 4, 5), (1, 2, 3), (1, 2, 4, 5), "wait"),  # the old set is the better one while n3 is down
        ((1, 2, 3, 4, 5), (1, 2, 3), (1, 2, 3, 4, 5), "begin-joint"),
        ((1, 2, 3), (1, 2), (1, 3), "wait"),  # both of two are a majority
        ((1,), (1, 2), (1, 2), "begin-joint"),
    ],
)
def test_a_joint_epoch_is_not_begun_from_where_it_would_be_given_up(
    old: tuple[int, ...], new: tuple[int, ...], good: tuple[int, ...], does: Does
):
    route = stable(*old, learners=tuple(number for number in new if number not in old))
    assert step(route, move_to(*new), told(*(copy(number, 5) for number in good))).does == does


def test_a_voter_that_is_not_filled_is_none_of_a_majority():
    route = stable(1, 2, 3, learners=(4,))
    blank = Route(slot=0, epoch=5, voters=(OLD[0], Member("n2", "disk2", 4), OLD[2]), learners=route.learners)
    copies = told(copy(1), copy(2, 3), copy(4, 5))
    assert step(blank, move_to(1, 3, 4), copies).does == "wait"
    assert step(blank, move_to(1, 3, 4), told(*copies.items(), copy(3))).does == "begin-joint"


# -- joint


@pytest.mark.parametrize(
    ("copies", "waited", "does"),
    [
        # All of the new set are filled in this epoch and want nothing.
        ((copy(1, 6), copy(2, 6), copy(3), copy(4, 6)), {}, "finish"),
        # A majority is, and the third is waited for: it answers, or was there just now.
        ((copy(1, 6), copy(2, 6), copy(4, 5)), {}, "wait"),
        ((copy(1, 6), copy(2, 6), copy(4, 6, wanted=1)), {}, "wait"),
        ((copy(1, 6), copy(2, 6)), {4: SILENT_S - 0.1}, "wait"),
        ((copy(1, 6), copy(2, 6)), {4: SILENT_S}, "finish"),
        # The kept ones have to be filled in this epoch as well.
        ((copy(1), copy(2), copy(3), copy(4, 6)), {}, "wait"),
        ((copy(1, 5), copy(2, 5), copy(3), copy(4, 6)), {}, "wait"),
        ((copy(4, 6), copy(3)), {1: SILENT_S, 2: SILENT_S}, "wait"),
        # Who leaves is not asked.
        ((copy(1, 6), copy(2, 6), copy(3, wanted=3), copy(4, 6)), {}, "finish"),
        # A majority wants nothing, but not the same one that was filled.
        ((copy(1, 6, wanted=1), copy(2, 6), copy(4, 5)), {1: 0.0}, "wait"),
    ],
)
def test_the_final_step_needs_a_majority_of_the_new_set(
    copies: tuple[tuple[str, CopyState], ...], waited: dict[int, float], does: Does
):
    assert step(joint((1, 2, 3), (1, 2, 4)), move_to(1, 2, 4), told(*copies), waited).does == does


@pytest.mark.parametrize(
    ("old", "new", "good", "other", "silent", "does"),
    [
        # The new member lost its copy, or is silent for long: three copies of the old set are better than two.
        ((1, 2, 3), (1, 2, 4), (1, 2, 3), (4,), (), "abort"),
        ((1, 2, 3), (1, 2, 4), (1, 2, 3), (), (4,), "abort"),
        # But not when the old set has no more: there is no going back to a dead node.
        ((1, 2, 3), (1, 2, 4), (1, 2), (4,), (3,), "finish"),
        ((1, 2, 3), (1, 2, 4), (1, 2), (), (3, 4), "finish"),
        # A kept member is gone: the new set has as many as the old one.
        ((1, 2, 3), (1, 2, 4), (2, 3, 4), (1,), (), "finish"),
        # Two of the new set are: only the old one can go on.
        ((1, 2, 3), (1, 4, 5), (2, 3, 5), (1, 4), (), "abort"),
        ((1, 2, 3), (1, 4), (2, 3, 4), (), (1,), "abort"),
        # The old set has no majority: all that can be done is wait.
        ((1, 2, 3), (4, 5, 6), (1, 6), (4, 5), (2, 3), "wait"),
        # ... but for one that lost its copy, which only a stable route can name anew.
        ((1, 2), (3, 4), (1,), (2,), (), "abort"),
        ((1, 2), (3, 4), (1, 3, 4), (2,), (), "finish"),
        ((1, 2), (3, 4), (1,), (), (2,), "wait"),
        # More members than before, one of which is gone.
        ((1, 2, 3), (1, 2, 3, 4, 5), (1, 2, 3, 4), (5,), (), "finish"),
    ],
)
def test_a_joint_epoch_is_given_up_for_the_set_with_more_good_copies(
    old: tuple[int, ...],
    new: tuple[int, ...],
    good: tuple[int, ...],
    other: tuple[int, ...],
    silent: tuple[int, ...],
    does: Does,
):
    route = joint(old, new)
    copies = told(
        *(copy(number, route.epoch) for number in good), *(copy(number, incarnation="other") for number in other)
    )
    assert step(route, move_to(*new), copies, dict.fromkeys(silent, LOST_S)).does == does


def test_a_member_that_is_silent_for_less_is_waited_for():
    route = joint((1, 2, 3), (1, 4, 5))
    copies = told(copy(1, route.epoch), copy(2), copy(3))
    assert step(route, move_to(1, 4, 5), copies, {4: LOST_S - 0.1, 5: LOST_S - 0.1}).does == "wait"
    assert step(route, move_to(1, 4, 5), copies, {4: LOST_S, 5: LOST_S - 0.1}).does == "abort"


def test_it_does_not_go_to_and_fro():
    """What is given up is not begun again in the state that it was given up for."""
    for good, other, silent in [((1, 2, 3), (4,), ()), ((1, 2, 3), (), (4,)), ((2, 3, 5), (1, 4), ())]:
        new = (1, 2, 4) if 5 not in good else (1, 4, 5)
        route = joint((1, 2, 3), new)
        copies = told(*(copy(n, route.epoch) for n in good), *(copy(n, incarnation="other") for n in other))
        waited = dict.fromkeys(silent, LOST_S)
        assert step(route, move_to(*new), copies, waited).does == "abort"
        assert step(to_aborted(route), move_to(*new), copies, waited).does == "wait"
