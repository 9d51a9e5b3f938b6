"""What every process that the benchmark starts has in common."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path

ROOT = Path(__file__).parent.parent
"""Of this checkout."""

HOST = "127.0.0.1"

ENVIRONMENT = {
    **os.environ,
    # What is measured is this checkout, also where another one is installed.
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
}

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def end_with_parent() -> None:
    """For ``preexec_fn``: the kernel ends this child (SIGTERM) when the benchmark itself is killed."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
