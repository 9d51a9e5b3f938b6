"""What is shown: progress on the way, a table at the end.

On a terminal each step has a bar; in a pipe it is one line that grows by percentages, and then by what was done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

MB = 1_000_000
PIPE_WIDTH = 155
PICTURE_CELLS = 20
BAR_CELLS = 24
TITLE_CELLS = 48
WIDE = 150
"""From so many columns on the table has room for the titles; the numbers are those of the lines above it."""
_PERCENT_STEP = 10
_BARS = " ▁▂▃▄▅▆▇█"


@dataclass(slots=True, kw_only=True)
class Step:
    """One step of the story, while it runs and after it.

    Attributes:
        total: how far it goes, in bytes or operations.
        moved: how far it is.
        operations: requests that came to a good end, counted as their user counts them.
        repeated: attempts that the client had to make again.
        slowest_s: the longest that one operation took, with all its attempts.
    """

    title: str
    total: int
    view: _View
    moved: int = 0
    operations: int = 0
    size_bytes: int = 0
    errors: int = 0
    repeated: int = 0
    slowest_s: float = 0.0
    took_s: float = 0.0
    begun_s: float = field(default_factory=time.monotonic)
    _samples: list[tuple[float, int]] = field(default_factory=list)

    def advance(self, amount: int) -> None:
        """Some of the total is done; less than none when an upload begins again."""
        self.moved += amount
        self._samples.append((time.monotonic() - self.begun_s, amount))
        self.view.moved(self)

    def finished(self, size_bytes: int = 0, took_s: float = 0.0, operations: int = 1) -> None:
        """An operation came to a good end."""
        self.operations += operations
        self.size_bytes += size_bytes
        self.slowest_s = max(self.slowest_s, took_s)

    def note(self, text: str) -> None:
        """Say something that happened on the way."""
        self.view.note(text)

    @property
    def summary(self) -> str:
        """One line of what was done."""
        parts = [f"{self.operations:,} operations"] if self.operations else []
        if self.size_bytes:
            parts.append(f"{self.size_bytes / MB:,.1f} MB")
        line = ", ".join([*parts, f"{self.took_s:.1f} s"])
        if self.repeated:
            line += f", {self.repeated} attempts repeated by the client"
        return line if not self.errors else f"{line}, FAILED"

    @property
    def picture(self) -> str:
        """How fast it went from beginning to end, as a row of bars."""
        return sparkline(self._samples, self.took_s)


class _View(Protocol):
    """How a running step is shown."""

    def __enter__(self) -> object: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def moved(self, step: Step) -> None: ...
    def note(self, text: str) -> None: ...
    def done(self, step: Step) -> None: ...


class _PipeView:
    """``[ 3/14] title … 10% 20% … 100%  what was done``, on one line unless there is something to note."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown = 0
        self._noted = False

    def __enter__(self) -> None:
        self._write(f"{self._label} …")

    def __exit__(self, *_: object) -> None:
        self._write("\n")

    def moved(self, step: Step) -> None:
        percent = min(100, 100 * step.moved // max(1, step.total)) // _PERCENT_STEP * _PERCENT_STEP
        for value in range(self._shown + _PERCENT_STEP, percent + 1, _PERCENT_STEP):
            self._write(f" {value}%")
        self._shown = max(self._shown, percent)

    def note(self, text: str) -> None:
        self._write(f"\n        {text}")
        self._noted = True

    def done(self, step: Step) -> None:
        self._write(f" | {step.summary}")

    def _write(self, text: str) -> None:
        if self._noted and not text.startswith("\n"):
            text = f"\n        …{text}"
            self._noted = False
        sys.stdout.write(text)
        sys.stdout.flush()


class _TerminalView:
    """A bar with percentage and times while it runs, one line when it is done."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._console = console
        self._label = escape(label)
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=BAR_CELLS),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=console,
            expand=True,
            transient=True,
        )
        self._task = self._progress.add_task(self._label, total=total or None)

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def moved(self, step: Step) -> None:
        self._progress.update(self._task, completed=step.moved)

    def note(self, text: str) -> None:
        self._console.print(f"        [yellow]{escape(text)}[/]", highlight=False)

    def done(self, step: Step) -> None:
        self._progress.stop()
        colour = "red" if step.errors else "green"
        self._console.print(f"[{colour}]{self._label}[/]  {escape(step.summary)}", highlight=False)


class Report:
    """Everything that is said to the user."""

    def __init__(self, steps: int) -> None:
        self.steps: list[Step] = []
        self._total = steps
        self._on_terminal = sys.stdout.isatty()
        self._console = Console(width=None if self._on_terminal else PIPE_WIDTH)

    @contextmanager
    def step(self, title: str, total: int = 0) -> Iterator[Step]:
        """Show a step while it runs, and keep it for the table."""
        label = f"[{len(self.steps) + 1:>2}/{self._total}] {title}"
        view: _View = _TerminalView(self._console, label, total) if self._on_terminal else _PipeView(label)
        step = Step(title=title, total=total, view=view)
        self.steps.append(step)
        with view:
            try:
                yield step
            except BaseException:
                step.errors += 1
                raise
            finally:
                step.took_s = time.monotonic() - step.begun_s
                view.done(step)

    def say(self, text: str) -> None:
        """A line outside of any step."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def table(self) -> None:
        """All steps with their figures."""
        table = Table(box=SIMPLE_HEAD, title="What was done", title_justify="left")
        wide = self._console.width >= WIDE
        titles = [escape(step.title) if wide else "" for step in self.steps]
        table.add_column("step", justify="right")
        if wide:
            table.add_column("", no_wrap=True, overflow="ellipsis", max_width=TITLE_CELLS)
        for name in ("ops", "MB", "s", "MB/s", "ops/s", "slowest", "repeated", "errors"):
            table.add_column(name, justify="right", no_wrap=True)
        if wide:
            table.add_column("speed over time", no_wrap=True)
        for number, (title, step) in enumerate(zip(titles, self.steps, strict=True), start=1):
            table.add_row(str(number), *([title] if wide else []), *_row(step), *([step.picture] if wide else []))
        timed = sum(step.took_s for step in self.steps)
        table.add_section()
        table.add_row(
            "all",
            *([""] if wide else []),
            f"{sum(step.operations for step in self.steps):,}",
            f"{sum(step.size_bytes for step in self.steps) / MB:,.1f}",
            f"{timed:,.1f}",
            "",
            "",
            f"{max((step.slowest_s for step in self.steps), default=0.0):.2f}",
            str(sum(step.repeated for step in self.steps)),
            str(sum(step.errors for step in self.steps)),
        )
        self._console.print(table)

    def memory(self, before: Mapping[str, int], after: Mapping[str, int]) -> None:
        """The nodes' memory at the beginning and the end."""
        table = Table(box=SIMPLE_HEAD, title="Memory of the nodes (RSS)", title_justify="left")
        for name, justify in (("node", "left"), ("MB at the start", "right"), ("MB at the end", "right")):
            table.add_column(name, justify="right" if justify == "right" else "left")
        for name in after:
            table.add_row(name, f"{before.get(name, 0) / MB:,.0f}", f"{after[name] / MB:,.0f}")
        self._console.print(table)


def _row(step: Step) -> Iterable[str]:
    seconds = max(step.took_s, 1e-9)
    return (
        f"{step.operations:,}" if step.operations else "",
        f"{step.size_bytes / MB:,.1f}" if step.size_bytes else "",
        f"{step.took_s:,.1f}",
        f"{step.size_bytes / MB / seconds:,.1f}" if step.size_bytes else "",
        f"{step.operations / seconds:,.0f}" if step.operations > 1 else "",
        f"{step.slowest_s:.2f}" if step.slowest_s else "",
        str(step.repeated),
        str(step.errors),
    )


def sparkline(samples: Iterable[tuple[float, int]], took_s: float, cells: int = PICTURE_CELLS) -> str:
    """The amounts over the time, in so many cells; empty if nothing moved."""
    amounts = [0] * cells
    for at_s, amount in samples:
        if amount > 0:
            amounts[min(cells - 1, int(at_s / max(took_s, 1e-9) * cells))] += amount
    highest = max(amounts)
    if highest == 0:
        return ""
    return "".join(_BARS[-(-amount * (len(_BARS) - 1) // highest)] for amount in amounts)
