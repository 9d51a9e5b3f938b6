"""Which damaged paths are made anew, and when."""

from __future__ import annotations

from collections import OrderedDict

import structlog

from amberblob.errors import AmberError
from antientropy.driving import World
from antientropy.ground import Ground
from antientropy.lanes.lane import Lane
from antientropy.needs import Steps
from antientropy.remake import remake

log = structlog.get_logger(__name__)

WRONG_MAX = 10_000
"""Damaged paths that wait. More are found again by the next scrub."""

REMAKE_FEW = 64
"""Paths of one session."""


class Remakes(Lane[dict[str, str]]):
    """Paths that failed their check here."""

    def __init__(self, ground: Ground, world: World) -> None:
        super().__init__(ground, world)
        self._wrong: OrderedDict[tuple[int, str], None] = OrderedDict()
        self._slot = 0

    @property
    def waiting(self) -> int:
        """How many damaged paths are still to be looked at."""
        return len(self._wrong)

    def found(self, slot: int, path: str) -> None:
        """The own path is not what its digest was made of."""
        if len(self._wrong) < WRONG_MAX:
            self._wrong[slot, path] = None

    def begin(self) -> Steps[dict[str, str]] | None:
        if not self._wrong:
            return None
        self._slot = next(iter(self._wrong))[0]
        keys = [key for key in self._wrong if key[0] == self._slot][:REMAKE_FEW]
        for key in keys:
            del self._wrong[key]
        if not self._ground.counts(self._slot):
            return None
        voters = self._ground.places.voters(self._slot)
        return remake(self._ground.node, self._slot, [path for _, path in keys], voters, trusted=False)

    def ended(self, result: dict[str, str]) -> None:
        for path, why in result.items():
            log.warning("damaged path not mended", slot=self._slot, path=path, why=why)

    def failed(self, error: AmberError) -> None:
        log.warning("damaged paths not mended", slot=self._slot, error=str(error))
