"""A node's own health, and how all nodes are asked."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amberblob import wire
from amberblob.ballot import SlotState
from amberblob.errors import NotReady, PeerUnreachable
from amberblob.metrics import Metrics
from amberblob.wire import Done
from amberblob.wire_repair import AskHealth, HealthReply, SlotHealth
from chunkstore.interface import SlotTally
from node.health import ClusterHealth, Facts, is_unsynced, own_health, rate_of
from node.healthgauges import HealthGauges
from node.routing import Routing
from registry.routes import ClusterInfo, Member, Route, RouteTable

NOW = 1_700_000_000_000
ZERO = bytes(32)


def table_of(slots: int = 2, nodes: int = 3, **options: Any) -> RouteTable:
    cluster = ClusterInfo(
        cluster_id="C", name="c", slot_count=slots, replicas=nodes, chunk_bytes=65536, format_version=1, created_at_ms=0
    )
    voters = tuple(Member(f"n{i}", f"disk{i}") for i in range(1, nodes + 1))
    routes = tuple(Route(**{"slot": slot, "epoch": 1, "voters": voters, **options}) for slot in range(slots))
    return RouteTable(cluster=cluster, routes=routes, nodes={})


def routing_of(table: RouteTable | None, node: str = "n1") -> Routing:
    return Routing(node=node, disk_id="disk1", table=lambda: table)


@dataclass
class FakeStore:
    """What own health asks of a store."""

    tallies: dict[int, SlotTally] = field(default_factory=dict)
    states: dict[int, SlotState] = field(default_factory=dict)
    full: bool = False

    def tally(self, slot: int) -> SlotTally:
        return self.tallies.get(slot, SlotTally(root=ZERO))

    def slot_state(self, slot: int) -> SlotState:
        return self.states.get(slot, SlotState(slot=slot, incarnation="disk1"))


@dataclass
class Workers:
    """All the facts that the store does not know."""

    received_bytes: int = 900

    def undecided_by_slot(self) -> dict[int, int]:
        return {1: 4}

    def compared_ms(self, slot: int) -> int:
        return NOW - slot

    def scrubbed_ms(self, slot: int) -> int:
        return NOW - 100 * slot

    def unrecoverable(self, slot: int) -> int:
        return slot


def all_facts() -> Facts:
    workers = Workers()
    return Facts(undecided=workers, compared=workers, scrubbed=workers, fetched=workers)


def test_own_health_puts_the_store_and_the_workers_together():
    store: Any = FakeStore({1: SlotTally(root=b"r" * 32, objects=7, wanted=2, wanted_bytes=50, damaged=1, log_head=9)})
    told = own_health(store, routing_of(table_of()), all_facts(), now_ms=NOW)
    assert told == HealthReply(
        now_ms=NOW,
        slots=(
            SlotHealth(0, ZERO, 0, 0, 0, 0, 0, False, NOW, NOW, 0),
            SlotHealth(1, b"r" * 32, 7, 4, 2, 50, 1, False, NOW - 1, NOW - 100, 1),
        ),
        received_bytes=900,
        unrecoverable=1,
    )
    assert wire.decode_reply(wire.encode(told)) == told
    bare = own_health(store, routing_of(table_of()), Facts(), now_ms=NOW)
    assert [(one.undecided, one.compared_ms, one.scrubbed_ms, one.unrecoverable) for one in bare.slots] == [
        (0, 0, 0, 0)
    ] * 2
    assert (bare.received_bytes, bare.unrecoverable, bare.full) == (0, 0, False)
    store.full = True
    assert own_health(store, routing_of(table_of()), Facts(), now_ms=NOW).full


def test_own_health_tells_only_what_the_route_gives_this_node():
    store: Any = FakeStore()
    assert own_health(store, routing_of(table_of(), "n9"), all_facts(), now_ms=NOW).slots == ()
    assert own_health(store, routing_of(None), all_facts(), now_ms=NOW) == HealthReply(
        now_ms=NOW, slots=(), received_bytes=0
    )


def test_own_health_tells_which_copies_are_no_voters_yet():
    store: Any = FakeStore()
    learner = Member("n4", "disk1", 2)
    for routes in ({"learners": (learner,)}, {"state": "joint", "next_voters": (learner,)}):
        (told, _) = own_health(store, routing_of(table_of(epoch=2, **routes), "n4"), all_facts(), now_ms=NOW).slots
        assert told.moving and told.unsynced
        (told, _) = own_health(store, routing_of(table_of(epoch=2, **routes), "n1"), all_facts(), now_ms=NOW).slots
        assert not told.moving


def test_pages_of_own_health():
    store: Any = FakeStore()
    routing = routing_of(table_of(5))
    pages = [own_health(store, routing, all_facts(), now_ms=NOW, first=first, limit=2) for first in (0, 2, 4, 5)]
    assert [[one.slot for one in page.slots] for page in pages] == [[0, 1], [2, 3], [4], []]
    assert [page.more for page in pages] == [True, True, False, False]
    assert {page.unrecoverable for page in pages} == {0 + 1 + 2 + 3 + 4}


@pytest.mark.parametrize(
    ("member", "state", "unsynced"),
    [
        (Member("n1", "disk1"), {}, False),
        (Member("n1", "other"), {}, True),
        (Member("n1", "disk1", 3), {}, True),
        (Member("n1", "disk1", 3), {"synced_epoch": 2}, True),
        (Member("n1", "disk1", 3), {"synced_epoch": 3}, False),
        (Member("n1", "disk1", 3), {"synced_epoch": 4}, False),
        (Member("n2", "disk1"), {}, True),
    ],
)
def test_who_is_unsynced(member, state, unsynced):
    there = SlotState(slot=0, incarnation="disk1", **state)
    assert is_unsynced(Route(slot=0, epoch=9, voters=(member,)), "n1", there) is unsynced
    other = (Member("n7", "disk7"),)
    assert is_unsynced(Route(slot=0, epoch=9, voters=other, learners=(member,)), "n1", there) is unsynced


# ---- asking all


def slot_health(slot: int, **told: Any) -> SlotHealth:
    plain = dict(
        root=ZERO,
        objects=0,
        undecided=0,
        wanted=0,
        wanted_bytes=0,
        damaged=0,
        unsynced=False,
        compared_ms=0,
        scrubbed_ms=0,
    )
    return SlotHealth(slot=slot, **{**plain, **told})


class FakeClock:
    def __init__(self) -> None:
        self.s = 1000.0
        self.ms = NOW

    def wall_ms(self) -> int:
        return self.ms

    def monotonic_s(self) -> float:
        return self.s


class FakePeers:
    """Other nodes by what they answer: a reply, pages of them by ``first``, an error; or nothing ever."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers
        self.asked: list[tuple[str, AskHealth]] = []

    async def call(self, node: str, request: Any, *, timeout_s: float) -> Any:
        self.asked.append((node, request))
        answer = self.answers[node]
        if isinstance(answer, dict):
            answer = answer[request.first]
        if isinstance(answer, Exception):
            raise answer
        if answer is None:
            await asyncio.Event().wait()
        return answer


def asking(peers: FakePeers, **options: Any) -> ClusterHealth:
    """Of ``n1``, which asks itself as it asks the others."""
    peers.answers.setdefault("n1", HealthReply(now_ms=NOW, slots=(slot_health(0),), received_bytes=10))
    options.setdefault("clock", FakeClock())
    given: Any = peers
    return ClusterHealth(
        lambda ask: pytest.fail("asked"), routing=routing_of(table_of()), peers=given, timeout_s=0.05, **options
    )


async def test_gathering_asks_all_and_waits_for_none_for_long():
    told = HealthReply(now_ms=NOW, slots=(slot_health(0), slot_health(1)), received_bytes=0, unrecoverable=3, full=True)
    silent: Any
    for silent in (None, PeerUnreachable("gone"), Done()):
        seen = await asking(FakePeers(n2=told, n3=silent)).gather()
        assert seen.nodes["n3"] is None
        assert seen.nodes["n2"].slots == {0: slot_health(0), 1: slot_health(1)}
        assert seen.nodes["n2"].unrecoverable == 3
        assert seen.nodes["n2"].full and not seen.nodes["n1"].full
        assert seen.nodes["n1"].slots == {0: slot_health(0)}
        assert (seen.at_ms, seen.rate_bytes_per_s) == (NOW, None)


async def test_gathering_can_have_them_compare_now():
    told = HealthReply(now_ms=NOW, slots=(), received_bytes=0)
    peers = FakePeers(n2=told, n3=told)
    await asking(peers).gather(heal=True)
    assert sorted(peers.asked, key=lambda one: one[0]) == [(f"n{i}", AskHealth(heal=True)) for i in (1, 2, 3)]


async def test_gathering_turns_pages_and_a_node_that_stops_halfway_is_unknown():
    pages = {
        0: HealthReply(now_ms=NOW, slots=(slot_health(0),), received_bytes=0, more=True),
        1: HealthReply(now_ms=NOW, slots=(slot_health(1),), received_bytes=0),
    }
    peers = FakePeers(n2=pages, n3={0: pages[0], 1: PeerUnreachable("gone")})
    seen = await asking(peers).gather(heal=True)
    assert sorted(seen.nodes["n2"].slots) == [0, 1]
    assert seen.nodes["n3"] is None
    assert [ask.heal for node, ask in peers.asked if node == "n2"] == [True, False]


async def test_an_answer_without_end_does_not_hold_it_up():
    endless = HealthReply(now_ms=NOW, slots=(), received_bytes=0, more=True)
    seen = await asyncio.wait_for(asking(FakePeers(n2=endless, n3=endless)).gather(), 30)
    assert seen.nodes["n2"].slots == {}


def test_own_health_is_told_whole():
    store: Any = FakeStore()
    routing = routing_of(table_of(5))
    peers: Any = FakePeers()
    health = ClusterHealth(
        lambda ask: own_health(store, routing, all_facts(), now_ms=NOW, first=ask.first, limit=2),
        routing=routing,
        peers=peers,
        clock=FakeClock(),
    )
    assert [one.slot for one in health.own().slots] == [0, 1, 2, 3, 4]
    assert not health.own().more


async def test_without_routes_there_is_nobody_to_ask():
    health: Any = ClusterHealth(
        lambda ask: pytest.fail("asked"),
        routing=routing_of(None),
        peers=FakePeers(),
        clock=FakeClock(),
    )
    with pytest.raises(NotReady):
        await health.gather()


async def test_a_comparison_after_it_was_asked_for_is_never_taken_for_one_from_before():
    class SlowWay(FakePeers):
        async def call(self, node: str, request: Any, *, timeout_s: float) -> Any:
            clock.ms += 40  # there
            reply = await super().call(node, request, timeout_s=timeout_s)
            reply = msgspec.structs.replace(reply, now_ms=clock.ms + 9000)
            clock.ms += 300  # and back
            return reply

    clock = FakeClock()
    asked_ms = clock.ms
    theirs = HealthReply(now_ms=0, slots=(slot_health(0, compared_ms=asked_ms + 1 + 9000),), received_bytes=0)
    peers = SlowWay(n2=theirs, n3=theirs)
    seen = (await asking(peers, clock=clock).gather()).nodes["n2"].slots
    assert asked_ms < seen[0].compared_ms <= asked_ms + 301


@pytest.mark.parametrize("ahead_ms", [-5000, 0, 5000])
async def test_times_are_told_by_the_clock_of_whoever_asks(ahead_ms):
    theirs = HealthReply(
        now_ms=NOW + ahead_ms,
        slots=(slot_health(0, compared_ms=NOW + ahead_ms - 70), slot_health(1, scrubbed_ms=3)),
        received_bytes=0,
    )
    health = asking(FakePeers(n2=theirs, n3=theirs))
    seen = (await health.gather()).nodes["n2"].slots
    assert (seen[0].compared_ms, seen[0].scrubbed_ms) == (NOW - 70, 0)
    assert seen[1].compared_ms == 0 and seen[1].scrubbed_ms == max(1, 3 - ahead_ms), "never is not some day"


async def test_the_rate_comes_from_two_gatherings():
    clock = FakeClock()
    peers = FakePeers(
        n2=HealthReply(now_ms=NOW, slots=(), received_bytes=1000),
        n3=HealthReply(now_ms=NOW, slots=(), received_bytes=0),
    )
    health = asking(peers, clock=clock)
    assert (await health.gather()).rate_bytes_per_s is None
    clock.s += 2
    peers.answers["n2"] = HealthReply(now_ms=NOW + 2000, slots=(), received_bytes=5000)
    peers.answers["n3"] = PeerUnreachable("gone")
    assert (await health.gather()).rate_bytes_per_s == 2000.0
    clock.s += 0.01
    peers.answers["n2"] = HealthReply(now_ms=NOW + 2010, slots=(), received_bytes=10**9)
    assert (await health.gather()).rate_bytes_per_s == 2000.0, "no rate over an instant"
    clock.s += 1000
    assert (await health.gather()).rate_bytes_per_s is None, "what was long ago says nothing of now"


samples = st.lists(st.dictionaries(st.sampled_from("ab"), st.tuples(st.integers(0, 10**6), st.integers(0, 10**9))))


@given(samples)
def test_a_rate_is_never_negative(told):
    rate = rate_of(list(enumerate(told)))
    assert rate is None or rate >= 0


@given(st.integers(1, 10**4), st.integers(0, 10**9), st.integers(2, 5))
def test_a_steady_rate_is_told_as_it_is(step_ms, step_bytes, count):
    told = [(float(i), {"a": (i * step_ms, i * step_bytes), "b": (7 + i * step_ms, 5)}) for i in range(count)]
    assert rate_of(told) == pytest.approx(step_bytes * 1000 / step_ms)
    anew = (99.0, {"a": (count * step_ms, -1), "b": (7 + count * step_ms, 5)})
    assert rate_of([*told, anew]) == 0, "a node that began to count anew is left out"


# ---- on /metrics


def test_the_gauges():
    reply = HealthReply(
        now_ms=NOW,
        slots=(
            slot_health(0, compared_ms=NOW - 5000, scrubbed_ms=NOW - 7000),
            slot_health(1, compared_ms=NOW, scrubbed_ms=NOW, wanted=2, wanted_bytes=70),
            slot_health(2, compared_ms=NOW, scrubbed_ms=NOW, wanted=2, wanted_bytes=7, damaged=1),
            slot_health(3, compared_ms=NOW, scrubbed_ms=NOW, unsynced=True),
            slot_health(4, compared_ms=0, scrubbed_ms=0, unsynced=True, moving=True),
            slot_health(5, compared_ms=0, scrubbed_ms=0, moving=True),
        ),
        received_bytes=123,
        unrecoverable=1,
    )
    replies = [reply]
    metrics = Metrics(process=False)
    metrics.registry.register(HealthGauges(lambda: replies[-1]))
    text = metrics.expose()[0].decode()
    for line in (
        'amberblob_copies{state="complete"} 2.0',
        'amberblob_copies{state="moving"} 1.0',
        'amberblob_copies{state="wanting"} 1.0',
        'amberblob_copies{state="unsynced"} 1.0',
        'amberblob_copies{state="damaged"} 1.0',
        "amberblob_wanted_versions 4.0",
        "amberblob_heal_bytes 77.0",
        "amberblob_damaged_versions 1.0",
        "amberblob_unrecoverable_versions 1.0",
        "amberblob_last_compare_age_seconds 5.0",
        "amberblob_last_scrub_age_seconds 7.0",
        "amberblob_heal_received_bytes_total 123.0",
    ):
        assert f"\n{line}\n" in text
    replies.append(HealthReply(now_ms=NOW, slots=(slot_health(0),), received_bytes=0))
    assert "amberblob_last_compare_age_seconds +Inf" in metrics.expose()[0].decode()
    replies.append(HealthReply(now_ms=NOW, slots=(), received_bytes=0))
    assert "amberblob_last_scrub_age_seconds 0.0" in metrics.expose()[0].decode()
