"""Traces that once broke the protocol, step by step."""

from __future__ import annotations

import pytest

from amberblob.errors import OutcomeUnknown, QuorumUnavailable
from node.protocol.operations import DeleteVersion, Put
from node.protocol.write import Applied, Phase, Rejected
from tests.unit.node.protocol.model import PATH, Cluster, Hand, draft


def only_newest(hand: Hand) -> None:
    """Forget the requests of earlier phases that are still on their way."""
    hand.sends = [send for send in hand.sends if send.token == hand.sends[-1].token]


def undecided_put(cluster: Cluster, blob_id: str, *, node: str, counter: int, prepared: str, accepted: str) -> Hand:
    """A PUT whose COMMIT reached only ``accepted`` and whose coordinator then died."""
    hand = cluster.hand(Put(draft=draft(blob_id)), node=node, counter=counter, body=b"x")
    hand.deliver(prepared)
    only_newest(hand)
    hand.deliver(accepted, answered="")
    return hand


def superseded(cluster: Cluster, others: int) -> None:
    """``others`` PUTs, all learnt, and one more that only c accepted."""
    for number in range(others):
        cluster.run(Put(draft=draft(f"X{number}")), node="b", counter=10 + number, body=b"x")
    undecided_put(cluster, "Y", node="c", counter=50, prepared="abc", accepted="c")


@pytest.mark.parametrize("others", [0, 5, 6, 7, 8, 20])
def test_a_retry_that_finishes_a_strangers_record_still_finds_what_its_write_id_did(others):
    cluster = Cluster()
    first = cluster.hand(Put(draft=draft("B0")), node="a", write_id="W", body=b"x")
    first.deliver("abc")
    only_newest(first)
    first.deliver("ab", answered="")  # Chosen, but nobody tells the client.
    first.deadline()
    assert isinstance(first.outcome, Rejected) and isinstance(first.outcome.error, OutcomeUnknown)
    superseded(cluster, others)

    retry = cluster.hand(Put(draft=draft("B1")), node="b", write_id="W", counter=60, body=b"x")
    retry.deliver("bc")
    assert retry.round.phase is Phase.FINISHING
    only_newest(retry)
    retry.go()

    assert isinstance(retry.outcome, Applied)
    assert not retry.outcome.fresh, "applied a second time"
    assert retry.outcome.mark is not None and retry.outcome.mark.version == 1


def test_a_503_is_not_given_once_the_write_was_chosen_and_superseded():
    cluster = Cluster()
    hand = cluster.hand(Put(draft=draft("B0")), node="a", body=b"x")
    hand.deliver("abc")
    only_newest(hand)
    hand.deliver("ab", answered="")
    for node in "ab":
        hand.take(hand.round.failed(node, hand.round._token, "timeout"))
    superseded(cluster, 7)

    hand.round.counter = 70
    hand.wake()
    hand.deliver("bc")
    only_newest(hand)
    hand.deliver("bc")  # A stranger's record is chosen now; ours is its ninth ancestor.
    only_newest(hand)
    hand.go("")

    assert cluster.replicas["b"].disk.rows[PATH][1].blob_id == "B0"
    if isinstance(hand.outcome, Rejected):
        assert not isinstance(hand.outcome.error, QuorumUnavailable), "'nothing was applied', but it was"


@pytest.mark.parametrize(("nodes", "write_quorum", "up"), [("abc", 3, "ab"), ("abcde", 4, "abc"), ("abcde", 5, "abcd")])
def test_a_write_quorum_above_a_majority_is_never_acknowledged_with_less(nodes, write_quorum, up):
    cluster = Cluster(nodes, write_quorum=write_quorum)
    hand = cluster.hand(Put(draft=draft("B")), body=b"x")
    hand.go(up)
    hand.deadline()
    have = [node for node, replica in cluster.replicas.items() if "B" in replica.disk.bytes_of]
    assert not isinstance(hand.outcome, Applied) or len(have) >= write_quorum


def test_losing_races_is_not_being_unreachable():
    """c is down; a and b answer always. Three lost races must not be called an unavailable quorum."""
    cluster = Cluster()
    for number in range(4):
        cluster.run(Put(draft=draft(f"X{number}")), counter=10 * number, body=b"x")
    hand = cluster.hand(DeleteVersion(version=1), counter=100)
    for race in range(3):
        only_newest(hand)
        hand.lose("c")
        hand.deliver("ab")
        assert hand.round.phase is Phase.READING
        cluster.run(Put(draft=draft(f"Z{race}")), node="b", counter=200 + 100 * race, body=b"x")
        only_newest(hand)
        hand.lose("c")
        hand.deliver("ab")
        assert hand.outcome is None, hand.outcome
        hand.round.counter = 250 + 100 * race
        hand.wake()
