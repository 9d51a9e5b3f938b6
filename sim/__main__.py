"""``python -m sim``: worlds of whole nodes, each decided by its seed."""

from __future__ import annotations

import asyncio
import gc
import itertools
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from sim.archivemutants import ARCHIVE_MUTANTS
from sim.archiveshape import FAULTS_OF_ARCHIVES, JOBS
from sim.check import WrongHistory
from sim.mutants import MUTANTS
from sim.shape import FAULTS, FAULTS_OF_COPIES, FAULTS_OF_MEMBERS, Shape
from sim.world import World, shape_chance

FIRING_SEEDS = 200
FIRES = (
    *FAULTS,
    *FAULTS_OF_COPIES,
    *FAULTS_OF_MEMBERS,
    *FAULTS_OF_ARCHIVES,
    *(f"job {kind}" for kind in JOBS if kind != "stop"),
    "acknowledged versions",
    "agreements",
    "archive did not answer",
    "archives judged",
    "blobs swept",
    "bytes repaired",
    "bytes read",
    "client gave up",
    "copies that adopted rows",
    "copy readmitted",
    "cut database log",
    "cut message",
    "disk full",
    "doubled message",
    "evictions cut short looked at",
    "joint aborted",
    "joint begun",
    "joint finished",
    "job stopped",
    "late message",
    "learner named",
    "learners dropped",
    "lost answer",
    "lost answer of the registry",
    "lost database",
    "lost folder entry",
    "lost message",
    "lost write",
    "moves done",
    "nodes looked at",
    "objects deleted",
    "objects lost",
    "objects stored",
    "operator died",
    "operator refused",
    "paths expired",
    "races for a route lost",
    "slots left",
    "slots scrubbed",
    "stubs collected",
    "torn write",
    "versions evicted",
    "versions held by rows at the end",
)
"""What must really have happened in a run of that many seeds; else the run shows nothing."""

GIVEN_UP_MAX = 0.01
"""At most this part of a run's histories may go unjudged because the search for an order was given up."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(slots=True)
class Result:
    """What became of one seed."""

    seed: int
    digest: str = ""
    story: str = ""
    fired: Counter[str] = field(default_factory=Counter)
    operations: int = 0
    virtual_s: float = 0.0
    took_s: float = 0.0


def play(
    seed: int, operations: int = 200, folder: Path | None = None, *, trace: bool = False, is_last: bool = False
) -> Result:
    """Run one seed to its end.

    Args:
        is_last: this process plays no other: what the world leaves behind goes with it, uncollected.
    """
    # What is left of a killed process ends at the end, and not quietly.
    sys.unraisablehook = lambda _: None
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    # A collection at a moment that no seed decides would end coroutines of the dead.
    gc.disable()
    began = time.perf_counter()
    world = World(seed, operations=operations, folder=folder, keep_trace=trace)
    result = Result(seed)
    try:
        world.run()
    except Exception as error:
        where = (error.path, error.until_s) if isinstance(error, WrongHistory) else (None, None)
        cause = error.__cause__ if isinstance(error, AssertionError) else error
        result.story = world.story(error, path=where[0], until_s=where[1])
        if cause is not None:
            result.story += "\n" + "".join(traceback.format_exception(cause)[-12:])
    finally:
        # Collected only once everything of this world has come to rest.
        if not is_last:
            gc.enable()
    result.digest = world.digest
    if trace and world.trace is not None:
        print("\n".join(world.trace))
    result.fired = world.fired
    result.operations = len(world.calls)
    result.virtual_s = world.loop.time()
    result.took_s = time.perf_counter() - began
    return result


def _many(seeds: list[int], operations: int, folder: Path | None, jobs: int) -> Iterator[Result]:
    if jobs == 1 and len(seeds) == 1:
        yield play(seeds[0], operations, folder)
        return
    # What was imported is shared, and no collection is to write to it.
    gc.collect()
    gc.freeze()
    # A process for each world costs less than collecting the dead nodes of the one before.
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap_unordered(_play_one, [(seed, operations, folder) for seed in seeds])


def _play_one(task: tuple[int, int, Path | None]) -> Result:
    # A set of weak references to all tasks, which asyncio keeps in Python code: only asyncio.run and people who debug look at it.
    if (all_tasks := getattr(asyncio.tasks, "_all_tasks", None)) is not None:
        all_tasks.add = lambda task: None
    return play(*task, is_last=True)


def _hunt(task: tuple[str, int, int, Path | None]) -> tuple[str, int, str]:
    """Play seeds with a mutant until it is caught; its name, the number of seeds (0: it survived), and how."""
    name, seeds, operations, folder = task
    chosen = list(range(1, seeds + 1)) if name in MUTANTS else with_archives(1, seeds, operations)
    with (MUTANTS | ARCHIVE_MUTANTS)[name]():
        for number, seed in enumerate(chosen, 1):
            result = play(seed, operations, folder)
            if result.story:
                return name, number, result.story.splitlines()[0]
    return name, 0, ""


def _hunt_all(names: Iterable[str], seeds: int, operations: int, folder: Path | None, jobs: int) -> int:
    """Hunt every mutant; how many survived."""
    survived = 0
    tasks = [(name, seeds, operations, folder) for name in names]
    with multiprocessing.get_context("fork").Pool(jobs, maxtasksperchild=1) as pool:
        for name, seed, how in pool.imap_unordered(_hunt, tasks):
            if seed:
                print(f"{name}: caught after {seed} seeds: {how[:160]}", flush=True)
            else:
                survived += 1
                print(f"{name}: SURVIVED {seeds} seeds", flush=True)
    print(f"{len(tasks)} mutants, {survived} survived")
    return survived


def with_archives(first: int, count: int, operations: int) -> list[int]:
    """The next so many seeds in whose worlds an archive is at work."""
    numbers = itertools.count(first)
    drawn = (seed for seed in numbers if Shape.draw(shape_chance(seed), operations).archive is not None)
    return list(itertools.islice(drawn, count))


def _of_commit() -> int:
    """A number that each commit has for itself."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    return 1_000_000 + int(commit[:8], 16)


def _same_hashes() -> None:
    """Sets of strings are walked in an order that differs between processes unless their hashes are fixed."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "sim", *sys.argv[1:]])


@app.command()
def main(
    seed: Annotated[int | None, typer.Option(help="Play this one seed.")] = None,
    seeds: Annotated[int, typer.Option(help="How many seeds to play.", min=1)] = 100,
    first: Annotated[int, typer.Option(help="The first of them.")] = 1,
    of_commit: Annotated[
        bool, typer.Option("--of-commit", help="Take the second half of the seeds from the commit that is checked out.")
    ] = False,
    operations: Annotated[int, typer.Option(help="Operations of the clients in each.", min=1)] = 200,
    jobs: Annotated[int, typer.Option(help="Processes.", min=1)] = os.cpu_count() or 1,
    twice: Annotated[bool, typer.Option("--twice", help="Play each seed twice and compare the traces.")] = False,
    trace: Annotated[bool, typer.Option("--trace", help="With --seed: print everything that happens.")] = False,
    archives: Annotated[
        bool, typer.Option("--archives", help="Pass over the seeds whose worlds have no archive.")
    ] = False,
    folder: Annotated[Path | None, typer.Option(help="Where the disks go; in memory by default.")] = None,
    mutants: Annotated[
        bool, typer.Option("--mutants", help="Play up to --seeds with each deliberate bug; all must be caught.")
    ] = False,
    minutes: Annotated[float, typer.Option(help="Go on with new seeds for so long instead.")] = 0.0,
) -> None:
    """Play worlds of 3 to 5 whole nodes under every fault there is; ends with 1 when a promise was broken.

    A seed decides everything: a failing one is a bug report. See docs/testing.md.
    """
    _same_hashes()
    if mutants:
        names = [*ARCHIVE_MUTANTS] if archives else [*MUTANTS, *ARCHIVE_MUTANTS]
        raise typer.Exit(1 if _hunt_all(names, seeds, operations, folder, jobs) else 0)
    if seed is not None and trace:
        result = play(seed, operations, folder, trace=True)
        _report([result], 0.0)
        raise typer.Exit(1 if result.story else 0)
    wanted = [seed] if seed is not None else list(range(first, first + seeds))
    if archives:
        wanted = with_archives(first, seeds, operations)
    if of_commit:
        other = _of_commit()
        wanted[seeds // 2 :] = range(other, other + seeds - seeds // 2)
        print(f"seeds {wanted[0]} to {wanted[seeds // 2 - 1]}, and {other} to {wanted[-1]}", flush=True)
    began = time.perf_counter()
    results: list[Result] = []
    while True:
        for number, result in enumerate(_many(wanted, operations, folder, jobs), start=1):
            results.append(result)
            if result.story:
                print(result.story, flush=True)
            if sys.stderr.isatty():
                print(f"\r{number}/{len(wanted)} seeds", end="", file=sys.stderr, flush=True)
        if time.perf_counter() - began >= minutes * 60 or any(result.story for result in results):
            break
        if archives:
            wanted = with_archives(wanted[-1] + 1, seeds, operations)
        else:
            wanted = [number + len(wanted) for number in wanted]
    different = []
    if twice:
        again = {result.seed: result for result in _many(wanted, operations, folder, jobs)}
        different = [r.seed for r in results if r.seed in again and again[r.seed].digest != r.digest]
    _report(results, time.perf_counter() - began)
    asleep = [fault for fault in FIRES if not sum(result.fired[fault] for result in results)]
    if len(results) >= FIRING_SEEDS and asleep:
        print(f"never happened in {len(results)} seeds: {', '.join(asleep)}")
        raise typer.Exit(1)
    if len(results) >= FIRING_SEEDS and too_many_given_up(results):
        raise typer.Exit(1)
    if different:
        print(f"not deterministic: seeds {different} gave two different traces")
    elif twice:
        print(f"deterministic: {len(wanted)} seeds gave the same trace twice")
    raise typer.Exit(1 if different or any(result.story for result in results) else 0)


def too_many_given_up(results: list[Result]) -> bool:
    """Whether so many histories went unjudged that the run shows too little; says so."""
    given_up = sum(result.fired["searches given up"] for result in results)
    histories = sum(result.fired["histories"] for result in results)
    if given_up <= GIVEN_UP_MAX * histories:
        return False
    print(f"the search for an order was given up for {given_up} of {histories} histories")
    return True


def _report(results: list[Result], took_s: float) -> None:
    fired: Counter[str] = Counter()
    for result in results:
        fired += result.fired
    bad = sorted(result.seed for result in results if result.story)
    print("happened: " + ", ".join(f"{what} {count}" for what, count in sorted(fired.items())))
    print(
        f"{len(results)} seeds, {sum(r.operations for r in results)} operations, "
        f"{sum(r.virtual_s for r in results):.0f} virtual seconds in {took_s:.1f} s; "
        f"{sum(r.fired['searches given up'] for r in results)} of {sum(r.fired['histories'] for r in results)} histories "
        f"not judged; {len(bad)} broken{': ' + ', '.join(map(str, bad[:20])) if bad else ''}"
    )
    if len(results) == 1:
        print(f"trace {results[0].digest}")


if __name__ == "__main__":
    app()
