"""``python -m sim.model``: the proof that CI runs, and the microscope for one seed of it."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace

from sim.model.mutants import BY_NAME, MUTANTS, SEEDS_MAX, hunt
from sim.model.run import APART, Outcome, run_all, run_seed
from sim.model.shape import KINDS_ALL, KINDS_APART, Kind

CHUNK = 250
"""Seeds per piece of work."""

COVERAGE_SEEDS_MIN = 2_000
"""From so many seeds on, each of :data:`MUST_HAPPEN` has to have happened."""

MUST_HAPPEN: tuple[str, ...] = (
    "answers lost on the way to the client",
    "answers of copies that nobody named",
    "collections not in this epoch",
    "collections that some voter was not ready for",
    "copies given up",
    "coordinators crashed with their node",
    "coordinators killed",
    "copies readmitted",
    "crashes",
    "cut off",
    "disks lost",
    "disks lost while a copy was mute",
    "doubled",
    "epochs learnt by refusal",
    "failed without effect",
    "held promises of another epoch",
    "held promises that a rival outdid",
    "JOINT epochs abandoned",
    "JOINT epochs with a mute member",
    "learner phases",
    "learners filled",
    "learners named",
    "learners that could not be named",
    "learns never sent",
    "links cut both ways",
    "links cut one way",
    "lost",
    "messages for a copy that is no more",
    "messages to a mute copy",
    "met a node that was down",
    "moves aborted",
    "moves begun",
    "moves completed",
    "moves left before JOINT",
    "moves left in the middle",
    "moves taken up",
    "operators that gave up in the middle",
    "outcomes unknown",
    "pages that had to be finished",
    "power cuts",
    "promises held",
    "promises of too few to be held",
    "readmissions that saw a newer route",
    "readmissions that waited for the end of a JOINT epoch",
    "readmitted copies synced",
    "reads that had to finish",
    "records chosen in a JOINT epoch",
    "registry out",
    "reordered",
    "requests to a mute copy",
    "restarts",
    "retries",
    "retries that were answered",
    "route changes that lost the race",
    "sets that shrank",
    "slow",
    "stubs collected",
    "syncs",
    "syncs that had to finish",
    "told 404",
    "told 412",
    "told ok",
    "told read",
    "undecided records finished",
    "write ids recognised",
    "writes begun from a held promise",
    "writes begun from a held promise that were refused",
    *(f"seeds: {kind}" for kind in KINDS_ALL),
)
"""A fault that never fired proves nothing: the run fails if one of these counts is zero."""

LINES_MAX = 80
"""Of a failing seed's events."""


def main(arguments: list[str] | None = None) -> int:
    """What the command line asks for; the exit code."""
    options = _parse(arguments)
    if options.seed is not None:
        told = {"only": options.kind, "holding": options.holding}
        if options.mutant:
            known = {name: value for name, value in told.items() if value is not None}
            outcome = replace(BY_NAME[options.mutant], **known).run(options.seed, kept=options.kept, tracing=True)
        else:
            outcome = run_seed(options.seed, **told, tracing=True)
        _show(outcome, events=options.trace or bool(outcome.faults))
        return 1 if outcome.faults else 0
    if options.mutant:
        return _hunt_all([options.mutant], 1)
    code = _proof(options.first, options.seeds, options.jobs)
    if options.mutants and code == 0:
        code = _hunt_all([mutant.name for mutant in MUTANTS], options.jobs)
    return code


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sim.model",
        description="The commit protocol in the small: each seed is a world with faults, membership changes and garbage "
        "collection, and a history that is judged (linearizable, no version lost or given twice, progress afterwards).",
        epilog="A seed that fails prints its history and exits 1; look closer with --seed N --trace.",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=10_000,
        metavar="N",
        help=f"how many seeds (default: %(default)s); one of {APART} has a second world, of the kind {', '.join(KINDS_APART)}",
    )
    parser.add_argument("--first", type=int, default=1, metavar="N", help="the first of them (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="processes (default: %(default)s)")
    parser.add_argument(
        "--mutants",
        action="store_true",
        help=f"then also hunt each mutant: every shortcut must be caught within {SEEDS_MAX} seeds",
    )
    parser.add_argument(
        "--mutant",
        choices=sorted(BY_NAME),
        metavar="NAME",
        help="hunt this one; with --seed: run that seed with this shortcut. One of: " + ", ".join(BY_NAME),
    )
    parser.add_argument("--seed", type=int, metavar="N", help="run one seed and show its history")
    parser.add_argument("--kind", choices=KINDS_ALL, help="with --seed: in a world of this kind")
    parser.add_argument(
        "--holding",
        action=argparse.BooleanOptionalAction,
        help="with --seed: in a world in which promises are held, or not (default: as the mutant asks; if the seed is even)",
    )
    parser.add_argument("--kept", action="store_true", help="with --seed and --mutant: its world, with all rules kept")
    parser.add_argument("--trace", action="store_true", help="with --seed: show all events, even if nothing is wrong")
    return parser.parse_args(arguments)


# ---- many seeds


Bad = tuple[int, Kind]
"""A seed that failed, or could not be judged, and the kind of world that it was."""


def _piece(first: int, count: int) -> tuple[Counter[str], list[Bad]]:
    """Run some seeds; what happened, and those that failed or could not be judged."""
    counts: Counter[str] = Counter()
    bad: list[Bad] = []
    for seed in range(first, first + count):
        for outcome in run_all(seed):
            counts.update(outcome.counts)
            if outcome.faults or outcome.given_up:
                bad.append((outcome.seed, outcome.kind))
    return counts, bad


def _pieces(first: int, seeds: int, jobs: int) -> Iterator[tuple[Counter[str], list[Bad]]]:
    todo = [(start, min(CHUNK, first + seeds - start)) for start in range(first, first + seeds, CHUNK)]
    if jobs <= 1:
        for start, count in todo:
            yield _piece(start, count)
        return
    with ProcessPoolExecutor(jobs) as pool:
        running = [pool.submit(_piece, start, count) for start, count in todo]
        for future in as_completed(running):
            yield future.result()
            if future.result()[1]:
                pool.shutdown(wait=True, cancel_futures=True)
                return


def _proof(first: int, seeds: int, jobs: int) -> int:
    """Run the seeds without any shortcut: nothing may be wrong, and everything must have happened."""
    began = time.monotonic()
    counts: Counter[str] = Counter()
    bad: list[Bad] = []
    for some, failed in _pieces(first, seeds, jobs):
        counts.update(some)
        bad += failed
        if failed:
            break
    took = time.monotonic() - began
    for name in sorted(counts):
        print(f"{counts[name]:10}  {name}")
    done = sum(count for name, count in counts.items() if name.startswith("seeds: "))
    print(f"{done} seeds in {took:.1f} s, {done / max(took, 1e-9):.0f} a second")
    if bad:
        seed, kind = min(bad)
        _show(run_seed(seed, only=kind if kind in KINDS_APART else None, tracing=True), events=True)
        return 1
    missing = [name for name in MUST_HAPPEN if not counts[name]]
    if missing and seeds >= COVERAGE_SEEDS_MIN:
        print(f"These never happened, so the run proves nothing about them: {', '.join(missing)}")
        return 1
    print("No violation.")
    return 0


# ---- mutants


def _hunt(name: str) -> tuple[str, int | None, str]:
    outcome = hunt(BY_NAME[name])
    return name, None if outcome is None else outcome.seed, "" if outcome is None else outcome.faults[0]


def _hunt_all(names: list[str], jobs: int) -> int:
    """Hunt the mutants and print the table; 1 if one survives."""
    began = time.monotonic()
    survivors = 0
    print(f"\n{'caught after':>12}  {'mutant':24} shortcut")
    for name, seed, fault in _hunted(names, jobs):
        survivors += seed is None
        print(f"{'SURVIVES' if seed is None else seed:>12}  {name:24} {BY_NAME[name].says}", flush=True)
        if len(names) == 1 and fault:
            print(f"{'':14}{fault}\n{'':14}python -m sim.model --mutant {name} --seed {seed}")
    print(f"{len(names) - survivors} of {len(names)} caught, in {time.monotonic() - began:.1f} s")
    return 1 if survivors else 0


def _hunted(names: list[str], jobs: int) -> Iterator[tuple[str, int | None, str]]:
    if jobs <= 1:
        yield from map(_hunt, names)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_hunt, names)


# ---- one seed


def _show(outcome: Outcome, *, events: bool) -> None:
    """The history of a seed, and what is wrong with it."""
    print(f"seed {outcome.seed}, {outcome.kind}")
    for call in outcome.calls:
        print(f"  {call}")
    if events:
        print(
            f"  --- {len(outcome.notes)} events" + (f", the last {LINES_MAX}" if len(outcome.notes) > LINES_MAX else "")
        )
        for when, text in outcome.notes[-LINES_MAX:]:
            print(f"  {when:7.2f}  {text}")
    for fault in outcome.faults:
        print(f"  VIOLATION: {fault}")
    if outcome.given_up:
        print("  NOT JUDGED: the search for an order was given up")
    if not outcome.faults and not outcome.given_up:
        print("  nothing is wrong")


if __name__ == "__main__":
    sys.exit(main())
