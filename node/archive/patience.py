"""Jobs that wait for what is away, the archive or a majority of a slot's copies, and try again by themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from amberblob.clock import Clock
from amberblob.errors import (
    AmberError,
    ArchiveDamaged,
    ArchiveDenied,
    ArchiveMissing,
    ClusterError,
    PeerError,
)
from node.archive.jobs import Progress
from node.archive.reach import Reach

log = structlog.get_logger(__name__)

PATIENCE_S = 1800.0
"""How long nothing may succeed before a job fails; what it has done stays done."""
TRIES = 3
"""Of one object, or one version, although the archive as a whole answers."""
PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 15.0
"""Between two tries of the same; twice as long each time."""

T = TypeVar("T")


class Patience:
    """One job's. Many may try at once: what succeeds for one of them gives all the whole time again.

    Args:
        progress: is told what is waited for.
    """

    def __init__(self, clock: Clock, progress: Progress, *, patience_s: float | None = None) -> None:
        self._clock = clock
        self._progress = progress
        self._patience_s = PATIENCE_S if patience_s is None else patience_s
        self._since_s: float | None = None
        self._said_before = ""

    async def of(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of the first try that succeeds; each must be harmless after another.

        Raises: what waiting does not help against, at once; ClusterError or PeerError, once nothing has succeeded for the whole time.
        """
        pause_s = PAUSE_FIRST_S
        while True:
            try:
                result = await attempt()
            except (ClusterError, PeerError) as error:
                if not may_pass(error):
                    raise
                await self._wait(error, pause_s)
                pause_s = min(PAUSE_MAX_S, 2 * pause_s)
            else:
                self._succeeded()
                return result

    async def _wait(self, error: AmberError, pause_s: float) -> None:
        now_s = self._clock.monotonic_s()
        if self._since_s is None:
            self._since_s, self._said_before = now_s, self._progress.status.detail
            log.info("a job waits", job=self._progress.status.request.job, code=error.code, error=error.detail)
        waited_s = now_s - self._since_s
        if waited_s >= self._patience_s:
            raise error
        self._progress.say(f"waiting, {waited_s:.0f} s of at most {self._patience_s:.0f}: {error.detail}")
        await asyncio.sleep(min(pause_s, self._patience_s - waited_s))

    def _succeeded(self) -> None:
        if self._since_s is not None:
            self._since_s = None
            self._progress.say(self._said_before)


class Outlasting:
    """The tries of one thing that a job does: again after an archive that was away as a whole answers, :data:`TRIES` times in all."""

    def __init__(self, reach: Reach, progress: Progress) -> None:
        self._reach = reach
        self._progress = progress
        self._left = TRIES

    async def again(self, error: AmberError) -> bool:
        """A try failed: wait for the archive, if that is what it was; whether to try again. Raises: as :meth:`Reach.wait`."""
        self._left -= 1
        return self._left > 0 and await self._reach.outlast(error, PATIENCE_S, self._progress.say)


def may_pass(error: AmberError) -> bool:
    """Whether the same may succeed later without anybody's changing a setting or putting something back."""
    return error.retryable and not isinstance(error, ArchiveDenied | ArchiveMissing | ArchiveDamaged)
