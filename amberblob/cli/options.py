"""What every client command takes, and how it gets its client."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from amberblob.client import AsyncClient

T = TypeVar("T")

Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint", metavar="URL[,URL]", help="Nodes to speak to.  [env: AMBERBLOB_ENDPOINT]", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for machines.")]
Version = Annotated[
    int | None, typer.Option("--version", metavar="N", min=1, help="This version instead of the newest.")
]
At = Annotated[
    str | None, typer.Option("--at", metavar="TIME", help="As it was then: 2026-01-31T12:00:00Z, or Unix seconds.")
]
Consistency = Annotated[
    str | None, typer.Option("--consistency", metavar="strong|local", help="local: what that node has, perhaps stale.")
]
IfMatch = Annotated[
    str | None, typer.Option("--if-match", metavar="ETAG", help="Only if the head has this etag ('*': any).")
]
IfVersion = Annotated[
    int | None,
    typer.Option("--if-version", metavar="N", min=0, help="Only if the head has this version; 0: if there is none."),
]
WriteId = Annotated[
    str | None,
    typer.Option("--write-id", metavar="ID", help="To repeat a write whose outcome is unknown: it is applied once."),
]
Parallel = Annotated[
    int, typer.Option("--parallel", "-j", min=1, max=64, help="How many at the same time (with --recursive).")
]

_RANGE = re.compile(r"(\d*):(\d*)\Z|-(\d+):\Z")
_defaults: dict[str, str | bool | None] = {"endpoint": None, "json": False}


def set_defaults(endpoint: str | None, json_output: bool) -> None:
    """What was given before the command's name."""
    _defaults.update(endpoint=endpoint, json=json_output)


def wants_json(here: bool) -> bool:
    """Whether ``--json`` was given, before or after the command's name."""
    return here or bool(_defaults["json"])


def connect(endpoint: str | None) -> AsyncClient:
    """The client for the endpoint that was given after or before the command's name, or in the environment."""
    from amberblob.client import AsyncClient

    return AsyncClient(endpoint or (str(_defaults["endpoint"]) if _defaults["endpoint"] else None))


def with_client(endpoint: str | None, work: Callable[[AsyncClient], Awaitable[T]]) -> T:
    """Run one piece of work with a client, on an event loop of its own."""

    async def run() -> T:
        async with connect(endpoint) as client:
            return await work(client)

    return asyncio.run(run())


def consistency_of(text: str | None) -> str | None:
    """Checked: strong, local or None."""
    if text not in (None, "strong", "local"):
        raise typer.BadParameter("it is strong or local", param_hint="--consistency")
    return text


def range_of(text: str | None) -> tuple[int | None, int | None] | None:
    """``100:200`` (end exclusive), ``100:``, ``:200``, ``-100:`` (the last 100 bytes)."""
    if text is None:
        return None
    match = _RANGE.match(text)
    if match is None or text == ":":
        raise typer.BadParameter("it is START:END (END exclusive), START:, :END or -LAST:", param_hint="--range")
    if match[3] is not None:
        return -int(match[3]), None
    start, end = (int(number) if number else None for number in (match[1], match[2]))
    if end is not None and (start or 0) >= end:
        raise typer.BadParameter("END is exclusive and must be greater than START", param_hint="--range")
    return start, end


def meta_of(pairs: list[str] | None) -> dict[str, str]:
    """``--meta key=value``, several times."""
    meta: dict[str, str] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--meta")
        meta[name] = value
    return meta
