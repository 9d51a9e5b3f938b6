"""`amberblob dev` with the real daemon."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.cluster.harness import HOST, ROOT, environment, free_ports, spawn, until_sync

pytestmark = pytest.mark.cluster

LINE = re.compile(r"node-(\d+) pid=(\d+) (http://127\.0\.0\.1:(\d+))\n")


@dataclass
class Dev:
    process: subprocess.Popen[bytes]
    errors: Path
    pids: list[int]
    urls: list[str]
    ready_s: float

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(90)


Starter = Callable[..., Dev]


@pytest.fixture
def port() -> int:
    return free_ports(6, in_a_row=True)[0]


@pytest.fixture
def start(tmp_path: Path, port: int) -> Iterator[Starter]:
    started: list[Dev] = []

    def start(data: Path = tmp_path / "data", *options: str) -> Dev:
        errors = tmp_path / f"stderr-{len(started)}"
        begin = time.monotonic()
        with open(errors, "wb") as file:
            process = spawn(
                "dev", "--data", str(data), "--port", str(port), *options, output=subprocess.PIPE, errors=file
            )
        dev = Dev(process, errors, [], [], 0.0)
        started.append(dev)
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line.decode())
            if lines[-1] == "ready\n":
                break
        else:
            raise AssertionError(f"dev ended with {process.wait()}:\n{errors.read_text()}")
        dev.ready_s = time.monotonic() - begin
        matches = [LINE.fullmatch(line) for line in lines[:-1]]
        assert all(matches), lines
        found = [match.groups() for match in matches if match]
        assert [int(number) for number, *_ in found] == list(range(1, len(found) + 1))
        assert [int(node_port) for *_, node_port in found] == list(range(port, port + len(found)))
        dev.pids = [int(pid) for _, pid, _, _ in found]
        dev.urls = [url for _, _, url, _ in found]
        return dev

    yield start
    for dev in started:
        if dev.process.poll() is None:
            dev.process.kill()
            dev.process.wait()
        for pid in dev.pids:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE and "amberblob" in " ".join(
            psutil.Process(pid).cmdline()
        )
    except psutil.NoSuchProcess:
        return False


def request(method: str, url: str, data: bytes | None = None) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, data=data, method=method), timeout=60) as response:
        return bytes(response.read())


def ready(url: str) -> bool:
    try:
        request("GET", f"{url}/readyz")
    except OSError:
        return False
    return True


def test_it_serves_stops_and_has_its_data_again(start: Starter) -> None:
    dev = start()
    print(f"dev was ready after {dev.ready_s:.2f} s")
    assert len(dev.pids) == 3
    assert all(alive(pid) for pid in dev.pids)
    bodies = {f"{index}": os.urandom(size) for index, size in enumerate((10, 100_000, 9_000_000))}
    for key, body in bodies.items():
        request("PUT", f"{dev.urls[0]}/objects/{key}", body)
        assert request("GET", f"{dev.urls[1]}/objects/{key}") == body
    assert dev.stop(signal.SIGTERM) == 0
    assert not any(alive(pid) for pid in dev.pids)

    again = start()
    print(f"and again after {again.ready_s:.2f} s")
    for key, body in bodies.items():
        for url in again.urls:
            assert request("GET", f"{url}/objects/{key}") == body
    assert again.stop(signal.SIGINT) == 0
    assert not any(alive(pid) for pid in again.pids)
    assert "Traceback" not in dev.errors.read_text() + again.errors.read_text()


def test_a_second_dev_on_the_same_data_is_refused(start: Starter, tmp_path: Path, port: int) -> None:
    dev = start()
    second = subprocess.run(
        [sys.executable, "-m", "amberblob", "dev", "--data", str(tmp_path / "data"), "--port", str(port + 3)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert second.returncode == 1
    assert str(dev.process.pid) in second.stderr
    assert "Traceback" not in second.stderr
    until_sync(lambda: all(ready(url) for url in dev.urls), "the first one serves on")
    assert dev.stop() == 0


def test_a_killed_node_stays_dead_until_it_is_started_by_the_printed_command(start: Starter) -> None:
    dev = start()
    request("PUT", f"{dev.urls[0]}/objects/before", b"before")
    os.kill(dev.pids[1], signal.SIGKILL)
    command = until_sync(
        lambda: re.search(r"^node-2 .*SIGKILL.*\n\s+(\S.*serve --config .*node-2.*)$", dev.errors.read_text(), re.M),
        "dev says that node-2 ended, and how to start it again",
    )[1]
    request("PUT", f"{dev.urls[0]}/objects/while-dead", b"while-dead")
    assert not ready(dev.urls[1])
    assert not alive(dev.pids[1])
    by_hand = subprocess.Popen(
        shlex.split(command), env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until_sync(lambda: ready(dev.urls[1]), "the node is back")
        for key in ("before", "while-dead"):
            assert request("GET", f"{dev.urls[1]}/objects/{key}") == key.encode()
        assert dev.stop() == 0
        assert by_hand.poll() is None, "what dev did not start it does not stop"
    finally:
        by_hand.terminate()
        by_hand.wait(90)


def test_nothing_outlives_a_killed_dev(start: Starter) -> None:
    dev = start()
    dev.process.kill()
    dev.process.wait()
    until_sync(lambda: not any(alive(pid) for pid in dev.pids), "the nodes are gone")


def test_one_node(start: Starter, tmp_path: Path) -> None:
    dev = start(tmp_path / "data", "--nodes", "1")
    request("PUT", f"{dev.urls[0]}/objects/x", b"x")
    assert request("GET", f"{dev.urls[0]}/objects/x") == b"x"
    assert HOST in dev.urls[0]
    assert dev.stop() == 0
