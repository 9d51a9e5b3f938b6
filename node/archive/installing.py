"""Answers ``InstallRows``: older versions of a path that is recovered from an archive (rfc/0016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from amberblob.ballot import BALLOT_ZERO
from amberblob.errors import BadRequest, DiskFailed, WireError
from amberblob.mutations import Installed
from amberblob.wire import RefusalReason, Refused, Reply, StagedReply
from amberblob.wire_archive import InstallRows
from amberblob.wire_repair import ItemsReply, PathItem, PullPaths
from antientropy.checks import Belongs, check_reply
from chunkstore.interface import ReplicaStore


class Admission(Protocol):
    """The replica's rules for what is staged (:class:`node.replica.copies.Copies`)."""

    async def stage_refused(self, slot: int, epoch: int) -> Refused | None:
        """Why nothing may be staged there by that epoch's route; None: it may."""
        ...

    def refused(self, slot: int, reason: RefusalReason, detail: str = "") -> Refused:
        """A refusal, as the copy's state is now."""
        ...


class Installing:
    """Takes rows into this node's copies.

    Args:
        belongs: whether a path is of a slot.
        installed: told of what was installed: bytes may be wanted.
    """

    def __init__(
        self,
        store: ReplicaStore,
        admission: Admission,
        belongs: Belongs,
        installed: Callable[[Installed], None] = lambda mutation: None,
    ) -> None:
        self._store = store
        self._admission = admission
        self._belongs = belongs
        self._installed = installed

    async def answer(self, message: InstallRows) -> Reply:
        """Install them, as anti-entropy would that hears of them from another copy. Raises: BadRequest."""
        slot, path = message.slot, message.path
        item = PathItem(path, None, None, False, message.rows, message.writes)
        reply = ItemsReply(
            incarnation="", epoch=message.epoch, items=(item,), ballot_floor=BALLOT_ZERO, version_floor=0
        )
        try:
            check_reply("the sender", PullPaths(slot=slot, paths=(path,)), reply, self._belongs)
        except WireError as error:
            raise BadRequest(error.detail) from None
        if (refused := await self._admission.stage_refused(slot, message.epoch)) is not None:
            return refused
        register = await self._store.load(slot, path)
        record = register.record
        if record is not None and any(row.version > record.version_max for row in message.rows):
            raise BadRequest(f"{path!r} has never had such versions: its highest one is {record.version_max}")
        mutation = Installed(slot, path, None, None, message.rows, message.writes)
        try:
            await self._store.durable(self._store.apply(mutation))
        except DiskFailed as error:
            return self._admission.refused(slot, "disk-failed", error.detail)
        self._installed(mutation)
        return StagedReply(incarnation=self._store.slot_state(slot).incarnation)
