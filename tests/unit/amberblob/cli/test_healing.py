"""When waiting for a healed cluster ends: pure, with made-up accounts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amberblob.cli.healing import LAG_S, PATIENCE_S, REPEAT_S, Healed, HealWatch, InVain, Left, duration

SLOTS = 4


def row(slot: int, state: str = "healing", *, compared: bool = False, roots: str = "ab", **more: Any) -> dict[str, Any]:
    copies = [{"node": f"n{i}", "root": root} for i, root in enumerate(roots)]
    return {"slot": slot, "state": state, "compared": compared, "undecided": 0, "copies": copies, **more}


def account(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    plain = {
        "state": "healing", "bytes_waiting": 0, "slots_to_compare": sum(not one["compared"] for one in rows),
        "rate_bytes_per_s": None, "seconds_left": None, "silent_nodes": [], "unrecoverable": 0, "by_slot": list(rows),
    }  # fmt: skip
    return {**plain, **more}


def being_written(slot: int, roots: str) -> dict[str, Any]:
    return row(slot, "in-step", compared=True, roots=roots)


def test_nothing_open_is_healed():
    assert HealWatch().look(SLOTS, account(), 0) == Healed(SLOTS, 0)


@pytest.mark.parametrize(
    "state", ["whole", "healing", "degraded", "corrupt", "unavailable", "unrecoverable", "in-step"]
)
def test_what_was_not_compared_since_is_not_healed(state):
    assert isinstance(HealWatch().look(SLOTS, account(row(0, state)), 0), Left)


def test_a_slot_that_is_being_written_is_healed_once_it_changes_for_longer_than_databases_lag():
    watch = HealWatch()
    for second, roots in enumerate(("ab", "ac", "ad", "ae")):
        assert isinstance(watch.look(SLOTS, account(being_written(1, roots)), second), Left), "that may be lag"
    assert isinstance(watch.look(SLOTS, account(being_written(1, "xy")), LAG_S), Left)
    assert isinstance(watch.look(SLOTS, account(being_written(1, "xy")), LAG_S + 1), Left), "nothing happens any more"
    assert watch.look(SLOTS, account(being_written(1, "xz")), LAG_S + 2) == Healed(SLOTS, 1)


def test_a_lag_that_ends_is_no_writing():
    watch = HealWatch()
    for second in range(8):
        assert isinstance(watch.look(SLOTS, account(being_written(1, f"a{second}")), second), Left)
    assert watch.look(SLOTS, account(), 8) == Healed(SLOTS, 0)


def test_a_slot_that_was_whole_may_be_written_again():
    watch = HealWatch()
    first = account(row(0), row(1))
    written = account(being_written(2, "ab"), being_written(3, "xy"))
    assert isinstance(watch.look(SLOTS, first, 0), Left)
    assert isinstance(watch.look(SLOTS, written, LAG_S - 1), Left)
    assert watch.look(SLOTS, written, LAG_S) == Healed(SLOTS, 2)
    assert isinstance(watch.look(SLOTS, account(row(2, wanted=1), being_written(3, "xy")), 99), Left), (
        "2 lacks something now"
    )


def test_a_node_without_routes_says_nothing_of_slots():
    seen = HealWatch().look(0, {"state": "unknown", "healed": False}, 0)
    assert isinstance(seen, Left)
    watch = HealWatch()
    assert isinstance(watch.look(SLOTS, {"state": "unknown"}, 0), Left)
    assert watch.settled == set(), "what nobody told of has not been whole"


def test_a_node_that_stays_away_is_named():
    watch = HealWatch()
    away = account(row(0, "degraded"), silent_nodes=["node-2"])
    for second in range(int(PATIENCE_S)):
        assert isinstance(watch.look(SLOTS, away, second), Left), second
    end = watch.look(SLOTS, away, PATIENCE_S)
    assert isinstance(end, InVain)
    assert "node-2" in end.why and "node-2" in end.hint


def test_a_node_that_is_away_is_waited_for_while_others_heal():
    watch = HealWatch()
    for second in range(0, 100, 5):
        left = account(
            row(0, "degraded"), silent_nodes=["node-2"], bytes_waiting=1000 - second, rate_bytes_per_s=1, seconds_left=9
        )
        assert isinstance(watch.look(SLOTS, left, float(second)), Left)
    idle = account(row(0, "degraded"), silent_nodes=["node-2"], bytes_waiting=900, rate_bytes_per_s=0)
    assert isinstance(watch.look(SLOTS, idle, 95 + PATIENCE_S), InVain)


def test_a_node_that_comes_back_is_asked_to_compare_and_gets_time():
    watch = HealWatch()
    away = account(row(0, "degraded"), silent_nodes=["node-2"])
    watch.look(SLOTS, away, 0)
    back = watch.look(SLOTS, account(row(0)), PATIENCE_S - 1)
    assert isinstance(back, Left) and back.ask_again
    assert isinstance(watch.look(SLOTS, away, PATIENCE_S + 1), Left)


def test_bytes_that_come_and_go_under_load_are_no_reason_to_wait_for_a_dead_node():
    watch = HealWatch()
    ends = []
    for second in range(100):
        seen = account(row(0, "degraded"), silent_nodes=["n2"], bytes_waiting=second % 7, rate_bytes_per_s=0)
        ends.append(watch.look(SLOTS, seen, float(second)))
    assert isinstance(ends[-1], InVain) and isinstance(ends[int(PATIENCE_S) - 1], Left)


def test_a_lost_chunk_ends_it_but_not_before_the_rest_is_healed():
    watch = HealWatch()
    lost = row(0, "unrecoverable", compared=False)
    for second in range(10):
        watch.look(SLOTS, account(lost, *(row(1) for _ in range(1 - second // 9)), unrecoverable=2), second * 10.0)
    end = watch.look(SLOTS, account(lost, unrecoverable=2), 90 + PATIENCE_S)
    assert isinstance(end, InVain) and "2 versions" in end.why


def test_a_lost_chunk_ends_it_though_clients_write_and_something_is_always_fetched():
    watch = HealWatch()
    ends = [
        watch.look(
            SLOTS,
            account(
                row(0, "unrecoverable", compared=False), unrecoverable=1, bytes_waiting=1000 + left, rate_bytes_per_s=90
            ),
            second,
        )
        for second, left in ((0.0, 9), (10.0, 5), (20.0, 7), (30.0, 6), (20.0 + PATIENCE_S, 8))
    ]
    assert all(isinstance(end, Left) for end in ends[:4])
    assert isinstance(ends[4], InVain) and ends[4].why.startswith("1 version ")


def test_a_full_disk_ends_it_when_nothing_becomes_better():
    watch = HealWatch()
    seen = account(row(0, "healing"), full_nodes=["n3"])
    assert isinstance(watch.look(SLOTS, seen, 0.0), Left)
    end = watch.look(SLOTS, seen, PATIENCE_S)
    assert isinstance(end, InVain) and "n3 is full" in end.why


def test_lost_bytes_do_not_end_it_while_the_others_become_fewer():
    watch = HealWatch()
    for second in range(0, 100, 10):
        seen = account(
            row(0, "unrecoverable", compared=False), unrecoverable=1, bytes_waiting=1000 - second, rate_bytes_per_s=1
        )
        assert isinstance(watch.look(SLOTS, seen, float(second)), Left)


def test_digests_that_differ_for_no_reason_are_told():
    watch = HealWatch()
    for second in range(int(PATIENCE_S)):
        assert isinstance(watch.look(SLOTS, account(being_written(1, "ab")), second), Left)
    assert isinstance(watch.look(SLOTS, account(being_written(1, "ab")), PATIENCE_S), InVain)
    watch = HealWatch()
    undecided = {**being_written(1, "aa"), "undecided": 1}
    for second in range(0, 100, 5):
        assert isinstance(watch.look(SLOTS, account(undecided), second), Left), "the resolver sees to it"


def test_the_nodes_are_asked_again_when_nothing_moves():
    watch = HealWatch()
    asked = [
        second for second in range(20) if (left := watch.look(SLOTS, account(row(0)), float(second))) and left.ask_again
    ]
    assert asked == [int(REPEAT_S), 2 * int(REPEAT_S), 3 * int(REPEAT_S)]


def test_the_line():
    seen = HealWatch().look(
        SLOTS, account(row(0), bytes_waiting=5 * 2**20, rate_bytes_per_s=2**20, seconds_left=5.0), 0
    )
    assert isinstance(seen, Left)
    assert seen.text == "3 of 4 slots healed, 5.0 MiB left, 1.0 MiB/s, about 5 s"


slot_rows = st.builds(
    row,
    st.integers(0, SLOTS - 1),
    st.sampled_from(["whole", "in-step", "healing", "degraded"]),
    compared=st.booleans(),
    roots=st.text("ab", min_size=2, max_size=2),
)


@given(st.lists(st.lists(slot_rows, max_size=SLOTS, unique_by=lambda one: one["slot"]), min_size=1, max_size=20))
def test_healed_is_never_said_while_a_slot_lacks_anything_or_was_not_compared(looks):
    watch = HealWatch()
    for second, rows in enumerate(looks):
        seen = watch.look(SLOTS, account(*rows), 4.0 * second)
        if isinstance(seen, Healed):
            assert all(one["compared"] and one["state"] == "in-step" for one in rows)
            assert seen.written == len(rows)
        else:
            assert rows
        assert not isinstance(seen, Left) or 0 <= seen.done <= seen.slots


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (80, "80 s"), (100, "2 min"), (4000, "67 min"), (7200, "2 h"), (10**6, "12 days")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text
