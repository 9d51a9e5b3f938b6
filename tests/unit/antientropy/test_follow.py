"""Reading on in a peer's logs."""

from __future__ import annotations

import pytest

from amberblob.errors import PeerUnreachable
from amberblob.mutations import Forgotten
from amberblob.wire_repair import LogHeads, PullPaths, ReadLog
from antientropy import follow as following
from antientropy.follow import Cursor, Followed, follow
from tests.unit.antientropy.kit import SLOT, Cluster, ballot, delete, put, ulid


async def once(cluster: Cluster, cursors: dict[int, Cursor], *, slots=(SLOT,)) -> Followed:
    named = {slot: cluster.voters(slot)["n1"] for slot in slots}
    return await cluster.run(0, follow("n1", named, cursors))


def asked(cluster: Cluster, kind: type) -> list:
    return [request for request in cluster.replicas[1].asked if isinstance(request, kind)]


@pytest.fixture
async def cluster() -> Cluster:
    made = Cluster(2)
    for at in range(5):
        made.write(f"p/{at}", put(f"p/{at}", None), ballot(at + 1))
    return made


async def test_the_first_time_it_only_learns_where_the_log_ends(cluster):
    result = await once(cluster, {})
    assert result.compare == {SLOT}
    assert result.cursors == {SLOT: Cursor(cluster.voters()["n1"], 5)}
    assert not asked(cluster, ReadLog)


async def test_what_was_missed_since_is_taken_over(cluster):
    cursors = (await once(cluster, {})).cursors
    cluster.write("p/1", delete(cluster.register(1, "p/1").record), ballot(10), at=[1])
    cluster.write("new", put("new", None), ballot(11), at=[1])
    result = await once(cluster, cursors)
    assert result.paths == 2 and not result.compare
    assert result.cursors[SLOT].seq == 7
    assert len(cluster.roots()) == 1
    assert cluster.register(0, "p/1").record.head is None


async def test_what_is_known_costs_nothing(cluster):
    cursors = (await once(cluster, {})).cursors
    for at in range(5):
        cluster.write(f"p/{at}", delete(cluster.register(1, f"p/{at}").record), ballot(10 + at))
    assert (await once(cluster, cursors)).paths == 0
    assert not asked(cluster, PullPaths)
    before = cluster.costs["n0"].asked_bytes + cluster.costs["n0"].answered_bytes
    cursors = (await once(cluster, cursors)).cursors
    again = await once(cluster, cursors)
    assert again.cursors == cursors
    assert len(asked(cluster, ReadLog)) == 2
    assert cluster.costs["n0"].asked_bytes + cluster.costs["n0"].answered_bytes - before < 700


async def test_when_nothing_happened_one_message_is_all(cluster):
    cursors = (await once(cluster, {})).cursors
    cluster.replicas[1].asked.clear()
    assert (await once(cluster, cursors)).cursors == cursors
    assert [type(request) for request in cluster.replicas[1].asked] == [LogHeads]


async def test_a_cut_log_means_comparing(cluster):
    cursors = (await once(cluster, {})).cursors
    for at in range(5):
        cluster.write(f"p/{at}", delete(cluster.register(1, f"p/{at}").record), ballot(10 + at), at=[1])
    await cluster[1].trim_log(SLOT, 2)
    result = await once(cluster, cursors)
    assert result.compare == {SLOT} and result.cursors[SLOT].seq == 10


async def test_another_copys_log_means_comparing(cluster):
    cursors = (await once(cluster, {})).cursors
    cluster[1].lose_slot(SLOT, ulid(5))
    cluster.write("p/9", put("p/9", None), ballot(20), at=[1])
    result = await once(cluster, cursors)
    assert result.compare == {SLOT} and result.cursors == {SLOT: Cursor(ulid(5), 1)}


async def test_a_log_that_went_back_means_comparing(cluster):
    result = await once(cluster, {SLOT: Cursor(cluster.voters()["n1"], 50)})
    assert result.compare == {SLOT} and result.cursors[SLOT].seq == 5


async def test_a_copy_that_the_route_does_not_name_is_left_alone(cluster):
    result = await cluster.run(0, follow("n1", {SLOT: "another"}, {}))
    assert result == Followed()


async def test_whoever_is_far_behind_compares(cluster, monkeypatch):
    monkeypatch.setattr(following, "LINES_MAX", 2)
    monkeypatch.setattr(following, "PAGES_MAX", 3)
    cursors = (await once(cluster, {})).cursors
    for at in range(20):
        cluster.write(f"new/{at}", put(f"new/{at}", None), ballot(20 + at), at=[1])
    result = await once(cluster, cursors)
    assert len(asked(cluster, ReadLog)) == 3
    assert result.paths == 6 and result.compare == {SLOT} and result.cursors[SLOT].seq == 25


async def test_pages_are_read_to_the_end(cluster, monkeypatch):
    monkeypatch.setattr(following, "LINES_MAX", 2)
    cursors = (await once(cluster, {})).cursors
    for at in range(9):
        cluster.write(f"new/{at}", put(f"new/{at}", None), ballot(20 + at), at=[1])
    assert (await once(cluster, cursors)).paths == 9
    assert len(cluster.roots()) == 1


async def test_a_peer_that_breaks_off_is_read_on_next_time(cluster):
    slots = (SLOT, SLOT + 1)
    cluster.write("q", put("q", None), ballot(1), slot=SLOT + 1)
    cursors = (await once(cluster, {}, slots=slots)).cursors
    for slot in slots:
        cluster.write(f"new/{slot}", put(f"new/{slot}", None), ballot(20), at=[1], slot=slot)

    async def fail(node, request):
        if isinstance(request, PullPaths):
            raise PeerUnreachable("gone")

    cluster.before_call = fail
    result = await once(cluster, cursors, slots=slots)
    assert result.cursors == cursors
    assert len(asked(cluster, ReadLog)) == 1, "it is not asked for the other slot"
    cluster.before_call = None
    assert (await once(cluster, cursors, slots=slots)).paths == 2


async def test_what_cannot_be_taken_as_it_is_is_left_to_a_compare(cluster):
    cursors = (await once(cluster, {})).cursors
    cluster[0].apply(Forgotten(SLOT, "gone", ballot(500), 1))
    cluster.write("new", put("new", None), ballot(20), at=[1])
    result = await once(cluster, cursors)
    assert result.compare == {SLOT} and not result.paths
    assert not cluster.register(0, "new").accepted


async def test_a_copy_that_is_mute_holds_up_no_other_slot(cluster):
    other = SLOT + 1
    cursors = (await once(cluster, {}, slots=(SLOT, other))).cursors
    cluster.write("new", put("new", None), ballot(11), at=[1])
    cluster.write("b", put("b", None), ballot(11), at=[1], slot=other)
    cluster.replicas[1].standing[SLOT] = "unsynced"
    result = await once(cluster, cursors, slots=(SLOT, other))
    assert cluster.register(0, "b", slot=other).record is not None
    assert result.cursors[SLOT] == cursors[SLOT], "it is read on from there once it has a voice"
