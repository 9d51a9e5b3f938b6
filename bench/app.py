"""The command: which scenarios, how much of them, and where the findings go."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench.cluster import ClusterFailed, kept_logs
from bench.machine import commit_id, load_average, machine_facts
from bench.plot import svg
from bench.procfs import others_cpu_s
from bench.report import PLOT_NAME, markdown, show_facts, show_section, show_targets
from bench.results import Document, Recorder, Section, load, save
from bench.rivals import beside
from bench.rivals.common import NotInstalled
from bench.scenarios import SCENARIOS, Plan, Scenario

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
_GIB = 2**30
_FULL_S = 1080.0
_QUICK_S = 105.0
_RIVAL_S = 150.0
_TAKES_THE_REST = "list"
_ALL: dict[str, tuple[str, Scenario]] = {
    **{name: scenario for name, scenario in SCENARIOS.items() if name != _TAKES_THE_REST},
    **beside.SCENARIOS,
    _TAKES_THE_REST: SCENARIOS[_TAKES_THE_REST],
}
_LISTED = 1_000_000
_LISTED_QUICK = 10_000
_HEALED = 5_000
_HEALED_QUICK = 600
_HEALED_FULL = 100_000
_ARCHIVED = 3
_ARCHIVED_QUICK = 1
_ARCHIVED_SMALL = 65_536
_ARCHIVED_SMALL_QUICK = 8_192
_COMPARED = 100_000
_COMPARED_QUICK = 4_000
_COMPARED_FULL = 1_000_000


def chosen(text: str, among: Collection[str] = _ALL) -> list[str]:
    """The scenarios of ``put,get``, in the order given. Raises ArgumentTypeError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in among]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"no such scenario: {', '.join(unknown)}; there are {', '.join(among)}")
    return names


def chosen_rivals(text: str) -> list[str]:
    """The rivals of ``swift,radosgw``. Raises ArgumentTypeError."""
    return chosen(text, beside.RIVALS)


def names_of_run(only: list[str] | None, rivals: list[str], quick: bool) -> list[str]:
    """The scenarios of a run: those that are named, or else all; a quick run has no rival that is not named."""
    if only or rivals:
        return list(dict.fromkeys([*(only or ()), *rivals]))
    return [*SCENARIOS] if quick else [*_ALL]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Measure AmberBlob beside this machine's own floors."
    )
    parser.add_argument("--quick", action="store_true", help="one short run of each thing: to see that it works")
    parser.add_argument("--only", type=chosen, metavar="NAME[,NAME]", help=", ".join(_ALL))
    parser.add_argument(
        "--rivals",
        type=chosen_rivals,
        default=[],
        metavar="NAME[,NAME]",
        help=f"measure us beside these: {', '.join(beside.RIVALS)} (default: all of them, unless --quick or --only)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the findings here")
    parser.add_argument("--huge", action="store_true", help="a body of 4 GiB instead of 1 GiB")
    parser.add_argument("--folder", type=Path, help="where the clusters and floors live (default: a temporary folder)")
    parser.add_argument("--objects", type=int, metavar="N", help=f"objects in the listing (default: {_LISTED:,})")
    parser.add_argument(
        "--heal-full",
        action="store_true",
        help=f"heal {_HEALED_FULL:,} objects (10 GiB) and compare {_COMPARED_FULL:,}; takes half an hour, so use it with --only heal",
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help=f"measure nothing; make {PAGE.name} and its picture"
    )
    return parser


def _plan(options: argparse.Namespace, began: float) -> Plan:
    quick = bool(options.quick)
    return Plan(
        runs=1 if quick else 3,
        window_s=1.0 if quick else 3.0,
        cell_s=0.7 if quick else 2.0,
        floor_s=0.3 if quick else 1.0,
        clients=(16,) if quick else (1, 16, 64),
        crowds=(4,) if quick else (16, 64),
        starts=1 if quick else 3,
        huge_bytes=4 * _GIB if options.huge else _GIB,
        listed=max(1000, options.objects or (_LISTED_QUICK if quick else _LISTED)),
        healed=_HEALED_FULL if options.heal_full else _HEALED_QUICK if quick else _HEALED,
        compared=_COMPARED_FULL if options.heal_full else _COMPARED_QUICK if quick else _COMPARED,
        archived=_ARCHIVED_QUICK if quick else _ARCHIVED,
        archived_small=_ARCHIVED_SMALL_QUICK if quick else _ARCHIVED_SMALL,
        death_s=3.0 if quick else 8.0,
        scenario_s=25.0 if quick else 150.0,
        reserve_s=20.0 if quick else 330.0,
        deadline=began + (_QUICK_S if quick else _FULL_S),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 measured, 1 something failed, 2 wrong usage."""
    options = _parser().parse_args(arguments)
    if options.report is not None:
        PAGE.parent.mkdir(exist_ok=True)
        document = load(options.report)
        PAGE.write_text(markdown(document))
        PAGE.with_name(PLOT_NAME).write_text(svg(document))
        print(f"{PAGE} and {PLOT_NAME} made of {options.report}")
        return 0
    # Every process is ended on the way out of its `with`, so that a signal must come as an exception.
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console()
    try:
        document = _measure(options, console, shlex.join(["python", "-m", "bench", *(arguments or sys.argv[1:])]))
    except KeyboardInterrupt:
        print("interrupted; nothing is left running", file=sys.stderr)
        return 130
    show_targets(document, console)
    show_facts(document, console)
    if options.json is not None:
        save(document, options.json)
        print(f"kept in {options.json}; python -m bench --report {options.json} makes {PAGE.name} of it")
    return 1 if any(section.problem for section in document.sections) else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _measure(options: argparse.Namespace, console: Console, command: str) -> Document:
    began, started_at, load_before = time.monotonic(), datetime.now(UTC), load_average()
    names = names_of_run(options.only, options.rivals, options.quick)
    plan, commit = _plan(options, began), commit_id()  # of the beginning: files may change meanwhile
    rivals = sum(name in beside.SCENARIOS for name in names)
    plan = replace(plan, deadline=plan.deadline + rivals * _RIVAL_S)
    if _TAKES_THE_REST not in names:
        plan = replace(plan, reserve_s=0.0)
    sections = []
    with tempfile.TemporaryDirectory(prefix="amberblob-bench-", dir=options.folder) as folder:
        machine = machine_facts(Path(folder))
        for name in names:
            section = _run_one(name, plan, Path(folder))
            show_section(section, console)
            sections.append(section)
    return Document(
        command=command,
        commit=commit,
        started_at=started_at.isoformat(timespec="seconds"),
        seconds=time.monotonic() - began,
        machine=machine,
        load_before=load_before,
        load_after=load_average(),
        sections=tuple(sections),
    )


def _run_one(name: str, plan: Plan, folder: Path) -> Section:
    """One scenario in a folder of its own, removed after it; what it found until something failed is kept."""
    title, scenario = _ALL[name]
    last_s = plan.deadline if name == _TAKES_THE_REST else plan.deadline - plan.reserve_s
    if time.monotonic() > last_s:
        return Section(name=name, title=title, problem="left out: the run's time was over")
    began, recorder, problem, note = time.monotonic(), Recorder(), "", ""
    others = others_cpu_s()
    if name != _TAKES_THE_REST:
        plan = replace(plan, deadline=min(last_s, began + plan.scenario_s))
    with tempfile.TemporaryDirectory(prefix=f"{name}-", dir=folder) as inside:
        try:
            scenario(plan, Path(inside), recorder)
        except NotInstalled as error:
            note = str(error)
        except (ClusterFailed, RuntimeError, OSError) as error:
            problem = f"failed: {error}{kept_logs(Path(inside))}"
    seconds = time.monotonic() - began
    return Section(
        name=name,
        title=title,
        rows=recorder.rows(),
        problem=problem,
        note=note,
        seconds=seconds,
        others_share=max(0.0, (others_cpu_s() - others) / (seconds * len(os.sched_getaffinity(0)))),
    )
