"""The kinds of registry that the contract suite runs on. A new one adds a class: several clients of one registry, and how its
time passes. etcd and Redis are real servers."""

import asyncio
import contextlib
import os
import sqlite3
from pathlib import Path

from registry.embedded import EmbeddedRegistry
from registry.interface import Registry
from registry.memory import MemoryRegistry, MemoryStore
from registry.urls import server_url
from tests.clocks import HandClock
from tests.contract.registry.servers import EtcdServer, RedisServer, Server

HISTORY_MAX = 20
CALL_TIMEOUT_S = 20.0
"""Of the clients here: nobody is to be taken for away because this machine is busy."""

HURRIED_S = 2.0
"""Of clients that are to find out that a server stands still. A bounded time is this, and what a busy machine adds."""


class Memory:
    """``ttl_s``: of the leases of these tests."""

    ttl_s = 10.0
    server: Server | None = None

    def __init__(self, folder: Path) -> None:
        self.clock = HandClock(1_000_000.0)
        self.store = MemoryStore(history_max=HISTORY_MAX)

    def client(self, *, call_timeout_s: float = CALL_TIMEOUT_S) -> Registry:
        return MemoryRegistry(self.store, clock=self.clock)

    async def elapse(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def compact(self) -> None:
        self.store.compact(self.store.revision + 1)

    @contextlib.contextmanager
    def outage(self):
        self.store.set_down(True)
        yield
        self.store.set_down(False)


class Embedded:
    """Each client has a connection of its own, as a process of its own would."""

    ttl_s = 10.0
    server: Server | None = None

    def __init__(self, folder: Path) -> None:
        self.clock = HandClock(1_000_000.0)
        self.path = folder / "registry.sqlite3"

    def client(self, *, call_timeout_s: float = CALL_TIMEOUT_S) -> Registry:
        return EmbeddedRegistry(str(self.path), clock=self.clock, poll_s=0.01, history_max=HISTORY_MAX)

    async def elapse(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def compact(self) -> None:
        with contextlib.closing(sqlite3.connect(self.path)) as db, db:
            db.execute("DELETE FROM changes")
            db.execute("UPDATE store SET compacted = revision")

    @contextlib.contextmanager
    def outage(self):
        away = self.path.with_suffix(".away")
        os.rename(self.path, away)
        yield
        os.rename(away, self.path)


class OnServer:
    """Time is the server's own."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def elapse(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    @contextlib.contextmanager
    def outage(self):
        self.server.stop()
        yield
        self.server.start()


class Etcd(OnServer):
    ttl_s = 1.0  # etcd has no shorter ones

    def client(self, *, call_timeout_s: float = CALL_TIMEOUT_S) -> Registry:
        from registry.etcd import PORT, EtcdRegistry

        url = server_url(self.server.url, port=PORT, form="", options=())
        return EtcdRegistry(url, call_timeout_s=call_timeout_s, probe_s=0.3, resume_s=RESUME_S)

    def compact(self) -> None:
        assert isinstance(self.server, EtcdServer)
        self.server.compact()


class Redis(OnServer):
    ttl_s = 1.0

    def client(self, *, call_timeout_s: float = CALL_TIMEOUT_S) -> Registry:
        from registry.redis import PORT, RedisRegistry

        url = server_url(self.server.url, port=PORT, form="", options=())
        return RedisRegistry(url, call_timeout_s=call_timeout_s, history_max=HISTORY_MAX, resume_s=RESUME_S)

    def compact(self) -> None:
        assert isinstance(self.server, RedisServer)
        self.server.ask("XTRIM", "amberblob:log", "MAXLEN", "0")


BACKENDS = [Memory, Embedded, Etcd, Redis]
RESUME_S = 1.0
LATE_S = 60.0
"""How late a real server may be on a busy machine. (To end a lease: etcd looks every half second, and lets a new leader's leases begin anew.)"""
