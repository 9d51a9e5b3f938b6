"""Sessions of two copies: what a single round does, said by whom, and what it says of itself."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from amberblob.errors import PeerUnreachable
from amberblob.limits import SLOT_COUNT_MAX
from amberblob.manifest import Version
from amberblob.mutations import Chosen, Installed
from amberblob.wire_repair import CompareBuckets, CompareRoots, LogHeads, PullDiffering, PullPaths, slots_in
from antientropy.compare import Compared
from antientropy.follow import follow
from chunkstore import paging
from node.repairs import SLOTS_MAX as QUESTION_SLOTS_MAX
from tests.unit.antientropy.kit import SLOT, Cluster, ballot, delete, put, row, ulid


def wrong(version: Version) -> Version:
    return replace(version, content_type="wrong")


def claim(cluster: Cluster, at: int, path: str, version: Version) -> None:
    """A copy that has a row with another content, and a digest made of it."""
    record = replace(put(path, None), head=version)
    cluster[at].apply(Installed(SLOT, path, ballot(1), record, (version,)))


async def test_everybody_only_pulls():
    cluster = Cluster(2)
    cluster.write("a", put("a", None), ballot(1), at=[0])
    cluster.write("b", put("b", None), ballot(2), at=[1])
    assert await cluster.compare(0, 1) == {SLOT: Compared(paths=1, size_bytes=row("b", 1).size)}
    assert set(await cluster.contents(0)) == {"a", "b"}
    assert set(await cluster.contents(1)) == {"b"}
    assert await cluster.compare(0, 1) == {SLOT: Compared()}, "the peer is behind, this copy is not"


async def test_content_that_most_copies_have_wins():
    cluster = Cluster(3)
    right = row("p", 1)
    claim(cluster, 0, "p", wrong(right))
    claim(cluster, 1, "p", right)
    claim(cluster, 2, "p", right)
    result = await cluster.compare(1, 0)
    assert not result[SLOT].why, "who is right is not lacking anything"
    result = await cluster.compare(0, 1)
    assert not result[SLOT].why
    assert len(cluster.roots()) == 1
    assert (await cluster.contents(0))["p"][1] == (right,)
    assert cluster.register(0, "p").record.head == right


async def test_a_tie_is_told_and_changes_nothing():
    cluster = Cluster(2)
    claim(cluster, 0, "p", wrong(row("p", 1)))
    claim(cluster, 1, "p", row("p", 1))
    before = await cluster.contents(0)
    assert "damaged" in (await cluster.compare(0, 1))[SLOT].why
    assert "damaged" in (await cluster.compare(1, 0))[SLOT].why
    assert await cluster.contents(0) == before


async def test_a_vote_waits_for_who_could_turn_it():
    cluster = Cluster(5)
    claim(cluster, 0, "p", wrong(row("p", 1)))
    for at in range(1, 5):
        claim(cluster, at, "p", row("p", 1) if at < 3 else wrong(row("p", 1)))
    cluster.replicas[3].away = cluster.replicas[4].away = True
    assert "damaged" in (await cluster.compare(0, 1))[SLOT].why
    assert (await cluster.contents(0))["p"][1] == (wrong(row("p", 1)),), "three of five have it so"


async def test_what_rotted_is_not_handed_on():
    cluster = Cluster(3)
    record = put("p", None)
    cluster.write("p", record, ballot(1), at=[0, 1])
    cluster[0].damage_row(SLOT, "p", 1)
    assert (await cluster.compare(2, 0))[SLOT].paths == 0
    assert cluster.replicas[0].wrong == [(SLOT, "p")], "and it is to be mended"
    assert (await cluster.compare(2, 1))[SLOT].paths == 1
    assert not await cluster.scrub(0)
    assert await cluster.contents(0) == await cluster.contents(1) == await cluster.contents(2)


@pytest.mark.parametrize("damage", ["sum", "path"])
async def test_a_digest_that_is_wrong_itself_is_made_anew(damage):
    cluster = Cluster(2)
    for at in range(40):
        cluster.write(f"p/{at}", put(f"p/{at}", None), ballot(at + 1))
    if damage == "sum":
        cluster[0].damage_sum(SLOT, 17)
    else:
        cluster[0].damage_digest(SLOT, "p/7")
        await cluster[0].check_sums(SLOT)
    assert len(cluster.roots()) == 2
    result = await cluster.compare(0, 1)
    assert not result[SLOT].paths
    await cluster[0].check_sums(SLOT)
    assert len(cluster.roots()) == 1


async def test_what_decides_itself_meanwhile_needs_no_round():
    cluster = Cluster(2)
    record = put("p", None)
    for at in (0, 1):
        cluster.accept(at, "p", ballot(1), record)
    cluster.choose(1, "p", ballot(1))
    more = put("p", record)
    cluster.accept(0, "p", ballot(2), more)

    async def learn(node, request):
        if isinstance(request, PullPaths):
            cluster.choose(0, "p", ballot(2))
            cluster.accept(1, "p", ballot(2), more)
            cluster.choose(1, "p", ballot(2))

    cluster.before_call = learn
    assert not (await cluster.compare(0, 1))[SLOT].why
    assert cluster.rounds_held == 0
    assert len(cluster.roots()) == 1


async def test_what_stays_undecided_is_finished_by_one_round():
    cluster = Cluster(3)
    record = put("p", None)
    cluster.write("p", record, ballot(1))
    cluster.accept(0, "p", ballot(2), put("p", record))
    assert not (await cluster.compare(1, 0))[SLOT].why
    assert cluster.rounds_held == 1
    assert len(cluster.roots()) == 1
    assert cluster.register(1, "p").chosen


async def test_without_a_majority_it_says_why():
    cluster = Cluster(5)
    record = put("p", None)
    cluster.write("p", record, ballot(1))
    cluster.accept(1, "p", ballot(2), put("p", record))
    for at in (2, 3, 4):
        cluster.replicas[at].away = True
    assert "too few" in (await cluster.compare(0, 1))[SLOT].why
    assert not cluster.register(1, "p").chosen


async def test_a_path_of_many_versions_is_read_on(monkeypatch):
    monkeypatch.setattr(paging, "HISTORY_PAGE_MAX", 4)
    cluster = Cluster(2)
    record = None
    for step in range(30):
        record = put("p", record)
        cluster.write("p", record, ballot(step + 1), at=[1])
        if step in (3, 17, 18, 29):
            cluster[0].apply(Chosen(SLOT, "p", ballot(step + 1), record))
    assert len(cluster.roots()) == 2
    assert not (await cluster.compare(0, 1))[SLOT].why
    rows = await cluster[0].rows(SLOT, "p")
    assert [one.version.version for one in rows] == list(range(30, 0, -1))
    assert len(cluster.roots()) == 1


async def test_a_damaged_row_of_many_is_found_and_outvoted(monkeypatch):
    monkeypatch.setattr(paging, "HISTORY_PAGE_MAX", 4)
    cluster = Cluster(3)
    record = None
    for step in range(12):
        record = put("p", record)
        cluster.write("p", record, ballot(step + 1))
    rows = [row("p", 2)]
    cluster[0].apply(Installed(SLOT, "p", None, None, (wrong(rows[0]),), (), True))
    assert len(cluster.roots()) == 2
    assert not (await cluster.compare(0, 1))[SLOT].why
    assert len(cluster.roots()) == 1


async def test_copies_that_do_not_count_are_not_compared():
    cluster = Cluster(2)
    cluster.write("p", put("p", None), ballot(1), at=[1])
    cluster.replicas[1].standing[SLOT] = "unsynced"
    assert "counts" in (await cluster.compare(0, 1))[SLOT].why
    assert not await cluster.contents(0)


async def test_another_copy_than_the_route_names_is_not_listened_to():
    cluster = Cluster(2)
    cluster.write("p", put("p", None), ballot(1), at=[1])
    voters = cluster.voters()
    cluster.voters = lambda slot=SLOT: {**voters, "n1": "another"}
    assert "names" in (await cluster.compare(0, 1))[SLOT].why
    assert not await cluster.contents(0)


async def test_a_peer_that_falls_silent_is_not_asked_for_every_slot():
    cluster = Cluster(2)
    for slot in range(8):
        cluster.write(f"p/{slot}", put("p", None), ballot(1), at=[1], slot=slot)

    async def fail(node, request):
        if isinstance(request, CompareBuckets) and request.slot >= 3:
            raise PeerUnreachable("gone")

    cluster.before_call = fail
    result = await cluster.compare(0, 1, range(8))
    assert [bool(result[slot].why) for slot in range(8)] == [False] * 3 + [True] * 5
    asked = [request for request in cluster.replicas[1].asked if isinstance(request, CompareBuckets)]
    assert len(asked) == 3


async def test_a_deleted_path_does_not_return_from_who_missed_it():
    cluster = Cluster(3)
    record = put("p", None)
    cluster.write("p", record, ballot(1))
    cluster.write("p", delete(record), ballot(2), at=[0, 1])
    await cluster.compare(0, 2)
    assert cluster.register(0, "p").record.head is None
    await cluster.compare(2, 0)
    assert cluster.register(2, "p").record.head is None
    assert len(cluster.roots()) == 1


async def test_however_many_slots_there_are_each_answer_fits_a_frame():
    cluster = Cluster(2)
    slots = range(SLOT_COUNT_MAX)
    cluster.write("a", put("a", None), ballot(1), at=[1], slot=SLOT_COUNT_MAX - 1)
    result = await cluster.compare(0, 1, slots)
    assert len(result) == SLOT_COUNT_MAX and result[SLOT_COUNT_MAX - 1].paths == 1
    named = dict.fromkeys(slots, cluster.voters()["n1"])
    followed = await cluster.run(0, follow("n1", named, {}))
    assert len(followed.cursors) == SLOT_COUNT_MAX
    questions = [request for request in cluster.replicas[1].asked if isinstance(request, CompareRoots | LogHeads)]
    assert {type(question) for question in questions} == {CompareRoots, LogHeads}
    assert all(len(slots_in(question.slots)) <= QUESTION_SLOTS_MAX for question in questions)


async def test_nothing_is_installed_in_a_copy_that_began_anew_meanwhile():
    """It is blank and mute, and hears nothing before it is filled: what it was told of may be forgotten by then."""
    cluster = Cluster(3)
    for at in range(40):
        cluster.write(f"p/{at}", put(f"p/{at}", None), ballot(at + 1), at=[1, 2])

    async def lose(node, request):
        if isinstance(request, PullDiffering) and cluster[0].slot_state(SLOT).incarnation != ulid(77):
            cluster[0].lose_slot(SLOT, ulid(77))

    cluster.before_call = lose
    assert "lost" in (await cluster.compare(0, 1))[SLOT].why
    assert await cluster.contents(0) == {}
