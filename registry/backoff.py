"""How long to wait before the next try: doubling, with full jitter, so that many clients do not come at once."""

from __future__ import annotations

from amberblob.clock import Randomness


class Backoff:
    """Waits between tries, seconds: random in [half, whole] of a span that doubles from ``first_s`` to ``max_s``."""

    def __init__(self, randomness: Randomness, *, first_s: float = 0.1, max_s: float = 5.0) -> None:
        self._randomness = randomness
        self._first_s = min(first_s, max_s)
        self._max_s = max_s
        self._span_s = self._first_s

    def next_s(self) -> float:
        """The next wait."""
        wait_s = self._span_s * (0.5 + self._randomness.fraction() / 2)
        self._span_s = min(self._span_s * 2, self._max_s)
        return wait_s

    def reset(self) -> None:
        """A try went well."""
        self._span_s = self._first_s
