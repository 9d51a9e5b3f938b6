"""What a node answers its peers, and its own coordinator, about the copies on one disk: which request goes where."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, assert_never

from amberblob.ballot import SlotState
from amberblob.clock import HybridClock
from amberblob.errors import BadRequest, NoArchive
from amberblob.ids import valid_ulid
from amberblob.wire import (
    Commit,
    Discard,
    Done,
    Inspect,
    Learn,
    Ping,
    Prepare,
    Query,
    QueryHistory,
    QueryScan,
    ReadBlobs,
    ReadChunk,
    ReadManifest,
    RefusalReason,
    Reply,
    Request,
    StageClose,
    StageOpen,
)
from amberblob.wire_archive import ArchiveRequest
from amberblob.wire_repair import ForgetStub
from chunkstore.interface import ReplicaStore
from node.pulls import PullRequests
from node.repairs import Question, Repairs
from node.replica.bodies import Bodies
from node.replica.commit import Commits
from node.replica.copies import Copies
from node.replica.inspection import Inspection
from node.replica.learning import Learning
from node.replica.prepare import Prepares
from node.replica.questions import Questions
from node.replica.streams import Streams
from node.transport.interface import IncomingStage, Respond


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
        copies: which copies have a voice, and what they promised; counts what is done for clients.
        streams: bytes in and out.
        archive: answers a peer's questions about the archive; None: this node has none.
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
        self.copies = Copies(store, mute=mute, epoch_of=epoch_of)
        self.streams = Streams(store, self.copies, pulls)
        self.archive: Callable[[str, ArchiveRequest], Awaitable[Reply]] | None = None
        self._store = store
        self._repairs = repairs
        self._clock = clock
        bodies = Bodies(store, pulls)
        self._prepares = Prepares(store, self.copies)
        self._commits = Commits(store, self.copies, bodies)
        self._learning = Learning(store, self.copies, bodies, pulls)
        self._questions = Questions(store, self.copies, newcomers)
        self._inspection = Inspection(store, self.copies)
        self._at_once: dict[type[Request], Callable[[Any, Respond], bool]] = {
            Prepare: self._prepares.answer_now,
            Commit: self._commits.answer_now,
            Learn: self._learning.learn_now,
            Query: self._questions.query_now,
        }

    def answer(self, peer: str, request: Request, respond: Respond) -> bool:
        """Answer at once what needs nothing from the disk: see :class:`node.transport.interface.PeerHandler`."""
        at_once = self._at_once.get(type(request))
        if at_once is None:
            return False
        self.copies.served += 1
        return at_once(request, respond)

    async def handle(self, peer: str, request: Request) -> Reply:
        """Answer anything but StageOpen and :data:`amberblob.wire.BytesRequest`."""
        if isinstance(request, Question):
            return await self._repairs.answer(request)
        if isinstance(request, ArchiveRequest):
            if self.archive is None:
                raise NoArchive
            return await self.archive(peer, request)
        match request:
            case Prepare():
                return await self._prepares.answer(request)
            case Commit():
                return await self._commits.answer(request)
            case Learn():
                return await self._learning.learn(request)
            case Query():
                return await self._questions.query(request)
            case QueryHistory():
                self.copies.served += 1
                return await self._questions.history(request)
            case QueryScan():
                self.copies.served += 1
                return await self._questions.scan(request)
            case Inspect():
                return await self._inspection.answer(request)
            case Discard():
                if not valid_ulid(request.blob_id):
                    raise BadRequest(f"{request.blob_id!r} is no blob id")
                await self._store.discard(request.slot, request.blob_id)
                return Done()
            case ForgetStub():
                return await self._learning.forget(request)
            case Ping():
                return Done(now_ms=self._clock.now_ms())
            case StageOpen() | StageClose() | ReadChunk() | ReadManifest() | ReadBlobs():
                raise BadRequest(f"{type(request).__name__} does not come as a plain request")
            case _:
                assert_never(request)

    async def handle_stage(self, peer: str, message: StageOpen, stream: IncomingStage) -> Reply:
        """Take in a blob; the answer is StagedReply or Refused."""
        return await self.streams.stage(message, stream)

    async def handle_read(self, peer: str, request: Request) -> bytes:
        """The verified bytes of a chunk or a manifest file, or of many blobs."""
        return await self.streams.read(request)
