"""How many bytes of the archive the rows of this node's copies name: added up slot by slot in the background, for those who look at the status."""

from __future__ import annotations

from antientropy.step import Did, Wake
from node.archive.ground import Ground

LOOK_EVERY_S = 5.0
REST_PER_WORK = 9.0
"""After a slot was added up the worker rests so many times as long as that took."""


class Sizes:
    """A worker: adds a slot up again when its rows have changed.

    Attributes:
        by_slot: bytes of the frames that its rows name, as of the last time that it was added up. A frame that two slots name counts in both.
    """

    name = "archive-sizes"

    def __init__(self, ground: Ground) -> None:
        self.wake = Wake()
        self.pause_s = LOOK_EVERY_S
        self.by_slot: dict[int, int] = {}
        self._ground = ground
        self._as_of: dict[int, tuple[int, int]] = {}

    async def step(self) -> Did:
        """Add one slot up, if some has changed."""
        store, own = self._ground.store, self._ground.own_slots()
        for slot in self._as_of.keys() - set(own):
            del self._as_of[slot]
            self.by_slot.pop(slot, None)
        for slot in own:
            tally = store.tally(slot)
            as_of = (tally.archive_head, tally.archived_rows)
            if self._as_of.get(slot, (0, 0)) != as_of:
                began_s = self._ground.clock.monotonic_s()
                uses = await store.archive_objects(slot)
                self.by_slot[slot] = sum(use.size_bytes for use in uses.values())
                self._as_of[slot] = as_of
                self.pause_s = 0.02 + REST_PER_WORK * (self._ground.clock.monotonic_s() - began_s)
                return Did.NOTHING
        self.pause_s = LOOK_EVERY_S
        return Did.NOTHING
