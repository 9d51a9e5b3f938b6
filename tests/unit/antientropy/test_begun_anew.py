"""A path whose stub was forgotten and that was written again: its revisions begin anew, its ballots go on."""

from __future__ import annotations

import pytest

from amberblob.manifest import Record
from amberblob.mutations import Forgotten
from antientropy.follow import Cursor, follow
from tests.unit.antientropy.kit import SLOT, Cluster, ballot, delete, expire, put


def stub() -> Record:
    return expire(delete(put("p", None)))


def begun_anew(cluster: Cluster, revisions: int) -> Record:
    """Copies 1 and up forget the stub, copy 0 does not hear of it, and the path is written again without copy 0."""
    dead = stub()
    cluster.write("p", put("p", None), ballot(1))
    cluster.write("p", delete(put("p", None)), ballot(2))
    cluster.write("p", dead, ballot(3))
    others = range(1, len(cluster.replicas))
    for at in others:
        cluster[at].apply(Forgotten(SLOT, "p", ballot(3), dead.version_max))
    # The version floor goes on from where the stub was.
    before = Record(0, "expire", dead.version_max, None, (), (), 0, 0, None, ())
    record = put("p", before)
    cluster.write("p", record, ballot(10), at=others)
    for number in range(1, revisions):
        record = put("p", record)
        cluster.write("p", record, ballot(10 + number), at=others)
    return record


@pytest.mark.parametrize("revisions", [1, 2, 3, 4, 7])
async def test_a_copy_that_kept_the_stub_takes_over_what_was_written_since(revisions):
    cluster = Cluster(3)
    record = begun_anew(cluster, revisions)
    await cluster.compare(0, 1)
    assert cluster.register(0, "p").record == record
    assert len(cluster.roots()) == 1


@pytest.mark.parametrize("revisions", [1, 3, 5])
async def test_who_wrote_since_does_not_take_the_stub_for_damage(revisions):
    cluster = Cluster(3)
    record = begun_anew(cluster, revisions)
    result = await cluster.compare(1, 0)
    assert result[SLOT].why == "" and result[SLOT].paths == 0
    assert cluster.register(1, "p").record == record


@pytest.mark.parametrize("revisions", [1, 2, 5])  # at the stub's own revision the next compare finds it
async def test_who_follows_takes_it_over_too(revisions):
    cluster = Cluster(3)
    record = begun_anew(cluster, revisions)
    cursors = {SLOT: Cursor(cluster.voters()["n1"], 3)}
    result = await cluster.run(0, follow("n1", {SLOT: cluster.voters()["n1"]}, cursors))
    assert cluster.register(0, "p").record == record, result


async def test_a_stub_that_one_copy_kept_does_not_stay_for_ever():
    """Whoever looks for stubs to collect may be one that has forgotten it: it is proposed again, and then all have it."""
    cluster = Cluster(3)
    dead = stub()
    cluster.write("p", dead, ballot(3))
    for at in (0, 1):
        cluster[at].apply(Forgotten(SLOT, "p", ballot(3), dead.version_max))
    cluster.lazy, cluster.rounds_held = True, 2  # the next round would ask the two that have forgotten it
    await cluster.compare(0, 2)
    assert cluster.register(0, "p").record == dead
    cluster.lazy = False
    await cluster.heal()
    assert len(cluster.roots()) == 1 and cluster.register(0, "p").record == dead
