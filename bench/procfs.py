"""What Linux tells of a process: CPU time, memory, open files, bytes written."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_RESET_PEAK = "5"

CPU = "CPU seconds"
WRITTEN = "bytes written"
"""Names in what :func:`usage` tells."""


def cpu_s(pids: Sequence[int]) -> float:
    """CPU seconds (user and system) that the processes have used so far, all together."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS_PER_S


def _status_kib(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1])
    raise ValueError(f"/proc/{pid}/status has no {key}")


def rss_bytes(pid: int) -> int:
    """Resident memory."""
    return _status_kib(pid, "VmRSS") * 1024


def peak_rss_bytes(pid: int) -> int:
    """The most resident memory since the start, or since :func:`reset_peak`."""
    return _status_kib(pid, "VmHWM") * 1024


def reset_peak(pid: int) -> None:
    """Begin :func:`peak_rss_bytes` anew."""
    Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)


def written_bytes(pids: Sequence[int]) -> int:
    """Bytes that the processes caused to be sent to the disk, all together."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            if line.startswith("write_bytes:"):
                total += int(line.split()[1])
    return total


def has_ended(pid: int) -> bool:
    """Whether the process is no more, or only waits for its parent to hear of its end: its files are closed."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def usage(pids: Sequence[int]) -> dict[str, float]:
    """What the processes have used so far, all together, for :data:`bench.load.Probe`."""
    return {CPU: cpu_s(pids), WRITTEN: float(written_bytes(pids))}


def others_cpu_s() -> float:
    """CPU seconds that this machine's other users have taken so far: all that is not ours or of processes we ended.

    Only differences between moments at which none of our processes runs mean something.
    """
    fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = map(int, fields[:8])
    ours = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_S - ours


def open_files(pid: int, ending: str) -> set[str]:
    """The files with this ending that the process has open."""
    names = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            name = os.readlink(entry.path)
        except OSError:
            continue
        if name.endswith(ending):
            names.add(name)
    return names
