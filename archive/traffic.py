"""What goes to a target and comes from it: counted always, limited where a job does it.

One :class:`Traffic` per node. A target counts there. It waits for its :class:`Pace` before each request and for the bytes of each; the pace
of clients' reads (:data:`FREE`) never waits, the one of jobs keeps ``[archive] bytes_per_s`` and ``requests_per_s`` together with all other
jobs, and :meth:`Traffic.job` gives one that keeps limits of its own as well.

A target that throttles (503 SlowDown, 429) makes jobs slower for a while, whatever is configured: requests are spaced, twice as far with each
further complaint, and nearer again with each success.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from amberblob.clock import Clock

Sleep = Callable[[float], Awaitable[None]]

BURST_S = 0.25
"""Who was idle may have so much at once, in seconds' worth of the rate."""

SPACING_FIRST_S = 0.02
SPACING_MAX_S = 2.0
"""Between two requests of jobs, once the target has complained."""

SPACING_EASES = 0.9
"""What a success makes of the spacing; below :data:`SPACING_FIRST_S` / 4 there is none."""


class Pace(Protocol):
    """Who does something with a target waits for it."""

    async def request(self) -> None:
        """Returns when one more request may be sent."""
        ...

    async def bytes(self, count: int) -> None:
        """Returns when so many more bytes may be sent, or asked for."""
        ...


class Free:
    """No limit: what clients read."""

    async def request(self) -> None:
        """At once."""

    async def bytes(self, count: int) -> None:
        """At once."""


FREE = Free()


class Rate:
    """A token bucket. What is taken is always given, and later ones wait for it: so one taking may be larger than the bucket.

    Args:
        per_s: tokens per second; 0: no limit.
    """

    def __init__(self, per_s: float, clock: Clock, sleep: Sleep) -> None:
        assert per_s >= 0
        self._per_s = per_s
        self._clock = clock
        self._sleep = sleep
        self._free_s = float("-inf")

    async def take(self, count: float) -> None:
        """Wait until it is one's turn; turns are in the order of calls. Who is cancelled has taken nothing."""
        if not self._per_s or count <= 0:
            return
        now_s = self._clock.monotonic_s()
        turn_s = max(self._free_s, now_s - BURST_S)
        cost_s = count / self._per_s
        self._free_s = turn_s + cost_s
        if turn_s > now_s:
            try:
                await self._sleep(turn_s - now_s)
            except BaseException:
                self._free_s -= cost_s
                raise


def _nobody() -> None:
    """Is told of trouble."""


class Traffic:
    """Counts and limits of one node.

    Args:
        bytes_per_s, requests_per_s: of all jobs together; 0: no limit.
        clock, sleep: the sleep waits by that clock.

    Attributes:
        requests: how many, by kind (``put``, ``part``, ``begin``, ``complete``, ``abort``, ``get``, ``head``, ``list``, ``delete``, ``uploads``; ``stream`` for answers
            that broke off) and result (``ok``, ``unavailable``, ``throttled``, ``denied``, ``missing``, ``damaged``, ``cancelled``, ``error``). Every try counts.
        sent_bytes, received_bytes: of content, those of failed tries too.
        retries: tries after the first one, and streams that were resumed.
        throttles: how often the target said that this is too much.
        on_trouble: told of each try that did not reach the target, or was denied.
    """

    def __init__(
        self, clock: Clock, *, bytes_per_s: float = 0, requests_per_s: float = 0, sleep: Sleep = asyncio.sleep
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._bytes = Rate(bytes_per_s, clock, sleep)
        self._requests = Rate(requests_per_s, clock, sleep)
        self._spacing_s = 0.0
        self._spaced_until_s = float("-inf")
        self.requests: dict[tuple[str, str], int] = {}
        self.sent_bytes = 0
        self.received_bytes = 0
        self.retries = 0
        self.throttles = 0
        self.on_trouble: Callable[[], None] = _nobody

    @property
    def spacing_s(self) -> float:
        """How far apart the jobs' requests are now because the target throttles; 0: as configured."""
        return self._spacing_s

    def job(self, bytes_per_s: float = 0, requests_per_s: float = 0) -> Pace:
        """The pace of a job: its own limits (0: none) and those that it shares with all others."""
        own = Rate(bytes_per_s, self._clock, self._sleep), Rate(requests_per_s, self._clock, self._sleep)
        return _JobPace(self, *own)

    def count(self, kind: str, result: str) -> None:
        """A request ended."""
        key = (kind, result)
        self.requests[key] = self.requests.get(key, 0) + 1
        if result == "throttled":
            self.throttles += 1
            self._spacing_s = min(max(2 * self._spacing_s, SPACING_FIRST_S), SPACING_MAX_S)
        elif result == "ok" and self._spacing_s:
            eased_s = self._spacing_s * SPACING_EASES
            self._spacing_s = eased_s if eased_s >= SPACING_FIRST_S / 4 else 0.0
        elif result in ("unavailable", "denied"):
            self.on_trouble()

    async def take_request(self) -> None:
        """One more request of some job: when its turn has come."""
        await self._requests.take(1)
        if self._spacing_s:
            now_s = self._clock.monotonic_s()
            turn_s = max(now_s, self._spaced_until_s + self._spacing_s)
            self._spaced_until_s = turn_s
            if turn_s > now_s:
                await self._sleep(turn_s - now_s)

    async def take_bytes(self, count: int) -> None:
        """So many more bytes of some job: when their turn has come."""
        await self._bytes.take(count)


class _JobPace:
    def __init__(self, traffic: Traffic, own_bytes: Rate, own_requests: Rate) -> None:
        self._traffic = traffic
        self._own_bytes = own_bytes
        self._own_requests = own_requests

    async def request(self) -> None:
        await self._own_requests.take(1)
        await self._traffic.take_request()

    async def bytes(self, count: int) -> None:
        await self._own_bytes.take(count)
        await self._traffic.take_bytes(count)
