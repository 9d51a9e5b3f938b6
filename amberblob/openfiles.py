"""Who may have how many of the files that this process may have open (RLIMIT_NOFILE).

Clients decide how many connections there are. Without a bound they could take the last descriptor, and a database that
cannot be opened then is to the store a disk that failed.
"""

from __future__ import annotations

import resource

DATABASES_MAX = 256
DATABASES_MIN = 16
_FILES_PER_DATABASE = 4
_OTHERS_MAX = 512
"""For the journal, chunk files, peers, connections of the peers' port that have proved nothing yet, and the archive."""

_CONNECTIONS_MIN = 16


def databases_max() -> int:
    """How many databases may be open: with their logs they take half of the files at most."""
    allowed = _allowed()
    if allowed is None:
        return DATABASES_MAX
    return max(DATABASES_MIN, min(DATABASES_MAX, allowed // 2 // _FILES_PER_DATABASE))


def connections_max() -> int | None:
    """How many connections of clients may be open now; None: any number. Asked anew each time: the limit may change."""
    allowed = _allowed()
    if allowed is None:
        return None
    others = min(_OTHERS_MAX, allowed // 4)
    return max(_CONNECTIONS_MIN, allowed - databases_max() * _FILES_PER_DATABASE - others)


def _allowed() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
