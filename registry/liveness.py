"""The node's sign of life: a key under a lease, kept alive in the background.

It tells people and healing who seems to be there. Nothing that guards data rests on it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from amberblob.clock import Randomness
from amberblob.errors import ConfigError, RegistryUnavailable
from registry.backoff import Backoff
from registry.interface import Lease, Registry, put

_log = structlog.get_logger(__name__)

TTL_S = 10.0
REVOKE_TIMEOUT_S = 2.0


class Heartbeat:
    """Keeps ``key`` = ``value`` in the registry while it runs, through outages; :meth:`run` until cancelled.

    ``enroll`` is called before each new lease: it makes sure that the registry knows the node at all.
    """

    def __init__(
        self,
        registry: Registry,
        key: str,
        value: bytes,
        *,
        randomness: Randomness,
        ttl_s: float = TTL_S,
        enroll: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        self._registry = registry
        self._key = key
        self._value = value
        self._randomness = randomness
        self._ttl_s = ttl_s
        self._enroll = enroll

    async def run(self) -> None:
        """Take a lease, hold it, and take a new one when it is lost. When cancelled, revoke it, if that goes fast."""
        lease: Lease | None = None
        backoff = Backoff(self._randomness, max_s=self._ttl_s / 3)
        try:
            while True:
                try:
                    lease = await self._beat(lease)
                    backoff.reset()
                    await asyncio.sleep(self._ttl_s / 3)
                except RegistryUnavailable as error:
                    _log.debug("sign of life not given", error=str(error))
                    await asyncio.sleep(backoff.next_s())
                except ConfigError as error:
                    _log.error("sign of life not given", error=str(error))
                    await asyncio.sleep(backoff.next_s())
                except Exception:
                    # A fault of this program: do not let the node be taken for dead because of it.
                    _log.exception("giving a sign of life failed")
                    await asyncio.sleep(backoff.next_s())
        finally:
            if lease is not None:
                with contextlib.suppress(RegistryUnavailable, TimeoutError):
                    async with asyncio.timeout(REVOKE_TIMEOUT_S):
                        await lease.revoke()

    async def _beat(self, lease: Lease | None) -> Lease:
        """Keep the lease alive, or take a new one and put the key under it."""
        if lease is not None and await lease.keepalive():
            return lease
        if self._enroll is not None:
            await self._enroll()
        lease = await self._registry.lease(self._ttl_s)
        if await put(self._registry, self._key, self._value, lease_id=lease.id) is None:
            raise RegistryUnavailable(f"{self._key} could not be set: others write it, or the lease ended at once.")
        return lease
