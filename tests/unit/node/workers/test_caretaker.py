"""Plans that were left half written are finished, and removed nodes forgotten, by one node, after a while."""

from __future__ import annotations

from collections.abc import Sequence

from amberblob.errors import RegistryUnavailable
from node.workers.caretaker import PATIENCE_S, Caretaker
from registry.routes import Membership, NodeState
from tests.unit.node.workers.scene import Scene


class Told:
    """:class:`node.moving.Plans` that only counts."""

    def __init__(self) -> None:
        self.resumed = 0
        self.swept = 0
        self.away = False

    async def resume(self) -> bool:
        if self.away:
            raise RegistryUnavailable("away")
        self.resumed += 1
        return True

    async def sweep_removed(self) -> Sequence[str]:
        self.swept += 1
        return ("n5",)


async def scene_of(node: str = "n1") -> tuple[Scene, Told, Caretaker]:
    scene, told = Scene(), Told()
    await scene.begin()
    return scene, told, Caretaker(scene.routing(node), told, scene.clock, reachable=scene.peers.reachable)


def states(**others: NodeState) -> dict[str, NodeState]:
    return {**dict.fromkeys(("n1", "n2", "n3"), NodeState.ACTIVE), **others}


async def passing(scene: Scene, caretaker: Caretaker, seconds: float) -> None:
    await scene.see()
    await caretaker.step()
    scene.clock.now_s += seconds
    await caretaker.step()


async def test_a_plan_is_finished_that_stays_half_written():
    scene, told, caretaker = await scene_of()
    await passing(scene, caretaker, 100.0)
    await scene.set_membership(Membership(generation=1, nodes=states(), planning=True))
    await passing(scene, caretaker, PATIENCE_S - 0.1)
    assert not told.resumed
    await scene.set_membership(Membership(generation=2, nodes=states(), planning=True))
    await passing(scene, caretaker, PATIENCE_S - 0.1)
    assert not told.resumed, "another plan"
    scene.clock.now_s += 0.1
    told.away = True
    await caretaker.step()
    told.away = False
    await caretaker.step()
    assert told.resumed == 1
    await scene.set_membership(Membership(generation=2, nodes=states()))
    await passing(scene, caretaker, 100.0)
    assert told.resumed == 1 and not told.swept


async def test_a_removed_node_is_forgotten_when_no_route_and_no_move_names_it():
    scene, told, caretaker = await scene_of()
    await scene.set_membership(Membership(generation=1, nodes=states(n3=NodeState.REMOVED, n5=NodeState.REMOVED)))
    await scene.set_move(0, "n1", "n2", "n5")
    await passing(scene, caretaker, 100.0)
    assert not told.swept
    await scene.set_move(0, "n1", "n2", "n4")
    await passing(scene, caretaker, PATIENCE_S - 0.1)
    assert not told.swept
    scene.clock.now_s += 0.1
    await caretaker.step()
    assert told.swept == 1


async def test_the_first_node_that_can_be_reached_does_it():
    scene, told, second = await scene_of("n2")
    await scene.set_membership(Membership(generation=1, nodes=states(), planning=True))
    await passing(scene, second, PATIENCE_S)
    assert not told.resumed
    scene.peers.cut.add("n1")
    await second.step()
    assert told.resumed == 1
    scene.peers.cut.clear()
    await scene.set_membership(Membership(generation=1, nodes=states(n1=NodeState.REMOVED), planning=True))
    await passing(scene, second, PATIENCE_S)
    assert told.resumed == 3, "a removed one does not count, though it is there"
