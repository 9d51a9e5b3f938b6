"""The network between simulated nodes: real messages through the real codec, and everything that may happen to them.

A request can be lost, doubled, late, or arrive while its answer does not; links can be cut one way or both. What a
broken TCP connection would tell the caller at once, it is told at once; what a silent one would not, it waits for.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from amberblob import wire
from amberblob.errors import PeerError, PeerTimeout, PeerUnreachable
from amberblob.wire import Failed, Reply, Request, StageClose, StageOpen
from node.transport.answers import answer, at_once, early, raised, served
from node.transport.interface import Buffer, PeerHandler, Told
from node.transport.streams import StageInbox, StreamSender
from sim.loop import Process, SimHandle, SimLoop

PIECE_BYTES = 50_000
SILENCE_S = 6.0
"""How long a connection on which nothing arrives any more stays open: what unanswered pings take (:mod:`node.transport.connection`)."""

DIAL_EVERY_S = 1.0
"""A node that was asked about and is out of reach is dialled this often until it answers, as :mod:`node.transport.link` does."""


@dataclass(slots=True)
class Peer:
    """A node as the network sees it in its present life."""

    process: Process
    handler: PeerHandler


@dataclass(eq=False)
class Network:
    """Who reaches whom, how well, and how fast."""

    loop: SimLoop
    random: Random
    fired: Counter[str]
    note: Callable[[str], None]
    peers: dict[str, Peer] = field(default_factory=dict)
    cut: set[tuple[str, str]] = field(default_factory=set)
    """Directed links on which nothing arrives."""
    loss: float = 0.0
    doubling: float = 0.0
    latency_s: float = 0.0005
    spikes: float = 0.0
    """The part of all messages that are a hundred times as late."""
    slow: dict[str, float] = field(default_factory=dict)
    late: dict[str, float] = field(default_factory=dict)
    """How much longer the answers to some kinds of messages take, at most; half of it at least."""
    stages: dict[SimStage, None] = field(default_factory=dict)
    patient: dict[Waiting, None] = field(default_factory=dict)
    """Requests whose callers wait for longer than pings would."""

    def delay_s(self, source: str, target: str) -> float:
        """How long a message takes; the next one may overtake it."""
        delay = self.latency_s * (0.3 + self.random.expovariate(1.0))
        if self.spikes and self.random.random() < self.spikes:
            self.fired["late message"] += 1
            delay *= 100
        return delay * max(self.slow.get(source, 1.0), self.slow.get(target, 1.0))

    def late_s(self, kind: str) -> float:
        """How much longer this answer takes."""
        return self.late[kind] * (0.5 + self.random.random() / 2) if kind in self.late else 0.0

    def loses(self, source: str, target: str, kind: str) -> bool:
        """Whether a message does not arrive."""
        if (source, target) in self.cut:
            self.fired["cut message"] += 1
            return True
        if self.loss and self.random.random() < self.loss:
            self.fired["lost message"] += 1
            self.note(f"{source} -> {target} {kind} lost")
            return True
        return False

    def up(self, name: str) -> Peer | None:
        """A node that runs, or None."""
        peer = self.peers.get(name)
        return peer if peer is not None and peer.process.alive else None

    def later(self, delay_s: float, context: contextvars.Context, what: Callable[..., Any], *args: Any) -> None:
        """Call ``what`` as code of the process whose context it is."""
        self.loop.call_later(delay_s, what, *args, context=context)

    def died(self, name: str) -> None:
        """A process ended: the other ends of its connections learn of it."""
        for stage in list(self.stages):
            stage.peer_died(name)
        error = PeerUnreachable(f"{name} closed the connection")
        for waiting in [one for one in self.patient if one.node == name]:
            waiting.broken(error)


class Waiting:
    """A request whose answer is awaited. What :func:`asyncio.timeout` does, at a third of its price."""

    __slots__ = ("kind", "late", "node", "result", "timeout_s", "timer")

    timer: SimHandle

    def __init__(self, node: str, kind: str, timeout_s: float, result: asyncio.Future[Any]) -> None:
        self.node = node
        self.kind = kind
        self.timeout_s = timeout_s
        self.result = result
        self.late: PeerTimeout | None = None

    def expire(self) -> None:
        """The time is over: also an answer of which nobody has heard yet comes too late now."""
        self.late = _no_answer(self.node, self.kind, self.timeout_s)
        self.broken(self.late)

    def broken(self, error: PeerError) -> None:
        """There will be no answer."""
        if not self.result.done():
            self.result.set_exception(error)


class SimPeers:
    """:class:`node.transport.interface.Peers` of one node in one of its lives."""

    def __init__(self, network: Network, me: str, process: Process, handler: PeerHandler) -> None:
        self._network = network
        self._me = me
        self._process = process
        self._handler = handler
        self._failed: set[str] = set()
        self._dialling: set[str] = set()
        self._asking: set[asyncio.Task[None]] = set()

    def ask(self, node: str, request: Request, told: Told, *, timeout_s: float) -> None:
        loop = self._network.loop
        if node != self._me:
            # Most of what nodes say to each other: without a task for each of them.
            loop.call_soon(self._ask_other, node, request, told, timeout_s)
            return
        task = loop.create_task(self._ask_and_tell(node, request, told, timeout_s))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    def _ask_other(self, node: str, request: Request, told: Told, timeout_s: float) -> None:
        waiting = self._request(node, request, timeout_s, self._handle)

        def answered(done: asyncio.Future[Any]) -> None:
            told(self._outcome(waiting))

        waiting.result.add_done_callback(answered)

    async def _ask_and_tell(self, node: str, request: Request, told: Told, timeout_s: float) -> None:
        try:
            reply = await self.call(node, request, timeout_s=timeout_s)
        except PeerError as error:
            told(error)
        else:
            told(reply)

    async def call(self, node: str, request: Request, *, timeout_s: float) -> Reply:
        reply = await self._ask(node, request, timeout_s, self._handle)
        assert not isinstance(reply, bytes)
        return reply

    async def fetch(self, node: str, request: Request, *, timeout_s: float) -> AsyncIterator[bytes]:
        data = await self._ask(node, request, timeout_s, self._read)
        if isinstance(data, Failed):
            raise raised(data, node)
        assert isinstance(data, bytes)
        for at in range(0, len(data), PIECE_BYTES):
            yield data[at : at + PIECE_BYTES]

    @staticmethod
    async def _handle(handler: PeerHandler, peer: str, request: Request) -> Reply:
        return await served(handler, peer, request)

    @staticmethod
    async def _read(handler: PeerHandler, peer: str, request: Request) -> bytes | Failed:
        return await answer(handler.handle_read(peer, request), request)

    async def _ask(self, node: str, request: Request, timeout_s: float, serve: Callable[..., Any]) -> Reply | bytes:
        if node == self._me:
            try:
                async with asyncio.timeout(timeout_s):
                    found: Reply | bytes = await serve(self._handler, self._me, request)
                    return found
            except TimeoutError:
                self._failed.add(node)
                raise _no_answer(node, type(request).__name__, timeout_s) from None
        waiting = self._request(node, request, timeout_s, serve)
        try:
            await waiting.result
        except PeerError:
            # The outcome says it, too.
            pass
        finally:
            self._let_go(waiting)
        outcome: Reply | bytes | PeerError = self._outcome(waiting)
        if isinstance(outcome, PeerError):
            raise outcome
        return outcome

    def _request(self, node: str, request: Request, timeout_s: float, serve: Callable[..., Any]) -> Waiting:
        """Send a request on its way."""
        loop, kind = self._network.loop, type(request).__name__
        waiting = Waiting(node, kind, timeout_s, loop.create_future())
        waiting.timer = loop.call_later(timeout_s, waiting.expire)
        if timeout_s > SILENCE_S:
            self._network.patient[waiting] = None
        self._send(node, kind, wire.encode(request), serve, waiting.result)
        return waiting

    def _outcome(self, waiting: Waiting) -> Any:
        """The answer, or why there is none; once one of them is there."""
        self._let_go(waiting)
        error = waiting.result.exception()
        error = waiting.late or error
        if error is None:
            self._failed.discard(waiting.node)
            return waiting.result.result()
        self._failed.add(waiting.node)
        return error

    def _let_go(self, waiting: Waiting) -> None:
        """Nobody waits any more."""
        waiting.timer.cancel()
        self._network.patient.pop(waiting, None)

    def _send(
        self, node: str, kind: str, payload: bytes, serve: Callable[..., Any], result: asyncio.Future[Any]
    ) -> None:
        network, random = self._network, self._network.random
        if network.loses(self._me, node, kind):
            if random.random() < 0.5 and (self._me, node) not in network.cut:
                self._break(node, result)
            else:
                self._fall_silent(node, result)
            return
        # What is on its way arrives, also when its sender has died meanwhile.
        arrive = (self._arrive, node, kind, payload, serve)
        network.later(network.delay_s(self._me, node), contextvars.Context(), *arrive, result)
        if network.doubling and random.random() < network.doubling:
            network.fired["doubled message"] += 1
            twin: asyncio.Future[Any] = network.loop.create_future()
            twin.add_done_callback(lambda done: done.exception(), context=contextvars.Context())
            delay_s = network.delay_s(self._me, node) * 3
            network.later(delay_s, contextvars.Context(), *arrive, twin)

    def _break(self, node: str, result: asyncio.Future[Any]) -> None:
        network = self._network
        context = self._process.context()
        network.later(network.delay_s(node, self._me), context, self._told, result, PeerUnreachable(f"{node}: reset"))

    def _fall_silent(self, node: str, result: asyncio.Future[Any]) -> None:
        """Nothing tells the caller at once; whoever waits for longer than pings would learns it from them."""
        silent = PeerUnreachable(f"{node}: the connection fell silent")
        self._network.later(SILENCE_S, self._process.context(), self._told, result, silent)

    def _arrive(
        self, node: str, kind: str, payload: bytes, serve: Callable[..., Any], result: asyncio.Future[Any]
    ) -> None:
        network = self._network
        peer = network.up(node)
        if peer is None:
            self._break(node, result)
            return

        serving = (peer.handler, node, kind, payload, serve, result)
        network.loop.call_soon(self._serve, *serving, context=peer.process.context())

    def _serve(
        self,
        handler: PeerHandler,
        node: str,
        kind: str,
        payload: bytes,
        serve: Callable[..., Any],
        result: asyncio.Future[Any],
    ) -> None:
        """On the node that was asked: as a connection does it, with a task only for what needs one."""
        network = self._network
        request = wire.decode_request(payload)
        network.note(f"{self._me} -> {node} {kind}")
        has_responded = False

        def respond(reply: Any) -> None:
            nonlocal has_responded
            if not has_responded:
                has_responded = True
                self._respond(node, kind, reply, result)

        async def work(answering: Coroutine[Any, Any, Reply | bytes]) -> None:
            respond(await answering)

        if serve is not SimPeers._handle:
            network.loop.create_task(work(serve(handler, self._me, request)))
        elif not at_once(handler, self._me, request, respond):
            network.loop.create_task(work(answer(handler.handle(self._me, request), request)))

    def _respond(self, node: str, kind: str, reply: Any, result: asyncio.Future[Any]) -> None:
        """The answer goes on its way."""
        network = self._network
        encoded = reply if isinstance(reply, bytes) else wire.encode(reply)
        if network.loses(node, self._me, f"answer to {kind}"):
            self._fall_silent(node, result)
            return
        again = encoded if isinstance(reply, bytes) else wire.decode_reply(encoded)
        network.note(f"{node} -> {self._me} {type(reply).__name__} to {kind}")
        delay_s = network.delay_s(node, self._me) + network.late_s(kind)
        network.later(delay_s, self._process.context(), self._told, result, again)

    @staticmethod
    def _told(result: asyncio.Future[Any], told: Any) -> None:
        if result.done():
            return
        if isinstance(told, Exception):
            result.set_exception(told)
        else:
            result.set_result(told)

    async def stage(self, node: str, message: StageOpen, *, timeout_s: float) -> SimStage:
        network = self._network
        if node != self._me:
            await asyncio.sleep(network.delay_s(self._me, node))
            if network.loses(self._me, node, "StageOpen"):
                self._failed.add(node)
                raise PeerUnreachable(f"the connection to {node} broke")
        peer = network.up(node)
        if peer is None:
            self._failed.add(node)
            raise PeerUnreachable(f"{node} is down")
        decoded = wire.decode_request(wire.encode(message))
        assert isinstance(decoded, StageOpen)
        return SimStage(network, self._me, self._process, node, peer, decoded, timeout_s)

    def reachable(self, node: str) -> bool:
        """Whether the last contact went well. If not, the node is dialled from now on: whoever only talks to those that can be
        reached would never talk again to one that failed once.
        """
        if node == self._me or node not in self._failed:
            return True
        if node not in self._dialling:
            self._dialling.add(node)
            self._dial_later(node)
        return False

    def doubt(self, nodes: Iterable[str]) -> None:
        """Take these for gone, until they are dialled: as after a contact with each that failed."""
        self._failed.update(node for node in nodes if node != self._me)

    def _dial_later(self, node: str) -> None:
        self._network.later(DIAL_EVERY_S, self._process.context(), self._dial, node)

    def _dial(self, node: str) -> None:
        """One attempt, unless the node was heard of meanwhile."""
        network, me = self._network, self._me
        if node in self._failed and (network.up(node) is None or network.loses(me, node, "handshake")):
            self._dial_later(node)
            return
        there_s = network.delay_s(me, node)
        network.later(there_s + network.delay_s(node, me), self._process.context(), self._dialled, node)

    def _dialled(self, node: str) -> None:
        network = self._network
        if node in self._failed and (
            network.up(node) is None or network.loses(node, self._me, "answer to the handshake")
        ):
            self._dial_later(node)
            return
        self._dialling.discard(node)
        self._failed.discard(node)


def _no_answer(node: str, kind: str, timeout_s: float) -> PeerTimeout:
    return PeerTimeout(f"{node} did not answer {kind} within {timeout_s:.3g} s")


class SimStage:
    """A blob on its way to one node: in order, until the link is cut or an end of it dies."""

    def __init__(
        self, network: Network, me: str, process: Process, node: str, peer: Peer, message: StageOpen, stall_s: float
    ) -> None:
        self._network = network
        self._me = me
        self._mine = process.context
        self._node = node
        self._theirs = peer.process.context
        self._stall_s = stall_s
        self._arrives_s = 0.0
        self._broken = False
        self._inbox = StageInbox(self._credit)
        self._sender = StreamSender(self._put)
        self._reply: asyncio.Future[Reply] = network.loop.create_future()
        self._reply.add_done_callback(lambda reply: reply.cancelled() or reply.exception())
        work = answer(peer.handler.handle_stage(me, message, self._inbox), message)
        task = network.loop.create_task(work, context=peer.process.context())
        task.add_done_callback(self._answered)
        network.stages[self] = None

    # -- the sending end

    async def write(self, data: Buffer) -> None:
        try:
            await self._sender.send(data, stall_s=self._stall_s)
        except TimeoutError:
            error = PeerTimeout(f"{self._node} took no bytes of the blob for {self._stall_s:g} s")
            self._sender.fail(error)
            raise error from None

    async def close(self, message: StageClose, manifest: bytes | None, *, timeout_s: float) -> Reply:
        decoded = wire.decode_request(wire.encode(message))
        assert isinstance(decoded, StageClose)
        self._in_order(self._close_inbox, decoded, manifest)
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(self._reply)
        except TimeoutError:
            raise PeerTimeout(f"{self._node} did not finish the blob within {timeout_s:.3g} s") from None

    async def abort(self) -> None:
        error = PeerUnreachable(f"{self._me} gave the blob up")
        self._sender.fail(error)
        self._in_order(self._inbox.fail, error)

    def _close_inbox(self, message: StageClose, manifest: bytes | None) -> None:
        if self._broken:
            return
        self._inbox.close(message)
        if manifest:
            self._inbox.keep_manifest(manifest)
        self._inbox.end()

    # -- the way there and back

    def _in_order(self, what: Callable[..., None], *args: Any) -> None:
        network = self._network
        if self._broken:
            return
        if (self._me, self._node) in network.cut:
            self._break()
            return
        now = network.loop.time()
        # Strictly later than the one before: timers of one instant come in any order.
        self._arrives_s = max(self._arrives_s + 1e-6, now + network.delay_s(self._me, self._node))
        network.later(self._arrives_s - now, self._theirs(), what, *args)

    def _put(self, data: bytes | memoryview) -> None:
        self._in_order(self._feed, bytes(data))

    def _feed(self, data: bytes) -> None:
        if not self._broken:
            self._inbox.feed(data)

    def _credit(self, size_bytes: int) -> None:
        network = self._network
        network.later(network.delay_s(self._node, self._me), self._mine(), self._sender.grant, size_bytes)

    def _answered(self, task: asyncio.Task[Reply]) -> None:
        network = self._network
        network.stages.pop(self, None)
        if task.cancelled() or (self._node, self._me) in network.cut:
            return
        reply = wire.decode_reply(wire.encode(task.result()))
        network.later(network.delay_s(self._node, self._me), self._mine(), self._told, reply)

    def _told(self, reply: Reply) -> None:
        self._sender.fail(early(reply, self._node))
        if not self._reply.done():
            self._reply.set_result(reply)

    # -- ends

    def _break(self) -> None:
        """The link is cut: each end finds out by itself, late."""
        self._broken = True
        network = self._network
        silent = PeerUnreachable("the connection fell silent")
        network.later(SILENCE_S, self._mine(), self._fail_sender, silent)
        network.later(SILENCE_S, self._theirs(), self._inbox.fail, silent)

    def _fail_sender(self, error: PeerError) -> None:
        self._sender.fail(error)
        if not self._reply.done():
            self._reply.set_exception(error)

    def peer_died(self, name: str) -> None:
        """One of the processes at the ends is gone."""
        network = self._network
        error = PeerUnreachable(f"{name} closed the connection")
        delay_s = network.delay_s(self._me, self._node)
        if name == self._node:
            network.stages.pop(self, None)
            network.later(delay_s, self._mine(), self._fail_sender, error)
        elif name == self._me:
            self._broken = True
            network.later(delay_s, self._theirs(), self._inbox.fail, error)
