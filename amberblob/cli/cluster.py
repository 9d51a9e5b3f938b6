"""``amberblob cluster``: what the nodes know of the cluster, and mending it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amberblob.cli.clusterview import (
    SLOT_COLUMNS,
    SLOT_STATES,
    by_state,
    counts_text,
    is_well,
    name_of,
    nodes_of,
    slot_row,
    status_lines,
)
from amberblob.cli.heal import heal
from amberblob.cli.membership import drain, forget, join, remove
from amberblob.cli.options import Endpoint, Json, wants_json, with_client
from amberblob.cli.output import human_size, on_terminal, printable, say, say_json
from amberblob.cli.table import print_table

if TYPE_CHECKING:
    from amberblob.client import AsyncClient
    from amberblob.client.types import SlotsShown

_SHOWN = ("wanted", "zone", "host", "address", "http", "slots", "votes", "bytes", "state")
_A_DATE_MS = 10**12
"""Milliseconds since 1970 beyond this are a date of after 2001; less is a duration."""

app = typer.Typer(
    help="What the nodes know of the cluster, and mending it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def fetch_cluster(endpoint: str | None, slots: SlotsShown | None = None) -> Mapping[str, Any]:
    """``GET /cluster``; with ``slots`` slot by slot."""

    async def work(client: AsyncClient) -> Mapping[str, Any]:
        return await client.cluster(slots=slots)

    return with_client(endpoint, work)


@app.command()
def status(endpoint: Endpoint = None, json_output: Json = False) -> None:
    """The cluster as a whole: nodes, slots by state, what is below target, and what to do.

    Exit status 1 when a node is down, the registry is refused, or the copies need an operator (degraded,
    corrupt, unavailable, unrecoverable).

    \b
    Example:
      amberblob cluster status
    """
    document = fetch_cluster(endpoint)
    if wants_json(json_output):
        say_json(document)
    else:
        for line in status_lines(document):
            say(line)
    if not is_well(document):
        raise typer.Exit(1)


@app.command()
def nodes(endpoint: Endpoint = None, json_output: Json = False) -> None:
    """Every node with its zone, addresses and disk. In a pipe the columns are separated by tabs.

    \b
    Example:
      amberblob cluster nodes
    """
    rows = nodes_of(fetch_cluster(endpoint))
    if wants_json(json_output):
        say_json(rows)
        return
    known = ("node", "id", "name", "reachable")
    columns = list(dict.fromkeys(str(name) for row in rows for name in row if name not in known))
    if on_terminal():  # what fits into a terminal; a pipe gets everything
        columns = [name for name in columns if name in _SHOWN] or columns
    lines = [
        [
            name_of(row),
            "down" if row.get("reachable") is False else "up",
            *(_cell(name, row.get(name)) for name in columns),
        ]
        for row in rows
    ]
    header = ["node", "state", *(_title(name) for name in columns)]
    if on_terminal():
        print_table(header, lines)
    else:
        for line in [header, *lines]:
            say("\t".join(line))


@app.command()
def slots(
    unhealed: Annotated[bool, typer.Option("--unhealed", help="Only slots that are not whole.")] = False,
    state: Annotated[
        list[str] | None, typer.Option("--state", metavar="STATE", help="Only slots in this state; several times.")
    ] = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Slot by slot: state, copies, and what they lack. In a pipe the columns are separated by tabs.

    \b
    States: whole, in-step (being written), healing, degraded (a node is away), corrupt, unavailable, unrecoverable.
    A slot that moves has new copies: learner (being filled), joining (both sets of copies decide).

    \b
    Examples:
      amberblob cluster slots --unhealed
      amberblob cluster slots --state corrupt --json
    """
    wanted = tuple(state or ())
    if unknown := sorted(set(wanted) - set(SLOT_STATES)):
        raise typer.BadParameter(f"{', '.join(unknown)}: it is one of {', '.join(SLOT_STATES)}", param_hint="--state")
    document = fetch_cluster(endpoint, slots="all")
    heal = document.get("heal")
    heal = heal if isinstance(heal, Mapping) else {}
    rows = by_state(heal.get("by_slot") or (), wanted)
    if unhealed:
        rows = [row for row in rows if row.get("state") != "whole"]
    counts = heal.get("slots") or {}
    if wants_json(json_output):
        by_reach = document.get("slots")
        say_json({**(by_reach if isinstance(by_reach, Mapping) else {}), "by_state": counts, "by_slot": rows})
        return
    lines = [slot_row(row) for row in rows]
    if on_terminal():
        if lines:
            print_table(SLOT_COLUMNS, lines)
        say(f"slots: {counts_text(counts)}")
    else:
        for line in [[column.removesuffix(">") for column in SLOT_COLUMNS], *lines]:
            say("\t".join(line))


app.command("heal")(heal)
app.command("join")(join)
app.command("drain")(drain)
app.command("remove")(remove)
app.command("forget")(forget)


def _title(name: str) -> str:
    return name.removesuffix("_ms")


def _cell(name: str, value: Any) -> str:
    value = _readable(name, value)
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_cell(str(key), item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable("" if value is None else str(value))


def _readable(name: str, value: Any) -> Any:
    """Numbers of bytes and times as people write them; everything else as it is."""
    if isinstance(value, Mapping):
        return {key: _readable(str(key), item) for key, item in value.items()}
    if isinstance(value, int) and not isinstance(value, bool):
        if "bytes" in name:
            return human_size(value)
        if name.endswith("_ms") and value > _A_DATE_MS:
            return datetime.fromtimestamp(value / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return value
