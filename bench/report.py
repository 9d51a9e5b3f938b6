"""A document as tables: for a terminal, a pipe, and ``docs/performance.md``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.results import Document, Row, Section, Series
from bench.targets import verdicts

_HEADS = ("what", "measured", "median (least to greatest)", "floor", "ratio to the floor")
_TARGET_HEADS = ("target", "aim", "measured", "reached")
PLOT_NAME = "performance.svg"
_SMALL = 10.0


def _number(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= _SMALL else f"{value:.2f}"


def _spread(series: Series, unit: str = "") -> str:
    shown = _number(series.median)
    if len(series.values) > 1:
        shown += f" ({_number(series.low)} to {_number(series.high)})"
    return f"{shown} {unit}".rstrip()


def _cells(row: Row, subject_before: str) -> tuple[str, ...]:
    floor = f"{row.floor.name}: {_spread(row.floor.series, row.unit)}" if row.floor else ""
    measured = row.metric + (f" [{row.note}]" if row.note else "")
    subject = "" if row.subject == subject_before else row.subject
    return subject, measured, _spread(row.series, row.unit), floor, _spread(row.ratio) if row.ratio else ""


def _table(section: Section) -> list[tuple[str, ...]]:
    before = ""
    cells = []
    for row in section.rows:
        cells.append(_cells(row, before))
        before = row.subject
    return cells


def _facts(document: Document) -> list[tuple[str, str]]:
    return [
        ("commit", document.commit),
        ("started", document.started_at),
        ("took", f"{document.seconds:.0f} s"),
        *document.machine.items(),
        ("load before / after", f"{document.load_before} / {document.load_after}"),
        ("command", document.command),
    ]


def _targets(document: Document, *, measured_only: bool = False) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for verdict in verdicts(document):
        if measured_only and verdict.series is None:
            continue
        aim = verdict.target.aim
        asked = "" if aim is None else f"{'at most' if verdict.target.at_most else 'at least'} {aim:g} {verdict.unit}"
        measured = "not in this run" if verdict.series is None else _spread(verdict.series, verdict.unit)
        reached = {True: "yes", False: "no", None: ""}[verdict.reached]
        lines.append((verdict.target.title, asked.rstrip(), measured, reached))
    return lines


def show_targets(document: Document, console: Console) -> None:
    """Every aim that the run measured, with what came of it."""
    lines = _targets(document, measured_only=True)
    if not lines:
        return
    if console.is_terminal:
        table = Table(*_TARGET_HEADS, title="Targets", title_justify="left")
        for cells in lines:
            table.add_row(*cells)
        console.print(table)
    else:
        print("\n".join(["Targets", *("  " + " | ".join(cells).rstrip(" |") for cells in lines)]))


def show_section(section: Section, console: Console) -> None:
    """One scenario's findings, as soon as it is done."""
    title = f"{section.title} ({section.seconds:.0f} s; others took {section.others_share:.0%} of the CPU)"
    if console.is_terminal:
        table = Table(*_HEADS, title=title, title_justify="left")
        for cells in _table(section):
            table.add_row(*cells)
        if section.rows:
            console.print(table)
    else:
        lines = [title, *("  " + " | ".join(cells).rstrip(" |") for cells in _table(section))]
        print("\n".join(lines), flush=True)
    for text in filter(None, (section.problem, section.note)):
        console.print(f"{section.name}: {text}", markup=False)


def show_facts(document: Document, console: Console) -> None:
    """On what it was measured."""
    for name, value in _facts(document):
        console.print(f"{name}: {value}", markup=False, highlight=False, soft_wrap=True)


def markdown(document: Document) -> str:
    """The text of ``docs/performance.md``."""
    lines = [
        "# Performance",
        "",
        "<!-- Made by `python -m bench --report FILE`. Do not edit: the figures come from the JSON of one run. -->",
        "",
        "Measured by `make bench`: three real node processes on one machine, which share its disk and cores with the",
        "load generator. Beside each figure stands its floor, measured right next to it: what the same machine does",
        "of the same kind without us. Every quantity is the median of its runs with the least and the greatest; where",
        "no range is given it was measured once. p99.9 stands where there were at least 2,000 requests.",
        "",
        "Floors: *group commit of N* is an append of N entries with one fdatasync for all of them, by one writer or by",
        "three processes at once (*three-copy*: our three replicas share the disk, too; the rate of the one in the",
        "middle). The *null server* answers from memory without looking. For a large PUT a thread receives the body",
        "over the loopback while others hash it and write it to three files, an fsync each, and the last one counts (a PUT is",
        "answered when two of three are durable). *sendfile* sends a cached file over the loopback.",
        "",
        "*Journal fdatasync* comes from the nodes' own `amberblob_journal_syncs`; a body that is kept as a file of its own",
        "is synced on top of that. CPU and bytes written are the kernel's figures of the node processes.",
        "",
        "An open loop sends at its rate whatever the answers do, and its latency counts from when a request was due.",
        'Reproduce it with `make bench ARGS="--json docs/performance.json"`, then',
        "`python -m bench --report docs/performance.json`; `--quick` takes two minutes, `--only put,get` a part of it.",
        "",
        f"![Ratios, throughput and latency]({PLOT_NAME})",
        "",
        "| fact | value |",
        "|---|---|",
        *(f"| {name} | {_escaped(value)} |" for name, value in _facts(document)),
        "",
        "## Targets",
        "",
        "| " + " | ".join(_TARGET_HEADS) + " |",
        "|" + "---|" * len(_TARGET_HEADS),
        *("| " + " | ".join(map(_escaped, cells)) + " |" for cells in _targets(document)),
        "",
    ]
    for section in document.sections:
        lines += [f"## {section.title}", ""]
        if section.rows:
            lines += ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
            lines += ["| " + " | ".join(map(_escaped, cells)) + " |" for cells in _table(section)]
            lines.append("")
        if section.rows:
            lines += [f"Took {section.seconds:.0f} s; others took {section.others_share:.0%} of the CPU meanwhile.", ""]
        if section.problem:
            lines += [f"Not complete: {section.problem}", ""]
        if section.note:
            lines += [section.note[0].upper() + section.note[1:] + ".", ""]
    return "\n".join(lines).rstrip() + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
