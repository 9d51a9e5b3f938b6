"""``amberblob put``."""

from __future__ import annotations

import asyncio
import io
import mimetypes
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from amberblob.cli.options import (
    Endpoint,
    IfMatch,
    IfVersion,
    Json,
    Parallel,
    WriteId,
    meta_of,
    wants_json,
    with_client,
)
from amberblob.cli.output import CommandFailed, human_size, printable, say, say_json
from amberblob.cli.progress import progress_bar

if TYPE_CHECKING:
    from amberblob.client import AsyncClient, ObjectInfo

STDIN = "-"


def put(
    source: Annotated[
        str, typer.Argument(metavar="FILE|-", help="What to upload; - is stdin, with --recursive a folder.")
    ],
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="The object's name; ending in / it gets the file's name.")
    ],
    content_type: Annotated[
        str | None, typer.Option("--content-type", metavar="TYPE", help="Default: guessed from the file's name.")
    ] = None,
    meta: Annotated[
        list[str] | None, typer.Option("--meta", metavar="KEY=VALUE", help="Kept with the version; repeatable.")
    ] = None,
    version: Annotated[
        int | None,
        typer.Option("--version", metavar="N", min=1, help="The new version's number; greater than all before."),
    ] = None,
    if_none_match: Annotated[
        str | None, typer.Option("--if-none-match", metavar="'*'", help="'*': only if there is no such object.")
    ] = None,
    if_match: IfMatch = None,
    if_version: IfVersion = None,
    write_id: WriteId = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Upload a folder; PATH is the prefix.")] = False,
    parallel: Parallel = 8,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Upload a file, stdin or a folder.

    \b
    Examples:
      amberblob put photo.jpg albums/2024/1.jpg
      tar c /etc | amberblob put - backups/etc.tar
      amberblob put --recursive ./site www/
      amberblob put config.json app/config.json --if-version 7
    """
    json_output = wants_json(json_output)
    extra = meta_of(meta)
    if recursive:
        given = {
            "--version": version, "--if-none-match": if_none_match, "--if-match": if_match,
            "--if-version": if_version, "--write-id": write_id,
        }  # fmt: skip
        if wrong := [name for name, value in given.items() if value is not None]:
            raise typer.BadParameter(f"{wrong[0]} is for one object; leave it out with --recursive")
        _put_folder(Path(source), path, content_type, extra, parallel, endpoint, json_output)
        return
    if source != STDIN:
        if Path(source).is_dir():
            raise CommandFailed(f"{source} is a folder", "Upload it with --recursive.")
        if path.endswith("/"):
            path += Path(source).name

    async def work(client: AsyncClient) -> ObjectInfo:
        size = None if source == STDIN else os.stat(source).st_size
        with progress_bar(path, size) as bar:
            return await client.put(
                path,
                _stdin() if source == STDIN else Path(source),
                content_type=content_type or guess_type(path if source == STDIN else source),
                meta=extra,
                version=version,
                if_none_match=if_none_match,
                if_match=if_match,
                if_version=if_version,
                write_id=write_id,
                progress=bar.transfer(size, counted=True),
            )

    info = with_client(endpoint, work)
    if json_output:
        say_json(info.to_json())
    else:
        say(f"{printable(info.path)}  version {info.version}  {human_size(info.size)}  {info.etag}")


def _stdin() -> IO[bytes]:
    """Standard input without a buffer: a read that waits for ever holds no lock that the interpreter's end would need."""
    try:
        return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)
    except (io.UnsupportedOperation, AttributeError):
        return sys.stdin.buffer


def guess_type(name: str) -> str | None:
    """The content type that the name suggests; a compressed file is what its compression says."""
    kind, encoding = mimetypes.guess_type(name, strict=False)
    if encoding is not None:
        return {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}.get(encoding)
    return kind


def _put_folder(
    folder: Path,
    prefix: str,
    content_type: str | None,
    meta: dict[str, str],
    parallel: int,
    endpoint: str | None,
    json_output: bool,
) -> None:
    if not folder.is_dir():
        raise CommandFailed(f"{folder} is no folder", "Leave out --recursive to upload one file.")
    files = sorted(_files(folder))
    total = sum(size for _, size in files)
    if prefix and not prefix.endswith("/"):
        prefix += "/"

    async def work(client: AsyncClient) -> None:
        from amberblob.cli.batch import run_all

        with progress_bar(f"{len(files)} files", total) as bar:

            async def one(entry: tuple[Path, int]) -> ObjectInfo:
                file, size = entry
                return await client.put(
                    prefix + file.relative_to(folder).as_posix(),
                    file,
                    content_type=content_type or guess_type(file.name),
                    meta=meta,
                    progress=bar.transfer(size, counted=True),
                )

            outcome = await run_all(_each(files), one, lambda entry: str(entry[0]), parallel=parallel)
        outcome.finish("uploaded", json_output=json_output)
        if not json_output:
            say(f"uploaded {len(outcome.done)} files, {human_size(sum(info.size for info in outcome.done))}")

    with_client(endpoint, work)


def _files(folder: Path) -> list[tuple[Path, int]]:
    """Every regular file below, with its size. Links to files are followed, links to folders are not."""
    found: list[tuple[Path, int]] = []

    def refuse(error: OSError) -> None:
        raise error

    for place, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            file = Path(place, name)
            if file.is_file():
                found.append((file, file.stat().st_size))
    return found


async def _each(files: list[tuple[Path, int]]) -> AsyncIterator[tuple[Path, int]]:
    for entry in files:
        yield entry
        await asyncio.sleep(0)
