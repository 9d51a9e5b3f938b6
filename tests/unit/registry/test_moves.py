"""Whatever callers do to a slot at once, its routes follow rfc/0013 one by one."""

import asyncio
from itertools import pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from registry.interface import Put, put
from registry.keys import Keys
from registry.memory import MemoryRegistry, MemoryStore
from registry.moves import RegistryRouteChanges
from registry.readmit import readmit
from registry.routes import ClusterInfo, Member, Move, Route, decode, encode

KEYS = Keys("c")
CLUSTER = ClusterInfo(
    cluster_id="01ARZ3NDEKTSV4RRFFQ69G5FAV", name="c", slot_count=1, replicas=3, chunk_bytes=1, format_version=1,
    created_at_ms=0,
)  # fmt: skip
NODES = ("n1", "n2", "n3", "n4", "n5")
STEPS = ("learn", "learn", "drop", "joint", "joint", "finish", "finish", "abort", "forget", "move", "unmove", "readmit")


class Slow(MemoryRegistry):
    """Others have their turn before each answer and after."""

    def __init__(self, store: MemoryStore, random: Random) -> None:
        super().__init__(store)
        self._random = random

    async def _turns(self) -> None:
        for _ in range(self._random.randrange(4)):
            await asyncio.sleep(0)

    async def get(self, key):
        await self._turns()
        entry = await super().get(key)
        await self._turns()
        return entry

    async def transact(self, operations):
        await self._turns()
        return await super().transact(operations)


async def caller(name: str, registry: Slow, steps, made: list[str]) -> None:
    for copies, (step, node, nodes) in enumerate(steps):
        changes = RegistryRouteChanges(registry, CLUSTER, node)
        entry = await registry.get(KEYS.route(0))
        assert entry is not None
        route = decode(entry.value, Route, "")
        incarnation = f"{node}-{name}-{copies}"

        async def new(slot: int, named: str, incarnation: str = incarnation) -> str:
            return incarnation

        changed = None
        match step:
            case "learn":
                changed = await changes.name_learner(0, incarnation, seen_epoch=lambda slot: 0)
            case "drop":
                changed = await changes.drop_learners(0, route.epoch, nodes)
            case "joint":
                changed = await changes.begin_joint(0, route.epoch)
            case "finish":
                changed = await changes.finish(0, route.epoch)
            case "abort":
                changed = await changes.abort(0, route.epoch)
            case "forget":
                await changes.forget_move(0, route.epoch)
            case "move":
                await put(registry, KEYS.move(0), encode(Move(slot=0, generation=1, nodes=tuple(nodes))))
            case "unmove":
                move = await registry.get(KEYS.move(0))
                if move is not None:
                    await registry.delete(move.key, move.revision)
            case "readmit":
                result = await readmit(registry, CLUSTER, node, [0], new, seen_epoch=lambda slot: 0)
                made += ["readmit"] * len(result.changed)
        if changed is not None and not changed.why:
            made.append(step)


def members(route: Route) -> dict[str, Member]:
    return {each.node: each for each in (*route.voters, *route.next_voters, *route.learners)}


def check_step(before: Route, after: Route, move: Move | None) -> str:
    """What kind of change it is; asserts that it is one of rfc/0013."""
    assert after.epoch == before.epoch + 1
    old, new = members(before), members(after)
    changed_copies = [node for node in old.keys() & new.keys() if old[node] != new[node]]
    came = new.keys() - old.keys()
    # A copy that was not named just before is named since this epoch; one that stays named keeps everything.
    assert all(new[node].since == after.epoch for node in (*came, *changed_copies))
    assert len(came) + len(changed_copies) <= 1
    if (before.state, after.state) == ("stable", "stable"):
        if before.voters != after.voters:
            assert before.voter_nodes == after.voter_nodes
            assert before.learners == after.learners
            assert len(changed_copies) == 1
            return "readmit"
        if came or changed_copies:
            (node,) = (*came, *changed_copies)
            # Its move may have been taken back just now: a learner that nobody wants does no harm, and is dropped.
            assert node in {each.node for each in after.learners}
            return "learn"
        assert set(after.learners) < set(before.learners)
        return "drop"
    assert not came
    assert not changed_copies
    if (before.state, after.state) == ("stable", "joint"):
        assert after.voters == before.voters
        assert set(after.next_voters) <= {*before.voters, *before.learners}
        assert move is not None
        assert tuple(each.node for each in after.next_voters) == move.nodes
        return "joint"
    assert (before.state, after.state) == ("joint", "stable")
    if after.voters == before.next_voters and not (after.learners and after.voters == before.voters):
        assert not after.learners
        return "finish"
    assert after.voters == before.voters
    assert set(after.learners) == set(before.next_voters) - set(before.voters)
    return "abort"


steps = st.lists(
    st.tuples(
        st.sampled_from(STEPS),
        st.sampled_from(NODES),
        st.lists(st.sampled_from(NODES), min_size=1, max_size=4, unique=True),
    ),
    max_size=40,
)


@given(steps, steps, st.integers(0, 2**32), st.lists(st.sampled_from(NODES), min_size=1, max_size=4, unique=True))
@settings(max_examples=400, deadline=None)
def test_two_callers_at_once(one, two, seed, first_move):
    store = MemoryStore(history_max=100_000)
    made: list[str] = []

    async def run() -> None:
        registry = MemoryRegistry(store)
        await put(registry, KEYS.cluster, encode(CLUSTER))
        voters = tuple(Member(node, f"disk-{node}") for node in NODES[:3])
        await put(registry, KEYS.route(0), encode(Route(slot=0, epoch=1, voters=voters)))
        await put(registry, KEYS.move(0), encode(Move(slot=0, generation=0, nodes=tuple(first_move))))
        random = Random(seed)
        await asyncio.gather(*(caller(n, Slow(store, random), s, made) for n, s in (("a", one), ("b", two))))

    asyncio.run(run())
    routes: list[Route] = []
    kinds: list[str] = []
    move: Move | None = None
    for change in store.history:
        events = {event.key: event for event in change.events}
        moved = events.get(KEYS.move(0))
        written = events.get(KEYS.route(0))
        if isinstance(written, Put):
            routes.append(decode(written.value, Route, ""))
            if len(routes) > 1:
                kinds.append(check_step(routes[-2], routes[-1], move))
                if kinds[-1] == "finish":
                    # The move goes with its fulfilment, and only then.
                    fulfilled = move is not None and set(move.nodes) == set(routes[-1].voter_nodes)
                    assert (moved is not None) == fulfilled
        if moved is not None:
            move = decode(moved.value, Move, "") if isinstance(moved, Put) else None
    assert sorted(kinds) == sorted(made)
    copies = {each for route in routes for each in members(route).values()}
    for copy in copies:
        # Named without a gap, in every role: a copy that left never comes back.
        named = [copy in members(route).values() for route in routes]
        assert sum(a != b for a, b in pairwise([False, *named, False])) == 2
