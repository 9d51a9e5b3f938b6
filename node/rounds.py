"""One write on its way: the driver of a :class:`~node.protocol.write.WriteRound`.

Decisions are in ``node.protocol``; what is here sends, waits for the path's turn, backs off, keeps the deadline and
spreads LEARNs. There is no task here: every step is a callback, because a small write has a dozen of them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, assert_never

from amberblob.clock import Randomness
from amberblob.errors import NotReady, PeerError
from amberblob.wire import AcceptedReply, Prepare, Promised, Reply
from node.learns import Learns
from node.protocol.hold import Hold
from node.protocol.quorum import Electorate
from node.protocol.write import Action, AwaitRoute, Finished, Outcome, Phase, Rejected, Send, Spread, Wait, WriteRound
from node.reads import LATE_S, ROUTE_POLL_S, Quickness
from node.transport.interface import Peers
from node.turns import Turns

BACKOFF_FIRST_S = 0.01
BACKOFF_MAX_S = 0.6
CONTESTED_FIRST_S = 0.004
CONTESTED_MAX_S = 0.1
"""A race is over within a few round trips; who rests long while the winner goes on never catches up."""
TURN_TOO_LATE = 0.9
"""A round whose turn comes after this part of its time is not begun: it would end as an unknown outcome."""


class Driving(Protocol):
    """What a round needs of its coordinator."""

    peers: Peers
    turns: Turns
    learns: Learns
    quickness: Quickness
    randomness: Randomness
    peer_timeout_s: float
    closed: bool

    def counter(self, slot: int) -> int:
        """The highest ballot counter that this node has met in the slot."""
        ...

    def electorate(self, slot: int, epoch: int) -> Electorate | None:
        """The slot's voters, if this node's route is of that epoch or a later one."""
        ...

    def unheard(self, slot: int, epoch: int) -> bool:
        """Whether the route of that epoch, of which a replica told, is not to be waited for: it was, and the registry is away."""
        ...

    def held(self, slot: int, path: str) -> Hold | None:
        """A promise for the path's next write here; it is given once."""
        ...


class Run:
    """One round on its way."""

    def __init__(self, driving: Driving, path: str, round_: WriteRound) -> None:
        self._driving = driving
        self._slot = round_.electorate.slot
        self._path = path
        self._round = round_
        self._spared: list[Send] = []
        self._awaited: set[str] = set()
        """Voters that were asked to promise and have not answered, also when a majority has without them."""
        self._asked_s = 0.0
        self._ends_s = float("inf")
        self._loop = asyncio.get_running_loop()
        self._done: asyncio.Future[Outcome] = self._loop.create_future()
        self._actions: deque[Action] = deque()
        self._busy = False
        self._started = False

    async def outcome(self, timeout_s: float) -> Outcome:
        """The round's end, at the latest when ``timeout_s`` is over. It starts when the path's turn is its own."""
        self._ends_s = self._loop.time() + timeout_s
        timer = self._loop.call_later(timeout_s, self._deadline)
        turns = self._driving.turns
        turn = turns.take(self._path)
        try:
            if not turn.done():
                began_s = self._loop.time()
                await asyncio.wait((turn, self._done), return_when=asyncio.FIRST_COMPLETED)
                if self._loop.time() - began_s > timeout_s * TURN_TOO_LATE or self._driving.closed:
                    self._deadline()
                # A rival may have gone far ahead meanwhile.
                self._round.counter = max(self._round.counter, self._driving.counter(self._slot))
            if not self._done.done():
                self._started = True
                self._carry_out(self._round.start(self._driving.held(self._slot, self._path)))
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

    def _sparing(self, actions: list[Action]) -> list[Action]:
        """The same actions; of a PREPARE's only those to as many voters as have to promise, the quickest.

        The others are asked when one of these fails or is late. A promise that is not needed costs as much as one that is.
        """
        sends = {action.node: action for action in actions if isinstance(action, Send)}
        quickness = self._driving.quickness
        order = quickness.order(self._round.electorate)
        if len(sends) != len(order) or self._round.hear is not None:
            return actions
        first, spared = (order, []) if quickness.asks_all() else self._round.electorate.split(order)
        self._spared = [sends[node] for node in spared]
        self._awaited = set(first)
        self._asked_s = self._loop.time()
        if spared:
            self._loop.call_later(LATE_S, self._ask_spared, self._spared)
        return [sends[node] for node in first]

    def _ask_spared(self, spared: list[Send]) -> None:
        if spared is self._spared and self._round.phase is Phase.PREPARING:
            self._spared = []
            self._carry_out([*spared])

    def _heed(self, told: Reply | PeerError) -> None:
        """An answer came while voters are spared: if it is no promise, they are needed."""
        if self._round.phase is not Phase.PREPARING:
            self._spared = []
            return
        if not isinstance(told, Promised):
            self._ask_spared(self._spared)

    def _carry_out(self, actions: list[Action]) -> None:
        if len(actions) > 1 and isinstance(actions[0], Send) and isinstance(actions[0].request, Prepare):
            actions = self._sparing(actions)
        # An action may lead to the next event at once: its actions come after those that are under way.
        self._actions.extend(actions)
        if self._busy:
            return
        self._busy = True
        try:
            while self._actions:
                self._do(self._actions.popleft())
        finally:
            self._busy = False

    def _do(self, action: Action) -> None:
        match action:
            case Send():
                told = partial(self._told, action.node, action.token)
                driving = self._driving
                driving.peers.ask(action.node, action.request, told, timeout_s=driving.peer_timeout_s)
            case Spread():
                self._driving.learns.add(action)
            case Wait():
                self._loop.call_later(self._backoff_s(action), self._wake, action.token)
            case AwaitRoute():
                self._look_for_route(action.epoch)
            case Finished():
                if not self._done.done():
                    self._done.set_result(action.outcome)
            case _:
                assert_never(action)

    def _look_for_route(self, epoch: int) -> None:
        electorate = self._driving.electorate(self._slot, epoch)
        if electorate is not None:
            self._feed(self._round.reroute, electorate)
            return
        if self._driving.unheard(self._slot, epoch):
            self._feed(self._round.unheard)
        if not self._done.done():
            self._loop.call_later(ROUTE_POLL_S, self._look_for_route, epoch)

    def _backoff_s(self, wait: Wait) -> float:
        """A jittered pause: uniform below a bound that doubles with each attempt."""
        first_s, max_s = (CONTESTED_FIRST_S, CONTESTED_MAX_S) if wait.contested else (BACKOFF_FIRST_S, BACKOFF_MAX_S)
        bound = min(max_s, first_s * float(1 << min(wait.attempt, 10)))
        return bound * (0.25 + 0.75 * self._driving.randomness.fraction())

    def _wake(self, token: int) -> None:
        self._round.counter = max(self._round.counter, self._driving.counter(self._slot))
        self._feed(self._round.wake, token)

    def _told(self, node: str, token: int, told: Reply | PeerError) -> None:
        if self._loop.time() > self._ends_s and not self._done.done():
            # The process stood still, and answers are looked at before timers: no COMMIT may go out after the deadline,
            # when the client may have been told by another node what became of its write.
            self._deadline()
        if node in self._awaited and not isinstance(told, AcceptedReply):
            self._awaited.discard(node)
            self._driving.quickness.took(node, self._loop.time() - self._asked_s)
        if self._spared:
            self._heed(told)
        if isinstance(told, PeerError):
            self._feed(self._round.failed, node, token, told.detail)
        elif self._done.done():
            self._late(node, token, told)
        else:
            self._carry_out(self._round.answer(node, token, told))

    def _late(self, node: str, token: int, reply: Reply) -> None:
        """An accept that came after the end: its node needs less of a LEARN."""
        if isinstance(reply, AcceptedReply):
            self._round.accepted_late(node, token, reply.incarnation)

    def _feed(self, event: Callable[..., list[Action]], *args: Any) -> None:
        # A round whose caller went away stops here; what it sent is finished by others if need be.
        if not self._done.done():
            self._carry_out(event(*args))
