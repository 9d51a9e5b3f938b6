"""``amberblob serve``: one production node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def serve(
    config: Annotated[Path, typer.Option("--config", "-c", metavar="FILE", help="The node's configuration (TOML).")],
) -> None:
    """Run one node in the foreground until SIGTERM or Ctrl-C.

    Every key of the file may be given as AMBERBLOB_… in the environment instead.

    \b
    Example:
      amberblob serve --config /etc/amberblob/node.toml
    """
    import os

    from amberblob.config import load_config
    from node.main import run

    raise typer.Exit(run(load_config(config, os.environ)))
