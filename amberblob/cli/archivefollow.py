"""Start a job of the archive and follow it: bars on a terminal, a line now and then where there is none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from amberblob.cli.archivejob import Ended, JobWatch, UnderWay, Waits
from amberblob.cli.options import with_client
from amberblob.cli.output import CommandFailed, note, on_terminal, printable, say, say_json
from amberblob.cli.watching import Lines
from amberblob.errors import PeerError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from amberblob.archivejobs import JobWanted
    from amberblob.client import AsyncClient

T = TypeVar("T")

POLL_S = 0.5
FIRST_POLLS_S = (0.05, 0.1, 0.2)
"""A small job is over at once; nobody should wait half a second for it."""
UNREACHABLE_S = 60.0
"""How long no node may answer before following ends. (The job does not.)"""


def run_job(wanted: JobWanted, *, detach: bool, as_json: bool, endpoint: str | None) -> Mapping[str, Any]:
    """Start the job and follow it to its end; its last document (with ``detach``: what the start answered).

    Raises:
        CommandFailed: it was not done, or not all of it; or Ctrl-C: the job goes on then.
        AmberError: it could not be started.
    """
    begun: dict[str, Any] = {}

    async def work(client: AsyncClient) -> tuple[Mapping[str, Any], Ended | Waits | None]:
        started = await client.archive.start(wanted)
        begun.update(started)
        if not as_json:
            _tell_who_does_not(started)
            _tell_warnings(started)
        if detach:
            return started, None
        title = f"{wanted.kind} (dry run)" if wanted.dry_run else wanted.kind
        return await _follow(client, str(started["job"]), title, started.get("nodes") or (), quiet=as_json)

    document, end = _interruptible(endpoint, work, begun)
    if as_json:
        say_json(document)
    elif end is None:
        say(f"job {printable(str(document['job']))} runs. {how_to_go_on(str(document['job']))}")
    _conclude(str(document.get("job", "")), end, as_json=as_json, quiet=wanted.dry_run)
    return document


def follow_job(job: str, *, as_json: bool, endpoint: str | None) -> None:
    """Follow a job that runs, or ran, to its end. Raises as :func:`run_job`; NotFound: there is no such job."""

    async def work(client: AsyncClient) -> tuple[Mapping[str, Any], Ended | Waits]:
        begun = await client.archive.job(job)
        kind = str(begun.get("kind") or "job")
        if not as_json:
            _tell_warnings(begun)
        return await _follow(client, job, kind, (), quiet=as_json)

    document, end = _interruptible(endpoint, work, {"job": job})
    if as_json:
        say_json(document)
    _conclude(job, end, as_json=as_json, quiet=False)


def how_to_go_on(job: str) -> str:
    """Where a job that is not waited for is seen, and how it is stopped."""
    return f"See it: amberblob archive follow {printable(job)}. Stop it: amberblob archive stop {printable(job)}"


def _interruptible(endpoint: str | None, work: Callable[[AsyncClient], Awaitable[T]], begun: Mapping[str, Any]) -> T:
    try:
        return with_client(endpoint, work)
    except KeyboardInterrupt:
        if "job" not in begun:
            raise
        raise CommandFailed(
            "the job goes on; it is only not waited for any more", how_to_go_on(str(begun["job"]))
        ) from None


def _tell_who_does_not(started: Mapping[str, Any]) -> None:
    if silent := started.get("silent_nodes"):
        names = printable(", ".join(map(str, silent)))
        note(f"{names} did not answer and will not take part before the others hand over what is left; start it")
    refused = started.get("refused")
    if isinstance(refused, Mapping):
        for node, why in refused.items():
            note(printable(f"{node} does not take part: {why}"))


def _tell_warnings(document: Mapping[str, Any]) -> None:
    for warning in document.get("warnings") or ():
        note(printable(f"warning: {warning}"))


def _conclude(job: str, end: Ended | Waits | None, *, as_json: bool, quiet: bool) -> None:
    if isinstance(end, Waits):
        raise CommandFailed(printable(end.why), f"{printable(end.hint)} {how_to_go_on(job)}")
    if not isinstance(end, Ended):
        return
    if not as_json:
        for problem in end.problems:
            note(printable(f"problem: {problem}"))
        if more := end.failures - len(end.problems):
            note(f"problem: and {more:,} more; the nodes' logs have them")
    if not end.well:
        raise CommandFailed(printable(end.text), _hint(end))
    if not as_json and not quiet:
        say(printable(end.text))


def _hint(end: Ended) -> str:
    """What to do about a job that was not well."""
    if end.state == "stopped":
        return "What it did stays. Start it again for the rest."
    if end.state != "failed":
        return "The rest was done. Mend what the problems say, and start the job again: it does what is left."
    look = "amberblob archive status tells whether the archive can be reached."
    if end.kind == "import":
        look = f"If it is the source: check SOURCE_URL, and what the key of [archive] may do there. Else {look}"
    return f"{look} Start the job again afterwards: it goes on with what is left."


async def _follow(
    client: AsyncClient, job: str, title: str, nodes: Any, *, quiet: bool
) -> tuple[Mapping[str, Any], Ended | Waits]:
    """Look until the end."""
    watch, began_s = JobWatch(frozenset(map(str, nodes))), time.monotonic()
    pauses, heard_s = iter(FIRST_POLLS_S), began_s
    with _bars(title, quiet=quiet) as show:
        while True:
            try:
                view = await client.archive.job(job)
            except PeerError as error:
                if time.monotonic() - heard_s >= UNREACHABLE_S:
                    raise CommandFailed(f"no node answers any more: {error}", how_to_go_on(job)) from error
            else:
                heard_s = time.monotonic()
                seen = watch.look(view, heard_s - began_s)
                if not isinstance(seen, UnderWay):
                    return view, seen
                show(seen)
            await asyncio.sleep(next(pauses, POLL_S))


@contextmanager
def _bars(title: str, *, quiet: bool) -> Iterator[Callable[[UnderWay], None]]:
    if quiet:
        yield lambda seen: None
        return
    if not on_terminal(stderr=True):
        lines = Lines()
        yield lambda seen: lines.show(printable(f"{title}: {seen.text}"), seen.news)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[text]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
    with progress:
        yield _Bars(progress, title)


class _Bars:
    """One bar for the job and one for each node's part."""

    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {"": progress.add_task(title, total=None, text="asking")}

    def __call__(self, seen: UnderWay) -> None:
        for part in (seen.whole, *seen.parts):
            if part.node not in self._tasks:
                self._tasks[part.node] = self._progress.add_task(f"  {printable(part.node)}", total=None, text="")
            text = part.text if part.node else seen.text
            if part.node and part.detail:
                text += f", {part.detail}"
            share = part.share if part.node == "" or part.state == "running" else 1.0
            self._progress.update(
                self._tasks[part.node],
                total=None if share is None else 1.0,
                completed=share or 0.0,
                text=printable(text),
            )
