"""Running scenarios: once under a recorder, many times from one process that has imported everything."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.crash.lines import Line, Started, decode_lines
from tests.crash.powercut import Recording, State, as_left, found_after, states
from tests.crash.tracing import MUTATING, Attached, read_calls, recording, strings
from tests.crash.verify import PromiseBroken, Promises, verify

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = [sys.executable, "-m", "tests.crash.scenario"]
RUN_S_MAX = 240.0
KILL = "signal=KILL"


@contextmanager
def fast_folder() -> Iterator[Path]:
    """A folder in memory if there is such a place: what is rebuilt there need not survive anything."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="amber-crash-", dir=parent) as folder:
        yield Path(folder)


# -- recordings


class Unclear(Exception):
    """A recording that does not tell what the folder held when the process was killed. The next one will."""


def record_life(
    played: Recording, folder: Path, *, phase: int = 1, mutant: str | None = None, die_after: int = 0,
    die_before: str | None = None, one_thread: bool = False,
) -> int:  # fmt: skip
    """Run the scenario once under strace and play it onto ``played``; returns its exit code (minus a signal)."""
    log = folder / f"{phase}.strace"
    command = [*recording(log), *SCENARIO, str(played.base / "disk"), "--phase", str(phase)]
    command += [] if mutant is None else ["--mutant", mutant]
    command += ["--one-thread"] if one_thread else []
    command += ["--die-after", str(die_after)] if die_after else []
    command += [] if die_before is None else ["--die-before", die_before]
    errors = folder / f"{phase}.stderr"
    with errors.open("wb") as stderr:
        # Its lines are read from the log, where they stand among the other calls.
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr, timeout=RUN_S_MAX)
    text = log.read_text()
    played.play(read_calls(text), text.count("\n") + 1)
    if done.returncode not in (0, -signal.SIGKILL, 128 + signal.SIGKILL):
        raise AssertionError(f"the scenario failed ({done.returncode}): {errors.read_text()[-3000:]}")
    if played.in_memory() != as_left(played.base):
        # What other threads were at when the process was killed may have happened or not; the log does not tell.
        assert played.in_flight, "the model of the folder is not the folder"
        raise Unclear(f"killed within {played.in_flight}")
    return done.returncode


def record(folder: Path, *, mutant: str | None = None, given: bool = True) -> Recording:
    """Record one whole life. ``given``: the disk's folder is there before."""
    played = _fresh(folder, given=given)
    assert record_life(played, folder, mutant=mutant) == 0
    return played


def record_two_lives(
    folder: Path, *, die_after: int = 0, die_before: str | None = None, mutant: str | None = None
) -> Recording:
    """A life that ends by a kill, and the next one: what the first left unsynced is still so."""
    played = _fresh(folder, given=True)
    code = record_life(played, folder, die_after=die_after, die_before=die_before, mutant=mutant)
    assert code != 0, "the first life was to be killed"
    assert record_life(played, folder, phase=2, mutant=mutant) == 0
    return played


def _fresh(folder: Path, *, given: bool) -> Recording:
    base = folder / "base"
    base.mkdir(parents=True)
    played = Recording(base)
    if given:
        (base / "disk").mkdir()
        played.given(b"disk")
    return played


@dataclass(slots=True)
class Replay:
    """What a replay of power cuts came to."""

    verified: int = 0
    same: int = 0
    lossy: int = 0
    broken: list[tuple[State, str]] | None = None

    def told(self) -> str:
        """For the failure's message: the first few."""
        return "\n\n".join(f"{state}:\n{why}" for state, why in (self.broken or [])[:5])


def replay(
    played: Recording, count: int, seed: int, *, again_every: int = 4, stop_after: int = 20, seconds_max: float = 1e9
) -> Replay:
    """Verify ``count`` different states (fewer, if there are no more)."""
    result = Replay(broken=[])
    seen: set[tuple[bytes, int]] = set()
    until = time.monotonic() + seconds_max
    assert result.broken is not None
    with fast_folder() as folder:
        for state in states(played, count * 3, seed):
            if result.verified >= count or len(result.broken) >= stop_after or time.monotonic() > until:
                break
            disk, promises = found_after(played, state), played.promises(state.cut)
            key = (disk.digest(), promises.acknowledged)
            if key in seen:
                result.same += 1
                continue
            seen.add(key)
            result.verified += 1
            result.lossy += disk.lost > 0
            disk.write(folder / "base")
            try:
                verify(folder / "base/disk", promises, again=result.verified % again_every == 0)
            except PromiseBroken as error:
                result.broken.append((state, str(error)))
    return result


# -- many runs


@dataclass(frozen=True, slots=True)
class Point:
    """The ``when``-th ``call`` of a thread, counted from the thread's beginning."""

    thread: str
    call: str
    when: int

    def __str__(self) -> str:
        return f"{self.thread}:{self.call}:{self.when}"


class Nursery:
    """A process that has everything imported and forks a scenario for each command."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._errors = (folder / "nursery.stderr").open("wb")
        self._process = subprocess.Popen(
            [*SCENARIO, "--nursery"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            env={**os.environ, "ONE_THREAD": "1"},
        )  # fmt: skip

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._errors.close()

    def errors(self) -> str:
        """The end of what the scenarios wrote to their standard error."""
        return (self._folder / "nursery.stderr").read_text(errors="replace")[-3000:]

    def run(
        self, disk: Path, *, point: Point | None = None, fault: str = KILL, onwards: bool = False, **options: Any
    ) -> Life:
        """One life. The call at ``point`` meets the fault; with ``onwards`` all of its kind that follow do so too."""
        self._count += 1
        output = self._folder / f"{self._count}.lines"
        command = {"disk": str(disk), "output": str(output), **options}
        if point is not None:
            command["gate"] = point.thread
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()
        log = ""
        if point is not None:
            when = f"{point.when}+" if onwards else str(point.when)
            tid = self._tid(output, point.thread)
            log = Attached(tid, self._folder / "fault.strace", point.call, fault, when).end(RUN_S_MAX)
        status = int(self._process.stdout.readline())
        return Life(status, decode_lines(output.read_bytes()), log)

    def _tid(self, output: Path, thread: str) -> int:
        until = time.monotonic() + RUN_S_MAX
        while time.monotonic() < until:
            lines = decode_lines(output.read_bytes()) if output.exists() else []
            for line in lines:
                if isinstance(line, Started) and line.name == thread:
                    return line.tid
            time.sleep(0.001)
        raise AssertionError(f"thread {thread} never began: {self.errors()}")


@dataclass(frozen=True, slots=True)
class Life:
    """What became of a scenario: its status as of waitpid, its lines, and the log of its tracer."""

    status: int
    lines: list[Line]
    log: str

    @property
    def code(self) -> int:
        """Its exit code; -9 when it was killed."""
        return os.waitstatus_to_exitcode(self.status)

    @property
    def killed(self) -> bool:
        """Whether it died by SIGKILL."""
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL

    @property
    def promises(self) -> Promises:
        """What it was promised."""
        return Promises.of(self.lines)


# -- points


def points(folder: Path) -> list[Point]:
    """Every call of a whole life that changes the disk, thread by thread, as a recording shows them."""
    played = _fresh(folder, given=True)
    assert record_life(played, folder, one_thread=True) == 0
    names: dict[int, str] = {}
    counts: Counter[tuple[str, str]] = Counter()
    found = []
    for call in read_calls((folder / "1.strace").read_text()):
        if call.name == "write" and call.fd() == 1:
            for line in decode_lines(strings(call.arguments[1])[0]):
                if isinstance(line, Started):
                    names[line.tid] = line.name
        name = names.get(call.tid)
        if name is None or call.name not in (*MUTATING, "openat") or call.name == "write":
            continue
        counts[name, call.name] += 1
        if call.name != "openat" or ("O_CREAT" in call.arguments[2] and call.result is not None and call.result >= 0):
            found.append(Point(name, call.name, counts[name, call.name]))
    return found


def sample(every: list[Point], count: int) -> list[Point]:
    """About so many of them, the same every time: some of every thread and call, evenly spread."""
    kinds: dict[tuple[str, str], list[Point]] = {}
    for point in every:
        kinds.setdefault((point.thread, point.call), []).append(point)
    chosen = []
    for kind in kinds.values():
        number = max(1, round(len(kind) * count / len(every)))
        chosen += [kind[(2 * at + 1) * len(kind) // (2 * number)] for at in range(number)]
    return chosen
