"""Progress bars: on a terminal only, and on stderr, so that stdout stays what was asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from amberblob.cli.output import on_terminal, printable


class Bar(Protocol):
    """One bar for any number of transfers."""

    def transfer(self, size_bytes: int | None, *, counted: bool = False) -> Transfer:
        """A part of the whole; ``counted``: its size is in the total already."""
        ...

    def print(self, text: str) -> None:
        """A line above the bar."""
        ...


class Transfer:
    """The progress callback of one transfer."""

    def __init__(self, bar: _Sink) -> None:
        self._bar = bar
        self._done = 0

    def __call__(self, done: int, total: int | None) -> None:
        self._bar.advance(done - self._done)  # goes back when a body is sent again
        self._done = done


class _Sink(Protocol):
    def advance(self, amount: int) -> None: ...


class _NoBar:
    def advance(self, amount: int) -> None:
        pass

    def transfer(self, size_bytes: int | None, *, counted: bool = False) -> Transfer:
        return Transfer(self)

    def print(self, text: str) -> None:
        pass


@contextmanager
def progress_bar(title: str, total_bytes: int | None, *, quiet: bool = False) -> Iterator[Bar]:
    """A bar with speed and time left; nothing at all where stderr is no terminal."""
    if quiet or not on_terminal(stderr=True):
        yield _NoBar()
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=False,
    )

    class _RichBar:
        def __init__(self) -> None:
            self.task = progress.add_task(escape(printable(title)), total=total_bytes)
            self.total = total_bytes

        def advance(self, amount: int) -> None:
            progress.advance(self.task, amount)

        def transfer(self, size_bytes: int | None, *, counted: bool = False) -> Transfer:
            if not counted and size_bytes is not None:
                self.total = (self.total or 0) + size_bytes
                progress.update(self.task, total=self.total)
            return Transfer(self)

        def print(self, text: str) -> None:
            console.print(text, markup=False, highlight=False)

    with progress:
        yield _RichBar()
