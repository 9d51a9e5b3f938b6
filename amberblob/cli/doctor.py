"""``amberblob doctor``: what is wrong, with the cluster or with one disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amberblob.cli.options import Endpoint, Json, wants_json, with_client
from amberblob.cli.output import CommandFailed, note, on_terminal, printable, say, say_json

if TYPE_CHECKING:
    from amberblob.client import AsyncClient


def doctor(
    disk: Annotated[
        Path | None, typer.Option("--disk", metavar="DIR", help="Check this disk, offline, instead of the cluster.")
    ] = None,
    deep: Annotated[bool, typer.Option("--deep", help="With --disk: read and verify every byte.")] = False,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Say what is wrong with the cluster, or with one disk. Changes nothing; exit status 1 when something is wrong.

    \b
    Examples:
      amberblob doctor
      amberblob doctor --endpoint http://10.0.0.1:7700,http://10.0.0.2:7700
      amberblob doctor --disk /var/lib/amberblob/disk --deep
    """
    if deep and disk is None:
        raise typer.BadParameter("--deep is for a disk; give --disk DIR", param_hint="--deep")
    if disk is not None:
        _check_disk(disk, deep, wants_json(json_output))
    else:
        _check_cluster(endpoint, wants_json(json_output))


def _check_cluster(endpoint: str | None, json_output: bool) -> None:
    async def work(client: AsyncClient) -> tuple[Mapping[str, str | None], Mapping[str, Any] | None]:
        from amberblob.errors import AmberError

        ready = await client.ready()
        for url, reason in ready.items():
            if reason is None:
                try:
                    return ready, await client.cluster(url)
                except AmberError as error:
                    note(f"{url}: {error}")
        return ready, None

    ready, cluster = with_client(endpoint, work)
    problems = [f"{url} does not serve: {reason}" for url, reason in ready.items() if reason is not None]
    problems += cluster_problems(cluster) if cluster is not None else ["no endpoint tells of the cluster"]
    if json_output:
        say_json({"ok": not problems, "problems": problems, "endpoints": dict(ready), "cluster": cluster})
    else:
        for url, reason in ready.items():
            say(f"{url}  {'ready' if reason is None else 'not ready'}")
        for problem in problems:
            say(f"problem: {printable(problem)}")
        if not problems:
            say("nothing is wrong")
    if problems:
        raise typer.Exit(1)


def cluster_problems(cluster: Mapping[str, Any]) -> list[str]:
    """What is wrong with a cluster by its own account."""
    from amberblob.cli.cluster import name_of, nodes_of

    problems: list[str] = []
    registry = cluster.get("registry")
    if isinstance(registry, Mapping) and registry.get("ok") is False:
        problems.append(
            f"the registry is out of reach: {registry.get('error') or registry.get('reason') or 'no reason given'}"
        )
    for node in nodes_of(cluster):
        name = name_of(node)
        if node.get("reachable") is False:
            problems.append(f"{name} is unreachable: start it again, or look at its log and at the network")
        disk = node.get("disk")
        if isinstance(disk, Mapping):
            if failed := disk.get("failed"):
                problems.append(f"the disk of {name} failed: {failed}")
            if disk.get("full") is True:
                problems.append(f"the disk of {name} is full: new bytes are refused there; make room")
    slots = cluster.get("slots")
    if isinstance(slots, Mapping):
        for state in ("unavailable", "degraded", "lost", "under_replicated"):
            count = slots.get(state)
            if isinstance(count, int) and count > 0:
                problems.append(f"{count} slots are {state.replace('_', '-')}")
    return problems


def _check_disk(disk: Path, deep: bool, json_output: bool) -> None:
    if not disk.is_dir():
        raise CommandFailed(f"{disk} is no folder", "Give the disk's folder: the one with disk.toml in it.")
    from chunkstore.doctor import examine

    show = on_terminal(stderr=True)

    def progress(*state: object) -> None:
        if show:
            note("  ".join(printable(str(part)) for part in state))

    report = examine(disk, deep=deep, progress=progress)
    document = report_json(report)
    wrong = report_is_bad(report, document)
    if json_output:
        say_json(document)
    else:
        from amberblob.cli.explain import branches

        for branch in branches(document):
            for line in branch.lines():
                say(line)
        say("something is wrong with this disk" if wrong else "nothing is wrong with this disk")
    if wrong:
        raise typer.Exit(1)


def report_json(report: Any) -> dict[str, Any]:
    """The report as plain values."""
    import msgspec

    document = msgspec.to_builtins(report, enc_hook=str)
    return document if isinstance(document, dict) else {"report": document}


def report_is_bad(report: Any, document: Mapping[str, Any]) -> bool:
    """Whether the report tells of anything wrong."""
    for name in ("ok", "healthy"):
        value = getattr(report, name, None)
        if isinstance(value, bool):
            return not value
    return any(document.get(name) for name in ("problems", "errors", "findings"))
