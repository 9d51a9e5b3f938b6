"""Deletes objects of the archive that nobody refers to: carries out what :mod:`node.archive.collection` decides (rfc/0016)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

import structlog

from amberblob.errors import AmberError, ArchiveError, PeerError
from amberblob.wire import Done, Reply, Request
from amberblob.wire_archive import CONDEMN_MAX, Condemned, CondemnObjects, ReprieveObjects
from archive.state import ArchiveState, Mark, Part
from node.archive.collection import Action, Answer, Ask, Finish, ObjectCollection, ReadNodes, WriteAsking, WriteDecided

log = structlog.get_logger(__name__)

AskNodes = Callable[[Iterable[str], Request], Awaitable[Mapping[str, Reply | PeerError]]]
"""The same request to many nodes, this one included: each one's answer, or why there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a batch.

    Attributes:
        deleted: those that are gone from the target.
        refused: those that a node refused, and which.
        why: why the rest is still there; empty: there is no rest.
    """

    deleted: tuple[str, ...]
    refused: Mapping[str, str]
    why: str = ""


class Collector:
    """One node's.

    Args:
        node: this node.
        mint: a new ULID.
        known_nodes: of the route table, as known. Raises: NotReady.
        newest_nodes: as the registry tells now, not from memory. Raises: AmberError.
        delete: removes objects from the target, at most :data:`CONDEMN_MAX`. Raises: ArchiveError.
    """

    def __init__(
        self,
        *,
        node: str,
        mint: Callable[[], str],
        state: ArchiveState,
        known_nodes: Callable[[], Collection[str]],
        newest_nodes: Callable[[], Awaitable[Collection[str]]],
        ask: AskNodes,
        delete: Callable[[Sequence[str]], Awaitable[None]],
    ) -> None:
        self._node = node
        self._mint = mint
        self._state = state
        self._known_nodes = known_nodes
        self._newest_nodes = newest_nodes
        self._ask = ask
        self._delete = delete
        self._lock = asyncio.Lock()

    async def go_on(self) -> list[str]:
        """End what was begun and not ended, by this run of the node or an earlier one; what could not be ended, as texts.

        Raises: DiskFailed, DiskFull, NotReady.
        """
        async with self._lock:
            problems: list[str] = []
            for token, marks in _by_token(await self._state.marks()).items():
                asking = [mark.name for mark in marks if mark.part is Part.ASKING]
                decided = [mark.name for mark in marks if mark.part is Part.DECIDED]
                for names in _batches(asking):
                    if why := await self._reprieve(names, token, self._known_nodes()):
                        problems.append(why)
                for names in _batches(decided):
                    if why := await self._finish_deleting(names, token):
                        problems.append(why)
            return problems

    async def collect(self, names: Sequence[str]) -> Outcome:
        """Delete those of these objects that nobody refers to; at most :data:`CONDEMN_MAX`.

        Whatever breaks it off, nothing is deleted that anybody refers to, and :meth:`go_on` ends it.

        Raises: DiskFailed, DiskFull: this node's notes; NotReady.
        """
        assert 0 < len(names) <= CONDEMN_MAX
        async with self._lock:
            token = f"{self._node}/{self._mint()}"
            machine = ObjectCollection(self._node, names, self._known_nodes())
            action: Action = machine.begin()
            while not isinstance(action, Finish):
                action = await self._carry_out(machine, action, token)
            return await self._finish(action, token)

    async def _carry_out(self, machine: ObjectCollection, action: Action, token: str) -> Action:
        match action:
            case WriteAsking(names):
                await self._state.condemn(names, token, Part.ASKING)
                return machine.written()
            case Ask(nodes, names):
                replies = await self._ask(nodes, CondemnObjects(names=names, token=token))
                return machine.answered({node: _answer(names, reply) for node, reply in replies.items()})
            case ReadNodes():
                try:
                    return machine.nodes_read(await self._newest_nodes())
                except AmberError as error:
                    log.info("archive.collector.nodes_unknown", error=error.detail)
                    return machine.nodes_read(None)
            case WriteDecided(names):
                await self._state.decide(names, token)
                return machine.written()
            case Finish():
                raise AssertionError("is carried out by whoever asked")
            case _:
                assert_never(action)

    async def _finish(self, action: Finish, token: str) -> Outcome:
        why, deleted = action.why, action.decided
        if action.decided and (failed := await self._finish_deleting(action.decided, token)):
            why, deleted = failed, ()
        if action.reprieved and (failed := await self._reprieve(action.reprieved, token, action.nodes)):
            log.info("archive.collector.not_reprieved", token=token, error=failed)
        return Outcome(deleted=deleted, refused=dict(action.refused), why=why)

    async def _finish_deleting(self, names: Sequence[str], token: str) -> str:
        """Delete what was decided, and strike it from the notes; why not, if not."""
        try:
            await self._delete(names)
        except ArchiveError as error:
            return f"objects that are to be deleted stay for now: {error.detail}"
        await self._state.reprieve(names, token, Part.DECIDED)
        return ""

    async def _reprieve(self, names: Sequence[str], token: str, nodes: Collection[str]) -> str:
        """Have nodes take the token off these; why not all did, if so."""
        replies = await self._ask(nodes, ReprieveObjects(names=tuple(names), token=token))
        silent = sorted(node for node, reply in replies.items() if not isinstance(reply, Done))
        if silent:
            return f"{', '.join(silent)} did not answer, and may refuse rows of {len(names)} objects until the next run"
        await self._state.reprieve(names, token, Part.ASKING)
        return ""


def _answer(names: Sequence[str], reply: Reply | PeerError) -> Answer | None:
    """None: there is none that counts."""
    if not isinstance(reply, Condemned) or not reply.marks:
        return None
    return Answer(frozenset(reply.refused).intersection(names), reply.marks)


def _by_token(marks: Iterable[Mark]) -> dict[str, list[Mark]]:
    found: dict[str, list[Mark]] = {}
    for mark in marks:
        if mark.part is not Part.OTHERS:
            found.setdefault(mark.token, []).append(mark)
    return found


def _batches(names: Sequence[str]) -> list[Sequence[str]]:
    return [names[at : at + CONDEMN_MAX] for at in range(0, len(names), CONDEMN_MAX)]
