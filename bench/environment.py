"""What every process that the benchmark starts has in common."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

ROOT = Path(__file__).parent.parent
"""Of this checkout."""

HOST = "127.0.0.1"


def environment_of(checkout: Path) -> dict[str, str]:
    """The environment in which a process runs the code of this checkout, also where another one is installed."""
    path = [str(checkout), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Without the safe path the folder in which the benchmark was called would come first, and that is a checkout too.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "PYTHONSAFEPATH": "1"}


ENVIRONMENT = environment_of(ROOT)

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent() -> None:
    """For ``preexec_fn``: the kernel ends this child (SIGTERM) when the benchmark itself is killed."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
