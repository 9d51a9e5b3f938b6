"""Who is to hold a slot names a blank copy of its own."""

from __future__ import annotations

from amberblob.errors import RegistryUnavailable
from amberblob.mutations import EpochSeen, Synced
from antientropy.step import Did
from chunkstore.memory import MemoryStore
from node.workers.newcomer import Newcomer
from registry.interface import Operation
from registry.moves import to_joint
from registry.readmit import with_blank_copy
from registry.routes import Member
from tests.unit.node.workers.scene import Scene


async def scene_of(slots: int = 8) -> tuple[Scene, MemoryStore, Newcomer]:
    scene = Scene(slots)
    await scene.begin()
    store = scene.store("n4")
    return scene, store, Newcomer(store, scene.routing("n4"), scene.changes("n4"))


async def learners(scene: Scene, slot: int) -> tuple[Member, ...]:
    return (await scene.route(slot)).learners


async def test_a_copy_that_a_move_asks_for_is_named():
    scene, store, newcomer = await scene_of()
    await scene.set_move(3, "n1", "n2", "n4")
    await scene.see()
    assert await newcomer.step() is Did.NOTHING
    assert await learners(scene, 3) == (Member("n4", store.slot_state(3).incarnation, 2),)
    await scene.see()
    await newcomer.step()
    assert (await scene.route(3)).epoch == 2, "once"
    assert [(await scene.route(slot)).epoch for slot in (0, 1, 2)] == [1, 1, 1]


async def test_only_so_many_at_a_time_and_the_next_when_one_is_done(monkeypatch):
    monkeypatch.setattr("node.workers.newcomer.AT_ONCE_MAX", 4)
    scene, _, newcomer = await scene_of()
    for slot in range(8):
        await scene.set_move(slot, "n1", "n2", "n4")
    await scene.see()
    await newcomer.step()
    await newcomer.step()  # the news of the first ones has not come yet
    named = [slot for slot in range(8) if await learners(scene, slot)]
    assert named == list(range(4))
    await scene.set_route(to_joint(await scene.route(0), ("n1", "n2", "n4")))
    await scene.see()
    await newcomer.step()
    assert not await learners(scene, 4), "a new voter of a joint route counts as well"
    await scene.set_route(with_blank_copy(await scene.route(1), "n3", "other"))
    await scene.set_move(0)
    route = await scene.route(0)
    await scene.set_route(type(route)(slot=0, epoch=route.epoch + 1, voters=route.next_voters))
    await scene.see()
    await newcomer.step()
    assert await learners(scene, 4) and not await learners(scene, 5)


async def test_nothing_is_named_that_no_move_asks_for_or_while_the_slot_is_in_a_joint_epoch():
    scene, _, newcomer = await scene_of()
    await scene.set_move(0, "n1", "n2", "n5")
    await scene.set_route(to_joint(await scene.route(1), ("n1", "n2")))
    await scene.set_move(1, "n1", "n2", "n4")
    await scene.see()
    await newcomer.step()
    assert (await scene.route(0)).epoch == 1 and (await scene.route(1)).epoch == 2


async def test_a_learner_whose_copy_was_lost_is_named_anew():
    scene, store, newcomer = await scene_of()
    await scene.set_move(3, "n1", "n2", "n4")
    await scene.see()
    await newcomer.step()
    first = await learners(scene, 3)
    store = scene.store("n4")
    store.disk_id = "another"
    await scene.see()
    await Newcomer(store, scene.routing("n4"), scene.changes("n4")).step()
    (second,) = await learners(scene, 3)
    assert second == Member("n4", store.slot_state(3).incarnation, 3) and second != first[0]


async def test_a_copy_that_held_something_is_another_one_when_it_is_named():
    scene, store, newcomer = await scene_of()
    store.apply(Synced(3, 1, store.slot_state(3).ballot_floor, 0))
    before = store.slot_state(3).incarnation
    await scene.set_move(3, "n1", "n2", "n4")
    await scene.see()
    await newcomer.step()
    (member,) = await learners(scene, 3)
    assert member.incarnation == store.slot_state(3).incarnation != before
    assert store.slot_state(3).synced_epoch == 0


async def test_a_copy_that_saw_a_newer_route_than_the_node_is_not_begun_anew():
    """It may be a voter there: the news of it is only late."""
    scene, store, newcomer = await scene_of()
    store.apply(EpochSeen(3, 4))
    store.apply(Synced(3, 4, store.slot_state(3).ballot_floor, 0))
    before = store.slot_state(3)
    await scene.set_move(3, "n1", "n2", "n4")
    await scene.see()
    await newcomer.step()
    assert store.slot_state(3) == before and (await scene.route(3)).epoch == 1


async def test_a_disk_that_cannot_be_filled_takes_nothing_in():
    scene, store, newcomer = await scene_of()
    await scene.set_move(3, "n1", "n2", "n4")
    await scene.see()
    store.full = True
    await newcomer.step()
    assert (await scene.route(3)).epoch == 1
    store.full = False
    await newcomer.step()
    assert (await scene.route(3)).epoch == 2


async def test_a_lost_answer_names_nothing_twice():
    scene, _, newcomer = await scene_of()
    await scene.set_move(3, "n1", "n2", "n4")
    await scene.see()
    transact = scene.registry.transact

    async def lost(operations: list[Operation]) -> int | None:
        await transact(operations)
        raise RegistryUnavailable("the answer was lost")

    scene.registry.transact = lost
    assert await newcomer.step() is Did.NOTHING
    scene.registry.transact = transact
    await newcomer.step()
    assert (await scene.route(3)).epoch == 2
    await scene.see()
    await newcomer.step()
    assert (await scene.route(3)).epoch == 2


async def test_a_copy_that_routes_have_named_before_is_not_named_again_though_it_is_blank():
    """By a route of the past it would be a voter, or be filled, and hear of what was forgotten since."""
    scene, store, newcomer = await scene_of()
    first = store.slot_state(3).incarnation
    named = {first}
    for _ in range(2):
        await scene.set_move(3, "n1", "n2", "n4")
        await scene.see()
        await newcomer.step()
        (member,) = await learners(scene, 3)
        assert member.incarnation not in named and member.incarnation == store.slot_state(3).incarnation
        named.add(member.incarnation)
        await scene.see()
        await newcomer.step()
        route = await scene.route(3)
        await scene.set_route(type(route)(slot=3, epoch=route.epoch + 1, voters=route.voters))
        await scene.set_move(3)
        await scene.see()
        await newcomer.step()
