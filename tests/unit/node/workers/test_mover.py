"""The leader of a slot asks its copies, and changes its route."""

from __future__ import annotations

from amberblob.errors import RegistryUnavailable
from antientropy.step import Did
from node.workers.mover import JOINT_MAX, Mover
from registry.moves import to_joint, with_learner
from tests.unit.node.workers.scene import Scene


async def scene_of(node: str = "n1", slots: int = 8) -> tuple[Scene, Mover]:
    scene = Scene(slots)
    await scene.begin()
    return scene, mover_of(scene, node)


def mover_of(scene: Scene, node: str) -> Mover:
    return Mover(scene.routing(node), scene.peers, scene.changes(node), scene.clock, lost_s=60.0)


async def rounds(scene: Scene, mover: Mover, count: int = 1) -> None:
    for _ in range(count):
        await scene.see()
        scene.clock.now_s += 1.0
        assert await mover.step() is Did.NOTHING


async def with_learner_in(scene: Scene, slot: int) -> None:
    """A slot that is to go from n1, n2, n3 to n1, n2, n4, whose learner is filled in epoch 2."""
    await scene.set_move(slot, "n1", "n2", "n4")
    await scene.set_route(with_learner(await scene.route(slot), "n4", "disk4"))
    for node in ("n1", "n2", "n3"):
        scene.tell(node, slot)
    scene.tell("n4", slot, 2)


async def test_a_slot_moves_step_by_step():
    scene, mover = await scene_of()
    await scene.set_move(0, "n1", "n2", "n4")
    await rounds(scene, mover, 2)
    (facts,) = mover.facts()
    assert (facts.stage, facts.why) == ("waiting-for-node", "n4 has not begun yet") and not scene.peers.asked
    await with_learner_in(scene, 0)
    scene.tell("n4", 0, 2, wanted=3)
    await rounds(scene, mover)
    (facts,) = mover.facts()
    assert (facts.stage, facts.wanted, facts.wanted_bytes) == ("learning", 3, 300)
    assert facts.why == "n4 wants 3 versions (300 bytes)"
    scene.tell("n4", 0, 2)
    await rounds(scene, mover)
    assert (await scene.route(0)).state == "joint"
    await rounds(scene, mover)
    assert mover.facts()[0].stage == "joint" and mover.facts()[0].why
    for node in ("n1", "n2", "n4"):
        scene.tell(node, 0, 3)
    await rounds(scene, mover)
    route = await scene.route(0)
    assert (route.state, route.voter_nodes, route.epoch) == ("stable", ("n1", "n2", "n4"), 4)
    assert not await scene.moves()
    await rounds(scene, mover)
    assert not mover.facts()
    counts = mover.counts
    assert (counts.joints_begun, counts.finished, counts.aborted, counts.lost_races) == (1, 1, 0, 0)


async def test_nobody_is_asked_when_no_slot_moves():
    scene, mover = await scene_of()
    await rounds(scene, mover, 3)
    assert not scene.peers.asked and not mover.facts()


async def test_the_first_voter_that_can_be_reached_leads():
    scene, first = await scene_of("n1")
    second, stranger = mover_of(scene, "n2"), mover_of(scene, "n4")
    await with_learner_in(scene, 0)
    await rounds(scene, second)
    await rounds(scene, stranger)
    assert (await scene.route(0)).epoch == 2 and not second.facts()
    scene.peers.cut.add("n1")
    await rounds(scene, second)
    assert (await scene.route(0)).state == "joint"
    scene.peers.cut.clear()
    await first.step()  # it has not seen that yet: not by the table, but the registry tells
    await rounds(scene, first)
    assert first.facts()[0].stage == "joint" and (await scene.route(0)).epoch == 3


async def test_a_new_voter_leads_when_no_old_one_is_there():
    scene, mover = await scene_of("n4")
    await with_learner_in(scene, 0)
    await scene.set_route(to_joint(await scene.route(0), ("n1", "n2", "n4")))
    scene.peers.cut |= {"n1", "n2", "n3"}
    await rounds(scene, mover)
    assert mover.facts()[0].why == "n1 does not answer"


async def test_a_learner_that_is_lost_in_the_joint_epoch_is_given_up():
    scene, mover = await scene_of()
    await with_learner_in(scene, 0)
    await rounds(scene, mover)
    scene.peers.cut.add("n4")
    await rounds(scene, mover, 55)
    assert (await scene.route(0)).state == "joint"
    await rounds(scene, mover, 10)
    route = await scene.route(0)
    assert (route.state, route.voter_nodes) == ("stable", ("n1", "n2", "n3"))
    assert [member.node for member in route.learners] == ["n4"] and await scene.moves() == {0}
    await rounds(scene, mover, 5)
    assert (await scene.route(0)).epoch == route.epoch, "it waits for the learner, and does not begin again"
    scene.peers.cut.clear()
    await rounds(scene, mover)
    assert (await scene.route(0)).state == "joint"


async def test_a_leader_that_slept_takes_nobody_for_lost():
    scene, mover = await scene_of()
    await with_learner_in(scene, 0)
    await rounds(scene, mover)
    scene.peers.cut.add("n4")
    await rounds(scene, mover)
    scene.clock.now_s += 600.0
    await rounds(scene, mover, 10)
    assert (await scene.route(0)).state == "joint"


async def test_a_learner_whose_node_has_another_copy_goes_after_a_while():
    scene, mover = await scene_of()
    await with_learner_in(scene, 0)
    scene.tell("n4", 0, incarnation="other")
    await rounds(scene, mover, 10)
    assert (await scene.route(0)).learners
    scene.tell("n4", 0, incarnation="yet another")  # it is busy with it
    await rounds(scene, mover, 10)
    assert (await scene.route(0)).learners
    await rounds(scene, mover)
    assert not (await scene.route(0)).learners and mover.counts.learners_dropped == 1


async def test_learners_that_nobody_wants_go_and_then_the_move():
    scene, mover = await scene_of()
    await with_learner_in(scene, 0)
    await scene.set_move(0, "n3", "n2", "n1")
    await rounds(scene, mover)
    assert not (await scene.route(0)).learners and await scene.moves() == {0}
    await rounds(scene, mover)
    assert not await scene.moves()


async def test_only_so_many_slots_are_in_a_joint_epoch():
    scene, mover = await scene_of(slots=16)
    for slot in range(12):
        await with_learner_in(scene, slot)
    await rounds(scene, mover, 3)
    joint = [slot for slot in range(12) if (await scene.route(slot)).state == "joint"]
    assert len(joint) == JOINT_MAX
    assert {facts.why for facts in mover.facts() if facts.slot not in joint} == {"its turn comes after others"}
    for node in ("n1", "n2", "n4"):
        scene.tell(node, joint[0], 3)
    await rounds(scene, mover, 2)
    assert sum([(await scene.route(slot)).state == "joint" for slot in range(12)]) == JOINT_MAX


async def test_a_registry_that_is_away_costs_time_only():
    scene, mover = await scene_of()
    await with_learner_in(scene, 0)
    get = scene.registry.get

    async def away(key: str) -> None:
        raise RegistryUnavailable("away")

    scene.registry.get = away
    await rounds(scene, mover)
    assert mover.facts()[0].why == "the registry cannot be reached"
    scene.registry.get = get
    await rounds(scene, mover)
    assert (await scene.route(0)).state == "joint"


async def test_each_node_is_asked_once_a_round_whatever_the_number_of_slots():
    scene, mover = await scene_of(slots=16)
    for slot in range(3):
        await with_learner_in(scene, slot)
        scene.tell("n4", slot, 1)
    await rounds(scene, mover)
    assert sorted(scene.peers.asked) == [(f"n{number}", [0, 1, 2]) for number in (1, 2, 3, 4)]
