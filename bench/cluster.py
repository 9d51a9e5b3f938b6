"""A cluster of real processes in a folder of its own: ``amberblob dev``, started, asked, and ended by its pid."""

from __future__ import annotations

import http.client
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bench import procfs
from bench.environment import ENVIRONMENT, HOST, end_with_parent

NODES = 3
_READY_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 60.0
SYNCS = "journal syncs"
"""Name in what :meth:`Cluster.usage` tells; of all nodes."""

_PORTS = range(20_000, 30_000, 3 * NODES)


class ClusterFailed(Exception):
    """The cluster did not start or stop as it should."""


def free_ports(count: int = NODES) -> int:
    """The first of so many free ports in a row, of which another benchmark that starts now will hardly think."""
    for first in random.sample(_PORTS, len(_PORTS)):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    probe = stack.enter_context(closing(socket.socket()))
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((HOST, port))
            except OSError:
                continue
            return first
    raise ClusterFailed("found no free ports")


@dataclass(slots=True)
class Node:
    """One node: its number from 1, port, folder, and the pid of its process."""

    number: int
    port: int
    folder: Path
    pid: int
    restarted: subprocess.Popen[bytes] | None = None
    dead: bool = False

    @property
    def disk(self) -> Path:
        """Its disk's folder."""
        return self.folder / "disk"


@dataclass(slots=True)
class Cluster:
    """Three nodes on ``folder``. A context manager; started again on the same folder it has its data.

    Attributes:
        environment: of its processes; it says whose code they run.
        options: further ones of `amberblob dev`.
        start_s: from the start of the command to the line ``ready``.
    """

    folder: Path
    environment: Mapping[str, str] = field(default_factory=lambda: ENVIRONMENT)
    options: Sequence[str] = ()
    nodes: list[Node] = field(default_factory=list)
    start_s: float = 0.0
    _dev: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> list[int]:
        """Of the nodes' processes."""
        return [node.pid for node in self.nodes]

    @property
    def ports(self) -> list[int]:
        """Where the nodes answer clients."""
        return [node.port for node in self.nodes]

    def _start(self) -> None:
        first = free_ports()
        command = [sys.executable, "-m", "amberblob", "dev", "--data", str(self.folder), "--port", str(first)]
        command += self.options
        began = time.monotonic()
        self._dev = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment,
            preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs while a cluster starts
        )
        pids = self._read_pids(self._dev, began + _READY_TIMEOUT_S)
        self.start_s = time.monotonic() - began
        self.nodes = [
            Node(number, first + number - 1, self.folder / f"node-{number}", pid) for number, pid in enumerate(pids, 1)
        ]

    def _read_pids(self, dev: subprocess.Popen[bytes], deadline: float) -> list[int]:
        assert dev.stdout is not None, "it was opened with a pipe"
        text = b""
        while b"\nready\n" not in text:
            ready, _, _ = select.select([dev.stdout], [], [], max(0.0, deadline - time.monotonic()))
            part = dev.stdout.read1() if ready else b""  # type: ignore[attr-defined]  # a BufferedReader
            if not part:
                raise ClusterFailed(f"`amberblob dev` said {text.decode(errors='replace')!r} and not ready")
            text += part
        lines = [line.split() for line in text.decode().splitlines() if line.startswith("node-")]
        pids = [int(word.removeprefix("pid=")) for line in lines for word in line if word.startswith("pid=")]
        if len(pids) != NODES:
            raise ClusterFailed(f"`amberblob dev` named {len(pids)} nodes, not {NODES}")
        return pids

    @property
    def alive(self) -> list[Node]:
        """The nodes that were not killed."""
        return [node for node in self.nodes if not node.dead]

    def usage(self) -> dict[str, float]:
        """What all living nodes have used so far, for :data:`bench.load.Probe`."""
        used = procfs.usage([node.pid for node in self.alive])
        return {**used, SYNCS: sum(journal_syncs(node.port) for node in self.alive)}

    def puts(self) -> float:
        """How many PUTs the living nodes have answered so far, warm-ups and all."""
        return sum(metric(node.port, PUTS) for node in self.alive)

    def resident_bytes(self) -> int:
        """Memory of the living node that has most."""
        return max(procfs.rss_bytes(node.pid) for node in self.alive)

    def kill(self, node: Node) -> None:
        """SIGKILL one node."""
        node.dead = True
        (node.restarted or _ByPid(node.pid)).send_signal(signal.SIGKILL)
        if node.restarted is not None:
            node.restarted.wait(_STOP_TIMEOUT_S)

    def restart(self, node: Node) -> None:
        """Start a killed node again with the same `serve` command, and wait until it is ready."""
        self.launch(node)
        self.await_ready(node)

    def launch(self, node: Node) -> None:
        """Start a node that does not run, by itself."""
        config = node.folder / "node.toml"
        with (node.folder / "log").open("ab") as log:
            node.restarted = subprocess.Popen(
                [sys.executable, "-m", "amberblob", "serve", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs while a node starts
            )
        node.pid = node.restarted.pid
        node.dead = False

    def await_ready(self, node: Node) -> None:
        """Return once a launched node serves. Raises ClusterFailed."""
        assert node.restarted is not None, "it was launched"
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not is_ready(node.port):
            if time.monotonic() > deadline or node.restarted.poll() is not None:
                raise ClusterFailed(f"node-{node.number} did not become ready; its log is {node.folder}/log")
            time.sleep(0.05)

    def stop(self) -> None:
        """End every process; the data stays."""
        ours = [node.restarted for node in self.nodes if node.restarted is not None]
        if self._dev is not None:
            ours.append(self._dev)
        for process in ours:
            process.terminate()
        for process in ours:
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        self._dev = None
        for node in self.nodes:
            node.restarted = None


@dataclass(frozen=True, slots=True)
class _ByPid:
    """A node that is a child of our `amberblob dev`: its pid stays its own until dev has seen it end."""

    pid: int

    def send_signal(self, number: int) -> None:
        import os

        with suppress(ProcessLookupError):
            os.kill(self.pid, number)


def is_ready(port: int) -> bool:
    """Whether the node serves."""
    connection = http.client.HTTPConnection(HOST, port, timeout=2.0)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def journal_syncs(port: int) -> float:
    """How often the node synced its journal, from its own metrics. Raises OSError, RuntimeError."""
    return metric(port, "amberblob_journal_syncs_total")


PUTS = 'amberblob_http_requests_total{operation="put",status="2xx"}'


def metric(port: int, name: str) -> float:
    """One of the node's own numbers; 0 if it has counted nothing yet. Raises OSError, RuntimeError."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5.0)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except http.client.HTTPException as error:
        raise RuntimeError(f"GET /metrics of port {port}: {error!r}") from error
    finally:
        connection.close()
    for line in text.splitlines():
        if line.startswith(name + " "):
            return float(line.rpartition(" ")[2])
    return 0.0


def kept_logs(folder: Path) -> str:
    """Save the nodes' logs before the folder goes; says where they are."""
    logs = list(folder.glob("**/node-*/log"))
    if not logs:
        return ""
    kept = Path(tempfile.mkdtemp(prefix="amberblob-bench-logs-"))
    for log in logs:
        shutil.copy(log, kept / "-".join(log.relative_to(folder).parts))
    return f" (the nodes' logs: {kept})"
