"""One slot's replicas in memory, with the semantics of ``amberblob.mutations``, and a hand-cranked network.

The replicas run the real ``ReplicaSlot``; a :class:`Hand` runs a real ``WriteRound`` and lets a test deliver
each of its requests, or not.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec

from amberblob.ballot import EMPTY_REGISTER, Register, SlotState
from amberblob.manifest import Record, Version, WriteMark
from amberblob.mutations import Aborted, Accepted, Chosen, EpochSeen, Mutation, Reserved
from amberblob.wire import (
    AcceptedReply,
    Commit,
    Done,
    HistoryReply,
    HistoryRow,
    Learnt,
    Prepare,
    Query,
    QueryHistory,
    RegisterReply,
    Reply,
    Request,
)
from chunkstore import rules
from node.protocol.operations import Operation
from node.protocol.quorum import Electorate
from node.protocol.replica import BytesHere, Persist, ReplicaSlot, Respond
from node.protocol.write import Action, Finished, Outcome, Send, Spread, Wait, WriteRound

SLOT = 0
PATH = "p"


class Broken(AssertionError):
    """An invariant that no correct run can break."""


@dataclass
class Disk:
    """What survives a restart."""

    state: SlotState
    registers: dict[str, Register] = field(default_factory=dict)
    rows: dict[str, dict[int, Version]] = field(default_factory=dict)
    write_ids: dict[str, dict[str, WriteMark]] = field(default_factory=dict)
    bytes_of: set[str] = field(default_factory=set)
    aborted: set[str] = field(default_factory=set)
    referenced: set[str] = field(default_factory=set)

    def register(self, path: str) -> Register:
        return self.registers.get(path, EMPTY_REGISTER)

    def apply(self, mutation: Mutation) -> None:
        match mutation:
            case Accepted():
                self._chosen_before(mutation.path, mutation.record)
                before = self.register(mutation.path)
                after = rules.accept(before, mutation)
                if after is before:
                    return
                self.registers[mutation.path] = after
                if mutation.record.added is not None:
                    self.referenced.add(mutation.record.added.blob_id)
                    if mutation.body is not None:
                        self.bytes_of.add(mutation.record.added.blob_id)
            case Chosen():
                before = self.register(mutation.path)
                record = rules.chosen_record(before, mutation)
                after = rules.choose(before, mutation)
                if (
                    before.chosen
                    and before.record is not None
                    and after.record is not None
                    and after.record.revision < before.record.revision
                ):
                    raise Broken(f"revision fell from {before.record.revision} to {after.record.revision}")
                self.registers[mutation.path] = after
                if record is None:
                    return
                self._chosen_before(mutation.path, record)
                if record.added is not None:
                    self.referenced.add(record.added.blob_id)
                    self._row(mutation.path, record.added)
                self._marks(mutation.path, record.writes)
            case Reserved() | EpochSeen():
                self.state = rules.change_slot(self.state, mutation)
            case Aborted():
                if mutation.blob_id not in self.referenced:
                    self.aborted.add(mutation.blob_id)
            case _:
                pass

    def _chosen_before(self, path: str, record: Record) -> None:
        if record.previous is not None:
            self._row(path, record.previous)
        self._marks(path, record.writes[:-1])

    def _row(self, path: str, version: Version) -> None:
        known = self.rows.setdefault(path, {}).setdefault(version.version, version)
        if known.blob_id != version.blob_id:
            raise Broken(f"{path}@{version.version} is {known.blob_id} and {version.blob_id}")

    def _marks(self, path: str, marks: tuple[WriteMark, ...]) -> None:
        known = self.write_ids.setdefault(path, {})
        for mark in marks:
            if known.setdefault(mark.write_id, mark).version != mark.version:
                raise Broken(f"write id {mark.write_id} was applied twice: {known[mark.write_id]} and {mark}")


class Replica:
    """One copy: durable state and the state machine in memory."""

    def __init__(self, node: str, incarnation: str | None = None, *, promises_max: int = 4096) -> None:
        self.node = node
        self.promises_max = promises_max
        self.disk = Disk(SlotState(slot=SLOT, incarnation=incarnation or f"{node}/1"))
        self.slot = ReplicaSlot(self.disk.state, promises_max=promises_max)

    def restart(self) -> None:
        self.slot = ReplicaSlot(self.disk.state, promises_max=self.promises_max)

    def handle(self, request: Request) -> Reply:
        disk, state = self.disk, self.disk.state
        match request:
            case Prepare():
                prior = disk.write_ids.get(request.path, {}).get(request.write_id)
                return self._act(self.slot.prepare(state, request, disk.register(request.path), prior))
            case Commit():
                added = request.record.added
                here = BytesHere(durable=True)
                if added is not None:
                    here = BytesHere(durable=added.blob_id in disk.bytes_of, aborted=added.blob_id in disk.aborted)
                return self._act(self.slot.commit(state, request, disk.register(request.path), here))
            case Query() | QueryHistory() if (refused := self._enter(request)) is not None:
                return refused
            case Query():
                held = disk.register(request.path)
                return RegisterReply(
                    incarnation=state.incarnation, accepted=held.accepted, record=held.record, chosen=held.chosen
                )
            case QueryHistory():
                held = disk.register(request.path)
                rows = sorted(disk.rows.get(request.path, {}).values(), key=lambda row: -row.version)
                if request.version is not None:
                    rows = [row for row in rows if row.version == request.version]
                if request.below is not None:
                    rows = [row for row in rows if row.version < request.below]
                page = rows[: request.limit]
                return HistoryReply(
                    incarnation=state.incarnation,
                    accepted=held.accepted,
                    record=held.record,
                    chosen=held.chosen,
                    rows=tuple(HistoryRow(row, None) for row in page),
                    more=request.version is None and len(page) >= request.limit,
                )
            case _:
                raise AssertionError(request)

    def _enter(self, request: Query | QueryHistory) -> Reply | None:
        """As ``node.replica`` does before it looks at a register for a question."""
        action = self.slot.enter(self.disk.state, SLOT, request.epoch)
        if isinstance(action, Persist):
            self.disk.apply(action.mutation)
            return None
        return action.reply if action is not None else None

    def learn(self, item: Learnt) -> None:
        self._act(self.slot.learn(self.disk.state, item, self.disk.register(item.path)))

    def _act(self, actions: list) -> Reply:
        reply: Reply = Done()
        for action in actions:
            match action:
                case Persist():
                    self.disk.apply(action.mutation)
                case Respond():
                    reply = action.reply
        return reply


def draft(blob_id: str, etag: str = "e") -> Version:
    return Version(
        version=0,
        blob_id=blob_id,
        size=1,
        etag=etag,
        created_at_ms=0,
        content_type="t",
        meta={},
        chunks=(),
        chunk_count=1,
        inline=True,
    )


class Cluster:
    """Replicas a, b, c, … and one electorate."""

    def __init__(self, nodes: str = "abc", *, write_quorum: int | None = None, read_quorum: int = 0) -> None:
        self.replicas = {node: Replica(node) for node in nodes}
        self.electorate = Electorate(
            slot=SLOT,
            epoch=1,
            voters={node: f"{node}/1" for node in nodes},
            write_quorum=write_quorum or len(nodes) // 2 + 1,
            read_quorum=read_quorum,
        )
        self._ids = 0

    def hand(
        self, operation: Operation, *, node: str = "a", write_id: str | None = None, counter: int = 0, **options
    ) -> Hand:
        self._ids += 1
        operation_id = f"op{self._ids:03}"
        round_ = WriteRound(
            electorate=self.electorate,
            node=node,
            path=PATH,
            operation=operation,
            operation_id=operation_id,
            write_id=write_id or operation_id,
            now_ms=self._ids,
            counter=counter,
            may_be_retry=write_id is not None,
            **options,
        )
        return Hand(self, round_)

    def pull(self, node: str, request: Request) -> None:
        """What a COMMIT with ``holders`` does first: get the bytes from one that has them."""
        if not isinstance(request, Commit) or request.record.added is None:
            return
        blob_id = request.record.added.blob_id
        if any(blob_id in self.replicas[holder].disk.bytes_of for holder in request.holders):
            self.replicas[node].disk.bytes_of.add(blob_id)

    def run(self, operation: Operation, **options) -> Outcome:
        """A round that meets no trouble; LEARNs arrive."""
        hand = self.hand(operation, **options)
        hand.go(learn=True)
        assert hand.outcome is not None
        return hand.outcome


class Hand:
    """A round whose requests are delivered by hand."""

    def __init__(self, cluster: Cluster, round_: WriteRound) -> None:
        self.cluster = cluster
        self.round = round_
        self.sends: list[Send] = []
        self.spread: list[Spread] = []
        self.wait: Wait | None = None
        self.outcome: Outcome | None = None
        self.take(round_.start())

    def take(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self.sends.append(action)
                case Wait():
                    self.wait = action
                case Spread():
                    self.spread.append(action)
                case Finished():
                    assert self.outcome is None, "finished twice"
                    self.outcome = action.outcome

    def _pick(self, node: str) -> Send:
        send = next(send for send in self.sends if send.node == node)
        self.sends.remove(send)
        return send

    def deliver(self, nodes: str, *, answered: str | None = None) -> None:
        """The oldest request to each node arrives; the answers come back from those in ``answered`` (default: all)."""
        for node in nodes:
            send = self._pick(node)
            self.cluster.pull(node, send.request)
            reply = self.cluster.replicas[node].handle(send.request)
            if answered is None or node in answered:
                self.take(self.round.answer(node, send.token, reply))

    def lose(self, nodes: str) -> None:
        """The oldest request to each node never arrives."""
        for node in nodes:
            send = self._pick(node)
            self.take(self.round.failed(node, send.token, "timeout"))

    def wake(self) -> None:
        assert self.wait is not None
        token, self.wait = self.wait.token, None
        self.sends.clear()
        self.take(self.round.wake(token))

    def deadline(self) -> None:
        self.take(self.round.deadline())

    def go(self, nodes: str | None = None, *, learn: bool = False) -> None:
        """Deliver all to the nodes that are up (the others fail), until the end."""
        for _ in range(50):
            if self.outcome is not None:
                break
            if self.sends:
                node = self.sends[0].node
                if nodes is None or node in nodes:
                    self.deliver(node)
                else:
                    self.lose(node)
            elif self.wait is not None:
                self.wake()
            else:
                break
        if learn:
            for action in self.spread:
                if nodes is None or action.node in nodes:
                    self.cluster.replicas[action.node].learn(action.item)

    def phase_requests(self, kind: type) -> list[Send]:
        return [send for send in self.sends if isinstance(send.request, kind)]


__all__ = ["PATH", "SLOT", "AcceptedReply", "Broken", "Cluster", "Disk", "Hand", "Replica", "draft", "msgspec"]
