"""The worker: what it does when, and what it knows afterwards."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest

from amberblob.clock import SeededRandomness
from amberblob.errors import DiskFailed, NotReady, PeerTimeout, QuorumUnavailable
from amberblob.mutations import EpochSeen, Forgotten
from amberblob.wire_repair import CompareRoots, LogHeads, PullPaths, PullSlot, slots_in
from antientropy.ground import Naming
from antientropy.step import Did
from antientropy.worker import Repairer
from tests.unit.antientropy.kit import EPOCH, SLOT, Cluster, NoPace, ballot, delete, put, ulid

SLOTS = (SLOT, SLOT + 1)


@dataclass
class Places:
    cluster: Cluster
    node: str
    ready: bool = True
    named: dict[tuple[str, int], str] = field(default_factory=dict)
    begun: dict[int, int] = field(default_factory=dict)
    at_epoch: int = EPOCH
    learns: tuple[int, ...] = ()
    moving: tuple[int, ...] = ()

    def slots(self):
        if not self.ready:
            raise NotReady("no routes")
        return [slot for slot in SLOTS if slot not in self.learns]

    def copies(self, slot: int):
        return {node: self.named.get((node, slot), inc) for node, inc in self.cluster.voters(slot).items()}

    def voters(self, slot: int):
        return {node: inc for node, inc in self.copies(slot).items() if slot not in self.learns or node != self.node}

    def learning(self):
        return self.learns

    def naming(self, slot: int) -> Naming | None:
        return Naming(
            incarnation=self.copies(slot)[self.node],
            since=self.begun.get(slot, 1),
            epoch=self.at_epoch,
            sources=self.voters(slot),
            joins=slot in self.moving,
        )

    def belongs(self, slot: int, path: str) -> bool:
        return self.cluster.belongs(slot, path)

    def reachable(self, node: str) -> bool:
        return not self.cluster.by_node[node].away


class Paces(NoPace):
    def __init__(self) -> None:
        self.turns: list[int] = []

    async def turn(self, size_bytes: int) -> None:
        self.turns.append(size_bytes)


class Node:
    """Replica 0 with its worker."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.places = Places(cluster, "n0")
        self.pace = Paces()
        self.worker = Repairer(
            places=self.places,
            store=cluster[0],
            call=cluster.call,
            settle=cluster.round,
            refresh=cluster.refresh,
            pace=self.pace,
            clock=cluster.clock,
            randomness=SeededRandomness(1),
        )

    async def run(self, seconds: float = 0.0) -> None:
        """Work for so long, resting as the runner does."""
        end_s = self.cluster.clock.now_s + seconds
        for _ in range(100_000):
            if await self.worker.step() is Did.NOTHING:
                if self.cluster.clock.now_s >= end_s:
                    return
                self.cluster.clock.now_s += self.worker.pause_s
        raise AssertionError("it never rests")

    def asked(self, kind: type, peer: int = 1) -> int:
        return sum(isinstance(request, kind) for request in self.cluster.replicas[peer].asked)


@pytest.fixture
async def node() -> Node:
    cluster = Cluster(3)
    for slot in SLOTS:
        for at in range(4):
            cluster.write(f"p/{slot}/{at}", put(f"p/{slot}/{at}", None), ballot(at + 1), slot=slot)
    return Node(cluster)


async def test_after_the_start_it_compares_with_everybody_once(node):
    node.cluster.write("new", put("new", None), ballot(9), at=[1, 2])
    assert node.worker.compared_ms(SLOT) == 0
    began_ms = node.cluster.clock.wall_ms()
    await node.run()
    assert len(node.cluster.roots()) == 1
    assert [node.asked(CompareRoots, peer) for peer in (1, 2)] == [1, 1]
    assert node.worker.compared_ms(SLOT) == node.worker.compared_ms(SLOT + 1) == began_ms
    assert sum(node.pace.turns) == node.worker.costs.asked_bytes + node.worker.costs.answered_bytes
    await node.run(60)
    assert [node.asked(CompareRoots, peer) for peer in (1, 2)] == [1, 1], "then every ten minutes"
    await node.run(650)
    assert [node.asked(CompareRoots, peer) for peer in (1, 2)] == [2, 2]


async def test_what_is_missed_is_followed_within_seconds(node):
    await node.run()
    compared = node.asked(CompareRoots)
    record = node.cluster.register(1, f"p/{SLOT}/1").record
    node.cluster.write(f"p/{SLOT}/1", delete(record), ballot(20), at=[1, 2])
    await node.run(7)
    assert node.cluster.register(0, f"p/{SLOT}/1").record.head is None
    assert node.asked(CompareRoots) == compared


async def test_a_gap_in_the_log_leads_to_a_compare_of_that_slot(node):
    await node.run()
    for at in range(3):
        node.cluster.write(f"new/{at}", put(f"new/{at}", None), ballot(30 + at), at=[1])
    node.cluster[1].forget_log(SLOT)
    node.cluster.replicas[1].asked.clear()
    await node.run(7)
    compares = [request for request in node.cluster.replicas[1].asked if isinstance(request, CompareRoots)]
    assert [request.slots for request in compares] == [bytes([1 << SLOT])]
    assert await node.cluster.contents(0) == await node.cluster.contents(1)


async def test_a_peer_that_comes_back_is_compared_with_a_little_later(node):
    await node.run()
    node.cluster.replicas[1].away = True
    await node.run(30)
    before = node.asked(CompareRoots)
    node.cluster.replicas[1].away = False
    await node.run(4)
    assert node.asked(CompareRoots) == before, "it mends itself first"
    await node.run(10)
    assert node.asked(CompareRoots) == before + 1
    assert node.asked(CompareRoots, 2) == 1


async def test_a_copy_that_has_seen_a_newer_route_takes_nothing_from_those_of_the_old_one(node):
    """One of them may have left the slot, not know that either, and have what was forgotten since."""
    cluster = node.cluster
    first = put("gone", None)
    cluster.write("gone", first, ballot(10), at=[1])
    cluster.accept(1, "gone", ballot(11), put("gone", first))  # its rows are told, whatever becomes of this
    # Forgotten here, by a collector with a newer route.
    cluster[0].apply(Forgotten(SLOT, "gone", ballot(100), 2))
    cluster[0].apply(EpochSeen(SLOT, EPOCH + 3))
    cluster.write("other", put("other", None), ballot(10), at=[1], slot=SLOT + 1)
    await node.run(30)
    node.worker.heal_now()
    await node.run(30)
    assert "gone" not in await cluster.contents(0)
    assert "other" in await cluster.contents(0, SLOT + 1), "other slots are compared"
    cluster.write("later", put("later", None), ballot(200), at=[1])
    node.places.at_epoch = EPOCH + 3
    await node.run(700)
    assert "later" in await cluster.contents(0), "and this one by its newer route"


async def test_heal_now_compares_at_once(node):
    await node.run()
    node.cluster.clock.now_s += 100
    node.worker.heal_now()
    assert node.worker.wake.is_set()
    now_ms = node.cluster.clock.wall_ms()
    await node.run()
    assert [node.asked(CompareRoots, peer) for peer in (1, 2)] == [2, 2]
    assert node.worker.compared_ms(SLOT) == now_ms


async def test_the_oldest_peer_tells_how_long_ago_it_was(node):
    node.cluster.replicas[2].away = True
    await node.run(20)
    assert node.worker.compared_ms(SLOT) == 0, "nobody knows what the third one has"
    node.cluster.replicas[2].away = False
    await node.run(20)
    assert node.worker.compared_ms(SLOT) > 0


async def test_a_fact_about_a_copy_says_nothing_of_the_next_one(node):
    await node.run()
    node.places.named["n1", SLOT] = ulid(99)
    assert node.worker.compared_ms(SLOT) == 0
    assert node.worker.compared_ms(SLOT + 1) > 0


async def test_what_could_not_be_mended_is_tried_again_less_and_less_often(node):
    record = node.cluster.register(1, f"p/{SLOT}/1").record
    node.cluster.accept(1, f"p/{SLOT}/1", ballot(90), put(f"p/{SLOT}/1", record))
    node.cluster.write("more", put("more", None), ballot(9), at=[1])

    node.cluster.replicas[2].away = True
    tried: list[float] = []
    original = node.cluster.call

    async def call(peer, request):
        if isinstance(request, CompareRoots):
            tried.append(node.cluster.clock.now_s)
        return await original(peer, request)

    worker = Node(node.cluster)
    worker.worker = Repairer(
        places=worker.places, store=node.cluster[0], call=call, settle=unsettled, refresh=unsettled, pace=worker.pace,
        clock=node.cluster.clock, randomness=SeededRandomness(1),
    )  # fmt: skip
    await worker.run(150)
    pauses = [round(later - sooner) for sooner, later in itertools.pairwise(tried)]
    assert len(pauses) >= 3 and pauses == sorted(pauses) and pauses[-1] > 3 * pauses[0]
    assert worker.worker.compared_ms(SLOT) == 0
    assert "more" in await node.cluster.contents(0), "what could be taken was taken"


async def unsettled(slot: int, path: str) -> None:
    raise QuorumUnavailable("nobody")


async def test_blank_copies_are_filled_first_and_then_compared(node):
    new = ulid(77)
    node.cluster[0].lose_slot(SLOT, new)
    node.cluster.replicas[0].standing[SLOT] = "unsynced"
    node.places.begun[SLOT] = node.places.at_epoch = EPOCH + 1
    assert node.worker.compared_ms(SLOT) == 0
    order: list[str] = []

    async def note(peer, request):
        order.append(f"{type(request).__name__} {getattr(request, 'slot', '')}")

    node.cluster.before_call = note
    await node.run()
    assert node.cluster[0].slot_state(SLOT).synced_epoch == EPOCH + 1
    first_compare = next(at for at, one in enumerate(order) if one.startswith("CompareRoots"))
    assert all(at < first_compare for at, one in enumerate(order) if one == f"PullSlot {SLOT}")
    node.cluster.replicas[0].standing.clear()
    await node.run(10)
    assert node.worker.compared_ms(SLOT) > 0
    assert len(node.cluster.roots()) == 1
    assert node.asked(PullSlot) == node.asked(PullSlot, 2) == 1


async def test_a_blank_copy_that_cannot_be_filled_says_why_and_does_not_hold_up_the_others(node):
    node.cluster[0].lose_slot(SLOT, ulid(77))
    node.cluster.replicas[0].standing[SLOT] = "unsynced"
    node.places.begun[SLOT] = node.places.at_epoch = EPOCH + 1
    node.cluster.replicas[2].away = True
    await node.run(30)
    assert "1 of the 2 voters" in node.worker.unsynced_why(SLOT)
    assert node.asked(CompareRoots) >= 1
    node.cluster.replicas[2].away = False
    await node.run(10)
    assert node.worker.unsynced_why(SLOT) == ""
    assert node.cluster[0].slot_state(SLOT).synced_epoch == EPOCH + 1


def begin_to_learn(node: Node, slot: int) -> None:
    node.cluster[0].lose_slot(slot, ulid(77))
    node.cluster.replicas[0].standing[slot] = "unsynced"
    node.cluster.sets = (frozenset({1, 2}),)
    node.places.learns = (slot,)
    node.places.begun[slot] = node.places.at_epoch = EPOCH + 1


async def test_a_learner_is_filled_once_and_then_kept_up(node):
    """Without that it would go on wanting the bytes of what expired since, and have more to do when its slot moves."""
    begin_to_learn(node, SLOT)

    def compared() -> set[int]:
        return {slot for request in node.cluster.replicas[1].asked if isinstance(request, CompareRoots)
                for slot in slots_in(request.slots)}  # fmt: skip

    node.cluster.replicas[1].away = node.cluster.replicas[2].away = True
    await node.run(10)
    assert compared() <= {SLOT + 1}, "not before it is filled"
    node.cluster.replicas[1].away = node.cluster.replicas[2].away = False
    await node.run(30)
    assert node.cluster[0].slot_state(SLOT).synced_epoch == EPOCH + 1
    assert await node.cluster.contents(0) == await node.cluster.contents(1)
    pulls = node.asked(PullSlot)
    record = node.cluster.register(1, f"p/{SLOT}/1").record
    node.cluster.write(f"p/{SLOT}/1", delete(record), ballot(20), at=[1, 2])
    await node.run(30)
    assert node.cluster.register(0, f"p/{SLOT}/1").record.head is None
    assert compared() == {SLOT, SLOT + 1}
    assert node.worker.compared_ms(SLOT) == 0, "it is none of the copies that count"
    # It is filled once more when its slot moves.
    assert node.asked(PullSlot) == pulls
    node.places.learns, node.places.moving, node.places.at_epoch = (), (SLOT,), EPOCH + 2
    await node.run(10)
    assert node.cluster[0].slot_state(SLOT).synced_epoch == EPOCH + 2


async def test_a_voter_of_a_slot_that_moves_is_filled_in_each_such_epoch_and_stays_one_meanwhile(node):
    for epoch in (EPOCH + 1, EPOCH + 3):
        node.places.moving, node.places.at_epoch = (SLOT,), epoch
        node.cluster.replicas[1].away = node.cluster.replicas[2].away = True
        await node.run(10)
        assert node.cluster[0].slot_state(SLOT).synced_epoch < epoch and node.worker.unsynced_why(SLOT)
        node.cluster.replicas[1].away = node.cluster.replicas[2].away = False
        await node.run(20)
        assert node.cluster[0].slot_state(SLOT).synced_epoch == node.cluster[0].slot_state(SLOT).epoch == epoch
        assert node.cluster[0].slot_state(SLOT + 1).synced_epoch == 0
        assert node.worker.compared_ms(SLOT) > 0
    node.places.moving, node.places.at_epoch = (), EPOCH + 4
    await node.run(20)
    assert node.cluster[0].slot_state(SLOT).synced_epoch == EPOCH + 3


async def test_while_clients_are_served_a_slot_that_moves_does_not_wait_for_one_that_is_learnt(node):
    node.pace.busy = True
    begin_to_learn(node, SLOT + 1)
    node.places.moving = (SLOT,)
    held = []

    async def hold(peer, request):
        if isinstance(request, PullSlot):
            held.append(request.slot)
            if request.slot == SLOT + 1:
                raise PeerTimeout("it takes long")

    node.cluster.before_call = hold
    await node.run()
    assert held[0] == SLOT and node.cluster[0].slot_state(SLOT).synced_epoch == EPOCH + 1
    assert SLOT + 1 in held


async def test_a_copy_that_the_route_does_not_name_is_left_alone(node):
    node.places.named["n0", SLOT] = ulid(99)
    node.cluster.write("new", put("new", None), ballot(9), at=[1, 2])
    await node.run(10)
    assert "new" not in await node.cluster.contents(0)
    assert node.worker.compared_ms(SLOT) == 0


async def test_paths_found_damaged_are_mended_from_the_others(node):
    path = f"p/{SLOT}/1"
    node.cluster[0].damage_record(SLOT, path)
    node.cluster[0].lose_row(SLOT, f"p/{SLOT}/2", 1)
    await node.run()
    node.worker.found_wrong(SLOT, path)
    node.worker.found_wrong(SLOT, f"p/{SLOT}/2")
    assert node.worker.wrong == 2 and node.worker.wake.is_set()
    await node.run()
    assert node.worker.wrong == 0
    assert await node.cluster.contents(0) == await node.cluster.contents(1)
    assert not (await node.cluster[0].check_page(SLOT, "", 100)).wrong


async def test_without_routes_there_is_nothing_to_do(node):
    node.places.ready = False
    assert await node.worker.step() is Did.NOTHING
    node.places.ready = True
    assert await node.worker.step() is Did.WORK


async def test_a_disk_that_fails_ends_the_session_and_not_the_worker(node):
    node.cluster.write("new", put("new", None), ballot(9), at=[1, 2])
    node.cluster[0].fail("broken")
    with pytest.raises(DiskFailed):
        await node.run()
    node.cluster[0].failed = None
    await node.run(30)
    assert len(node.cluster.roots()) == 1


async def test_a_peer_that_does_not_answer_is_asked_again_later(node):
    async def fail(peer, request):
        if peer == "n1" and isinstance(request, (CompareRoots, LogHeads)):
            raise PeerTimeout("slow")

    node.cluster.before_call = fail
    await node.run(6)
    assert node.asked(PullPaths) == 0
    assert node.asked(CompareRoots, 2) == 1
    node.cluster.before_call = None
    await node.run(6)
    assert node.asked(CompareRoots) == 1
    assert node.worker.compared_ms(SLOT) > 0


async def test_a_peer_that_never_answers_keeps_no_lane_from_its_turn(node):
    """Longer than the time between two looks at the logs: else there would always be a log to look at."""
    cluster = node.cluster
    cluster.write("new", put("new", None), ballot(9), at=[2])

    async def hangs(peer, request):
        if peer == "n1":
            cluster.clock.now_s += 6.0
            raise PeerTimeout("n1 does not answer")

    cluster.before_call = hangs
    begin_s = cluster.clock.now_s
    for _ in range(2000):
        if await node.worker.step() is Did.NOTHING:
            cluster.clock.now_s += node.worker.pause_s
        if cluster.register(0, "new").record is not None:
            break
    assert cluster.register(0, "new").record is not None, "what copy 2 has is found"
    assert cluster.clock.now_s - begin_s < 60


async def test_what_was_compared_with_a_copy_says_nothing_of_the_one_that_takes_its_place(node):
    cluster, places = node.cluster, node.places

    async def replaced(peer, request):
        if isinstance(request, CompareRoots) and peer == "n1":
            places.named["n1", SLOT] = ulid(4242)

    cluster.before_call = replaced
    await node.run()
    assert node.worker.compared_ms(SLOT) == 0
    assert node.worker.compared_ms(SLOT + 1) > 0
