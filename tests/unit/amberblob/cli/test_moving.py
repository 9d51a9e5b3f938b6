"""How far a change of membership is, and when waiting for it is in vain."""

from typing import Any

from amberblob.cli.membership import plan_lines
from amberblob.cli.moving import PATIENCE_S, Moved, MoveWatch, Moving, Stuck, moving_text


def account(left: int, *, bytes_left: int = 0, why: str = "", planning: bool = False, **more: Any) -> dict[str, Any]:
    slots = [{"slot": slot, "stage": "learning", "why": why} for slot in range(left)]
    return {
        "planning": planning,
        "moves": {"left": left, "bytes_left": bytes_left, "stages": {}, "slots": slots, **more},
    }


def test_it_is_done_when_no_slot_is_on_its_way_and_the_plan_is_written():
    watch = MoveWatch()
    assert isinstance(watch.look(account(0, planning=True), 0.0), Moving)
    assert watch.look(account(4), 1.0) == Moving(4, 4, "0 of 4 slots moved")
    assert watch.look(account(1), 2.0) == Moving(4, 1, "3 of 4 slots moved")
    assert watch.look(account(0), 3.0) == Moved(4)


def test_a_node_that_has_not_heard_of_the_plan_says_nothing_of_its_end():
    watch = MoveWatch(generation=3)
    assert isinstance(watch.look({**account(0), "generation": 2}, 0.0), Moving)
    assert isinstance(watch.look({**account(5), "generation": 3}, 1.0), Moving)
    assert watch.look({**account(0), "generation": 4}, 2.0) == Moved(5)


def test_how_long_it_takes_yet_is_told_by_the_slots_that_have_arrived():
    watch = MoveWatch()
    assert watch.look(account(0, planning=True), 0.0) == Moving(0, 0, "planning")
    assert watch.look(account(40), 10.0) == Moving(40, 40, "0 of 40 slots moved")
    assert watch.look(account(39), 12.0) == Moving(40, 39, "1 of 40 slots moved")
    assert watch.look(account(30), 20.0) == Moving(40, 30, "10 of 40 slots moved, about 30 s")


def test_nothing_to_move_is_done_at_once():
    assert MoveWatch().look(account(0), 0.0) == Moved(0)


def test_a_node_that_is_away_is_the_reason_when_nothing_gets_further():
    watch = MoveWatch()
    away = account(3, why="n5 cannot be reached")
    assert isinstance(watch.look(away, 0.0), Moving)
    assert isinstance(watch.look(away, PATIENCE_S - 1), Moving)
    stuck = watch.look(away, PATIENCE_S)
    assert isinstance(stuck, Stuck)
    assert "3 slots are on their way" in stuck.why
    assert "n5 cannot be reached" in stuck.why


def test_fewer_slots_or_bytes_give_it_more_time():
    watch = MoveWatch()
    why = "n5 cannot be reached"
    watch.look(account(3, bytes_left=100, why=why), 0.0)
    watch.look(account(3, bytes_left=50, why=why), PATIENCE_S - 1)
    assert isinstance(watch.look(account(3, bytes_left=50, why=why), PATIENCE_S + 50), Moving)
    watch.look(account(2, bytes_left=90, why=why), PATIENCE_S + 60)
    assert isinstance(watch.look(account(2, bytes_left=90, why=why), 2 * PATIENCE_S), Moving)
    assert isinstance(watch.look(account(2, bytes_left=90, why=why), 3 * PATIENCE_S), Stuck)


def test_without_a_reason_it_is_waited_for_longer():
    watch = MoveWatch()
    watch.look(account(3), 0.0)
    assert isinstance(watch.look(account(3), 10 * PATIENCE_S), Moving)


def test_the_line():
    moves = account(5, bytes_left=3_000_000, rate_bytes_per_s=1_000_000.0, seconds_left=3.0)["moves"]
    moves["stages"] = {"waiting": 3, "learning": 1, "joint": 1}
    text = moving_text(moves, 12)
    assert text.startswith("7 of 12 slots moved, ")
    assert text.endswith("/s, about 3 s for these, 1 learning, 1 joint")


def test_the_plan_in_sentences():
    plan = {"moves": 12, "copies": 14, "voters": 3, "dry_run": True, "warnings": ["few nodes"]}
    assert plan_lines(plan) == [
        "warning: few nodes",
        "12 slots would move; 14 copies of slots would be made anew; each slot would have 3 copies then",
    ]
    assert plan_lines({"moves": 0}) == ["no slot has to move"]
