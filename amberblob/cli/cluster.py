"""``amberblob cluster``: what the nodes know of the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

from amberblob.cli.explain import Branch, branches
from amberblob.cli.options import Endpoint, Json, wants_json, with_client
from amberblob.cli.output import human_size, on_terminal, printable, say, say_json
from amberblob.cli.table import print_table

if TYPE_CHECKING:
    from amberblob.client import AsyncClient

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
        for branch in branches({name: value for name, value in document.items() if name != "nodes"}):
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
    """Every node with its zone, address and disk.

    \b
    Example:
      amberblob cluster nodes
    """
    rows = nodes_of(fetch_cluster(endpoint))
    if wants_json(json_output):
        say_json(rows)
        return
    known = ("node", "id", "name", "reachable")
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in known))
    lines = [
        [name_of(row), "down" if row.get("reachable") is False else "up", *(_cell(row.get(name)) for name in columns)]
        for row in rows
    ]
    if on_terminal():
        print_table(["node", "state", *columns], lines)
    else:
        for line in lines:
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


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_amount(str(name), item)}" for name, item in value.items())
    return printable("" if value is None else str(value))


def _amount(name: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and "bytes" in name:
        return human_size(value)
    return printable(str(value))
