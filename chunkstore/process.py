"""What concerns the whole process: its memory."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """The C library's malloc_trim; None where there is none."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
    return trim


def trim_memory() -> None:
    """Give freed memory back to the system. Costs some milliseconds; nothing happens where the C library cannot."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)
