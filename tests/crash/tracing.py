"""strace: recording what a scenario does, making one call fail or kill, and reading its log."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
SYNCS = ("fsync", "fdatasync", "syncfs")
NAMES = ("mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "link", "linkat")
SIZES = ("ftruncate", "truncate", "fallocate")
OPENS = ("open", "openat", "creat")
FORBIDDEN = ("symlink", "symlinkat", "sendfile", "copy_file_range", "splice", "msync", "sync_file_range", "sync")
"""Ways to change a disk that the model does not know: seeing one is an error of the tests."""

DEATH = "kill"
"""How a scenario ends itself. What strace tells after that is not believed: it looks at threads that are gone, and what it last
saw of another one it shows for their results (seen: the end of a write of 4096 bytes ``= 72``) and for the numbers of
their calls (``syscall_0x1108``); where it gets no number at all, for names (``???``)."""

RECORDED = (*WRITES, *SYNCS, *NAMES, *SIZES, *OPENS, *FORBIDDEN, "close", "mmap")
MUTATING = (*WRITES, *SYNCS, *NAMES, *SIZES)
"""The write class, beside openat with O_CREAT."""

EXTRA = ("openat",)

GATE = "getsid"
"""A call that the store never makes: a thread that waits for its tracer makes it until it fails."""

_WHOLE = re.compile(r"\A(\d+) +(\w+|\?+)\((.*)\) += (-?\d+|\?)(.*)\Z", re.S)
_BEGUN = re.compile(r"\A(\d+) +(\w+|\?+)\((.*?)(?:,? ?)<(unfinished|detached) \.\.\.>\Z", re.S)
_LOST = re.compile(r"\A(\d+) +<\.\.\. (\w+|\?+) resumed>.*<detached \.\.\.>\Z", re.S)
_ENDED = re.compile(r"\A(\d+) +<\.\.\. (\w+|\?+) resumed>(.*)\) += (-?\d+|\?)(.*)\Z", re.S)
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_MARKS = re.compile(r"[][{}(),]")


def why_no_strace() -> str | None:
    """Why calls cannot be traced on this machine; None when they can."""
    if shutil.which("strace") is None:
        return "strace is not installed (Debian: apt-get install strace)"
    done = subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-o", os.devnull, "-e", "trace=fsync", "true"], capture_output=True, text=True
    )
    return None if done.returncode == 0 else f"strace does not work here: {done.stderr.strip()}"


@dataclass(slots=True)
class Call:
    """One system call.

    Attributes:
        tid: of the thread that made it.
        arguments: as strace shows them, strings in hexadecimal.
        result: the number after ``=``; None when it never returned.
        begin: index of the log's line where it was entered.
        end: index of the line where it returned.
        injected: whether strace made it fail.
        lost: strace saw it on a thread that was being killed (:data:`DEATH`). Nobody knows which call it was.
    """

    tid: int
    name: str
    arguments: list[str]
    result: int | None
    begin: int
    end: int
    injected: bool = False
    lost: bool = False

    def string(self, index: int) -> bytes:
        """A string argument."""
        return strings(self.arguments[index])[0]

    def fd(self, index: int = 0) -> int:
        """A descriptor argument; -100 is the current folder."""
        text = self.arguments[index].split("<", 1)[0]
        return -100 if text == "AT_FDCWD" else int(text)

    def fd_path(self, index: int = 0) -> bytes:
        """Where the descriptor points to, as strace saw it."""
        match = re.search(r"<((?:\\x[0-9a-f]{2})*)>", self.arguments[index])
        return b"" if match is None else _unhex(match[1])


def _unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def strings(text: str) -> list[bytes]:
    """Every string in a piece of strace's output (printed with ``-xx``)."""
    found = []
    for hexed, cut in _STRING.findall(text):
        assert not cut, "strace cut a string off: -s is too small"
        found.append(_unhex(hexed))
    return found


def _split(text: str) -> list[str]:
    """The arguments of a call. Only what stands between them is looked at: most of a log is the bytes of strings."""
    parts, depth, start = [], 0, 0
    for mark in _MARKS.finditer(text):
        char = mark[0]
        if char in "[{(":
            depth += 1
        elif char in "]})":
            depth -= 1
        elif not depth:
            parts.append(text[start : mark.start()].strip())
            start = mark.end()
    last = text[start:].strip()
    return [*parts, last] if last else parts


def read_calls(text: str) -> Iterator[Call]:
    """The calls of a log in the order in which they began. What did not end before the process died has no result."""
    begun: dict[int, Call] = {}
    calls: list[Call] = []
    for index, line in enumerate(text.split("\n")):
        if match := _WHOLE.match(line):
            tid, name, arguments, result, rest = match.groups()
            call = Call(int(tid), name, _split(arguments), _number(result), index, index, "(INJECTED)" in rest)
            calls.append(call)
        elif match := _BEGUN.match(line):
            call = Call(int(match[1]), match[2], _split(match[3]), None, index, 1 << 60, lost=match[4] == "detached")
            begun[call.tid] = call
            calls.append(call)
        elif match := _LOST.match(line):
            begun.pop(int(match[1])).lost = True
        elif match := _ENDED.match(line):
            call = begun.pop(int(match[1]))
            assert call.name == match[2]
            call.arguments += _split(match[3].lstrip(", "))
            call.result, call.end, call.injected = _number(match[4]), index, "(INJECTED)" in match[5]
        else:
            assert not line or "+++" in line or "---" in line, f"cannot read: {line[:200]}"
    death = next((call.begin for call in calls if call.name == DEATH and "SIGKILL" in call.arguments), 1 << 60)
    for call in calls:
        if call.end > death:
            call.result, call.end, call.lost = None, 1 << 60, call.lost or call.begin > death
    return iter([call for call in calls if call.name != DEATH])


def _number(text: str) -> int | None:
    return None if text == "?" else int(text)


def recording(log: Path) -> list[str]:
    """The command that records what the command after it does."""
    return [
        "strace", "-f", "--seccomp-bpf", "-o", str(log), "-xx", "-y", "-s", "4000000",
        "-e", "signal=none", "-e", "trace=" + ",".join(f"?{name}" for name in (*RECORDED, DEATH)),
    ]  # fmt: skip


class Attached:
    """strace on one thread, one of whose calls meets a fault (in strace's words)."""

    def __init__(self, tid: int, log: Path, call: str, fault: str, when: str) -> None:
        self.log = log
        traced = {GATE, call, *MUTATING, *EXTRA} if "error" in fault else {GATE, call}
        self._process = subprocess.Popen(
            [
                "strace", "-qq", "-o", str(log), "-y", "-s", "16", "-e", "signal=none",
                "-e", "trace=" + ",".join(f"?{name}" for name in sorted(traced)),
                "-e", f"inject={GATE}:error=EXDEV", "-e", f"inject={call}:{fault}:when={when}", "-p", str(tid),
            ],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    def end(self, timeout_s: float) -> str:
        """Wait for strace to end with its tracee; the log, without what the thread did to wait for its tracer."""
        try:
            self._process.communicate(timeout=timeout_s)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        lines = self.log.read_text().splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith(f"{GATE}("))
