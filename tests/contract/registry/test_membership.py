"""What operators ask of the nodes, on every kind of registry: what is refused, what is written, and what dying half-way leaves."""

import asyncio

import msgspec
import pytest

from amberblob.errors import BadRequest, ConfigError, MembershipConflict, NotFound, NotReady, RegistryUnavailable
from registry.bootstrap import register_node
from registry.interface import TRANSACTION_OPS_MAX, CompareAndDelete, CompareAndSet, Operation, Registry, put
from registry.keys import Keys
from registry.membership import PATIENCE_MS, Action, Outcome, change, resume, sweep_removed
from registry.placement import place
from registry.routes import (
    FORMAT_VERSION,
    ClusterInfo,
    Liveness,
    Member,
    NodeInfo,
    NodeState,
    Route,
    RouteTable,
    encode,
)
from registry.snapshot import table_of
from tests.contract.registry.tries import back_again

SLOTS = 256
KEYS = Keys("c")
CLUSTER = ClusterInfo(
    cluster_id="01ARZ3NDEKTSV4RRFFQ69G5FAV", name="c", slot_count=SLOTS, replicas=3, chunk_bytes=1 << 20,
    format_version=1, created_at_ms=0,
)  # fmt: skip
ACTIVE, DRAINING, REMOVED = NodeState.ACTIVE, NodeState.DRAINING, NodeState.REMOVED


class Time:
    def __init__(self) -> None:
        self.ms = 1_000_000

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def now() -> Time:
    return Time()


def info(name: str) -> NodeInfo:
    return NodeInfo(
        node_id=name, disk_id=f"disk-{name}", zone="z", host="", http_address="h:1", peer_address="h:2",
        capacity_bytes=100, version="0", started_at_ms=0, registry_format=FORMAT_VERSION,
    )  # fmt: skip


async def register(registry: Registry, *names: str, alive: bool = True) -> None:
    for name in names:
        await register_node(registry, CLUSTER, info(name))
        if alive:
            await put(registry, KEYS.alive_node(name), encode(Liveness(disk_id=f"disk-{name}", started_at_ms=0)))


async def die(registry: Registry, name: str) -> None:
    entry = await registry.get(KEYS.alive_node(name))
    assert entry is not None
    await registry.delete(entry.key, entry.revision)


async def begin(registry: Registry, *names: str, spare: tuple[str, ...] = ()) -> None:
    """A cluster whose slots lie on ``names``."""
    await put(registry, KEYS.cluster, encode(msgspec.structs.replace(CLUSTER, format_version=FORMAT_VERSION)))
    await register(registry, *names, *spare)
    routes = place([info(name) for name in names], SLOTS, 3)
    for at in range(0, SLOTS, TRANSACTION_OPS_MAX):
        batch = routes[at : at + TRANSACTION_OPS_MAX]
        assert await registry.transact(
            [CompareAndSet(key=KEYS.route(r.slot), expected_revision=0, value=encode(r)) for r in batch]
        )


async def table(registry: Registry) -> RouteTable:
    found = table_of(await registry.range(KEYS.root), KEYS)
    assert found is not None
    return found


async def ask(registry: Registry, now: Time, action: str, *nodes: str, **options) -> Outcome:
    return await change(registry, CLUSTER, Action(action), nodes, now_ms=now, **options)


async def arrive(registry: Registry, slots: int = SLOTS) -> int:
    """Bring the first so many slots that have a move to where they are to go: what the nodes' changes come to in the end."""
    revisions = {entry.key: entry.revision for entry in (await registry.range(KEYS.root)).entries}
    found = await table(registry)
    operations: list[Operation] = []
    moves = sorted(found.moves.items())[:slots]
    for slot, move in moves:
        before = found.route(slot)
        kept = {member.node: member for member in before.voters}
        voters = tuple(kept.get(node, Member(node, f"new-{node}", before.epoch + 1)) for node in move.nodes)
        after = encode(Route(slot=slot, epoch=before.epoch + 3, voters=voters))
        operations.append(
            CompareAndSet(key=KEYS.route(slot), expected_revision=revisions[KEYS.route(slot)], value=after)
        )
        operations.append(CompareAndDelete(key=KEYS.move(slot), expected_revision=revisions[KEYS.move(slot)]))
    for at in range(0, len(operations), TRANSACTION_OPS_MAX):
        assert await registry.transact(operations[at : at + TRANSACTION_OPS_MAX]) is not None
    return len(moves)


def wanted_sets(found: RouteTable) -> dict[int, set[str]]:
    """Where the slots will be when all moves are made."""
    return {
        route.slot: set(found.moves[route.slot].nodes if route.slot in found.moves else route.voter_nodes)
        for route in found.routes
    }


async def test_join_drain_remove_forget(clients, now):
    registry, other = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4", "n5"))
    outcome = await ask(registry, now, "join", "n4", "n5")
    found = await table(other)
    assert found.membership == outcome.membership
    assert found.membership.nodes == dict.fromkeys(["n1", "n2", "n3", "n4", "n5"], ACTIVE)
    assert (found.membership.generation, found.membership.planning) == (1, False)
    assert found.membership.action == "join n4 n5"
    assert {slot: move.nodes for slot, move in found.moves.items()} == outcome.plan.targets
    assert (found.membership.moves, found.membership.copies) == (len(found.moves), outcome.plan.copies)
    assert len(found.moves) > TRANSACTION_OPS_MAX
    assert await arrive(registry) == found.membership.moves
    found = await table(registry)
    assert not found.moves
    assert sorted(len(found.slots_of(name)) for name in found.nodes) == [153, 153, 154, 154, 154]

    await ask(registry, now, "drain", "n1")
    with pytest.raises(MembershipConflict, match="still holds"):
        await ask(registry, now, "remove", "n1")
    await arrive(registry)
    outcome = await ask(registry, now, "remove", "n1")
    assert not outcome.plan.targets
    assert outcome.membership.nodes["n1"] is REMOVED
    assert not (await table(registry)).is_gone("n1")
    assert await sweep_removed(other, CLUSTER) == ("n1",)
    assert await sweep_removed(other, CLUSTER) == ()
    found = await table(registry)
    assert found.is_gone("n1")
    assert not found.is_gone("never-heard-of")
    with pytest.raises(ConfigError, match="was removed from the cluster"):
        await register(registry, "n1")
    with pytest.raises(MembershipConflict, match="was removed"):
        await ask(registry, now, "join", "n1")
    await ask(registry, now, "forget", "n1")
    await register(registry, "n1")
    found = await table(registry)
    assert found.state_of("n1") is None
    await ask(registry, now, "join", "n1")
    assert (await table(registry)).state_of("n1") is ACTIVE


async def test_a_dry_run_changes_nothing(clients, now):
    registry, _ = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4",))
    before = (await registry.range("")).revision
    dry = await ask(registry, now, "join", "n4", dry_run=True)
    assert (await registry.range("")).revision == before
    real = await ask(registry, now, "join", "n4")
    assert (dry.plan, dry.membership) == (real.plan, real.membership)


@pytest.mark.parametrize(
    ("action", "nodes", "options", "error", "told"),
    [
        ("join", [], {}, BadRequest, "one or more"),
        ("join", ["n4", "n4"], {}, BadRequest, "each once"),
        ("join", ["n9"], {"force": True}, NotFound, "No node 'n9' is registered"),
        ("drain", ["n9"], {}, NotFound, "n9"),
        ("join", ["n5"], {}, MembershipConflict, "n5 gives no sign of life"),
        ("drain", ["n4"], {}, MembershipConflict, "nothing to drain"),
        ("drain", ["n1"], {}, MembershipConflict, "2 active nodes are fewer than the 3 copies"),
        ("drain", ["n1", "n2", "n3"], {"force": True}, MembershipConflict, "no node that holds anything"),
        ("remove", ["n1"], {"force": True}, MembershipConflict, "is alive: drain it"),
        ("remove", ["n1"], {}, MembershipConflict, "is alive: drain it"),
        ("remove", ["n3"], {}, MembershipConflict, "lost for good, force it"),
        ("forget", ["n1"], {}, MembershipConflict, "not removed"),
    ],
)
async def test_what_is_refused(clients, now, action, nodes, options, error, told):
    registry, _ = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4", "n5"))
    await die(registry, "n5")
    await die(registry, "n3")
    before = (await registry.range("")).revision
    for dry_run in (True, False):
        with pytest.raises(error, match=told):
            await ask(registry, now, action, *nodes, dry_run=dry_run, **options)
    assert (await registry.range("")).revision == before


async def test_the_same_again_goes_on_with_it(clients, now):
    registry, other = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4", "n5"))
    first = await ask(registry, now, "join", "n1")
    assert first.warnings == ("n1 is active already.",)
    assert (await table(registry)).membership is None, "nothing was asked for that is not so"
    first = await ask(registry, now, "join", "n4")
    assert first.warnings == ()
    await arrive(registry, 10)
    before = (await registry.range("")).revision
    for dry_run in (True, False):
        again = await ask(other, now, "join", "n4", dry_run=dry_run)
        assert again.warnings == ("n4 is active already.",)
        assert again.membership == first.membership
        assert again.plan.targets == {slot: (await table(registry)).moves[slot].nodes for slot in again.plan.targets}
        assert len(again.plan.targets) == len(first.plan.targets) - 10
    assert (await registry.range("")).revision == before
    # With another one it is another change.
    both = await ask(other, now, "join", "n4", "n5")
    assert both.warnings == ("n4 is active already.",)
    assert both.membership.generation == 2


async def test_the_same_again_while_it_is_written(clients, now):
    registry, other = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4",))
    with pytest.raises(RegistryUnavailable, match="answer was lost"):
        await ask(Dying(registry, 2), now, "join", "n4")
    assert (await table(other)).membership.planning
    outcome = await ask(other, now, "join", "n4")
    assert outcome.warnings == ("n4 is active already.",)
    found = await table(registry)
    assert (found.membership.planning, found.membership.generation) == (False, 1)
    assert set(found.moves) == set(outcome.plan.targets)


async def test_below_the_number_of_copies_by_force(clients, now):
    registry, _ = clients
    await begin(registry, "n1", "n2", "n3")
    outcome = await ask(registry, now, "drain", "n2", "n3", force=True)
    assert "1 active nodes are fewer" in outcome.warnings[0]
    assert set(outcome.plan.targets.values()) == {("n1",)}
    assert outcome.plan.copies == 0
    again = await ask(registry, now, "drain", "n2", force=True)
    assert again.warnings[0] == "n2 is draining already."
    assert (again.membership, again.plan) == (outcome.membership, outcome.plan)
    await arrive(registry)
    # And back: whoever drains is joined again; there are still too few, but that is better than before.
    outcome = await ask(registry, now, "join", "n2")
    assert "2 active nodes" in outcome.warnings[0]
    assert outcome.plan.copies == SLOTS


async def test_a_dead_node_is_removed_by_force(clients, now):
    registry, _ = clients
    await begin(registry, "n1", "n2", "n3", "n4")
    await die(registry, "n2")
    outcome = await ask(registry, now, "remove", "n2", force=True)
    assert set(outcome.plan.after) == {"n1", "n3", "n4"}
    assert await sweep_removed(registry, CLUSTER) == ()
    for force in (True, False):
        again = await ask(registry, now, "remove", "n2", force=force)
        assert again.warnings == ("n2 was removed already.",)
        assert again.plan == outcome.plan
    with pytest.raises(MembershipConflict, match="being taken"):
        await ask(registry, now, "drain", "n2")
    with pytest.raises(MembershipConflict, match="still named"):
        await ask(registry, now, "forget", "n2")
    with pytest.raises(ConfigError, match="removed"):
        await register(registry, "n2")
    # A second one would take the majority of some slots, as long as they name the first.
    await die(registry, "n3")
    with pytest.raises(MembershipConflict, match="no majority"):
        await ask(registry, now, "remove", "n3", force=True)
    await arrive(registry)
    assert await sweep_removed(registry, CLUSTER) == ("n2",)
    assert "n2" not in (await table(registry)).nodes


async def test_a_new_plan_supersedes_the_one_before(clients, now):
    registry, _ = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4",))
    await ask(registry, now, "join", "n4")
    assert await arrive(registry, 20) == 20
    outcome = await ask(registry, now, "drain", "n4")
    found = await table(registry)
    assert outcome.membership.generation == 2
    assert set(found.moves) == {slot for slot in range(SLOTS) if "n4" in found.route(slot).voter_nodes}
    assert len(found.moves) == 20
    assert all(nodes == {"n1", "n2", "n3"} for nodes in wanted_sets(found).values())


async def test_a_joint_slot_keeps_a_move(clients, now):
    registry, _ = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4",))
    route = (await table(registry)).route(7)
    new = tuple(Member(node, f"disk-{node}") for node in ("n2", "n3", "n4"))
    await put(registry, KEYS.route(7), encode(msgspec.structs.replace(route, epoch=2, state="joint", next_voters=new)))
    await ask(registry, now, "join", "n4")
    found = await table(registry)
    assert set(found.moves[7].nodes) == {"n2", "n3", "n4"}
    # Taken back: it goes on to where it is going, and from there back.
    await ask(registry, now, "drain", "n4")
    found = await table(registry)
    assert set(found.moves) == {7}
    assert set(found.moves[7].nodes) == {"n1", "n2", "n3"}


async def test_an_older_registry_is_refused(clients, now):
    registry, _ = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4",))
    with pytest.raises(RegistryUnavailable, match=r"Slot 9: .*epoch 2 was seen"):
        await ask(registry, now, "join", "n4", seen_epoch=lambda slot: 2 if slot == 9 else 1)
    assert (await table(registry)).membership is None


async def test_without_routes_there_is_nothing_to_change(clients, now):
    registry, _ = clients
    await put(registry, KEYS.cluster, encode(CLUSTER))
    await register(registry, "n1")
    with pytest.raises(NotReady, match="no routes yet"):
        await ask(registry, now, "join", "n1")
    assert await resume(registry, CLUSTER, now_ms=now) is None


class Dying:
    """A registry that is lost for good after some transactions; the last one is made, and nobody is told."""

    def __init__(self, inner: Registry, left: int) -> None:
        self._inner, self._left = inner, left
        self.get, self.range, self.delete = inner.get, inner.range, inner.delete

    async def compare_and_set(self, key, expected_revision, value):
        return await self.transact([CompareAndSet(key=key, expected_revision=expected_revision, value=value)])

    async def transact(self, operations):
        self._left -= 1
        revision = await self._inner.transact(operations) if self._left >= 0 else None
        if self._left <= 0:
            raise RegistryUnavailable("the answer was lost")
        return revision


@pytest.mark.parametrize("by", ["a node", "the operator", "another operator"])
@pytest.mark.parametrize("after", [1, 2, 3])
async def test_a_change_that_is_left_half_written(clients, now, after, by):
    registry, other = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4", "n5"))
    plan = (await ask(registry, now, "join", "n4", dry_run=True)).plan
    with pytest.raises(RegistryUnavailable, match="answer was lost"):
        await ask(Dying(registry, after), now, "join", "n4")
    found = await table(other)
    finished = after == 3
    assert found.membership.planning is not finished
    assert len(found.moves) == min(len(plan.targets), (after - 1) * (TRANSACTION_OPS_MAX - 1))
    # Not at once: it may still be at work.
    assert await resume(other, CLUSTER, now_ms=now) is None
    if not finished:
        with pytest.raises(MembershipConflict, match=r"Another change \(join n4\) is being written"):
            await ask(other, now, "join", "n5")
    await arrive(registry, 10)
    now.ms += PATIENCE_MS
    if by == "a node":
        assert (await resume(other, CLUSTER, now_ms=now) is None) is finished
    elif by == "the operator":
        if finished:
            assert (await ask(other, now, "join", "n4")).warnings == ("n4 is active already.",)
        else:
            await ask(other, now, "join", "n4")
    else:
        await ask(other, now, "join", "n5")
        plan = (await ask(registry, now, "drain", "n5", dry_run=True)).plan
    found = await table(registry)
    assert not found.membership.planning
    assert found.membership.generation == (2 if by == "another operator" else 1)
    if by != "another operator":
        assert wanted_sets(found) == {
            slot: set(plan.targets.get(slot, place([info(n) for n in ("n1", "n2", "n3")], SLOTS, 3)[slot].voter_nodes))
            for slot in range(SLOTS)
        }
    await arrive(registry)
    found = await table(registry)
    assert not found.moves
    held = [len(found.slots_of(name)) for name, state in found.membership.nodes.items() if state is ACTIVE]
    assert max(held) - min(held) <= 1


class Halting:
    """A registry whose client sleeps before one of its transactions, until it is woken."""

    def __init__(self, inner: Registry, before: int) -> None:
        self._inner, self._left = inner, before
        self.asleep, self.wake = asyncio.Event(), asyncio.Event()
        self.get, self.range, self.delete, self.compare_and_set = (
            inner.get,
            inner.range,
            inner.delete,
            inner.compare_and_set,
        )

    async def transact(self, operations):
        self._left -= 1
        if self._left == 0:
            self.asleep.set()
            await self.wake.wait()
        return await self._inner.transact(operations)


@pytest.mark.parametrize("superseded", [False, True])
async def test_who_slept_writes_no_move_of_an_older_plan(clients, now, superseded):
    registry, other = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4", "n5"))
    sleeper = Halting(registry, 2)
    task = asyncio.create_task(ask(sleeper, now, "join", "n4"))
    async with asyncio.timeout(60):
        await sleeper.asleep.wait()
        now.ms += PATIENCE_MS
        if superseded:
            await ask(other, now, "drain", "n4")
        else:
            assert await resume(other, CLUSTER, now_ms=now) is not None
        before = (await registry.range("")).revision
        sleeper.wake.set()
        if superseded:
            with pytest.raises(MembershipConflict, match="replaced its plan"):
                await task
        else:
            assert (await task).membership.generation == 1
    assert (await registry.range("")).revision == before
    assert bool((await table(registry)).moves) is not superseded


async def test_two_operators_at_once(clients, now):
    registry, other = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4", "n5"))
    results = await asyncio.gather(
        ask(registry, now, "join", "n4"), ask(other, now, "join", "n5"), return_exceptions=True
    )
    losers = [each for each in results if not isinstance(each, Outcome)]
    assert all(isinstance(each, MembershipConflict) for each in losers)
    found = await table(registry)
    assert not found.membership.planning
    assert found.membership.generation == 2 - len(losers)
    assert len(found.membership.nodes) == 5 - len(losers)


async def test_many_who_resume_at_once(clients, now):
    registry, other = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4",))
    plan = (await ask(registry, now, "join", "n4", dry_run=True)).plan
    with pytest.raises(RegistryUnavailable):
        await ask(Dying(registry, 1), now, "join", "n4")
    now.ms += PATIENCE_MS
    await asyncio.gather(*(resume(each, CLUSTER, now_ms=now) for each in (registry, other) * 3))
    found = await table(registry)
    assert {slot: move.nodes for slot, move in found.moves.items()} == plan.targets
    assert (found.membership.planning, found.membership.moves) == (False, len(plan.targets))


async def test_a_registry_that_is_away(backend, clients, now):
    registry, _ = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4",))
    with backend.outage():
        with pytest.raises(RegistryUnavailable):
            await ask(registry, now, "join", "n4")
        with pytest.raises(RegistryUnavailable):
            await resume(registry, CLUSTER, now_ms=now)
    await back_again(registry)
    assert (await table(registry)).membership is None


async def test_nodes_of_the_version_before_are_to_be_upgraded_first(clients, now):
    registry, _ = clients
    await begin(registry, "n1", "n2", "n3", spare=("n4",))
    old = msgspec.structs.replace(info("n2"), registry_format=1)
    await put(registry, KEYS.node("n2"), encode(old))
    await put(registry, KEYS.cluster, encode(CLUSTER))
    with pytest.raises(NotReady, match="n2") as refused:
        await ask(registry, now, "join", "n4")
    assert refused.value.code == "nodes-too-old"
    assert (await table(registry)).membership is None
    await put(registry, KEYS.node("n2"), encode(info("n2")))
    await ask(registry, now, "join", "n4")
    assert (await table(registry)).cluster.format_version == FORMAT_VERSION
