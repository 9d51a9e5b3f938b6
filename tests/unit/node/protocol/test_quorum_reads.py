"""Who counts, what a majority's votes say, and the quorum read."""

from __future__ import annotations

import pytest

from amberblob.ballot import Ballot
from amberblob.errors import QuorumUnavailable
from amberblob.wire import Done, Failed, HistoryReply, Refused, RegisterReply
from node.protocol.operations import Put
from node.protocol.quorum import Electorate, Finding, Vote, weigh
from node.protocol.read import NoQuorum, Read, ReadRound
from tests.unit.node.protocol.model import draft
from tests.unit.node.protocol.test_operations import proposed


def ballot(counter: int, node: str = "a") -> Ballot:
    return Ballot(1, counter, node, "o")


def record(number: int):
    return proposed(Put(draft=draft(f"B{number}")), floor=number, write_id=f"w{number}")


R1, R2, R3 = record(1), record(2), record(3)


def electorate(nodes: str = "abc", write_quorum: int = 0, read_quorum: int = 0) -> Electorate:
    return Electorate(
        slot=0,
        epoch=1,
        voters={node: f"{node}/1" for node in nodes},
        write_quorum=write_quorum or len(nodes) // 2 + 1,
        read_quorum=read_quorum,
    )


def vote(node: str, counter: int = 0, of=None, chosen: bool = False) -> Vote:
    return Vote(node, ballot(counter) if of else None, of, chosen)


# ---- electorate


@pytest.mark.parametrize(("nodes", "majority"), [("a", 1), ("ab", 2), ("abc", 2), ("abcd", 3), ("abcde", 3)])
def test_majorities(nodes, majority):
    voters = electorate(nodes)
    assert voters.sets[0].majority == majority
    assert not voters.is_majority(nodes[: majority - 1]) and voters.is_majority(nodes[:majority])
    assert voters.majority_possible(nodes[majority:]) and not voters.majority_possible(nodes[majority - 1 :])


@pytest.mark.parametrize(("write_quorum", "read_quorum"), [(1, 0), (4, 0), (2, 1), (2, 4)])
def test_no_quorum_below_a_majority_or_above_all(write_quorum, read_quorum):
    with pytest.raises(AssertionError):
        electorate("abc", write_quorum, read_quorum)


def test_quorums_above_a_majority():
    voters = electorate("abcde", 4, 5)
    assert not voters.is_write_quorum("abc") and voters.is_write_quorum("abcd")
    assert not voters.is_read_quorum("abcd") and voters.is_read_quorum("abcde")
    assert voters.write_quorum_possible("e") and not voters.write_quorum_possible("de")
    assert voters.read_quorum_possible("") and not voters.read_quorum_possible("e")
    assert voters.majority_possible("de") and voters.is_majority("abc")


def test_only_the_named_incarnation_counts():
    voters = electorate()
    assert voters.counts("a", "a/1")
    assert not voters.counts("a", "a/2") and not voters.counts("x", "x/1") and not voters.counts("a", "b/1")


# ---- weigh


def test_an_empty_majority_decides_that_there_is_nothing():
    assert weigh(electorate(), [vote("a"), vote("b")]) == Finding(None, None, decided=True, holders=())


def test_a_minority_cannot_be_weighed():
    with pytest.raises(AssertionError):
        weigh(electorate("abcde"), [vote("a"), vote("b")])


@pytest.mark.parametrize(
    ("votes", "wanted"),
    [
        ([vote("a", 1, R1), vote("b")], Finding(ballot(1), R1, False, ("a",))),
        ([vote("b"), vote("a", 1, R1, True)], Finding(ballot(1), R1, True, ("a",))),
        ([vote("b", 1, R1), vote("a", 1, R1)], Finding(ballot(1), R1, True, ("a", "b"))),
        # The highest ballot is what counts, also when something lower is known to be chosen.
        ([vote("a", 1, R1, True), vote("b", 2, R2)], Finding(ballot(2), R2, False, ("b",))),
        ([vote("b", 2, R2), vote("a", 1, R1, True)], Finding(ballot(2), R2, False, ("b",))),
        ([vote("a", 2, R2, True), vote("b", 1, R1)], Finding(ballot(2), R2, True, ("a",))),
        ([vote("a", 2, R2), vote("b", 1, R1), vote("c", 2, R2)], Finding(ballot(2), R2, True, ("a", "c"))),
        # One that knows, among those with the highest ballot, is enough.
        ([vote("a", 2, R2), vote("b", 2, R2, True)], Finding(ballot(2), R2, True, ("a", "b"))),
    ],
)
def test_weigh(votes, wanted):
    assert weigh(electorate(), votes) == wanted


def test_a_majority_is_of_the_voters_not_of_the_votes():
    votes = [vote("a", 2, R2), vote("b", 2, R2), vote("c", 1, R1)]
    assert not weigh(electorate("abcde"), votes).decided
    assert weigh(electorate("abcde"), [*votes, vote("d", 2, R2)]).decided


def test_ballots_of_equal_counter_are_different_ballots():
    votes = [Vote("a", ballot(1, "a"), R1, False), Vote("b", ballot(1, "b"), R2, False)]
    assert weigh(electorate(), votes) == Finding(ballot(1, "b"), R2, False, ("b",))


# ---- ReadRound


def reply(node: str, counter: int = 0, of=None, chosen: bool = False, incarnation: str | None = None) -> RegisterReply:
    return RegisterReply(
        incarnation=incarnation or f"{node}/1", accepted=ballot(counter) if of else None, record=of, chosen=chosen
    )


def test_a_read_takes_the_first_majority():
    reading = ReadRound(electorate())
    assert reading.answer("c", reply("c", 1, R1)) is None
    result = reading.answer("a", reply("a", 1, R1))
    assert isinstance(result, Read)
    assert result.finding == Finding(ballot(1), R1, True, ("a", "c"))
    assert set(result.replies) == {"a", "c"}


def test_a_read_tells_that_it_is_undecided():
    reading = ReadRound(electorate())
    reading.answer("a", reply("a", 2, R2))
    result = reading.answer("b", reply("b", 1, R1, True))
    assert isinstance(result, Read) and not result.finding.decided and result.finding.record == R2


def test_an_answer_that_comes_twice_counts_once():
    reading = ReadRound(electorate())
    assert reading.answer("a", reply("a")) is None
    assert reading.answer("a", reply("a")) is None
    assert isinstance(reading.answer("b", reply("b")), Read)


def test_history_replies_are_votes_too():
    reading = ReadRound(electorate())
    for node in "ab":
        result = reading.answer(
            node,
            HistoryReply(incarnation=f"{node}/1", accepted=ballot(1), record=R1, chosen=False, rows=(), more=False),
        )
    assert isinstance(result, Read) and result.finding.decided


def test_a_read_quorum_above_a_majority_is_waited_for():
    reading = ReadRound(electorate("abc", read_quorum=3))
    assert reading.answer("a", reply("a", 1, R1, True)) is None
    assert reading.answer("b", reply("b", 1, R1, True)) is None
    assert isinstance(reading.answer("c", reply("c")), Read)
    reading = ReadRound(electorate("abc", read_quorum=3))
    result = reading.failed("b", "timeout")
    assert isinstance(result, NoQuorum) and isinstance(result.error, QuorumUnavailable)


def test_a_read_ends_when_no_majority_is_left():
    reading = ReadRound(electorate())
    assert reading.failed("a", "timeout") is None
    assert reading.answer("b", reply("b")) is None
    result = reading.failed("c", "down")
    assert isinstance(result, NoQuorum)
    assert "timeout" in result.error.detail and "down" in result.error.detail


@pytest.mark.parametrize(
    "bad",
    [
        Failed(code="peer-timeout", detail="slow"),
        Refused(incarnation="a/1", reason="not-a-member", ballot=ballot(0), epoch=1),
        Done(),
        reply("a", incarnation="a/2"),
    ],
)
def test_what_is_no_vote(bad):
    reading = ReadRound(electorate())
    assert reading.answer("a", bad) is None
    assert not reading.replies and list(reading.out) == ["a"]
    assert reading.answer("b", reply("b")) is None
    assert isinstance(reading.answer("c", reply("c")), Read)
    assert isinstance(ReadRound(electorate("a")).answer("a", bad), NoQuorum)
