"""The command line.

Reading order: ``app`` (the tree of commands), ``options`` (what all client commands share), ``output`` (how they
speak to people, pipes and machines), then one module per group of commands: ``upload``, ``download``, ``copy``,
``objects``, ``explain``, ``cluster``, ``doctor``, ``serve``, ``dev`` (with ``devlayout`` and ``devcluster``).

Nothing here holds logic of the store: client commands speak through :mod:`amberblob.client`, and the few commands
that need the daemon or a disk import those parts inside of the command, so that ``amberblob ls`` stays quick.

Exit status: 0 done, 1 refused or failed, 2 wrong usage. Errors are one or two lines on stderr; the traceback appears
only with ``AMBERBLOB_DEBUG=1``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave the process with its exit status."""
    from amberblob.cli.app import run

    sys.exit(run(arguments))
