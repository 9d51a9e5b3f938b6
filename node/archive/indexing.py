"""The node's index of archive rows by chunk id follows the rows of its own copies."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from node.archive.ground import Ground

PAGE_LINES = 1000


class Indexing:
    """Has the index learn what came to this node's copies.

    Args:
        began_anew: called with (slot, incarnation) when a copy of this node turns out to be another one than before.
    """

    def __init__(self, ground: Ground, began_anew: Callable[[int, str], Awaitable[None]]) -> None:
        self._ground = ground
        self._began_anew = began_anew
        self._known: dict[int, tuple[str, int]] = {}
        self._unlearnt: set[int] = set()

    def recall(self, slot: int, incarnation: str, seq: int) -> None:
        """The rows of this copy were learnt up to there before the node started."""
        self._known[slot] = incarnation, seq

    def changed(self, slots: Iterable[int]) -> None:
        """Rows may have come to the copies of these slots."""
        self._unlearnt.update(slots)

    async def step(self) -> bool:
        """Have the index learn a page of some copy's rows; whether there was any."""
        ground = self._ground
        for slot in sorted(self._unlearnt):
            incarnation = ground.store.slot_state(slot).incarnation
            known, seq = self._known.get(slot, ("", 0))
            if known != incarnation:
                await self._began_anew(slot, incarnation)
                self._known[slot] = incarnation, 0
                seq = 0
            if ground.store.tally(slot).archive_head <= seq:
                self._unlearnt.discard(slot)
                continue
            lines, _ = await ground.store.archived_after(slot, seq, PAGE_LINES)
            if ground.store.slot_state(slot).incarnation != incarnation:
                continue
            await ground.means.state.learn([line.chunk for line in lines])
            seq = lines[-1].seq if lines else ground.store.tally(slot).archive_head
            await ground.means.state.set_cursors([(slot, ground.node, incarnation, seq)])
            self._known[slot] = incarnation, seq
            return True
        return False
