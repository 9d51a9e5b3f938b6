"""Which versions may go: single cases with their times, and what holds of every history."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amberblob.config import Duration, Keep, RetentionRule, RetentionSection
from amberblob.manifest import Op, Ranges, Record, Version, covers, merge_ranges
from antientropy.retention import REPEATS_MS, Retention, Rule
from chunkstore.interface import History

DAY = 86_400_000
Rows = tuple[tuple[int, int, int | None], ...]


def version(number: int, created_at_ms: int) -> Version:
    return Version(number, f"blob{number}", 1, "e", created_at_ms, "text/plain", {}, ())


def history(
    rows: Rows,
    *,
    path: str = "a",
    head: int | None = None,
    live: Ranges | None = None,
    taken: Ranges = (),
    op: Op = "put",
    changed_at_ms: int = 0,
    deleted_at_ms: int = 0,
    version_max: int | None = None,
) -> History:
    """What a copy tells; ``live`` is by default what has no tombstone, the head the newest of it."""
    if live is None:
        live = merge_ranges((number, number) for number, _, dead in rows if dead is None)
    created = {number: at for number, at, _ in rows}
    if head is None and live:
        head = live[-1][1]
    record = Record(
        revision=1,
        op=op,
        version_max=version_max if version_max is not None else max((number for number, _, _ in rows), default=0),
        head=None if head is None else version(head, created.get(head, changed_at_ms)),
        live=live,
        taken=taken,
        changed_at_ms=changed_at_ms,
        deleted_at_ms=deleted_at_ms,
        previous=None,
        writes=(),
    )
    return History(path=path, record=record, rows=rows)


def keeping(days: float | None, versions: int = 0, *, stub_days: float = 1) -> Retention:
    keep_ms = None if days is None else int(days * DAY)
    return Retention(Rule(keep_ms=keep_ms, versions=versions), {}, stub_keep_ms=int(stub_days * DAY))


THREE: Rows = ((1, 0, None), (2, 2 * DAY, None), (3, 5 * DAY, None))


def test_a_version_goes_when_its_successor_is_old_enough():
    known, keep = history(THREE), keeping(7)
    assert keep.expendable(known, 9 * DAY - 1) == ()
    assert keep.expendable(known, 9 * DAY) == (1,)
    assert keep.expendable(known, 12 * DAY - 1) == (1,)
    assert keep.expendable(known, 12 * DAY) == (1, 2)
    assert keep.expendable(known, 1000 * DAY) == (1, 2), "the head stays"


def test_kept_for_ever():
    assert keeping(None).expendable(history(THREE), 10**15) == ()
    dead = history((), version_max=3, op="delete", deleted_at_ms=1)
    assert not keeping(None).stub_may_go(dead, 10**15)


def test_so_many_of_the_newest_are_kept():
    assert keeping(0, 2).expendable(history(THREE), 6 * DAY) == (1,)
    assert keeping(0, 3).expendable(history(THREE), 6 * DAY) == ()
    assert keeping(0, 1).expendable(history(THREE), 6 * DAY) == (1, 2)
    assert keeping(0, 0).expendable(history(THREE), 6 * DAY) == (1, 2)


def test_a_version_stays_as_long_as_its_write_may_be_repeated():
    known, made = history(((1, DAY, None), (2, DAY + 1, None))), DAY
    assert keeping(0).expendable(known, made + REPEATS_MS - 1) == ()
    assert keeping(0).expendable(known, made + REPEATS_MS) == (1,)
    short = keeping(0, stub_days=1 / 86_400)
    assert short.expendable(known, made + 999) == ()
    assert short.expendable(known, made + 1000) == (1,)


def test_neither_dead_nor_live_ones_take_the_others_place_among_the_newest():
    known = history(((1, 0, None), (2, 1, None), (3, 2, 5), (4, 3, None)))
    assert keeping(0, 2).expendable(known, DAY) == (1,)
    assert keeping(0, 1).expendable(known, DAY) == (1, 2, 3)


def test_a_deleted_path_counts_from_its_delete():
    known = history(((1, 0, 6 * DAY), (2, 2 * DAY, 6 * DAY)), op="delete", taken=((1, 2),), deleted_at_ms=6 * DAY)
    assert keeping(7).expendable(known, 13 * DAY - 1) == ()
    assert keeping(7).expendable(known, 13 * DAY) == (1, 2)
    assert keeping(7, 1).expendable(known, 13 * DAY) == (1,), "kept in any case"


def test_what_became_the_head_again_counts_from_its_next_successor():
    # Version 2 was deleted on day 9, so version 1 was the head until version 3 came on day 10.
    known = history(((1, 0, None), (2, 1 * DAY, 9 * DAY), (3, 10 * DAY, None)))
    assert keeping(7).expendable(known, 16 * DAY) == (2,)
    assert keeping(7).expendable(known, 17 * DAY) == (1, 2)


def test_a_restore_that_puts_a_newer_version_back_starts_anew():
    known = history(((1, 0, None), (2, 1 * DAY, None)), op="restore", changed_at_ms=9 * DAY)
    assert keeping(7).expendable(known, 16 * DAY - 1) == ()
    assert keeping(7).expendable(known, 16 * DAY) == (1,)


def test_an_old_tombstone_of_what_the_last_delete_took_does_not_count():
    # This copy did not hear of the restore in between.
    known = history(((1, 0, 1 * DAY),), op="delete", taken=((1, 1),), deleted_at_ms=6 * DAY)
    assert keeping(7).expendable(known, 13 * DAY - 1) == ()
    assert keeping(7).expendable(known, 13 * DAY) == (1,)


def test_a_row_whose_tombstone_has_no_time_counts_from_the_record():
    known = history(((1, 0, None), (2, 1, None)), live=((2, 2),), changed_at_ms=4 * DAY)
    assert keeping(7).expendable(known, 11 * DAY - 1) == ()
    assert keeping(7).expendable(known, 11 * DAY) == (1,)


def test_the_heads_row_need_not_be_here():
    known = history(((1, 0, None),), head=2, live=((1, 2),), changed_at_ms=5 * DAY, version_max=2)
    assert keeping(7).expendable(known, 12 * DAY - 1) == ()
    assert keeping(7).expendable(known, 12 * DAY) == (1,)


def test_a_record_that_is_undecided_or_older_than_the_rows_names_nothing():
    assert keeping(0).expendable(History(path="a", record=None, rows=THREE), 10**15) == ()
    assert keeping(0).expendable(history(THREE, head=2, live=((1, 2),), version_max=2), 10**15) == ()


def test_ranges_run_over_numbers_that_are_no_version():
    known = history(((100, 0, None), (200, 1, None), (300, 2, 3), (400, 4, None), (500, 5, None)), live=((100, 500),))
    assert keeping(0).nominated(known, DAY) == ((1, 400),)
    assert keeping(0, 2).nominated(known, DAY) == ((1, 300),)
    kept = history(((100, 0, None), (200, 1, 20 * DAY), (300, 2, None), (400, 4, None)))
    assert keeping(7).nominated(kept, 8 * DAY) == ((1, 100), (201, 300))
    assert keeping(7).nominated(kept, DAY) == ()
    without_the_heads_row = history(((1, 0, 1), (3, 0, 1)), head=2, live=((2, 2),), version_max=3)
    assert keeping(0).nominated(without_the_heads_row, DAY) == ((1, 1), (3, 3))


def test_a_stub_goes_when_nothing_is_left_and_its_time_is_over():
    known = history((), version_max=3, op="expire", deleted_at_ms=10 * DAY, changed_at_ms=17 * DAY)
    assert not keeping(7).stub_may_go(known, 17 * DAY - 1)
    assert keeping(7).stub_may_go(known, 17 * DAY)
    assert not keeping(0).stub_may_go(known, 11 * DAY - 1), "a day at the least"
    assert keeping(0).stub_may_go(known, 11 * DAY)
    assert keeping(0, stub_days=0).stub_may_go(known, 10 * DAY)


@pytest.mark.parametrize(
    "known",
    [
        history(((1, 0, 1),), op="delete", deleted_at_ms=1),
        history((), head=1, live=((1, 1),)),
        history((), live=((1, 1),), head=None),
        History(path="a", record=None, rows=()),
    ],
)
def test_a_stub_stays_while_anything_is_left_or_undecided(known):
    assert not keeping(0, stub_days=0).stub_may_go(known, 10**15)


def test_the_longest_prefix_wins_and_inherits_what_it_does_not_say():
    section = RetentionSection(
        keep=Keep(100),
        versions=4,
        stub_keep=Duration(7),
        rules=(
            RetentionRule(prefix="a/", keep=Keep(math.inf)),
            RetentionRule(prefix="a/b/", versions=1),
            RetentionRule(prefix="a/b/c", keep=Keep(0.5), versions=0),
        ),
    )
    retention = Retention.of(section)
    assert retention.rule("x") == Rule(keep_ms=100_000, versions=4)
    assert retention.rule("a") == retention.rule("b/a/") == retention.rule("x")
    assert retention.rule("a/x") == Rule(keep_ms=None, versions=4)
    assert retention.rule("a/b/x") == Rule(keep_ms=100_000, versions=1)
    assert retention.rule("a/b/cx") == Rule(keep_ms=500, versions=0)
    dead = history((), path="x", version_max=1, op="delete", deleted_at_ms=0, changed_at_ms=0)
    assert not retention.stub_may_go(dead, 99_999)
    assert retention.stub_may_go(dead, 100_000)


# ---- what holds of every history

times = st.integers(0, 20 * DAY)


@st.composite
def histories(draw, orderly=False):
    """Any at all; ``orderly``: with times as they come when no clock jumps."""
    numbers = sorted(draw(st.sets(st.integers(1, 30), max_size=8)))
    made = [draw(times) for _ in numbers]
    if orderly:
        made.sort()
    rows = tuple(
        (number, at, draw(st.none() | (st.integers(at, 20 * DAY) if orderly else times)))
        for number, at in zip(numbers, made, strict=True)
    )
    alive = [number for number, _, dead in rows if dead is None]
    return history(
        rows,
        live=merge_ranges((number, number) for number in alive),
        taken=merge_ranges((n, n) for n, _, dead in rows if dead is not None and draw(st.booleans())),
        op=draw(st.sampled_from(["put", "delete", "delete-version", "restore", "expire"])),
        changed_at_ms=draw(times),
        deleted_at_ms=draw(times),
    )


retentions = st.builds(keeping, st.none() | st.integers(0, 9), st.integers(0, 5))


@given(histories(), retentions, times)
def test_never_the_head_nor_what_is_not_there(known, retention, now_ms):
    going = retention.expendable(known, now_ms)
    assert list(going) == sorted(set(going))
    assert set(going) <= {number for number, _, _ in known.rows}
    assert known.record.head is None or known.record.head.version not in going


@given(histories(), retentions, times)
def test_ranges_name_what_may_go_and_nothing_that_stays(known, retention, now_ms):
    going, ranges = set(retention.expendable(known, now_ms)), retention.nominated(known, now_ms)
    assert {number for number, _, _ in known.rows if covers(ranges, number)} == going
    assert merge_ranges(ranges) == ranges
    assert known.record.head is None or not covers(ranges, known.record.head.version)


@given(histories(), retentions, times, times)
def test_what_may_go_may_go_later_too(known, retention, one_ms, other_ms):
    early, late = sorted((one_ms, other_ms))
    assert set(retention.expendable(known, early)) <= set(retention.expendable(known, late))
    assert retention.stub_may_go(known, late) or not retention.stub_may_go(known, early)


@given(histories(), retentions, times)
def test_the_newest_are_kept(known, retention, now_ms):
    left = {number for number, _, _ in known.rows} - set(retention.expendable(known, now_ms))
    newest = [number for number, _, _ in known.rows]
    alive = [number for number in newest if covers(known.record.live, number)]
    count = retention.rule("a").versions
    assert set(newest[len(newest) - min(count, len(newest)) :]) <= left
    assert set(alive[len(alive) - min(count, len(alive)) :]) <= left


@given(histories(orderly=True), st.integers(0, 9), times)
def test_nothing_goes_before_keep_is_over_since_it_was_made(known, days, now_ms):
    """Whatever took a version's place or its life came after it: so nothing younger than ``keep`` goes."""
    going = set(keeping(days).expendable(known, now_ms))
    assert all(at + days * DAY <= now_ms for number, at, _ in known.rows if number in going)


@given(histories(), st.integers(0, 5))
def test_in_the_end_only_what_is_kept_in_any_case_is_left(known, count):
    left = {number for number, _, _ in known.rows} - set(keeping(9, count).expendable(known, 1000 * DAY))
    head = known.record.head
    assert len(left - ({head.version} if head else set())) <= 2 * count
    if count == 0:
        assert left <= ({head.version} if head else set())
