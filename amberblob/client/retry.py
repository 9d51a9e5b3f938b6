"""The same request until it is done: another node each time, with pauses, within bounds.

What may be repeated: every read, and every write, because each write bears a write id that stays the same over its
attempts, so that the cluster applies it once. What must be told apart at the end: a write of which every attempt was
refused did not happen; one of which any attempt was lost on the way may have, and ends in
:class:`~amberblob.errors.OutcomeUnknown`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

import aiohttp

from amberblob.client.http import Answer, Http, Request
from amberblob.clock import Clock, Randomness, SystemClock, SystemRandomness
from amberblob.errors import (
    AmberError,
    ArchiveDamaged,
    ArchiveDenied,
    ArchiveMissing,
    ConfigError,
    NotFound,
    NotReady,
    OutcomeUnknown,
    PeerError,
    PeerUnreachable,
    PreconditionFailed,
    StaleRoute,
    VersionConflict,
)

_FOR_AN_OPERATOR = (ArchiveDenied, ArchiveMissing, ArchiveDamaged)
_FOR_ALL_ATTEMPTS = (NotFound, PreconditionFailed, VersionConflict)

ATTEMPT_HEADER = "X-Amber-Attempt"
"""``first`` as long as no attempt of the write can have been applied."""

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_REPEAT_STATUSES = frozenset({502, 503, 504})
_REPEAT_IF_ASKED_STATUSES = frozenset({429, 500})
_LOST_STATUSES = frozenset({500, 502, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long and how often.

    Attributes:
        attempts_max: attempts in all.
        deadline_s: no attempt begins later than this; counted from the start of a small request, and from the first
            failure of one with a large body, whose sending may take hours.
        pause_s: the first pause; doubles with every round over the endpoints, up to ``pause_max_s``. A node that
            cannot be reached costs no pause as long as there is another to ask.
        unreachable_s: the deadline while no node at all could be connected to: nobody should wait long to be told
            that nothing runs there, but a node that is started again is waited for.
    """

    attempts_max: int = 20
    deadline_s: float = 30.0
    unreachable_s: float = 10.0
    pause_s: float = 0.1
    pause_max_s: float = 3.0


class _Attempt(Protocol[T_co]):
    def __call__(self, endpoint: str, request: Request, *, within_s: float | None = None) -> Awaitable[T_co]: ...


class Endpoints:
    """The nodes to speak to, and which of them answered last. The first given is asked first."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = tuple(dict.fromkeys(_checked_url(url) for url in urls))
        if not self.urls:
            raise ConfigError("No endpoint is given; name at least one node, for example http://127.0.0.1:7700")
        self._preferred = 0

    def __len__(self) -> int:
        return len(self.urls)

    @property
    def preferred(self) -> int:
        """Where the next request begins."""
        return self._preferred

    def succeeded(self, index: int) -> None:
        """Stay with the node that answers."""
        self._preferred = index

    def failed(self, index: int) -> None:
        """Move on, unless another request has moved on already."""
        if self._preferred == index:
            self._preferred = (index + 1) % len(self.urls)


class Retrying:
    """``Retrying(Http(...), ...)``: :meth:`send` is that of Http, without an endpoint to choose."""

    def __init__(
        self,
        http: Http,
        endpoints: Endpoints,
        policy: RetryPolicy,
        *,
        clock: Clock | None = None,
        randomness: Randomness | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.http = http
        self.endpoints = endpoints
        self.policy = policy
        self.clock = clock or SystemClock()
        self._randomness = randomness or SystemRandomness()
        self._sleep = sleep

    async def send(self, request: Request) -> aiohttp.ClientResponse:
        """The first good answer of any node, its body still to be read. Raises what :meth:`fetch` raises."""
        return await self._repeat(request, self.http.send)

    async def fetch(self, request: Request) -> Answer:
        """The first good answer of any node, as a whole.

        Raises:
            AmberError: a refusal that another attempt would not change; or the last failure when the policy's bounds
                are reached, with ``extra["attempts"]``; OutcomeUnknown when a write may have been applied.
        """
        return await self._repeat(request, self.http.fetch)

    async def _repeat(self, request: Request, attempt: _Attempt[T]) -> T:
        policy, endpoints = self.policy, self.endpoints
        began = self.clock.monotonic_s()
        deadline = began + policy.deadline_s if request.small else None
        start = endpoints.preferred
        failures: list[AmberError] = []
        while True:
            index = (start + len(failures)) % len(endpoints)
            try:
                left_s = (
                    None if deadline is None or not request.small else max(1.0, deadline - self.clock.monotonic_s())
                )
                answer = await attempt(endpoints.urls[index], request, within_s=left_s)
            except AmberError as error:
                if not worth_repeating(error):
                    # A refusal for what the object is speaks for all attempts; whatever else only for this one.
                    if isinstance(error, _FOR_ALL_ATTEMPTS) or not any(map(maybe_applied, failures)):
                        raise
                    raise _give_up(request, [*failures, error], replayable=True) from error
                endpoints.failed(index)
                failures.append(error)
                if maybe_applied(error) and ATTEMPT_HEADER in request.headers:
                    # From now on a node that cannot decide must not say that nothing was applied.
                    headers = {name: value for name, value in request.headers.items() if name != ATTEMPT_HEADER}
                    request = replace(request, headers=headers)
            else:
                endpoints.succeeded(index)
                return answer
            now = self.clock.monotonic_s()
            deadline = deadline if deadline is not None else now + policy.deadline_s
            limit = deadline
            if all(isinstance(failure, PeerUnreachable) and not maybe_applied(failure) for failure in failures):
                limit = min(deadline, began + policy.unreachable_s)
            pause_s = self.pause_s(failures)
            replayable = request.body is None or request.body.replayable
            if not replayable or len(failures) >= policy.attempts_max or now + pause_s > limit:
                raise _give_up(request, failures, replayable=replayable) from failures[-1]
            if pause_s > 0:
                await self._sleep(pause_s)

    def pause_s(self, failures: Sequence[AmberError]) -> float:
        """How long to wait after the last of these failures."""
        error, count, nodes = failures[-1], len(failures), len(self.endpoints)
        if count < nodes and isinstance(error, (PeerError, NotReady, StaleRoute)):
            return 0.0  # that node's own trouble, and there is another one to ask
        step = min(self.policy.pause_max_s, self.policy.pause_s * 2.0 ** min((count - 1) // nodes, 30))
        jittered = step * (0.5 + self._randomness.fraction() / 2)
        asked_s = float(error.extra.get("retry_after_s", 0.0))
        return max(jittered, asked_s)


def worth_repeating(error: AmberError) -> bool:
    """Whether the same request may do better at another node or later."""
    if isinstance(error, PeerError):
        return error.retryable
    if isinstance(error, _FOR_AN_OPERATOR):
        return False  # whoever was asked has asked every copy, and the archive says the same to each
    if error.status in _REPEAT_IF_ASKED_STATUSES:
        return "retry_after_s" in error.extra
    return error.status in _REPEAT_STATUSES


def maybe_applied(error: AmberError) -> bool:
    """Whether a write that ended so may have been applied, now or later."""
    if isinstance(error, PeerError):
        return bool(error.extra.get("sent"))
    return error.status in _LOST_STATUSES


def _give_up(request: Request, failures: Sequence[AmberError], *, replayable: bool) -> AmberError:
    last = failures[-1]
    why = f"given up after {len(failures)} attempt{'s' if len(failures) > 1 else ''}"
    if not replayable:
        why = "it was not tried again, because the body came from an iterator or a pipe and is used up; give a file or bytes to have it repeated"
    attempts = [str(failure) for failure in failures]
    unknown = request.writes and any(maybe_applied(failure) for failure in failures)
    kind = OutcomeUnknown if unknown else type(last)
    extra = {**last.extra, "attempts": attempts}
    if unknown:
        extra["write_id"] = request.headers.get("X-Amber-Write-Id")
        hint = "The write may or may not be applied: repeat it with the same write id to learn which."
    else:
        hint = ""
    error = kind(f"{last.detail} ({why}). {hint}".rstrip(), code=None if unknown else last.code, extra=extra)
    if not unknown:
        error.__dict__["status"] = last.status
    return error


def _checked_url(text: str) -> str:
    url = text.strip()
    if "://" not in url:
        url = f"http://{url}"
    url = url.rstrip("/")
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and not parts.query and not parts.fragment
        _ = parts.port  # raises for what is no port
    except ValueError:
        good = False
    if not good:
        raise ConfigError(f"{text!r} is no endpoint; give a URL like http://127.0.0.1:7700")
    return url
