"""The order in which workers take the modules: none is lost, the long ones begin early, both sorts go side by side."""

from __future__ import annotations

from pathlib import Path

from tests.schedule import LAST, SECONDS, SECONDS_OTHERS, WAITING, in_order

ROOT = Path(__file__).parents[2]
WORKERS = 3
MODULES = sorted(str(file.relative_to(ROOT)) for file in ROOT.glob("tests/**/test_*.py"))


def test_every_module_that_is_named_is_there():
    assert set(SECONDS) <= set(MODULES)
    assert all((ROOT / folder).is_dir() for folder in (*WAITING, *LAST))


def test_each_module_goes_once_in_whatever_order_they_come():
    assert sorted(in_order(MODULES)) == sorted(in_order(reversed(MODULES))) == MODULES
    assert in_order([]) == [] and in_order(["tests/unit/test_schedule.py"]) == ["tests/unit/test_schedule.py"]


def test_what_is_long_does_not_begin_last():
    """While a long one runs the other workers have enough to do."""
    order = in_order(MODULES)
    seconds = [SECONDS.get(name, SECONDS_OTHERS) for name in order]
    for at, name in enumerate(order):
        if name in SECONDS:
            assert sum(seconds[at + 1 :]) >= (WORKERS - 1) * seconds[at], name


def test_modules_that_wait_go_beside_modules_that_compute():
    """At each moment about the same part of both has begun."""
    waits = {name: name.startswith((*WAITING, *LAST)) for name in MODULES}
    seconds = {name: SECONDS.get(name, SECONDS_OTHERS) for name in MODULES}
    all_s = {sort: sum(seconds[name] for name in MODULES if waits[name] is sort) for sort in (True, False)}
    begun_s = {True: 0, False: 0}
    for name in in_order(MODULES):
        begun_s[waits[name]] += seconds[name]
        assert abs(begun_s[True] / all_s[True] - begun_s[False] / all_s[False]) < 0.2, name
