"""`amberblob dev` with real processes and a stand-in for the daemon."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DEADLINE_S = 60.0


class Dev:
    """One `amberblob dev` under test."""

    def __init__(self, data: Path, port: int, environment: dict[str, str], *options: str) -> None:
        self.data = data
        command = [sys.executable, "-m", "amberblob", "dev", "--data", str(data), "--port", str(port), *options]
        self.stderr = data.parent / f"stderr-{time.monotonic_ns()}"
        with open(self.stderr, "wb") as stderr:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, env=environment, text=True)

    def lines_until_ready(self) -> list[str]:
        assert self.process.stdout is not None
        lines = []
        while line := self.process.stdout.readline():
            lines.append(line.rstrip("\n"))
            if lines[-1] == "ready":
                return lines
        raise AssertionError(f"ended with {self.process.wait()}: {self.errors()}")

    def pids(self) -> list[int]:
        return [int(line.split()[1].removeprefix("pid=")) for line in self.lines_until_ready()[:-1]]

    def errors(self) -> str:
        return self.stderr.read_text()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def start(tmp_path: Path, port: int, fake_node: dict[str, str]) -> Iterator[Callable[..., Dev]]:
    started: list[Dev] = []

    def begin(*options: str, first_port: int = port, **environment: str) -> Dev:
        dev = Dev(tmp_path / "data", first_port, {**fake_node, **environment}, *options)
        started.append(dev)
        return dev

    yield begin
    for dev in started:
        if dev.process.poll() is None:
            dev.process.terminate()
        dev.process.wait(DEADLINE_S)
        assert dev.process.stdout is not None
        dev.process.stdout.close()


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "the state never came"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_prints_every_node_then_ready_and_stops_cleanly(start, port):
    dev = start()
    lines = dev.lines_until_ready()
    assert len(lines) == 4
    pids = []
    for index, line in enumerate(lines[:3]):
        match = re.fullmatch(rf"node-{index + 1} pid=(\d+) http://127\.0\.0\.1:{port + index}", line)
        assert match, line
        pids.append(int(match[1]))
        assert urllib.request.urlopen(f"http://127.0.0.1:{port + index}/readyz").status == 200
    assert all(alive(pid) for pid in pids)
    assert dev.stop() == 0
    assert not any(alive(pid) for pid in pids)
    assert "stopped cleanly" in (dev.data / "node-2" / "log").read_text()


def test_ctrl_c_stops_it_too(start):
    dev = start("--nodes", "1")
    dev.lines_until_ready()
    assert dev.stop(signal.SIGINT) == 0


def test_what_it_writes(start, port, tmp_path):
    dev = start("--nodes", "2")
    dev.lines_until_ready()
    assert stat.S_IMODE((dev.data / "secret").stat().st_mode) == 0o600
    config = tomllib.loads((dev.data / "node-2" / "node.toml").read_text())
    assert config["node"]["id"] == "node-2"
    assert config["http"]["listen"] == f"127.0.0.1:{port + 1}"
    assert config["cluster"]["bootstrap_nodes"] == ["node-1", "node-2"]
    assert config["cluster"]["replicas"] == 3
    assert config["cluster"]["registry"] == f"embedded://{tmp_path}/data/registry.sqlite3"
    assert (dev.data / "node-2" / "disk").is_dir()


def test_started_again_it_keeps_secret_ports_and_what_the_user_wrote(start):
    dev = start("--nodes", "1")
    dev.lines_until_ready()
    dev.stop()
    file = dev.data / "node-1" / "node.toml"
    before, secret = tomllib.loads(file.read_text()), (dev.data / "secret").read_text()
    file.write_text(file.read_text() + '\n[log]\nlevel = "debug"\n')
    again = start()  # without --nodes: as many as the folder has
    assert len(again.lines_until_ready()) == 2
    after = tomllib.loads(file.read_text())
    assert after.pop("log") == {"level": "debug"}
    assert after == before
    assert (dev.data / "secret").read_text() == secret


def test_a_peer_port_that_is_taken_is_picked_anew(start):
    dev = start("--nodes", "1")
    dev.lines_until_ready()
    dev.stop()
    file = dev.data / "node-1" / "node.toml"
    old = int(tomllib.loads(file.read_text())["peer"]["listen"].rpartition(":")[2])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", old))
        taken.listen()
        start().lines_until_ready()
        assert tomllib.loads(file.read_text())["peer"]["listen"] != f"127.0.0.1:{old}"


def test_a_second_dev_on_the_same_data_is_refused(start, port):
    first = start("--nodes", "1")
    first.lines_until_ready()
    second = start("--nodes", "1", first_port=port + 1)
    assert second.process.wait(DEADLINE_S) == 1
    assert f"(pid {first.process.pid})" in second.errors()
    assert first.process.poll() is None


def test_another_number_of_nodes_is_refused(start):
    dev = start("--nodes", "2")
    dev.lines_until_ready()
    dev.stop()
    other = start("--nodes", "3")
    assert other.process.wait(DEADLINE_S) == 1
    assert "holds a cluster of 2 nodes, not 3" in other.errors()


def test_a_port_in_use_is_named(start, port):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        dev = start()
        assert dev.process.wait(DEADLINE_S) == 1
        assert f"port {port + 1}" in dev.errors()


def test_a_node_that_ends_early_shows_the_tail_of_its_log(start):
    dev = start("--nodes", "2", FAKE_NODE_NODE_2="dies")
    assert dev.process.wait(DEADLINE_S) == 1
    assert "node-2 ended with exit status 3 before it was ready" in dev.errors()
    assert "node-2 | the disk is on fire" in dev.errors()


def test_a_killed_node_stays_dead_until_its_serve_command_runs(start, port, fake_node):
    dev = start("--nodes", "2")
    pids = dev.pids()
    os.kill(pids[1], signal.SIGKILL)
    eventually(lambda: "was ended by SIGKILL" in dev.errors())
    assert dev.process.poll() is None
    with pytest.raises(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{port + 1}/readyz")
    command = dev.errors().splitlines()[-1].split()
    assert command[-2:] == ["--config", str(dev.data / "node-2" / "node.toml")]
    by_hand = subprocess.Popen(command, env=fake_node, stdout=subprocess.DEVNULL)
    try:

        def answers() -> bool:
            try:
                return urllib.request.urlopen(f"http://127.0.0.1:{port + 1}/readyz").status == 200
            except OSError:
                return False

        eventually(answers)
        assert dev.stop() == 0
        assert by_hand.poll() is None, "a node that the user started is the user's"
    finally:
        by_hand.terminate()
        by_hand.wait(DEADLINE_S)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children that their parent died")
def test_nodes_do_not_outlive_a_dev_that_was_killed(start):
    dev = start("--nodes", "2")
    pids = dev.pids()
    dev.process.kill()
    eventually(lambda: not any(alive(pid) for pid in pids))


def test_a_second_ctrl_c_kills_what_does_not_stop(start):
    dev = start("--nodes", "1", FAKE_NODE_NODE_1="stubborn")
    pids = dev.pids()
    dev.process.send_signal(signal.SIGINT)
    eventually(lambda: "stopping" in dev.errors())
    assert dev.stop(signal.SIGINT) == 0
    assert "did not stop; killing it" in dev.errors()
    assert not alive(pids[0])


def test_variables_that_would_make_all_nodes_one_are_ignored(start):
    dev = start("--nodes", "2", AMBERBLOB_NODE_ID="other", AMBERBLOB_HTTP_LISTEN="127.0.0.1:1")
    assert len(dev.lines_until_ready()) == 3


def test_a_mistake_in_a_node_file_is_told_at_once(start):
    dev = start("--nodes", "1")
    dev.lines_until_ready()
    dev.stop()
    file = dev.data / "node-1" / "node.toml"
    file.write_text(file.read_text() + "\n[storage]\nresrve = 1\n")
    again = start()
    assert again.process.wait(DEADLINE_S) == 1
    assert "resrve" in again.errors()
    assert "Traceback" not in again.errors()


def test_the_folder_remembers_what_it_is(start):
    dev = start("--nodes", "1")
    dev.lines_until_ready()
    assert json.loads((dev.data / "dev.json").read_text()) == {"nodes": 1, "registry": None}
