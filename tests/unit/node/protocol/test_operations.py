"""What each kind of write makes of a record."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amberblob.errors import NotFound, PreconditionFailed, VersionConflict
from amberblob.limits import LIVE_RANGES_MAX, RECENT_WRITES_MAX, VERSION_MAX
from amberblob.manifest import Record, Version, WriteMark, covers, merge_ranges, outside
from node.protocol.operations import (
    NO_HISTORY,
    Answer,
    Conditions,
    Delete,
    DeleteVersion,
    Expire,
    Finish,
    History,
    NeedHistory,
    Propose,
    Put,
    Recover,
    Refuse,
    Restore,
    Situation,
    decide,
    head_facts,
)
from tests.unit.node.protocol.model import draft


def row(version: int) -> Version:
    return msgspec.structs.replace(draft(f"B{version}", f"e{version}"), version=version)


def record(
    *, live=(), head=0, version_max=0, taken=(), previous=0, op="put", revision=5, writes=(), expired=()
) -> Record:
    return Record(
        revision=revision,
        op=op,
        version_max=version_max or head,
        head=row(head) if head else None,
        live=live,
        taken=taken,
        changed_at_ms=1,
        deleted_at_ms=2,
        previous=row(previous) if previous else None,
        writes=writes,
        expired=expired,
    )


def situation(current=None, *, floor=0, prior=None, write_id="w", history=NO_HISTORY) -> Situation:
    return Situation(current=current, version_floor=floor, prior=prior, write_id=write_id, now_ms=77, history=history)


def proposed(operation, current=None, **options) -> Record:
    decision = decide(operation, situation(current, **options))
    assert isinstance(decision, Propose), decision
    return decision.record


def refused(operation, current=None, **options):
    decision = decide(operation, situation(current, **options))
    assert isinstance(decision, Refuse), decision
    return decision.error


PUT = Put(draft=draft("new", "e"))


# ---- put


def test_the_first_put():
    made = proposed(PUT)
    assert (made.revision, made.op, made.version_max, made.live, made.taken) == (1, "put", 1, ((1, 1),), ())
    assert made.head is not None and made.head.version == 1 and made.head.blob_id == "new"
    assert made.previous is None and made.deleted_at_ms == 0 and made.changed_at_ms == 77
    assert made.writes == (WriteMark("w", "put", 1, 77),)
    assert made.added == made.head


def test_a_put_follows_the_highest_version_there_ever_was_and_the_floor():
    assert proposed(PUT, record(live=((1, 1),), head=1, version_max=4)).version_max == 5
    assert proposed(PUT, record(live=((1, 1),), head=1, version_max=4), floor=9).version_max == 10
    assert proposed(PUT, None, floor=9).version_max == 10


def test_a_put_vouches_for_what_the_record_before_it_added_only():
    assert proposed(PUT, record(live=((1, 3),), head=3)).previous == row(3)
    assert proposed(PUT, record(op="restore", live=((1, 3),), head=3)).previous is None


def test_a_put_keeps_taken_and_the_time_of_the_last_delete():
    made = proposed(PUT, record(op="delete", version_max=3, taken=((1, 3),)))
    assert made.taken == ((1, 3),) and made.deleted_at_ms == 2 and made.live == ((4, 4),)


@pytest.mark.parametrize(
    ("live", "version_max", "requested", "wanted"),
    [
        (((1, 3),), 3, None, ((1, 4),)),
        (((1, 3),), 3, 9, ((1, 9),)),  # Skipped versions do not exist: the run goes over them.
        (((1, 3),), 4, None, ((1, 3), (5, 5))),  # 4 was deleted: the run ends before it.
        (((1, 1), (3, 3)), 3, None, ((1, 1), (3, 4))),
        ((), 4, None, ((5, 5),)),
    ],
)
def test_live_ranges_of_a_put(live, version_max, requested, wanted):
    current = record(live=live, head=live[-1][1] if live else 0, version_max=version_max)
    assert proposed(Put(draft=draft("new"), requested=requested), current).live == wanted


@pytest.mark.parametrize("requested", [1, 3, 4])
def test_a_requested_version_must_be_new(requested):
    error = refused(Put(draft=draft("new"), requested=requested), record(live=((1, 3),), head=3, version_max=4))
    assert isinstance(error, VersionConflict)
    assert error.extra["version_max"] == 4 and error.extra["head"]["version"] == 3


def test_a_requested_version_must_be_above_the_floor():
    assert isinstance(refused(Put(draft=draft("new"), requested=5), None, floor=5), VersionConflict)
    assert proposed(Put(draft=draft("new"), requested=6), None, floor=5).version_max == 6


def test_versions_run_out():
    error = refused(PUT, record(live=((1, VERSION_MAX),), head=VERSION_MAX))
    assert error.code == "version-exhausted" and error.status == 409
    assert proposed(Put(draft=draft("new"), requested=VERSION_MAX)).version_max == VERSION_MAX
    assert refused(Put(draft=draft("new"), requested=VERSION_MAX + 1)).code == "version-exhausted"


def test_only_the_last_write_ids_stay():
    current = record(live=((1, 1),), head=1, writes=tuple(WriteMark(f"w{n}", "put", n, 0) for n in range(8)))
    made = proposed(PUT, current)
    assert len(made.writes) == RECENT_WRITES_MAX
    assert made.writes[0].write_id == "w1" and made.writes[-1].write_id == "w"


# ---- conditions and write ids

LIVE = record(live=((1, 3),), head=3)
GONE = record(op="delete", version_max=3, taken=((1, 3),))


@pytest.mark.parametrize(
    ("conditions", "current", "holds"),
    [
        (Conditions(absent=True), None, True),
        (Conditions(absent=True), GONE, True),
        (Conditions(absent=True), LIVE, False),
        (Conditions(etags=("*",)), LIVE, True),
        (Conditions(etags=("*",)), GONE, False),
        (Conditions(etags=("*",)), None, False),
        (Conditions(etags=("x", "e3")), LIVE, True),
        (Conditions(etags=("x", "e2")), LIVE, False),
        (Conditions(etags=("x", "*")), LIVE, False),
        (Conditions(version=3), LIVE, True),
        (Conditions(version=2), LIVE, False),
        (Conditions(version=0), LIVE, False),
        (Conditions(version=0), GONE, True),
        (Conditions(version=0), None, True),
        (Conditions(version=3, etags=("x",)), LIVE, False),
        (Conditions(version=2, etags=("e3",)), LIVE, False),
    ],
)
def test_conditions(conditions, current, holds):
    decision = decide(Put(draft=draft("new"), conditions=conditions), situation(current))
    if holds:
        assert isinstance(decision, Propose)
    else:
        assert isinstance(decision, Refuse) and isinstance(decision.error, PreconditionFailed)
        assert decision.error.extra["head"] == head_facts(current)


@pytest.mark.parametrize(
    "operation",
    [
        Delete(conditions=Conditions(version=2)),
        DeleteVersion(version=9, conditions=Conditions(version=2)),
        Restore(conditions=Conditions(version=2)),
        Put(draft=draft("new"), requested=1, conditions=Conditions(version=2)),
    ],
)
def test_a_condition_is_checked_before_all_else(operation):
    assert isinstance(refused(operation, LIVE), PreconditionFailed)


OPERATIONS = [
    (PUT, "put"),
    (Delete(), "delete"),
    (DeleteVersion(version=1), "delete-version"),
    (Restore(), "restore"),
    (Restore(version=99), "restore"),
]


@pytest.mark.parametrize(("operation", "op"), OPERATIONS)
def test_a_write_id_of_another_kind_of_write_is_refused(operation, op):
    for other in {"put", "delete", "delete-version", "restore"} - {op}:
        mark = WriteMark("w", other, 2, 0)
        assert refused(operation, record(live=((1, 3),), head=3, writes=(mark,))).code == "write-id-reused"


@pytest.mark.parametrize(("operation", "op"), OPERATIONS)
def test_a_known_write_id_is_answered_before_conditions(operation, op):
    mark = WriteMark("w", op, 2, 0)
    assert decide(operation, situation(record(live=((1, 3),), head=3, writes=(mark,)))) == Answer(mark)
    assert decide(operation, situation(None, prior=mark)) == Answer(mark)
    assert decide(operation, situation(GONE, prior=mark)) == Answer(mark)
    other = situation(record(live=((1, 3),), head=3, writes=(mark,)), write_id="v")
    assert decide(PUT, other) != Answer(mark)


def test_finish_writes_nothing():
    for current in (None, LIVE, GONE):
        assert decide(Finish(), situation(current, prior=WriteMark("w", "put", 2, 0))) == Answer()


# ---- recover


LOST = record(live=((1, 3),), head=3, previous=2, writes=(WriteMark("w2", "put", 2, 5), WriteMark("w3", "put", 3, 6)))


def test_a_path_that_has_nothing_gets_the_lost_record_as_it_was():
    assert proposed(Recover(record=LOST), None, floor=9, write_id="w3") is LOST


def test_what_was_brought_back_before_is_not_again_whatever_became_of_it():
    for current in (LOST, record(live=((1, 4),), head=4, writes=(*LOST.writes, WriteMark("new", "put", 4, 9)))):
        decision = decide(Recover(record=LOST), situation(current, write_id="w3"))
        assert decision == Answer(LOST.writes[-1])
    # Its mark is remembered longer than the path: it was deleted and forgotten.
    decision = decide(Recover(record=LOST), situation(None, write_id="w3", prior=LOST.writes[-1]))
    assert decision == Answer(LOST.writes[-1])


@pytest.mark.parametrize("current", [record(live=((1, 1),), head=1), record(op="delete", version_max=7)])
def test_a_path_that_was_written_here_is_not_overwritten(current):
    error = refused(Recover(record=LOST), current, write_id="w3")
    assert error.code == "path-not-empty" and error.extra["version_max"] == current.version_max


def test_head_facts():
    assert head_facts(None) is None and head_facts(GONE) is None
    assert head_facts(LIVE) == {"version": 3, "blob_id": "B3", "etag": "e3", "size": 1, "created_at_ms": 0}


# ---- delete


def test_delete_takes_all_that_lives():
    made = proposed(Delete(), record(live=((1, 1), (3, 3)), head=3, version_max=4))
    assert (made.op, made.head, made.live, made.taken) == ("delete", None, (), ((1, 1), (3, 3)))
    assert made.version_max == 4 and made.deleted_at_ms == 77 and made.revision == 6
    assert made.writes[-1].version == 3 and made.previous == row(3)
    assert made.added is None


@pytest.mark.parametrize("current", [None, GONE])
def test_nothing_to_delete(current):
    assert isinstance(refused(Delete(), current), NotFound)


# ---- delete one version


def test_delete_of_an_older_version_keeps_the_head():
    made = proposed(DeleteVersion(version=2), LIVE, history=History(rows={2: row(2)}))
    assert (made.op, made.head, made.live, made.taken) == ("delete-version", row(3), ((1, 1), (3, 3)), ((2, 2),))
    assert made.writes[-1].version == 2 and made.version_max == 3 and made.deleted_at_ms == 77


def test_delete_of_an_older_version_first_asks_whether_it_exists():
    assert decide(DeleteVersion(version=2), situation(LIVE)) == NeedHistory(version=2)
    error = refused(DeleteVersion(version=2), LIVE, history=History(rows={}, asked=frozenset({2})))
    assert error.code == "no-such-version" and isinstance(error, NotFound)


def test_the_record_itself_tells_of_its_previous_version():
    assert proposed(DeleteVersion(version=2), record(live=((1, 3),), head=3, previous=2)).live == ((1, 1), (3, 3))


@pytest.mark.parametrize("version", [0, -1, 2, 4, 9])
def test_delete_of_a_version_that_does_not_live(version):
    current = record(live=((1, 1), (3, 3)), head=3)
    assert refused(DeleteVersion(version=version), current).code == "no-such-version"
    assert refused(DeleteVersion(version=version), None).code == "no-such-version"
    assert refused(DeleteVersion(version=version), GONE).code == "no-such-version"


def test_delete_of_the_head_moves_it_to_the_newest_that_lives():
    made = proposed(DeleteVersion(version=3), record(live=((1, 3),), head=3, previous=2))
    assert made.head == row(2) and made.live == ((1, 2),)
    made = proposed(
        DeleteVersion(version=3),
        record(live=((1, 3),), head=3),
        history=History(rows={2: row(2)}, below=100, complete_down_to=2),
    )
    assert made.head == row(2)


def test_delete_of_the_only_version():
    made = proposed(DeleteVersion(version=3), record(live=((3, 3),), head=3))
    assert made.head is None and made.live == () and made.taken == ((3, 3),)


def test_delete_of_the_head_over_versions_that_were_skipped():
    """Live is 1..9, but only 1 and 9 exist."""
    current = record(live=((1, 9),), head=9)
    assert decide(DeleteVersion(version=9), situation(current)) == NeedHistory(below=9)
    made = proposed(DeleteVersion(version=9), current, history=History(rows={1: row(1)}, below=100, complete_down_to=0))
    assert made.head == row(1) and made.live == ((1, 8),)
    made = proposed(DeleteVersion(version=9), current, history=History(rows={}, below=100, complete_down_to=0))
    assert made.head is None and made.live == (), "none of them exists"


def test_history_is_read_page_by_page_until_the_newest_is_sure():
    current = record(live=((1, 5), (30, 30)), head=30)
    operation = DeleteVersion(version=30)
    assert decide(operation, situation(current)) == NeedHistory(below=6)
    # The first page reached down to 4 and showed no live version: go on below it.
    paged = History(rows={20: row(20), 10: row(10)}, below=100, complete_down_to=4)
    assert decide(operation, situation(current, history=paged)) == NeedHistory(below=4)
    # A row below the complete part is not trusted to be the newest.
    paged = History(rows={2: row(2)}, below=100, complete_down_to=4)
    assert decide(operation, situation(current, history=paged)) == NeedHistory(below=4)
    paged = History(rows={2: row(2), 4: row(4)}, below=100, complete_down_to=4)
    assert proposed(operation, current, history=paged).head == row(4)
    # Rows above the bound, or dead, are no candidates.
    paged = History(rows={20: row(20), 2: row(2)}, below=100, complete_down_to=0)
    assert proposed(operation, current, history=paged).head == row(2)


def gaps(count: int, version_max: int | None = None) -> Record:
    """``count`` runs of one version each, the odd ones; the head is the last."""
    return record(live=tuple((n, n) for n in range(1, 2 * count, 2)), head=2 * count - 1, version_max=version_max or 0)


def test_too_many_gaps_by_a_delete():
    current = record(
        live=((1, 3), *((n, n) for n in range(5, 2 * LIVE_RANGES_MAX + 3, 2))), head=2 * LIVE_RANGES_MAX + 1
    )
    assert len(current.live) == LIVE_RANGES_MAX
    history = History(rows={n: row(n) for n in (1, 2, 5)})
    assert refused(DeleteVersion(version=2), current, history=history).code == "too-many-gaps"
    # At an edge of a run, or of a whole run, there is no gap more.
    assert len(proposed(DeleteVersion(version=1), current, history=history).live) == LIVE_RANGES_MAX
    assert len(proposed(DeleteVersion(version=5), current, history=history).live) == LIVE_RANGES_MAX - 1


def test_a_put_may_make_one_run_more_and_a_restore_may_bring_it_back():
    current = gaps(LIVE_RANGES_MAX, version_max=2 * LIVE_RANGES_MAX)
    more = proposed(PUT, current)
    assert len(more.live) == LIVE_RANGES_MAX + 1
    gone = proposed(Delete(), more, write_id="x")
    assert gone.taken == more.live
    history = History(rows={more.version_max: more.head}, asked=frozenset())
    back = proposed(Restore(), gone, write_id="y", history=history)
    assert back.live == more.live and back.head == more.head


def test_too_many_gaps_by_a_restore():
    current = gaps(LIVE_RANGES_MAX + 1, version_max=2 * LIVE_RANGES_MAX + 9)
    version = 2 * LIVE_RANGES_MAX + 5
    history = History(rows={version: row(version)})
    assert refused(Restore(version=version), current, history=history).code == "too-many-gaps"


# ---- restore


def test_restore_of_what_the_last_delete_took():
    made = proposed(Restore(), GONE, history=History(rows={3: row(3)}))
    assert (made.op, made.head, made.live, made.taken) == ("restore", row(3), ((1, 3),), ())
    assert made.writes[-1] == WriteMark("w", "restore", 3, 77) and made.version_max == 3
    assert made.deleted_at_ms == 2, "the time of the last delete stays"
    assert decide(Restore(), situation(GONE)) == NeedHistory(below=4)


def test_restore_beside_a_newer_head_keeps_it():
    current = record(live=((4, 4),), head=4, taken=((1, 3),))
    assert decide(Restore(), situation(current)) == NeedHistory(below=4), "does anything of it exist?"
    made = proposed(Restore(), current, history=History(rows={3: row(3)}))
    assert made.head == row(4) and made.live == ((1, 4),) and made.taken == ()


def test_restore_above_the_head_moves_it():
    current = record(live=((1, 1),), head=1, version_max=3, taken=((3, 3),), op="delete-version")
    assert proposed(Restore(), current, history=History(rows={3: row(3)})).head == row(3)


@pytest.mark.parametrize("current", [None, record(live=((1, 1),), head=1)])
def test_nothing_to_restore(current):
    assert refused(Restore(), current).code == "nothing-to-restore"


def test_restore_of_one_version():
    assert decide(Restore(version=2), situation(GONE)) == NeedHistory(version=2)
    made = proposed(Restore(version=2), GONE, history=History(rows={2: row(2)}, asked=frozenset({2})))
    assert made.head == row(2) and made.live == ((2, 2),) and made.taken == ((1, 1), (3, 3))
    assert made.writes[-1].version == 2


@pytest.mark.parametrize("version", [-1, 0, 4])
def test_restore_of_a_version_that_cannot_be(version):
    assert refused(Restore(version=version), GONE).code == "no-such-version"


def test_restore_of_a_version_that_does_not_exist():
    history = History(rows={}, asked=frozenset({2}))
    assert refused(Restore(version=2), GONE, history=history).code == "no-such-version"
    assert refused(Restore(version=2), None).code == "nothing-to-restore"


def test_restore_of_a_version_that_lives_writes_nothing():
    assert decide(Restore(version=3), situation(LIVE)) == Answer()
    assert decide(Restore(version=2), situation(LIVE, history=History(rows={2: row(2)}))) == Answer()


def test_restore_of_a_skipped_version_within_a_live_run_is_refused():
    current = record(live=((1, 9),), head=9)
    assert decide(Restore(version=5), situation(current)) == NeedHistory(version=5)
    history = History(rows={}, asked=frozenset({5}))
    assert refused(Restore(version=5), current, history=history).code == "no-such-version"


# ---- expire


def expire(*versions: tuple[int, int]) -> Expire:
    return Expire(versions=versions)


def test_what_expires_is_neither_live_nor_taken_and_stays_so():
    current = record(live=((1, 3), (6, 9)), head=9, taken=((4, 5),))
    made = proposed(expire((2, 4)), current)
    assert (made.op, made.expired, made.live, made.taken) == ("expire", ((2, 4),), ((1, 1), (6, 9)), ((5, 5),))
    assert (made.head, made.version_max, made.deleted_at_ms) == (row(9), 9, 2)
    assert made.writes[-1] == WriteMark("w", "expire", 9, 77) and made.previous == current.added
    made = proposed(expire((1, 1), (5, 6)), made, write_id="v")
    assert (made.expired, made.live, made.taken) == (((1, 6),), ((7, 9),), ())


def test_the_head_never_expires_nor_what_may_still_come():
    current = record(live=((1, 5),), head=5, version_max=7)
    made = proposed(expire((-3, 10**9)), current)
    assert made.expired == ((1, 4), (6, 7)) and made.live == ((5, 5),) and made.head == row(5)
    assert decide(expire((5, 5)), situation(current)) == Answer()
    dead = proposed(expire((1, 10**9)), GONE)
    assert dead.expired == ((1, 3),) and (dead.live, dead.taken, dead.head) == ((), (), None)


def test_what_was_restored_since_it_was_named_stays():
    named = Expire(versions=((1, 6),), live=((5, 9),))
    made = proposed(named, record(live=((2, 3), (5, 9)), head=9))
    assert made.expired == ((1, 1), (4, 6)) and made.live == ((2, 3), (7, 9))
    assert decide(Expire(versions=((2, 3),), live=((9, 9),)), situation(record(live=((1, 9),), head=9))) == Answer()


@pytest.mark.parametrize("versions", [(), ((1, 2),), ((2, 2),), ((3, 3),), ((4, 9),), ((5, 3),)])
def test_nothing_is_written_where_nothing_expires(versions):
    assert decide(Expire(versions=versions), situation(record(live=((3, 3),), head=3, expired=((1, 2),)))) == Answer()
    assert decide(Expire(versions=versions), situation(None)) == Answer()


def test_an_expiry_that_comes_twice_is_answered_as_it_was():
    made = proposed(expire((1, 2)), LIVE)
    assert decide(expire((1, 2)), situation(made)) == Answer(made.writes[-1])
    assert refused(Delete(), made).code == "write-id-reused"


@pytest.mark.parametrize("operation", [PUT, Delete(), DeleteVersion(version=3), Restore(version=2), Restore()])
def test_what_expired_stays_expired_whatever_is_written(operation):
    current = record(live=((3, 3),), head=3, taken=((2, 2),), expired=((1, 1),))
    history = History(rows={1: row(1), 2: row(2)}, below=9, complete_down_to=0)
    assert proposed(operation, current, history=history).expired == ((1, 1),)


def test_an_expired_version_is_gone_though_a_stale_copy_tells_its_row():
    history = History(rows={1: row(1), 2: row(2)}, asked=frozenset({1, 2}), below=9, complete_down_to=0)
    current = record(head=0, version_max=3, live=(), taken=((3, 3),), expired=((1, 2),), op="delete")
    for version in (1, 2):
        assert refused(Restore(version=version), current, history=history).code == "no-such-version"
        assert refused(Restore(version=version), current).code == "no-such-version", "nobody need be asked"
        assert refused(DeleteVersion(version=version), current, history=history).code == "no-such-version"
    live = record(live=((3, 3),), head=3, expired=((1, 2),), previous=2)
    assert refused(Restore(version=2), live).code == "no-such-version"
    gone = proposed(DeleteVersion(version=3), live, history=history)
    assert gone.head is None and gone.live == ()


def test_a_number_is_never_given_twice_though_its_version_expired():
    dead = proposed(expire((1, 3)), GONE)
    again = proposed(PUT, dead, write_id="x")
    assert again.head.version == 4 and again.live == ((4, 4),) and again.expired == ((1, 3),)
    requested = Put(draft=draft("new"), requested=2)
    assert isinstance(refused(requested, dead, write_id="x"), VersionConflict)


def test_too_many_gaps_by_an_expiry():
    current = record(live=((1, 4 * LIVE_RANGES_MAX),), head=4 * LIVE_RANGES_MAX)
    each = tuple((n, n) for n in range(2, 2 * LIVE_RANGES_MAX + 3, 2))
    assert refused(Expire(versions=each), current).code == "too-many-gaps"
    assert len(proposed(Expire(versions=each[:-1]), current).live) == LIVE_RANGES_MAX + 1


RANGES = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 6)), max_size=6).map(
    lambda pairs: merge_ranges((low, low + more) for low, more in pairs)
)


@given(RANGES, RANGES)
def test_outside_is_the_difference_of_the_sets(ranges, gone):
    left = outside(ranges, gone)
    assert left == tuple(sorted(left)) and all(low <= high for low, high in left)
    for number in range(40):
        assert covers(left, number) == (covers(ranges, number) and not covers(gone, number))
