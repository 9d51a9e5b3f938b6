"""Who may have how many of the files that this process may have open (RLIMIT_NOFILE).

Clients decide how many connections and uploads there are, and strangers how many connections at the peers' port. Without
bounds they could take the last descriptor, and a database that cannot be opened then is to the store a disk that failed.
Each bound is asked for anew each time: the limit may change while the process runs.
"""

from __future__ import annotations

import resource

DATABASES_MAX = 256
DATABASES_MIN = 16
_FILES_PER_DATABASE = 4
_UPLOADS_MAX = 4096
_STRANGERS_MAX = 512
_REST_MAX = 512
"""For the journal, peers, files that are read, the index, and the archive."""

_CONNECTIONS_MIN = 16

REFUSED_LOG_S = 60.0
"""What is refused is told of so often at most."""


class OnceAMinute:
    """When a refusal for want of files is told of in the log: once a minute, however many there are."""

    def __init__(self) -> None:
        self._told_at_s = -REFUSED_LOG_S

    def is_due(self, now_s: float) -> bool:
        """Whether this one is to be told of; it counts as told then. ``now_s``: by a clock that only goes forward."""
        if now_s - self._told_at_s < REFUSED_LOG_S:
            return False
        self._told_at_s = now_s
        return True


def databases_max(wanted: int = DATABASES_MAX) -> int:
    """How many databases may be open, if so many are wanted: with their logs they take half of the files at most."""
    allowed = _allowed()
    return wanted if allowed is None else min(wanted, max(DATABASES_MIN, allowed // 2 // _FILES_PER_DATABASE))


def connections_max(databases: int = DATABASES_MAX) -> int | None:
    """How many connections of clients may be open, if so many databases are wanted; None: any number."""
    allowed = _allowed()
    if allowed is None:
        return None
    others = _uploads(allowed) + _strangers(allowed) + min(_REST_MAX, allowed // 16)
    return max(_CONNECTIONS_MIN, allowed - databases_max(databases) * _FILES_PER_DATABASE - others)


def uploads_max() -> int | None:
    """How many blobs of clients may come in at a time: each has a file open for as long as its client likes. None: any number."""
    allowed = _allowed()
    return None if allowed is None else _uploads(allowed)


def strangers_max() -> int | None:
    """How many connections at the peers' port may have proved nothing yet; None: any number."""
    allowed = _allowed()
    return None if allowed is None else _strangers(allowed)


def _uploads(allowed: int) -> int:
    return max(1, min(_UPLOADS_MAX, allowed // 8))


def _strangers(allowed: int) -> int:
    return max(1, min(_STRANGERS_MAX, allowed // 16))


def _allowed() -> int | None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft
