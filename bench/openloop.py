"""When the requests of an open loop are due, and a timer that is exact enough for it."""

from __future__ import annotations

import ctypes
import math
import os
import random
from collections.abc import Iterator

from bench.job import Arrivals

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
_NS = 10**9
_libc = ctypes.CDLL(None, use_errno=True)


def due_times(rate_per_s: float, arrivals: Arrivals, seed: int) -> Iterator[float]:
    """Seconds after the beginning at which one request after another is due, without end.

    ``poisson``: as from many clients who know nothing of each other; ``even``: at equal distances.
    """
    chance, at = random.Random(seed), 0.0
    while True:
        yield at
        at += -math.log(1.0 - chance.random()) / rate_per_s if arrivals == "poisson" else 1.0 / rate_per_s


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class ExactTimer:
    """A timerfd: readable from a moment of the monotonic clock on. Event loops' own timers know whole milliseconds."""

    def __init__(self) -> None:
        self.descriptor = int(_libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        if self.descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, moment_s: float) -> None:
        """Become readable at that moment (of ``time.monotonic``), at once if it is over."""
        nanoseconds = max(1, round(moment_s * _NS))
        value = _Itimerspec(_Timespec(0, 0), _Timespec(*divmod(nanoseconds, _NS)))
        if _libc.timerfd_settime(self.descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(value), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def clear(self) -> None:
        """Take note that it was readable."""
        try:
            os.read(self.descriptor, 8)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Free it."""
        os.close(self.descriptor)
