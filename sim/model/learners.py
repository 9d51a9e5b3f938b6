"""Moves as the code makes them (rfc/0013). This docstring is the specification; the numbers go on from :mod:`sim.model.readmission`.

:mod:`sim.model.membership` has copies that a JOINT route names first and that answer in it, blank as they are. The code needs no such
thing: every new copy comes in as a *learner*, with ``since``, and is mute until it was filled, just as one that lost its memory.

21. A new member is named by its own node: it begins a blank copy, durably, under an incarnation that no route ever named, and has it named as a learner
    of a STABLE route, with ``since`` of the new epoch (rule 11, for a node that is no voter). It is filled from a majority of V as
    rules 15 to 19 say, and has no voice before. It hears nothing before either: once it has, it has the floors, so that
    LEARNs need not say for which copy they are.
22. JOINT(V, V'): V' is made of members of V and of learners. Whoever begins it waits until the learners are filled; nothing but
    progress rests on that. A mute member of V' stays mute in JOINT: V' is then short of a vote.
23. In the JOINT epoch E each member of V', kept ones too, syncs by rule 8. A kept one is one of the majority of V that it reads,
    like any other: it leaves the epochs below E with it, and what is undecided in it is finished.
    Rule 9 stands: FINAL needs a majority of V' synced *in E*. What a learner read before counts for nothing there
    (``joint-learner-sync``): in the old epoch more was chosen since.
24. Abort: back to STABLE(V); the new members are learners again and keep ``since`` and what they have. A copy is named
    without a gap from its first epoch on, or it is nobody. No stub is collected while there are learners, or JOINT; so it misses no collection.
    Were it dropped and named again with what it has, a stub may be gone of which it remembers what was before
    (``learner-keeps-memory``).
25. A node that no route names any more gives its copy up, some time; what lies there until then is a stranger's, unheard (rule 5).
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from sim.model.membership import abort, complete, plan
from sim.model.readmission import fill
from sim.model.replica import Copy
from sim.model.values import CopyId, Route, following, node_of
from sim.model.world import Node, Wait, World

LOOKS = 8
"""How often an operator looks whether the learners are there, before it leaves them to the next one."""


def become_learner(node: Node) -> Generator[Wait, Any, None]:
    """Rule 21, as a process of the new member's node."""
    world = node.world
    rules = world.rules
    yield 0.1 + world.random.random() * min(2.0, world.shape.page_delay)
    registry = world.registry
    route = registry.route
    if registry.out or node.blind or route.joint:
        world.counts["learners that could not be named"] += 1
        return
    node.meet(route)
    if any(node_of(voter) == node.number for voter in route.voters):
        return
    others = tuple(learner for learner in route.learners if node_of(learner) != node.number)
    if len(others) == len(route.learners):
        old = node.copy
        fresh = Copy(world.mint(node.number), node.route, rules, heeds_next=node.heeds_next, readmitted=True)
        if old is not None and not rules.copies_start_blank:
            fresh.inherit(old)
        node.copy = fresh
        yield world.random.random() * min(1.0, world.shape.page_delay)
        wanted = following(rules, route, route.voters, None, (*others, fresh.number), fresh.number)
        if node.copy is not fresh or not registry.change(route, wanted):
            return
        world.counts["learners named"] += 1
        node.meet(wanted)
    copy = node.copy
    while copy is not None and node.copy is copy and copy.number in node.route.told and copy.unsynced:
        yield 0.5
        done = yield from fill(node, copy)
        world.counts["learners filled"] += done


def operate_by_learners(node: Node, *, until_stable: bool = False) -> Generator[Wait, Any, None]:
    """One operator, or a leader of the slot: as :func:`sim.model.membership.operate`, by rules 21 to 25."""
    world = node.world
    yield 0.1 + world.random.random() * (0.1 if world.calm else 3.0)
    route = world.registry.route
    if world.registry.out:
        world.counts["registry out"] += 1
        return
    node.meet(route)
    if not route.joint:
        if until_stable:
            if route.learners:
                world.registry.change(route, following(world.rules, route, route.voters))
            return
        began = yield from _gather(node, route)
        if began is None:
            return
        route = began
    else:
        world.counts["moves taken up"] += 1
        if not until_stable and world.random.random() < 0.3:
            yield from abort(node, route)
            return
    done = yield from complete(node, route, {})
    if done:
        _leave(world, route)
    elif until_stable:
        yield from abort(node, route)


def _gather(node: Node, route: Route) -> Generator[Wait, Any, Route | None]:
    """Have new members learn, and begin the JOINT epoch; None if that did not come about."""
    world, rules = node.world, node.world.rules
    random = world.random
    kept, places = plan(world, route)
    if route.learners and random.random() < 0.8:
        # Somebody left them.
        places = [node_of(learner) for learner in route.learners]
        kept = kept[: max(len(route.voters) - len(places), 1)]
    voters = route.voters
    for place in places:
        target = world.nodes[place]

        def begin(target: Node) -> None:
            target.start(become_learner(target))

        world.transmit(node.number, place, begin, (target,))
    patience = random.choice((LOOKS, LOOKS, 2))
    for _ in range(patience):
        yield 1.0 + 6.0 * random.random()
        route = world.registry.route
        if route.joint or route.voters != voters:
            return None
        new = _new_members(world, route, places)
        if len(new) == len(places) and not any(map(world.is_mute, new)):
            break
    new = _new_members(world, route, places)
    if len(new) < len(places):
        world.counts["moves left before JOINT"] += 1
        return None
    if any(map(world.is_mute, new)):
        if random.random() < 0.7:
            world.counts["moves left before JOINT"] += 1
            return None
        world.counts["JOINT epochs with a mute member"] += 1
    joining = (*kept, *new)
    if joining == route.voters or len(joining) < min(3, len(route.voters)):
        return None
    joint = following(rules, route, route.voters, joining)
    if not world.registry.change(route, joint):
        return None
    world.counts["moves begun"] += 1
    node.meet(joint)
    return joint


def _new_members(world: World, route: Route, places: list[int]) -> list[CopyId]:
    """The learners on these nodes that still exist."""
    return [learner for learner in route.learners if node_of(learner) in places and world.exists(learner)]


def _leave(world: World, joint: Route) -> None:
    """Rule 25: who is no member any more gives up its copy, some time."""

    def give_up(node: Node, number: CopyId) -> None:
        if node.copy is not None and node.copy.number == number and number not in world.registry.route.told:
            node.copy = None
            world.counts["copies given up"] += 1

    for copy in joint.voters:
        if joint.joining is not None and copy not in joint.joining:
            world.after(world.random.random() * 60.0, give_up, world.nodes[node_of(copy)], copy)
