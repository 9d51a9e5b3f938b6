"""``amberblob cluster``: what the nodes know of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import typer

from amberblob.cli.explain import Branch, branches
from amberblob.cli.options import Endpoint, Json, wants_json, with_client
from amberblob.cli.output import human_size, on_terminal, printable, say, say_json
from amberblob.cli.table import print_table

if TYPE_CHECKING:
    from amberblob.client import AsyncClient

_SHOWN = ("zone", "host", "address", "http", "slots", "votes", "bytes", "state")
_A_DATE_MS = 10**12
"""Milliseconds since 1970 beyond this are a date of after 2001; less is a duration."""

app = typer.Typer(
    help="What the nodes know of the cluster.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def fetch_cluster(endpoint: str | None) -> Mapping[str, Any]:
    """``GET /cluster``."""

    async def work(client: AsyncClient) -> Mapping[str, Any]:
        return await client.cluster()

    return with_client(endpoint, work)


def nodes_of(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The nodes of the document, whether it has them as a list or by name."""
    nodes = document.get("nodes", [])
    if isinstance(nodes, Mapping):
        nodes = [{"node": name, **(row if isinstance(row, Mapping) else {"state": row})} for name, row in nodes.items()]
    return [row if isinstance(row, Mapping) else {"node": row} for row in nodes] if isinstance(nodes, list) else []


def name_of(node: Mapping[str, Any]) -> str:
    """What the node is called."""
    return str(node.get("node") or node.get("id") or node.get("name") or "?")


@app.command()
def status(endpoint: Endpoint = None, json_output: Json = False) -> None:
    """The cluster as a whole; exit status 1 when a node is down.

    \b
    Example:
      amberblob cluster status
    """
    document = fetch_cluster(endpoint)
    nodes = nodes_of(document)
    down = [name_of(node) for node in nodes if node.get("reachable") is False]
    if wants_json(json_output):
        say_json(document)
    else:
        shown = {name: _readable(name, value) for name, value in document.items() if name not in ("nodes", "self")}
        for branch in branches(shown):
            for line in branch.lines():
                say(line)
        say(
            f"nodes: {len(nodes) - len(down)} of {len(nodes)} reachable"
            + (f"; down: {', '.join(down)}" if down else "")
        )
    if down:
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
def slots(endpoint: Endpoint = None, json_output: Json = False) -> None:
    """The slots by state, and what is left to heal.

    \b
    Example:
      amberblob cluster slots
    """
    found = fetch_cluster(endpoint).get("slots", {})
    if wants_json(json_output):
        say_json(found)
        return
    document = found if isinstance(found, Mapping) else {"slots": found}
    for branch in branches(document) or [Branch("nothing is known of slots")]:
        for line in branch.lines():
            say(line)


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
