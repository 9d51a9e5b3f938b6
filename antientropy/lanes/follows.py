"""Whose logs are followed, and when."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from amberblob.errors import AmberError
from antientropy.driving import World
from antientropy.follow import Cursor, Followed, follow
from antientropy.ground import Ground
from antientropy.lanes.compares import Compares
from antientropy.lanes.lane import Lane
from antientropy.needs import Steps

log = structlog.get_logger(__name__)


class Follows(Lane[Followed]):
    """Every peer's logs, one peer after the other, every few seconds."""

    def __init__(self, ground: Ground, world: World, compares: Compares, every_s: float) -> None:
        super().__init__(ground, world)
        self._compares = compares
        self._every_s = every_s
        self._due_s = 0.0
        self._queue: list[str] = []
        self._cursors: dict[str, Mapping[int, Cursor]] = {}
        self._peer = ""

    def now(self) -> None:
        """Follow all of them at once."""
        self._due_s = 0.0

    def begin(self) -> Steps[Followed] | None:
        if not self._queue:
            if self._due_s > self.now_s():
                return None
            self._due_s = self.now_s() + self._every_s
            self._queue = sorted(self._ground.shared(), reverse=True)
        while self._queue:
            peer = self._queue.pop()
            if not self._ground.places.reachable(peer):
                continue
            slots = {slot: voters[peer] for slot, voters in self._ground.shared().get(peer, {}).items()}
            if slots:
                self._peer = peer
                return follow(peer, slots, self._cursors.get(peer, {}))
        return None

    def _over(self) -> None:
        # Counted from the end: peers that take long to answer, or never do, must not keep this lane busy all the time.
        if not self._queue:
            self._due_s = self.now_s() + self._every_s

    def ended(self, result: Followed) -> None:
        self._over()
        self._cursors[self._peer] = result.cursors
        self._compares.begin_at(self._peer, set(result.cursors))
        self._compares.want(self._peer, result.compare)
        if result.paths:
            log.debug("followed", peer=self._peer, paths=result.paths)

    def failed(self, error: AmberError) -> None:
        self._over()
        log.debug("follow failed", peer=self._peer, error=str(error))
