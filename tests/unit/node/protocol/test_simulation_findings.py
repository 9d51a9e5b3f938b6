"""What the simulation found and what is not mended yet, step by step. Strict: a mended one must lose its mark."""

from __future__ import annotations

from amberblob.errors import NotFound
from node.protocol.operations import Delete, Finish, Put, Restore
from node.protocol.write import Applied, Rejected
from tests.unit.node.protocol.model import Cluster, draft
from tests.unit.node.protocol.test_traces import only_newest


def test_a_learnt_ballot_is_no_durable_copy():
    """W = 3. The COMMIT to c is late; a Finish (the resolver) sees a and b, and its LEARN reaches c before the COMMIT."""
    cluster = Cluster(write_quorum=3)
    put = cluster.hand(Put(draft=draft("B0")), body=b"x")
    put.deliver("abc")
    only_newest(put)
    put.deliver("ab")
    finish = cluster.hand(Finish(), node="a", counter=10)
    finish.deliver("ab")
    for action in finish.spread:
        cluster.replicas[action.node].learn(action.item)
    put.deliver("c")
    have = [node for node, replica in cluster.replicas.items() if "B0" in replica.disk.bytes_of]
    assert not isinstance(put.outcome, Applied) or have == ["a", "b", "c"], have


def test_a_restore_with_nothing_left_to_restore_is_refused():
    cluster = Cluster()
    operations = (
        Put(draft=draft("A")),
        Put(draft=draft("B"), requested=5),
        Delete(),
        Restore(version=1),
        Restore(version=5),
    )
    for counter, operation in enumerate(operations):
        assert isinstance(cluster.run(operation, counter=counter, body=b"x"), Applied)
    outcome = cluster.run(Restore(), counter=10)
    assert isinstance(outcome, Rejected) and isinstance(outcome.error, NotFound), "no version was lifted"
