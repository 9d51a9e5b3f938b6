"""Another commit beside this one: real clusters of both, and nothing left of the other's files."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.environment import ENVIRONMENT, ROOT
from bench.results import load
from bench.versus import BadRevision, resolve

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.fixture
def head():
    try:
        return resolve("HEAD")
    except BadRevision:
        pytest.skip("this is no git checkout: there is no other commit to be measured")


def _heed_interruptions():
    """A shell's background job ignores SIGINT, and so would what it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _start(folder, *arguments):
    command = [sys.executable, "-m", "bench.versus", "--folder", str(folder), *arguments, "HEAD"]
    return subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=_heed_interruptions,
    )


def _worktrees(folder):
    listed = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if str(folder) in line]


def _nodes_of(folder):
    """Pids of the nodes whose settings are in the folder."""
    pids = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                pids.append(int(entry.name))
        except OSError:
            continue
    return pids


def test_both_are_measured_and_nothing_is_left(head, tmp_path):
    folder = tmp_path / "clusters"
    folder.mkdir()
    # In a second something is answered on a busy machine, too; a window in which it stands still is begun again.
    process = _start(folder, "--rounds", "1", "--window", "1", "--json", str(tmp_path / "vs.json"))
    said = process.communicate()[0]
    assert process.returncode == 0, said
    (section,) = load(tmp_path / "vs.json").sections
    assert not section.problem
    ratios = [row for row in section.rows if row.subject.startswith(f"this checkout over {head}: ")]
    assert {row.metric for row in ratios} >= {"throughput"}
    assert len({row.subject for row in ratios}) == 5
    assert all(value > 0 for row in ratios for value in row.series.values)
    assert all(value == 0 for row in section.rows if row.metric == "errors" for value in row.series.values)
    assert not _worktrees(folder) and not _nodes_of(folder) and not list(folder.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(head, tmp_path, number):
    process = _start(tmp_path)
    deadline = time.monotonic() + 300
    while len(_nodes_of(tmp_path)) < 4 or not _worktrees(tmp_path):  # two of us, and nodes
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(number)
    said = process.communicate()[0]
    assert process.returncode == 130, said
    assert "nothing is left running" in said
    assert not _worktrees(tmp_path) and not _nodes_of(tmp_path) and not list(tmp_path.iterdir())
