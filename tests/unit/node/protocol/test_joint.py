"""Two sets of voters: what is enough, whom to ask, and rounds of clients while the slot moves."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amberblob.wire import RegisterReply
from node.protocol.quorum import Electorate, Vote, enough_of, weigh
from node.protocol.read import NoQuorum, Read, ReadRound
from node.protocol.write import BytesElsewhere, Phase
from tests.unit.node.protocol.joint import MUTANTS, Joint, caught
from tests.unit.node.protocol.test_quorum_reads import ballot
from tests.unit.node.protocol.test_write_round import OLD, OTHER, accept, begin, ended, promise, sent, token

SIDES = st.frozensets(st.sampled_from("abcdef"), min_size=1, max_size=5)


def joint(old: str = "abc", new: str = "abd", *, write_quorum: int = 0, read_quorum: int = 0) -> Electorate:
    return Electorate(
        slot=0,
        epoch=5,
        voters={node: f"{node}/1" for node in sorted({*old, *new})},
        write_quorum=write_quorum,
        read_quorum=read_quorum,
        settled=False,
        old=frozenset(old),
        new=frozenset(new),
    )


def register_of(node: str) -> RegisterReply:
    return RegisterReply(incarnation=f"{node}/1", accepted=None, record=None, chosen=False)


def subsets(nodes):
    nodes = sorted(nodes)
    return [frozenset(some) for size in range(len(nodes) + 1) for some in combinations(nodes, size)]


def is_majority(side, who) -> bool:
    return 2 * len(side & who) > len(side)


# ---- what is enough


@given(SIDES, SIDES, st.integers(0, 6), st.integers(0, 6))
def test_quorums_of_a_joint_electorate_are_quorums_of_both_sets(old, new, write_quorum, read_quorum):
    voters = joint("".join(old), "".join(new), write_quorum=write_quorum, read_quorum=read_quorum)
    everybody = old | new
    for who in subsets(everybody):
        assert voters.is_majority(who) == (is_majority(old, who) and is_majority(new, who))
        for is_quorum, possible, wanted in (
            (voters.is_write_quorum, voters.write_quorum_possible, write_quorum),
            (voters.is_read_quorum, voters.read_quorum_possible, read_quorum),
        ):
            sizes = [min(max(wanted, len(side) // 2 + 1), len(side)) for side in (old, new)]
            assert is_quorum(who) == all(len(side & who) >= size for side, size in zip((old, new), sizes, strict=True))
            assert possible(everybody - who) == is_quorum(who), "possible without the others: these are enough"
        assert voters.majority_possible(everybody - who) == voters.is_majority(who)
    assert voters.is_write_quorum(everybody) and voters.is_read_quorum(everybody), "clamped to what the sets can have"


@given(SIDES, SIDES)
def test_any_two_majorities_meet_in_both_sets_and_one_meets_every_majority_of_either(old, new):
    voters = joint("".join(old), "".join(new))
    enough = [who for who in subsets(old | new) if voters.is_majority(who)]
    for one in enough:
        for other in enough:
            assert one & other & old and one & other & new
        for side in (old, new):
            assert all(one & who for who in subsets(side) if is_majority(side, who))


@given(SIDES, SIDES, st.integers(0, 5), st.randoms())
def test_those_who_are_asked_first_are_a_read_quorum_and_none_too_many(old, new, read_quorum, random):
    voters = joint("".join(old), "".join(new), read_quorum=read_quorum)
    order = sorted(old | new)
    random.shuffle(order)
    first, rest = voters.split(order)
    assert sorted(first + rest) == sorted(order)
    assert voters.is_read_quorum(first)
    assert not voters.is_read_quorum(first[:-1]), "the last one that was taken was needed"


def test_those_who_are_asked_first_of_one_set_are_the_first():
    voters = Electorate(slot=0, epoch=1, voters=dict.fromkeys("abc", "x"), write_quorum=2)
    assert not voters.joint and voters.split(["c", "a", "b"]) == (["c", "a"], ["b"])


def test_a_node_that_helps_no_set_is_not_asked():
    sets = joint("abc", "def").sets
    assert enough_of("abcdef", {each: each.majority for each in sets}) == ["a", "b", "d", "e"]


def test_the_sets_are_the_voters():
    with pytest.raises(AssertionError):
        Electorate(
            slot=0, epoch=1, voters=dict.fromkeys("abc", "x"), write_quorum=0, settled=False,
            old=frozenset("ab"), new=frozenset("a"),
        )  # fmt: skip


def test_what_is_lacking_is_told_of_the_set_that_lacks_most():
    voters = joint("abc", "defgh")
    assert voters.writes_short("abcd") == (3, 1)
    assert voters.reads_short("defa") == (2, 1)
    assert voters.majority_short("") == (3, 0)


def test_bytes_are_still_where_the_copies_are_the_same_or_no_voters_any_more():
    before = Electorate(slot=0, epoch=1, voters=dict.fromkeys("abc", "x"), write_quorum=2)
    after = Electorate(slot=0, epoch=2, voters={"a": "x", "b": "y", "d": "x"}, write_quorum=2)
    assert after.still("abc", before) == {"a", "c"}


# ---- reads


def test_a_majority_of_the_union_decides_nothing():
    voters = joint("abc", "cde")
    votes = [Vote(node, ballot(1), OTHER, False) for node in "abc"] + [Vote(n, None, None, False) for n in "de"]
    assert not weigh(voters, votes).decided
    votes = [Vote(node, ballot(1), OTHER, False) for node in "bcd"] + [Vote(n, None, None, False) for n in "ae"]
    assert weigh(voters, votes).decided
    assert weigh(voters, [Vote(n, None, None, False) for n in "acd"]).decided, "nothing was accepted by a majority"


def test_a_read_waits_for_both_sets_and_ends_when_one_cannot_be_had():
    reading = ReadRound(joint("abc", "cde"))
    assert reading.answer("a", register_of("a")) is None
    assert reading.answer("b", register_of("b")) is None
    assert reading.answer("d", register_of("d")) is None
    assert isinstance(reading.answer("e", register_of("e")), Read)
    reading = ReadRound(joint("abc", "cde"))
    reading.answer("a", register_of("a"))
    reading.answer("b", register_of("b"))
    assert reading.failed("d", "away") is None
    result = reading.failed("e", "away")
    assert isinstance(result, NoQuorum) and "0 of the 2 replicas" in result.error.detail


# ---- writes


def test_a_write_needs_promises_and_accepts_of_both_sets():
    round_, actions = begin(voters=joint("abc", "cde"))
    at = token(actions)
    for node in "abc":
        actions = round_.answer(node, at, promise(node))
        assert actions == [] and round_.phase is Phase.PREPARING
    actions = round_.answer("d", at, promise("d"))
    at = token(actions)
    assert round_.phase is Phase.COMMITTING
    for node in "dea":
        assert round_.answer(node, at, accept(node)) == []
    assert round_.phase is Phase.COMMITTING, "two of three of the new set, one of the old"
    assert ended(round_.answer("b", at, accept("b"))).fresh


def test_a_hold_is_kept_when_both_sets_have_promised():
    for late, held in (("", False), ("d", True)):
        round_, actions = begin(voters=joint("abc", "cde"))
        at = token(actions)
        for node in "abcd":
            actions = round_.answer(node, at, promise(node))
        at = token(actions)
        for node in "abcd":
            reply = accept(node)
            if node in "abc" + late:
                reply = type(reply)(incarnation=reply.incarnation, promised=True)
            actions = round_.answer(node, at, reply)
        ended(actions)
        assert (round_.hold is not None) is held


def test_a_write_that_was_chosen_by_one_set_alone_is_finished_first():
    round_, actions = begin(voters=joint("abc", "cde"))
    at = token(actions)
    for node in "abc":
        actions = round_.answer(node, at, promise(node, OLD, OTHER))
    round_.answer("d", at, promise("d"))
    assert round_.phase is Phase.FINISHING


def test_staged_bytes_that_the_new_set_lacks_are_brought_there_before_anything_is_sent():
    round_, actions = begin(holders=frozenset("abc"))
    assert {request.epoch for request in sent(actions, object).values()} == {4}
    error = ended(round_.reroute(joint("abc", "def"))).error
    assert isinstance(error, BytesElsewhere) and error.extra["wanted"] == 2 and error.extra["got"] == 0
    assert sorted(error.extra["failures"]) == ["d", "e", "f"]


def test_staged_bytes_are_fetched_by_the_new_set_once_a_commit_was_sent():
    round_, actions = begin(holders=frozenset("abc"))
    at = token(actions)
    for node in "ab":
        actions = round_.answer(node, at, promise(node))
    assert round_.sent_commit
    at = token(round_.reroute(joint("abc", "def")))
    for node in "abde":
        actions = round_.answer(node, at, promise(node))
    commits = {action.node: action.request.holders for action in actions}
    assert commits == {**dict.fromkeys("abc", ()), **dict.fromkeys("def", ("a", "b", "c"))}
    at = token(actions)
    for node in "abd":
        assert round_.answer(node, at, accept(node)) == []
    assert ended(round_.answer("e", at, accept("e"))).fresh


# ---- the simulation


@pytest.mark.timeout(110)
def test_no_seed_breaks_a_promise_while_the_slot_moves():
    seen: Counter[str] = Counter()
    for seed in range(400):
        sim = Joint(seed).run()
        assert not sim.stuck and not sim.given_up, f"seed {seed}: {sim.stuck}"
        seen.update(sim.seen)
        seen["answered"] += sum(call.result is not None and call.number > 0 for call in sim.calls)
    assert seen["final"] >= 400 and seen["aborted"] >= 20 and seen["answered"] >= 2000, seen


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_of_the_counting_is_caught(name):
    assert caught(name, 0, 200) is not None, name
