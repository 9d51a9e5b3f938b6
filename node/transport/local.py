"""The own node as a peer: straight to the handler, through no socket and no codec."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from amberblob.clock import HybridClock
from amberblob.errors import PeerError, PeerTimeout, PeerUnreachable
from amberblob.wire import Failed, Reply, Request, StageClose, StageOpen
from node.transport.answers import EXPIRY_S, answer, at_once, early, raised, served
from node.transport.interface import Buffer, PeerHandler, Told
from node.transport.streams import StageInbox, StreamSender, gave_up


class LocalPeer:
    """Calls to the handler of this node, with the same errors as calls to any other."""

    def __init__(self, node_id: str, handler: PeerHandler, clock: HybridClock) -> None:
        self._node_id = node_id
        self._handler = handler
        self._clock = clock
        self._stages: set[LocalStage] = set()
        self._loop = asyncio.get_running_loop()
        self._calls: set[_Call] = set()
        self._expiry: asyncio.TimerHandle | None = None

    def ask(self, request: Request, told: Told, *, timeout_s: float) -> None:
        """One request, one answer, no task unless the handler needs one."""
        call = _Call(self, told, self._loop.time() + timeout_s)
        if not at_once(self._handler, self._node_id, request, call.respond):
            call.task = self._loop.create_task(self._serve(request, call))
        call.begun = True
        if call.told is not None:
            call.overdue = f"this node did not answer {type(request).__name__} within {timeout_s:.3g} s"
            self._calls.add(call)
            if self._expiry is None:
                self._expiry = self._loop.call_later(EXPIRY_S, self._expire)

    async def _serve(self, request: Request, call: _Call) -> None:
        call.respond(await answer(self._handler.handle(self._node_id, request), request))

    def forget(self, call: _Call) -> None:
        """The call is over."""
        self._calls.discard(call)

    def _expire(self) -> None:
        self._expiry = None
        now_s = self._loop.time()
        for call in [call for call in self._calls if call.deadline_s <= now_s]:
            call.expire()
        if self._calls and self._expiry is None:
            self._expiry = self._loop.call_later(EXPIRY_S, self._expire)

    async def call(self, request: Request, *, timeout_s: float) -> Reply:
        """One request, one answer. Raises PeerTimeout."""
        try:
            async with asyncio.timeout(timeout_s):
                return await served(self._handler, self._node_id, request)
        except TimeoutError:
            raise PeerTimeout(f"this node did not answer {type(request).__name__} within {timeout_s:.3g} s") from None

    def stage(self, message: StageOpen, *, stall_s: float) -> LocalStage:
        """Open a stream for a blob."""
        stage = LocalStage(self._node_id, self._handler, message, stall_s)
        self._stages.add(stage)
        stage.task.add_done_callback(lambda _: self._stages.discard(stage))
        return stage

    async def fetch(self, request: Request, *, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """The bytes, in one piece. Raises PeerTimeout, PeerError, ChunkMissing, ChunkCorrupt."""
        try:
            async with asyncio.timeout(timeout_s):
                data = await answer(self._handler.handle_read(self._node_id, request), request)
        except TimeoutError:
            raise PeerTimeout(f"this node did not read within {timeout_s:.3g} s") from None
        if isinstance(data, Failed):
            raise raised(data, self._node_id)
        if data:
            yield data

    async def close(self, *, grace_s: float) -> None:
        """Let blobs under way finish, then break them off."""
        if self._expiry is not None:
            self._expiry.cancel()
        for call in list(self._calls):
            call.expire()
        tasks = [stage.task for stage in self._stages]
        if not tasks:
            return
        await asyncio.wait(tasks, timeout=grace_s)
        for stage in list(self._stages):
            stage.fail(PeerUnreachable("the node is stopping"))
        await asyncio.wait(tasks, timeout=grace_s)


class _Call:
    """One request to the own handler.

    Attributes:
        told: who waits for the answer; None once told.
        begun: :meth:`LocalPeer.ask` has returned, so that an answer may be told at once.
        deadline_s: loop time at which it is given up, with the words of ``overdue``.
        task: what works on it, if that takes a task.
    """

    __slots__ = ("_local", "begun", "deadline_s", "overdue", "task", "told")

    def __init__(self, local: LocalPeer, told: Told, deadline_s: float) -> None:
        self._local = local
        self.told: Told | None = told
        self.begun = False
        self.deadline_s = deadline_s
        self.overdue = ""
        self.task: asyncio.Task[None] | None = None

    def respond(self, reply: Reply) -> None:
        """The answer; dropped when the call was given up."""
        told, self.told = self.told, None
        if told is None:
            return
        if self.begun:
            self._local.forget(self)
            told(reply)
        else:
            asyncio.get_running_loop().call_soon(told, reply)

    def expire(self) -> None:
        """Give it up."""
        told, self.told = self.told, None
        self._local.forget(self)
        if self.task is not None:
            self.task.cancel()
        if told is not None:
            told(PeerTimeout(self.overdue))


class LocalStage:
    """A blob on its way to the own handler, through a bounded queue in memory."""

    def __init__(self, node_id: str, handler: PeerHandler, message: StageOpen, stall_s: float) -> None:
        self._node_id = node_id
        self._stall_s = stall_s
        self._inbox = StageInbox(self._give_credit)
        self._sender = StreamSender(self._put)
        work = answer(handler.handle_stage(node_id, message, self._inbox), message)
        self.task: asyncio.Task[Reply] = asyncio.get_running_loop().create_task(work)
        self.task.add_done_callback(self._answered)

    async def write(self, data: Buffer) -> None:
        """Hand bytes on; waits while the window is full."""
        try:
            await self._sender.send(data, stall_s=self._stall_s)
        except TimeoutError:
            error = PeerTimeout(f"this node took no bytes of the blob for {self._stall_s:g} s")
            self._sender.fail(error)
            raise error from None

    async def close(self, message: StageClose, manifest: bytes | None, *, timeout_s: float) -> Reply:
        """Tell the chunks and the manifest file, and wait for the answer."""
        assert (message.manifest_id is None) == (manifest is None), "a manifest file goes with its id"
        try:
            if not self.task.done():
                self._inbox.close(message)
                if manifest:
                    self._inbox.keep_manifest(manifest)
                self._inbox.end()
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self.task)
        except TimeoutError:
            raise PeerTimeout(f"this node did not finish the blob within {timeout_s:.3g} s") from None

    async def abort(self) -> None:
        """Give the blob up."""
        self.fail(gave_up(self._node_id))

    def fail(self, error: PeerError) -> None:
        """Break the stream on both ends."""
        self._sender.fail(error)
        self._inbox.fail(error)

    def _put(self, data: bytes | memoryview) -> None:
        self._inbox.feed(data)

    def _give_credit(self, size_bytes: int) -> None:
        self._sender.grant(size_bytes)

    def _answered(self, task: asyncio.Task[Reply]) -> None:
        if task.cancelled():
            self._sender.fail(PeerUnreachable("the node is stopping"))
            return
        reply = task.result()
        self._sender.fail(early(reply, self._node_id))
