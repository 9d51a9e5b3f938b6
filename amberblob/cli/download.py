"""``amberblob get``."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from amberblob.cli.options import (
    At,
    Consistency,
    Endpoint,
    Json,
    Parallel,
    Version,
    consistency_of,
    range_of,
    wants_json,
    with_client,
)
from amberblob.cli.output import human_size, note, on_terminal, printable, say, say_json
from amberblob.cli.progress import progress_bar

if TYPE_CHECKING:
    from amberblob.client import AsyncClient, ObjectInfo, ObjectReader

STDOUT = "-"
WRITE_BYTES = 1024 * 1024


def get(
    path: Annotated[str, typer.Argument(metavar="PATH", help="The object's name; with --recursive a prefix.")],
    destination: Annotated[
        str | None,
        typer.Argument(
            metavar="[DEST|-]",
            help="A file or folder; - is stdout. Default: the object's last name, here.",
            show_default=False,
        ),
    ] = None,
    version: Version = None,
    at: At = None,
    span: Annotated[
        str | None,
        typer.Option("--range", metavar="START:END", help="Only these bytes; END is exclusive. -N: is the last N."),
    ] = None,
    consistency: Consistency = None,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Everything below PATH, into the folder DEST.")
    ] = False,
    parallel: Parallel = 8,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Download an object, or everything below a prefix.

    A file appears under its name only when it is complete and its digest is right.

    \b
    Examples:
      amberblob get albums/2024/1.jpg
      amberblob get backups/etc.tar - | tar x
      amberblob get logs/today - --range -1000:
      amberblob get app/config.json old.json --at 2026-01-31T12:00:00Z
      amberblob get --recursive www/ ./site
    """
    json_output = wants_json(json_output)
    consistency = consistency_of(consistency)
    wanted = range_of(span)
    if version is not None and at is not None:
        raise typer.BadParameter("--version and --at exclude each other")
    if recursive:
        if version is not None or span is not None:
            raise typer.BadParameter("--version and --range are for one object; leave them out with --recursive")
        if destination == STDOUT:
            raise typer.BadParameter("--recursive needs a folder, not stdout")
        _get_prefix(path, Path(destination or "."), at, consistency, parallel, endpoint, json_output)
        return
    to_stdout = destination == STDOUT
    if to_stdout and json_output:
        raise typer.BadParameter("--json and the object cannot both go to stdout; name a file")
    target = None if to_stdout else _target(path, destination)

    async def work(client: AsyncClient) -> ObjectInfo:
        with progress_bar(path, 0, quiet=to_stdout and on_terminal()) as bar:
            options: dict[str, Any] = {"version": version, "at": at, "range": wanted, "consistency": consistency}
            async with client.get(path, **options) as reader:
                report = bar.transfer(reader.length)
                if target is None:
                    await _to_stdout(reader, report)
                else:
                    await _to_file(reader, target, report)
                return reader.info

    info = with_client(endpoint, work)
    if json_output:
        say_json({**info.to_json(), "file": str(target)})
    elif target is not None:
        note(f"{target}  version {info.version}  {human_size(target.stat().st_size)}")


def _target(path: str, destination: str | None) -> Path:
    name = path.rpartition("/")[2]
    if destination is None:
        place = Path()
    else:
        place = Path(destination)
        if not destination.endswith("/") and not place.is_dir():
            return place
    if name in ("", ".", "..") or "\0" in name:
        raise typer.BadParameter(f"{printable(path)!r} has no last name that a file could bear; name a DEST")
    return place / name


async def _to_stdout(reader: ObjectReader, report: Any) -> None:
    done = 0
    async for piece in reader:
        sys.stdout.buffer.write(piece)
        done += len(piece)
        report(done, reader.length)
    sys.stdout.buffer.flush()


async def _to_file(reader: ObjectReader, target: Path, report: Any) -> None:
    with _draft(target) as file:
        await _write(reader, file, report)


@contextmanager
def _draft(target: Path) -> Iterator[IO[bytes]]:
    """A file beside the target that takes its place when all went well; devices and pipes are written directly."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.realpath(target))  # a link stays a link; what it points to is replaced
    mode: int | None = None
    with contextlib.suppress(FileNotFoundError):
        mode = target.stat().st_mode
    if mode is not None and not stat.S_ISREG(mode):
        with open(target, "wb") as file:
            yield file
        return
    draft = target.with_name(f".{target.name[:60]}.{secrets.token_hex(4)}.part")
    try:
        with open(draft, "xb") as file:
            yield file
        if mode is not None:
            draft.chmod(stat.S_IMODE(mode))
        os.replace(draft, target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


async def _write(reader: ObjectReader, file: Any, report: Any) -> None:
    done = 0
    while piece := await reader.read(WRITE_BYTES):
        await asyncio.to_thread(file.write, piece)
        done += len(piece)
        report(done, reader.length)


def _get_prefix(
    prefix: str,
    folder: Path,
    at: str | None,
    consistency: str | None,
    parallel: int,
    endpoint: str | None,
    json_output: bool,
) -> None:
    if prefix and not prefix.endswith("/"):
        prefix += "/"

    async def work(client: AsyncClient) -> None:
        from amberblob.cli.batch import run_all

        with progress_bar(prefix or "everything", 0) as bar:

            async def one(entry: ObjectInfo) -> ObjectInfo:
                target = folder.joinpath(*_safe_parts(entry.path[len(prefix) :]))
                options: dict[str, Any] = {"version": entry.version, "consistency": consistency}
                async with client.get(entry.path, **options) as reader:
                    await _to_file(reader, target, bar.transfer(reader.length))
                    return reader.info

            outcome = await run_all(_objects(client, prefix, at), one, lambda entry: entry.path, parallel=parallel)
        outcome.finish("downloaded", json_output=json_output)
        if not json_output:
            say(f"downloaded {len(outcome.done)} objects, {human_size(sum(info.size for info in outcome.done))}")

    with_client(endpoint, work)


async def _objects(client: AsyncClient, prefix: str, at: str | None) -> AsyncIterator[ObjectInfo]:
    async for page in client.list(prefix, at=at):
        for entry in page.objects:
            yield entry


def _safe_parts(name: str) -> list[str]:
    """The parts of a file's name below the folder. Names come from strangers: none may lead out of it."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise ValueError("the name cannot be that of a file below a folder; download it by itself with a DEST")
    return parts
