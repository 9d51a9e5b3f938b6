"""Traces that break a promise today, step by step: each fails until what it shows is mended."""

from __future__ import annotations

from amberblob.errors import OutcomeUnknown, PreconditionFailed, QuorumUnavailable
from amberblob.limits import LIVE_RANGES_MAX
from node.protocol.operations import Conditions, Delete, DeleteVersion, Finish, Put, Restore
from node.protocol.write import Applied, Phase, Rejected
from tests.unit.node.protocol.model import PATH, Cluster, Hand, draft
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
    """R = W = 3. c gets the LEARN of a finished record, not its bytes; the retry counts c."""
    cluster = Cluster(write_quorum=3, read_quorum=3)
    first_try_on_a_and_b(cluster, "W")
    finish = cluster.hand(Finish(), node="b", counter=10)
    finish.go("abc")
    if "c" in have(cluster, "B0"):  # not finished over the network: it was decided already
        raise AssertionError
    hand = cluster.hand(Finish(), node="b", counter=20)
    del hand
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


def test_a_412_is_final_while_the_first_try_is_still_running():
    """The client's connection to a broke, the round on a goes on; the retry through b is refused."""
    cluster = Cluster()
    cluster.run(Put(draft=draft("X")), node="c", body=b"x")
    first = cluster.hand(Put(draft=draft("B"), conditions=Conditions(absent=True)), node="a", write_id="W", body=b"x")
    only_newest(first)  # its PREPAREs are under way, slowly, or it waits after a lost race

    retry = cluster.run(
        Put(draft=draft("B"), conditions=Conditions(absent=True)), node="b", write_id="W", counter=20, body=b"x"
    )
    assert isinstance(retry, Rejected) and isinstance(retry.error, PreconditionFailed)
    cluster.run(Delete(), node="c", counter=30)

    first.deliver("abc")  # refused: it comes again with a higher ballot
    while first.outcome is None:
        if first.round.phase is Phase.WAITING:
            first.wake()
        first.go()
    assert not isinstance(first.outcome, Applied), "applied after its client was told 412"


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
