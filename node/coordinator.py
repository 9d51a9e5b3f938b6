"""The node's coordinator: runs writes and quorum reads, finishes what is undecided, spreads LEARNs.

Decisions are in ``node.protocol``; :mod:`node.rounds` and :mod:`node.reads` carry them out. Requests that are still under
way when a round ends are left to run into their own timeouts: a third replica's accept is worth having.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Coroutine
from functools import partial
from typing import Any, Protocol

import msgspec

from amberblob.ballot import Ballot, Register
from amberblob.clock import HybridClock, Randomness
from amberblob.errors import NotReady, PeerError, QuorumUnavailable, StaleRoute
from amberblob.ids import UlidMint
from amberblob.wire import (
    Failed,
    HistoryReply,
    Learnt,
    Query,
    QueryHistory,
    Refused,
    RegisterReply,
    Reply,
    Request,
    StagedReply,
)
from amberblob.wire_repair import LookAtPath
from node.learns import Learns
from node.protocol.hold import Hold, Holds
from node.protocol.operations import Finish, Operation
from node.protocol.quorum import Electorate, Finding
from node.protocol.read import NoQuorum, Read, lacks_rows
from node.protocol.write import Applied, Rejected, Spread, WriteRound
from node.reads import ROUTE_POLL_S, Quickness, ReadRun
from node.rounds import Run
from node.stubs import collect
from node.transport.interface import Peers
from node.turns import Turns

FINISH_TRIES_MAX = 4
ROUTE_PATIENCE_S = 1.0
"""How long a newer route is waited for that is known of here only by refusals, while the registry is not followed."""

NEWER_PATIENCE_S = 5.0
"""How long one is waited for while the registry is followed, of which nothing is known but that a copy is another than the route names."""

AGAIN_S = 1.0
"""A read that has less time left than this asks nobody again."""

LOOKS_MAX = 8
"""A read of what is being written here looks again so many times, before it stands in line with a round of its own."""


def not_counted(reply: Reply) -> str:
    """For people: why an answer to staged bytes or rows does not count."""
    match reply:
        case Refused():
            return f"refused: {reply.reason} {reply.detail}".rstrip()
        case StagedReply():
            return f"its copy is {reply.incarnation}, which the route known here does not name"
        case Failed():
            return f"failed: {reply.detail}"
        case _:
            return f"answered {reply!r}"


class Counters(Protocol):
    """What this node's own replica tells: the highest ballot counter met per slot, and what it holds and promised."""

    def counter(self, slot: int) -> int: ...
    def met_counter(self, slot: int, counter: int) -> None: ...
    def peek(self, slot: int, path: str) -> Register | None:
        """What this node's copy holds, if that is known without asking the disk."""
        ...

    def promises(self, slot: int, path: str, ballot: Ballot) -> bool:
        """Whether this node has no copy of the slot, or its copy promised this ballot last and has room for more."""
        ...


class Coordinator:
    """Runs rounds for this node. Any node coordinates any write; nothing here is durable.

    Args:
        node: this node's id.
        electorate_of: the voters of a slot by this node's newest route; raises NotReady while there is none.
        peer_timeout_s: how long one request to one replica may take.
        write_timeout_s: how long a write may take before its outcome is said to be unavailable or unknown.
        read_timeout_s: the same for a read.

    Attributes:
        late_s: how long a request that is met now may have waited unseen (:class:`node.standstill.Standstill`).
        hears_routes: whether news of routes come in: not while the registry is away, nor when this node stops.
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
        electorate_of: Callable[[int], Electorate],
        peer_timeout_s: float,
        write_timeout_s: float,
        read_timeout_s: float,
    ) -> None:
        self.node = node
        self.peers = peers
        self.mint = mint
        self.clock = clock
        self._counters = counters
        self._electorate_of = electorate_of
        self.randomness = randomness
        self.peer_timeout_s = peer_timeout_s
        self._write_timeout_s = write_timeout_s
        self.read_timeout_s = read_timeout_s
        self._tasks: set[asyncio.Task[None]] = set()
        self.turns = Turns()
        self.closed = False
        self.late_s: Callable[[], float] = lambda: 0.0
        self.hears_routes: Callable[[], bool] = lambda: True
        self._behind: dict[int, tuple[int, float]] = {}
        self.quickness = Quickness(node, peers)
        self._holds = Holds()
        self.learns = Learns(peers, self.spawn, timeout_s=peer_timeout_s)

    async def write(
        self,
        electorate: Electorate,
        path: str,
        operation: Operation,
        *,
        write_id: str | None = None,
        repeat: bool = False,
        body: bytes | None = None,
        holders: frozenset[str] | None = None,
        hear: str | None = None,
        since_s: float | None = None,
    ) -> Applied:
        """Run one write to its end. The arguments are those of :class:`~node.protocol.write.WriteRound`.

        ``since_s``: the loop's time from which the write's time counts, if that is not now (:meth:`began_s`). Once it is
        over no COMMIT goes out.

        Raises: whatever it was rejected with (PreconditionFailed, VersionConflict, NotFound, QuorumUnavailable,
        OutcomeUnknown, InsufficientStorage); NotReady: it was not begun.
        """
        if self.closed:
            raise NotReady("The node is shutting down: ask another one.", code="shutting-down")
        timeout_s = self._write_timeout_s
        if since_s is not None:
            timeout_s = min(timeout_s, since_s + timeout_s - asyncio.get_running_loop().time())
            if timeout_s <= 0:
                raise NotReady(
                    "It took so long until the bytes were durable on the replicas, and archived where that comes first, "
                    "or the node stood still so long, that the write was not begun any more: it may have been repeated "
                    "elsewhere. Nothing was applied: try again.",
                    code="too-slow",
                )
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
            repeat=repeat,
            hear=hear,
        )
        run = Run(self, path, round_)
        outcome = await run.outcome(timeout_s)
        self._counters.met_counter(electorate.slot, round_.counter)
        if round_.hold is not None:
            self._holds.keep(path, round_.hold)
        if isinstance(outcome, Rejected):
            raise outcome.error
        return outcome

    def began_s(self) -> float:
        """The loop's time at which a request that is met now came, at the earliest."""
        return asyncio.get_running_loop().time() - self.late_s()

    async def read(self, electorate: Electorate, request: Query | QueryHistory) -> Read:
        """A quorum read whose finding is decided: an undecided record is finished first.

        Raises: QuorumUnavailable; OutcomeUnknown never (nothing of the caller's is written).
        """
        result = await self.glance(electorate, request)
        for _ in range(LOOKS_MAX):
            # What is undecided is most likely the write that has its turn here: it decides, and costs no round.
            running = None if result.finding.decided else self.turns.left(request.path)
            if running is None:
                break
            await asyncio.wait([running])
            result = await self.glance(electorate, request)
        chosen: Ballot | None = None
        for tries in range(FINISH_TRIES_MAX + 1):
            if result.finding.decided:
                return result
            if chosen is not None and result.finding.ballot == chosen:
                # What was finished stays chosen, also when those asked now do not know it yet.
                finding = msgspec.structs.replace(result.finding, decided=True)
                return Read(finding, result.replies)
            if tries == FINISH_TRIES_MAX:
                break
            applied = await self.write(electorate, request.path, Finish())
            chosen = applied.ballot
            if isinstance(request, Query):
                finding = Finding(ballot=applied.ballot, record=applied.record, decided=True, holders=applied.holders)
                return Read(finding, result.replies)
            result = await self.glance(electorate, request)
        raise NotReady(
            "The object is being written so fast that no settled state of its history was seen: try again.",
            code="contended",
        )

    async def glance(self, electorate: Electorate, request: Query | QueryHistory) -> Read:
        """A quorum read that is not settled: ``finding`` may be undecided, what is chosen in the replies is chosen for good.

        Raises: QuorumUnavailable; StaleRoute, which is one.
        """
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self.read_timeout_s
        while True:
            known: Register | None = None
            asked = request
            if isinstance(request, Query):
                # Most likely the others hold what this node holds: then they need not tell all of it.
                known = self._counters.peek(request.slot, request.path)
                if known is not None and known.accepted is not None:
                    asked = msgspec.structs.replace(request, known=known.accepted)
            asked_s = loop.time()
            left_s = max(end_s - asked_s, 0.0)
            run = ReadRun(
                self.peers,
                self.quickness,
                electorate,
                asked,
                known,
                partial(self._repair, electorate, request.path),
                self.electorate,
                self.unheard,
                timeout_s=min(self.peer_timeout_s, left_s),
                patience_s=left_s,
            )
            result = await run.result()
            if isinstance(result, Read):
                return result
            if isinstance(result, NoQuorum):
                if not self.asks_again(result.error, asked_s, end_s):
                    raise result.error
                continue
            electorate = result.electorate
            request = msgspec.structs.replace(request, epoch=electorate.epoch)

    def asks_again(self, error: QuorumUnavailable, asked_s: float, end_s: float) -> bool:
        """Whether voters that were asked at ``asked_s``, and too few of which answered (``error``), are asked once more.

        They are if they were silent as long as they may be, and ``end_s`` leaves time for it: perhaps it is this machine that
        stood still, and its timers rang before what had come meanwhile was read. Answers that say no are believed at once.
        """
        now_s = asyncio.get_running_loop().time()
        were_silent = now_s - asked_s >= self.peer_timeout_s and not isinstance(error, StaleRoute)
        return were_silent and end_s - now_s >= AGAIN_S

    def _repair(self, electorate: Electorate, path: str, read: Read, node: str, reply: Reply) -> None:
        """Tell a voter that answered with an older register what is chosen; it fetches the bytes by itself.

        One that has the record and lacks older versions is told to look at the path.
        """
        finding = read.finding
        if not finding.decided or finding.record is None or finding.ballot is None:
            return
        if not isinstance(reply, RegisterReply | HistoryReply) or not electorate.counts(node, reply.incarnation):
            return
        if reply.accepted is None or reply.accepted < finding.ballot:
            item = Learnt(electorate.slot, path, electorate.epoch, finding.ballot, finding.record, finding.holders)
            self.learns.add(Spread(node, item))
        elif isinstance(reply, HistoryReply) and lacks_rows(reply, read.replies.values()):
            self.spawn(self._have_looked_at(node, electorate.slot, path))

    async def _have_looked_at(self, node: str, slot: int, path: str) -> None:
        with contextlib.suppress(PeerError):
            await self.call(node, LookAtPath(slot=slot, path=path))

    async def collect_stub(self, electorate: Electorate, path: str) -> bool:
        """Let every voter forget a path of which no version is left: see :func:`node.stubs.collect`."""
        return await collect(self, electorate, path)

    async def call(self, node: str, request: Request, *, within_s: float | None = None) -> Reply:
        """One request within the peer timeout, or less. Raises PeerError."""
        timeout_s = self.peer_timeout_s if within_s is None else min(within_s, self.peer_timeout_s)
        return await self.peers.call(node, request, timeout_s=timeout_s)

    def held(self, slot: int, path: str) -> Hold | None:
        """A promise for the path's next write here, unless a rival was seen or those who promised are away."""
        hold = self._holds.take(path)
        if hold is None or not self._counters.promises(slot, path, hold.ballot):
            return None
        return hold if all(self.peers.reachable(node) for node in hold.promised) else None

    def counter(self, slot: int) -> int:
        """The highest ballot counter that this node has met in the slot."""
        return self._counters.counter(slot)

    def electorate(self, slot: int, epoch: int) -> Electorate | None:
        """The slot's voters, if this node's route is of that epoch or a later one."""
        try:
            electorate = self._electorate_of(slot)
        except NotReady:
            return None
        return electorate if electorate.epoch >= epoch else None

    def unheard(self, slot: int, epoch: int) -> bool:
        """Whether the slot's route of that epoch, of which a replica told, is not to be waited for any longer.

        It comes from the registry. While that is away, clients do better with another node; a second is for what was on its way. It
        counts from the first request that was told of a newer route than the one that is here: many may wait for their turn.
        """
        now_s = asyncio.get_running_loop().time()
        known, since_s = self._behind.get(slot, (0, now_s))
        if not known or self.electorate(slot, known) is not None:
            since_s = now_s  # what was missing then has come
        self._behind[slot] = (max(known, epoch), since_s)
        return not self.hears_routes() and now_s - since_s >= ROUTE_PATIENCE_S

    async def moves_on(self, electorate: Electorate, strangers: Collection[str]) -> bool:
        """Whether a newer route of the slot than the electorate's is known here, or soon will be.

        ``strangers``: voters that answered with a copy which the electorate does not name. So there is a route that does not name
        the older copy any more, or there will be. Without them nothing is waited for.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            newer = self.electorate(electorate.slot, electorate.epoch + 1)
            if newer is not None and any(newer.voters.get(node) != electorate.voters.get(node) for node in strangers):
                return True
            patience_s = NEWER_PATIENCE_S if self.hears_routes() else ROUTE_PATIENCE_S
            if not strangers or self.closed or loop.time() - began_s >= patience_s:
                return newer is not None
            await asyncio.sleep(ROUTE_POLL_S)

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
