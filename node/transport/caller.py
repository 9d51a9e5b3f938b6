"""The dialling end of a connection: calls, blobs on their way out, and reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import partial

import msgspec

from amberblob import wire
from amberblob.errors import AmberError, PeerError, PeerRefused, PeerTimeout, WireError
from amberblob.limits import PEER_REQUESTS_MAX
from amberblob.wire import Done, Failed, Reply, Request, StageClose, StageOpen
from node.transport import frames
from node.transport.answers import EXPIRY_S, OVERLOADED, again, early, raised
from node.transport.connection import PING_INTERVAL_S, Connection
from node.transport.frames import Kind
from node.transport.handshake import Action, DiallerHandshake, Identity, Lane, Refuse
from node.transport.interface import Buffer, Told
from node.transport.refusals import RefusalLog
from node.transport.streams import StreamReceiver, StreamSender


class CallerConnection(Connection):
    """One connection to ``expects``. Await :attr:`ready` before use.

    Attributes:
        ready: done with None once established, with the error when that failed.
    """

    def __init__(
        self,
        identity: Identity,
        refusals: RefusalLog,
        *,
        expects: str,
        lane: Lane,
        nonce: bytes,
        ping_interval_s: float = PING_INTERVAL_S,
    ) -> None:
        super().__init__(identity, refusals, ping_interval_s=ping_interval_s)
        self.peer = expects
        self.ready: asyncio.Future[PeerError | None] = self._loop.create_future()
        self._handshake = DiallerHandshake(identity, expects=expects, lane=lane, nonce=nonce)
        self._calls: dict[int, tuple[Told, float, float, str]] = {}
        """Stream to who is to be told, until when (loop time, s), the timeout that was given (s), and the request's kind."""
        self._expiry: asyncio.TimerHandle | None = None
        self._waiting: set[asyncio.Task[None]] = set()
        self._streams: dict[int, RemoteStage | _Fetch] = {}
        self._last_stream = 0

    def ask(self, payload: bytes, kind: str, told: Told, *, timeout_s: float) -> None:
        """One request (:func:`frames.pack_request`), one answer. ``kind`` is the name of its class."""
        if (unknown := self._unknown(kind)) is not None:
            self._loop.call_soon(told, unknown)
        elif len(self._calls) + len(self._streams) >= PEER_REQUESTS_MAX:
            self._loop.call_soon(told, OVERLOADED)
        elif self.is_congested():
            task = self._loop.create_task(self._ask_later(payload, kind, told, timeout_s))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)
        elif self._error is not None:
            self._loop.call_soon(told, again(self._error, sent=False))
        else:
            try:
                self._post(payload, kind, told, timeout_s)
            except WireError as error:
                self._loop.call_soon(told, error)

    async def call(self, request: Request, *, request_id: str, timeout_s: float) -> Reply:
        """One request, one answer. Raises PeerUnreachable, PeerTimeout, PeerRefused, WireError."""
        kind = type(request).__name__
        if (unknown := self._unknown(kind)) is not None:
            raise unknown
        if len(self._calls) + len(self._streams) >= PEER_REQUESTS_MAX:
            return OVERLOADED
        payload = frames.pack_request(request_id, wire.encode(request))
        if self.is_congested():
            timeout_s = await self._room(kind, timeout_s)
        if self._error is not None:
            raise again(self._error, sent=False)
        answered: asyncio.Future[Reply] = self._loop.create_future()
        stream = self._post(payload, kind, partial(_settle, answered), timeout_s)
        try:
            return await answered
        except asyncio.CancelledError:
            if self._calls.pop(stream, None) is not None:
                self.send(Kind.CANCEL, stream)
            raise

    def _post(self, payload: bytes, kind: str, told: Told, timeout_s: float) -> int:
        stream = self._next_stream()
        self.send(Kind.REQUEST, stream, payload)
        self._calls[stream] = (told, self._loop.time() + timeout_s, timeout_s, kind)
        if self._expiry is None:
            self._expiry = self._loop.call_later(EXPIRY_S, self._expire)
        return stream

    async def _ask_later(self, payload: bytes, kind: str, told: Told, timeout_s: float) -> None:
        try:
            timeout_s = await self._room(kind, timeout_s)
        except PeerError as error:
            told(error)
        else:
            self.ask(payload, kind, told, timeout_s=timeout_s)

    def stage(self, message: StageOpen, *, request_id: str, stall_s: float) -> RemoteStage:
        """Open a stream for a blob. Raises PeerError."""
        stage = RemoteStage(self, self._open(message), stall_s)
        self._streams[stage.stream] = stage
        self.send(Kind.REQUEST, stage.stream, frames.pack_request(request_id, wire.encode(message)))
        return stage

    async def fetch(self, request: Request, *, request_id: str, timeout_s: float) -> AsyncGenerator[bytes, None]:
        """The bytes that follow the ``Done`` answer. Raises PeerError, ChunkMissing, ChunkCorrupt."""
        stream = self._open(request)
        fetch = _Fetch(self, stream)
        self._streams[stream] = fetch
        try:
            self.send(Kind.REQUEST, stream, frames.pack_request(request_id, wire.encode(request)))
            while (data := await fetch.receiver.take(timeout_s=timeout_s)) is not None:
                yield bytes(data)  # which copies nothing: frames of a fetch are bytes
        except TimeoutError:
            raise PeerTimeout(_overdue(self.peer, type(request).__name__, timeout_s)) from None
        finally:
            self.forget(stream)

    def forget(self, stream: int) -> None:
        """The caller wants nothing more of this stream: tell the peer, unless it is through."""
        if self._streams.pop(stream, None) is not None:
            self.send(Kind.CANCEL, stream)

    def finished(self, stream: int) -> None:
        """The peer is through with this stream."""
        self._streams.pop(stream, None)

    # ---- Connection

    def _handshake_begin(self) -> list[Action]:
        return self._handshake.begin()

    def _handshake_frame(self, kind: int, payload: bytes) -> list[Action]:
        return self._handshake.receive(kind, payload)

    def _handshake_closed(self) -> Refuse | None:
        return self._handshake.closed()

    def _established(self, peer: str) -> None:
        self.ready.set_result(None)

    def _gone(self, error: PeerError) -> None:
        if not self.ready.done():
            self.ready.set_result(error)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call[0](again(error))
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(again(error))

    def _frame(self, kind: int, stream: int, payload: memoryview) -> None:
        if kind == Kind.REPLY:
            call = self._calls.pop(stream, None)
            if call is not None:
                try:
                    reply = wire.decode_reply(payload)
                except msgspec.MsgspecError as error:
                    call[0](WireError(f"an answer that cannot be decoded: {error}"))
                else:
                    call[0](reply)
                return
        # What belongs to no stream comes late: the caller gave up.
        user = self._streams.get(stream)
        match kind:
            case Kind.REPLY:
                if user is not None:
                    user.replied(_decoded(payload))
            case Kind.DATA:
                if isinstance(user, _Fetch):
                    user.data(payload)
            case Kind.END:
                if isinstance(user, _Fetch):
                    user.end()
            case Kind.CREDIT:
                if isinstance(user, RemoteStage):
                    user.sender.grant(frames.unpack_credit(payload))
            case _:
                raise WireError(f"a frame of kind {kind}, which a listening node does not send")

    # ---- helpers

    def _expire(self) -> None:
        """Give up the requests whose time is over. One look at all of them now and then is cheaper than a timer for each."""
        self._expiry = None
        now_s = self._loop.time()
        for stream, (told, deadline_s, timeout_s, kind) in list(self._calls.items()):
            if deadline_s <= now_s and self._calls.pop(stream, None) is not None:
                self.send(Kind.CANCEL, stream)
                told(PeerTimeout(_overdue(self.peer, kind, timeout_s)))
        if self._calls and self._expiry is None:
            self._expiry = self._loop.call_later(EXPIRY_S, self._expire)

    async def _room(self, kind: str, timeout_s: float) -> float:
        """Wait until there is room to send; what is left of the timeout."""
        deadline_s = self._loop.time() + timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                await self.drained()
        except TimeoutError:
            raise PeerTimeout(_overdue(self.peer, kind, timeout_s), extra={"sent": False}) from None
        return max(0.0, deadline_s - self._loop.time())

    def _unknown(self, kind: str) -> PeerRefused | None:
        """Why this kind of request is not sent: the peer's version does not know it."""
        since = wire.SINCE.get(kind)
        if since is None or since <= self.wire_version or not self.established:
            return None
        return PeerRefused(
            f"{self.peer} speaks wire version {self.wire_version}, and {kind} needs {since}: upgrade {self.peer}",
            extra={"reason": "wire-version", "sent": False},
        )

    def _open(self, request: Request) -> int:
        if (unknown := self._unknown(type(request).__name__)) is not None:
            raise unknown
        if self._error is not None:
            raise again(self._error, sent=False)
        if len(self._calls) + len(self._streams) >= PEER_REQUESTS_MAX:
            raise PeerError(OVERLOADED.detail, code=OVERLOADED.code)
        return self._next_stream()

    def _next_stream(self) -> int:
        while True:
            self._last_stream = self._last_stream % frames.STREAM_MAX + 1
            if self._last_stream not in self._calls and self._last_stream not in self._streams:
                return self._last_stream


class RemoteStage:
    """A blob on its way to a peer (:class:`~node.transport.interface.OutgoingStage`).

    Attributes:
        stream: its number on the connection.
        sender: the bytes on their way.
    """

    def __init__(self, connection: CallerConnection, stream: int, stall_s: float) -> None:
        self.stream = stream
        self.sender = StreamSender(self._put, connection.congested)
        self._connection = connection
        self._stall_s = stall_s
        self._answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()

    async def write(self, data: Buffer) -> None:
        """Send bytes; waits while the peer's window is full, each time for the stage's timeout at most."""
        try:
            await self.sender.send(data, stall_s=self._stall_s)
        except TimeoutError:
            error = PeerTimeout(f"{self._connection.peer} took no bytes of the blob for {self._stall_s:g} s")
            self.sender.fail(error)
            raise error from None

    async def close(self, message: StageClose, manifest: bytes | None, *, timeout_s: float) -> Reply:
        """Tell the chunks, send the manifest file if there is one, and wait for the answer."""
        assert (message.manifest_id is None) == (manifest is None), "a manifest file goes with its id"
        try:
            async with asyncio.timeout(timeout_s):
                if not self._answered.done():
                    await self._complete(message, manifest)
                return await asyncio.shield(self._answered)
        except TimeoutError:
            raise PeerTimeout(_overdue(self._connection.peer, type(message).__name__, timeout_s)) from None
        finally:
            self._connection.forget(self.stream)

    async def abort(self) -> None:
        """Give the blob up."""
        self.sender.fail(PeerError("the blob was given up"))
        self._connection.forget(self.stream)

    def replied(self, reply: Reply) -> None:
        """The peer answered; if it did before the end it takes no more bytes."""
        self._connection.finished(self.stream)
        if not self._answered.done():
            self._answered.set_result(reply)
        self.sender.fail(early(reply, self._connection.peer))

    def fail(self, error: PeerError) -> None:
        """The connection is lost."""
        self.sender.fail(error)
        if not self._answered.done():
            self._answered.set_exception(error)
            self._answered.exception()  # nobody need ask: write() tells it too

    async def _complete(self, message: StageClose, manifest: bytes | None) -> None:
        try:
            await self._connection.drained()
            self._connection.send(Kind.CLOSE, self.stream, wire.encode(message))
            if manifest is not None:
                await self.sender.send(manifest, stall_s=None)
            self._connection.send(Kind.END, self.stream)
        except AmberError:
            if not self._answered.done():
                raise

    def _put(self, data: bytes | memoryview) -> None:
        self._connection.send(Kind.DATA, self.stream, data)


class _Fetch:
    """A read under way: Done with the size, that many bytes, END."""

    def __init__(self, connection: CallerConnection, stream: int) -> None:
        self.receiver = StreamReceiver(self._give_credit)
        self._connection = connection
        self._stream = stream
        self._left_bytes: int | None = None

    def replied(self, reply: Reply) -> None:
        """The answer, before any bytes."""
        if isinstance(reply, Done) and self._left_bytes is None:
            self._left_bytes = reply.size
            return
        self._connection.finished(self._stream)
        if isinstance(reply, Failed):
            self.receiver.fail(raised(reply, self._connection.peer))
        else:
            self.receiver.fail(WireError(f"{self._connection.peer} answers a read with {type(reply).__name__}"))

    def data(self, payload: memoryview) -> None:
        """Some bytes. Raises WireError when they are too many."""
        if self._left_bytes is None or len(payload) > self._left_bytes:
            raise WireError("more bytes than a read was said to have")
        self._left_bytes -= len(payload)
        self.receiver.feed(bytes(payload))

    def end(self) -> None:
        """That was all. Raises WireError when it was not."""
        if self._left_bytes != 0:
            raise WireError("fewer bytes than a read was said to have")
        self._connection.finished(self._stream)
        self.receiver.end()

    def fail(self, error: PeerError) -> None:
        """The connection is lost."""
        self.receiver.fail(error)

    def _give_credit(self, size_bytes: int) -> None:
        self._connection.send(Kind.CREDIT, self._stream, frames.pack_credit(size_bytes))


def _decoded(payload: memoryview) -> Reply:
    try:
        return wire.decode_reply(payload)
    except msgspec.MsgspecError as error:
        raise WireError(f"an answer that cannot be decoded: {error}") from None


def _settle(answered: asyncio.Future[Reply], told: Reply | PeerError) -> None:
    if answered.done():
        return
    if isinstance(told, Exception):
        answered.set_exception(told)
    else:
        answered.set_result(told)


def _overdue(peer: str, kind: str, timeout_s: float) -> str:
    return f"{peer} did not answer {kind} within {timeout_s:.3g} s"
