"""The listening end of a connection: runs the node's handler for what a peer asks.

A small request is answered without a task where the handler can; any other is a task of its own, all of them bounded
in number. A task whose answer is no longer wanted (the caller gave
up, or its connection broke) is cancelled, so handlers must bear cancellation at any await. A task that takes
in a blob is not cancelled: it learns from its stream that nothing more will come, and cleans up.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine
from functools import partial
from typing import Any

import msgspec
import structlog

from amberblob import wire
from amberblob.errors import PeerError, WireError
from amberblob.limits import PEER_REQUESTS_MAX
from amberblob.tracing import set_request_id
from amberblob.wire import BytesRequest, Done, Failed, Reply, Request, StageOpen
from node.transport import frames
from node.transport.answers import OVERLOADED, SHUTTING_DOWN, answer, at_once
from node.transport.connection import PING_INTERVAL_S, Connection
from node.transport.frames import Kind
from node.transport.handshake import Action, Identity, ListenerHandshake
from node.transport.interface import PeerHandler
from node.transport.refusals import RefusalLog
from node.transport.streams import StageInbox, StreamSender, gave_up


class AnswererConnection(Connection):
    """One connection that a peer made.

    Args:
        context: the log context that handlers start from; request id and peer are bound on a copy.
    """

    def __init__(
        self,
        identity: Identity,
        refusals: RefusalLog,
        handler: PeerHandler,
        *,
        nonce: bytes,
        context: contextvars.Context,
        requests_max: int = PEER_REQUESTS_MAX,
        ping_interval_s: float = PING_INTERVAL_S,
    ) -> None:
        super().__init__(identity, refusals, ping_interval_s=ping_interval_s)
        self._handshake = ListenerHandshake(identity, nonce=nonce)
        self._handler = handler
        self._context = context
        self._requests_max = requests_max
        self._running: dict[int, asyncio.Task[None]] = {}
        self._cancelled: set[asyncio.Task[None]] = set()
        self._answering: set[int] = set()
        """Streams that are answered without a task, as soon as what the answer says is durable."""
        self._all_answered: asyncio.Future[None] | None = None
        self._inboxes: dict[int, StageInbox] = {}
        self._senders: dict[int, StreamSender] = {}
        self._stopping = False

    def stop(self) -> None:
        """Refuse new requests from now on."""
        self._stopping = True

    async def answered(self) -> None:
        """Wait until no request is under way that has no task."""
        while self._answering:
            self._all_answered = self._loop.create_future()
            await self._all_answered

    def tasks(self) -> list[asyncio.Task[None]]:
        """The requests under way that have a task."""
        return [*self._running.values(), *self._cancelled]

    # ---- Connection

    def _handshake_frame(self, kind: int, payload: bytes) -> list[Action]:
        actions = self._handshake.receive(kind, payload)
        self.peer = self._handshake.peer
        return actions

    def _gone(self, error: PeerError) -> None:
        for inbox in self._inboxes.values():
            inbox.fail(error)
        for sender in self._senders.values():
            sender.fail(error)
        for stream in list(self._answering):
            self._over(stream)
        for stream in list(self._running):
            self._cancel(stream)

    def _frame(self, kind: int, stream: int, payload: memoryview) -> None:
        if kind == Kind.REQUEST:
            self._request(stream, payload)
            return
        # What belongs to no stream comes late: the handler answered before the sender was through.
        inbox = self._inboxes.get(stream)
        match kind:
            case Kind.DATA:
                if inbox is not None:
                    inbox.feed(bytes(payload))
            case Kind.CLOSE:
                if inbox is not None:
                    inbox.close(_stage_close(payload))
            case Kind.END:
                if inbox is not None:
                    inbox.end()
            case Kind.CREDIT:
                if (sender := self._senders.get(stream)) is not None:
                    sender.grant(frames.unpack_credit(payload))
            case Kind.CANCEL:
                if inbox is not None:
                    inbox.fail(gave_up(self.peer))
                self._cancel(stream)
            case _:
                raise WireError(f"a frame of kind {kind}, which a dialling node does not send")

    # ---- requests

    def _request(self, stream: int, payload: memoryview) -> None:
        if stream == 0 or stream in self._running or stream in self._answering:
            raise WireError(f"a request on stream {stream}, which is in use")
        request_id, message = frames.unpack_request(payload)
        if self._stopping:
            self._reply(stream, SHUTTING_DOWN)
            return
        if len(self._running) + len(self._cancelled) + len(self._answering) >= self._requests_max:
            self._reply(stream, OVERLOADED)
            return
        try:
            request = wire.decode_request(message)
        except msgspec.MsgspecError as error:
            self._reply(stream, Failed(code=WireError.code, detail=f"a request that cannot be decoded: {error}"))
            return
        work: Coroutine[Any, Any, None]
        if isinstance(request, StageOpen):
            inbox = StageInbox(lambda size: self.send(Kind.CREDIT, stream, frames.pack_credit(size)))
            self._inboxes[stream] = inbox
            work = self._answer_stage(stream, request_id, request, inbox)
        elif isinstance(request, BytesRequest):
            work = self._answer_read(stream, request_id, request)
        else:
            self._answering.add(stream)
            if not self.is_congested() and at_once(self._handler, self.peer, request, partial(self._respond, stream)):
                return
            self._answering.discard(stream)
            work = self._answer_call(stream, request_id, request)
        self._running[stream] = self._loop.create_task(work, context=self._context.copy())

    def _respond(self, stream: int, reply: Reply) -> None:
        if stream in self._answering:
            self._reply(stream, reply)
            self._over(stream)

    def _over(self, stream: int) -> None:
        self._answering.discard(stream)
        if self._all_answered is not None and not self._answering and not self._all_answered.done():
            self._all_answered.set_result(None)

    async def _answer_call(self, stream: int, request_id: str, request: Request) -> None:
        self._bind(request_id)
        reply = await answer(self._handler.handle(self.peer, request), request)
        await self._finish_request(stream, reply)

    async def _answer_stage(self, stream: int, request_id: str, message: StageOpen, inbox: StageInbox) -> None:
        self._bind(request_id)
        reply = await answer(self._handler.handle_stage(self.peer, message, inbox), message)
        self._inboxes.pop(stream, None)
        await self._finish_request(stream, reply)

    async def _answer_read(self, stream: int, request_id: str, request: Request) -> None:
        self._bind(request_id)
        data = await answer(self._handler.handle_read(self.peer, request), request)
        if isinstance(data, Failed):
            await self._finish_request(stream, data)
            return
        self._reply(stream, Done(now_ms=self._identity.clock.now_ms(), size=len(data)))
        sender = StreamSender(lambda part: self.send(Kind.DATA, stream, part), self.congested)
        self._senders[stream] = sender
        try:
            await sender.send(data, stall_s=None)
            self.send(Kind.END, stream)
        except PeerError:
            pass  # the connection is lost, and with it whoever asked
        finally:
            self._senders.pop(stream, None)
            self._running.pop(stream, None)

    async def _finish_request(self, stream: int, reply: Reply) -> None:
        if self.is_congested():
            await self.drained()
        if self._running.pop(stream, None) is not None:
            self._reply(stream, reply)

    def _bind(self, request_id: str) -> None:
        set_request_id(request_id)
        structlog.contextvars.bind_contextvars(peer=self.peer)

    def _reply(self, stream: int, reply: Reply) -> None:
        try:
            self.send(Kind.REPLY, stream, wire.encode(reply))
        except WireError as error:
            self.send(Kind.REPLY, stream, wire.encode(Failed(code=error.code, detail=error.detail)))

    def _cancel(self, stream: int) -> None:
        """Nobody waits for this answer any more."""
        self._over(stream)
        task = self._running.pop(stream, None)
        if task is None:
            return
        if self._inboxes.pop(stream, None) is None:
            task.cancel()
        self._cancelled.add(task)
        task.add_done_callback(self._cancelled.discard)


def _stage_close(payload: memoryview) -> wire.StageClose:
    try:
        message = wire.decode_request(payload)
    except msgspec.MsgspecError as error:
        raise WireError(f"a StageClose that cannot be decoded: {error}") from None
    if not isinstance(message, wire.StageClose):
        raise WireError(f"a {type(message).__name__} where a StageClose belongs")
    return message
