"""Real etcd and Redis servers for tests: on free ports, in temporary folders, ended by their own pid.

Without the programs a test skips and says how to get them; where ``AMBERBLOB_REQUIRE_SERVERS`` is set (as in CI) it fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest

from tests.cluster.harness import HOST, _die_with_parent, free_ports, until_sync
from tests.processes import stand_still

_T = TypeVar("_T")

CALL_S = 60.0
"""How long a server may take for what a test asks of it, on a machine that has more to do."""

_STARTER = ThreadPoolExecutor(1)
"""The kernel ends such a child with the thread that started it, and a test's threads end with the test."""

REQUIRED = "AMBERBLOB_REQUIRE_SERVERS"


def program(name: str, package: str) -> str:
    """The path of a program; the test skips, or fails where servers are required, when it is not installed."""
    found = shutil.which(name)
    if found is None:
        text = f"{name} is not installed: apt-get install {package}"
        if os.environ.get(REQUIRED):
            pytest.fail(text)
        pytest.skip(text)
    return found


class Server:
    """A server process that may be stopped, killed, paused and begun again on the same port with the same data."""

    PROGRAM: ClassVar[str]
    PACKAGE: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.program = program(self.PROGRAM, self.PACKAGE)
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self.peer_port = free_ports(2)
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        raise NotImplementedError

    def arguments(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    def clear(self) -> None:
        raise NotImplementedError

    def count(self) -> int:
        """How many keys it has, leases without keys not counted."""
        raise NotImplementedError

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Begin, and wait until it serves."""
        self.begin()
        self.wait()

    def begin(self) -> None:
        """Begin, and do not wait."""
        assert not self.running
        self.data.mkdir(exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.process = _STARTER.submit(
                subprocess.Popen,
                [self.program, *self.arguments()],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=_die_with_parent,
            ).result()

    def wait(self) -> None:
        """Until it serves."""
        until_sync(lambda: self.answers() or not self.running, f"{self.PROGRAM} serves", deadline_s=CALL_S)
        assert self.running, (self.folder / "log").read_text()[-2000:]

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stand_still(self) -> None:
        """Until SIGCONT is sent."""
        assert self.process is not None
        stand_still(self.process.pid)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it: by default as a crash would."""
        if self.process is not None:
            self.send(signal.SIGCONT)
            self.send(number)
            self.process.wait(CALL_S)

    def restart(self) -> None:
        self.stop()
        self.start()

    def empty(self) -> None:
        """Begin anew with nothing, as after a lost disk. What it had stays aside, for :meth:`set_back`."""
        self.stop()
        aside = self.folder / "newest"
        shutil.rmtree(aside, ignore_errors=True)
        self.data.rename(aside)
        self.start()

    def save(self, name: str) -> None:
        """Keep the data of now, as a backup would."""
        self.stop(signal.SIGTERM)
        shutil.copytree(self.data, self.folder / name)
        self.start()

    def set_back(self, name: str = "newest") -> None:
        """Begin with data that were kept."""
        self.stop()
        shutil.rmtree(self.data)
        shutil.copytree(self.folder / name, self.data)
        self.start()

    def close(self) -> None:
        self.stop()


def _etcd_module(name: str) -> Any:
    """A module of etcd's client, imported as the registry does it."""
    import registry.etcd

    return vars(registry.etcd)[name]


def _rpc() -> Any:
    """etcd's messages and stubs."""
    return _etcd_module("rpc")


class EtcdServer(Server):
    PROGRAM = "etcd"
    PACKAGE = "etcd-server"

    def __init__(self, folder: Path, *options: str, scheme: str = "http") -> None:
        super().__init__(folder)
        self.options = options
        self.scheme = scheme

    @property
    def url(self) -> str:
        return f"etcd://{HOST}:{self.port}"

    @property
    def client_url(self) -> str:
        return f"{self.scheme}://{HOST}:{self.port}"

    @property
    def peer_url(self) -> str:
        return f"http://{HOST}:{self.peer_port}"

    def arguments(self) -> list[str]:
        return [
            f"--data-dir={self.data}",
            f"--listen-client-urls={self.client_url}",
            f"--advertise-client-urls={self.client_url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster=default={self.peer_url}",
            "--log-level=error",
            # A new leader waits for an election's time, and no lease is shorter than one and a half of them.
            "--heartbeat-interval=20",
            "--election-timeout=200",
            *self.options,
        ]

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.client_url}/health", timeout=5) as answer:
                return b'"true"' in answer.read()
        except OSError:
            return False

    def call(self, ask: Callable[[Any], _T]) -> _T:
        """``ask`` with a channel to the server: for what no registry does, like compaction."""
        grpc = _etcd_module("grpc")
        with grpc.insecure_channel(f"{HOST}:{self.port}", (("grpc.use_local_subchannel_pool", 1),)) as channel:
            return ask(channel)

    def compact(self) -> None:
        """Let it forget every change up to now."""

        def ask(channel: Any) -> None:
            rpc = _rpc()
            kv = rpc.KVStub(channel)
            revision = kv.Range(rpc.RangeRequest(key=b"x"), CALL_S, wait_for_ready=True).header.revision
            kv.Compact(rpc.CompactionRequest(revision=revision, physical=True), CALL_S)

        self.call(ask)

    def count(self) -> int:
        rpc = _rpc()
        everything = rpc.RangeRequest(key=b"\0", range_end=b"\0", count_only=True)
        return int(self.call(lambda channel: rpc.KVStub(channel).Range(everything, CALL_S, wait_for_ready=True)).count)

    def leads(self) -> bool:
        """Whether it is the leader of its cluster at this moment."""

        def ask(channel: Any) -> bool:
            rpc = _rpc()
            status = rpc.MaintenanceStub(channel).Status(rpc.StatusRequest(), CALL_S, wait_for_ready=True)
            return bool(status.leader == status.header.member_id)

        return self.call(ask)

    def enable_users(self, password: str) -> None:
        """Have everybody log in, as root or not at all."""

        def ask(channel: Any) -> None:
            rpc = _rpc()
            auth = rpc.AuthStub(channel)
            # On a busy machine the first connection takes its time.
            auth.UserAdd(rpc.AuthUserAddRequest(name="root", password=password), CALL_S, wait_for_ready=True)
            auth.UserGrantRole(rpc.AuthUserGrantRoleRequest(user="root", role="root"), CALL_S)
            auth.AuthEnable(rpc.AuthEnableRequest(), CALL_S)

        self.call(ask)

    def clear(self) -> None:
        """Delete every key and end every lease."""

        def ask(channel: Any) -> None:
            rpc = _rpc()
            leases = rpc.LeaseStub(channel)
            for lease in leases.LeaseLeases(rpc.LeaseLeasesRequest(), CALL_S, wait_for_ready=True).leases:
                try:
                    leases.LeaseRevoke(rpc.LeaseRevokeRequest(ID=lease.ID), CALL_S)
                except _etcd_module("grpc").RpcError as error:
                    if error.code() != _etcd_module("grpc").StatusCode.NOT_FOUND:  # it has just ended by itself
                        raise
            rpc.KVStub(channel).DeleteRange(rpc.DeleteRangeRequest(key=b"\0", range_end=b"\0"), CALL_S)

        self.call(ask)


class RedisServer(Server):
    PROGRAM = "redis-server"
    PACKAGE = "redis-server"

    def __init__(self, folder: Path, *options: str, durable: bool = True, password: str = "") -> None:
        super().__init__(folder)
        self.password = password
        options = (*options, "--requirepass", password) if password else options
        self.options = (*(("--appendonly", "yes", "--appendfsync", "always") if durable else ()), *options)

    @property
    def url(self) -> str:
        return f"redis://{f':{self.password}@' if self.password else ''}{HOST}:{self.port}/0"

    def arguments(self) -> list[str]:
        return ["--port", str(self.port), "--bind", HOST, "--dir", str(self.data), "--save", "", *self.options]

    def answers(self) -> bool:
        return self.ask("PING") in (
            "PONG",
            "NOAUTH Authentication required.",
        )  # the latter where a test sets a password

    def clear(self) -> None:
        """Delete everything."""
        assert self.ask("FLUSHALL") == "OK"

    def count(self) -> int:
        return int(self.ask("ZCARD", "amberblob:index"))

    def ask(self, *words: str) -> str:
        """One command, and the first line of what it answers; empty when the server is not there."""
        requests = [("AUTH", self.password), words] if self.password else [words]
        request = "".join(
            f"*{len(each)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in each) for each in requests
        )
        try:
            with socket.create_connection((HOST, self.port), timeout=CALL_S) as connection:
                connection.sendall(request.encode())
                answers = connection.makefile()
                return [answers.readline() for _ in requests][-1].strip().lstrip("+-:")
        except OSError:
            return ""


class Patience:
    """How long something took, to see that it was bounded."""

    def __init__(self) -> None:
        self.begun_s = time.monotonic()

    @property
    def took_s(self) -> float:
        return time.monotonic() - self.begun_s
