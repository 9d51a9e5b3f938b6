"""What all rivals need: free ports, processes with logs that end by their own pids, and words for what went wrong."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path

from bench.cluster import ClusterFailed
from bench.environment import HOST, end_with_parent

COPIES = 3
_PORTS = range(30_000, 32_700)  # above the benchmark's own clusters, below what Linux gives to outgoing connections
_STOP_TIMEOUT_S = 20.0
_COMMAND_TIMEOUT_S = 120.0
_POLL_S = 0.1
_REQUEST_TIMEOUT_S = 20.0
_LOG_SHOWN = 800
_INSTALL = "run `make bench-rivals`"


class NotInstalled(Exception):
    """The rival, or a part of it, is not on this machine."""

    def __init__(self, what: str) -> None:
        super().__init__(f"not installed: {what} is missing; {_INSTALL}")


class RivalFailed(ClusterFailed):
    """It is installed, but it did not start or answer as it should."""


def free_ports(count: int) -> list[int]:
    """As many free ports, none twice; all are held while the others are looked for."""
    ports: list[int] = []
    with ExitStack() as stack:
        for port in _PORTS:
            if len(ports) == count:
                break
            probe = stack.enter_context(closing(socket.socket()))
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((HOST, port))
                ports.append(port)
    if len(ports) < count:
        raise RivalFailed(f"found {len(ports)} free ports from {_PORTS.start} on, not {count}")
    return ports


class Processes:
    """The processes of one rival: each with its log in ``folder``, all ended by their own pids.

    They end in the reverse of the order in which they were started, so that no one loses what it depends on.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._environment = {**os.environ, **(environment or {})}
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []

    @property
    def pids(self) -> list[int]:
        """Of all that were started."""
        return [process.pid for _, process in self._running]

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start one in the foreground; its output goes to ``name.log``."""
        with self._log(name).open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,  # noqa: PLW1509 - no other thread runs while a rival starts
            )
        self._running.append((name, process))

    def run(self, command: Sequence[str], timeout_s: float = _COMMAND_TIMEOUT_S) -> str:
        """Run a command to its end; what it printed. Raises RivalFailed."""
        shown = " ".join(command[:4])
        try:
            done = subprocess.run(
                command,
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            raise RivalFailed(f"`{shown} …` said {(error.stderr or error.stdout)[-_LOG_SHOWN:]!r}") from None
        except subprocess.TimeoutExpired:
            raise RivalFailed(f"`{shown} …` took more than {timeout_s:.0f} s") from None
        return done.stdout

    def await_true(self, what: str, holds: Callable[[], bool], timeout_s: float) -> None:
        """Return once it holds. Raises RivalFailed when it does not in time, or a process ended meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not holds():
            for name, process in self._running:
                if process.poll() is not None:
                    raise RivalFailed(f"{name} ended with status {process.returncode}: {self._last_words(name)}")
            if time.monotonic() > deadline:
                raise RivalFailed(f"{what}: not after {timeout_s:.0f} s")
            time.sleep(_POLL_S)

    def stop(self) -> None:
        """End them all; one that does not want to end is killed."""
        for _, process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        for _, process in reversed(self._running):
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._running.clear()

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _last_words(self, name: str) -> str:
        text = self._log(name).read_text(errors="replace")
        return repr(text[-_LOG_SHOWN:])


def listens(port: int) -> bool:
    """Whether someone accepts connections there."""
    try:
        with socket.create_connection((HOST, port), timeout=1.0):
            return True
    except OSError:
        return False


def swift_token(port: int, user: str, key: str, container: str) -> str:
    """Log in by the Swift interface of either rival, and make the container (its whole path) that is written to.

    Raises:
        RivalFailed: the store refused; no answer yet is an OSError or HTTPException.
    """
    connection = http.client.HTTPConnection(HOST, port, timeout=_REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", "/auth/v1.0", headers={"X-Auth-User": user, "X-Auth-Key": key})
        answer = connection.getresponse()
        answer.read()
        token = answer.headers.get("X-Auth-Token")
        if token is None:
            raise RivalFailed(f"no token on port {port}: status {answer.status}")
        connection.request("PUT", container, headers={"X-Auth-Token": token, "Content-Length": "0"})
        answer = connection.getresponse()
        text = answer.read()
        if answer.status not in (201, 202):
            raise RivalFailed(f"PUT {container} on port {port}: {answer.status} {text[:200]!r}")
        return token
    finally:
        connection.close()
