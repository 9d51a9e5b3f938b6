"""One seed, from beginning to end: draw a world, let it suffer, heal it, ask once more, judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from sim.model import shape
from sim.model.check import judge, progress_faults
from sim.model.client import Call, Clients
from sim.model.garbage import send_collector
from sim.model.learners import operate_by_learners
from sim.model.membership import operate
from sim.model.readmission import needs, rejoin
from sim.model.rules import ALL_RULES, Rules
from sim.model.shape import KINDS_APART, Ask, Kind, Shape
from sim.model.values import node_of
from sim.model.world import Node, Process, World

APART = 20
"""Of so many seeds, one has a second world, of a kind of :data:`~sim.model.shape.KINDS_APART`."""

SETTLE = 40.0
"""Longer than the slowest message: after it nothing from the time of the faults is under way."""

AFTERMATH: tuple[Ask, ...] = ("get", "get", "put", "versions")
"""Asked of each path when the faults are over. The reads come first: a write would cover up what is wrong."""


@dataclass(slots=True)
class Outcome:
    """What came of one seed.

    Attributes:
        seed: its number.
        kind: what kind of world it was.
        faults: what is wrong; empty when nothing is.
        counts: what happened how often.
        calls: the history.
        notes: what else happened, when it was traced.
        given_up: the search for an order was given up, so nothing was judged.
    """

    seed: int
    kind: Kind
    faults: list[str]
    counts: Counter[str]
    calls: list[Call]
    notes: list[tuple[float, str]] = field(default_factory=list)
    given_up: bool = False


def holds(seed: int) -> bool:
    """Whether promises are held (rfc/0009) in the world of this seed, if nobody says: in every other one."""
    return seed % 2 == 0


def run_seed(
    seed: int,
    rules: Rules = ALL_RULES,
    *,
    only: Kind | None = None,
    holding: bool | None = None,
    fixed: Mapping[str, Any] | None = None,
    tracing: bool = False,
) -> Outcome:
    """Everything that this seed decides. The same arguments give the same outcome, on every machine.

    Args:
        seed: its number.
        rules: which rules are kept.
        only: the kind of world, if the seed is not to choose it.
        holding: whether promises are held in it, if the seed's parity is not to say.
        fixed: fields of its :class:`~sim.model.shape.Shape` that the seed is not to choose.
        tracing: keep the events.
    """
    random = Random(seed)
    drawn = shape.draw(random, only, holding=holds(seed) if holding is None else holding)
    if fixed:
        drawn = replace(drawn, **fixed)
    world = World(random, drawn, rules, tracing=tracing)
    if drawn.readmits:
        world.on_restart = _rejoin
    clients = Clients(world)
    ends = _schedule(world, clients, drawn)
    world.run(lambda: False, ends)
    world.heal()
    world.note("the faults are over")
    calm_from = world.now
    world.after(SETTLE, lambda: None)
    world.run(lambda: clients.open == 0 and world.now >= calm_from + SETTLE, calm_from + 400.0)
    faults = _aftermath(world, clients, drawn)
    judgement = judge(clients.calls, world.retired)
    world.counts[f"seeds: {drawn.kind}"] += 1
    return Outcome(
        seed=seed,
        kind=drawn.kind,
        faults=judgement.faults + faults,
        counts=world.counts,
        calls=clients.calls,
        notes=world.notes,
        given_up=judgement.given_up,
    )


def run_all(seed: int) -> Iterator[Outcome]:
    """The world of a seed, and for one seed of :data:`APART` one of the kinds that no seed draws (they have seeds of their own)."""
    yield run_seed(seed)
    if seed % APART == 0:
        for kind in KINDS_APART:
            yield run_seed(seed // APART, only=kind)


def _schedule(world: World, clients: Clients, drawn: Shape) -> float:
    """Put on the heap what clients will ask and what will go wrong; when all of that is over."""
    random = world.random
    share = random.random
    now = 0.0
    calls: list[float] = []
    for _ in range(drawn.calls):
        now += share() * 2 * drawn.pause
        calls.append(now)
        world.after(now, clients.ask, random.choice(drawn.mix), random.randrange(drawn.paths))
    span = now + 10.0
    up_to = len(world.nodes)
    lasting = max(15.0, span * 0.3)
    for _ in range(drawn.crashes + drawn.disks_lost):
        world.after(share() * span, _crash, world, world.nodes[random.randrange(up_to)], share() * lasting)
    for _ in range(drawn.power_cuts):
        world.after(share() * span, _power_cut, world)
    for number in range(drawn.disks_lost):
        world.after(share() * span, _crash, world, world.nodes[number % drawn.voters], 1 + share() * 5, True)
    for _ in range(drawn.cuts):
        _schedule_cut(world, share() * span, share() * 2 * lasting)
    at = share() * span * 0.4
    for _ in range(drawn.moves):
        world.after(at, _operator, world)
        # Two operators at once, or one after the other.
        at = at + share() if share() < 0.4 else at + share() * span * 0.5
    for _ in range(drawn.collections):
        world.after(share() * (span + 15.0), send_collector, world, random.randrange(drawn.paths))
    for _ in range(drawn.outages):
        begin = share() * span
        world.after(begin, _registry_out, world, True)
        world.after(begin + share() * 20, _registry_out, world, False)
    for _ in range(drawn.losses):
        # Disks die under load: just after something was begun.
        at = random.choice(calls) + 1.0 + share() * 6.0
        world.after(at, _lose, world)
        if share() < drawn.losses_again:
            world.after(at + share() * 15.0, _lose, world)
    return span + 15.0


def _crash(world: World, node: Node, down_for: float, lose_disk: bool = False) -> None:
    world.crash(node, down_for=down_for, lose_disk=lose_disk)


def _lose(world: World) -> None:
    """A voter's disk is lost, if the guarantee allows it now; mostly, its node is back soon."""
    random = world.random
    node = world.nodes[node_of(random.choice(world.registry.route.voters))]
    world.crash(node, down_for=random.random() * world.shape.losses_down, lose_disk=True)


def _rejoin(node: Node) -> None:
    if needs(node):
        node.start(rejoin(node))


def _power_cut(world: World) -> None:
    world.counts["power cuts"] += 1
    for node in world.nodes[:-1] if world.shape.home else world.nodes:
        world.crash(node, down_for=1.0 + 4.0 * world.random.random(), lose_disk=False)


def _schedule_cut(world: World, begin: float, lasts: float) -> None:
    """A node, or some, or all the spare ones, lose their links to most others: what it sends, what it is sent, or both."""
    random, count = world.random, len(world.nodes)
    nodes = random.sample(range(count), world.shape.cut_nodes)
    if random.random() < world.shape.cuts_spare:
        nodes = list(range(world.shape.voters, count))
    way = random.choice(("out", "in", "both"))
    links: set[tuple[int, int]] = set()
    for node in nodes:
        others = [other for other in range(count) if other != node and random.random() < 0.8]
        links |= {(node, other) for other in others if way != "in"}
        links |= {(other, node) for other in others if way != "out"}

    def cut() -> None:
        if not world.calm:
            world.cut |= links
            world.counts["links cut both ways" if way == "both" else "links cut one way"] += 1

    def mend() -> None:
        world.cut -= links

    world.after(begin, cut)
    world.after(begin + lasts, mend)


def _operator(world: World) -> None:
    node = world.nodes[world.random.randrange(len(world.nodes))]
    if not node.up or world.calm:
        return
    process = node.start(operate_by_learners(node) if world.shape.learners_first else operate(node))
    world.operators.append(process)
    if world.random.random() < world.shape.moves_abandoned:

        def abandon() -> None:
            if process.kill():
                world.counts["operators that gave up in the middle"] += 1
                if world.registry.route.joint:
                    world.counts["JOINT epochs abandoned"] += 1

        world.after(world.random.random() * 20, abandon)


def _registry_out(world: World, out: bool) -> None:
    world.registry.out = out and not world.calm


def _aftermath(world: World, clients: Clients, drawn: Shape) -> list[str]:
    """Once nothing goes wrong any more, membership settles, writes and reads succeed, and majorities agree."""
    registry, nodes, random = world.registry, world.nodes, world.random

    def settled() -> bool:
        route = registry.route
        return (
            not route.joint
            and not route.learners
            and all(map(world.exists, route.voters))
            and not any(map(world.is_mute, route.voters))
        )

    for _ in range(8):
        if drawn.readmits:
            world.run(settled, world.now + 100.0)
        if settled():
            break
        operator = nodes[random.randrange(len(nodes))]
        settling = operate_by_learners if drawn.learners_first else operate
        _run_to_end(world, operator.start(settling(operator, until_stable=True)))
    if not settled():
        return [f"membership does not settle: {registry.route}"]
    faults: list[str] = []
    for path in range(drawn.paths):
        for kind in AFTERMATH:
            call = clients.ask(kind, path)
            _run_to_answer(world, call)
            if call.result is None:
                faults.append(f"no progress after the faults: {call}")
    return faults + progress_faults(world, drawn.paths)


def _run_to_end(world: World, process: Process) -> None:
    world.run(lambda: not process.alive, world.now + 500.0)


def _run_to_answer(world: World, call: Call) -> None:
    world.run(lambda: call.ended is not None, world.now + 300.0)
