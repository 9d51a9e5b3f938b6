"""A copy that lost its memory is filled from a majority, and nothing that was chosen with its vote is lost."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from amberblob.errors import PeerUnreachable
from amberblob.manifest import Record, WriteMark
from amberblob.mutations import EpochSeen, Forgotten
from amberblob.wire_repair import PullSlot
from antientropy import answers
from antientropy.sync import Progress, SyncResult, needed, sync
from tests.unit.antientropy.kit import EPOCH, SLOT, Cluster, ballot, delete, expire, put, row, ulid

EXAMPLES = int(os.environ.get("AMBERBLOB_TEST_EXAMPLES", "0"))
NEW = ulid(77)
SINCE = EPOCH + 1


def lose(cluster: Cluster, at: int = 0) -> Progress:
    """Replica ``at`` loses its memory, and the route names what began there instead."""
    cluster[at].lose_slot(SLOT, NEW)
    cluster.replicas[at].standing[SLOT] = "unsynced"
    return Progress(SLOT, NEW, SINCE)


async def fill(cluster: Cluster, progress: Progress, *, at: int = 0, epoch: int = SINCE) -> SyncResult:
    voters = cluster.voters()
    result = await cluster.run(at, sync(f"n{at}", progress, epoch, voters, sorted(voters)))
    if not result.why:
        cluster.replicas[at].standing.pop(SLOT, None)
    return result


@dataclass(frozen=True)
class Plan:
    """One path: which replicas accepted each write (the one that is lost among them or not), and who was told that it is chosen."""

    accepted: tuple[tuple[int, ...], ...]
    told: tuple[tuple[int, ...], ...]
    more: tuple[int, ...]


@st.composite
def worlds(draw):
    count = draw(st.integers(2, 5))
    nodes = st.lists(st.integers(0, count - 1), max_size=count, unique=True).map(tuple)
    quorums = st.lists(st.integers(0, count - 1), min_size=count // 2 + 1, max_size=count, unique=True).map(tuple)
    plan = st.integers(1, 3).flatmap(
        lambda writes: st.builds(
            Plan,
            accepted=st.tuples(*[quorums] * writes),
            told=st.tuples(*[nodes] * writes),
            more=nodes,
        )
    )
    return count, draw(st.lists(plan, min_size=1, max_size=8)), draw(st.lists(st.booleans(), max_size=12))


@settings(max_examples=EXAMPLES or 100, deadline=None, derandomize=not EXAMPLES, database=None)
@given(worlds())
async def test_whatever_was_chosen_is_seen_by_every_majority_afterwards(world):
    count, plans, failures = world
    cluster = Cluster(count)
    chosen: dict[str, Record] = {}
    for at, plan in enumerate(plans):
        path = f"p/{at}"
        record = None
        for step, (accepted, told) in enumerate(zip(plan.accepted, plan.told, strict=True)):
            number = ballot(1000 * step + at + 1)
            record = put(path, record)
            for one in accepted:
                cluster.accept(one, path, number, record)
            for one in told:
                cluster.choose(one, path, number, record)
        assert record is not None
        chosen[path] = record
        if 0 not in plan.more and len(plan.more) <= count - cluster.majority:
            # One more write that was not decided: too few accepted it.
            for one in plan.more:
                cluster.accept(one, path, ballot(900_000 + at), put(path, record, serial=1))
    progress = lose(cluster)
    cluster.lazy = True
    left = list(failures)

    async def fail_sometimes(node: str, request: object) -> None:
        if isinstance(request, PullSlot) and left and left.pop():
            raise PeerUnreachable("the connection broke")

    cluster.before_call = fail_sometimes
    for _ in range(len(failures) + 1):
        result = await fill(cluster, progress)
        if not result.why:
            break
    assert not result.why
    assert cluster[0].slot_state(SLOT).synced_epoch >= SINCE
    fenced = [at for at in range(1, count) if cluster[at].slot_state(SLOT).epoch >= SINCE]
    assert len(fenced) >= needed(count, among=True, counts=False)
    for path, record in chosen.items():
        for voters in combinations(range(count), cluster.majority):
            seen = [cluster.register(at, path) for at in voters]
            best = max((one for one in seen if one.accepted), key=lambda one: one.accepted, default=None)
            assert best is not None and best.record.revision >= record.revision, f"{path} is lost to {voters}"


async def test_the_pages_of_every_voter_are_read_and_its_floors_taken_over(monkeypatch):
    monkeypatch.setattr(answers, "PAGE_BYTES", 600)
    cluster = Cluster(3)
    for at in range(12):
        cluster.write(f"p/{at:02}", put(f"p/{at:02}", None), ballot(at + 1))
    gone = put("gone", None)
    stub = expire(delete(gone))
    cluster.write("gone", stub, ballot(500))
    cluster[1].apply(Forgotten(SLOT, "gone", ballot(500), 41))
    cluster[2].apply(Forgotten(SLOT, "gone", ballot(499), 42))
    progress = lose(cluster)
    assert await fill(cluster, progress) == SyncResult()
    state = cluster[0].slot_state(SLOT)
    assert (state.ballot_floor, state.version_floor, state.synced_epoch) == (ballot(500), 42, SINCE)
    pages = [sum(isinstance(r, PullSlot) for r in cluster.replicas[at].asked) for at in (1, 2)]
    assert min(pages) > 3, "a slot of many pages"
    assert {path for path in await cluster.contents(0)} >= {f"p/{at:02}" for at in range(12)}


async def test_it_goes_on_where_it_stood_and_fetches_no_page_twice(monkeypatch):
    monkeypatch.setattr(answers, "PAGE_BYTES", 600)
    cluster = Cluster(3)
    for at in range(12):
        cluster.write(f"p/{at:02}", put(f"p/{at:02}", None), ballot(at + 1))
    progress = lose(cluster)
    cluster.replicas[2].away = True
    first = await fill(cluster, progress)
    assert "1 of the 2 voters" in first.why
    assert not cluster[0].slot_state(SLOT).synced_epoch, "half of a proof is none"
    asked = len(cluster.replicas[1].asked)
    cluster.replicas[2].away = False
    assert not (await fill(cluster, progress)).why
    assert len(cluster.replicas[1].asked) == asked, "what was told is not asked for again"


async def test_a_voter_that_lost_its_own_memory_meanwhile_does_not_count():
    cluster = Cluster(5)
    cluster.write("p", put("p", None), ballot(1))
    progress = lose(cluster)
    for at in (2, 3, 4):
        cluster.replicas[at].away = True
    await fill(cluster, progress)
    assert progress.walks["n1"].done
    cluster[1].lose_slot(SLOT, ulid(78))
    cluster.replicas[1].standing[SLOT] = "unsynced"
    cluster.replicas[2].away = cluster.replicas[3].away = False
    result = await fill(cluster, progress)
    assert "2 of the 3 voters" in result.why and not cluster[0].slot_state(SLOT).synced_epoch
    cluster.replicas[4].away = False
    assert not (await fill(cluster, progress)).why


async def test_a_route_that_is_older_than_a_voters_epoch_is_refused():
    cluster = Cluster(3)
    cluster.write("p", put("p", None), ballot(1))
    progress = lose(cluster)
    cluster[1].apply(EpochSeen(SLOT, SINCE + 4))
    assert "epoch" in (await fill(cluster, progress)).why
    assert not (await fill(cluster, progress, epoch=SINCE + 4)).why
    assert cluster[0].slot_state(SLOT).synced_epoch == SINCE, "the lowest epoch in which a page was told"


async def test_what_lies_here_already_is_not_installed_again():
    cluster = Cluster(3)
    for at in range(5):
        cluster.write(f"p/{at}", put(f"p/{at}", None), ballot(at + 1))
    progress = lose(cluster)
    await fill(cluster, progress)
    assert cluster.costs["n0"].installed == 6, "five paths once, and that it is done"


async def test_a_slot_that_nobody_else_has_cannot_be_filled():
    cluster = Cluster(1)
    cluster.write("p", put("p", None), ballot(1))
    assert "no other voter" in (await fill(cluster, lose(cluster))).why


def test_how_many_have_to_be_read():
    blank = [needed(voters, among=True, counts=False) for voters in (1, 2, 3, 4, 5, 7)]
    assert blank == [0, 1, 2, 3, 3, 4]
    for voters in range(1, 9):
        majority = voters // 2 + 1
        # Whatever a majority accepted, one of those that are read has it, also if the copy that was lost was one of them.
        assert voters == 1 or needed(voters, among=True, counts=False) + majority - 1 > voters - 1
        # One that is none of them has nothing to bring along; one that votes has what it accepted.
        assert needed(voters, among=False, counts=False) + majority > voters
        assert needed(voters, among=True, counts=True) + 1 + majority > voters


async def test_what_was_undecided_is_finished_and_taken_over():
    cluster = Cluster(3)
    record = put("p", None)
    cluster.write("p", record, ballot(1))
    cluster.accept(1, "p", ballot(2), put("p", record))
    progress = lose(cluster)
    assert not (await fill(cluster, progress)).why
    assert cluster.rounds_held == 1
    assert len(cluster.roots()) == 1 and cluster.register(0, "p").record.version_max == 2


async def test_a_copy_that_is_lost_again_meanwhile_is_not_said_to_be_filled():
    cluster = Cluster(3)
    cluster.write("p", put("p", None), ballot(1))
    progress = lose(cluster)
    voters = cluster.voters()

    async def lose_again(node: str, request: object) -> None:
        if node == "n2":
            cluster[0].lose_slot(SLOT, ulid(79))

    cluster.before_call = lose_again
    result = await cluster.run(0, sync("n0", progress, SINCE, voters, sorted(voters)))
    assert "lost" in result.why
    assert cluster[0].slot_state(SLOT).synced_epoch == 0


async def test_a_copy_is_not_filled_with_what_rotted_elsewhere():
    cluster = Cluster(3)
    right = put("p", put("p", None))
    cluster.write("p", put("p", None), ballot(1))
    cluster.write("p", right, ballot(2))
    cluster[1].damage_row(SLOT, "p", 1)
    assert not (await fill(cluster, lose(cluster))).why
    assert (SLOT, "p") in cluster.replicas[1].wrong, "it is to be mended"
    assert (await cluster.contents(0))["p"] == (await cluster.contents(2))["p"]
    # Were it filled with that, two copies would have it, and the one that has it right would give way.
    await cluster.heal()
    await cluster.heal()
    assert len(cluster.roots()) == 1
    assert (await cluster.contents(2))["p"][1][-1].content_type == "text/plain"


async def test_a_copy_is_not_filled_before_what_lies_below_its_floor_is_told_anew():
    cluster = Cluster(5)
    record = put("p", None)
    cluster.write("p", record, ballot(1), at=[0, 3, 4])
    progress = lose(cluster)
    # Floors survive the loss of a database on a disk that is well.
    cluster[0].apply(Forgotten(SLOT, "other", ballot(5), 1))
    # The first round comes to its end without copy 3, the one of those that are read first that has the path.
    cluster.lazy, cluster.rounds_held, cluster.deaf = True, 2, True
    assert not (await fill(cluster, progress)).why
    assert not progress.walks["n3"].done, "another one is read instead"
    assert (await cluster.contents(0))["p"] == (record, (row("p", 1),))


async def test_of_two_voters_the_one_that_is_left_says_what_is_chosen():
    """Neither can hold a round: the blank copy is mute, and each needs both."""
    cluster = Cluster(2)
    first, second = put("p", None), put("p", put("p", None))
    cluster.write("p", first, ballot(1))
    for at in (0, 1):  # acknowledged, and nobody was told
        cluster.accept(at, "p", ballot(2), second)
        cluster.accept(at, "q", ballot(3), put("q", None))
    cluster.accept(1, "r", ballot(4), put("r", None))  # this one was not
    assert not (await fill(cluster, lose(cluster))).why
    assert cluster.rounds_held == 0
    assert cluster[1].slot_state(SLOT).epoch == SINCE, "it left the older epochs before it told its last word"
    assert (await cluster.contents(0))["p"] == (second, (row("p", 2), row("p", 1)))
    assert {path: cluster.register(0, path).accepted for path in "qr"} == {"q": ballot(3), "r": ballot(4)}
    await cluster.heal()
    assert len(cluster.roots()) == 1


async def test_only_of_two_and_only_by_the_one_that_has_a_memory():
    """Of three a round finishes it, and a copy that has a vote finishes nothing by itself."""
    cluster = Cluster(3)
    cluster.accept(1, "p", ballot(1), put("p", None))
    cluster.replicas[2].away = True
    assert (await fill(cluster, lose(cluster))).why
    assert not cluster.register(0, "p").record
    cluster = Cluster(2)
    cluster.accept(1, "p", ballot(1), put("p", None))
    progress = Progress(SLOT, cluster[0].slot_state(SLOT).incarnation, SINCE)
    voters = cluster.voters()
    cluster.epoch = SINCE
    assert not (await cluster.run(0, sync("n0", progress, SINCE, voters, sorted(voters), counts=True))).why
    assert cluster.rounds_held == 1, "an ordinary round"


async def test_a_path_that_rotted_where_its_last_word_is_does_not_lose_its_versions():
    cluster = Cluster(2)
    first = put("p", None)
    cluster.write("p", first, ballot(1))
    for at in (0, 1):
        cluster.accept(at, "p", ballot(2), put("p", first))
    cluster[1].damage_row(SLOT, "p", 1)
    result = await fill(cluster, lose(cluster))
    assert "undecided" in result.why and not cluster[0].slot_state(SLOT).synced_epoch
    assert (SLOT, "p") in cluster.replicas[1].wrong


async def test_what_write_ids_did_is_taken_from_all_that_are_read():
    """Also where they tell the same record and the same versions: one of them may have missed what lies between."""
    cluster = Cluster(3)
    marks = [WriteMark(f"w{at}", "put", at, 1000 + at) for at in (1, 2)]
    first = replace(put("p", None), writes=(marks[0],))
    second = replace(put("p", first), writes=(marks[1],))  # the list in a record does not reach back for ever
    cluster.write("p", first, ballot(1), at=[0, 2])
    cluster.write("p", second, ballot(2))
    assert (await cluster.contents(1))["p"] == (await cluster.contents(2))["p"]
    assert await cluster[1].find_write(SLOT, "p", "w1") is None
    assert not (await fill(cluster, lose(cluster))).why
    found = [await cluster[0].find_write(SLOT, "p", mark.write_id) for mark in marks]
    assert found == marks
    installed = cluster.costs["n0"].installed
    assert installed == 3, "the path, what else write ids did, and that it is done"
