"""``amberblob cp``: from object to object, through this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated

import typer

from amberblob.cli.options import Endpoint, IfMatch, IfVersion, Json, Version, WriteId, wants_json, with_client
from amberblob.cli.output import human_size, printable, say, say_json
from amberblob.cli.progress import progress_bar

if TYPE_CHECKING:
    from amberblob.client import AsyncClient, ObjectInfo


def cp(
    source: Annotated[str, typer.Argument(metavar="SRC", help="The object to copy.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="The new object; ending in / it gets SRC's last name.")],
    version: Version = None,
    if_none_match: Annotated[
        str | None, typer.Option("--if-none-match", metavar="'*'", help="'*': only if DST does not exist.")
    ] = None,
    if_match: IfMatch = None,
    if_version: IfVersion = None,
    write_id: WriteId = None,
    endpoint: Endpoint = None,
    json_output: Json = False,
) -> None:
    """Copy an object to another name, with its content type and metadata. The conditions are on DST.

    \b
    Examples:
      amberblob cp albums/1.jpg albums/cover.jpg
      amberblob cp app/config.json app/config.json --version 3      an old version becomes the newest
    """
    if target.endswith("/"):
        target += source.rpartition("/")[2]

    async def work(client: AsyncClient) -> ObjectInfo:
        original = await client.head(source, version=version)
        with progress_bar(f"{source} → {target}", original.size) as bar:
            return await client.put(
                target,
                _Content(client, original),
                size=original.size,
                content_type=original.content_type,
                meta=original.meta,
                if_none_match=if_none_match,
                if_match=if_match,
                if_version=if_version,
                write_id=write_id,
                progress=bar.transfer(original.size, counted=True),
            )

    info = with_client(endpoint, work)
    if wants_json(json_output):
        say_json(info.to_json())
    else:
        say(f"{printable(info.path)}  version {info.version}  {human_size(info.size)}  {info.etag}")


class _Content:
    """The content of one version, from the beginning as often as it takes: so that the upload can be repeated."""

    def __init__(self, client: AsyncClient, info: ObjectInfo) -> None:
        self._client = client
        self._info = info

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async with self._client.get(self._info.path, version=self._info.version) as reader:
            async for piece in reader:
                yield piece
