"""What a coordinator may keep of a write that ended well, to begin the path's next one with its COMMIT (rfc/0009).

A hold is good in the epoch of its ballot only. Within it, a copy that promised and lost its memory since does no harm: it
is mute, and what was chosen with its vote above the ballot is on a majority with one of the others, which refuses. Once
such a copy is filled, a majority is in a later epoch and refuses all ballots of this one. A stub that was forgotten since
is below the ballot, and none older than it came back: what is built on it is right.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from amberblob.ballot import Ballot
from node.protocol.quorum import Finding

HOLDS_MAX = 4096


class Hold(msgspec.Struct, frozen=True):
    """A ballot that a read quorum has promised, having accepted the finding's record. Good for one write.

    Attributes:
        ballot: what is promised.
        finding: the chosen record below it, on a write quorum.
        version_floor: new versions must be greater.
        promised: the voters that promised.
    """

    ballot: Ballot
    finding: Finding
    version_floor: int
    promised: frozenset[str]


class Holds:
    """The holds of one coordinator, by path. In memory, the oldest forgotten first."""

    def __init__(self, holds_max: int = HOLDS_MAX) -> None:
        self._max = holds_max
        self._by_path: OrderedDict[str, Hold] = OrderedDict()

    def keep(self, path: str, hold: Hold) -> None:
        """Keep it for the path's next write."""
        self._by_path[path] = hold
        self._by_path.move_to_end(path)
        if len(self._by_path) > self._max:
            self._by_path.popitem(last=False)

    def take(self, path: str) -> Hold | None:
        """What is held for the path; it is used, or forgotten."""
        return self._by_path.pop(path, None)
