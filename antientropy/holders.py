"""Who is asked for bytes first: whoever is likely to have them here soonest. Pure, but for the time that it is told.

A node's rate is learnt from what it gave so far, and what it was asked for already counts against it, so that several
holders of equal speed share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from amberblob.clock import Clock
from amberblob.limits import KIB, MIB

RATE_FIRST = 100.0 * MIB
"""Bytes per second that a node is taken to give as long as nothing is known of it: it is to be tried."""

REQUEST_BYTES = 64 * KIB
"""What a request costs beside its bytes, as so many bytes."""

LATEST_SHARE = 0.3
"""How much the latest answer counts for the rate."""

AVOID_FIRST_S = 1.0
AVOID_MAX_S = 60.0


@dataclass(slots=True)
class _Holder:
    rate: float = RATE_FIRST
    asked_bytes: int = 0
    failures: int = 0
    avoid_until_s: float = float("-inf")


class Holders:
    """What is known of the nodes that give bytes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, _Holder] = {}

    def order(
        self, nodes: Iterable[str], size_bytes: int, *, reachable: Callable[[str], bool], likely: Collection[str] = ()
    ) -> list[str]:
        """All of the nodes, the best to ask for so many bytes first.

        Those that cannot be reached, or failed lately, come last; of the others those that are ``likely`` to have the
        bytes come before the rest.
        """
        now_s = self._clock.monotonic_s()

        def cost(node: str) -> tuple[bool, bool, bool, float]:
            known = self._known.get(node) or _Holder()
            seconds = (known.asked_bytes + size_bytes + REQUEST_BYTES) / known.rate
            return not reachable(node), known.avoid_until_s > now_s, node not in likely, seconds

        return sorted(dict.fromkeys(nodes), key=cost)

    def began(self, node: str, size_bytes: int) -> float:
        """The node was asked for so many bytes; returns what :meth:`gave` wants to be told."""
        self._of(node).asked_bytes += size_bytes
        return self._clock.monotonic_s()

    def ended(self, node: str, size_bytes: int) -> None:
        """Whatever it was asked for came, or will not come."""
        self._of(node).asked_bytes -= size_bytes

    def gave(self, node: str, size_bytes: int, began_s: float) -> None:
        """The node gave so many bytes."""
        known = self._of(node)
        seconds = max(self._clock.monotonic_s() - began_s, 1e-4)
        known.rate += LATEST_SHARE * ((size_bytes + REQUEST_BYTES) / seconds - known.rate)
        known.failures = 0

    def failed(self, node: str) -> None:
        """The node did not answer, or what it gave was wrong: others are asked first for a while, each time longer."""
        known = self._of(node)
        avoid_s = min(AVOID_MAX_S, AVOID_FIRST_S * float(1 << min(known.failures, 16)))
        known.failures += 1
        known.avoid_until_s = self._clock.monotonic_s() + avoid_s

    def _of(self, node: str) -> _Holder:
        return self._known.setdefault(node, _Holder())
