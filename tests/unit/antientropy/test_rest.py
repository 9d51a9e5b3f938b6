"""Workers rest in proportion to their work."""

from __future__ import annotations

import pytest

from antientropy.rest import Rest
from tests.clocks import HandClock


@pytest.mark.parametrize(("worked_s", "rest_s"), [(0.0, 0.0), (0.25, 1.0), (2.0, 5.0)])
def test_a_rest_is_so_many_times_as_long_as_the_work_but_not_endless(worked_s: float, rest_s: float) -> None:
    clock = HandClock()
    rest = Rest(clock, max_s=5.0)
    began_s = clock.monotonic_s()
    assert rest.left_s(began_s) <= 0, "nothing was done yet"
    clock.now_s += worked_s
    rest.begin(began_s, 4.0)
    ended_s = clock.monotonic_s()
    assert rest.left_s(ended_s) == pytest.approx(rest_s) and rest.until_s == pytest.approx(ended_s + rest_s)
    assert rest.left_s(ended_s + rest_s) <= 0
