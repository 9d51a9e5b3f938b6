"""Whether the target answers, and if not, why: looked at in the background, so that nobody's start or request waits for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from amberblob.clock import Clock
from amberblob.errors import AmberError, ArchiveDenied, ArchiveError, ArchiveNotOurs, ArchiveUnavailable, NotReady
from antientropy.step import Did, Wake
from archive.targets.interface import Target
from archive.traffic import Traffic

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 60.0
"""How often a target that answers is looked at, if nothing else went there meanwhile."""
RETRY_FIRST_S = 2.0
RETRY_MAX_S = 5.0
"""How often one that is away is looked at: who mended it wants to see that within seconds."""
RETRY_STRANGE_S = 15.0
"""The same of one that answers and is another cluster's: finding out what is there takes some requests more."""
WAITS_MAX_S = 60.0
"""A job that waits looks by itself so often. It goes on at once when another look had an answer."""
PROBE_TIMEOUT_S = 60.0
DOUBT_PAUSE_S = 1.0
"""Between two looks because of others' requests that failed: there may be many."""


class Reach:
    """A worker that looks whether the target answers, and is the cluster's own.

    The first look, and each after a failure, stores, reads and deletes a small object; later ones list one name. What others' requests
    met counts as well: each success spares a look, and a failure has one made at once.

    Args:
        is_ours: raises ArchiveNotOurs when it answers and is another one; None: nobody can tell.

    Attributes:
        reached: None: it was not tried yet.
        error: why it is not reached; None while it is, or was not tried.
        since_ms: since when that is so, epoch milliseconds.
    """

    name = "archive-reach"

    def __init__(
        self,
        target: Target,
        traffic: Traffic,
        clock: Clock,
        *,
        now_ms: Callable[[], int],
        is_ours: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.wake = Wake()
        self.pause_s = LOOK_EVERY_S
        self.reached: bool | None = None
        self.error: ArchiveError | None = None
        self.since_ms = 0
        self._target = target
        self._traffic = traffic
        self._clock = clock
        self._now_ms = now_ms
        self._is_ours = is_ours
        self._succeeded = 0
        self._retry_s = RETRY_FIRST_S
        self._doubted = self._looking = False
        self._back = asyncio.Event()
        traffic.on_trouble = self._doubt

    def _doubt(self) -> None:
        """Somebody's request failed."""
        if self.reached and not self._looking and not self._doubted:
            self._doubted = True
            self.wake.set()

    async def step(self) -> Did:
        """Look, then rest."""
        if self._doubted:
            await asyncio.sleep(DOUBT_PAUSE_S)
        succeeded = self._successes()
        if self.reached and not self._doubted and succeeded > self._succeeded:
            self._succeeded = succeeded
            return self._rest(LOOK_EVERY_S)
        await self._look(thorough=not self.reached or self._doubted)
        if self.reached:
            return self._rest(LOOK_EVERY_S)
        longest_s = RETRY_STRANGE_S if isinstance(self.error, ArchiveNotOurs) else RETRY_MAX_S
        pause_s, self._retry_s = min(self._retry_s, longest_s), min(longest_s, 2 * self._retry_s)
        return self._rest(pause_s)

    async def _look(self, *, thorough: bool) -> None:
        self._looking = True
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                if thorough:
                    await self._target.probe()
                else:
                    await self._target.page("", "", 1)
                if self._is_ours is not None:
                    with contextlib.suppress(NotReady):  # without routes nobody knows whose this node is
                        await self._is_ours()
        except TimeoutError:
            self.failed(ArchiveUnavailable(f"{self._target.url} did not answer within {PROBE_TIMEOUT_S:.0f} s."))
        except ArchiveError as error:
            self.failed(error)
        else:
            self._answered()
            self._succeeded = self._successes()
        finally:
            self._looking = self._doubted = False

    async def look_again(self, error: AmberError) -> None:
        """Somebody's request failed: look now whether the target as a whole does not work."""
        log.info("is the archive reached?", error=error.detail)
        await self._look(thorough=True)

    async def wait(self, patience_s: float, say: Callable[[str], None] = lambda why: None) -> None:
        """Return once the target answers, whoever saw it; looks itself, too, and says what it waits for.

        Raises: ArchiveDenied at once, as nobody but an operator can help; another ArchiveError when it did not answer for so long.
        """
        end_s, pause_s = self._clock.monotonic_s() + patience_s, RETRY_FIRST_S
        while True:
            if not self.reached:
                await self._look(thorough=True)
            if self.error is None:
                return
            left_s = end_s - self._clock.monotonic_s()
            if left_s <= 0 or isinstance(self.error, ArchiveDenied):
                self.require()
            say(f"waiting for the archive: {self.error}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._back.wait(), min(pause_s, left_s))
            pause_s = min(WAITS_MAX_S, 2 * pause_s)

    async def outlast(self, error: AmberError, patience_s: float, say: Callable[[str], None]) -> bool:
        """A job's request failed: return once the target answers, if it is the target that did not.

        Returns: whether trying again may help; not after what has nothing to do with an archive that is away.

        Raises: as :meth:`wait`.
        """
        if not isinstance(error, ArchiveUnavailable):
            return False
        await self.look_again(error)
        await self.wait(patience_s, say)
        return True

    def require(self) -> None:
        """Raises: ArchiveError, why the target cannot be reached, as far as is known."""
        if self.reached is False and self.error is not None:
            raise type(self.error)(self.error.detail, code=self.error.code)

    def failed(self, error: ArchiveError) -> None:
        """Somebody's request failed because the target as a whole does not answer; it is looked at soon."""
        if self.reached is not False:
            self.reached, self.since_ms = False, self._now_ms()
            log.warning("the archive is not reached", target=self._target.url, code=error.code, error=error.detail)
            self._retry_s = RETRY_FIRST_S
            self.wake.set()
        self._back.clear()
        self.error = error

    def _answered(self) -> None:
        if not self.reached:
            self.reached, self.since_ms = True, self._now_ms()
            log.info("the archive is reached", target=self._target.url)
        self.error = None
        self._back.set()
        self._retry_s = RETRY_FIRST_S

    def _successes(self) -> int:
        return sum(count for (_, result), count in self._traffic.requests.items() if result == "ok")

    def _rest(self, seconds: float) -> Did:
        self.pause_s = seconds
        return Did.NOTHING
