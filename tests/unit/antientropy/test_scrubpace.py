import math

from hypothesis import given
from hypothesis import strategies as st

from antientropy.scrubpace import (
    DATABASE_SHARE_MAX,
    PATH_UNITS,
    Job,
    Pace,
    SlotPass,
    decode_pass,
    needed_rate,
    units_left,
)

jobs = st.lists(st.builds(Job, due_ms=st.integers(1, 10**9), units=st.integers(1, 10**12)), max_size=8)


def finished_in_time(rate: float, todo: list[Job]) -> bool:
    """Whether one after the other, earliest first, all are done when they are due."""
    done_s = 0.0
    for job in sorted(todo, key=lambda job: job.due_ms):
        done_s += job.units / rate
        if done_s > job.due_ms / 1000 * (1 + 1e-9):
            return False
    return True


@given(jobs)
def test_the_rate_is_the_lowest_that_makes_it(todo):
    rate = needed_rate(todo, 0)
    if not todo:
        assert rate == 0
        return
    assert finished_in_time(rate, todo)
    assert not finished_in_time(rate * 0.999, todo)


def test_a_job_that_is_late_wants_all_there_is():
    assert needed_rate([Job(due_ms=5, units=1)], 5) == math.inf
    assert needed_rate([Job(due_ms=10_005, units=20), Job(due_ms=5_005, units=5)], 5) == 2.5


def test_rests_keep_to_the_rate_the_ceiling_and_the_share_of_the_database():
    pace = Pace(100.0)
    assert pace.rest_s(0.0, 1.0) == 0
    pace.spent(50, began_s=10.0, busy_s=0.0)
    assert pace.rest_s(10.0, 10.0) == 5.0
    assert pace.rest_s(12.0, 10.0) == 3.0
    assert pace.rest_s(10.0, math.inf) == 0.5, "the ceiling"
    assert pace.rest_s(16.0, 10.0) == 0.0
    pace.spent(50, began_s=10.0, busy_s=2.0)
    assert pace.rest_s(10.0, math.inf) == 2.0 / DATABASE_SHARE_MAX
    assert pace.rest_s(10.0, 0.0) == 2.0 / DATABASE_SHARE_MAX


def test_what_is_left_of_a_slot():
    fresh = SlotPass(since_ms=0)
    assert units_left(fresh, 10, 70_000.0) == 700_000
    assert units_left(SlotPass(since_ms=0, units=300_000), 10, 70_000.0) == 400_000
    assert units_left(SlotPass(since_ms=0, last_units=900_000, units=300_000), 10, 70_000.0) == 600_000
    assert units_left(SlotPass(since_ms=0, units=10**9), 10, 70_000.0) == PATH_UNITS, "never nothing"


def test_a_pass_is_read_back():
    known = SlotPass(since_ms=5, after="p\0\n", units=7, last_units=9, clean=False, wrong=["ä", "b"])
    assert decode_pass(known.encoded(), 10) == known
    assert known.ended(99) == SlotPass(since_ms=99, last_units=7, wrong=["ä", "b"])


def test_a_memo_that_says_nothing_is_the_beginning():
    for text in ("", "{", '{"since_ms": "x"}', "[]"):
        assert decode_pass(text, 12) == SlotPass(since_ms=12)
    assert decode_pass(SlotPass(since_ms=10**15).encoded(), 12).since_ms == 12, "a clock that was ahead"
