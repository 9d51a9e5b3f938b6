"""``amberblob dev``: a local cluster in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def dev(
    nodes: Annotated[
        int | None,
        typer.Option("--nodes", min=1, max=10, help="How many nodes.  [default: 3, or as many as the folder has]"),
    ] = None,
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Where everything is kept.")] = Path(
        "amberblob-data"
    ),
    port: Annotated[
        int, typer.Option("--port", min=1, max=65_535, help="node-1's public port; node-2 has the next, and so on.")
    ] = 7700,
    registry: Annotated[
        str | None,
        typer.Option("--registry", metavar="URL", help="A registry of your own instead of the embedded one."),
    ] = None,
    archive: Annotated[
        str | None,
        typer.Option(
            "--archive",
            metavar="URL|DIR",
            help="Have an archive: s3://bucket/prefix, or a folder. Give it once: it is written into each node.toml.",
        ),
    ] = None,
    archive_endpoint: Annotated[
        str | None,
        typer.Option("--archive-endpoint", metavar="URL", help="Of an S3 that is not Amazon's: http://host:port."),
    ] = None,
) -> None:
    """Run a local cluster in the foreground: one real process per node.

    Prints one line per node once all are ready, then the line "ready". Ctrl-C or SIGTERM stops it cleanly; started
    again on the same folder it has all its data. Kill a node to play with failure: it stays dead until you start
    it again with the command that is shown.

    \b
    Examples:
      amberblob dev
      amberblob dev --nodes 5 --data /tmp/play --port 9000
      amberblob dev --archive /tmp/cold                      then: amberblob archive run --dry-run
      kill -9 PID                                            a node dies, the cluster goes on
      amberblob serve --config amberblob-data/node-2/node.toml   and is back
    """
    from amberblob.cli.devarchive import archive_keys
    from amberblob.cli.devcluster import DevCluster
    from amberblob.cli.devlayout import open_layout

    keys = archive_keys(archive, archive_endpoint)
    with open_layout(data, nodes=nodes, port=port, registry=registry, archive=keys) as layout:
        DevCluster(layout).run()
