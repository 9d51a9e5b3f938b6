"""The processes of ``amberblob dev``: start, watch, stop.

One thread, no event loop: the work is to wait for signals and children, and for both Python has one primitive,
the wake-up descriptor. Each node leads a session of its own, so that Ctrl-C on the terminal reaches dev alone, and
dev asks the nodes to stop. If dev itself is killed, the kernel sends SIGTERM to its children (Linux), so that
nothing lingers. A node that the user started by hand is no child of dev and is left alone.
"""

from __future__ import annotations

import ctypes
import http.client
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from amberblob.cli.devlayout import HOST, DevLayout, DevNode
from amberblob.cli.output import CommandFailed, note, say

READY_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.05
PROBE_TIMEOUT_S = 2.0
STOP_TIMEOUT_S = 30.0
LOG_TAIL_LINES = 15
LOG_TAIL_BYTES_MAX = 64 * 1024
_PR_SET_PDEATHSIG = 1


@dataclass(slots=True)
class _Running:
    """One node's process, and where its log began this time."""

    node: DevNode
    process: subprocess.Popen[bytes]
    log_offset: int
    reported: bool = False


class _Stopped(Exception):
    """The user wants an end."""


class DevCluster:
    """A local cluster of real processes."""

    def __init__(self, layout: DevLayout) -> None:
        self._layout = layout
        self._running: list[_Running] = []
        self._stops = 0
        self._wakeup = -1

    def run(self) -> None:
        """Start every node, wait until all are ready, say so, and go on until SIGTERM or Ctrl-C.

        Raises:
            CommandFailed: a node ended early, or was not ready in time. Nothing is left running.
        """
        with self._signals():
            try:
                self._start()
                self._await_ready()
                self._announce()
                while True:
                    self._pause(None)
                    self._report_deaths()
            except _Stopped:
                note("stopping …")
            finally:
                self._stop()
        note("stopped")

    # -- signals

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals become bytes in a pipe; nothing happens inside of a handler but counting."""
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self._wakeup = reader
        stopping = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup
            stopping.append(signal.SIGHUP)
        # They stay in place to the end of the process: an impatient Ctrl-C must not turn a clean stop into a failure.
        for number in stopping:
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        wakeup_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup_before)
            os.close(reader)
            os.close(writer)

    def _on_stop(self, *_: object) -> None:
        self._stops += 1

    def _pause(self, timeout_s: float | None) -> None:
        """Wait for a signal, at most so long. Raises _Stopped once the user wants an end."""
        if self._stops == 0:
            self._wait_signal(timeout_s)
        if self._stops > 0:
            raise _Stopped

    def _wait_signal(self, timeout_s: float | None) -> None:
        select.select([self._wakeup], [], [], timeout_s)
        try:
            while os.read(self._wakeup, 4096):
                pass
        except BlockingIOError:
            pass

    # -- start

    def _start(self) -> None:
        before_exec = _die_with_parent()
        for node in self._layout.nodes:
            with open(node.log_file, "ab") as log:
                process = subprocess.Popen(
                    node.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._layout.environment,
                    start_new_session=True,
                    preexec_fn=before_exec,  # noqa: PLW1509 - this process has one thread
                )
                self._running.append(_Running(node, process, log.tell()))

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_TIMEOUT_S
        waiting = {running.node.name: "did not answer" for running in self._running}
        while waiting:
            for running in self._running:
                name = running.node.name
                if (status := running.process.poll()) is not None:
                    self._show_log_tail(running)
                    raise CommandFailed(
                        f"{name} {_how_it_ended(status)} before it was ready",
                        f"Its last lines are above, its whole log is {running.node.log_file}",
                    )
                if name in waiting:
                    reason = _not_ready(running.node.port)
                    if reason is None:
                        del waiting[name]
                    else:
                        waiting[name] = reason
            if waiting and time.monotonic() > deadline:
                reasons = "; ".join(f"{name}: {reason}" for name, reason in sorted(waiting.items()))
                raise CommandFailed(
                    f"not ready after {READY_TIMEOUT_S:.0f} s ({reasons})",
                    f"The nodes' logs are {self._layout.folder}/node-*/log",
                )
            if waiting:
                self._pause(POLL_INTERVAL_S)

    def _announce(self) -> None:
        nodes = self._layout.nodes
        note(f"data: {self._layout.folder}   logs: {self._layout.folder}/node-*/log")
        note(f"A node that you kill stays dead until you start it again, for example {nodes[0].name}:")
        note(f"  {nodes[0].command_line}")
        try:
            for running in self._running:
                say(f"{running.node.name} pid={running.process.pid} {running.node.url}")
            say("ready")
        except BrokenPipeError:
            pass  # whoever started dev does not listen; the cluster is up all the same

    # -- watch

    def _report_deaths(self) -> None:
        for running in self._running:
            status = running.process.poll()
            if status is not None and not running.reported:
                running.reported = True
                note(f"{running.node.name} (pid {running.process.pid}) {_how_it_ended(status)}; start it again with:")
                note(f"  {running.node.command_line}")

    def _show_log_tail(self, running: _Running) -> None:
        try:
            with open(running.node.log_file, "rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(running.log_offset, end - LOG_TAIL_BYTES_MAX))
                lines = log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return
        for line in lines[-LOG_TAIL_LINES:]:
            note(f"{running.node.name} | {line}")

    # -- stop

    def _stop(self) -> None:
        """SIGTERM to each, time to finish what is in flight, SIGKILL for what remains (or at a second Ctrl-C)."""
        stops_before = self._stops
        for running in self._running:
            if running.process.poll() is None:
                running.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while any(running.process.poll() is None for running in self._running):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or self._stops > stops_before:
                break
            self._wait_signal(min(left_s, 0.5))
        for running in self._running:
            if running.process.poll() is None:
                note(f"{running.node.name} (pid {running.process.pid}) did not stop; killing it")
                running.process.kill()
                running.process.wait()


def _die_with_parent() -> Callable[[], None] | None:
    """What a child does before exec, so that the kernel ends it when dev is killed; Linux only."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        prctl = ctypes.CDLL(None, use_errno=True).prctl
    except (OSError, AttributeError):
        return None
    parent = os.getpid()

    def before_exec() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died before we could ask
            os._exit(1)

    return before_exec


def _not_ready(port: int) -> str | None:
    """Why the node does not serve yet; None when it does."""
    connection = http.client.HTTPConnection(HOST, port, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        body = response.read(4096).decode("utf-8", "replace")
        if response.status == http.client.OK:
            return None
        return " ".join(body.split())[:300] or f"HTTP {response.status}"
    except ConnectionRefusedError:
        return "does not listen yet"
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        connection.close()


def _how_it_ended(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
