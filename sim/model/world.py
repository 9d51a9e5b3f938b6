"""Time, the network, and what goes wrong with them.

One heap of events. A message may be lost, come late, come twice, or find its link cut (one way or both) or its node
down when it arrives. A crash of a node ends what it was coordinating and all that its copy kept in memory only; its
disk stays, unless the seed says that it is lost, and then what comes back is nobody's voter.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from random import Random
from typing import Any, NamedTuple

from sim.model.replica import Copy, Refused, Reply
from sim.model.rules import Rules
from sim.model.shape import Shape
from sim.model.values import NODES_MAX, Ballot, CopyId, Quorum, Record, Route, make_route, name_of, node_of, quorate

PHASE_TIMEOUT = 8.0
"""How long a coordinator waits for the answers of one phase."""


class Ask(NamedTuple):
    """Send one request to several copies and go on once a majority of each set has answered, or all did, or time is up.

    An empty ``needed`` waits for all.
    """

    copies: tuple[CopyId, ...]
    request: Callable[..., Reply]
    arguments: tuple[Any, ...]
    needed: tuple[Quorum, ...]


class Answers(NamedTuple):
    """What came back: by copy, and the refusals."""

    replies: dict[CopyId, Any]
    refusals: list[Refused]


Wait = Ask | float
"""What a process may wait for: answers, or a time."""

Steps = Generator[Wait, Any, Any]
"""A process: something that a node does over time, and that ends when the node crashes."""


class Process:
    """One running generator."""

    __slots__ = ("alive", "ended", "node", "steps")

    def __init__(self, node: Node, steps: Steps, ended: Callable[[Any], None] | None) -> None:
        self.node = node
        self.steps = steps
        self.ended = ended
        self.alive = True

    def resume(self, value: Any) -> None:
        """Go on until the next thing to wait for."""
        if not self.alive:
            return
        world = self.node.world
        try:
            wait = self.steps.send(value)
        except StopIteration as stop:
            self.alive = False
            self.node.processes.discard(self)
            if self.ended is not None:
                self.ended(stop.value)
            return
        if isinstance(wait, Ask):
            Asking(self, wait)
        else:
            world.after(wait, self.resume, None)

    def kill(self) -> bool:
        """End it where it stands; whether it was still running."""
        if not self.alive:
            return False
        self.alive = False
        self.node.processes.discard(self)
        self.steps.close()
        return True


class Asking:
    """One :class:`Ask` under way."""

    __slots__ = ("ask", "done", "process", "refusals", "replies")

    def __init__(self, process: Process, ask: Ask) -> None:
        self.process = process
        self.ask = ask
        self.done = False
        self.replies: dict[CopyId, Reply] = {}
        self.refusals: list[Refused] = []
        node = process.node
        world, source = node.world, node.number
        for copy in ask.copies:
            target = node_of(copy)
            world.transmit(source, target, world.nodes[target].serve, (source, ask.request, ask.arguments, self))
        world.after(PHASE_TIMEOUT, self.finish)

    def answer(self, reply: Reply) -> None:
        """A reply arrived; a doubled request may well have two. Only a copy's good word counts, and once.

        The node may hold another copy than the one that was asked. What that one says is no evidence of anything:
        it may remember what was collected since it was named.
        """
        if self.done or not self.process.alive:
            return
        ask = self.ask
        if type(reply) is Refused:
            self.refusals.append(reply)
        elif reply.copy in ask.copies or not self.process.node.world.rules.strangers_unheard:
            self.replies[reply.copy] = reply
        else:
            self.process.node.world.counts["answers of copies that nobody named"] += 1
            self.refusals.append(Refused(reply.copy, (0, 0, 0, 0), self.process.node.route))
        if (ask.needed and quorate(ask.needed, self.replies)) or (
            len(self.replies) + len(self.refusals) >= len(ask.copies)
        ):
            self.finish()

    def finish(self) -> None:
        """Enough, or too late."""
        if not self.done:
            self.done = True
            self.process.resume(Answers(self.replies, self.refusals))


class Held(NamedTuple):
    """A ballot that a read quorum has promised, having accepted this record. Good for one write (rfc/0009)."""

    ballot: Ballot
    record: Record
    version_floor: int


class Node:
    """One machine: perhaps a copy of the slot, and whatever it coordinates.

    Attributes:
        copy: on its disk; None when it has none.
        candidate: the incarnation that a new copy here would have, minted on this disk and never used twice.
        route: the newest route that it knows. Old ones are what makes this interesting.
        blind: the registry does not reach it while there are faults; it learns of routes from others only.
        counter: the highest ballot counter that it met.
        heeds_next: its program knows of ``next`` (rfc/0009).
        held: by path, the promises that it may begin a write with. Memory only.
        skew: how wrong its clock is.
    """

    __slots__ = (
        "blind",
        "candidate",
        "copy",
        "counter",
        "heeds_next",
        "held",
        "number",
        "processes",
        "route",
        "skew",
        "up",
        "world",
    )

    def __init__(self, world: World, number: int, route: Route) -> None:
        random, shape = world.random, world.shape
        self.world = world
        self.number = number
        self.route = route
        self.skew = (random.random() - 0.5) * 2 * shape.skew
        self.blind = random.random() < shape.blind
        self.up = True
        self.counter = 0
        self.heeds_next = shape.holding and random.random() >= shape.old_programs
        self.held: dict[int, Held] = {}
        self.candidate: CopyId | None = None
        self.processes: set[Process] = set()
        self.copy: Copy | None = None
        if number in route.voters:
            self.copy = Copy(number, route, world.rules, heeds_next=self.heeds_next)

    def clock(self) -> float:
        """What its clock shows."""
        return self.world.now + self.skew

    def start(self, steps: Steps, ended: Callable[[Any], None] | None = None) -> Process:
        """Run a process here."""
        process = Process(self, steps, ended)
        self.processes.add(process)
        process.resume(None)
        return process

    def meet(self, route: Route) -> None:
        """Learn of a route, and become the copy that it names if that is the one this disk offered."""
        if route.epoch > self.route.epoch:
            self.route = route
        if self.copy is not None and self.copy.readmitted:
            self.copy.follow(self.route)
        candidate = self.candidate
        if candidate is not None and candidate in route.told:
            self.candidate = None
            old = self.copy
            self.copy = Copy(candidate, route, self.world.rules, heeds_next=self.heeds_next)
            if old is not None and not self.world.rules.copies_start_blank:
                self.copy.inherit(old)
            self.world.note("node %d becomes %s", self.number, name_of(candidate))

    def serve(self, source: int, request: Callable[..., Reply], arguments: tuple[Any, ...], asking: Asking) -> None:
        """A request arrived. Its first argument is always the route by which it was sent."""
        self.meet(arguments[0])
        world = self.world
        if self.copy is None:
            reply: Reply = Refused(-1, (0, 0, 0, 0), self.route)
        elif self.copy.readmitted and not self.copy.answers(request):
            world.counts["requests to a mute copy"] += 1
            reply = Refused(self.copy.number, (0, 0, 0, 0), self.route, mute=True)
        else:
            reply = request(self.copy, *arguments)
        world.transmit(self.number, source, asking.answer, (reply,))

    def hear(self, copy: CopyId, request: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """A message arrived that wants no answer. It is for one copy, and for no other that lies here by now."""
        self.meet(arguments[0])
        if self.copy is None:
            return
        if self.copy.readmitted and not self.copy.hears(request):
            self.world.counts["messages to a mute copy"] += 1
            return
        if self.copy.number != copy:
            self.world.counts["messages for a copy that is no more"] += 1
            unaddressed = self.world.shape.learns_by_node and self.copy.readmitted and request is Copy.learn
            if self.world.rules.learns_are_addressed and not unaddressed:
                return
        request(self.copy, *arguments)

    def tell(self, copies: Iterable[CopyId], request: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Send a message that wants no answer."""
        world = self.world
        for copy in copies:
            target = node_of(copy)
            world.transmit(self.number, target, world.nodes[target].hear, (copy, request, arguments))


class World:
    """All there is in one seed."""

    __slots__ = (
        "_attempt",
        "_copies",
        "_heap",
        "_last",
        "_number",
        "calm",
        "counts",
        "cut",
        "nodes",
        "notes",
        "now",
        "on_restart",
        "operators",
        "random",
        "registry",
        "retired",
        "rules",
        "shape",
        "slow_links",
        "tracing",
    )

    def __init__(self, random: Random, shape: Shape, rules: Rules, *, tracing: bool = False) -> None:
        self.random = random
        self.shape = shape
        self.rules = rules
        self.tracing = tracing
        self.now = 0.0
        self.notes: list[tuple[float, str]] = []
        self.counts: Counter[str] = Counter()
        self.calm = False
        self.cut: set[tuple[int, int]] = set()
        self.retired: dict[int, list[tuple[float, int]]] = {}
        """Of each path: from when on which versions may be gone."""
        self._heap: list[tuple[float, int, int, int, Callable[..., object], tuple[Any, ...]]] = []
        self._number = 0
        self._attempt = 0
        self._copies = 0
        self._last = [0] * (NODES_MAX * NODES_MAX)
        route = make_route(rules, 1, tuple(range(shape.voters)))
        self.registry = Registry(self, route)
        self.nodes = [Node(self, number, route) for number in range(shape.nodes)]
        self.operators: list[Process] = []
        self.slow_links: set[tuple[int, int]] = set()
        if shape.slow_links:
            links = ((one, other) for one in range(shape.nodes) for other in range(shape.nodes))
            self.slow_links = {link for link in links if random.random() < shape.slow_links}
        self.on_restart: Callable[[Node], None] | None = None
        """What a node does first when it is back."""

    # ---- time

    def after(self, delay: float, action: Callable[..., object], *arguments: Any) -> None:
        """Do this later, whatever happens."""
        self._number += 1
        heapq.heappush(self._heap, (self.now + delay, self._number, -1, -1, action, arguments))

    def run(self, until: Callable[[], bool], limit: float) -> bool:
        """Let events happen; whether what was waited for came before the limit."""
        heap, pop, cut, nodes, last, counts = self._heap, heapq.heappop, self.cut, self.nodes, self._last, self.counts
        while heap and not until():
            event = pop(heap)
            now, number, source, target, action, arguments = event
            if now > limit:
                if self.shape.readmits:
                    # Else it is dropped: a mistake, but a harmless one there (a message is lost), and what the seeds of the
                    # other kinds mean depends on it. Here the dropped timer would be that of a copy that syncs for ever.
                    heapq.heappush(heap, event)
                return False
            self.now = now
            if source >= 0:
                if not nodes[target].up:
                    counts["met a node that was down"] += 1
                    continue
                link = source * NODES_MAX + target
                if cut and (source, target) in cut:
                    counts["cut off"] += 1
                    continue
                if number < last[link]:
                    counts["reordered"] += 1
                else:
                    last[link] = number
            action(*arguments)
        return until()

    # ---- the network

    def transmit(self, source: int, target: int, action: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        """Send a message, with everything that may happen to it."""
        self._number += 1
        random = self.random.random
        if source == target:
            heapq.heappush(self._heap, (self.now + 0.05, self._number, source, target, action, arguments))
            return
        if self.calm:
            event = (self.now + 0.3 + random(), self._number, source, target, action, arguments)
            heapq.heappush(self._heap, event)
            return
        shape, luck = self.shape, random()
        loss = shape.loss if target < shape.voters else max(shape.loss, shape.loss_spare)
        if luck < loss:
            self.counts["lost"] += 1
            return
        delay = 0.3 + 1.5 * random()
        if luck > 1.0 - shape.slow_share or (self.slow_links and (source, target) in self.slow_links):
            self.counts["slow"] += 1
            delay += shape.slow * random()
        heapq.heappush(self._heap, (self.now + delay, self._number, source, target, action, arguments))
        if luck < loss + shape.doubling:
            self.counts["doubled"] += 1
            self._number += 1
            again = self.now + delay + shape.slow * random()
            heapq.heappush(self._heap, (again, self._number, source, target, action, arguments))

    # ---- names

    def ballot(self, node: Node, route: Route) -> Ballot:
        """A ballot above all that the node has met."""
        node.counter += 1
        self._attempt += 1
        return (route.epoch, node.counter, node.number, self._attempt)

    def mint(self, node: int) -> CopyId:
        """An incarnation that no copy ever had."""
        self._copies += 1
        return node + NODES_MAX * self._copies

    def exists(self, copy: CopyId) -> bool:
        """Whether this copy still has its memory (or may yet begin to have one)."""
        node = self.nodes[node_of(copy)]
        return node.candidate == copy or (node.copy is not None and node.copy.number == copy)

    def is_mute(self, copy: CopyId) -> bool:
        """Whether this copy was readmitted and is not synced yet."""
        held = self.nodes[node_of(copy)].copy
        return held is not None and held.number == copy and held.unsynced

    # ---- faults

    def crash(self, node: Node, *, down_for: float, lose_disk: bool) -> None:
        """The node stops; later it starts again."""
        if not node.up:
            return
        self.counts["crashes"] += 1
        node.up = False
        node.held.clear()
        for process in list(node.processes):
            process.kill()
            self.counts["coordinators crashed with their node"] += 1
        if node.copy is not None:
            node.copy.forget_memory()
            if lose_disk and self._may_lose(node.copy.number):
                self._lose_disk(node)
        self.note("node %d crashes", node.number)
        self.after(down_for, self.restart, node)

    def restart(self, node: Node) -> None:
        """The node is back, with what its disk kept."""
        if node.up:
            return
        node.up = True
        self.counts["restarts"] += 1
        self.note("node %d is back", node.number)
        self.registry.announce_to(node)
        if self.on_restart is not None:
            self.on_restart(node)

    def _may_lose(self, copy: CopyId) -> bool:
        """The guarantee asks that no majority of a set of voters loses its state. A mute copy has not got it back yet."""
        route = self.registry.route
        for voters in (route.voters, route.joining or ()):
            lost = sum(1 for voter in voters if voter == copy or not self.exists(voter) or self.is_mute(voter))
            # Of two, the other one knows whatever was chosen.
            if copy in voters and lost > (1 if len(voters) == 2 else (len(voters) - 1) // 2):
                return False
        return True

    def _lose_disk(self, node: Node) -> None:
        self.counts["disks lost"] += 1
        if any(map(self.is_mute, self.registry.route.voters)):
            self.counts["disks lost while a copy was mute"] += 1
        self.note("node %d loses its disk", node.number)
        assert node.copy is not None
        node.candidate = None
        if self.rules.incarnations:
            node.copy = None
        else:
            node.copy = Copy(node.copy.number, node.copy.route, self.rules, heeds_next=node.heeds_next)

    def heal(self) -> None:
        """From now on nothing goes wrong any more."""
        self.calm = True
        self.cut.clear()
        self.registry.out = False
        for operator in self.operators:
            operator.kill()
        for node in self.nodes:
            self.restart(node)
            node.blind = False
            self.registry.announce_to(node)

    def retire(self, path: int, version: int) -> None:
        """From now on, these versions may be gone."""
        self.retired.setdefault(path, []).append((self.now, version))

    # ---- what is told

    def note(self, text: str, *arguments: object) -> None:
        """Keep what happened for whoever reads the trace."""
        if self.tracing:
            self.notes.append((self.now, text % arguments))


class Registry:
    """Holds the route. Slow at times, sometimes out; off the data path."""

    __slots__ = ("out", "route", "world")

    def __init__(self, world: World, route: Route) -> None:
        self.world = world
        self.route = route
        self.out = False

    def change(self, seen: Route, wanted: Route) -> bool:
        """Compare-and-set: ``wanted`` takes the place of ``seen``, or nothing happens."""
        world = self.world
        if self.out:
            world.counts["registry out"] += 1
            return False
        if self.route is not seen and world.rules.routes_by_compare:
            world.counts["route changes that lost the race"] += 1
            return False
        assert wanted.epoch == seen.epoch + 1
        self.route = wanted
        world.counts["routes changed"] += 1
        world.note("route: %s", wanted)
        for node in world.nodes:
            self.announce_to(node)
        return True

    def announce_to(self, node: Node) -> None:
        """The node's watch will show the route, some time."""
        world = self.world
        if node.blind:
            return
        delay = 0.2 if world.calm else world.random.random() * world.shape.route_delay
        world.after(delay, self._show, node)

    def _show(self, node: Node) -> None:
        if self.out:
            self.world.counts["registry out"] += 1
        elif node.up:
            node.meet(self.route)
