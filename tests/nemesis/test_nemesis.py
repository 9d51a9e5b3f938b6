"""Real nodes, killed, stopped, cut off from each other, without their registry and with full disks, and with operators
who change membership meanwhile, against 8 clients.

Four runs side by side, each a process of its own with three nodes or five: they mostly wait, so together they take little
longer than one. ``make soak`` runs more of them, for hours; ``python -m tests.nemesis --help`` tells how to repeat one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.harness import ROOT, _die_with_parent, environment

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

SECONDS = int(os.environ.get("AMBERBLOB_TEST_NEMESIS_SECONDS", "45"))
RUNS = {"membership": 101, "pause": 102, "partition": 103, "storage": 104}
"""Profile and seed."""

PATIENCE_S = 700.0


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Begin runs. None outlives the test, and no node outlives its run."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        processes.append(_started(*arguments))
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
            process.wait()


def _started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.nemesis", *arguments],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_die_with_parent,
    )


def end(process: subprocess.Popen[str], by: float) -> str:
    """What it said; its nodes end with it."""
    try:
        return process.communicate(timeout=max(1.0, by - time.monotonic()))[0]
    except subprocess.TimeoutExpired:
        process.terminate()
        try:
            return process.communicate(timeout=60.0)[0] + "\n(it did not end in time)"
        except subprocess.TimeoutExpired:
            process.kill()
            return process.communicate()[0] + "\n(it did not end at all)"


def test_four_runs_of_all_that_can_go_wrong(start: Start) -> None:
    by = time.monotonic() + SECONDS + PATIENCE_S
    processes = {
        profile: start("--seed", str(seed), "--seconds", str(SECONDS), "--profile", profile)
        for profile, seed in RUNS.items()
    }
    said = {profile: end(process, by) for profile, process in processes.items()}
    for text in said.values():
        print(text)
    bad = {profile: process.returncode for profile, process in processes.items() if process.returncode != 0}
    assert not bad, "\n".join(said[profile] for profile in bad)


def test_a_run_whose_history_was_doctored_is_bad(start: Start) -> None:
    process = start("--seed", "7", "--seconds", "8", "--profile", "quiet", "--doctor", "stale-read", "--forget")
    said = end(process, time.monotonic() + 400.0)
    assert process.returncode == 1, said
    assert "1  non-linearizable keys" in said, said
    assert "nothing explains" in said, said
