"""A seeded simulation of one slot: the real rounds and replicas over an unkind network, and what must hold of it.

``Simulation(seed).run()`` draws a cluster, a workload and its faults from the seed, plays them on a heap of
events, heals everything, reads by every majority, and raises :class:`Violation` when a promise was broken.

    python -m tests.unit.node.protocol.simulation FIRST COUNT [MUTANT]
"""

from __future__ import annotations

import heapq
import itertools
import sys
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from unittest import mock

import msgspec

import node.protocol.operations
import node.protocol.write
from amberblob.ballot import Ballot, SlotState
from amberblob.errors import (
    InsufficientStorage,
    NotFound,
    OutcomeUnknown,
    PreconditionFailed,
    QuorumUnavailable,
    VersionConflict,
)
from amberblob.manifest import Ranges, Record, Version, covers
from amberblob.mutations import Accepted, Chosen, Mutation
from amberblob.wire import (
    Commit,
    HistoryReply,
    Learnt,
    Prepare,
    Query,
    QueryHistory,
    RefusalReason,
    Refused,
    Reply,
    Request,
)
from node.protocol.hold import Hold, Holds
from node.protocol.operations import (
    Conditions,
    Delete,
    DeleteVersion,
    Finish,
    Operation,
    Put,
    Restore,
)
from node.protocol.quorum import Electorate
from node.protocol.read import NoQuorum, Read, ReadRound
from node.protocol.replica import BytesHere
from node.protocol.write import Action, Applied, AwaitRoute, Finished, Outcome, Rejected, Send, Spread, Wait, WriteRound
from sim.history import READS, Call
from sim.linearizability import linearizable
from tests.unit.node.protocol.model import SLOT, Broken, Disk, Replica, draft

PEER_TIMEOUT = 8.0
ROUND_TIMEOUT = 50.0
TRIES_MAX = 3
FINISH_TRIES_MAX = 4

TOLERATE_LEARNT_COPIES = False
"""Count a copy that answered a COMMIT with "accepted" only because it had learnt that very ballot, without its bytes.

A finding: with a write quorum above a majority such an answer is counted as a durable copy, and it is none.
"""


class Violation(AssertionError):
    """A promise was broken."""


# ---- the replicas


class SimDisk(Disk):
    """The model's disk, which tells the simulation what was accepted."""

    def __init__(self, state: SlotState, node: str, accepted: Callable[[str, Accepted], None]) -> None:
        super().__init__(state)
        self.node = node
        self.told = accepted

    def apply(self, mutation: Mutation) -> None:
        super().apply(mutation)
        if isinstance(mutation, Accepted):
            self.told(self.node, mutation)
        elif isinstance(mutation, Chosen) and mutation.record is not None and mutation.record.added is not None:
            # As in the stores: what is known to be chosen is referenced, even if its bytes were given up here.
            self.aborted.discard(mutation.record.added.blob_id)

    def discard(self, blob_id: str) -> None:
        if blob_id not in self.referenced:
            self.aborted.add(blob_id)
            self.bytes_of.discard(blob_id)


class SimReplica(Replica):
    """A replica that does what ``node.replica`` does around the state machine."""

    disk: SimDisk
    full = False

    def __init__(self, sim: Simulation, node: str, state: SlotState, *, promises_max: int) -> None:
        super().__init__(node, promises_max=promises_max)
        self.sim = sim
        self.disk = SimDisk(state, node, sim.on_accepted)
        self.restart()

    def handle(self, request: Request) -> Reply:
        disk = self.disk
        if self.sim.is_mute(self.node):
            known = self.sim.nodes[self.node].epoch
            outdated = isinstance(request, Prepare | Commit | Query | QueryHistory) and request.epoch < known
            return self._outdated(known) if outdated else self._refused("unsynced")
        match request:
            case Prepare():
                if request.body_bytes and self.full:
                    return self._refused_full()
                register = disk.register(request.path)
                record, prior = register.record, None
                if request.write_id and record is not None and record.revision > len(record.writes):
                    prior = disk.write_ids.get(request.path, {}).get(request.write_id)
                return self._act(self.slot.prepare(disk.state, request, register, prior))
            case Commit():
                added = request.record.added
                here = BytesHere(durable=True)
                if added is not None:
                    blob_id = added.blob_id
                    if disk.register(request.path).accepted == request.ballot and blob_id not in disk.bytes_of:
                        self.sim.learnt_copies.add((self.node, blob_id))
                    if request.body is not None and self.full and not request.holders:
                        return self._refused_full()
                    if request.body is None and request.holders:
                        request = self._with_bytes(request, added)
                    if request.body is not None:
                        here = BytesHere(durable=False)
                    else:
                        here = BytesHere(durable=blob_id in disk.bytes_of, aborted=blob_id in disk.aborted)
                return self._act(self.slot.commit(disk.state, request, disk.register(request.path), here))
            case _:
                return super().handle(request)

    def _with_bytes(self, request: Commit, added: Version) -> Commit:
        blob_id = added.blob_id
        if blob_id in self.disk.bytes_of or not self.sim.can_pull(self.node, request.holders, blob_id):
            return request
        if added.inline:
            return msgspec.structs.replace(request, body=b"x")
        self.disk.bytes_of.add(blob_id)
        self.disk.aborted.discard(blob_id)  # Staged(revived): fetched anew for a record that refers to it.
        return request

    def _outdated(self, epoch: int) -> Reply:
        return msgspec.structs.replace(self._refused("epoch"), epoch=epoch)

    def _refused_full(self) -> Reply:
        return self._refused("disk-full")

    def _refused(self, reason: RefusalReason) -> Reply:
        state = self.disk.state
        return Refused(incarnation=state.incarnation, reason=reason, ballot=state.ballot_floor, epoch=state.epoch)


# ---- the simulation


@dataclass(slots=True)
class Shape:
    """What a seed draws beside the course of events."""

    nodes: str
    coordinators: str
    write_quorum: int
    read_quorum: int
    paths: tuple[str, ...]
    loss: float
    learn_loss: float
    duplicate: float
    abandon: float
    slow: dict[str, float]
    gap: float
    operations: int
    recent_writes: int
    history_page: int
    promises_max: int
    version_floor: int
    liked: str
    warm: int
    rotate: float
    """One replica after another is cut off, for about so long each; 0: none."""
    retry_after: float
    down: float
    crashes: int
    resolves: int
    sticky: bool = False
    """Most calls go to the last node that is up, so that its held promises are used. Never drawn."""

    @classmethod
    def draw(cls, random: Random) -> Shape:
        nodes = "abc" if random.random() < 0.8 else "abcde"
        majority = len(nodes) // 2 + 1
        return cls(
            nodes=nodes,
            coordinators=nodes + ("x" if random.random() < 0.2 else ""),
            write_quorum=majority if random.random() < 0.75 else random.randint(majority, len(nodes)),
            read_quorum=0 if random.random() < 0.85 else random.randint(majority, len(nodes)),
            paths=("p",) if random.random() < 0.75 else ("p", "q"),
            loss=random.choice((0.0, 0.02, 0.1, 0.2)),
            learn_loss=random.choice((0.0, 0.3, 0.9)),
            duplicate=random.choice((0.0, 0.0, 0.1)),
            abandon=random.choice((0.0, 0.1, 0.3)),
            slow={node: 5.0 if random.random() < 0.15 else 1.0 for node in nodes},
            gap=random.choice((0.5, 3.0, 8.0)),
            operations=random.randint(6, 18),
            recent_writes=random.choice((2, 2, 3, 8)),
            history_page=random.choice((1, 2, 100)),
            promises_max=random.choice((1, 4096, 4096)),
            version_floor=random.choice((0, 0, 0, 3)),
            liked=random.choice(("put", "delete", "restore", "read", "mixed")),
            warm=random.choice((0, 0, 2, 4)),
            rotate=random.choice((0.0, 0.0, 15.0, 30.0)),
            retry_after=random.choice((3.0, 8.0, 30.0)),
            down=random.choice((0.5, 3.0, 25.0)),
            crashes=random.choice((0, 1, 2, 4, 10)),
            resolves=random.choice((0, 2, 4, 20)),
        )


KINDS = {
    "put": {"put": 8, "delete": 1, "delete-version": 1, "restore": 1, "read": 2, "read-version": 1, "read-all": 1},
    "delete": {"put": 4, "delete": 3, "delete-version": 3, "restore": 1, "read": 2, "read-version": 1, "read-all": 1},
    "restore": {"put": 4, "delete": 3, "delete-version": 2, "restore": 5, "read": 2, "read-version": 1, "read-all": 1},
    "read": {"put": 4, "delete": 1, "delete-version": 0, "restore": 0, "read": 6, "read-version": 1, "read-all": 1},
    "mixed": {"put": 5, "delete": 1, "delete-version": 1, "restore": 1, "read": 3, "read-version": 1, "read-all": 1},
}
KIND_CHOICES = {
    liked: [kind for kind, weight in weights.items() for _ in range(weight)] for liked, weights in KINDS.items()
}


@dataclass(slots=True, eq=False)
class Node:
    """A coordinator, and perhaps a replica."""

    name: str
    replica: SimReplica
    up: bool = True
    epoch: int = 1
    runs: set[Run] = field(default_factory=set)
    holds: Holds = field(default_factory=Holds)

    def held(self, round_: WriteRound) -> Hold | None:
        """The promise that this node holds, as the coordinator takes it: a crash forgets it."""
        hold = self.holds.take(round_.path)
        slot = self.replica.slot
        voter = self.replica.sim.votes(self.name)
        return hold if hold is not None and (not voter or slot.promises(round_.path, hold.ballot)) else None


class Run:
    """A round on its way, at one node."""

    __slots__ = ("alive", "ended", "node", "round", "sim")

    def __init__(
        self, sim: Simulation, node: Node, round_: WriteRound, ended: Callable[[Outcome | None], None]
    ) -> None:
        self.sim = sim
        self.node = node
        self.round = round_
        self.ended = ended
        self.alive = True
        node.runs.add(self)
        sim.at(ROUND_TIMEOUT, self.deadline)
        self.carry_out(round_.start(node.held(round_)))

    def carry_out(self, actions: list[Action]) -> None:
        sim = self.sim
        finished: Finished | None = None
        for action in actions:
            match action:
                case Send():
                    sim.send(self, action)
                case Wait():
                    pause = min(12.0, 0.5 * 2.0 ** min(action.attempt, 6)) * (0.25 + 0.75 * sim.random.random())
                    sim.at(pause, self.wake, action.token)
                case AwaitRoute():
                    self.look_for_route(action.epoch)
                case Spread():
                    sim.spread(self.node.name, action)
                case Finished():
                    assert finished is None, "finished twice"
                    finished = action
        if finished is not None:
            self.close()
            slot = self.node.replica.slot
            slot.counter_seen = max(slot.counter_seen, self.round.counter)
            if self.round.hold is not None:
                self.node.holds.keep(self.round.path, self.round.hold)
            self.ended(finished.outcome)

    def close(self) -> None:
        self.alive = False
        self.node.runs.discard(self)

    def abandon(self) -> None:
        """The coordinator dies, or forgets this round."""
        if self.alive:
            self.close()
            self.ended(None)

    def answer(self, node: str, token: int, reply: Reply) -> None:
        if self.alive:
            self.carry_out(self.round.answer(node, token, reply))

    def failed(self, node: str, token: int) -> None:
        if self.alive:
            self.carry_out(self.round.failed(node, token, "timeout"))

    def wake(self, token: int) -> None:
        if self.alive:
            self.carry_out(self.round.wake(token))

    def look_for_route(self, epoch: int) -> None:
        """The registry tells every node in the end, each at its own time."""
        if not self.alive:
            return
        if self.node.epoch >= epoch:
            self.sim.at(0.0, self.reroute)
        else:
            self.sim.at(0.5, self.look_for_route, epoch)

    def reroute(self) -> None:
        if self.alive:
            self.carry_out(self.round.reroute(self.sim.electorates[self.node.epoch]))

    def deadline(self) -> None:
        if self.alive:
            self.carry_out(self.round.deadline())


class Simulation:
    """One seed. ``trace``: keep a line of text for every event. ``fixed``: fields of the shape that are not drawn."""

    amnesia = False
    """A mutant: a restarted replica comes back with an empty memory and still votes."""
    forgets_promises = False
    """A mutant: a restarted replica does not raise its floor to the ceiling."""

    def __init__(self, seed: int, *, trace: bool = False, **fixed: Any) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self.shape = shape = replace(Shape.draw(random), **fixed)
        self.log: list[str] | None = [] if trace else None
        self.now = 0.0
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.ticks = 0
        self.calls: list[Call] = []
        self.cut: set[tuple[str, str]] = set()
        self.calm = False
        self.reachable: frozenset[str] | None = None
        self.accepts: dict[tuple[str, Ballot], set[str]] = {}
        self.chosen: dict[str, dict[Ballot, Record]] = {path: {} for path in shape.paths}
        self.learnt_copies: set[tuple[str, str]] = set()
        self.ids = 0
        self.given_up = 0
        self.stuck: list[str] = []
        self.nodes = {
            name: Node(
                name,
                SimReplica(
                    self,
                    name,
                    SlotState(slot=SLOT, incarnation=f"{name}/1", version_floor=shape.version_floor),
                    promises_max=shape.promises_max,
                ),
            )
            for name in shape.coordinators
        }
        self.electorates = {epoch: self._electorate(epoch) for epoch in (1, 2)}
        self.last_epoch = 2

    def _electorate(self, epoch: int) -> Electorate:
        return Electorate(
            slot=SLOT,
            epoch=epoch,
            voters={name: f"{name}/1" for name in self.shape.nodes},
            write_quorum=self.shape.write_quorum,
            read_quorum=self.shape.read_quorum,
        )

    def is_mute(self, name: str) -> bool:
        """Whether the node's copy has no voice: see ``readmission.py``."""
        return False

    def votes(self, name: str) -> bool:
        """Whether the node has a copy that counts, as far as it knows."""
        return name in self.shape.nodes

    def may_accept(self, name: str, ballot: Ballot) -> bool:
        """Whether the node is a voter in the ballot's epoch."""
        return name in self.shape.nodes

    def is_enough(self, epoch: int, who: Collection[str]) -> bool:
        """Whether accepts of these in that epoch make a record chosen. (Counted here: the electorate may be mutated.)"""
        return len(who) >= len(self.shape.nodes) // 2 + 1

    def staged_at(self, node: Node) -> frozenset[str] | None:
        """The nodes that take a body in; None: too few can."""
        shape = self.shape
        up = [name for name in shape.nodes if self.nodes[name].up and not self.nodes[name].replica.full]
        up = [name for name in up if not self.is_mute(name)]
        if len(up) < shape.write_quorum:
            return None
        return frozenset(self.random.sample(up, self.random.randint(shape.write_quorum, len(up))))

    def last_readers(self) -> Iterable[tuple[str, ...]]:
        """The sets of nodes, each of which is enough to read by, at the end."""
        return itertools.combinations(self.shape.nodes, self.shape.read_quorum or len(self.shape.nodes) // 2 + 1)

    def note(self, text: str) -> None:
        if self.log is not None:
            self.log.append(f"{self.now:7.2f} {text}")

    def at(self, delay: float, what: Callable[..., None], *args: Any) -> None:
        self.ticks += 1
        heapq.heappush(self.heap, (self.now + delay, self.ticks, what, args))

    # ---- the network

    def delay(self, source: str, target: str) -> float:
        if source == target:
            return 0.01
        slow = self.shape.slow
        return self.random.expovariate(1.0) * max(slow.get(source, 1.0), slow.get(target, 1.0)) + 0.05

    def drops(self, source: str, target: str, loss: float) -> bool:
        if source == target:
            return False
        return (source, target) in self.cut or (not self.calm and self.random.random() < loss)

    def send(self, run: Run, action: Send) -> None:
        source, target = run.node.name, action.node
        sent = self.now
        if self.log is not None:
            self.note(f"{source}->{target} {brief(action.request)} t{action.token}")
        if self.drops(source, target, self.shape.loss):
            self.at(PEER_TIMEOUT, run.failed, target, action.token)
        else:
            self.at(self.delay(source, target), self.deliver, run, action, sent, True)
        if self.shape.duplicate and not self.calm and self.random.random() < self.shape.duplicate:
            self.at(2 * self.delay(source, target) + self.random.random() * 10, self.deliver, run, action, sent, False)

    def deliver(self, run: Run, action: Send, sent: float, first: bool) -> None:
        source, target = run.node.name, action.node
        node = self.nodes[target]
        late = max(0.0, sent + PEER_TIMEOUT - self.now)
        if not node.up or (source, target) in self.cut:
            if first:
                broken = not node.up and self.random.random() < 0.5
                self.at(0.05 if broken else late, run.failed, target, action.token)
            return
        reply = node.replica.handle(action.request)
        if self.log is not None:
            self.note(f"    {target} answers {source}: {brief(reply)} to {brief(action.request)} t{action.token}")
        if self.drops(target, source, self.shape.loss):
            if first:
                self.at(late, run.failed, target, action.token)
            return
        back = self.delay(target, source)
        if first and back > late:
            self.at(late, run.failed, target, action.token)
        else:
            self.at(back, run.answer, target, action.token, reply)

    def spread(self, source: str, action: Spread) -> None:
        if self.drops(source, action.node, self.shape.learn_loss):
            return
        self.at(self.random.random() + self.delay(source, action.node), self.learn, action.node, action.item)

    def learn(self, name: str, item: Learnt) -> None:
        node = self.nodes[name]
        if not node.up or self.is_mute(name):
            return
        self.note(f"    {name} learns {item.ballot} {'whole' if item.record else 'bare'}")
        node.replica.learn(item)
        added = item.record.added if item.record is not None else None
        if added is not None and self.random.random() < 0.7:
            self.at(self.random.random() * 10, self.complete, name, added.blob_id, item.holders)

    def complete(self, name: str, blob_id: str, holders: tuple[str, ...]) -> None:
        """The background pull of what was learnt without its bytes."""
        node = self.nodes[name]
        if node.up and blob_id not in node.replica.disk.aborted and self.can_pull(name, holders, blob_id):
            node.replica.disk.bytes_of.add(blob_id)

    def can_pull(self, name: str, holders: tuple[str, ...], blob_id: str) -> bool:
        """Whether one of the holders, or another voter, gives the bytes."""
        for other in (*holders, *self.shape.nodes):
            node = self.nodes[other]
            reachable = node.up and (name, other) not in self.cut and (other, name) not in self.cut
            if self.reachable is not None:
                reachable = other in self.reachable
            if reachable and blob_id in node.replica.disk.bytes_of:
                return True
        return False

    # ---- what is watched while it runs

    def on_accepted(self, name: str, mutation: Accepted) -> None:
        if not self.may_accept(name, mutation.ballot):
            raise Violation(f"{name} is no voter")
        added = mutation.record.added
        disk = self.nodes[name].replica.disk
        if added is not None and added.blob_id not in disk.bytes_of:
            raise Violation(f"{name} accepted {added.blob_id} without its bytes")
        who = self.accepts.setdefault((mutation.path, mutation.ballot), set())
        who.add(name)
        if self.is_enough(mutation.ballot.epoch, who):
            self.chosen[mutation.path].setdefault(mutation.ballot, mutation.record)

    def check_chain(self, path: str) -> None:
        """Chosen records, by ballot: each is the one before, or made from it."""
        before: Record | None = None
        for ballot, record in sorted(self.chosen[path].items()):
            if before is None:
                if record.revision != 1 or record.previous is not None:
                    raise Violation(f"the first chosen record, at {ballot}, is {record}")
            elif record != before and (
                record.revision != before.revision + 1
                or record.previous != before.added
                or record.version_max < before.version_max
                or record.writes[:-1] != before.writes[-(len(record.writes) - 1) :]
            ):
                raise Violation(f"chosen at {ballot}: {record}, but before it {before}")
            before = record

    # ---- faults

    def crash(self, name: str, back_after: float) -> None:
        node = self.nodes[name]
        if not node.up:
            return
        self.note(f"{name} crashes")
        node.up = False
        node.holds = Holds()
        self.at(back_after, self.restart, name)
        for run in sorted(node.runs, key=lambda run: run.round._operation_id):
            run.abandon()

    def restart(self, name: str) -> None:
        node = self.nodes[name]
        if node.up:
            return
        self.note(f"{name} restarts")
        replica = node.replica
        if self.amnesia:
            replica.disk = SimDisk(SlotState(slot=SLOT, incarnation=f"{name}/1"), name, self.on_accepted)
        replica.restart()
        if self.forgets_promises:
            replica.slot._floor = replica.disk.state.ballot_floor
        node.up = True

    def partition(self, links: set[tuple[str, str]], length: float) -> None:
        self.note(f"cut {sorted(links)}")
        self.cut |= links
        self.at(length, self.heal, links)

    def heal(self, links: set[tuple[str, str]]) -> None:
        self.cut -= links

    def fill(self, name: str, length: float) -> None:
        """The disk has no room for bytes for a while."""
        self.note(f"{name} is full")
        self.nodes[name].replica.full = True
        self.at(length, self.empty, name)

    def empty(self, name: str) -> None:
        self.nodes[name].replica.full = False

    def raise_epoch(self, name: str) -> None:
        self.nodes[name].epoch = 2

    def sweep(self, name: str) -> None:
        """Give up one staged blob that nothing refers to here. (Really a day later, here at any time.)"""
        node = self.nodes[name]
        loose = sorted(node.replica.disk.bytes_of - node.replica.disk.referenced)
        if node.up and loose:
            blob_id = self.random.choice(loose)
            self.note(f"{name} sweeps {blob_id}")
            node.replica.disk.discard(blob_id)

    def discard(self, name: str, blob_id: str) -> None:
        if self.nodes[name].up:
            self.note(f"{name} discards {blob_id}")
            self.nodes[name].replica.disk.discard(blob_id)

    def resolve(self, name: str, path: str) -> None:
        """What the resolver of a node does: finish what is not known to be chosen."""
        node = self.nodes[name]
        register = node.replica.disk.register(path)
        if node.up and register.accepted is not None and not register.chosen:
            self.start_round(node, path, Finish(), lambda outcome: None, hear=name)

    def plan(self) -> None:
        """Draw the workload and the faults."""
        random, shape = self.random, self.shape
        at = 0.0
        for number in range(1, shape.operations + 1):
            at += 12.0 if number <= shape.warm else random.expovariate(1.0 / shape.gap)
            self.at(at, self.invoke, number)
        end = at + 20
        for _ in range(shape.crashes):
            self.at(random.random() * end, self.crash, random.choice(shape.coordinators), random.random() * shape.down)
        at, one = 0.0, ""
        while shape.rotate and at < end:
            length = shape.rotate * (0.5 + random.random())
            one = random.choice([name for name in shape.nodes if name != one])
            others = [name for name in shape.coordinators if name != one]
            self.at(at, self.partition, {(one, o) for o in others} | {(o, one) for o in others}, length)
            at += length
        for _ in range(random.choice((0, 1, 2))):
            links: set[tuple[str, str]] = set()
            one = random.choice(shape.coordinators)
            if random.random() < 0.4:
                links.add((one, random.choice(shape.nodes)))
            elif random.random() < 0.5:
                others = [name for name in shape.coordinators if name != one]
                links |= {(one, other) for other in others} | {(other, one) for other in others}
            else:
                side = set(random.sample(shape.coordinators, random.randint(1, len(shape.coordinators) - 1)))
                links |= {(a, b) for a in side for b in shape.coordinators if b not in side}
                links |= {(b, a) for a, b in links}
            self.at(random.random() * end, self.partition, links, random.random() * 30)
        if random.random() < 0.15:
            for name in shape.coordinators:
                self.at(random.random() * end, self.raise_epoch, name)
        for _ in range(random.choice((0, 0, 0, 1, 3))):
            self.at(random.random() * end, self.fill, random.choice(shape.nodes), random.random() * 40)
        for _ in range(random.choice((0, 0, 3))):
            self.at(random.random() * (end + 60), self.sweep, random.choice(shape.nodes))
        for _ in range(shape.resolves):
            self.at(random.random() * end, self.resolve, random.choice(shape.nodes), random.choice(shape.paths))

    # ---- clients

    def some_version(self, path: str) -> int:
        chosen = self.chosen[path]
        if chosen and self.random.random() < 0.6:
            ranges = (record := chosen[max(chosen)]).live + record.taken
            if ranges:
                return self.random.randint(*self.random.choice(ranges))
        known = [call.result[1] for call in self.calls if call.path == path and call.result and call.result[0] == "ok"]
        if known and self.random.random() < 0.85:
            return max(1, self.random.choice(known))
        return self.random.randint(1, 1 + self.shape.version_floor + len(self.calls))

    def draw_call(self, number: int) -> Call:
        random, shape = self.random, self.shape
        path = random.choice(shape.paths)
        kind = "put" if number <= shape.warm else random.choice(KIND_CHOICES[shape.liked])
        call = Call(number, path, kind, self.now)
        if kind in ("delete-version", "read-version") or (kind == "restore" and random.random() < 0.5):
            call.version = self.some_version(path)
        elif kind == "put":
            call.inline = random.random() < 0.5
            if random.random() < 0.12:
                call.version = self.some_version(path) + random.choice((0, 1, 2, 4))
        if kind not in READS:
            if number > shape.warm and random.random() < 0.3:
                etags = [other.etag for other in self.calls if other.path == path and other.kind == "put"]
                call.conditions = random.choice(
                    (
                        Conditions(absent=True),
                        Conditions(etags=("*",)),
                        Conditions(version=random.choice((0, self.some_version(path)))),
                        Conditions(etags=tuple(random.sample(etags[-4:], min(2, len(etags))))),
                        Conditions(version=self.some_version(path)),
                    )
                )
            if random.random() < 0.75:
                call.write_id = f"w{number}"
        return call

    def invoke(self, number: int) -> None:
        call = self.draw_call(number)
        self.calls.append(call)
        self.note(f"invoke {call}")
        if call.kind in READS:
            self.read(call)
        else:
            self.try_write(call)

    def up_node(self) -> Node | None:
        up = [node for node in self.nodes.values() if node.up]
        if up and self.shape.sticky and self.random.random() < 0.7:
            return up[-1]
        return self.random.choice(up) if up else None

    def start_round(
        self, node: Node, path: str, operation: Operation, ended: Callable[[Outcome | None], None], **options: Any
    ) -> Run:
        self.ids += 1
        operation_id = f"o{self.ids:04}"
        write_id = options.pop("write_id", None)
        round_ = WriteRound(
            electorate=self.electorates[node.epoch],
            node=node.name,
            path=path,
            operation=operation,
            operation_id=operation_id,
            write_id=write_id or operation_id,
            now_ms=int(self.now * 10),
            counter=node.replica.slot.counter_seen,
            may_be_retry=write_id is not None,
            **options,
        )
        return Run(self, node, round_, ended)

    def try_write(self, call: Call) -> None:
        random, shape = self.random, self.shape
        node = self.up_node()
        call.tries += 1
        if node is None:
            self.after_failure(call)
            return
        options: dict[str, Any] = {}
        staged: tuple[str, frozenset[str]] | None = None
        operation: Operation
        if call.kind == "put":
            blob_id = f"b{call.number}.{call.tries}"
            version = msgspec.structs.replace(draft(blob_id, call.etag), inline=call.inline)
            operation = Put(draft=version, requested=call.version, conditions=call.conditions)
            if call.inline:
                options["body"] = b"x"
            else:
                holders = self.staged_at(node)
                if holders is None:
                    self.after_failure(call)
                    return
                for name in sorted(holders):
                    self.nodes[name].replica.disk.bytes_of.add(blob_id)
                options["holders"] = holders
                staged = (blob_id, holders)
        elif call.kind == "delete":
            operation = Delete(conditions=call.conditions)
        elif call.kind == "delete-version":
            assert call.version is not None
            operation = DeleteVersion(version=call.version, conditions=call.conditions)
        else:
            operation = Restore(version=call.version, conditions=call.conditions)
        run = self.start_round(
            node,
            call.path,
            operation,
            lambda outcome: self.write_ended(call, node, staged, outcome),
            write_id=call.write_id,
            **options,
        )
        if shape.abandon and random.random() < shape.abandon:
            self.at(random.expovariate(0.4), run.abandon)

    def write_ended(
        self, call: Call, node: Node, staged: tuple[str, frozenset[str]] | None, outcome: Outcome | None
    ) -> None:
        if outcome is None or (isinstance(outcome, Rejected) and isinstance(outcome.error, OutcomeUnknown)):
            self.note(f"#{call.number} unknown")
            call.doubtful = True
            self.after_failure(call)
            return
        if staged is not None and not (isinstance(outcome, Applied) and self.is_chosen(call.path, staged[0])):
            blob_id, holders = staged
            for name in sorted(holders):
                if not self.drops(node.name, name, self.shape.loss):
                    self.at(self.delay(node.name, name), self.discard, name, blob_id)
        if isinstance(outcome, Applied):
            self.answered(call, ("ok", outcome.mark.version) if outcome.mark is not None else ("same",))
            self.check_copies(call, outcome)
            return
        error = outcome.error
        if isinstance(error, QuorumUnavailable | InsufficientStorage):
            self.after_failure(call)
        elif isinstance(error, PreconditionFailed | VersionConflict | NotFound):
            self.answered(call, (error.status,))
        else:
            raise Violation(f"{call} ended with {error!r}")

    def is_chosen(self, path: str, blob_id: str) -> bool:
        return any(
            record.added is not None and record.added.blob_id == blob_id for record in self.chosen[path].values()
        )

    def answered(self, call: Call, result: tuple[Any, ...]) -> None:
        call.ended, call.result = self.now, result
        self.note(f"answered {call}")

    def after_failure(self, call: Call) -> None:
        """A try ended badly; its round is over. Come again, or leave it."""
        if call.write_id is not None and call.tries < TRIES_MAX and self.random.random() < 0.8 and not self.calm:
            self.at(self.random.expovariate(1.0 / self.shape.retry_after), self.try_write, call)
            return
        if not call.doubtful:
            call.void = True
            call.ended = self.now

    def check_copies(self, call: Call, applied: Applied) -> None:
        """What an acknowledgement promises: the bytes, or the tombstones, on a write quorum."""
        if call.kind == "put":
            assert applied.mark is not None
            blobs = {
                record.head.blob_id
                for record in self.chosen[call.path].values()
                if record.op == "put" and record.head is not None and record.writes[-1] == applied.mark
            }
            if len(blobs) != 1:
                raise Violation(f"{call} is acknowledged, and chosen are {sorted(blobs)}")
            (blob_id,) = blobs
            have = self.copies(blob_id)
        elif applied.fresh:
            assert applied.record is not None
            have = [
                name
                for name in self.shape.nodes
                if (record := self.nodes[name].replica.disk.register(call.path).record) is not None
                and record.revision >= applied.record.revision
            ]
        else:
            return
        if len(have) < self.shape.write_quorum:
            raise Violation(f"{call} is acknowledged with copies on {have} only")

    def copies(self, blob_id: str) -> list[str]:
        return [
            name
            for name in self.shape.nodes
            if blob_id in self.nodes[name].replica.disk.bytes_of
            or (TOLERATE_LEARNT_COPIES and (name, blob_id) in self.learnt_copies)
        ]

    # ---- reads

    def read(self, call: Call, tries: int = 0) -> None:
        node = self.up_node()
        if node is None:
            self.read_failed(call)
            return
        electorate = self.electorates[node.epoch]
        request: Query | QueryHistory
        if call.kind == "read":
            request = Query(slot=SLOT, path=call.path, epoch=electorate.epoch)
        else:
            request = QueryHistory(slot=SLOT, path=call.path, epoch=electorate.epoch, version=call.version)
        reader = Reader(self, node, call, ReadRound(electorate), tries)
        for name in electorate.voters:
            self.send(reader, Send(name, request, 0))  # type: ignore[arg-type]

    def read_failed(self, call: Call) -> None:
        call.void = True
        call.ended = self.now

    def read_ended(self, call: Call, node: Node, result: Read | NoQuorum, tries: int) -> None:
        if isinstance(result, NoQuorum):
            self.read_failed(call)
        elif result.finding.decided:
            self.answered(call, ("read", told_by(call, result.finding.record, result.replies)))
        elif tries >= FINISH_TRIES_MAX:
            self.read_failed(call)
        else:

            def finished(outcome: Outcome | None) -> None:
                if not isinstance(outcome, Applied):
                    self.read_failed(call)
                elif call.kind == "read":
                    self.answered(call, ("read", outcome.record))
                else:
                    self.read(call, tries + 1)

            self.start_round(node, call.path, Finish(), finished)

    # ---- the end

    def run(self) -> Simulation:
        with (
            mock.patch.object(node.protocol.operations, "RECENT_WRITES_MAX", self.shape.recent_writes),
            mock.patch.object(node.protocol.write, "HISTORY_PAGE", self.shape.history_page),
        ):
            try:
                self.plan()
                self.play()
                self.settle()
            except Broken as error:
                raise Violation(str(error)) from error
            self.check()
        return self

    def play(self) -> None:
        heap = self.heap
        while heap:
            self.now, _, what, args = heapq.heappop(heap)
            what(*args)

    def settle(self) -> None:
        """Heal everything; then read by every majority."""
        self.calm = True
        self.cut.clear()
        for name, node_ in self.nodes.items():
            if not node_.up:
                self.restart(name)
        self.play()
        number = 0
        for path in self.shape.paths:
            for names in self.last_readers():
                self.now += 1.0
                number -= 1
                call = Call(number, path, "read-all", self.now)
                self.calls.append(call)
                self.reachable = frozenset(names)
                told = self.read_by(path, self.reachable)
                if told is None:
                    self.stuck.append(f"{path} cannot be read by {''.join(names)}")
                    call.void = True
                    continue
                self.now += 1.0
                self.answered(call, ("read", told))
            self.reachable = None

    def read_by(self, path: str, names: frozenset[str]) -> Any:
        """A history read that reaches these nodes alone, at once."""
        electorate = self.electorates[self.last_epoch]
        call = Call(0, path, "read-all", self.now)
        for _ in range(4):
            reading = ReadRound(electorate)
            result: Read | NoQuorum | None = None
            request = QueryHistory(slot=SLOT, path=path, epoch=self.last_epoch)
            for name in sorted(names):
                result = reading.answer(name, self.nodes[name].replica.handle(request))
            assert isinstance(result, Read)
            if result.finding.decided:
                return told_by(call, result.finding.record, result.replies)
            if not self.finish_by(path, names):
                return None
        return None

    def finish_by(self, path: str, names: frozenset[str]) -> bool:
        self.ids += 1
        name = min(names)
        slot = self.nodes[name].replica.slot
        round_ = WriteRound(
            electorate=self.electorates[self.last_epoch],
            node=name,
            path=path,
            operation=Finish(),
            operation_id=f"o{self.ids:04}",
            write_id=f"o{self.ids:04}",
            now_ms=int(self.now * 10),
            counter=slot.counter_seen,
        )
        todo = list(round_.start())
        for _ in range(200):
            if not todo:
                return False
            action = todo.pop(0)
            match action:
                case Send():
                    if action.node in names:
                        reply = self.nodes[action.node].replica.handle(action.request)
                        todo += round_.answer(action.node, action.token, reply)
                    else:
                        todo += round_.failed(action.node, action.token, "not reached")
                case Wait():
                    todo += round_.wake(action.token)
                case Finished():
                    slot.counter_seen = max(slot.counter_seen, round_.counter)
                    return isinstance(action.outcome, Applied)
                case Spread():
                    pass
        return False

    def check(self) -> None:
        for path in self.shape.paths:
            self.check_chain(path)
            self.check_acknowledged(path)
            calls = [call for call in self.calls if call.path == path]
            verdict = linearizable(calls, (0, self.shape.version_floor, 0, 0, ()))
            if verdict is None:
                self.given_up += 1
            elif not verdict:
                raise Violation("no order explains:\n" + "\n".join(str(call) for call in calls))

    def check_acknowledged(self, path: str) -> None:
        """Every acknowledged version is in what every majority reads, its bytes on a write quorum."""
        finals = [call.result[1][1] for call in self.calls if call.path == path and call.number < 0 and call.result]
        named: dict[int, str] = {}
        for replica in (self.nodes[name].replica for name in self.shape.nodes):
            for version in replica.disk.rows.get(path, {}).values():
                if named.setdefault(version.version, version.blob_id) != version.blob_id:
                    raise Violation(f"{path}@{version.version} is {named[version.version]} and {version.blob_id}")
        for call in self.calls:
            if call.path != path or call.kind != "put" or call.result is None:
                continue
            if call.result[0] != "ok":
                continue
            version = call.result[1]
            for rows in finals:
                if not any(number == version and etag == call.etag for number, etag, _ in rows):
                    raise Violation(f"{call} is acknowledged, but a majority reads {rows}")
            blob_id = named.get(version)
            if blob_id is None:
                continue  # The newest record's own row may not be written yet; the reads above have seen it.
            have = self.copies(blob_id)
            if len(have) < self.shape.write_quorum:
                raise Violation(f"{call}: at the end the bytes of {blob_id} are on {have} only")


class Reader:
    """A ReadRound on its way. Takes answers as a :class:`Run` does."""

    __slots__ = ("alive", "call", "node", "reading", "sim", "tries")

    def __init__(self, sim: Simulation, node: Node, call: Call, reading: ReadRound, tries: int) -> None:
        self.sim = sim
        self.node = node
        self.call = call
        self.reading = reading
        self.tries = tries
        self.alive = True

    def _end(self, result: Read | NoQuorum | None) -> None:
        if result is not None:
            self.alive = False
            if self.node.up:
                self.sim.read_ended(self.call, self.node, result, self.tries)
            else:
                self.sim.read_failed(self.call)

    def answer(self, node: str, token: int, reply: Reply) -> None:
        if self.alive:
            self._end(self.reading.answer(node, reply))

    def failed(self, node: str, token: int) -> None:
        if self.alive:
            self._end(self.reading.failed(node, "timeout"))


def told_by(call: Call, record: Record | None, replies: dict[str, Any]) -> Any:
    """What a read tells its client: as ``_views`` in ``node.objects.lookup``."""
    if call.kind == "read":
        return record
    views: dict[int, Version] = {}
    if record is not None:
        for reply in replies.values():
            if isinstance(reply, HistoryReply):
                for row in reply.rows:
                    known = views.setdefault(row.version.version, row.version)
                    if known.blob_id != row.version.blob_id:
                        raise Violation(f"{call.path}@{known.version} is {known.blob_id} and {row.version.blob_id}")
        for version in (record.previous, record.added):
            if version is not None:
                known = views.setdefault(version.version, version)
                if known.blob_id != version.blob_id:
                    raise Violation(f"{call.path}@{known.version} is {known.blob_id} and {version.blob_id}")
    live: Ranges = record.live if record is not None else ()
    if call.kind == "read-version":
        found = views.get(call.version or 0)
        return None if found is None else (found.etag, covers(live, found.version))
    return record, tuple((number, views[number].etag, covers(live, number)) for number in sorted(views, reverse=True))


def brief(message: Any) -> str:
    """A message in a few words, for the trace."""
    parts = [type(message).__name__]
    for name in ("ballot", "accepted", "reason", "write_id", "prior", "chosen", "version", "below"):
        value = getattr(message, name, None)
        if value not in (None, "", False):
            parts.append(f"{name}={value}")
    record = getattr(message, "record", None)
    if record is not None:
        head = f"{record.head.version}:{record.head.blob_id}" if record.head else "-"
        parts.append(
            f"r{record.revision}({record.op} head={head} live={record.live} w={[m.write_id for m in record.writes]})"
        )
    return " ".join(parts)


def story(seed: int) -> str:
    """The whole trace of a seed."""
    sim = Simulation(seed, trace=True)
    verdict = "holds"
    try:
        sim.run()
    except Violation as error:
        verdict = str(error)
    assert sim.log is not None
    return "\n".join([str(sim.shape), *sim.log, *sim.stuck, verdict])


def main(first: int, count: int) -> None:
    """Run seeds and print what they break."""
    start = time.perf_counter()
    bad = stuck = given_up = 0
    for seed in range(first, first + count):
        try:
            sim = Simulation(seed).run()
        except Violation as error:
            bad += 1
            if bad <= 10:
                print(f"seed {seed}: {str(error)[:2000]}", flush=True)
            continue
        given_up += sim.given_up
        if sim.stuck:
            stuck += 1
            if stuck <= 5:
                print(f"seed {seed}: {sim.stuck}", flush=True)
    took = time.perf_counter() - start
    print(f"{count} seeds, {bad} broken, {stuck} stuck, {given_up} searches given up, {took:.1f} s")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        print(story(int(sys.argv[1])))
    else:
        main(int(sys.argv[1]), int(sys.argv[2]))
