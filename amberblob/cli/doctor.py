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
    async def work(client: AsyncClient) -> tuple[Mapping[str, str | None], dict[str, Mapping[str, Any]]]:
        from amberblob.errors import AmberError

        ready = await client.ready()
        views: dict[str, Mapping[str, Any]] = {}
        for url in sorted(ready, key=lambda url: ready[url] is not None):  # those that serve know best
            try:
                views[url] = await client.cluster(url)
            except AmberError as error:
                if ready[url] is None:
                    note(f"{url}: {error}")
        return ready, views

    ready, views = with_client(endpoint, work)
    problems = [f"{url} does not serve: {reason}" for url, reason in ready.items() if reason is not None]
    cluster = next(iter(views.values()), None)
    problems += cluster_problems(cluster) if cluster is not None else ["no endpoint tells of the cluster"]
    for view in views.values():
        problems += node_problems(view)
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
    """What is wrong with a cluster by one node's account."""
    from amberblob.cli.clusterview import name_of, nodes_of

    problems: list[str] = []
    for node in nodes_of(cluster):
        if node.get("reachable") is False:
            problems.append(f"{name_of(node)} is unreachable: start it again, or look at its log and at the network")
        votes, slots_held = node.get("votes"), node.get("slots")
        if isinstance(votes, int) and isinstance(slots_held, int) and votes < slots_held:
            problems.append(
                f"{name_of(node)} votes in {votes} of its {slots_held} slots: its disk or some slot databases were lost or "
                "replaced, so those slots have fewer copies to lose"
            )
        problems += _disk_problems(name_of(node), node.get("disk"))
    slots = cluster.get("slots")
    if isinstance(slots, Mapping):
        unavailable, degraded = slots.get("unavailable"), slots.get("degraded")
        if isinstance(unavailable, int) and unavailable > 0:
            problems.append(
                f"{unavailable} slots are unavailable: less than a majority of their replicas is reachable and votes"
            )
        if isinstance(degraded, int) and degraded > 0:
            problems.append(f"{degraded} slots are degraded: they serve, but not every replica is reachable and votes")
    heal = cluster.get("heal")
    if isinstance(heal, Mapping):
        if damaged := heal.get("damaged"):
            problems.append(f"{damaged} versions have rotted on a disk: amberblob cluster slots --unhealed tells which")
        if lost := heal.get("unrecoverable"):
            problems.append(
                f"{lost} versions can be had whole from no replica: amberblob cluster slots --unhealed tells where"
            )
    return problems


def node_problems(cluster: Mapping[str, Any]) -> list[str]:
    """What is wrong with the very node that gave this account."""
    from amberblob.cli.clusterview import name_of

    me = cluster.get("self")
    if not isinstance(me, Mapping):
        return []
    name = name_of(me)
    problems = _disk_problems(name, me.get("disk"))
    registry = cluster.get("registry")
    if isinstance(registry, Mapping) and registry.get("ok") is False:
        what = "refuses" if registry.get("refused") else "cannot reach"
        problems.append(f"{name} {what} the registry: {registry.get('error') or 'no reason given'}")
    return problems


def _disk_problems(name: str, disk: Any) -> list[str]:
    if not isinstance(disk, Mapping):
        return []
    problems: list[str] = []
    if failed := disk.get("failed"):
        problems.append(f"the disk of {name} failed: {failed}")
    if disk.get("full") is True:
        problems.append(f"the disk of {name} is full: new bytes are refused there; make room")
    if lost := disk.get("lost_slots"):
        count = len(lost) if isinstance(lost, list) else lost
        problems.append(f"{name} lost {count} slots and rebuilds them from the others")
    return problems


def _check_disk(disk: Path, deep: bool, json_output: bool) -> None:
    if not disk.is_dir():
        raise CommandFailed(f"{disk} is no folder", "Give the disk's folder: the one with disk.toml in it.")
    from chunkstore.doctor import examine

    show = on_terminal(stderr=True) and not json_output

    def progress(text: str) -> None:
        if show:
            note(f"looking at {printable(text)}")

    report = examine(disk, deep=deep, progress=progress)
    if json_output:
        say_json(report.as_dict())
    else:
        say(f"disk: {report.disk}" + (f" ({report.disk_id})" if report.disk_id else ""))
        if report.counts:
            say("looked at: " + ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.counts.items()))
        for finding in report.findings:
            say(f"{finding.severity}: {printable(finding.where)}: {printable(finding.what)}")
            say(f"  {printable(finding.todo)}")
        say("nothing is wrong with this disk" if report.healthy else "something is wrong with this disk")
    if not report.healthy:
        raise typer.Exit(1)
