"""``amberblob explain``: where an object is, and what mends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amberblob.cli.options import Endpoint, Json, wants_json, with_client
from amberblob.cli.output import human_size, on_terminal, printable, say, say_json

if TYPE_CHECKING:
    from amberblob.client import AsyncClient

_TOLD = ("path", "replicas", "versions", "healthy", "advice")
CHUNKS_SHOWN_MAX = 20
_WELL = ("", "chosen", "accepted")
_COPY_STYLES = {
    "all": "green",
    "archived": "green",
    "some": "yellow",
    "none": "red",
    "damaged": "red",
    "unreachable": "red",
}


def explain(
    path: Annotated[str, typer.Argument(metavar="PATH", help="The object's name.")],
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Show where an object is: slot, replicas, versions, the state of every copy, and the command that mends it.

    \b
    Example:
      amberblob explain albums/2024/1.jpg
    """

    async def work(client: AsyncClient) -> Mapping[str, Any]:
        return await client.explain(path)

    document = with_client(endpoint, work)
    if wants_json(json_output):
        say_json(document)
        return
    root = Branch(printable(str(document.get("path", path))), children=branches(document))
    if on_terminal():
        _print_tree(root)
    else:
        for line in root.lines():
            say(line)


class Branch:
    """A line of the tree and those below it; ``style`` colours it on a terminal."""

    def __init__(self, text: str, style: str = "", children: Sequence[Branch] = ()) -> None:
        self.text = text
        self.style = style
        self.children = list(children)

    def lines(self, depth: int = 0) -> list[str]:
        """The tree as indented text."""
        return ["  " * depth + self.text] + [line for child in self.children for line in child.lines(depth + 1)]


def branches(document: Mapping[str, Any]) -> list[Branch]:
    """The document as a tree. What is known is told well, the rest is told all the same."""
    told = {name for name in _TOLD if name != "replicas" or not _is_plain(document.get(name))}
    facts = [Branch(_pair(name, value)) for name, value in document.items() if name not in told and _is_plain(value)]
    nested = [_generic(name, value) for name, value in document.items() if name not in told and not _is_plain(value)]
    parts = [*facts, *nested]
    if replicas := _rows(document.get("replicas")):
        parts.append(Branch("replicas", children=[_replica(row) for row in replicas]))
    if versions := _rows(document.get("versions")):
        parts.append(Branch("versions", children=[_version(row) for row in versions]))
    if "healthy" in document:
        healthy = bool(document["healthy"])
        parts.append(Branch("healthy" if healthy else "not healthy", "green" if healthy else "red"))
    if advice := document.get("advice"):
        parts.append(Branch(f"what to do: {printable(str(advice))}", "bold"))
    return parts


def _replica(row: Any) -> Branch:
    if not isinstance(row, Mapping):
        return Branch(printable(str(row)))
    rest = [
        _pair(name, value) if _is_plain(value) else _pair(name, ", ".join(map(_inline, value)))
        for name, value in row.items()
        if name not in ("node", "state") and value not in ("", None, [], ()) and not isinstance(value, Mapping)
        if name != "incarnation" or value != row.get("disk")  # equal: a copy that was never lost here
    ]
    state = str(row.get("state", ""))
    text = f"{row.get('node', '?')}  {state}" + (f"  ({', '.join(rest)})" if rest else "")
    return Branch(printable(text), "" if state in _WELL else _COPY_STYLES.get(state, "yellow"))


def _version(row: Any) -> Branch:
    if not isinstance(row, Mapping):
        return Branch(printable(str(row)))
    size = row.get("size")
    text = f"version {row.get('version', '?')}"
    if isinstance(size, int):
        text += f"  {human_size(size)}"
    if row.get("tombstoned"):
        text += "  deleted"
    shown = ("version", "size", "tombstoned", "copies", "chunks", "archive")
    children = [Branch(_pair(name, value)) for name, value in row.items() if name not in shown and _is_plain(value)]
    children += [_generic(name, value) for name, value in row.items() if name not in shown and not _is_plain(value)]
    if chunks := _rows(row.get("chunks")):
        lines = [Branch(_chunk(chunk)) for chunk in chunks[:CHUNKS_SHOWN_MAX]]
        if len(chunks) > CHUNKS_SHOWN_MAX:
            lines.append(Branch(f"… and {len(chunks) - CHUNKS_SHOWN_MAX} more (--json shows all)"))
        children.append(Branch("chunks", children=lines))
    if places := _rows(row.get("archive")):
        lines = [Branch(_place(place)) for place in places[:CHUNKS_SHOWN_MAX]]
        if len(places) > CHUNKS_SHOWN_MAX:
            lines.append(Branch(f"… and {len(places) - CHUNKS_SHOWN_MAX} more (--json shows all)"))
        children.append(Branch("archive", children=lines))
    copies = row.get("copies")
    if isinstance(copies, Mapping):
        children.append(
            Branch(
                "copies",
                children=[
                    Branch(f"{node}: {_inline(state)}", _COPY_STYLES.get(str(state), ""))
                    for node, state in copies.items()
                ],
            )
        )
    return Branch(printable(text), "dim" if row.get("tombstoned") else "", children)


def _chunk(row: Any) -> str:
    if isinstance(row, Mapping) and isinstance(row.get("len"), int):
        return printable(f"{row.get('id')}  {human_size(row['len'])}")
    return printable(_inline(row))


def _place(row: Any) -> str:
    if isinstance(row, Mapping) and isinstance(row.get("start"), int) and isinstance(row.get("end"), int):
        return printable(f"{row.get('object')}  {row['start']}-{row['end']}  {row.get('state')}")
    return printable(_inline(row))


def _generic(name: str, value: Any) -> Branch:
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        if all(_is_plain(item) for item in value):
            return Branch(_pair(name, ", ".join(_inline(item) for item in value)))
        items = {str(index): item for index, item in enumerate(value)}.items()
    else:
        return Branch(_pair(name, value))
    return Branch(printable(str(name)), children=[_generic(key, item) for key, item in items])


def _pair(name: str, value: Any) -> str:
    return printable(f"{name}: {_inline(value)}")


def _inline(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _rows(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return [
            {"node": name, **row} if isinstance(row, Mapping) else {"node": name, "state": row}
            for name, row in value.items()
        ]
    return list(value) if isinstance(value, (list, tuple)) else []


def _print_tree(root: Branch) -> None:
    from rich.console import Console
    from rich.text import Text
    from rich.tree import Tree

    def grow(tree: Tree, branch: Branch) -> None:
        for child in branch.children:
            grow(tree.add(Text(child.text, style=child.style)), child)

    tree = Tree(Text(root.text, style="bold"))
    grow(tree, root)
    Console(highlight=False).print(tree)
