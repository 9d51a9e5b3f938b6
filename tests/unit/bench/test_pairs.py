"""Comparing two stores: what is made of neighbouring measurements, and when another round begins."""

from __future__ import annotations

import pytest

from bench.load import Measured
from bench.pairs import TRIALS, Pace, Sample, Store, add_pair, in_turn, ratio, until
from bench.results import Recorder

OURS = Store(title="AmberBlob", ports=(1,), base="/objects/", pids=())
THEIRS = Store(title="Rival 1.0", ports=(2,), base="/v1/a/c/", pids=())


@pytest.mark.parametrize(
    ("first", "second", "times"), [(300, 100, 3), (1, 4, 0.25), (0, 5, None), (5, 0, None), (0, 0, None)]
)
def test_ratio(first, second, times):
    assert ratio(first, second) == times


def _rows(recorder):
    return {(row.subject, row.metric): row for row in recorder.rows()}


def test_ratios_are_of_neighbours_not_of_medians():
    recorder = Recorder()
    put, name = TRIALS[0], TRIALS[0].subject
    for mine, other in ((100, 50), (400, 100), (90, 90)):
        add_pair(recorder, put, ("A", Sample(rate=mine, cpu=10, p50_ms=1, p99_ms=2)), ("B", Sample(rate=other, cpu=40)))
    rows = _rows(recorder)
    times = rows[f"A over B: {name}", "throughput"]
    assert times.unit == "times"
    assert (times.series.values, times.series.median) == ((2, 4, 1), 2)
    assert (times.series.low, times.series.high) == (1, 4)
    assert rows[f"A over B: {name}", "CPU of all servers"].series.values == (0.25, 0.25, 0.25)
    assert rows[f"A: {name}", "throughput"].series.values == (100, 400, 90)
    assert rows[f"A: {name}", "p99"].series.median == 2
    assert (f"B: {name}", "p99") not in rows, "nothing is shown that was not measured"


def test_where_a_ratio_says_nothing_there_is_none():
    recorder = Recorder()
    add_pair(recorder, TRIALS[-1], ("A", Sample(rate=5, cpu=0)), ("B", Sample(rate=6, cpu=1)))
    rows = _rows(recorder)
    subject = f"A over B: {TRIALS[-1].subject}"
    assert (subject, "throughput") in rows
    assert (subject, "CPU of all servers") not in rows


def test_who_comes_first_changes():
    order = []

    def measure(store):
        order.append(store.title)
        return Sample(rate=store.ports[0], cpu=1)

    for number in range(3):
        one, other = in_turn(number, measure, OURS, THEIRS)
        assert (one.rate, other.rate) == (1, 2), "whatever the order, each keeps its own"
    assert order == ["AmberBlob", "Rival 1.0", "Rival 1.0", "AmberBlob", "AmberBlob", "Rival 1.0"]


class Windows:
    """In the place of the load generator: windows with so many answers, and so many errors, each."""

    def __init__(self, *found):
        self.left = list(found)

    def __call__(self, job, seconds, *, probe):
        count, errors = self.left.pop(0)
        took_us = [1000.0] * count
        return Measured(
            seconds=seconds,
            latencies_us=took_us,
            by_operation_us={"PUT": took_us},
            ends_s=[0.1] * count,
            statuses={},
            errors={"status 503": errors} if errors else {},
            retries=0,
            unsent=0,
            generator_cpu_s=0.0,
            used={},
        )


def _put_small():
    return TRIALS[0].measure(OURS, Pace(window_s=0.5, settle_s=0, transfers=1), 0)


def test_a_window_in_which_the_machine_stood_still_is_begun_again(monkeypatch):
    windows = Windows((0, 0), (0, 0), (7, 0), (9, 0))
    monkeypatch.setattr("bench.pairs.run_load", windows)
    assert _put_small().rate == 14
    assert windows.left == [(9, 0)], "one that says something is enough"


@pytest.mark.parametrize("found", [[(0, 3), (7, 0)], [(0, 0)] * 5 + [(7, 0)]], ids=["errors", "silence"])
def test_a_store_that_answers_nothing_is_told(monkeypatch, found):
    windows = Windows(*found)
    monkeypatch.setattr("bench.pairs.run_load", windows)
    with pytest.raises(RuntimeError, match="no request was answered well"):
        _put_small()
    assert windows.left == [(7, 0)]


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def _rounds(deadline, lengths, rounds_max=100):
    clock, done = Clock(), []
    for number in until(deadline, rounds_max, clock):
        done.append(number)
        clock.now += lengths[number]
    return done, clock.now


def test_no_round_begins_that_would_end_too_late():
    assert _rounds(35, [10] * 9) == ([0, 1, 2], 30)
    assert _rounds(40, [10] * 9) == ([0, 1, 2, 3], 40)
    assert _rounds(41, [10, 20, 5, 5])[0] == [0, 1], "after a slow round, one as slow is expected"


def test_there_is_one_round_at_least_and_so_many_at_most():
    assert _rounds(-1, [10]) == ([0], 10)
    assert _rounds(1000, [1] * 9, rounds_max=4)[0] == [0, 1, 2, 3]
