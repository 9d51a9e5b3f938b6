"""``amberblob ls``, ``rm``, ``stat``, ``versions`` and ``restore``."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from amberblob.cli.options import (
    At,
    Consistency,
    Endpoint,
    IfMatch,
    IfVersion,
    Json,
    Parallel,
    Version,
    WriteId,
    consistency_of,
    wants_json,
    with_client,
)
from amberblob.cli.output import human_size, on_terminal, printable, say, say_json
from amberblob.cli.table import print_table

if TYPE_CHECKING:
    from amberblob.client import AsyncClient, ListPage, ObjectInfo

Path = Annotated[str, typer.Argument(metavar="PATH", help="The object's name.")]


def ls(
    prefix: Annotated[
        str, typer.Argument(metavar="[PREFIX]", help="What the names begin with.", show_default=False)
    ] = "",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Everything below, not one level.")] = False,
    delimiter: Annotated[str, typer.Option("--delimiter", metavar="TEXT", help="What separates levels.")] = "/",
    long: Annotated[bool, typer.Option("--long", "-l", help="Size, time, version and etag as well.")] = False,
    tombstoned: Annotated[bool, typer.Option("--tombstoned", help="Deleted objects as well.")] = False,
    at: At = None,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="At most so many entries.")] = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """List objects: one level, or everything below with --recursive.

    A table on a terminal; in a pipe one name per line, with --long columns separated by tabs.

    \b
    Examples:
      amberblob ls
      amberblob ls albums/2024/
      amberblob ls --recursive logs/ | wc -l
      amberblob ls --at 2026-01-31T12:00:00Z --json
    """
    fold = "" if recursive else delimiter
    json_output = wants_json(json_output)

    async def work(client: AsyncClient) -> tuple[list[dict[str, Any]], list[str]]:
        from amberblob.limits import LIST_LIMIT_MAX

        objects: list[dict[str, Any]] = []
        prefixes: list[str] = []
        left = limit
        page_size = min(limit or LIST_LIMIT_MAX, LIST_LIMIT_MAX)
        async for page in client.list(prefix, delimiter=fold, page_size=page_size, tombstoned=tombstoned, at=at):
            entries = _in_order(page)[:left]
            if json_output:
                objects += [info.to_json() for _, info in entries if info is not None]
                prefixes += [name for name, info in entries if info is None]
            else:
                _show(entries, long=long, tombstoned=tombstoned)
            if left is not None:
                left -= len(entries)
                if left <= 0:
                    break
        return objects, prefixes

    objects, prefixes = with_client(endpoint, work)
    if json_output:
        say_json({"objects": objects, "prefixes": prefixes})


def _in_order(page: ListPage) -> list[tuple[str, ObjectInfo | None]]:
    """Objects and prefixes of a page, merged in byte order."""
    entries: list[tuple[str, ObjectInfo | None]] = [(info.path, info) for info in page.objects]
    entries += [(name, None) for name in page.prefixes]
    return sorted(entries, key=lambda entry: entry[0].encode())


def _show(entries: Sequence[tuple[str, ObjectInfo | None]], *, long: bool, tombstoned: bool) -> None:
    if not on_terminal():
        lines = [_plain(name, info) if long else name for name, info in entries]
        if lines:
            sys.stdout.write("\n".join(lines) + "\n")
        return
    rows = [
        (["", "", "", printable(name)] + ([""] if long else []))
        if info is None
        else [
            human_size(info.size),
            _local_time(info),
            f"v{info.version}" + (" deleted" if info.tombstoned else ""),
            printable(name),
            *([info.etag] if long else []),
        ]
        for name, info in entries
    ]
    print_table(["size>", "modified", "version", "name", *(["etag"] if long else [])], rows)


def _plain(name: str, info: ObjectInfo | None) -> str:
    if info is None:
        return f"-\t-\t-\t-\t{name}"
    version = f"{info.version}" + (" deleted" if info.tombstoned else "")
    return f"{info.size}\t{_utc_time(info)}\t{version}\t{info.etag}\t{name}"


def _local_time(info: ObjectInfo) -> str:
    return info.created_at.astimezone().strftime("%Y-%m-%d %H:%M:%S") if info.created_at else ""


def _utc_time(info: ObjectInfo) -> str:
    return str(info.to_json()["created_at"] or "-")


def rm(
    path: Annotated[str, typer.Argument(metavar="PATH", help="The object's name; with --recursive a prefix.")],
    version: Annotated[int | None, typer.Option("--version", metavar="N", min=1, help="Only this version.")] = None,
    if_match: IfMatch = None,
    if_version: IfVersion = None,
    write_id: WriteId = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Every object whose name begins with PATH.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask (with --recursive).")] = False,
    parallel: Parallel = 8,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Delete an object. Its versions stay readable by number, and `restore` brings it back, until retention ends.

    \b
    Examples:
      amberblob rm albums/2024/1.jpg
      amberblob rm albums/2024/1.jpg --version 3
      amberblob rm --recursive logs/2019/
    """
    json_output = wants_json(json_output)
    if recursive:
        if version is not None or if_match is not None or if_version is not None or write_id is not None:
            raise typer.BadParameter(
                "--version, --write-id and conditions are for one object; leave them out with --recursive"
            )
        _rm_prefix(path, yes, parallel, endpoint, json_output)
        return

    async def work(client: AsyncClient) -> None:
        await client.delete(path, version=version, if_match=if_match, if_version=if_version, write_id=write_id)

    with_client(endpoint, work)
    if json_output:
        say_json({"path": path, "version": version, "deleted": True})
    else:
        say(f"deleted {printable(path)}" + (f" version {version}" if version is not None else ""))


def _rm_prefix(prefix: str, yes: bool, parallel: int, endpoint: str | None, json_output: bool) -> None:
    if not yes:
        if not sys.stdin.isatty():
            raise typer.BadParameter(
                "--recursive asks before it deletes, and there is no terminal to ask on; give --yes"
            )
        typer.confirm(f"Delete every object whose name begins with {printable(prefix)!r}?", abort=True, err=True)

    async def work(client: AsyncClient) -> None:
        from amberblob.cli.batch import run_all

        async def objects() -> AsyncIterator[ObjectInfo]:
            async for page in client.list(prefix):
                for entry in page.objects:
                    yield entry

        async def one(entry: ObjectInfo) -> ObjectInfo:
            await client.delete(entry.path)
            return entry

        outcome = await run_all(objects(), one, lambda entry: entry.path, parallel=parallel)
        outcome.finish("deleted", json_output=json_output)
        if not json_output:
            say(f"deleted {len(outcome.done)} objects")

    with_client(endpoint, work)


def stat(
    path: Path,
    version: Version = None,
    at: At = None,
    consistency: Consistency = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """What is known of an object, without its bytes.

    \b
    Example:
      amberblob stat albums/2024/1.jpg
    """
    chosen: Any = consistency_of(consistency)

    async def work(client: AsyncClient) -> ObjectInfo:
        return await client.head(path, version=version, at=at, consistency=chosen)

    info = with_client(endpoint, work)
    document = info.to_json()
    if wants_json(json_output):
        say_json(document)
        return
    meta = document.pop("meta")
    if not document["tombstoned"]:
        document.pop("tombstoned")
    document.update({f"meta {name}": value for name, value in meta.items()})
    for name, value in document.items():
        say(f"{name + ':':<14} {printable(str(value))}")


def versions(path: Path, endpoint: Endpoint = None, json_output: Json = False) -> None:
    """Every version of an object, newest first, deleted ones marked.

    \b
    Example:
      amberblob versions albums/2024/1.jpg
    """

    async def work(client: AsyncClient) -> Sequence[ObjectInfo]:
        return await client.versions(path)

    history = with_client(endpoint, work)
    if wants_json(json_output):
        say_json({"path": path, "versions": [info.to_json() for info in history]})
    elif on_terminal():
        rows = [
            [
                str(info.version),
                human_size(info.size),
                _local_time(info),
                "deleted" if info.tombstoned else "",
                info.etag,
            ]
            for info in history
        ]
        print_table(["version>", "size>", "made", "", "etag"], rows)
    else:
        for info in history:
            state = "deleted" if info.tombstoned else "live"
            say(f"{info.version}\t{info.size}\t{_utc_time(info)}\t{state}\t{info.etag}")


def restore(
    path: Path,
    version: Annotated[
        int | None,
        typer.Option("--version", metavar="N", min=1, help="This version; default: what the last delete took away."),
    ] = None,
    if_match: IfMatch = None,
    if_version: IfVersion = None,
    write_id: WriteId = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Undo a delete.

    \b
    Examples:
      amberblob restore albums/2024/1.jpg
      amberblob restore albums/2024/1.jpg --version 3
    """

    async def work(client: AsyncClient) -> ObjectInfo:
        return await client.restore(path, version=version, if_match=if_match, if_version=if_version, write_id=write_id)

    info = with_client(endpoint, work)
    if wants_json(json_output):
        say_json(info.to_json())
    else:
        say(f"restored {printable(path)}; its newest version is {info.version}")
