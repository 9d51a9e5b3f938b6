"""The driver under the coordinator's state machines: sends, waits, backs off, keeps deadlines, spreads LEARNs.

Decisions are in ``node.protocol``; what is here only carries them out. Requests that are still under way when
a round ends are left to run into their own timeouts: a third replica's accept is worth having.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, assert_never

import structlog

from amberblob.clock import HybridClock, Randomness
from amberblob.errors import NotReady, PeerError
from amberblob.ids import UlidMint
from amberblob.wire import HistoryReply, Learnt, Query, QueryHistory, RegisterReply, Reply, Request
from node.learns import Learns
from node.protocol.operations import Finish, Operation
from node.protocol.quorum import Electorate, Finding
from node.protocol.read import NoQuorum, Read, ReadRound
from node.protocol.write import Action, Applied, Finished, Outcome, Rejected, Send, Spread, Wait, WriteRound
from node.transport.interface import Peers

log = structlog.get_logger(__name__)

BACKOFF_FIRST_S = 0.01
BACKOFF_MAX_S = 0.6
CONTESTED_FIRST_S = 0.004
CONTESTED_MAX_S = 0.1
"""A race is over within a few round trips; who rests long while the winner goes on never catches up."""
FINISH_TRIES_MAX = 4
LOOKS_MAX = 8
"""A read of what is being written here looks again so many times, before it stands in line with a round of its own."""
TURN_TOO_LATE = 0.9
"""A round whose turn comes after this part of its time is not begun: it would end as an unknown outcome."""


class Counters(Protocol):
    """The highest ballot counter met per slot, shared with this node's own replica."""

    def counter(self, slot: int) -> int: ...
    def met_counter(self, slot: int, counter: int) -> None: ...


class Coordinator:
    """Runs rounds for this node. Any node coordinates any write; nothing here is durable.

    Args:
        node: this node's id.
        peer_timeout_s: how long one request to one replica may take.
        write_timeout_s: how long a write may take before its outcome is said to be unavailable or unknown.
        read_timeout_s: the same for a read.
    """

    def __init__(
        self,
        *,
        node: str,
        peers: Peers,
        counters: Counters,
        mint: UlidMint,
        clock: HybridClock,
        randomness: Randomness,
        peer_timeout_s: float,
        write_timeout_s: float,
        read_timeout_s: float,
    ) -> None:
        self.node = node
        self.peers = peers
        self.mint = mint
        self.clock = clock
        self._counters = counters
        self._randomness = randomness
        self._peer_timeout_s = peer_timeout_s
        self._write_timeout_s = write_timeout_s
        self._read_timeout_s = read_timeout_s
        self._tasks: set[asyncio.Task[None]] = set()
        self.turns = Turns()
        self.closed = False
        self._learns = Learns(peers, self.spawn, timeout_s=peer_timeout_s)

    async def write(
        self,
        electorate: Electorate,
        path: str,
        operation: Operation,
        *,
        write_id: str | None = None,
        body: bytes | None = None,
        holders: frozenset[str] | None = None,
        hear: str | None = None,
    ) -> Applied:
        """Run one write to its end.

        Raises: whatever it was rejected with (PreconditionFailed, VersionConflict, NotFound, QuorumUnavailable,
        OutcomeUnknown, InsufficientStorage).
        """
        if self.closed:
            raise NotReady("The node is shutting down: ask another one.", code="shutting-down")
        operation_id = self.mint.mint()
        round_ = WriteRound(
            electorate=electorate,
            node=self.node,
            path=path,
            operation=operation,
            operation_id=operation_id,
            write_id=write_id or operation_id,
            now_ms=self.clock.now_ms(),
            counter=self._counters.counter(electorate.slot),
            body=body,
            holders=holders,
            may_be_retry=write_id is not None,
            hear=hear,
        )
        run = _Run(self, electorate.slot, path, round_)
        outcome = await run.outcome(self._write_timeout_s)
        self._counters.met_counter(electorate.slot, round_.counter)
        if isinstance(outcome, Rejected):
            raise outcome.error
        return outcome

    async def read(self, electorate: Electorate, request: Query | QueryHistory) -> Read:
        """A quorum read whose finding is decided: an undecided record is finished first.

        Raises: QuorumUnavailable; OutcomeUnknown never (nothing of the caller's is written).
        """
        result = await self._read_once(electorate, request)
        for _ in range(LOOKS_MAX):
            # What is undecided is most likely the write that has its turn here: it decides, and costs no round.
            running = None if result.finding.decided else self.turns.left(request.path)
            if running is None:
                break
            await asyncio.wait([running])
            result = await self._read_once(electorate, request)
        for _ in range(FINISH_TRIES_MAX):
            if result.finding.decided:
                return result
            applied = await self.write(electorate, request.path, Finish())
            if isinstance(request, Query):
                finding = type(result.finding)(
                    ballot=applied.ballot, record=applied.record, decided=True, holders=applied.holders
                )
                return Read(finding, result.replies)
            result = await self._read_once(electorate, request)
        if not result.finding.decided:
            raise NotReady(
                "The object is being written so fast that no settled state of its history was seen: try again.",
                code="contended",
            )
        return result

    async def _read_once(self, electorate: Electorate, request: Query | QueryHistory) -> Read:
        round_ = ReadRound(electorate)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[Read | NoQuorum] = loop.create_future()

        def end(result: Read | NoQuorum | None) -> None:
            if result is None or done.done():
                return
            done.set_result(result)
            if isinstance(result, Read):
                for node, reply in result.replies.items():
                    self._repair(electorate, request.path, result.finding, node, reply)

        def late(node: str, reply: Reply) -> None:
            if not done.cancelled() and isinstance(result := done.result(), Read):
                self._repair(electorate, request.path, result.finding, node, reply)

        async def ask(node: str) -> None:
            try:
                reply = await self.peers.call(node, request, timeout_s=min(self._peer_timeout_s, self._read_timeout_s))
            except PeerError as error:
                end(round_.failed(node, error.detail))
            else:
                if done.done():
                    late(node, reply)
                else:
                    end(round_.answer(node, reply))

        for node in electorate.voters:
            self.spawn(ask(node))
        result = await done
        if isinstance(result, NoQuorum):
            raise result.error
        return result

    def _repair(self, electorate: Electorate, path: str, finding: Finding, node: str, reply: Reply) -> None:
        """Tell a voter that answered with an older register what is chosen; it fetches the bytes by itself."""
        if not finding.decided or finding.record is None or finding.ballot is None:
            return
        if not isinstance(reply, RegisterReply | HistoryReply) or not electorate.counts(node, reply.incarnation):
            return
        if reply.accepted is None or reply.accepted < finding.ballot:
            item = Learnt(electorate.slot, path, electorate.epoch, finding.ballot, finding.record, finding.holders)
            self._learns.add(node, item)

    async def call(self, node: str, request: Request) -> Reply:
        """One request within the peer timeout. Raises PeerError."""
        return await self.peers.call(node, request, timeout_s=self._peer_timeout_s)

    def spread(self, action: Spread) -> None:
        """Hand a LEARN to the batcher."""
        self._learns.add(action.node, action.item)

    def backoff_s(self, wait: Wait) -> float:
        """A jittered pause: uniform below a bound that doubles with each attempt."""
        first_s, max_s = (CONTESTED_FIRST_S, CONTESTED_MAX_S) if wait.contested else (BACKOFF_FIRST_S, BACKOFF_MAX_S)
        bound = min(max_s, first_s * float(1 << min(wait.attempt, 10)))
        return bound * (0.25 + 0.75 * self._randomness.fraction())

    def counter(self, slot: int) -> int:
        """The highest ballot counter that this node has met in the slot."""
        return self._counters.counter(slot)

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a request in the background; it is waited for at :meth:`close`."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self, grace_s: float) -> None:
        """Refuse new rounds, those in line too, and wait for the requests under way, at most ``grace_s``."""
        self.closed = True
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=grace_s)
        for task in list(self._tasks):
            task.cancel()


class Turns:
    """One round at a time per path, first come, first served.

    Rounds of one node on one path only get into each other's way: each PREPARE refuses the COMMITs of all before it.
    With dozens of them none comes through. So only nodes are rivals, and there are few of those.
    """

    def __init__(self) -> None:
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}
        self._watching: dict[str, asyncio.Future[None]] = {}

    def take(self, path: str) -> asyncio.Future[None]:
        """Stand in line; done when it is one's turn."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(path, deque())
        queue.append(turn)
        if len(queue) == 1:
            turn.set_result(None)
        return turn

    def left(self, path: str) -> asyncio.Future[None] | None:
        """Done when the round that has its turn now ends; None when none has."""
        if path not in self._queues:
            return None
        return self._watching.setdefault(path, asyncio.get_running_loop().create_future())

    def leave(self, path: str, turn: asyncio.Future[None]) -> None:
        """Let the next one have it, whether one's turn had come or not."""
        queue = self._queues[path]
        if queue[0] is turn and (watched := self._watching.pop(path, None)) is not None:
            watched.set_result(None)
        queue.remove(turn)
        if not queue:
            del self._queues[path]
        elif not queue[0].done():
            queue[0].set_result(None)


class _Run:
    """One round on its way."""

    def __init__(self, coordinator: Coordinator, slot: int, path: str, round_: WriteRound) -> None:
        self._slot = slot
        self._path = path
        self._coordinator = coordinator
        self._round = round_
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[Outcome] = self._loop.create_future()
        self._started = False

    async def outcome(self, timeout_s: float) -> Outcome:
        """The round's end, at the latest when ``timeout_s`` is over. It starts when the path's turn is its own."""
        timer = self._loop.call_later(timeout_s, self._deadline)
        turns = self._coordinator.turns
        turn = turns.take(self._path)
        try:
            if not turn.done():
                began_s = self._loop.time()
                await asyncio.wait((turn, self._done), return_when=asyncio.FIRST_COMPLETED)
                if self._loop.time() - began_s > timeout_s * TURN_TOO_LATE or self._coordinator.closed:
                    self._deadline()
                # A rival may have gone far ahead meanwhile.
                self._round.counter = max(self._round.counter, self._coordinator.counter(self._slot))
            if not self._done.done():
                self._started = True
                self._carry_out(self._round.start())
            return await self._done
        finally:
            timer.cancel()
            turns.leave(self._path, turn)

    def _deadline(self) -> None:
        if self._started:
            self._carry_out(self._round.deadline())
        elif not self._done.done():
            error = NotReady(
                "So many writes of this object wait on this node that its turn did not come in time. Nothing was applied: "
                "try again later, or write it less often.",
                code="contended",
            )
            self._done.set_result(Rejected(error))

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send():
                    self._coordinator.spawn(self._send(action))
                case Wait():
                    self._loop.call_later(self._coordinator.backoff_s(action), self._wake, action.token)
                case Spread():
                    self._coordinator.spread(action)
                case Finished():
                    if not self._done.done():
                        self._done.set_result(action.outcome)
                case _:
                    assert_never(action)

    def _wake(self, token: int) -> None:
        self._round.counter = max(self._round.counter, self._coordinator.counter(self._slot))
        self._feed(self._round.wake, token)

    def _feed(self, event: Callable[..., list[Action]], *args: Any) -> None:
        # A round whose caller went away stops here; what it sent is finished by others if need be.
        if not self._done.done():
            self._carry_out(event(*args))

    async def _send(self, action: Send) -> None:
        try:
            reply = await self._coordinator.call(action.node, action.request)
        except PeerError as error:
            self._feed(self._round.failed, action.node, action.token, error.detail)
        else:
            self._feed(self._round.answer, action.node, action.token, reply)
