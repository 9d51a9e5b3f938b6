"""The processes: ``amberblob dev``, its nodes, and the one that is killed and started again.

Every process is ended by its own pid, and only if it is still the process that was started. Each leads a session of
its own, so that Ctrl-C reaches the demonstration alone, which then stops them; if it is killed itself, the kernel sends
them SIGTERM (Linux).
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from demo.data import Failed

HOST = "127.0.0.1"
ROOT = Path(__file__).resolve().parent.parent
NODES = 3
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 60.0
KILL_TIMEOUT_S = 10.0
POLL_INTERVAL_S = 0.05
LOG_TAIL_LINES = 15
_NODE_LINE = re.compile(r"(node-\d+) pid=(\d+) (http://\S+)")
_PORT_TRIES_MAX = 200
_PORTS = range(10_240, 32_000)
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class Node:
    """One node. ``process`` changes when it is started again."""

    name: str
    url: str
    process: psutil.Process

    @property
    def pid(self) -> int:
        return int(self.process.pid)


class Cluster:
    """A cluster of ``amberblob dev`` in a folder of its own."""

    def __init__(self, folder: Path, port: int | None) -> None:
        self.folder = folder
        self.nodes: list[Node] = []
        self._port = port
        self._children: list[subprocess.Popen[bytes]] = []

    @property
    def urls(self) -> list[str]:
        return [node.url for node in self.nodes]

    def start(self) -> None:
        """Run ``amberblob dev`` and wait until it says ``ready``.

        Raises:
            Failed: it ended, or was not ready in time.
        """
        port = free_ports(NODES) if self._port is None else self._port
        said = self.folder / "dev.out"
        dev = self._run(
            ["dev", "--nodes", str(NODES), "--data", str(self.folder / "cluster"), "--port", str(port)], said
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while "ready" not in (lines := said.read_text("utf-8", "replace").splitlines()):
            if (status := dev.poll()) is not None:
                raise Failed(
                    f"`amberblob dev` ended with status {status} before it was ready:\n{self._tail('dev.err')}"
                )
            if time.monotonic() > deadline:
                raise Failed(f"`amberblob dev` was not ready in {START_TIMEOUT_S:.0f} s:\n{self._tail('dev.err')}")
            time.sleep(POLL_INTERVAL_S)
        for line in lines:
            if match := _NODE_LINE.match(line):
                self.nodes.append(Node(match[1], match[3], psutil.Process(int(match[2]))))
        if len(self.nodes) != NODES:
            raise Failed(f"`amberblob dev` named {len(self.nodes)} nodes instead of {NODES}")

    def kill(self, node: Node) -> None:
        """SIGKILL: the node gets no chance to tidy up."""
        os.kill(node.pid, signal.SIGKILL)

    def await_death(self, node: Node) -> None:
        """Raises Failed if the node lives on."""
        try:
            node.process.wait(KILL_TIMEOUT_S)
        except psutil.TimeoutExpired:
            raise Failed(f"{node.name} (pid {node.pid}) lives {KILL_TIMEOUT_S:.0f} s after SIGKILL") from None

    def restart(self, node: Node) -> None:
        """Start a dead node again, as ``amberblob dev`` says to."""
        config = self.folder / "cluster" / node.name / "node.toml"
        child = self._run(["serve", "--config", str(config)], self.folder / f"{node.name}.out")
        node.process = psutil.Process(child.pid)

    def dead(self) -> list[str]:
        """The names of nodes whose process has ended."""
        return [node.name for node in self.nodes if not _lives(node.process)]

    def memory_bytes(self) -> dict[str, int]:
        """What each living node holds in memory (resident set)."""
        found: dict[str, int] = {}
        for node in self.nodes:
            with suppress(psutil.Error):
                found[node.name] = int(node.process.memory_info().rss)
        return found

    def stop(self) -> None:
        """SIGTERM to what was started here, time to end cleanly, and SIGKILL for what remains."""
        for child in reversed(self._children):
            if child.poll() is None:
                child.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for child in self._children:
            try:
                child.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait(KILL_TIMEOUT_S)
        for node in self.nodes:  # those whose `dev` had to be killed
            if _lives(node.process):
                with suppress(psutil.Error):
                    node.process.kill()
        self._children.clear()

    def _run(self, arguments: list[str], said: Path) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AMBERBLOB_")}
        with open(said, "wb") as out, open(said.with_suffix(".err"), "wb") as err:
            child = subprocess.Popen(
                [sys.executable, "-m", "amberblob", *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 - nothing between fork and exec takes a lock
            )
        self._children.append(child)
        return child

    def _tail(self, name: str) -> str:
        lines = (self.folder / name).read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])


def free_ports(count: int) -> int:
    """The first of so many free ports in a row, below those that outgoing connections take."""
    for _ in range(_PORT_TRIES_MAX):
        first = random.choice(_PORTS)
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise Failed(f"found no {count} free ports in a row; name the first of some with --port")


def _is_free(port: int) -> bool:
    with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _die_with_parent() -> Callable[[], None] | None:
    """What a child does before exec, so that the kernel ends it when the demonstration is killed; Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return before_exec
