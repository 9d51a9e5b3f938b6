"""Traces that break a promise today, step by step: each fails until what it shows is mended."""

from __future__ import annotations

from amberblob.errors import OutcomeUnknown, QuorumUnavailable
from amberblob.limits import LIVE_RANGES_MAX
from node.protocol.operations import Delete, DeleteVersion, Finish, Put, Restore
from node.protocol.write import Applied, Phase, Rejected
from tests.unit.node.protocol.model import Cluster, draft
from tests.unit.node.protocol.test_traces import only_newest


def have(cluster: Cluster, blob_id: str) -> list[str]:
    return [node for node, replica in cluster.replicas.items() if blob_id in replica.disk.bytes_of]


def first_try_on_a_and_b(cluster: Cluster, write_id: str) -> None:
    hand = cluster.hand(Put(draft=draft("B0")), write_id=write_id, body=b"x")
    hand.deliver("abc")
    only_newest(hand)
    hand.deliver("ab")
    hand.deadline()
    assert isinstance(hand.outcome, Rejected) and isinstance(hand.outcome.error, OutcomeUnknown)


def test_a_retry_of_a_superseded_write_is_not_acknowledged_below_the_write_quorum():
    """W = 3. The first try is on a and b; Y, built on it, is on all three; the retry is told that it was applied."""
    cluster = Cluster(write_quorum=3)
    first_try_on_a_and_b(cluster, "W")
    cluster.run(Put(draft=draft("Y")), node="b", counter=10, body=b"x")
    retry = cluster.run(Put(draft=draft("B0")), node="c", write_id="W", counter=20, body=b"x")
    assert not isinstance(retry, Applied) or have(cluster, "B0") == ["a", "b", "c"], have(cluster, "B0")


def test_a_copy_that_only_learnt_a_record_does_not_count_as_a_holder_of_its_bytes():
    """R = W = 3. c gets the LEARN of a record that b finished, not its bytes; the retry counts c."""
    cluster = Cluster(write_quorum=3, read_quorum=3)
    hand = cluster.hand(Put(draft=draft("B0")), write_id="W", body=b"x")
    hand.deliver("abc")
    only_newest(hand)
    hand.deliver("a", answered="")
    hand.deadline()
    finish = cluster.hand(Finish(), node="b", counter=10)
    finish.deliver("abc")
    assert finish.round.phase is Phase.FINISHING
    only_newest(finish)
    finish.deliver("ab")  # b pulls the bytes from a; the COMMIT to c is lost
    for action in finish.spread:
        cluster.replicas[action.node].learn(action.item)
    assert have(cluster, "B0") == ["a", "b"]

    retry = cluster.run(Put(draft=draft("B0")), node="c", write_id="W", counter=30, body=b"x")
    assert not isinstance(retry, Applied) or have(cluster, "B0") == ["a", "b", "c"], have(cluster, "B0")


def test_nothing_was_applied_is_not_said_of_a_write_that_was_just_found():
    """W = 3, c is down. The retry finds what the first try did, cannot bring it to c, and says 503."""
    cluster = Cluster(write_quorum=3)
    first_try_on_a_and_b(cluster, "W")
    retry = cluster.hand(Put(draft=draft("B0")), node="b", write_id="W", counter=10, body=b"x")
    retry.go("ab")
    retry.deadline()
    assert isinstance(retry.outcome, Rejected)
    assert not isinstance(retry.outcome.error, QuorumUnavailable), retry.outcome.error.detail


def test_a_delete_of_a_path_with_many_gaps_can_be_undone():
    cluster = Cluster()
    counter = 0

    def run(operation, **options):
        nonlocal counter
        counter += 1
        outcome = cluster.run(operation, counter=counter, **options)
        assert isinstance(outcome, Applied), outcome
        return outcome

    version = 0
    while True:
        version += 1
        record = run(Put(draft=draft(f"B{version}")), body=b"x").record
        if len(record.live) > LIVE_RANGES_MAX:
            break
        if version % 2 == 0:
            run(DeleteVersion(version=version))
    run(Delete())
    run(Restore())
