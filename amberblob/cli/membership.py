"""``amberblob cluster join``, ``drain``, ``remove`` and ``forget``: what an operator wants of the nodes, and how far it is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amberblob.cli.moving import Moved, MoveWatch, Moving, Stuck
from amberblob.cli.options import Endpoint, Json, wants_json, with_client
from amberblob.cli.output import CommandFailed, note, on_terminal, printable, say, say_json
from amberblob.cli.table import print_table
from amberblob.cli.watching import Show, bar

if TYPE_CHECKING:
    from amberblob.client import AsyncClient

POLL_S = 0.5

Nodes = Annotated[list[str], typer.Argument(metavar="NODE…", help="As amberblob cluster nodes lists them.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan, and change nothing.")]
Wait = Annotated[bool, typer.Option("--wait", help="Until all slots are where they are wanted.")]
Timeout = Annotated[
    float | None,
    typer.Option("--timeout", metavar="SECONDS", min=0.0, help="With --wait: give up watching after so long."),
]


def join(
    nodes: Nodes,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout_s: Timeout = None,
    force: Annotated[bool, typer.Option("--force", help="Although a node gives no sign of life.")] = False,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Give nodes their share of the slots. They run already, with this cluster's registry and name, and hold nothing yet.

    The slots move by themselves, one after the other, while clients read and write. The command may end, or be broken off, at any
    time; asked for again it goes on. Several nodes at once move less than one after the other.

    \b
    Examples:
      amberblob cluster join n4 n5 --dry-run
      amberblob cluster join n4 n5 --wait
    """
    _change("join", nodes, dry_run, wait, timeout_s, force, endpoint, json_output)


def drain(
    nodes: Nodes,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout_s: Timeout = None,
    force: Annotated[bool, typer.Option("--force", help="Although fewer nodes than copies remain.")] = False,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Have nodes give away all that they hold. They go on taking requests; after that they can be removed.

    \b
    Examples:
      amberblob cluster drain n2 --dry-run
      amberblob cluster drain n2 --wait && amberblob cluster remove n2
    """
    _change("drain", nodes, dry_run, wait, timeout_s, force, endpoint, json_output)


def remove(
    nodes: Nodes,
    dry_run: DryRun = False,
    wait: Wait = False,
    timeout_s: Timeout = None,
    force: Annotated[
        bool, typer.Option("--force", help="The node is lost for good: the others make its copies anew from theirs.")
    ] = False,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Take nodes out of the cluster: drained ones, or with --force one that is lost for good. It is refused if it comes back.

    \b
    Examples:
      amberblob cluster remove n2
      amberblob cluster remove n3 --force --wait
    """
    _change("remove", nodes, dry_run, wait, timeout_s, force, endpoint, json_output)


def forget(nodes: Nodes, endpoint: Endpoint = None, json_output: Json = False) -> None:
    """Free the names of removed nodes: a node of that name may register again, and be joined.

    \b
    Example:
      amberblob cluster forget n3
    """
    _change("forget", nodes, False, False, None, False, endpoint, json_output)


def _change(
    action: str,
    nodes: list[str],
    dry_run: bool,
    wait: bool,
    timeout_s: float | None,
    force: bool,
    endpoint: str | None,
    json_output: bool,
) -> None:
    if timeout_s is not None and not wait:
        raise typer.BadParameter("it says how long to --wait; add that", param_hint="--timeout")
    if dry_run and wait:
        raise typer.BadParameter("a dry run changes nothing, so there is nothing to wait for", param_hint="--wait")
    as_json = wants_json(json_output)

    async def work(client: AsyncClient) -> tuple[Mapping[str, Any], Moved | Stuck | None]:
        plan = await client.change_membership(action, nodes, dry_run=dry_run, force=force)
        if not as_json:
            for line in plan_lines(plan):
                note(line) if wait else say(line)
        if not wait:
            return plan, None
        with bar("moving", quiet=as_json) as show:
            return plan, await _watch(client, int(plan.get("generation") or 0), timeout_s, show)

    plan, end = with_client(endpoint, work)
    if as_json:
        say_json(plan)
    elif not wait:
        _print_nodes(plan)
    if isinstance(end, Stuck):
        raise CommandFailed(printable(end.why), printable(end.hint))
    if as_json:
        return
    if isinstance(end, Moved):
        say("done: every slot is where it is wanted")
    elif not dry_run and plan.get("moves"):
        say("The nodes carry it out now. How far they are: amberblob cluster status")


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """The plan in sentences."""
    moves, copies = int(plan.get("moves") or 0), int(plan.get("copies") or 0)
    dry = bool(plan.get("dry_run"))
    lines = [printable(f"warning: {warning}") for warning in plan.get("warnings") or ()]
    if moves:
        lines.append(
            f"{moves} slots {'would move' if dry else 'move'}; {copies} copies of slots {'would be' if dry else 'are'} made anew; "
            f"each slot {'would have' if dry else 'has'} {plan.get('voters')} copies then"
        )
    else:
        lines.append("no slot has to move")
    return lines


def _print_nodes(plan: Mapping[str, Any]) -> None:
    rows = [row for row in plan.get("nodes") or () if isinstance(row, Mapping)]
    lines = [
        [
            printable(str(row.get("node"))),
            str(row.get("state")),
            str(row.get("slots_before")),
            str(row.get("slots_after")),
        ]
        for row in rows
    ]
    header = ["node", "wanted", "slots now>", "slots then>"]
    if on_terminal():
        print_table(header, lines)
    else:
        for line in [[column.removesuffix(">") for column in header], *lines]:
            say("\t".join(line))


async def _watch(client: AsyncClient, generation: int, timeout_s: float | None, show: Show) -> Moved | Stuck:
    """Look until the end."""
    watch, began_s = MoveWatch(generation), time.monotonic()
    while True:
        document = await client.cluster()
        account = document.get("membership")
        now_s = time.monotonic() - began_s
        seen = watch.look(account if isinstance(account, Mapping) else {"planning": True}, now_s)
        if not isinstance(seen, Moving):
            return seen
        if timeout_s is not None and now_s >= timeout_s:
            return Stuck(
                f"not done within {timeout_s:g} s: {seen.text}",
                "It goes on by itself. amberblob cluster status tells how far it is.",
            )
        show(seen.text, seen.done, seen.total)
        await asyncio.sleep(POLL_S)
