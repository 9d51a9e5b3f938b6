"""A node's new copies come into the routes by compare-and-set, on every kind of registry."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import pytest

from amberblob.errors import RegistryUnavailable
from registry.interface import TRANSACTION_OPS_MAX, CompareAndSet, Operation, Registry, put
from registry.keys import Keys
from registry.readmit import TRIES_MAX, Readmission, readmit
from registry.routes import ClusterInfo, Member, Route, decode, encode
from tests.contract.registry.tries import back_again

SLOTS = 2 * TRANSACTION_OPS_MAX + 50
KEYS = Keys("c")
CLUSTER = ClusterInfo(
    cluster_id="01ARZ3NDEKTSV4RRFFQ69G5FAV", name="c", slot_count=256, replicas=3, chunk_bytes=1 << 20,
    format_version=1, created_at_ms=0,
)  # fmt: skip
OLD = tuple(Member(node, f"disk-{node}") for node in ("n1", "n2", "n3"))


def route_of(slot: int, **changes: object) -> Route:
    return msgspec.structs.replace(Route(slot=slot, epoch=4, voters=OLD), **changes)


async def write(registry: Registry, *routes: Route) -> None:
    await put(registry, KEYS.cluster, encode(CLUSTER))
    for at in range(0, len(routes), TRANSACTION_OPS_MAX):
        operations = []
        for route in routes[at : at + TRANSACTION_OPS_MAX]:
            known = await registry.get(KEYS.route(route.slot))
            revision = known.revision if known else 0
            operations.append(
                CompareAndSet(key=KEYS.route(route.slot), expected_revision=revision, value=encode(route))
            )
        assert await registry.transact(operations) is not None


async def routes(registry: Registry) -> dict[int, Route]:
    found = [decode(entry.value, Route, entry.key) for entry in (await registry.range(KEYS.routes)).entries]
    return {route.slot: route for route in found}


def always(incarnation: str) -> Callable[[int, str], Awaitable[str]]:
    async def of(slot: int, named: str) -> str:
        return incarnation

    return of


async def nobody(slot: int, named: str) -> str:
    raise AssertionError(f"slot {slot} was asked about")


async def run(
    registry: Registry,
    slots: Sequence[int],
    incarnation_of: Callable[[int, str], Awaitable[str]],
    *,
    node: str = "n2",
    seen: int = 0,
) -> Readmission:
    return await readmit(registry, CLUSTER, node, slots, incarnation_of, seen_epoch=lambda slot: seen)


@pytest.mark.parametrize("count", [1, 16, 17, TRANSACTION_OPS_MAX, TRANSACTION_OPS_MAX + 1, SLOTS])
async def test_only_the_own_member_changes(clients, count):
    registry, other = clients
    learner = (Member("n9", "disk-n9", 3),)
    await write(registry, *(route_of(slot, learners=learner) for slot in range(SLOTS)))
    result = await run(registry, range(count), always("new"))
    after = await routes(other)
    assert sorted(result.changed) == list(range(count))
    assert not (result.named or result.refused or result.contended)
    for slot in range(SLOTS):
        if slot < count:
            named = (OLD[0], Member("n2", "new", 5), OLD[2])
            assert after[slot] == route_of(slot, epoch=5, voters=named, learners=learner) == result.changed[slot]
        else:
            assert after[slot] == route_of(slot, learners=learner)


async def test_done_again_it_changes_nothing(clients):
    registry, _ = clients
    await write(registry, *(route_of(slot) for slot in range(3)))
    await run(registry, range(3), always("new"))
    before = (await registry.range("")).revision
    again = await run(registry, range(3), always("new"))
    assert (again.named, again.changed) == ({0, 1, 2}, {})
    assert (await registry.range("")).revision == before


async def test_a_copy_that_is_lost_twice_is_named_twice(clients):
    registry, _ = clients
    await write(registry, route_of(0))
    await run(registry, [0], always("one"))
    result = await run(registry, [0], always("two"))
    assert result.changed[0].voters[1] == Member("n2", "two", 6)
    assert result.changed[0].epoch == 6


async def test_no_slots_no_question(clients):
    registry, _ = clients
    assert await run(registry, [], nobody) == Readmission()


@pytest.mark.parametrize(
    ("changes", "node", "seen", "told"),
    [
        ({"state": "joint", "next_voters": (*OLD[1:], Member("n4", "disk-n4"))}, "n2", 0, "moved"),
        ({"learners": (Member("n4", "disk-n4"),)}, "n4", 0, "no voter"),
        ({}, "n4", 0, "no voter"),
        ({}, "n2", 5, "epoch 5 was seen"),
    ],
)
async def test_what_is_left_alone(clients, changes, node, seen, told):
    registry, _ = clients
    await write(registry, route_of(0, **changes), route_of(1))
    result = await run(registry, [0], nobody, node=node, seen=seen)
    assert told in result.refused[0]
    assert await routes(registry) == {0: route_of(0, **changes), 1: route_of(1)}


async def test_an_epoch_that_was_seen_is_no_hindrance_when_the_registry_has_it(clients):
    registry, _ = clients
    await write(registry, route_of(0))
    assert (await run(registry, [0], always("new"), seen=4)).changed[0].epoch == 5


async def test_what_others_change_meanwhile_is_kept(clients):
    """The question about the copy is asked between the reading and the writing: there somebody comes in between."""
    registry, other = clients
    await write(registry, *(route_of(slot) for slot in range(20)))
    rival_made = []

    async def rival(slot: int, named: str) -> str:
        if slot == 7 and not rival_made:
            rival_made.append(slot)
            await readmit(other, CLUSTER, "n3", [7], always("three"), seen_epoch=lambda slot: 0)
        return "new"

    result = await run(registry, range(20), rival)
    after = await routes(other)
    assert sorted(result.changed) == list(range(20))
    assert after[7].voters == (OLD[0], Member("n2", "new", 6), Member("n3", "three", 5))
    assert after[7].epoch == 6
    assert all(after[slot].epoch == 5 for slot in range(20) if slot != 7)


async def test_a_move_that_begins_meanwhile_is_kept(clients):
    registry, other = clients
    await write(registry, route_of(0))
    joint = route_of(0, epoch=5, state="joint", next_voters=(Member("n4", "disk-n4"),))

    async def mover(slot: int, named: str) -> str:
        await write(other, joint)
        return "new"

    result = await run(registry, [0], mover)
    assert "moved" in result.refused[0]
    assert await routes(registry) == {0: joint}


async def test_a_route_that_changes_each_time_is_given_up_for_now(clients):
    registry, other = clients
    await write(registry, route_of(0))
    asked = []

    async def restless(slot: int, named: str) -> str:
        asked.append(slot)
        await write(other, route_of(0, epoch=4 + len(asked)))
        return "new"

    result = await run(registry, [0], restless)
    assert result.contended == {0}
    assert not result.changed
    assert len(asked) == TRIES_MAX
    assert (await routes(other))[0].voters == OLD


async def test_two_nodes_come_back_at_once(clients):
    registry, other = clients
    await write(registry, *(route_of(slot) for slot in range(SLOTS)))
    one, two = await asyncio.gather(
        run(registry, range(SLOTS), always("new-2"), node="n2"), run(other, range(SLOTS), always("new-3"), node="n3")
    )
    assert len(one.changed) == len(two.changed) == SLOTS
    for route in (await routes(registry)).values():
        assert route.epoch == 6
        assert {member.incarnation for member in route.voters} == {"disk-n1", "new-2", "new-3"}
        assert sorted(member.since for member in route.voters) == [1, 5, 6]


async def test_a_registry_that_is_away(backend, clients):
    registry, _ = clients
    await write(registry, route_of(0))
    with backend.outage(), pytest.raises(RegistryUnavailable):
        await run(registry, [0], nobody)
    await back_again(registry)
    assert await routes(registry) == {0: route_of(0)}


async def test_a_route_that_is_not_there(clients):
    registry, _ = clients
    await write(registry, *(route_of(slot) for slot in range(30)))
    for slots in ([3, 40], [*range(30), 40]):
        with pytest.raises(RegistryUnavailable, match="routes/00040"):
            await run(registry, slots, nobody)


class Broken:
    """A registry that is lost after some transactions; the last one is made, and nobody is told."""

    def __init__(self, inner: Registry, left: int) -> None:
        self._inner = inner
        self._left = left
        self.get, self.range = inner.get, inner.range

    async def transact(self, operations: Sequence[Operation]) -> int | None:
        revision = await self._inner.transact(operations)
        self._left -= 1
        if not self._left:
            raise RegistryUnavailable("the answer was lost")
        return revision


@pytest.mark.parametrize("after", [1, 2, 3])
async def test_broken_off_and_done_again(clients, after):
    registry, _ = clients
    await write(registry, *(route_of(slot) for slot in range(SLOTS)))
    with pytest.raises(RegistryUnavailable):
        await run(Broken(registry, after), range(SLOTS), always("new"))
    result = await run(registry, range(SLOTS), always("new"))
    done = min(SLOTS, after * TRANSACTION_OPS_MAX)
    assert result.named == set(range(done))
    assert sorted(result.changed) == list(range(done, SLOTS))
    assert all(route.epoch == 5 for route in (await routes(registry)).values())
