"""One node's copies of slots: the driver under ``node.protocol.replica``, and the answerer of its peers.

The rule that everything here keeps: an answer goes out only when all that the register and its slot say is
durable (``store.position`` then ``store.durable``), because what an answer shows, somebody may count.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, assert_never

import msgspec
import structlog

from amberblob.archives import ArchivedBlob
from amberblob.ballot import Ballot, Register, SlotState
from amberblob.clock import HybridClock
from amberblob.errors import (
    BadRequest,
    ChunkCorrupt,
    ChunkMissing,
    DigestMismatch,
    DiskFailed,
    DiskFull,
    NoArchive,
    PeerError,
    StorageError,
)
from amberblob.ids import content_hash, valid_hash, valid_ulid
from amberblob.limits import (
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    FRAME_BYTES_MAX,
    HISTORY_PAGE_MAX,
    INLINE_BYTES_MAX,
    READ_BLOBS_BYTES_MAX,
    READ_BLOBS_MAX,
)
from amberblob.manifest import ChunkRef, Record, Version, WriteMark, decode_manifest
from amberblob.wire import (
    Commit,
    Discard,
    Done,
    HistoryReply,
    HistoryRow,
    Inspect,
    InspectReply,
    Learn,
    Learnt,
    Ping,
    Prepare,
    Query,
    QueryHistory,
    QueryScan,
    ReadBlobs,
    ReadChunk,
    ReadManifest,
    RefusalReason,
    Refused,
    RegisterReply,
    Reply,
    Request,
    ScanReply,
    StageClose,
    StagedReply,
    StageOpen,
    pack_parts,
)
from amberblob.wire_archive import ArchiveRequest
from amberblob.wire_repair import ForgetStub
from antientropy.driving import Pace, Unhurried
from chunkstore.interface import BlobState, ReplicaStore
from node.protocol.replica import Action, BytesHere, Persist, ReplicaSlot
from node.pulls import PullRequests
from node.repairs import Question, Repairs
from node.transport.answers import responded
from node.transport.interface import IncomingStage, Respond

log = structlog.get_logger(__name__)

ROWS_BYTES_MAX = FRAME_BYTES_MAX // 2
"""Of the rows in one answer, by an estimate that errs upwards."""

INSPECT_ROWS_MAX = 100
INSPECT_ARCHIVED_MAX = 64
"""Archive rows of one version that are told, of at most so many versions."""
INSPECT_WANTED_MAX = 10_000
"""How many wanted versions of a slot are looked through for those of one path."""

ROUTE_POLL_S = 0.02
ROUTE_LOOKS_MAX = 50
"""How often, and how many times, a copy that has no voice by this node's route looks for the newer one that it was asked by."""

NOBODY = ""
"""The incarnation that a mute copy tells where it cannot refuse: no route names it."""

NOTHING_NEEDED = BytesHere(durable=True)
BODY_ALONG = BytesHere(durable=False)


def _fitting(rows: list[HistoryRow]) -> list[HistoryRow]:
    """As many rows from the front as one answer holds; at least one."""
    size = 0
    for count, row in enumerate(rows):
        version = row.version
        size += 512 + 80 * len(version.chunks) + sum(len(k) + 4 * len(v) + 8 for k, v in version.meta.items())
        if count and size > ROWS_BYTES_MAX:
            return rows[:count]
    return rows


def _looks_back(message: Prepare, record: Record | None) -> bool:
    """Whether what the write id did has to be looked up in the database: the record's own list does not reach back,
    or the path may have been forgotten since the write was applied (its write ids stay).
    """
    if not message.write_id:
        return False
    return message.repeated or (record is not None and record.revision > len(record.writes))


def _ignore(slot: int, path: str) -> None:
    """Nobody wants to know."""


class Replica:
    """Answers peers (and this node's own coordinator) about the copies on one disk.

    Args:
        store: the disk.
        mute: why the copy of this state has no voice here; None: it has one (:meth:`node.routing.Routing.mute`).
        newcomers: slots whose copy may be mute for want of a sync (:meth:`node.routing.Routing.newcomers`).
        epoch_of: the epoch of a slot's newest route here, 0 without one (:meth:`node.routing.Routing.epoch`).
        pulls: where to ask for bytes that are missing here.
        repairs: answers those who compare their copies with this one.
        clock: the node's hybrid clock.

    Attributes:
        on_undecided: called with (slot, path) whenever a record was accepted here and is not known to be chosen.
        on_decided: called when it is.
        served: grows with everything that is done here for clients, of this node's or another's.
        pace: what others read for repair waits for this.
        archive: answers questions about the archive; None: this node has none.
        on_read: told of every blob of which a client of another node reads a chunk here; None: nobody wants to know.
        lent: chunks that were put on this disk a moment ago and are in memory, for other copies.
    """

    def __init__(
        self,
        store: ReplicaStore,
        *,
        mute: Callable[[SlotState], RefusalReason | None],
        newcomers: Callable[[], Iterable[int]],
        epoch_of: Callable[[int], int],
        pulls: PullRequests,
        repairs: Repairs,
        clock: HybridClock,
    ) -> None:
        self.on_undecided: Callable[[int, str], None] = _ignore
        self.on_decided: Callable[[int, str], None] = _ignore
        self.served = 0
        self.pace: Pace = Unhurried()
        self.archive: Callable[[ArchiveRequest], Awaitable[Reply]] | None = None
        self.on_read: Callable[[str], None] | None = None
        self.lent: Callable[[ChunkRef], bytes | None] = lambda chunk: None
        self._store = store
        self._mute = mute
        self._newcomers = newcomers
        self._epoch_of = epoch_of
        self._pulls = pulls
        self._repairs = repairs
        self._clock = clock
        self._slots: dict[int, ReplicaSlot] = {}
        self._reloading = asyncio.Lock()
        self._at_once: dict[type[Request], Callable[[Any, Respond], bool]] = {
            Prepare: self._prepare_now,
            Commit: self._commit_now,
            Learn: self._learn_now,
            Query: self._query_now,
        }

    def slot(self, slot: int) -> ReplicaSlot:
        """The voting state of a slot, made on first use."""
        found = self._slots.get(slot)
        if found is None:
            found = self._slots[slot] = ReplicaSlot(self._store.slot_state(slot))
        return found

    def counter(self, slot: int) -> int:
        """The highest ballot counter that was met in the slot; where a coordinator here begins."""
        return self.slot(slot).counter_seen

    def met_counter(self, slot: int, counter: int) -> None:
        """A coordinator here met this counter."""
        voting = self.slot(slot)
        voting.counter_seen = max(voting.counter_seen, counter)

    def promises(self, slot: int, path: str, ballot: Ballot) -> bool:
        """Whether this node has no copy of the slot that counts, or its copy promised this ballot last and has room for more.

        Full disks come together: a PREPARE is refused and nothing was sent, a COMMIT has an unknown outcome.
        """
        if self._mute(self._store.slot_state(slot)) is not None:
            return True
        return not self._store.full and self.slot(slot).promises(path, ballot)

    def peek(self, slot: int, path: str) -> Register | None:
        """What the own register holds, if that is in memory; it may not be durable yet."""
        return self._store.peek(slot, path) if self._mute(self._store.slot_state(slot)) is None else None

    # ---- requests

    def answer(self, peer: str, request: Request, respond: Respond) -> bool:
        """Answer at once what needs nothing from the disk: see :class:`node.transport.interface.PeerHandler`."""
        at_once = self._at_once.get(type(request))
        if at_once is None:
            return False
        self.served += 1
        return at_once(request, respond)

    async def handle(self, peer: str, request: Request) -> Reply:
        """Answer anything but StageOpen and :data:`amberblob.wire.BytesRequest`."""
        if isinstance(request, Question):
            return await self._repairs.answer(request)
        if isinstance(request, ArchiveRequest):
            if self.archive is None:
                raise NoArchive
            return await self.archive(request)
        match request:
            case Prepare():
                return await self._prepare(request)
            case Commit():
                return await self._commit(request)
            case Learn():
                for item in request.items:
                    await self._learn(item)
                return Done()
            case Query():
                return await self._query(request)
            case QueryHistory():
                self.served += 1
                return await self._history(request)
            case QueryScan():
                self.served += 1
                return await self._scan(request)
            case Inspect():
                return await self._inspect(request)
            case Discard():
                if not valid_ulid(request.blob_id):
                    raise BadRequest(f"{request.blob_id!r} is no blob id")
                await self._store.discard(request.slot, request.blob_id)
                return Done()
            case ForgetStub():
                return await self._forget(request)
            case Ping():
                return Done(now_ms=self._clock.now_ms())
            case StageOpen() | StageClose() | ReadChunk() | ReadManifest() | ReadBlobs():
                raise BadRequest(f"{type(request).__name__} does not come as a plain request")
            case _:
                assert_never(request)

    def refused(self, slot: int, reason: RefusalReason, detail: str = "") -> Refused:
        """A refusal, as the copy's state is now."""
        state = self._store.slot_state(slot)
        return Refused(
            incarnation=state.incarnation, reason=reason, ballot=state.ballot_floor, epoch=state.epoch, detail=detail
        )

    def _carry_out(self, slot: int, path: str, actions: list[Action], respond: Respond) -> None:
        """Apply, and respond once all that the register and its slot say is durable."""
        reply: Reply = Done()
        try:
            for action in actions:
                if isinstance(action, Persist):
                    self._store.apply(action.mutation)
                else:
                    reply = action.reply
        except DiskFailed as error:
            respond(self.refused(slot, "disk-failed", error.detail))
            return
        self._respond_durably(slot, path, reply, respond)

    def _respond_durably(self, slot: int, path: str, reply: Reply, respond: Respond) -> None:
        position = self._store.position(slot, path)
        if not position:
            respond(reply)
            return

        def durable(error: DiskFailed | None) -> None:
            respond(reply if error is None else self.refused(slot, "disk-failed", error.detail))

        self._store.when_durable(position, durable)

    # ---- copies without a voice

    def _muted(self, slot: int, epoch: int) -> Refused | None:
        """The refusal of a copy that has no voice, to a request of this epoch; None: it has one.

        Who goes by an older route than this node's is told so, and not that the copy does not count: it comes again with the newer one.
        """
        state = self._store.slot_state(slot)
        mute = self._mute(state)
        if mute is None:
            return None
        known = self._epoch_of(slot)
        if epoch < known:
            return Refused(
                incarnation=state.incarnation, reason="epoch", ballot=state.ballot_floor, epoch=max(known, state.epoch)
            )
        return self.refused(slot, mute)

    def _lags(self, slot: int, epoch: int) -> bool:
        """Whether the copy has no voice by a route that is older than the asker's: by that one it may have."""
        return epoch > self._epoch_of(slot) and self._mute(self._store.slot_state(slot)) is not None

    async def _catch_up(self, slot: int, epoch: int) -> None:
        """Wait a moment for the route that the asker goes by. The registry tells every node, each at its own time."""
        for _ in range(ROUTE_LOOKS_MAX):
            if not self._lags(slot, epoch):
                return
            await asyncio.sleep(ROUTE_POLL_S)

    # ---- phase one

    def _prepare_refused(self, message: Prepare) -> Refused | None:
        muted = self._muted(message.slot, message.epoch)
        if muted is not None:
            return muted
        if self._store.failed is not None:
            # Nothing that is promised or accepted from now on would survive a restart.
            return self.refused(message.slot, "disk-failed", self._store.failed)
        if message.body_bytes and self._store.full:
            return self.refused(message.slot, "disk-full")
        return None

    def _prepare_now(self, message: Prepare, respond: Respond) -> bool:
        refused = self._prepare_refused(message)
        if refused is not None:
            if self._lags(message.slot, message.epoch):
                return False
            respond(refused)
            return True
        register = self._store.peek(message.slot, message.path)
        if register is None or _looks_back(message, register.record):
            return False
        actions = self.slot(message.slot).prepare(self._store.slot_state(message.slot), message, register, None)
        self._carry_out(message.slot, message.path, actions, respond)
        return True

    async def _prepare(self, message: Prepare) -> Reply:
        await self._catch_up(message.slot, message.epoch)
        refused = self._prepare_refused(message)
        if refused is not None:
            return refused
        register, prior = await self._register_and_prior(message)
        refused = self._prepare_refused(message)
        if refused is not None:
            return refused
        actions = self.slot(message.slot).prepare(self._store.slot_state(message.slot), message, register, prior)
        return await responded(partial(self._carry_out, message.slot, message.path, actions))

    async def _register_and_prior(self, message: Prepare) -> tuple[Register, WriteMark | None]:
        """The register as of now and what the write id did, both of the same moment."""
        register = await self._store.load(message.slot, message.path)
        while _looks_back(message, register.record):
            prior = await self._store.find_write(message.slot, message.path, message.write_id)
            now = await self._store.load(message.slot, message.path)
            if prior is not None or now.accepted == register.accepted:
                return now, prior
            register = now
        return register, None

    # ---- phase two

    def _commit_refused(self, message: Commit) -> Refused | None:
        """Why the COMMIT is not even looked at. Raises: DigestMismatch."""
        slot, added = message.slot, message.record.added
        muted = self._muted(slot, message.epoch)
        if muted is not None:
            return muted
        if self._store.failed is not None:
            return self.refused(slot, "disk-failed", self._store.failed)
        if added is not None and added.size > 0 and message.body is not None:
            if len(message.body) > INLINE_BYTES_MAX or content_hash(message.body) != added.etag:
                raise DigestMismatch("the body of a COMMIT does not match its record")
            if self._store.full and not message.holders:
                return self.refused(slot, "disk-full")
        return None

    def _commit_now(self, message: Commit, respond: Respond) -> bool:
        added = message.record.added
        if added is not None and added.size > 0 and message.body is None:
            return False
        register = self._store.peek(message.slot, message.path)
        if register is None or register.accepted == message.ballot:
            return False
        refused = self._commit_refused(message)
        if refused is not None:
            if self._lags(message.slot, message.epoch):
                return False
            respond(refused)
        else:
            here = NOTHING_NEEDED if added is None or added.size == 0 else BODY_ALONG
            self._decide(message, register, here, respond)
        return True

    async def _commit(self, message: Commit) -> Reply:
        slot, path, added = message.slot, message.path, message.record.added
        await self._catch_up(slot, message.epoch)
        refused = self._commit_refused(message)
        if refused is not None:
            return refused
        register = await self._store.load(slot, path)
        if register.accepted == message.ballot and message.body is not None and added is not None:
            # Accepted before, or (a LEARN overtook this) learnt without its bytes: then keep them.
            message = await self._keep_body(message, added)
        here = NOTHING_NEEDED
        if added is not None and added.size > 0:
            if message.body is None:
                message = await self._with_bytes(message, added)
            # Nothing is awaited between this and the decision: the blob must not be given up in between.
            here = await self._bytes_here(message, added)
            while (now := self._store.peek(slot, path)) is None:
                # One at a time: where memory is short, two would push each other's register out for ever.
                async with self._reloading:
                    await self._store.load(slot, path)
                    here = await self._bytes_here(message, added)
            register = now
        return await responded(partial(self._decide, message, register, here))

    def _decide(self, message: Commit, register: Register, here: BytesHere, respond: Respond) -> None:
        slot, path = message.slot, message.path
        muted = self._muted(slot, message.epoch)
        if muted is not None:  # since it was asked: the bytes took a while
            respond(muted)
            return
        actions = self.slot(slot).commit(self._store.slot_state(slot), message, register, here)
        if len(actions) > 1:  # something is to be persisted
            self.on_undecided(slot, path)
            self._complete_previous(slot, message.record, register)
        self._carry_out(slot, path, actions, respond)

    async def _keep_body(self, message: Commit, added: Version) -> Commit:
        """The bytes of an inline version that the register already refers to; the message without them."""
        body = message.body
        if body and await self._store.blob_state(message.slot, added.blob_id) is not BlobState.DURABLE:
            try:
                await self._store.install_chunk(message.slot, added, added.chunks[0], body)
            except StorageError as error:
                log.info("body not kept", slot=message.slot, blob_id=added.blob_id, error=str(error))
        return msgspec.structs.replace(message, body=None)

    def _complete_previous(self, slot: int, record: Record | None, before: Register) -> None:
        """A record whose predecessor was never seen here brings that one's row, not its bytes: fetch them."""
        previous = record.previous if record is not None else None
        known = before.record.added if before.record is not None else None
        if previous is not None and (known is None or known.blob_id != previous.blob_id):
            self._pulls.later(slot, previous, ())

    async def _with_bytes(self, message: Commit, added: Version) -> Commit:
        """Try to get an undecided record's bytes from those that accepted it; an inline body joins the message."""
        slot = message.slot
        # A blob that was given up here is fetched again: the holders accepted a record that refers to it.
        if not message.holders or await self._store.blob_state(slot, added.blob_id) is BlobState.DURABLE:
            return message
        try:
            body = await self._pulls.now(slot, added, message.holders)
        except (PeerError, StorageError, DigestMismatch) as error:
            log.info("pull before accept failed", slot=slot, blob_id=added.blob_id, error=str(error))
            return message
        return message if body is None else msgspec.structs.replace(message, body=body)

    async def _bytes_here(self, message: Commit, added: Version) -> BytesHere:
        if message.body is not None:
            return BytesHere(durable=False)
        state = await self._store.blob_state(message.slot, added.blob_id)
        return BytesHere(durable=state is BlobState.DURABLE, aborted=state is BlobState.ABORTED)

    # ---- what is chosen

    def _learn_now(self, message: Learn, respond: Respond) -> bool:
        peek = self._store.peek
        if any(peek(item.slot, item.path) is None for item in message.items):
            return False
        for item in message.items:
            if self._mute(self._store.slot_state(item.slot)) is None:
                register = peek(item.slot, item.path)
                # One item may push another out of memory: that one is as good as lost on its way.
                if register is not None:
                    self._learnt(item, register)
        respond(Done())
        return True

    async def _learn(self, item: Learnt) -> None:
        # A copy that is not filled yet has no floors: it must not hear of what may be forgotten elsewhere.
        if self._mute(self._store.slot_state(item.slot)) is None:
            register = await self._store.load(item.slot, item.path)
            if self._mute(self._store.slot_state(item.slot)) is None:
                self._learnt(item, register)

    def _learnt(self, item: Learnt, register: Register) -> None:
        actions = self.slot(item.slot).learn(self._store.slot_state(item.slot), item, register)
        try:
            for action in actions:
                if isinstance(action, Persist):
                    self._store.apply(action.mutation)
        except DiskFailed:
            return
        now = self._store.peek(item.slot, item.path)
        if now is not None and now.chosen:
            self.on_decided(item.slot, item.path)
        # What was accepted here has its bytes here; what is new here may lack them.
        if actions and item.record is not None and register.accepted != item.ballot:
            added = item.record.added
            if added is not None and added.size > 0:
                self._pulls.later(item.slot, added, item.holders)
            self._complete_previous(item.slot, item.record, register)

    # ---- questions

    def _enter(self, slot: int, epoch: int) -> Refused | None:
        """Why a question of this epoch is not answered here. A higher epoch than the copy's is adopted first.

        Nothing may be awaited between this and the look at the register: what an older epoch is told must be from
        before a newer one was. And the answer must wait for the register's position, which then is the epoch's too.
        """
        muted = self._muted(slot, epoch)
        if muted is not None:
            return muted
        action = ReplicaSlot.enter(self._store.slot_state(slot), slot, epoch)
        if action is None:
            return None
        if not isinstance(action, Persist):
            return self.refused(slot, "epoch")
        try:
            self._store.apply(action.mutation)
        except DiskFailed as error:
            return self.refused(slot, "disk-failed", error.detail)
        return None

    def _query_now(self, message: Query, respond: Respond) -> bool:
        slot, path = message.slot, message.path
        register = self._store.peek(slot, path)
        if register is None:
            return False
        refused = self._enter(slot, message.epoch)
        if refused is not None:
            if self._lags(slot, message.epoch):
                return False
            respond(refused)
            return True
        self._respond_durably(slot, path, self._register_reply(message, register), respond)
        return True

    async def _query(self, message: Query) -> Reply:
        slot = message.slot
        await self._catch_up(slot, message.epoch)
        muted = self._muted(slot, message.epoch)
        if muted is not None:
            return muted
        register = await self._store.load(slot, message.path)
        refused = self._enter(slot, message.epoch)
        if refused is not None:
            return refused
        await self._store.durable(self._store.position(slot, message.path))
        return self._register_reply(message, register)

    def _register_reply(self, message: Query, register: Register) -> RegisterReply:
        is_known = message.known is not None and register.accepted == message.known
        return RegisterReply(
            incarnation=self._store.slot_state(message.slot).incarnation,
            accepted=register.accepted,
            record=None if is_known else register.record,
            chosen=register.chosen,
        )

    async def _history(self, message: QueryHistory) -> Reply:
        slot, path = message.slot, message.path
        await self._catch_up(slot, message.epoch)
        muted = self._muted(slot, message.epoch)
        if muted is not None:
            return muted
        limit = max(1, min(message.limit, HISTORY_PAGE_MAX))
        # The register first: rows that appear after it was read are only ever newer than what it says.
        register = await self._store.load(slot, path)
        refused = self._enter(slot, message.epoch)
        if refused is not None:
            return refused
        position = self._store.position(slot, path)
        rows = await self._store.rows(slot, path, version=message.version, below=message.below, limit=limit)
        await self._store.durable(position)
        fitting = _fitting(rows)
        return HistoryReply(
            incarnation=self._store.slot_state(slot).incarnation,
            accepted=register.accepted,
            record=register.record,
            chosen=register.chosen,
            rows=tuple(fitting),
            more=message.version is None and (len(rows) >= limit or len(fitting) < len(rows)),
        )

    async def _scan(self, message: QueryScan) -> Reply:
        # One that is filled, or named, while the page is read may be told of in part.
        unheard = [slot for slot in self._newcomers() if self._mute(self._store.slot_state(slot)) is not None]
        page = await self._store.scan(
            message.prefix, message.start, message.delimiter, max(1, message.limit), dead=message.dead
        )
        incarnations, epochs = self._standing()
        incarnations.update(dict.fromkeys(unheard, NOBODY))
        return ScanReply(
            incarnation=self._store.disk_id,
            entries=tuple(page.entries),
            next_start=page.next_start,
            incarnations=incarnations,
            epochs=epochs,
        )

    def _standing(self) -> tuple[dict[int, str], dict[int, int]]:
        """The incarnations that a listing is told, and the epochs.

        Of copies that have no voice: nobody's incarnation, so that nobody counts them. Those are learners and new voters that are not
        filled, also if nothing was ever written there, and what lies here of slots whose route does not name this node any more.
        """
        told = self._store.incarnations()
        epochs: dict[int, int] = {}
        for slot in {*self._store.slots(), *self._newcomers()}:
            state = self._store.slot_state(slot)
            if state.epoch > 1:
                epochs[slot] = state.epoch
            if self._mute(state) is not None:
                told[slot] = NOBODY
        return told, epochs

    async def _inspect(self, message: Inspect) -> Reply:
        slot, path = message.slot, message.path
        register = await self._store.load(slot, path)
        found = await self._store.rows(slot, path, limit=INSPECT_ROWS_MAX)
        rows = _fitting(found)
        versions = {row.version.version: row.version for row in rows}
        if register.record is not None and register.record.added is not None:
            versions.setdefault(register.record.added.version, register.record.added)
        damaged = await self._wanted_of(slot, path)
        archived = await self._archived_of(slot, versions)
        present = {
            number: "damaged"
            if damaged.get(number)
            else await self._presence(slot, version, archived[number].evicted if number in archived else False)
            for number, version in versions.items()
        }
        state = self._store.slot_state(slot)
        return InspectReply(
            incarnation=state.incarnation,
            accepted=register.accepted,
            record=register.record,
            chosen=register.chosen,
            rows=tuple(rows),
            bytes_present=present,
            disk=self._store.disk_id,
            more=len(rows) < len(found) or len(found) >= INSPECT_ROWS_MAX,
            detail=self._store.failed or "",
            unsynced=self._mute(state) is not None,
            wanted=tuple(sorted(damaged)),
            archived={
                number: blob.chunks[:INSPECT_ARCHIVED_MAX]
                for number, blob in sorted(archived.items(), reverse=True)[:INSPECT_ARCHIVED_MAX]
            },
        )

    async def _archived_of(self, slot: int, versions: Mapping[int, Version]) -> dict[int, ArchivedBlob]:
        """What is known of these versions' archive copies; those of which nothing is known are left out."""
        if not self._store.tally(slot).archived_rows:
            return {}
        found = {number: await self._store.archived(slot, version.blob_id) for number, version in versions.items()}
        return {number: blob for number, blob in found.items() if blob is not None}

    async def _wanted_of(self, slot: int, path: str) -> dict[int, bool]:
        """Versions of the path whose bytes are to be fetched, and whether they were damaged here; of very many not all."""
        if not self._store.tally(slot).wanted:
            return {}
        found = await self._store.wanted(slot, INSPECT_WANTED_MAX)
        return {wanted.version.version: wanted.damaged for wanted in found if wanted.path == path}

    async def _presence(self, slot: int, version: Version, evicted: bool) -> str:
        if version.size == 0:
            return "all"
        if evicted:
            return "archived"
        chunks = version.chunks
        if version.manifest_id is not None:
            try:
                chunks = decode_manifest(await self._store.read_manifest(slot, version.blob_id, version.manifest_id))
            except Exception as error:
                log.info("manifest not readable", slot=slot, blob_id=version.blob_id, error=str(error))
                return "none"
        missing = await self._store.missing_chunks(slot, version, chunks)
        if not missing:
            return "all"
        return "none" if len(missing) == len(chunks) else "some"

    # ---- garbage

    async def _forget(self, message: ForgetStub) -> Reply:
        slot, path = message.slot, message.path
        mute = self._mute(self._store.slot_state(slot))
        if mute is not None:
            return self.refused(slot, mute)
        register = await self._store.load(slot, path)
        mute = self._mute(self._store.slot_state(slot))
        if mute is not None:
            return self.refused(slot, mute)
        actions = self.slot(slot).forget(self._store.slot_state(slot), message, register)
        reply = await responded(partial(self._carry_out, slot, path, actions))
        if isinstance(reply, Done):
            self.on_decided(slot, path)
        return reply

    # ---- bytes

    async def stage_refused(self, slot: int, epoch: int) -> Refused | None:
        """Why nothing may be staged in the slot by that epoch's route; None: it may."""
        await self._catch_up(slot, epoch)
        muted = self._muted(slot, epoch)
        # One that was left behind by a route that the sender has not seen yet takes the bytes: they are fetched from here then.
        return None if muted is None or muted.reason == "epoch" else muted

    async def handle_stage(self, peer: str, message: StageOpen, stream: IncomingStage) -> Reply:
        """Take in a blob; the answer is StagedReply or Refused."""
        slot = message.slot
        if not valid_ulid(message.blob_id) or not CHUNK_BYTES_MIN <= message.chunk_bytes <= CHUNK_BYTES_MAX:
            raise BadRequest("a blob id or chunk size that cannot be")
        if (refused := await self.stage_refused(slot, message.epoch)) is not None:
            return refused
        try:
            staging = await self._store.stage(slot, message.blob_id, chunk_bytes=message.chunk_bytes, size=message.size)
        except DiskFull as error:
            return self.refused(slot, "disk-full", error.detail)
        except DiskFailed as error:
            return self.refused(slot, "disk-failed", error.detail)
        done = False
        try:
            async for frame in stream.frames():
                self.served += 1
                await staging.write(frame)
            closing, manifest = stream.closing()
            chunks = closing.chunks
            if closing.manifest_id is not None:
                if manifest is None or content_hash(manifest) != closing.manifest_id:
                    raise DigestMismatch("the manifest does not have the hash that it was announced with")
                chunks = decode_manifest(manifest)
            await staging.finish(chunks, manifest)
            done = True
            log.info("blob staged", slot=slot, blob_id=message.blob_id, chunks=len(chunks))
        except DiskFull as error:
            return self.refused(slot, "disk-full", error.detail)
        except DiskFailed as error:
            return self.refused(slot, "disk-failed", error.detail)
        finally:
            if not done:
                await staging.abort()
        return StagedReply(incarnation=self._store.slot_state(slot).incarnation)

    async def handle_read(self, peer: str, request: Request) -> bytes:
        """The verified bytes of a chunk or a manifest file, or of many blobs."""
        match request:
            case ReadChunk():
                if not valid_ulid(request.blob_id) or not valid_hash(request.chunk.id):
                    raise BadRequest("not a blob or chunk id")
                if request.repair:
                    await self.pace.turn(request.chunk.len)
                    if (lent := self.lent(request.chunk)) is not None:
                        return lent
                else:
                    self.served += 1
                    if self.on_read is not None:
                        self.on_read(request.blob_id)
                return await self._read_chunk(request.slot, request.blob_id, request.chunk)
            case ReadManifest():
                if not valid_ulid(request.blob_id) or not valid_hash(request.manifest_id):
                    raise BadRequest("not a blob or manifest id")
                with self._noticing(request.slot, request.blob_id):
                    return await self._store.read_manifest(request.slot, request.blob_id, request.manifest_id)
            case ReadBlobs():
                return await self._read_blobs(request)
            case _:
                raise BadRequest(f"{type(request).__name__} does not ask for bytes")

    async def _read_chunk(self, slot: int, blob_id: str, chunk: ChunkRef) -> bytes:
        with self._noticing(slot, blob_id):
            return await self._store.read_chunk(slot, blob_id, chunk)

    async def _read_blobs(self, request: ReadBlobs) -> bytes:
        size = sum(chunk.len for _, chunk in request.blobs)
        if len(request.blobs) > READ_BLOBS_MAX or size > READ_BLOBS_BYTES_MAX:
            raise BadRequest(f"{len(request.blobs)} blobs of {size} bytes are too many at once")
        if not all(valid_ulid(blob_id) and valid_hash(chunk.id) for blob_id, chunk in request.blobs):
            raise BadRequest("not a blob or chunk id")
        await self.pace.turn(size)
        parts: list[bytes | None] = []
        for blob_id, chunk in request.blobs:
            try:
                parts.append(await self._read_chunk(request.slot, blob_id, chunk))
            except (ChunkMissing, ChunkCorrupt):
                parts.append(None)
        return pack_parts(parts)

    @contextmanager
    def _noticing(self, slot: int, blob_id: str) -> Iterator[None]:
        """Somebody counts on this copy: what it lacks is mended now, not when scrub comes by."""
        try:
            yield
        except (ChunkMissing, ChunkCorrupt) as error:
            self._pulls.missed(slot, blob_id, damaged=isinstance(error, ChunkCorrupt))
            raise
