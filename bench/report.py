"""A document as tables: for a terminal, a pipe, and ``docs/performance.md``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.results import Document, Row, Section, Series

_HEADS = ("what", "measured", "median (least to greatest)", "floor", "ratio to the floor")
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


def show_section(section: Section, console: Console) -> None:
    """One scenario's findings, as soon as it is done."""
    title = f"{section.title} ({section.seconds:.0f} s)"
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
        "of the same kind without us. Every quantity is the median of its runs with the least and the greatest.",
        'Reproduce it with `make bench ARGS="--json bench.json"`, then `python -m bench --report bench.json`.',
        "",
        "| fact | value |",
        "|---|---|",
        *(f"| {name} | {_escaped(value)} |" for name, value in _facts(document)),
        "",
    ]
    for section in document.sections:
        lines += [f"## {section.title}", ""]
        if section.rows:
            lines += ["| " + " | ".join(_HEADS) + " |", "|" + "---|" * len(_HEADS)]
            lines += ["| " + " | ".join(map(_escaped, cells)) + " |" for cells in _table(section)]
            lines.append("")
        if section.problem:
            lines += [f"Not complete: {section.problem}", ""]
        if section.note:
            lines += [section.note[0].upper() + section.note[1:] + ".", ""]
    return "\n".join(lines).rstrip() + "\n"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
