"""Who is asked first."""

from __future__ import annotations

from amberblob.limits import MIB
from antientropy.holders import AVOID_FIRST_S, AVOID_MAX_S, Holders


class Time:
    now_s = 0.0

    def wall_ms(self) -> int:
        return 0

    def monotonic_s(self) -> float:
        return self.now_s


def everybody(node: str) -> bool:
    return True


def ask(holders: Holders, time: Time, node: str, size: int, seconds: float) -> None:
    began_s = holders.began(node, size)
    time.now_s += seconds
    holders.gave(node, size, began_s)
    holders.ended(node, size)


def test_who_cannot_be_reached_comes_last_and_nobody_is_left_out():
    holders = Holders(Time())
    order = holders.order(["a", "b", "c", "a"], MIB, reachable=lambda node: node != "a")
    assert order == ["b", "c", "a"]


def test_the_quickest_comes_first():
    time = Time()
    holders = Holders(time)
    for _ in range(10):
        ask(holders, time, "slow", MIB, 1.0)
        ask(holders, time, "quick", MIB, 0.01)
    assert holders.order(["slow", "quick"], MIB, reachable=everybody) == ["quick", "slow"]
    for _ in range(30):
        ask(holders, time, "quick", MIB, 5.0)
    assert holders.order(["quick", "slow"], MIB, reachable=everybody) == ["slow", "quick"]


def test_what_a_node_was_asked_for_counts_against_it():
    holders = Holders(Time())
    asked = {"a": 0, "b": 0, "c": 0}
    for _ in range(30):
        node = holders.order(["a", "b", "c"], MIB, reachable=everybody)[0]
        holders.began(node, MIB)
        asked[node] += 1
    assert asked == {"a": 10, "b": 10, "c": 10}


def test_those_that_are_likely_to_have_it_come_before_the_rest():
    holders = Holders(Time())
    assert holders.order(["a", "b", "c"], 1, reachable=everybody, likely=["c"])[0] == "c"
    assert holders.order(["a", "b", "c"], 1, reachable=lambda node: node != "c", likely=["c"])[-1] == "c"


def test_who_failed_is_avoided_for_a_while_each_time_longer():
    time = Time()
    holders = Holders(time)
    for number in range(12):
        holders.failed("a")
        assert holders.order(["a", "b"], 1, reachable=everybody)[0] == "b"
        time.now_s += min(AVOID_MAX_S, AVOID_FIRST_S * 2**number) - 0.01
        assert holders.order(["a", "b"], 1, reachable=everybody)[0] == "b"
        time.now_s += 0.02
        assert holders.order(["a", "b"], 1, reachable=everybody)[0] == "a"
    ask(holders, time, "a", MIB, 0.001)
    holders.failed("a")
    time.now_s += AVOID_FIRST_S + 0.01
    assert holders.order(["a", "b"], 1, reachable=everybody)[0] == "a"
