"""Time and chance as arguments: the real ones, and the hybrid logical clock that ids are made from.

Nothing below ``node.main`` and the command line asks the operating system for the time or for random
bytes; it is handed a :class:`Clock` and a :class:`Randomness`. A simulation hands in seeded ones.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Wall time for names and dates, monotonic time for waiting."""

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch, by this machine's opinion. May jump."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that only ever grow. Meaningless between processes."""
        ...


class Randomness(Protocol):
    """Random bytes for ids and nonces, and fractions for jitter."""

    def token(self, size_bytes: int) -> bytes:
        """``size_bytes`` unpredictable bytes."""
        ...

    def fraction(self) -> float:
        """A number in [0, 1)."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        return time.monotonic()


class SystemRandomness:
    """The operating system's entropy."""

    def token(self, size_bytes: int) -> bytes:
        return os.urandom(size_bytes)

    def fraction(self) -> float:
        return random.random()


class SeededRandomness:
    """Reproducible: for tests and simulations only."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def token(self, size_bytes: int) -> bytes:
        return self._random.randbytes(size_bytes)

    def fraction(self) -> float:
        return self._random.random()


class HybridClock:
    """A hybrid logical clock in milliseconds (Kulkarni et al. 2014), folded into one integer.

    It never goes back while the process lives, even when the wall clock does, and it is at least as
    late as every time that it was shown by :meth:`observe`. It names and sorts; it never decides which
    version wins.
    """

    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self._wall_ms = wall_ms
        self._last_ms = 0

    def now_ms(self) -> int:
        """The current hybrid time; not less than any returned or observed before."""
        self._last_ms = max(self._last_ms, self._wall_ms())
        return self._last_ms

    def observe(self, peer_ms: int, *, ahead_max_ms: int) -> bool:
        """Take a peer's time into account. False, and ignored, when it is more than ``ahead_max_ms`` ahead."""
        if peer_ms > self._wall_ms() + ahead_max_ms:
            return False
        self._last_ms = max(self._last_ms, peer_ms)
        return True
