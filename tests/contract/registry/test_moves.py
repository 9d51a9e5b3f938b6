"""Each step of a moving slot, on every kind of registry: what it needs, what it makes, and what it leaves alone."""

import msgspec
import pytest

from amberblob.errors import RegistryUnavailable
from registry.interface import Registry, put
from registry.keys import Keys
from registry.moves import RegistryRouteChanges
from registry.readmit import readmit
from registry.routes import ClusterInfo, Member, Move, Route, decode, encode
from tests.contract.registry.tries import back_again

KEYS = Keys("c")
CLUSTER = ClusterInfo(
    cluster_id="01ARZ3NDEKTSV4RRFFQ69G5FAV", name="c", slot_count=8, replicas=3, chunk_bytes=1 << 20,
    format_version=1, created_at_ms=0,
)  # fmt: skip
OLD = tuple(Member(node, f"disk-{node}") for node in ("n1", "n2", "n3"))
BLANK = Member("n4", "blank", 3)
STABLE = Route(slot=5, epoch=4, voters=OLD)
LEARNING = msgspec.structs.replace(STABLE, learners=(BLANK,))
JOINT = msgspec.structs.replace(STABLE, state="joint", next_voters=(OLD[1], BLANK))
TO_N4 = ("n2", "n4")


async def begin(registry: Registry, route: Route, move: tuple[str, ...] | None = None) -> None:
    await put(registry, KEYS.cluster, encode(CLUSTER))
    await put(registry, KEYS.route(5), encode(route))
    if move is not None:
        await put(registry, KEYS.move(5), encode(Move(slot=5, generation=1, nodes=move)))


async def now(registry: Registry) -> tuple[Route, tuple[str, ...] | None]:
    entry = await registry.get(KEYS.route(5))
    assert entry is not None
    move = await registry.get(KEYS.move(5))
    return decode(entry.value, Route, ""), None if move is None else decode(move.value, Move, "").nodes


def by(registry: Registry, node: str = "n4") -> RegistryRouteChanges:
    return RegistryRouteChanges(registry, CLUSTER, node)


def seen(epoch: int = 0):
    return lambda slot: epoch


async def test_a_whole_move(clients):
    registry, other = clients
    await begin(registry, STABLE, TO_N4)
    made = await by(registry).name_learner(5, "blank", seen_epoch=seen(4))
    assert made.why == ""
    assert made.route == msgspec.structs.replace(STABLE, epoch=5, learners=(Member("n4", "blank", 5),))
    assert (await now(other))[0] == made.route
    made = await by(other, "n1").begin_joint(5, 5)
    assert made.why == ""
    kept = (OLD[1], Member("n4", "blank", 5))
    assert made.route == Route(slot=5, epoch=6, voters=OLD, state="joint", next_voters=kept)
    made = await by(registry, "n1").finish(5, 6)
    assert made.why == ""
    assert await now(other) == (Route(slot=5, epoch=7, voters=kept), None)
    assert made.route == Route(slot=5, epoch=7, voters=kept)


async def test_an_aborted_move_goes_on_from_its_learners(clients):
    registry, _ = clients
    await begin(registry, JOINT, TO_N4)
    made = await by(registry, "n1").abort(5, 4)
    assert (made.why, made.route) == ("", msgspec.structs.replace(LEARNING, epoch=5))
    assert await now(registry) == (made.route, TO_N4)
    again = await by(registry, "n1").begin_joint(5, 5)
    assert again.why == ""
    assert again.route == msgspec.structs.replace(JOINT, epoch=6)


async def test_a_lost_learner_names_itself_anew(clients):
    registry, _ = clients
    await begin(registry, LEARNING, TO_N4)
    assert "named already" in (await by(registry).name_learner(5, "blank", seen_epoch=seen())).why
    made = await by(registry).name_learner(5, "new", seen_epoch=seen())
    assert made.why == ""
    assert (await now(registry))[0].learners == (Member("n4", "new", 5),)


@pytest.mark.parametrize(
    ("route", "move", "node", "epoch_seen", "why"),
    [
        (STABLE, TO_N4, "n4", 5, "epoch 5 was seen"),
        (STABLE, None, "n4", 4, "not to go to n4"),
        (STABLE, ("n2", "n5"), "n4", 4, "not to go to n4"),
        (STABLE, TO_N4, "n2", 4, "voter"),
        (JOINT, TO_N4, "n5", 4, "being moved"),
    ],
)
async def test_no_learner(clients, route, move, node, epoch_seen, why):
    registry, _ = clients
    await begin(registry, route, move)
    revision = (await registry.range("")).revision
    made = await by(registry, node).name_learner(5, "x", seen_epoch=seen(epoch_seen))
    assert why in made.why
    assert made.route == route
    assert (await registry.range("")).revision == revision


@pytest.mark.parametrize(
    ("route", "move", "step", "why"),
    [
        (LEARNING, TO_N4, lambda c: c.begin_joint(5, 3), "epoch 4 by now"),
        (LEARNING, TO_N4, lambda c: c.begin_joint(5, 5), "epoch 5 was seen"),
        (LEARNING, None, lambda c: c.begin_joint(5, 4), "no move"),
        (STABLE, TO_N4, lambda c: c.begin_joint(5, 4), "n4 is no learner of it yet"),
        (STABLE, ("n3", "n2", "n1"), lambda c: c.begin_joint(5, 4), "where its move asks"),
        (JOINT, TO_N4, lambda c: c.begin_joint(5, 4), "the route is joint"),
        (LEARNING, TO_N4, lambda c: c.finish(5, 4), "the route is stable"),
        (JOINT, TO_N4, lambda c: c.finish(5, 3), "epoch 4 by now"),
        (JOINT, TO_N4, lambda c: c.finish(5, 5), "epoch 5 was seen"),
        (LEARNING, TO_N4, lambda c: c.abort(5, 4), "the route is stable"),
        (JOINT, TO_N4, lambda c: c.abort(5, 3), "epoch 4 by now"),
        (LEARNING, TO_N4, lambda c: c.drop_learners(5, 3, ["n4"]), "epoch 4 by now"),
        (LEARNING, TO_N4, lambda c: c.drop_learners(5, 4, ["n1", "n5"]), "none of them"),
        (JOINT, TO_N4, lambda c: c.drop_learners(5, 4, ["n4"]), "the route is joint"),
        (STABLE, None, lambda c: c.forget_move(5, 4), "no move"),
        (STABLE, TO_N4, lambda c: c.forget_move(5, 4), "not what the move asks"),
        (LEARNING, ("n1", "n2", "n3"), lambda c: c.forget_move(5, 4), "not what the move asks"),
        (STABLE, ("n1", "n2", "n3"), lambda c: c.forget_move(5, 3), "epoch 4 by now"),
        (JOINT, TO_N4, lambda c: c.forget_move(5, 4), "the route is joint"),
    ],
)
async def test_what_is_left_alone(clients, route, move, step, why):
    registry, _ = clients
    await begin(registry, route, move)
    revision = (await registry.range("")).revision
    made = await step(by(registry, "n1"))
    assert why in made.why
    assert made.route == route
    assert (await registry.range("")).revision == revision


async def test_learners_leave(clients):
    registry, _ = clients
    more = Member("n5", "other", 4)
    await begin(registry, msgspec.structs.replace(STABLE, learners=(BLANK, more)))
    made = await by(registry, "n1").drop_learners(5, 4, ["n4", "n9"])
    assert (made.why, made.route) == ("", msgspec.structs.replace(STABLE, epoch=5, learners=(more,)))
    assert (await now(registry))[0] == made.route


async def test_a_move_to_where_the_slot_is_is_forgotten(clients):
    registry, _ = clients
    await begin(registry, STABLE, ("n3", "n1", "n2"))
    assert (await by(registry, "n1").forget_move(5, 4)).why == ""
    assert await now(registry) == (STABLE, None)


async def test_a_newer_move_outlives_the_end_of_the_older_one(clients):
    registry, _ = clients
    await begin(registry, JOINT, ("n1", "n4"))
    made = await by(registry, "n1").finish(5, 4)
    assert made.why == ""
    assert await now(registry) == (Route(slot=5, epoch=5, voters=(OLD[1], BLANK)), ("n1", "n4"))


async def test_a_joint_route_without_a_move_can_end(clients):
    registry, _ = clients
    await begin(registry, JOINT)
    assert (await by(registry, "n1").finish(5, 4)).why == ""
    assert await now(registry) == (Route(slot=5, epoch=5, voters=(OLD[1], BLANK)), None)


class Between:
    """A registry where somebody comes in between the reading and the writing."""

    def __init__(self, inner: Registry, what) -> None:
        self._inner, self._what = inner, what
        self.get, self.range, self.delete = inner.get, inner.range, self._delete

    async def transact(self, operations):
        await self._what()
        return await self._inner.transact(operations)

    async def _delete(self, key, revision):
        await self._what()
        return await self._inner.delete(key, revision)


@pytest.mark.parametrize("change", ["taken back", "changed", "touched"])
async def test_no_joint_epoch_for_a_move_that_is_taken_back_meanwhile(clients, change):
    registry, other = clients
    await begin(registry, LEARNING, TO_N4)

    async def operator() -> None:
        entry = await other.get(KEYS.move(5))
        assert entry is not None
        if change == "taken back":
            await other.delete(entry.key, entry.revision)
        else:
            nodes = ("n1", "n4") if change == "changed" else TO_N4
            await put(other, entry.key, encode(Move(slot=5, generation=2, nodes=nodes)))

    made = await by(Between(registry, operator), "n1").begin_joint(5, 4)
    assert "meanwhile" in made.why
    assert made.route == LEARNING
    assert (await now(registry))[0] == LEARNING


@pytest.mark.parametrize(
    ("route", "step"),
    [
        (STABLE, lambda c: c.name_learner(5, "x", seen_epoch=seen())),
        (LEARNING, lambda c: c.drop_learners(5, 4, ["n4"])),
        (LEARNING, lambda c: c.begin_joint(5, 4)),
        (JOINT, lambda c: c.finish(5, 4)),
        (JOINT, lambda c: c.abort(5, 4)),
    ],
)
async def test_who_comes_second_changes_nothing(clients, route, step):
    registry, other = clients
    await begin(registry, route, TO_N4)
    first = msgspec.structs.replace(route, epoch=5)

    async def rival() -> None:
        await put(other, KEYS.route(5), encode(first))

    made = await step(by(Between(registry, rival)))
    assert "meanwhile" in made.why
    assert made.route == first
    assert await now(registry) == (first, TO_N4)


async def test_a_move_that_was_planned_anew_is_not_forgotten(clients):
    registry, other = clients
    await begin(registry, STABLE, ("n1", "n2", "n3"))

    async def operator() -> None:
        await put(other, KEYS.move(5), encode(Move(slot=5, generation=2, nodes=TO_N4)))

    assert "meanwhile" in (await by(Between(registry, operator)).forget_move(5, 4)).why
    assert await now(registry) == (STABLE, TO_N4)


async def test_a_readmission_keeps_since_and_what_else_is_named(clients):
    registry, _ = clients
    await begin(registry, msgspec.structs.replace(STABLE, voters=(*OLD[:2], BLANK), learners=(Member("n5", "l", 4),)))

    async def new(slot: int, named: str) -> str:
        return "new"

    await readmit(registry, CLUSTER, "n2", [5], new, seen_epoch=seen())
    route, _ = await now(registry)
    assert route.voters == (OLD[0], Member("n2", "new", 5), BLANK)
    assert route.learners == (Member("n5", "l", 4),)


async def test_a_registry_that_is_away_or_lost_a_route(backend, clients):
    registry, _ = clients
    await begin(registry, JOINT, TO_N4)
    with backend.outage(), pytest.raises(RegistryUnavailable):
        await by(registry).finish(5, 4)
    await back_again(registry)
    assert await now(registry) == (JOINT, TO_N4)
    with pytest.raises(RegistryUnavailable, match="routes/00006"):
        await by(registry).finish(6, 4)
