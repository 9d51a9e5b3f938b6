"""``python -m bench.versus REV``: is this checkout faster or slower than another commit? ``make bench-vs REV=…``

REV is checked out into a temporary worktree of its own. Both run at the same time, each as a cluster of three nodes by
the same interpreter and with the same dependencies, and are loaded in turn by this checkout's generator.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench.cluster import Cluster, ClusterFailed, kept_logs
from bench.environment import ROOT, environment_of
from bench.machine import commit_id, load_average, machine_facts
from bench.pairs import Pace, compare, ours, until
from bench.procfs import others_cpu_s
from bench.report import show_facts, show_section
from bench.results import Document, Recorder, Section, save

_THIS = "this checkout"
_ROUNDS_MAX = 100
_WINDOW_MIN_S = 0.1
_SECONDS = 150.0
_PACE = Pace(window_s=2.5, settle_s=0.5, transfers=3)
_GIT_TIMEOUT_S = 60.0
_IMPORT = "import amberblob.cli, node; print(amberblob.__file__)"


class BadRevision(Exception):
    """There is no such commit here."""


class CannotRun(Exception):
    """The commit is there, but its code does not run in this environment."""


def _git(*arguments: str, root: Path = ROOT) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True
    )
    return done.stdout.strip()


def resolve(revision: str, root: Path = ROOT) -> str:
    """The commit that the revision names, shortened. Raises BadRevision."""
    try:
        if not revision.strip():
            raise BadRevision("no revision was named: make bench-vs REV=main, or a tag, or a commit")
        commit = _git("rev-parse", "--verify", "--quiet", "--end-of-options", revision + "^{commit}", root=root)
        return _git("rev-parse", "--short", commit, root=root)
    except subprocess.CalledProcessError as error:
        why = (error.stderr or "").strip()
        raise BadRevision(f"{revision!r} names no commit of {root}" + (f": {why}" if why else "")) from None
    except OSError as error:
        raise BadRevision(f"git does not run: {error}") from None


@contextmanager
def worktree(commit: str, folder: Path, root: Path = ROOT) -> Iterator[Path]:
    """The commit's files in a new folder inside of ``folder``, while the context lasts."""
    checkout = folder / "checkout"
    try:
        _git("worktree", "add", "--detach", "--quiet", str(checkout), commit, root=root)
        yield checkout
    finally:
        # Not checked: on the way out of a failure it may not be there, and the folder is removed in any case.
        subprocess.run(
            ["git", "worktree", "remove", "--force", str(checkout)], cwd=root, capture_output=True, check=False
        )


def check_runs(commit: str, checkout: Path) -> None:
    """Whether this interpreter can load that code, and loads that and no other. Raises CannotRun."""
    command = [sys.executable, "-c", _IMPORT]
    done = subprocess.run(command, env=environment_of(checkout), capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise CannotRun(f"{commit} does not run with the packages that are installed here: {last}")
    if not Path(done.stdout.strip()).is_relative_to(checkout.resolve()):
        raise CannotRun(f"{commit}: Python loads {done.stdout.strip()} instead of {checkout}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.versus", description="Measure this checkout beside another commit, in turn."
    )
    parser.add_argument("revision", metavar="REV", help="a commit, tag or branch")
    parser.add_argument(
        "--seconds", type=float, default=_SECONDS, help="no round begins that would end later (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=_ROUNDS_MAX, metavar="N", help="at most so many rounds")
    parser.add_argument(
        "--window", type=float, default=_PACE.window_s, metavar="SECONDS", help="of each load (default: %(default)s)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the findings here")
    parser.add_argument("--folder", type=Path, help="where both clusters live (default: a temporary folder)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 measured, 1 something failed, 2 no such commit, or wrong usage."""
    options = _parser().parse_args(arguments)
    # Everything is ended on the way out of its `with`, so that a signal must come as an exception.
    signal.signal(signal.SIGTERM, _interrupt)
    command = shlex.join(["python", "-m", "bench.versus", *(sys.argv[1:] if arguments is None else arguments)])
    console = Console()
    try:
        document = _measure(resolve(options.revision), options, command, console)
    except BadRevision as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CannotRun, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        return 130
    show_facts(document, console)
    if options.json is not None:
        save(document, options.json)
        print(f"kept in {options.json}")
    return 1 if any(section.problem for section in document.sections) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _measure(commit: str, options: argparse.Namespace, command: str, console: Console) -> Document:
    began, started_at, load_before, others = time.monotonic(), datetime.now(UTC), load_average(), others_cpu_s()
    this_commit = commit_id()  # of the beginning: files may change meanwhile
    with tempfile.TemporaryDirectory(prefix="amberblob-versus-", dir=options.folder) as name:
        folder = Path(name).resolve()
        machine = machine_facts(folder)
        with worktree(commit, folder) as checkout:
            check_runs(commit, checkout)
            recorder, problem, pace = Recorder(), "", replace(_PACE, window_s=max(_WINDOW_MIN_S, options.window))
            rounds = until(began + options.seconds, max(1, options.rounds))
            try:
                with (
                    Cluster(folder / "this") as this,
                    Cluster(folder / "that", environment=environment_of(checkout)) as that,
                ):
                    compare(ours(this, _THIS), ours(that, commit), recorder, rounds, pace)
            except (ClusterFailed, RuntimeError, OSError) as error:
                problem = f"failed: {error}{kept_logs(folder)}"
    seconds = time.monotonic() - began
    section = Section(
        name="versus",
        title=f"This checkout beside {commit}",
        rows=recorder.rows(),
        problem=problem,
        seconds=seconds,
        others_share=max(0.0, (others_cpu_s() - others) / (seconds * len(os.sched_getaffinity(0)))),
    )
    show_section(section, console)
    return Document(
        command=command,
        commit=this_commit,
        started_at=started_at.isoformat(timespec="seconds"),
        seconds=seconds,
        machine=machine,
        load_before=load_before,
        load_after=load_average(),
        sections=(section,),
    )


if __name__ == "__main__":
    sys.exit(main())
