"""What tests ask of processes that they started."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

DEADLINE_S = 60.0


def process_state(pid: int, thread: int | None = None) -> str:
    """The letter that the kernel gives the process, or one of its threads: T is stopped. Empty: there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat" if thread is None else f"/proc/{pid}/task/{thread}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat.rpartition(")")[2].split()[0]


def stand_still(pid: int) -> None:
    """SIGSTOP, and wait until it has come to all threads: one that runs may go on serving for some time after the signal."""
    os.kill(pid, signal.SIGSTOP)
    end = time.monotonic() + DEADLINE_S
    while any(process_state(pid, int(thread)) not in "T" for thread in os.listdir(f"/proc/{pid}/task")):
        assert time.monotonic() < end, f"process {pid} does not stop"
        time.sleep(0.001)
