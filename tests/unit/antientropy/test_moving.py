"""Learners are filled, and a slot that moves has the members of its new set read the old one: nothing that was chosen is lost with the old set."""

from __future__ import annotations

import os
from dataclasses import dataclass
from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from amberblob.ballot import BALLOT_ZERO
from amberblob.errors import PeerUnreachable
from amberblob.manifest import Record
from amberblob.mutations import EpochSeen, Forgotten
from amberblob.wire_repair import PullSlot
from antientropy import answers
from antientropy.ground import Naming
from antientropy.sync import Progress, SyncResult, sync
from tests.unit.antientropy.kit import EPOCH, SLOT, Cluster, ballot, delete, expire, put, ulid

EXAMPLES = int(os.environ.get("AMBERBLOB_TEST_EXAMPLES", "0"))
NAMED = EPOCH + 1
"""The learners were named in it."""
JOINT = EPOCH + 2


class Slot:
    """A slot on its way from some voters to others; whoever is new is a learner first."""

    def __init__(self, count: int, old: frozenset[int], new: frozenset[int]) -> None:
        self.cluster = Cluster(count)
        self.old, self.new = old, new
        self.cluster.sets = (old,)
        self.progress: dict[int, Progress] = {}
        for at in range(count):
            if at not in old:
                self.cluster[at].lose_slot(SLOT, ulid(2000 + at))
                self.cluster.replicas[at].standing[SLOT] = "unsynced"

    def sources(self) -> dict[str, str]:
        return {node: inc for node, inc in self.cluster.voters().items() if int(node[1:]) in self.old}

    def begin_joint(self) -> None:
        self.cluster.sets, self.cluster.epoch = (self.old, self.new), JOINT

    async def fill(self, at: int, since: int, *, epoch: int = 0) -> SyncResult:
        incarnation = self.cluster[at].slot_state(SLOT).incarnation
        progress = self.progress.get(at)
        if progress is None or progress.incarnation != incarnation:
            progress = self.progress[at] = Progress(SLOT, incarnation, since)
        progress.since = since
        # Each begins with another source.
        sources = sorted(self.sources())
        order = [*sources[at % len(sources) :], *sources[: at % len(sources)]]
        session = sync(f"n{at}", progress, epoch or since, self.sources(), order, counts=at in self.old)
        result = await self.cluster.run(at, session)
        if not result.why:
            self.cluster.replicas[at].standing.pop(SLOT, None)
        return result

    def synced(self, at: int) -> int:
        return self.cluster[at].slot_state(SLOT).synced_epoch


def moving(old: set[int], new: set[int]) -> Slot:
    return Slot(max(old | new) + 1, frozenset(old), frozenset(new))


# ---- whatever happens


@dataclass(frozen=True)
class World:
    count: int
    old: frozenset[int]
    new: frozenset[int]
    accepted: list[tuple[frozenset[int], frozenset[int]]]
    """Per path: who of the old set accepted it, and who was told that it is chosen, if it is."""
    in_joint: list[tuple[frozenset[int], frozenset[int]]]
    """Per path: who of both sets accepted it in the JOINT epoch."""
    synced: list[int]
    failures: list[bool]
    late: list[int]
    """After so many requests each a coordinator that has heard of nothing writes something in the old epoch."""


@st.composite
def worlds(draw):
    count = draw(st.integers(2, 6))
    everyone = st.integers(0, count - 1)
    old = draw(st.frozensets(everyone, min_size=1, max_size=min(5, count)))
    new = draw(st.frozensets(everyone, min_size=1, max_size=min(5, count)))
    some_old, some_new = st.frozensets(st.sampled_from(sorted(old))), st.frozensets(st.sampled_from(sorted(new)))
    synced = draw(st.permutations(sorted(new)))
    return World(
        count=count,
        old=old,
        new=new,
        accepted=draw(st.lists(st.tuples(some_old, some_old), min_size=1, max_size=8)),
        in_joint=draw(st.lists(st.tuples(some_old, some_new), max_size=4)),
        synced=synced[: draw(st.integers(len(new) // 2 + 1, len(new)))],
        failures=draw(st.lists(st.booleans(), max_size=8)),
        late=draw(st.lists(st.integers(0, 12), max_size=4)),
    )


def is_majority(some: frozenset[int], voters: frozenset[int]) -> bool:
    return len(some & voters) > len(voters) // 2


@settings(max_examples=EXAMPLES or 150, deadline=None, derandomize=not EXAMPLES, database=None)
@given(worlds())
async def test_whatever_was_chosen_before_is_seen_by_every_majority_of_the_new_set(world: World):
    slot = Slot(world.count, world.old, world.new)
    cluster, chosen = slot.cluster, dict[str, Record]()
    for at, (accepted, told) in enumerate(world.accepted):
        path, record = f"p/{at}", put(f"p/{at}", None)
        for one in accepted:
            cluster.accept(one, path, ballot(at + 1), record)
        if is_majority(accepted, world.old):
            chosen[path] = record
            for one in told:
                cluster.choose(one, path, ballot(at + 1), record)
    cluster.lazy = True
    for at in sorted(world.new - world.old):
        # As a learner, some of them before the last writes.
        await slot.fill(at, NAMED)
        assert slot.synced(at) == NAMED or len(world.old) <= 2, "everybody is there"
    slot.begin_joint()
    for at, (of_old, of_new) in enumerate(world.in_joint):
        path, number = f"j/{at}", ballot(100 + at, epoch=JOINT)
        who = frozenset(one for one in of_old | of_new if SLOT not in cluster.replicas[one].standing)
        for one in who:
            cluster[one].apply(EpochSeen(SLOT, JOINT))
            cluster.accept(one, path, number, put(path, None))
        if is_majority(who, world.old) and is_majority(who, world.new):
            chosen[path] = put(path, None)
    left, asked = list(world.failures), 0

    async def meanwhile(node: str, request: object) -> None:
        nonlocal asked
        asked += 1
        for number in [number for number, after in enumerate(world.late) if after == asked]:
            path = f"late/{number}"
            willing = [at for at in world.old if cluster[at].slot_state(SLOT).epoch < JOINT]
            for at in willing:
                cluster.accept(at, path, ballot(500 + number, epoch=NAMED), put(path, None))
            if is_majority(frozenset(willing), world.old):
                chosen[path] = put(path, None)
        if isinstance(request, PullSlot) and left and left.pop():
            raise PeerUnreachable("the connection broke")

    cluster.before_call = meanwhile
    for at in world.synced:
        for _ in range(len(world.failures) + 2):
            result = await slot.fill(at, JOINT)
            if not result.why:
                break
        assert not result.why, result.why
        assert slot.synced(at) == JOINT
    for path, record in chosen.items():
        for voters in combinations(sorted(world.new), len(world.new) // 2 + 1):
            seen = [cluster.register(at, path) for at in voters]
            best = max(seen, key=lambda one: one.accepted or BALLOT_ZERO)
            assert best.record is not None and best.record.revision >= record.revision, f"{path} is lost to {voters}"


# ---- one by one


async def test_a_learner_is_filled_from_a_majority_of_the_voters():
    slot = moving({0, 1, 2}, {0, 1, 3})
    slot.cluster.write("p", put("p", None), ballot(1), at=[0, 1, 2])
    slot.cluster.replicas[0].away = slot.cluster.replicas[1].away = True
    assert "1 of the 2 voters" in (await slot.fill(3, NAMED)).why
    assert slot.synced(3) == 0
    slot.cluster.replicas[1].away = False
    assert await slot.fill(3, NAMED) == SyncResult()
    assert slot.synced(3) == NAMED
    assert {slot.cluster[at].slot_state(SLOT).epoch for at in (1, 2)} == {NAMED}, "they left the older epochs"
    assert await slot.cluster.contents(3) == await slot.cluster.contents(1)


async def test_a_learner_is_filled_from_a_single_voter():
    slot = moving({0}, {0, 1})
    slot.cluster.write("p", put("p", None), ballot(1), at=[0])
    assert await slot.fill(1, NAMED) == SyncResult()
    assert await slot.cluster.contents(1) == await slot.cluster.contents(0)


async def test_what_was_read_as_a_learner_does_not_count_while_the_slot_moves():
    slot = moving({0, 1, 2}, {0, 1, 3})
    slot.cluster.write("p", put("p", None), ballot(1), at=[0, 1, 2])
    await slot.fill(3, NAMED)
    # Chosen by 0 and 2, of which one leaves and the other one hears of nothing more.
    slot.cluster.write("q", put("q", None), ballot(2), at=[0, 2])
    slot.begin_joint()
    slot.cluster.replicas[0].away = True
    for _ in range(2):
        await slot.fill(3, JOINT)
    assert slot.synced(3) == JOINT and slot.synced(1) == 0
    assert "q" in await slot.cluster.contents(3)


async def test_one_that_stays_reads_the_others_and_counts_for_itself():
    slot = moving({0, 1, 2}, {0, 1})
    slot.cluster.write("p", put("p", None), ballot(1), at=[1, 2])
    slot.begin_joint()
    slot.cluster.replicas[1].away = True
    assert await slot.fill(0, JOINT) == SyncResult()
    assert "p" in await slot.cluster.contents(0)
    assert not slot.cluster.replicas[1].asked


async def test_one_that_stays_needs_another_source_beside_itself():
    slot = moving({0, 1, 2}, {0, 1})
    slot.cluster.write("p", put("p", None), ballot(1), at=[1, 2])
    slot.begin_joint()
    slot.cluster.replicas[1].away = slot.cluster.replicas[2].away = True
    assert "0 of the 1 voters" in (await slot.fill(0, JOINT)).why
    assert slot.synced(0) == 0


async def test_the_only_voter_needs_nobody_and_leaves_the_older_epochs_first():
    slot = moving({0}, {0, 1, 2})
    slot.cluster.write("p", put("p", None), ballot(1), at=[0])
    slot.begin_joint()
    assert await slot.fill(0, JOINT) == SyncResult()
    state = slot.cluster[0].slot_state(SLOT)
    assert (state.epoch, state.synced_epoch) == (JOINT, JOINT)


async def test_what_is_undecided_in_one_that_stays_is_finished_before_it_counts():
    slot = moving({0, 1, 2}, {0, 3})
    await slot.fill(3, NAMED)
    # Chosen by 0 and 1, and nobody was told.
    for at in (0, 1):
        slot.cluster.accept(at, "p", ballot(5), put("p", None))
    slot.begin_joint()
    slot.cluster.replicas[3].away = True
    assert (await slot.fill(0, JOINT)).why, "no round without a majority of the new set"
    assert slot.synced(0) == 0
    slot.cluster.replicas[3].away = False
    assert await slot.fill(0, JOINT) == SyncResult()
    assert slot.cluster.register(0, "p").chosen and slot.cluster.register(3, "p").record is not None


async def test_what_only_the_old_set_accepted_while_the_slot_moves_is_not_taken_for_decided():
    slot = moving({0, 1, 2}, {3, 4, 5})
    for at in (3, 4, 5):
        await slot.fill(at, NAMED)
    slot.begin_joint()
    for at in (0, 1, 2):
        slot.cluster[at].apply(EpochSeen(SLOT, JOINT))
        slot.cluster.accept(at, "p", ballot(5, epoch=JOINT), put("p", None))
    slot.cluster.replicas[4].away = slot.cluster.replicas[5].away = True
    result = await slot.fill(3, JOINT)
    assert "undecided" in result.why and "p" not in await slot.cluster.contents(3)
    slot.cluster.replicas[4].away = False
    assert await slot.fill(3, JOINT) == SyncResult()
    assert slot.cluster.register(3, "p").chosen and slot.cluster.register(4, "p").record is not None


async def test_pages_of_an_epoch_before_do_not_count_and_those_of_this_one_stay():
    slot = moving({0, 1, 2}, {0, 1, 3})
    slot.cluster.write("p", put("p", None), ballot(1), at=[0, 1, 2])
    slot.cluster.replicas[0].away = slot.cluster.replicas[1].away = True
    assert (await slot.fill(3, NAMED)).why
    assert [walk.epoch for walk in slot.progress[3].walks.values() if walk.done] == [NAMED]
    slot.begin_joint()
    assert (await slot.fill(3, JOINT)).why
    asked = [request.epoch for request in slot.cluster.replicas[2].asked if isinstance(request, PullSlot)]
    assert asked == [NAMED, JOINT]
    slot.cluster.replicas[0].away = False
    assert await slot.fill(3, JOINT) == SyncResult()
    assert len(slot.cluster.replicas[2].asked) == 2, "what was told in this epoch is not asked for again"


async def test_of_other_sources_other_majorities_count():
    slot = moving({0, 1, 2}, {0, 1, 3})
    slot.cluster.replicas[0].away = slot.cluster.replicas[1].away = True
    await slot.fill(3, NAMED)
    slot.old = frozenset({1, 2, 4})
    assert slot.progress[3].walks["n2"].done
    slot.progress[3].needs(NAMED, slot.old)
    assert not slot.progress[3].walks


async def test_one_that_has_heard_of_a_newer_route_is_not_filled_in_an_older_epoch():
    slot = moving({0, 1, 2}, {0, 1, 3})
    slot.begin_joint()
    slot.cluster[0].apply(EpochSeen(SLOT, JOINT + 1))
    assert "newer route" in (await slot.fill(0, JOINT)).why
    assert slot.synced(0) == 0

    async def hear(node: str, request: object) -> None:
        slot.cluster[3].apply(EpochSeen(SLOT, JOINT + 1))

    slot.cluster.before_call = hear
    assert "newer route" in (await slot.fill(3, JOINT)).why
    assert slot.synced(3) == 0


async def test_a_source_that_is_ahead_when_it_has_read_its_page_is_believed_for_the_epoch_it_was_asked_in(monkeypatch):
    slot = moving({0, 1, 2}, {0, 1, 3})
    real = answers._page

    def later(store, *args):
        store.apply(EpochSeen(SLOT, JOINT))
        return real(store, *args)

    monkeypatch.setattr(answers, "_page", later)
    assert await slot.fill(3, NAMED) == SyncResult()
    assert slot.synced(3) == NAMED


async def test_one_that_loses_its_memory_while_the_slot_moves_is_not_said_to_be_filled():
    slot = moving({0, 1, 2}, {0, 1, 3})
    slot.cluster.write("p", put("p", None), ballot(1), at=[0, 1, 2])
    slot.begin_joint()

    async def lose(node: str, request: object) -> None:
        slot.cluster[0].lose_slot(SLOT, ulid(79))

    slot.cluster.before_call = lose
    assert "lost" in (await slot.fill(0, JOINT)).why
    assert slot.synced(0) == 0


async def test_the_floors_of_all_that_were_read_and_its_own_are_taken_over():
    slot = moving({0, 1, 2}, {0, 1, 3})
    slot.cluster.write("gone", expire(delete(put("gone", None))), ballot(500), at=[0, 1, 2])
    for at, (number, version) in enumerate([(500, 41), (499, 42), (498, 40)]):
        slot.cluster[at].apply(Forgotten(SLOT, "gone", ballot(number), version))
    slot.begin_joint()
    slot.cluster.replicas[2].away = True
    await slot.fill(3, JOINT)
    await slot.fill(1, JOINT)
    for at in (1, 3):
        state = slot.cluster[at].slot_state(SLOT)
        assert (state.ballot_floor, state.version_floor) == (ballot(500), 42)


def test_in_which_epoch_a_copy_is_to_be_filled():
    def naming(since: int, epoch: int, joins: bool) -> Naming:
        return Naming(incarnation="x", since=since, epoch=epoch, sources={}, joins=joins)

    assert naming(1, 7, False).to_fill_in(0) == 0, "one of the first route"
    assert naming(4, 7, False).to_fill_in(0) == 4
    assert naming(4, 7, False).to_fill_in(5) == 0
    assert naming(1, 7, True).to_fill_in(0) == 7
    assert naming(4, 7, True).to_fill_in(6) == 7
    assert naming(4, 7, True).to_fill_in(7) == 0
