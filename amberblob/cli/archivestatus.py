"""``amberblob archive status``, ``follow`` and ``stop``; and what a dry run found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amberblob.cli.archivefollow import follow_job
from amberblob.cli.archivejob import ended
from amberblob.cli.archiveview import (
    JOB_COLUMNS,
    NODE_COLUMNS,
    PLAN_COLUMNS,
    job_rows,
    node_rows,
    plan_rows,
    plan_summary,
    problems_of,
    stopped_text,
    summary_lines,
)
from amberblob.cli.options import Endpoint, Json, wants_json, with_client
from amberblob.cli.output import on_terminal, printable, say, say_json
from amberblob.cli.table import print_table

if TYPE_CHECKING:
    from amberblob.client import AsyncClient

Job = Annotated[str, typer.Argument(metavar="JOB", help="As amberblob archive status lists them.")]


def status(endpoint: Endpoint = None, json_output: Json = False) -> None:
    """The archive as a whole: target, what is there, each node, the last jobs, and what to do.

    Exit status 1 when the archive cannot be reached, nodes do not agree on it, or a job needs an operator.

    \b
    Example:
      amberblob archive status
    """

    async def work(client: AsyncClient) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        return await client.archive.status(), await client.archive.jobs()

    view, told = with_client(endpoint, work)
    jobs = [job for job in told.get("jobs") or () if isinstance(job, Mapping)]
    problems = problems_of(view, jobs)
    if wants_json(json_output):
        listed = [{"what": problem.what, "mend": problem.mend} for problem in problems]
        say_json({**view, "jobs": jobs, "problems": listed})
    else:
        for line in summary_lines(view):
            say(printable(line))
        _table(NODE_COLUMNS, node_rows(view))
        if jobs:
            _table(JOB_COLUMNS, job_rows(jobs))
        for problem in problems:
            say(printable(f"problem: {problem.what}"))
            say(printable(f"  {problem.mend}"))
    if problems:
        raise typer.Exit(1)


def follow(
    job: Job,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Watch a job until it ends; of one that has ended: what it did, and its problems.

    \b
    Example:
      amberblob archive follow 01KAJ5XQ4T7S9C0M2B8D3E6F1G
    """
    follow_job(job, as_json=wants_json(json_output), endpoint=endpoint)


def stop(
    job: Job,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """End a job on all nodes. What it did stays; a new one does the rest.

    One that has failed, or had problems, is no problem of amberblob archive status any more then.

    \b
    Example:
      amberblob archive stop 01KAJ5XQ4T7S9C0M2B8D3E6F1G
    """

    async def work(client: AsyncClient) -> Mapping[str, Any]:
        return await client.archive.stop(job)

    view = with_client(endpoint, work)
    if wants_json(json_output):
        say_json(view)
        return
    for line in stopped_text(job, view):
        say(printable(line))


def show_plan(document: Mapping[str, Any]) -> None:
    """What a dry run found: a table per rule, or what it counted."""
    rules = [rule for rule in document.get("savings") or () if isinstance(rule, Mapping)]
    if rules:
        _table(PLAN_COLUMNS, plan_rows(rules))
        say(plan_summary(rules))
        return
    say(printable(ended(document).text))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """On a terminal a table; in a pipe lines with tabs."""
    rows = [[printable(cell) for cell in row] for row in rows]
    if on_terminal():
        print_table(columns, rows)
        return
    for line in [[column.removesuffix(">") for column in columns], *rows]:
        say("\t".join(line))
