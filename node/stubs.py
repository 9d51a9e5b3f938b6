"""How the stub of a deleted path goes, once nothing is left of what it was about (rfc/0012; ``sim.model.garbage`` is the proof).

To remove a register is to forget: whoever asks a majority afterwards must not find anything older either. So every
voter is asked, in a settled epoch (one set of voters, no learners), and the stub goes only if all hold it at one ballot and know that it is chosen. Each
then removes it if it still does, and raises its floors. A voter that is away, or behind, is waited for: another time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Protocol

import structlog

from amberblob.errors import ClusterError, PeerError
from amberblob.manifest import Record, covers
from amberblob.wire import Done, HistoryReply, QueryHistory, Reply, Request
from amberblob.wire_repair import ForgetStub
from node.protocol.operations import Finish
from node.protocol.quorum import Electorate
from node.protocol.write import Applied

log = structlog.get_logger(__name__)

ROWS_LOOKED_AT = 100


class Collecting(Protocol):
    """What collecting needs of its coordinator."""

    async def call(self, node: str, request: Request) -> Reply:
        """One request. Raises PeerError."""
        ...

    async def write(self, electorate: Electorate, path: str, operation: Finish, *, hear: str | None = None) -> Applied:
        """One round. Raises ClusterError."""
        ...


async def collect(coordinator: Collecting, electorate: Electorate, path: str) -> bool:
    """Forget a dead path at every voter.

    Returns whether no voter holds anything of it any more. False: it is not dead, or some voter is away or behind; what
    can be done about the latter by a round is done, so come again later.
    """
    if not electorate.settled:
        return False
    question = QueryHistory(slot=electorate.slot, path=path, epoch=electorate.epoch, limit=ROWS_LOOKED_AT)
    told = await _ask(coordinator, dict.fromkeys(electorate.voters, question))
    replies = {
        node: reply
        for node, reply in told.items()
        if isinstance(reply, HistoryReply) and electorate.counts(node, reply.incarnation)
    }
    if len(replies) < len(electorate.voters):
        return False
    ballots = {node: reply.accepted for node, reply in replies.items() if reply.accepted is not None}
    if not ballots:
        return True
    holder = max(ballots, key=lambda node: ballots[node])
    ballot, record = ballots[holder], replies[holder].record
    if record is None or not is_dead(record, replies.values()):
        return False
    if any(reply.accepted != ballot or not reply.chosen for reply in replies.values()):
        # One that forgot it already does not learn it any more: it is proposed anew, above everybody's floor.
        try:
            await coordinator.write(electorate, path, Finish(again=True), hear=holder)
        except ClusterError as error:
            log.info("stub not finished", path=path, error=error.detail)
        return False
    answers = await _ask(
        coordinator,
        {
            node: ForgetStub(
                slot=electorate.slot,
                path=path,
                epoch=electorate.epoch,
                incarnation=incarnation,
                ballot=ballot,
                version_max=record.version_max,
            )
            for node, incarnation in electorate.voters.items()
        },
    )
    return all(isinstance(answer, Done) for answer in answers.values())


def is_dead(record: Record, replies: Collection[HistoryReply]) -> bool:
    """Whether no version lives and everyone knows of none that has not expired. (A number may never have been a version.)"""
    if record.head is not None or record.live:
        return False
    rows = [row.version.version for reply in replies for row in reply.rows]
    if record.previous is not None:
        rows.append(record.previous.version)
    return not any(reply.more for reply in replies) and all(covers(record.expired, version) for version in rows)


async def _ask(coordinator: Collecting, requests: dict[str, Request]) -> dict[str, Reply | PeerError]:
    async def one(node: str) -> Reply | PeerError:
        try:
            return await coordinator.call(node, requests[node])
        except PeerError as error:
            return error

    return dict(zip(requests, await asyncio.gather(*map(one, requests)), strict=True))
