"""Replicas in memory that hold some history each, and sessions between them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from amberblob.ballot import BALLOT_ZERO, Ballot, Register
from amberblob.errors import PeerUnreachable, QuorumUnavailable
from amberblob.ids import content_hash
from amberblob.manifest import ChunkRef, Ranges, Record, Version, merge_ranges
from amberblob.mutations import Accepted, Chosen, EpochSeen
from amberblob.wire import Query, RefusalReason, Refused, RegisterReply, Reply, decode_reply, decode_request, encode
from amberblob.wire_repair import RepairRequest
from antientropy.answers import Asked, answer
from antientropy.compare import Compared, compare
from antientropy.driving import Costs, Running, World
from antientropy.needs import Steps
from antientropy.remake import remake
from chunkstore.memory import MemoryStore
from tests.clocks import HandClock

T = TypeVar("T")

SLOT = 3
EPOCH = 2
_CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def ulid(number: int) -> str:
    text = ""
    for _ in range(26):
        text = _CROCKFORD[number % 32] + text
        number //= 32
    return text


def body_of(path: str, number: int) -> bytes:
    return f"{path} {number} ".encode() * (1 + number)


def row(path: str, number: int, *, serial: int = 0, data: bytes | None = None) -> Version:
    data = body_of(path, number) if data is None else data
    blob = int.from_bytes(content_hash(f"{path}/{number}/{serial}".encode())[:24].encode(), "big") % 32**24
    return Version(
        version=number,
        blob_id=ulid(blob),
        size=len(data),
        etag=content_hash(data),
        created_at_ms=1000 * number,
        content_type="text/plain",
        meta={"serial": str(serial)},
        chunks=(ChunkRef(content_hash(data), len(data)),) if data else (),
        chunk_count=1 if data else 0,
        inline=True,
    )


def ballot(counter: int, *, node: str = "n0", epoch: int = EPOCH) -> Ballot:
    return Ballot(epoch, counter, node, ulid(counter))


def put(path: str, before: Record | None, *, serial: int = 0) -> Record:
    number = (before.version_max if before else 0) + 1
    version = row(path, number, serial=serial)
    return Record(
        revision=(before.revision if before else 0) + 1,
        op="put",
        version_max=number,
        head=version,
        live=merge_ranges([*(before.live if before else ()), (number, number)]),
        taken=(),
        changed_at_ms=1000 * number + serial,
        deleted_at_ms=before.deleted_at_ms if before else 0,
        previous=before.added if before else None,
        writes=(),
        expired=before.expired if before else (),
    )


def delete(before: Record) -> Record:
    return Record(
        revision=before.revision + 1,
        op="delete",
        version_max=before.version_max,
        head=None,
        live=(),
        taken=before.live,
        changed_at_ms=before.changed_at_ms + 1,
        deleted_at_ms=before.changed_at_ms + 1,
        previous=before.added,
        writes=(),
        expired=before.expired,
    )


def expire(before: Record) -> Record:
    """The retention of everything that does not live is over."""
    every: Ranges = ((1, before.version_max),)
    live = {number for low, high in before.live for number in range(low, high + 1)}
    gone = [(n, n) for low, high in every for n in range(low, high + 1) if n not in live]
    return Record(
        revision=before.revision + 1,
        op="expire",
        version_max=before.version_max,
        head=before.head,
        live=before.live,
        taken=(),
        changed_at_ms=before.changed_at_ms + 1,
        deleted_at_ms=before.deleted_at_ms,
        previous=before.added if before.added and (before.added.version, before.added.version) not in gone else None,
        writes=(),
        expired=merge_ranges([*before.expired, *gone]),
    )


class NoPace:
    busy = False

    async def rest(self, worked_s: float) -> None:
        pass

    async def turn(self, size_bytes: int) -> None:
        pass


@dataclass
class Replica:
    node: str
    store: MemoryStore
    wrong: list[tuple[int, str]] = field(default_factory=list)
    standing: dict[int, RefusalReason] = field(default_factory=dict)
    away: bool = False
    asked: list[Asked] = field(default_factory=list)
    """What others asked of it."""


class Cluster:
    """Some replicas that all vote in all slots, unless ``sets`` says otherwise."""

    def __init__(self, count: int) -> None:
        self.clock = HandClock()
        self.replicas = [
            Replica(f"n{at}", MemoryStore(ulid(1000 + at), wall_ms=self.clock.wall_ms)) for at in range(count)
        ]
        self.by_node = {replica.node: replica for replica in self.replicas}
        self.sets: tuple[frozenset[int], ...] = (frozenset(range(count)),)
        """Of each of these a majority is needed."""
        self.epoch = EPOCH
        self.counter = 1_000_000
        self.rounds_held = 0
        self.lazy = False
        """A round reaches no more replicas than it needs, other ones each time."""
        self.deaf = False
        """A round does not wait for whom it is to hear."""
        self.costs = {replica.node: Costs() for replica in self.replicas}
        self.belongs: Callable[[int, str], bool] = lambda slot, path: True
        self.lies: Callable[[RepairRequest | Query, Reply], Reply] = lambda request, reply: reply
        """What becomes of an answer on its way."""
        self.before_call: Callable[[str, RepairRequest | Query], Awaitable[None]] | None = None

    def __getitem__(self, at: int) -> MemoryStore:
        return self.replicas[at].store

    def voters(self, slot: int = SLOT) -> dict[str, str]:
        return {replica.node: replica.store.slot_state(slot).incarnation for replica in self.replicas}

    @property
    def majority(self) -> int:
        return len(self.replicas) // 2 + 1

    # -- history

    def accept(
        self, at: int, path: str, number: Ballot, record: Record, *, slot: int = SLOT, body: bool = True
    ) -> None:
        added = record.added
        data = body_of(path, added.version) if added is not None and body else None
        self[at].apply(Accepted(slot, path, number, record, data))

    def choose(self, at: int, path: str, number: Ballot, record: Record | None = None, *, slot: int = SLOT) -> None:
        self[at].apply(Chosen(slot, path, number, record))

    def write(
        self, path: str, record: Record, number: Ballot, at: Iterable[int] | None = None, *, slot: int = SLOT
    ) -> None:
        """A write that these replicas took part in, to its end."""
        for one in range(len(self.replicas)) if at is None else at:
            self.accept(one, path, number, record, slot=slot)
            self.choose(one, path, number, slot=slot)

    # -- what a node does for the sessions

    async def call(self, node: str, request: RepairRequest | Query) -> Reply:
        replica = self.by_node[node]
        if self.before_call is not None:
            await self.before_call(node, request)
        if replica.away:
            raise PeerUnreachable(f"{node} is away")
        # As the wire has it: what cannot be encoded is found here.
        asked = decode_request(encode(request))
        if isinstance(asked, Query):
            return decode_reply(encode(self.lies(asked, await self._query(replica, asked))))
        assert isinstance(asked, Asked)
        replica.asked.append(asked)
        told = await answer(
            replica.store,
            asked,
            standing=replica.standing.get,
            found_wrong=lambda slot, path: replica.wrong.append((slot, path)),
        )
        return decode_reply(encode(self.lies(asked, told)))

    async def _query(self, replica: Replica, asked: Query) -> Reply:
        """As a replica answers it."""
        state = replica.store.slot_state(asked.slot)
        reason: RefusalReason | None = "epoch" if asked.epoch < state.epoch else replica.standing.get(asked.slot)
        if reason is not None:
            return Refused(incarnation=state.incarnation, reason=reason, ballot=state.ballot_floor, epoch=state.epoch)
        replica.store.apply(EpochSeen(asked.slot, asked.epoch))
        register = await replica.store.load(asked.slot, asked.path)
        return RegisterReply(
            incarnation=state.incarnation, accepted=register.accepted, record=register.record, chosen=register.chosen
        )

    async def round(self, slot: int, path: str, *, again: bool = False, hear: str = "") -> None:
        """An ordinary round that writes nothing new, as a coordinator runs it."""
        self.rounds_held += 1
        named = frozenset[int]().union(*self.sets)
        voting = [
            replica
            for at, replica in enumerate(self.replicas)
            if at in named and not replica.away and slot not in replica.standing
        ]
        if not self.is_quorum(voting):
            raise QuorumUnavailable("too few answer")
        if self.lazy:
            turn = self.rounds_held % len(voting)
            voting = [*voting[turn:], *voting[:turn]]
            voting = sorted(voting, key=lambda replica: replica.node != hear)
            for replica in reversed(voting[1:]):
                if self.is_quorum(fewer := [other for other in voting if other is not replica]):
                    voting = fewer
        for replica in voting:
            replica.store.apply(EpochSeen(slot, self.epoch))
        registers = [await replica.store.load(slot, path) for replica in voting]
        best = max(
            (register for register in registers if register.accepted is not None),
            key=lambda register: register.accepted or BALLOT_ZERO,
            default=None,
        )
        if best is None or best.accepted is None or best.record is None:
            return
        decided = any(register.chosen for register in registers if register.accepted == best.accepted)
        number = best.accepted
        if again or not decided:
            self.counter += 1
            floor = max(replica.store.slot_state(slot).ballot_floor for replica in voting)
            self.counter = max(self.counter, floor.counter + 1)
            number = Ballot(max(self.epoch, floor.epoch), self.counter, "n0", ulid(self.counter))
            for replica in voting:
                replica.store.apply(Accepted(slot, path, number, best.record, self._body(path, best.record)))
        for replica in voting:
            if number > replica.store.slot_state(slot).ballot_floor:
                replica.store.apply(Chosen(slot, path, number, best.record))

    def is_quorum(self, replicas: Iterable[Replica]) -> bool:
        nodes = {replica.node for replica in replicas}
        return all(len([at for at in voters if f"n{at}" in nodes]) > len(voters) // 2 for voters in self.sets)

    def _body(self, path: str, record: Record) -> bytes | None:
        return body_of(path, record.added.version) if record.added is not None else None

    async def refresh(self, slot: int, path: str, holder: str) -> None:
        await self.round(slot, path, again=True, hear="" if self.deaf else holder)

    def world(self, at: int) -> World:
        return World(
            store=self[at],
            call=self.call,
            belongs=self.belongs,
            settle=self.round,
            refresh=self.refresh,
            pace=NoPace(),
            clock=self.clock,
            costs=self.costs[f"n{at}"],
        )

    async def run(self, at: int, session: Steps[T]) -> T:
        running = Running(self.world(at), session)
        while not running.over:
            self.clock.now_s = max(self.clock.now_s, running.due_s)
            await running.advance()
        return running.result

    async def compare(self, at: int, peer: int, slots: Iterable[int] = (SLOT,)) -> dict[int, Compared]:
        given: Mapping[int, Mapping[str, str]] = {slot: self.voters(slot) for slot in slots}
        return await self.run(at, compare(f"n{at}", f"n{peer}", given))

    async def scrub(self, at: int, slot: int = SLOT) -> dict[str, str]:
        """Look for what rotted, and have it mended; why not all of it could be."""
        await self[at].check_sums(slot)
        after: str | None = ""
        wrong = {path for known, path in self.replicas[at].wrong if known == slot}
        self.replicas[at].wrong.clear()
        while after is not None:
            page = await self[at].check_page(slot, after, 10)
            wrong.update(page.wrong)
            after = page.next_after
        failures = await self.run(at, remake(f"n{at}", slot, wrong, self.voters(slot), trusted=False))
        await self[at].check_sums(slot)
        return failures

    async def heal(self, slots: Iterable[int] = (SLOT,)) -> int:
        """One round: everybody looks for rot and compares with everybody else. How much was installed."""
        before = sum(costs.installed for costs in self.costs.values())
        for at in range(len(self.replicas)):
            for slot in slots:
                await self.scrub(at, slot)
            for peer in range(len(self.replicas)):
                if peer != at:
                    await self.compare(at, peer, slots)
        return sum(costs.installed for costs in self.costs.values()) - before

    # -- what came of it

    def roots(self, slot: int = SLOT) -> set[bytes]:
        return {replica.store.tally(slot).root for replica in self.replicas}

    async def contents(self, at: int, slot: int = SLOT) -> dict[str, tuple[Record | None, tuple[Version, ...]]]:
        """Paths to what is known to be chosen of them."""
        items, after = await self[at].items_after(slot, "", 1 << 30)
        assert after is None
        return {item.path: (item.record, item.rows) for item in items if item.record is not None or item.rows}

    def register(self, at: int, path: str, slot: int = SLOT) -> Register:
        found = self[at].peek(slot, path)
        assert found is not None
        return found
