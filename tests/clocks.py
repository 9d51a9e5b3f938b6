"""Time for tests."""

from __future__ import annotations


class HandClock:
    """Stands still until it is put forward.

    Args:
        now_s: monotonic seconds.
        start_ms: how far ahead of those the wall clock is, milliseconds.
    """

    def __init__(self, now_s: float = 1000.0, *, start_ms: int = 0) -> None:
        self.now_s = now_s
        self.start_ms = start_ms

    def wall_ms(self) -> int:
        return self.start_ms + int(self.now_s * 1000)

    def monotonic_s(self) -> float:
        return self.now_s
