"""Refused peers in the log: once per peer, reason and minute, however often it tries."""

from __future__ import annotations

from collections.abc import Callable

import structlog

LOG_INTERVAL_S = 60.0
_KEYS_MAX = 512

_log = structlog.get_logger(__name__)


class RefusalLog:
    """Remembers what was logged lately. ``monotonic_s`` tells the time."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._monotonic_s = monotonic_s
        self._logged_at_s: dict[tuple[str, str, str], float] = {}

    def refused(self, event: str, *, peer: str, reason: str, detail: str) -> None:
        """Log a warning, unless the same one was logged within the last minute."""
        key = (event, peer, reason)
        now_s = self._monotonic_s()
        if now_s - self._logged_at_s.get(key, -LOG_INTERVAL_S) < LOG_INTERVAL_S:
            return
        if len(self._logged_at_s) >= _KEYS_MAX:
            recent = {key: at_s for key, at_s in self._logged_at_s.items() if now_s - at_s < LOG_INTERVAL_S}
            self._logged_at_s = recent
            if len(recent) >= _KEYS_MAX:
                return  # strangers make up names: they shall not fill the log
        self._logged_at_s[key] = now_s
        _log.warning(event, peer=peer, reason=reason, detail=detail)
