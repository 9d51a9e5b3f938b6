"""What is asked of a copy and changes nothing but its epoch: registers, histories, listings."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from amberblob.ballot import Register
from amberblob.limits import FRAME_BYTES_MAX, HISTORY_PAGE_MAX
from amberblob.wire import HistoryReply, HistoryRow, Query, QueryHistory, QueryScan, RegisterReply, Reply, ScanReply
from chunkstore.interface import ReplicaStore
from node.replica.copies import Copies
from node.transport.interface import Respond

ROWS_BYTES_MAX = FRAME_BYTES_MAX // 2
"""Of the rows in one answer, by an estimate that errs upwards."""

NOBODY = ""
"""The incarnation that a mute copy tells where it cannot refuse: no route names it."""


def in_one_answer(rows: list[HistoryRow]) -> list[HistoryRow]:
    """As many rows from the front as one answer holds; at least one."""
    size = 0
    for count, row in enumerate(rows):
        version = row.version
        size += 512 + 80 * len(version.chunks) + sum(len(k) + 4 * len(v) + 8 for k, v in version.meta.items())
        if count and size > ROWS_BYTES_MAX:
            return rows[:count]
    return rows


class Questions:
    """Answers Query, QueryHistory and QueryScan.

    Args:
        newcomers: slots whose copy may be mute for want of a sync (:meth:`node.routing.Routing.newcomers`).
    """

    def __init__(self, store: ReplicaStore, copies: Copies, newcomers: Callable[[], Iterable[int]]) -> None:
        self._store = store
        self._copies = copies
        self._newcomers = newcomers

    def query_now(self, message: Query, respond: Respond) -> bool:
        """Answer if the register is in memory; whether that was done."""
        slot, path = message.slot, message.path
        register = self._store.peek(slot, path)
        if register is None:
            return False
        refused = self._copies.enter(slot, message.epoch)
        if refused is not None:
            if self._copies.lags(slot, message.epoch):
                return False
            respond(refused)
            return True
        self._copies.respond_durably(slot, path, self._register_reply(message, register), respond)
        return True

    async def query(self, message: Query) -> Reply:
        """What the register holds, or Refused."""
        slot = message.slot
        await self._copies.catch_up(slot, message.epoch)
        muted = self._copies.muted(slot, message.epoch)
        if muted is not None:
            return muted
        register = await self._store.load(slot, message.path)
        refused = self._copies.enter(slot, message.epoch)
        if refused is not None:
            return refused
        await self._store.durable(self._store.position(slot, message.path))
        return self._register_reply(message, register)

    async def history(self, message: QueryHistory) -> Reply:
        """The register and a page of the rows, newest first, or Refused."""
        slot, path = message.slot, message.path
        await self._copies.catch_up(slot, message.epoch)
        muted = self._copies.muted(slot, message.epoch)
        if muted is not None:
            return muted
        limit = max(1, min(message.limit, HISTORY_PAGE_MAX))
        # The register first: rows that appear after it was read are only ever newer than what it says.
        register = await self._store.load(slot, path)
        refused = self._copies.enter(slot, message.epoch)
        if refused is not None:
            return refused
        position = self._store.position(slot, path)
        rows = await self._store.rows(slot, path, version=message.version, below=message.below, limit=limit)
        await self._store.durable(position)
        fitting = in_one_answer(rows)
        return HistoryReply(
            incarnation=self._store.slot_state(slot).incarnation,
            accepted=register.accepted,
            record=register.record,
            chosen=register.chosen,
            rows=tuple(fitting),
            more=message.version is None and (len(rows) >= limit or len(fitting) < len(rows)),
        )

    async def scan(self, message: QueryScan) -> Reply:
        """A page of the listing, over all slots of the disk."""
        # One that is filled, or named, while the page is read may be told of in part.
        unheard = [slot for slot in self._newcomers() if self._copies.mute(self._store.slot_state(slot)) is not None]
        page = await self._store.scan(
            message.prefix, message.start, message.delimiter, max(1, message.limit), dead=message.dead
        )
        incarnations, epochs = self._standing()
        incarnations.update(dict.fromkeys(unheard, NOBODY))
        return ScanReply(
            incarnation=self._store.disk_id,
            entries=tuple(page.entries),
            next_start=page.next_start,
            incarnations=incarnations,
            epochs=epochs,
        )

    def _register_reply(self, message: Query, register: Register) -> RegisterReply:
        is_known = message.known is not None and register.accepted == message.known
        return RegisterReply(
            incarnation=self._store.slot_state(message.slot).incarnation,
            accepted=register.accepted,
            record=None if is_known else register.record,
            chosen=register.chosen,
        )

    def _standing(self) -> tuple[dict[int, str], dict[int, int]]:
        """The incarnations that a listing is told, and the epochs.

        Of copies that have no voice: nobody's incarnation, so that nobody counts them. Those are learners and new voters that are not
        filled, also if nothing was ever written there, and what lies here of slots whose route does not name this node any more.
        """
        told = self._store.incarnations()
        epochs: dict[int, int] = {}
        for slot in {*self._store.slots(), *self._newcomers()}:
            state = self._store.slot_state(slot)
            if state.epoch > 1:
                epochs[slot] = state.epoch
            if self._copies.mute(state) is not None:
                told[slot] = NOBODY
        return told, epochs
