"""One quorum read on its way, and which voters it asks first.

A read needs a majority of registers (of both sets, while a slot moves), not all: it asks as many voters as it needs, this
node and the quickest of the others, and the rest only when one fails or is late. Now and then it asks them all, so that a voter that was slow is
found to be quick again, and one that is behind is found by somebody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import msgspec

from amberblob.ballot import Register
from amberblob.errors import PeerError
from amberblob.wire import Query, QueryHistory, RegisterReply, Reply
from node.protocol.quorum import Electorate
from node.protocol.read import NoQuorum, Outdated, Read, ReadRound
from node.transport.interface import Peers

LATE_S = 0.01
"""A read that has no majority after this time asks the voters that it has spared."""

ROUTE_POLL_S = 0.02
"""How often is looked whether the route is here that a replica knows already."""

_ASK_ALL_EVERY = 64
_WEIGHT = 0.1
_NEAR_FACTOR = 2.0
_NEAR_S = 0.001


class Quickness:
    """How quick the peers have been, and in which order to ask them.

    Args:
        node: this node's id: always the quickest.
    """

    def __init__(self, node: str, peers: Peers) -> None:
        self._node = node
        self._peers = peers
        self._seconds: dict[str, float] = {}
        self._turn = 0

    def took(self, node: str, seconds: float) -> None:
        """A peer answered, or failed to, after this time."""
        known = self._seconds.get(node)
        self._seconds[node] = seconds if known is None else known + _WEIGHT * (seconds - known)

    def order(self, electorate: Electorate) -> list[str]:
        """The voters: this node, then those that are about as quick as the quickest, by turns, then the others."""
        voters = electorate.voters
        others = [node for node in voters if node != self._node]
        self._turn += 1
        seconds = self._seconds
        if len(others) > 1:
            at = self._turn % len(others)
            others = others[at:] + others[:at]
            reachable = self._peers.reachable
            near = min(seconds.get(node, 0.0) for node in others) * _NEAR_FACTOR + _NEAR_S
            others.sort(key=lambda node: (not reachable(node), seconds.get(node, 0.0) > near))
        if len(others) < len(voters):
            others.insert(0, self._node)
        return others

    def asks_all(self) -> bool:
        """Whether this read asks every voter at once."""
        return self._turn % _ASK_ALL_EVERY == 0


class ReadRun:
    """One Query or QueryHistory over the voters.

    Args:
        settle: gets every answer that the result rests on or that comes after.
        newer: the slot's electorate if this node's route is of the given epoch or a later one.
        unheard: whether the route of an epoch, of which a voter told, is not to be waited for.
        timeout_s: how long one voter may take.
        patience_s: how long the newer route of which a voter knows may take to come here.
    """

    def __init__(
        self,
        peers: Peers,
        quickness: Quickness,
        electorate: Electorate,
        request: Query | QueryHistory,
        known: Register | None,
        settle: Callable[[Read, str, Reply], None],
        newer: Callable[[int, int], Electorate | None],
        unheard: Callable[[int, int], bool],
        *,
        timeout_s: float,
        patience_s: float,
    ) -> None:
        self._peers = peers
        self._quickness = quickness
        self._request = request
        self._known = known
        self._settle = settle
        self._newer = newer
        self._unheard = unheard
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._no_quorum: NoQuorum | None = None
        self._awaits_route = False
        self._round = ReadRound(electorate)
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        order = quickness.order(electorate)
        # A history is asked of all: it is rare, and more answers settle sooner what is being written.
        asks_all = quickness.asks_all() or isinstance(request, QueryHistory)
        self._first, self._spared = (order, []) if asks_all else electorate.split(order)
        self._result: Read | NoQuorum | Outdated | None = None
        self._undecided: Read | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._done: asyncio.Future[None] = self._loop.create_future()

    async def result(self) -> Read | NoQuorum | Outdated:
        """The majority's word, or that there is none, or that others are to be asked."""
        for node in self._first:
            self._ask(node)
        if self._spared:
            self._timer = self._loop.call_later(LATE_S, self._ask_spared)
        try:
            await self._done
        finally:
            if self._timer is not None:
                self._timer.cancel()
        assert self._result is not None
        return self._result

    def _ask(self, node: str) -> None:
        self._peers.ask(node, self._request, partial(self._told, node), timeout_s=self._timeout_s)

    def _ask_spared(self) -> None:
        spared, self._spared = self._spared, []
        for node in spared:
            self._ask(node)

    def _told(self, node: str, told: Reply | PeerError) -> None:
        self._quickness.took(node, self._loop.time() - self._began_s)
        if isinstance(told, RegisterReply) and told.record is None and told.accepted is not None:
            told = self._whole(told)
        ended = self._result
        if ended is not None:
            if isinstance(ended, Read) and not isinstance(told, PeerError):
                self._settle(ended, node, told)
            return
        if isinstance(told, PeerError):
            result: Read | NoQuorum | None = self._round.failed(node, told.detail)
        else:
            result = self._round.answer(node, told)
        if self._round.outdated_by and not self._awaits_route:
            self._awaits_route = True
            self._look_for_route()
            if self._result is not None:
                return
        if result is None and node in self._round.out:
            self._ask_spared()
            result = self._undecided
        if isinstance(result, NoQuorum) and self._awaits_route:
            self._no_quorum, result = result, None
        if isinstance(result, Read) and not result.finding.decided and not self._heard_all():
            self._wait_for_more(result)
        elif result is not None:
            self._end(result)

    def _look_for_route(self) -> None:
        """A voter knows of a newer route: ask its voters as soon as it is here, unless a majority of the old ones answers."""
        if self._result is not None:
            return
        asked = self._request.slot, self._round.outdated_by
        electorate = self._newer(*asked)
        if electorate is not None:
            self._end(Outdated(electorate))
        elif self._no_quorum is not None and self._loop.time() >= self._began_s + self._patience_s:
            self._end(self._no_quorum)
        elif self._unheard(*asked) and self._no_quorum is not None:
            self._end(NoQuorum(self._round.unheard()))
        else:
            self._loop.call_later(ROUTE_POLL_S, self._look_for_route)

    def _whole(self, reply: RegisterReply) -> RegisterReply | PeerError:
        """The answer with the record that was left out because we know it."""
        known = self._known
        if known is None or known.accepted != reply.accepted:
            return PeerError("answered with a ballot and no record")
        return msgspec.structs.replace(reply, record=known.record)

    def _heard_all(self) -> bool:
        return len(self._round.replies) + len(self._round.out) >= len(self._round.electorate.voters)

    def _wait_for_more(self, result: Read) -> None:
        """A majority answered, and one of them is behind, perhaps. Another answer, if it comes soon, is cheaper than a round."""
        if self._undecided is None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(LATE_S, self._settle_for_undecided)
            self._ask_spared()
        self._undecided = result

    def _settle_for_undecided(self) -> None:
        if self._result is None and self._undecided is not None:
            self._end(self._undecided)

    def _end(self, result: Read | NoQuorum | Outdated) -> None:
        self._result = result
        if not self._done.done():
            self._done.set_result(None)
        if isinstance(result, Read):
            for name, reply in result.replies.items():
                self._settle(result, name, reply)
