"""The registry in Redis (7.0 or newer, or Valkey). The only module that knows of the client library.

Redis has none of what a registry promises but atomic scripts, so :mod:`registry.redisscripts` makes it from them, and this
module makes sure that the server keeps its word. It has to be a single primary that writes every change to its disk before
it answers. Refused are: a replica; one that Sentinel watches, because a failover loses what the new primary had not heard; one
that may evict keys; and Redis Cluster. That is looked at whenever a connection is made, so after each restart too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

import structlog

from amberblob.clock import Randomness, SystemRandomness
from amberblob.errors import ConfigError, RegistryUnavailable
from registry import redisscripts as scripts
from registry.common import KeptLease, Transacting
from registry.interface import (
    Change,
    Compacted,
    CompareAndDelete,
    CompareAndSet,
    Delete,
    Entry,
    Event,
    Operation,
    Put,
    Snapshot,
    check_operations,
)
from registry.lineage import Lineage
from registry.urls import ServerUrl, server_url

try:
    from redis import asyncio as client
    from redis import exceptions as errors
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as error:
    raise ConfigError(
        f"[cluster] registry: redis:// needs one more package ({error}). Install it: pip install 'amberblob[redis]'"
    ) from None

_log = structlog.get_logger(__name__)

FORM = "redis://[user][:password@]host[:port][/db][?durability=weak][&password_file=FILE], or rediss:// with [?ca=FILE]"
PORT = 6379
CALL_TIMEOUT_S = 5.0
"""A whole call: waiting for a connection, connecting, and the answer."""

CALL_CONNECTIONS_MAX = 8
WATCH_CONNECTIONS_MAX = 32
"""A watch holds a connection while it waits."""

WATCH_PAUSE_S = 1.0
"""So long a watch sleeps at most before it looks whether a lease has ended."""

RESUME_S = 3.0
"""So long a watch tries to go on by itself after losing the server (a restart), before it tells its reader."""

HISTORY_MAX = 10_000
"""Past changes kept for watchers."""

LOG_ENTRIES = 256
"""Changes that a watch reads at once."""

VERSION_MIN = 7


def redis_registry(url: str) -> RedisRegistry:
    """The registry that a ``redis://`` or ``rediss://`` URL names. Raises ConfigError for a malformed one."""
    return RedisRegistry(server_url(url, port=PORT, form=FORM, options=("durability", "ca", "cert", "key")))


class _Unfit(errors.RedisError):
    """The server does not promise what a registry needs."""


class _Lost(RegistryUnavailable):
    """The server was not reached, or went away: worth another try."""


class RedisRegistry(Transacting):
    """One client of a Redis server. See :class:`registry.interface.Registry`.

    Args:
        url: one endpoint; the path is the number of the database (0). ``durability=weak`` accepts a server that may forget
            its last second or more when it dies: for trying things out.
        call_timeout_s: how long a call may take in all before it is RegistryUnavailable.
        history_max: how many past changes are kept for watchers.
        resume_s: see :data:`RESUME_S`.

    Raises:
        ConfigError: the URL is not of that form.
    """

    def __init__(
        self,
        url: ServerUrl,
        *,
        randomness: Randomness | None = None,
        call_timeout_s: float = CALL_TIMEOUT_S,
        history_max: int = HISTORY_MAX,
        resume_s: float = RESUME_S,
    ) -> None:
        if len(url.endpoints) != 1:
            raise ConfigError(
                "[cluster] registry: redis:// takes one server. Several would be replicas, and those may not know of what was "
                "acknowledged; for a registry that outlives a machine take etcd."
            )
        if not (url.path or "0").isdigit() or url.options.get("durability", "weak") != "weak":
            raise ConfigError(f"[cluster] registry: wants {FORM}")
        if url.scheme != "rediss" and (tls := _TLS.keys() & url.options.keys()):
            raise ConfigError(
                f"[cluster] registry: {min(tls)} is for TLS, which redis:// does not use; write rediss://"
            )
        self._where = url.where
        self._accept_weak = "durability" in url.options
        self._randomness = randomness or SystemRandomness()
        self._call_timeout_s = call_timeout_s
        self._history_max = history_max
        self._resume_s = resume_s
        self._lineage = Lineage(url.where)
        self._warned = False
        self._calls = self._client(url, CALL_CONNECTIONS_MAX, call_timeout_s)
        self._waits = self._client(url, WATCH_CONNECTIONS_MAX, call_timeout_s + WATCH_PAUSE_S)
        self._scripts: dict[str, Any] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = asyncio.Event()

    # -- the interface

    async def get(self, key: str) -> Entry | None:
        _, (value, revision) = await self._run(scripts.GET, key)
        return None if value is None else Entry(key, value, int(revision))

    async def range(self, prefix: str) -> Snapshot:
        revision, (keys, values, revisions) = await self._run(scripts.RANGE, prefix)
        found = zip(keys, values, revisions, strict=True)
        return Snapshot(tuple(Entry(key.decode(), value, int(at)) for key, value, at in found), revision)

    async def transact(self, operations: Sequence[Operation]) -> int | None:
        check_operations(operations)
        words: list[Any] = []
        for it in operations:
            match it:
                case CompareAndSet():
                    words += ["p", it.key, it.expected_revision, it.value, it.lease_id or ""]
                case CompareAndDelete():
                    words += ["d", it.key, it.expected_revision, "", ""]
        revision, (made,) = await self._run(scripts.TRANSACT, *words)
        return revision if made else None

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[Change | Compacted, None]:
        lost_s: float | None = None
        loop = asyncio.get_running_loop()
        next_revision = max(1, from_revision)
        while not self._closed.is_set():
            try:
                revision, answer = await self._run(scripts.CHANGES, next_revision, LOG_ENTRIES)
                first, until_expiry_ms, entries = answer
                lost_s = None
                if next_revision < int(first) or next_revision > revision + 1:
                    yield Compacted(revision)
                    return
                for change in map(_change, entries):
                    next_revision = change.revision + 1
                    events = tuple(event for event in change.events if event.key.startswith(prefix))
                    if events:
                        yield Change(change.revision, events)
                if not entries:
                    pause_ms = WATCH_PAUSE_S * 1000
                    if until_expiry_ms >= 0:
                        pause_ms = min(pause_ms, until_expiry_ms + 1)
                    await self._wait(next_revision - 1, max(1, int(pause_ms)))
            except _Lost:
                # A restart: go on from where this watch was.
                now_s = loop.time()
                lost_s = lost_s or now_s
                if self._closed.is_set() or now_s - lost_s > self._resume_s:
                    raise
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await self._closed.wait()

    async def lease(self, ttl_s: float) -> KeptLease[str]:
        lease_id = self._randomness.token(16).hex()
        await self._run(scripts.LEASE, lease_id, max(1, round(ttl_s * 1000)))
        return KeptLease(self, lease_id, ttl_s)

    async def close(self) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        for server in (self._waits, self._calls):
            # Not aclose(): it waits for connections that are in use, and a watch's is until it hears something.
            with contextlib.suppress(errors.RedisError, OSError):
                await server.connection_pool.disconnect(inuse_connections=True)

    # -- for leases

    async def keep_lease(self, lease_id: str) -> bool:
        """Move a lease's end away; False when it has ended."""
        _, (alive,) = await self._run(scripts.KEEP, lease_id)
        return bool(alive)

    async def end_lease(self, lease_id: str) -> None:
        """End a lease, and its keys with it."""
        await self._run(scripts.REVOKE, lease_id)

    # -- calls

    async def _run(self, script: str, *words: Any) -> tuple[int, list[Any]]:
        """What a script answers: the store's revision, and what comes after its id, which is looked at here."""
        seen = self._lineage.seen()
        known = self._scripts.get(script)
        if known is None:
            known = self._scripts[script] = self._calls.register_script(script)
        mint = self._randomness.token(16).hex()
        # Not repeated by the client library, whose default is three times: a write that was made and whose answer was lost
        # would find itself, and be told as a conflict.
        revision, store_id, *rest = await self._bounded(
            known(keys=scripts.KEYS, args=(self._history_max, mint, *words)), self._call_timeout_s
        )
        self._lineage.check(seen, int(revision), store_id.decode())
        return int(revision), rest

    async def _wait(self, revision: int, pause_ms: int) -> None:
        """Until the log has more than this revision, or the pause is over."""
        reading = self._waits.xread({scripts.KEYS[-1]: f"{revision}-0"}, count=1, block=pause_ms)
        await self._bounded(reading, self._call_timeout_s + pause_ms / 1000)

    async def _bounded(self, work: Any, timeout_s: float) -> Any:
        """Carry out one piece of work in bounded time; a cancelled caller does not break it off half way."""
        if self._closed.is_set():
            work.close()
            raise RegistryUnavailable("The registry client is closed.")

        async def carry_out() -> Any:
            try:
                async with asyncio.timeout(timeout_s):
                    return await work
            except (TimeoutError, errors.TimeoutError):
                raise RegistryUnavailable(f"The registry {self._where} does not answer in {timeout_s:g} s.") from None
            except _Unfit as error:
                raise RegistryUnavailable(f"The registry {self._where} cannot be trusted: {error}") from None
            except errors.AuthenticationError as error:
                raise RegistryUnavailable(f"The registry {self._where} refuses: {error}") from None
            except (errors.ConnectionError, OSError) as error:
                raise _Lost(f"The registry {self._where} cannot be reached: {error}") from error
            except errors.RedisError as error:
                raise RegistryUnavailable(f"The registry {self._where} refuses: {error}") from error

        task = asyncio.create_task(carry_out())
        self._running.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # told to the caller, if it still waits

    # -- connections

    def _client(self, url: ServerUrl, connections_max: int, timeout_s: float) -> client.Redis:
        ((host, port),) = url.endpoints
        options: dict[str, Any] = {}
        if url.scheme == "rediss":
            options = {f"ssl_{theirs}": url.options.get(ours) for ours, theirs in _TLS.items()}
            options["connection_class"] = client.SSLConnection
        pool = client.BlockingConnectionPool(
            max_connections=connections_max,
            timeout=self._call_timeout_s,
            host=host,
            port=port,
            db=int(url.path or 0),
            username=url.user or None,
            password=url.password or None,
            socket_timeout=timeout_s,
            socket_connect_timeout=self._call_timeout_s,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            redis_connect_func=self._introduce,
            **options,
        )
        return client.Redis.from_pool(pool)

    async def _introduce(self, connection: Any) -> None:
        """Called with each new connection. Raises RedisError when the server will not do."""
        await connection.on_connect()
        info = _info(await _ask(connection, "INFO"))
        try:
            clients = await _ask(connection, "CLIENT", "LIST")
        except errors.ResponseError:  # not permitted to this user
            clients = b""
        fault = _fault(info, clients)
        if fault is not None:
            raise _Unfit(fault)
        weak = await _durability_fault(connection, info)
        if weak is None:
            return
        permitted, text = weak
        if permitted and not self._accept_weak:
            raise _Unfit(f"{text}. (For trying things out, ?durability=weak accepts it.)")
        if not self._warned:
            self._warned = True
            _log.warning("this registry may forget what it acknowledged", registry=self._where, why=text)


_TLS = {"ca": "ca_certs", "cert": "certfile", "key": "keyfile"}


async def _ask(connection: Any, *words: str) -> Any:
    await connection.send_command(*words, check_health=False)
    return await connection.read_response()


def _info(reply: Any) -> dict[str, str]:
    lines = (line.partition(":") for line in reply.decode(errors="replace").splitlines())
    return {name: value for name, separator, value in lines if separator}


def _fault(info: dict[str, str], clients: bytes) -> str | None:
    """Why a server cannot be a registry at all; None when it can."""
    version = info.get("redis_version", "0")
    if int(version.split(".")[0]) < VERSION_MIN:
        return f"it is of version {version}; {VERSION_MIN}.0 or newer is wanted"
    if info.get("role") != "master":
        return "it is a replica, which may not know of what was acknowledged. Name the primary"
    if info.get("cluster_enabled") == "1":
        return "it is part of a Redis Cluster, whose failover may lose what was acknowledged. Take a single primary"
    if b" name=sentinel-" in clients:
        return "Sentinel watches it, whose failover may lose what was acknowledged. Take a primary that nothing fails over, or etcd"
    policy = info.get("maxmemory_policy", "noeviction")
    if info.get("maxmemory", "0") != "0" and policy.startswith("allkeys"):
        return f"it throws keys away when its memory is full (maxmemory-policy {policy}). Set noeviction"
    return None


async def _durability_fault(connection: Any, info: dict[str, str]) -> tuple[bool, str] | None:
    """What keeps a server from holding what it acknowledged, and whether that is known; None: nothing."""
    if info.get("aof_enabled") != "1":
        return True, "it has appendonly off, so that it forgets when it dies. Set appendonly yes and appendfsync always"
    try:
        reply = await _ask(connection, "CONFIG", "GET", "appendfsync")
    except errors.ResponseError:
        return False, "it does not tell its appendfsync (CONFIG is not permitted). See to it that it is always"
    fsync = dict(zip(reply[::2], reply[1::2], strict=False)).get(b"appendfsync", b"").decode()
    if fsync != "always":
        return True, f"it has appendfsync {fsync}, so that it may forget its last changes. Set appendfsync always"
    return None


def _change(entry: Any) -> Change:
    """An entry of the log: ``<revision>-0`` and a flat list of fields and values."""
    name, fields = entry
    events = tuple(_event(field, value) for field, value in zip(fields[::2], fields[1::2], strict=True))
    return Change(int(name.partition(b"-")[0]), events)


def _event(field: bytes, value: bytes) -> Event:
    key = field[1:].decode()
    return Put(key, value) if field[:1] == b"p" else Delete(key)
