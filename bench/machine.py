"""On what it was measured."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
from pathlib import Path

_ROOT = Path(__file__).parent.parent


def machine_facts(folder: Path) -> dict[str, str]:
    """CPU, memory, kernel, versions, and the file system that ``folder`` is on."""
    return {
        "cpu": _first_value("/proc/cpuinfo", "model name"),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": _first_value("/proc/meminfo", "MemTotal"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "file system": _file_system(folder),
        # Of this process and all that it starts: a run behind others' work must not pass for one of its own.
        "niceness": str(os.nice(0)),
    }


def load_average() -> str:
    """How busy the machine is: processes running or waiting over 1, 5 and 15 minutes."""
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


def commit_id() -> str:
    """The commit of this checkout, with ``+changes`` if files differ from it; ``unknown`` outside of git."""
    commit = _git("rev-parse", "--short=12", "--verify", "HEAD")
    if commit is None:
        return "unknown"
    return commit + ("+changes" if _git("status", "--porcelain") else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=_ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _first_value(file: str, key: str) -> str:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "unknown")


def _file_system(folder: Path) -> str:
    """Type and device of the longest mount point above the folder."""
    best = ("", "unknown")
    path = str(folder.resolve())
    try:
        mounts = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return "unknown"
    for line in mounts:
        device, point, kind = line.split()[:3]
        if (path + "/").startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
            best = (point, f"{kind} on {device}")
    return best[1]
