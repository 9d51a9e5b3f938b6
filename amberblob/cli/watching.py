"""How it is shown that something goes on: a bar on a terminal, a line now and then where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from amberblob.cli.output import note, on_terminal

LINE_S = 5.0
"""Where there is no terminal: at most one line in so many seconds."""

Show = Callable[[str, float, float], None]
"""Takes a line about what is left, how much is done, and of how much."""


class Lines:
    """Lines on stderr: the first at once, then when something has changed, and not too often."""

    def __init__(self) -> None:
        self._last = ""
        self._at_s = -LINE_S

    def show(self, text: str, news: str) -> None:
        """Say ``text``, if ``news`` is another than it was."""
        now_s = time.monotonic()
        if news != self._last and (not self._last or now_s - self._at_s >= LINE_S):
            note(text)
            self._last, self._at_s = news, now_s


@contextmanager
def bar(what: str, *, quiet: bool) -> Iterator[Show]:
    """Shows what is left: a bar on a terminal, a line now and then where stderr is none, nothing when ``quiet``."""
    if quiet:
        yield lambda text, done, total: None
        return
    if not on_terminal(stderr=True):
        lines = Lines()
        yield lambda text, done, total: lines.show(text, text)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    progress = Progress(
        TextColumn(what),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
    )
    with progress:
        task = progress.add_task("asking", total=None)
        yield lambda text, done, total: progress.update(task, completed=done, total=total, description=text)
